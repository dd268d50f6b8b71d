//! The calculation graph: updates in, table deltas out.
//!
//! [`CalcGraph::apply`] notes what an update touches; [`CalcGraph::flush`] recomputes only that:
//!
//! 1. the programmed addresses of this node that changed, and the rules that apply to them ([`local`], [`share`]);
//! 2. from these the matchers in use ([`matcher`]), and the addresses that a new or dropped matcher meets;
//!    blocks that are too much for one node are refused ([`limit`]);
//! 3. the signature, and so the class, of every touched address and block ([`class`], [`blocks`]);
//! 4. the allowed sets ([`compile`], [`side`]) and entries ([`encode`]) where rules or classes changed;
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
mod identities;
mod index;
mod limit;
mod local;
mod matcher;
mod moves;
mod pool;
mod port_space;
mod share;
mod side;
mod transition;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};
use smol_str::SmolStr;

use crate::model::{
    Cluster, Direction, Endpoint, EndpointId, EndpointKind, InterfaceName, MacAddress, Object,
    ObservedInterface, Policy, Update,
};
use crate::tables::{Binding, ClassId, Delta, Phase, Tables};
use blocks::Blocks;
use class::Classes;
use compile::MatcherId;
pub use identities::Doubt;
use index::Index;
pub use limit::{BLOCK_ENTRIES, overlap};
use local::{Local, Reader};
use matcher::Matchers;
use pool::Pool;
use side::Sides;
use transition::{Profiles, Step};

/// Why a number could not be given. None is ever given twice, and whoever changes many rules again and again takes
/// four billion of them in some days. Then the process ends, which leaves its rules in force, and the next one begins
/// anew; a number with two meanings would let packets pass.
const USED_UP: &str = "the numbers of this process are used up";

/// Addresses that one [`CalcGraph::collect`] moves between classes that mean the same.
const LEFTOVERS: usize = 4_096;

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
    locals: BTreeMap<IpAddr, Local>,
    sides: Sides,
    profiles: Profiles,
    pool: Pool,
    pod_networks: BTreeSet<IpNet>,
    /// Entries of all blocks that are taken.
    block_entries: usize,
    /// Whether what nodes claim, or others of that, has changed since somebody asked.
    are_claims_stale: bool,
    /// Matchers whose blocks are too much, sorted.
    refused: Vec<MatcherId>,
    dirty: Dirty,
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
            sides: Sides::default(),
            profiles: Profiles::default(),
            pool: Pool::default(),
            pod_networks: BTreeSet::new(),
            block_entries: BLOCK_ENTRIES,
            are_claims_stale: false,
            refused: Vec::new(),
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

    /// Takes one change of the state and keeps a compact copy of the object. Cheap; the work is done by
    /// [`Self::flush`].
    pub fn apply(&mut self, update: &Update) {
        let (old, new) = match update {
            Update::Upsert(object) => {
                let copy = self.pool.copy(object);
                (self.cluster.apply(Update::Upsert(copy)), Some(object))
            }
            Update::Remove(_) => (self.cluster.apply(update.clone()), None),
        };
        if old.as_ref() == new {
            return;
        }
        if let Some(old) = &old {
            self.touch(old, false);
        }
        if let Some(new) = new {
            self.touch(new, true);
        }
    }

    /// Notes what a version of an object concerns that has come or gone.
    fn touch(&mut self, object: &Object, is_new: bool) {
        match object {
            Object::Endpoint(endpoint) => self.touch_endpoint(endpoint, is_new),
            Object::Namespace(namespace) => self.touch_namespace(&namespace.name),
            Object::Policy(policy) => self.touch_policy(policy),
            Object::Node(node) => {
                if is_new {
                    self.index.add_node(node);
                }
                self.are_claims_stale = true;
                let concerned = self.index.identities().concerned(node);
                self.dirty.peers.extend(concerned);
                if !is_new {
                    self.index.remove_node(node);
                }
                self.dirty.node |= node.name == self.node;
            }
            Object::Interface(interface) => {
                if is_new {
                    self.index.add_interface(interface);
                } else {
                    self.index.remove_interface(interface);
                }
                self.touch_interface(interface);
            }
        }
    }

    /// Marks what is behind an interface, and behind those that show a hardware address of it.
    fn touch_interface(&mut self, interface: &ObservedInterface) {
        self.mark_behind(interface);
        let bound = self.index.bound_to(&interface.name).iter();
        let bound = bound.filter_map(|id| self.cluster.endpoints.get(id));
        let addresses = interface.addresses.iter();
        let claimants = addresses.flat_map(|address| self.index.claimants(*address));
        let named = bound.chain(claimants.map(AsRef::as_ref));
        let named = named.filter_map(|endpoint| endpoint.mac);
        let macs: BTreeSet<MacAddress> = named.chain(interface.mac).collect();
        for mac in macs {
            self.mark_showing(mac);
        }
    }

    /// Marks the addresses behind an interface.
    fn mark_behind(&mut self, interface: &ObservedInterface) {
        let locals = &mut self.dirty.locals;
        locals.extend(interface.addresses.iter().copied());
        for id in self.index.bound_to(&interface.name) {
            let endpoint = self.cluster.endpoints.get(id);
            locals.extend(endpoint.iter().flat_map(|e| &e.addresses));
        }
    }

    /// Marks the addresses behind every interface that shows a hardware address.
    fn mark_showing(&mut self, mac: MacAddress) {
        for index in self.index.showing(mac).to_vec() {
            if let Some(interface) = self.cluster.interfaces.get(&index).cloned() {
                self.mark_behind(&interface);
            }
        }
    }

    fn touch_endpoint(&mut self, endpoint: &Endpoint, is_new: bool) {
        if is_new {
            let namespaces = &self.cluster.namespaces;
            let is_known = namespaces.contains_key(&endpoint.id.namespace);
            let names = &mut self.dirty.names;
            if let Some(endpoint) = self.cluster.endpoints.shared(&endpoint.id) {
                self.index.add_endpoint(endpoint, is_known, names);
            }
        } else {
            self.index.remove_endpoint(endpoint, &mut self.dirty.names);
        }
        if let Some(mac) = endpoint.mac {
            self.mark_showing(mac);
        }
        for address in &endpoint.addresses {
            self.are_claims_stale |= self.index.identities().is_claimed(*address);
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
        let namespace = self.cluster.namespaces.get(name);
        self.matchers.rescan_namespace(name, namespace);
        self.index.note_namespace(name, namespace.is_some());
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
                let endpoint = self.index.claimants(**address).first();
                endpoint.is_some_and(|endpoint| reader.is_selected(policy, endpoint))
            })
            .copied()
            .collect();
        self.dirty.locals.extend(selected);
    }

    /// Claims of nodes that are not believed or that others make, too; `None` if none of them has changed since this was
    /// asked last.
    pub fn new_doubts(&mut self) -> Option<Vec<Doubt>> {
        let identities = self.index.identities();
        std::mem::take(&mut self.are_claims_stale)
            .then(|| identities.doubts(|address| self.index.claimants(address)))
    }

    fn reader(&self) -> Reader<'_> {
        Reader {
            cluster: &self.cluster,
            node: &self.node,
            index: &self.index,
        }
    }

    /// Tidies up what a flush leaves behind: verdicts of classes that no address has any more, which only packets in
    /// flight could still read, and classes that mean the same as others. The caller leaves at least one second
    /// between the last flush and this, and repeats it until nothing comes.
    pub fn collect(&mut self) -> Delta {
        let gone = self.classes.collect();
        let rewritten = self.sides.forget(&gone);
        let mut profiles = std::mem::take(&mut self.profiles);
        let mut step = Step::new(&mut profiles);
        self.rewrite(&mut step, &rewritten, |_| true);
        for (address, class) in self.leftovers() {
            self.classes.leave(class);
            let signature = self.classes.signature(class).cloned().unwrap_or_default();
            let (canonical, _) = self.classes.canonical(&signature);
            let block = self.blocks.class_of(address);
            let wanted = (!self.classes.are_alike(canonical, block)).then_some(canonical);
            match wanted {
                Some(class) => {
                    self.classes.join(class);
                    self.peer_class.insert(address, class);
                }
                None => {
                    self.peer_class.remove(&address);
                }
            }
            step.last.peer_class.insert(address, wanted);
        }
        let phases = step.finish();
        self.profiles = profiles;
        Delta { phases }
    }

    /// Some of the addresses whose class is not the canonical one of its signature.
    fn leftovers(&self) -> Vec<(IpAddr, ClassId)> {
        let all = self.classes.iter().map(|(class, _)| class);
        let classes: FxHashSet<ClassId> = all
            .filter(|class| self.classes.is_leftover(*class))
            .collect();
        if classes.is_empty() {
            return Vec::new();
        }
        let concerned = self.peer_class.iter();
        concerned
            .filter(|(_, class)| classes.contains(class))
            .take(LEFTOVERS)
            .map(|(address, class)| (*address, *class))
            .collect()
    }

    /// Whose an address is and where it is bound, as the last flush left it; `None` where it is not to be programmed
    /// here.
    pub fn binding(&self, address: IpAddr) -> Option<(&EndpointId, &Binding)> {
        let local = self.locals.get(&address)?;
        let [endpoint] = self.index.claimants(address) else {
            return None;
        };
        Some((&endpoint.id, &local.binding))
    }

    /// The interfaces that live endpoints of this node name.
    pub fn named_interfaces(&self) -> impl Iterator<Item = &InterfaceName> {
        let is_here = |id: &EndpointId| {
            let endpoint = self.cluster.endpoints.get(id);
            endpoint.is_some_and(|endpoint| self.reader().is_here(endpoint))
        };
        self.index
            .named_interfaces()
            .filter(move |(_, ids)| ids.iter().any(is_here))
            .map(|(name, _)| name)
    }

    /// The addresses that are programmed here with their owners, as the last flush left them.
    pub fn bound_addresses(&self) -> impl Iterator<Item = (IpAddr, &EndpointId)> {
        self.locals
            .keys()
            .filter_map(|address| Some((*address, self.binding(*address)?.0)))
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
                .map(|(range, class)| (*range, Some(*class))),
        );
        phase
            .pod_networks
            .extend(self.pod_networks.iter().map(|network| (*network, Some(()))));
        let profiles = self
            .profiles
            .iter()
            .map(|(id, profile)| (id, Some(profile.clone())));
        phase.profiles.extend(profiles);
        let mut scratch = self.profiles.clone();
        let mut step = Step::new(&mut scratch);
        for (address, local) in &self.locals {
            phase.bindings.insert(local.binding.clone(), Some(()));
            for (direction, side) in Direction::BOTH.into_iter().zip(local.sides) {
                let written = self.sides.written(side);
                step.change(direction, *address, None, Some(written));
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
    let namespace = namespace.clone();
    let of = move |kind| {
        let first = EndpointId {
            kind,
            namespace: namespace.clone(),
            name: SmolStr::default(),
        };
        let namespace = namespace.clone();
        let rest = cluster.endpoints.range(&first..);
        rest.take_while(move |e| e.id.kind == kind && e.id.namespace == namespace)
    };
    EndpointKind::ALL.into_iter().flat_map(of)
}
