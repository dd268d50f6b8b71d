//! What holds on this node and hardly is meant: one list for the status, the metrics and the log.

use std::collections::BTreeSet;
use std::time::Instant;

use towpath_core::calc::Doubt;
use towpath_core::model::{EndpointKind, InterfaceName};
use tracing::{info, warn};

use super::graph::GraphThread;
use super::metrics::Teller;
use super::surroundings::Surroundings;
use super::unannounced::{self, Seat};

/// What a warning is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum WarningKind {
    /// No object speaks of this node.
    Node,
    /// Sources contradict each other about interfaces.
    Interfaces,
    /// Blocks of a policy are refused.
    Blocks,
    /// What Flannel set up contradicts itself.
    Flannel,
    /// The installation of the CNI plugin is not as it was made.
    Chain,
    /// The CNI plugin was not called for pods.
    Silent,
    /// Files of the state directory cannot be written.
    State,
    /// Nodes claim what is not believed or what others have, too.
    Addresses,
}

impl WarningKind {
    const ALL: [Self; 8] = [
        Self::Node,
        Self::Interfaces,
        Self::Blocks,
        Self::Flannel,
        Self::Chain,
        Self::Silent,
        Self::State,
        Self::Addresses,
    ];

    /// As in metrics.
    fn label(self) -> &'static str {
        match self {
            Self::Node => "node",
            Self::Interfaces => "interfaces",
            Self::Blocks => "blocks",
            Self::Flannel => "flannel",
            Self::Chain => "cni-chain",
            Self::Silent => "cni-silent",
            Self::State => "state",
            Self::Addresses => "addresses",
        }
    }

    /// Whether nobody else logs it, under its text or, where that changes with every pod, once for all.
    fn log_key(self, text: &str) -> Option<(Self, String)> {
        match self {
            Self::Node | Self::Interfaces | Self::Blocks | Self::State => None,
            Self::Flannel | Self::Chain | Self::Addresses => Some((self, text.to_owned())),
            Self::Silent => Some((self, String::new())),
        }
    }
}

/// So many doubtful claims of each kind are named; of the others the number is told.
const MOST_DOUBTS: usize = 8;

/// Warnings of doubtful claims, which are sorted.
fn told_doubts(doubts: &[Doubt]) -> impl Iterator<Item = Warning> {
    let kinds = doubts.chunk_by(|one, other| one.kind() == other.kind());
    kinds.flat_map(|of_kind| {
        let (named, others) = of_kind.split_at(of_kind.len().min(MOST_DOUBTS));
        let rest = others.first().map(|first| {
            let text = format!("{} more {}", others.len(), first.kind());
            (WarningKind::Addresses, others.len(), text)
        });
        let named = named
            .iter()
            .map(|doubt| (WarningKind::Addresses, 1, doubt.to_string()));
        named.chain(rest)
    })
}

/// A warning: what it is about, how many it is about, and its text.
type Warning = (WarningKind, usize, String);

/// What was logged and still holds.
#[derive(Debug, Default)]
pub(super) struct Warned(BTreeSet<(WarningKind, String)>);

impl Warned {
    /// Logs what is new and what no longer holds; tells how much of both there was.
    fn follow(&mut self, warnings: &[Warning]) -> (usize, usize) {
        let mut keys = BTreeSet::new();
        let mut begun = 0;
        for (kind, _, text) in warnings {
            let Some(key) = kind.log_key(text) else {
                continue;
            };
            if !self.0.contains(&key) && !keys.contains(&key) {
                warn!(kind = kind.label(), "{text}");
                begun += 1;
            }
            keys.insert(key);
        }
        let ended = self.0.difference(&keys).count();
        for (kind, text) in self.0.difference(&keys) {
            info!(
                kind = kind.label(),
                warning = text,
                "a warning no longer holds"
            );
        }
        self.0 = keys;
        (begun, ended)
    }
}

impl GraphThread {
    /// Others have set up something else.
    pub(super) fn take_surroundings(&mut self, seen: Surroundings) {
        let bridge = self.facts.bridges.first().map(InterfaceName::as_str);
        self.surroundings.take(seen, &self.node, bridge);
        self.facts.note_surroundings(&self.surroundings);
        let told = self.tell_own_node();
        self.count(Teller::Interfaces, told, Instant::now());
    }

    /// Everything that holds and hardly is meant.
    fn warnings(&self, now: Instant) -> Vec<Warning> {
        let one = |kind| move |text: String| (kind, 1, text);
        let mut warnings: Vec<Warning> = Vec::new();
        warnings.extend(self.strangeness().map(one(WarningKind::Node)));
        let conflicts = self.host.conflicts.iter().cloned();
        warnings.extend(conflicts.map(one(WarningKind::Interfaces)));
        let refused = self.refused.iter().map(|policy| {
            format!("too many ipBlocks of this node's policies lie in each other; those of {policy} match nobody")
        });
        warnings.extend(refused.map(one(WarningKind::Blocks)));
        let contradictions = self.surroundings.contradictions().into_iter();
        warnings.extend(contradictions.map(one(WarningKind::Flannel)));
        let fault = self.surroundings.chain_fault().map(|fault| {
            format!("{fault}; run towpath cni install again, with --method copy for a copy, or towpath cni remove")
        });
        warnings.extend(fault.map(one(WarningKind::Chain)));
        warnings.extend(self.unwritten().map(one(WarningKind::State)));
        warnings.extend(told_doubts(&self.doubts));
        let silent = self.unannounced.silent(now);
        let count = silent.len();
        let text = unannounced::warning(&silent);
        warnings.extend(text.map(|text| (WarningKind::Silent, count, text)));
        warnings
    }

    /// What cannot be written to the state directory, and what that means.
    fn unwritten(&self) -> impl Iterator<Item = String> {
        let marker = self.marker_fault.as_ref().map(|fault| {
            format!("{fault}; after a reboot pods may be open until the first commit")
        });
        let snapshot = self.parts.snapshots.is_failing().then(|| {
            let text = "cannot write the snapshot; after a reboot pods stay closed until the API server answers";
            text.to_owned()
        });
        let bypasses = self.bypassing.fault().map(str::to_owned);
        marker.into_iter().chain(snapshot).chain(bypasses)
    }

    /// For people.
    pub(super) fn warning_texts(&self, now: Instant) -> Vec<String> {
        let warnings = self.warnings(now).into_iter();
        warnings.map(|(.., text)| text).collect()
    }

    /// Looks for warnings, counts them and logs what is new.
    pub(super) fn tick_warnings(&mut self, now: Instant) {
        let bridge = self.facts.bridges.first().map(InterfaceName::as_str);
        self.surroundings
            .follow(self.own_node.as_ref(), &self.node, bridge);
        self.look_for_announcements(now);
        if let Some(doubts) = self.graph.new_doubts() {
            self.doubts = doubts;
        }
        let warnings = self.warnings(now);
        for kind in WarningKind::ALL {
            let counts = warnings
                .iter()
                .filter(|(of, ..)| *of == kind)
                .map(|(_, count, _)| count);
            self.parts.metrics.set_warnings(kind.label(), counts.sum());
        }
        self.warned.follow(&warnings);
    }

    /// Whether an ADD came of every pod that came up here.
    fn look_for_announcements(&mut self, now: Instant) {
        if !self.surroundings.is_chained() || !self.is_in_sync {
            return self.unannounced.rest();
        }
        let cluster = self.graph.cluster();
        let pods = self
            .graph
            .bound_addresses()
            .filter(|(_, owner)| owner.kind == EndpointKind::Pod);
        let bound = pods.filter_map(|(address, owner)| {
            let (_, binding) = self.graph.binding(address)?;
            Some(Seat {
                pod: owner.clone(),
                interface: binding.interface.clone(),
            })
        });
        let interfaces = cluster.interfaces.values();
        let claims = &self.parts.cni.claims;
        self.unannounced.look(
            bound.collect(),
            interfaces.map(|interface| interface.name.clone()).collect(),
            |pod| cluster.endpoints.contains_key(pod) || claims.has(pod),
            now,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_doubts_of_one_kind_hide_no_other() {
        let listed = |last: u8| Doubt::InPodCidr {
            node: "n".into(),
            address: [10, 0, 0, last].into(),
            cidr: "10.0.0.0/24".parse().unwrap(),
        };
        let taken = Doubt::Taken {
            node: "n".into(),
            address: [10, 0, 1, 0].into(),
            by: "other".into(),
        };
        let doubts: Vec<Doubt> = std::iter::once(taken).chain((0..20).map(listed)).collect();

        let told: Vec<(WarningKind, usize, String)> = told_doubts(&doubts).collect();

        assert_eq!(told.len(), 1 + MOST_DOUBTS + 1);
        assert!(told[0].2.starts_with("10.0.1.0, of the tunnel"), "{told:?}");
        let (_, others, text) = &told[told.len() - 1];
        assert_eq!(
            (*others, text.as_str()),
            (12, "12 more addresses of nodes in pod CIDRs")
        );
    }

    fn warning(kind: WarningKind, text: &str) -> Warning {
        (kind, 1, text.to_owned())
    }

    #[test]
    fn each_warning_is_logged_once_while_it_holds() {
        let mut warned = Warned::default();
        let stale = warning(WarningKind::Chain, "stale");

        assert_eq!(warned.follow(std::slice::from_ref(&stale)), (1, 0));
        assert_eq!(warned.follow(std::slice::from_ref(&stale)), (0, 0));
        assert_eq!(
            warned.follow(&[stale.clone(), warning(WarningKind::Flannel, "odd")]),
            (1, 0)
        );
        assert_eq!(warned.follow(&[stale]), (0, 1));
        assert_eq!(warned.follow(&[]), (0, 1));
    }

    #[test]
    fn pods_that_come_and_go_are_one_warning_and_what_others_log_is_none() {
        let mut warned = Warned::default();

        assert_eq!(
            warned.follow(&[warning(WarningKind::Silent, "shop/a")]),
            (1, 0)
        );
        assert_eq!(
            warned.follow(&[warning(WarningKind::Silent, "shop/a, shop/b")]),
            (0, 0)
        );
        assert_eq!(
            warned.follow(&[warning(WarningKind::Node, "stranger")]),
            (0, 1)
        );
    }
}
