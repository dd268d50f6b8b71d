//! The fake against the kernel: random transactions must succeed, fail and leave traces alike.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on must panic")]

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod lab;
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod ruleset;

use lab::in_fresh_namespace;
use proptest::prelude::*;
use proptest::test_runner::{Config, FileFailurePersistence, TestRunner};
use ruleset::{
    base_chain, class, exact, inet, map, name, plain_chain, range, rule, set, v4, verdict,
};
use towpath_dataplane::nft::{
    Backend, Chain, CommitError, Element, FakeKernel, Field, FieldType, Hook, MapData,
    MatchOperand, Name, NetlinkBackend, Operation, Rule, RuleVerdict, SetSpec, Statement,
    TableFlags, Transaction, Value,
};

/// Walks, unless `PROPTEST_CASES` says otherwise. Each commit that removes something waits for the kernel.
const CASES: u32 = 40;
const PLAIN: TableFlags = TableFlags {
    owner: false,
    persist: false,
};

fn sets() -> Vec<SetSpec> {
    use FieldType::{ClassId, InetService, Ipv4Addr};
    let small = |spec: SetSpec| SetSpec { size: 3, ..spec };
    let interval = |spec: SetSpec| SetSpec {
        interval: true,
        ..spec
    };
    vec![
        small(set("services", [InetService])),
        small(map("classes", [Ipv4Addr], MapData::ClassId)),
        small(map("verdicts", [Ipv4Addr, ClassId], MapData::Verdict)),
        small(map("states", [Ipv4Addr], MapData::Verdict)),
        small(interval(map("blocks", [Ipv4Addr], MapData::ClassId))),
    ]
}

fn chains() -> Vec<Chain> {
    vec![
        base_chain("forward", Hook::Forward, 10),
        plain_chain("a"),
        plain_chain("b"),
        plain_chain("c"),
    ]
}

fn address() -> impl Strategy<Value = Value> {
    (1..6_u8).prop_map(|last| v4(&format!("10.0.0.{last}")))
}

fn chain_name() -> impl Strategy<Value = Name> {
    prop::sample::select(chains()).prop_map(|chain| chain.name)
}

fn jump_target() -> impl Strategy<Value = Name> {
    prop_oneof![8 => prop::sample::select(vec![name("a"), name("b"), name("c")]), 1 => chain_name()]
}

fn any_verdict() -> impl Strategy<Value = RuleVerdict> {
    prop_oneof![
        Just(RuleVerdict::Accept),
        Just(RuleVerdict::Drop),
        Just(RuleVerdict::Return),
        Just(RuleVerdict::Continue),
        jump_target().prop_map(RuleVerdict::Jump),
        jump_target().prop_map(RuleVerdict::Goto),
    ]
}

fn block() -> impl Strategy<Value = Element> {
    let ends = prop_oneof![
        // No two of them end alike: the kernel does not see that such ranges overlap.
        8 => (0..6_u8, prop::sample::select(vec![0_u8, 1, 6])).prop_map(|(block, more)| {
            let first = block * 4;
            (v4(&format!("10.0.0.{first}")), v4(&format!("10.0.0.{}", first + more)))
        }),
        // Only one of them: the kernel does not see that two ranges to the end of the space overlap.
        1 => Just((v4("255.255.255.250"), v4("255.255.255.255"))),
        1 => (0..3_u8).prop_map(|last| (v4("0.0.0.0"), v4(&format!("0.0.0.{last}")))),
    ];
    (ends, 1..3_u32).prop_map(|((first, last), number)| range(first, last, class(number)))
}

/// A set with elements that are of its type.
fn elements() -> impl Strategy<Value = (Name, Vec<Element>)> {
    let service = (1..5_u16).prop_map(|port| exact([Value::U16(port)], None));
    let peer = (address(), 1..3_u32).prop_map(|(key, number)| exact([key], class(number)));
    let decided = (address(), 0..2_u32, any_verdict())
        .prop_map(|(key, number, value)| exact([key, Value::Class(number)], verdict(value)));
    let state = (address(), any_verdict()).prop_map(|(key, value)| exact([key], verdict(value)));
    let of = |text: &'static str, elements: BoxedStrategy<Element>| {
        prop::collection::vec(elements, 0..4).prop_map(move |elements| (name(text), elements))
    };
    prop_oneof![
        of("services", service.boxed()),
        of("classes", peer.boxed()),
        of("verdicts", decided.boxed()),
        of("states", state.boxed()),
        of("blocks", block().boxed()),
    ]
}

fn statement() -> impl Strategy<Value = Statement> {
    let look_up = |field, set| Statement::Match {
        field,
        negated: false,
        operand: MatchOperand::Set(name(set)),
    };
    let vmap = |fields: &[Field], map| Statement::VerdictMap {
        fields: fields.to_vec(),
        map: name(map),
    };
    let class_from = |map| Statement::SetPriorityFromMap {
        fields: vec![Field::IpSource],
        map: name(map),
    };
    prop_oneof![
        4 => any_verdict().prop_map(Statement::Verdict),
        1 => Just(look_up(Field::DestinationPort, "services")),
        1 => Just(class_from("classes")),
        1 => Just(class_from("blocks")),
        1 => Just(vmap(&[Field::IpDestination, Field::Priority], "verdicts")),
        2 => Just(vmap(&[Field::IpDestination], "states")),
        1 => Just(vmap(&[Field::IpDestination], "classes")),
        1 => Just(Statement::Counter),
    ]
}

fn any_rule() -> impl Strategy<Value = Rule> {
    prop::collection::vec(statement(), 1..3).prop_map(rule)
}

fn chain() -> impl Strategy<Value = Chain> {
    prop_oneof![
        9 => prop::sample::select(chains()),
        1 => Just(base_chain("forward", Hook::Input, 10)),
        1 => Just(base_chain("a", Hook::Forward, 10)),
        1 => Just(plain_chain("forward")),
    ]
}

/// Another size is taken for a set that is there.
fn spec() -> impl Strategy<Value = SetSpec> {
    prop_oneof![
        9 => prop::sample::select(sets()),
        1 => Just(SetSpec { size: 7, ..sets().swap_remove(0) }),
    ]
}

/// A set, and one of its name that is not like it. Both in one transaction, which is refused: a set of another kind in the
/// place of one that was removed would take what the kernel does not check and the fake does not let pass.
fn unlike() -> impl Strategy<Value = Vec<Operation>> {
    let classes = sets().swap_remove(1);
    prop::sample::select(vec![
        set("services", [FieldType::Ipv4Addr]),
        set("states", [FieldType::Ipv4Addr]),
        SetSpec {
            interval: true,
            ..classes
        },
    ])
    .prop_map(|other| {
        let usual = sets().into_iter().filter(|spec| spec.name == other.name);
        let both = usual.chain([other.clone()]);
        both.map(|spec| Operation::AddSet(inet(), spec)).collect()
    })
}

fn operation() -> impl Strategy<Value = Operation> {
    let set_name = || prop::sample::select(sets()).prop_map(|spec| spec.name);
    prop_oneof![
        2 => Just(Operation::AddTable(inet(), PLAIN)),
        1 => Just(Operation::DeleteTable(inet())),
        6 => chain().prop_map(|chain| Operation::AddChain(inet(), chain)),
        2 => chain_name().prop_map(|chain| Operation::FlushChain(inet(), chain)),
        2 => chain_name().prop_map(|chain| Operation::DeleteChain(inet(), chain)),
        6 => (chain_name(), any_rule()).prop_map(|(chain, rule)| Operation::AddRule(inet(), chain, rule)),
        6 => spec().prop_map(|spec| Operation::AddSet(inet(), spec)),
        1 => set_name().prop_map(|set| Operation::DeleteSet(inet(), set)),
        1 => set_name().prop_map(|set| Operation::FlushSet(inet(), set)),
        16 => elements().prop_map(|(set, elements)| Operation::AddElements(inet(), set, elements)),
        6 => elements().prop_map(|(set, elements)| Operation::DeleteElements(inet(), set, elements)),
    ]
}

/// A first transaction that makes some of everything, then short ones that change it.
fn walk() -> impl Strategy<Value = Vec<Transaction>> {
    let step = prop_oneof![
        50 => operation().prop_map(|one| vec![one]),
        1 => unlike(),
    ];
    let change = prop::collection::vec(step, 1..5).prop_map(|steps| Transaction {
        operations: steps.concat(),
    });
    prop::collection::vec(change, 1..25).prop_map(|changes| {
        let mut all = vec![Operation::AddTable(inet(), PLAIN)];
        all.extend(
            chains()
                .into_iter()
                .map(|chain| Operation::AddChain(inet(), chain)),
        );
        all.extend(
            sets()
                .into_iter()
                .map(|spec| Operation::AddSet(inet(), spec)),
        );
        let mut walk = vec![Transaction { operations: all }];
        walk.extend(changes);
        walk
    })
}

fn outcome(result: Result<(), CommitError>) -> Result<(), (Option<i32>, usize)> {
    result.map_err(|error| match &error {
        CommitError::Refused { index, .. } => (error.errno(), *index),
        _ => (error.errno(), 0),
    })
}

fn run(kernel: &mut NetlinkBackend, walk: &[Transaction]) -> Result<(), TestCaseError> {
    if kernel.has_table(&inet()).unwrap() {
        let operations = vec![Operation::DeleteTable(inet())];
        kernel.commit(&Transaction { operations }).unwrap();
    }
    let mut fake = FakeKernel::new();
    for transaction in walk {
        let expected = outcome(kernel.commit(transaction));
        let found = outcome(fake.commit(transaction));

        prop_assert_eq!(
            found,
            expected,
            "{}",
            towpath_dataplane::nft::transaction_text(transaction).unwrap()
        );
        prop_assert_eq!(
            fake.has_table(&inet()).unwrap(),
            kernel.has_table(&inet()).unwrap()
        );
        prop_assert_eq!(fake.chains(&inet()), kernel.chains(&inet()).unwrap());
        for chain in chains() {
            let expected: Vec<Option<Rule>> = kernel.rules(&inet(), &chain.name).unwrap();
            let found = fake.rules(&inet(), &chain.name).unwrap_or_default();
            prop_assert_eq!(found.into_iter().map(Some).collect::<Vec<_>>(), expected);
        }
        for spec in sets() {
            let expected = kernel.elements(&inet(), &spec.name).unwrap();
            prop_assert_eq!(fake.elements(&inet(), &spec.name).unwrap(), expected);
        }
    }
    Ok(())
}

#[test]
fn fake_behaves_like_the_kernel() {
    in_fresh_namespace("nft", "fake_behaves_like_the_kernel", || {
        let mut kernel = NetlinkBackend::open().unwrap();
        let mut config = Config {
            source_file: Some(file!()),
            failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
            ..Config::default()
        };
        if std::env::var_os("PROPTEST_CASES").is_none() {
            config.cases = CASES;
        }
        let mut runner = TestRunner::new(config);
        let kernel = std::cell::RefCell::new(&mut kernel);

        runner
            .run(&walk(), |walk| run(&mut kernel.borrow_mut(), &walk))
            .unwrap();
    });
}
