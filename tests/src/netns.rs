//! Network namespaces: named ones that a lab owns, anonymous ones for a single test, and work inside them.
//!
//! A thread enters the namespace (`setns`), and whatever it starts inherits it. Nothing else of the process moves.

use std::fs::File;
use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{SigSet, Signal};

/// Where named namespaces are, for `ip netns` and for CNI.
pub const NAMESPACE_FOLDER: &str = "/var/run/netns";

/// A named network namespace that is removed when this value is dropped.
#[derive(Debug)]
pub struct Namespace {
    name: String,
    owned: bool,
}

impl Namespace {
    /// Makes a namespace and brings its loopback up. Fails when the name is taken.
    pub fn create(name: &str) -> Result<Self> {
        run(Command::new("ip").args(["netns", "add", name]))?;
        let namespace = Self {
            name: name.to_owned(),
            owned: true,
        };
        namespace.run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        Ok(namespace)
    }

    /// A namespace that somebody else made and removes.
    pub fn existing(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            owned: false,
        }
    }

    /// Its name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub fn path(&self) -> PathBuf {
        Path::new(NAMESPACE_FOLDER).join(&self.name)
    }

    /// From now on dropping the value leaves the namespace alone.
    pub fn release(&mut self) {
        self.owned = false;
    }

    /// Runs a closure on a thread inside the namespace.
    pub fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        in_namespace(&self.path(), work)
    }

    /// Starts a process inside the namespace.
    pub fn spawn(&self, command: &mut Command) -> Result<Child> {
        let text = describe(command);
        self.enter(|| start(command))?
            .with_context(|| format!("cannot start {text} in namespace {}", self.name))
    }

    /// Runs a command inside the namespace; what it prints is returned, and a failure is an error with its words.
    pub fn run(&self, command: &mut Command) -> Result<String> {
        let output = self.output(command)?;
        checked(command, &output).with_context(|| format!("in namespace {}", self.name))
    }

    /// Runs a command inside the namespace to its end, whatever its status.
    pub fn output(&self, command: &mut Command) -> Result<Output> {
        command.stdin(Stdio::null());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(command)?;
        Ok(child.wait_with_output()?)
    }

    /// Runs a batch of `ip` commands, one a line, inside the namespace.
    pub fn ip_batch(&self, lines: &str) -> Result<()> {
        let mut command = Command::new("ip");
        command.args(["-batch", "-"]);
        command.stdin(Stdio::piped());
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = self.spawn(&mut command)?;
        let output = feed(child, lines.as_bytes())?;
        checked(&command, &output)
            .with_context(|| format!("ip batch in namespace {}:\n{lines}", self.name))?;
        Ok(())
    }

    /// Sets a network setting of this namespace, such as `net/ipv4/ip_forward`.
    pub fn set_sysctl(&self, key: &str, value: &str) -> Result<()> {
        let path = Path::new("/proc/sys").join(key);
        // /proc/sys/net shows the namespace of the thread that opens the file.
        self.enter(|| std::fs::write(&path, value))?
            .with_context(|| format!("cannot set {key} to {value} in namespace {}", self.name))
    }

    /// Reads a network setting of this namespace.
    pub fn sysctl(&self, key: &str) -> Result<String> {
        let path = Path::new("/proc/sys").join(key);
        let text = self
            .enter(|| std::fs::read_to_string(&path))?
            .with_context(|| format!("cannot read {key} in namespace {}", self.name))?;
        Ok(text.trim().to_owned())
    }

    /// Process ids whose main thread is in the namespace.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let text = run(Command::new("ip").args(["netns", "pids", &self.name]))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if self.owned {
            // A failure is not lost: the keeper tries again, and `cargo xtask test` looks for what is left.
            let _ = run(Command::new("ip").args(["netns", "delete", &self.name]));
        }
    }
}

/// Runs a closure on a thread inside the namespace that the file stands for.
pub fn in_namespace<T: Send>(path: &Path, work: impl FnOnce() -> T + Send) -> Result<T> {
    let file = File::open(path)
        .with_context(|| format!("cannot open network namespace {}", path.display()))?;
    on_thread(move || {
        setns(&file, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("cannot enter network namespace {}", path.display()))?;
        Ok(work())
    })
}

/// Runs a closure on a thread in a fresh network namespace that ends with it; its loopback is up.
pub fn isolated<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    on_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
        run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
        Ok(work())
    })
}

fn on_thread<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    // The thread carries the name of its parent, so that a failed assertion still names the test.
    let name = std::thread::current().name().unwrap_or("netns").to_owned();
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new()
            .name(name)
            .spawn_scoped(scope, work)
            .context("cannot start a thread")?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// Names of all namespaces that start with a prefix.
pub fn list(prefix: &str) -> Result<Vec<String>> {
    let entries = match std::fs::read_dir(NAMESPACE_FOLDER) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("cannot list network namespaces"),
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.starts_with(prefix) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

/// Runs a command to its end; a failure is an error with its words.
pub fn run(command: &mut Command) -> Result<String> {
    command.stdin(Stdio::null());
    let output = command
        .output()
        .with_context(|| format!("cannot start {}", describe(command)))?;
    checked(command, &output)
}

/// Gives a started process its input and waits for its end.
pub(crate) fn feed(mut child: Child, input: &[u8]) -> Result<Output> {
    let stdin = child.stdin.take().ok_or_else(|| anyhow!("no stdin"))?;
    std::thread::scope(|scope| {
        // Written beside the reading, so that neither side waits for the other with a full pipe. A process that
        // ends early closes the pipe; its status tells more than this error would.
        scope.spawn(move || {
            let mut stdin = stdin;
            let _ = stdin.write_all(input);
        });
        Ok(child.wait_with_output()?)
    })
}

pub(crate) fn checked(command: &Command, output: &Output) -> Result<String> {
    if !output.status.success() {
        bail!(
            "{} ended with {}: {}{}",
            describe(command),
            output.status,
            String::from_utf8_lossy(&output.stderr).trim(),
            String::from_utf8_lossy(&output.stdout).trim(),
        );
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn start(command: &mut Command) -> io::Result<Child> {
    // A process inherits the signal mask. A caller that waits for ctrl-C on a thread blocks these signals.
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_unblock()?;
    command.spawn()
}

fn describe(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}
