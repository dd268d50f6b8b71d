use proptest::collection::vec;
use proptest::prelude::*;
use towpath_dataplane::nft::{Chain, FakeKernel, Name, Rule, RuleVerdict, Statement};

use super::*;
use crate::layout::SetId;
use crate::render::tests::{facts, phase_between, tables};

/// Errors as Linux numbers them.
const EAGAIN: i32 = 11;
const ENOMEM: i32 = 12;
const EINVAL: i32 = 22;

fn applier(kernel: &FakeKernel) -> Applier {
    Applier::new(Box::new(kernel.clone()), LayoutOptions::default())
}

/// Enqueues and steps to the end; waits are skipped, their sum is returned.
fn settle(applier: &mut Applier) -> Result<(Vec<Applied>, Duration), ApplyError> {
    let (mut applied, mut waited) = (Vec::new(), Duration::ZERO);
    loop {
        match applier.step()? {
            Step::Idle => return Ok((applied, waited)),
            Step::Applied(done) => applied.push(done),
            Step::Retry(wait) => waited += wait,
        }
    }
}

fn change(generation: u64, phases: Vec<Phase>) -> Backlog {
    let mut backlog = Backlog::default();
    backlog.push(generation, Delta { phases });
    backlog
}

/// What a kernel that was loaded in one go would hold.
fn fresh(tables: &Tables, facts: &NodeFacts) -> FakeKernel {
    fresh_with(tables, facts, LayoutOptions::default())
}

fn fresh_with(tables: &Tables, facts: &NodeFacts, options: LayoutOptions) -> FakeKernel {
    let kernel = FakeKernel::new();
    let mut applier = Applier::new(Box::new(kernel.clone()), options);
    let facts = Some(facts.clone());
    applier.enqueue(Backlog {
        facts,
        ..change(1, whole(tables.clone()).phases)
    });
    settle(&mut applier).unwrap();
    kernel
}

/// All elements by set, and the names of chains.
fn contents(kernel: &FakeKernel) -> (Vec<(SetId, Vec<String>)>, Vec<String>) {
    let mut kernel = kernel.clone();
    let sets = SetId::all()
        .map(|set| {
            let found = kernel
                .elements(&set.table().table(), &set.name())
                .unwrap()
                .unwrap();
            let mut elements: Vec<String> =
                found.iter().map(|element| format!("{element:?}")).collect();
            elements.sort();
            (set, elements)
        })
        .collect();
    let mut chains: Vec<String> = TableId::ALL
        .iter()
        .flat_map(|id| kernel.chains(&id.table()))
        .map(|chain| chain.name.to_string())
        .collect();
    chains.sort();
    (sets, chains)
}

#[test]
fn nothing_is_touched_before_the_first_change() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);

    applier.enqueue(Backlog {
        facts: Some(NodeFacts::default()),
        ..Backlog::default()
    });

    assert!(matches!(applier.step().unwrap(), Step::Idle));
    assert_eq!(kernel.attempts(), 0);
}

#[test]
fn the_first_commit_is_noted_on_disk_before_it_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let note = directory.path().join(MARKER);
    let (marker, _) = Marker::open(directory.path()).unwrap();
    let (sender, told) = std::sync::mpsc::channel();
    let report = move |report| {
        if let Report::Applied(applied) = report {
            // The receiver goes first when the test ends.
            let _ = sender.send((applied.generation, note.exists()));
        }
    };

    let applier = applier(&FakeKernel::new()).noting(marker);
    let (handle, thread) = ApplierHandle::start(applier, report).unwrap();
    handle.submit(1, Delta::default());

    assert_eq!(told.recv().unwrap(), (1, true));
    handle.end();
    thread.join().unwrap();
}

#[test]
fn a_restart_replaces_what_it_finds_in_one_batch() {
    let kernel = fresh(&Tables::default(), &NodeFacts::default());
    let mut second = applier(&kernel);

    second.enqueue(change(7, Vec::new()));
    let (applied, _) = settle(&mut second).unwrap();

    let [
        Applied {
            generation: 7,
            replaced: true,
            ..
        },
    ] = applied[..]
    else {
        panic!("{applied:?}")
    };
    let committed = kernel.committed();
    assert_eq!(committed.len(), 2);
    let deleted = TableId::ALL.map(|id| Operation::DeleteTable(id.table()));
    assert_eq!(committed[1].operations[..2], deleted);
}

#[test]
fn an_uninstall_leaves_nothing() {
    let kernel = fresh(&Tables::default(), &NodeFacts::default());
    let mut backend = kernel.clone();

    let removed = uninstall(&mut backend).unwrap();
    let again = uninstall(&mut backend).unwrap();

    assert_eq!(removed, TableId::ALL.map(TableId::table));
    assert_eq!(again, []);
    assert_eq!(kernel.committed().len(), 2);
}

#[test]
fn a_shortage_is_waited_for() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, Vec::new()));
    settle(&mut applier).unwrap();
    let phase = phase_with_peer();
    kernel.fail_commit(1, ENOMEM);
    kernel.fail_commit(2, EAGAIN);

    applier.enqueue(change(2, vec![phase]));
    let (applied, waited) = settle(&mut applier).unwrap();

    let [
        Applied {
            generation: 2,
            replaced: false,
            operations: 1,
            ..
        },
    ] = applied[..]
    else {
        panic!("{applied:?}")
    };
    assert_eq!(waited, Duration::from_millis(1 + 2));
}

#[test]
fn a_refused_batch_becomes_a_replacement() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, Vec::new()));
    settle(&mut applier).unwrap();
    kernel.fail_commit(1, EINVAL);

    applier.enqueue(change(2, vec![phase_with_peer()]));
    let (applied, waited) = settle(&mut applier).unwrap();

    let [
        Applied {
            generation: 2,
            replaced: true,
            ..
        },
    ] = applied[..]
    else {
        panic!("{applied:?}")
    };
    assert_eq!(waited, Duration::ZERO);
    assert_eq!(
        contents(&kernel),
        contents(&fresh(applier.tables(), &NodeFacts::default()))
    );
}

#[test]
fn it_gives_up_rather_than_run_open() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    for nth in 1..=100 {
        kernel.fail_commit(nth, EINVAL);
    }

    applier.enqueue(change(1, Vec::new()));
    let error = settle(&mut applier).unwrap_err();

    assert!(
        matches!(
            error,
            ApplyError::GivenUp {
                attempts: MOST_REPLACEMENTS,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn delays_double_to_four_seconds() {
    let delays = [1, 2, 3, 12, 13, 40].map(|attempt| retry_delay(attempt).as_millis());

    assert_eq!(delays, [1, 2, 4, 2048, 4096, 4096]);
}

#[test]
fn a_full_set_is_made_bigger() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, Vec::new()));
    settle(&mut applier).unwrap();
    let mut phase = Phase::default();
    for number in 0..2000_u32 {
        let peer = std::net::Ipv4Addr::from(0x0a00_0000 + number);
        phase
            .peer_class
            .insert(peer.into(), Some(towpath_core::tables::ClassId(1)));
    }

    applier.enqueue(change(2, vec![phase, phase_with_peer()]));
    let (applied, _) = settle(&mut applier).unwrap();

    let [
        Applied {
            generation: 2,
            replaced: true,
            ..
        },
    ] = applied[..]
    else {
        panic!("{applied:?}")
    };
    assert_eq!(
        contents(&kernel),
        contents(&fresh(applier.tables(), &NodeFacts::default()))
    );
}

#[test]
fn drift_is_found_and_repaired() {
    let mut kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, vec![phase_with_peer()]));
    settle(&mut applier).unwrap();
    let set = SetId::PeerClass(crate::layout::IpVersion::V4);
    let (table, name) = (set.table().table(), set.name());
    let mut element = kernel.elements(&table, &name).unwrap().unwrap().remove(0);
    let delete = Operation::DeleteElements(table.clone(), name.clone(), vec![element.clone()]);
    element.value = Some(towpath_dataplane::nft::ElementValue::ClassId(99));
    let add = Operation::AddElements(table, name, vec![element]);
    kernel
        .commit(&Transaction {
            operations: vec![delete, add],
        })
        .unwrap();

    let drift = applier.verify().unwrap();
    settle(&mut applier).unwrap();
    let after = applier.verify().unwrap();

    assert_eq!(
        drift,
        Drift {
            missing: 1,
            ..Drift::default()
        }
    );
    assert!(after.is_none());
}

#[test]
fn a_table_that_is_gone_comes_back() {
    let mut kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, vec![phase_with_peer()]));
    settle(&mut applier).unwrap();
    let delete = Operation::DeleteTable(TableId::Bridge.table());
    kernel
        .commit(&Transaction {
            operations: vec![delete],
        })
        .unwrap();

    let drift = applier.verify().unwrap();
    settle(&mut applier).unwrap();

    assert!(drift.is_torn);
    assert_eq!(
        contents(&kernel),
        contents(&fresh(applier.tables(), &NodeFacts::default()))
    );
}

#[test]
fn other_rules_lead_to_a_replacement() {
    let (inet, forward) = (TableId::Inet.table(), "forward".parse::<Name>().unwrap());
    let accept = Rule {
        statements: vec![Statement::Verdict(RuleVerdict::Accept)],
    };
    let foreign = Chain {
        name: "foreign".parse().unwrap(),
        base: None,
    };
    for change in [
        Operation::AddRule(inet.clone(), forward.clone(), accept),
        Operation::FlushChain(inet.clone(), forward),
        Operation::AddChain(inet, foreign),
    ] {
        let mut kernel = FakeKernel::new();
        let mut applier = applier(&kernel);
        applier.enqueue(change_with_peer(1));
        settle(&mut applier).unwrap();
        let wanted = kernel.dump().unwrap();
        let operations = vec![change];
        kernel.commit(&Transaction { operations }).unwrap();
        assert_ne!(kernel.dump().unwrap(), wanted);

        let drift = applier.verify().unwrap();
        settle(&mut applier).unwrap();

        assert!(drift.is_torn);
        assert_eq!(kernel.dump().unwrap(), wanted);
        assert!(applier.verify().unwrap().is_none());
    }
}

#[test]
fn the_thread_applies_verifies_and_ends() {
    let kernel = FakeKernel::new();
    let (sender, reports) = std::sync::mpsc::channel();
    let told = move |report| {
        if !matches!(report, Report::Alive) {
            sender.send(report).unwrap();
        }
    };
    let (handle, thread) = ApplierHandle::start(applier(&kernel), told).unwrap();

    handle.submit(
        3,
        Delta {
            phases: vec![phase_with_peer()],
        },
    );
    let applied = reports.recv().unwrap();
    handle.verify();
    let verified = reports.recv().unwrap();
    handle.end();
    thread.join().unwrap();

    assert!(
        matches!(applied, Report::Applied(Applied { generation: 3, .. })),
        "{applied:?}"
    );
    assert!(
        matches!(verified, Report::Verified(drift) if drift.is_none()),
        "{verified:?}"
    );
    assert!(kernel.clone().has_table(&TableId::Inet.table()).unwrap());
}

#[test]
fn sources_of_routed_pods_are_checked_once_there_is_one() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    let has_check = |kernel: &FakeKernel| {
        contents(kernel)
            .1
            .iter()
            .any(|name| name.ends_with("routed_source"))
    };
    applier.enqueue(change_with_peer(1));
    settle(&mut applier).unwrap();
    assert!(!has_check(&kernel));

    let facts = NodeFacts {
        routed_interfaces: ["veth1".parse().unwrap()].into(),
        ..NodeFacts::default()
    };
    applier.enqueue(Backlog {
        facts: Some(facts),
        ..Backlog::default()
    });
    settle(&mut applier).unwrap();

    assert!(has_check(&kernel));
    assert!(applier.verify().unwrap().is_none());
}

#[test]
fn ports_of_the_overlay_replace_the_tables_once_they_are_others() {
    let kernel = FakeKernel::new();
    let mut applier = applier(&kernel);
    let with_ports = |ports: &[u16]| Backlog {
        facts: Some(NodeFacts {
            overlay_ports: Some(ports.iter().copied().collect()),
            ..NodeFacts::default()
        }),
        ..Backlog::default()
    };
    let closed = |kernel: &FakeKernel| -> Vec<u16> {
        let text = kernel.dump().unwrap();
        [8472, 8473]
            .into_iter()
            .filter(|port| text.contains(&format!("th dport {port} jump encapsulation")))
            .collect()
    };
    // Before the first change nothing is made.
    applier.enqueue(with_ports(&[8472]));
    settle(&mut applier).unwrap();
    assert_eq!(kernel.committed().len(), 0);
    applier.enqueue(change_with_peer(1));
    settle(&mut applier).unwrap();
    assert_eq!(closed(&kernel), [8472]);
    let commits = kernel.committed().len();

    applier.enqueue(with_ports(&[8472]));
    settle(&mut applier).unwrap();
    assert_eq!(kernel.committed().len(), commits);
    applier.enqueue(with_ports(&[8473]));
    settle(&mut applier).unwrap();

    assert_eq!(closed(&kernel), [8473]);
    assert_eq!(kernel.committed().len(), commits + 1);
    assert!(applier.verify().unwrap().is_none());
}

fn change_with_peer(generation: u64) -> Backlog {
    change(generation, vec![phase_with_peer()])
}

fn phase_with_peer() -> Phase {
    let class = Some(towpath_core::tables::ClassId(5));
    Phase {
        peer_class: [("10.0.0.1".parse().unwrap(), class)].into(),
        ..Phase::default()
    }
}

#[test]
fn what_waits_behind_a_slow_batch_goes_in_one() {
    let kernel = fresh(&Tables::default(), &NodeFacts::default());
    let mut applier = applier(&kernel);
    applier.enqueue(change(1, Vec::new()));
    settle(&mut applier).unwrap();
    let networks = ["10.244.1.0/24", "10.244.2.0/24", "10.244.3.0/24"];
    let phase = |network: &str| Phase {
        pod_networks: [(network.parse().unwrap(), Some(()))].into(),
        ..Phase::default()
    };
    let before = kernel.attempts();

    applier.is_slow = true;
    applier.enqueue(change(2, networks.map(phase).into()));
    settle(&mut applier).unwrap();

    assert_eq!(kernel.attempts() - before, 1);
    let pod_networks: Vec<_> = applier.tables().pod_networks.keys().collect();
    assert_eq!(pod_networks.len(), networks.len());
    // The kernel is quick again: each phase is a batch.
    let networks = ["10.244.4.0/24", "10.244.5.0/24"];
    applier.enqueue(change(3, networks.map(phase).into()));
    settle(&mut applier).unwrap();
    assert_eq!(kernel.attempts() - before, 3);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever the way, whatever fails on it, and however much is merged: the end is what one load makes.
    #[test]
    fn every_way_leads_to_the_same_kernel(
        states in vec((tables(), facts()), 1..8),
        failing in vec((1_u64..20, prop_oneof![Just(EAGAIN), Just(EINVAL)]), 0..4),
        at_once in any::<bool>(),
        is_slow in any::<bool>(),
    ) {
        let kernel = FakeKernel::new();
        for (nth, errno) in failing {
            kernel.fail_commit(nth, errno);
        }
        let mut applier = applier(&kernel);
        let mut backlog = Backlog::default();
        let (mut before, mut generation) = (Tables::default(), 0);
        for (tables, facts) in &states {
            generation += 1;
            backlog.push(generation, Delta { phases: vec![phase_between(&before, tables)] });
            backlog.facts = Some(facts.clone());
            before = tables.clone();
            applier.is_slow = is_slow;
            if !at_once {
                applier.enqueue(std::mem::take(&mut backlog));
                settle(&mut applier).unwrap();
            }
        }
        applier.enqueue(backlog);
        settle(&mut applier).unwrap();

        let (tables, facts) = states.last().unwrap();
        prop_assert_eq!(applier.tables(), tables);
        // What was once needed for a routed pod stays.
        let wanted = fresh_with(tables, facts, applier.options.clone());
        prop_assert_eq!(contents(&kernel), contents(&wanted));
        prop_assert!(applier.verify().unwrap().is_none());
    }

    #[test]
    fn merged_phases_end_where_single_ones_do(states in vec(tables(), 20..30)) {
        let mut backlog = Backlog::default();
        let mut before = Tables::default();
        for (generation, tables) in (1..).zip(&states) {
            backlog.push(generation, Delta { phases: vec![phase_between(&before, tables)] });
            before = tables.clone();
        }

        let mut tables = Tables::default();
        for phase in &backlog.phases {
            tables.apply(phase);
        }

        prop_assert_eq!(&tables, states.last().unwrap());
        prop_assert!(backlog.phases.len() <= 17);
    }
}
