//! The pure part against a small API server that is nothing but a history, in every order that a network can make.

use std::collections::{BTreeMap, BTreeSet};

use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use towpath_core::model::{Cluster, NamespaceMatch, Object, ObjectKey, PodUid, PolicyKind, Update};

use super::item::Item;
use super::resource::Resource;
use super::world::{Answer, Event, Input, Page, Read, Step, World};
use crate::source::SourceState;

const NODE: &str = "here";

/// An object of the history: its kind, and `namespace/name` or the name.
type Key = (Resource, String);

/// What was written: `None` is a removal. Versions are places in the history, from 1.
#[derive(Debug, Default)]
struct Server {
    history: Vec<(Key, Option<Value>)>,
}

impl Server {
    fn now(&self) -> u64 {
        self.history.len() as u64
    }

    fn write(&mut self, key: Key, object: Option<Value>) {
        let exists = self.state(self.now()).contains_key(&key);
        if object.is_some() || exists {
            self.history.push((key, object));
        }
    }

    /// All objects at a revision, each with its version.
    fn state(&self, at: u64) -> BTreeMap<Key, (u64, Value)> {
        let mut state = BTreeMap::new();
        for (version, (key, object)) in (1..).zip(&self.history).take_while(|(v, _)| *v <= at) {
            match object {
                Some(object) => state.insert(key.clone(), (version, object.clone())),
                None => state.remove(key),
            };
        }
        state
    }

    fn items(&self, resource: Resource, at: u64, partition: Option<&str>) -> Vec<Item> {
        let state = self.state(at);
        let wanted = state.iter().filter(|((kind, name), _)| {
            *kind == resource && partition.is_none_or(|wanted| resource.partition(name) == wanted)
        });
        wanted
            .map(|((_, name), (version, object))| item(resource, name, *version, object))
            .collect()
    }

    fn event(&self, resource: Resource, version: u64) -> Option<Event> {
        let ((kind, name), object) = self.history.get(usize::try_from(version).ok()? - 1)?;
        (*kind == resource).then(|| match object {
            Some(object) => Event::There(item(resource, name, version, object)),
            None => Event::Gone {
                name: name.as_str().into(),
                version,
            },
        })
    }

    fn read(&self, read: &Read) -> Answer {
        let (resource, partition) = (read.resource, &*read.partition);
        let items = self.items(resource, self.now(), Some(partition));
        if resource == Resource::Namespace {
            return Answer::One(items.into_iter().next());
        }
        Answer::List {
            version: self.now(),
            items,
        }
    }
}

fn item(resource: Resource, name: &str, version: u64, object: &Value) -> Item {
    let mut object = object.clone();
    let (namespace, short) = name.split_once('/').unwrap_or(("", name));
    object["metadata"]["name"] = json!(short);
    if !namespace.is_empty() {
        object["metadata"]["namespace"] = json!(namespace);
    }
    object["metadata"]["resourceVersion"] = json!(version.to_string());
    Item::read(resource, object.to_string().as_bytes()).expect("a name and a version")
}

/// A policy whose priority in the walk can be read back from its selector.
fn policy(mark: u64) -> Value {
    json!({ "metadata": { "uid": "p" }, "spec": { "podSelector": { "matchLabels": { "mark": mark.to_string() } } } })
}

fn cluster_policy(mark: u64) -> Value {
    let subject = json!({ "pods": { "namespaceSelector": {}, "podSelector": { "matchLabels": { "mark": mark.to_string() } } } });
    json!({ "metadata": { "uid": "c" }, "spec": { "tier": "Admin", "priority": 1, "subject": subject, "ingress": [{ "name": "r", "action": "Deny", "from": [{ "namespaces": {} }] }] } })
}

fn namespace(mark: u64) -> Value {
    json!({ "metadata": { "uid": "n", "labels": { "mark": mark.to_string() } } })
}

fn pod(uid: u64, node: Option<&str>, phase: &str) -> Value {
    json!({ "metadata": { "uid": format!("{uid:032x}") }, "spec": { "nodeName": node }, "status": { "phase": phase, "podIPs": [{ "ip": "10.0.0.1" }] } })
}

/// The stream of one kind: what of the history it has told, and the list that it is telling.
#[derive(Debug, Default)]
struct Stream {
    /// Events up to here were told; `None` before the first list.
    at: Option<u64>,
    listing: Option<(u64, Vec<Item>, bool)>,
}

/// A walk: the server, the streams, and what consumers were told.
struct Walk {
    server: Server,
    streams: BTreeMap<Resource, Stream>,
    reads: Vec<Read>,
    world: World,
    shown: Cluster,
    is_shown: bool,
}

const PODS: [&str; 3] = ["shop/a", "shop/b", "other/a"];
/// Some have the name of a pod.
const POLICIES: [&str; 3] = ["shop/a", "shop/y", "other/a"];

impl Walk {
    fn new() -> Self {
        Self {
            server: Server::default(),
            streams: Resource::ALL.map(|kind| (kind, Stream::default())).into(),
            reads: Vec::new(),
            world: World::new(Some(NODE.into())),
            shown: Cluster::default(),
            is_shown: false,
        }
    }

    fn write(&mut self, choice: u8) {
        let mark = self.server.now() + 1;
        let is_removal = choice & 1 == 1;
        let pick = usize::from(choice >> 1);
        let (key, object) = match pick % 6 {
            0 => {
                let name = POLICIES[pick / 6 % 3].to_owned();
                ((Resource::NetworkPolicy, name), policy(mark))
            }
            1 => {
                let name = ["shop", "other"][pick / 6 % 2].to_owned();
                ((Resource::Namespace, name), namespace(mark))
            }
            2 => {
                let key = (Resource::ClusterNetworkPolicy, "c".to_owned());
                (key, cluster_policy(mark))
            }
            3 => {
                let object =
                    json!({ "metadata": { "uid": "x", "labels": { "mark": mark.to_string() } } });
                ((Resource::Node, NODE.to_owned()), object)
            }
            _ => {
                let name = PODS[pick / 6 % 3].to_owned();
                let node = [Some(NODE), Some(NODE), Some("there"), None][pick / 18 % 4];
                let phase = if choice >= 250 { "Failed" } else { "Running" };
                // Now and then another pod of the same name, without a removal in between.
                let uid = mark / 8;
                ((Resource::Pod, name), pod(uid, node, phase))
            }
        };
        self.server.write(key, (!is_removal).then_some(object));
    }

    fn tell(&mut self, input: Input) {
        self.world.take(input);
        self.look();
    }

    fn page(&mut self, resource: Resource, size: usize) {
        let stream = self.streams.get_mut(&resource).unwrap();
        let Some((version, items, is_first)) = &mut stream.listing else {
            return;
        };
        let rest = items.split_off(size.min(items.len()));
        let page = Page {
            version: *version,
            items: std::mem::replace(items, rest),
            unnamed: Vec::new(),
            is_first: std::mem::take(is_first),
            is_last: items.is_empty(),
        };
        if page.is_last {
            stream.at = Some(*version);
            stream.listing = None;
        }
        self.tell(Input::Page(resource, page));
    }

    fn list(&mut self, resource: Resource) {
        // One that is under way is begun again, as when its pages have become too old.
        let now = self.server.now();
        let items = self.server.items(resource, now, None);
        self.streams.get_mut(&resource).unwrap().listing = Some((now, items, true));
    }

    /// The next event of a stream, or one that was told already.
    fn event(&mut self, resource: Resource, is_repeated: bool) {
        let stream = self.streams.get_mut(&resource).unwrap();
        let (Some(at), None) = (stream.at, &stream.listing) else {
            return;
        };
        let version = if is_repeated { at } else { at + 1 };
        if version > self.server.now() || version == 0 {
            return;
        }
        stream.at = Some(version);
        let event = self.server.event(resource, version);
        // Events of other kinds pass by silently, as they do in a watch.
        if let Some(event) = event {
            self.tell(Input::Event(resource, event));
        }
    }

    fn bookmark(&mut self, resource: Resource) {
        let stream = &self.streams[&resource];
        if let (Some(at), None) = (stream.at, &stream.listing) {
            self.tell(Input::Event(resource, Event::Bookmark(at)));
        }
    }

    fn answer(&mut self, pick: u8) {
        if self.reads.is_empty() {
            return;
        }
        let read = self.reads.swap_remove(usize::from(pick) % self.reads.len());
        let answer = self.server.read(&read);
        self.tell(Input::Answer(read, answer));
    }

    fn act(&mut self, action: (u8, u8)) {
        let (what, choice) = action;
        let resource = Resource::ALL[usize::from(choice) % 5];
        match what % 16 {
            0..5 => self.write(choice),
            5..7 => self.event(resource, false),
            // A watch that is quick.
            7 => self.event(Resource::Pod, false),
            8 => self.event(resource, true),
            9 => self.bookmark(resource),
            10 | 11 => self.answer(choice),
            12 => self.page(resource, usize::from(choice) % 3),
            13 => self.page(resource, 9),
            14 => self.list(resource),
            _ => self.event(Resource::BEFORE_PODS[usize::from(choice) % 3], false),
        }
    }

    /// Everything arrives.
    fn settle(&mut self) {
        for resource in Resource::ALL {
            if self.streams[&resource].at.is_none() && self.streams[&resource].listing.is_none() {
                self.list(resource);
            }
            while self.streams[&resource].listing.is_some() {
                self.page(resource, 2);
            }
            while self.streams[&resource].at < Some(self.server.now()) {
                self.event(resource, false);
            }
        }
        for _ in 0..1_000 {
            self.answer(0);
        }
        assert_eq!(self.reads, [], "reads come to an end");
    }

    /// Looks at what the world says, and whether it may.
    fn look(&mut self) {
        let Step { updates, reads, .. } = self.world.step();
        for read in &reads {
            let is_same = |other: &&Read| {
                (other.resource, &other.partition) == (read.resource, &read.partition)
            };
            assert_eq!(self.reads.iter().find(is_same), None, "one read at a time");
        }
        self.reads.extend(reads);
        if !updates.is_empty() {
            let is_listed = self.streams.values().all(|stream| stream.at.is_some());
            assert!(is_listed, "nothing is told before everything was listed");
            self.is_shown = true;
        }
        let before = self.shown.clone();
        for update in updates {
            if let Update::Remove(key @ ObjectKey::Policy(_)) = &update {
                self.check_removal(key);
            }
            self.shown.apply(update);
        }
        self.check_newer(&before);
        self.check_new_pods(&before);
    }

    /// A policy is only taken out when it was removed, or replaced, after the version that was in force.
    fn check_removal(&self, key: &ObjectKey) {
        let (shown, name) = self.policy(key).expect("it was in force");
        let is_removed = (1..)
            .zip(&self.server.history)
            .any(|(version, (key, object))| *key == name && version > shown && object.is_none());
        assert!(is_removed, "{key:?} of version {shown} was never removed");
    }

    /// The version of a policy in force, and its name on the server.
    fn policy(&self, key: &ObjectKey) -> Option<(u64, Key)> {
        let ObjectKey::Policy(id) = key else {
            return None;
        };
        let policy = self.shown.policies.get(id)?;
        let name = match id.kind {
            PolicyKind::NetworkPolicy => (
                Resource::NetworkPolicy,
                format!("{}/{}", id.namespace, id.name),
            ),
            PolicyKind::ClusterNetworkPolicy => {
                (Resource::ClusterNetworkPolicy, id.name.to_string())
            }
        };
        Some((mark_of(&policy.subject.pods), name))
    }

    /// No object in force is ever replaced by an older version of itself.
    fn check_newer(&self, before: &Cluster) {
        for policy in before.policies.values() {
            if let Some(after) = self.shown.policies.get(&policy.id) {
                assert!(mark_of(&after.subject.pods) >= mark_of(&policy.subject.pods));
            }
        }
        for (name, namespace) in &before.namespaces {
            if let Some(after) = self.shown.namespaces.get(name) {
                assert!(label_mark(after) >= label_mark(namespace));
            }
        }
    }

    /// What may select a pod that is new here is as new as the pod.
    fn check_new_pods(&self, before: &Cluster) {
        let is_new = |pod: &&towpath_core::model::Endpoint| {
            let is_here = pod.node.as_deref() == Some(NODE) && pod.is_workload();
            let old = before.endpoints.get(&pod.id);
            let was_here = old.is_some_and(|old| {
                old.uid == pod.uid && old.node.as_deref() == Some(NODE) && old.is_workload()
            });
            is_here && !was_here
        };
        for pod in self.shown.endpoints.values().filter(is_new) {
            let name = format!("{}/{}", pod.id.namespace, pod.id.name);
            let since = self.created(&(Resource::Pod, name), pod.uid.expect("each has one"));
            let then = self.server.state(since);
            for ((resource, name), (version, _)) in &then {
                let concerns = match resource {
                    Resource::NetworkPolicy | Resource::Namespace => {
                        resource.partition(name) == pod.id.namespace.as_str()
                    }
                    Resource::ClusterNetworkPolicy => true,
                    Resource::Pod | Resource::Node => false,
                };
                if !concerns {
                    continue;
                }
                let is_later_removed =
                    (1..).zip(&self.server.history).any(|(at, (key, object))| {
                        at > since && object.is_none() && *key == (*resource, name.clone())
                    });
                let in_force = self.version_in_force(*resource, name);
                // Of a namespace that is gone the last labels that were heard of stay with its pods.
                let is_kept = *resource == Resource::Namespace;
                assert!(
                    in_force >= Some(*version)
                        || (is_later_removed && (in_force.is_none() || is_kept)),
                    "{name} of version {version} is {in_force:?} for pod {} since {since}",
                    pod.id
                );
            }
            for ((resource, name), version) in self.in_force(&pod.id.namespace) {
                let was_there = then.contains_key(&(resource, name.clone()));
                assert!(
                    was_there || version > since,
                    "{name} of version {version} is in force for pod {} since {since}",
                    pod.id
                );
            }
        }
    }

    /// When the pod of this uid came into being.
    fn created(&self, key: &Key, uid: PodUid) -> u64 {
        let is_it = |entry: &(u64, &(Key, Option<Value>))| {
            let (_, (other, object)) = entry;
            let text = object
                .as_ref()
                .and_then(|object| object["metadata"]["uid"].as_str());
            other == key && text.and_then(|text| text.parse().ok()) == Some(uid)
        };
        let (version, _) = (1..)
            .zip(&self.server.history)
            .find(is_it)
            .expect("it was written");
        version
    }

    fn version_in_force(&self, resource: Resource, name: &str) -> Option<u64> {
        if resource == Resource::Namespace {
            return self.shown.namespaces.get(name).map(label_mark);
        }
        self.policy(&resource.key(name)?)
            .map(|(version, _)| version)
    }

    /// What concerns pods of a namespace.
    fn in_force(&self, namespace: &str) -> Vec<(Key, u64)> {
        let concerns = |policy: &&towpath_core::model::Policy| match &policy.subject.namespaces {
            NamespaceMatch::Is(name) => name == namespace,
            NamespaceMatch::Matching(_) => true,
        };
        self.shown
            .policies
            .values()
            .filter(concerns)
            .filter_map(|policy| self.policy(&ObjectKey::Policy(policy.id.clone())))
            .map(|(version, key)| (key, version))
            .collect()
    }

    /// What consumers must hold when everything has arrived.
    fn expected(&self) -> Cluster {
        let mut cluster = Cluster::default();
        for ((resource, name), (version, object)) in self.server.state(self.server.now()) {
            let towpath_api::Outcome::Object { object, .. } =
                item(resource, &name, version, &object).outcome
            else {
                panic!("all objects are good");
            };
            let is_of_interest = match &object {
                Object::Endpoint(pod) => match pod.node.as_deref() {
                    Some(NODE) => true,
                    Some(_) => pod.is_workload(),
                    None => false,
                },
                _ => true,
            };
            if is_of_interest {
                cluster.apply(Update::Upsert(object));
            }
        }
        cluster
    }
}

fn mark_of(selector: &towpath_core::model::Selector) -> u64 {
    let text = format!("{selector:?}");
    let digits: String = text.chars().filter(char::is_ascii_digit).collect();
    digits.parse().expect("a mark")
}

fn label_mark(namespace: &towpath_core::model::Namespace) -> u64 {
    let label = namespace.labels.iter().find(|(key, _)| key == "mark");
    label.expect("a mark").1.parse().expect("a number")
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_000, ..ProptestConfig::default() })]

    #[test]
    fn whatever_the_order_nothing_old_wins_and_no_pod_comes_too_early(
        before in vec(any::<u8>(), 0..20),
        actions in vec(any::<(u8, u8)>(), 0..200),
    ) {
        let mut walk = Walk::new();
        // Most walks begin with a state that is known.
        if !before.is_empty() {
            for choice in before {
                walk.write(choice);
            }
            walk.settle();
        }
        for action in actions {
            walk.act(action);
        }

        walk.settle();

        let mut expected = walk.expected();
        // Namespaces are kept while they have pods; that is tested where it is decided.
        let kept: BTreeSet<_> = walk.shown.namespaces.keys().cloned().collect();
        for name in &kept {
            if !expected.namespaces.contains_key(name) && walk.shown.endpoints.keys().any(|id| id.namespace == *name) {
                expected.namespaces.insert(name.clone(), walk.shown.namespaces[name].clone());
            }
        }
        prop_assert_eq!(&walk.shown, &expected);
        prop_assert_eq!(walk.world.state(), SourceState::InSync);
        prop_assert!(walk.is_shown || walk.expected() == Cluster::default());
        prop_assert_eq!(walk.world.objects(), expected.namespaces.len() + expected.nodes.len() + expected.endpoints.len() + expected.policies.len());
    }
}

/// Of a kind that is missing no list tells how new that is, so it is read for the pods that run already.
#[test]
fn a_source_is_not_in_sync_before_pods_that_run_are_let_in() {
    let mut server = Server::default();
    server.write((Resource::Namespace, "a".to_owned()), Some(namespace(1)));
    let running = pod(1, Some(NODE), "Running");
    server.write((Resource::Pod, "a/web".to_owned()), Some(running));
    let mut world = World::new(Some(NODE.into()));
    for resource in Resource::ALL {
        if resource == Resource::ClusterNetworkPolicy {
            world.take(Input::Missing(resource));
            continue;
        }
        let page = Page {
            version: server.now(),
            items: server.items(resource, server.now(), None),
            unnamed: Vec::new(),
            is_first: true,
            is_last: true,
        };
        world.take(Input::Page(resource, page));
    }

    let early = world.step();
    let early_state = world.state();
    let [read] = <[Read; 1]>::try_from(early.reads).expect("one kind is missing");
    world.take(Input::Answer(read, Answer::Missing));
    let late = world.step();

    assert!(early.updates.is_empty());
    assert!(!early_state.is_in_sync());
    assert!(world.state().is_in_sync());
    let has_pod = |update: &Update| matches!(update, Update::Upsert(Object::Endpoint(_)));
    assert!(late.updates.iter().any(has_pod), "{:?}", late.updates);
}

/// A policy may have the name of a pod, and be good or bad: neither takes the other's place.
#[test]
fn a_policy_with_the_name_of_a_waiting_pod_takes_nothing_from_it() {
    let good = policy(1);
    let bad = json!({ "metadata": { "uid": "p" }, "spec": { "podSelector": 7 } });
    for object in [good, bad] {
        let mut server = Server::default();
        server.write((Resource::Namespace, "a".to_owned()), Some(namespace(1)));
        let starting = pod(1, Some(NODE), "Pending");
        server.write((Resource::Pod, "a/web".to_owned()), Some(starting));
        server.write((Resource::NetworkPolicy, "a/web".to_owned()), Some(object));
        let mut world = World::new(Some(NODE.into()));
        for resource in Resource::ALL {
            let page = Page {
                version: server.now(),
                items: server.items(resource, server.now(), None),
                unnamed: Vec::new(),
                is_first: true,
                is_last: true,
            };
            world.take(Input::Page(resource, page));
        }

        let updates = world.step().updates;

        let has = |wanted: fn(&Object) -> bool| {
            let mut updates = updates.iter();
            updates.any(|update| matches!(update, Update::Upsert(object) if wanted(object)))
        };
        assert!(
            has(|object| matches!(object, Object::Endpoint(_))),
            "{updates:?}"
        );
        assert!(
            has(|object| matches!(object, Object::Policy(_))),
            "{updates:?}"
        );
    }
}
