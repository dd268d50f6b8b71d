//! A small cluster to be filled by a test, and short words for its policies.
//!
//! Nodes `n1` and `n2`; namespaces `web` (env=prod, team=a), `db` (env=prod), `dev` (env=dev). Every pod has an
//! address of each family, and every check is made in both.

use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::evaluate::{Evaluator, Flow, FlowDecision};
use towpath_core::model::{
    Action, Cluster, ContainerPort, Direction, Endpoint, EndpointId, EndpointKind, Labels,
    Lifecycle, Namespace, NamespaceMatch, Node, Object, Peer, Peers, Policy, PolicyId, PolicyKind,
    PortMatch, Ports, Protocol, Requirement, Rule, Selector, Subject, Tier, Update, Verdict,
};

/// The cluster of one test.
pub(crate) struct Lab {
    pub(crate) cluster: Cluster,
}

impl Lab {
    pub(crate) fn new() -> Self {
        let mut lab = Self {
            cluster: Cluster::default(),
        };
        for (name, labels) in [
            ("web", "env=prod,team=a"),
            ("db", "env=prod"),
            ("dev", "env=dev"),
        ] {
            lab.namespace(name, labels);
        }
        for (index, name) in (1..).zip(["n1", "n2"]) {
            let pod_cidrs: Vec<IpNet> = vec![
                format!("10.244.{index}.0/24").parse().unwrap(),
                format!("fd00:10:{index}::/64").parse().unwrap(),
            ];
            let node = Node {
                name: name.into(),
                labels: labels(&format!("name={name}")),
                addresses: vec![
                    ip(&format!("192.168.0.{index}")),
                    ip(&format!("fd00:192::{index}")),
                ],
                // As Flannel's vxlan shows itself.
                tunnel_cidrs: pod_cidrs.clone(),
                pod_cidrs,
                ..Node::default()
            };
            lab.put(Object::Node(node));
        }
        lab
    }

    pub(crate) fn put(&mut self, object: Object) {
        self.cluster.apply(Update::Upsert(object));
    }

    pub(crate) fn namespace(&mut self, name: &str, text: &str) {
        let own = format!("{text},kubernetes.io/metadata.name={name}");
        self.put(Object::Namespace(Namespace {
            name: name.into(),
            labels: labels(&own),
        }));
    }

    /// A pod on node `n1`, with the next free address; the closure changes it.
    pub(crate) fn pod_with(&mut self, name: &str, text: &str, change: impl FnOnce(&mut Endpoint)) {
        let (namespace, own) = name.split_once('/').unwrap();
        let host = 10 + self.cluster.endpoints.len();
        let mut pod = Endpoint {
            id: EndpointId {
                kind: EndpointKind::Pod,
                namespace: namespace.into(),
                name: own.into(),
            },
            labels: labels(text),
            node: Some("n1".into()),
            addresses: vec![
                ip(&format!("10.244.1.{host}")),
                ip(&format!("fd00:10:1::{host}")),
            ],
            ports: Vec::new(),
            uid: None,
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface: None,
            mac: None,
        };
        change(&mut pod);
        self.put(Object::Endpoint(pod));
    }

    pub(crate) fn pod(&mut self, name: &str, text: &str) {
        self.pod_with(name, text, |_| {});
    }

    /// A pod with named ports, such as `http=80/tcp`.
    pub(crate) fn server(&mut self, name: &str, text: &str, ports: &[&str]) {
        self.pod_with(name, text, |pod| {
            pod.ports = ports.iter().map(|port| container_port(port)).collect();
        });
    }

    /// A NetworkPolicy of the name's namespace; its rules may say `own()`.
    pub(crate) fn policy(&mut self, name: &str, pods: Selector, ingress: Rules, egress: Rules) {
        let (namespace, own) = name.split_once('/').unwrap();
        self.put(Object::Policy(Policy {
            id: PolicyId {
                kind: PolicyKind::NetworkPolicy,
                namespace: namespace.into(),
                name: own.into(),
            },
            tier: Tier::NETWORK_POLICY,
            order: 0,
            subject: Subject {
                namespaces: NamespaceMatch::Is(namespace.into()),
                pods,
            },
            ingress,
            egress,
            invalid: None,
        }));
    }

    /// A ClusterNetworkPolicy whose subject is the pods of these namespaces.
    pub(crate) fn cluster_policy(
        &mut self,
        tier: Tier,
        (name, order): (&str, i32),
        namespaces: Selector,
        ingress: Rules,
        egress: Rules,
    ) {
        let kind = PolicyKind::ClusterNetworkPolicy;
        self.put(Object::Policy(Policy {
            id: PolicyId {
                kind,
                namespace: SmolStr::default(),
                name: name.into(),
            },
            tier,
            order,
            subject: Subject {
                namespaces: NamespaceMatch::Matching(namespaces),
                pods: everything(),
            },
            ingress,
            egress,
            invalid: None,
        }));
    }

    /// An IPv4 and an IPv6 flow between two of: a pod, a node, `outside`, an address of either family.
    pub(crate) fn flows(&self, from: &str, to: &str, port: &str) -> Vec<Flow> {
        let (protocol, port) = packet(port);
        let (sources, destinations) = (self.addresses(from), self.addresses(to));
        let pairs = sources
            .iter()
            .flat_map(|from| destinations.iter().map(move |to| (*from, *to)));
        let pairs = pairs.filter(|(from, to)| from.is_ipv4() == to.is_ipv4());
        let flows: Vec<Flow> = pairs
            .map(|(source, destination)| Flow {
                source,
                destination,
                protocol,
                port,
            })
            .collect();
        assert!(!flows.is_empty(), "{from} and {to} share no address family");
        flows
    }

    pub(crate) fn addresses(&self, name: &str) -> Vec<IpAddr> {
        if name == "outside" {
            return vec![ip("203.0.113.7"), ip("2001:db8::7")];
        }
        if let Ok(address) = name.parse() {
            return vec![address];
        }
        match self.cluster.nodes.get(name) {
            Some(node) => node.addresses[..2].to_vec(),
            None => self.endpoint(name).addresses.clone(),
        }
    }

    pub(crate) fn endpoint(&self, name: &str) -> &Endpoint {
        let found = self
            .cluster
            .endpoints
            .values()
            .find(|endpoint| endpoint.id.to_string() == name);
        found.unwrap_or_else(|| panic!("no endpoint {name}"))
    }

    pub(crate) fn decide(&self, from: &str, to: &str, port: &str) -> Vec<FlowDecision> {
        let evaluator = Evaluator::new(&self.cluster);
        self.flows(from, to, port)
            .iter()
            .map(|flow| evaluator.decide(flow))
            .collect()
    }

    #[track_caller]
    pub(crate) fn allows(&self, from: &str, to: &str, port: &str) {
        self.expect(Verdict::Allow, from, to, port);
    }

    #[track_caller]
    pub(crate) fn denies(&self, from: &str, to: &str, port: &str) {
        self.expect(Verdict::Deny, from, to, port);
    }

    #[track_caller]
    fn expect(&self, verdict: Verdict, from: &str, to: &str, port: &str) {
        for decision in self.decide(from, to, port) {
            assert_eq!(
                decision.verdict, verdict,
                "{from} to {to} at {port}: {decision:#?}"
            );
        }
    }

    /// The reason of one direction, as text, the same in both families.
    #[track_caller]
    pub(crate) fn reason(&self, direction: Direction, from: &str, to: &str, port: &str) -> String {
        let reasons = self
            .decide(from, to, port)
            .into_iter()
            .map(|decision| match direction {
                Direction::Ingress => decision.ingress.reason.to_string(),
                Direction::Egress => decision.egress.reason.to_string(),
            });
        let mut reasons: Vec<String> = reasons.collect();
        reasons.dedup();
        assert_eq!(reasons.len(), 1, "the families differ: {reasons:?}");
        reasons.remove(0)
    }
}

/// Rules of one direction; `None` does not apply.
pub(crate) type Rules = Option<Vec<Rule>>;

/// `80/tcp`, `icmp`, `gre`.
fn packet(text: &str) -> (u8, Option<u16>) {
    match text {
        "icmp" => (1, None),
        "gre" => (47, None),
        _ => {
            let (number, protocol) = text.split_once('/').unwrap();
            (
                protocol_of(protocol).number(),
                Some(number.parse().unwrap()),
            )
        }
    }
}

fn protocol_of(text: &str) -> Protocol {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.to_string() == text)
        .unwrap()
}

fn container_port(text: &str) -> ContainerPort {
    let (name, rest) = text.split_once('=').unwrap();
    let (protocol, number) = packet(rest);
    ContainerPort {
        name: Some(name.into()),
        protocol: Protocol::from_number(protocol).unwrap(),
        number: number.unwrap(),
    }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text} is no address"))
}

/// `app=web,tier=front`.
pub(crate) fn labels(text: &str) -> Labels {
    let pairs = text.split(',').filter(|pair| !pair.is_empty());
    pairs.map(|pair| pair.split_once('=').unwrap()).collect()
}

/// Requirements in words: `app=web`, `app in a|b`, `app notin a|b`, `app`, `!app`; joined by commas.
pub(crate) fn selector(text: &str) -> Selector {
    let values = |text: &str| text.split('|').map(SmolStr::from).collect();
    let requirement = |part: &str| {
        if let Some((key, list)) = part.split_once(" in ") {
            Requirement::In(key.into(), values(list))
        } else if let Some((key, list)) = part.split_once(" notin ") {
            Requirement::NotIn(key.into(), values(list))
        } else if let Some((key, value)) = part.split_once('=') {
            Requirement::In(key.into(), values(value))
        } else if let Some(key) = part.strip_prefix('!') {
            Requirement::DoesNotExist(key.into())
        } else {
            Requirement::Exists(part.into())
        }
    };
    Selector::new(
        text.split(',')
            .filter(|part| !part.is_empty())
            .map(requirement)
            .collect(),
    )
}

pub(crate) fn everything() -> Selector {
    Selector::everything()
}

/// Pods of one namespace.
pub(crate) fn pods_of(namespace: &str, pods: &str) -> Peer {
    Peer::Workloads {
        namespaces: NamespaceMatch::Is(namespace.into()),
        pods: selector(pods),
    }
}

/// Pods of the matching namespaces.
pub(crate) fn pods_in(namespaces: &str, pods: &str) -> Peer {
    Peer::Workloads {
        namespaces: NamespaceMatch::Matching(selector(namespaces)),
        pods: selector(pods),
    }
}

/// A block without the blocks after it.
pub(crate) fn block(cidr: &str, except: &[&str]) -> Peer {
    Peer::Network {
        cidr: cidr.parse().unwrap(),
        except: except.iter().map(|hole| hole.parse().unwrap()).collect(),
    }
}

pub(crate) fn nodes(text: &str) -> Peer {
    Peer::Nodes(selector(text))
}

/// `80/tcp`, `80-90/udp`, `http/tcp`, `http` of any protocol, `/tcp` for all of a protocol.
pub(crate) fn port(text: &str) -> PortMatch {
    let Some((what, protocol)) = text.split_once('/') else {
        return PortMatch::Named {
            protocol: None,
            name: text.into(),
        };
    };
    let protocol = protocol_of(protocol);
    let range = |first, last| PortMatch::Range {
        protocol,
        first,
        last,
    };
    if what.is_empty() {
        range(0, u16::MAX)
    } else if let Ok(number) = what.parse() {
        range(number, number)
    } else if let Some((first, last)) = what.split_once('-')
        && let (Ok(first), Ok(last)) = (first.parse(), last.parse())
    {
        range(first, last)
    } else {
        PortMatch::Named {
            protocol: Some(protocol),
            name: what.into(),
        }
    }
}

/// A rule; no peers are anybody, no ports are every protocol.
pub(crate) fn rule(action: Action, peers: &[Peer], ports: &[&str]) -> Rule {
    Rule {
        name: None,
        action,
        peers: if peers.is_empty() {
            Peers::Any
        } else {
            Peers::Of(peers.to_vec())
        },
        ports: if ports.is_empty() {
            Ports::Any
        } else {
            Ports::Of(ports.iter().map(|text| port(text)).collect())
        },
    }
}

pub(crate) fn accept(peers: &[Peer], ports: &[&str]) -> Rule {
    rule(Action::Accept, peers, ports)
}

pub(crate) fn deny(peers: &[Peer], ports: &[&str]) -> Rule {
    rule(Action::Deny, peers, ports)
}

pub(crate) fn pass(peers: &[Peer], ports: &[&str]) -> Rule {
    rule(Action::Pass, peers, ports)
}
