//! What follows from what the sources see.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use super::conflict::Conflict;
use super::{EndpointState, MergedEndpoint, MergedView};
use crate::source::{Identity, InterfaceFacts, InterfaceRef, Observation, SourceName};

/// What one source says of one interface.
#[derive(Clone, Copy)]
struct Claim<'a> {
    source: SourceName,
    seen: &'a Observation,
}

impl Claim<'_> {
    /// Whether it comes from who plugged the endpoint in, and so knows whose an address is.
    fn is_exact(self) -> bool {
        self.source.rank() > SourceName::Netlink.rank() && self.seen.identity.is_some()
    }

    fn tells(self, address: IpAddr) -> bool {
        self.seen.addresses.contains(&address)
    }
}

/// An interface with all that is said of it, the highest rank first.
struct Candidate<'a> {
    facts: &'a InterfaceFacts,
    netlink: &'a Observation,
    claims: Vec<Claim<'a>>,
    /// What is behind it.
    behind: BTreeSet<IpAddr>,
}

/// Works out what holds:
///
/// 1. An interface is what netlink says. What others say of an interface that is not there, or of a name that two have,
///    does not count.
/// 2. Behind an interface is what the operator says; else what netlink sees there; else, where nobody can look, what the
///    highest rank says that says anything.
/// 3. Who plugged an endpoint in and tells addresses of which none is there contradicts netlink: closed; unless one of at
///    least its rank tells what is there, for then it is a leftover of an earlier endpoint of that interface's name.
/// 4. An address behind several interfaces belongs to the one of which who plugged it in told it, the highest rank first; without
///    such a one, to nobody.
/// 5. Who it is, the operator says; else all that say anything must agree, or it is closed. Who names no interface tells it
///    of the interface that has the address.
/// 6. A hardware address that several ports of a bridge show belongs to the one of which who plugged it in told it, the highest
///    rank first; without such a one, to the one that had it `before`; else to nobody. A pod may give itself any.
/// 7. It is programmed once the kernel's tables hold all its addresses.
pub(super) fn view(
    seen: &BTreeMap<SourceName, BTreeMap<SmolStr, Observation>>,
    programmed: &BTreeSet<(u32, IpAddr)>,
    before: &MergedView,
) -> MergedView {
    let mut view = MergedView::default();
    let (mut candidates, by_address) = candidates(seen, &mut view.unmatched);
    let closed = contradicted(&mut candidates, &mut view.conflicts, &mut view.unmatched);
    for index in &closed {
        candidates
            .entry(*index)
            .and_modify(|candidate| candidate.behind.clear());
    }
    let lost = disputed(&candidates, &mut view.conflicts);
    for (index, candidate) in &candidates {
        let mut addresses: Vec<IpAddr> = candidate.behind.iter().copied().collect();
        addresses.retain(|address| !lost.contains(&(*index, *address)));
        let identity = identity(candidate, &addresses, &by_address).unwrap_or_else(|conflict| {
            view.conflicts.insert(*conflict);
            addresses.clear();
            None
        });
        let is_programmed = !addresses.is_empty()
            && addresses
                .iter()
                .all(|address| programmed.contains(&(*index, *address)));
        let state = match &identity {
            _ if is_programmed => EndpointState::Programmed,
            Some(_) if !addresses.is_empty() => EndpointState::Identified,
            _ => EndpointState::Unknown,
        };
        view.endpoints
            .insert(*index, candidate.endpoint(addresses, identity, state));
    }
    dispute_hardware(&mut view, &candidates, before);
    view
}

impl Candidate<'_> {
    fn endpoint(
        &self,
        addresses: Vec<IpAddr>,
        identity: Option<Identity>,
        state: EndpointState,
    ) -> MergedEndpoint {
        let told = |is_meant: fn(SourceName) -> bool| {
            let mut meant = self
                .claims
                .iter()
                .filter(move |claim| is_meant(claim.source));
            meant.find_map(|claim| claim.seen.mac)
        };
        MergedEndpoint {
            index: self.facts.index,
            name: self.facts.name.clone(),
            kind: self.facts.kind,
            bridge: self.facts.bridge.clone(),
            mac: told(|source| source == SourceName::Static)
                .or(self.netlink.mac)
                .or_else(|| told(|_| true)),
            addresses,
            identity,
            provider: self
                .claims
                .iter()
                .find_map(|claim| claim.seen.provider.clone()),
            state,
        }
    }
}

/// Interfaces by number, and what is said of addresses without an interface.
fn candidates<'a>(
    seen: &'a BTreeMap<SourceName, BTreeMap<SmolStr, Observation>>,
    unmatched: &mut usize,
) -> (BTreeMap<u32, Candidate<'a>>, Vec<Claim<'a>>) {
    let of_netlink = seen.get(&SourceName::Netlink);
    let netlink = of_netlink.into_iter().flat_map(BTreeMap::values);
    let mut candidates: BTreeMap<u32, Candidate<'a>> = netlink
        .filter_map(|seen| {
            let facts = seen.facts.as_ref()?;
            let candidate = Candidate {
                facts,
                netlink: seen,
                claims: Vec::new(),
                behind: BTreeSet::new(),
            };
            Some((facts.index, candidate))
        })
        .collect();
    let mut by_name: BTreeMap<&SmolStr, Option<u32>> = BTreeMap::new();
    for (index, candidate) in &candidates {
        // Two of one name: one of them is gone already, nobody knows which.
        by_name
            .entry(&candidate.facts.name)
            .and_modify(|found| *found = None)
            .or_insert(Some(*index));
    }
    let mut by_address = Vec::new();
    let mut attached: Vec<(u32, Claim<'a>)> = Vec::new();
    // `SourceName` is in order of rank.
    for (source, observations) in seen
        .iter()
        .filter(|(source, _)| **source != SourceName::Netlink)
    {
        for seen in observations.values() {
            let claim = Claim {
                source: *source,
                seen,
            };
            let index = match &seen.interface {
                None => {
                    by_address.push(claim);
                    continue;
                }
                Some(InterfaceRef::Index(index)) => Some(*index),
                Some(InterfaceRef::Name(name)) => by_name.get(name).copied().flatten(),
            };
            match index.filter(|index| candidates.contains_key(index)) {
                Some(index) => attached.push((index, claim)),
                None => *unmatched += 1,
            }
        }
    }
    for (index, claim) in attached {
        candidates
            .entry(index)
            .and_modify(|candidate| candidate.claims.push(claim));
    }
    for candidate in candidates.values_mut() {
        candidate.behind = behind(candidate);
    }
    (candidates, by_address)
}

/// Rule 2.
fn behind(candidate: &Candidate<'_>) -> BTreeSet<IpAddr> {
    let told_by = |source: SourceName| -> BTreeSet<IpAddr> {
        let claims = candidate
            .claims
            .iter()
            .filter(|claim| claim.source == source);
        claims
            .flat_map(|claim| claim.seen.addresses.iter().copied())
            .collect()
    };
    let fixed = told_by(SourceName::Static);
    if !fixed.is_empty() {
        return fixed;
    }
    if candidate.facts.is_seen_through {
        return candidate.netlink.addresses.iter().copied().collect();
    }
    // In order of rank.
    let told = candidate
        .claims
        .iter()
        .find(|claim| !claim.seen.addresses.is_empty());
    told.map(|claim| told_by(claim.source)).unwrap_or_default()
}

/// Rule 3: takes leftovers away, and returns the interfaces that are closed. Where nothing is there yet, nothing
/// contradicts.
fn contradicted(
    candidates: &mut BTreeMap<u32, Candidate<'_>>,
    conflicts: &mut BTreeSet<Conflict>,
    unmatched: &mut usize,
) -> BTreeSet<u32> {
    let mut closed = BTreeSet::new();
    for (index, candidate) in candidates {
        let behind = &candidate.behind;
        if behind.is_empty() {
            continue;
        }
        let tells = |claim: &Claim<'_>| claim.is_exact() && !claim.seen.addresses.is_empty();
        let is_met = |claim: &Claim<'_>| behind.iter().any(|address| claim.tells(*address));
        // In order of rank.
        let met = candidate
            .claims
            .iter()
            .find(|claim| tells(claim) && is_met(claim));
        let met = met.map(|claim| claim.source.rank());
        let is_leftover = |claim: &Claim<'_>| {
            tells(claim) && !is_met(claim) && met.is_some_and(|met| met >= claim.source.rank())
        };
        let count = candidate.claims.len();
        candidate.claims.retain(|claim| !is_leftover(claim));
        *unmatched += count - candidate.claims.len();
        for claim in candidate
            .claims
            .iter()
            .filter(|claim| tells(claim) && !is_met(claim))
        {
            conflicts.insert(Conflict::Addresses {
                interface: candidate.facts.name.clone(),
                source: claim.source,
                told: claim.seen.addresses.clone(),
                found: behind.iter().copied().collect(),
            });
            closed.insert(*index);
        }
    }
    closed
}

/// Rule 4: which interface does not have which of its addresses.
fn disputed(
    candidates: &BTreeMap<u32, Candidate<'_>>,
    conflicts: &mut BTreeSet<Conflict>,
) -> BTreeSet<(u32, IpAddr)> {
    let mut holders: BTreeMap<IpAddr, Vec<u32>> = BTreeMap::new();
    for (index, candidate) in candidates {
        for address in &candidate.behind {
            holders.entry(*address).or_default().push(*index);
        }
    }
    let mut lost = BTreeSet::new();
    for (address, indexes) in holders.into_iter().filter(|(_, indexes)| indexes.len() > 1) {
        let rank = |index: &u32| {
            let claims = candidates.get(index).map(|candidate| &candidate.claims);
            let telling = claims
                .into_iter()
                .flatten()
                .find(|claim| claim.is_exact() && claim.tells(address));
            telling.map(|claim| claim.source.rank())
        };
        let highest = indexes.iter().filter_map(rank).max();
        let mut owners = indexes
            .iter()
            .filter(|index| highest.is_some() && rank(index) == highest);
        let owner = match (owners.next(), owners.next()) {
            (Some(owner), None) => Some(*owner),
            _ => None,
        };
        let name = |index: u32| {
            candidates
                .get(&index)
                .map(|candidate| candidate.facts.name.clone())
                .unwrap_or_default()
        };
        let losers = indexes
            .iter()
            .copied()
            .filter(|index| Some(*index) != owner);
        lost.extend(losers.clone().map(|index| (index, address)));
        match owner {
            None => {
                let interfaces = indexes.iter().copied().map(name).collect();
                conflicts.insert(Conflict::Shared {
                    address,
                    interfaces,
                });
            }
            Some(owner) => conflicts.extend(losers.map(|taker| Conflict::Taken {
                address,
                owner: name(owner),
                taker: name(taker),
            })),
        }
    }
    lost
}

/// Rule 6.
fn dispute_hardware(
    view: &mut MergedView,
    candidates: &BTreeMap<u32, Candidate<'_>>,
    before: &MergedView,
) {
    let mut ports: BTreeMap<(SmolStr, MacAddress), Vec<u32>> = BTreeMap::new();
    for (index, endpoint) in &view.endpoints {
        if let (Some(bridge), Some(mac)) = (&endpoint.bridge, endpoint.mac) {
            ports.entry((bridge.clone(), mac)).or_default().push(*index);
        }
    }
    for ((_, mac), indexes) in ports.into_iter().filter(|(_, indexes)| indexes.len() > 1) {
        let rank = |index: &u32| {
            let mut claims = candidates.get(index)?.claims.iter();
            let telling = claims.find(|claim| claim.is_exact() && claim.seen.mac == Some(mac));
            telling.map(|claim| claim.source.rank())
        };
        let had_it = |index: &u32| {
            let earlier = before.endpoints.get(index);
            earlier.is_some_and(|endpoint| endpoint.mac == Some(mac))
        };
        let highest = indexes.iter().filter_map(rank).max();
        let mut owners = indexes.iter().filter(|index| match highest {
            Some(_) => rank(index) == highest,
            None => had_it(index),
        });
        let owner = match (owners.next(), owners.next()) {
            (Some(owner), None) => Some(*owner),
            _ => None,
        };
        let mut names = Vec::new();
        for index in indexes.iter().filter(|index| Some(**index) != owner) {
            if let Some(endpoint) = view.endpoints.get_mut(index) {
                endpoint.mac = None;
                names.push(endpoint.name.clone());
            }
        }
        let owner = owner.and_then(|index| Some(view.endpoints.get(&index)?.name.clone()));
        view.conflicts.insert(Conflict::Hardware {
            mac,
            owner,
            closed: names,
        });
    }
}

/// Rule 5.
fn identity(
    candidate: &Candidate<'_>,
    addresses: &[IpAddr],
    by_address: &[Claim<'_>],
) -> Result<Option<Identity>, Box<Conflict>> {
    let has_one = |claim: &&Claim<'_>| addresses.iter().any(|address| claim.tells(*address));
    let elsewhere = by_address.iter().filter(has_one);
    let mut told: Vec<(SourceName, &Identity)> = candidate
        .claims
        .iter()
        .chain(elsewhere)
        .filter_map(|claim| Some((claim.source, claim.seen.identity.as_ref()?)))
        .collect();
    told.sort_unstable();
    let Some(((source, first), others)) = told.split_first() else {
        return Ok(None);
    };
    let mut whole = (*first).clone();
    for (other_source, other) in others {
        let is_overruled = *source == SourceName::Static && *other_source != SourceName::Static;
        if is_overruled {
            continue;
        }
        if !whole.agrees_with(other) {
            return Err(Box::new(Conflict::Identities {
                interface: candidate.facts.name.clone(),
                first: (*source, (*first).clone()),
                second: (*other_source, (*other).clone()),
            }));
        }
        whole = completed(whole, other);
    }
    Ok(Some(whole))
}

/// An identity with what it lacks from another one that agrees with it.
fn completed(whole: Identity, other: &Identity) -> Identity {
    match (whole, other) {
        (
            Identity::Pod {
                namespace,
                name,
                uid,
                sandbox,
            },
            Identity::Pod {
                uid: other_uid,
                sandbox: other_sandbox,
                ..
            },
        ) => Identity::Pod {
            namespace,
            name,
            uid: uid.or_else(|| other_uid.clone()),
            sandbox: sandbox.or_else(|| other_sandbox.clone()),
        },
        (whole, _) => whole,
    }
}
