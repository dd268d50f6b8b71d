//! The graph thread through its channels: events in, tables of a fake kernel and answers out.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::mpsc::SyncSender;

use flannel_adapter::Link;
use flannel_adapter::here::Here;
use flannel_adapter::subnet_env::SubnetEnv;
use smol_str::SmolStr;
use tokio::sync::oneshot;
use towpath_core::model::{
    Direction, Endpoint, EndpointId, EndpointKind, Labels, Lifecycle, MacAddress, Namespace,
    NamespaceMatch, Node, Object, ObjectKey, ObservedInterface, Policy, PolicyId, PolicyKind,
    Selector, Subject, Tier, Update,
};
use towpath_dataplane::link::{Awake, Sleeper};
use towpath_dataplane::nft::{Backend, FakeKernel, Operation, SetKey, Transaction, Value};

use super::event::{Question, SourceChange};
use super::interfaces::{HostFacts, InterfaceChange};
use super::obstacles::Lookout;
use super::report::Status;
use super::surroundings::{Chain, Surroundings};
use super::*;
use crate::layout::{IpVersion, LayoutOptions, SetId, TableId, VerdictMap};

mod cni;

const PATIENCE: Duration = Duration::from_secs(20);

/// A graph thread and an applier thread on a kernel of their own.
struct Running {
    sender: SyncSender<Event>,
    kernel: FakeKernel,
    readiness: Readiness,
    /// Hears what the link thread would.
    link: Sleeper,
    graph: JoinHandle<Result<(), AgentError>>,
    applier: ApplierHandle,
    _state: tempfile::TempDir,
}

fn start() -> Running {
    let state = tempfile::tempdir().unwrap();
    let config = Config {
        node: "node-a".into(),
        ..Config::default()
    };
    let (sender, receiver) = sync_channel(QUEUE);
    let kernel = FakeKernel::new();
    let readiness = Readiness::default();
    let mut liveness = Liveness::default();
    let now = Instant::now();
    let report = applier_report(sender.clone(), liveness.add("applier", DEADLINE, now));
    let backend = Box::new(kernel.clone());
    let applier = Applier::new(backend, LayoutOptions::default());
    let (applier, _) = ApplierHandle::start(applier, report).unwrap();
    let link = Sleeper::new().unwrap();
    let parts = GraphParts {
        receiver,
        applier: applier.clone(),
        link: LinkControl::new(link.waker()),
        metrics: Metrics::register(&mut Registry::default(), readiness.clone()),
        readiness: readiness.clone(),
        synced: readiness.add("source", "not read yet"),
        committed: readiness.add("first commit", "nothing is committed yet"),
        cni: Cni::new(&config.node, ClaimStore::new(state.path()), now),
        snapshots: Snapshots::default(),
        publishing: Publishing::default(),
        lookout: Lookout::new().0,
        beat: liveness.add("graph", DEADLINE, now),
    };
    let graph = GraphThread::new(&config, parts, now);
    Running {
        sender,
        kernel,
        readiness,
        link,
        graph: std::thread::spawn(move || graph.run()),
        applier,
        _state: state,
    }
}

impl Running {
    fn tell(&self, event: Event) {
        self.sender.send(event).unwrap();
    }

    fn tell_source(&self, updates: Vec<Update>, sync: Result<(), &str>) {
        self.tell(Event::Source(SourceChange {
            updates,
            problems: Vec::new(),
            sync: sync.map_err(str::to_owned),
            tally: crate::source::Tally::default(),
            versions: crate::source::Versions::default(),
            at: Instant::now(),
        }));
    }

    fn tell_interfaces(&self, updates: Vec<Update>) {
        let host = Some(HostFacts::default());
        let at = Instant::now();
        self.tell(Event::Interfaces(InterfaceChange { updates, host, at }));
    }

    /// The answer comes after everything told before was taken, not after it was flushed.
    fn status(&self) -> Status {
        let (sender, answer) = oneshot::channel();
        self.tell(Event::Ask(Question::Status(sender)));
        answer.blocking_recv().unwrap()
    }

    fn until(&self, what: &str, is_so: impl Fn(&Status) -> bool) -> Status {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.status();
            if is_so(&status) {
                return status;
            }
            assert!(Instant::now() < deadline, "never saw {what}: {status:?}");
        }
    }

    /// Waits until a generation after this one is in force, and nothing else is wanted.
    fn settled(&self, after: u64) -> Status {
        self.until("all generations committed", |status| {
            let commits = &status.commits;
            commits.generation > after && commits.generation == commits.wanted_generation
        })
    }

    fn elements(&self, set: SetId) -> usize {
        let mut kernel = self.kernel.clone();
        let found = kernel.elements(&set.table().table(), &set.name()).unwrap();
        found.map_or(0, |elements| elements.len())
    }

    fn end(self) -> Result<(), AgentError> {
        self.tell(Event::End);
        let outcome = self.graph.join().unwrap();
        self.applier.end();
        outcome
    }
}

/// A pod that policy isolates, on this node.
fn source() -> Vec<Update> {
    let name = SmolStr::new_static("shop");
    let policy = Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: name.clone(),
            name: "closed".into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is(name.clone()),
            pods: Selector::everything(),
        },
        ingress: Some(Vec::new()),
        egress: None,
        invalid: None,
    };
    let pod = Endpoint {
        id: EndpointId {
            kind: EndpointKind::Pod,
            namespace: name.clone(),
            name: "web".into(),
        },
        labels: Labels::default(),
        node: Some("node-a".into()),
        addresses: vec!["10.244.1.5".parse().unwrap()],
        ports: Vec::new(),
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    };
    let node = Node {
        name: "node-a".into(),
        labels: Labels::default(),
        addresses: Vec::new(),
        pod_cidrs: vec!["10.244.1.0/24".parse().unwrap()],
        ..Node::default()
    };
    let labels = Labels::default();
    [
        Object::Namespace(Namespace { name, labels }),
        Object::Node(node),
        Object::Policy(policy),
        Object::Endpoint(pod),
    ]
    .map(Update::Upsert)
    .into()
}

fn interface() -> Vec<Update> {
    vec![Update::Upsert(Object::Interface(ObservedInterface {
        index: 7,
        name: "veth7".parse().unwrap(),
        bridge: Some("cni0".parse().unwrap()),
        mac: Some(MacAddress([2, 0, 0, 0, 0, 5])),
        addresses: vec!["10.244.1.5".parse().unwrap()],
    }))]
}

const INGRESS_STATE: SetId = SetId::Verdict(Direction::Ingress, VerdictMap::State, IpVersion::V4);

#[test]
fn nothing_is_committed_before_source_and_interfaces_are_known() {
    for first in ["source", "interfaces"] {
        let running = start();

        if first == "source" {
            running.tell_source(source(), Ok(()));
        } else {
            running.tell_interfaces(interface());
        }
        let early = running.status();
        if first == "source" {
            running.tell_interfaces(interface());
        } else {
            running.tell_source(source(), Ok(()));
        }
        let late = running.settled(0);

        assert_eq!(early.commits.wanted_generation, 0, "{first} alone");
        // A flush of the first event alone would have been another one.
        assert_eq!(late.commits.wanted_generation, 1, "{first} first");
        assert!(running.readiness.is_ready());
        assert_eq!(running.elements(INGRESS_STATE), 1);
        running.end().unwrap();
    }
}

#[test]
fn a_source_commits_nothing_before_it_is_in_sync() {
    let running = start();

    running.tell_source(source(), Err("the folder is gone"));
    running.tell_interfaces(interface());
    let before = running.status();
    running.tell_source(Vec::new(), Ok(()));
    let after = running.settled(0);

    assert_eq!(before.commits.wanted_generation, 0);
    assert_eq!(before.awaited.len(), 2);
    assert_eq!(after.commits.wanted_generation, 1);
    running.end().unwrap();
}

#[test]
fn a_source_that_fails_later_leaves_the_tables_as_they_are() {
    let running = start();
    running.tell_source(source(), Ok(()));
    running.tell_interfaces(interface());
    running.settled(0);

    running.tell_source(Vec::new(), Err("the folder is gone"));
    let status = running.status();

    assert!(!status.in_sync && !status.enforced);
    assert_eq!(status.awaited[0].reason, "the folder is gone");
    assert_eq!(running.elements(INGRESS_STATE), 1);
    running.end().unwrap();
}

#[test]
fn an_interface_that_goes_takes_its_binding_along() {
    let running = start();
    running.tell_source(source(), Ok(()));
    running.tell_interfaces(interface());
    let before = running.settled(0);
    let bound = running.elements(SetId::Bindings(IpVersion::V4));

    running.tell_interfaces(vec![Update::Remove(ObjectKey::Interface(7))]);
    running.settled(before.commits.generation);

    assert_eq!(bound, 1);
    assert_eq!(running.elements(SetId::Bindings(IpVersion::V4)), 0);
    running.end().unwrap();
}

#[test]
fn pod_networks_of_the_node_are_told_to_the_watch_of_interfaces() {
    let mut running = start();
    let (reader, _writer) = std::io::pipe().unwrap();

    running.tell_source(source(), Ok(()));
    running.tell_interfaces(Vec::new());
    let awake = running.link.wait(reader.as_fd(), PATIENCE).unwrap();

    assert_eq!(
        awake,
        Awake {
            is_readable: false,
            is_woken: true
        }
    );
    running.end().unwrap();
}

#[test]
fn what_others_set_up_is_told_and_its_ports_are_closed() {
    let running = start();
    running.tell_source(source(), Ok(()));
    running.tell_interfaces(interface());
    let before = running.settled(0);
    assert_eq!(before.overlay_ports, [8472]);
    assert_eq!(before.flannel, None);

    let mut seen = Surroundings::default();
    let subnet = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.9.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    let here = Here {
        is_there: true,
        subnet_env: Some(SubnetEnv::parse("subnet.env", subnet).value),
        links: vec![Link {
            name: "flannel.1".into(),
            mtu: 1450,
            mac: None,
            addresses: Vec::new(),
            udp_port: Some(8473),
        }],
        ..Here::default()
    };
    let chain = Chain {
        is_installed: true,
        fault: Some("the copy is out of date".to_owned()),
    };
    seen.see(Ok(here), Ok(chain));
    running.tell(Event::Surroundings(Box::new(seen)));
    let after = running.until("the port", |status| status.overlay_ports == [8473]);

    let flannel = after.flannel.unwrap();
    assert_eq!(flannel.backend.as_deref(), Some("vxlan"));
    let warnings = running
        .until("the contradiction", |status| status.warnings.len() == 2)
        .warnings;
    assert!(warnings[0].contains("10.244.9.0/24"), "{warnings:?}");
    assert!(
        warnings[1].contains("the copy is out of date"),
        "{warnings:?}"
    );
    let deadline = Instant::now() + PATIENCE;
    while !running.kernel.dump().unwrap().contains("th dport 8473") {
        assert!(Instant::now() < deadline, "the port is never closed");
        std::thread::yield_now();
    }
    running.end().unwrap();
}

#[test]
fn tampering_is_found_and_repaired() {
    let running = start();
    running.tell_source(source(), Ok(()));
    running.tell_interfaces(interface());
    let before = running.settled(0);
    let mut kernel = running.kernel.clone();
    kernel
        .commit(&Transaction {
            operations: vec![Operation::FlushSet(
                TableId::Inet.table(),
                INGRESS_STATE.name(),
            )],
        })
        .unwrap();

    running.tell(Event::Tampered);
    let after = running.until("the repair", |status| status.commits.drift_repaired > 0);

    assert_eq!(before.commits.drift_repaired, 0);
    assert_eq!(after.commits.drift_repaired, 1);
    let deadline = Instant::now() + PATIENCE;
    while running.elements(INGRESS_STATE) != 1 {
        assert!(Instant::now() < deadline, "the element does not come back");
        std::thread::yield_now();
    }
    running.end().unwrap();
}

#[test]
fn a_commit_that_fails_makes_the_node_not_ready_until_one_works() {
    /// `EAGAIN` as Linux numbers it.
    const AGAIN: i32 = 11;
    let running = start();
    for attempt in 1..=10 {
        running.kernel.fail_commit(attempt, AGAIN);
    }

    running.tell_source(source(), Ok(()));
    running.tell_interfaces(interface());
    let failed = running.until("a failure", |status| status.commits.error.is_some());
    let settled = running.settled(0);

    assert!(failed.commits.failed_in_a_row > 0 && !failed.enforced);
    assert_eq!(settled.commits.failed_in_a_row, 0);
    assert!(running.readiness.is_ready());
    running.end().unwrap();
}

#[test]
fn a_thread_that_panics_ends_the_agent() {
    let running = start();

    running.tell(Event::Panicked("link"));
    let outcome = running.graph.join().unwrap();
    running.applier.end();

    assert!(matches!(
        outcome,
        Err(AgentError::Panicked { name: "link" })
    ));
}

/// The other node's share of pod addresses; its objects tell one address of its own.
fn other_node() -> Update {
    Update::Upsert(Object::Node(Node {
        name: "node-b".into(),
        labels: Labels::default(),
        addresses: vec!["192.0.2.2".parse().unwrap()],
        pod_cidrs: vec![
            "10.244.2.0/24".parse().unwrap(),
            "fd00:2::/64".parse().unwrap(),
            "10.244.3.7/32".parse().unwrap(),
        ],
        ..Node::default()
    }))
}

/// A node unpacks what is for its bridge, and what is for everybody in its pod network.
#[test]
fn addresses_that_another_node_takes_for_its_own_are_no_targets_of_encapsulation() {
    let running = start();
    let mut updates = source();
    updates.retain(|update| !matches!(update, Update::Upsert(Object::Node(_))));
    updates.push(other_node());

    running.tell_source(updates, Ok(()));
    running.tell_interfaces(interface());
    running.settled(0);

    let mut kernel = running.kernel.clone();
    let mut found = |version| {
        let set = SetId::NodeAddresses(version);
        let elements = kernel.elements(&set.table().table(), &set.name()).unwrap();
        elements
            .into_iter()
            .flatten()
            .map(|element| element.key)
            .collect::<BTreeSet<_>>()
    };
    let key = |text: &str| {
        SetKey::Exact(vec![match text.parse().unwrap() {
            IpAddr::V4(address) => Value::Ipv4(address),
            IpAddr::V6(address) => Value::Ipv6(address),
        }])
    };
    let expected = ["192.0.2.2", "10.244.2.0", "10.244.2.1", "10.244.2.255"];
    assert_eq!(found(IpVersion::V4), expected.map(key).into());
    assert_eq!(
        found(IpVersion::V6),
        ["fd00:2::", "fd00:2::1"].map(key).into()
    );
    running.end().unwrap();
}

/// A virtual machine whose manifest names its interface.
fn machine() -> Update {
    Update::Upsert(Object::Endpoint(Endpoint {
        id: EndpointId {
            kind: EndpointKind::WorkloadEndpoint,
            namespace: "shop".into(),
            name: "vm".into(),
        },
        uid: None,
        labels: Labels::default(),
        node: None,
        addresses: vec!["10.9.0.5".parse().unwrap()],
        ports: Vec::new(),
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: Some("tap5".parse().unwrap()),
        mac: Some(MacAddress([2, 0, 0, 0, 0, 9])),
    }))
}

fn tap(bridge: Option<&str>) -> Vec<Update> {
    vec![Update::Upsert(Object::Interface(ObservedInterface {
        index: 9,
        name: "tap5".parse().unwrap(),
        bridge: bridge.map(|name| name.parse().unwrap()),
        mac: None,
        addresses: Vec::new(),
    }))]
}

#[test]
fn an_interface_that_an_endpoint_names_is_checked_when_it_comes_later() {
    let running = start();
    let mut updates = source();
    updates.push(machine());
    running.tell_source(updates, Ok(()));
    running.tell_interfaces(interface());
    let before = running.settled(0).commits.generation;

    // The facts of the host are the same, so they are not told again.
    let (updates, host, at) = (tap(None), None, Instant::now());
    running.tell(Event::Interfaces(InterfaceChange { updates, host, at }));
    running.settled(before);

    assert_eq!(running.elements(INGRESS_STATE), 2);
    assert_eq!(running.elements(SetId::RoutedInterfaces), 1);
    assert_eq!(running.elements(SetId::PodInterfaces), 2);
    running.end().unwrap();
}

/// On such a bridge nothing checks the source of a frame.
#[test]
fn a_port_of_a_bridge_that_is_no_pod_bridge_stays_closed_and_says_what_to_do() {
    let running = start();
    let mut updates = source();
    updates.push(machine());
    running.tell_source(updates, Ok(()));
    running.tell_interfaces([interface(), tap(Some("br9"))].concat());
    let status = running.settled(0);
    let closed = running.elements(INGRESS_STATE);
    let (to, answer) = oneshot::channel();
    running.tell(Event::Ask(Question::Endpoints(to)));
    let endpoints = answer.blocking_recv().unwrap();

    running.tell_interfaces(tap(Some("cni0")));
    let moved = running.settled(status.commits.generation);
    let opened = running.elements(INGRESS_STATE);
    running.tell_interfaces(tap(Some("br9")));
    running.settled(moved.commits.generation);

    let reason =
        "tap5 is a port of br9, which is no pod bridge; add br9 to podBridges (--pod-bridge)";
    assert_eq!(
        endpoints.iter().find_map(|found| found.reason.as_deref()),
        Some(reason)
    );
    assert_eq!(status.endpoints.waiting_for_interface, 1);
    assert_eq!((closed, opened, running.elements(INGRESS_STATE)), (1, 2, 1));
    running.end().unwrap();
}

#[test]
fn a_node_of_which_no_object_speaks_is_warned_of() {
    let running = start();
    running.tell_source(vec![other_node()], Err("not read whole"));
    let early = running.status();
    running.tell_source(Vec::new(), Ok(()));
    let stranger = running.status();
    running.tell_source(source(), Ok(()));
    let known = running.status();

    let warning = "no Node and no pod of the source is of node node-a, so every pod here is closed; \
                   the source has Nodes like node-b; check --node";
    assert_eq!(
        [early.warnings, stranger.warnings, known.warnings],
        [vec![], vec![warning.to_owned()], vec![]]
    );
    running.end().unwrap();
}
