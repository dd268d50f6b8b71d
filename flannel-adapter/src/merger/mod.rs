//! Puts together what the sources see: which endpoints there are on this node, who they are, and where sources contradict
//! each other. Does no I/O.
//!
//! Interface facts go by the interface's number, identity goes by address. What holds is a function of what the sources see
//! now, whatever the order in which they told; only the [tombstones](Merger::gone) remember what was, and of a hardware address
//! that nobody told counts who had it first.

mod conflict;
mod view;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use crate::source::{Delta, Identity, InterfaceKind, Observation, SourceName};

pub use conflict::Conflict;

/// Tombstones that are kept; the oldest go first.
const MOST_TOMBSTONES: usize = 4_096;

/// How far an endpoint has got. Only in the last state does anything reach it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum EndpointState {
    /// Nobody knows who it is, or sources contradict each other: dropped.
    Unknown,
    /// It is known who it is.
    Identified,
    /// The kernel's tables know its addresses.
    Programmed,
}

/// What lives behind an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MergedEndpoint {
    /// Number of the interface.
    pub index: u32,
    /// Its name.
    pub name: SmolStr,
    /// Its kind.
    pub kind: InterfaceKind,
    /// The bridge that it is a port of.
    pub bridge: Option<SmolStr>,
    /// Hardware address behind it.
    pub mac: Option<MacAddress>,
    /// Addresses behind it that are its alone, in order.
    pub addresses: Vec<IpAddr>,
    /// Who it is, if the sources here know. Kubernetes may know more.
    pub identity: Option<Identity>,
    /// Who makes such interfaces.
    pub provider: Option<SmolStr>,
    /// How far it has got.
    pub state: EndpointState,
}

/// An address that an endpoint had and nobody has now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tombstone {
    /// The address.
    pub address: IpAddr,
    /// Whose it was.
    pub identity: Option<Identity>,
}

/// What a look at everything changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergedChanges {
    /// Endpoints that are new or different.
    pub upserted: Vec<MergedEndpoint>,
    /// Numbers of interfaces that are gone.
    pub removed: Vec<u32>,
    /// Whether the contradictions are others than before.
    pub are_conflicts_changed: bool,
}

/// What holds for now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MergedView {
    /// Endpoints by the number of their interface.
    pub endpoints: BTreeMap<u32, MergedEndpoint>,
    /// Contradictions between sources.
    pub conflicts: BTreeSet<Conflict>,
    /// Observations of interfaces that are not there, such as leftovers of an earlier run.
    pub unmatched: usize,
}

/// Everything that the sources see, and what follows from it.
#[derive(Debug, Default)]
pub struct Merger {
    seen: BTreeMap<SourceName, BTreeMap<SmolStr, Observation>>,
    /// Addresses in the kernel's tables, with the interface to which they are bound.
    programmed: BTreeSet<(u32, IpAddr)>,
    view: MergedView,
    gone: BTreeMap<IpAddr, Tombstone>,
    /// Addresses of `gone`, the oldest first; those that came back are passed over.
    age: VecDeque<IpAddr>,
}

impl Merger {
    /// Takes over everything that a source sees.
    pub fn replace(
        &mut self,
        source: SourceName,
        observations: impl IntoIterator<Item = Observation>,
    ) {
        let by_key = observations
            .into_iter()
            .map(|seen| (seen.key.clone(), seen));
        self.seen.insert(source, by_key.collect());
    }

    /// Takes over a change. [`Delta::Lagged`] changes nothing: what was seen counts until the snapshot comes.
    pub fn apply(&mut self, source: SourceName, delta: Delta) {
        let seen = self.seen.entry(source).or_default();
        match delta {
            Delta::Seen(observation) => drop(seen.insert(observation.key.clone(), *observation)),
            Delta::Gone(key) => drop(seen.remove(&key)),
            Delta::Lagged => {}
        }
    }

    /// Takes over which addresses the kernel's tables hold, with the number of their interface.
    pub fn set_programmed(&mut self, programmed: BTreeSet<(u32, IpAddr)>) {
        self.programmed = programmed;
    }

    /// Looks at everything anew and tells what changed since the last time.
    pub fn refresh(&mut self) -> MergedChanges {
        let view = view::view(&self.seen, &self.programmed, &self.view);
        let before = std::mem::replace(&mut self.view, view);
        self.bury(&before);
        let now = &self.view;
        let is_news =
            |endpoint: &&MergedEndpoint| before.endpoints.get(&endpoint.index) != Some(*endpoint);
        MergedChanges {
            upserted: now.endpoints.values().filter(is_news).cloned().collect(),
            removed: before
                .endpoints
                .keys()
                .filter(|index| !now.endpoints.contains_key(index))
                .copied()
                .collect(),
            are_conflicts_changed: before.conflicts != now.conflicts,
        }
    }

    /// What holds since the last [`Self::refresh`].
    pub fn view(&self) -> &MergedView {
        &self.view
    }

    /// Addresses that endpoints had and nobody has now. Packets to them go nowhere until somebody has them again.
    pub fn gone(&self) -> impl Iterator<Item = &Tombstone> {
        self.gone.values()
    }

    /// Makes tombstones of the addresses that nobody has any more, and ends those of addresses that somebody has again.
    fn bury(&mut self, before: &MergedView) {
        let live: BTreeSet<IpAddr> = addresses(&self.view).map(|(address, _)| address).collect();
        self.gone.retain(|address, _| !live.contains(address));
        for (address, endpoint) in addresses(before) {
            if endpoint.state == EndpointState::Unknown || live.contains(&address) {
                continue;
            }
            let identity = endpoint.identity.clone();
            if self
                .gone
                .insert(address, Tombstone { address, identity })
                .is_none()
            {
                self.age.push_back(address);
            }
        }
        while self.gone.len() > MOST_TOMBSTONES || self.age.len() > 2 * MOST_TOMBSTONES {
            let Some(oldest) = self.age.pop_front() else {
                return;
            };
            // One that came back and went again stands behind, too.
            if !self.age.contains(&oldest) {
                self.gone.remove(&oldest);
            }
        }
    }
}

fn addresses(view: &MergedView) -> impl Iterator<Item = (IpAddr, &MergedEndpoint)> {
    let endpoints = view.endpoints.values();
    endpoints.flat_map(|endpoint| {
        endpoint
            .addresses
            .iter()
            .map(move |address| (*address, endpoint))
    })
}
