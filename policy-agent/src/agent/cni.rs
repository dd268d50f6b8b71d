//! What the graph does for the CNI plugin: takes claims, and tells who waits when a pod's policy is in force.
//!
//! Programmed means: the address is bound to this very pod on the interface that the plugins made, that was flushed,
//! and the generation of that flush is committed. While nobody waits and nothing is claimed, all of this is skipped.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Instant;

use serde::Serialize;
use tokio::sync::oneshot;
use towpath_core::calc::CalcGraph;
use towpath_core::model::{Endpoint, Update};
use tracing::{debug, info, warn};

use super::cni_claims::{Attachment, Claim, CniClaims};
use super::cni_store::ClaimStore;
use super::graph::GraphThread;
use super::interfaces::HostFacts;
use super::metrics::Teller;

/// ADDs that may wait at once. Fewer than the control socket has connections, so that there is always room for a
/// question; a plugin that finds no room asks again.
const MOST_WAITERS: usize = 48;

/// Answer of `/v1/cni/add` and `/v1/cni/check`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Programmed {
    pub(super) programmed: bool,
    /// Why not.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) reason: String,
}

impl From<Result<(), String>> for Programmed {
    fn from(outcome: Result<(), String>) -> Self {
        Self {
            programmed: outcome.is_ok(),
            reason: outcome.err().unwrap_or_default(),
        }
    }
}

/// Answer of `/v1/cni/status`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Health {
    /// Whether pods can be added.
    pub(super) ready: bool,
    /// Whether the pods there are may be cut off or not judged.
    pub(super) is_datapath_broken: bool,
    /// What is awaited.
    pub(super) reason: String,
}

/// What the plugin wants. Who no longer waits for the answer has gone, which is no fault.
#[derive(Debug)]
pub(super) enum CniRequest {
    /// A pod was plugged in; answered when it is programmed, or at once when it may wait no longer.
    Add {
        claim: Claim,
        waits: bool,
        to: oneshot::Sender<Programmed>,
    },
    /// Whether a pod is programmed.
    Check {
        claim: Claim,
        to: oneshot::Sender<Programmed>,
    },
    /// Attachments are gone. Without a sender they come from the queue of an agent that was not there.
    Delete {
        gone: Vec<Attachment>,
        to: Option<oneshot::Sender<Acknowledged>>,
    },
    /// Of a network only these containers and interfaces are left.
    KeepOnly {
        network: String,
        valid: BTreeSet<(String, String)>,
        to: oneshot::Sender<Acknowledged>,
    },
    /// Whether pods can be added.
    Health(oneshot::Sender<Health>),
}

/// An answer that says only that it was done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(super) struct Acknowledged {}

/// An ADD that waits.
#[derive(Debug)]
struct Waiter {
    claim: Claim,
    to: oneshot::Sender<Programmed>,
    /// The generation with which it is programmed, once it is flushed.
    generation: Option<u64>,
}

/// The plugin's side of the graph.
#[derive(Debug)]
pub(super) struct Cni {
    pub(super) claims: CniClaims,
    waiters: Vec<Waiter>,
    store: ClaimStore,
}

impl Cni {
    pub(super) fn new(node: &str, store: ClaimStore, now: Instant) -> Self {
        let mut claims = CniClaims::new(node);
        claims.restore(store.load(), now);
        if !claims.is_empty() {
            info!(
                claims = claims.len(),
                "pods that were starting when the agent ended are known"
            );
        }
        Self {
            claims,
            waiters: Vec::new(),
            store,
        }
    }
}

impl GraphThread {
    pub(super) fn take_cni(&mut self, request: CniRequest) {
        match request {
            CniRequest::Add { claim, waits, to } => self.add_pod(claim, waits, to),
            CniRequest::Check { claim, to } => tell(to, self.check(&claim)),
            CniRequest::Delete { gone, to } => {
                self.delete_pods(&gone);
                if let Some(to) = to {
                    to.send(Acknowledged {}).ok();
                }
            }
            CniRequest::KeepOnly { network, valid, to } => {
                let cluster = self.graph.cluster();
                let updates = self.parts.cni.claims.keep_only(&network, &valid, cluster);
                self.claims_changed(&updates);
                to.send(Acknowledged {}).ok();
            }
            CniRequest::Health(to) => drop(to.send(self.cni_health())),
        }
    }

    fn add_pod(&mut self, claim: Claim, waits: bool, to: oneshot::Sender<Programmed>) {
        debug!(pod = %claim.pod, addresses = ?claim.addresses, "plugged in");
        self.unannounced.announce(&claim.pod);
        let attachment = &claim.attachment;
        self.parts
            .cni
            .waiters
            .retain(|waiter| waiter.claim.attachment != *attachment);
        let now = Instant::now();
        let added = self
            .parts
            .cni
            .claims
            .add(claim.clone(), self.graph.cluster(), now);
        match added {
            Ok(updates) => self.claims_changed(&updates),
            Err(error) => return tell(to, Err(error.to_string())),
        }
        let claims = &self.parts.cni.claims;
        let is_claimed = |address, name: &_| claims.allow(address, name);
        let again = self.seats.claimed(&claim.addresses, is_claimed);
        self.seats_changed(&again);
        if !waits {
            return tell(to, self.check(&claim));
        }
        if self.parts.cni.waiters.len() >= MOST_WAITERS {
            // The sender goes, and the server says that the agent is busy.
            warn!(pod = %claim.pod, "too many pods wait; this one asks again");
            return;
        }
        self.parts.cni.waiters.push(Waiter {
            claim,
            to,
            generation: None,
        });
    }

    fn delete_pods(&mut self, gone: &[Attachment]) {
        let waiters = &mut self.parts.cni.waiters;
        for waiter in waiters.extract_if(.., |waiter| gone.contains(&waiter.claim.attachment)) {
            tell(
                waiter.to,
                Err("the pod was taken away meanwhile".to_owned()),
            );
        }
        let updates = self.parts.cni.claims.delete(gone, self.graph.cluster());
        self.claims_changed(&updates);
    }

    /// What the source says, with what the claims make of it.
    pub(super) fn apply_source(&mut self, update: &Update) {
        let update = &*self.complete(update);
        self.graph_after_claims(update);
        let claims = &self.parts.cni.claims;
        let is_claimed = |address, name: &_| claims.allow(address, name);
        let again = self.seats.source(update, is_claimed);
        self.seats_changed(&again);
    }

    fn graph_after_claims(&mut self, update: &Update) {
        if self.parts.cni.claims.is_empty() {
            return self.graph.apply(update);
        }
        let before = self.parts.cni.claims.len();
        let update = self.parts.cni.claims.source(update, self.graph.cluster());
        self.graph.apply(&update);
        if self.parts.cni.claims.len() != before {
            self.parts.cni.store.save(self.parts.cni.claims.kept());
        }
    }

    /// Gives up addresses that are kept for pods of which nobody tells any more.
    pub(super) fn expire_seats(&mut self, now: Instant) {
        if !self.is_in_sync {
            return;
        }
        let claims = &self.parts.cni.claims;
        let is_claimed = |address, name: &_| claims.allow(address, name);
        let again = self.seats.expire(now, is_claimed);
        self.seats_changed(&again);
    }

    /// Interfaces show other addresses than the graph was told.
    fn seats_changed(&mut self, again: &[Update]) {
        if again.is_empty() {
            return;
        }
        self.count(Teller::Interfaces, again.len(), Instant::now());
        for update in again {
            self.facts.note(update);
            self.graph.apply(update);
        }
        self.settle_claims();
    }

    /// Interfaces have changed.
    pub(super) fn settle_claims(&mut self) {
        if self.parts.cni.claims.is_empty() {
            return;
        }
        let before = self.parts.cni.claims.len();
        let updates = self.parts.cni.claims.interfaces(self.graph.cluster());
        if !updates.is_empty() || self.parts.cni.claims.len() != before {
            self.claims_changed(&updates);
        }
    }

    /// What is due by the clock.
    pub(super) fn expire_claims(&mut self, now: Instant) {
        self.parts
            .cni
            .waiters
            .retain(|waiter| !waiter.to.is_closed());
        if !self.parts.cni.claims.is_empty() {
            let before = self.parts.cni.claims.len();
            let updates = self.parts.cni.claims.expire(now, self.graph.cluster());
            if self.parts.cni.claims.len() != before {
                self.claims_changed(&updates);
            }
        }
        let (claims, waiters) = (self.parts.cni.claims.len(), self.parts.cni.waiters.len());
        self.parts.metrics.set_cni(claims, waiters);
    }

    fn claims_changed(&mut self, updates: &[Update]) {
        self.count(Teller::Cni, updates.len(), Instant::now());
        for update in updates {
            self.facts.note(update);
            self.graph.apply(update);
        }
        self.parts.cni.store.save(self.parts.cni.claims.kept());
    }

    /// Answers those who wait and whose pod is programmed; called when all that was told is flushed.
    pub(super) fn settle_waiters(&mut self) {
        if self.parts.cni.waiters.is_empty() {
            return;
        }
        let (wanted, committed) = (self.commits.wanted_generation, self.commits.generation);
        let mut waiters = std::mem::take(&mut self.parts.cni.waiters);
        for waiter in &mut waiters {
            // Looked at each time: what was so in one flush may be otherwise in the next.
            waiter.generation = match self.bound(&waiter.claim) {
                Ok(()) => waiter.generation.or(Some(wanted)),
                Err(_) => None,
            };
        }
        let is_done = |waiter: &mut Waiter| {
            waiter
                .generation
                .is_some_and(|generation| generation <= committed)
        };
        for waiter in waiters.extract_if(.., is_done) {
            debug!(pod = %waiter.claim.pod, "programmed");
            tell(waiter.to, Ok(()));
        }
        waiters.retain(|waiter| !waiter.to.is_closed());
        self.parts.cni.waiters = waiters;
    }

    /// Whether a pod is programmed now; else why not.
    fn check(&self, claim: &Claim) -> Result<(), String> {
        self.bound(claim)?;
        let commits = &self.commits;
        if self.is_flushed() && commits.generation == commits.wanted_generation {
            return Ok(());
        }
        let why = commits.error.as_deref();
        Err(why.map_or_else(
            || "the kernel does not have the latest change yet".to_owned(),
            |error| format!("the kernel does not take changes: {error}"),
        ))
    }

    /// Whether the last flush binds the claimed addresses to this very pod, where its traffic is judged.
    fn bound(&self, claim: &Claim) -> Result<(), String> {
        if self.commits.wanted_generation == 0 {
            return Err(self.awaited());
        }
        let endpoint = pod(&self.graph, claim, &self.node)?;
        let own: Vec<IpAddr> = claim
            .addresses
            .iter()
            .filter(|address| endpoint.addresses.contains(address))
            .copied()
            .collect();
        if own.is_empty() {
            return Err(self.why_not_its_own(claim, endpoint));
        }
        let broken = self.broken_bridges();
        own.iter()
            .try_for_each(|address| bound(&self.graph, &self.host, &broken, claim, *address))
    }

    fn why_not_its_own(&self, claim: &Claim, endpoint: &Endpoint) -> String {
        let interfaces = &self.graph.cluster().interfaces;
        let shows = |address: &&IpAddr| {
            let mut all = interfaces.values();
            all.any(|interface| interface.addresses.contains(address))
        };
        match claim.addresses.iter().find(|address| !shows(address)) {
            Some(address) => format!("no interface of a pod shows {address}"),
            None if endpoint.addresses.is_empty() => format!(
                "{:?} are not on an interface that the plugins made for the pod",
                claim.addresses
            ),
            None => format!(
                "the object lists {:?}, and the plugins gave {:?}",
                endpoint.addresses, claim.addresses
            ),
        }
    }

    /// Why traffic between ports of bridges is not judged; empty when it is.
    fn broken_bridges(&self) -> String {
        let awaited = self.parts.readiness.awaited();
        let filtered = awaited
            .into_iter()
            .find(|awaited| awaited.condition == super::BRIDGE_NETFILTER);
        filtered.map(|awaited| awaited.reason).unwrap_or_default()
    }

    fn awaited(&self) -> String {
        let awaited = self.parts.readiness.awaited();
        let lines: Vec<String> = awaited
            .iter()
            .map(|awaited| format!("{}: {}", awaited.condition, awaited.reason))
            .collect();
        lines.join("; ")
    }

    fn cni_health(&self) -> Health {
        let is_committed = self.commits.generation > 0;
        let broken = self.broken_bridges();
        let failing = self.commits.error.clone();
        let is_datapath_broken = is_committed && (failing.is_some() || !broken.is_empty());
        Health {
            // A source that is out of reach for a while changes nothing for pods that it has told of.
            ready: is_committed && !is_datapath_broken,
            is_datapath_broken,
            reason: if is_committed {
                failing.unwrap_or(broken)
            } else {
                self.awaited()
            },
        }
    }
}

/// The object of the claim's pod.
fn pod<'g>(graph: &'g CalcGraph, claim: &Claim, node: &str) -> Result<&'g Endpoint, String> {
    let cluster = graph.cluster();
    let pod = &claim.pod;
    let Some(endpoint) = cluster.endpoints.get(pod) else {
        return Err(format!("the source has not told of pod {pod}"));
    };
    if !claim.is_of(endpoint) {
        return Err(format!(
            "the source has told of an earlier pod {pod} only, with another uid"
        ));
    }
    if !endpoint.is_workload() {
        return Err(format!("pod {pod} is finished or on the host network"));
    }
    if endpoint.node.as_deref() != Some(node) {
        let found = endpoint.node.as_deref().unwrap_or("no node");
        return Err(format!("pod {pod} is on {found}, not on {node}"));
    }
    if !cluster.namespaces.contains_key(&pod.namespace) {
        return Err(format!(
            "the source has not told of namespace {}",
            pod.namespace
        ));
    }
    Ok(endpoint)
}

/// Whether an address is bound to the claim's pod, on its interface.
fn bound(
    graph: &CalcGraph,
    host: &HostFacts,
    broken: &str,
    claim: &Claim,
    address: IpAddr,
) -> Result<(), String> {
    let cluster = graph.cluster();
    let Some((owner, binding)) = graph.binding(address) else {
        let is_other = |endpoint: &&Endpoint| {
            endpoint.id != claim.pod
                && endpoint.is_workload()
                && endpoint.addresses.contains(&address)
        };
        return Err(match cluster.endpoints.values().find(is_other) {
            Some(other) => format!("pod {} has {address} too", other.id),
            None => format!("no interface, or more than one, shows {address}"),
        });
    };
    if *owner != claim.pod {
        return Err(format!("{address} belongs to pod {owner}"));
    }
    let name = &binding.interface;
    if !claim.allows(name, &cluster.interfaces) {
        return Err(format!(
            "{address} is on {name}, which the plugins did not make"
        ));
    }
    let interface = cluster
        .interfaces
        .values()
        .find(|found| found.name == *name);
    let Some(bridge) = interface.and_then(|interface| interface.bridge.as_ref()) else {
        return Ok(());
    };
    if !broken.is_empty() {
        return Err(format!(
            "traffic between ports of {bridge} cannot be judged: {broken}"
        ));
    }
    let mut bridges = host.bridges.iter();
    if bridges.any(|found| found.name == *bridge && found.is_filtered) {
        return Ok(());
    }
    Err(format!(
        "bridge {bridge} is not set up yet, or is no bridge of pods"
    ))
}

fn tell(to: oneshot::Sender<Programmed>, outcome: Result<(), String>) {
    drop(to.send(outcome.into()));
}
