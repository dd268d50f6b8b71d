//! Pods that came up here although no ADD of the CNI plugin was heard, while the plugin is installed: then the container
//! runtime does not call it, and pods start before their policy is in force. They are closed until then all the same.
//!
//! Decided from what the graph knows, with the time as an argument; a pod that was there when this began is never judged.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use towpath_core::model::{EndpointId, InterfaceName};

/// The plugin is the last of its chain, so its ADD follows the pod's interface at once; a node under load takes seconds.
const PATIENCE: Duration = Duration::from_secs(15);
/// Names that a warning shows.
const MOST_NAMES: usize = 3;
/// Pods of which an ADD is remembered; those that are gone are forgotten at every look.
const MOST_ANNOUNCED: usize = 4_096;

/// A pod behind an interface of this node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Seat {
    pub(super) pod: EndpointId,
    /// Its interface.
    pub(super) interface: InterfaceName,
}

/// What was seen and what was announced.
#[derive(Debug, Default)]
pub(super) struct Unannounced {
    /// Interfaces that were there when it began. None before.
    old: Option<BTreeSet<InterfaceName>>,
    /// Pods behind new interfaces, since when.
    seen: BTreeMap<Seat, Instant>,
    /// Pods of which an ADD came.
    announced: BTreeSet<EndpointId>,
}

impl Unannounced {
    /// An ADD came.
    pub(super) fn announce(&mut self, pod: &EndpointId) {
        if self.announced.len() < MOST_ANNOUNCED {
            self.announced.insert(pod.clone());
        }
    }

    /// Nobody is expected to announce anything.
    pub(super) fn rest(&mut self) {
        self.old = None;
        self.seen.clear();
    }

    /// Looks at the pods that are bound now and at the interfaces that there are.
    pub(super) fn look(
        &mut self,
        bound: BTreeSet<Seat>,
        interfaces: BTreeSet<InterfaceName>,
        is_known: impl Fn(&EndpointId) -> bool,
        now: Instant,
    ) {
        let Some(old) = &mut self.old else {
            self.old = Some(interfaces);
            return;
        };
        // A name that comes again is of another interface.
        old.retain(|name| interfaces.contains(name));
        self.announced.retain(is_known);
        self.seen.retain(|seat, _| bound.contains(seat));
        for seat in bound {
            if !old.contains(&seat.interface) {
                self.seen.entry(seat).or_insert(now);
            }
        }
    }

    /// Those that nobody announced in time, each once.
    pub(super) fn silent(&self, now: Instant) -> Vec<&EndpointId> {
        let late = self.seen.iter().filter(|(seat, at)| {
            now.saturating_duration_since(**at) >= PATIENCE && !self.announced.contains(&seat.pod)
        });
        let mut pods: Vec<&EndpointId> = late.map(|(seat, _)| &seat.pod).collect();
        pods.dedup();
        pods
    }
}

/// What to say of them.
pub(super) fn warning(pods: &[&EndpointId]) -> Option<String> {
    let (first, rest) = pods.split_at(pods.len().min(MOST_NAMES));
    let names: Vec<String> = first
        .iter()
        .map(|pod| format!("{}/{}", pod.namespace, pod.name))
        .collect();
    let more = match rest.len() {
        0 => String::new(),
        count => format!(" and {count} more"),
    };
    (!names.is_empty()).then(|| {
        format!(
            "towpath-cni is installed and was not called for {}{more}: new pods do not wait for their policy; \
             a runtime without libcni 1.3 does not read drop-ins (towpath cni install --method copy), and another configuration may have won",
            names.join(", ")
        )
    })
}

#[cfg(test)]
mod tests {
    use towpath_core::model::EndpointKind;

    use super::*;

    fn pod(name: &str) -> EndpointId {
        EndpointId {
            kind: EndpointKind::Pod,
            namespace: "shop".into(),
            name: name.into(),
        }
    }

    fn seat(name: &str, interface: &str) -> Seat {
        Seat {
            pod: pod(name),
            interface: interface.parse().unwrap(),
        }
    }

    fn look(unannounced: &mut Unannounced, seats: &[Seat], now: Instant) {
        let interfaces = seats.iter().map(|seat| seat.interface.clone());
        let bound = seats.iter().cloned().collect();
        unannounced.look(bound, interfaces.collect(), |_| true, now);
    }

    /// What is silent after each look, one a patience after the other.
    fn run(looks: &[&[Seat]], announced: &[&str]) -> Vec<usize> {
        let mut unannounced = Unannounced::default();
        for name in announced {
            unannounced.announce(&pod(name));
        }
        let mut now = Instant::now();
        let mut silent = Vec::new();
        for seats in looks {
            look(&mut unannounced, seats, now);
            silent.push(unannounced.silent(now).len());
            now += PATIENCE;
        }
        silent
    }

    #[test]
    fn a_new_pod_is_told_once_no_add_came_in_time() {
        let (old, new) = (seat("old", "veth5"), seat("new", "veth6"));
        let both = [old.clone(), new];
        let only = [old];
        let looks: &[&[Seat]] = &[&only, &both, &both, &only];

        assert_eq!(run(looks, &[]), [0, 0, 1, 0]);
        assert_eq!(run(looks, &["new"]), [0, 0, 0, 0]);
    }

    #[test]
    fn a_name_that_comes_again_is_of_a_new_interface() {
        let looks: &[&[Seat]] = &[
            &[seat("old", "veth5")],
            &[],
            &[seat("new", "veth5")],
            &[seat("new", "veth5")],
        ];

        assert_eq!(run(looks, &[]), [0, 0, 0, 1]);
    }

    #[test]
    fn nobody_is_late_while_no_plugin_is_installed() {
        let mut unannounced = Unannounced::default();
        let now = Instant::now();
        look(&mut unannounced, &[], now);
        look(&mut unannounced, &[seat("a", "veth5")], now);
        assert_eq!(unannounced.silent(now + PATIENCE), [&pod("a")]);

        unannounced.rest();
        look(&mut unannounced, &[seat("a", "veth5")], now);

        assert_eq!(unannounced.silent(now + PATIENCE), [] as [&EndpointId; 0]);
    }

    #[test]
    fn an_add_of_a_pod_that_is_gone_is_forgotten() {
        let mut unannounced = Unannounced::default();
        let now = Instant::now();
        look(&mut unannounced, &[], now);
        unannounced.announce(&pod("a"));
        unannounced.look(BTreeSet::new(), BTreeSet::new(), |_| false, now);

        look(&mut unannounced, &[seat("a", "veth5")], now);

        assert_eq!(unannounced.silent(now + PATIENCE), [&pod("a")]);
    }

    #[test]
    fn a_warning_names_a_few() {
        let pods = ["a", "b", "c", "d", "e"].map(pod);
        let pods: Vec<&EndpointId> = pods.iter().collect();

        assert_eq!(warning(&[]), None);
        let text = warning(&pods).unwrap();
        assert!(text.contains("shop/a, shop/b, shop/c and 2 more"), "{text}");
    }
}
