//! The backends against the kernel of this machine, each test in a fresh network namespace.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod lab;
mod ruleset;

use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use lab::{in_fresh_namespace, skip};
use nix::libc;
use ruleset::everything::everything;
use ruleset::{DROP, base_chain, bridge, exact, inet, name, rule, set, v4};
use serde_json::Value as Json;
use towpath_dataplane::nft::{
    Backend, ChainRules, CommandBackend, CommitError, Element, FakeKernel, Field, FieldType, Hook,
    MatchOperand, NetlinkBackend, Operation, SetKey, SetSpec, Statement, Table, TableFlags,
    TableState, Transaction, Value, transaction_text,
};

/// Runs `nft` and gives what it prints.
fn nft(arguments: &[&str], input: &str) -> String {
    let mut child = Command::new("nft")
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(input.as_bytes())
        .unwrap();
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "nft {arguments:?}: {errors}\n{input}"
    );
    String::from_utf8(output.stdout).unwrap()
}

fn command() -> CommandBackend {
    CommandBackend::new("nft", Duration::from_secs(20))
}

/// Both tables as `nft -j` lists them, without what differs from run to run, and empties the namespace.
fn take_listing() -> Vec<Json> {
    let mut listing = Vec::new();
    for table in [inet(), bridge()] {
        let mut document = command()
            .list_table(&table)
            .unwrap()
            .expect("the table is there");
        strip_handles(&mut document);
        listing.extend(document["nftables"].as_array().unwrap().clone());
    }
    nft(&["flush", "ruleset"], "");
    listing
}

fn strip_handles(json: &mut Json) {
    match json {
        Json::Object(object) => {
            object.remove("handle");
            object.values_mut().for_each(strip_handles);
        }
        Json::Array(list) => list.iter_mut().for_each(strip_handles),
        _ => {}
    }
}

fn assert_same_listing(left: &[Json], right: &[Json]) {
    for (left, right) in left.iter().zip(right) {
        assert_eq!(left, right, "\n{left}\n{right}");
    }
    assert_eq!(left.len(), right.len());
}

/// Splits off what nft's JSON cannot say: sets declared by `typeof`, with their tables.
fn split_typeof(transaction: &Transaction) -> (Transaction, Transaction) {
    let (first, rest) =
        transaction
            .operations
            .iter()
            .cloned()
            .partition(|operation| match operation {
                Operation::AddTable(..) => true,
                Operation::AddSet(_, spec) => spec.key.contains(&FieldType::Icmpv6Target),
                _ => false,
            });
    (
        Transaction { operations: first },
        Transaction { operations: rest },
    )
}

#[test]
fn both_backends_make_the_same_ruleset() {
    in_fresh_namespace("nft", "both_backends_make_the_same_ruleset", || {
        let transaction = everything(PLAIN);

        NetlinkBackend::open()
            .unwrap()
            .commit(&transaction)
            .unwrap();
        let over_netlink = take_listing();
        let mut backend = command();
        let (by_text, by_json) = split_typeof(&transaction);
        backend.commit(&by_text).unwrap();
        backend.commit(&by_json).unwrap();
        let by_command = take_listing();
        nft(&["-f", "-"], &transaction_text(&transaction).unwrap());
        let by_file = take_listing();

        assert_same_listing(&by_file, &over_netlink);
        // Declarations of sets stand in the order of their making.
        let sorted = |mut listing: Vec<Json>| {
            listing.sort_by_key(|object| {
                object
                    .get("rule")
                    .map_or_else(|| object.to_string(), |_| String::new())
            });
            listing
        };
        assert_same_listing(&sorted(by_command), &sorted(over_netlink));
    });
}

#[test]
fn prints_files_that_nft_accepts() {
    in_fresh_namespace("nft", "prints_files_that_nft_accepts", || {
        let text = transaction_text(&everything(PLAIN)).unwrap();

        nft(&["-c", "-f", "-"], &text);

        assert_eq!(nft(&["list", "ruleset"], ""), "", "checked only");
    });
}

#[test]
fn listing_of_netlink_tables_reloads() {
    in_fresh_namespace("nft", "listing_of_netlink_tables_reloads", || {
        let mut backend = NetlinkBackend::open().unwrap();
        let flags = backend.probe_features().unwrap().table_flags();
        backend.commit(&everything(flags)).unwrap();

        let listing = nft(&["list", "ruleset"], "");
        // nft names the owner in a comment, and does not know what it lists as flags.
        let without_owner = |line| str::split(line, " # progname").next().unwrap_or(line);
        let lines: Vec<&str> = listing
            .lines()
            .filter(|line| !line.trim_start().starts_with("flags owner"))
            .map(without_owner)
            .collect();
        let plain = format!("{}\n", lines.join("\n")).replace("{\n\n", "{\n");
        let check = std::thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            nft(&["-f", "-"], &plain);
            (plain, nft(&["list", "ruleset"], ""))
        });
        let (plain, reloaded) = check.join().unwrap();

        assert_eq!(plain, reloaded);
    });
}

#[test]
fn reads_back_what_it_committed() {
    in_fresh_namespace("nft", "reads_back_what_it_committed", || {
        let transaction = everything(PLAIN);
        let mut backend = NetlinkBackend::open().unwrap();
        backend.commit(&transaction).unwrap();

        let mut again = Transaction::new();
        for table in [inet(), bridge()] {
            again.push(Operation::AddTable(table.clone(), PLAIN));
            let (sets, chains) = (
                backend.sets(&table).unwrap(),
                backend.chains(&table).unwrap(),
            );
            for spec in &sets {
                again.push(Operation::AddSet(table.clone(), spec.clone()));
            }
            for chain in &chains {
                again.push(Operation::AddChain(table.clone(), chain.clone()));
            }
            for spec in sets {
                let elements = backend.elements(&table, &spec.name).unwrap().unwrap();
                again.push(Operation::AddElements(table.clone(), spec.name, elements));
            }
            for chain in chains {
                for rule in backend.rules(&table, &chain.name).unwrap() {
                    let rule = rule.expect("a rule of ours");
                    again.push(Operation::AddRule(table.clone(), chain.name.clone(), rule));
                }
            }
        }

        let first = take_listing();
        backend.commit(&again).unwrap();
        assert_same_listing(&take_listing(), &first);
    });
}

#[test]
fn both_backends_read_the_same_elements() {
    in_fresh_namespace("nft", "both_backends_read_the_same_elements", || {
        let mut netlink = NetlinkBackend::open().unwrap();
        let mut command = command();
        netlink.commit(&everything(PLAIN)).unwrap();

        for table in [inet(), bridge()] {
            assert!(command.has_table(&table).unwrap());
            for spec in netlink.sets(&table).unwrap() {
                let expected = netlink.elements(&table, &spec.name).unwrap();
                assert_ne!(expected, Some(Vec::new()), "{}", spec.name);
                assert_eq!(command.elements(&table, &spec.name).unwrap(), expected);
            }
        }
        for backend in [&mut netlink as &mut dyn Backend, &mut command] {
            assert_eq!(backend.elements(&inet(), &name("absent")).unwrap(), None);
            let other = Table {
                name: name("absent"),
                ..inet()
            };
            assert_eq!(backend.elements(&other, &name("absent")).unwrap(), None);
            assert!(!backend.has_table(&other).unwrap());
        }
    });
}

/// The chains that a transaction makes in a table.
fn chains_of(transaction: &Transaction, table: &Table) -> Vec<ChainRules> {
    let mut chains: Vec<ChainRules> = Vec::new();
    for operation in &transaction.operations {
        match operation {
            Operation::AddChain(of, chain) if of == table => chains.push(ChainRules {
                chain: chain.clone(),
                rules: Vec::new(),
            }),
            Operation::AddRule(of, name, rule) if of == table => {
                let chain = chains.iter_mut().find(|known| known.chain.name == *name);
                chain.unwrap().rules.push(rule.clone());
            }
            _ => {}
        }
    }
    chains
}

#[test]
fn both_backends_know_their_chains_again() {
    in_fresh_namespace("nft", "both_backends_know_their_chains_again", || {
        let transaction = everything(PLAIN);
        let mut netlink = NetlinkBackend::open().unwrap();
        let mut command = command();

        for maker in [&mut netlink as &mut dyn Backend, &mut command] {
            maker.commit(&transaction).unwrap();
            for table in [inet(), bridge()] {
                let different = maker.different_chains(&table, &chains_of(&transaction, &table));
                assert_eq!(different.unwrap(), [""; 0], "{maker:?}");
            }
            nft(&["flush", "ruleset"], "");
        }
    });
}

/// 20,000 ranges are 40,000 elements: many messages of one set that has no name.
#[test]
fn a_list_longer_than_a_message_is_one_rule() {
    in_fresh_namespace("nft", "a_list_longer_than_a_message_is_one_rule", || {
        let range = |index: u16| (Value::U16(3 * index), Value::U16(3 * index + 1));
        let ranges = MatchOperand::OneOf((0..20_000).map(range).collect());
        let of_tcp = MatchOperand::Value(Value::U8(6));
        let statement = |field, operand| Statement::Match {
            field,
            negated: false,
            operand,
        };
        let mut transaction = Transaction::new();
        let chain = base_chain("forward", Hook::Forward, 10);
        transaction.push(Operation::AddTable(inet(), PLAIN));
        transaction.push(Operation::AddChain(inet(), chain.clone()));
        transaction.push(Operation::AddRule(
            inet(),
            chain.name,
            rule([
                statement(Field::L4Proto, of_tcp),
                statement(Field::DestinationPort, ranges),
                DROP,
            ]),
        ));
        let wanted = chains_of(&transaction, &inet());
        let mut backend = NetlinkBackend::open().unwrap();

        backend.commit(&transaction).unwrap();

        assert_eq!(backend.different_chains(&inet(), &wanted).unwrap(), [""; 0]);
        let listing = nft(&["list", "chain", "inet", "towpath", "forward"], "");
        assert!(listing.contains("59997-59998"), "{listing:.300}");
    });
}

#[test]
fn every_change_of_a_chain_is_noticed() {
    in_fresh_namespace("nft", "every_change_of_a_chain_is_noticed", || {
        let transaction = everything(PLAIN);
        let wanted = chains_of(&transaction, &inet());
        let all: Vec<String> = wanted
            .iter()
            .map(|chain| chain.chain.name.to_string())
            .collect();
        let mut backend = NetlinkBackend::open().unwrap();
        let handle = |chain: &str| {
            let listing = nft(&["-a", "list", "chain", "inet", "towpath", chain], "");
            let line = listing
                .lines()
                .find(|line| line.contains("# handle") && line.starts_with("\t\t"));
            line.and_then(|line| line.rsplit(' ').next())
                .unwrap()
                .to_owned()
        };

        for (change, expected) in [
            (
                "add rule inet towpath forward accept",
                vec!["forward".to_owned()],
            ),
            (
                "insert rule inet towpath forward accept",
                vec!["forward".to_owned()],
            ),
            (
                "flush chain inet towpath forward",
                vec!["forward".to_owned()],
            ),
            (
                "delete rule inet towpath forward handle HANDLE",
                vec!["forward".to_owned()],
            ),
            (
                "replace rule inet towpath forward handle HANDLE accept",
                vec!["forward".to_owned()],
            ),
            (
                "add chain inet towpath forward { policy drop; }",
                vec!["forward".to_owned()],
            ),
            (
                "add chain inet towpath Foreign { type nat hook output priority 0; }",
                vec!["Foreign".to_owned()],
            ),
            ("add chain inet towpath other", vec!["other".to_owned()]),
            (
                "flush chain inet towpath forward; delete chain inet towpath forward",
                vec!["forward".to_owned()],
            ),
            ("add table inet towpath { flags dormant; }", all.clone()),
            ("delete table inet towpath", all.clone()),
        ] {
            backend.commit(&transaction).unwrap();
            assert_eq!(backend.different_chains(&inet(), &wanted).unwrap(), [""; 0]);
            let change = change.replace("HANDLE", &handle("forward"));
            nft(&["-f", "-"], &change);

            let different = backend.different_chains(&inet(), &wanted).unwrap();

            assert_eq!(different, expected, "{change}");
            nft(&["flush", "ruleset"], "");
        }
    });
}

#[test]
fn set_of_the_same_name_with_other_values_is_noticed() {
    in_fresh_namespace(
        "nft",
        "set_of_the_same_name_with_other_values_is_noticed",
        || {
            let ports =
                [(80, 80), (443, 443)].map(|(first, last)| (Value::U16(first), Value::U16(last)));
            let listed = Statement::Match {
                field: Field::DestinationPort,
                negated: false,
                operand: MatchOperand::OneOf(ports.into()),
            };
            let protocol = Statement::Match {
                field: Field::L4Proto,
                negated: false,
                operand: MatchOperand::Value(Value::U8(6)),
            };
            let operations = vec![
                Operation::AddTable(inet(), PLAIN),
                Operation::AddChain(inet(), base_chain("forward", Hook::Forward, 10)),
                Operation::AddRule(inet(), name("forward"), rule([protocol, listed, DROP])),
            ];
            let transaction = Transaction { operations };
            let wanted = chains_of(&transaction, &inet());
            let mut backend = NetlinkBackend::open().unwrap();
            backend.commit(&transaction).unwrap();
            let mut compare = || backend.different_chains(&inet(), &wanted).unwrap();
            assert_eq!(compare(), [""; 0]);

            // The first set's name is free again for the last one.
            for ports in ["1, 2", "3, 4"] {
                let replace = format!(
                    "flush chain inet towpath forward; add rule inet towpath forward tcp dport {{ {ports} }} drop"
                );
                nft(&["-f", "-"], &replace);
                assert_eq!(compare(), ["forward"]);
            }
            let right = "flush chain inet towpath forward; add rule inet towpath forward tcp dport { 80, 443 } drop";
            nft(&["-f", "-"], right);

            assert_eq!(compare(), [""; 0]);
        },
    );
}

/// A small table: a set, a chain and a rule.
fn small(flags: TableFlags) -> Transaction {
    let spec = set("peers", [FieldType::Ipv4Addr]);
    Transaction {
        operations: vec![
            Operation::AddTable(inet(), flags),
            Operation::AddSet(inet(), spec),
            Operation::AddElements(inet(), name("peers"), vec![exact([v4("10.0.0.1")], None)]),
            Operation::AddChain(inet(), base_chain("forward", Hook::Forward, 10)),
            Operation::AddRule(inet(), name("forward"), rule([DROP])),
        ],
    }
}

/// The whole table anew in one batch, whatever is there.
fn replace(backend: &mut NetlinkBackend, flags: TableFlags) {
    let mut transaction = Transaction::new();
    if backend.has_table(&inet()).unwrap() {
        transaction.push(Operation::DeleteTable(inet()));
    }
    transaction.operations.extend(small(flags).operations);
    backend.commit(&transaction).unwrap();
}

fn assert_in_force(backend: &mut NetlinkBackend) {
    let elements = backend.elements(&inet(), &name("peers")).unwrap();
    assert_eq!(elements, Some(vec![exact([v4("10.0.0.1")], None)]));
}

fn errno(result: Result<(), CommitError>) -> Option<i32> {
    match result {
        Err(CommitError::Refused { source, .. } | CommitError::Again(source)) => {
            source.raw_os_error()
        }
        other => panic!("{other:?}"),
    }
}

const OWNED: TableFlags = TableFlags {
    owner: true,
    persist: true,
};
const PLAIN: TableFlags = TableFlags {
    owner: false,
    persist: false,
};

/// Runs `body` with a backend whose kernel can own and persist, or skips aloud.
fn with_owned_tables(test: &'static str, body: impl FnOnce(NetlinkBackend) + Send + 'static) {
    in_fresh_namespace("nft", test, move || {
        let mut backend = NetlinkBackend::open().unwrap();
        if backend.probe_features().unwrap().table_flags() != OWNED {
            skip(
                "nft",
                test,
                "nft-persist",
                "needs tables with owner and persist (Linux 6.9)",
            );
            return;
        }
        body(backend);
    });
}

fn table_state(flags: TableFlags, owner: Option<&NetlinkBackend>) -> TableState {
    TableState {
        flags,
        owner: owner.map(NetlinkBackend::port),
        is_dormant: false,
    }
}

/// Closes the owner's socket and opens the next one. A process that another test starts at this moment holds a copy of
/// the descriptor for an instant, so the kernel may see the end a little later.
fn succeed(owner: NetlinkBackend) -> NetlinkBackend {
    drop(owner);
    let mut next = NetlinkBackend::open().unwrap();
    let flags = TableFlags {
        owner: false,
        persist: true,
    };
    let orphan = table_state(flags, None);
    let deadline = Instant::now() + Duration::from_secs(10);
    while next.table_state(&inet()).unwrap() != Some(orphan) {
        assert!(Instant::now() < deadline, "the table stays owned");
        std::thread::yield_now();
    }
    next
}

#[test]
fn replaces_nothing_plain_own_and_orphaned_tables() {
    with_owned_tables(
        "replaces_nothing_plain_own_and_orphaned_tables",
        |mut first| {
            replace(&mut first, OWNED);
            assert_in_force(&mut first);
            replace(&mut first, OWNED);
            assert_in_force(&mut first);

            let mut second = succeed(first);
            assert_in_force(&mut second);
            replace(&mut second, OWNED);
            assert_in_force(&mut second);
            assert_eq!(
                second.table_state(&inet()).unwrap(),
                Some(table_state(OWNED, Some(&second)))
            );

            let mut third = succeed(second);
            nft(&["delete", "table", "inet", "towpath"], "");
            third.commit(&small(PLAIN)).unwrap();
            replace(&mut third, OWNED);
            assert_in_force(&mut third);
            assert_eq!(
                third.table_state(&inet()).unwrap(),
                Some(table_state(OWNED, Some(&third)))
            );
        },
    );
}

#[test]
fn adopts_an_orphaned_table_with_all_it_holds() {
    with_owned_tables("adopts_an_orphaned_table_with_all_it_holds", |mut first| {
        first.commit(&small(OWNED)).unwrap();
        let mut second = succeed(first);

        let adopt = vec![Operation::AddTable(inet(), OWNED)];
        second.commit(&Transaction { operations: adopt }).unwrap();

        assert_in_force(&mut second);
        assert_eq!(
            second.table_state(&inet()).unwrap(),
            Some(table_state(OWNED, Some(&second)))
        );
        let mut other = NetlinkBackend::open().unwrap();
        assert_eq!(
            other.table_state(&inet()).unwrap(),
            Some(table_state(OWNED, Some(&second)))
        );
        let delete = Transaction {
            operations: vec![Operation::DeleteTable(inet())],
        };
        assert_eq!(errno(other.commit(&delete)), Some(libc::EPERM));
    });
}

#[test]
fn owned_table_withstands_others() {
    with_owned_tables("owned_table_withstands_others", |mut backend| {
        backend.commit(&small(OWNED)).unwrap();

        nft(&["flush", "ruleset"], "");
        assert_in_force(&mut backend);

        let mut other = NetlinkBackend::open().unwrap();
        let flush = Transaction {
            operations: vec![Operation::FlushSet(inet(), name("peers"))],
        };
        assert_eq!(errno(other.commit(&flush)), Some(libc::EPERM));
        assert_eq!(errno(other.commit(&small(OWNED))), Some(libc::EPERM));
        assert_in_force(&mut backend);
    });
}

/// A set of addresses and one of IP versions, each with one element that goes soon and one that stays.
fn timed() -> Transaction {
    let timeout = |spec: SetSpec| SetSpec {
        timeout: true,
        ..spec
    };
    let keys = |left: Value, right: Value| {
        let soon = (SetKey::Exact(vec![left]), Duration::from_secs(1));
        let late = (SetKey::Exact(vec![right]), Duration::from_hours(1));
        vec![soon, late]
    };
    let operations = vec![
        Operation::AddTable(inet(), PLAIN),
        Operation::AddSet(inet(), timeout(set("open", [FieldType::Ipv4Addr]))),
        Operation::AddSet(inet(), timeout(set("versions", [FieldType::NfProto]))),
        Operation::AddTimedElements(inet(), name("open"), keys(v4("10.0.0.1"), v4("10.0.0.2"))),
        Operation::AddTimedElements(inet(), name("versions"), keys(Value::U8(2), Value::U8(10))),
    ];
    Transaction { operations }
}

fn contents(backend: &mut dyn Backend) -> Vec<Option<Vec<Element>>> {
    ["open", "versions"]
        .map(|set| backend.elements(&inet(), &name(set)).unwrap())
        .into()
}

#[test]
fn elements_with_a_time_go_by_themselves() {
    in_fresh_namespace("nft", "elements_with_a_time_go_by_themselves", || {
        let mut fake = FakeKernel::new();
        fake.commit(&timed()).unwrap();
        let all = contents(&mut fake);
        fake.pass(Duration::from_secs(2));
        let late = contents(&mut fake);
        assert_ne!(all, late);

        for mut backend in [
            Box::new(NetlinkBackend::open().unwrap()) as Box<dyn Backend>,
            Box::new(command()),
        ] {
            backend.commit(&timed()).unwrap();
            assert_eq!(contents(&mut *backend), all);
            assert_eq!(contents(&mut command()), all);

            let deadline = Instant::now() + Duration::from_mins(1);
            while contents(&mut *backend) != late && Instant::now() < deadline {
                std::thread::yield_now();
            }

            assert_eq!(contents(&mut *backend), late);
            assert_eq!(contents(&mut command()), late);
            nft(&["flush", "ruleset"], "");
        }
    });
}

#[test]
fn an_element_gets_a_new_time_by_a_flush_before_it() {
    in_fresh_namespace(
        "nft",
        "an_element_gets_a_new_time_by_a_flush_before_it",
        || {
            let mut backend = NetlinkBackend::open().unwrap();
            backend.commit(&timed()).unwrap();
            let all = contents(&mut backend);
            let again = timed()
                .operations
                .into_iter()
                .filter_map(|operation| match operation {
                    Operation::AddTimedElements(table, set, elements) => {
                        let times = elements
                            .into_iter()
                            .map(|(key, _)| (key, Duration::from_mins(15)))
                            .collect();
                        Some([
                            Operation::FlushSet(table.clone(), set.clone()),
                            Operation::AddTimedElements(table, set, times),
                        ])
                    }
                    _ => None,
                });

            let operations = again.flatten().collect();
            backend.commit(&Transaction { operations }).unwrap();

            let listed = nft(&["list", "set", "inet", inet().name.as_str(), "open"], "");
            assert_eq!(contents(&mut backend), all);
            assert_eq!(listed.matches("timeout 15m").count(), 2, "{listed}");
        },
    );
}
