//! Cost of a packet: UDP through a router namespace, all arms in one process, rounds interleaved.
//!
//! Each arm has its own router between its own source and sink. The sender's thread carries a packet through
//! the whole path (veth runs the receive side in the sender's softirq), so wall time of a burst on one pinned
//! core is the cost of the path. The sink counts and drops, which proves that every packet arrived.

use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, MultiHeaders, SockFlag, SockProtocol, SockType, SockaddrIn, sendmmsg,
    socket,
};

use crate::events;
use crate::namespace::{Topology, load};
use crate::report::{Arm, Gate, Kind, Report, Section};
use crate::worlds;

/// Packets of one burst.
const BURST: usize = 20_000;
/// Packets handed to the kernel in one call.
const BATCH: usize = 64;
/// Bursts per arm and kind.
const ROUNDS: usize = 16;
/// Source port of the first flow.
const FIRST_PORT: u16 = 10_000;
/// Length of an IPv4 header, a UDP header and 18 bytes.
const LENGTH: usize = 46;

/// Source of every packet: a restricted local endpoint.
pub(crate) const SOURCE: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 5);
/// Destination of every packet: another one.
pub(crate) const SINK: Ipv4Addr = Ipv4Addr::new(10, 244, 1, 6);
/// The port that policy allows.
pub(crate) const PORT: u16 = 8080;

/// One arm: a topology with its ruleset loaded.
struct Path {
    topology: Topology,
    arm_new: Arm,
    arm_established: Arm,
}

/// Measures new and established flows with no rules, with conntrack only and with the whole layout.
pub(crate) fn run(report: &mut Report) -> Result<()> {
    let mut paths = vec![
        path("conntrack only", |topology| {
            load(topology.router(), CONNTRACK_ONLY)
        })?,
        path("no rules", |_| Ok(()))?,
        path(
            "towpath, 100k classes, 10k verdicts a direction",
            |topology| {
                let tables = worlds::packet_tables(SOURCE, SINK, PORT);
                topology.router().enter(|| events::load(tables))?.map(drop)
            },
        )?,
    ];
    for round in 0..=ROUNDS {
        for path in &mut paths {
            let new = path.topology.in_source(burst_of_new_flows)?;
            path.topology.in_sink(reply)?;
            let established = path.topology.in_source(burst_of_one_flow)?;
            // The first round warms caches and neighbour entries.
            if round > 0 {
                path.arm_new.samples.push(new);
                path.arm_established.samples.push(established);
            }
            path.topology.forget_flows()?;
        }
    }
    for path in &paths {
        let arrived = path.topology.arrived()?;
        let sent = 2 * BURST as u64 * (ROUNDS as u64 + 1);
        ensure!(
            arrived == sent,
            "{}: {arrived} of {sent} packets arrived",
            path.arm_new.name
        );
    }
    let (new, established): (Vec<Arm>, Vec<Arm>) = paths
        .into_iter()
        .map(|path| (path.arm_new, path.arm_established))
        .unzip();
    gates(report, &new, &established);
    report.sections.push(Section::new(
        "First packet of a connection, both directions judged",
        "ns",
        new,
    ));
    report.sections.push(Section::new(
        "Packet of an established connection",
        "ns",
        established,
    ));
    Ok(())
}

fn gates(report: &mut Report, new: &[Arm], established: &[Arm]) {
    let (control, ours) = (new[0].minimum(), new[2].minimum());
    report.gates.extend([
        Gate::at_most(
            Kind::Gate,
            "first packet / new flow under conntrack only",
            ours / control,
            1.3,
        ),
        Gate::at_most(
            Kind::Mark,
            "first packet over conntrack only, us",
            (ours - control) / 1_000.0,
            0.6,
        ),
        Gate::at_most(
            Kind::Gate,
            "established packet / conntrack only",
            established[2].minimum() / established[0].minimum(),
            1.03,
        ),
    ]);
    report
        .unmeasured
        .push("first packet at least 8 times cheaper than peer-shaped iptables rulesets");
}

/// What a ruleset that merely tracks connections costs.
const CONNTRACK_ONLY: &str = "table inet control {
    chain forward { type filter hook forward priority 10; policy accept; ct state established accept; }
}
";

fn path(name: &str, load: impl FnOnce(&Topology) -> Result<()>) -> Result<Path> {
    let topology =
        Topology::new(SOURCE, SINK).with_context(|| format!("topology of arm {name:?}"))?;
    load(&topology).with_context(|| format!("ruleset of arm {name:?}"))?;
    Ok(Path {
        topology,
        arm_new: Arm::new(name),
        arm_established: Arm::new(name),
    })
}

/// A burst in which each packet opens a flow; nanoseconds per packet. Runs in the source namespace.
fn burst_of_new_flows() -> Result<f64> {
    let packets: Vec<_> = (0..BURST)
        .map(|index| packet((SOURCE, FIRST_PORT + port(index)), (SINK, PORT)))
        .collect();
    burst(&raw_socket()?, &packets)
}

/// A burst of the first of these flows, which has seen a reply by now.
fn burst_of_one_flow() -> Result<f64> {
    let packets = vec![packet((SOURCE, FIRST_PORT), (SINK, PORT)); BURST];
    burst(&raw_socket()?, &packets)
}

/// The reply that makes the first flow established. Runs in the sink namespace.
fn reply() -> Result<()> {
    burst_to(
        &raw_socket()?,
        SOURCE,
        &[packet((SINK, PORT), (SOURCE, FIRST_PORT))],
    )
    .map(drop)
}

fn raw_socket() -> Result<OwnedFd> {
    socket(
        AddressFamily::Inet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::Raw,
    )
    .context("cannot open a raw socket")
}

fn port(index: usize) -> u16 {
    u16::try_from(index).expect("a burst has fewer packets than there are ports")
}

fn burst(socket: &OwnedFd, packets: &[[u8; LENGTH]]) -> Result<f64> {
    burst_to(socket, SINK, packets)
}

fn burst_to(socket: &OwnedFd, destination: Ipv4Addr, packets: &[[u8; LENGTH]]) -> Result<f64> {
    let address = Some(SockaddrIn::from(std::net::SocketAddrV4::new(
        destination,
        0,
    )));
    let addresses = [address; BATCH];
    let mut headers = MultiHeaders::preallocate(BATCH, None);
    let slices: Vec<[std::io::IoSlice<'_>; 1]> = packets
        .iter()
        .map(|packet| [std::io::IoSlice::new(packet)])
        .collect();
    let start = Instant::now();
    for batch in slices.chunks(BATCH) {
        let sent = sendmmsg(
            socket.as_raw_fd(),
            &mut headers,
            batch,
            &addresses[..batch.len()],
            [],
            MsgFlags::empty(),
        )
        .context("cannot send a batch of packets")?
        .count();
        ensure!(
            sent == batch.len(),
            "the kernel took {sent} of {} packets",
            batch.len()
        );
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "nanoseconds of a burst fit a double"
    )]
    Ok(start.elapsed().as_nanos() as f64 / packets.len() as f64)
}

/// An IPv4 UDP packet; the kernel fills the header checksum in.
fn packet(source: (Ipv4Addr, u16), destination: (Ipv4Addr, u16)) -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    bytes[0] = 0x45;
    bytes[8] = 64;
    bytes[9] = 17;
    bytes[12..16].copy_from_slice(&source.0.octets());
    bytes[16..20].copy_from_slice(&destination.0.octets());
    bytes[20..22].copy_from_slice(&source.1.to_be_bytes());
    bytes[22..24].copy_from_slice(&destination.1.to_be_bytes());
    bytes[24..26].copy_from_slice(&26_u16.to_be_bytes());
    bytes
}
