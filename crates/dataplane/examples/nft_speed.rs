//! Prints what commits cost on this machine, in a fresh network namespace: `cargo run --release --example nft_speed`.
//!
//! The gates are in `cargo xtask bench`; this is for work on the encoder.
#![expect(clippy::print_stdout, reason = "an example that prints figures")]

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use towpath_dataplane::nft::{
    Backend, CommitError, DeltaTracker, Element, ElementValue, Family, FieldType, MapData, Name,
    NetlinkBackend, Operation, RuleVerdict, SetKey, SetSpec, Table, TableFlags, Transaction, Value,
};

const PEERS: u32 = 100_000;
const VERDICTS: u32 = 10_000;
const ROUNDS: u32 = 2_000;

fn name(text: &str) -> Name {
    text.parse().expect("a good name")
}

fn peer(number: u32) -> Element {
    let address = Ipv4Addr::from_bits(0x0a00_0000 + number);
    let value = Some(ElementValue::ClassId(number % 500 + 1));
    Element {
        key: SetKey::Exact(vec![Value::Ipv4(address)]),
        value,
    }
}

fn verdict(number: u32) -> Element {
    let pod = Ipv4Addr::from_bits(0x0af4_0100 + number % 100);
    let key = vec![
        Value::Ipv4(pod),
        Value::Class(number / 100),
        Value::U8(6),
        Value::U16(80),
    ];
    let value = Some(ElementValue::Verdict(RuleVerdict::Return));
    Element {
        key: SetKey::Exact(key),
        value,
    }
}

fn median(mut times: Vec<Duration>) -> (Duration, Duration) {
    times.sort_unstable();
    (times[0], times[times.len() / 2])
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    unshare(CloneFlags::CLONE_NEWNET)?;
    let mut backend = NetlinkBackend::open()?;
    let table = Table {
        family: Family::Inet,
        name: name("towpath"),
    };
    cold_load(&mut backend, &table)?;
    one_element(&mut backend, &table)?;
    track();
    Ok(())
}

fn cold_load(backend: &mut NetlinkBackend, table: &Table) -> Result<(), CommitError> {
    use FieldType::{ClassId, InetProto, InetService, Ipv4Addr as Address};
    let set = |text, key: &[FieldType], data, size| SetSpec {
        name: name(text),
        key: key.to_vec(),
        data: Some(data),
        interval: false,
        timeout: false,
        size,
    };
    let exact = [Address, ClassId, InetProto, InetService];
    let operations = vec![
        Operation::AddTable(table.clone(), TableFlags::default()),
        Operation::AddSet(
            table.clone(),
            set("peer_class", &[Address], MapData::ClassId, 200_000),
        ),
        Operation::AddSet(
            table.clone(),
            set("verdict", &exact, MapData::Verdict, 65_536),
        ),
        Operation::AddElements(
            table.clone(),
            name("peer_class"),
            (0..PEERS).map(peer).collect(),
        ),
        Operation::AddElements(
            table.clone(),
            name("verdict"),
            (0..VERDICTS).map(verdict).collect(),
        ),
    ];
    let transaction = Transaction { operations };
    let mut times = Vec::new();
    for _ in 0..5 {
        let start = Instant::now();
        backend.commit(&transaction)?;
        times.push(start.elapsed());
        let delete = Operation::DeleteTable(table.clone());
        backend.commit(&Transaction {
            operations: vec![delete],
        })?;
    }
    println!(
        "cold load of {PEERS} classes and {VERDICTS} verdicts: {:?}",
        median(times)
    );
    backend.commit(&transaction)?;
    let start = Instant::now();
    let read = backend
        .elements(table, &name("peer_class"))?
        .map_or(0, |elements| elements.len());
    println!("read back of {read} elements: {:?}", start.elapsed());
    Ok(())
}

fn one_element(backend: &mut NetlinkBackend, table: &Table) -> Result<(), CommitError> {
    let (mut added, mut removed) = (Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let of = || (table.clone(), name("peer_class"), vec![peer(PEERS + round)]);
        let (table, set, elements) = of();
        let add = Transaction {
            operations: vec![Operation::AddElements(table, set, elements)],
        };
        let (table, set, elements) = of();
        let delete = Transaction {
            operations: vec![Operation::DeleteElements(table, set, elements)],
        };
        let start = Instant::now();
        backend.commit(&add)?;
        added.push(start.elapsed());
        let start = Instant::now();
        backend.commit(&delete)?;
        removed.push(start.elapsed());
    }
    println!(
        "one element added: {:?}, removed: {:?} (minimum, median)",
        median(added),
        median(removed)
    );
    Ok(())
}

fn track() {
    let mut tracker = DeltaTracker::new();
    let start = Instant::now();
    for number in 0..PEERS {
        tracker.set_desired(number, number);
    }
    let pending = tracker.pending().updates.len();
    tracker.mark_applied();
    println!("tracker with {pending} new entries: {:?}", start.elapsed());
}
