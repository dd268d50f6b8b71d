//! What the backends say when the kernel refuses, and what others may do meanwhile.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod lab;
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod ruleset;

use std::error::Error;
use std::net::Ipv4Addr;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use lab::{in_fresh_namespace, skip};
use nix::libc;
use ruleset::{
    DROP, base_chain, bridge, class, exact, inet, interface, map, name, plain_chain, rule, set, v4,
    verdict,
};
use towpath_dataplane::nft::{
    Backend, CommandBackend, CommitError, Element, FakeKernel, Field, FieldType, Heard, Hook,
    MapData, MatchOperand, Monitor, NetlinkBackend, Operation, RuleVerdict, RulesetEvent, SetKey,
    SetSpec, Statement, TableFlags, Transaction, Value, transaction_text,
};

const PLAIN: TableFlags = TableFlags {
    owner: false,
    persist: false,
};

fn transaction(operations: impl IntoIterator<Item = Operation>) -> Transaction {
    Transaction {
        operations: operations.into_iter().collect(),
    }
}

/// A map of three peers in a table.
fn base() -> Transaction {
    let spec = SetSpec {
        size: 3,
        ..map("peers", [FieldType::Ipv4Addr], MapData::ClassId)
    };
    let peers = (1..=3).map(peer).collect();
    transaction([
        Operation::AddTable(inet(), PLAIN),
        Operation::AddSet(inet(), spec),
        Operation::AddElements(inet(), name("peers"), peers),
        Operation::AddChain(inet(), plain_chain("used")),
        Operation::AddChain(inet(), base_chain("forward", Hook::Forward, 10)),
        Operation::AddRule(
            inet(),
            name("forward"),
            rule([Statement::Verdict(RuleVerdict::Jump(name("used")))]),
        ),
    ])
}

fn peer(last: u8) -> Element {
    exact([v4(&format!("10.0.0.{last}"))], class(1))
}

fn add(elements: Vec<Element>) -> Operation {
    Operation::AddElements(inet(), name("peers"), elements)
}

fn delete(elements: Vec<Element>) -> Operation {
    Operation::DeleteElements(inet(), name("peers"), elements)
}

fn command() -> CommandBackend {
    CommandBackend::new("nft", Duration::from_secs(20))
}

/// The number, the index and the text of a refusal.
fn refusal(result: Result<(), CommitError>) -> (i32, usize, String) {
    match result {
        Err(CommitError::Refused {
            operation,
            index,
            source,
        }) => {
            let errno = source.raw_os_error();
            let errno = errno.unwrap_or_else(|| panic!("{operation}: {source}"));
            (errno, index, operation)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_the_operation_that_is_refused() {
    in_fresh_namespace("nft", "names_the_operation_that_is_refused", || {
        let other = exact([v4("10.0.0.1")], class(2));
        let cases = [
            (libc::ENOENT, delete(vec![peer(9)])),
            (libc::EEXIST, add(vec![other])),
            (libc::ENFILE, add(vec![peer(2), peer(4)])),
            (libc::EBUSY, Operation::DeleteChain(inet(), name("used"))),
            (libc::ENOENT, Operation::DeleteTable(bridge())),
        ];
        let mut backends: [Box<dyn Backend>; 3] = [
            Box::new(NetlinkBackend::open().unwrap()),
            Box::new(command()),
            Box::new(FakeKernel::new()),
        ];
        for backend in &mut backends {
            backend.commit(&base()).unwrap();
            let before = backend.elements(&inet(), &name("peers")).unwrap();

            for (errno, operation) in &cases {
                let batch = [
                    delete(vec![peer(2)]),
                    operation.clone(),
                    delete(vec![peer(3)]),
                ];
                let (found, index, text) = refusal(backend.commit(&transaction(batch)));

                assert_eq!((found, index), (*errno, 1), "{backend:?}: {text}");
                let expected = transaction_text(&transaction([operation.clone()])).unwrap();
                assert_eq!(text, expected.trim(), "{backend:?}");
                assert_eq!(
                    backend.elements(&inet(), &name("peers")).unwrap(),
                    before,
                    "nothing took effect"
                );
            }
            backend
                .commit(&transaction([Operation::DeleteTable(inet())]))
                .unwrap();
        }
    });
}

#[test]
fn error_says_what_was_refused_and_why() {
    in_fresh_namespace("nft", "error_says_what_was_refused_and_why", || {
        let mut backend = NetlinkBackend::open().unwrap();

        let error = backend
            .commit(&transaction([add(vec![peer(1)])]))
            .unwrap_err();

        assert_eq!(
            error.to_string(),
            "the kernel refused add element inet towpath peers { 10.0.0.1 : 0:1 }"
        );
        assert_eq!(
            error.source().unwrap().to_string(),
            "No such file or directory (os error 2)"
        );
        assert!(
            error.is_retryable(),
            "the ruleset is not what it was thought to be"
        );
    });
}

#[test]
fn what_nftables_cannot_say_is_refused_before_it_is_sent() {
    in_fresh_namespace(
        "nft",
        "what_nftables_cannot_say_is_refused_before_it_is_sent",
        || {
            let statement = |field, operand| Statement::Match {
                field,
                negated: false,
                operand,
            };
            let wrong = [
                statement(Field::IpSource, MatchOperand::Value(Value::U8(1))),
                statement(Field::IpSource, MatchOperand::Prefix(v4("10.0.0.0"), 33)),
                statement(
                    Field::InputInterface,
                    MatchOperand::Value(interface("sixteen-letters!")),
                ),
                statement(Field::ArpOperation, MatchOperand::Value(Value::U16(1))),
                statement(Field::DestinationPort, MatchOperand::OneOf(vec![])),
                statement(
                    Field::DestinationPort,
                    MatchOperand::OneOf(vec![(Value::U16(9), Value::U16(8))]),
                ),
                Statement::CtState { any_of: 0 },
            ];
            let mut backend = NetlinkBackend::open().unwrap();
            backend.commit(&base()).unwrap();
            let generation = backend.generation().unwrap();

            for statement in wrong {
                let add = Operation::AddRule(inet(), name("forward"), rule([statement.clone()]));
                let error = backend.commit(&transaction([add])).unwrap_err();
                assert!(
                    matches!(error, CommitError::Refused { index: 0, .. }),
                    "{statement:?}: {error:?}"
                );
                assert!(!error.is_retryable());
            }

            assert_eq!(backend.generation().unwrap(), generation);
        },
    );
}

#[test]
fn commit_at_an_old_generation_is_to_be_tried_again() {
    in_fresh_namespace(
        "nft",
        "commit_at_an_old_generation_is_to_be_tried_again",
        || {
            let mut backend = NetlinkBackend::open().unwrap();
            let generation = backend.generation().unwrap();
            NetlinkBackend::open().unwrap().commit(&base()).unwrap();

            let late = backend.commit_at(&transaction([delete(vec![peer(1)])]), generation);

            assert!(matches!(late, Err(CommitError::Again(_))), "{late:?}");
            let generation = backend.generation().unwrap();
            backend
                .commit_at(&transaction([delete(vec![peer(1)])]), generation)
                .unwrap();
            assert_eq!(backend.generation().unwrap(), generation + 1);
        },
    );
}

#[test]
fn takes_100_000_elements_in_one_batch() {
    in_fresh_namespace("nft", "takes_100_000_elements_in_one_batch", || {
        const COUNT: u32 = 100_000;
        let element = |number: u32| Element {
            key: SetKey::Exact(vec![
                Value::Ipv4(Ipv4Addr::from_bits(0x0a00_0000 + number)),
                Value::U16(80),
            ]),
            value: Some(verdict(RuleVerdict::Return)),
        };
        let spec = map(
            "verdicts",
            [FieldType::Ipv4Addr, FieldType::InetService],
            MapData::Verdict,
        );
        let mut backend = NetlinkBackend::open().unwrap();
        let elements: Vec<Element> = (0..COUNT).map(element).collect();
        let load = |elements| {
            transaction([
                Operation::AddTable(inet(), PLAIN),
                Operation::AddSet(
                    inet(),
                    SetSpec {
                        size: COUNT,
                        ..spec.clone()
                    },
                ),
                Operation::AddElements(inet(), name("verdicts"), elements),
            ])
        };

        backend.commit(&load(elements.clone())).unwrap();
        assert_eq!(
            backend.elements(&inet(), &name("verdicts")).unwrap(),
            Some(elements.clone())
        );

        let all = Operation::DeleteElements(inet(), name("verdicts"), elements.clone());
        backend.commit(&transaction([all])).unwrap();
        let too_many = [elements, vec![element(COUNT)]].concat();
        let (errno, index, text) = refusal(backend.commit(&load(too_many)));
        assert_eq!((errno, index), (libc::ENFILE, 2));
        assert!(
            text.starts_with("add element inet towpath verdicts { 10.0.0.0 . 80 : return, "),
            "{text}"
        );
        assert!(text.len() < 300, "{text}");
        assert_eq!(
            backend.elements(&inet(), &name("verdicts")).unwrap(),
            Some(vec![])
        );
    });
}

#[test]
fn set_that_is_made_again_takes_a_new_size() {
    in_fresh_namespace("nft", "set_that_is_made_again_takes_a_new_size", || {
        let mut backend = NetlinkBackend::open().unwrap();
        backend.commit(&base()).unwrap();
        let spec = backend.set(&inet(), &name("peers")).unwrap().unwrap();
        assert_eq!(spec.size, 3);

        let grow = Operation::AddSet(inet(), SetSpec { size: 5, ..spec });
        backend.commit(&transaction([grow])).unwrap();

        let grown = backend.set(&inet(), &name("peers")).unwrap().unwrap();
        if grown.size == 3 {
            skip(
                "nft",
                "set_that_is_made_again_takes_a_new_size",
                "nft-set-update",
                "needs sets that grow (Linux 6.5)",
            );
            return;
        }
        backend
            .commit(&transaction([add(vec![peer(4), peer(5)])]))
            .unwrap();
        assert_eq!(
            refusal(backend.commit(&transaction([add(vec![peer(6)])]))).0,
            libc::ENFILE
        );
    });
}

#[test]
fn empty_transactions_and_lists_do_nothing() {
    in_fresh_namespace("nft", "empty_transactions_and_lists_do_nothing", || {
        let mut netlink = NetlinkBackend::open().unwrap();
        let generation = netlink.generation().unwrap();

        for backend in [
            &mut netlink as &mut dyn Backend,
            &mut command(),
            &mut FakeKernel::new(),
        ] {
            backend.commit(&Transaction::new()).unwrap();
            backend
                .commit(&transaction([add(vec![]), delete(vec![])]))
                .unwrap();
        }

        assert_eq!(netlink.generation().unwrap(), generation);
    });
}

#[test]
fn interface_names_never_reach_the_grammar_unescaped() {
    in_fresh_namespace(
        "nft",
        "interface_names_never_reach_the_grammar_unescaped",
        || {
            let mut netlink = NetlinkBackend::open().unwrap();
            netlink
                .commit(&transaction([
                    Operation::AddTable(inet(), PLAIN),
                    Operation::AddSet(inet(), set("ports", [FieldType::InterfaceName])),
                ]))
                .unwrap();
            for bad in ["a\"b", "a*", "@ports", "a\nb", "a\\b", "\u{e4}"] {
                let element = exact([interface(bad)], None);
                let bad_one = transaction([Operation::AddElements(
                    inet(),
                    name("ports"),
                    vec![element.clone()],
                )]);

                assert!(transaction_text(&bad_one).is_err(), "{bad:?}");
                let error = command().commit(&bad_one).unwrap_err();
                assert!(matches!(error, CommitError::Refused { .. }), "{error:?}");

                // The kernel takes every name, and no grammar is involved.
                netlink.commit(&bad_one).unwrap();
                assert_eq!(
                    netlink.elements(&inet(), &name("ports")).unwrap(),
                    Some(vec![element])
                );
                netlink
                    .commit(&transaction([Operation::FlushSet(inet(), name("ports"))]))
                    .unwrap();
            }
        },
    );
}

#[test]
fn kills_a_program_that_hangs() {
    let folder = tempfile::tempdir().unwrap();
    let program = folder.path().join("nft");
    std::fs::write(&program, "#!/bin/sh\nexec tail -f /dev/null\n").unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let mut backend = CommandBackend::new(&program, Duration::from_millis(100));

    let error = backend.commit(&base()).unwrap_err();

    assert!(matches!(error, CommitError::Transport { .. }), "{error:?}");
    assert_eq!(error.source().unwrap().to_string(), "the nft program hangs");
}

#[test]
fn hears_commits_of_others() {
    in_fresh_namespace("nft", "hears_commits_of_others", || {
        let mut monitor = Monitor::open().unwrap();
        let mut backend = NetlinkBackend::open().unwrap();
        let mut commits = Vec::new();
        let mut hear = |monitor: &mut Monitor| {
            let before = commits.len();
            let deadline = Instant::now() + Duration::from_secs(20);
            while commits.len() == before {
                assert!(Instant::now() < deadline, "nothing was heard");
                for event in monitor.wait(Duration::from_secs(20)).unwrap().events {
                    match event {
                        RulesetEvent::Commit(commit) => commits.push(commit),
                        RulesetEvent::Overrun => panic!("few messages were sent"),
                    }
                }
            }
        };

        backend.commit(&base()).unwrap();
        hear(&mut monitor);
        command()
            .commit(&transaction([Operation::FlushSet(inet(), name("peers"))]))
            .unwrap();
        hear(&mut monitor);
        let generation = backend.generation().unwrap();

        assert_eq!(monitor.wait(Duration::ZERO).unwrap(), Heard::default());
        let [ours, other] = &commits[..] else {
            panic!("{commits:?}")
        };
        let own = u32::try_from(nix::unistd::gettid().as_raw()).unwrap();
        assert_eq!((ours.port, ours.thread), (backend.port(), own));
        assert_ne!(other.port, backend.port());
        assert_ne!(other.thread, own);
        assert_eq!(other.generation, generation);
        assert_eq!(other.tables.iter().collect::<Vec<_>>(), [&inet()]);
        assert_eq!(ours.tables, other.tables);
    });
}

#[test]
fn the_port_tells_commits_of_one_thread_apart() {
    in_fresh_namespace("nft", "the_port_tells_commits_of_one_thread_apart", || {
        let mut monitor = Monitor::open().unwrap();
        let mut ours = NetlinkBackend::open().unwrap();
        let mut other = NetlinkBackend::open().unwrap();

        ours.commit(&base()).unwrap();
        other
            .commit(&transaction([Operation::FlushSet(inet(), name("peers"))]))
            .unwrap();
        let heard = monitor.wait(Duration::from_secs(20)).unwrap().events;

        let [RulesetEvent::Commit(first), RulesetEvent::Commit(second)] = &heard[..] else {
            panic!("{heard:?}")
        };
        assert_eq!(first.thread, second.thread);
        assert_eq!((first.port, second.port), (ours.port(), other.port()));
        assert_ne!(first.port, second.port);
    });
}

#[test]
fn a_waker_ends_the_wait_for_commits() {
    in_fresh_namespace("nft", "a_waker_ends_the_wait_for_commits", || {
        let mut monitor = Monitor::open().unwrap();
        let waker = monitor.waker();

        let stop = std::thread::spawn(move || waker.wake());
        let heard = monitor.wait(Duration::from_mins(1)).unwrap();
        stop.join().unwrap();

        assert!(heard.is_woken && heard.events.is_empty());
    });
}

#[test]
fn rule_of_a_deleted_chain_is_gone() {
    in_fresh_namespace("nft", "rule_of_a_deleted_chain_is_gone", || {
        let mut backend = NetlinkBackend::open().unwrap();
        backend.commit(&base()).unwrap();
        let forward = || name("forward");

        let change = transaction([
            Operation::FlushChain(inet(), forward()),
            Operation::DeleteChain(inet(), name("used")),
            Operation::AddRule(inet(), forward(), rule([DROP])),
        ]);
        backend.commit(&change).unwrap();

        assert_eq!(
            backend.rules(&inet(), &forward()).unwrap(),
            [Some(rule([DROP]))]
        );
        let chains = backend.chains(&inet()).unwrap();
        assert_eq!(chains, [base_chain("forward", Hook::Forward, 10)]);
    });
}
