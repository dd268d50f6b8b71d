//! Flannel's keys and values in etcd, in etcd mode. How they are fetched stands in `etcd`.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::annotations::vtep_of;
use crate::backend::BackendType;
use crate::family::{Networks, is_usable};
use crate::fault::{Fault, Parsed};
use crate::json::{self, Fields};
use crate::node::{NodeFacts, NodeKey};

/// Where Flannel keeps everything unless told otherwise.
pub const DEFAULT_PREFIX: &str = "/coreos.com/network";

/// The names of Flannel's keys under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyNames {
    prefix: String,
}

/// What a key is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// The configuration, as `net-conf.json`.
    Config,
    /// A node's subnets.
    Subnet(Networks),
    /// Nothing that we know.
    Other,
}

impl KeyNames {
    /// The names under `prefix`, with or without a slash at its end.
    pub fn new(prefix: &str) -> Self {
        Self {
            prefix: prefix.trim_end_matches('/').to_owned(),
        }
    }

    /// The key of the configuration.
    pub fn config(&self) -> String {
        format!("{}/config", self.prefix)
    }

    /// With what the keys of subnets begin.
    pub fn subnets(&self) -> String {
        format!("{}/subnets/", self.prefix)
    }

    /// With what every key begins.
    pub fn all(&self) -> String {
        format!("{}/", self.prefix)
    }

    /// Tells what a key is about. One that lies among the subnets and is none is a fault.
    pub fn classify(&self, key: &str) -> Result<Key, Fault> {
        if key == self.config() {
            return Ok(Key::Config);
        }
        let Some(name) = key.strip_prefix(self.subnets().as_str()) else {
            return Ok(Key::Other);
        };
        subnets(name).map(Key::Subnet).ok_or_else(|| {
            Fault::malformed(
                "etcd",
                "a key among the subnets",
                key,
                "10.5.34.0-24, or 10.5.34.0-24&fd00:5:34::-64",
            )
        })
    }
}

impl Default for KeyNames {
    fn default() -> Self {
        Self::new(DEFAULT_PREFIX)
    }
}

/// Reads `10.5.34.0-24` or `10.5.34.0-24&fd00:5:34::-64`.
fn subnets(name: &str) -> Option<Networks> {
    let (ipv4, ipv6) = match name.split_once('&') {
        Some((ipv4, ipv6)) => (ipv4, Some(ipv6)),
        None => (name, None),
    };
    let (address, length) = ipv4.split_once('-')?;
    let ipv4 = Ipv4Net::new(address.parse().ok()?, length.parse().ok()?).ok()?;
    let ipv6 = match ipv6 {
        Some(ipv6) => {
            let (address, length) = ipv6.rsplit_once('-')?;
            Some(Ipv6Net::new(address.parse().ok()?, length.parse().ok()?).ok()?)
        }
        None => None,
    };
    let mut networks = Networks::default();
    networks.put(IpNet::V4(ipv4));
    if let Some(ipv6) = ipv6 {
        networks.put(IpNet::V6(ipv6));
    }
    Some(networks)
}

/// Reads the value of a subnet's key. The node's name is not in it.
pub fn read(subnets: Networks, value: &str) -> Parsed<NodeFacts> {
    let name = subnets
        .iter()
        .map(|network| network.to_string())
        .collect::<Vec<_>>();
    let name = name.join(" ");
    let place = format!("etcd subnet {name}");
    let mut faults = Vec::new();
    let mut facts = NodeFacts {
        pod_networks: subnets,
        is_managed: true,
        ..NodeFacts::new(NodeKey::Lease(name.into()))
    };
    let document = json::kept(json::document(&place, value), &mut faults);
    if let Some(document) = document
        && let Some(fields) = json::kept(Fields::of(&place, &document), &mut faults)
    {
        fill(&place, &fields, &mut facts, &mut faults);
    }
    Parsed {
        value: facts,
        faults,
    }
}

fn fill(place: &str, fields: &Fields<'_>, facts: &mut NodeFacts, faults: &mut Vec<Fault>) {
    facts.backend = fields.text("BackendType", "the name of a backend", faults, |text| {
        text.parse::<BackendType>().ok()
    });
    // Flannel writes 0.0.0.0 for none.
    let ipv4 = fields.text("PublicIP", "an IPv4 address of the node", faults, |text| {
        text.parse::<Ipv4Addr>().ok()
    });
    let ipv6 = fields.text(
        "PublicIPv6",
        "an IPv6 address of the node",
        faults,
        |text| text.parse::<Ipv6Addr>().ok(),
    );
    facts.public.ipv4 = ipv4.filter(|address| is_usable(IpAddr::V4(*address)));
    facts.public.ipv6 = ipv6.filter(|address| is_usable(IpAddr::V6(*address)));
    if facts.backend != Some(BackendType::Vxlan) {
        return;
    }
    for (name, slot) in [
        ("BackendData", &mut facts.vtep),
        ("BackendV6Data", &mut facts.vtep_v6),
    ] {
        let data = fields.read(name, "a JSON value", faults, Some);
        let place = format!("{place} {name}");
        *slot = data.and_then(|data| vtep_of(&place, data, faults));
    }
}
