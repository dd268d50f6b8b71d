//! The fake kernel's own promises, and its dump as readable text.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod lab;
mod ruleset;

use std::time::Duration;

use lab::{feed, in_fresh_namespace};
use nix::libc;
use ruleset::everything::everything;
use ruleset::{bridge, exact, inet, name, v4};
use serde_json::Value as Json;
use towpath_dataplane::nft::{
    Backend, CommandBackend, CommitError, Element, ElementValue, FakeKernel, NetlinkBackend,
    Operation, TableFlags, Transaction, transaction_text,
};

const PLAIN: TableFlags = TableFlags {
    owner: false,
    persist: false,
};
const OWNED: TableFlags = TableFlags {
    owner: true,
    persist: true,
};

fn filled() -> FakeKernel {
    let mut fake = FakeKernel::new();
    fake.commit(&everything(PLAIN)).unwrap();
    fake
}

fn one(operation: Operation) -> Transaction {
    Transaction {
        operations: vec![operation],
    }
}

fn peer(value: u32) -> Vec<Element> {
    vec![exact([v4("10.9.9.9")], ElementValue::ClassId(value))]
}

/// Both tables as nft lists them, handles left out.
fn listing() -> Vec<Json> {
    let mut backend = CommandBackend::new("nft", Duration::from_secs(20));
    let mut objects = Vec::new();
    for table in [inet(), bridge()] {
        let document = backend
            .list_table(&table)
            .unwrap()
            .expect("the table is there");
        for object in document["nftables"].as_array().unwrap() {
            let mut object = object.clone();
            for content in object.as_object_mut().unwrap().values_mut() {
                content.as_object_mut().unwrap().remove("handle");
            }
            objects.push(object);
        }
    }
    objects
}

#[test]
fn dumps_readable_text() {
    insta::assert_snapshot!(filled().dump().unwrap());
}

#[test]
fn prints_a_transaction_as_commands() {
    insta::assert_snapshot!(transaction_text(&everything(PLAIN)).unwrap());
}

#[test]
fn its_dump_loads_as_what_the_kernel_has() {
    in_fresh_namespace("nft", "its_dump_loads_as_what_the_kernel_has", || {
        NetlinkBackend::open()
            .unwrap()
            .commit(&everything(PLAIN))
            .unwrap();
        let committed = listing();
        feed("nft", &["flush", "ruleset"], "");

        feed("nft", &["-f", "-"], &filled().dump().unwrap());

        // A file makes the chains of a table before its sets, so only the order of objects differs.
        let sorted = |mut objects: Vec<Json>| {
            objects.sort_by_key(|object| {
                object
                    .get("rule")
                    .map_or_else(|| object.to_string(), |_| String::new())
            });
            objects
        };
        assert_eq!(sorted(listing()), sorted(committed));
    });
}

#[test]
fn fails_on_demand_and_takes_nothing() {
    let mut fake = filled();
    let before = fake.dump().unwrap();
    let add = one(Operation::AddElements(inet(), name("peer_class"), peer(1)));
    fake.fail_commit(1, libc::ENOBUFS);
    fake.fail_commit(2, libc::EPERM);

    let first = fake.commit(&add);
    let second = fake.commit(&add);

    assert!(matches!(first, Err(CommitError::Again(_))), "{first:?}");
    assert!(
        matches!(second, Err(CommitError::Refused { index: 0, .. })),
        "{second:?}"
    );
    assert_eq!(fake.dump().unwrap(), before);
    fake.commit(&add).unwrap();
    assert_ne!(fake.dump().unwrap(), before);
    assert_eq!((fake.attempts(), fake.committed().len()), (4, 2));
}

#[test]
fn takes_a_transaction_whole_or_not_at_all() {
    let mut fake = filled();
    let before = fake.dump().unwrap();

    let result = fake.commit(&Transaction {
        operations: vec![
            Operation::AddElements(inet(), name("peer_class"), peer(1)),
            Operation::FlushSet(inet(), name("classes")),
            Operation::AddElements(inet(), name("peer_class"), peer(2)),
        ],
    });

    assert!(
        matches!(result, Err(CommitError::Refused { index: 2, .. })),
        "{result:?}"
    );
    assert_eq!(fake.dump().unwrap(), before);
}

#[test]
fn clones_share_one_ruleset() {
    let mut fake = FakeKernel::new();
    let kept = fake.clone();

    fake.commit(&one(Operation::AddTable(inet(), PLAIN)))
        .unwrap();

    assert_eq!(kept.dump().unwrap(), "table inet towpath {\n}\n");
}

#[test]
fn orphaned_table_can_be_adopted() {
    let mut fake = FakeKernel::new();
    fake.commit(&one(Operation::AddTable(inet(), OWNED)))
        .unwrap();
    fake.commit(&one(Operation::AddTable(
        bridge(),
        TableFlags {
            owner: true,
            persist: false,
        },
    )))
    .unwrap();

    fake.release_owner();

    assert_eq!(
        fake.table_flags(&inet()),
        Some(TableFlags {
            owner: false,
            persist: true
        })
    );
    assert_eq!(fake.table_flags(&bridge()), None, "it died with its owner");
    fake.commit(&one(Operation::AddTable(inet(), OWNED)))
        .unwrap();
    assert_eq!(fake.table_flags(&inet()), Some(OWNED));
    let plain = fake.commit(&one(Operation::AddTable(inet(), PLAIN)));
    assert_eq!(plain.unwrap_err().errno(), Some(libc::EOPNOTSUPP));
}
