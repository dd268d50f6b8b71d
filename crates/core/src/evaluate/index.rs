//! What the evaluator looks up: owners of addresses, policies of endpoints.

use std::cell::OnceCell;
use std::net::IpAddr;

use rustc_hash::FxHashMap;

use super::identities::{Owners, owners};
use super::matching::{Selection, select};
use crate::model::{
    Cluster, Direction, Endpoint, EndpointId, Namespace, NamespaceMatch, Node, Policy,
};

/// A live workload with what policy asks about it.
#[derive(Debug)]
pub(super) struct Workload<'a> {
    pub(super) endpoint: &'a Endpoint,
    /// `None`: its namespace has no object yet.
    pub(super) namespace: Option<&'a Namespace>,
    /// The policies that apply, ingress and egress, in the order of evaluation. Found when first asked for.
    applying: OnceCell<[Box<[&'a Policy]>; 2]>,
}

/// What an address is on the side that is judged.
#[derive(Clone, Copy, Debug)]
pub(super) enum Standing<'e, 'a> {
    /// One live workload of a known namespace owns it.
    Judged(&'e Workload<'a>),
    /// One live workload owns it, but its namespace has no object.
    UnknownNamespace(&'e Workload<'a>),
    /// Several live workloads claim it.
    Shared(&'e [usize]),
    /// In a pod CIDR of this node, and nobody's.
    Unowned(&'a Node),
    /// The endpoint that was asked for does not exist, or has finished.
    Missing,
    /// A host identity, or an endpoint on the host network.
    Host,
    /// None of these.
    Outside,
}

impl<'a> Standing<'_, 'a> {
    /// The one endpoint that owns the address.
    pub(super) fn endpoint(&self) -> Option<&'a Endpoint> {
        match self {
            Self::Judged(workload) | Self::UnknownNamespace(workload) => Some(workload.endpoint),
            Self::Shared(_) | Self::Unowned(_) | Self::Missing | Self::Host | Self::Outside => None,
        }
    }
}

/// The index of one state.
#[derive(Debug)]
pub(super) struct Index<'a> {
    cluster: &'a Cluster,
    /// Sorted by id.
    workloads: Vec<Workload<'a>>,
    /// Positions in `workloads`.
    claimants: FxHashMap<IpAddr, Vec<usize>>,
    owners: FxHashMap<IpAddr, Owners<'a>>,
    /// All policies in the order of evaluation.
    policies: Vec<&'a Policy>,
    /// Positions in `policies` of those whose subjects are of one namespace, by its name, and of the others.
    of_namespace: FxHashMap<&'a str, Vec<usize>>,
    of_many: Vec<usize>,
}

impl<'a> Index<'a> {
    pub(super) fn new(cluster: &'a Cluster) -> Self {
        let live = cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload());
        let workloads: Vec<Workload<'a>> = live
            .map(|endpoint| Workload {
                endpoint,
                namespace: cluster.namespaces.get(&endpoint.id.namespace),
                applying: OnceCell::new(),
            })
            .collect();
        let mut claimants: FxHashMap<IpAddr, Vec<usize>> = FxHashMap::default();
        for (position, workload) in workloads.iter().enumerate() {
            for address in &workload.endpoint.addresses {
                let positions = claimants.entry(*address).or_default();
                // An endpoint may list an address twice.
                if positions.last() != Some(&position) {
                    positions.push(position);
                }
            }
        }
        let mut policies: Vec<&'a Policy> = cluster.policies.values().collect();
        policies.sort_by_key(|policy| (&policy.tier, policy.order, &policy.id));
        let mut of_namespace: FxHashMap<&'a str, Vec<usize>> = FxHashMap::default();
        let mut of_many = Vec::new();
        for (position, policy) in policies.iter().enumerate() {
            match &policy.subject.namespaces {
                NamespaceMatch::Is(name) => of_namespace.entry(name).or_default().push(position),
                NamespaceMatch::Matching(_) => of_many.push(position),
            }
        }
        Self {
            cluster,
            workloads,
            claimants,
            owners: owners(cluster),
            policies,
            of_namespace,
            of_many,
        }
    }

    pub(super) fn workload(&self, position: usize) -> &Workload<'a> {
        &self.workloads[position]
    }

    /// Positions of the live workloads that claim an address.
    pub(super) fn claimants(&self, address: IpAddr) -> &[usize] {
        self.claimants.get(&address).map_or(&[], Vec::as_slice)
    }

    /// The nodes that have an address among their host identities.
    pub(super) fn nodes(&self, address: IpAddr) -> &[&'a Node] {
        let owners = self.owners.get(&address);
        owners.map_or(&[], |owners| owners.sure.as_slice())
    }

    /// The nodes that claim an address and are not believed.
    pub(super) fn doubtful_nodes(&self, address: IpAddr) -> &[&'a Node] {
        let owners = self.owners.get(&address);
        owners.map_or(&[], |owners| owners.doubtful.as_slice())
    }

    /// What an address is on the judged side.
    pub(super) fn standing(&self, address: IpAddr) -> Standing<'_, 'a> {
        match self.claimants(address) {
            [] if !self.nodes(address).is_empty() => Standing::Host,
            [] => {
                let holds =
                    |node: &&Node| node.pod_cidrs.iter().any(|cidr| cidr.contains(&address));
                self.cluster
                    .nodes
                    .values()
                    .find(holds)
                    .map_or(Standing::Outside, Standing::Unowned)
            }
            [position] => Self::standing_of_workload(self.workload(*position)),
            several => Standing::Shared(several),
        }
    }

    fn standing_of_workload<'e>(workload: &'e Workload<'a>) -> Standing<'e, 'a> {
        match workload.namespace {
            Some(_) => Standing::Judged(workload),
            None => Standing::UnknownNamespace(workload),
        }
    }

    /// What an endpoint is on the judged side, when it is known to have this address.
    pub(super) fn standing_of(&self, id: &EndpointId, address: IpAddr) -> Standing<'_, 'a> {
        let Ok(position) = self
            .workloads
            .binary_search_by(|other| other.endpoint.id.cmp(id))
        else {
            let is_host = self
                .cluster
                .endpoints
                .get(id)
                .is_some_and(|found| found.host_network);
            return if is_host {
                Standing::Host
            } else {
                Standing::Missing
            };
        };
        match self.claimants(address) {
            [] => Self::standing_of_workload(self.workload(position)),
            [only] if *only == position => Self::standing_of_workload(self.workload(position)),
            others => Standing::Shared(others),
        }
    }

    /// The node that runs all owners of the judged address and has the peer address itself.
    ///
    /// A peer address that a workload claims, too, is not taken for the host's.
    pub(super) fn own_node(&self, standing: Standing<'_, 'a>, peer: IpAddr) -> Option<&'a Node> {
        if !self.claimants(peer).is_empty() {
            return None;
        }
        let runs =
            |node: &Node, workload: &Workload| workload.endpoint.node.as_ref() == Some(&node.name);
        let owns = |node: &&&'a Node| match standing {
            Standing::Judged(workload) | Standing::UnknownNamespace(workload) => {
                runs(node, workload)
            }
            Standing::Shared(several) => several
                .iter()
                .all(|position| runs(node, self.workload(*position))),
            Standing::Unowned(_) | Standing::Missing | Standing::Host | Standing::Outside => false,
        };
        self.nodes(peer).iter().find(owns).copied()
    }

    /// The policies that select a workload and apply in a direction, in the order of evaluation.
    pub(super) fn applying<'e>(
        &'e self,
        workload: &'e Workload<'a>,
        direction: Direction,
    ) -> &'e [&'a Policy] {
        let of = |direction: Direction| -> Box<[&'a Policy]> {
            let selects = |policy: &&'a Policy| {
                policy.rules(direction).is_some()
                    && matches!(select_subject(policy, workload), Selection::Selected)
            };
            self.candidates(workload).filter(selects).collect()
        };
        let [ingress, egress] = workload
            .applying
            .get_or_init(|| [of(Direction::Ingress), of(Direction::Egress)]);
        match direction {
            Direction::Ingress => ingress,
            Direction::Egress => egress,
        }
    }

    /// The policies whose subject may hold a workload, in the order of evaluation.
    pub(super) fn candidates<'e>(
        &'e self,
        workload: &Workload<'a>,
    ) -> impl Iterator<Item = &'a Policy> + use<'e, 'a> {
        let namespace = workload.endpoint.id.namespace.as_str();
        let named = self
            .of_namespace
            .get(namespace)
            .map_or(&[] as &[usize], Vec::as_slice);
        merge(named, &self.of_many).map(|position| self.policies[position])
    }
}

/// Whether a policy selects a workload, whatever the direction.
pub(super) fn select_subject<'a>(policy: &'a Policy, workload: &Workload<'a>) -> Selection<'a> {
    select(&policy.subject.namespaces, &policy.subject.pods, workload)
}

/// Both sorted lists as one.
fn merge<'e>(
    mut left: &'e [usize],
    mut right: &'e [usize],
) -> impl Iterator<Item = usize> + use<'e> {
    std::iter::from_fn(move || {
        let list = match (left.first(), right.first()) {
            (Some(a), Some(b)) if a < b => &mut left,
            (Some(_), None) => &mut left,
            _ => &mut right,
        };
        let (first, rest) = list.split_first()?;
        *list = rest;
        Some(*first)
    })
}
