//! Addresses that pods were given by the CNI plugins, before the API says so.
//!
//! A pod's object lists no address before its containers run, and its address must be judged before that. What the
//! plugins said at ADD fills the gap: a claim makes its addresses the pod's own, as if the object listed them. It
//! proves nothing by itself: the pod's object must be there, be of this node, live, of the same uid; and the kernel
//! must show the address on the interface that the plugins made. The object's own list wins as soon as it says
//! something new.
//!
//! Nothing here reads a clock or the kernel: updates in, updates out.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use towpath_core::model::{
    Cluster, Endpoint, EndpointId, EndpointKind, InterfaceName, Object, ObjectKey,
    ObservedInterface, PodUid, Update,
};

/// Claims that are kept: several times the pods that a node may start at once.
pub(super) const MOST_CLAIMS: usize = 1_024;
/// How long a claim may lack its pod or its interface. ADD has failed long before that, and a DEL has come.
const PATIENCE: Duration = Duration::from_mins(1);

/// An interface of a container, in a network.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Attachment {
    pub(super) network: String,
    pub(super) container: String,
    pub(super) interface: String,
}

/// What the plugins said at ADD.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Claim {
    pub(super) attachment: Attachment,
    pub(super) pod: EndpointId,
    /// The pod's uid, where the runtime told one that we understand.
    pub(super) uid: Option<PodUid>,
    /// Sorted, without duplicates, not empty.
    pub(super) addresses: Vec<IpAddr>,
    /// Interfaces on the host's side: the pod's own, perhaps with its bridge.
    pub(super) host_interfaces: Vec<InterfaceName>,
}

impl Claim {
    /// Whether an object of the pod's name is this very pod.
    pub(super) fn is_of(&self, endpoint: &Endpoint) -> bool {
        match (self.uid, endpoint.uid) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        }
    }

    /// Whether the plugins made this interface for the pod. A result that tells of bridges only allows any.
    pub(super) fn allows(
        &self,
        interface: &InterfaceName,
        interfaces: &BTreeMap<u32, ObservedInterface>,
    ) -> bool {
        let is_bridge = |name: &InterfaceName| {
            let mut all = interfaces.values();
            all.any(|observed| observed.bridge.as_ref() == Some(name))
        };
        self.host_interfaces.contains(interface) || self.host_interfaces.iter().all(is_bridge)
    }
}

/// A claim and how far it has come.
#[derive(Clone, Debug)]
struct Held {
    claim: Claim,
    /// Counts up with each claim: of two containers of a pod the later one is the pod's.
    number: u64,
    at: Instant,
    /// What the pod's object listed when it was first seen with this claim: out of date from then on.
    replaced: Option<Vec<IpAddr>>,
    /// Whether its pod's object was there in this run of the agent.
    has_met: bool,
    /// Index of the interface that shows one of its addresses.
    seat: Option<u32>,
}

/// The claims of one pod.
#[derive(Clone, Debug, Default)]
struct OfPod {
    /// What the source lists for the pod; the cluster has what follows from it and the claims.
    listed: Vec<IpAddr>,
    held: Vec<Held>,
}

/// There are too many claims already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{MOST_CLAIMS} pods wait for their objects already")]
pub(super) struct TooMany;

/// A claim as it is kept over a restart of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) claim: Claim,
    pub(super) replaced: Option<Vec<IpAddr>>,
}

/// All claims of this node.
#[derive(Clone, Debug)]
pub(super) struct CniClaims {
    node: String,
    pods: BTreeMap<EndpointId, OfPod>,
    next_number: u64,
}

impl CniClaims {
    /// No claims, on the node of this name.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            pods: BTreeMap::new(),
            next_number: 0,
        }
    }

    /// Takes over what an earlier run of the agent kept, before anything else is told. The kernel has to show again
    /// what they claim.
    pub(super) fn restore(&mut self, kept: Vec<Kept>, now: Instant) {
        for Kept { claim, replaced } in kept.into_iter().take(MOST_CLAIMS) {
            self.hold(claim, replaced, now);
        }
    }

    /// What is to be kept over a restart.
    pub(super) fn kept(&self) -> Vec<Kept> {
        let held = self.pods.values().flat_map(|of_pod| &of_pod.held);
        let kept = held.map(|held| Kept {
            claim: held.claim.clone(),
            replaced: held.replaced.clone(),
        });
        kept.collect()
    }

    /// Whether something is claimed for a pod.
    pub(super) fn has(&self, pod: &EndpointId) -> bool {
        self.pods.contains_key(pod)
    }

    /// Whether the plugins have made the interface of this name for a pod with this address. A result that names bridges
    /// only says nothing of an interface.
    pub(super) fn allow(&self, address: IpAddr, interface: &InterfaceName) -> bool {
        let mut held = self.pods.values().flat_map(|of_pod| &of_pod.held);
        held.any(|held| {
            let claim = &held.claim;
            claim.addresses.contains(&address) && claim.host_interfaces.contains(interface)
        })
    }

    /// How many claims there are.
    pub(super) fn len(&self) -> usize {
        self.pods.values().map(|of_pod| of_pod.held.len()).sum()
    }

    /// Whether there is none.
    pub(super) fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// A pod was plugged in. An earlier claim of the same attachment is forgotten.
    pub(super) fn add(
        &mut self,
        claim: Claim,
        cluster: &Cluster,
        now: Instant,
    ) -> Result<Vec<Update>, TooMany> {
        let mut updates = self.delete(std::slice::from_ref(&claim.attachment), cluster);
        if self.len() >= MOST_CLAIMS {
            return Err(TooMany);
        }
        let pod = claim.pod.clone();
        if !self.pods.contains_key(&pod) {
            let listed = cluster.endpoints.get(&pod);
            let listed = listed.map(|endpoint| endpoint.addresses.clone());
            let listed = updates
                .iter()
                .find_map(|update| addresses_of(update, &pod))
                .or(listed);
            let listed = listed.unwrap_or_default();
            let held = Vec::new();
            self.pods.insert(pod.clone(), OfPod { listed, held });
        }
        self.hold(claim, None, now);
        // What the deletion changed of the same pod is changed again.
        updates.retain(|update| addresses_of(update, &pod).is_none());
        updates.extend(self.settle(&pod, cluster));
        Ok(updates)
    }

    fn hold(&mut self, claim: Claim, replaced: Option<Vec<IpAddr>>, at: Instant) {
        let number = self.next_number;
        self.next_number += 1;
        let of_pod = self.pods.entry(claim.pod.clone()).or_default();
        of_pod.held.push(Held {
            claim,
            number,
            at,
            replaced,
            has_met: false,
            seat: None,
        });
    }

    /// These attachments are gone.
    pub(super) fn delete(&mut self, gone: &[Attachment], cluster: &Cluster) -> Vec<Update> {
        self.retain(cluster, |held| !gone.contains(&held.claim.attachment))
    }

    /// Of this network only these containers and interfaces are left.
    pub(super) fn keep_only(
        &mut self,
        network: &str,
        valid: &BTreeSet<(String, String)>,
        cluster: &Cluster,
    ) -> Vec<Update> {
        self.retain(cluster, |held| {
            let Attachment {
                network: of,
                container,
                interface,
            } = &held.claim.attachment;
            of != network || valid.contains(&(container.clone(), interface.clone()))
        })
    }

    /// Forgets claims whose pod or interface has not come for long.
    pub(super) fn expire(&mut self, now: Instant, cluster: &Cluster) -> Vec<Update> {
        self.retain(cluster, |held| {
            let is_settled = held.seat.is_some() && held.has_met;
            is_settled || now.saturating_duration_since(held.at) < PATIENCE
        })
    }

    /// The source tells of an endpoint: what the graph is to be told instead.
    pub(super) fn source<'u>(&mut self, update: &'u Update, cluster: &Cluster) -> Cow<'u, Update> {
        match update {
            Update::Upsert(Object::Endpoint(endpoint)) => {
                let Some(of_pod) = self.pods.get_mut(&endpoint.id) else {
                    return Cow::Borrowed(update);
                };
                of_pod.listed.clone_from(&endpoint.addresses);
                let addresses = of_pod.effective(Some(endpoint), &cluster.interfaces, &self.node);
                self.forget_if_empty(&endpoint.id);
                if addresses == endpoint.addresses {
                    return Cow::Borrowed(update);
                }
                Cow::Owned(with_addresses(endpoint, addresses))
            }
            Update::Remove(ObjectKey::Endpoint(id)) => {
                if let Some(of_pod) = self.pods.get_mut(id) {
                    of_pod.listed.clear();
                    of_pod.effective(None, &cluster.interfaces, &self.node);
                    self.forget_if_empty(id);
                }
                Cow::Borrowed(update)
            }
            _ => Cow::Borrowed(update),
        }
    }

    /// Interfaces have changed, as the cluster now says: what follows.
    pub(super) fn interfaces(&mut self, cluster: &Cluster) -> Vec<Update> {
        let pods: Vec<EndpointId> = self.pods.keys().cloned().collect();
        pods.iter()
            .filter_map(|pod| self.settle(pod, cluster))
            .collect()
    }

    /// Forgets what is not to be kept, and tells what follows.
    fn retain(&mut self, cluster: &Cluster, keep: impl Fn(&Held) -> bool) -> Vec<Update> {
        let mut touched = Vec::new();
        for (id, of_pod) in &mut self.pods {
            let before = of_pod.held.len();
            of_pod.held.retain(&keep);
            if of_pod.held.len() != before {
                touched.push(id.clone());
            }
        }
        touched
            .iter()
            .filter_map(|pod| self.settle(pod, cluster))
            .collect()
    }

    /// Brings the pod's addresses in the cluster to what follows from the source and the claims.
    fn settle(&mut self, pod: &EndpointId, cluster: &Cluster) -> Option<Update> {
        let of_pod = self.pods.get_mut(pod)?;
        let endpoint = cluster.endpoints.get(pod);
        let addresses = of_pod.effective(endpoint, &cluster.interfaces, &self.node);
        self.forget_if_empty(pod);
        let endpoint = endpoint.filter(|endpoint| endpoint.addresses != addresses)?;
        Some(with_addresses(endpoint, addresses))
    }

    fn forget_if_empty(&mut self, pod: &EndpointId) {
        if self
            .pods
            .get(pod)
            .is_some_and(|of_pod| of_pod.held.is_empty())
        {
            self.pods.remove(pod);
        }
    }
}

impl OfPod {
    /// The addresses that are the pod's now. Claims that have become true or false for good are forgotten.
    fn effective(
        &mut self,
        endpoint: Option<&Endpoint>,
        interfaces: &BTreeMap<u32, ObservedInterface>,
        node: &str,
    ) -> Vec<IpAddr> {
        let listed = &self.listed;
        self.held.retain_mut(|held| {
            held.meet(endpoint, listed, node) == Fate::Stays && held.sit(interfaces)
        });
        let in_force = self
            .held
            .iter()
            .filter(|held| held.has_met && held.seat.is_some());
        match in_force.max_by_key(|held| held.number) {
            Some(held) => held.addresses(interfaces),
            None => self.listed.clone(),
        }
    }
}

/// What becomes of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Stays,
    Goes,
}

impl Held {
    /// Compares the claim with the pod's object and what that lists.
    ///
    /// 1. No object, an earlier one of the same name, one that is finished or elsewhere: a claim that has met its
    ///    pod goes; another waits for it.
    /// 2. Its own object, for the first time: what it lists, other than the claimed, is of an earlier sandbox.
    /// 3. Its own object lists nothing, or still the same: the claim stays.
    /// 4. It lists something new: the object speaks for itself, and the claim goes.
    fn meet(&mut self, endpoint: Option<&Endpoint>, listed: &[IpAddr], node: &str) -> Fate {
        let is_here = |endpoint: &Endpoint| {
            self.claim.is_of(endpoint)
                && endpoint.is_workload()
                && endpoint.node.as_deref() == Some(node)
        };
        if !endpoint.is_some_and(is_here) {
            return if self.has_met {
                Fate::Goes
            } else {
                Fate::Stays
            };
        }
        self.has_met = true;
        let is_confirmed = listed
            .iter()
            .any(|address| self.claim.addresses.contains(address));
        if is_confirmed {
            return Fate::Goes;
        }
        let replaced = self.replaced.get_or_insert_with(|| listed.to_vec());
        if listed.is_empty() || listed == replaced.as_slice() {
            Fate::Stays
        } else {
            Fate::Goes
        }
    }

    /// Finds the interface that shows the claim's addresses; `false` when it had one that does so no longer.
    fn sit(&mut self, interfaces: &BTreeMap<u32, ObservedInterface>) -> bool {
        let claim = &self.claim;
        let shows = |interface: &ObservedInterface| {
            let mut addresses = claim.addresses.iter();
            addresses.any(|address| interface.addresses.contains(address))
        };
        if let Some(index) = self.seat {
            return interfaces.get(&index).is_some_and(shows);
        }
        let mut showing = interfaces.values().filter(|interface| shows(interface));
        let seat = showing.find(|interface| claim.allows(&interface.name, interfaces));
        self.seat = seat.map(|interface| interface.index);
        true
    }

    /// The claimed addresses, but for those that some other interface shows: they may still be another's.
    fn addresses(&self, interfaces: &BTreeMap<u32, ObservedInterface>) -> Vec<IpAddr> {
        let is_elsewhere = |address: &IpAddr| {
            let mut all = interfaces.values();
            all.any(|interface| {
                Some(interface.index) != self.seat && interface.addresses.contains(address)
            })
        };
        let claimed = self.claim.addresses.iter();
        claimed
            .filter(|address| !is_elsewhere(address))
            .copied()
            .collect()
    }
}

fn with_addresses(endpoint: &Endpoint, addresses: Vec<IpAddr>) -> Update {
    Update::Upsert(Object::Endpoint(Endpoint {
        addresses,
        ..endpoint.clone()
    }))
}

/// The addresses that an update gives a pod.
fn addresses_of(update: &Update, pod: &EndpointId) -> Option<Vec<IpAddr>> {
    match update {
        Update::Upsert(Object::Endpoint(endpoint)) if endpoint.id == *pod => {
            Some(endpoint.addresses.clone())
        }
        _ => None,
    }
}

/// The endpoint of a pod.
pub(super) fn pod_id(namespace: &str, name: &str) -> EndpointId {
    EndpointId {
        kind: EndpointKind::Pod,
        namespace: namespace.into(),
        name: name.into(),
    }
}

#[cfg(test)]
mod tests;
