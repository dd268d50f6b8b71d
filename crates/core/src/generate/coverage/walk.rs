//! Rows that a walk meets: the two sides, the tiers, the outcome.

use ipnet::IpNet;

use crate::evaluate::{
    Certainty, Claimant, Evaluator, Explanation, PeerOutcome, PeerTrace, Reason, RuleTrace, Side,
    TierEnd, TierTrace,
};
use crate::model::{
    Action, Direction, Endpoint, Lifecycle, NamespaceMatch, Node, Policy, Protocol, Tier, Verdict,
};

use super::super::{LOCAL_NODE, Row};

/// The rows that one probe meets.
pub(super) struct Hits<'e, 'a> {
    hit: Vec<bool>,
    pub(super) explanation: &'e Explanation<'a>,
}

impl<'e, 'a> Hits<'e, 'a> {
    /// For each row whether it is met.
    pub(super) fn of(explanation: &'e Explanation<'a>, evaluator: &Evaluator) -> Vec<bool> {
        let mut hits = Self {
            hit: vec![false; Row::ALL.len()],
            explanation,
        };
        hits.sides(evaluator);
        hits.peer_kinds(evaluator);
        hits.outcome(evaluator);
        hits.claimants();
        for tier in explanation.walks.iter().flat_map(|walk| &walk.tiers) {
            hits.tier(tier);
            for policy in &tier.policies {
                hits.policy(policy);
            }
        }
        hits.hit
    }

    pub(super) fn mark(&mut self, row: Row) {
        self.hit[row as usize] = true;
    }

    pub(super) fn mark_if(&mut self, row: Row, is_met: bool) {
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
            Row::Itself,
            is_walked && address == self.explanation.address,
        );
        if is_walked {
            self.node_claims(evaluator);
        }
        let Side::Host(nodes) = &self.explanation.peer else {
            return;
        };
        self.mark_if(Row::RemoteNode, is_walked);
        let is_bridge = |cidr: &IpNet| cidr.contains(&address);
        let has_bridge = nodes
            .iter()
            .any(|node| node.pod_cidrs.iter().any(is_bridge));
        self.mark_if(Row::NodeByPodCidr, is_walked && has_bridge);
        let is_own = nodes.iter().any(|node| node.name == LOCAL_NODE);
        let is_egress = self.explanation.direction() == Direction::Egress;
        self.mark_if(Row::EgressToOwnNode, is_walked && is_egress && is_own);
    }

    fn node_claims(&mut self, evaluator: &Evaluator) {
        let address = self.explanation.peer_address;
        let claimants = || self.explanation.walks.iter().map(|walk| walk.claimant);
        let is_identity =
            |node: &Node| claimants().any(|claimant| claimant == Some(Claimant::Node(node)));
        let nodes = || evaluator.cluster().nodes.values();
        let is_denied = self.explanation.decision.verdict == Verdict::Deny;
        let is_listed = |node: &Node| node.addresses.contains(&address);
        let is_of_tunnel = |node: &Node| {
            let mut tunnels = node.tunnel_cidrs.iter().copied();
            tunnels.any(|cidr| Node::first_two(cidr).any(|first| first == address))
        };
        // After a denial not every claimant was walked.
        let is_foreign = |node: &Node| !is_denied && !is_identity(node);
        let is_lost = nodes().any(|node| is_listed(node) && is_foreign(node));
        let is_disputed = nodes().any(|node| is_of_tunnel(node) && is_foreign(node));
        let is_observed = nodes().any(|node| node.observed.contains(&address) && is_identity(node));
        let identities = nodes().filter(|node| is_identity(node)).count();
        let is_workload = claimants().any(|one| matches!(one, Some(Claimant::Workload(_))));
        self.mark_if(Row::ListedInPodCidr, is_lost);
        self.mark_if(Row::DisputedTunnel, is_disputed);
        self.mark_if(Row::ObservedNode, is_observed);
        self.mark_if(Row::NodeAndWorkload, identities > 0 && is_workload);
        self.mark_if(Row::SeveralNodes, identities > 1);
    }

    pub(super) fn rules(&self) -> impl Iterator<Item = (&'a Policy, &RuleTrace<'a>)> {
        let tiers = self.explanation.walks.iter().flat_map(|walk| &walk.tiers);
        let policies = tiers.flat_map(|tier| &tier.policies);
        policies.flat_map(|policy| policy.rules.iter().map(move |rule| (policy.policy, rule)))
    }

    fn outcome(&mut self, evaluator: &Evaluator) {
        let explanation = self.explanation;
        let is_walked = !explanation.walks.is_empty();
        let is_allowed = explanation.decision.verdict == Verdict::Allow;
        let is_denied_there = evaluator.verdict(&explanation.flow) == Verdict::Deny;
        self.mark_if(
            Row::OtherSideDenies,
            is_walked && is_allowed && is_denied_there,
        );
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
                self.mark_if(Row::AdminPassThenBaseline, self.has_admin_passed());
            }
            Reason::NoPolicy => {
                self.mark_if(Row::AdminPassThenAllowed, self.has_admin_passed());
            }
            Reason::OwnNode { .. } => self.mark(Row::OwnNode),
            Reason::Rule { .. } | Reason::Unknown | Reason::NotJudged => {}
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
        self.mark_if(Row::AdminPassThenPolicy, self.has_admin_passed());
        self.mark_if(
            Row::UnionOfPolicies,
            tier.end == TierEnd::Decided && tier.policies.len() > 1,
        );
    }

    fn has_admin_passed(&self) -> bool {
        let walks = &self.explanation.walks;
        let mut tiers = walks.iter().flat_map(|walk| &walk.tiers);
        tiers.any(|tier| *tier.tier == Tier::ADMIN && tier.end == TierEnd::Passed)
    }
}
