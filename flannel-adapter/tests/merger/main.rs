//! What follows from what many sources see.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod rules;
mod walk;

use std::net::IpAddr;

use flannel_adapter::source::{Identity, InterfaceFacts, InterfaceKind, InterfaceRef, Observation};
use smol_str::{SmolStr, format_smolstr};

fn address(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn addresses(lasts: &[u8]) -> Vec<IpAddr> {
    lasts.iter().copied().map(address).collect()
}

/// A veth of which netlink sees these addresses.
fn veth(index: u32, lasts: &[u8]) -> Observation {
    Observation {
        key: format_smolstr!("{index}"),
        interface: Some(InterfaceRef::Index(index)),
        facts: Some(InterfaceFacts {
            index,
            name: format_smolstr!("veth{index}"),
            kind: InterfaceKind::Veth,
            bridge: Some("cni0".into()),
            is_seen_through: true,
        }),
        addresses: addresses(lasts),
        ..Observation::default()
    }
}

/// A tap, behind which nobody can look.
fn tap(index: u32) -> Observation {
    let mut tap = veth(index, &[]);
    let facts = tap.facts.as_mut().unwrap();
    facts.kind = InterfaceKind::Tap;
    facts.is_seen_through = false;
    tap
}

fn pod(name: &str, uid: Option<&str>) -> Identity {
    Identity::Pod {
        namespace: "default".into(),
        name: name.into(),
        uid: uid.map(SmolStr::new),
        sandbox: None,
    }
}

/// What somebody says of an interface.
fn claim(key: &str, index: u32, lasts: &[u8], identity: Option<Identity>) -> Observation {
    Observation {
        key: key.into(),
        interface: Some(InterfaceRef::Name(format_smolstr!("veth{index}"))),
        addresses: addresses(lasts),
        identity,
        ..Observation::default()
    }
}
