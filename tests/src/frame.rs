//! Packets that no honest pod would send: frames built by hand, sent and seen over packet sockets.
//!
//! Only what tests of spoofing, encapsulation and protocols without sockets need.

use std::io::{BufRead as _, BufReader};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context as _, Result, ensure};

use crate::netns::{Namespace, checked, feed};
use crate::program;
use crate::wait::PATIENCE;

/// A hardware address.
pub type Mac = [u8; 6];

/// The all-ones hardware address.
pub const BROADCAST: Mac = [0xff; 6];

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// EtherType of a VLAN tag.
pub const VLAN: u16 = 0x8100;

/// An Ethernet frame.
pub fn ethernet(destination: Mac, source: Mac, ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&destination);
    frame.extend_from_slice(&source);
    frame.extend_from_slice(&ether_type.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// Puts a VLAN tag into a frame.
pub fn tagged(frame: &[u8], vlan: u16) -> Vec<u8> {
    let mut tagged = frame[..12].to_vec();
    tagged.extend_from_slice(&VLAN.to_be_bytes());
    tagged.extend_from_slice(&vlan.to_be_bytes());
    tagged.extend_from_slice(&frame[12..]);
    tagged
}

/// An IPv4 packet without options.
pub fn ipv4(source: Ipv4Addr, destination: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + payload.len()).expect("test packets are small");
    let mut packet = vec![0x45, 0, 0, 0, 0, 1, 0, 0, 64, protocol, 0, 0];
    packet[2..4].copy_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    let sum = checksum(&packet);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend_from_slice(payload);
    packet
}

/// An IPv6 packet. Neighbour discovery wants hop limit 255.
pub fn ipv6(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    protocol: u8,
    hops: u8,
    payload: &[u8],
) -> Vec<u8> {
    let length = u16::try_from(payload.len()).expect("test packets are small");
    let mut packet = vec![0x60, 0, 0, 0, 0, 0, protocol, hops];
    packet[4..6].copy_from_slice(&length.to_be_bytes());
    packet.extend_from_slice(&source.octets());
    packet.extend_from_slice(&destination.octets());
    packet.extend_from_slice(payload);
    packet
}

/// A UDP datagram with its checksum.
pub fn udp(source: (IpAddr, u16), destination: (IpAddr, u16), payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).expect("test packets are small");
    let mut datagram = Vec::with_capacity(8 + payload.len());
    for word in [source.1, destination.1, length, 0] {
        datagram.extend_from_slice(&word.to_be_bytes());
    }
    datagram.extend_from_slice(payload);
    let sum = transport_checksum(source.0, destination.0, 17, &datagram);
    datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    datagram
}

/// An SCTP packet of one chunk. The checksum is right: conntrack takes a packet with a wrong one for invalid.
pub fn sctp(source: u16, destination: u16, verification_tag: u32, chunk: &[u8]) -> Vec<u8> {
    let mut packet = Vec::with_capacity(12 + chunk.len());
    packet.extend_from_slice(&source.to_be_bytes());
    packet.extend_from_slice(&destination.to_be_bytes());
    packet.extend_from_slice(&verification_tag.to_be_bytes());
    packet.extend_from_slice(&[0; 4]);
    packet.extend_from_slice(chunk);
    let sum = crc32c(&packet);
    // RFC 9260 appendix A: the CRC stands in the packet with its lowest byte first.
    packet[8..12].copy_from_slice(&sum.to_le_bytes());
    packet
}

/// The first packet of an SCTP association. The initial TSN stands in its last four bytes.
pub fn sctp_init(source: u16, destination: u16, initial_tsn: u32) -> Vec<u8> {
    sctp(source, destination, 0, &sctp_init_chunk(1, initial_tsn))
}

/// The answer to [`sctp_init`], with the tag that it gave.
pub fn sctp_init_ack(source: u16, destination: u16, initial_tsn: u32) -> Vec<u8> {
    sctp(source, destination, 1, &sctp_init_chunk(2, initial_tsn))
}

/// RFC 9260 section 3.3.2: initiate tag 1, a window of 65,536 bytes, one stream each way.
fn sctp_init_chunk(kind: u8, initial_tsn: u32) -> Vec<u8> {
    let mut chunk = vec![kind, 0, 0, 20, 0, 0, 0, 1, 0, 1, 0, 0, 0, 1, 0, 1];
    chunk.extend_from_slice(&initial_tsn.to_be_bytes());
    chunk
}

/// An ARP packet; operation 1 asks, 2 answers.
pub fn arp(operation: u16, sender: (Mac, Ipv4Addr), target: (Mac, Ipv4Addr)) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        packet.extend_from_slice(&mac);
        packet.extend_from_slice(&address.octets());
    }
    packet
}

/// An ICMPv6 message with its checksum.
pub fn icmpv6(source: Ipv6Addr, destination: Ipv6Addr, kind: u8, body: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0];
    message.extend_from_slice(body);
    let sum = transport_checksum(source.into(), destination.into(), 58, &message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// A neighbour advertisement (RFC 4861 section 4.4) that claims an address for a hardware address.
pub fn neighbour_advertisement(
    source: Ipv6Addr,
    destination: Ipv6Addr,
    claimed: Ipv6Addr,
    mac: Mac,
) -> Vec<u8> {
    // Solicited and override.
    let mut body = vec![0x60, 0, 0, 0];
    body.extend_from_slice(&claimed.octets());
    body.extend_from_slice(&[2, 1]);
    body.extend_from_slice(&mac);
    ipv6(
        source,
        destination,
        58,
        255,
        &icmpv6(source, destination, 136, &body),
    )
}

/// The Internet checksum (RFC 1071).
pub fn checksum(bytes: &[u8]) -> u16 {
    let sum = bytes.chunks(2).fold(0_u32, |sum, pair| {
        sum + u32::from(pair[0]) * 256 + pair.get(1).map_or(0, |low| u32::from(*low))
    });
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    !u16::try_from(sum & 0xffff).expect("two folds leave 16 bits")
}

/// The checksum of TCP, UDP and ICMPv6, which covers a pseudo header.
pub fn transport_checksum(
    source: IpAddr,
    destination: IpAddr,
    protocol: u8,
    segment: &[u8],
) -> u16 {
    let mut bytes = Vec::new();
    for address in [source, destination] {
        match address {
            IpAddr::V4(address) => bytes.extend_from_slice(&address.octets()),
            IpAddr::V6(address) => bytes.extend_from_slice(&address.octets()),
        }
    }
    let length = u16::try_from(segment.len()).expect("test packets are small");
    bytes.extend_from_slice(&[0, protocol]);
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(segment);
    checksum(&bytes)
}

/// The checksum of SCTP: a CRC (Castagnoli's, RFC 9260 appendix A), bit by bit.
pub fn crc32c(bytes: &[u8]) -> u32 {
    let step = |sum: u32, byte: &u8| {
        (0..8).fold(sum ^ u32::from(*byte), |sum, _| {
            (sum >> 1) ^ if sum & 1 == 1 { 0x82f6_3b78 } else { 0 }
        })
    };
    !bytes.iter().fold(u32::MAX, step)
}

/// Parses `02:42:0a:f4:01:02`.
pub fn parse_mac(text: &str) -> Result<Mac> {
    from_hex(&text.replace(':', ""))?
        .try_into()
        .map_err(|_| anyhow::anyhow!("hardware address {text:?} has not six bytes"))
}

/// Bytes as hex digits.
pub fn to_hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Hex digits as bytes.
pub fn from_hex(text: &str) -> Result<Vec<u8>> {
    let text = text.trim();
    ensure!(
        text.is_ascii() && text.len().is_multiple_of(2),
        "{text:?} is not hex"
    );
    (0..text.len())
        .step_by(2)
        .map(|place| u8::from_str_radix(&text[place..place + 2], 16).context("not hex"))
        .collect()
}

/// Sends frames from an interface of a namespace, in order.
pub fn send(from: &Namespace, interface: &str, frames: &[Vec<u8>]) -> Result<()> {
    let mut command = Command::new(program::probe()?);
    command.args(["send", "--interface", interface]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let lines: String = frames.iter().map(|frame| to_hex(frame) + "\n").collect();
    let output = feed(from.spawn(&mut command)?, lines.as_bytes())?;
    checked(&command, &output)?;
    Ok(())
}

/// Sees every frame that enters or leaves a namespace, from its start on.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    // Held open: its end ends the capture.
    input: Option<ChildStdin>,
    frames: Receiver<Vec<u8>>,
    seen: Vec<Vec<u8>>,
}

impl Capture {
    /// Starts to look.
    pub fn start(namespace: &Namespace) -> Result<Self> {
        let mut command = Command::new(program::probe()?);
        command.arg("capture");
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut child = namespace.spawn(&mut command)?;
        crate::wait::first_line(&mut child, "capture")?;
        let input = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("stdout is a pipe")?);
        let (sender, frames) = channel();
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                let Ok(frame) = from_hex(&line) else { return };
                if sender.send(frame).is_err() {
                    return;
                }
            }
        });
        Ok(Self {
            child,
            input,
            frames,
            seen: Vec::new(),
        })
    }

    /// Reads until a frame is seen that the closure knows. Send such a frame last, as a fence: what was sent before
    /// it on the same way came before it or never comes.
    pub fn until(&mut self, is_fence: impl Fn(&[u8]) -> bool) -> Result<&[Vec<u8>]> {
        loop {
            let frame = self
                .frames
                .recv_timeout(PATIENCE)
                .context("the awaited frame did not come")?;
            let found = is_fence(&frame);
            self.seen.push(frame);
            if found {
                return Ok(&self.seen);
            }
        }
    }

    /// Ends the capture; all frames seen.
    pub fn finish(mut self) -> Vec<Vec<u8>> {
        drop(self.input.take());
        // The sender goes away with the last frame.
        self.seen.extend(self.frames.iter());
        std::mem::take(&mut self.seen)
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksum_of_a_packet_with_its_checksum_is_zero() {
        let packet = ipv4(
            Ipv4Addr::new(10, 0, 0, 1),
            Ipv4Addr::new(10, 0, 0, 2),
            17,
            &[],
        );

        assert_eq!(checksum(&packet), 0);
    }

    #[test]
    fn checksum_is_that_of_the_example_in_rfc_1071() {
        let sum = checksum(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);

        assert_eq!(sum, !0xddf2);
    }

    #[test]
    fn crc32c_is_that_of_the_examples_in_rfc_3720() {
        let rising: Vec<u8> = (0..32).collect();

        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
        assert_eq!(crc32c(&[0xff; 32]), 0x62a8_ab43);
        assert_eq!(crc32c(&rising), 0x46dd_794e);
    }

    #[test]
    fn hex_goes_there_and_back() {
        let bytes = [0x00, 0x7f, 0xff];

        assert_eq!(from_hex(&to_hex(&bytes)).unwrap(), bytes);
        assert!(from_hex("abc").is_err());
    }

    #[test]
    fn vlan_tag_stands_behind_the_addresses() {
        let frame = ethernet([1; 6], [2; 6], IPV4, &[9]);

        let tagged = tagged(&frame, 7);

        assert_eq!(
            tagged,
            [1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 0x81, 0, 0, 7, 8, 0, 9]
        );
    }
}
