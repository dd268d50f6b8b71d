//! One node between pods and an outside, as the kernel of the node sees them.
//!
//! The node is a network namespace with bridge `cni0` and uplink `eth0`. The far ends of all its wires lie in a
//! second namespace that has no addresses and answers nothing: one packet socket there sends every frame and sees
//! every arrival, so a pod is a hardware address at the end of its wire. Neighbours and forwarding entries are
//! fixed, so that nothing is ever asked or learned: what the node does with a frame, it does at once.
//!
//! Arrivals need no patience. All frames are sent from one processor, whose queue of received packets is first
//! in, first out, and each packet passes it at most twice: into the node and out of it. A fence that passes it
//! twice and is sent last therefore arrives last.

mod build;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{LinkAddr, MsgFlags, SockaddrIn6, recvfrom, sendto};
use towpath_core::evaluate::Flow;
use towpath_tests::frame;
use towpath_tests::netns::Namespace;
use towpath_tests::wait::PATIENCE;

use super::packet::{Packet, Sighting, last_word};
use build::{BRIDGE_MAC, Input, POD_NETWORKS, UPLINK_MAC, gateway, mac, wires};

/// Less than the kernel queues for a processor (`net.core.netdev_max_backlog`).
const VOLLEY: usize = 128;
/// Addresses of the fence, on the outside (RFC 5737).
pub(super) const FENCE: [[u8; 4]; 2] = [[198, 51, 100, 1], [198, 51, 100, 2]];
/// Where an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    /// The pod behind interface `veth<number>`.
    Pod(u8),
    /// On the bridge, and no pod's.
    Stray,
    /// Behind the uplink.
    Outside,
    /// The node itself.
    Node,
}

/// How a pod sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// To the hardware address of the destination, on its own bridge.
    Bridged,
    /// To the node, which routes.
    Routed,
}

/// A probe and the way it takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shot {
    pub(crate) flow: Flow,
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) way: Way,
}

/// Which addresses are where; all others are outside.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Addresses {
    /// Addresses of pods.
    pub(crate) pods: BTreeMap<IpAddr, u8>,
    /// Addresses of the node itself.
    pub(crate) node: BTreeSet<IpAddr>,
}

/// The node and its surroundings. Everything goes away with the process.
#[derive(Debug)]
pub(crate) struct Fabric {
    /// The node's namespace.
    pub(crate) node: Namespace,
    // Anonymous namespaces live as long as somebody holds them.
    _held: [File; 2],
    wire: OwnedFd,
    ports: BTreeMap<Place, LinkAddr>,
    inputs: Vec<Input>,
    addresses: Addresses,
    last_mark: u32,
}

impl Fabric {
    /// Gives pods and node their addresses.
    pub(crate) fn arrange(&mut self, wanted: &Addresses) -> Result<()> {
        let mut script = String::new();
        for address in self.addresses.node.difference(&wanted.node) {
            writeln!(script, "route delete local {address} dev lo table local")?;
        }
        for address in self.addresses.pods.keys() {
            if !wanted.pods.contains_key(address) {
                writeln!(script, "route delete {address}")?;
            }
        }
        for address in wanted.node.difference(&self.addresses.node) {
            // A route is there at once; an IPv6 address only after the kernel's own work on it.
            writeln!(script, "route add local {address} dev lo table local")?;
        }
        for (address, pod) in &wanted.pods {
            if self.addresses.pods.get(address) != Some(pod) {
                let via = gateway(*pod, address.is_ipv6());
                writeln!(script, "route replace {address} via {via} dev cni0 onlink")?;
            }
        }
        if !script.is_empty() {
            self.node.ip_batch(&script)?;
        }
        self.addresses = wanted.clone();
        Ok(())
    }

    /// Names of the bridge's ports.
    pub(crate) fn pod_ports() -> impl Iterator<Item = String> {
        wires().map(|pod| format!("veth{pod}"))
    }

    /// Whether the fabric has the address on the bridge, whatever the state says of pod networks.
    pub(crate) fn is_in_pod_network(address: IpAddr) -> bool {
        POD_NETWORKS.iter().any(|(network, length)| {
            let network = IpNet::new(*network, *length).expect("a length of this family");
            network.contains(&address)
        })
    }

    /// Whether the node can show that a packet of this protocol reached it.
    pub(crate) fn sees_input(flow: &Flow) -> bool {
        matches!(
            (flow.protocol, flow.source),
            (6 | 17 | 132, _) | (1, IpAddr::V4(_)) | (58, IpAddr::V6(_))
        )
    }

    /// Forgets the connections that earlier shots made.
    pub(crate) fn forget_connections(&self) -> Result<()> {
        self.node
            .run(std::process::Command::new("conntrack").arg("-F"))?;
        Ok(())
    }

    /// Sends every probe once; says which arrived. One that arrives elsewhere is an error.
    pub(crate) fn shoot(&mut self, shots: &[Shot]) -> Result<Vec<bool>> {
        let mut arrived = Vec::with_capacity(shots.len());
        for volley in shots.chunks(VOLLEY) {
            arrived.extend(self.shoot_volley(volley)?);
        }
        Ok(arrived)
    }

    fn shoot_volley(&mut self, shots: &[Shot]) -> Result<Vec<bool>> {
        let first_mark = self.last_mark + 1;
        for shot in shots {
            self.send(shot)?;
        }
        let fence = self.send(&fence())?;
        let mut arrived = vec![false; shots.len()];
        let mut note = |sighting: Sighting, place: Place| -> Result<bool> {
            if sighting.is(&fence) {
                return Ok(true);
            }
            let index = sighting.mark.checked_sub(first_mark);
            let Some((shot, arrived)) = index
                .and_then(|index| usize::try_from(index).ok())
                .and_then(|index| Some((shots.get(index)?, arrived.get_mut(index)?)))
            else {
                return Ok(false);
            };
            let packet = Packet {
                flow: shot.flow,
                mark: sighting.mark,
            };
            if sighting.is(&packet) {
                ensure!(
                    place == shot.to,
                    "{shot:?} arrived at {place:?}: the fabric is wrong"
                );
                *arrived = true;
            }
            Ok(false)
        };
        let deadline = Instant::now() + PATIENCE;
        while !self.read_wire(&mut note)? {
            let left = deadline.saturating_duration_since(Instant::now());
            ensure!(
                !left.is_zero(),
                "the fence behind the probes did not arrive"
            );
            let mut descriptors = [PollFd::new(self.wire.as_fd(), PollFlags::POLLIN)];
            poll(&mut descriptors, PollTimeout::try_from(left)?)?;
        }
        self.read_inputs(&mut note)?;
        Ok(arrived)
    }

    /// Sends a frame from a wire's far end.
    fn send(&mut self, shot: &Shot) -> Result<Packet> {
        self.last_mark += 1;
        let packet = Packet {
            flow: shot.flow,
            mark: self.last_mark,
        };
        let source = mac(shot.from).context("a probe has a wire to start from")?;
        let destination = match (shot.from, shot.way) {
            (Place::Outside, _) => UPLINK_MAC,
            (_, Way::Routed) => BRIDGE_MAC,
            (_, Way::Bridged) => mac(shot.to).context("a bridged probe has a wire to end at")?,
        };
        let frame = frame::ethernet(destination, source, packet.ether_type(), &packet.bytes());
        let port = self
            .ports
            .get(&shot.from)
            .context("a wire for each place")?;
        sendto(self.wire.as_raw_fd(), &frame, port, MsgFlags::empty())
            .with_context(|| format!("cannot send {shot:?}"))?;
        Ok(packet)
    }

    /// Reads all arrivals; whether `note` has said so of one.
    fn read_wire(&self, note: &mut impl FnMut(Sighting, Place) -> Result<bool>) -> Result<bool> {
        let mut buffer = [0; 2048];
        let mut found = false;
        loop {
            let (length, from) = match recvfrom::<LinkAddr>(self.wire.as_raw_fd(), &mut buffer) {
                Ok(read) => read,
                Err(Errno::EAGAIN) => return Ok(found),
                Err(error) => bail!("cannot read arrivals: {error}"),
            };
            let index = from.map(|from| from.ifindex());
            let place = self
                .ports
                .iter()
                .find(|(_, port)| Some(port.ifindex()) == index)
                .map(|(place, _)| *place);
            let Some(place) = place else { continue };
            // A frame for another hardware address would not be taken by a pod.
            let is_addressed = mac(place).is_some_and(|mac| buffer[..length].starts_with(&mac));
            if is_addressed && let Some(sighting) = buffer.get(14..length).and_then(Sighting::parse)
            {
                found |= note(sighting, place)?;
            }
        }
    }

    fn read_inputs(&self, note: &mut impl FnMut(Sighting, Place) -> Result<bool>) -> Result<()> {
        let mut buffer = [0; 2048];
        for input in &self.inputs {
            loop {
                let read = recvfrom::<SockaddrIn6>(input.socket.as_raw_fd(), &mut buffer);
                let (length, from) = match read {
                    Ok(read) => read,
                    Err(Errno::EAGAIN) => break,
                    Err(error) => bail!("cannot read packets to the node: {error}"),
                };
                let packet = &buffer[..length];
                let sighting = if input.is_v6 {
                    // Such a socket gives the payload and the sender.
                    from.zip(last_word(packet)).map(|(from, mark)| Sighting {
                        source: from.ip().into(),
                        destination: None,
                        protocol: input.protocol,
                        mark,
                    })
                } else {
                    Sighting::parse(packet)
                };
                if let Some(sighting) = sighting {
                    note(sighting, Place::Node)?;
                }
            }
        }
        Ok(())
    }
}

/// A probe through the node that touches nothing of the node's pods.
fn fence() -> Shot {
    let [source, destination] = FENCE.map(IpAddr::from);
    Shot {
        flow: Flow {
            source,
            destination,
            protocol: 17,
            port: Some(9),
        },
        from: Place::Outside,
        to: Place::Outside,
        way: Way::Routed,
    }
}
