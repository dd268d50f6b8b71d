//! What this node itself shows of Flannel: its files, its devices and their routes. Changes nothing.
//!
//! What other nodes are told of it stands elsewhere: in Node objects or in etcd.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::MacAddress;
use towpath_dataplane::link::{Interface, NetlinkError, Scanner, Snapshot};

use crate::detect::ConfList;
use crate::facts::{Inputs, Link};
use crate::fault::Fault;
use crate::files::{self, FileError};
use crate::net_conf::NetConf;
use crate::node::NodeFacts;
use crate::subnet_env::{self, SubnetEnv};

/// Where a pod of Flannel's has its configuration; some put it on the host, too.
pub const DEFAULT_NET_CONF: &str = "/etc/kube-flannel/net-conf.json";

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
    /// What flanneld wrote at its start.
    pub subnet_env: Option<SubnetEnv>,
    /// Its configuration.
    pub net_conf: Option<NetConf>,
    /// All interfaces but the veths, which are pods'.
    pub links: Vec<Link>,
    /// Routes by devices of Flannel.
    pub routes: Vec<(IpNet, SmolStr)>,
    /// Fields that could not be understood.
    pub faults: Vec<Fault>,
}

impl Here {
    /// Looks, in the network namespace of `scanner`.
    pub fn look(
        scanner: &mut Scanner,
        snapshot: &Snapshot,
        conflist: Option<&ConfList>,
        places: &Places,
    ) -> Result<Self, LookError> {
        let mut here = Self {
            links: links(scanner, snapshot)?,
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
            || here.subnet_env.is_some()
            || plugin.is_some_and(|name| name == "flannel");
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

    /// Together with what is known of the nodes. `bridge` is the one that pods of this node are plugged into.
    pub fn inputs(
        &self,
        own_node: SmolStr,
        nodes: Vec<NodeFacts>,
        bridge: Option<SmolStr>,
    ) -> Inputs {
        Inputs {
            own_node,
            expects_subnet_env: self.is_there,
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
