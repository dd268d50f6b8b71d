//! Reads the beginning of a logged packet. Every byte of it may come from an attacker.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::link::wire::array_at;

const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_IPV6: u16 = 0x86dd;

const PROTOCOL_ICMP: u8 = 1;
const PROTOCOL_TCP: u8 = 6;
const PROTOCOL_UDP: u8 = 17;
const PROTOCOL_DCCP: u8 = 33;
const PROTOCOL_ICMPV6: u8 = 58;
const PROTOCOL_SCTP: u8 = 132;
const PROTOCOL_UDPLITE: u8 = 136;

/// Extension headers followed before we give up; RFC 8200 knows fewer.
const MOST_EXTENSIONS: usize = 8;

/// Who spoke to whom, as far as the logged bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Conversation {
    /// An IPv4 or IPv6 packet.
    Ip {
        /// Source address.
        source: IpAddr,
        /// Destination address.
        destination: IpAddr,
        /// The protocol's number, after IPv6 extension headers.
        protocol: u8,
        /// What stands in the protocol's header.
        transport: Transport,
    },
    /// An ARP request or reply for IPv4.
    Arp {
        /// The Ethernet address that the sender claims.
        sender_mac: [u8; 6],
        /// The address that the sender claims.
        sender: Ipv4Addr,
        /// The address asked for or answered.
        target: Ipv4Addr,
    },
    /// Another or a mangled protocol.
    Other {
        /// The frame's type, 0 if it is not known.
        ethertype: u16,
    },
}

/// Numbers from the header above IP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// TCP, UDP, SCTP and their like.
    Ports {
        /// Source port.
        source: u16,
        /// Destination port.
        destination: u16,
    },
    /// ICMP of either family.
    Icmp {
        /// The message's type.
        kind: u8,
        /// The message's code.
        code: u8,
    },
    /// A protocol without ports, a later fragment, or a packet cut short.
    None,
}

/// Reads a packet that starts at its network header.
pub(super) fn read(ethertype: u16, bytes: &[u8]) -> Conversation {
    let version = bytes.first().map_or(0, |byte| byte >> 4);
    let read = match (ethertype, version) {
        (ETHERTYPE_IPV4, 4) => read_ipv4(bytes),
        (ETHERTYPE_IPV6, 6) => read_ipv6(bytes),
        (ETHERTYPE_ARP, _) => read_arp(bytes),
        _ => None,
    };
    read.unwrap_or(Conversation::Other { ethertype })
}

fn read_ipv4(bytes: &[u8]) -> Option<Conversation> {
    let header_length = usize::from(bytes.first()? & 0x0f) * 4;
    let fragment = u16::from_be_bytes(array_at(bytes, 6)?);
    let protocol = *bytes.get(9)?;
    // The three flags go, the offset stays.
    let is_first = fragment << 3 == 0;
    Some(Conversation::Ip {
        source: Ipv4Addr::from(array_at::<4>(bytes, 12)?).into(),
        destination: Ipv4Addr::from(array_at::<4>(bytes, 16)?).into(),
        protocol,
        // A header shorter than 20 bytes is not a header.
        transport: if is_first && header_length >= 20 {
            read_transport(protocol, bytes.get(header_length..).unwrap_or_default())
        } else {
            Transport::None
        },
    })
}

fn read_ipv6(bytes: &[u8]) -> Option<Conversation> {
    let (protocol, rest) = skip_extensions(*bytes.get(6)?, bytes.get(40..).unwrap_or_default());
    Some(Conversation::Ip {
        source: Ipv6Addr::from(array_at::<16>(bytes, 8)?).into(),
        destination: Ipv6Addr::from(array_at::<16>(bytes, 24)?).into(),
        protocol,
        transport: rest.map_or(Transport::None, |rest| read_transport(protocol, rest)),
    })
}

/// Finds the protocol behind IPv6 extension headers, and its header unless it is out of reach.
fn skip_extensions(mut protocol: u8, mut rest: &[u8]) -> (u8, Option<&[u8]>) {
    for _ in 0..MOST_EXTENSIONS {
        let Some([next, length]) = array_at::<2>(rest, 0) else {
            break;
        };
        let length = match protocol {
            // Hop-by-hop, routing, destination options, mobility, HIP, shim6: units of 8 bytes without the first.
            0 | 43 | 60 | 135 | 139 | 140 => (usize::from(length) + 1) * 8,
            // Authentication: units of 4 bytes without the first two.
            51 => (usize::from(length) + 2) * 4,
            // A fragment: 8 bytes; only the first one has the next header.
            44 if rest
                .get(2..4)
                .is_some_and(|offset| u16::from_be_bytes([offset[0], offset[1]]) & 0xfff8 != 0) =>
            {
                return (next, None);
            }
            44 => 8,
            _ => return (protocol, Some(rest)),
        };
        protocol = next;
        rest = rest.get(length..).unwrap_or_default();
    }
    (protocol, None)
}

fn read_transport(protocol: u8, bytes: &[u8]) -> Transport {
    match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_UDPLITE | PROTOCOL_DCCP | PROTOCOL_SCTP => {
            match (array_at(bytes, 0), array_at(bytes, 2)) {
                (Some(source), Some(destination)) => Transport::Ports {
                    source: u16::from_be_bytes(source),
                    destination: u16::from_be_bytes(destination),
                },
                _ => Transport::None,
            }
        }
        PROTOCOL_ICMP | PROTOCOL_ICMPV6 => {
            array_at::<2>(bytes, 0).map_or(Transport::None, |[kind, code]| Transport::Icmp {
                kind,
                code,
            })
        }
        _ => Transport::None,
    }
}

/// Reads ARP for IPv4 over Ethernet (RFC 826).
fn read_arp(bytes: &[u8]) -> Option<Conversation> {
    const ETHERNET_IPV4: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
    if array_at(bytes, 0)? != ETHERNET_IPV4 {
        return None;
    }
    Some(Conversation::Arp {
        sender_mac: array_at(bytes, 8)?,
        sender: Ipv4Addr::from(array_at::<4>(bytes, 14)?),
        target: Ipv4Addr::from(array_at::<4>(bytes, 24)?),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// 10.0.0.1 -> 10.0.0.2, with four option bytes.
    fn ipv4(protocol: u8, fragment: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x46, 0, 0, 0, 0, 0];
        bytes.extend(fragment.to_be_bytes());
        bytes.extend([64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 1, 1, 1, 0]);
        bytes.extend(payload);
        bytes
    }

    /// `fd00::1` -> `fd00::2`.
    fn ipv6(next: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0x60, 0, 0, 0, 0, 0, next, 64];
        for last in [1, 2] {
            bytes.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last]);
        }
        bytes.extend(payload);
        bytes
    }

    fn transport(conversation: Conversation) -> (u8, Transport) {
        match conversation {
            Conversation::Ip {
                protocol,
                transport,
                ..
            } => (protocol, transport),
            other => panic!("not IP: {other:?}"),
        }
    }

    const PORTS: [u8; 4] = [0x30, 0x39, 0, 80];
    const READ_PORTS: Transport = Transport::Ports {
        source: 12345,
        destination: 80,
    };

    #[test]
    fn reads_ports_behind_ipv4_options() {
        let packet = ipv4(PROTOCOL_TCP, 0x4000, &PORTS);

        assert_eq!(
            read(ETHERTYPE_IPV4, &packet),
            Conversation::Ip {
                source: Ipv4Addr::new(10, 0, 0, 1).into(),
                destination: Ipv4Addr::new(10, 0, 0, 2).into(),
                protocol: PROTOCOL_TCP,
                transport: READ_PORTS,
            }
        );
    }

    #[test]
    fn a_later_fragment_has_no_ports() {
        let ipv4 = ipv4(PROTOCOL_UDP, 0x2001, &PORTS);
        let ipv6 = ipv6(
            44,
            &[[PROTOCOL_UDP, 0, 0x05, 0xa9, 0, 0, 0, 1].as_slice(), &PORTS].concat(),
        );

        assert_eq!(
            transport(read(ETHERTYPE_IPV4, &ipv4)),
            (PROTOCOL_UDP, Transport::None)
        );
        assert_eq!(
            transport(read(ETHERTYPE_IPV6, &ipv6)),
            (PROTOCOL_UDP, Transport::None)
        );
    }

    #[test]
    fn reads_behind_ipv6_extension_headers() {
        let hop_by_hop = [43, 0, 1, 4, 0, 0, 0, 0];
        let routing = [44, 0, 0, 0, 0, 0, 0, 0];
        let first_fragment = [51, 0, 0, 1, 0, 0, 0, 9];
        let authentication = [PROTOCOL_SCTP, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        let packet = ipv6(
            0,
            &[
                hop_by_hop.as_slice(),
                &routing,
                &first_fragment,
                &authentication,
                &PORTS,
            ]
            .concat(),
        );

        assert_eq!(
            transport(read(ETHERTYPE_IPV6, &packet)),
            (PROTOCOL_SCTP, READ_PORTS)
        );
    }

    #[test]
    fn endless_extension_headers_end() {
        let packet = ipv6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(100));

        assert_eq!(
            transport(read(ETHERTYPE_IPV6, &packet)),
            (60, Transport::None)
        );
    }

    #[test]
    fn reads_icmpv6() {
        let packet = ipv6(PROTOCOL_ICMPV6, &[135, 0, 1, 2]);

        assert_eq!(
            transport(read(ETHERTYPE_IPV6, &packet)),
            (PROTOCOL_ICMPV6, Transport::Icmp { kind: 135, code: 0 })
        );
    }

    #[test]
    fn reads_arp() {
        let mut packet = vec![0, 1, 8, 0, 6, 4, 0, 1];
        packet.extend([2, 0, 0, 0, 0, 9, 10, 0, 0, 9]);
        packet.extend([0, 0, 0, 0, 0, 0, 10, 0, 0, 1]);

        assert_eq!(
            read(ETHERTYPE_ARP, &packet),
            Conversation::Arp {
                sender_mac: [2, 0, 0, 0, 0, 9],
                sender: Ipv4Addr::new(10, 0, 0, 9),
                target: Ipv4Addr::new(10, 0, 0, 1),
            }
        );
    }

    #[test]
    fn a_frame_that_lies_about_its_type_is_other() {
        let packet = ipv6(PROTOCOL_TCP, &PORTS);

        assert_eq!(
            read(ETHERTYPE_IPV4, &packet),
            Conversation::Other {
                ethertype: ETHERTYPE_IPV4
            }
        );
    }

    proptest! {
        #[test]
        fn any_truncation_is_read_without_panic(
            ethertype in prop_oneof![Just(ETHERTYPE_IPV4), Just(ETHERTYPE_IPV6), Just(ETHERTYPE_ARP), any::<u16>()],
            version in prop_oneof![Just(0x45_u8), Just(0x4f), Just(0x60), any::<u8>()],
            mut bytes in proptest::collection::vec(any::<u8>(), 0..160),
        ) {
            if let Some(first) = bytes.first_mut() {
                *first = version;
            }
            for end in 0..=bytes.len() {
                if let Conversation::Ip { transport: Transport::Ports { .. }, .. } = read(ethertype, &bytes[..end]) {
                    prop_assert!(end >= 24);
                }
            }
        }
    }
}
