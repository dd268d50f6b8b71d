//! What the API server says, put together: pages, events and reads in, changes of objects out. No I/O, no clock.
//!
//! * Nothing is handed out before every kind was listed once; what is handed out then is the whole state.
//! * A bad version never replaces a good one (edge case 1).
//! * A pod that is new on this node waits until what may select it is known to be as new as the pod (edge case 18):
//!   the policies of its namespace, the labels of its namespace, and the cluster-wide policies. Where a watch has not
//!   come so far, a read is asked for, one at a time for each of these.

use std::collections::{BTreeMap, BTreeSet};

use smol_str::SmolStr;
use towpath_api::{BadObject, Decision, Fault, Outcome, Severity, decide};
use towpath_core::model::{Object, ObjectKey, Policy, PolicyId, Update};

use super::collection::{Collection, Offered, Standing};
use super::faults::Faults;
use super::item::{Item, hash};
use super::resource::Resource;
use crate::source::{Finding, KeptNamespaces, SourceState, Tally, Versions};

/// What the shell has heard.
#[derive(Debug)]
pub(super) enum Input {
    /// A page of a list.
    Page(Resource, Page),
    /// The API server does not know this kind.
    Missing(Resource),
    /// An event of a watch.
    Event(Resource, Event),
    /// A kind cannot be followed at the moment.
    Trouble(Resource, String),
    /// The API server has forgotten where the watch of a kind stood (410): a list follows.
    Expired(Resource),
    /// It can again.
    Healthy(Resource),
    /// The answer to a read.
    Answer(Read, Answer),
    /// A read fails, and is tried again.
    ReadTrouble(Read, String),
}

/// A page of a list.
#[derive(Debug, Default)]
pub(super) struct Page {
    pub(super) version: u64,
    pub(super) items: Vec<Item>,
    /// Objects of which it cannot be told which they are.
    pub(super) unnamed: Vec<String>,
    pub(super) is_first: bool,
    pub(super) is_last: bool,
}

/// An event of a watch.
#[derive(Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "they are moved once; most are of the large kind"
)]
pub(super) enum Event {
    /// An object is there, in this version.
    There(Item),
    /// An object is gone with this version.
    Gone { name: Box<str>, version: u64 },
    /// Everything up to this version was said.
    Bookmark(u64),
}

/// A consistent read that is wanted: it sees everything that was written before it began.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Read {
    pub(super) resource: Resource,
    /// The namespace of the policies, or the name of the namespace.
    pub(super) partition: Box<str>,
    /// The store had this revision before.
    pub(super) at_least: u64,
    /// Not at once: the last answer made no sense.
    pub(super) is_delayed: bool,
    history: u32,
}

/// What a read says.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "at most one a read is there")]
pub(super) enum Answer {
    /// A list of this revision.
    List { version: u64, items: Vec<Item> },
    /// The one object, or that it is not there.
    One(Option<Item>),
    /// The API server does not know this kind.
    Missing,
}

/// What changed.
#[derive(Debug, Default)]
pub(super) struct Step {
    pub(super) updates: Vec<Update>,
    /// Whether findings or state may have changed as well.
    pub(super) is_news: bool,
    pub(super) reads: Vec<Read>,
    /// A kind that was missing seems to be there.
    pub(super) found: Option<Resource>,
    pub(super) tally: Tally,
}

/// A pod that is not let in yet.
#[derive(Debug)]
struct Waiting {
    /// Revision with which it was first seen.
    since: u64,
    object: Object,
}

/// Everything that is known.
#[derive(Debug)]
pub(super) struct World {
    /// This node. Without one nobody waits, and pods without a node are told too.
    node: Option<SmolStr>,
    collections: BTreeMap<Resource, Collection>,
    waiting: BTreeMap<Box<str>, Waiting>,
    reading: BTreeSet<(Resource, Box<str>)>,
    /// Counts when the store goes back in time; answers of another history mean nothing.
    history: u32,
    namespaces: KeptNamespaces,
    faults: Faults,
    trouble: BTreeMap<Resource, String>,
    read_trouble: BTreeMap<(Resource, Box<str>), String>,
    /// Lists that hold objects without a name.
    unnamed: BTreeMap<Resource, bool>,
    /// What is held back until everything was listed and the pods that were there by then are let in.
    held: Option<BTreeMap<ObjectKey, Update>>,
    /// Revision of the newest whole list of pods.
    pods_listed_at: u64,
    objects: usize,
    versions: Versions,
    step: Step,
}

impl World {
    pub(super) fn new(node: Option<SmolStr>) -> Self {
        let collections = Resource::ALL.map(|resource| (resource, Collection::new(resource)));
        Self {
            node,
            collections: collections.into(),
            waiting: BTreeMap::new(),
            reading: BTreeSet::new(),
            history: 0,
            namespaces: KeptNamespaces::default(),
            faults: Faults::default(),
            trouble: BTreeMap::new(),
            read_trouble: BTreeMap::new(),
            unnamed: BTreeMap::new(),
            held: Some(BTreeMap::new()),
            pods_listed_at: 0,
            objects: 0,
            versions: Versions::default(),
            step: Step::default(),
        }
    }

    /// Takes in what was heard.
    pub(super) fn take(&mut self, input: Input) {
        match input {
            Input::Page(resource, page) => self.take_page(resource, page),
            Input::Missing(resource) => self.take_missing(resource),
            Input::Event(resource, event) => self.take_event(resource, event),
            Input::Trouble(resource, reason) => {
                self.step.is_news = true;
                self.trouble.insert(resource, reason);
            }
            Input::Expired(resource) => {
                let expired = &mut self.step.tally.expired;
                *expired.entry(resource.kind().name()).or_default() += 1;
            }
            Input::Healthy(resource) => {
                self.step.is_news |= self.trouble.remove(&resource).is_some();
            }
            Input::Answer(read, answer) => self.take_answer(read, answer),
            Input::ReadTrouble(read, reason) => {
                let key = (read.resource, read.partition);
                if self.reading.contains(&key) {
                    self.step.is_news = true;
                    self.read_trouble.insert(key, reason);
                }
            }
        }
    }

    /// What changed since the last call.
    pub(super) fn step(&mut self) -> Step {
        let is_all_listed = self.collections.values().all(Collection::is_listed);
        if is_all_listed || self.held.is_none() {
            self.let_in();
            if self.held.is_some() && !self.do_listed_pods_wait() {
                let held = self.held.take().unwrap_or_default();
                self.step.updates = held.into_values().collect();
                self.step.is_news = true;
            }
        }
        let mut step = std::mem::take(&mut self.step);
        step.updates = self.namespaces.pass(step.updates);
        step
    }

    /// Whether a pod waits that was there before everything was listed. A kind that is missing has no list to go by, so
    /// it is read for them; to be in sync without them would close pods that run.
    fn do_listed_pods_wait(&self) -> bool {
        let mut waiting = self.waiting.values();
        waiting.any(|waiting| waiting.since <= self.pods_listed_at)
    }

    /// Whether everything is known.
    pub(super) fn state(&self) -> SourceState {
        let mut failing = self.trouble.values().chain(self.read_trouble.values());
        let unlisted = || {
            let is_unlisted = |resource: &Resource| {
                let collection = self.collections.get(resource);
                !collection.is_some_and(Collection::is_listed)
            };
            let names: Vec<_> = Resource::ALL
                .into_iter()
                .filter(is_unlisted)
                .map(Resource::plural)
                .collect();
            if names.is_empty() {
                let waits = "pods of this node wait for the policies that were made before them";
                return self.held.is_some().then(|| waits.to_owned());
            }
            Some(format!("not listed yet: {}", names.join(", ")))
        };
        match failing.next().cloned().or_else(unlisted) {
            Some(reason) => SourceState::NotInSync { reason },
            None => SourceState::InSync,
        }
    }

    /// What is wrong with objects.
    pub(super) fn findings(&self) -> Vec<Finding> {
        self.faults.findings()
    }

    /// Objects in force.
    pub(super) fn objects(&self) -> usize {
        self.objects + self.namespaces.kept()
    }

    /// Up to which version of each kind objects were told of. It counts lists and events, and not bookmarks.
    pub(super) fn versions(&self) -> Versions {
        self.versions
    }

    /// An event or a list of this version was taken in. Of the few kinds that seldom change, consumers hear of it even
    /// where it means nothing to them.
    fn pass(&mut self, resource: Resource, version: u64) {
        let versions = &mut self.versions;
        let known = match resource {
            Resource::Pod => &mut versions.pods,
            Resource::Namespace => &mut versions.namespaces,
            Resource::Node => &mut versions.nodes,
            Resource::NetworkPolicy => &mut versions.network_policies,
            Resource::ClusterNetworkPolicy => &mut versions.cluster_network_policies,
        };
        if version > *known {
            *known = version;
            self.step.is_news |= Resource::BEFORE_PODS.contains(&resource);
        }
    }

    fn collection(&mut self, resource: Resource) -> &mut Collection {
        self.collections
            .get_mut(&resource)
            .expect("every resource has a collection")
    }

    fn take_page(&mut self, resource: Resource, page: Page) {
        let Page {
            version,
            items,
            unnamed,
            is_first,
            is_last,
        } = page;
        if is_first {
            if self.collection(resource).begin_list(version) {
                self.forget_history(resource);
            }
            self.unnamed.insert(resource, false);
            self.faults.clear_unnamed(resource);
            if resource == Resource::Pod {
                self.pods_listed_at = version;
            }
        }
        for reason in unnamed {
            self.step.is_news = true;
            self.unnamed.insert(resource, true);
            self.faults.add_unnamed(resource, reason);
            self.count_malformed(resource);
        }
        for item in items {
            let offered =
                self.collection(resource)
                    .offer_listed(&item.name, item.uid, item.version);
            self.take_offered(resource, offered, item);
        }
        if is_last {
            let keeps = self.unnamed.get(&resource).copied().unwrap_or_default();
            let gone = if keeps {
                self.collection(resource).end_list_keeping();
                Vec::new()
            } else {
                self.collection(resource).end_list()
            };
            self.remove_all(resource, gone);
            self.pass(resource, version);
            self.step.is_news = true;
        }
    }

    /// The store was restored: no revision from before means anything.
    fn forget_history(&mut self, resource: Resource) {
        self.history += 1;
        self.versions = Versions::default();
        self.reading.clear();
        self.read_trouble.clear();
        self.collections
            .values_mut()
            .for_each(Collection::forget_reads);
        if resource == Resource::Pod {
            for waiting in self.waiting.values_mut() {
                waiting.since = u64::MAX;
            }
        }
    }

    fn take_missing(&mut self, resource: Resource) {
        self.step.is_news = true;
        if let Some(gone) = self.collection(resource).miss() {
            self.trouble.remove(&resource);
            self.remove_all(resource, gone);
        } else {
            let reason = format!(
                "the API server says that it no longer knows {}; what is in force stays until it has said so again",
                resource.plural()
            );
            self.trouble.insert(resource, reason);
        }
    }

    fn take_event(&mut self, resource: Resource, event: Event) {
        match event {
            Event::There(item) => {
                self.pass(resource, item.version);
                let offered =
                    self.collection(resource)
                        .offer_watched(&item.name, item.uid, item.version);
                self.take_offered(resource, offered, item);
            }
            Event::Gone { name, version } => {
                self.pass(resource, version);
                if let Some(standing) = self.collection(resource).remove_watched(&name, version) {
                    self.remove(resource, &name, standing);
                }
            }
            Event::Bookmark(version) => self.collection(resource).pass(version),
        }
    }

    fn take_answer(&mut self, read: Read, answer: Answer) {
        let Read {
            resource,
            partition,
            at_least,
            history,
            ..
        } = read;
        if history != self.history {
            return;
        }
        let key = (resource, partition);
        self.reading.remove(&key);
        self.step.is_news |= self.read_trouble.remove(&key).is_some();
        let (_, partition) = key;
        let (version, items) = match answer {
            Answer::List { version, items } => {
                if resource.is_optional() && !items.is_empty() {
                    self.step.found = Some(resource);
                }
                (version, items)
            }
            Answer::One(item) => {
                let version = item.as_ref().map_or(0, |item| item.version);
                (version.max(at_least), item.into_iter().collect())
            }
            Answer::Missing if self.collection(resource).is_missed_at(at_least) => return,
            Answer::Missing => {
                self.ask(resource, &partition, at_least, true);
                return;
            }
        };
        if !self.collection(resource).begin_read(&partition, version) {
            return;
        }
        let there = items.iter().map(|item| item.name.clone()).collect();
        for item in items {
            let offered = self
                .collection(resource)
                .offer_read(&item.name, item.uid, item.version);
            self.take_offered(resource, offered, item);
        }
        let gone = self.collection(resource).end_read(&partition, &there);
        self.remove_all(resource, gone);
    }

    fn take_offered(&mut self, resource: Resource, offered: Offered, item: Item) {
        match offered {
            Offered::Old => return,
            Offered::New => {}
            Offered::Replaced => {
                let standing = self.standing(resource, &item.name);
                self.set_standing(resource, &item.name, Standing::Absent);
                self.remove(resource, &item.name, standing);
            }
        }
        let Item {
            name,
            version,
            outcome,
            ..
        } = item;
        match outcome {
            Outcome::Object { object, remarks } => {
                self.tell(resource, &name, remarks);
                self.take_good(resource, name, version, object);
            }
            Outcome::Bad(bad) => self.take_bad(resource, &name, bad),
            // Our own requests name the kind.
            Outcome::Ignored { remarks, .. } => self.tell(resource, &name, remarks),
        }
    }

    fn take_good(&mut self, resource: Resource, name: Box<str>, version: u64, object: Object) {
        let standing = self.standing(resource, &name);
        match self.place(&object, standing) {
            PodPlace::Nowhere => {
                self.set_standing(resource, &name, Standing::Absent);
                self.remove(resource, &name, standing);
            }
            PodPlace::Waits => {
                let since = self
                    .waiting
                    .get(&name)
                    .map_or(version, |waiting| waiting.since.min(version));
                self.waiting.insert(name, Waiting { since, object });
            }
            PodPlace::In { is_let_in } => {
                // A policy may have the name of a pod that waits.
                if resource == Resource::Pod {
                    self.waiting.remove(&name);
                }
                self.put(resource, &name, object, is_let_in);
            }
        }
    }

    /// What becomes of a good object; everything but a pod is in force.
    fn place(&self, object: &Object, standing: Standing) -> PodPlace {
        let (Some(node), Object::Endpoint(pod)) = (&self.node, object) else {
            return PodPlace::In { is_let_in: true };
        };
        let was_let_in = matches!(
            standing,
            Standing::Good {
                is_let_in: true,
                ..
            }
        );
        match &pod.node {
            // It has no address before it has a node.
            None => PodPlace::Nowhere,
            Some(other) if other != node && !pod.is_workload() => PodPlace::Nowhere,
            Some(other) if other != node => PodPlace::In { is_let_in: false },
            Some(_) if !pod.is_workload() => PodPlace::In {
                is_let_in: was_let_in,
            },
            Some(_) if was_let_in => PodPlace::In { is_let_in: true },
            Some(_) => PodPlace::Waits,
        }
    }

    fn put(&mut self, resource: Resource, name: &str, object: Object, is_let_in: bool) {
        let meaning = hash(&object);
        let before = self.standing(resource, name);
        self.set_standing(resource, name, Standing::Good { meaning, is_let_in });
        let is_same = matches!(before, Standing::Good { meaning: known, .. } if known == meaning);
        if !is_same {
            self.emit(Update::Upsert(object));
        }
    }

    fn count_malformed(&mut self, resource: Resource) {
        let malformed = &mut self.step.tally.malformed;
        *malformed.entry(resource.kind().name()).or_default() += 1;
    }

    fn take_bad(&mut self, resource: Resource, name: &str, bad: BadObject) {
        self.count_malformed(resource);
        let standing = self.standing(resource, name);
        // Of a pod that waits a good version is known too, which stays as it is.
        let waits = resource == Resource::Pod && self.waiting.contains_key(name);
        let has_good = matches!(standing, Standing::Good { .. }) || waits;
        if let Decision::StandIn(policy) = decide(has_good, &bad)
            && let Some(ObjectKey::Policy(id)) = resource.key(name)
        {
            self.stand_in(resource, name, id, policy.clone());
        }
        self.tell(resource, name, bad.faults);
    }

    fn stand_in(&mut self, resource: Resource, name: &str, id: PolicyId, policy: Policy) {
        let object = Object::Policy(Policy { id, ..policy });
        let meaning = hash(&object);
        let stand_in = Standing::StandIn { meaning };
        if self.standing(resource, name) != stand_in {
            self.set_standing(resource, name, stand_in);
            self.emit(Update::Upsert(object));
        }
    }

    fn remove_all(&mut self, resource: Resource, gone: Vec<(Box<str>, Standing)>) {
        for (name, standing) in gone {
            self.remove(resource, &name, standing);
        }
    }

    /// An object is gone of which consumers hold this.
    fn remove(&mut self, resource: Resource, name: &str, standing: Standing) {
        self.tell(resource, name, Vec::new());
        if resource == Resource::Pod {
            self.waiting.remove(name);
        }
        if standing != Standing::Absent {
            // Of an entry that is still there the standing is reset by the caller.
            if !self.collection(resource).entries.contains_key(name) {
                self.objects -= 1;
            }
            if let Some(key) = resource.key(name) {
                self.emit(Update::Remove(key));
            }
        }
    }

    fn standing(&self, resource: Resource, name: &str) -> Standing {
        let entry = self
            .collections
            .get(&resource)
            .and_then(|collection| collection.entries.get(name));
        entry.map(|entry| entry.standing).unwrap_or_default()
    }

    fn set_standing(&mut self, resource: Resource, name: &str, standing: Standing) {
        if let Some(entry) = self.collection(resource).entries.get_mut(name) {
            let before = std::mem::replace(&mut entry.standing, standing);
            self.objects += usize::from(standing != Standing::Absent);
            self.objects -= usize::from(before != Standing::Absent);
        }
    }

    fn emit(&mut self, update: Update) {
        let Some(held) = &mut self.held else {
            self.step.updates.push(update);
            return;
        };
        match update {
            Update::Upsert(object) => {
                held.insert(object.key(), Update::Upsert(object));
            }
            // Nobody has heard of it.
            Update::Remove(key) => {
                held.remove(&key);
            }
        }
    }

    fn tell(&mut self, resource: Resource, name: &str, mut faults: Vec<Fault>) {
        faults.retain(|fault| fault.severity != Severity::Note);
        self.step.is_news |= self.faults.set(resource, name, faults);
    }

    /// Lets in the pods whose time has come, and asks for what the others miss.
    fn let_in(&mut self) {
        let mut admitted = Vec::new();
        let mut missing: BTreeMap<(Resource, Box<str>), u64> = BTreeMap::new();
        // Until the pods were listed again, nothing is known of a restored store.
        let dated = |waiting: &Waiting| waiting.since != u64::MAX;
        for (name, waiting) in self.waiting.iter().filter(|(_, waiting)| dated(waiting)) {
            let namespace = Resource::Pod.partition(name);
            let mut is_known = true;
            for resource in Resource::BEFORE_PODS {
                let partition = if resource == Resource::ClusterNetworkPolicy {
                    ""
                } else {
                    namespace
                };
                if self.collections[&resource].known_to(partition) >= waiting.since {
                    continue;
                }
                is_known = false;
                let at_least = missing.entry((resource, partition.into())).or_default();
                *at_least = waiting.since.max(*at_least);
            }
            if is_known {
                admitted.push(name.clone());
            }
        }
        for name in admitted {
            if let Some(waiting) = self.waiting.remove(&name) {
                self.put(Resource::Pod, &name, waiting.object, true);
            }
        }
        for ((resource, partition), at_least) in missing {
            if !self.reading.contains(&(resource, partition.clone())) {
                self.ask(resource, &partition, at_least, false);
            }
        }
    }

    fn ask(&mut self, resource: Resource, partition: &str, at_least: u64, is_delayed: bool) {
        self.reading.insert((resource, partition.into()));
        self.step.reads.push(Read {
            resource,
            partition: partition.into(),
            at_least,
            is_delayed,
            history: self.history,
        });
    }
}

/// What becomes of a pod.
enum PodPlace {
    /// It concerns nobody here.
    Nowhere,
    /// It is not let in yet.
    Waits,
    /// It is in force.
    In { is_let_in: bool },
}
