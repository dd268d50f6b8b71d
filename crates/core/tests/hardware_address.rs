//! A pod that may set the hardware address of its interface takes a neighbour's: whose it is then. A bridge sends frames
//! to the port where it saw their address last, so whoever may send under it gets what is the neighbour's.

use std::collections::BTreeMap;
use std::net::IpAddr;

use smol_str::format_smolstr;
use towpath_core::calc::CalcGraph;
use towpath_core::model::{
    Endpoint, EndpointId, EndpointKind, Lifecycle, MacAddress, Namespace, Object, ObjectKey,
    ObservedInterface, Update,
};
use towpath_core::tables::Tables;

fn address(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn mac(last: u8) -> MacAddress {
    MacAddress([2, 0, 0, 0, 0, last])
}

fn endpoint(last: u8, named: Option<MacAddress>) -> Update {
    let kind = match named {
        None => EndpointKind::Pod,
        Some(_) => EndpointKind::WorkloadEndpoint,
    };
    Update::Upsert(Object::Endpoint(Endpoint {
        id: EndpointId {
            kind,
            namespace: "team".into(),
            name: format_smolstr!("e{last}"),
        },
        labels: [("app", "web")].into_iter().collect(),
        node: Some("here".into()),
        addresses: vec![address(last)],
        ports: Vec::new(),
        uid: None,
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: named.map(|_| format!("veth{last}").parse().expect("a name")),
        mac: named,
    }))
}

fn interface(last: u8, bridge: Option<&str>, shown: u8) -> Update {
    Update::Upsert(Object::Interface(ObservedInterface {
        index: u32::from(last),
        name: format!("veth{last}").parse().expect("a name"),
        bridge: bridge.map(|name| name.parse().expect("a name")),
        mac: Some(mac(shown)),
        addresses: vec![address(last)],
    }))
}

fn namespace() -> Update {
    Update::Upsert(Object::Namespace(Namespace {
        name: "team".into(),
        labels: [("a", "b")].into_iter().collect(),
    }))
}

/// The hardware address to which each address is bound.
fn bound(tables: &Tables) -> BTreeMap<IpAddr, Option<MacAddress>> {
    let bindings = tables.bindings.keys();
    let bound = bindings.map(|binding| (binding.address, binding.mac));
    let bound: BTreeMap<IpAddr, Option<MacAddress>> = bound.collect();
    let known: Vec<IpAddr> = tables.ingress.state.keys().copied().collect();
    assert_eq!(bound.keys().copied().collect::<Vec<_>>(), known);
    bound
}

/// What comes out, whatever the order, and whether a flush stands between.
fn after_any_order(updates: &[Update]) -> BTreeMap<IpAddr, Option<MacAddress>> {
    let mut all = Vec::new();
    permute(&mut updates.to_vec(), 0, &mut all);
    let mut found = all.iter().map(|order| {
        let (mut graph, mut tables) = (CalcGraph::new("here"), Tables::default());
        for update in order {
            graph.apply(update);
            graph
                .flush()
                .phases
                .iter()
                .for_each(|phase| tables.apply(phase));
        }
        let mut at_once = CalcGraph::new("here");
        for update in order {
            at_once.apply(update);
        }
        at_once.flush();
        assert_eq!(bound(&tables), bound(&at_once.tables()), "{order:#?}");
        bound(&tables)
    });
    let first = found.next().expect("an order");
    assert!(found.all(|other| other == first), "it depends on the order");
    first
}

fn permute(updates: &mut Vec<Update>, from: usize, all: &mut Vec<Vec<Update>>) {
    if from == updates.len() {
        all.push(updates.clone());
    }
    for index in from..updates.len() {
        updates.swap(from, index);
        permute(updates, from + 1, all);
        updates.swap(from, index);
    }
}

#[test]
fn one_that_two_ports_of_a_bridge_show_is_nobodys() {
    let found = after_any_order(&[
        namespace(),
        endpoint(1, None),
        interface(1, Some("cni0"), 1),
        endpoint(2, None),
        interface(2, Some("cni0"), 1),
    ]);

    assert_eq!(found, BTreeMap::new());
}

#[test]
fn ports_of_two_bridges_and_routed_interfaces_may_have_the_same() {
    for bridges in [
        (Some("cni0"), Some("cni1")),
        (None, None),
        (None, Some("cni0")),
    ] {
        let found = after_any_order(&[
            namespace(),
            endpoint(1, None),
            interface(1, bridges.0, 7),
            endpoint(2, None),
            interface(2, bridges.1, 7),
        ]);

        let both = [(address(1), Some(mac(7))), (address(2), Some(mac(7)))];
        assert_eq!(found, both.into(), "{bridges:?}");
    }
}

#[test]
fn one_that_an_object_names_stays_that_of_its_endpoint() {
    let found = after_any_order(&[
        namespace(),
        endpoint(1, Some(mac(1))),
        interface(1, Some("cni0"), 9),
        endpoint(2, None),
        interface(2, Some("cni0"), 1),
    ]);

    assert_eq!(found, [(address(1), Some(mac(1)))].into());
}

#[test]
fn both_come_back_when_the_taker_gives_it_back_or_goes() {
    let taken = [
        namespace(),
        endpoint(1, None),
        interface(1, Some("cni0"), 1),
        endpoint(2, None),
        interface(2, Some("cni0"), 1),
    ];
    let (one, two) = ((address(1), Some(mac(1))), (address(2), Some(mac(2))));
    for (change, wanted) in [
        (interface(2, Some("cni0"), 2), vec![one, two]),
        (interface(2, Some("cni1"), 2), vec![one, two]),
        (Update::Remove(ObjectKey::Interface(2)), vec![one]),
    ] {
        let (mut graph, mut tables) = (CalcGraph::new("here"), Tables::default());
        for update in taken.iter().chain([&change]) {
            graph.apply(update);
            graph
                .flush()
                .phases
                .iter()
                .for_each(|phase| tables.apply(phase));
        }

        assert_eq!(bound(&tables), wanted.into_iter().collect(), "{change:?}");
        assert_eq!(tables, graph.tables());
    }
}
