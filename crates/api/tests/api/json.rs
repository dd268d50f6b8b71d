//! Objects as the API server sends them.

use towpath_api::{Kind, Outcome, limits, read_header, read_object};
use towpath_core::model::{NamespaceMatch, Selector};

use super::single;

fn read(kind: Kind, text: &str) -> Outcome {
    let (header, outcome) = read_object(kind, text.as_bytes()).expect("it has a header");
    assert_eq!(read_header(kind, text.as_bytes()), Ok(header));
    outcome
}

const POLICY: &str = r#"{"apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy",
"metadata":{"name":"web","namespace":"shop","uid":"u","resourceVersion":"12","managedFields":[{"fieldsV1":{"f:spec":{}}}]},
"spec":{"podSelector":{"matchLabels":{"app":"web"}},"policyTypes":["Ingress"],"ingress":[{"from":[{"ipBlock":{"cidr":"CIDR"}}],"ports":[{"port":80}]}]}}"#;

#[test]
fn an_object_means_what_its_manifest_means() {
    for cidr in ["10.0.0.0/8", "fd00::/8"] {
        let text = POLICY.replace("CIDR", cidr);

        assert_eq!(read(Kind::NetworkPolicy, &text), strip_lines(single(&text)));
    }
}

#[test]
fn its_faults_are_those_of_its_manifest() {
    for cidr in ["10.0.0.0/99", "", "10.0.0.1.1"] {
        let text = POLICY.replace("CIDR", cidr);

        let found = read(Kind::NetworkPolicy, &text);

        assert!(matches!(found, Outcome::Bad(_)), "{found:?}");
        assert_eq!(found, strip_lines(single(&text)));
    }
}

/// What comes from no file has no lines.
fn strip_lines(mut outcome: Outcome) -> Outcome {
    let faults = match &mut outcome {
        Outcome::Object { remarks, .. } | Outcome::Ignored { remarks, .. } => remarks,
        Outcome::Bad(bad) => &mut bad.faults,
    };
    for fault in faults {
        fault.line = 0;
    }
    outcome
}

#[test]
fn items_of_a_list_need_no_kind() {
    let text = POLICY.replace("CIDR", "10.0.0.0/8").replace(
        r#""apiVersion":"networking.k8s.io/v1","kind":"NetworkPolicy","#,
        "",
    );

    assert!(matches!(
        read(Kind::NetworkPolicy, &text),
        Outcome::Object { .. }
    ));
}

#[test]
fn the_header_names_an_object_and_its_version() {
    let text = POLICY.as_bytes();
    let header = read_header(Kind::NetworkPolicy, text).unwrap();

    assert_eq!(
        (
            &*header.namespace,
            &*header.name,
            &*header.uid,
            header.version
        ),
        ("shop", "web", "u", 12)
    );
}

#[test]
fn what_has_no_name_or_version_has_no_header() {
    for text in [
        "",
        "7",
        "{",
        "{}",
        r#"{"metadata":7}"#,
        r#"{"metadata":{"name":"a"}}"#,
        r#"{"metadata":{"name":"a","resourceVersion":7}}"#,
        r#"{"metadata":{"name":"a","resourceVersion":"-7"}}"#,
        r#"{"metadata":{"name":"","resourceVersion":"7"}}"#,
        r#"{"metadata":{"name":"a/b","resourceVersion":"7"}}"#,
        r#"{"metadata":{"name":"..","resourceVersion":"7"}}"#,
        r#"{"metadata":{"name":"a","namespace":"b/c","resourceVersion":"7"}}"#,
        r#"{"metadata":{"name":7,"namespace":"b","resourceVersion":"7"}}"#,
        r#"{"metadata":{"name":"a","namespace":["b"],"resourceVersion":"7"}}"#,
        r#"{"metadata":null}"#,
    ] {
        for kind in [Kind::NetworkPolicy, Kind::Node] {
            assert!(read_header(kind, text.as_bytes()).is_err(), "{text}");
            assert!(read_object(kind, text.as_bytes()).is_err(), "{text}");
        }
    }
}

#[test]
fn nothing_is_of_a_namespace_that_is_not_named() {
    let without = r#"{"metadata":{"name":"a","resourceVersion":"7"}}"#;
    let with = r#"{"metadata":{"name":"a","namespace":"b","resourceVersion":"7"}}"#;
    for (kind, is_cluster_wide) in [
        (Kind::Pod, false),
        (Kind::NetworkPolicy, false),
        (Kind::Namespace, true),
        (Kind::Node, true),
        (Kind::ClusterNetworkPolicy, true),
    ] {
        let is_header = |text: &str| {
            let (alone, whole) = (
                read_header(kind, text.as_bytes()),
                read_object(kind, text.as_bytes()),
            );
            assert_eq!(alone.is_ok(), whole.is_ok(), "{alone:?}, {whole:?}");
            whole.is_ok()
        };

        assert_eq!(is_header(without), is_cluster_wide, "{kind:?}");
        assert_eq!(is_header(with), !is_cluster_wide, "{kind:?}");
        assert!(
            is_cluster_wide || !is_header(&with.replace(r#""b""#, "null")),
            "{kind:?}"
        );
    }
}

#[test]
fn a_pod_without_a_spec_is_bad_and_no_pod_without_a_node() {
    let text = r#"{"metadata":{"name":"a","namespace":"b","resourceVersion":"7"},"spec":{}}"#;
    assert!(matches!(read(Kind::Pod, text), Outcome::Object { .. }));

    for spec in ["", r#","spec":null"#] {
        let found = read(Kind::Pod, &text.replace(r#","spec":{}"#, spec));

        let Outcome::Bad(bad) = found else {
            panic!("{found:?}");
        };
        assert_eq!(bad.faults[0].path, "spec");
    }
}

#[test]
fn a_policy_that_cannot_be_read_closes_its_namespace() {
    let values = "0,".repeat(limits::DOCUMENT_VALUES) + "0";
    let deep = "[".repeat(200) + &"]".repeat(200);
    for hostile in [
        format!(r#""x":[{values}]"#),
        format!(r#""x":{deep}"#),
        r#""x":1,"x":2"#.to_owned(),
    ] {
        let text = POLICY.replace(r#""spec":{"#, &format!(r#""spec":{{{hostile},"#));

        let Outcome::Bad(bad) = read(Kind::NetworkPolicy, &text) else {
            panic!("it was read");
        };

        assert_eq!(bad.identity.unwrap().to_string(), "NetworkPolicy shop/web");
        assert!(
            bad.faults[0].to_string().contains("cannot be read"),
            "{:?}",
            bad.faults
        );
        let stand_in = bad.stand_in.unwrap();
        assert_eq!(
            stand_in.subject.namespaces,
            NamespaceMatch::Is("shop".into())
        );
        assert_eq!(stand_in.subject.pods, Selector::everything());
        assert_eq!(
            (stand_in.ingress, stand_in.egress),
            (Some(Vec::new()), Some(Vec::new()))
        );
    }
}
