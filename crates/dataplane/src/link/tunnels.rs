//! Tunnels of this namespace, as far as others must know of them: the UDP port of VXLAN devices.

use super::decode::{self, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO};
use super::error::NetlinkError;
use super::scan::{Scanner, links_request};
use super::wire::{Attributes, NLM_F_DUMP, text, u32_at};

const RTM_NEWLINK: u16 = 16;
const IFLA_VXLAN_ID: u16 = 1;
const IFLA_VXLAN_PORT: u16 = 15;
/// Length of `struct ifinfomsg`.
const HEADER: usize = 16;

/// A VXLAN device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct VxlanDevice {
    /// Number of the interface.
    pub index: u32,
    /// Number of the virtual network.
    pub vni: u32,
    /// UDP port to which it sends, and at which it listens.
    pub port: u16,
}

impl Scanner {
    /// The VXLAN devices of this namespace, in order.
    pub fn vxlan_devices(&mut self) -> Result<Vec<VxlanDevice>, NetlinkError> {
        self.sorted_list(
            "VXLAN devices",
            RTM_NEWLINK,
            || links_request(0, NLM_F_DUMP),
            vxlan,
        )
    }
}

fn vxlan(payload: &[u8]) -> Option<VxlanDevice> {
    let index = decode::link_index(payload)?;
    let find = |list, wanted| {
        let mut found = Attributes(list).filter(move |(kind, _)| *kind == wanted);
        found.next().map(|(_, value)| value)
    };
    let details = find(payload.get(HEADER..)?, IFLA_LINKINFO)?;
    if text(find(details, IFLA_INFO_KIND)?) != "vxlan" {
        return None;
    }
    let data = find(details, IFLA_INFO_DATA)?;
    // The port alone is in the order of the network.
    let port: [u8; 2] = find(data, IFLA_VXLAN_PORT)?.try_into().ok()?;
    Some(VxlanDevice {
        index,
        vni: find(data, IFLA_VXLAN_ID).and_then(|value| u32_at(value, 0))?,
        port: u16::from_be_bytes(port),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(vxlan(&bytes).is_none() || bytes.len() > HEADER);
        }
    }
}
