//! NFLOG against the real kernel.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod lab;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use towpath_dataplane::nflog::{Conversation, DeniedPacket, NflogReader, Transport};

use crate::lab::{Namespace, feed, in_fresh_namespace, ip};

const LOOPBACK: Ipv4Addr = Ipv4Addr::LOCALHOST;

fn ruleset(text: &str) {
    feed("nft", &["-f", "-"], text);
}

/// Reads until `count` packets are there.
fn read(reader: &mut NflogReader, count: usize) -> (Vec<DeniedPacket>, u64) {
    let deadline = Instant::now() + Duration::from_secs(20);
    let (mut packets, mut lost) = (Vec::new(), 0);
    while packets.len() < count {
        let left = deadline.saturating_duration_since(Instant::now());
        assert!(!left.is_zero(), "only {} of {count} packets", packets.len());
        let batch = reader.wait(left).unwrap();
        packets.extend(batch.packets);
        lost += batch.lost;
    }
    (packets, lost)
}

/// Sends one datagram from a known port; that it is refused is the point.
fn send(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) {
    UdpSocket::bind(from).unwrap().send_to(b"hello", to).ok();
}

#[test]
fn reads_a_dropped_packet() {
    in_fresh_namespace("nflog", "reads_a_dropped_packet", || {
        let mut reader = NflogReader::bind(40).unwrap();
        ruleset(
            "table inet t { chain c { type filter hook input priority 0
               udp dport 4000 log group 40 prefix \"towpath policy: \" drop\n}\n}\n",
        );

        send((LOOPBACK, 3999), (LOOPBACK, 4000));
        let (packets, lost) = read(&mut reader, 1);

        assert_eq!(lost, 0);
        assert_eq!(packets.len(), 1);
        assert_eq!(packets[0].prefix, "towpath policy: ");
        assert_eq!(packets[0].in_interface, Some(1));
        assert_eq!(packets[0].out_interface, None);
        assert_eq!(
            packets[0].conversation,
            Conversation::Ip {
                source: LOOPBACK.into(),
                destination: LOOPBACK.into(),
                protocol: 17,
                transport: Transport::Ports {
                    source: 3999,
                    destination: 4000
                },
            }
        );
    });
}

#[test]
fn names_the_port_of_a_bridge() {
    in_fresh_namespace("nflog", "names_the_port_of_a_bridge", || {
        let (first, second) = (Namespace::new(), Namespace::new());
        ip("link add cni0 type bridge mcast_snooping 0");
        ip("link set cni0 up");
        first.plug(
            "vetha",
            Some("cni0"),
            "02:00:00:00:00:0a",
            &["10.244.1.5/24"],
        );
        second.plug(
            "vethb",
            Some("cni0"),
            "02:00:00:00:00:0b",
            &["10.244.1.6/24"],
        );
        let mut reader = NflogReader::bind(41).unwrap();
        ruleset(
            "table bridge t { chain c { type filter hook prerouting priority 0
               iifname vetha arp operation request log group 41 prefix \"spoofed\" drop\n}\n}\n",
        );

        first.run(|| {
            send(
                (Ipv4Addr::UNSPECIFIED, 0),
                (Ipv4Addr::new(10, 244, 1, 6), 80),
            );
        });
        let (packets, _) = read(&mut reader, 1);

        let index = nix::net::if_::if_nametoindex("vetha").unwrap();
        assert_eq!(packets[0].in_port.or(packets[0].in_interface), Some(index));
        assert_eq!(packets[0].source_mac, Some([2, 0, 0, 0, 0, 0x0a]));
        assert_eq!(
            packets[0].conversation,
            Conversation::Arp {
                sender_mac: [2, 0, 0, 0, 0, 0x0a],
                sender: Ipv4Addr::new(10, 244, 1, 5),
                target: Ipv4Addr::new(10, 244, 1, 6),
            }
        );
    });
}

#[test]
fn counts_each_packet_that_was_lost() {
    const SENT: usize = 150_000;
    in_fresh_namespace("nflog", "counts_each_packet_that_was_lost", || {
        let mut reader = NflogReader::bind(42).unwrap();
        ruleset(
            "table inet t { chain c { type filter hook input priority 0
               udp dport 4000 log group 42 drop\n}\n}\n",
        );

        let socket = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        for _ in 0..SENT {
            socket.send_to(b"hello", (LOOPBACK, 4000)).unwrap();
        }
        let (mut packets, mut lost) = (0, 0);
        let mut take = |timeout| {
            let batch = reader.wait(timeout).unwrap();
            packets += batch.packets.len();
            lost += batch.lost;
            batch.packets.len()
        };
        while take(Duration::from_millis(500)) > 0 {}
        // The gap shows only by what comes after it.
        socket.send_to(b"hello", (LOOPBACK, 4000)).unwrap();
        assert_eq!(take(Duration::from_secs(20)), 1);

        assert!(lost > 0, "nothing was lost, so this shows nothing");
        assert_eq!(packets as u64 + lost, SENT as u64 + 1);
    });
}

#[test]
fn a_group_has_one_reader() {
    in_fresh_namespace("nflog", "a_group_has_one_reader", || {
        let first = NflogReader::bind(43).unwrap();

        let error = NflogReader::bind(43).unwrap_err();
        assert_eq!(error.to_string(), "cannot bind NFLOG group 43");
        drop(first);

        // A program that another test starts can hold a copy of the socket for an instant.
        let deadline = Instant::now() + Duration::from_secs(20);
        while let Err(error) = NflogReader::bind(43) {
            assert!(Instant::now() < deadline, "still bound: {error:?}");
            std::thread::yield_now();
        }
    });
}
