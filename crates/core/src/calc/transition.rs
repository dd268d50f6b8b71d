//! From what is written to what shall be, in batches that no packet can fall between.
//!
//! A packet reads state, class, exact, `class_protocol`, `class_any`, any, profile, default, in this order and each
//! with the newest generation. So, inside one endpoint and direction: entries that are read earlier are written
//! in an earlier batch than those that are read later, and an entry is removed only when everything that is read
//! before it is written. State is read first: an endpoint that becomes open flips before its entries go, one that
//! becomes restricted gets all at once.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use rustc_hash::FxHashMap;

use super::encode::{Encoded, encode};
use super::port_space::PortSpace;
use crate::model::Direction;
use crate::tables::{
    Changes, ClassId, ClassKey, ClassProtocolKey, DirectionDelta, EndpointState, ExactKey, Phase,
    PortKey, Profile, ProfileId,
};

/// What the tables hold of one endpoint and direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Written {
    /// Nothing but the state.
    Open,
    /// These entries.
    Restricted(Box<Encoded>),
}

impl Written {
    /// What shall be written for allowed sets: that of class 0, and those that differ from it.
    pub(super) fn of(base: &PortSpace, classes: &BTreeMap<ClassId, Arc<PortSpace>>) -> Self {
        if base.is_full() && classes.is_empty() {
            Self::Open
        } else {
            Self::Restricted(Box::new(encode(base, classes)))
        }
    }

    fn state(&self) -> EndpointState {
        match self {
            Self::Open => EndpointState::Open,
            Self::Restricted(_) => EndpointState::Restricted,
        }
    }

    fn encoded(&self) -> Option<&Encoded> {
        match self {
            Self::Open => None,
            Self::Restricted(encoded) => Some(encoded),
        }
    }
}

/// Profiles that endpoints point to, counted.
#[derive(Clone, Debug, Default)]
pub(super) struct Profiles {
    numbers: FxHashMap<Arc<Profile>, ProfileId>,
    /// With the number of endpoints and directions.
    known: FxHashMap<ProfileId, (Arc<Profile>, u32)>,
    last: u64,
}

impl Profiles {
    /// All of them.
    pub(super) fn iter(&self) -> impl Iterator<Item = (ProfileId, &Arc<Profile>)> {
        self.known.iter().map(|(id, (profile, _))| (*id, profile))
    }

    fn number(&self, profile: &Profile) -> Option<ProfileId> {
        self.numbers.get(profile).copied()
    }

    /// The number of a profile, and whether it was there before.
    fn enter(&mut self, profile: &Arc<Profile>) -> (ProfileId, bool) {
        if let Some(id) = self.number(profile) {
            return (id, true);
        }
        self.last += 1;
        let id = ProfileId(self.last);
        self.numbers.insert(profile.clone(), id);
        self.known.insert(id, (profile.clone(), 0));
        (id, false)
    }

    fn users(&mut self, id: ProfileId) -> Option<&mut u32> {
        self.known.get_mut(&id).map(|(_, users)| users)
    }

    /// Removes a profile if nobody uses it; otherwise returns it.
    fn sweep(&mut self, id: ProfileId) -> Option<Arc<Profile>> {
        let (profile, users) = self.known.get(&id)?;
        if *users > 0 {
            return Some(profile.clone());
        }
        let (profile, _) = self.known.remove(&id)?;
        self.numbers.remove(&profile);
        None
    }
}

/// The batches of one step.
pub(super) struct Step<'p> {
    phases: Vec<Phase>,
    /// What must not come before anything else of the step.
    pub(super) last: Phase,
    profiles: &'p mut Profiles,
    /// Profiles that were pointed to or left, and whether they were defined before.
    touched: BTreeMap<ProfileId, bool>,
    /// Profiles for the middle of the step.
    bridges: BTreeMap<ProfileId, Arc<Profile>>,
}

/// Changes of one table, split.
struct Layer {
    upserts: DirectionDelta,
    removals: DirectionDelta,
}

fn split<K: Ord + Copy, V: Copy + PartialEq, F: Ord>(
    old: &BTreeMap<K, V>,
    new: &BTreeMap<K, V>,
    key: impl Fn(K) -> F,
    table: impl Fn(&mut DirectionDelta) -> &mut Changes<F, V>,
) -> Layer {
    let mut layer = Layer {
        upserts: DirectionDelta::default(),
        removals: DirectionDelta::default(),
    };
    let upserts = new.iter().filter(|(k, v)| old.get(k) != Some(v));
    table(&mut layer.upserts).extend(upserts.map(|(k, v)| (key(*k), Some(*v))));
    let removals = old.keys().filter(|k| !new.contains_key(k));
    table(&mut layer.removals).extend(removals.map(|k| (key(*k), None)));
    layer
}

/// The changes of one endpoint, in reading order.
fn layers(
    endpoint: IpAddr,
    old: Option<&Encoded>,
    new: Option<&Encoded>,
    profiles: &Profiles,
) -> [Layer; 6] {
    let none = Encoded::empty();
    let (before, after) = (old.unwrap_or(&none), new.unwrap_or(&none));
    let single = |value: Option<ProfileId>| value.map(|id| ((), id)).into_iter().collect();
    let profile = |encoded: &Encoded| {
        let profile = encoded.profile.as_ref();
        single(profile.and_then(|profile| profiles.number(profile)))
    };
    let default = |encoded: Option<&Encoded>| {
        encoded
            .map(|encoded| ((), encoded.default))
            .into_iter()
            .collect::<BTreeMap<(), _>>()
    };
    let exact = |(class, protocol, port)| ExactKey {
        endpoint,
        class,
        protocol,
        port,
    };
    [
        split(&before.exact, &after.exact, exact, |delta| &mut delta.exact),
        split(
            &before.class_protocol,
            &after.class_protocol,
            |(class, protocol)| ClassProtocolKey {
                endpoint,
                class,
                protocol,
            },
            |delta| &mut delta.class_protocol,
        ),
        split(
            &before.class_any,
            &after.class_any,
            |class| ClassKey { endpoint, class },
            |delta| &mut delta.class_any,
        ),
        split(
            &before.any,
            &after.any,
            |(protocol, port)| PortKey {
                endpoint,
                protocol,
                port,
            },
            |delta| &mut delta.any,
        ),
        split::<(), ProfileId, IpAddr>(
            &profile(before),
            &profile(after),
            |()| endpoint,
            |delta| &mut delta.profile,
        ),
        split(
            &default(old),
            &default(new),
            |()| endpoint,
            |delta| &mut delta.default,
        ),
    ]
}

fn merge(into: &mut DirectionDelta, from: DirectionDelta) {
    into.state.extend(from.state);
    into.exact.extend(from.exact);
    into.class_protocol.extend(from.class_protocol);
    into.class_any.extend(from.class_any);
    into.any.extend(from.any);
    into.profile.extend(from.profile);
    into.default.extend(from.default);
}

impl<'p> Step<'p> {
    /// A step without changes.
    pub(super) fn new(profiles: &'p mut Profiles) -> Self {
        Self {
            phases: Vec::new(),
            last: Phase::default(),
            profiles,
            touched: BTreeMap::new(),
            bridges: BTreeMap::new(),
        }
    }

    fn phase(&mut self, index: usize, direction: Direction) -> &mut DirectionDelta {
        if self.phases.len() <= index {
            self.phases.resize_with(index + 1, Phase::default);
        }
        self.phases[index].direction_mut(direction)
    }

    /// One endpoint's direction changes; `None` is an address that is not programmed.
    pub(super) fn change(
        &mut self,
        direction: Direction,
        endpoint: IpAddr,
        old: Option<&Written>,
        new: Option<&Written>,
    ) {
        if old == new {
            return;
        }
        let (before, after) = (
            old.and_then(Written::encoded),
            new.and_then(Written::encoded),
        );
        self.count_profiles(before, after);
        let mut layers = layers(endpoint, before, after, self.profiles);
        let state = new.map(Written::state);
        match (old.map(Written::state), state) {
            // A newcomer, and one that goes: state is read first, so all at once.
            (None, _) | (_, None) => {
                let last = self.last.direction_mut(direction);
                last.state.insert(endpoint, state);
                for Layer { upserts, removals } in layers {
                    merge(last, upserts);
                    merge(last, removals);
                }
            }
            (Some(EndpointState::Open), _) => {
                let phase = self.phase(0, direction);
                phase.state.insert(endpoint, state);
                for layer in layers {
                    merge(phase, layer.upserts);
                }
            }
            (Some(EndpointState::Restricted), Some(EndpointState::Open)) => {
                self.phase(0, direction).state.insert(endpoint, state);
                let phase = self.phase(1, direction);
                for layer in layers {
                    merge(phase, layer.removals);
                }
            }
            (Some(EndpointState::Restricted), Some(EndpointState::Restricted)) => {
                if let (Some(before), Some(after)) = (before, after) {
                    self.bridge(endpoint, before, after, &mut layers);
                }
                self.change_layers(direction, layers);
            }
        }
    }

    /// A profile is one element with many rules. When it changes together with the default, what only the old
    /// one decides must not fall to the old default: until the new default is there, both follow one another.
    fn bridge(
        &mut self,
        endpoint: IpAddr,
        before: &Encoded,
        after: &Encoded,
        layers: &mut [Layer; 6],
    ) {
        let (Some(old), Some(new)) = (&before.profile, &after.profile) else {
            return;
        };
        if old == new || before.default == after.default {
            return;
        }
        let rules = new.rules.iter().chain(&old.rules).cloned().collect();
        let bridge = Arc::new(Profile { rules });
        let id = self.enter(&bridge);
        layers[4].upserts.profile.insert(endpoint, Some(id));
        let last = self.profiles.number(new);
        layers[5].upserts.profile.insert(endpoint, last);
        self.bridges.insert(id, bridge);
    }

    /// The number of a profile, which is touched by this step.
    fn enter(&mut self, profile: &Arc<Profile>) -> ProfileId {
        let (id, was_defined) = self.profiles.enter(profile);
        self.touched.entry(id).or_insert(was_defined);
        id
    }

    fn change_layers(&mut self, direction: Direction, layers: [Layer; 6]) {
        let mut next = 0;
        let mut last_upserts = None;
        let mut removals = Vec::new();
        for (depth, layer) in layers.into_iter().enumerate() {
            if !layer.upserts.is_empty() {
                merge(self.phase(next, direction), layer.upserts);
                next += 1;
                last_upserts = Some(depth);
            }
            removals.push(layer.removals);
        }
        // All together: what one entry hid must not come to light before it is gone as well.
        let deepest = removals.iter().rposition(|removals| !removals.is_empty());
        let index = if deepest > last_upserts {
            next
        } else {
            next.saturating_sub(1)
        };
        for removals in removals.into_iter().filter(|removals| !removals.is_empty()) {
            merge(self.phase(index, direction), removals);
        }
    }

    fn count_profiles(&mut self, old: Option<&Encoded>, new: Option<&Encoded>) {
        for (encoded, is_new) in [(new, true), (old, false)] {
            let Some(profile) = encoded.and_then(|encoded| encoded.profile.as_ref()) else {
                continue;
            };
            let id = self.enter(profile);
            if let Some(users) = self.profiles.users(id) {
                if is_new {
                    *users += 1;
                } else {
                    *users -= 1;
                }
            }
        }
    }

    /// The batches in order, none empty.
    pub(super) fn finish(mut self) -> Vec<Phase> {
        for (id, was_defined) in std::mem::take(&mut self.touched) {
            let bridge = self.bridges.remove(&id);
            let kept = self.profiles.sweep(id);
            let is_gone = kept.is_none();
            if let Some(profile) = kept.or(bridge)
                && !was_defined
            {
                let first = self.phases.first_mut().unwrap_or(&mut self.last);
                first.profiles.insert(id, Some(profile));
                if is_gone {
                    self.last.profiles.insert(id, None);
                }
            } else if was_defined && is_gone {
                self.last.profiles.insert(id, None);
            }
        }
        let mut phases = self.phases;
        match phases.last_mut() {
            Some(phase) => {
                merge(&mut phase.ingress, self.last.ingress);
                merge(&mut phase.egress, self.last.egress);
                phase.peer_class.extend(self.last.peer_class);
                phase.cidr_class.extend(self.last.cidr_class);
                phase.profiles.extend(self.last.profiles);
                phase.bindings.extend(self.last.bindings);
                phase.pod_networks.extend(self.last.pod_networks);
            }
            None => phases.push(self.last),
        }
        phases.retain(|phase| !phase.is_empty());
        phases
    }
}
