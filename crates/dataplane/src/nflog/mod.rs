//! Packets that the ruleset logged, over NFLOG.
//!
//! A rule `log group N prefix "..."` copies the beginning of a packet to whoever has bound group N in the same network
//! namespace. Reading them changes nothing: a packet is dropped whether or not it is read.

mod packet;

use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, SystemTime};

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use smol_str::SmolStr;

pub use packet::{Conversation, Transport};

use crate::link::socket::RequestSocket;
use crate::link::wake::Sleeper;
use crate::link::wire::{Attributes, Messages, NLM_F_ACK, Request, array_at, text};
use crate::link::{NetlinkError, Waker, enlarge_buffer};

/// `NETLINK_NETFILTER`.
const PROTOCOL: i32 = 12;
/// `NFNL_SUBSYS_ULOG << 8`, with `NFULNL_MSG_PACKET` and `NFULNL_MSG_CONFIG`.
const MESSAGE_PACKET: u16 = 4 << 8;
const MESSAGE_CONFIG: u16 = 4 << 8 | 1;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

const CONFIG_COMMAND: u16 = 1;
const CONFIG_MODE: u16 = 2;
const CONFIG_TIMEOUT: u16 = 4;
const CONFIG_THRESHOLD: u16 = 5;
const CONFIG_FLAGS: u16 = 6;
const COMMAND_BIND: u8 = 1;
const COPY_PACKET: u8 = 2;
const FLAG_SEQUENCE: u16 = 1;

const PACKET_HEADER: u16 = 1;
const TIMESTAMP: u16 = 3;
const IN_INTERFACE: u16 = 4;
const OUT_INTERFACE: u16 = 5;
const IN_PORT: u16 = 6;
const OUT_PORT: u16 = 7;
const HARDWARE_ADDRESS: u16 = 8;
const PAYLOAD: u16 = 9;
const PREFIX: u16 = 10;
const SEQUENCE: u16 = 12;

/// Bytes copied of each packet: enough for IPv6 with some extension headers.
const COPIED: u32 = 128;
/// Packets that the kernel collects before it wakes us ...
const BATCH: u32 = 32;
/// ... and how long it waits for them, in hundredths of a second.
const BATCH_TIMEOUT: u32 = 10;
/// The kernel sends at most a few packets of [`COPIED`] bytes in one datagram.
const DATAGRAM: usize = 64 * 1024;
/// Datagrams read in one go, so that a flood cannot keep the caller from acting.
const MOST_DATAGRAMS: usize = 64;

/// A logged packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeniedPacket {
    /// The prefix of the rule that logged it; control characters are replaced.
    pub prefix: SmolStr,
    /// When it was received, where the kernel stamped it.
    pub time: Option<SystemTime>,
    /// Number of the interface it came in by.
    pub in_interface: Option<u32>,
    /// Number of the interface it was to leave by.
    pub out_interface: Option<u32>,
    /// Number of the bridge port it came in by, where `in_interface` is a bridge.
    pub in_port: Option<u32>,
    /// Number of the bridge port it was to leave by, where `out_interface` is a bridge.
    pub out_port: Option<u32>,
    /// The Ethernet address it came from.
    pub source_mac: Option<[u8; 6]>,
    /// Who spoke to whom.
    pub conversation: Conversation,
}

impl DeniedPacket {
    /// Source address, or the sender that ARP claims.
    pub fn source(&self) -> Option<IpAddr> {
        match self.conversation {
            Conversation::Ip { source, .. } => Some(source),
            Conversation::Arp { sender, .. } => Some(sender.into()),
            Conversation::Other { .. } => None,
        }
    }

    /// Destination address, or the target of ARP.
    pub fn destination(&self) -> Option<IpAddr> {
        match self.conversation {
            Conversation::Ip { destination, .. } => Some(destination),
            Conversation::Arp { target, .. } => Some(target.into()),
            Conversation::Other { .. } => None,
        }
    }
}

/// What one wait brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Batch {
    /// The packets in the kernel's order.
    pub packets: Vec<DeniedPacket>,
    /// Packets that were logged and did not reach us since the batch before.
    pub lost: u64,
    /// Whether a [`Waker`] ended the wait.
    pub is_woken: bool,
}

/// Reads one NFLOG group. The group is free again when the reader is dropped.
#[derive(Debug)]
pub struct NflogReader {
    socket: Socket,
    sleeper: Sleeper,
    buffer: Vec<u8>,
    /// Number of the next packet, once one was seen.
    expected: Option<u32>,
}

impl NflogReader {
    /// Binds `group` in the network namespace of the calling thread. Needs `CAP_NET_ADMIN`.
    ///
    /// The kernel answers `EBUSY` or `EPERM` when another program has bound it.
    pub fn bind(group: u16) -> Result<Self, NetlinkError> {
        let mut socket = RequestSocket::open(PROTOCOL)?;
        let [high, low] = group.to_be_bytes();
        let mut mode = COPIED.to_be_bytes().to_vec();
        mode.extend([COPY_PACKET, 0]);
        let request = Request::new(MESSAGE_CONFIG, NLM_F_ACK, &[0, 0, high, low])
            .attribute(CONFIG_COMMAND, &[COMMAND_BIND])
            .attribute(CONFIG_MODE, &mode)
            .attribute(CONFIG_TIMEOUT, &BATCH_TIMEOUT.to_be_bytes())
            .attribute(CONFIG_THRESHOLD, &BATCH.to_be_bytes())
            .attribute(CONFIG_FLAGS, &FLAG_SEQUENCE.to_be_bytes());
        socket.exchange("bind", format_args!("NFLOG group {group}"), request, |_| {})?;
        let mut socket = socket.into_socket();
        enlarge_buffer(&mut socket)?;
        Ok(Self {
            socket,
            sleeper: Sleeper::new().map_err(NetlinkError::socket("make a pipe"))?,
            buffer: vec![0; DATAGRAM],
            expected: None,
        })
    }

    /// A handle that ends [`NflogReader::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    /// Waits for packets, a waker or the end of `timeout`, whichever is first, and takes what is there.
    pub fn wait(&mut self, timeout: Duration) -> Result<Batch, NetlinkError> {
        let awake = self
            .sleeper
            .wait(self.socket.as_fd(), timeout)
            .map_err(NetlinkError::socket("wait for a netlink socket"))?;
        let mut batch = Batch {
            is_woken: awake.is_woken,
            ..Batch::default()
        };
        if !awake.is_readable {
            return Ok(batch);
        }
        for _ in 0..MOST_DATAGRAMS {
            let flags = MsgFlags::MSG_DONTWAIT;
            match recv(self.socket.as_raw_fd(), &mut self.buffer, flags) {
                Ok(length) => self.read(length, &mut batch),
                // The kernel had to drop packets; the gap in their numbers tells how many.
                Err(Errno::EINTR | Errno::ENOBUFS) => {}
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(NetlinkError::socket("read logged packets")(error)),
            }
        }
        Ok(batch)
    }

    /// Reads one datagram.
    fn read(&mut self, length: usize, batch: &mut Batch) {
        let datagram = self.buffer.get(..length).unwrap_or_default();
        for message in Messages(datagram) {
            if message.kind != MESSAGE_PACKET {
                continue;
            }
            let (packet, sequence) = decode(message.payload);
            if let Some(sequence) = sequence {
                let expected = self.expected.unwrap_or(sequence);
                batch.lost += u64::from(sequence.wrapping_sub(expected));
                self.expected = Some(sequence.wrapping_add(1));
            }
            batch.packets.push(packet);
        }
    }
}

/// Reads one message of the kernel: the packet and its number. What is missing or mangled stays empty.
fn decode(message: &[u8]) -> (DeniedPacket, Option<u32>) {
    let mut packet = DeniedPacket {
        prefix: SmolStr::default(),
        time: None,
        in_interface: None,
        out_interface: None,
        in_port: None,
        out_port: None,
        source_mac: None,
        conversation: Conversation::Other { ethertype: 0 },
    };
    let (mut sequence, mut ethertype, mut payload) = (None, 0, [].as_slice());
    for (kind, value) in Attributes(message.get(HEADER..).unwrap_or_default()) {
        match kind {
            PACKET_HEADER => ethertype = array_at(value, 0).map_or(0, u16::from_be_bytes),
            TIMESTAMP => packet.time = timestamp(value),
            IN_INTERFACE => packet.in_interface = number(value),
            OUT_INTERFACE => packet.out_interface = number(value),
            IN_PORT => packet.in_port = number(value),
            OUT_PORT => packet.out_port = number(value),
            HARDWARE_ADDRESS => packet.source_mac = hardware_address(value),
            PAYLOAD => payload = value,
            PREFIX => packet.prefix = text(value).chars().map(printable).collect(),
            SEQUENCE => sequence = number(value),
            _ => {}
        }
    }
    packet.conversation = packet::read(ethertype, payload);
    (packet, sequence)
}

/// A number in network order.
fn number(value: &[u8]) -> Option<u32> {
    array_at(value, 0).map(u32::from_be_bytes)
}

/// Seconds and microseconds since 1970.
fn timestamp(value: &[u8]) -> Option<SystemTime> {
    let seconds = array_at(value, 0).map(u64::from_be_bytes)?;
    let microseconds = array_at(value, 8).map(u64::from_be_bytes)?;
    SystemTime::UNIX_EPOCH
        .checked_add(Duration::from_secs(seconds))?
        .checked_add(Duration::from_micros(microseconds))
}

/// An Ethernet address; others have another length.
fn hardware_address(value: &[u8]) -> Option<[u8; 6]> {
    let length = array_at(value, 0).map(u16::from_be_bytes)?;
    (length == 6).then(|| array_at(value, 4)).flatten()
}

/// Keeps a log line one line.
fn printable(character: char) -> char {
    if character.is_control() {
        char::REPLACEMENT_CHARACTER
    } else {
        character
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A message as the kernel builds it, without the netlink header.
    fn message(payload: &[u8]) -> Vec<u8> {
        let request = Request::new(MESSAGE_PACKET, 0, &[2, 0, 0, 5])
            .attribute(PACKET_HEADER, &[0x08, 0, 2, 0])
            .attribute(PREFIX, b"policy\n\0")
            .attribute(
                TIMESTAMP,
                &[[0, 0, 0, 0, 0, 0, 0, 2], [0, 0, 0, 0, 0, 0, 0, 3]].concat(),
            )
            .attribute(IN_INTERFACE, &[0, 0, 0, 7])
            .attribute(IN_PORT, &[0, 0, 0, 9])
            .attribute(HARDWARE_ADDRESS, &[0, 6, 0, 0, 2, 0, 0, 0, 0, 1, 0, 0])
            .attribute(SEQUENCE, &[0, 0, 1, 0])
            .attribute(PAYLOAD, payload);
        request.finish(0)[16..].to_vec()
    }

    const PACKET: [u8; 28] = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 99, 0, 53, 0, 8, 0,
        0,
    ];

    #[test]
    fn decodes_a_packet() {
        let (packet, sequence) = decode(&message(&PACKET));

        assert_eq!(sequence, Some(256));
        assert_eq!(
            packet,
            DeniedPacket {
                prefix: SmolStr::new("policy\u{fffd}"),
                time: Some(SystemTime::UNIX_EPOCH + Duration::from_micros(2_000_003)),
                in_interface: Some(7),
                out_interface: None,
                in_port: Some(9),
                out_port: None,
                source_mac: Some([2, 0, 0, 0, 0, 1]),
                conversation: Conversation::Ip {
                    source: [10, 0, 0, 1].into(),
                    destination: [10, 0, 0, 2].into(),
                    protocol: 17,
                    transport: Transport::Ports {
                        source: 99,
                        destination: 53
                    },
                },
            }
        );
    }

    proptest! {
        #[test]
        fn any_damage_is_read_without_panic(
            payload in proptest::collection::vec(any::<u8>(), 0..128),
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..8),
            end in any::<prop::sample::Index>(),
        ) {
            let mut bytes = message(&payload);
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            let end = end.index(bytes.len() + 1);

            let (packet, _) = decode(&bytes[..end]);

            prop_assert!(!packet.prefix.chars().any(char::is_control));
        }
    }
}
