//! What this node itself shows of Flannel: its files, its devices and their routes. Changes nothing.
//!
//! What other nodes are told of it stands elsewhere: in Node objects or in etcd.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;
use towpath_dataplane::link::{Interface, NetlinkError, Scanner, Snapshot};
use towpath_dataplane::nft::survey_bare_tables;

use crate::detect::ConfList;
use crate::facts::{Inputs, Link};
use crate::fault::Fault;
use crate::files::{self, FileError};
use crate::net_conf::NetConf;
use crate::node::NodeFacts;
use crate::subnet_env::{self, SubnetEnv};

/// Where a pod of Flannel's has its configuration; some put it on the host, too.
pub const DEFAULT_NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

/// Tables that Flannel makes in its nftables mode.
const TABLES: [(&str, &str); 2] = [("ip", "flannel-ipv4"), ("ip6", "flannel-ipv6")];

/// With what Flannel writes its rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rules {
    /// With the program iptables.
    Iptables,
    /// With nftables.
    Nftables,
}

impl fmt::Display for Rules {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Iptables => "iptables",
            Self::Nftables => "nftables",
        })
    }
}

/// Where Flannel's files are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Places {
    /// What flanneld writes at its start.
    pub subnet_env: PathBuf,
    /// Its configuration, where it can be read as a file.
    pub net_conf: PathBuf,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            subnet_env: subnet_env::DEFAULT_PATH.into(),
            net_conf: DEFAULT_NET_CONF.into(),
        }
    }
}

/// Why it cannot be told.
#[derive(Debug, thiserror::Error)]
pub enum LookError {
    /// The kernel cannot be asked.
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    /// A file is there and cannot be read.
    #[error(transparent)]
    File(#[from] FileError),
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Here {
    /// Whether there is any sign of Flannel.
    pub is_there: bool,
    /// Whether flanneld should have written it by now.
    pub expects_subnet_env: bool,
    /// What flanneld wrote at its start.
    pub subnet_env: Option<SubnetEnv>,
    /// Its configuration.
    pub net_conf: Option<NetConf>,
    /// All interfaces but the veths, which are pods'.
    pub links: Vec<Link>,
    /// Whether Flannel's tables of nftables are there.
    pub has_tables: bool,
    /// Routes by devices of Flannel.
    pub routes: Vec<(IpNet, SmolStr)>,
    /// Fields that could not be understood.
    pub faults: Vec<Fault>,
}

impl Here {
    /// Looks, in the network namespace of `scanner` and of the calling thread, which are one.
    pub fn look(
        scanner: &mut Scanner,
        snapshot: &Snapshot,
        conflist: Option<&ConfList>,
        places: &Places,
    ) -> Result<Self, LookError> {
        let mut here = Self {
            links: links(scanner, snapshot)?,
            has_tables: survey_bare_tables()?
                .iter()
                .any(|table| TABLES.contains(&(table.family, table.name.as_str()))),
            ..Self::default()
        };
        if let Some(parsed) = files::subnet_env(&places.subnet_env)? {
            here.faults.extend(parsed.faults);
            here.subnet_env = Some(parsed.value);
        }
        if let Some(parsed) = files::net_conf(&places.net_conf)? {
            here.faults.extend(parsed.faults);
            here.net_conf = parsed.value;
        }
        let devices: BTreeMap<u32, &SmolStr> = snapshot
            .interfaces
            .iter()
            .filter(|link| link.name.starts_with("flannel"))
            .map(|link| (link.index, &link.name))
            .collect();
        let plugin = conflist.and_then(|conflist| conflist.plugins.first());
        here.is_there = !devices.is_empty()
            || here.has_tables
            || here.subnet_env.is_some()
            || plugin.is_some_and(|name| name == "flannel");
        here.expects_subnet_env = here.is_there;
        if !devices.is_empty() {
            let routes = scanner.routes(|route| devices.contains_key(&route.index))?;
            let named = routes.iter().filter_map(|route| {
                let device = devices.get(&route.index)?;
                Some((route.destination, (*device).clone()))
            });
            here.routes = named.collect();
        }
        Ok(here)
    }

    /// With what Flannel writes its rules; none before it runs.
    pub fn rules(&self) -> Option<Rules> {
        let is_configured = self
            .net_conf
            .as_ref()
            .is_some_and(|conf| conf.uses_nftables);
        // It makes the tables right after the file.
        match (self.has_tables, self.subnet_env.is_some()) {
            (true, _) => Some(Rules::Nftables),
            (false, false) => None,
            (false, true) if is_configured => Some(Rules::Nftables),
            (false, true) => Some(Rules::Iptables),
        }
    }

    /// UDP ports of every tunnel that ends at a device of this node, whoever made it.
    pub fn tunnel_ports(&self) -> BTreeSet<u16> {
        self.links.iter().filter_map(|link| link.udp_port).collect()
    }

    /// Together with what is known of the nodes. `bridge` is the one that pods of this node are plugged into.
    pub fn inputs(
        &self,
        own_node: SmolStr,
        nodes: Vec<NodeFacts>,
        bridge: Option<SmolStr>,
    ) -> Inputs {
        Inputs {
            own_node,
            expects_subnet_env: self.expects_subnet_env,
            nodes,
            subnet_env: self.subnet_env.clone(),
            net_conf: self.net_conf.clone(),
            links: Some(self.links.clone()),
            routes: self.routes.clone(),
            bridge,
        }
    }
}

fn links(scanner: &mut Scanner, snapshot: &Snapshot) -> Result<Vec<Link>, NetlinkError> {
    let is_vxlan = |link: &Interface| link.kind.as_deref() == Some("vxlan");
    let ports: BTreeMap<u32, u16> = if snapshot.interfaces.iter().any(is_vxlan) {
        let devices = scanner.vxlan_devices()?;
        devices
            .iter()
            .map(|device| (device.index, device.port))
            .collect()
    } else {
        BTreeMap::new()
    };
    let interfaces = snapshot.interfaces.iter();
    let mut links: BTreeMap<u32, Link> = interfaces
        .filter(|link| link.peer.is_none())
        .map(|link| {
            let seen = Link {
                name: link.name.clone(),
                mtu: link.mtu,
                mac: link.mac.map(MacAddress),
                addresses: Vec::new(),
                udp_port: ports.get(&link.index).copied(),
            };
            (link.index, seen)
        })
        .collect();
    for host in &snapshot.host_addresses {
        if let Some(link) = links.get_mut(&host.index)
            && !is_link_local(host.address)
        {
            link.addresses.push(host.address);
        }
    }
    Ok(links.into_values().collect())
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn here(has_tables: bool, has_run: bool, conf: Option<&str>) -> Option<Rules> {
        let net_conf = conf.and_then(|text| NetConf::parse("net-conf.json", text).value);
        Here {
            has_tables,
            net_conf,
            subnet_env: has_run.then(SubnetEnv::default),
            ..Here::default()
        }
        .rules()
    }

    #[test]
    fn rules_are_those_that_are_there_else_those_that_will_be() {
        let nftables = r#"{"Network": "10.244.0.0/16", "EnableNFTables": true}"#;
        let iptables = r#"{"Network": "10.244.0.0/16"}"#;

        assert_eq!(here(false, false, None), None);
        assert_eq!(here(false, false, Some(nftables)), None);
        assert_eq!(here(false, true, None), Some(Rules::Iptables));
        assert_eq!(here(false, true, Some(iptables)), Some(Rules::Iptables));
        assert_eq!(here(false, true, Some(nftables)), Some(Rules::Nftables));
        assert_eq!(here(true, true, Some(iptables)), Some(Rules::Nftables));
    }
}
