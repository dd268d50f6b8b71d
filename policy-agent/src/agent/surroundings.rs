//! What others set up on this node and the agent only looks at: Flannel, and the chain of CNI plugins. What follows from
//! it is decided here; who looks is `obstacles`.

use std::collections::BTreeSet;

use flannel_adapter::backend::BackendType;
use flannel_adapter::here::Here;
use flannel_adapter::{FlannelFacts, NodeFacts, NodeKey, Severity};
use ipnet::IpNet;
use smol_str::SmolStr;
use towpath_core::model::Node;

use super::report;
use crate::layout::DEFAULT_OVERLAY_PORT;

/// What was found, each part when it could be looked at last.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Surroundings {
    /// What shows of Flannel.
    pub(super) here: Here,
    /// The installation of the CNI plugin.
    pub(super) chain: Chain,
    /// Why parts could not be looked at.
    pub(super) unseen: Vec<String>,
}

/// The installation of the CNI plugin on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Whether there is one.
    pub(super) is_installed: bool,
    /// What others made of it.
    pub(super) fault: Option<String>,
}

impl Surroundings {
    /// Takes a look over. What could not be seen stays as it was.
    pub(super) fn see(&mut self, here: Result<Here, String>, chain: Result<Chain, String>) {
        self.unseen.clear();
        match here {
            Ok(here) => self.here = here,
            Err(reason) => self.unseen.push(format!("what Flannel set up: {reason}")),
        }
        match chain {
            Ok(chain) => self.chain = chain,
            Err(reason) => self.unseen.push(format!("the chained plugin: {reason}")),
        }
    }
}

/// What follows from it.
#[derive(Clone, Debug, Default)]
pub(super) struct Known {
    /// Nothing before the first look.
    surroundings: Option<Surroundings>,
    /// The Node object of this node, as far as it matters here.
    networks: Vec<IpNet>,
    facts: FlannelFacts,
}

impl Known {
    /// Takes a look over.
    pub(super) fn take(&mut self, seen: Surroundings, own: &str, bridge: Option<&str>) {
        self.surroundings = Some(seen);
        self.merge(own, bridge);
    }

    /// Follows the Node object of this node.
    pub(super) fn follow(&mut self, node: Option<&Node>, own: &str, bridge: Option<&str>) {
        let networks = node.map_or(&[][..], |node| &node.pod_cidrs);
        if self.networks != networks {
            self.networks = networks.to_vec();
            self.merge(own, bridge);
        }
    }

    /// Only this node is looked at: the agent's model keeps no annotations, and `towpath doctor` compares all nodes.
    fn merge(&mut self, own: &str, bridge: Option<&str>) {
        let Some(seen) = &self.surroundings else {
            return;
        };
        let mut node = NodeFacts::new(NodeKey::Node(own.into()));
        node.is_managed = true;
        for network in &self.networks {
            match network {
                IpNet::V4(network) => node.pod_networks.ipv4 = Some(network.trunc()),
                IpNet::V6(network) => node.pod_networks.ipv6 = Some(network.trunc()),
            }
        }
        let nodes = if self.networks.is_empty() {
            Vec::new()
        } else {
            vec![node]
        };
        let mut inputs = seen
            .here
            .inputs(own.into(), nodes, bridge.map(SmolStr::new));
        // Where they lead can be judged only by who knows all nodes.
        inputs.routes.clear();
        self.facts = FlannelFacts::merge(&inputs);
    }

    /// Networks of this node's pods, as Flannel noted them on disk; nothing of what its object says.
    pub(super) fn noted_networks(&self) -> impl Iterator<Item = IpNet> + use<> {
        let seen = self.surroundings.as_ref();
        let noted = seen.and_then(|seen| seen.here.subnet_env.as_ref());
        noted
            .map(|noted| noted.subnets)
            .into_iter()
            .flat_map(|subnets| subnets.iter())
    }

    /// Whether the CNI plugin is installed.
    pub(super) fn is_chained(&self) -> bool {
        self.surroundings
            .as_ref()
            .is_some_and(|seen| seen.chain.is_installed)
    }

    /// What is wrong with its installation.
    pub(super) fn chain_fault(&self) -> Option<&str> {
        self.surroundings.as_ref()?.chain.fault.as_deref()
    }

    /// UDP ports to which pods may not send on nodes, once it is known; see [`overlay_ports`].
    pub(super) fn overlay_ports(&self, configured: Option<u16>) -> Option<BTreeSet<u16>> {
        let seen = self.surroundings.as_ref()?;
        Some(overlay_ports(configured, &seen.here, &self.facts))
    }

    /// What contradicts itself, is broken or could not be looked at, in words.
    pub(super) fn contradictions(&self) -> Vec<String> {
        let Some(seen) = &self.surroundings else {
            return Vec::new();
        };
        let unseen = seen
            .unseen
            .iter()
            .map(|reason| format!("cannot look at {reason}"));
        let faults = seen.here.faults.iter().map(ToString::to_string);
        let grave = self
            .facts
            .findings
            .iter()
            .filter(|finding| finding.severity() > Severity::Notice);
        unseen
            .chain(faults)
            .chain(grave.map(ToString::to_string))
            .collect()
    }

    /// What Flannel set up here, for people and programs; none where there is no sign of it.
    pub(super) fn report(&self) -> Option<report::Flannel> {
        let here = &self
            .surroundings
            .as_ref()
            .filter(|seen| seen.here.is_there)?
            .here;
        let tunnels = here
            .links
            .iter()
            .filter(|link| BackendType::of_device(&link.name).is_some())
            .map(|link| report::Tunnel {
                name: link.name.to_string(),
                mac: link.mac.map(|mac| mac.to_string()),
                mtu: link.mtu,
                addresses: link.addresses.clone(),
                udp_port: link.udp_port,
            });
        let texts = |networks: &mut dyn Iterator<Item = IpNet>| -> Vec<String> {
            networks.map(|network| network.to_string()).collect()
        };
        Some(report::Flannel {
            rules: here.rules().map(|rules| rules.to_string()),
            backend: self.facts.backend.as_ref().map(ToString::to_string),
            mtu: self.facts.mtu,
            networks: texts(&mut self.facts.networks.iter().copied()),
            pod_cidrs: texts(&mut self.facts.pod_networks.iter()),
            masquerades: self.facts.masquerades,
            tunnels: tunnels.collect(),
            contradictions: self.contradictions(),
        })
    }
}

/// UDP ports that carry packets into a node, so that pods may not send to them there.
///
/// 1. The configured one, always.
/// 2. Those of every tunnel that ends at a device of this node: the kernel unpacks whatever arrives there.
/// 3. Those of Flannel's overlay, by its configuration or its backend, where no device shows one.
/// 4. Without any of these, none where Flannel runs without tunnels over UDP, and else the usual one: a tunnel may come.
fn overlay_ports(configured: Option<u16>, here: &Here, facts: &FlannelFacts) -> BTreeSet<u16> {
    let mut ports = here.tunnel_ports();
    ports.extend(&facts.overlay_ports);
    ports.extend(configured);
    let is_without = here.is_there && facts.backend.is_some();
    if ports.is_empty() && !is_without {
        ports.insert(DEFAULT_OVERLAY_PORT);
    }
    ports
}

#[cfg(test)]
mod tests {
    use flannel_adapter::facts::Link;
    use flannel_adapter::net_conf::NetConf;
    use flannel_adapter::subnet_env::SubnetEnv;
    use towpath_core::model::{Labels, MacAddress};

    use super::*;

    const ENV: &str = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";

    fn link(name: &str, udp_port: Option<u16>) -> Link {
        Link {
            name: name.into(),
            mtu: 1450,
            mac: Some(MacAddress([2, 0, 0, 0, 0, 1])),
            addresses: vec![[10, 244, 1, 0].into()],
            udp_port,
        }
    }

    fn flannel(links: Vec<Link>) -> Surroundings {
        Surroundings {
            here: Here {
                is_there: true,
                subnet_env: Some(SubnetEnv::parse("subnet.env", ENV).value),
                links,
                ..Here::default()
            },
            ..Surroundings::default()
        }
    }

    fn known(seen: Surroundings) -> Known {
        let mut known = Known::default();
        known.take(seen, "n1", Some("cni0"));
        known
    }

    fn node(network: &str) -> Node {
        Node {
            name: "n1".into(),
            labels: Labels::default(),
            addresses: Vec::new(),
            pod_cidrs: vec![network.parse().unwrap()],
            ..Node::default()
        }
    }

    fn ports(seen: Surroundings, configured: Option<u16>) -> Vec<u16> {
        let ports = known(seen).overlay_ports(configured).unwrap();
        ports.into_iter().collect()
    }

    #[test]
    fn ports_are_those_of_tunnels_here_and_never_fewer_than_are_known() {
        let with_conf = |text: &str| {
            let mut seen = flannel(vec![link("eth0", None)]);
            seen.here.net_conf = NetConf::parse("net-conf.json", text).value;
            seen
        };

        assert_eq!(Known::default().overlay_ports(None), None);
        assert_eq!(ports(Surroundings::default(), None), [8472]);
        assert_eq!(ports(Surroundings::default(), Some(99)), [99]);
        assert_eq!(
            ports(flannel(vec![link("flannel.1", Some(8473))]), None),
            [8473]
        );
        // Somebody else's tunnel is unpacked by this node, too.
        let both = vec![link("flannel.1", Some(8473)), link("vxlan7", Some(4789))];
        assert_eq!(ports(flannel(both), Some(7)), [7, 4789, 8473]);
        let host_gateway = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "host-gw"}}"#;
        assert!(ports(with_conf(host_gateway), None).is_empty());
        let vxlan = r#"{"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan", "Port": 9}}"#;
        assert_eq!(ports(with_conf(vxlan), None), [9]);
        // Which backend it is cannot be told yet.
        assert_eq!(ports(flannel(vec![link("eth0", None)]), None), [8472]);
    }

    #[test]
    fn tells_what_flannel_set_up() {
        let mut known = known(flannel(vec![
            link("eth0", None),
            link("flannel.1", Some(8472)),
        ]));
        known.follow(Some(&node("10.244.1.0/24")), "n1", Some("cni0"));

        let expected = report::Flannel {
            rules: Some("iptables".to_owned()),
            backend: Some("vxlan".to_owned()),
            mtu: Some(1450),
            networks: vec!["10.244.0.0/16".to_owned()],
            pod_cidrs: vec!["10.244.1.0/24".to_owned()],
            masquerades: Some(true),
            tunnels: vec![report::Tunnel {
                name: "flannel.1".to_owned(),
                mac: Some("02:00:00:00:00:01".to_owned()),
                mtu: 1450,
                addresses: vec![[10, 244, 1, 0].into()],
                udp_port: Some(8472),
            }],
            contradictions: Vec::new(),
        };
        assert_eq!(known.report(), Some(expected));
        assert_eq!(Known::default().report(), None);
    }

    #[test]
    fn inputs_that_contradict_each_other_are_told_until_they_agree() {
        let mut known = known(flannel(vec![link("flannel.1", Some(8472))]));

        known.follow(Some(&node("10.244.9.0/24")), "n1", Some("cni0"));
        let told = known.contradictions();
        assert!(
            matches!(&told[..], [one] if one.contains("10.244.1.0/24") && one.contains("10.244.9.0/24")),
            "{told:?}"
        );

        known.follow(Some(&node("10.244.1.0/24")), "n1", Some("cni0"));
        assert_eq!(known.contradictions(), Vec::<String>::new());
    }

    #[test]
    fn what_cannot_be_seen_stays_as_it_was() {
        let mut seen = Surroundings::default();
        let here = flannel(vec![link("flannel.1", Some(8473))]).here;
        let chain = Chain {
            is_installed: true,
            fault: None,
        };
        seen.see(Ok(here.clone()), Ok(chain.clone()));

        seen.see(Err("no answer".to_owned()), Ok(Chain::default()));
        let known = known(seen.clone());

        assert_eq!(seen.here, here);
        assert!(!known.is_chained());
        assert_eq!(known.overlay_ports(None), Some([8473].into()));
        assert_eq!(
            known.contradictions(),
            ["cannot look at what Flannel set up: no answer"]
        );
        seen.see(Ok(here), Ok(chain));
        assert_eq!(seen.unseen, Vec::<String>::new());
    }
}
