//! The verbs against an agent that answers from a list, and hostile input against all of them.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread::JoinHandle;

use proptest::prelude::*;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const ARGUMENTS: &str = "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_UID=u1";

fn call(verb: &str, input: &str) -> Outcome {
    call_with(verb, input, "eth0")
}

fn call_with(verb: &str, input: &str, interface: &str) -> Outcome {
    let variable = |name: &str| {
        let value = match name {
            "CNI_COMMAND" => verb,
            "CNI_CONTAINERID" => "c0ffee",
            "CNI_NETNS" => "/var/run/netns/web",
            "CNI_IFNAME" => interface,
            "CNI_ARGS" => ARGUMENTS,
            _ => return None,
        };
        Some(OsString::from(value))
    };
    run(variable, input.as_bytes())
}

fn result() -> Value {
    json!({
        "cniVersion": "1.1.0",
        "interfaces": [{ "name": "cni0" }, { "name": "veth1" }, { "name": "eth0", "sandbox": "/var/run/netns/web" }],
        "ips": [{ "address": "10.244.1.5/24", "interface": 2 }],
    })
}

fn input(folder: &Path, more: &Value) -> String {
    let mut text = json!({
        "cniVersion": "1.1.0",
        "name": "cbr0",
        "type": "towpath-cni",
        "socket": folder.join("socket"),
        "queue": folder.join("queue"),
        "timeoutSeconds": 1,
        "prevResult": result(),
    });
    for (key, value) in more.as_object().unwrap() {
        text[key] = value.clone();
    }
    text.to_string()
}

/// An agent that gives one answer and tells what it was asked.
fn agent(folder: &TempDir, answer: &'static str) -> JoinHandle<(String, Value)> {
    let listener = UnixListener::bind(folder.path().join("socket")).unwrap();
    std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        loop {
            let mut buffer = [0; 4096];
            let count = stream.read(&mut buffer).unwrap();
            bytes.extend_from_slice(&buffer[..count]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            let Some((head, body)) = text.split_once("\r\n\r\n") else {
                continue;
            };
            let wanted = head
                .lines()
                .find_map(|line| line.strip_prefix("Content-Length: "));
            if body.len() < wanted.unwrap().parse().unwrap() {
                continue;
            }
            let reply = format!(
                "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{answer}",
                answer.len()
            );
            stream.write_all(reply.as_bytes()).unwrap();
            let line = head.lines().next().unwrap().to_owned();
            return (line, serde_json::from_str(body).unwrap_or(Value::Null));
        }
    })
}

#[test]
fn add_tells_the_agent_of_the_pod_and_passes_the_result_on() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(&folder, r#"{"programmed":true}"#);

    let said = call("ADD", &input(folder.path(), &json!({}))).unwrap();

    let (line, mut body) = agent.join().unwrap();
    assert_eq!(line, "POST /v1/cni/add HTTP/1.1");
    let wait = body["waitMilliseconds"].take().as_u64().unwrap();
    assert!((1..=800).contains(&wait), "{wait}");
    let expected = json!({
        "network": "cbr0",
        "container": "c0ffee",
        "interface": "eth0",
        "netns": "/var/run/netns/web",
        "namespace": "shop",
        "name": "web",
        "uid": "u1",
        "addresses": ["10.244.1.5"],
        "hostInterfaces": ["cni0", "veth1"],
        "waitMilliseconds": null,
    });
    assert_eq!(body, expected);
    let printed: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!((printed, said.remark), (result(), None));
}

#[test]
fn add_is_refused_while_the_agent_is_late_and_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(&folder, r#"{"programmed":false,"reason":"no such pod"}"#);

    let (error, version) = call("ADD", &input(folder.path(), &json!({}))).unwrap_err();

    agent.join().unwrap();
    assert_eq!(
        error,
        CniError::new(Code::TryAgainLater, LATE, "no such pod")
    );
    assert_eq!(version, Version::V1_1_0);
}

#[test]
fn add_without_an_agent_follows_the_failure_policy() {
    let folder = tempfile::tempdir().unwrap();
    let add = |more: &Value| call("ADD", &input(folder.path(), more));

    let closed = add(&json!({})).unwrap_err().0;
    let open = add(&json!({ "failurePolicy": "open" })).unwrap();
    let exempt = add(&json!({ "waitExemptNamespaces": ["kube-system", "shop"] })).unwrap();

    assert_eq!(closed.code, Code::TryAgainLater);
    assert!(closed.details.contains("is it running?"), "{closed:?}");
    for (said, word) in [(open, "failurePolicy"), (exempt, "exempt")] {
        let printed: Value = serde_json::from_str(&said.text).unwrap();
        assert_eq!(printed, result());
        assert!(said.remark.unwrap().contains(word));
    }
}

#[test]
fn a_pod_of_an_exempt_namespace_is_told_without_a_wait() {
    let folder = tempfile::tempdir().unwrap();
    let agent = agent(&folder, r#"{"programmed":false,"reason":"later"}"#);

    let more = json!({ "waitExemptNamespaces": ["shop"] });
    let said = call("ADD", &input(folder.path(), &more)).unwrap();

    let (line, body) = agent.join().unwrap();
    assert_eq!(line, "POST /v1/cni/add HTTP/1.1");
    assert_eq!(body["waitMilliseconds"], 0);
    assert!(said.remark.unwrap().contains("later"));
}

#[test]
fn another_interface_of_a_pod_is_none_of_our_business() {
    let folder = tempfile::tempdir().unwrap();
    let text = input(folder.path(), &json!({}));

    let said = call_with("ADD", &text, "net1").unwrap();

    let printed: Value = serde_json::from_str(&said.text).unwrap();
    assert_eq!((printed, said.remark), (result(), None));
    assert_eq!(call_with("CHECK", &text, "net1"), Ok(Said::default()));
    assert_eq!(call_with("DEL", &text, "net1"), Ok(Said::default()));
}

#[test]
fn add_needs_what_it_passes_on() {
    let folder = tempfile::tempdir().unwrap();
    for more in [
        json!({ "prevResult": null }),
        json!({ "prevResult": { "cniVersion": "1.1.0", "ips": [] } }),
    ] {
        let (error, _) = call("ADD", &input(folder.path(), &more)).unwrap_err();

        assert_eq!(error.code, Code::InvalidConfiguration, "{error:?}");
    }
}

#[test]
fn del_tells_the_agent_or_leaves_a_note() {
    let folder = tempfile::tempdir().unwrap();
    let text = input(folder.path(), &json!({ "prevResult": null }));
    let queue = folder.path().join("queue");

    let noted = call("DEL", &text).unwrap();
    let lines = std::fs::read_to_string(&queue).unwrap();
    let agent = agent(&folder, "{}");
    let told = call("DEL", &text).unwrap();

    let deletion = json!({ "network": "cbr0", "container": "c0ffee", "interface": "eth0" });
    assert!(noted.remark.unwrap().contains("at its start"));
    assert_eq!(serde_json::from_str::<Value>(&lines).unwrap(), deletion);
    let (line, body) = agent.join().unwrap();
    assert_eq!(
        (line.as_str(), body),
        ("POST /v1/cni/del HTTP/1.1", deletion)
    );
    assert_eq!(told, Said::default());
    assert_eq!(std::fs::read_to_string(&queue).unwrap(), lines);
}

#[test]
fn status_says_what_a_runtime_is_to_do() {
    for (answer, code) in [
        (r#"{"ready":true}"#, None),
        (
            r#"{"ready":false,"isDatapathBroken":true,"reason":"no module"}"#,
            Some(Code::Limited),
        ),
        (
            r#"{"ready":false,"reason":"not read yet"}"#,
            Some(Code::Unavailable),
        ),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let agent = agent(&folder, answer);

        let found = call("STATUS", &input(folder.path(), &json!({})));

        agent.join().unwrap();
        assert_eq!(found.err().map(|(error, _)| error.code), code, "{answer}");
    }
    let folder = tempfile::tempdir().unwrap();
    let down = call("STATUS", &input(folder.path(), &json!({}))).unwrap_err();
    let open = json!({ "failurePolicy": "open" });
    assert_eq!(down.0.code, Code::Unavailable);
    assert!(call("STATUS", &input(folder.path(), &open)).is_ok());
}

#[test]
fn gc_and_check_ask_the_agent() {
    let folder = tempfile::tempdir().unwrap();
    let collector = agent(&folder, "{}");
    let valid = json!({ "cni.dev/valid-attachments": [{ "containerID": "c1", "ifname": "eth0" }] });

    let collected = call("GC", &input(folder.path(), &valid));

    let (line, body) = collector.join().unwrap();
    assert_eq!(
        (line.as_str(), collected),
        ("POST /v1/cni/gc HTTP/1.1", Ok(Said::default()))
    );
    let expected =
        json!({ "network": "cbr0", "valid": [{ "container": "c1", "interface": "eth0" }] });
    assert_eq!(body, expected);

    let folder = tempfile::tempdir().unwrap();
    let checker = agent(&folder, r#"{"programmed":false,"reason":"conflict"}"#);
    let (error, _) = call("CHECK", &input(folder.path(), &json!({}))).unwrap_err();
    assert_eq!(checker.join().unwrap().0, "POST /v1/cni/check HTTP/1.1");
    assert_eq!(error, CniError::new(Code::NotProgrammed, LATE, "conflict"));
}

#[test]
fn gc_forgets_all_only_when_it_is_told_that_nothing_is_valid() {
    for more in [
        json!({ "cni.dev/valid-attachments": null }),
        json!({ "cni.dev/attachments": [] }),
    ] {
        let folder = tempfile::tempdir().unwrap();
        let collector = agent(&folder, "{}");

        let collected = call("GC", &input(folder.path(), &more));

        assert_eq!(collected, Ok(Said::default()));
        let (_, body) = collector.join().unwrap();
        assert_eq!(body, json!({ "network": "cbr0", "valid": [] }));
    }
    // Nobody serves the socket: it is not asked.
    let folder = tempfile::tempdir().unwrap();
    let untold = call("GC", &input(folder.path(), &json!({}))).unwrap();
    assert!(untold.remark.is_some(), "{untold:?}");
}

#[test]
fn verbs_are_refused_in_versions_that_do_not_have_them() {
    let folder = tempfile::tempdir().unwrap();
    for (verb, version) in [("STATUS", "1.0.0"), ("GC", "0.4.0"), ("CHECK", "0.3.1")] {
        let text = input(folder.path(), &json!({ "cniVersion": version }));

        let (error, _) = call(verb, &text).unwrap_err();

        assert_eq!(error.code, Code::IncompatibleVersion, "{verb}");
    }
}

#[test]
fn version_tells_what_is_supported() {
    let said = call("VERSION", r#"{"cniVersion":"0.4.0"}"#).unwrap();

    let found: Value = serde_json::from_str(&said.text).unwrap();
    let all = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"];
    assert_eq!(
        found,
        json!({ "cniVersion": "0.4.0", "supportedVersions": all })
    );
    assert!(call("VERSION", "").is_ok() && call("VERSION", r#"{"cniVersion":"9"}"#).is_ok());
    assert_eq!(call("VERSION", "{").unwrap_err().0.code, Code::Undecodable);
}

#[test]
fn a_verb_that_nobody_knows_is_an_error_of_the_environment() {
    for verb in ["", "add", "REMOVE"] {
        assert_eq!(call(verb, "{}").unwrap_err().0.code, Code::Environment);
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
        Just(json!("10.244.1.5/24")),
    ];
    leaf.prop_recursive(4, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::hash_map("[a-zA-Z]{1,8}", inner, 0..6)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

fn verb() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["ADD", "DEL", "CHECK", "STATUS", "GC", "VERSION"])
}

/// Every end is one that the specification knows; the agent is never there, and nobody waits for it.
fn is_sound(verb: &str, outcome: Outcome) -> bool {
    match outcome {
        Ok(said) => said.text.is_empty() || serde_json::from_str::<Value>(&said.text).is_ok(),
        Err((error, version)) => {
            let text: Value = serde_json::from_str(&error.to_json(version)).unwrap();
            verb != "DEL" && text["code"].is_u64() && text["msg"].is_string()
        }
    }
}

proptest! {
    #[test]
    fn hostile_input_never_panics(verb in verb(), bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let text = String::from_utf8_lossy(&bytes);
        prop_assert!(is_sound(verb, call(verb, &text)));
    }

    #[test]
    fn wrong_types_never_panic(
        verb in verb(),
        key in prop::sample::select(vec![
            "cniVersion", "name", "socket", "queue", "timeoutSeconds", "failurePolicy",
            "waitExemptNamespaces", "prevResult", "cni.dev/valid-attachments",
        ]),
        value in json_value(),
    ) {
        // Whatever is in it, nobody is asked: the socket cannot be one.
        let mut text = json!({
            "cniVersion": "1.1.0",
            "name": "cbr0",
            "socket": "/proc/self/status",
            "queue": "/proc/absent/queue",
            "waitExemptNamespaces": ["shop"],
            "failurePolicy": "closed",
            "timeoutSeconds": 1,
            "prevResult": result(),
            "cni.dev/valid-attachments": [],
        });
        text[key] = value;
        if text["socket"] != "/proc/self/status" || text["queue"] != "/proc/absent/queue" {
            text["timeoutSeconds"] = 0.into();
        }
        prop_assert!(is_sound(verb, call(verb, &text.to_string())));
    }
}
