//! Nodes as the graph gets them: what the source tells, completed by what only the node itself knows.
//!
//! 1. This node's own addresses are those that its kernel shows, not the first ones of its pod CIDRs. Those of
//!    `localServices` stand for pods, and are theirs alone.
//! 2. The networks of this node's pods are those that Flannel notes on disk where its object has none.
//! 3. The first addresses of other nodes' pod CIDRs are theirs only where a pod bridge is configured, as on this node.

use std::borrow::Cow;
use std::net::IpAddr;

use ipnet::IpNet;
use towpath_core::model::{Node, Object, ObjectKey, Update};

use super::graph::GraphThread;

/// Completes this node with the addresses on its interfaces and the pods' networks that Flannel noted.
fn complete_own(mut node: Node, addresses: Vec<IpAddr>, noted: &[IpNet]) -> Node {
    node.observed = addresses;
    node.tunnel_cidrs.clear();
    let is_v6 = |network: &IpNet| network.addr().is_ipv6();
    let told: Vec<bool> = node.pod_cidrs.iter().map(is_v6).collect();
    let missing = noted.iter().filter(|noted| !told.contains(&is_v6(noted)));
    node.pod_cidrs.extend(missing);
    node
}

/// Completes another node.
fn complete_other(mut node: Node, has_bridge: bool) -> Node {
    node.observed.clear();
    if !has_bridge {
        node.tunnel_cidrs.clear();
    }
    node
}

impl GraphThread {
    /// An update of the source, completed.
    pub(super) fn complete<'u>(&mut self, update: &'u Update) -> Cow<'u, Update> {
        match update {
            Update::Upsert(Object::Node(node)) => {
                if node.name == self.node {
                    self.own_node = Some(node.clone());
                }
                let node = self.completed(node.clone());
                Cow::Owned(Update::Upsert(Object::Node(node)))
            }
            Update::Remove(ObjectKey::Node(name)) if *name == self.node => {
                self.own_node = None;
                Cow::Borrowed(update)
            }
            _ => Cow::Borrowed(update),
        }
    }

    fn completed(&self, node: Node) -> Node {
        if node.name != self.node {
            return complete_other(node, !self.facts.bridges.is_empty());
        }
        let shown = self.host.lasting_addresses().copied();
        let own = shown
            .filter(|address| !address.is_loopback() && !self.local_services.contains(address));
        let noted: Vec<IpNet> = self.surroundings.noted_networks().collect();
        complete_own(node, own.collect(), &noted)
    }

    /// Tells the graph of this node again, after what it knows of itself may have changed; returns how many updates that
    /// took.
    pub(super) fn tell_own_node(&mut self) -> usize {
        let Some(node) = self.own_node.clone() else {
            return 0;
        };
        let node = self.completed(node);
        if self.graph.cluster().nodes.get(&node.name) == Some(&node) {
            return 0;
        }
        let update = Update::Upsert(Object::Node(node));
        self.facts.note(&update);
        self.graph.apply(&update);
        1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> Node {
        let pod_cidrs: Vec<IpNet> = vec!["10.244.1.0/24".parse().unwrap()];
        Node {
            name: name.into(),
            addresses: vec!["192.0.2.1".parse().unwrap()],
            observed: vec!["192.0.2.9".parse().unwrap()],
            tunnel_cidrs: pod_cidrs.clone(),
            pod_cidrs,
            ..Node::default()
        }
    }

    #[test]
    fn this_nodes_own_addresses_are_those_of_its_interfaces() {
        let shown: [IpAddr; 2] = ["192.0.2.1", "10.244.1.1"].map(|text| text.parse().unwrap());

        let found = complete_own(node("here"), shown.to_vec(), &[]);

        assert_eq!(found.observed, shown);
        assert_eq!(found.tunnel_cidrs, []);
        assert_eq!(found.addresses, node("here").addresses);
    }

    #[test]
    fn flannels_networks_stand_in_for_families_that_the_object_has_not() {
        let noted: [IpNet; 2] = ["10.244.7.0/24", "fd00:7::/64"].map(|text| text.parse().unwrap());

        let found = complete_own(node("here"), Vec::new(), &noted);

        assert_eq!(found.pod_cidrs, [node("here").pod_cidrs[0], noted[1]]);
    }

    #[test]
    fn other_nodes_have_the_first_addresses_only_where_a_pod_bridge_is_configured() {
        let found = complete_other(node("there"), true);
        assert_eq!(found.tunnel_cidrs, node("there").tunnel_cidrs);
        assert!(found.observed.is_empty(), "only a node itself can tell");
        assert_eq!(complete_other(node("there"), false).tunnel_cidrs, []);
    }
}
