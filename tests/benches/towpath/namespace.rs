//! Three network namespaces in a row: source, router, sink. Made and removed by this process.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context as _, Result, ensure};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use towpath_tests::netns::Namespace;

/// Numbers the namespaces of this process.
static NEXT: AtomicU32 = AtomicU32::new(0);

/// A namespace of this run.
pub(crate) fn fresh(part: &str) -> Result<Namespace> {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    Namespace::create(&format!("tpb{}-{number}{part}", std::process::id()))
}

/// A source and a sink with a router between them. Dropping it removes the namespaces.
#[derive(Debug)]
pub(crate) struct Topology {
    source: Namespace,
    router: Namespace,
    sink: Namespace,
}

impl Topology {
    /// Builds it: the router forwards between `source` and `sink`, each alone behind its own link.
    pub(crate) fn new(source: Ipv4Addr, sink: Ipv4Addr) -> Result<Self> {
        let topology = Self {
            source: fresh("s")?,
            router: fresh("r")?,
            sink: fresh("d")?,
        };
        let router = &topology.router;
        router.ip_batch("address add 169.254.0.1/32 dev lo\n")?;
        router.set_sysctl("net/ipv4/ip_forward", "1")?;
        for (end, address, link) in [
            (&topology.source, source, "to-s"),
            (&topology.sink, sink, "to-d"),
        ] {
            let peer = end.name();
            router.ip_batch(&format!(
                "link add {link} type veth peer name eth0 netns {peer}\n\
                 link set {link} up\n"
            ))?;
            end.ip_batch(&format!(
                "address add {address}/32 dev eth0\n\
                 link set eth0 up\n\
                 route add 169.254.0.1/32 dev eth0\n\
                 route add default via 169.254.0.1 dev eth0\n"
            ))?;
            router.ip_batch(&format!("route add {address}/32 dev {link}\n"))?;
            router.set_sysctl(&format!("net/ipv4/conf/{link}/proxy_arp"), "1")?;
        }
        load(
            &topology.sink,
            "table ip sink {\n counter arrived {\n }\n chain count {\n type filter hook prerouting priority -400;\n \
             ip protocol udp counter name arrived drop\n }\n}\n",
        )?;
        Ok(topology)
    }

    /// The namespace between source and sink.
    pub(crate) fn router(&self) -> &Namespace {
        &self.router
    }

    /// Runs `work` on a thread in the source, pinned to one core.
    pub(crate) fn in_source<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        pinned(&self.source, work)
    }

    /// Runs `work` on a thread in the sink, pinned to one core.
    pub(crate) fn in_sink<T: Send>(&self, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
        pinned(&self.sink, work)
    }

    /// Empties the router's connection table.
    pub(crate) fn forget_flows(&self) -> Result<()> {
        self.router
            .run(Command::new("conntrack").arg("-F"))
            .map(drop)
    }

    /// UDP packets that reached the sink.
    pub(crate) fn arrived(&self) -> Result<u64> {
        let listing = self
            .sink
            .run(Command::new("nft").args(["-j", "list", "counter", "ip", "sink", "arrived"]))?;
        let listing: serde_json::Value = serde_json::from_str(&listing)?;
        listing["nftables"]
            .as_array()
            .and_then(|objects| {
                objects
                    .iter()
                    .find_map(|object| object["counter"]["packets"].as_u64())
            })
            .context("the sink has no counter")
    }
}

fn pinned<T: Send>(namespace: &Namespace, work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    namespace.enter(move || {
        let mut core = CpuSet::new();
        core.set(0)?;
        sched_setaffinity(Pid::from_raw(0), &core).context("cannot pin the thread")?;
        work()
    })?
}

/// Loads nft text.
pub(crate) fn load(namespace: &Namespace, text: &str) -> Result<()> {
    use std::io::Write as _;
    let mut child = namespace.spawn(Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()))?;
    child
        .stdin
        .take()
        .context("nft has no standard input")?
        .write_all(text.as_bytes())?;
    ensure!(child.wait()?.success(), "nft did not take the ruleset");
    Ok(())
}
