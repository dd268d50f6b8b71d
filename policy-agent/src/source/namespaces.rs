//! Labels of a namespace stay in force until its last pod is gone (edge case 2).
//!
//! A pod of a namespace without labels is closed. Where a source loses the namespace before its pods (events of
//! different kinds are not ordered, and a file may be removed first), pods that still run would be cut off. So the
//! removal of a namespace is held back while it has endpoints, finished ones included, and told right after that of
//! the last one.
//!
//! Every source passes all of its updates through one [`KeptNamespaces`], in order.

use std::collections::BTreeSet;
use std::hash::{BuildHasher, RandomState};

use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;
use towpath_core::model::{EndpointId, Object, ObjectKey, Update};

/// Which namespaces have endpoints, and which of them are kept for their sake.
#[derive(Debug, Default)]
pub struct KeptNamespaces {
    hasher: RandomState,
    /// Endpoints that are there, by hash of the id: a fraction of the memory of the ids.
    endpoints: FxHashSet<u64>,
    /// How many of them each namespace has; none of these numbers is 0.
    counts: FxHashMap<SmolStr, usize>,
    /// Namespaces that the source has removed and that have endpoints.
    kept: BTreeSet<SmolStr>,
}

impl KeptNamespaces {
    /// Takes what the source says next and returns what consumers are to hear: without the removals that are held
    /// back, and with those whose time has come at the end.
    pub fn pass(&mut self, mut updates: Vec<Update>) -> Vec<Update> {
        let mut released = BTreeSet::new();
        updates.retain(|update| self.take(update, &mut released));
        let removals = released.into_iter().map(ObjectKey::Namespace);
        updates.extend(removals.map(Update::Remove));
        updates
    }

    /// How many namespaces are in force although the source has removed them.
    pub fn kept(&self) -> usize {
        self.kept.len()
    }

    /// False for an update that is held back.
    fn take(&mut self, update: &Update, released: &mut BTreeSet<SmolStr>) -> bool {
        match update {
            Update::Upsert(Object::Endpoint(endpoint)) => self.endpoint_is_there(&endpoint.id),
            Update::Remove(ObjectKey::Endpoint(id)) => {
                if self.was_last(id) && self.kept.remove(&id.namespace) {
                    released.insert(id.namespace.clone());
                }
            }
            Update::Upsert(Object::Namespace(namespace)) => {
                self.kept.remove(&namespace.name);
                released.remove(&namespace.name);
            }
            Update::Remove(ObjectKey::Namespace(name)) if self.counts.contains_key(name) => {
                // One that is released in this batch is gone already.
                if !released.contains(name) {
                    self.kept.insert(name.clone());
                }
                return false;
            }
            Update::Upsert(Object::Node(_) | Object::Policy(_) | Object::Interface(_))
            | Update::Remove(
                ObjectKey::Namespace(_)
                | ObjectKey::Node(_)
                | ObjectKey::Policy(_)
                | ObjectKey::Interface(_),
            ) => {}
        }
        true
    }

    fn endpoint_is_there(&mut self, id: &EndpointId) {
        if self.endpoints.insert(self.hasher.hash_one(id)) {
            *self.counts.entry(id.namespace.clone()).or_default() += 1;
        }
    }

    /// Takes an endpoint out; true when its namespace has no other.
    fn was_last(&mut self, id: &EndpointId) -> bool {
        if !self.endpoints.remove(&self.hasher.hash_one(id)) {
            return false;
        }
        let Some(count) = self.counts.get_mut(&id.namespace) else {
            return false;
        };
        *count -= 1;
        let is_last = *count == 0;
        if is_last {
            self.counts.remove(&id.namespace);
        }
        is_last
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use towpath_core::model::{
        Cluster, Endpoint, EndpointKind, Labels, Lifecycle, Namespace, Node,
    };

    use super::*;

    fn namespace(name: &str, version: &str) -> Update {
        let labels = [(SmolStr::new("version"), SmolStr::new(version))]
            .into_iter()
            .collect();
        Update::Upsert(Object::Namespace(Namespace {
            name: name.into(),
            labels,
        }))
    }

    fn no_namespace(name: &str) -> Update {
        Update::Remove(ObjectKey::Namespace(name.into()))
    }

    fn id(namespace: &str, name: &str) -> EndpointId {
        EndpointId {
            kind: EndpointKind::Pod,
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    fn pod(namespace: &str, name: &str, lifecycle: Lifecycle) -> Update {
        Update::Upsert(Object::Endpoint(Endpoint {
            id: id(namespace, name),
            labels: Labels::default(),
            node: None,
            addresses: Vec::new(),
            ports: Vec::new(),
            uid: None,
            host_network: false,
            lifecycle,
            interface: None,
            mac: None,
        }))
    }

    fn no_pod(namespace: &str, name: &str) -> Update {
        Update::Remove(ObjectKey::Endpoint(id(namespace, name)))
    }

    /// The rule, on whole states: a namespace that the source does not have stays as it was while it has endpoints.
    #[derive(Default)]
    struct Naive {
        source: Cluster,
        shown: Cluster,
    }

    impl Naive {
        fn apply(&mut self, update: Update) {
            self.source.apply(update);
            let mut shown = self.source.clone();
            for (name, namespace) in &self.shown.namespaces {
                let has_endpoints = self.source.endpoints.keys().any(|id| id.namespace == *name);
                if has_endpoints && !shown.namespaces.contains_key(name) {
                    shown.namespaces.insert(name.clone(), namespace.clone());
                }
            }
            self.shown = shown;
        }

        fn kept(&self) -> usize {
            self.shown.namespaces.len() - self.source.namespaces.len()
        }
    }

    /// Runs the batches through both; they must agree after each. Tells how often a namespace was kept.
    fn walk(batches: impl IntoIterator<Item = Vec<Update>>) -> usize {
        let (mut naive, mut kept) = (Naive::default(), KeptNamespaces::default());
        let (mut shown, mut times) = (Cluster::default(), 0);
        for batch in batches {
            for update in kept.pass(batch.clone()) {
                shown.apply(update);
            }
            for update in batch {
                naive.apply(update);
            }
            assert_eq!(shown, naive.shown);
            times += naive.kept();
            // A namespace that nobody ever described may be kept too: there is nothing to show of it.
            assert!(kept.kept() >= naive.kept(), "{kept:?}");
        }
        times
    }

    fn permutations(of: &[Update]) -> Vec<Vec<Update>> {
        if of.is_empty() {
            return vec![Vec::new()];
        }
        let mut all = Vec::new();
        for index in 0..of.len() {
            let mut rest = of.to_vec();
            let first = rest.remove(index);
            for mut tail in permutations(&rest) {
                tail.insert(0, first.clone());
                all.push(tail);
            }
        }
        all
    }

    /// The list cut into batches after each position whose bit is set.
    fn cut(updates: &[Update], cuts: u32) -> Vec<Vec<Update>> {
        let mut batches = vec![Vec::new()];
        for (position, update) in updates.iter().enumerate() {
            if let Some(last) = batches.last_mut() {
                last.push(update.clone());
            }
            if cuts >> position & 1 == 1 {
                batches.push(Vec::new());
            }
        }
        batches
    }

    #[test]
    fn agrees_with_the_rule_in_every_order_and_every_cut() {
        let updates = [
            namespace("shop", "1"),
            no_namespace("shop"),
            pod("shop", "a", Lifecycle::Live),
            no_pod("shop", "a"),
            pod("shop", "b", Lifecycle::Live),
            no_pod("shop", "b"),
        ];

        let mut times = 0;
        for order in permutations(&updates) {
            for cuts in 0..1 << (order.len() - 1) {
                times += walk(cut(&order, cuts));
            }
        }

        assert!(times > 1_000, "kept {times} times");
    }

    #[test]
    fn the_labels_go_with_the_last_pod() {
        let mut kept = KeptNamespaces::default();
        kept.pass(vec![
            namespace("shop", "1"),
            pod("shop", "a", Lifecycle::Live),
            pod("shop", "b", Lifecycle::Live),
        ]);

        let first = kept.pass(vec![no_namespace("shop"), no_pod("shop", "a")]);
        let last = kept.pass(vec![no_pod("shop", "b")]);

        assert_eq!(first, [no_pod("shop", "a")]);
        assert_eq!(last, [no_pod("shop", "b"), no_namespace("shop")]);
        assert_eq!(kept.kept(), 0);
    }

    #[test]
    fn a_namespace_that_comes_back_is_as_the_source_says() {
        let mut kept = KeptNamespaces::default();
        kept.pass(vec![
            namespace("shop", "1"),
            pod("shop", "a", Lifecycle::Live),
        ]);
        kept.pass(vec![no_namespace("shop")]);

        let back = kept.pass(vec![no_pod("shop", "a"), namespace("shop", "2")]);

        assert_eq!(back, [no_pod("shop", "a"), namespace("shop", "2")]);
    }

    fn update() -> impl Strategy<Value = Update> {
        let place = prop::sample::select(vec!["shop", "other"]);
        let name = prop::sample::select(vec!["a", "b", "c"]);
        let version = prop::sample::select(vec!["1", "2"]);
        let lifecycle = prop::sample::select(vec![Lifecycle::Live, Lifecycle::Finished]);
        let node = Node {
            name: "n".into(),
            ..Node::default()
        };
        prop_oneof![
            2 => (place.clone(), version).prop_map(|(place, version)| namespace(place, version)),
            2 => place.clone().prop_map(no_namespace),
            3 => (place.clone(), name.clone(), lifecycle)
                .prop_map(|(place, name, lifecycle)| pod(place, name, lifecycle)),
            3 => (place, name).prop_map(|(place, name)| no_pod(place, name)),
            1 => Just(Update::Upsert(Object::Node(node))),
            1 => Just(Update::Remove(ObjectKey::Node("n".into()))),
        ]
    }

    proptest! {
        #[test]
        fn agrees_with_the_rule_on_random_walks(batches in vec(vec(update(), 0..5), 0..30)) {
            walk(batches);
        }
    }
}
