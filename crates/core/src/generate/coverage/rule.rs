//! Rows that the rules of a walk meet: peers, ports, what they match and what they miss.

use std::collections::BTreeSet;

use crate::evaluate::{
    Certainty, PeerOutcome, PeerTrace, PolicyTrace, PortOutcome, PortTrace, RuleTrace, Side,
};
use crate::model::{
    Action, Direction, NamespaceMatch, Peer, Peers, Policy, PolicyKind, PortMatch, Ports, Protocol,
    Requirement, Selector,
};

use super::super::Row;
use super::super::build::NAME_LABEL;
use super::walk::Hits;

impl<'a> Hits<'_, 'a> {
    pub(super) fn policy(&mut self, trace: &PolicyTrace<'a>) {
        let policy = trace.policy;
        self.mark_if(
            Row::SubjectEverything,
            policy.subject.pods.requirements().is_empty(),
        );
        if policy.id.kind == PolicyKind::ClusterNetworkPolicy {
            let has_pods = !policy.subject.pods.requirements().is_empty();
            self.mark(if has_pods {
                Row::ClusterSubjectPods
            } else {
                Row::ClusterSubjectNamespaces
            });
        }
        for rule in &trace.rules {
            self.mark_if(Row::LaterRule, rule.is_deciding && rule.index > 0);
            self.uncertain(rule);
            self.empty_lists(rule);
            self.halves(rule);
            for peer in &rule.peers {
                self.peer(policy, rule, peer);
            }
            for port in &rule.ports {
                self.port(rule, port);
            }
            if rule.matched == Certainty::Yes {
                self.matched(policy, rule);
            }
        }
    }

    fn uncertain(&mut self, rule: &RuleTrace<'a>) {
        if rule.matched != Certainty::Uncertain {
            return;
        }
        let meets =
            |is_so: fn(&PeerOutcome) -> bool| rule.peers.iter().any(|peer| is_so(&peer.outcome));
        if meets(|outcome| matches!(outcome, PeerOutcome::DoubtfulNode(_))) {
            self.mark(match rule.rule.action {
                Action::Accept => Row::DoubtfulNodeAccept,
                Action::Deny => Row::DoubtfulNodeDeny,
                Action::Pass => Row::DoubtfulNodePass,
            });
        }
        if !meets(|outcome| matches!(outcome, PeerOutcome::UnknownNamespace(_))) {
            return;
        }
        self.mark(match rule.rule.action {
            Action::Accept => Row::UnknownNamespaceAccept,
            Action::Deny => Row::UnknownNamespaceDeny,
            Action::Pass => Row::UnknownNamespacePass,
        });
        let is_named = |port: &PortTrace| {
            matches!(port.port, PortMatch::Named { .. }) && port.outcome == PortOutcome::Matches
        };
        let is_egress = self.explanation.direction() == Direction::Egress;
        self.mark_if(
            Row::UnknownNamespaceNamed,
            is_egress && rule.ports.iter().any(is_named),
        );
    }

    fn empty_lists(&mut self, rule: &RuleTrace<'a>) {
        if let Peers::Of(peers) = &rule.rule.peers {
            self.mark_if(Row::EmptyPeers, peers.is_empty());
        }
        if let Ports::Of(ports) = &rule.rule.ports {
            self.mark_if(Row::EmptyPorts, ports.is_empty());
        }
    }

    /// Peer and port must both hold; of each list any one element.
    fn halves(&mut self, rule: &RuleTrace<'a>) {
        let has_peer = rule.peers_matched == Certainty::Yes;
        self.mark_if(Row::PeerWithoutPort, has_peer && !rule.has_port);
        let is_peer_missing = rule.peers_matched == Certainty::No;
        let has_listed_port = rule.ports.iter().any(|port| port.outcome.is_match());
        self.mark_if(Row::PortWithoutPeer, is_peer_missing && has_listed_port);
        if rule.matched == Certainty::Yes {
            let is_later = |peer: &PeerTrace| peer.outcome != PeerOutcome::Matches;
            self.mark_if(Row::LaterPeer, rule.peers.first().is_some_and(is_later));
            let is_later = |port: &PortTrace| !port.outcome.is_match();
            self.mark_if(Row::LaterPort, rule.ports.first().is_some_and(is_later));
        }
    }

    fn matched(&mut self, policy: &Policy, rule: &RuleTrace<'a>) {
        let has_any_port = rule.rule.ports == Ports::Any;
        let has_any_peer = rule.rule.peers == Peers::Any;
        let is_transport = Protocol::from_number(self.explanation.flow.protocol).is_some();
        self.mark_if(
            Row::AllowAllRule,
            has_any_peer && has_any_port && rule.rule.action == Action::Accept,
        );
        self.mark_if(Row::AnyPeer, has_any_peer);
        self.mark_if(Row::AnyPort, has_any_port && is_transport);
        self.mark_if(Row::AnyProtocol, has_any_port && !is_transport);
        let is_cluster_wide = policy.id.kind == PolicyKind::ClusterNetworkPolicy;
        self.mark_if(
            Row::EveryProtocol,
            is_cluster_wide && rule.is_deciding && !is_transport,
        );
        if is_cluster_wide {
            let has_range = |port: &PortTrace| {
                matches!(port.port, PortMatch::Range { .. }) && port.outcome.is_match()
            };
            self.mark_if(Row::ClusterPort, rule.ports.iter().any(has_range));
        }
        let is_excepted = |(_, rule): (&Policy, &RuleTrace)| {
            rule.peers
                .iter()
                .any(|peer| matches!(peer.outcome, PeerOutcome::InExcept(_)))
        };
        let is_accepted = rule.is_deciding && rule.rule.action == Action::Accept;
        let has_exception = self.rules().any(is_excepted);
        self.mark_if(Row::BlockExceptElsewhere, is_accepted && has_exception);
        let has_named = |port: &PortTrace| {
            matches!(port.port, PortMatch::Named { .. }) && port.outcome == PortOutcome::Matches
        };
        let only_named = rule.ports.iter().any(has_named);
        let matches_block = |peer: &PeerTrace| {
            matches!(peer.peer, Peer::Network { .. }) && peer.outcome == PeerOutcome::Matches
        };
        self.mark_if(Row::ClusterNamedPort, is_cluster_wide && only_named);
        match self.explanation.direction() {
            Direction::Ingress => {
                self.mark_if(Row::NamedIngress, only_named);
                self.mark_if(
                    Row::NamedIngressBlock,
                    only_named && rule.peers.iter().any(matches_block),
                );
            }
            Direction::Egress => {
                self.mark_if(Row::NamedEgress, only_named && !has_any_peer);
                self.mark_if(Row::NamedEgressAny, only_named && has_any_peer);
            }
        }
    }

    fn peer(&mut self, policy: &Policy, rule: &RuleTrace<'a>, trace: &PeerTrace<'a>) {
        let is_match = trace.outcome == PeerOutcome::Matches;
        match trace.peer {
            Peer::Workloads { namespaces, pods } if is_match => {
                self.selector(policy, namespaces, pods);
            }
            Peer::Workloads {
                namespaces: NamespaceMatch::Matching(selector),
                ..
            } => {
                let is_no_pod = trace.outcome == PeerOutcome::NoWorkload;
                self.mark_if(
                    Row::AllNamespacesOnlyPods,
                    is_no_pod && selector.requirements().is_empty(),
                );
            }
            Peer::Workloads { .. } => {}
            Peer::Network { cidr, .. } => match trace.outcome {
                PeerOutcome::Matches => {
                    self.block(cidr.prefix_len(), cidr.max_prefix_len());
                    let is_cluster_wide = policy.id.kind == PolicyKind::ClusterNetworkPolicy;
                    self.mark_if(Row::Networks, is_cluster_wide);
                    let is_pod = matches!(self.explanation.peer, Side::Workload(_));
                    self.mark_if(Row::NetworksPod, is_cluster_wide && is_pod);
                    let is_transport =
                        Protocol::from_number(self.explanation.flow.protocol).is_some();
                    let is_icmp = rule.matched == Certainty::Yes && !is_transport;
                    self.mark_if(Row::NetworksEveryProtocol, is_cluster_wide && is_icmp);
                    let is_refused = rule.has_port && rule.matched == Certainty::No;
                    self.mark_if(Row::NamedEgressBlock, is_refused);
                }
                PeerOutcome::OtherFamily => self.mark(Row::BlockOtherFamily),
                PeerOutcome::InExcept(_) => self.mark(Row::BlockExcept),
                _ => self.mark(Row::BlockMisses),
            },
            Peer::Nodes(_) => {
                self.mark_if(Row::Nodes, is_match);
                let is_other = matches!(trace.outcome, PeerOutcome::NodeNotSelected(..));
                self.mark_if(Row::NodesMiss, is_other);
            }
        }
    }

    fn block(&mut self, length: u8, longest: u8) {
        self.mark_if(Row::BlockZero, length == 0);
        self.mark_if(Row::BlockHost, length == longest);
        self.mark(match &self.explanation.peer {
            Side::Host(_) => Row::BlockNode,
            Side::Outside | Side::Unowned(_) => Row::BlockOutside,
            Side::Workload(_) | Side::UnknownNamespace(_) | Side::Shared(_) => Row::BlockPod,
        });
    }

    fn selector(&mut self, policy: &Policy, namespaces: &NamespaceMatch, pods: &Selector) {
        let has_pods = !pods.requirements().is_empty();
        if policy.id.kind == PolicyKind::ClusterNetworkPolicy {
            self.mark(if has_pods {
                Row::ClusterPods
            } else {
                Row::ClusterNamespaces
            });
        }
        if let NamespaceMatch::Matching(selector) = namespaces {
            let is_name = |requirement: &Requirement| matches!(requirement, Requirement::In(key, _) if key == NAME_LABEL);
            let has_name = selector.requirements().iter().any(is_name);
            self.mark_if(Row::NamespaceByNameLabel, has_name);
        }
        self.mark_if(Row::SelectorSeveral, pods.requirements().len() > 1);
        self.mark(match namespaces {
            NamespaceMatch::Is(name) if *name == policy.id.namespace => Row::OwnNamespace,
            NamespaceMatch::Is(_) => Row::NamedNamespace,
            NamespaceMatch::Matching(selector) => {
                match (selector.requirements().is_empty(), has_pods) {
                    (true, false) => Row::AllNamespaces,
                    (true, true) => Row::AllNamespacesPods,
                    (false, false) => Row::NamespaceOnly,
                    (false, true) => Row::NamespaceAndPods,
                }
            }
        });
        let Side::Workload(endpoint) = &self.explanation.peer else {
            return;
        };
        for requirement in pods.requirements() {
            let row = match requirement {
                Requirement::In(..) => Row::SelectorIn,
                Requirement::NotIn(key, _) if endpoint.labels.get(key).is_some() => {
                    Row::SelectorNotIn
                }
                Requirement::NotIn(..) => Row::SelectorNotInMissing,
                Requirement::Exists(_) => Row::SelectorExists,
                Requirement::DoesNotExist(_) => Row::SelectorDoesNotExist,
            };
            self.mark(row);
        }
    }

    fn port(&mut self, rule: &RuleTrace<'a>, trace: &PortTrace<'a>) {
        let flow = self.explanation.flow;
        match (trace.port, trace.outcome) {
            (
                PortMatch::Range {
                    protocol,
                    first,
                    last,
                },
                PortOutcome::Matches,
            ) => {
                self.mark(match protocol {
                    Protocol::Tcp => Row::ProtocolTcp,
                    Protocol::Udp => Row::ProtocolUdp,
                    Protocol::Sctp => Row::ProtocolSctp,
                });
                self.range(*first, *last, flow.port);
            }
            (PortMatch::Range { first, last, .. }, PortOutcome::OtherPort) => {
                let beside = [first.checked_sub(1), last.checked_add(1)];
                self.mark_if(
                    Row::RangeBeside,
                    flow.port.is_some() && beside.contains(&flow.port),
                );
            }
            (PortMatch::Range { first, last, .. }, _) => {
                let holds = flow
                    .port
                    .is_some_and(|port| (*first..=*last).contains(&port));
                self.mark_if(Row::ProtocolOther, holds);
            }
            (PortMatch::Named { protocol, name }, PortOutcome::Matches) => {
                self.mark_if(Row::NamedWithoutProtocol, protocol.is_none());
                let sides = (
                    self.explanation.direction(),
                    &self.explanation.side,
                    &self.explanation.peer,
                );
                let ((Direction::Ingress, Side::Workload(owner), _)
                | (Direction::Egress, _, Side::Workload(owner))) = sides
                else {
                    return;
                };
                let numbers = owner
                    .ports
                    .iter()
                    .filter(|port| port.name.as_ref() == Some(name));
                let numbers = numbers.map(|port| (port.protocol, port.number));
                let numbers: BTreeSet<_> = numbers.collect();
                self.mark_if(
                    Row::NamedSeveral,
                    numbers.len() > 1 && rule.matched == Certainty::Yes,
                );
            }
            (_, PortOutcome::NotServed(_)) => self.mark(Row::NamedUnserved),
            (_, PortOutcome::ServedElsewhere(_)) => self.mark(Row::NamedOtherNumber),
            (_, PortOutcome::NoWorkload) => {
                self.mark_if(Row::NamedOutside, rule.peers_matched == Certainty::Yes);
            }
            (PortMatch::Named { .. }, PortOutcome::OtherProtocol) => {
                self.mark(Row::NamedOtherProtocol);
            }
            (PortMatch::Named { .. }, PortOutcome::OtherPort) => {}
        }
    }

    fn range(&mut self, first: u16, last: u16, port: Option<u16>) {
        if (first, last) == (0, u16::MAX) {
            self.mark(Row::WholeProtocol);
        } else if first < last {
            self.mark_if(Row::RangeFirst, port == Some(first));
            self.mark_if(Row::RangeLast, port == Some(last));
            self.mark_if(
                Row::RangeInside,
                port.is_some_and(|port| first < port && port < last),
            );
        }
    }
}
