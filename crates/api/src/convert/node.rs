//! `v1` Node.

use std::net::IpAddr;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::{Node, Object};

use super::Converted;
use super::meta::Meta;
use super::network_policy::read_cidr;
use super::selector::all;
use crate::check;
use crate::fault::quote;
use crate::field::{Field, Fields};
use crate::limits;

/// Converts a Node.
pub(super) fn convert(root: &Fields<'_>, meta: &Meta) -> Converted {
    let pod_cidrs = read_pod_cidrs(root);
    let addresses = read_addresses(root);
    let flannel = read_flannel(root);
    let node = || {
        let (pod_cidrs, flannel) = (pod_cidrs?, flannel?);
        let mut addresses = addresses?;
        addresses.extend(flannel.public);
        addresses.sort();
        addresses.dedup();
        let has_tunnel = |cidr: &&IpNet| flannel.tunnels[usize::from(cidr.addr().is_ipv6())];
        Some(Node {
            name: meta.name.clone()?,
            labels: meta.labels.clone(),
            addresses,
            observed: Vec::new(),
            tunnel_cidrs: pod_cidrs.iter().filter(has_tunnel).copied().collect(),
            pod_cidrs,
        })
    };
    Converted {
        object: node().map(Object::Node),
        stand_in: None,
    }
}

/// What Flannel notes of a node in annotations.
#[derive(Debug, Default)]
struct Flannel {
    /// Whether there is a `vxlan` tunnel for IPv4, and for IPv6.
    tunnels: [bool; 2],
    /// The addresses to which other nodes send, and from which the host does.
    public: Vec<IpAddr>,
}

const BACKEND: &str = "flannel.alpha.coreos.com/backend-type";
/// The tunnel's end, for IPv4 and for IPv6.
const BACKEND_DATA: [&str; 2] = [
    "flannel.alpha.coreos.com/backend-data",
    "flannel.alpha.coreos.com/backend-v6-data",
];
const PUBLIC: [&str; 2] = [
    "flannel.alpha.coreos.com/public-ip",
    "flannel.alpha.coreos.com/public-ipv6",
];

/// Reads the annotations; `None` when one is not what Flannel would write (reported).
fn read_flannel(root: &Fields<'_>) -> Option<Flannel> {
    let metadata = root.get("metadata");
    let metadata = metadata.as_ref().and_then(Field::fields);
    let Some(field) = metadata.and_then(|metadata| metadata.get("annotations")) else {
        return Some(Flannel::default());
    };
    let annotations = field.fields()?;
    let mut found = Flannel::default();
    if let Some(backend) = annotations.get(BACKEND) {
        let text = backend.text()?;
        if text.len() > 32 {
            backend.error(
                format!("{} is not a Flannel backend", quote(text)),
                "write it like vxlan or host-gw",
            );
            return None;
        }
        // Flannel compares the type without regard to case.
        if text.eq_ignore_ascii_case("vxlan") {
            let data = BACKEND_DATA.map(|key| annotations.get(key));
            // A Node written by hand may name the backend alone.
            let is_by_hand = data.iter().all(Option::is_none);
            found.tunnels = data.map(|data| {
                let text = data.as_ref().and_then(Field::text);
                is_by_hand || text.is_some_and(|text| text != "null")
            });
        }
    }
    for address in PUBLIC.iter().filter_map(|key| annotations.get(key)) {
        // Flannel writes 0.0.0.0 where it has none, and a claim that cannot be read is none.
        let read = address
            .text()
            .and_then(|text| check::unicast_address(text).ok());
        found.public.extend(read);
    }
    Some(found)
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
