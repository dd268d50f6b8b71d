//! A node with real pods: a bridge, and a veth into a namespace for each.

use std::ops::Deref;

use anyhow::{Context as _, Result, ensure};
use towpath_tests::netns::Namespace;

use crate::namespace::fresh;
use crate::worlds;

/// A node and its pods; dropping it removes them.
pub(crate) struct Pods {
    node: Namespace,
    _pods: Vec<Namespace>,
}

impl Pods {
    /// A node with this many pods: those that [`worlds::interface`] describes.
    pub(crate) fn new(count: u32) -> Result<Self> {
        let node = fresh("n")?;
        node.ip_batch(
            "link add cni0 type bridge\nlink set cni0 up\naddress add 10.0.0.1/24 dev cni0\n",
        )?;
        let mut pods = Vec::new();
        for index in 0..count {
            let pod = fresh("p")?;
            let (observed, address) = (worlds::interface(index), worlds::pod_address(index));
            let mac = observed.mac.context("a local pod has a hardware address")?;
            node.ip_batch(&format!(
                "link add {} type veth peer name eth0 address {mac} netns {}\n\
                 link set {} master cni0 up\n",
                observed.name,
                pod.name(),
                observed.name
            ))?;
            pod.ip_batch(&format!(
                "address add {address}/24 dev eth0\nlink set eth0 up\n"
            ))?;
            pods.push(pod);
        }
        ensure!(!pods.is_empty(), "no local pods");
        Ok(Self { node, _pods: pods })
    }
}

impl Deref for Pods {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.node
    }
}
