//! Input that nobody writes by mistake. Every one is taken or refused with a message that fits a line.

use std::fmt::Write as _;

use proptest::prelude::*;
use towpath_api::{Document, Outcome, limits, read};
use towpath_core::model::Object;

use super::{bad, errors, good_policy, single};

fn policy(spec: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: a}}, spec: {spec}}}"
    )
}

#[test]
fn a_text_that_is_not_yaml_names_its_line() {
    for text in [
        "{",
        "a: b: c",
        "- a\nb: c",
        "key: \"open",
        "a:\n\t- b",
        "%FOO\n---",
        "&",
        "\u{1}",
        "a: \u{0}",
    ] {
        for document in read("f", text.as_bytes()) {
            let Outcome::Bad(bad) = document.outcome else {
                panic!("{text:?}")
            };
            assert!(bad.faults[0].line >= 1, "{text:?}");
            assert!(!bad.faults[0].advice.is_empty(), "{text:?}");
        }
    }
}

#[test]
fn a_wrong_type_anywhere_is_an_error_and_no_panic() {
    let whole = policy(
        "{podSelector: {matchLabels: {a: b}}, policyTypes: [Ingress], ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.1.0.0/16]}}], ports: [{port: 1, endPort: 2, protocol: TCP}]}]}",
    );
    for part in [
        "{matchLabels: {a: b}}",
        "{a: b}",
        "[Ingress]",
        "10.0.0.0/8",
        "[10.1.0.0/16]",
        "TCP",
        "[{port: 1, endPort: 2, protocol: TCP}]",
    ] {
        for wrong in ["[[]]", "{x: {}}", "7", "'?'", "true"] {
            let text = whole.replacen(part, wrong, 1);
            assert!(!errors(&text).is_empty(), "{text}");
        }
    }
}

#[test]
fn a_megabyte_is_handled() {
    let mut rules = String::new();
    while rules.len() < 1 << 20 {
        write!(
            rules,
            "{{from: [{{podSelector: {{matchLabels: {{app: x{}}}}}}}], ports: [{{port: 80}}]}}, ",
            rules.len()
        )
        .unwrap();
    }
    let count = rules.matches("from").count();
    assert!(count > 10_000);

    assert_eq!(
        errors(&policy(&format!("{{ingress: [{rules}]}}"))),
        [format!(
            "1 error: spec.ingress: the list has {count} entries, more than 10000; leave at most 10000, or split the object"
        )]
    );
    let half = rules.match_indices("{from").nth(10_000).unwrap().0;
    let policy = good_policy(&policy(&format!("{{ingress: [{}]}}", &rules[..half])));
    assert_eq!(policy.ingress.unwrap().len(), 10_000);
}

#[test]
fn a_document_beyond_the_limit_is_refused_and_the_next_one_read() {
    let text = format!(
        "# {}\napiVersion: v1\nkind: Pod\n---\n{{apiVersion: v1, kind: Node, metadata: {{name: n}}}}",
        "x".repeat(limits::DOCUMENT_BYTES)
    );

    let documents = read("f", text.as_bytes());

    assert_eq!(documents.len(), 2);
    assert!(
        matches!(&documents[0].outcome, Outcome::Bad(bad) if bad.faults[0].message.contains("more than 4194304"))
    );
    assert!(matches!(
        &documents[1].outcome,
        Outcome::Object {
            object: Object::Node(_),
            ..
        }
    ));
}

#[test]
fn names_with_quotes_braces_newlines_and_controls_are_refused() {
    for name in [
        "a\"b",
        "a'b",
        "a{b",
        "a}b",
        "a;b",
        "a\nb",
        "a\u{0}b",
        "a\u{7}b",
        "a\u{1b}[2J",
        "a b",
        "a\u{202e}b",
        "../a",
        "$(x)",
        "a\\b",
    ] {
        let quoted = name
            .chars()
            .map(|c| format!("\\U{:08x}", u32::from(c)))
            .collect::<Vec<_>>()
            .concat();
        for text in [
            format!(
                "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: \"{quoted}\"}}}}"
            ),
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: a, namespace: \"{quoted}\"}}}}"
            ),
            format!(
                "{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {{a: \"{quoted}\"}}}}}}"
            ),
            format!("{{apiVersion: v1, kind: Node, metadata: {{name: \"{quoted}\"}}}}"),
            policy(&format!(
                "{{ingress: [{{ports: [{{port: \"{quoted}\"}}]}}]}}"
            )),
        ] {
            let bad = bad(&text);
            for fault in &bad.faults {
                let line = fault.to_string();
                assert!(!line.chars().any(char::is_control), "{line:?}");
            }
            if let Some(stand_in) = bad.stand_in {
                assert!(
                    stand_in
                        .id
                        .name
                        .bytes()
                        .all(|b| b.is_ascii_alphanumeric() || b == b'-')
                );
            }
        }
    }
}

#[test]
fn huge_names_and_keys_make_short_messages() {
    let huge = "x".repeat(1 << 20);
    for text in [
        format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {huge}}}}}"),
        format!(
            "{{apiVersion: v1, kind: Pod, metadata: {{name: a, labels: {{\"{}\": b}}}}}}",
            "k".repeat(900)
        ),
        policy(&format!("{{? {huge}\n: 1}}")),
        policy(&format!("{{ingress: [{{ports: [{{port: {huge}}}]}}]}}")),
        format!("{{apiVersion: v1, kind: {huge}}}"),
        format!("{{apiVersion: {huge}, kind: Pod, metadata: {{name: a}}}}"),
    ] {
        let line = match single(&text) {
            Outcome::Bad(bad) => bad.faults[0].to_string(),
            Outcome::Ignored { kind, .. } => kind,
            Outcome::Object { .. } => panic!("{text:.80}"),
        };
        assert!(line.len() < 500, "{line}");
    }
}

#[test]
fn thousands_of_faults_are_counted_not_kept() {
    let rules = "{x: 1}, ".repeat(5_000);

    let faults = errors(&policy(&format!("{{ingress: [{rules}]}}")));

    assert_eq!(faults.len(), limits::FAULTS + 1);
    assert_eq!(
        faults.last().unwrap(),
        "1 error: and 4980 more faults; correct those above first"
    );
}

#[test]
fn selectors_and_conditions_are_limited() {
    let labels = (0..257)
        .map(|n| format!("a{n}: b, "))
        .collect::<Vec<_>>()
        .concat();
    assert_eq!(
        errors(&policy(&format!(
            "{{podSelector: {{matchLabels: {{{labels}}}}}}}"
        ))),
        [
            "1 error: spec.podSelector: the selector has more than 256 requirements; select by fewer labels"
        ]
    );
    let peers = "{podSelector: {}}, ".repeat(34_000);
    let rules = format!("{{from: [{peers}]}}, ").repeat(3);
    assert_eq!(
        errors(&policy(&format!("{{ingress: [{rules}]}}"))),
        [
            "1 error: spec.ingress[2].from: the policy has more than 100000 peers and ports; split it into several policies; they add up"
        ]
    );
}

#[test]
fn blocks_with_holes_in_each_other_are_limited_and_those_beside_each_other_are_not() {
    let rules = |count: u32, block: fn(std::net::Ipv4Addr) -> String| {
        let address = |n: u32| std::net::Ipv4Addr::from_bits(0x0b00_0001 + 2 * n);
        let rules: Vec<String> = (0..count)
            .map(|n| format!("{{from: [{{ipBlock: {}}}]}}", block(address(n))))
            .collect();
        policy(&format!("{{ingress: [{}]}}", rules.join(", ")))
    };
    let hole = |address| format!("{{cidr: 0.0.0.0/0, except: [{address}/32]}}");

    let many = rules(10_000, |address| format!("{{cidr: {address}/32}}"));
    let equal = rules(10_000, |_| {
        "{cidr: 0.0.0.0/0, except: [10.0.0.0/8]}".to_owned()
    });
    for good in [&many, &equal, &rules(400, hole)] {
        assert_eq!(good_policy(good).invalid, None);
    }

    assert_eq!(
        errors(&rules(600, hole)),
        [
            "1 error: spec.ingress: too many ipBlocks of the policy lie in each other, each with holes of its own; put the holes that rules have in common into one ipBlock, or allow the blocks between them"
        ]
    );
}

#[test]
fn two_thousand_documents_in_a_row_are_fine() {
    let text = "---\n{apiVersion: v1, kind: Namespace, metadata: {name: a}}\n".repeat(2_000);

    assert_eq!(read("f", text.as_bytes()).len(), 2_000);
}

/// Whether every message can be printed on one line and every object has a printable identity.
fn is_presentable(documents: &[Document]) -> bool {
    documents.iter().all(|document| match &document.outcome {
        Outcome::Bad(bad) => {
            let has_error = !bad.faults.is_empty();
            has_error
                && bad
                    .faults
                    .iter()
                    .all(|fault| !fault.to_string().chars().any(char::is_control))
        }
        Outcome::Object { object, .. } => !format!("{:?}", object.key()).contains("\\n"),
        Outcome::Ignored { kind, .. } => !kind.chars().any(char::is_control),
    })
}

/// Pieces of manifests in any order.
const PIECES: [&str; 36] = [
    "apiVersion: v1\n",
    "apiVersion: networking.k8s.io/v1\n",
    "apiVersion: policy.networking.k8s.io/v1alpha2\n",
    "kind: Pod\n",
    "kind: NetworkPolicy\n",
    "kind: ClusterNetworkPolicy\n",
    "kind: Node\n",
    "kind: List\n",
    "metadata:\n",
    "  name: a\n",
    "  namespace: b\n",
    "  labels: {a: b}\n",
    "spec:\n",
    "  podSelector:\n",
    "    matchLabels: {x: y}\n",
    "    matchExpressions: [{key: a, operator: In, values: [b]}]\n",
    "  ingress:\n",
    "  - from:\n",
    "  - action: Deny\n",
    "    - podSelector: {}\n",
    "    - ipBlock: {cidr: 10.0.0.0/8}\n",
    "    ports: [{port: 1}]\n",
    "  subject: {namespaces: {}}\n",
    "  tier: Admin\n",
    "  priority: 1\n",
    "---\n",
    "...\n",
    "items:\n",
    "- ",
    "  ",
    "&a ",
    "*a ",
    "<<: *a\n",
    "\"",
    "{",
    "]\n",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        prop_assert!(is_presentable(&read("f", &bytes)));
    }

    #[test]
    fn any_pieces_are_taken_or_refused(pieces in proptest::collection::vec(0..PIECES.len(), 0..30)) {
        let text: String = pieces.iter().map(|piece| PIECES[*piece]).collect();
        prop_assert!(is_presentable(&read("f", text.as_bytes())));
    }

    /// A policy cut off anywhere is never taken for a policy that opens more than the whole one.
    #[test]
    fn a_policy_cut_anywhere_never_loses_its_subject(cut in 0_usize..400) {
        let whole = "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: a\n  namespace: shop\nspec:\n  podSelector:\n    matchLabels:\n      app: web\n  policyTypes: [Ingress, Egress]\n  ingress:\n  - from:\n    - podSelector: {matchLabels: {app: x}}\n    ports: [{port: 80}]\n  egress: []\n";
        let text = &whole[..cut.min(whole.len())];
        if cut > whole.find("  namespace: shop\nspec").unwrap() + 22 {
            for document in read("f", text.as_bytes()) {
                let policy = match document.outcome {
                    Outcome::Object { object: Object::Policy(policy), .. } => policy,
                    Outcome::Bad(bad) => bad.stand_in.expect("a stand-in"),
                    other => panic!("{other:?}"),
                };
                let web = [("app", "web")].into_iter().collect();
                prop_assert!(policy.subject.pods.matches(&web) || text.ends_with(|c: char| "web".contains(c)));
            }
        }
    }
}
