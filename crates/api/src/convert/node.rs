//! `v1` Node.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::{Node, Object};

use super::Converted;
use super::meta::Meta;
use super::network_policy::read_cidr;
use super::selector::all;
use crate::check;
use crate::field::Fields;
use crate::limits;

/// Converts a Node.
pub(super) fn convert(root: &Fields<'_>, meta: &Meta) -> Converted {
    let pod_cidrs = read_pod_cidrs(root);
    let addresses = read_addresses(root);
    let node = || {
        let pod_cidrs = pod_cidrs?;
        let mut addresses = addresses?;
        if meta.flannel_backend.as_deref().is_some_and(is_vxlan) {
            addresses.extend(pod_cidrs.iter().flat_map(bridge_identities));
        }
        addresses.sort();
        addresses.dedup();
        let (name, labels) = (meta.name.clone()?, meta.labels.clone());
        Some(Node {
            name,
            labels,
            addresses,
            pod_cidrs,
        })
    };
    Converted {
        object: node().map(Object::Node),
        stand_in: None,
    }
}

fn is_vxlan(backend: &str) -> bool {
    // Flannel compares the type without regard to case.
    backend.eq_ignore_ascii_case("vxlan")
}

/// With vxlan and a bridge, the host's own traffic to remote pods comes from the first address of its pod CIDR
/// (`flannel.1`), and that to its local pods from the second (`cni0`).
fn bridge_identities(pod_cidr: &IpNet) -> [IpAddr; 2] {
    match pod_cidr.network() {
        IpAddr::V4(first) => [
            IpAddr::V4(first),
            IpAddr::V4(Ipv4Addr::from(u32::from(first).saturating_add(1))),
        ],
        IpAddr::V6(first) => [
            IpAddr::V6(first),
            IpAddr::V6(Ipv6Addr::from(u128::from(first).saturating_add(1))),
        ],
    }
}

fn read_pod_cidrs(root: &Fields<'_>) -> Option<Vec<IpNet>> {
    let Some(field) = root.get("spec") else {
        return Some(Vec::new());
    };
    let spec = field.fields()?;
    if let Some(list) = spec.get("podCIDRs") {
        return all(list.items(limits::ADDRESSES)?.map(|item| read_cidr(&item)));
    }
    match spec.get("podCIDR") {
        None => Some(Vec::new()),
        Some(single) => Some(vec![read_cidr(&single)?]),
    }
}

/// The addresses of `status.addresses` that are IP addresses; names are left out.
fn read_addresses(root: &Fields<'_>) -> Option<Vec<IpAddr>> {
    let Some(field) = root.get("status") else {
        return Some(Vec::new());
    };
    let status = field.fields()?;
    let Some(list) = status.get("addresses") else {
        return Some(Vec::new());
    };
    let read = all(list.items(limits::ADDRESSES)?.map(|item| {
        let fields = item.fields()?;
        let kind = fields
            .get("type")
            .and_then(|kind| kind.text().map(SmolStr::new));
        let Some(address) = fields.get("address") else {
            return Some(None);
        };
        let text = address.text()?;
        match kind.as_deref() {
            Some("InternalIP" | "ExternalIP") => {
                address.checked(check::unicast_address(text)).map(Some)
            }
            _ => Some(check::unicast_address(text).ok()),
        }
    }))?;
    Some(read.into_iter().flatten().collect())
}
