//! Probe packets: the bytes of a flow's first packet, and whose bytes an arriving packet has.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_core::evaluate::Flow;
use towpath_tests::frame;

const ICMP: u8 = 1;
const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMPV6: u8 = 58;
const SCTP: u8 = 132;

/// The first packet of a connection. Its mark tells it from every other packet of the run; it decides the source
/// port or ICMP identifier and stands in the last four bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Packet {
    pub(crate) flow: Flow,
    pub(crate) mark: u32,
}

impl Packet {
    /// The IP packet.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let Flow {
            source,
            destination,
            protocol,
            ..
        } = self.flow;
        let payload = self.payload();
        match (source, destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => {
                frame::ipv4(source, destination, protocol, &payload)
            }
            (IpAddr::V6(source), IpAddr::V6(destination)) => {
                frame::ipv6(source, destination, protocol, 64, &payload)
            }
            _ => unreachable!("both sides of a probe are of one family"),
        }
    }

    /// EtherType of the packet.
    pub(crate) fn ether_type(&self) -> u16 {
        if self.flow.source.is_ipv4() {
            frame::IPV4
        } else {
            frame::IPV6
        }
    }

    fn payload(&self) -> Vec<u8> {
        let port = self.flow.port.unwrap_or(0);
        let source_port =
            1024 + u16::try_from(self.mark % 64_000).expect("the remainder fits in 16 bits");
        let mark = self.mark.to_be_bytes();
        match (self.flow.protocol, self.flow.destination) {
            (TCP, _) => self.syn(source_port, port),
            (UDP, _) => frame::udp(
                (self.flow.source, source_port),
                (self.flow.destination, port),
                &mark,
            ),
            (SCTP, _) => frame::sctp_init(source_port, port, self.mark),
            (ICMP, _) => {
                // Echo request; identifier and sequence number are the mark.
                let mut message = [&[8, 0, 0, 0][..], &mark, &mark].concat();
                let sum = frame::checksum(&message);
                message[2..4].copy_from_slice(&sum.to_be_bytes());
                message
            }
            (ICMPV6, IpAddr::V6(destination)) => {
                let IpAddr::V6(source) = self.flow.source else {
                    unreachable!("both sides of a probe are of one family");
                };
                frame::icmpv6(source, destination, 128, &[mark, mark].concat())
            }
            // A GRE header that carries IPv4 fits protocol 47; others have no header that anybody reads.
            _ => [&[0, 0, 8, 0][..], &mark].concat(),
        }
    }

    fn syn(&self, source_port: u16, port: u16) -> Vec<u8> {
        const SYN: u8 = 2;
        let mut segment = Vec::with_capacity(24);
        segment.extend_from_slice(&source_port.to_be_bytes());
        segment.extend_from_slice(&port.to_be_bytes());
        segment.extend_from_slice(&self.mark.to_be_bytes());
        segment.extend_from_slice(&[0; 4]);
        segment.extend_from_slice(&[5 << 4, SYN, 0xff, 0xff, 0, 0, 0, 0]);
        segment.extend_from_slice(&self.mark.to_be_bytes());
        let sum = frame::transport_checksum(self.flow.source, self.flow.destination, TCP, &segment);
        segment[16..18].copy_from_slice(&sum.to_be_bytes());
        segment
    }
}

/// What an arriving IP packet tells of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Sighting {
    pub(crate) source: IpAddr,
    /// `None` where the socket that saw it does not tell.
    pub(crate) destination: Option<IpAddr>,
    pub(crate) protocol: u8,
    pub(crate) mark: u32,
}

impl Sighting {
    /// Reads an IP packet; `None` for what no probe looks like.
    pub(crate) fn parse(packet: &[u8]) -> Option<Self> {
        match packet.first()? >> 4 {
            4 => {
                let length = usize::from(u16::from_be_bytes(array(packet, 2)?));
                Some(Self {
                    source: Ipv4Addr::from(array::<4>(packet, 12)?).into(),
                    destination: Some(Ipv4Addr::from(array::<4>(packet, 16)?).into()),
                    protocol: *packet.get(9)?,
                    mark: last_word(packet.get(..length)?)?,
                })
            }
            6 => {
                let length = 40 + usize::from(u16::from_be_bytes(array(packet, 4)?));
                Some(Self {
                    source: Ipv6Addr::from(array::<16>(packet, 8)?).into(),
                    destination: Some(Ipv6Addr::from(array::<16>(packet, 24)?).into()),
                    protocol: *packet.get(6)?,
                    mark: last_word(packet.get(..length)?)?,
                })
            }
            _ => None,
        }
    }

    /// Whether this is the probe of its mark, and not an ICMP error that quotes it.
    pub(crate) fn is(&self, packet: &Packet) -> bool {
        let Packet { flow, mark } = packet;
        let is_there = |address| address == flow.destination;
        self.destination.is_none_or(is_there)
            && (self.source, self.protocol, self.mark) == (flow.source, flow.protocol, *mark)
    }
}

/// The last four bytes.
pub(crate) fn last_word(bytes: &[u8]) -> Option<u32> {
    bytes.last_chunk().map(|word| u32::from_be_bytes(*word))
}

fn array<const N: usize>(bytes: &[u8], offset: usize) -> Option<[u8; N]> {
    bytes.get(offset..)?.first_chunk().copied()
}

#[test]
fn packets_tell_their_marks() {
    let addresses: [(IpAddr, IpAddr); 2] = [
        ([10, 0, 0, 1].into(), [10, 0, 0, 2].into()),
        ("fd00::1".parse().unwrap(), "fd00::2".parse().unwrap()),
    ];
    for (source, destination) in addresses {
        for protocol in [
            TCP,
            UDP,
            SCTP,
            47,
            if source.is_ipv4() { ICMP } else { ICMPV6 },
        ] {
            let flow = Flow {
                source,
                destination,
                protocol,
                port: Some(80),
            };
            let packet = Packet {
                flow,
                mark: 0x0102_0304,
            };

            let sighting = Sighting::parse(&packet.bytes()).unwrap();

            assert!(sighting.is(&packet), "{sighting:?} of {packet:?}");
        }
    }
}
