//! Builds the fabric: namespaces, wires, routes, sockets.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, setsockopt, socket, sockopt,
};
use nix::unistd::Pid;
use towpath_core::evaluate::Flow;
use towpath_core::model::MacAddress;
use towpath_tests::frame::Mac;
use towpath_tests::netns::{Namespace, isolated};
use towpath_tests::wait::{PATIENCE, until};

use super::{Addresses, Fabric, Place, Shot, Way, fence};

/// As many pods as a random world has endpoints.
const PODS: u8 = 12;
/// The wire that owns every address of the pod networks that no pod has.
const STRAY: u8 = 99;
pub(super) const BRIDGE_MAC: Mac = [2, 0, 0, 0, 1, 0];
pub(super) const UPLINK_MAC: Mac = [2, 0, 0, 0, 2, 0];
const OUTSIDE_MAC: Mac = [2, 0, 0, 0, 2, 1];
/// Room for several volleys.
const RECEIVE_BUFFER: usize = 8 << 20;
/// Pod networks of the local node in the random worlds.
pub(super) const POD_NETWORKS: [(IpAddr, u8); 2] = [
    (IpAddr::V4(Ipv4Addr::new(10, 244, 0, 0)), 24),
    (
        IpAddr::V6(Ipv6Addr::new(0xfd00, 0x10, 0x244, 0, 0, 0, 0, 0)),
        64,
    ),
];
/// Protocols whose packets to the node itself can be seen by raw sockets.
const INPUT_PROTOCOLS: [(SockProtocol, u8); 3] = [
    (SockProtocol::Tcp, 6),
    (SockProtocol::Udp, 17),
    (SockProtocol::Sctp, 132),
];

/// A raw socket of the node: it sees what has passed the input hook.
#[derive(Debug)]
pub(super) struct Input {
    pub(super) socket: OwnedFd,
    pub(super) is_v6: bool,
    pub(super) protocol: u8,
}

impl Fabric {
    /// Builds it, with the pod networks of the random worlds. Fixes the calling thread to one
    /// processor: only this thread may shoot.
    pub(crate) fn new() -> Result<Self> {
        stay_on_one_processor()?;
        let (node_file, node) = anonymous()?;
        let (world_file, world) = anonymous()?;
        for (key, value) in [
            ("net/ipv6/conf/all/disable_ipv6", "1"),
            ("net/ipv6/conf/default/disable_ipv6", "1"),
        ] {
            world.set_sysctl(key, value)?;
        }
        for (key, value) in NODE_SETTINGS {
            node.set_sysctl(key, value)?;
        }
        node.ip_batch(&node_script(&world))?;
        world.ip_batch(&world_script())?;
        let file = tempfile::NamedTempFile::new()?;
        std::fs::write(file.path(), forwarding_script())?;
        node.run(Command::new("bridge").arg("-batch").arg(file.path()))?;
        let wire = world.enter(packet_socket)??;
        let ports = world.enter(find_ports)??;
        let inputs = node.enter(open_inputs)??;
        let mut fabric = Self {
            node,
            _held: [node_file, world_file],
            wire,
            ports,
            inputs,
            addresses: Addresses::default(),
            last_mark: 0,
        };
        fabric.await_links()?;
        Ok(fabric)
    }

    /// Waits until every wire carries, which the kernel arranges behind our back.
    fn await_links(&mut self) -> Result<()> {
        let pods = (0..PODS).map(Place::Pod);
        let sources: Vec<Place> = pods.chain([Place::Stray]).collect();
        let outside = [203, 0, 113, 1].into();
        let stray = [10, 244, 0, 201].into();
        let flow = |source, destination| Flow {
            source,
            destination,
            protocol: 17,
            port: Some(9),
        };
        let mut shots = vec![Shot {
            flow: flow(outside, stray),
            from: Place::Outside,
            to: Place::Stray,
            way: Way::Routed,
        }];
        for from in sources {
            shots.push(Shot {
                flow: flow(stray, outside),
                from,
                to: Place::Outside,
                way: Way::Routed,
            });
            if from != Place::Stray {
                shots.push(Shot {
                    flow: flow(stray, [10, 244, 0, 202].into()),
                    from: Place::Stray,
                    to: from,
                    way: Way::Bridged,
                });
            }
        }
        until("the uplink of the fabric carries", PATIENCE, || {
            self.send(&fence())?;
            self.read_wire(&mut |_, place| Ok(place == Place::Outside))
        })?;
        until("every wire of the fabric carries", PATIENCE, || {
            Ok(self.shoot(&shots)?.into_iter().all(|arrived| arrived))
        })
    }
}

const NODE_SETTINGS: [(&str, &str); 8] = [
    ("net/ipv4/ip_forward", "1"),
    ("net/ipv4/conf/all/rp_filter", "0"),
    ("net/ipv4/conf/default/rp_filter", "0"),
    // A redirect would be right here, and nobody listens.
    ("net/ipv4/conf/all/send_redirects", "0"),
    ("net/ipv4/conf/default/send_redirects", "0"),
    ("net/ipv6/conf/all/forwarding", "1"),
    ("net/ipv6/conf/default/forwarding", "1"),
    // No link-local addresses, which would make the node speak.
    ("net/ipv6/conf/default/addr_gen_mode", "1"),
];

fn node_script(world: &Namespace) -> String {
    let world = world.path();
    let world = world.display();
    let bridge = text(BRIDGE_MAC);
    let mut lines = vec![
        format!(
            "link add cni0 address {bridge} type bridge nf_call_iptables 1 nf_call_ip6tables 1 mcast_snooping 0"
        ),
        "link set cni0 up".to_owned(),
    ];
    for pod in wires() {
        let mac = text(pod_mac(pod));
        lines.push(format!(
            "link add veth{pod} type veth peer name far{pod} address {mac} netns {world}"
        ));
        lines.push(format!("link set veth{pod} master cni0 up"));
        lines.extend([false, true].map(|is_v6| {
            let gateway = gateway(pod, is_v6);
            format!("neigh replace {gateway} lladdr {mac} dev cni0 nud permanent")
        }));
    }
    let (uplink, outside) = (text(UPLINK_MAC), text(OUTSIDE_MAC));
    lines.extend([
        format!(
            "link add eth0 address {uplink} type veth peer name far address {outside} netns {world}"
        ),
        "link set eth0 up".to_owned(),
        format!("neigh replace 169.254.2.1 lladdr {outside} dev eth0 nud permanent"),
        format!("neigh replace fe80::2:1 lladdr {outside} dev eth0 nud permanent"),
        "route add 0.0.0.0/0 via 169.254.2.1 dev eth0 onlink".to_owned(),
        "route add ::/0 via fe80::2:1 dev eth0 onlink".to_owned(),
    ]);
    lines.extend(POD_NETWORKS.map(|(network, length)| {
        let gateway = gateway(STRAY, network.is_ipv6());
        format!("route add {network}/{length} via {gateway} dev cni0 onlink")
    }));
    lines.join("\n")
}

/// Which port of the bridge leads to which hardware address.
fn forwarding_script() -> String {
    let entry = |pod| {
        format!(
            "fdb replace {} dev veth{pod} master static",
            text(pod_mac(pod))
        )
    };
    wires().map(entry).collect::<Vec<_>>().join("\n")
}

fn world_script() -> String {
    let ends = wires().map(|pod| format!("link set far{pod} up"));
    ends.chain(["link set far up".to_owned()])
        .collect::<Vec<_>>()
        .join("\n")
}

/// Numbers of the bridge's ports.
pub(super) fn wires() -> impl Iterator<Item = u8> {
    (0..PODS).chain([STRAY])
}

/// The next hop that stands for a pod's hardware address in routes.
pub(super) fn gateway(pod: u8, is_v6: bool) -> IpAddr {
    if is_v6 {
        Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 1, u16::from(pod) + 1).into()
    } else {
        [169, 254, 1, pod + 1].into()
    }
}

/// The hardware address that the random worlds give to the endpoint of this number.
fn pod_mac(pod: u8) -> Mac {
    [2, 0, 0, 0, 0, pod]
}

/// The hardware address of a wire's far end.
pub(super) fn mac(place: Place) -> Option<Mac> {
    match place {
        Place::Pod(pod) => Some(pod_mac(pod)),
        Place::Stray => Some(pod_mac(STRAY)),
        Place::Outside => Some(OUTSIDE_MAC),
        Place::Node => None,
    }
}

fn text(mac: Mac) -> String {
    MacAddress(mac).to_string()
}

/// A namespace without a name: it ends with the process, however that ends.
fn anonymous() -> Result<(File, Namespace)> {
    let file = isolated(|| File::open("/proc/thread-self/ns/net"))??;
    let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
    // An absolute path is its own place, wherever named namespaces are.
    Ok((file, Namespace::existing(&path)))
}

fn stay_on_one_processor() -> Result<()> {
    let this = Pid::from_raw(0);
    let allowed = sched_getaffinity(this)?;
    let mut one = CpuSet::new();
    let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu).unwrap_or(false));
    one.set(first.context("no processor to run on")?)?;
    sched_setaffinity(this, &one).context("cannot stay on one processor")
}

/// The socket that speaks for the whole surroundings.
fn packet_socket() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::EthAll,
    )
    .context("cannot open a packet socket")?;
    setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
    Ok(socket)
}

/// The kernel's own addresses of the wires' far ends.
fn find_ports() -> Result<BTreeMap<Place, LinkAddr>> {
    let mut ports = BTreeMap::new();
    for entry in getifaddrs()? {
        let Some(address) = entry
            .address
            .and_then(|address| address.as_link_addr().copied())
        else {
            continue;
        };
        let place = match entry.interface_name.strip_prefix("far") {
            Some("") => Place::Outside,
            Some(number) => match number.parse()? {
                STRAY => Place::Stray,
                pod => Place::Pod(pod),
            },
            None => continue,
        };
        ports.insert(place, address);
    }
    ensure!(
        ports.len() == usize::from(PODS) + 2,
        "of the far ends only {ports:?} are there"
    );
    Ok(ports)
}

fn open_inputs() -> Result<Vec<Input>> {
    let families = [
        (AddressFamily::Inet, (SockProtocol::Icmp, 1)),
        (AddressFamily::Inet6, (SockProtocol::IcmpV6, 58)),
    ];
    let mut inputs = Vec::new();
    for (family, echo) in families {
        for (socket_protocol, protocol) in INPUT_PROTOCOLS.into_iter().chain([echo]) {
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let socket = socket(family, SockType::Raw, flags, socket_protocol)
                .with_context(|| format!("cannot open a raw socket for protocol {protocol}"))?;
            setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
            inputs.push(Input {
                socket,
                is_v6: family == AddressFamily::Inet6,
                protocol,
            });
        }
    }
    Ok(inputs)
}
