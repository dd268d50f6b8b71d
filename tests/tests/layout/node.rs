//! A node of bridge and uplinks, whose wires all end in one other namespace, and the tables in its kernel.
//!
//! One thread on one processor sends, so packets pass the node in the order of sending: a fence that is sent last,
//! and passes as many devices as any other, arrives last.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::libc::PACKET_OUTGOING;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recvfrom, sendto, socket,
};
use nix::unistd::Pid;
use policy_agent::applier::{Applier, Backlog, BypassOutcome, Drift, Step, whole};
use policy_agent::layout::{LayoutOptions, NodeFacts, TableId};
use policy_agent::render::Bypassed;
use towpath_core::tables::{Delta, Phase, Tables};
use towpath_dataplane::nft::NetlinkBackend;
use towpath_tests::frame::Mac;
use towpath_tests::netns::{Namespace, isolated};
use towpath_tests::wait::{PATIENCE, until};

use super::world::{
    B, B6, BRIDGE_MAC, FENCE, FOREIGN_MAC, MAC_A, MAC_B, MAC_OPEN, MAC_R, MAC_UNBOUND, MAC_W,
    MAC_Z, MARK, facts, fence, tables,
};

/// What becomes of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It arrives, and nothing is dropped.
    Delivered,
    /// It does not arrive, and one packet is counted as dropped for this reason.
    Dropped(TableId, &'static str),
    /// The node's own input gets it.
    Input,
    /// So many copies arrive, and so many are dropped for each reason.
    Copies(usize, &'static [(TableId, &'static str, u64)]),
}

/// A frame that is sent from the far end of a port.
#[derive(Debug)]
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) port: &'static str,
    pub(crate) frame: Vec<u8>,
    pub(crate) fate: Fate,
}

/// Dropped packets by table and reason, without zeros.
type Drops = BTreeMap<(TableId, String), u64>;

pub(crate) struct Node {
    space: Namespace,
    // Anonymous namespaces live as long as somebody holds them.
    _held: [File; 2],
    wire: OwnedFd,
    ports: BTreeMap<String, LinkAddr>,
    // Its socket owns the tables.
    applier: Applier,
}

/// Far end, port of the node, hardware address of the far end.
const WIRES: [(&str, &str, Mac); 10] = [
    ("pa", "va", MAC_A),
    ("pb", "vb", MAC_B),
    ("pr", "vr", MAC_R),
    ("po", "vo", MAC_OPEN),
    ("pu", "vu", MAC_UNBOUND),
    ("px", "vx", [2, 0, 0, 0, 0, 7]),
    ("out", "eth0", FOREIGN_MAC),
    ("out2", "eth1", [2, 0, 0, 0, 2, 8]),
    ("pw", "w1", MAC_W),
    ("pz", "w2", MAC_Z),
];

/// Counts what the layout leaves to others: packets to the node, and priorities of packets that leave it.
const PROBES: &str = "table inet probe {
    chain input { type filter hook input priority 100; policy accept; udp sport { 68, 40000 } counter; }
    chain postrouting { type filter hook postrouting priority 0; policy accept;
        ip dscp 4 meta priority 0:6 counter
        ip dscp 4 meta priority none counter
    }
}
";

impl Node {
    /// Builds it with the tables of [`tables`] and no option.
    pub(crate) fn start() -> Result<Self> {
        Self::start_with(LayoutOptions::default(), tables())
    }

    /// With these tables.
    pub(crate) fn start_with(options: LayoutOptions, tables: Tables) -> Result<Self> {
        Self::start_as(options, facts(), tables)
    }

    /// Builds it, loads the tables over netlink and waits until all wires carry.
    pub(crate) fn start_as(
        options: LayoutOptions,
        facts: NodeFacts,
        tables: Tables,
    ) -> Result<Self> {
        stay_on_one_processor()?;
        let (node_file, node) = anonymous()?;
        let (world_file, world) = anonymous()?;
        for key in ["all", "default"] {
            world.set_sysctl(&format!("net/ipv6/conf/{key}/disable_ipv6"), "1")?;
            node.set_sysctl(&format!("net/ipv4/conf/{key}/rp_filter"), "0")?;
            node.set_sysctl(&format!("net/ipv4/conf/{key}/send_redirects"), "0")?;
        }
        node.set_sysctl("net/ipv4/ip_forward", "1")?;
        node.set_sysctl("net/ipv6/conf/all/forwarding", "1")?;
        node.set_sysctl("net/ipv6/conf/default/addr_gen_mode", "1")?;
        node.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        node.ip_batch(&script(&world))?;
        for (_, port, mac) in WIRES.iter().filter(|(_, port, _)| port.starts_with('v')) {
            let mac = text(*mac);
            node.run(
                Command::new("bridge")
                    .args(["fdb", "replace", &mac, "dev", port, "master", "static"]),
            )?;
        }
        let up = WIRES
            .map(|(far, ..)| {
                format!(
                    "link set {far} up
"
                )
            })
            .concat();
        world.ip_batch(&up)?;
        let wire = world.enter(packet_socket)??;
        let ports = world.enter(find_ports)??;
        let probes = tempfile::NamedTempFile::new()?;
        std::fs::write(probes.path(), PROBES)?;
        node.run(Command::new("nft").arg("-f").arg(probes.path()))?;
        let applier = load(&node, options, facts, tables)?;
        let held = [node_file, world_file];
        let node = Self {
            space: node,
            _held: held,
            wire,
            ports,
            applier,
        };
        node.await_links()?;
        Ok(node)
    }

    /// Changes the tables in the kernel.
    pub(crate) fn change(&mut self, phase: Phase) -> Result<()> {
        let mut backlog = Backlog::default();
        let phases = vec![phase];
        backlog.push(2, Delta { phases });
        apply(&mut self.applier, backlog)
    }

    /// Opens enforcement for just these.
    pub(crate) fn bypass(&mut self, bypassed: Bypassed) -> Result<()> {
        let backlog = Backlog {
            bypassed: Some((1, bypassed)),
            ..Backlog::default()
        };
        self.applier.enqueue(backlog);
        while !matches!(self.applier.step()?, Step::Idle) {}
        let outcome = self.applier.take_bypass_outcome();
        ensure!(outcome == Some((1, BypassOutcome::InForce)), "{outcome:?}");
        Ok(())
    }

    /// Reads the tables back, and brings them right.
    pub(crate) fn verify(&mut self) -> Result<Drift> {
        let drift = self.applier.verify()?;
        while !matches!(self.applier.step()?, Step::Idle) {}
        Ok(drift)
    }

    /// Sends the cases one after the other; each must have its fate.
    pub(crate) fn check(&self, cases: &[Case]) {
        for case in cases {
            let found = self.fate_of(case);
            let found = found.unwrap_or_else(|error| panic!("{}: {error:#}", case.name));
            let (arrived, inputs, drops) = found;
            // An answer of the node itself carries our mark too, and a flooded packet reaches the node as well.
            let found = match case.fate {
                Fate::Input => (0, inputs, drops),
                Fate::Copies(..) => (arrived, 0, drops),
                Fate::Delivered | Fate::Dropped(..) => (arrived, inputs, drops),
            };
            assert_eq!(found, expected(case.fate), "{}", case.name);
        }
    }

    /// Copies that arrived, packets to the node's own input, and drops.
    fn fate_of(&self, case: &Case) -> Result<(usize, u64, Drops)> {
        let (drops, inputs) = (self.drops()?, self.inputs()?);
        let arrived = self.send(case.port, &case.frame)?;
        let (drops_after, inputs_after) = (self.drops()?, self.inputs()?);
        let difference = drops_after
            .into_iter()
            .map(|(reason, count)| {
                let before = drops.get(&reason).copied().unwrap_or_default();
                (reason, count - before)
            })
            .filter(|(_, count)| *count > 0)
            .collect();
        Ok((arrived, inputs_after - inputs, difference))
    }

    /// Sends a frame; how often it arrived anywhere.
    fn send(&self, port: &str, frame: &[u8]) -> Result<usize> {
        let port = self
            .ports
            .get(port)
            .with_context(|| format!("no port {port}"))?;
        sendto(self.wire.as_raw_fd(), frame, port, MsgFlags::empty())?;
        let out = self.ports.get("out").context("no port out")?;
        sendto(self.wire.as_raw_fd(), &fence(), out, MsgFlags::empty())?;
        let mut arrived = 0;
        let deadline = Instant::now() + PATIENCE;
        loop {
            for found in self.arrivals()? {
                if contains(&found, FENCE) {
                    return Ok(arrived);
                }
                arrived += usize::from(contains(&found, MARK) || found == frame);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "the fence did not arrive");
            let mut descriptors = [PollFd::new(self.wire.as_fd(), PollFlags::POLLIN)];
            poll(&mut descriptors, PollTimeout::try_from(left)?)?;
        }
    }

    /// The frames that came out of the wires since the last look.
    fn arrivals(&self) -> Result<Vec<Vec<u8>>> {
        let mut found = Vec::new();
        let mut buffer = [0; 2048];
        loop {
            match recvfrom::<LinkAddr>(self.wire.as_raw_fd(), &mut buffer) {
                Ok((_, Some(from))) if from.pkttype() == PACKET_OUTGOING => {}
                Ok((length, _)) => found.push(buffer[..length].to_vec()),
                Err(Errno::EAGAIN) => return Ok(found),
                Err(error) => bail!("cannot read arrivals: {error}"),
            }
        }
    }

    /// Runs a program in the node.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        self.space.run(Command::new(program).args(arguments))
    }

    /// Whether the node hears itself under the bridge's address.
    pub(crate) fn hears_itself(&self) -> Result<bool> {
        self.space.enter(|| {
            let socket = UdpSocket::bind("10.244.1.1:0")?;
            socket.set_read_timeout(Some(PATIENCE))?;
            socket.send_to(MARK, socket.local_addr()?)?;
            let mut buffer = [0; 64];
            let (length, _) = socket.recv_from(&mut buffer)?;
            Ok(&buffer[..length] == MARK)
        })?
    }

    /// Whether what the node itself sends to B arrives, on a port that nobody may reach.
    pub(crate) fn reaches_b(&self) -> Result<bool> {
        self.space
            .enter(|| UdpSocket::bind("10.244.1.1:0")?.send_to(MARK, (B, 9999)))??;
        Ok(self.send("out", &[0; 64])? == 1)
    }

    /// Packets of type of service 0x10 that left with priority 0:6, and with none.
    pub(crate) fn priorities(&self) -> Result<(u64, u64)> {
        let listing = self.run("nft", &["list", "chain", "inet", "probe", "postrouting"])?;
        let counts: Vec<u64> = listing.lines().filter_map(count_in).collect();
        let [class, none] = counts[..] else {
            bail!("no two counters in {listing}")
        };
        Ok((class, none))
    }

    /// Packets to the node's own input, of clients of this test and of DHCP.
    pub(crate) fn inputs(&self) -> Result<u64> {
        let listing = self.run("nft", &["list", "chain", "inet", "probe", "input"])?;
        listing
            .lines()
            .find_map(count_in)
            .with_context(|| format!("no counter in {listing}"))
    }

    fn drops(&self) -> Result<Drops> {
        let mut drops = Drops::new();
        for (id, family) in [(TableId::Inet, "inet"), (TableId::Bridge, "bridge")] {
            let listing = self.run("nft", &["list", "table", family, "towpath"])?;
            let mut chain = None;
            for line in listing.lines().map(str::trim) {
                if let Some(name) = line.strip_prefix("chain ") {
                    let name = name.strip_suffix(" {");
                    chain = name.and_then(|name| {
                        let passes = name.starts_with("audit_") || name.starts_with("bypass_");
                        name.strip_prefix("drop_").or(passes.then_some(name))
                    });
                }
                if let Some((reason, count)) = chain.zip(count_in(line)) {
                    drops.insert((id, reason.to_owned()), count);
                }
            }
        }
        ensure!(
            drops.len() == 16,
            "of the counters only {drops:?} are there"
        );
        Ok(drops)
    }

    fn await_links(&self) -> Result<()> {
        until("the wires carry", PATIENCE, || {
            let out = self.ports.get("out").context("no port out")?;
            sendto(self.wire.as_raw_fd(), &fence(), out, MsgFlags::empty())?;
            Ok(self.arrivals()?.iter().any(|frame| contains(frame, FENCE)))
        })?;
        until("the ports of the bridge forward", PATIENCE, || {
            let states = self.run("bridge", &["link"])?;
            Ok(states.matches("state forwarding").count() == 6)
        })
    }
}

fn expected(fate: Fate) -> (usize, u64, Drops) {
    let drops = |reasons: &[(TableId, &str, u64)]| {
        reasons
            .iter()
            .map(|(table, reason, count)| ((*table, (*reason).to_owned()), *count))
            .collect()
    };
    match fate {
        Fate::Delivered => (1, 0, Drops::new()),
        Fate::Dropped(table, reason) => (0, 0, drops(&[(table, reason, 1)])),
        Fate::Input => (0, 1, Drops::new()),
        Fate::Copies(arrived, reasons) => (arrived, 0, drops(reasons)),
    }
}

fn count_in(line: &str) -> Option<u64> {
    let rest = line.split_once("counter packets ")?.1;
    rest.split_whitespace().next()?.parse().ok()
}

fn contains(frame: &[u8], part: &[u8]) -> bool {
    frame.windows(part.len()).any(|window| window == part)
}

fn load(
    node: &Namespace,
    options: LayoutOptions,
    facts: NodeFacts,
    tables: Tables,
) -> Result<Applier> {
    let mut backend = node.enter(NetlinkBackend::open)??;
    let table_flags = backend.probe_features()?.table_flags();
    let options = LayoutOptions {
        table_flags,
        ..options
    };
    let mut applier = Applier::new(Box::new(backend), options);
    let mut backlog = Backlog {
        facts: Some(facts),
        ..Backlog::default()
    };
    backlog.push(1, whole(tables));
    apply(&mut applier, backlog)?;
    let drift = applier.verify()?;
    ensure!(
        drift.is_none(),
        "what netlink reads back differs: {drift:?}"
    );
    Ok(applier)
}

fn apply(applier: &mut Applier, backlog: Backlog) -> Result<()> {
    applier.enqueue(backlog);
    match applier.step()? {
        Step::Applied(_) => Ok(()),
        other => bail!("the kernel did not take the tables: {other:?}"),
    }
}

fn script(world: &Namespace) -> String {
    let bridge = format!(
        "link add cni0 address {} type bridge nf_call_iptables 1 nf_call_ip6tables 1 mcast_snooping 0
         address add 10.244.1.1/24 dev cni0
         address add fd00::1/64 dev cni0 nodad
         link set cni0 up
        ",
        text(BRIDGE_MAC),
    );
    let routes = "route add 192.0.2.9/32 dev eth0
         route add 198.51.100.9/32 dev eth1
         route add 10.244.1.11/32 dev w1
         route add 10.244.1.12/32 dev w2
         route add fd00::b/128 dev w1
         route add fd00::c/128 dev w2
        ";
    [
        bridge,
        WIRES.map(|wire| wire_script(wire, world)).concat(),
        routes.to_owned(),
        neighbours(),
    ]
    .concat()
}

fn wire_script((far, port, mac): (&str, &str, Mac), world: &Namespace) -> String {
    let (mac, world) = (text(mac), world.path());
    let (address, master) = match port {
        "eth0" | "w1" | "w2" => (format!("address {}", text(BRIDGE_MAC)), ""),
        "eth1" => (String::new(), ""),
        _ => (String::new(), "master cni0"),
    };
    format!(
        "link add {port} {address} type veth peer name {far} address {mac} netns {}
         link set {port} {master} up
        ",
        world.display(),
    )
}

fn neighbours() -> String {
    [
        ("10.244.1.3", MAC_B, "cni0"),
        ("10.244.1.77", MAC_B, "cni0"),
        (B6, MAC_B, "cni0"),
        ("192.0.2.9", FOREIGN_MAC, "eth0"),
        ("198.51.100.9", WIRES[7].2, "eth1"),
        ("10.244.1.11", MAC_W, "w1"),
        ("10.244.1.12", MAC_Z, "w2"),
        ("fd00::b", MAC_W, "w1"),
        ("fd00::c", MAC_Z, "w2"),
    ]
    .map(|(address, mac, device)| {
        format!(
            "neigh replace {address} lladdr {} dev {device} nud permanent\n",
            text(mac)
        )
    })
    .concat()
}

fn text(mac: Mac) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

/// A namespace without a name: it ends with the process, however that ends.
fn anonymous() -> Result<(File, Namespace)> {
    let file = isolated(|| File::open("/proc/thread-self/ns/net"))??;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    // An absolute path is its own place, wherever named namespaces are.
    Ok((file, Namespace::existing(&path)))
}

fn stay_on_one_processor() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    one.set(first.context("no processor to run on")?)?;
    sched_setaffinity(this, &one).context("cannot stay on one processor")
}

fn packet_socket() -> Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        flags,
        SockProtocol::EthAll,
    )
    .context("cannot open a packet socket")
}

fn find_ports() -> Result<BTreeMap<String, LinkAddr>> {
    let ports: BTreeMap<String, LinkAddr> = getifaddrs()?
        .filter_map(|entry| {
            let address = entry.address?.as_link_addr().copied()?;
            let is_ours = WIRES.iter().any(|(far, ..)| *far == entry.interface_name);
            is_ours.then_some((entry.interface_name, address))
        })
        .collect();
    ensure!(
        ports.len() == WIRES.len(),
        "of the far ends only {ports:?} are there"
    );
    Ok(ports)
}
