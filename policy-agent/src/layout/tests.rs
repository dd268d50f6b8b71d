use std::collections::BTreeSet;

use towpath_dataplane::nft::{RuleVerdict, Statement, transaction_text};

use super::*;

fn text(options: &LayoutOptions) -> String {
    transaction_text(&layout(options, &Capacities::default())).unwrap()
}

#[test]
fn default_layout() {
    insta::assert_snapshot!(text(&LayoutOptions::default()));
}

#[test]
fn options_change_few_lines() {
    let plain = text(&LayoutOptions::default());
    let options = LayoutOptions {
        table_flags: TableFlags {
            owner: true,
            persist: true,
        },
        stateless_protocols: BTreeSet::from([132]),
        overlay_ports: [4789, 8473].into(),
        log_group: 7,
        log_rate: 1,
        log_burst: 2,
        dhcp: true,
        routed_pods: true,
        enforcement: Enforcement::Audit,
    };

    let changed = text(&options);

    let plain: BTreeSet<&str> = plain.lines().collect();
    let new: Vec<&str> = changed
        .lines()
        .filter(|line| !plain.contains(line))
        .collect();
    insta::assert_snapshot!(new.join("\n"));
}

#[test]
fn without_an_overlay_over_udp_no_port_is_closed() {
    let options = LayoutOptions {
        overlay_ports: BTreeSet::new(),
        ..LayoutOptions::default()
    };

    let (plain, bare) = (text(&LayoutOptions::default()), text(&options));

    let bare: BTreeSet<&str> = bare.lines().collect();
    let missing: Vec<&str> = plain.lines().filter(|line| !bare.contains(line)).collect();
    assert_eq!(missing.len(), 2, "{missing:?}");
    assert!(
        missing.iter().all(|line| line.contains("th dport 8472")),
        "{missing:?}"
    );
}

#[test]
fn accept_stands_in_base_chains_only() {
    let transaction = layout(
        &LayoutOptions {
            dhcp: true,
            ..LayoutOptions::default()
        },
        &Capacities::default(),
    );
    let bases: BTreeSet<(Family, Name)> = transaction
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddChain(
                table,
                Chain {
                    name,
                    base: Some(_),
                },
            ) => Some((table.family, name.clone())),
            _ => None,
        })
        .collect();
    let accepting: BTreeSet<(Family, Name)> = transaction
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddRule(table, chain, rule) => rule
                .statements
                .contains(&Statement::Verdict(RuleVerdict::Accept))
                .then(|| (table.family, chain.clone())),
            _ => None,
        })
        .collect();

    assert!(!accepting.is_empty());
    assert!(accepting.is_subset(&bases), "{accepting:?}");
}

#[test]
fn every_drop_is_counted_and_logged_first() {
    let transaction = layout(&LayoutOptions::default(), &Capacities::default());
    let rules: Vec<(&Table, &Name, &Rule)> = transaction
        .operations
        .iter()
        .filter_map(|operation| match operation {
            Operation::AddRule(table, chain, rule) => Some((table, chain, rule)),
            _ => None,
        })
        .collect();
    let drop = Statement::Verdict(RuleVerdict::Drop);

    let dropping: Vec<usize> = (0..rules.len())
        .filter(|index| rules[*index].2.statements.contains(&drop))
        .collect();

    assert_eq!(dropping.len(), 11);
    for index in dropping {
        let [count, log, dropped] = [index - 2, index - 1, index].map(|index| rules[index]);
        assert_eq!(count.2.statements, [Statement::Counter]);
        assert!(matches!(
            log.2.statements[..],
            [Statement::Limit { .. }, Statement::Log { .. }]
        ));
        assert_eq!(dropped.2.statements.as_slice(), std::slice::from_ref(&drop));
        assert!((count.0, count.1) == (dropped.0, dropped.1) && log.1 == dropped.1);
    }
}

#[test]
fn names_of_sets_are_distinct() {
    let names: BTreeSet<(TableId, Name)> =
        SetId::all().map(|set| (set.table(), set.name())).collect();

    assert_eq!(names.len(), SetId::all().count());
}

#[test]
fn capacities_double_and_count_both_ends_of_ranges() {
    let counts = [
        (SetId::PodPorts, 3000),
        (SetId::CidrClass(IpVersion::V4), 1500),
    ]
    .into();

    let capacities = Capacities::for_counts(&counts);

    assert_eq!(capacities.of(SetId::PodPorts), 8192);
    assert_eq!(capacities.of(SetId::CidrClass(IpVersion::V4)), 8192);
    assert_eq!(capacities.of(SetId::OpenPorts), 1024);
    assert!(capacities.hold(&[(SetId::PodPorts, 8192)].into()));
    assert!(!capacities.hold(&[(SetId::PodPorts, 8193)].into()));
    assert!(!capacities.hold(&[(SetId::CidrClass(IpVersion::V4), 4096)].into()));
}
