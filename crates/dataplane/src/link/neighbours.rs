//! Routes, forwarding entries of bridges, and neighbours: the hints by which an address is found where nobody can look
//! behind an interface.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use super::decode::ip;
use super::error::NetlinkError;
use super::scan::Scanner;
use super::wire::{Attributes, NLM_F_DUMP, Request, array_at, u16_at, u32_at};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_TABLE: u16 = 15;
const RTN_UNICAST: u8 = 1;
const RTM_F_CLONED: u32 = 0x200;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const AF_BRIDGE: u8 = 7;
const NUD_INCOMPLETE: u16 = 0x01;
const NUD_FAILED: u16 = 0x20;
const NUD_NOARP: u16 = 0x40;
const NUD_PERMANENT: u16 = 0x80;
/// Length of `struct rtmsg`, and of `struct ndmsg`.
const HEADER: usize = 12;
/// Entries that are kept of one list: a node may carry the Internet's routes, and a bridge a flood of addresses.
const MOST_ENTRIES: usize = 65_536;

/// A unicast route with one way out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The interface by which packets leave.
    pub index: u32,
    /// The next hop, if it is not on the link.
    pub gateway: Option<IpAddr>,
    /// Number of the routing table; 254 is the main one.
    pub table: u32,
}

impl Route {
    /// Whether it leads to one address only, right behind its interface.
    pub fn is_to_one_host(&self) -> bool {
        self.destination.prefix_len() == self.destination.max_prefix_len() && self.gateway.is_none()
    }
}

/// An address that a bridge has learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ForwardingEntry {
    /// The port behind which it was seen.
    pub port: u32,
    /// The Ethernet address.
    pub mac: [u8; 6],
}

/// An IP address with its Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Neighbour {
    /// The interface on which it was seen: of a bridge, the bridge itself.
    pub index: u32,
    /// The IP address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: [u8; 6],
}

impl Scanner {
    /// The unicast routes of all tables that `keep` wants, in order.
    pub fn routes(&mut self, keep: impl Fn(&Route) -> bool) -> Result<Vec<Route>, NetlinkError> {
        self.sorted_list(
            "routes of this host",
            RTM_NEWROUTE,
            || Request::new(RTM_GETROUTE, NLM_F_DUMP, &[0; HEADER]),
            |payload| route(payload).filter(&keep),
        )
    }

    /// What bridges have learnt from traffic, in order. The ports' own addresses are not among it.
    pub fn forwarding_entries(&mut self) -> Result<Vec<ForwardingEntry>, NetlinkError> {
        self.sorted_list(
            "forwarding entries of bridges",
            RTM_NEWNEIGH,
            || Request::new(RTM_GETNEIGH, NLM_F_DUMP, &neighbour_header(AF_BRIDGE)),
            forwarding_entry,
        )
    }

    /// Neighbours that have answered, in order.
    pub fn neighbours(&mut self) -> Result<Vec<Neighbour>, NetlinkError> {
        self.sorted_list(
            "neighbours of this host",
            RTM_NEWNEIGH,
            || Request::new(RTM_GETNEIGH, NLM_F_DUMP, &neighbour_header(0)),
            neighbour,
        )
    }

    /// Lists what `read` makes of the messages of one kind. A list that keeps changing is returned as it is: the next look
    /// corrects it.
    pub(super) fn sorted_list<T: Ord>(
        &mut self,
        object: &str,
        kind: u16,
        request: impl Fn() -> Request,
        read: impl Fn(&[u8]) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        let mut found = Vec::new();
        self.listed_kinds(
            format_args!("{object}"),
            &[kind],
            request,
            &mut found,
            |found, payload| {
                if found.len() < MOST_ENTRIES {
                    found.extend(read(payload));
                }
            },
        )?;
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }
}

fn neighbour_header(family: u8) -> [u8; HEADER] {
    let mut header = [0; HEADER];
    header[0] = family;
    header
}

/// Reads a route message; none for what is no unicast route by one interface.
fn route(payload: &[u8]) -> Option<Route> {
    let [family, prefix_length, _, _, table, _, _, kind] = array_at(payload, 0)?;
    let flags = u32_at(payload, 8)?;
    if kind != RTN_UNICAST || flags & RTM_F_CLONED != 0 {
        return None;
    }
    let mut destination = match family {
        2 => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        10 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let (mut index, mut gateway, mut table) = (None, None, u32::from(table));
    for (kind, value) in Attributes(payload.get(HEADER..)?) {
        match kind {
            RTA_DST => destination = ip(family, value)?,
            RTA_OIF => index = u32_at(value, 0),
            RTA_GATEWAY => gateway = ip(family, value),
            RTA_TABLE => table = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(Route {
        destination: IpNet::new(destination, prefix_length).ok()?.trunc(),
        index: index?,
        gateway,
        table,
    })
}

/// The number, the state, and the attributes of a neighbour message.
fn neighbour_fields(payload: &[u8]) -> Option<(u8, u32, u16, Attributes<'_>)> {
    let [family] = array_at(payload, 0)?;
    let (index, state) = (u32_at(payload, 4)?, u16_at(payload, 8)?);
    Some((family, index, state, Attributes(payload.get(HEADER..)?)))
}

fn forwarding_entry(payload: &[u8]) -> Option<ForwardingEntry> {
    let (family, port, state, mut attributes) = neighbour_fields(payload)?;
    if family != AF_BRIDGE || state & NUD_PERMANENT != 0 {
        return None;
    }
    let (_, value) = attributes.find(|(kind, _)| *kind == NDA_LLADDR)?;
    let mac = value.try_into().ok()?;
    Some(ForwardingEntry { port, mac })
}

fn neighbour(payload: &[u8]) -> Option<Neighbour> {
    let (family, index, state, attributes) = neighbour_fields(payload)?;
    if state == 0 || state & (NUD_INCOMPLETE | NUD_FAILED | NUD_NOARP) != 0 {
        return None;
    }
    let (mut address, mut mac) = (None, None);
    for (kind, value) in attributes {
        match kind {
            NDA_DST => address = ip(family, value),
            NDA_LLADDR => mac = value.try_into().ok(),
            _ => {}
        }
    }
    Some(Neighbour {
        index,
        address: address?,
        mac: mac?,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            // Whatever is found lies behind a header.
            prop_assert!(route(&bytes).is_none() || bytes.len() >= HEADER);
            prop_assert!(forwarding_entry(&bytes).is_none() || bytes.len() >= HEADER);
            prop_assert!(neighbour(&bytes).is_none() || bytes.len() >= HEADER);
        }
    }
}
