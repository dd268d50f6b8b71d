//! How often random probes meet each row of the specification, so that a green property test means something.

use std::fmt;

use super::{Probe, Row};
use crate::evaluate::{
    Certainty, Evaluator, Explanation, PeerOutcome, PeerTrace, PolicyTrace, PortOutcome, PortTrace,
    Reason, RuleTrace, Side, TierEnd, TierTrace,
};
use crate::model::{
    Action, Direction, Endpoint, Lifecycle, NamespaceMatch, Peer, Peers, Policy, PolicyKind,
    PortMatch, Ports, Protocol, Requirement, Selector, Tier, Verdict,
};

/// Counts of verdicts and rows.
#[derive(Clone, Debug)]
pub struct Coverage {
    counts: Vec<u64>,
    allowed: u64,
    denied: u64,
}

impl Default for Coverage {
    fn default() -> Self {
        Self {
            counts: vec![0; Row::ALL.len()],
            allowed: 0,
            denied: 0,
        }
    }
}

impl Coverage {
    /// Counts one probe.
    pub fn add(&mut self, evaluator: &Evaluator, probe: &Probe) {
        let explanation = evaluator.explain(probe.direction, &probe.flow());
        match explanation.decision.verdict {
            Verdict::Allow => self.allowed += 1,
            Verdict::Deny => self.denied += 1,
        }
        let mut hits = Hits {
            hit: vec![false; Row::ALL.len()],
            explanation: &explanation,
        };
        hits.sides(evaluator);
        hits.peer_kinds(evaluator);
        hits.outcome();
        hits.claimants();
        for tier in explanation.walks.iter().flat_map(|walk| &walk.tiers) {
            hits.tier(tier);
            for policy in &tier.policies {
                hits.policy(policy);
            }
        }
        for (count, hit) in self.counts.iter_mut().zip(hits.hit) {
            *count += u64::from(hit);
        }
    }

    /// Probes counted.
    pub fn probes(&self) -> u64 {
        self.allowed + self.denied
    }

    /// Probes that were allowed.
    pub fn allowed(&self) -> u64 {
        self.allowed
    }

    /// Probes that met a row.
    pub fn count(&self, row: Row) -> u64 {
        self.counts[row as usize]
    }

    /// The rows that fewer probes met than `least`.
    pub fn rows_below(&self, least: u64) -> Vec<Row> {
        Row::ALL
            .iter()
            .copied()
            .filter(|row| self.count(*row) < least)
            .collect()
    }
}

impl fmt::Display for Coverage {
    /// The table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:>9}  probes, {} of them allowed",
            self.probes(),
            self.allowed
        )?;
        Row::ALL
            .iter()
            .try_for_each(|row| writeln!(f, "{:>9}  {}", self.count(*row), row.text()))
    }
}

/// The rows that one probe meets.
struct Hits<'e, 'a> {
    hit: Vec<bool>,
    explanation: &'e Explanation<'a>,
}

impl<'a> Hits<'_, 'a> {
    fn mark(&mut self, row: Row) {
        self.hit[row as usize] = true;
    }

    fn mark_if(&mut self, row: Row, is_met: bool) {
        if is_met {
            self.mark(row);
        }
    }

    fn sides(&mut self, evaluator: &Evaluator) {
        match &self.explanation.side {
            Side::Workload(endpoint) => self.workload(evaluator, endpoint),
            Side::UnknownNamespace(_) => self.mark(Row::UnknownNamespaceSubject),
            Side::Shared(_) => self.mark(Row::SharedSubject),
            Side::Unowned(_) => self.mark(Row::UnknownAddress),
            Side::Host(_) | Side::Outside => {}
        }
    }

    fn workload(&mut self, evaluator: &Evaluator, endpoint: &Endpoint) {
        let family = if self.explanation.address.is_ipv4() {
            Row::FamilyV4
        } else {
            Row::FamilyV6
        };
        self.mark(family);
        let has = |v4| {
            endpoint
                .addresses
                .iter()
                .any(|address| address.is_ipv4() == v4)
        };
        self.mark_if(Row::DualStack, has(true) && has(false));
        let direction = self.explanation.direction();
        let cluster = evaluator.cluster();
        let selects = |policy: &&Policy| {
            let subject = &policy.subject;
            subject.pods.matches(&endpoint.labels)
                && cluster
                    .namespaces
                    .get(&endpoint.id.namespace)
                    .is_some_and(|namespace| match &subject.namespaces {
                        NamespaceMatch::Is(name) => *name == namespace.name,
                        NamespaceMatch::Matching(selector) => selector.matches(&namespace.labels),
                    })
        };
        let mut selecting = cluster.policies.values().filter(selects).peekable();
        let is_selected = selecting.peek().is_some();
        let applies_here = selecting.any(|policy| policy.rules(direction).is_some());
        self.mark_if(Row::NoPolicyAllows, !is_selected);
        self.mark_if(Row::OtherDirectionOnly, is_selected && !applies_here);
    }

    fn peer_kinds(&mut self, evaluator: &Evaluator) {
        let address = self.explanation.peer_address;
        let claims = |endpoint: &&Endpoint| endpoint.addresses.contains(&address);
        let owners = || evaluator.cluster().endpoints.values().filter(claims);
        let traces: Vec<PeerTrace<'a>> = self
            .rules()
            .flat_map(|(_, rule)| rule.peers.clone())
            .collect();
        let asks_for_pods = traces
            .iter()
            .any(|trace| trace.outcome == PeerOutcome::NoWorkload);
        let is_finished = |endpoint: &Endpoint| endpoint.lifecycle == Lifecycle::Finished;
        self.mark_if(
            Row::FinishedPeer,
            asks_for_pods && owners().any(is_finished),
        );
        self.mark_if(
            Row::HostNetworkPeer,
            asks_for_pods && owners().any(|endpoint| endpoint.host_network),
        );
        let is_walked = !self.explanation.walks.is_empty();
        self.mark_if(
            Row::RemoteNode,
            is_walked && matches!(self.explanation.peer, Side::Host(_)),
        );
    }

    fn rules(&self) -> impl Iterator<Item = (&'a Policy, &RuleTrace<'a>)> {
        let tiers = self.explanation.walks.iter().flat_map(|walk| &walk.tiers);
        let policies = tiers.flat_map(|tier| &tier.policies);
        policies.flat_map(|policy| policy.rules.iter().map(move |rule| (policy.policy, rule)))
    }

    fn outcome(&mut self) {
        let explanation = self.explanation;
        match &explanation.decision.reason {
            Reason::TierDefault { .. } => {
                self.mark(Row::Isolated);
                let has_no_rule = self.rules().next().is_none();
                self.mark_if(Row::EmptyRuleList, has_no_rule);
                let is_transport = Protocol::from_number(explanation.flow.protocol).is_some();
                let only_port_missing = self
                    .rules()
                    .any(|(_, rule)| rule.peers_matched == Certainty::Yes && !rule.has_port);
                self.mark_if(Row::OtherProtocolDenied, !is_transport && only_port_missing);
            }
            Reason::Rule { tier, .. } if *tier == Tier::BASELINE => {
                let passed = explanation.walks.iter().flat_map(|walk| &walk.tiers);
                let mut passed = passed.filter(|tier| tier.end == TierEnd::Passed);
                let has_passed = passed.any(|tier| *tier.tier == Tier::ADMIN);
                self.mark_if(Row::AdminPassThenBaseline, has_passed);
            }
            Reason::OwnNode { .. } => self.mark(Row::OwnNode),
            Reason::Rule { .. } | Reason::NoPolicy | Reason::Unknown | Reason::NotJudged => {}
        }
    }

    fn claimants(&mut self) {
        let Side::Shared(claimants) = &self.explanation.peer else {
            return;
        };
        let own: Vec<Verdict> = self
            .explanation
            .walks
            .iter()
            .filter(|walk| walk.assumed_pass.is_none())
            .map(|walk| walk.verdict)
            .collect();
        let is_denied = own.contains(&Verdict::Deny);
        let is_asked = self.rules().next().is_some();
        self.mark_if(
            Row::SharedPeerAllowed,
            is_asked && own.len() == claimants.len() && !is_denied,
        );
        self.mark_if(Row::SharedPeerDenied, is_denied);
        self.mark_if(Row::SharedPeerLaterDenied, is_denied && own.len() > 1);
    }

    fn tier(&mut self, tier: &TierTrace<'a>) {
        let is_admin = *tier.tier == Tier::ADMIN;
        let is_policy = *tier.tier == Tier::NETWORK_POLICY;
        match tier.end {
            TierEnd::Undecided if is_admin => self.mark(Row::AdminUndecided),
            TierEnd::Undecided if !is_policy => self.mark(Row::BaselineUndecided),
            TierEnd::Decided | TierEnd::Isolated if is_policy => self.network_policy_decided(tier),
            TierEnd::Decided if tier.policies.len() > 1 => {
                let order = |index: usize| tier.policies[index].policy.order;
                let last = tier.policies.len() - 1;
                let row = if order(last) == order(last - 1) {
                    Row::EqualOrder
                } else {
                    Row::LaterOrder
                };
                self.mark(row);
            }
            TierEnd::Decided
            | TierEnd::Passed
            | TierEnd::Isolated
            | TierEnd::Undecided
            | TierEnd::DeniedAfterPass => {}
        }
        self.mark_if(Row::AdminPass, is_admin && tier.end == TierEnd::Passed);
        self.mark_if(Row::BaselinePass, !is_admin && tier.end == TierEnd::Passed);
        let decided = tier.policies.last().and_then(|policy| policy.rules.last());
        if let Some(rule) = decided.filter(|rule| rule.is_deciding && !is_policy) {
            let row = match (is_admin, rule.rule.action) {
                (true, Action::Accept) => Row::AdminAccept,
                (true, Action::Deny) => Row::AdminDeny,
                (false, Action::Accept) => Row::BaselineAccept,
                (false, Action::Deny) => Row::BaselineDeny,
                (_, Action::Pass) => return,
            };
            self.mark(row);
        }
    }

    fn network_policy_decided(&mut self, tier: &TierTrace<'a>) {
        self.mark(Row::PolicyDecidesFinally);
        let walks = &self.explanation.walks;
        let mut tiers = walks.iter().flat_map(|walk| &walk.tiers);
        let has_passed =
            tiers.any(|other| *other.tier == Tier::ADMIN && other.end == TierEnd::Passed);
        self.mark_if(Row::AdminPassThenPolicy, has_passed);
        self.mark_if(
            Row::UnionOfPolicies,
            tier.end == TierEnd::Decided && tier.policies.len() > 1,
        );
    }

    fn policy(&mut self, trace: &PolicyTrace<'a>) {
        let policy = trace.policy;
        self.mark_if(
            Row::SubjectEverything,
            policy.subject.pods.requirements().is_empty(),
        );
        for rule in &trace.rules {
            self.mark_if(Row::LaterRule, rule.is_deciding && rule.index > 0);
            self.uncertain(rule);
            self.empty_lists(rule);
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
        self.mark(match namespaces {
            NamespaceMatch::Is(name) if *name == policy.id.namespace => Row::OwnNamespace,
            NamespaceMatch::Is(_) => Row::NamedNamespace,
            NamespaceMatch::Matching(selector) => {
                match (selector.requirements().is_empty(), has_pods) {
                    (true, false) => Row::AllNamespaces,
                    (true, true) | (false, false) => Row::NamespaceOnly,
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
                let numbers: std::collections::BTreeSet<_> = numbers.collect();
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
            (PortMatch::Named { .. }, PortOutcome::OtherProtocol | PortOutcome::OtherPort) => {}
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
