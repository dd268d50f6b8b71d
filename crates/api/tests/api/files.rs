//! Files: documents, lists, lines.

use towpath_api::{BadObject, Decision, Outcome, convert, decide, read};
use towpath_core::model::Policy;

use super::{bad, good_policy, outline, show};

/// More bytes than one document may have.
const DOCUMENT_BYTES: usize = 4 << 20;

fn pod(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}}}\n")
}

#[test]
fn documents_are_separated_and_know_their_lines() {
    let text = format!(
        "\u{feff}%YAML 1.2\n---\n# only a comment\n---\n{}--- # remark\n{}...\n\n{}--- {}---\n---\n---\nnull\n",
        pod("a"),
        pod("b"),
        pod("c"),
        pod("d")
    );

    let documents = read("f", text.as_bytes());

    let lines: Vec<_> = documents.iter().map(|document| document.line).collect();
    assert_eq!(lines, [5, 7, 10, 11]);
    assert!(
        documents
            .iter()
            .all(|document| matches!(document.outcome, Outcome::Object { .. }))
    );
}

#[test]
fn windows_line_ends_are_fine() {
    let text = "apiVersion: v1\r\nkind: Pod\r\nmetadata:\r\n  name: a\r\n---\r\napiVersion: v1\r\nkind: Node\r\nmetadata:\r\n  name: b\r\n";

    let documents = read("f", text.as_bytes());

    assert_eq!(documents.iter().map(|d| d.line).collect::<Vec<_>>(), [1, 6]);
    assert!(
        documents
            .iter()
            .all(|document| matches!(document.outcome, Outcome::Object { .. }))
    );
}

#[test]
fn a_broken_document_does_not_stop_the_others() {
    let text = format!(
        "{}---\n{{[}}: x\n---\n\tx\n---\n\"open\n---\n{}",
        pod("a"),
        pod("b")
    );

    let documents = read("f", text.as_bytes());

    let kinds: Vec<_> = documents
        .iter()
        .map(|document| (document.line, matches!(document.outcome, Outcome::Bad(_))))
        .collect();
    assert_eq!(
        kinds,
        [(1, false), (3, true), (5, true), (7, true), (9, false)]
    );
}

#[test]
fn text_that_is_not_utf8_is_told_by_line() {
    let mut bytes = format!("{}---\na: b\nc: ", pod("a")).into_bytes();
    bytes.extend(b"\xff\n---\n");
    bytes.extend(pod("b").into_bytes());

    let documents = read("f", &bytes);

    assert_eq!(documents.len(), 3);
    let Outcome::Bad(bad) = &documents[1].outcome else {
        panic!()
    };
    assert_eq!(
        show(&bad.faults[0]),
        "4 error: the text is not UTF-8; save it as UTF-8, and check that the file is a manifest at all"
    );
}

fn policy(label: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: n}}, spec: {{podSelector: {{matchLabels: {{a: {label}}}}}}}}}\n"
    )
}

/// The only document of a file, and what closes its subject.
fn refused(bytes: &[u8]) -> (BadObject, Policy) {
    let documents = read("f", bytes);
    let [document] = &documents[..] else {
        panic!("{:?}", outline(&documents))
    };
    let Outcome::Bad(bad) = &document.outcome else {
        panic!("{:?}", outline(&documents))
    };
    let Some(stand_in) = &bad.stand_in else {
        panic!("nothing is closed: {bad:?}")
    };
    (bad.clone(), stand_in.clone())
}

#[test]
fn a_policy_in_a_text_that_is_not_utf8_is_closed() {
    let comment = [policy("b").as_bytes(), b"# caf\xe9\n"].concat();

    let (bad, stand_in) = refused(&comment);

    assert_eq!(bad.identity.unwrap().to_string(), "NetworkPolicy n/p");
    assert_eq!(bad.faults.len(), 1, "{:?}", bad.faults);
    assert_eq!(stand_in.subject, good_policy(&policy("b")).subject);

    let label = policy("cafe").into_bytes();
    let at = label.windows(4).position(|text| text == b"cafe").unwrap();
    let label = [&label[..at + 3], b"\xe9", &label[at + 4..]].concat();
    let (_, stand_in) = refused(&label);
    let everyone = policy("b").replace("{matchLabels: {a: b}}", "{}");
    assert_eq!(stand_in.subject, good_policy(&everyone).subject);
}

#[test]
fn a_policy_in_a_document_that_is_too_large_is_closed() {
    let text = format!("{}# {}\n", policy("b"), "x".repeat(DOCUMENT_BYTES));

    let (bad, stand_in) = refused(text.as_bytes());

    assert_eq!(bad.identity.unwrap().to_string(), "NetworkPolicy n/p");
    assert!(bad.faults[0].message.starts_with("the document has "));
    assert_eq!(bad.faults.len(), 1, "{:?}", bad.faults);
    assert_eq!(stand_in.subject, good_policy(&policy("b")).subject);
}

#[test]
fn of_a_list_that_is_refused_only_the_policies_are_told_one_by_one() {
    let text = format!(
        "apiVersion: v1\nkind: List\nitems:\n- {}- {}# caf",
        pod("a"),
        policy("b")
    );
    let documents = read("f", &[text.as_bytes(), b"\xe9\n"].concat());

    assert_eq!(outline(&documents), ["6: bad", "5: bad NetworkPolicy n/p"]);
}

#[test]
fn lists_are_expanded() {
    let text = "apiVersion: v1
items:
- apiVersion: v1
  kind: Pod
  metadata: {name: a}
- apiVersion: v1
  kind: Namespace
  metadata: {name: b}
- apiVersion: apps/v1
  kind: Deployment
  metadata: {name: c}
- apiVersion: v1
  kind: Pod
  metadata: {name: 'D'}
kind: List
metadata: {resourceVersion: ''}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicyList
items:
- metadata: {name: p, namespace: n}
  spec: {}
---
{apiVersion: v1, kind: List, items: [{apiVersion: v1, kind: List, items: []}]}
---
{apiVersion: v1, kind: PodList, items: null}
";

    assert_eq!(
        outline(&read("f", text.as_bytes())),
        [
            "3: Endpoint(EndpointId { kind: Pod, namespace: \"default\", name: \"a\" })",
            "6: Namespace(\"b\")",
            "9: ignored Deployment",
            "12: bad Pod \"D\" in namespace default",
            "21: Policy(PolicyId { kind: NetworkPolicy, namespace: \"n\", name: \"p\" })",
            "24: bad",
        ]
    );
}

#[test]
fn faults_of_an_item_name_its_place_in_the_list() {
    let text = "{apiVersion: v1, kind: List, items: [
{apiVersion: v1, kind: Namespace, metadata: {name: a}},
{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p}, spec: {ingres: []}},
{apiVersion: v1, kind: Pod, metadata: {name: a, labels: {'a/b/c': x}}},
{apiVersion: v1, kind: List, items: []}]}";

    let documents = read("f", text.as_bytes());

    let paths: Vec<_> = documents
        .iter()
        .filter_map(|document| match &document.outcome {
            Outcome::Bad(bad) => Some(bad.faults[0].path.as_str()),
            _ => None,
        })
        .collect();
    assert_eq!(
        paths,
        [
            "items[1].spec.ingres",
            "items[2].metadata.labels[\"a/b/c\"]",
            "items[3]"
        ]
    );
}

#[test]
fn an_object_is_called_by_its_bad_name_in_safe_letters() {
    let identity = |metadata: &str| {
        let text = format!("{{apiVersion: v1, kind: Pod, metadata: {metadata}}}");
        match read("f", text.as_bytes()).remove(0).outcome {
            Outcome::Bad(bad) => bad.identity.unwrap().to_string(),
            outcome => panic!("{outcome:?}"),
        }
    };

    let cut = format!("Pod \"{}\"... in namespace default", "A".repeat(64));
    for (metadata, expected) in [
        ("{name: Web_1}", "Pod \"Web_1\" in namespace default"),
        (
            "{name: 12.50, namespace: shop}",
            "Pod \"12.50\" in namespace shop",
        ),
        ("{name: Web, namespace: B_d}", "Pod \"Web\""),
        (
            r#"{name: "a\n\e[2J\u202e"}"#,
            r#"Pod "a\n\u{1b}[2J\u{202e}" in namespace default"#,
        ),
        (&format!("{{name: {}}}", "A".repeat(300)), &cut),
        ("{name: [a]}", "Pod without a name in namespace default"),
        ("{name: null}", "Pod without a name in namespace default"),
        ("{}", "Pod without a name in namespace default"),
    ] {
        assert_eq!(identity(metadata), expected, "{metadata}");
    }
}

#[test]
fn a_list_that_ends_early_keeps_its_whole_items() {
    let text = "apiVersion: v1
items:
- {apiVersion: v1, kind: Pod, metadata: {name: a}}
- apiVersion: networking.k8s.io/v1
  kind: NetworkPolicy
  metadata: {name: p}
  spec:
    podSelector: {}
    ingress: [
";

    let documents = read("f", text.as_bytes());

    assert_eq!(
        outline(&documents),
        [
            "3: Endpoint(EndpointId { kind: Pod, namespace: \"default\", name: \"a\" })",
            "4: bad NetworkPolicy default/p",
        ]
    );
    let Outcome::Bad(bad) = &documents[1].outcome else {
        panic!()
    };
    assert!(bad.stand_in.is_some());
}

#[test]
fn kinds_that_policy_does_not_depend_on_are_ignored() {
    for (text, kind) in [
        (
            "{apiVersion: v1, kind: Service, metadata: {name: a}}",
            "Service",
        ),
        ("{apiVersion: apps/v1, kind: Deployment}", "Deployment"),
        ("{apiVersion: management.example/v3, kind: Node}", "Node"),
        (
            "{apiVersion: projectcalico.org/v3, kind: WorkloadEndpoint}",
            "WorkloadEndpoint",
        ),
        ("{apiVersion: x/v1, kind: \"A\\nB\"}", "\"A\\nB\""),
    ] {
        let Outcome::Ignored {
            kind: found,
            remarks,
        } = super::single(text)
        else {
            panic!("{text}")
        };
        assert_eq!((found.as_str(), remarks.len()), (kind, 0));
    }
}

#[test]
fn a_policy_with_a_slip_in_its_kind_is_not_left_out() {
    let bad = bad(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolcy\nmetadata: {name: a}\nspec: {podSelector: {}}",
    );

    assert_eq!(
        bad.faults.iter().map(show).collect::<Vec<_>>(),
        ["1 error: the kind \"NetworkPolcy\" does not exist; did you mean NetworkPolicy?"]
    );
    assert!(bad.stand_in.is_some());
}

#[test]
fn a_text_that_ends_inside_a_field_is_one_error() {
    for text in [
        "kind: [open\n",
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: [a\n",
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: a}\nspec: [x\n",
    ] {
        let faults = bad(text).faults;
        let shown: Vec<_> = faults.iter().map(show).collect();
        assert!(
            matches!(&shown[..], [fault] if fault.contains("not valid YAML")),
            "{text}: {shown:?}"
        );
    }
}

#[test]
fn policies_of_others_are_not_taken_for_enforced() {
    for (text, message) in [
        (
            "{apiVersion: projectcalico.org/v3, kind: NetworkPolicy}",
            "1 error: NetworkPolicy of \"projectcalico.org/v3\" is not enforced by towpath; write it for apiVersion networking.k8s.io/v1",
        ),
        (
            "{apiVersion: policy.networking.k8s.io/v1alpha1, kind: AdminNetworkPolicy}",
            "1 error: AdminNetworkPolicy is not enforced by towpath; write it as a ClusterNetworkPolicy of tier Admin",
        ),
        (
            "{apiVersion: cilium.io/v2, kind: CiliumNetworkPolicy}",
            "1 error: CiliumNetworkPolicy is not enforced by towpath; write it as a NetworkPolicy",
        ),
    ] {
        let Outcome::Ignored { remarks, .. } = super::single(text) else {
            panic!("{text}")
        };
        assert_eq!(remarks.iter().map(show).collect::<Vec<_>>(), [message]);
    }
}

#[test]
fn a_bad_version_never_replaces_a_good_one() {
    let bad_policy = bad(
        "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: a}, spec: {x: 1}}",
    );
    let bad_pod = bad("{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: 1}");

    assert_eq!(decide(true, &bad_policy), Decision::KeepLastGood);
    assert!(matches!(decide(false, &bad_policy), Decision::StandIn(_)));
    assert_eq!(decide(true, &bad_pod), Decision::KeepLastGood);
    assert_eq!(decide(false, &bad_pod), Decision::Absent);
}

#[test]
fn objects_of_an_api_server_convert_alike() {
    let json = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","metadata":{"name":"a","namespace":"n","managedFields":[{"x":[1]}]},
        "spec":{"podSelector":{},"ingress":[{"ports":[{"port":80,"endPort":90,"protocol":"TCP"},{"port":"http"}]}]}}"#;

    let converted = convert(&serde_json::from_str(json).unwrap());

    let Outcome::Object { object, .. } = converted else {
        panic!("{converted:?}")
    };
    assert_eq!(object, super::good(json).0);
}
