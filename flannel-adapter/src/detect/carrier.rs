//! Who carries pod traffic.

use std::collections::BTreeSet;
use std::fmt;

use smol_str::SmolStr;

use super::{Survey, SurveyedLink};
use crate::source::names;

/// Who plugs pods in on this node and carries their packets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Carrier {
    /// Pods are ports of a bridge; Flannel, if its device is there, carries packets to other nodes.
    Bridge {
        /// The bridge.
        bridge: SmolStr,
        /// Whether Flannel is at work.
        is_flannel: bool,
    },
    /// Each pod has an interface and a route of its own, made by the plugin `ptp` or alike.
    PointToPoint,
    /// Calico, or Canal.
    Calico,
    /// Cilium.
    Cilium,
    /// Amazon's plugin.
    AwsVpcCni,
    /// Google's plugin.
    Gke,
    /// Azure's plugin.
    Azure,
    /// Antrea, over Open vSwitch.
    Antrea,
    /// OVN-Kubernetes or Kube-OVN, over Open vSwitch.
    Ovn,
    /// Pods have interfaces of their own on the node's network (macvlan, ipvlan): the host does not see their packets.
    Direct {
        /// The plugin.
        plugin: SmolStr,
    },
    /// A plugin that we do not know.
    Other {
        /// The plugin.
        plugin: SmolStr,
    },
}

impl fmt::Display for Carrier {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bridge {
                bridge,
                is_flannel: true,
            } => write!(formatter, "Flannel, pods on the bridge {bridge}"),
            Self::Bridge {
                bridge,
                is_flannel: false,
            } => write!(formatter, "pods on the bridge {bridge}"),
            Self::PointToPoint => formatter.write_str("a routed interface for each pod"),
            Self::Calico => formatter.write_str("Calico"),
            Self::Cilium => formatter.write_str("Cilium"),
            Self::AwsVpcCni => formatter.write_str("Amazon VPC CNI"),
            Self::Gke => formatter.write_str("GKE"),
            Self::Azure => formatter.write_str("Azure CNI"),
            Self::Antrea => formatter.write_str("Antrea"),
            Self::Ovn => formatter.write_str("OVN"),
            Self::Direct { plugin } | Self::Other { plugin } => {
                write!(formatter, "the CNI plugin {plugin}")
            }
        }
    }
}

/// What the first plugin of a configuration is for.
fn of_plugin(plugin: &str, bridge: Option<&SmolStr>, is_flannel: bool) -> Carrier {
    let on = |name: &str| bridge.cloned().unwrap_or_else(|| name.into());
    match plugin {
        "flannel" => Carrier::Bridge {
            bridge: on("cni0"),
            is_flannel: true,
        },
        "bridge" => Carrier::Bridge {
            bridge: on("cni0"),
            is_flannel,
        },
        "ptp" => Carrier::PointToPoint,
        "calico" => Carrier::Calico,
        "cilium-cni" => Carrier::Cilium,
        "aws-cni" => Carrier::AwsVpcCni,
        "gke" => Carrier::Gke,
        "azure-vnet" => Carrier::Azure,
        "antrea" => Carrier::Antrea,
        "ovn-k8s-cni-overlay" | "kube-ovn" => Carrier::Ovn,
        "macvlan" | "ipvlan" | "host-device" | "sriov" => Carrier::Direct {
            plugin: plugin.into(),
        },
        other => Carrier::Other {
            plugin: other.into(),
        },
    }
}

/// The configuration tells who plugs in new pods; interfaces tell who plugged in those that are there.
pub(super) fn find(survey: &Survey) -> Vec<Carrier> {
    let is_flannel = survey
        .links
        .iter()
        .any(|link| link.name.starts_with("flannel"));
    let mut found = Vec::new();
    if let Some(conflist) = &survey.conflist
        && let Some(plugin) = conflist.plugins.first()
    {
        found.push(of_plugin(plugin, conflist.bridge.as_ref(), is_flannel));
    }
    let mut seen = BTreeSet::new();
    for link in survey.links.iter().filter(|link| link.has_peer) {
        seen.extend(of_link(survey, link, is_flannel));
    }
    for carrier in seen {
        if !found.contains(&carrier) {
            found.push(carrier);
        }
    }
    found
}

/// Who plugged in what is behind a veth. Ports of bridges that no CNI plugin makes by default, such as Docker's, tell nothing.
fn of_link(survey: &Survey, link: &SurveyedLink, is_flannel: bool) -> Option<Carrier> {
    /// Names that CNI plugins give their bridges.
    const BRIDGES: [&str; 3] = ["cni0", "cbr0", "cni-podman0"];
    match names::provider(&link.name) {
        Some("calico") => return Some(Carrier::Calico),
        Some("cilium") => return Some(Carrier::Cilium),
        Some("aws-vpc-cni") => return Some(Carrier::AwsVpcCni),
        Some("gke") => return Some(Carrier::Gke),
        Some("azure") => return Some(Carrier::Azure),
        Some(_) => return None,
        None => {}
    }
    match link.master {
        Some(master) => {
            let bridge = survey.links.iter().find(|other| other.index == master)?;
            BRIDGES
                .contains(&bridge.name.as_str())
                .then(|| Carrier::Bridge {
                    bridge: bridge.name.clone(),
                    is_flannel,
                })
        }
        None => survey
            .routed
            .contains(&link.index)
            .then_some(Carrier::PointToPoint),
    }
}
