//! The list of faults.

/// Tests that ought to catch a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Suite {
    /// Compiler, evaluator, tables.
    Core,
    /// nftables layout and rendering.
    Layout,
}

/// One seeded fault.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Fault {
    /// What is wrong with the result, in words.
    pub(crate) name: &'static str,
    /// File, from the workspace's root.
    pub(crate) file: &'static str,
    /// Text that stands exactly once in it.
    pub(crate) before: &'static str,
    /// What stands there instead.
    pub(crate) after: &'static str,
    /// Who must notice.
    pub(crate) suite: Suite,
}

/// All faults.
pub(crate) const FAULTS: &[Fault] = &[
    Fault {
        name: "NotIn needs the key to be there",
        file: "crates/core/src/model/selector.rs",
        before: "                !labels.get(key).is_some_and(|value| values.contains(value))",
        after: "                labels.get(key).is_some_and(|value| !values.contains(value))",
        suite: Suite::Core,
    },
    Fault {
        name: "a policy without rules does not isolate",
        file: "crates/core/src/calc/compile.rs",
        before: "if self.default == TierDefault::Pass {",
        after: "if self.default == TierDefault::Pass || self.rules.is_empty() {",
        suite: Suite::Core,
    },
    Fault {
        name: "the NetworkPolicy tier passes at its end",
        file: "crates/core/src/calc/compile.rs",
        before: "if self.default == TierDefault::Pass {",
        after: "if true {",
        suite: Suite::Core,
    },
    Fault {
        name: "an uncertain deny does not deny",
        file: "crates/core/src/calc/compile.rs",
        before: "undecided.difference(&sure.union(&perhaps))",
        after: "undecided.difference(&sure)",
        suite: Suite::Core,
    },
    Fault {
        name: "an uncertain match accepts",
        file: "crates/core/src/calc/compile.rs",
        before: "accepted = accepted.union(&undecided.intersection(&sure));",
        after: "accepted = accepted.union(&undecided.intersection(&sure.union(&perhaps)));",
        suite: Suite::Core,
    },
    Fault {
        name: "an uncertain pass is forgotten",
        file: "crates/core/src/calc/compile.rs",
        before: "allowed.difference(&perhaps_passed.difference(later))",
        after: "allowed",
        suite: Suite::Core,
    },
    Fault {
        name: "a passed peer is allowed at once",
        file: "crates/core/src/calc/compile.rs",
        before: "let allowed = accepted.union(&passed.intersection(later));",
        after: "let allowed = accepted.union(&passed);",
        suite: Suite::Core,
    },
    Fault {
        name: "one claimant of an address is enough",
        file: "crates/core/src/calc/compile.rs",
        before: ".reduce(|a, b| a.intersection(&b))",
        after: ".reduce(|a, b| a.union(&b))",
        suite: Suite::Core,
    },
    Fault {
        name: "the last port of a range is lost",
        file: "crates/core/src/calc/port_space.rs",
        before: "previous.1 = previous.1.max(last);",
        after: "previous.1 = last;",
        suite: Suite::Core,
    },
    Fault {
        name: "a class' ports fall to the base",
        file: "crates/core/src/calc/encode.rs",
        before: "if base.other != allowed.other {",
        after: "if false {",
        suite: Suite::Core,
    },
    Fault {
        name: "class_any has the other verdict",
        file: "crates/core/src/calc/encode.rs",
        before: "any: Some(verdict(allowed.other)),",
        after: "any: Some(verdict(!allowed.other)),",
        suite: Suite::Core,
    },
    Fault {
        name: "single ports of the base have the default's verdict",
        file: "crates/core/src/calc/encode.rs",
        before: ".map(|port| ((protocol, port), verdict(!base.other))),",
        after: ".map(|port| ((protocol, port), verdict(base.other))),",
        suite: Suite::Core,
    },
    Fault {
        name: "the rest of a protocol is not denied in a profile",
        file: "crates/core/src/calc/encode.rs",
        before: "rules.extend(port_rule(None, protocol, &[(0, u16::MAX)], false));",
        after: "rules.extend(port_rule(None, protocol, &[(0, u16::MAX)], true));",
        suite: Suite::Core,
    },
    Fault {
        name: "what the base has in a map is not shadowed",
        file: "crates/core/src/calc/encode.rs",
        before: "(own != *base_verdict)",
        after: "false",
        suite: Suite::Core,
    },
    Fault {
        name: "a finished pod is a peer",
        file: "crates/core/src/model/endpoint.rs",
        before: "!self.host_network && self.lifecycle == Lifecycle::Live",
        after: "!self.host_network",
        suite: Suite::Core,
    },
    Fault {
        name: "a pod on the host network is a peer",
        file: "crates/core/src/model/endpoint.rs",
        before: "!self.host_network && self.lifecycle == Lifecycle::Live",
        after: "self.lifecycle == Lifecycle::Live",
        suite: Suite::Core,
    },
    Fault {
        name: "an address of two endpoints is programmed",
        file: "crates/core/src/calc/local.rs",
        before: "let [id] = self.index.claimants(address) else {",
        after: "let [id, ..] = self.index.claimants(address) else {",
        suite: Suite::Core,
    },
    Fault {
        name: "an endpoint of an unknown namespace is programmed",
        file: "crates/core/src/calc/local.rs",
        before: "|| !self.cluster.namespaces.contains_key(&id.namespace)",
        after: "|| false",
        suite: Suite::Core,
    },
    Fault {
        name: "policies are taken in the wrong order",
        file: "crates/core/src/calc/local.rs",
        before: "(&a.tier, a.order, &a.id).cmp(&(&b.tier, b.order, &b.id))",
        after: "(&b.tier, b.order, &b.id).cmp(&(&a.tier, a.order, &a.id))",
        suite: Suite::Core,
    },
    Fault {
        name: "a named port of the protocol is ignored",
        file: "crates/core/src/calc/local.rs",
        before: "protocol.is_none_or(|p| p == *number_of)",
        after: "true",
        suite: Suite::Core,
    },
    Fault {
        name: "named ports are resolved at the peer on ingress",
        file: "crates/core/src/calc/local.rs",
        before: "if self.direction == Direction::Ingress {",
        after: "if self.direction == Direction::Egress {",
        suite: Suite::Core,
    },
    Fault {
        name: "a hole of a block is not a hole",
        file: "crates/core/src/calc/cidr.rs",
        before: "edge(hole, -HOLE);",
        after: "edge(hole, 0);",
        suite: Suite::Core,
    },
    Fault {
        name: "the last piece of a family is lost",
        file: "crates/core/src/calc/cidr.rs",
        before: "position <= piece.last",
        after: "position < piece.last",
        suite: Suite::Core,
    },
    Fault {
        name: "a namespace's labels are read once",
        file: "crates/core/src/calc/mod.rs",
        before: "self.matchers\n            .rescan_namespace(name, self.cluster.namespaces.get(name));",
        after: "",
        suite: Suite::Core,
    },
    Fault {
        name: "a change of a namespace touches no peer",
        file: "crates/core/src/calc/mod.rs",
        before: "self.dirty.peers.extend(endpoint.addresses.iter().copied());\n            if",
        after: "if",
        suite: Suite::Core,
    },
    Fault {
        name: "a dropped matcher is not forgotten",
        file: "crates/core/src/calc/flush.rs",
        before: "self.matchers.release(*id, changes);",
        after: "let _ = (id, &changes);",
        suite: Suite::Core,
    },
    Fault {
        name: "an address that is like its block keeps its entry",
        file: "crates/core/src/calc/flush.rs",
        before: "None => self.peer_class.remove(&address),",
        after: "None => self.peer_class.get(&address).copied(),",
        suite: Suite::Core,
    },
    Fault {
        name: "verdicts change before classes",
        file: "crates/core/src/calc/flush.rs",
        before: "let mut moves = self.find_moves(&dirty, partition.as_ref(), rules_change);",
        after: "let mut moves = self.find_moves(&dirty, partition.as_ref(), rules_change && false);",
        suite: Suite::Core,
    },
    Fault {
        name: "removals come with the first batch",
        file: "crates/core/src/calc/transition.rs",
        before: "let index = if deepest > last_upserts {",
        after: "let index = if true {\n            0\n        } else if deepest > last_upserts {",
        suite: Suite::Core,
    },
    Fault {
        name: "all layers change at once",
        file: "crates/core/src/calc/transition.rs",
        before: "next += 1;",
        after: "",
        suite: Suite::Core,
    },
    Fault {
        name: "a profile and the default change apart",
        file: "crates/core/src/calc/transition.rs",
        before: "if old == new || before.default == after.default {",
        after: "if true {",
        suite: Suite::Core,
    },
    Fault {
        name: "an endpoint that opens loses its entries first",
        file: "crates/core/src/calc/transition.rs",
        before: "self.phase(0, direction).state.insert(endpoint, state);",
        after: "self.phase(1, direction).state.insert(endpoint, state);",
        suite: Suite::Core,
    },
    Fault {
        name: "nobody serves a named port",
        file: "crates/core/src/calc/matcher.rs",
        before: "port.name.as_ref() == Some(name) && port.protocol == *protocol && port.number == *number",
        after: "false && port.number == *number && port.protocol == *protocol && port.name.as_ref() == Some(name)",
        suite: Suite::Core,
    },
    Fault {
        name: "a restricted endpoint passes",
        file: "policy-agent/src/render/elements.rs",
        before: "EndpointState::Restricted => RuleVerdict::Continue",
        after: "EndpointState::Restricted => RuleVerdict::Return",
        suite: Suite::Layout,
    },
    Fault {
        name: "an open endpoint is judged",
        file: "policy-agent/src/render/elements.rs",
        before: "EndpointState::Open => RuleVerdict::Return",
        after: "EndpointState::Open => RuleVerdict::Continue",
        suite: Suite::Layout,
    },
    Fault {
        name: "a denied element allows",
        file: "policy-agent/src/render/elements.rs",
        before: "Verdict::Deny => RuleVerdict::Continue",
        after: "Verdict::Deny => RuleVerdict::Return",
        suite: Suite::Layout,
    },
    Fault {
        name: "the wide map is read for exact entries",
        file: "policy-agent/src/render/elements.rs",
        before: "            VerdictMap::Exact,",
        after: "            VerdictMap::ClassProtocol,",
        suite: Suite::Layout,
    },
    Fault {
        name: "invalid packets of ours pass",
        file: "policy-agent/src/layout/inet.rs",
        before: ".ct_state(Statement::CT_INVALID)",
        after: ".ct_state(Statement::CT_UNTRACKED)",
        suite: Suite::Layout,
    },
    Fault {
        name: "egress looks up the source as the peer",
        file: "policy-agent/src/layout/inet.rs",
        before: "Direction::Egress => destination(version),",
        after: "Direction::Egress => source(version),",
        suite: Suite::Layout,
    },
];
