//! What changes between two sets of tables.

use std::collections::BTreeMap;

use crate::tables::{Changes, Delta, DirectionDelta, DirectionTables, Phase, Tables};

fn changes<K: Ord + Clone, V: Clone + PartialEq>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
) -> Changes<K, V> {
    let mut changes: Changes<K, V> = new
        .iter()
        .filter(|(key, value)| old.get(key) != Some(value))
        .map(|(key, value)| (key.clone(), Some(value.clone())))
        .collect();
    changes.extend(
        old.keys()
            .filter(|key| !new.contains_key(key))
            .map(|key| (key.clone(), None)),
    );
    changes
}

fn direction(old: &DirectionTables, new: &DirectionTables) -> DirectionDelta {
    DirectionDelta {
        state: changes(&old.state, &new.state),
        exact: changes(&old.exact, &new.exact),
        class_protocol: changes(&old.class_protocol, &new.class_protocol),
        class_any: changes(&old.class_any, &new.class_any),
        any: changes(&old.any, &new.any),
        profile: changes(&old.profile, &new.profile),
        default: changes(&old.default, &new.default),
    }
}

/// The batches that lead from `old` to `new`.
pub(super) fn between(old: &Tables, new: &Tables) -> Delta {
    let phase = Phase {
        peer_class: changes(&old.peer_class, &new.peer_class),
        cidr_class: changes(&old.cidr_class, &new.cidr_class),
        ingress: direction(&old.ingress, &new.ingress),
        egress: direction(&old.egress, &new.egress),
        profiles: changes(&old.profiles, &new.profiles),
        bindings: changes(&old.bindings, &new.bindings),
        pod_networks: changes(&old.pod_networks, &new.pod_networks),
    };
    Delta {
        phases: if phase.is_empty() {
            Vec::new()
        } else {
            vec![phase]
        },
    }
}
