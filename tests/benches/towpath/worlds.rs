//! The loads that are measured: synthetic clusters as updates, and ready-made tables for the packet path.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use towpath_core::model::{
    Action, ContainerPort, Endpoint, EndpointId, EndpointKind, Labels, Lifecycle, MacAddress,
    Namespace, NamespaceMatch, Node, Object, ObservedInterface, Peer, Peers, Policy, PolicyId,
    PolicyKind, PortMatch, Ports, Protocol, Requirement, Rule, Selector, Subject, Tier, Update,
    Verdict,
};
use towpath_core::tables::{Binding, ClassId, EndpointState, ExactKey, Tables};

/// The node that is measured.
pub(crate) const NODE: &str = "node-0";

/// How large a synthetic cluster is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Size {
    /// Endpoints on all nodes.
    pub(crate) pods: u32,
    /// NetworkPolicies.
    pub(crate) policies: u32,
    /// Endpoints on the measured node.
    pub(crate) local: u32,
    /// Namespaces; pods and policies are spread over them.
    pub(crate) namespaces: u32,
}

impl Size {
    /// The load of the goals: 10,000 pods, 10,000 policies, 110 local.
    pub(crate) const GOAL: Self = Self {
        pods: 10_000,
        policies: 10_000,
        local: 110,
        namespaces: 250,
    };
    /// The load of the gates: 100,000 peers.
    pub(crate) const LARGE: Self = Self {
        pods: 100_000,
        policies: 10_000,
        local: 110,
        namespaces: 1_000,
    };
}

/// Namespace of the `index`th object of a kind.
fn namespace(size: Size, index: u32) -> String {
    format!("team-{}", index % size.namespaces)
}

/// Address of the `index`th pod: 250 to a /24, local ones first.
pub(crate) fn pod_address(index: u32) -> Ipv4Addr {
    let (block, host) = (index / 250, index % 250 + 2);
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + (block << 8) + host)
}

/// Labels of a pod: ten applications a namespace, and all pods of one of them are of one template.
pub(crate) fn labels(size: Size, index: u32) -> Labels {
    let app = index / size.namespaces % 10;
    let template = index % size.namespaces * 10 + app;
    [
        ("app", format!("app-{app}")),
        ("tier", format!("tier-{}", app % 3)),
        ("version", format!("v{}", template % 2)),
        (
            "pod-template-hash",
            format!("{:010x}", u64::from(template) * 2_654_435_761),
        ),
    ]
    .into_iter()
    .collect()
}

/// The `index`th pod; the first `size.local` ones are on the measured node.
pub(crate) fn pod(size: Size, index: u32) -> Endpoint {
    let node = if index < size.local {
        NODE.to_owned()
    } else {
        format!("node-{}", 1 + index / 100)
    };
    Endpoint {
        id: EndpointId {
            kind: EndpointKind::Pod,
            namespace: namespace(size, index).into(),
            name: format!("pod-{index}").into(),
        },
        labels: labels(size, index),
        node: Some(node.into()),
        addresses: vec![IpAddr::V4(pod_address(index))],
        ports: vec![ContainerPort {
            name: Some("http".into()),
            protocol: Protocol::Tcp,
            number: 8080,
        }],
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    }
}

/// What the kernel reports of the `index`th pod, a local one.
pub(crate) fn interface(index: u32) -> ObservedInterface {
    let [_, b, c, d] = pod_address(index).octets();
    ObservedInterface {
        index: 100 + index,
        name: format!("veth{index:08x}")
            .parse()
            .expect("twelve letters and digits"),
        bridge: Some("cni0".parse().expect("four letters and digits")),
        mac: Some(MacAddress([2, 0, 10, b, c, d])),
        addresses: vec![IpAddr::V4(pod_address(index))],
    }
}

fn app(index: u32) -> Selector {
    Selector::new(vec![Requirement::In(
        "app".into(),
        vec![format!("app-{}", index % 10).into()],
    )])
}

/// The `index`th policy: one application of a namespace may be reached by two others, by a whole namespace
/// and by a block, on a few ports; every eighth one restricts egress as well.
pub(crate) fn policy(size: Size, index: u32) -> Policy {
    let own = NamespaceMatch::Is(namespace(size, index).into());
    let port = |first: u16| PortMatch::Range {
        protocol: Protocol::Tcp,
        first,
        last: first,
    };
    let base = 8_000 + u16::try_from(index % 40).expect("below 40");
    let ingress = vec![
        Rule {
            name: None,
            action: Action::Accept,
            peers: Peers::Of(vec![
                Peer::Workloads {
                    namespaces: own.clone(),
                    pods: app(index / size.namespaces + 1),
                },
                Peer::Workloads {
                    namespaces: own.clone(),
                    pods: app(index / size.namespaces + 2),
                },
            ]),
            ports: Ports::Of(vec![port(base), port(base + 100)]),
        },
        Rule {
            name: None,
            action: Action::Accept,
            peers: Peers::Of(vec![
                Peer::Workloads {
                    namespaces: NamespaceMatch::Is(namespace(size, index + 1).into()),
                    pods: Selector::everything(),
                },
                Peer::Network {
                    cidr: block(index),
                    except: Vec::new(),
                },
            ]),
            ports: Ports::Of(vec![port(443)]),
        },
    ];
    let egress = vec![Rule {
        name: None,
        action: Action::Accept,
        peers: Peers::Of(vec![Peer::Workloads {
            namespaces: own.clone(),
            pods: Selector::everything(),
        }]),
        ports: Ports::Any,
    }];
    Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: namespace(size, index).into(),
            name: format!("policy-{index}").into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: own,
            pods: app(index / size.namespaces),
        },
        ingress: Some(ingress),
        egress: index.is_multiple_of(8).then_some(egress),
        invalid: None,
    }
}

/// A block outside the pod networks.
fn block(index: u32) -> IpNet {
    let base = u32::from(Ipv4Addr::new(172, 16, 0, 0)) + ((index % 1_000) << 8);
    IpNet::V4(Ipv4Net::new(Ipv4Addr::from(base), 24).expect("24 bits"))
}

/// Everything but interfaces, in the order in which an API server would list it.
pub(crate) fn objects(size: Size) -> impl Iterator<Item = Object> {
    let namespaces = (0..size.namespaces).map(move |index| {
        let name = namespace(size, index);
        let labels = [("kubernetes.io/metadata.name", name.clone())]
            .into_iter()
            .collect();
        Object::Namespace(Namespace {
            name: name.into(),
            labels,
        })
    });
    let node = Object::Node(Node {
        name: NODE.into(),
        labels: Labels::default(),
        addresses: vec![IpAddr::V4(Ipv4Addr::new(192, 168, 77, 1))],
        pod_cidrs: vec![IpNet::V4(
            Ipv4Net::new(Ipv4Addr::new(10, 0, 0, 0), 24).expect("24 bits"),
        )],
        ..Node::default()
    });
    let pods = (0..size.pods).map(move |index| Object::Endpoint(pod(size, index)));
    let policies = (0..size.policies).map(move |index| Object::Policy(policy(size, index)));
    namespaces.chain([node]).chain(pods).chain(policies)
}

/// The updates that build the whole cluster, interfaces of the measured node included.
pub(crate) fn updates(size: Size) -> impl Iterator<Item = Update> {
    let interfaces = (0..size.local).map(|index| Object::Interface(interface(index)));
    objects(size).chain(interfaces).map(Update::Upsert)
}

/// Tables of the packet path: 100,000 peer classes, 1,000 blocks and 10,000 verdicts a direction, and two
/// local endpoints that may talk on one port.
pub(crate) fn packet_tables(source: Ipv4Addr, sink: Ipv4Addr, port: u16) -> Tables {
    let mut tables = Tables::default();
    for index in 0..100_000 {
        tables.peer_class.insert(
            IpAddr::V4(pod_address(1_000 + index)),
            ClassId(index % 100 + 10),
        );
    }
    for index in 0..1_000 {
        tables
            .cidr_class
            .insert(block(index).into(), ClassId(2_000 + index));
    }
    let (source_ip, sink_ip) = (IpAddr::V4(source), IpAddr::V4(sink));
    tables.peer_class.insert(source_ip, ClassId(1));
    tables.peer_class.insert(sink_ip, ClassId(2));
    let sides = [
        (&mut tables.ingress, sink_ip, ClassId(1)),
        (&mut tables.egress, source_ip, ClassId(2)),
    ];
    for (direction, endpoint, class) in sides {
        for index in 0..100 {
            for port in 0..100 {
                let endpoint = IpAddr::V4(pod_address(index));
                let key = ExactKey {
                    endpoint,
                    class: ClassId(10 + port),
                    protocol: Protocol::Tcp,
                    port: 8_000,
                };
                direction.exact.insert(
                    ExactKey {
                        port: 8_000 + u16::try_from(index).expect("below 100"),
                        ..key
                    },
                    Verdict::Allow,
                );
            }
        }
        direction.state.insert(endpoint, EndpointState::Restricted);
        direction.default.insert(endpoint, Verdict::Deny);
        direction.exact.insert(
            ExactKey {
                endpoint,
                class,
                protocol: Protocol::Udp,
                port,
            },
            Verdict::Allow,
        );
    }
    for (address, name) in [(source_ip, "to-s"), (sink_ip, "to-d")] {
        let interface = name.parse().expect("four letters");
        tables.bindings.insert(
            Binding {
                interface,
                mac: None,
                address,
            },
            (),
        );
    }
    tables
}

/// The `index`th pod as YAML.
pub(crate) fn pod_manifest(size: Size, index: u32, text: &mut String) {
    let pod = pod(size, index);
    let _ = write!(
        text,
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: {}\n  namespace: {}\n  labels:\n",
        pod.id.name, pod.id.namespace
    );
    for (key, value) in pod.labels.iter() {
        let _ = writeln!(text, "    {key}: \"{value}\"");
    }
    let address = pod_address(index);
    let _ = write!(
        text,
        "spec:\n  nodeName: {}\n  containers:\n  - name: main\n    image: example/main:1\n    ports:\n    \
         - {{ name: http, containerPort: 8080, protocol: TCP }}\n\
         status:\n  phase: Running\n  podIP: {address}\n  podIPs:\n  - ip: {address}\n",
        pod.node.as_deref().unwrap_or_default()
    );
}

/// The `index`th policy as YAML: the same object as [`policy`].
pub(crate) fn policy_manifest(size: Size, index: u32, text: &mut String) {
    let app = |offset: u32| {
        format!(
            "{{ matchLabels: {{ app: app-{} }} }}",
            (index / size.namespaces + offset) % 10
        )
    };
    let base = 8_000 + index % 40;
    let egress = index.is_multiple_of(8);
    let _ = write!(
        text,
        "---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: policy-{index}, namespace: {} }}\n\
         spec:\n  podSelector: {}\n  policyTypes: [Ingress{}]\n  ingress:\n  - from:\n    - podSelector: {}\n    \
         - podSelector: {}\n    ports:\n    - port: {base}\n    - port: {}\n  - from:\n    - namespaceSelector: \
         {{ matchLabels: {{ kubernetes.io/metadata.name: {} }} }}\n    - ipBlock: {{ cidr: {} }}\n    ports:\n    - port: 443\n",
        namespace(size, index),
        app(0),
        if egress { ", Egress" } else { "" },
        app(1),
        app(2),
        base + 100,
        namespace(size, index + 1),
        block(index)
    );
    if egress {
        text.push_str("  egress:\n  - to:\n    - podSelector: {}\n");
    }
}

/// A policy whose one rule concerns every pod of the cluster: the first local pods of namespace `team-0` may be
/// reached from everywhere inside.
pub(crate) fn wide_policy() -> Policy {
    let everywhere = Peer::Workloads {
        namespaces: NamespaceMatch::Matching(Selector::everything()),
        pods: Selector::everything(),
    };
    let port = PortMatch::Range {
        protocol: Protocol::Tcp,
        first: 9_090,
        last: 9_090,
    };
    let rule = Rule {
        name: None,
        action: Action::Accept,
        peers: Peers::Of(vec![everywhere]),
        ports: Ports::Of(vec![port]),
    };
    let namespace = "team-0";
    Policy {
        id: PolicyId {
            kind: PolicyKind::NetworkPolicy,
            namespace: namespace.into(),
            name: "wide".into(),
        },
        tier: Tier::NETWORK_POLICY,
        order: 0,
        subject: Subject {
            namespaces: NamespaceMatch::Is(namespace.into()),
            pods: Selector::everything(),
        },
        ingress: Some(vec![rule]),
        egress: None,
        invalid: None,
    }
}
