//! The calculation graph: updates in, table deltas out.
//!
//! [`CalcGraph::apply`] notes what an update touches; [`CalcGraph::flush`] recomputes only that:
//!
//! 1. the programmed addresses of this node that changed, and the rules that apply to them ([`local`]);
//! 2. from these the matchers in use ([`matcher`]), and the addresses that a new or dropped matcher meets;
//! 3. the signature, and so the class, of every touched address and block ([`class`], [`blocks`]);
//! 4. the allowed sets ([`compile`]) and entries ([`encode`]) of endpoints whose rules or classes changed;
//! 5. the batches that lead there ([`transition`]).
//!
//! When rules change while addresses change class, there are two steps: the addresses move to classes with copies
//! of their old verdicts, then the verdicts change (edge case 7).

mod blocks;
mod cidr;
mod class;
mod compile;
mod encode;
mod flush;
mod index;
mod local;
mod matcher;
mod port_space;
mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;

use crate::model::{
    Cluster, Direction, Endpoint, EndpointId, EndpointKind, Object, Policy, Update,
};
use crate::tables::{ClassId, Delta, Phase, Tables};
use blocks::Blocks;
use class::Classes;
use index::Index;
use local::{Local, Reader};
use matcher::Matchers;
use port_space::PortSpace;
use transition::{Profiles, Step, Written};

/// Compiles all policies of one node, incrementally.
#[derive(Debug)]
pub struct CalcGraph {
    cluster: Cluster,
    node: SmolStr,
    index: Index,
    matchers: Matchers,
    classes: Classes,
    blocks: Blocks,
    peer_class: FxHashMap<IpAddr, ClassId>,
    locals: BTreeMap<IpAddr, Programmed>,
    profiles: Profiles,
    pod_networks: BTreeSet<IpNet>,
    dirty: Dirty,
}

/// A programmed address with its tables.
#[derive(Debug)]
struct Programmed {
    local: Local,
    /// Ingress and egress, as [`Direction::BOTH`].
    sides: [Side; 2],
}

/// One direction of a programmed address.
#[derive(Clone, Debug)]
struct Side {
    /// What class 0 may use.
    base: PortSpace,
    /// What the classes may use for which that is not the base.
    allowed: BTreeMap<ClassId, Arc<PortSpace>>,
    written: Written,
}

/// What updates have touched since the last flush.
#[derive(Debug, Default)]
struct Dirty {
    /// Addresses whose class may be another one.
    peers: FxHashSet<IpAddr>,
    /// Addresses that may be programmed otherwise, or under other rules.
    locals: BTreeSet<IpAddr>,
    /// Names of ports that stand for other numbers.
    names: FxHashSet<SmolStr>,
    /// The node's own object.
    node: bool,
}

impl CalcGraph {
    /// An empty graph for the node of this name.
    pub fn new(node: impl Into<SmolStr>) -> Self {
        Self {
            cluster: Cluster::default(),
            node: node.into(),
            index: Index::default(),
            matchers: Matchers::default(),
            classes: Classes::default(),
            blocks: Blocks::default(),
            peer_class: FxHashMap::default(),
            locals: BTreeMap::new(),
            profiles: Profiles::default(),
            pod_networks: BTreeSet::new(),
            dirty: Dirty::default(),
        }
    }

    /// The state that it has been told.
    pub fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    /// Name of the node it compiles for.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Takes one change of the state. Cheap; the work is done by [`Self::flush`].
    pub fn apply(&mut self, update: Update) {
        let new = match &update {
            Update::Upsert(object) => Some(object.clone()),
            Update::Remove(_) => None,
        };
        let old = self.cluster.apply(update);
        if old == new {
            return;
        }
        for (object, is_new) in [(old, false), (new, true)] {
            match object {
                Some(Object::Endpoint(endpoint)) => self.touch_endpoint(&endpoint, is_new),
                Some(Object::Namespace(namespace)) => self.touch_namespace(&namespace.name),
                Some(Object::Policy(policy)) => self.touch_policy(&policy),
                Some(Object::Node(node)) => {
                    if is_new {
                        self.index.add_node(&node);
                    } else {
                        self.index.remove_node(&node);
                    }
                    self.dirty.peers.extend(node.addresses.iter().copied());
                    self.dirty.node |= node.name == self.node;
                }
                Some(Object::Interface(interface)) => {
                    if is_new {
                        self.index.add_interface(&interface);
                    } else {
                        self.index.remove_interface(&interface);
                    }
                    self.dirty
                        .locals
                        .extend(interface.addresses.iter().copied());
                    for id in self.index.bound_to(&interface.name) {
                        let endpoint = self.cluster.endpoints.get(id);
                        self.dirty
                            .locals
                            .extend(endpoint.iter().flat_map(|e| &e.addresses));
                    }
                }
                None => {}
            }
        }
    }

    fn touch_endpoint(&mut self, endpoint: &Endpoint, is_new: bool) {
        if is_new {
            self.index.add_endpoint(endpoint, &mut self.dirty.names);
        } else {
            self.index.remove_endpoint(endpoint, &mut self.dirty.names);
        }
        for address in &endpoint.addresses {
            self.dirty.peers.insert(*address);
            if self.concerns_this_node(endpoint, *address) {
                self.dirty.locals.insert(*address);
            }
        }
    }

    /// Whether an address of an endpoint is, was or could be programmed here.
    fn concerns_this_node(&self, endpoint: &Endpoint, address: IpAddr) -> bool {
        let reader = self.reader();
        reader.is_here(endpoint)
            || self.locals.contains_key(&address)
            || !self.index.interfaces(address).is_empty()
    }

    fn touch_namespace(&mut self, name: &SmolStr) {
        self.matchers
            .rescan_namespace(name, self.cluster.namespaces.get(name));
        for endpoint in endpoints_of(&self.cluster, name) {
            self.dirty.peers.extend(endpoint.addresses.iter().copied());
            if self.reader().is_here(endpoint) {
                self.dirty.locals.extend(endpoint.addresses.iter().copied());
            }
        }
    }

    /// Marks the endpoints of this node that a version of a policy selects.
    fn touch_policy(&mut self, policy: &Policy) {
        let reader = self.reader();
        let selected: Vec<IpAddr> = self
            .locals
            .keys()
            .filter(|address| {
                let id = self.index.claimants(**address).first();
                let endpoint = id.and_then(|id| self.cluster.endpoints.get(id));
                endpoint.is_some_and(|endpoint| reader.is_selected(policy, endpoint))
            })
            .copied()
            .collect();
        self.dirty.locals.extend(selected);
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            cluster: &self.cluster,
            node: &self.node,
            index: &self.index,
        }
    }

    /// The class that an address has for the dataplane.
    fn class_of(&self, address: IpAddr) -> ClassId {
        self.peer_class
            .get(&address)
            .copied()
            .unwrap_or_else(|| self.blocks.class_of(address))
    }

    /// Removes what only packets in flight could still read (verdicts of classes that no address has any more).
    /// The caller leaves at least one second between the last flush and this.
    pub fn collect(&mut self) -> Delta {
        let gone = self.classes.collect();
        let mut step = Step::new(&mut self.profiles);
        for (address, programmed) in &mut self.locals {
            for (direction, side) in Direction::BOTH.into_iter().zip(&mut programmed.sides) {
                let before = side.allowed.len();
                for class in &gone {
                    side.allowed.remove(class);
                }
                if side.allowed.len() == before {
                    continue;
                }
                // The base alone may be open now; state stays until rules change, which is no difference.
                let written = Written::of(&side.base, &side.allowed);
                step.change(direction, *address, Some(&side.written), Some(&written));
                side.written = written;
            }
        }
        Delta {
            phases: step.finish(),
        }
    }

    /// How many classes there are, those included that wait for [`Self::collect`].
    pub fn class_count(&self) -> usize {
        self.classes.iter().count()
    }

    /// The tables that are now wanted, whole.
    pub fn tables(&self) -> Tables {
        let mut phase = Phase::default();
        phase.peer_class.extend(
            self.peer_class
                .iter()
                .map(|(address, class)| (*address, Some(*class))),
        );
        phase.cidr_class.extend(
            self.blocks
                .written()
                .iter()
                .map(|(net, class)| (*net, Some(*class))),
        );
        phase
            .pod_networks
            .extend(self.pod_networks.iter().map(|network| (*network, Some(()))));
        let profiles = self
            .profiles
            .iter()
            .map(|(id, profile)| (id, Some(profile.clone())));
        phase.profiles.extend(profiles);
        let mut scratch = Profiles::default();
        let mut step = Step::new(&mut scratch);
        for (address, programmed) in &self.locals {
            phase
                .bindings
                .insert(programmed.local.binding.clone(), Some(()));
            for (direction, side) in Direction::BOTH.into_iter().zip(&programmed.sides) {
                step.change(direction, *address, None, Some(&side.written));
            }
        }
        let mut tables = Tables::default();
        tables.apply(&phase);
        step.finish().iter().for_each(|phase| tables.apply(phase));
        tables
    }
}

/// The endpoints of a namespace.
fn endpoints_of<'c>(
    cluster: &'c Cluster,
    namespace: &SmolStr,
) -> impl Iterator<Item = &'c Endpoint> + use<'c> {
    let of = |kind| {
        let first = EndpointId {
            kind,
            namespace: namespace.clone(),
            name: SmolStr::default(),
        };
        let namespace = namespace.clone();
        let rest = cluster.endpoints.range(first..);
        rest.take_while(move |(id, _)| id.kind == kind && id.namespace == namespace)
            .map(|(_, endpoint)| endpoint)
    };
    of(EndpointKind::Pod).chain(of(EndpointKind::WorkloadEndpoint))
}
