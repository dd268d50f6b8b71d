//! `subnet.env`: what flanneld tells the CNI plugin of this node. It is rewritten at each start of flanneld and gone after a
//! reboot until then.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::family::{Addresses, Networks};
use crate::fault::{Fault, Parsed};

/// Where flanneld writes it unless told otherwise.
pub const DEFAULT_PATH: &str = "/run/flannel/subnet.env";

const REMEDY: &str = "flanneld has not finished writing the file; look at its log, or restart it";

/// What `subnet.env` says.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SubnetEnv {
    /// Networks of all pods; Flannel may list several of a family.
    pub networks: Vec<IpNet>,
    /// This node's pods.
    pub subnets: Networks,
    /// The bridge's addresses: the first of each subnet.
    pub gateways: Addresses,
    /// Largest packet of a pod, in bytes.
    pub mtu: Option<u32>,
    /// Whether Flannel masquerades. If not, the CNI plugin may.
    pub masquerades: Option<bool>,
}

impl SubnetEnv {
    /// Reads the text of the file at `place`. Unknown lines are left alone.
    pub fn parse(place: &str, text: &str) -> Parsed<Self> {
        let (lines, mut faults) = lines(place, text);
        let mut reader = Reader {
            place,
            lines,
            faults: &mut faults,
        };
        let ipv4 = reader.subnet(
            "FLANNEL_SUBNET",
            "an IPv4 subnet such as 10.244.1.1/24",
            |text| text.parse::<Ipv4Net>().ok().map(IpNet::V4),
        );
        let ipv6 = reader.subnet(
            "FLANNEL_IPV6_SUBNET",
            "an IPv6 subnet such as fd00:1::1/64",
            |text| text.parse::<Ipv6Net>().ok().map(IpNet::V6),
        );
        let mut networks = reader.networks("FLANNEL_NETWORK");
        networks.extend(reader.networks("FLANNEL_IPV6_NETWORK"));
        let mut value = Self {
            networks,
            mtu: reader.required("FLANNEL_MTU", "a number of bytes", |text| {
                text.parse().ok().filter(|mtu| *mtu > 0)
            }),
            masquerades: reader
                .required("FLANNEL_IPMASQ", "true or false", |text| text.parse().ok()),
            ..Self::default()
        };
        for subnet in ipv4.into_iter().chain(ipv6) {
            value.subnets.put(subnet);
            match subnet.addr() {
                IpAddr::V4(address) => value.gateways.ipv4 = Some(address),
                IpAddr::V6(address) => value.gateways.ipv6 = Some(address),
            }
        }
        let names_subnet = ["FLANNEL_SUBNET", "FLANNEL_IPV6_SUBNET"]
            .iter()
            .any(|name| reader.lines.contains_key(name));
        if !names_subnet {
            faults.push(Fault::missing(place, "FLANNEL_SUBNET", REMEDY));
        }
        Parsed { value, faults }
    }
}

/// The lines `NAME=value`, without quotes and comments.
fn lines<'a>(place: &str, text: &'a str) -> (BTreeMap<&'a str, &'a str>, Vec<Fault>) {
    let (mut lines, mut faults) = (BTreeMap::new(), Vec::new());
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, value)) = line.split_once('=') else {
            faults.push(Fault::malformed(place, "a line", line, "NAME=value"));
            continue;
        };
        let (name, value) = (name.trim(), unquoted(value.trim()));
        if lines
            .insert(name, value)
            .is_some_and(|before| before != value)
        {
            faults.push(Fault::repeated(place, name));
        }
    }
    (lines, faults)
}

fn unquoted(text: &str) -> &str {
    let without = |quote| text.strip_prefix(quote)?.strip_suffix(quote);
    without('"').or_else(|| without('\'')).unwrap_or(text)
}

struct Reader<'a> {
    place: &'a str,
    lines: BTreeMap<&'a str, &'a str>,
    faults: &'a mut Vec<Fault>,
}

impl Reader<'_> {
    fn optional<T>(
        &mut self,
        name: &str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let text = self.lines.get(name)?;
        let value = read(text);
        if value.is_none() {
            self.faults
                .push(Fault::malformed(self.place, name, text, wanted));
        }
        value
    }

    fn required<T>(
        &mut self,
        name: &str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        if !self.lines.contains_key(name) {
            self.faults.push(Fault::missing(self.place, name, REMEDY));
        }
        self.optional(name, wanted, read)
    }

    fn subnet(
        &mut self,
        name: &str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<IpNet>,
    ) -> Option<IpNet> {
        self.optional(name, wanted, read)
    }

    /// A list with commas. One bad network does not hide the others.
    fn networks(&mut self, name: &str) -> Vec<IpNet> {
        let text = self.lines.get(name).copied().unwrap_or_default();
        let mut found = Vec::new();
        for part in text
            .split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
        {
            match part.parse::<IpNet>() {
                Ok(network) => found.push(network.trunc()),
                Err(_) => self.faults.push(Fault::malformed(
                    self.place,
                    name,
                    part,
                    "networks separated by commas",
                )),
            }
        }
        found
    }
}
