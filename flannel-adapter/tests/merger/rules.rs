use std::collections::BTreeSet;

use flannel_adapter::merger::{Conflict, EndpointState, MergedEndpoint, MergedView, Merger};
use flannel_adapter::source::{Delta, Identity, InterfaceRef, Observation, SourceName};
use towpath_core::model::MacAddress;

use crate::{address, addresses, claim, pod, tap, veth};

/// What follows from these observations.
fn merged(seen: &[(SourceName, Observation)]) -> MergedView {
    let mut merger = Merger::default();
    for (source, observation) in seen {
        merger.apply(*source, Delta::seen(observation.clone()));
    }
    merger.refresh();
    merger.view().clone()
}

fn endpoint(view: &MergedView, index: u32) -> &MergedEndpoint {
    &view.endpoints[&index]
}

const NETLINK: SourceName = SourceName::Netlink;
const CACHE: SourceName = SourceName::CniCache;

#[test]
fn ranks_fall_in_the_order_of_the_list() {
    let ranks: Vec<u8> = SourceName::ALL.iter().map(|source| source.rank()).collect();

    assert!(
        ranks.is_sorted_by(|higher, lower| higher > lower),
        "{ranks:?}"
    );
    assert!(SourceName::ALL.is_sorted());
}

#[test]
fn an_interface_that_nobody_identifies_is_unknown_with_its_addresses() {
    let view = merged(&[(NETLINK, veth(7, &[7]))]);

    assert_eq!(endpoint(&view, 7).addresses, addresses(&[7]));
    assert_eq!(endpoint(&view, 7).state, EndpointState::Unknown);
    assert_eq!(view.conflicts, BTreeSet::new());
}

#[test]
fn a_kept_result_identifies_the_interface_that_it_names() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (CACHE, claim("a", 7, &[7], Some(pod("web", Some("u1"))))),
    ]);

    assert_eq!(endpoint(&view, 7).identity, Some(pod("web", Some("u1"))));
    assert_eq!(endpoint(&view, 7).state, EndpointState::Identified);
}

#[test]
fn leftovers_of_an_earlier_run_do_not_count() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (CACHE, claim("a", 99, &[7], Some(pod("old", None)))),
    ]);

    assert_eq!(endpoint(&view, 7).identity, None);
    assert_eq!((view.unmatched, view.conflicts.len()), (1, 0));
}

#[test]
fn sources_that_agree_complete_each_other() {
    let sandbox = |identity| match identity {
        Identity::Pod {
            namespace,
            name,
            uid,
            ..
        } => Identity::Pod {
            namespace,
            name,
            uid,
            sandbox: Some("s1".into()),
        },
        other => other,
    };

    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (
            SourceName::Cni,
            claim("a", 7, &[7], Some(sandbox(pod("web", None)))),
        ),
        (CACHE, claim("a", 7, &[7], Some(pod("web", Some("u1"))))),
    ]);

    assert_eq!(
        endpoint(&view, 7).identity,
        Some(sandbox(pod("web", Some("u1"))))
    );
}

#[test]
fn sources_that_disagree_about_who_it_is_close_it() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (
            SourceName::Cni,
            claim("a", 7, &[7], Some(pod("web", Some("u2")))),
        ),
        (CACHE, claim("a", 7, &[7], Some(pod("web", Some("u1"))))),
    ]);

    let closed = endpoint(&view, 7);
    assert_eq!(
        (closed.state, &closed.identity),
        (EndpointState::Unknown, &None)
    );
    assert!(closed.addresses.is_empty());
    let conflict = view.conflicts.first().unwrap();
    assert!(matches!(conflict, Conflict::Identities { .. }));
    assert!(
        conflict
            .to_string()
            .contains("stays closed until they agree")
    );
}

#[test]
fn the_operator_overrules_everybody() {
    let machine = Identity::Machine { id: "vm1".into() };
    let fixed = Observation {
        mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
        ..claim("f", 7, &[70], Some(machine.clone()))
    };

    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (CACHE, claim("a", 7, &[70], Some(pod("web", None)))),
        (SourceName::Static, fixed),
    ]);

    let found = endpoint(&view, 7);
    assert_eq!(
        (&found.addresses, &found.identity),
        (&addresses(&[70]), &Some(machine))
    );
    assert_eq!(found.mac, Some(MacAddress([2, 0, 0, 0, 0, 1])));
    assert_eq!(view.conflicts, BTreeSet::new());
}

#[test]
fn addresses_that_are_not_there_are_a_contradiction() {
    let told = (CACHE, claim("a", 7, &[8], Some(pod("web", None))));

    let view = merged(&[(NETLINK, veth(7, &[7])), told.clone()]);
    let early = merged(&[(NETLINK, veth(7, &[])), told]);

    assert!(endpoint(&view, 7).addresses.is_empty());
    assert_eq!(
        view.conflicts,
        [Conflict::Addresses {
            interface: "veth7".into(),
            source: CACHE,
            told: addresses(&[8]),
            found: addresses(&[7])
        }]
        .into()
    );
    assert_eq!(
        early.conflicts,
        BTreeSet::new(),
        "the address is still to come"
    );
}

#[test]
fn a_leftover_of_an_earlier_pod_of_the_name_does_not_close_the_new_one() {
    let view = merged(&[
        (NETLINK, veth(7, &[9])),
        (CACHE, claim("old", 7, &[5], Some(pod("web-0", Some("u1"))))),
        (CACHE, claim("new", 7, &[9], Some(pod("web-0", Some("u2"))))),
    ]);

    assert_eq!(endpoint(&view, 7).identity, Some(pod("web-0", Some("u2"))));
    assert_eq!(endpoint(&view, 7).addresses, addresses(&[9]));
    assert_eq!((view.conflicts.len(), view.unmatched), (0, 1));
}

#[test]
fn a_stale_route_contradicts_nobody() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (SourceName::Routes, claim("7", 7, &[8], None)),
    ]);

    assert_eq!(endpoint(&view, 7).addresses, addresses(&[7]));
    assert_eq!(view.conflicts, BTreeSet::new());
}

#[test]
fn an_address_of_two_belongs_to_nobody() {
    let view = merged(&[(NETLINK, veth(7, &[7, 9])), (NETLINK, veth(8, &[8, 9]))]);

    assert_eq!(endpoint(&view, 7).addresses, addresses(&[7]));
    assert_eq!(endpoint(&view, 8).addresses, addresses(&[8]));
    let interfaces = vec!["veth7".into(), "veth8".into()];
    let shared = Conflict::Shared {
        address: address(9),
        interfaces,
    };
    assert_eq!(view.conflicts, [shared].into());
}

#[test]
fn who_takes_anothers_address_does_not_close_the_owner() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (NETLINK, veth(8, &[7, 8])),
        (CACHE, claim("a", 7, &[7], Some(pod("web", None)))),
        (CACHE, claim("b", 8, &[8], Some(pod("thief", None)))),
    ]);

    assert_eq!(endpoint(&view, 7).addresses, addresses(&[7]));
    assert_eq!(endpoint(&view, 8).addresses, addresses(&[8]));
    assert_eq!(endpoint(&view, 8).identity, Some(pod("thief", None)));
    assert_eq!(
        view.conflicts,
        [Conflict::Taken {
            address: address(7),
            owner: "veth7".into(),
            taker: "veth8".into()
        }]
        .into()
    );
}

#[test]
fn two_who_were_both_told_it_both_lose_it() {
    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (NETLINK, veth(8, &[7])),
        (CACHE, claim("a", 7, &[7], Some(pod("web", None)))),
        (CACHE, claim("b", 8, &[7], Some(pod("twin", None)))),
    ]);

    assert!(
        view.endpoints
            .values()
            .all(|endpoint| endpoint.addresses.is_empty())
    );
    assert!(matches!(
        view.conflicts.first(),
        Some(Conflict::Shared { .. })
    ));
}

#[test]
fn behind_a_tap_is_what_the_highest_rank_tells() {
    let mac = MacAddress([2, 0, 0, 0, 0, 7]);
    let learnt = Observation {
        mac: Some(mac),
        ..claim("7", 7, &[7], None)
    };

    let learnt_only = merged(&[(NETLINK, tap(7)), (SourceName::Fdb, learnt.clone())]);
    let routed = merged(&[
        (NETLINK, tap(7)),
        (SourceName::Fdb, learnt),
        (SourceName::Routes, claim("7", 7, &[17], None)),
    ]);

    assert_eq!(endpoint(&learnt_only, 7).addresses, addresses(&[7]));
    assert_eq!(endpoint(&routed, 7).addresses, addresses(&[17]));
    assert_eq!(endpoint(&routed, 7).mac, Some(mac));
}

#[test]
fn who_names_no_interface_identifies_by_address() {
    let by_address = Observation {
        interface: None,
        ..claim("a", 0, &[7], Some(pod("web", None)))
    };

    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (NETLINK, veth(8, &[8])),
        (SourceName::Nri, by_address),
    ]);

    assert_eq!(endpoint(&view, 7).identity, Some(pod("web", None)));
    assert_eq!(endpoint(&view, 8).identity, None);
}

#[test]
fn a_name_of_two_interfaces_names_neither() {
    let mut twin = veth(8, &[8]);
    twin.facts.as_mut().unwrap().name = "veth7".into();

    let view = merged(&[
        (NETLINK, veth(7, &[7])),
        (NETLINK, twin),
        (CACHE, claim("a", 7, &[7], Some(pod("web", None)))),
        (
            SourceName::Names,
            Observation {
                interface: Some(InterfaceRef::Index(8)),
                provider: Some("calico".into()),
                ..claim("8", 8, &[], None)
            },
        ),
    ]);

    assert_eq!(endpoint(&view, 7).identity, None);
    assert_eq!(endpoint(&view, 8).provider.as_deref(), Some("calico"));
    assert_eq!(view.unmatched, 1);
}

#[test]
fn an_endpoint_goes_from_unknown_to_gone() {
    let mut merger = Merger::default();
    let state = |merger: &Merger| endpoint(merger.view(), 7).state;

    merger.replace(NETLINK, [veth(7, &[7])]);
    merger.refresh();
    assert_eq!(state(&merger), EndpointState::Unknown);

    merger.replace(CACHE, [claim("a", 7, &[7], Some(pod("web", None)))]);
    merger.refresh();
    assert_eq!(state(&merger), EndpointState::Identified);

    merger.set_programmed([(7, address(7))].into());
    let changes = merger.refresh();
    assert_eq!(state(&merger), EndpointState::Programmed);
    assert_eq!(changes.upserted.len(), 1);

    merger.set_programmed([(8, address(7))].into());
    merger.refresh();
    assert_eq!(state(&merger), EndpointState::Identified, "bound elsewhere");

    merger.apply(NETLINK, Delta::Gone("7".into()));
    let changes = merger.refresh();
    let gone: Vec<_> = merger
        .gone()
        .map(|tomb| (tomb.address, tomb.identity.clone()))
        .collect();
    assert_eq!(changes.removed, [7]);
    assert_eq!(gone, [(address(7), Some(pod("web", None)))]);

    merger.apply(NETLINK, Delta::seen(veth(9, &[7])));
    merger.refresh();
    assert_eq!(merger.gone().count(), 0, "the address is used again");
}

#[test]
fn what_did_not_change_is_not_told() {
    let mut merger = Merger::default();
    merger.replace(NETLINK, [veth(7, &[7]), veth(8, &[7])]);

    let first = merger.refresh();
    merger.replace(NETLINK, [veth(8, &[7]), veth(7, &[7])]);
    merger.apply(NETLINK, Delta::Lagged);
    let second = merger.refresh();

    assert!(first.are_conflicts_changed && first.upserted.len() == 2);
    assert_eq!(second, flannel_adapter::merger::MergedChanges::default());
}

#[test]
fn tombstones_are_bounded() {
    let mut merger = Merger::default();
    for turn in 0..20_u8 {
        let wide = (0..=255).map(|last| {
            let mut seen = veth(u32::from(last) + 10, &[]);
            seen.addresses = vec![[10, turn, 0, last].into()];
            seen
        });
        merger.replace(NETLINK, wide);
        merger.set_programmed(
            (0..=255_u8)
                .map(|last| (u32::from(last) + 10, [10, turn, 0, last].into()))
                .collect(),
        );
        merger.refresh();
    }

    assert_eq!(merger.gone().count(), 4_096);
}

/// A veth behind which netlink sees this hardware address.
fn with_mac(index: u32, last: u8) -> Observation {
    let mac = Some(MacAddress([2, 0, 0, 0, 0, last]));
    let own = u8::try_from(index).unwrap();
    Observation {
        mac,
        ..veth(index, &[own])
    }
}

fn macs(merger: &Merger) -> Vec<Option<u8>> {
    let endpoints = merger.view().endpoints.values();
    endpoints
        .map(|endpoint| endpoint.mac.map(|mac| mac.0[5]))
        .collect()
}

#[test]
fn who_takes_anothers_hardware_address_does_not_close_who_had_it() {
    let mut merger = Merger::default();
    merger.replace(NETLINK, [with_mac(7, 7), with_mac(8, 8)]);
    merger.refresh();

    for _ in 0..2 {
        merger.replace(NETLINK, [with_mac(7, 7), with_mac(8, 7)]);
        merger.refresh();

        assert_eq!(macs(&merger), [Some(7), None]);
        let text = merger.view().conflicts.first().unwrap().to_string();
        assert_eq!(
            text,
            "veth8 has 02:00:00:00:00:07 too, which is that of veth7; it stays closed until it has another"
        );
    }

    merger.replace(NETLINK, [with_mac(7, 7), with_mac(8, 9)]);
    merger.refresh();
    assert_eq!(macs(&merger), [Some(7), Some(9)]);
    assert_eq!(merger.view().conflicts, BTreeSet::new());
}

#[test]
fn a_hardware_address_of_two_at_first_sight_is_that_of_whom_it_was_made_for_or_nobodys() {
    let mut merger = Merger::default();
    merger.replace(NETLINK, [with_mac(7, 7), with_mac(8, 7)]);
    merger.refresh();
    assert_eq!(macs(&merger), [None, None]);

    let told = Observation {
        mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
        ..claim("b", 8, &[8], Some(pod("web", None)))
    };
    merger.replace(CACHE, [told]);
    merger.refresh();

    assert_eq!(macs(&merger), [None, Some(7)]);
}

#[test]
fn ports_of_two_bridges_may_have_one_hardware_address() {
    let mut other = with_mac(8, 7);
    other.facts.as_mut().unwrap().bridge = Some("cni1".into());
    let mut merger = Merger::default();
    merger.replace(NETLINK, [with_mac(7, 7), other]);
    merger.refresh();

    assert_eq!(macs(&merger), [Some(7), Some(7)]);
}
