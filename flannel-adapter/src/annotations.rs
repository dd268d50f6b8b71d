//! What Flannel writes at Node objects, in Kubernetes mode. The objects themselves are read by others.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use crate::backend::BackendType;
use crate::family::{Addresses, Networks, is_usable};
use crate::fault::{Fault, Parsed};
use crate::json::{self, Fields};
use crate::node::{NodeFacts, NodeKey, Vtep};

/// Flannel's usual prefix of its annotations.
pub const DEFAULT_PREFIX: &str = "flannel.alpha.coreos.com";

/// The part of a Node object that matters here, as plain data.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeRecord {
    /// Name of the Node.
    pub name: SmolStr,
    /// Its annotations, at least those of Flannel.
    pub annotations: BTreeMap<SmolStr, SmolStr>,
    /// `spec.podCIDRs`, or `spec.podCIDR` alone where that is all there is.
    pub pod_cidrs: Vec<SmolStr>,
    /// `status.addresses` of the types `InternalIP` and `ExternalIP`.
    pub addresses: Vec<IpAddr>,
}

/// The names of Flannel's annotations under one prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnnotationNames {
    prefix: SmolStr,
}

/// Why a text is no prefix of annotations.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{found:?} is no prefix of annotations; write what flanneld has in --kube-annotation-prefix, such as {DEFAULT_PREFIX}"
)]
pub struct PrefixError {
    found: String,
}

impl AnnotationNames {
    /// The names under `prefix`, formed as Flannel forms them: a domain gets a slash, and anything behind a slash a
    /// hyphen.
    pub fn new(prefix: &str) -> Result<Self, PrefixError> {
        let refused = || PrefixError {
            found: prefix.chars().take(64).collect(),
        };
        let (domain, rest) = prefix.split_once('/').unwrap_or((prefix, ""));
        let is_word = |text: &str, also: &str| {
            text.chars().all(|c| {
                c.is_ascii_lowercase() || c.is_ascii_digit() || "_-".contains(c) || also.contains(c)
            })
        };
        let is_domain = domain.contains('.')
            && is_word(domain, ".")
            && domain.split('.').all(|label| !label.is_empty());
        if !is_domain || !is_word(rest, "") || prefix.len() > 253 {
            return Err(refused());
        }
        let hyphen = if rest.is_empty() || rest.ends_with('-') {
            ""
        } else {
            "-"
        };
        Ok(Self {
            prefix: format!("{domain}/{rest}{hyphen}").into(),
        })
    }

    /// The full name of one annotation.
    pub fn of(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    /// Reads what Flannel says of a node. A node without Flannel's mark is one that Flannel does not know: its pod
    /// networks count, the rest does not.
    pub fn read(&self, record: &NodeRecord) -> Parsed<NodeFacts> {
        let mut reader = Reader {
            names: self,
            record,
            place: format!("Node {}", record.name),
            faults: Vec::new(),
        };
        let value = reader.node();
        Parsed {
            value,
            faults: reader.faults,
        }
    }
}

impl Default for AnnotationNames {
    fn default() -> Self {
        Self {
            prefix: format!("{DEFAULT_PREFIX}/").into(),
        }
    }
}

struct Reader<'a> {
    names: &'a AnnotationNames,
    record: &'a NodeRecord,
    place: String,
    faults: Vec<Fault>,
}

impl Reader<'_> {
    fn node(&mut self) -> NodeFacts {
        let is_managed = self
            .annotation("kube-subnet-manager", "true or false", |text| {
                text.parse().ok()
            })
            .unwrap_or(false);
        let mut facts = NodeFacts {
            pod_networks: self.pod_networks(),
            addresses: self
                .record
                .addresses
                .iter()
                .copied()
                .filter(|address| is_usable(*address))
                .collect(),
            is_managed,
            ..NodeFacts::new(NodeKey::Node(self.record.name.clone()))
        };
        if !is_managed {
            return facts;
        }
        facts.backend = self.annotation("backend-type", "the name of a backend", |text| {
            text.parse::<BackendType>().ok()
        });
        facts.public = self.public();
        if facts.backend == Some(BackendType::Vxlan) {
            facts.vtep = self.vtep("backend-data");
            facts.vtep_v6 = self.vtep("backend-v6-data");
        }
        facts
    }

    /// One of each family; Kubernetes allows no more.
    fn pod_networks(&mut self) -> Networks {
        let mut networks = Networks::default();
        for text in &self.record.pod_cidrs {
            let Ok(network) = text.parse::<IpNet>() else {
                self.faults.push(Fault::malformed(
                    &self.place,
                    "spec.podCIDRs",
                    text,
                    "a network; the controller manager gives it out",
                ));
                continue;
            };
            if !networks.put(network) {
                self.faults
                    .push(Fault::repeated(&self.place, "spec.podCIDRs"));
            }
        }
        networks
    }

    /// The addresses to which other nodes send.
    fn public(&mut self) -> Addresses {
        let ipv4 = |text: &str| {
            let address = text.parse::<Ipv4Addr>().ok();
            address.filter(|address| is_usable(IpAddr::V4(*address)))
        };
        let ipv6 = |text: &str| {
            let address = text.parse::<Ipv6Addr>().ok();
            address.filter(|address| is_usable(IpAddr::V6(*address)))
        };
        Addresses {
            ipv4: self.annotation("public-ip", "an IPv4 address of the node", ipv4),
            ipv6: self.annotation("public-ipv6", "an IPv6 address of the node", ipv6),
        }
    }

    fn vtep(&mut self, name: &str) -> Option<Vtep> {
        let text = self.record.annotations.get(self.names.of(name).as_str())?;
        let place = format!("{} {}", self.place, self.names.of(name));
        vtep(&place, text, &mut self.faults)
    }

    /// Reads an annotation. An empty one is absent, as for Flannel.
    fn annotation<T>(
        &mut self,
        name: &str,
        wanted: &'static str,
        read: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let name = self.names.of(name);
        let text = self.record.annotations.get(name.as_str())?;
        if text.is_empty() {
            return None;
        }
        let value = read(text);
        if value.is_none() {
            self.faults
                .push(Fault::malformed(&self.place, &name, text, wanted));
        }
        value
    }
}

/// Reads the data of the backend `vxlan`; `null` and nothing are absent.
pub(crate) fn vtep(place: &str, text: &str, faults: &mut Vec<Fault>) -> Option<Vtep> {
    if text.trim().is_empty() {
        return None;
    }
    let value = json::kept(json::document(place, text), faults)?;
    vtep_of(place, &value, faults)
}

/// The same from a parsed value.
pub(crate) fn vtep_of(
    place: &str,
    value: &serde_json::Value,
    faults: &mut Vec<Fault>,
) -> Option<Vtep> {
    if value.is_null() {
        return None;
    }
    let fields = json::kept(Fields::of(place, value), faults)?;
    let vni = fields.number("VNI", "a number of a virtual network", faults);
    let mac = fields.text(
        "VtepMAC",
        "a hardware address such as 02:00:00:00:00:01",
        faults,
        |text| {
            let mac: MacAddress = text.parse().ok()?;
            // A group's address or none can be no device's.
            (mac.0[0] & 1 == 0 && mac.0 != [0; 6]).then_some(mac)
        },
    );
    Some(Vtep {
        vni: vni?,
        mac: mac?,
    })
}
