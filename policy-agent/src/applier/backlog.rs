//! Changes that wait for the applier, merged by key when they grow many: memory is bounded by the number of
//! objects, not of events.

use std::collections::BTreeMap;

use towpath_core::tables::{Changes, Delta, DirectionDelta, DirectionTables, Phase, Tables};

use crate::layout::NodeFacts;
use crate::render::Bypassed;

/// More phases than this are merged into one.
const MOST_PHASES: usize = 16;

/// What waits: the newest generation, its batches in order, and new facts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Generation of the newest delta in `phases`; `None` before any.
    pub generation: Option<u64>,
    /// Batches in order.
    pub phases: Vec<Phase>,
    /// New facts of this node.
    pub facts: Option<NodeFacts>,
    /// What is opened for a while from now on, and the number of this wish.
    pub bypassed: Option<(u64, Bypassed)>,
}

impl Backlog {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.generation.is_none() && self.facts.is_none() && self.bypassed.is_none()
    }

    /// Adds a delta behind those that wait. An applier that falls far behind commits many phases as one: a packet on
    /// its way at that moment may then meet a verdict of neither state, as in any single batch.
    pub fn push(&mut self, generation: u64, delta: Delta) {
        self.generation = Some(generation);
        self.phases.extend(delta.phases);
        if self.phases.len() > MOST_PHASES {
            self.phases = vec![join(std::mem::take(&mut self.phases))];
        }
    }
}

/// Makes one phase of several in order: the last change of a key counts.
pub(super) fn join(phases: impl IntoIterator<Item = Phase>) -> Phase {
    let mut phases = phases.into_iter();
    let mut joined = phases.next().unwrap_or_default();
    phases.for_each(|phase| merge(&mut joined, phase));
    joined
}

/// Adds later changes to earlier ones: the last one of a key counts.
fn merge(earlier: &mut Phase, later: Phase) {
    let Phase {
        peer_class,
        cidr_class,
        ingress,
        egress,
        profiles,
        bindings,
        pod_networks,
    } = later;
    earlier.peer_class.extend(peer_class);
    earlier.cidr_class.extend(cidr_class);
    merge_direction(&mut earlier.ingress, ingress);
    merge_direction(&mut earlier.egress, egress);
    earlier.profiles.extend(profiles);
    earlier.bindings.extend(bindings);
    earlier.pod_networks.extend(pod_networks);
}

fn merge_direction(earlier: &mut DirectionDelta, later: DirectionDelta) {
    let DirectionDelta {
        state,
        exact,
        class_protocol,
        class_any,
        any,
        profile,
        default,
    } = later;
    earlier.state.extend(state);
    earlier.exact.extend(exact);
    earlier.class_protocol.extend(class_protocol);
    earlier.class_any.extend(class_any);
    earlier.any.extend(any);
    earlier.profile.extend(profile);
    earlier.default.extend(default);
}

/// The phase that makes these tables of none.
pub(super) fn phase_of(tables: Tables) -> Phase {
    let Tables {
        peer_class,
        cidr_class,
        ingress,
        egress,
        profiles,
        bindings,
        pod_networks,
    } = tables;
    Phase {
        peer_class: appear(peer_class),
        cidr_class: appear(cidr_class),
        ingress: appear_direction(ingress),
        egress: appear_direction(egress),
        profiles: appear(profiles),
        bindings: appear(bindings),
        pod_networks: appear(pod_networks),
    }
}

fn appear_direction(tables: DirectionTables) -> DirectionDelta {
    let DirectionTables {
        state,
        exact,
        class_protocol,
        class_any,
        any,
        profile,
        default,
    } = tables;
    DirectionDelta {
        state: appear(state),
        exact: appear(exact),
        class_protocol: appear(class_protocol),
        class_any: appear(class_any),
        any: appear(any),
        profile: appear(profile),
        default: appear(default),
    }
}

fn appear<K: Ord, V>(table: BTreeMap<K, V>) -> Changes<K, V> {
    table
        .into_iter()
        .map(|(key, value)| (key, Some(value)))
        .collect()
}
