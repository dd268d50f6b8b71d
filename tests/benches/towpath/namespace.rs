//! Three network namespaces in a row: source, router, sink. Made and removed by this process.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use nix::sched::{CloneFlags, CpuSet, sched_setaffinity, setns};
use nix::unistd::Pid;
use policy_agent::applier::Applier;
use policy_agent::layout::{LayoutOptions, NodeFacts};
use towpath_core::tables::Tables;
use towpath_dataplane::nft::netlink::NetlinkBackend;

/// Numbers the topologies of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A source and a sink with a router between them. Dropping it removes the namespaces.
#[derive(Debug)]
pub(crate) struct Topology {
    prefix: String,
}

impl Topology {
    /// Builds it: the router forwards between `source` and `sink`, which are on-link behind their own links.
    pub(crate) fn new(source: Ipv4Addr, sink: Ipv4Addr) -> Result<Self> {
        let prefix = format!("tpb{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let topology = Self { prefix };
        let (s, r, d) = (topology.name("s"), topology.name("r"), topology.name("d"));
        for name in [&s, &r, &d] {
            run(&["ip", "netns", "add", name])?;
            run(&["ip", "-n", name, "link", "set", "lo", "up"])?;
        }
        run(&["ip", "-n", &r, "link", "add", "to-s", "type", "veth", "peer", "name", "eth0", "netns", &s])?;
        run(&["ip", "-n", &r, "link", "add", "to-d", "type", "veth", "peer", "name", "eth0", "netns", &d])?;
        run(&["ip", "-n", &r, "address", "add", "169.254.0.1/32", "dev", "lo"])?;
        for (name, address, link) in [(&s, source, "to-s"), (&d, sink, "to-d")] {
            let host = format!("{address}/32");
            run(&["ip", "-n", name, "address", "add", &host, "dev", "eth0"])?;
            run(&["ip", "-n", name, "link", "set", "eth0", "up"])?;
            run(&["ip", "-n", &r, "link", "set", link, "up"])?;
            run(&["ip", "-n", name, "route", "add", "169.254.0.1/32", "dev", "eth0"])?;
            run(&["ip", "-n", name, "route", "add", "default", "via", "169.254.0.1", "dev", "eth0"])?;
            run(&["ip", "-n", &r, "route", "add", &host, "dev", link])?;
        }
        run(&["ip", "netns", "exec", &r, "sysctl", "-qw", "net.ipv4.ip_forward=1"])?;
        for link in ["to-s", "to-d"] {
            let setting = format!("net.ipv4.conf.{link}.proxy_arp=1");
            run(&["ip", "netns", "exec", &r, "sysctl", "-qw", &setting])?;
        }
        let sink_table = "table ip sink { counter arrived {}\n chain count { type filter hook prerouting priority -400; \
                          ip protocol udp counter name arrived drop; } }";
        load(&d, sink_table)?;
        Ok(topology)
    }

    /// Loads nft text into the router.
    pub(crate) fn load_text(&self, text: &str) -> Result<()> {
        load(&self.name("r"), text)
    }

    /// Loads our own layout and tables into the router, through the product's own path.
    pub(crate) fn load_tables(&self, tables: &Tables, facts: &NodeFacts) -> Result<()> {
        self.inside("r", || -> Result<()> {
            let backend = NetlinkBackend::open().context("cannot open netlink")?;
            let mut applier = Applier::new(Box::new(backend), LayoutOptions::default());
            applier.start(tables.clone(), facts.clone()).context("cannot load the tables")?;
            Ok(())
        })?
    }

    /// Runs `work` on a thread in the source, pinned to one core.
    pub(crate) fn in_source<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.inside("s", work)
    }

    /// Runs `work` on a thread in the sink, pinned to one core.
    pub(crate) fn in_sink<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        self.inside("d", work)
    }

    /// Empties the router's connection table.
    pub(crate) fn forget_flows(&self) -> Result<()> {
        run(&["ip", "netns", "exec", &self.name("r"), "conntrack", "-F"])
    }

    /// UDP packets that reached the sink.
    pub(crate) fn arrived(&self) -> Result<u64> {
        let output = Command::new("ip")
            .args(["netns", "exec", &self.name("d"), "nft", "-j", "list", "counter", "ip", "sink", "arrived"])
            .output()
            .context("cannot list the sink's counter")?;
        let listing: serde_json::Value = serde_json::from_slice(&output.stdout)?;
        listing["nftables"]
            .as_array()
            .and_then(|objects| objects.iter().find_map(|object| object["counter"]["packets"].as_u64()))
            .context("the sink has no counter")
    }

    fn name(&self, part: &str) -> String {
        format!("{}-{part}", self.prefix)
    }

    fn inside<T: Send>(&self, part: &str, work: impl FnOnce() -> T + Send) -> Result<T> {
        let path = format!("/run/netns/{}", self.name(part));
        let namespace = std::fs::File::open(&path).with_context(|| format!("cannot open {path}"))?;
        thread::scope(|scope| {
            let thread = scope.spawn(move || -> Result<T> {
                setns(namespace, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                let mut core = CpuSet::new();
                core.set(0)?;
                sched_setaffinity(Pid::from_raw(0), &core).context("cannot pin the thread")?;
                Ok(work())
            });
            thread.join().unwrap_or_else(|_| bail!("the thread in {path} panicked"))
        })
    }
}

impl Drop for Topology {
    fn drop(&mut self) {
        for part in ["s", "r", "d"] {
            if let Err(error) = run(&["ip", "netns", "delete", &self.name(part)]) {
                eprintln!("cannot remove a namespace of this run: {error:#}");
            }
        }
    }
}

fn load(namespace: &str, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = Command::new("ip")
        .args(["netns", "exec", namespace, "nft", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot start nft")?;
    child.stdin.take().context("nft has no standard input")?.write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "nft did not take the ruleset");
    Ok(())
}

/// Runs a command to its end; its output is shown only when it fails.
pub(crate) fn run(words: &[&str]) -> Result<()> {
    let output = Command::new(words[0])
        .args(&words[1..])
        .output()
        .with_context(|| format!("cannot start {}", words[0]))?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{} failed: {}", words.join(" "), errors.trim());
    Ok(())
}
