//! A followed cluster: what the source under test has told, and in which order.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use anyhow::Result;
use policy_agent::source::kubernetes::{KubernetesHandle, KubernetesSource};
use policy_agent::source::{Batch, Finding, SourceState};
use towpath_core::model::{
    Cluster, EndpointId, EndpointKind, Object, ObjectKey, PolicyId, PolicyKind, Update,
};
use towpath_tests::wait::until;

/// Long enough for a server that starts.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// Name of the node whose agent this would be.
pub(crate) const NODE: &str = "here";

/// What was told.
pub(crate) struct Told {
    pub(crate) cluster: Cluster,
    pub(crate) state: SourceState,
    pub(crate) findings: Vec<Finding>,
    /// Every removal.
    pub(crate) removed: Vec<ObjectKey>,
    /// Pods as they came, each with the policies that were in force then.
    pub(crate) pods: Vec<(EndpointId, Vec<PolicyId>, Instant)>,
    /// How often something was told.
    pub(crate) batches: usize,
    /// Bad versions by kind.
    pub(crate) malformed: BTreeMap<&'static str, u64>,
    /// Watches that the server could not go on with, by kind.
    pub(crate) expired: BTreeMap<&'static str, u64>,
}

/// A source that runs.
pub(crate) struct Follow {
    told: Arc<Mutex<Told>>,
    _handle: KubernetesHandle,
}

impl Follow {
    pub(crate) fn start(kubeconfig: &Path) -> Result<Self> {
        let told = Arc::new(Mutex::new(Told {
            cluster: Cluster::default(),
            state: SourceState::NotInSync {
                reason: String::new(),
            },
            findings: Vec::new(),
            removed: Vec::new(),
            pods: Vec::new(),
            batches: 0,
            malformed: BTreeMap::new(),
            expired: BTreeMap::new(),
        }));
        let teller = told.clone();
        let emit = move |batch: Batch| take(&mut teller.lock().expect("no holder panics"), batch);
        let handle = KubernetesSource::open(Some(kubeconfig))?.watch(NODE, emit)?;
        Ok(Self {
            told,
            _handle: handle,
        })
    }

    pub(crate) fn told(&self) -> MutexGuard<'_, Told> {
        self.told.lock().expect("no holder panics")
    }

    pub(crate) fn wait(&self, what: &str, mut holds: impl FnMut(&Told) -> bool) {
        let waited = until(what, PATIENCE, || Ok(holds(&self.told())));
        if let Err(error) = waited {
            let told = self.told();
            panic!("{error:#}; {:?}, {:#?}", told.state, told.findings);
        }
    }

    pub(crate) fn wait_policy(&self, namespace: &str, name: &str) {
        let id = policy_id(namespace, name);
        self.wait(&format!("policy {id}"), |told| {
            told.cluster.policies.contains_key(&id)
        });
    }

    /// Every removal of a policy of a namespace.
    pub(crate) fn removed_policies(&self, namespace: &str) -> Vec<PolicyId> {
        let told = self.told();
        let ids = told.removed.iter().filter_map(|key| match key {
            ObjectKey::Policy(id) => Some(id),
            _ => None,
        });
        ids.filter(|id| id.namespace == namespace)
            .cloned()
            .collect()
    }

    pub(crate) fn wait_in_sync(&self) {
        self.wait("in sync", |told| told.state.is_in_sync());
    }

    /// Waits until it is not in sync for a reason that contains these words.
    pub(crate) fn wait_trouble(&self, words: &[&str]) {
        let what = format!("not in sync because of {words:?}");
        self.wait(&what, |told| match &told.state {
            SourceState::NotInSync { reason } => words.iter().all(|word| reason.contains(word)),
            SourceState::InSync => false,
        });
    }
}

fn take(told: &mut Told, batch: Batch) {
    told.batches += 1;
    for update in batch.updates {
        match &update {
            Update::Upsert(Object::Endpoint(pod)) => {
                let id = pod.id.clone();
                if !told.cluster.endpoints.contains_key(&id) {
                    let policies = told.cluster.policies.keys().cloned().collect();
                    told.pods.push((id, policies, Instant::now()));
                }
            }
            Update::Remove(key) => told.removed.push(key.clone()),
            Update::Upsert(_) => {}
        }
        told.cluster.apply(update);
    }
    for (sums, counts) in [
        (&mut told.malformed, batch.tally.malformed),
        (&mut told.expired, batch.tally.expired),
    ] {
        for (kind, count) in counts {
            *sums.entry(kind).or_default() += count;
        }
    }
    told.state = batch.state;
    told.findings = batch.findings;
}

pub(crate) fn policy_id(namespace: &str, name: &str) -> PolicyId {
    PolicyId {
        kind: PolicyKind::NetworkPolicy,
        namespace: namespace.into(),
        name: name.into(),
    }
}

pub(crate) fn cluster_policy_id(name: &str) -> PolicyId {
    PolicyId {
        kind: PolicyKind::ClusterNetworkPolicy,
        namespace: "".into(),
        name: name.into(),
    }
}

pub(crate) fn pod_id(namespace: &str, name: &str) -> EndpointId {
    EndpointId {
        kind: EndpointKind::Pod,
        namespace: namespace.into(),
        name: name.into(),
    }
}
