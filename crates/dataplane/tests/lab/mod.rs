//! Network namespaces for kernel tests: each test has its own, and nothing is left behind.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::{geteuid, gettid};

/// Runs `body` on a thread of its own in a fresh network namespace, or skips aloud.
pub(crate) fn in_fresh_namespace(area: &str, name: &str, body: impl FnOnce() + Send + 'static) {
    if !geteuid().is_root() {
        skip(area, name, "root", "needs root");
        return;
    }
    let run = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        ip("link set lo up");
        body();
    });
    if let Err(panic) = run.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Says that a test is skipped for want of a feature, and notes it where `cargo xtask test` counts.
pub(crate) fn skip(area: &str, name: &str, feature: &str, why: &str) {
    eprintln!("SKIP[{area}] {name}: {feature}: {why}");
    if let Some(path) = std::env::var_os("TOWPATH_SKIP_LOG") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "{area}\t{name}\t{feature}\t{why}").unwrap();
    }
}

/// Runs `ip` with words split at spaces, in the namespace of the calling thread.
pub(crate) fn ip(words: &str) {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(
        output.status.success(),
        "ip {words}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Runs a program that reads commands from its standard input.
pub(crate) fn feed(program: &str, arguments: &[&str], input: &str) {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    assert!(child.wait().unwrap().success(), "{program} failed");
}

/// A named network namespace; deleted when dropped.
pub(crate) struct Namespace {
    /// What `ip` calls it.
    pub(crate) name: String,
}

impl Namespace {
    /// Makes one whose name no other test has.
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "towpath-dp-{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        ip(&format!("netns add {name}"));
        let namespace = Self { name };
        namespace.ip("link set lo up");
        namespace
    }

    /// Runs `ip` in it.
    pub(crate) fn ip(&self, words: &str) {
        ip(&format!("-n {} {words}", self.name));
    }

    /// Runs `body` on a thread in it.
    pub(crate) fn run<T: Send>(&self, body: impl FnOnce() -> T + Send) -> T {
        let file = File::open(format!("/var/run/netns/{}", self.name)).unwrap();
        thread::scope(|scope| {
            scope
                .spawn(|| {
                    setns(file, CloneFlags::CLONE_NEWNET).unwrap();
                    body()
                })
                .join()
                .unwrap()
        })
    }

    /// Plugs it the way CNI plugins do: makes a veth inside with the other end, `host_end`, in the calling thread's
    /// namespace, as a port of `bridge` if there is one, then the addresses.
    pub(crate) fn plug(&self, host_end: &str, bridge: Option<&str>, mac: &str, addresses: &[&str]) {
        let host = gettid();
        self.ip(&format!(
            "link add eth0 address {mac} type veth peer name {host_end} netns {host}"
        ));
        if let Some(bridge) = bridge {
            ip(&format!("link set {host_end} master {bridge}"));
        }
        ip(&format!("link set {host_end} up"));
        self.ip("link set eth0 up");
        for address in addresses {
            let nodad = if address.contains(':') { " nodad" } else { "" };
            self.ip(&format!("addr add {address} dev eth0{nodad}"));
        }
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A failure here must not hide the test's own.
        Command::new("ip")
            .args(["netns", "del", &self.name])
            .output()
            .ok();
    }
}
