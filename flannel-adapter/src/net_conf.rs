//! Flannel's own configuration, `net-conf.json`: a file from a `ConfigMap`, or a value in etcd.

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::backend::Backend;
use crate::family::Networks;
use crate::fault::{Fault, Parsed};
use crate::json::{self, Fields};

/// What matters of `net-conf.json` to others than Flannel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetConf {
    /// Networks of all pods, of the enabled families only.
    pub networks: Networks,
    /// Flannel writes its rules with nftables, not with iptables.
    pub uses_nftables: bool,
    /// Length of the subnets that nodes get in etcd mode, per family.
    pub subnet_lengths: SubnetLengths,
    /// How packets go from node to node.
    pub backend: Backend,
    /// Whether the backend stands there; else it is Flannel's default.
    pub names_backend: bool,
}

/// Length of a node's subnet in etcd mode; in Kubernetes mode Kubernetes decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SubnetLengths {
    /// IPv4.
    pub ipv4: Option<u8>,
    /// IPv6.
    pub ipv6: Option<u8>,
}

impl NetConf {
    /// Reads the text found at `place`. Without a single network nothing can be said, so that is a fault.
    pub fn parse(place: &str, text: &str) -> Parsed<Option<Self>> {
        let mut faults = Vec::new();
        let value = json::kept(json::document(place, text), &mut faults)
            .as_ref()
            .and_then(|value| {
                json::kept(Fields::of(place, value), &mut faults).map(|fields| read(place, &fields))
            });
        let Some(parsed) = value else {
            return Parsed {
                value: None,
                faults,
            };
        };
        faults.extend(parsed.faults);
        Parsed {
            value: Some(parsed.value),
            faults,
        }
    }
}

fn read(place: &str, fields: &Fields<'_>) -> Parsed<NetConf> {
    let mut faults = Vec::new();
    let has_ipv4 = fields.flag("EnableIPv4", &mut faults).unwrap_or(true);
    let has_ipv6 = fields.flag("EnableIPv6", &mut faults).unwrap_or(false);
    let ipv4 = fields.text(
        "Network",
        "an IPv4 network such as 10.244.0.0/16",
        &mut faults,
        |text| text.parse::<Ipv4Net>().ok(),
    );
    let ipv6 = fields.text(
        "IPv6Network",
        "an IPv6 network such as fd00:10:244::/56",
        &mut faults,
        |text| text.parse::<Ipv6Net>().ok(),
    );
    let mut networks = Networks::default();
    for (is_enabled, name, network) in [
        (has_ipv4, "Network", ipv4.map(IpNet::V4)),
        (has_ipv6, "IPv6Network", ipv6.map(IpNet::V6)),
    ] {
        match network {
            Some(network) if is_enabled => {
                networks.put(network);
            }
            None if is_enabled && !fields.has(name) => faults.push(Fault::missing(
                place,
                name,
                "name the pods' network or switch the family off",
            )),
            _ => {}
        }
    }
    let ipv4_length = networks.ipv4.and_then(|network| {
        let length = fields.number("SubnetLen", "a length up to 30", &mut faults);
        subnet_length(length, network.prefix_len(), 24, 30)
    });
    let ipv6_length = networks.ipv6.and_then(|network| {
        let length = fields.number("IPv6SubnetLen", "a length up to 126", &mut faults);
        subnet_length(length, network.prefix_len(), 64, 126)
    });
    let has_backend = fields.has("Backend");
    let options = fields.object("Backend", "Backend.", &mut faults);
    let backend = Backend::read(options.as_ref(), &mut faults);
    let value = NetConf {
        networks,
        uses_nftables: fields.flag("EnableNFTables", &mut faults).unwrap_or(false),
        subnet_lengths: SubnetLengths {
            ipv4: ipv4_length,
            ipv6: ipv6_length,
        },
        backend,
        names_backend: has_backend,
    };
    Parsed { value, faults }
}

/// The length that Flannel uses: the configured one, else its usual one, else a quarter of a small network.
fn subnet_length(configured: Option<u8>, network: u8, usual: u8, most: u8) -> Option<u8> {
    let length = match configured {
        Some(length) if length > 0 => length,
        _ if network + 2 <= usual => usual,
        _ => network + 2,
    };
    (length <= most && length >= network + 2).then_some(length)
}
