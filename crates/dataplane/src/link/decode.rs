//! Reads link and address messages.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use smol_str::SmolStr;

use super::model::{BridgeSettings, Interface, NamespaceId, Peer};
use super::wire::{Attributes, array_at, i32_at, text, u32_at};

pub(super) const RTM_NEWLINK: u16 = 16;
pub(super) const RTM_DELLINK: u16 = 17;
pub(super) const RTM_GETLINK: u16 = 18;
pub(super) const RTM_NEWADDR: u16 = 20;
pub(super) const RTM_DELADDR: u16 = 21;
pub(super) const RTM_GETADDR: u16 = 22;
pub(super) const RTM_NEWNSID: u16 = 88;
pub(super) const RTM_GETNSID: u16 = 90;

pub(super) const IFLA_ADDRESS: u16 = 1;
pub(super) const IFLA_IFNAME: u16 = 3;
pub(super) const IFLA_MTU: u16 = 4;
pub(super) const IFLA_LINK: u16 = 5;
pub(super) const IFLA_MASTER: u16 = 10;
pub(super) const IFLA_LINKINFO: u16 = 18;
pub(super) const IFLA_EXT_MASK: u16 = 29;
pub(super) const IFLA_LINK_NETNSID: u16 = 37;
pub(super) const IFLA_XDP: u16 = 43;
pub(super) const IFLA_TARGET_NETNSID: u16 = 46;
pub(super) const IFLA_INFO_KIND: u16 = 1;
pub(super) const IFLA_INFO_DATA: u16 = 2;
pub(super) const IFLA_BR_NF_CALL_IPTABLES: u16 = 36;
pub(super) const IFLA_BR_NF_CALL_IP6TABLES: u16 = 37;
pub(super) const IFLA_BR_MULTI_BOOLOPT: u16 = 46;
/// The option's bit in `struct br_boolopt_multi`.
pub(super) const BR_BOOLOPT_NO_LL_LEARN: u32 = 1;
pub(super) const IFA_ADDRESS: u16 = 1;
pub(super) const IFA_LOCAL: u16 = 2;
pub(super) const IFA_FLAGS: u16 = 8;
pub(super) const IFA_TARGET_NETNSID: u16 = 10;
/// Leaves the statistics out of link messages.
pub(super) const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

const IFF_UP: u32 = 1;
const IFA_F_DADFAILED: u32 = 0x08;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;

/// A link message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkRecord {
    pub(super) interface: Interface,
    /// The interface on which or with which this one was made.
    pub(super) link: Option<u32>,
    /// The namespace of `link`, in our numbers, where it is not the interface's own.
    pub(super) link_nsid: Option<NamespaceId>,
    /// The namespace that was asked for.
    pub(super) target: Option<NamespaceId>,
}

/// The `struct ifinfomsg` that names an interface, or all with 0.
pub(super) fn link_header(index: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header
}

/// Number of the interface that a link message is about.
pub(super) fn link_index(payload: &[u8]) -> Option<u32> {
    u32_at(payload, 4)
}

/// Reads a link message; none if it has no number or no name.
pub(super) fn link(payload: &[u8]) -> Option<LinkRecord> {
    let mut interface = Interface {
        index: link_index(payload)?,
        name: SmolStr::default(),
        kind: None,
        master: None,
        mac: None,
        mtu: 0,
        is_up: u32_at(payload, 8)? & IFF_UP != 0,
        peer: None,
        bridge_settings: None,
    };
    let (mut link, mut link_nsid, mut target) = (None, None, None);
    for (kind, value) in Attributes(payload.get(LINK_HEADER..)?) {
        match kind {
            IFLA_IFNAME => interface.name = SmolStr::new(text(value)),
            IFLA_ADDRESS => interface.mac = value.try_into().ok(),
            IFLA_MTU => interface.mtu = u32_at(value, 0)?,
            IFLA_MASTER => interface.master = u32_at(value, 0),
            IFLA_LINK => link = u32_at(value, 0),
            IFLA_LINK_NETNSID => link_nsid = namespace_id(value),
            IFLA_TARGET_NETNSID => target = namespace_id(value),
            IFLA_LINKINFO => read_kind(value, &mut interface),
            _ => {}
        }
    }
    // A netkit device is a veth by another name.
    if matches!(interface.kind.as_deref(), Some("veth" | "netkit"))
        && let (Some(nsid), Some(index)) = (link_nsid, link)
    {
        interface.peer = Some(Peer { nsid, index });
    }
    (!interface.name.is_empty()).then_some(LinkRecord {
        interface,
        link,
        link_nsid,
        target,
    })
}

/// Reads `IFLA_LINKINFO`: the kind, and the settings of a bridge.
fn read_kind(value: &[u8], interface: &mut Interface) {
    let mut details = None;
    for (kind, value) in Attributes(value) {
        match kind {
            IFLA_INFO_KIND => interface.kind = Some(SmolStr::new(text(value))),
            IFLA_INFO_DATA => details = Some(value),
            _ => {}
        }
    }
    if !interface.is_bridge() {
        return;
    }
    let (mut ipv4, mut ipv6, mut no_linklocal_learn) = (None, None, None);
    for (kind, value) in Attributes(details.unwrap_or_default()) {
        match kind {
            IFLA_BR_NF_CALL_IPTABLES => ipv4 = value.first(),
            IFLA_BR_NF_CALL_IP6TABLES => ipv6 = value.first(),
            // `struct br_boolopt_multi`: values, then which of them are known.
            IFLA_BR_MULTI_BOOLOPT => {
                no_linklocal_learn =
                    u32_at(value, 0).map(|options| options & BR_BOOLOPT_NO_LL_LEARN != 0);
            }
            _ => {}
        }
    }
    if let (Some(ipv4), Some(ipv6), Some(no_linklocal_learn)) = (ipv4, ipv6, no_linklocal_learn) {
        interface.bridge_settings = Some(BridgeSettings {
            nf_call_iptables: *ipv4 != 0,
            nf_call_ip6tables: *ipv6 != 0,
            no_linklocal_learn,
        });
    }
}

/// An address message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AddressRecord {
    pub(super) index: u32,
    pub(super) address: IpAddr,
    pub(super) prefix_length: u8,
    /// The namespace that was asked for.
    pub(super) target: Option<NamespaceId>,
}

/// Reads an address message; none if the family is foreign or the address failed duplicate detection.
pub(super) fn address(payload: &[u8]) -> Option<AddressRecord> {
    let [family, prefix_length, short_flags, _] = array_at(payload, 0)?;
    let index = u32_at(payload, 4)?;
    let mut flags = u32::from(short_flags);
    let (mut local, mut other, mut target) = (None, None, None);
    for (kind, value) in Attributes(payload.get(ADDRESS_HEADER..)?) {
        match kind {
            // IFA_ADDRESS is the far end of a point-to-point link; where both stand, ours is IFA_LOCAL.
            IFA_LOCAL => local = ip(family, value),
            IFA_ADDRESS => other = ip(family, value),
            IFA_FLAGS => flags = u32_at(value, 0)?,
            IFA_TARGET_NETNSID => target = namespace_id(value),
            _ => {}
        }
    }
    (flags & IFA_F_DADFAILED == 0).then_some(AddressRecord {
        index,
        address: local.or(other)?,
        prefix_length,
        target,
    })
}

/// An address of a netlink family, if it has the right length.
pub(super) fn ip(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(Ipv4Addr::from(<[u8; 4]>::try_from(value).ok()?).into()),
        AF_INET6 => Some(Ipv6Addr::from(<[u8; 16]>::try_from(value).ok()?).into()),
        _ => None,
    }
}

/// Reads a namespace number; none for "no number".
pub(super) fn namespace_id(value: &[u8]) -> Option<NamespaceId> {
    i32_at(value, 0).and_then(NamespaceId::from_kernel)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            // Whatever is found lies in the input, so an address implies its header.
            prop_assert!(address(&bytes).is_none() || bytes.len() >= ADDRESS_HEADER);
            prop_assert!(link(&bytes).is_none() || bytes.len() >= LINK_HEADER);
        }
    }
}
