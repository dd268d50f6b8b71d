//! One start of a pod, as a container runtime does it, and the probe inside.

use std::fmt;
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};
use towpath_tests::cluster::KubernetesConfig;
use towpath_tests::cni::{Attachment, PluginSet, Plugins, Sandbox};
use towpath_tests::lab::{Lab, LabConfig, PodSpec};
use towpath_tests::netns::Namespace;
use towpath_tests::wait::{PATIENCE, until};

use crate::peers::{PORT, Peer, sender};

/// Where pods start.
pub(crate) const NODE: &str = "node-a";
/// Packets that a pod gets through to the peer that it may reach, before it is over.
const ENOUGH: u32 = 20;
/// Between two rounds of packets.
const PERIOD: Duration = Duration::from_micros(200);
/// Packets that are sent after ADD to a peer that nothing was sent to before, and from it; none may be lost.
const AFTER_ADD: u32 = 5;
/// Marks the number of the start in packets that may come into the pod.
const WELCOME: u32 = 1 << 31;

/// A question for a neighbour's hardware address that was dropped is asked again soon, not after a second.
const ASK_OFTEN: (&str, &str) = ("/proc/sys/net/ipv4/neigh/eth0/retrans_time_ms", "10");

/// How a pod starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// By the bridge plugin alone; the probe runs from before it on.
    Bare,
    /// With our plugin chained; the probe runs from before both on.
    Chained,
    /// With our plugin chained, and asked until it says yes; the probe runs when it has, as a container does.
    Closed,
    /// As [`Way::Bare`], without any protection: the probes' control.
    Unprotected,
}

/// What was seen of one start, or of several.
#[derive(Clone, Debug, Default)]
pub(crate) struct Outcome {
    /// Packets that passed and must not: to the node's own peer, to the one far away, and into the pod.
    pub(crate) passed: [u64; 3],
    /// Packets that were sent to those.
    pub(crate) sent: u64,
    /// Of them before the plugins had returned.
    pub(crate) early: u64,
}

impl Outcome {
    pub(crate) fn add(&mut self, other: &Self) {
        for (sum, passed) in self.passed.iter_mut().zip(other.passed) {
            *sum += passed;
        }
        self.sent += other.sent;
        self.early += other.early;
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [near, far, inside] = self.passed;
        write!(
            formatter,
            "{near} packets passed to the same node, {far} to another, {inside} into the pod, of {} sent, {} of them \
             before CNI ADD had returned",
            self.sent, self.early
        )
    }
}

/// A cluster of two nodes, and peers.
pub(crate) struct Bed {
    near: Peer,
    far: Peer,
    friend: Peer,
    fresh: Peer,
    /// Outside of the cluster, allowed as a block.
    outside: Peer,
    /// The pod's own node.
    node: Peer,
    neighbour: UdpSocket,
    /// Those of the new pod's friends and of its node that send into it.
    welcome: [UdpSocket; 2],
    policy: Value,
    plugins: Plugins,
    pub(crate) lab: Lab,
}

impl Bed {
    /// Makes it for so many starts. No agent runs.
    pub(crate) fn new(starts: u32) -> Result<Self> {
        let mut lab = Lab::new(&LabConfig {
            plugins: PluginSet::Module,
            kubernetes: Some(KubernetesConfig::default()),
            ..LabConfig::default()
        })?;
        lab.write_namespace("starts", &[("team", "starts")])?;
        lab.write_namespace("other", &[("team", "other")])?;
        for (name, node) in [
            ("near", NODE),
            ("far", "node-b"),
            ("friend", NODE),
            ("fresh", NODE),
        ] {
            let app = if name == "fresh" { "friend" } else { name };
            lab.add_pod(PodSpec::new(node, "other", name).label("app", app))?;
        }
        let listen = |name: &str| Peer::listen(lab.pod(&format!("other/{name}"))?, starts);
        let folder = lab.folder().join(NODE);
        let subnet = std::fs::read_to_string(folder.join("subnet.env"))?;
        let node = lab.node(NODE)?;
        let own = *node.addresses.first().context("the node has an address")?;
        let IpAddr::V4(own) = own else {
            bail!("{own} is no IPv4 address");
        };
        let outside = lab.cluster()?.plane.addresses().server();
        let place = &node.namespace;
        Ok(Self {
            near: listen("near")?,
            far: listen("far")?,
            friend: listen("friend")?,
            fresh: listen("fresh")?,
            outside: Peer::listen_at(lab.fabric(), outside, starts)?,
            node: Peer::listen_at(place, own, starts)?,
            neighbour: sender(&lab.pod("other/near")?.namespace)?,
            welcome: [sender(&lab.pod("other/fresh")?.namespace)?, sender(place)?],
            policy: policy(outside, own),
            plugins: Plugins::of_subnet_env(PluginSet::Module, &subnet, &folder.join("networks"))?,
            lab,
        })
    }

    /// Takes our tables from the node, as a reboot does. Those that are not there are no error.
    pub(crate) fn forget_tables(&self) -> Result<()> {
        let node = &self.lab.node(NODE)?.namespace;
        let tables = node.run(Command::new("nft").args(["list", "tables"]))?;
        for table in tables.lines().filter(|line| line.ends_with(" towpath")) {
            let family = table.split(' ').nth(1).context("a table has a family")?;
            node.run(Command::new("nft").args(["delete", "table", family, "towpath"]))?;
        }
        Ok(())
    }

    /// Starts a pod and takes it away. Its policy is created before it: its only peers are the friends.
    pub(crate) fn start(&self, number: u32, way: Way) -> Result<Outcome> {
        self.try_start(number, way)
            .with_context(|| format!("start {number}, {way:?}"))
    }

    fn try_start(&self, number: u32, way: Way) -> Result<Outcome> {
        let api = self.lab.cluster()?.api();
        let name = format!("pod-{number}");
        let policies = "/apis/networking.k8s.io/v1/namespaces/starts/networkpolicies";
        api.create(policies, &self.policy_of(&name))?;
        let spec = PodSpec::new(NODE, "starts", &name).label("start", &name);
        let uid = self.lab.cluster()?.declare(&spec)?;

        let namespace = Namespace::create(&format!("{}-pod-s{number}", self.lab.prefix()))?;
        let sandbox = Sandbox {
            // Those of the lab count up from nought, too.
            container: format!("{}5{number:059x}", &self.lab.prefix()[2..]),
            namespace: "starts".to_owned(),
            name: name.clone(),
            uid,
            path: namespace.path(),
        };
        let probe = Probe::new(self, &namespace, number)?;
        std::thread::scope(|scope| -> Result<()> {
            // However this ends, the thread must.
            let _end = End(&probe.is_over);
            if way != Way::Closed {
                scope.spawn(|| namespace.enter(|| probe.run()));
            }
            let added = self.add(&sandbox, way)?;
            probe.note_added();
            if way == Way::Closed {
                scope.spawn(|| namespace.enter(|| probe.run()));
            }
            if matches!(way, Way::Chained | Way::Closed) {
                let own = *added.addresses.first().context("no address")?;
                probe.reach_fresh(own).context("lost after CNI ADD")?;
            }
            let address = added.addresses.first().context("no address")?;
            let status =
                json!({ "phase": "Running", "podIP": address, "podIPs": [{ "ip": address }] });
            let object = format!("/api/v1/namespaces/starts/pods/{name}");
            api.merge(&format!("{object}/status"), &json!({ "status": status }))?;
            probe.await_enough(way)
        })?;
        let outcome = probe.outcome()?;

        api.delete(&format!("/api/v1/namespaces/starts/pods/{name}"))?;
        api.delete(&format!("{policies}/{name}"))?;
        let node = &self.lab.node(NODE)?.namespace;
        if matches!(way, Way::Chained | Way::Closed) {
            self.ours("DEL", &sandbox, &Value::Null)?;
        }
        self.plugins.delete(node, &sandbox)?;
        Ok(outcome)
    }

    /// The policy of the pod of this name alone.
    fn policy_of(&self, name: &str) -> Value {
        let mut policy = self.policy.clone();
        policy["metadata"]["name"] = json!(name);
        policy["spec"]["podSelector"]["matchLabels"]["start"] = json!(name);
        policy
    }

    fn add(&self, sandbox: &Sandbox, way: Way) -> Result<Attachment> {
        let added = self.plugins.add(&self.lab.node(NODE)?.namespace, sandbox)?;
        match way {
            Way::Bare | Way::Unprotected => {}
            Way::Chained => self.ours("ADD", sandbox, &added.result)?,
            // While no agent answers, the plugin says no, and the kubelet tries again.
            Way::Closed => {
                let mut refusal = None;
                let said = until("our plugin to say yes", PATIENCE, || {
                    refusal = self.ours("ADD", sandbox, &added.result).err();
                    Ok(refusal.is_none())
                });
                said.with_context(|| format!("the last refusal: {refusal:?}"))?;
            }
        }
        Ok(added)
    }

    fn ours(&self, verb: &str, sandbox: &Sandbox, previous: &Value) -> Result<()> {
        self.lab.call_plugin(NODE, sandbox, verb, previous)
    }
}

/// Friends both ways; out, also somebody outside and the own node. The node may always come in.
fn policy(outside: Ipv4Addr, node: Ipv4Addr) -> Value {
    let friends = json!({
        "namespaceSelector": { "matchLabels": { "team": "other" } },
        "podSelector": { "matchLabels": { "app": "friend" } },
    });
    let block = |address: Ipv4Addr| json!({ "ipBlock": { "cidr": format!("{address}/32") } });
    json!({
        "metadata": {},
        "spec": {
            "podSelector": { "matchLabels": {} },
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [{ "from": [friends] }],
            "egress": [{ "to": [friends, block(outside), block(node)] }],
        },
    })
}

/// Says that it is over when it goes.
struct End<'b>(&'b AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Sockets in a pod's namespace that is not plugged in yet.
struct Probe<'b> {
    bed: &'b Bed,
    number: u32,
    sender: UdpSocket,
    /// Tells the pod's address as soon as there is one.
    scout: Mutex<UdpSocket>,
    /// What comes into the pod.
    inbox: UdpSocket,
    is_added: AtomicBool,
    is_over: AtomicBool,
    sent: AtomicU64,
    early: AtomicU64,
    /// What has come in and may, and what may not.
    welcome: AtomicU64,
    inside: AtomicU64,
}

impl<'b> Probe<'b> {
    fn new(bed: &'b Bed, namespace: &Namespace, number: u32) -> Result<Self> {
        let bind = |port: u16| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port));
        let sockets =
            namespace.enter(|| Ok::<_, std::io::Error>((bind(0)?, bind(0)?, bind(PORT)?)));
        let (sender, scout, inbox) = sockets?.context("no sockets in the pod")?;
        inbox.set_nonblocking(true)?;
        Ok(Self {
            bed,
            number,
            sender,
            scout: Mutex::new(scout),
            inbox,
            is_added: AtomicBool::new(false),
            is_over: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            early: AtomicU64::new(0),
            welcome: AtomicU64::new(0),
            inside: AtomicU64::new(0),
        })
    }

    /// The plugins have returned.
    fn note_added(&self) {
        self.is_added.store(true, Ordering::Relaxed);
    }

    /// Sends to everybody, from the moment at which the pod has an address until it is over. It runs in the pod's
    /// namespace.
    fn run(&self) {
        let own = loop {
            if let Some(address) = self.address() {
                break address;
            }
            if self.is_over.load(Ordering::Relaxed) {
                return;
            }
            std::thread::sleep(PERIOD);
        };
        std::fs::write(ASK_OFTEN.0, ASK_OFTEN.1).expect("the pod has an eth0");
        while !self.is_over.load(Ordering::Relaxed) {
            for peer in [&self.bed.near, &self.bed.far] {
                self.note(self.send(&self.sender, peer.target));
            }
            self.note(self.send(&self.bed.neighbour, SocketAddr::from((own, PORT))));
            self.send(&self.sender, self.bed.friend.target);
            std::thread::sleep(PERIOD);
        }
    }

    /// Whether the kernel took the packet.
    fn send(&self, socket: &UdpSocket, to: SocketAddr) -> bool {
        socket.send_to(&self.number.to_be_bytes(), to).is_ok()
    }

    fn note(&self, was_sent: bool) {
        if was_sent {
            self.sent.fetch_add(1, Ordering::Relaxed);
            if !self.is_added.load(Ordering::Relaxed) {
                self.early.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The pod's own address, once it has a route.
    fn address(&self) -> Option<IpAddr> {
        let scout = self.scout.lock().expect("no holder panics");
        scout.connect(self.bed.friend.target).ok()?;
        Some(scout.local_addr().ok()?.ip()).filter(|address| !address.is_unspecified())
    }

    /// Sends to peers that nothing was sent to before, and has them send into the pod: all of it must arrive (edge
    /// case 20).
    fn reach_fresh(&self, own: IpAddr) -> Result<()> {
        let peers = [&self.bed.fresh, &self.bed.outside, &self.bed.node];
        let number = (self.number | WELCOME).to_be_bytes();
        for _ in 0..AFTER_ADD {
            for peer in peers {
                ensure!(self.send(&self.sender, peer.target), "the pod cannot send");
            }
            for socket in &self.bed.welcome {
                socket.send_to(&number, SocketAddr::from((own, PORT)))?;
            }
        }
        let expected = u64::from(AFTER_ADD) * self.bed.welcome.len() as u64;
        let all = until("all packets that were sent after CNI ADD", PATIENCE, || {
            self.look_inside()?;
            let is_outside = peers
                .iter()
                .all(|peer| peer.count(self.number) == AFTER_ADD);
            Ok(is_outside && self.welcome.load(Ordering::Relaxed) == expected)
        });
        all.with_context(|| {
            let counts = peers.map(|peer| peer.count(self.number));
            let inside = self.welcome.load(Ordering::Relaxed);
            format!("to the same node, outside and the node: {counts:?} of {AFTER_ADD}; into the pod: {inside} of {expected}")
        })
    }

    /// Counts what has come into the pod.
    fn look_inside(&self) -> Result<()> {
        let mut packet = [0; 4];
        loop {
            match self.inbox.recv(&mut packet) {
                Ok(_) if u32::from_be_bytes(packet) & WELCOME != 0 => {
                    self.welcome.fetch_add(1, Ordering::Relaxed);
                }
                Ok(_) => {
                    self.inside.fetch_add(1, Ordering::Relaxed);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error).context("cannot look into the pod"),
            }
        }
    }

    /// Waits until the pod has got through to its friend for a while, and without protection to everybody.
    fn await_enough(&self, way: Way) -> Result<()> {
        let bed = self.bed;
        until("packets of the pod at its friend", PATIENCE, || {
            Ok(bed.friend.count(self.number) >= ENOUGH)
        })?;
        if way == Way::Unprotected {
            let mut byte = [0];
            until("packets everywhere", PATIENCE, || {
                let is_inside = self.inbox.peek(&mut byte).is_ok();
                let is_outside = [&bed.near, &bed.far]
                    .iter()
                    .all(|peer| peer.count(self.number) > 0);
                Ok(is_inside && is_outside)
            })?;
        }
        Ok(())
    }

    /// What has passed; the probe has ended.
    fn outcome(&self) -> Result<Outcome> {
        self.look_inside()?;
        let inside = self.inside.load(Ordering::Relaxed);
        let count = |peer: &Peer| u64::from(peer.count(self.number));
        Ok(Outcome {
            passed: [count(&self.bed.near), count(&self.bed.far), inside],
            sent: self.sent.load(Ordering::Relaxed),
            early: self.early.load(Ordering::Relaxed),
        })
    }
}
