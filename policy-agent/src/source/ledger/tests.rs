//! Texts of files in, updates out. A directory is a map of texts; what a ledger wants to read again is read from it.

use proptest::prelude::*;
use towpath_api::Outcome;
use towpath_core::model::{Cluster, EndpointId, EndpointKind, PolicyId, PolicyKind};

use super::*;

/// A ledger with its files and its consumer.
struct World {
    ledger: Ledger,
    texts: BTreeMap<Arc<str>, String>,
    cluster: Cluster,
}

impl World {
    fn new() -> Self {
        Self {
            ledger: Ledger::new(true),
            texts: BTreeMap::new(),
            cluster: Cluster::default(),
        }
    }

    /// Writes (or with `None` removes) files in one step; tells what consumers are told.
    fn write(&mut self, files: &[(&str, Option<String>)]) -> Vec<String> {
        let mut changes = Vec::new();
        for (name, text) in files {
            let name: Arc<str> = (*name).into();
            if let Some(text) = text {
                changes.push((name.clone(), read(&name, text)));
                self.texts.insert(name, text.clone());
            } else {
                changes.push((name.clone(), FileChange::Gone));
                self.texts.remove(&name);
            }
        }
        let mut updates = BTreeMap::new();
        while !changes.is_empty() {
            let applied = self.ledger.apply(changes);
            updates.extend(applied.updates);
            changes = applied
                .reread
                .into_iter()
                .map(|name| (name.clone(), read(&name, &self.texts[&name])))
                .collect();
        }
        let mut told = Vec::new();
        for update in updates.into_values() {
            told.push(show(&update));
            self.cluster.apply(update);
        }
        assert_eq!(self.ledger.len(), count(&self.cluster));
        told
    }

    fn findings(&self) -> Vec<String> {
        let (mut findings, untold) = self.ledger.findings();
        assert_eq!(untold, 0);
        findings.sort_by(|a, b| a.sort_key().cmp(&b.sort_key()));
        findings.iter().map(ToString::to_string).collect()
    }
}

fn read(name: &str, text: &str) -> FileChange {
    FileChange::Read(towpath_api::read(name, text.as_bytes()))
}

fn count(cluster: &Cluster) -> usize {
    cluster.namespaces.len()
        + cluster.nodes.len()
        + cluster.endpoints.len()
        + cluster.policies.len()
}

fn show(update: &Update) -> String {
    match update {
        Update::Upsert(Object::Policy(policy)) if policy.invalid.is_some() => {
            format!("~{}", policy.id)
        }
        Update::Upsert(object) => format!("+{}", Identity::of(&object.key()).unwrap()),
        Update::Remove(key) => format!("-{}", Identity::of(key).unwrap()),
    }
}

/// A pod whose address tells its versions apart.
fn pod(name: &str, version: u8) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{podIP: 10.0.0.{version}}}}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: shop}}, spec: {spec}}}\n"
    )
}

#[expect(
    clippy::unnecessary_wraps,
    reason = "a text stands where there may be none"
)]
fn some(text: impl Into<String>) -> Option<String> {
    Some(text.into())
}

const NONE: [String; 0] = [];

#[test]
fn only_changes_of_meaning_are_told() {
    let mut world = World::new();

    assert_eq!(world.write(&[("a", some(pod("x", 1)))]), ["+Pod default/x"]);
    assert_eq!(
        world.write(&[("a", some(pod("x", 1) + "# remark\n"))]),
        NONE
    );
    assert_eq!(world.write(&[("a", some(pod("x", 2)))]), ["+Pod default/x"]);
    assert_eq!(world.write(&[("a", some(""))]), ["-Pod default/x"]);
    assert_eq!(world.write(&[("a", None)]), NONE);
}

#[test]
fn of_two_objects_with_one_name_the_first_is_in_force() {
    let mut world = World::new();
    world.write(&[("b", some(pod("x", 2)))]);

    assert_eq!(
        world.write(&[("a", some(pod("x", 1) + &pod("x", 3)))]),
        ["+Pod default/x"]
    );
    assert_eq!(
        world.findings(),
        [
            "a:4: error: Pod default/x: the same object stands at a:2, which is in force; remove one of the two, or give it another name",
            "b:2: error: Pod default/x: the same object stands at a:2, which is in force; remove one of the two, or give it another name",
        ]
    );
    assert_eq!(world.write(&[("a", None)]), ["+Pod default/x"]);
    assert_eq!(
        world.cluster.endpoints.values().next().unwrap().addresses[0].to_string(),
        "10.0.0.2"
    );
    assert_eq!(world.findings(), NONE);
}

#[test]
fn an_object_moves_between_files_without_a_gap() {
    let mut world = World::new();
    world.write(&[("a", some(pod("x", 1) + &pod("y", 1)))]);

    assert_eq!(
        world.write(&[("a", some(pod("y", 1))), ("b", some(pod("x", 1)))]),
        NONE
    );
    assert_eq!(
        world.write(&[("a", None), ("c", some(pod("y", 2)))]),
        ["+Pod default/y"]
    );
}

#[test]
fn a_bad_version_never_replaces_a_good_one() {
    let mut world = World::new();
    world.write(&[("a", some(policy("x", "{}") + &pod("p", 1)))]);

    assert_eq!(
        world.write(&[("a", some(policy("x", "{x: 1}") + &pod("p", 1)))]),
        NONE
    );
    assert_eq!(
        world.findings(),
        [
            "a:2: error: NetworkPolicy shop/x: spec.x: unknown field; remove it; known here: podSelector, policyTypes, ingress, egress"
        ]
    );
    assert_eq!(
        world.write(&[("a", some(policy("x", "{y: 1}") + &pod("p", 2)))]),
        ["+Pod default/p"]
    );
    assert_eq!(
        world.write(&[("a", some(policy("x", "{egress: [{}]}") + &pod("p", 2)))]),
        ["+NetworkPolicy shop/x"]
    );
    world.write(&[("a", some(policy("x", "{x: 1}")))]);
    assert_eq!(
        world.write(&[("a", None)]),
        ["-Pod default/p", "-NetworkPolicy shop/x"]
    );
}

#[test]
fn a_bad_policy_without_a_good_version_is_closed() {
    let mut world = World::new();

    assert_eq!(
        world.write(&[("a", some(policy("x", "{x: 1}")))]),
        ["~NetworkPolicy shop/x"]
    );
    assert_eq!(
        world.write(&[("a", some(policy("x", "{}")))]),
        ["+NetworkPolicy shop/x"]
    );
    assert_eq!(world.write(&[("a", some(policy("x", "{x: 1}")))]), NONE);
    assert_eq!(world.write(&[("a", some(""))]), ["-NetworkPolicy shop/x"]);
    assert_eq!(
        world.write(&[("a", some(policy("x", "{x: 1}")))]),
        ["~NetworkPolicy shop/x"]
    );
    assert_eq!(world.write(&[("a", None)]), ["-NetworkPolicy shop/x"]);
}

#[test]
fn a_stand_in_stays_until_its_file_is_whole() {
    let bad = policy("q", "{podSelector: {matchLabels: {app: web}}, ingress: 7}");
    let broken =
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: q, namespace: sh";
    let unreadable = || {
        let finding = Finding::of_file(&"a".into(), "it cannot be read".to_owned(), "");
        FileChange::Unreadable(finding)
    };
    let mut world = World::new();

    assert_eq!(world.write(&[("a", some(bad))]).len(), 1);
    for _ in 0..2 {
        let told = world.write(&[("a", some(broken))]);
        assert!(
            told.iter().all(|update| update.starts_with('~')),
            "{told:?}"
        );
        assert!(
            world
                .ledger
                .apply(vec![("a".into(), unreadable())])
                .updates
                .is_empty()
        );
        assert!(world.ledger.len() >= 1);
    }
    let told = world.write(&[("a", some(pod("x", 1)))]);

    assert!(
        told.contains(&"-NetworkPolicy shop/q".to_owned()),
        "{told:?}"
    );
    assert_eq!(world.ledger.len(), 1);
}

#[test]
fn a_bad_pod_without_a_good_version_is_absent() {
    let mut world = World::new();

    assert_eq!(
        world.write(&[(
            "a",
            some("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: 1}")
        )]),
        NONE
    );
    assert_eq!(world.findings().len(), 1);
}

#[test]
fn a_good_version_elsewhere_wins_over_a_bad_one() {
    let mut world = World::new();
    world.write(&[
        ("a", some(policy("x", "{x: 1}"))),
        ("b", some(policy("x", "{}"))),
    ]);

    assert_eq!(
        world.cluster.policies.values().next().unwrap().invalid,
        None
    );
    assert_eq!(world.findings().len(), 2);
    // The good one is cleanly removed; what is left is the bad one.
    assert_eq!(world.write(&[("b", None)]), ["~NetworkPolicy shop/x"]);
}

#[test]
fn a_file_that_is_not_whole_keeps_what_it_no_longer_names() {
    let mut world = World::new();
    let whole = pod("x", 1) + &policy("p", "{}") + &pod("y", 1);
    world.write(&[("a", some(whole.clone()))]);
    for end in 1..whole.len() {
        let mut world = World::new();
        world.write(&[("a", some(whole.clone()))]);
        let told = world.write(&[("a", some(&whole[..end]))]);
        let is_whole = towpath_api::read("a", &whole.as_bytes()[..end])
            .iter()
            .all(|document| !matches!(document.outcome, Outcome::Bad(_)));
        assert!(is_whole || told.is_empty(), "cut at {end}: {told:?}");
        assert_eq!(
            world.write(&[("a", some(whole.clone()))]).is_empty(),
            told.is_empty()
        );
    }

    assert_eq!(world.write(&[("a", some(pod("x", 1) + "---\n{"))]), NONE);
    assert_eq!(
        world.write(&[("a", some(pod("x", 1)))]),
        ["-Pod default/y", "-NetworkPolicy shop/p"]
    );
}

#[test]
fn an_object_may_move_out_of_a_broken_file() {
    let mut world = World::new();
    world.write(&[("a", some(pod("x", 1) + &pod("y", 1)))]);

    assert_eq!(world.write(&[("a", some(pod("x", 1) + "---\n{"))]), NONE);
    assert_eq!(world.write(&[("b", some(pod("y", 2)))]), ["+Pod default/y"]);
    assert_eq!(world.findings().len(), 1, "no duplicate is told");
    assert_eq!(world.write(&[("a", some(pod("x", 1)))]), NONE);
}

#[test]
fn an_unreadable_file_keeps_its_objects() {
    let mut world = World::new();
    world.write(&[("a", some(pod("x", 1) + &policy("p", "{x: 1}")))]);
    let file: Arc<str> = "a".into();
    let finding = Finding::of_file(&file, "too large".to_owned(), "split it");

    let applied = world
        .ledger
        .apply(vec![(file, FileChange::Unreadable(finding))]);

    assert_eq!((applied.updates.len(), applied.reread.len()), (0, 0));
    assert_eq!(world.findings(), ["a: error: too large; split it"]);
    assert_eq!(
        world.write(&[("a", some(pod("x", 1)))]),
        ["-NetworkPolicy shop/p"]
    );
}

#[test]
fn a_policy_that_lost_its_name_does_not_close_the_namespace() {
    let mut world = World::new();
    world.write(&[(
        "a",
        some(policy("x", "{podSelector: {matchLabels: {a: b}}}")),
    )]);

    assert_eq!(world.write(&[("a", some(policy("'X y'", "{}")))]), NONE);
    let told = world.write(&[("a", some(policy("'X y'", "{}") + &policy("'Z'", "{}")))]);
    assert_eq!(told.len(), 1, "a second one has no good version: {told:?}");
    assert!(
        told[0].starts_with("~NetworkPolicy shop/unnamed-"),
        "{told:?}"
    );
}

#[test]
fn places_are_those_in_force() {
    let mut world = World::new();
    world.write(&[
        ("a", some(pod("x", 1))),
        ("b", some(pod("x", 2) + &policy("p", "{x: 1}"))),
    ]);
    let place = |file: &str, line| Place {
        file: file.into(),
        line,
    };

    let pod = ObjectKey::Endpoint(EndpointId {
        kind: EndpointKind::Pod,
        namespace: "default".into(),
        name: "x".into(),
    });
    let policy = ObjectKey::Policy(PolicyId {
        kind: PolicyKind::NetworkPolicy,
        namespace: "shop".into(),
        name: "p".into(),
    });
    let expected = BTreeMap::from([(pod, place("a", 2)), (policy, place("b", 4))]);
    assert_eq!(world.ledger.places(), expected);
}

#[test]
fn findings_are_bounded_and_counted() {
    let mut ledger = Ledger::new(false);
    let bad = "---\n{kind: Pod}\n".repeat(150);
    for number in 0..20 {
        let name: Arc<str> = format!("{number:02}").into();
        ledger.apply(vec![(name.clone(), read(&name, &bad))]);
    }

    let (findings, untold) = ledger.findings();

    assert_eq!(findings.len(), FINDINGS);
    assert_eq!(findings.len() + untold, 20 * 150 * 2);
    for number in 0..20 {
        ledger.apply(vec![(format!("{number:02}").into(), FileChange::Gone)]);
    }
    assert_eq!((ledger.told, ledger.untold, ledger.names.len()), (0, 0, 0));
}

/// One document of a random file.
fn document() -> impl Strategy<Value = String> {
    prop_oneof![
        4 => ("[xyz]", 1_u8..3).prop_map(|(name, version)| pod(&name, version)),
        4 => ("[pq]", "\\{\\}|\\{egress: \\[\\{\\}\\]\\}").prop_map(|(name, spec)| policy(&name, &spec)),
        1 => "[pq]".prop_map(|name| policy(&name, "{x: 1}")),
        1 => Just(policy("'P Q'", "{}")),
        1 => Just("---\n{\n".to_owned()),
    ]
}

fn good_document() -> impl Strategy<Value = String> {
    prop_oneof![
        ("[xyz]", 1_u8..3).prop_map(|(name, version)| pod(&name, version)),
        ("[pq]", "\\{\\}|\\{egress: \\[\\{\\}\\]\\}").prop_map(|(name, spec)| policy(&name, &spec)),
    ]
}

fn text() -> impl Strategy<Value = Option<String>> {
    prop_oneof![
        1 => Just(None),
        5 => proptest::collection::vec(document(), 0..4).prop_map(|documents| Some(documents.concat())),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Once all files are whole again, the past does not matter.
    #[test]
    fn whole_files_are_all_that_counts(
        past in proptest::collection::vec(("[abc]", text()), 0..12),
        last in proptest::collection::vec(proptest::collection::vec(good_document(), 0..4), 3),
    ) {
        let mut world = World::new();
        for (name, text) in &past {
            world.write(&[(name, text.clone())]);
        }
        let files: Vec<_> = ["a", "b", "c"].into_iter().zip(last.iter().map(|d| Some(d.concat()))).collect();
        for file in files.iter().rev() {
            world.write(std::slice::from_ref(file));
        }
        let mut fresh = World::new();
        fresh.write(&files);

        prop_assert_eq!(&world.cluster, &fresh.cluster);
        prop_assert_eq!(world.findings(), fresh.findings());
        prop_assert_eq!(world.ledger.places(), fresh.ledger.places());
    }

    /// Whatever happens to files that stay there, no good object is lost or weakened to a stand-in unless every
    /// file that ever named it is whole without it.
    #[test]
    fn broken_files_never_take_a_good_object_away(
        good in proptest::collection::vec(good_document(), 1..4),
        broken in proptest::collection::vec(document(), 0..4),
    ) {
        let mut world = World::new();
        world.write(&[("a", Some(good.concat()))]);
        let before = world.cluster.clone();

        world.write(&[("a", Some(broken.concat() + "---\n{\n"))]);

        for policy in before.policies.values() {
            let id = &policy.id;
            let now = world.cluster.policies.get(id);
            prop_assert!(now.is_some_and(|now| now.invalid.is_none()), "{:?}", policy.id);
        }
        prop_assert!(before.endpoints.keys().all(|id| world.cluster.endpoints.contains_key(id)));
    }
}
