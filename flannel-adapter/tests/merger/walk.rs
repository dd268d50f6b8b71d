//! Random walks: whatever the order in which sources told, the result is that of what they see now.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use flannel_adapter::merger::{Conflict, EndpointState, MergedEndpoint, MergedView, Merger};
use flannel_adapter::source::{Delta, Observation, SourceName};
use proptest::prelude::*;
use proptest::sample::{select, subsequence};
use smol_str::SmolStr;

use crate::{address, claim, pod, tap, veth};

/// One step: a source sees something, or no longer.
#[derive(Clone, Debug)]
struct Step {
    source: SourceName,
    key: SmolStr,
    seen: Option<Observation>,
    refresh: bool,
}

fn lasts() -> impl Strategy<Value = Vec<u8>> {
    subsequence(vec![1_u8, 2, 3, 4], 0..3)
}

fn netlink() -> impl Strategy<Value = Observation> {
    (7_u32..11, lasts(), any::<bool>(), 0..9).prop_map(|(index, lasts, is_tap, chance)| {
        let mut seen = if is_tap {
            tap(index)
        } else {
            veth(index, &lasts)
        };
        // Seldom two have one name.
        if chance == 0
            && let Some(facts) = &mut seen.facts
        {
            facts.name = "veth7".into();
        }
        seen
    })
}

fn told() -> impl Strategy<Value = (SourceName, Observation)> {
    let others: Vec<SourceName> = SourceName::ALL
        .into_iter()
        .filter(|source| *source != SourceName::Netlink)
        .collect();
    let identity = prop_oneof![
        2 => Just(None),
        3 => (select(vec!["web", "db"]), select(vec![None, Some("u1"), Some("u2")]))
            .prop_map(|(name, uid)| Some(pod(name, uid))),
    ];
    (
        select(others),
        select(vec!["a", "b", "c"]),
        7_u32..12,
        lasts(),
        identity,
        0..6,
    )
        .prop_map(|(source, key, index, lasts, identity, chance)| {
            let mut seen = claim(key, index, &lasts, identity);
            if chance == 0 {
                seen.interface = None;
            }
            (source, seen)
        })
}

fn step() -> impl Strategy<Value = Step> {
    let seen = prop_oneof![
        netlink().prop_map(|seen| (SourceName::Netlink, seen)),
        told()
    ];
    (seen, 0..4, any::<bool>()).prop_map(|((source, seen), chance, refresh)| Step {
        source,
        key: seen.key.clone(),
        // Every fourth step takes something away.
        seen: (chance > 0).then_some(seen),
        refresh,
    })
}

fn delta(step: &Step) -> Delta {
    match &step.seen {
        Some(seen) => Delta::seen(seen.clone()),
        None => Delta::Gone(step.key.clone()),
    }
}

fn programmed() -> impl Strategy<Value = BTreeSet<(u32, IpAddr)>> {
    prop::collection::btree_set((7_u32..11, (1_u8..5).prop_map(address)), 0..6)
}

/// What must hold of any view.
fn check(view: &MergedView) -> Result<(), TestCaseError> {
    let mut owners: BTreeMap<IpAddr, u32> = BTreeMap::new();
    for endpoint in view.endpoints.values() {
        for address in &endpoint.addresses {
            prop_assert_eq!(
                owners.insert(*address, endpoint.index),
                None,
                "{} of two",
                address
            );
        }
        if endpoint.addresses.is_empty() || endpoint.identity.is_none() {
            prop_assert!(endpoint.state != EndpointState::Identified);
        }
        prop_assert!(endpoint.addresses.is_sorted());
    }
    let named = |name: &SmolStr| -> Vec<&MergedEndpoint> {
        view.endpoints
            .values()
            .filter(|endpoint| endpoint.name == *name)
            .collect()
    };
    for conflict in &view.conflicts {
        match conflict {
            Conflict::Identities { interface, .. } | Conflict::Addresses { interface, .. } => {
                // Of two namesakes one is meant.
                let closed = named(interface);
                prop_assert!(closed.iter().any(|endpoint| endpoint.addresses.is_empty()));
            }
            Conflict::Shared { address, .. } => prop_assert!(!owners.contains_key(address)),
            Conflict::Hardware { owner, closed, .. } => {
                let mut ports = closed.iter().flat_map(named);
                prop_assert!(ports.any(|endpoint| endpoint.mac.is_none()));
                prop_assert!(owner.is_some() || closed.len() > 1);
            }
            Conflict::Taken {
                address,
                taker,
                owner,
            } => {
                let has_it = named(taker)
                    .iter()
                    .all(|endpoint| endpoint.addresses.contains(address));
                prop_assert!(!has_it || taker == owner);
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn any_order_comes_to_the_same(
        steps in prop::collection::vec(step(), 0..40),
        bound in programmed(),
        order in any::<u64>(),
    ) {
        let mut walked = Merger::default();
        let mut last: BTreeMap<(SourceName, SmolStr), Observation> = BTreeMap::new();
        let mut follower: BTreeMap<u32, MergedEndpoint> = BTreeMap::new();
        for step in &steps {
            walked.apply(step.source, delta(step));
            match &step.seen {
                Some(seen) => drop(last.insert((step.source, step.key.clone()), seen.clone())),
                None => drop(last.remove(&(step.source, step.key.clone()))),
            }
            if step.refresh {
                for endpoint in walked.refresh().upserted {
                    follower.insert(endpoint.index, endpoint);
                }
            }
            follower.retain(|index, _| walked.view().endpoints.contains_key(index));
            let live: BTreeSet<IpAddr> = walked
                .view()
                .endpoints
                .values()
                .flat_map(|endpoint| endpoint.addresses.iter().copied())
                .collect();
            prop_assert!(walked.gone().all(|tomb| !live.contains(&tomb.address)));
            check(walked.view())?;
        }
        walked.set_programmed(bound.clone());
        for endpoint in walked.refresh().upserted {
            follower.insert(endpoint.index, endpoint);
        }
        follower.retain(|index, _| walked.view().endpoints.contains_key(index));

        // The same observations alone, in an order by chance, half of them as a snapshot.
        let mut fresh = Merger::default();
        fresh.set_programmed(bound);
        let mut alone: Vec<_> = last.into_iter().collect();
        alone.sort_by_key(|((source, key), _)| {
            let mixed = (u64::from(source.rank()) << 8 | key.bytes().map(u64::from).sum::<u64>()) ^ order;
            mixed.wrapping_mul(0x9e37_79b9_7f4a_7c15)
        });
        for ((source, _), seen) in alone {
            fresh.apply(source, Delta::seen(seen));
            fresh.refresh();
        }

        prop_assert_eq!(walked.view(), fresh.view());
        prop_assert_eq!(&follower, &walked.view().endpoints);
    }
}
