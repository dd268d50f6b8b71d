//! The ways in which Flannel carries packets from node to node.

use std::convert::Infallible;
use std::fmt;
use std::str::FromStr;

use smol_str::SmolStr;

use crate::fault::Fault;
use crate::json::Fields;

/// Name of a backend. Flannel compares it in lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum BackendType {
    /// VXLAN tunnels.
    Vxlan,
    /// Routes by way of the other nodes' addresses; all nodes on one link.
    HostGateway,
    /// IP-in-IP tunnels.
    Ipip,
    /// `WireGuard` tunnels.
    WireGuard,
    /// Packets go through a program on each node.
    Udp,
    /// `IPsec`.
    Ipsec,
    /// Flannel gives out subnets only; somebody else makes the routes.
    Alloc,
    /// Commands of the user.
    Extension,
    /// Routes of a cloud's network.
    TencentVpc,
    /// One that we do not know.
    Other(SmolStr),
}

/// What there is to know of a backend without its options.
struct Row {
    kind: BackendType,
    name: &'static str,
    /// Bytes that it adds to each packet, if that is fixed.
    overhead: Option<u32>,
    /// UDP ports of its tunnels unless configured otherwise.
    ports: &'static [u16],
}

const ROWS: [Row; 9] = [
    Row {
        kind: BackendType::Vxlan,
        name: "vxlan",
        overhead: Some(50),
        ports: &[VXLAN_PORT],
    },
    Row {
        kind: BackendType::HostGateway,
        name: "host-gw",
        overhead: Some(0),
        ports: &[],
    },
    Row {
        kind: BackendType::Ipip,
        name: "ipip",
        overhead: Some(20),
        ports: &[],
    },
    Row {
        kind: BackendType::WireGuard,
        name: "wireguard",
        overhead: Some(80),
        ports: &WIREGUARD_PORTS,
    },
    Row {
        kind: BackendType::Udp,
        name: "udp",
        overhead: Some(28),
        ports: &[UDP_PORT],
    },
    Row {
        kind: BackendType::Ipsec,
        name: "ipsec",
        overhead: Some(77),
        ports: &[],
    },
    Row {
        kind: BackendType::Alloc,
        name: "alloc",
        overhead: Some(0),
        ports: &[],
    },
    Row {
        kind: BackendType::Extension,
        name: "extension",
        overhead: None,
        ports: &[],
    },
    Row {
        kind: BackendType::TencentVpc,
        name: "tencent-vpc",
        overhead: Some(0),
        ports: &[],
    },
];

impl BackendType {
    /// Its name as Flannel writes it.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Other(name) => name,
            known => self::row(known).map_or("", |row| row.name),
        }
    }

    /// The backend whose tunnel a device of this name is; those of the others have no name of their own.
    pub fn of_device(name: &str) -> Option<Self> {
        let is_number = |text: &str| !text.is_empty() && text.chars().all(|c| c.is_ascii_digit());
        match name {
            "flannel.ipip" => Some(Self::Ipip),
            "flannel-wg" | "flannel-wg-v6" => Some(Self::WireGuard),
            _ => {
                let vni = ["flannel.", "flannel-v6."]
                    .iter()
                    .find_map(|start| name.strip_prefix(start));
                if vni.is_some_and(is_number) {
                    return Some(Self::Vxlan);
                }
                // A device of this name and a number is the program's own.
                let number = name.strip_prefix("flannel");
                number.is_some_and(is_number).then_some(Self::Udp)
            }
        }
    }

    /// UDP ports of its tunnels unless configured otherwise.
    pub fn usual_ports(&self) -> &'static [u16] {
        row(self).map_or(&[], |row| row.ports)
    }

    /// Bytes by which Flannel makes the pods' largest packet smaller than that of its own interface; none where only
    /// the user knows. `IPsec` over UDP takes eight more.
    pub fn overhead(&self) -> Option<u32> {
        row(self).and_then(|row| row.overhead)
    }
}

fn row(kind: &BackendType) -> Option<&'static Row> {
    ROWS.iter().find(|row| row.kind == *kind)
}

impl FromStr for BackendType {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.to_ascii_lowercase();
        let known = ROWS.iter().find(|row| row.name == text);
        Ok(known.map_or_else(|| Self::Other(text.as_str().into()), |row| row.kind.clone()))
    }
}

impl fmt::Display for BackendType {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// A backend with its options, as far as they matter to others than Flannel. Secrets are not kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backend {
    /// VXLAN tunnels.
    Vxlan(VxlanOptions),
    /// IP-in-IP tunnels.
    Ipip {
        /// Nodes on the same link are reached without the tunnel.
        direct_routing: bool,
    },
    /// `WireGuard` tunnels.
    WireGuard(WireGuardOptions),
    /// Packets go through a program on each node.
    Udp {
        /// Its port.
        port: u16,
    },
    /// `IPsec`.
    Ipsec {
        /// Packets are put into UDP.
        udp_encapsulation: bool,
    },
    /// Those without options that matter here: `host-gw`, `alloc`, `extension`, `tencent-vpc`, unknown ones.
    Plain(BackendType),
}

/// Options of the backend `vxlan`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VxlanOptions {
    /// Number of the virtual network, below 2^24.
    pub vni: u32,
    /// UDP port; `None` is the kernel's default, 8472.
    pub port: Option<u16>,
    /// Group policy extension.
    pub group_policy: bool,
    /// The device learns addresses by itself.
    pub learning: bool,
    /// Nodes on the same link are reached without the tunnel.
    pub direct_routing: bool,
    /// Largest packet, where it is configured.
    pub mtu: Option<u32>,
}

/// Options of the backend `wireguard`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireGuardOptions {
    /// UDP port for IPv4.
    pub port: u16,
    /// UDP port for IPv6.
    pub port_v6: u16,
    /// Which addresses carry the tunnels.
    pub mode: WireGuardMode,
    /// Largest packet, where it is configured.
    pub mtu: Option<u32>,
}

/// Which addresses carry `WireGuard` tunnels.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WireGuardMode {
    /// Each family by itself.
    #[default]
    Separate,
    /// Both over whichever there is.
    Auto,
    /// Both over IPv4.
    Ipv4,
    /// Both over IPv6.
    Ipv6,
}

impl Backend {
    /// Its name.
    pub fn kind(&self) -> BackendType {
        match self {
            Self::Vxlan(_) => BackendType::Vxlan,
            Self::Ipip { .. } => BackendType::Ipip,
            Self::WireGuard(_) => BackendType::WireGuard,
            Self::Udp { .. } => BackendType::Udp,
            Self::Ipsec { .. } => BackendType::Ipsec,
            Self::Plain(kind) => kind.clone(),
        }
    }

    /// UDP port of the tunnel of one family, if it is one over UDP.
    pub fn tunnel_port(&self, is_ipv6: bool) -> Option<u16> {
        match self {
            Self::Vxlan(options) => Some(options.port.unwrap_or(VXLAN_PORT)),
            Self::WireGuard(options) if is_ipv6 => Some(options.port_v6),
            Self::WireGuard(options) => Some(options.port),
            Self::Udp { port } => Some(*port),
            Self::Ipsec { .. } | Self::Ipip { .. } | Self::Plain(_) => None,
        }
    }

    /// Names of the devices that it makes, IPv4 first.
    pub fn devices(&self, has_ipv4: bool, has_ipv6: bool) -> Vec<SmolStr> {
        let (ipv4, ipv6) = match self {
            Self::Vxlan(options) => (
                Some(SmolStr::from(format!("flannel.{}", options.vni))),
                Some(SmolStr::from(format!("flannel-v6.{}", options.vni))),
            ),
            Self::Ipip { .. } => (Some("flannel.ipip".into()), None),
            // In the other modes one device carries both families.
            Self::WireGuard(options) if options.mode == WireGuardMode::Separate => {
                (Some("flannel-wg".into()), Some("flannel-wg-v6".into()))
            }
            Self::WireGuard(_) | Self::Udp { .. } | Self::Ipsec { .. } | Self::Plain(_) => {
                (None, None)
            }
        };
        let ipv4 = ipv4.filter(|_| has_ipv4);
        ipv4.into_iter().chain(ipv6.filter(|_| has_ipv6)).collect()
    }

    /// Reads the object `Backend`. Without one, Flannel's program takes `udp`, whatever its documentation says.
    pub(crate) fn read(fields: Option<&Fields<'_>>, faults: &mut Vec<Fault>) -> Self {
        let Some(fields) = fields else {
            return Self::Udp { port: UDP_PORT };
        };
        let named = fields.text(
            "Type",
            "the name of a backend, such as vxlan",
            faults,
            |text| text.parse::<BackendType>().ok(),
        );
        match named.unwrap_or_else(|| BackendType::Other(SmolStr::default())) {
            BackendType::Vxlan => Self::Vxlan(vxlan(fields, faults)),
            BackendType::Ipip => Self::Ipip {
                direct_routing: fields.flag("DirectRouting", faults).unwrap_or(false),
            },
            BackendType::WireGuard => Self::WireGuard(wireguard(fields, faults)),
            BackendType::Udp => Self::Udp {
                port: fields.number("Port", PORT, faults).unwrap_or(UDP_PORT),
            },
            BackendType::Ipsec => Self::Ipsec {
                udp_encapsulation: fields.flag("UDPEncap", faults).unwrap_or(false),
            },
            other => Self::Plain(other),
        }
    }
}

/// The kernel's default port of VXLAN, which is not that of the standard.
const VXLAN_PORT: u16 = 8472;
const UDP_PORT: u16 = 8285;
/// For IPv4, then for IPv6.
const WIREGUARD_PORTS: [u16; 2] = [51_820, 51_821];
const PORT: &str = "a port number";
const MTU: &str = "a number of bytes";

fn vxlan(fields: &Fields<'_>, faults: &mut Vec<Fault>) -> VxlanOptions {
    let vni = fields.read("VNI", "a number below 16777216", faults, |value| {
        let number = u32::try_from(value.as_u64()?).ok()?;
        (number < 1 << 24).then_some(number)
    });
    VxlanOptions {
        vni: vni.unwrap_or(1),
        port: fields
            .number("Port", PORT, faults)
            .filter(|port| *port != 0),
        group_policy: fields.flag("GBP", faults).unwrap_or(false),
        learning: fields.flag("Learning", faults).unwrap_or(false),
        direct_routing: fields.flag("DirectRouting", faults).unwrap_or(false),
        mtu: fields.number("MTU", MTU, faults).filter(|mtu| *mtu != 0),
    }
}

fn wireguard(fields: &Fields<'_>, faults: &mut Vec<Fault>) -> WireGuardOptions {
    let mode = fields.text(
        "Mode",
        "separate, auto, ipv4 or ipv6",
        faults,
        |text| match text {
            "separate" | "" => Some(WireGuardMode::Separate),
            "auto" => Some(WireGuardMode::Auto),
            "ipv4" => Some(WireGuardMode::Ipv4),
            "ipv6" => Some(WireGuardMode::Ipv6),
            _ => None,
        },
    );
    WireGuardOptions {
        port: fields
            .number("ListenPort", PORT, faults)
            .unwrap_or(WIREGUARD_PORTS[0]),
        port_v6: fields
            .number("ListenPortV6", PORT, faults)
            .unwrap_or(WIREGUARD_PORTS[1]),
        mode: mode.unwrap_or_default(),
        mtu: fields.number("MTU", MTU, faults).filter(|mtu| *mtu != 0),
    }
}
