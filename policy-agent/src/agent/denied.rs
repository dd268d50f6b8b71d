//! Denied packets: counted by reason, joined to flows, attributed to the rule that denies them.
//!
//! The kernel logs a limited share of the packets that it drops. Here they wait, merged by flow, until the graph has
//! time to say which rule denies them; what does not fit is counted and forgotten.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime};

use smol_str::SmolStr;
use towpath_core::evaluate::{Evaluator, Flow, FlowDecision};
use towpath_core::model::{Cluster, Direction, Protocol, Verdict};
use towpath_dataplane::nflog::{Conversation, DeniedPacket, Transport};
use tracing::{debug, info};

use super::publishing::EventSink;
use super::report::{Denied, DeniedCount};
use crate::cli::arguments::protocol_name;
use crate::layout::DropReason;

/// Flows that may wait for attribution.
const MOST_PENDING: usize = 256;
/// A flow that goes on is logged again after this time.
const LOG_AGAIN: Duration = Duration::from_mins(1);
/// Log lines of denied flows in one go.
const MOST_LINES: usize = 10;

/// Why a packet was logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Reason {
    /// Name of a [`DropReason`], or `other`.
    pub(super) name: &'static str,
    pub(super) outcome: Outcome,
}

/// What became of a packet that policy denies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Outcome {
    Dropped,
    /// It passed, since its node or endpoint is audited.
    Audited,
    /// It passed, since an operator has opened enforcement for a while.
    Bypassed,
}

impl Reason {
    /// The reason of a rule's prefix. The group may carry the packets of others; those are `other`.
    fn of(prefix: &str) -> Self {
        let found = DropReason::ALL.into_iter().find_map(|reason| {
            let outcome = if prefix == reason.name() {
                Outcome::Dropped
            } else if prefix == reason.audit_name() {
                Outcome::Audited
            } else if prefix.strip_prefix("bypass_") == Some(reason.name()) {
                Outcome::Bypassed
            } else {
                return None;
            };
            let name = reason.name();
            Some(Self { name, outcome })
        });
        found.unwrap_or(Self {
            name: "other",
            outcome: Outcome::Dropped,
        })
    }

    /// As it is counted: packets that passed are told from those that did not.
    fn counted(self) -> String {
        match self.outcome {
            Outcome::Dropped => self.name.to_owned(),
            Outcome::Audited => format!("audited {}", self.name),
            Outcome::Bypassed => format!("bypassed {}", self.name),
        }
    }
}

/// What makes two packets the same flow.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    reason: Reason,
    source: IpAddr,
    destination: IpAddr,
    /// IANA number; ARP has none.
    protocol: Option<u8>,
    port: Option<u16>,
}

impl Key {
    /// `None` for a packet without addresses.
    fn of(packet: &DeniedPacket) -> Option<Self> {
        let (protocol, port) = match packet.conversation {
            Conversation::Ip {
                protocol,
                transport,
                ..
            } => (Some(protocol), destination_port(transport)),
            Conversation::Arp { .. } => (None, None),
            Conversation::Other { .. } => return None,
        };
        Some(Self {
            reason: Reason::of(&packet.prefix),
            source: packet.source()?,
            destination: packet.destination()?,
            protocol,
            port,
        })
    }

    /// The flow that policy judges; `None` where policy had no say.
    fn flow(&self) -> Option<Flow> {
        let is_judged = self.reason.name == DropReason::Policy.name();
        let protocol = self.protocol.filter(|_| is_judged)?;
        let port = Protocol::from_number(protocol).and(self.port);
        Some(Flow {
            source: self.source,
            destination: self.destination,
            protocol,
            port,
        })
    }
}

fn destination_port(transport: Transport) -> Option<u16> {
    match transport {
        Transport::Ports { destination, .. } => Some(destination),
        Transport::Icmp { .. } | Transport::None => None,
    }
}

/// Packets of one flow that wait.
#[derive(Clone, Debug)]
struct Pending {
    packets: u64,
    at: SystemTime,
    interface: Option<u32>,
}

/// A flow in the list.
#[derive(Clone, Debug)]
struct Listed {
    key: Key,
    denied: Denied,
    logged: Instant,
}

/// The last denied flows.
#[derive(Clone, Debug)]
pub(super) struct DeniedFlows {
    /// How many are kept.
    room: usize,
    pending: BTreeMap<Key, Pending>,
    /// Oldest first.
    listed: Vec<Listed>,
    counts: BTreeMap<Reason, u64>,
    /// Who else is told of them.
    events: Option<EventSink>,
}

impl DeniedFlows {
    pub(super) fn new(room: usize) -> Self {
        let (pending, listed, counts) = Default::default();
        Self {
            room,
            pending,
            listed,
            counts,
            events: None,
        }
    }

    /// Has these hear of all flows, too.
    pub(super) fn telling(mut self, events: Option<EventSink>) -> Self {
        self.events = events;
        self
    }

    /// Takes one logged packet; returns its reason, for the metric.
    pub(super) fn add(&mut self, packet: &DeniedPacket, now: SystemTime) -> Reason {
        let reason = Reason::of(&packet.prefix);
        *self.counts.entry(reason).or_default() += 1;
        let Some(key) = Key::of(packet) else {
            return reason;
        };
        let at = packet.time.unwrap_or(now);
        let interface = packet.in_port.or(packet.in_interface);
        if let Some(pending) = self.pending.get_mut(&key) {
            pending.packets += 1;
            pending.at = at;
        } else if self.pending.len() < MOST_PENDING {
            self.pending.insert(
                key,
                Pending {
                    packets: 1,
                    at,
                    interface,
                },
            );
        }
        reason
    }

    /// Says of all waiting flows which rule denies them, and lists them.
    pub(super) fn attribute(&mut self, cluster: &Cluster, now: Instant) {
        let pending = std::mem::take(&mut self.pending);
        if pending.is_empty() {
            return;
        }
        let evaluator = Evaluator::new(cluster);
        let mut lines = 0;
        for (key, pending) in pending {
            let index = self.listed.iter().position(|listed| listed.key == key);
            let (packets, logged) = match index.map(|index| self.listed.remove(index)) {
                Some(listed) => (listed.denied.packets, Some(listed.logged)),
                None => (0, None),
            };
            let mut denied = describe(&key, &pending, &evaluator);
            if let Some(events) = &self.events {
                events.tell(&denied, cluster);
            }
            denied.packets += packets;
            let is_due = logged.is_none_or(|at| now.duration_since(at) >= LOG_AGAIN);
            let is_logged = is_due && lines < MOST_LINES;
            if is_logged {
                log(&denied);
                lines += 1;
            }
            let logged = if is_logged {
                now
            } else {
                logged.unwrap_or(now)
            };
            self.listed.push(Listed {
                key,
                denied,
                logged,
            });
        }
        let surplus = self.listed.len().saturating_sub(self.room);
        self.listed.drain(..surplus);
    }

    /// The listed flows, newest first.
    pub(super) fn report(&self) -> Vec<Denied> {
        self.listed
            .iter()
            .rev()
            .map(|listed| listed.denied.clone())
            .collect()
    }

    /// Packets by reason.
    pub(super) fn counts(&self) -> Vec<DeniedCount> {
        let count = |(reason, packets): (&Reason, &u64)| DeniedCount {
            reason: reason.counted(),
            packets: *packets,
        };
        self.counts.iter().map(count).collect()
    }
}

fn describe(key: &Key, pending: &Pending, evaluator: &Evaluator<'_>) -> Denied {
    let cluster = evaluator.cluster();
    let decision = key.flow().map(|flow| evaluator.decide(&flow));
    let interface = pending
        .interface
        .and_then(|index| cluster.interfaces.get(&index));
    let owner = |address| owner_of(cluster, address).map(|name| name.to_string());
    Denied {
        at: pending
            .at
            .duration_since(SystemTime::UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
        packets: pending.packets,
        reason: key.reason.name.to_owned(),
        audited: key.reason.outcome == Outcome::Audited,
        bypassed: key.reason.outcome == Outcome::Bypassed,
        direction: decision
            .as_ref()
            .and_then(denying)
            .map(|direction| direction.to_string()),
        source: key.source,
        from: owner(key.source),
        destination: key.destination,
        to: owner(key.destination),
        protocol: key.protocol.map_or_else(|| "arp".to_owned(), protocol_name),
        port: key.port,
        rule: decision.as_ref().map(rule_of),
        interface: interface.map(|interface| interface.name.to_string()),
    }
}

/// The direction that denies; egress comes first, as on the wire.
fn denying(decision: &FlowDecision) -> Option<Direction> {
    let decisions = [&decision.egress, &decision.ingress];
    decisions
        .into_iter()
        .find(|one| one.verdict == Verdict::Deny)
        .map(|one| one.direction)
}

fn rule_of(decision: &FlowDecision) -> String {
    match denying(decision) {
        Some(Direction::Egress) => decision.egress.reason.to_string(),
        Some(Direction::Ingress) => decision.ingress.reason.to_string(),
        None => "none any more: what denied it has changed since".to_owned(),
    }
}

/// The one live workload that has the address.
fn owner_of(cluster: &Cluster, address: IpAddr) -> Option<SmolStr> {
    let mut owners = cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.is_workload() && endpoint.addresses.contains(&address));
    let owner = owners.next()?;
    owners
        .next()
        .is_none()
        .then(|| SmolStr::new(owner.id.to_string()))
}

fn log(denied: &Denied) {
    let party = |name: &Option<String>, address: IpAddr| {
        name.clone().unwrap_or_else(|| address.to_string())
    };
    let from = party(&denied.from, denied.source);
    let to = party(&denied.to, denied.destination);
    // What every kernel sends by itself is nothing to look at.
    if denied.reason == DropReason::Unbound.name() {
        debug!(
            reason = denied.reason,
            from,
            to,
            packets = denied.packets,
            "denied"
        );
        return;
    }
    let outcome = match (denied.audited, denied.bypassed) {
        (true, _) => "would be denied",
        (false, true) => "passes by bypass, would be denied",
        (false, false) => "denied",
    };
    info!(
        reason = denied.reason,
        direction = denied.direction,
        from,
        to,
        protocol = denied.protocol,
        port = denied.port,
        rule = denied.rule,
        packets = denied.packets,
        "{outcome}"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::{Capacities, LayoutOptions, layout};
    use std::collections::BTreeSet;
    use towpath_core::model::{
        Endpoint, EndpointId, EndpointKind, Labels, Lifecycle, Namespace, NamespaceMatch, Object,
        Policy, PolicyId, PolicyKind, Selector, Subject, Tier, Update,
    };
    use towpath_dataplane::nft::transaction_text;

    fn pod(name: &str, address: &str) -> Update {
        Update::Upsert(Object::Endpoint(Endpoint {
            id: EndpointId {
                kind: EndpointKind::Pod,
                namespace: "shop".into(),
                name: name.into(),
            },
            labels: Labels::default(),
            node: None,
            addresses: vec![address.parse().unwrap()],
            ports: Vec::new(),
            uid: None,
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface: None,
            mac: None,
        }))
    }

    /// Two pods, isolated for ingress.
    fn cluster() -> Cluster {
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
        let namespace = Namespace {
            name,
            labels: Labels::default(),
        };
        let mut cluster = Cluster::default();
        for update in [
            Update::Upsert(Object::Namespace(namespace)),
            Update::Upsert(Object::Policy(policy)),
            pod("web", "10.0.0.1"),
            pod("db", "10.0.0.2"),
        ] {
            cluster.apply(update);
        }
        cluster
    }

    fn packet(prefix: &str, port: u16) -> DeniedPacket {
        DeniedPacket {
            prefix: prefix.into(),
            time: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(7)),
            in_interface: None,
            out_interface: None,
            in_port: None,
            out_port: None,
            source_mac: None,
            conversation: Conversation::Ip {
                source: "10.0.0.1".parse().unwrap(),
                destination: "10.0.0.2".parse().unwrap(),
                protocol: 6,
                transport: Transport::Ports {
                    source: 40_000,
                    destination: port,
                },
            },
        }
    }

    #[test]
    fn every_prefix_that_the_layout_writes_is_a_reason() {
        let options = LayoutOptions {
            dhcp: true,
            ..LayoutOptions::default()
        };
        let text = transaction_text(&layout(&options, &Capacities::default())).unwrap();

        let written: BTreeSet<&str> = text
            .split("prefix \"")
            .skip(1)
            .filter_map(|rest| rest.split('"').next())
            .collect();

        let mut known: BTreeSet<&str> = DropReason::ALL.map(DropReason::name).into();
        known.extend([DropReason::Policy, DropReason::Invalid].map(DropReason::audit_name));
        let bypassed = DropReason::BYPASSED.map(DropReason::bypass_name);
        known.extend(bypassed.iter().map(String::as_str));
        assert_eq!(written, known);
        for prefix in written {
            let (name, outcome) = match prefix.split_once('_') {
                Some(("audit", name)) => (name, Outcome::Audited),
                Some(("bypass", name)) => (name, Outcome::Bypassed),
                _ => (prefix, Outcome::Dropped),
            };
            assert_eq!(
                Reason::of(prefix),
                Reason {
                    name: known_name(name),
                    outcome
                }
            );
        }
    }

    fn known_name(name: &str) -> &'static str {
        let mut names = DropReason::ALL.map(DropReason::name).into_iter();
        names.find(|known| *known == name).unwrap()
    }

    #[test]
    fn packets_of_one_flow_are_one_entry_with_its_rule() {
        let mut flows = DeniedFlows::new(8);
        for _ in 0..3 {
            flows.add(&packet("policy", 80), SystemTime::UNIX_EPOCH);
        }

        flows.attribute(&cluster(), Instant::now());

        let expected = Denied {
            at: 7,
            packets: 3,
            reason: "policy".to_owned(),
            audited: false,
            bypassed: false,
            direction: Some("ingress".to_owned()),
            source: "10.0.0.1".parse().unwrap(),
            from: Some("shop/web".to_owned()),
            destination: "10.0.0.2".parse().unwrap(),
            to: Some("shop/db".to_owned()),
            protocol: "tcp".to_owned(),
            port: Some(80),
            rule: Some(
                "isolated in tier NetworkPolicy by NetworkPolicy shop/closed; no rule matches"
                    .to_owned(),
            ),
            interface: None,
        };
        assert_eq!(flows.report(), [expected]);
        assert_eq!(
            flows.counts(),
            [DeniedCount {
                reason: "policy".to_owned(),
                packets: 3
            }]
        );
    }

    #[test]
    fn only_the_newest_flows_are_kept() {
        let mut flows = DeniedFlows::new(2);
        let cluster = cluster();
        for port in [1, 2, 3, 1] {
            flows.add(&packet("policy", port), SystemTime::UNIX_EPOCH);
            flows.attribute(&cluster, Instant::now());
        }

        let ports: Vec<_> = flows.report().iter().map(|denied| denied.port).collect();

        assert_eq!(ports, [Some(1), Some(3)]);
    }

    #[test]
    fn waiting_flows_are_bounded_but_all_packets_are_counted() {
        let mut flows = DeniedFlows::new(10_000);
        for port in 1..=1_000 {
            flows.add(&packet("spoofed", port), SystemTime::UNIX_EPOCH);
        }

        assert_eq!(flows.pending.len(), MOST_PENDING);
        assert_eq!(flows.counts()[0].packets, 1_000);
    }

    #[test]
    fn prefixes_outside_the_list_are_other() {
        assert_eq!(Reason::of("policy").name, "policy");
        assert_eq!(Reason::of("policy of others").name, "other");
    }
}
