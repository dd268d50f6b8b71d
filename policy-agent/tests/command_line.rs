//! The program as its users run it: exit status, standard output, standard error. No kernel, no agent.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use assert_cmd::Command;
use serde_json::Value;
use tempfile::TempDir;

const BASE: &str = r"
apiVersion: v1
kind: Namespace
metadata: { name: shop }
---
apiVersion: v1
kind: Pod
metadata: { name: web, namespace: shop, labels: { app: web } }
spec: { nodeName: node-a, containers: [ { name: c, image: i } ] }
status: { podIP: 10.0.0.1 }
---
apiVersion: v1
kind: Pod
metadata: { name: db, namespace: shop, labels: { app: db } }
spec: { nodeName: node-a, containers: [ { name: c, image: i, ports: [ { containerPort: 5432 } ] } ] }
status: { podIP: 10.0.0.2 }
";

const CLOSED: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: closed, namespace: shop }
spec: { podSelector: {} }
";

const BROKEN: &str = r"
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: { name: broken, namespace: shop }
spec:
  podSelector: {}
  ingres: []
";

fn directory(files: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in files {
        fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn source(directory: &TempDir) -> String {
    format!("file:{}", directory.path().display())
}

fn towpath(arguments: &[&str]) -> Command {
    let mut command = Command::cargo_bin("towpath").unwrap();
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TOWPATH_") {
            command.env_remove(name);
        }
    }
    command
        .args(arguments)
        .timeout(std::time::Duration::from_mins(1));
    command
}

/// Exit status, JSON on standard output, standard error.
fn run(arguments: &[&str]) -> (i32, Value, String) {
    let output = towpath(arguments).output().unwrap();
    let value = serde_json::from_slice(&output.stdout).unwrap_or(Value::Null);
    let remarks = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), value, remarks)
}

#[test]
fn simulate_prints_the_matrix() {
    let base = directory(&[("base.yaml", BASE)]);

    let (status, rows, _) = run(&["simulate", "--source", &source(&base), "-o", "json"]);

    assert_eq!(status, 0);
    let row = &rows.as_array().unwrap()[0];
    assert_eq!(rows.as_array().unwrap().len(), 1);
    assert_eq!(
        (&row["from"], &row["to"]),
        (&"shop/web".into(), &"shop/db".into())
    );
    assert_eq!(
        (&row["port"], &row["protocol"]),
        (&5432.into(), &"tcp".into())
    );
    assert_eq!(row["verdict"], "allow");
}

#[test]
fn simulate_with_a_change_exits_with_one_if_a_verdict_changes() {
    let base = directory(&[("base.yaml", BASE)]);
    let closed = directory(&[("closed.yaml", CLOSED)]);
    let empty = directory(&[]);
    let with = |change: &TempDir| {
        let change = change.path().to_str().unwrap().to_owned();
        run(&[
            "simulate",
            "--source",
            &source(&base),
            "--with",
            &change,
            "-o",
            "json",
        ])
    };

    let (status, rows, _) = with(&closed);
    assert_eq!((status, rows.as_array().unwrap().len()), (1, 1));
    assert_eq!(
        (&rows[0]["before"], &rows[0]["verdict"]),
        (&"allow".into(), &"deny".into())
    );

    let (status, rows, _) = with(&empty);
    assert_eq!((status, rows), (0, Value::Array(Vec::new())));
}

#[test]
fn simulate_with_errors_on_one_side_exits_with_one() {
    let good = directory(&[("base.yaml", BASE), ("closed.yaml", CLOSED)]);
    let bad = directory(&[
        ("base.yaml", BASE),
        ("closed.yaml", CLOSED),
        ("broken.yaml", BROKEN),
    ]);
    // A stand-in closes what is closed already, so no verdict changes.
    for (source_of, with) in [(&good, &bad), (&bad, &good)] {
        let (status, rows, remarks) = run(&[
            "simulate",
            "--source",
            &source(source_of),
            "--with",
            &source(with),
            "-o",
            "json",
        ]);

        let expected = format!("{} has errors", source(&bad));
        assert_eq!((status, rows), (1, Value::Array(Vec::new())), "{remarks}");
        assert!(remarks.contains(&expected), "{remarks}");
    }

    let (status, _, remarks) = run(&["simulate", "--source", &source(&bad), "-o", "json"]);
    assert_eq!(status, 0, "{remarks}");
    assert!(remarks.contains("broken.yaml"), "{remarks}");
}

#[test]
fn a_whole_second_directory_shows_what_its_missing_policies_open() {
    let closed = directory(&[("base.yaml", BASE), ("closed.yaml", CLOSED)]);
    let open = directory(&[("base.yaml", BASE)]);
    let change = source(&open);

    let (status, rows, remarks) = run(&[
        "simulate",
        "--source",
        &source(&closed),
        "--with",
        &change,
        "-o",
        "json",
    ]);

    assert_eq!(status, 1);
    assert_eq!(
        (&rows[0]["before"], &rows[0]["verdict"]),
        (&"deny".into(), &"allow".into())
    );
    assert!(remarks.contains("compared as a whole"), "{remarks}");
}

#[test]
fn explain_answers_and_says_what_is_wrong_with_other_manifests() {
    let broken = directory(&[("base.yaml", BASE), ("broken.yaml", BROKEN)]);

    let (status, answer, remarks) = run(&[
        "explain",
        "--source",
        &source(&broken),
        "--from",
        "shop/web",
        "--to",
        "shop/db",
        "--port",
        "5432/tcp",
        "-o",
        "json",
    ]);

    // The policy is not in force as written, so its subject is closed.
    assert_eq!((status, &answer["verdict"]), (0, &"deny".into()));
    assert!(remarks.contains("broken.yaml:"), "{remarks}");
    assert!(remarks.contains("ingres"), "{remarks}");
}

#[test]
fn lint_exits_with_one_if_there_is_an_error() {
    let good = directory(&[("base.yaml", BASE)]);
    let broken = directory(&[("base.yaml", BASE), ("broken.yaml", BROKEN)]);
    let lint =
        |directory: &TempDir| run(&["lint", directory.path().to_str().unwrap(), "-o", "json"]);

    let (status, findings, _) = lint(&good);
    let errors = |findings: &Value| {
        let findings = findings.as_array().unwrap().iter();
        findings
            .filter(|finding| finding["severity"] == "error")
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!((status, errors(&findings)), (0, Vec::new()));

    let (status, findings, _) = lint(&broken);
    let errors = errors(&findings);
    assert_eq!(status, 1);
    assert!(
        errors[0]["file"].as_str().unwrap().ends_with("broken.yaml"),
        "{errors:?}"
    );
}

#[test]
fn lint_tells_rules_whose_policy_type_is_not_named() {
    let policy = |types: &str, rules: &str| {
        let text = format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: p, namespace: shop }}\nspec:\n  podSelector: {{}}\n  policyTypes: [{types}]\n  {rules}: [{{}}]\n"
        );
        let directory = directory(&[("base.yaml", BASE), ("p.yaml", &text)]);
        run(&["lint", directory.path().to_str().unwrap(), "-o", "json"])
    };

    for (types, rules, missing) in [
        ("Ingress", "egress", "Egress"),
        ("Egress", "ingress", "Ingress"),
    ] {
        let (status, findings, _) = policy(types, rules);

        let finding = &findings[0];
        assert_eq!(
            (status, findings.as_array().unwrap().len()),
            (0, 1),
            "{findings}"
        );
        assert_eq!(finding["severity"], "warning");
        assert_eq!(
            (&finding["object"], &finding["line"]),
            (&"NetworkPolicy shop/p".into(), &7.into())
        );
        let message = format!(
            "the {rules} rules have no effect, because policyTypes does not name {missing}"
        );
        let advice = format!("add {missing} to policyTypes, or remove the rules");
        assert_eq!(
            (&finding["message"], &finding["advice"]),
            (&message.into(), &advice.into())
        );
    }
    let (status, findings, _) = policy("Ingress, Egress", "egress");
    assert_eq!((status, findings), (0, Value::Array(Vec::new())));
}

#[test]
fn lint_names_what_it_ignores() {
    let other = "apiVersion: v1\nkind: Namepsaces\nmetadata: { name: shop }\n";
    let directory = directory(&[("base.yaml", BASE), ("other.yaml", other)]);

    let (status, findings, _) = run(&["lint", directory.path().to_str().unwrap(), "-o", "json"]);

    let notes: Vec<_> = findings.as_array().unwrap().iter().collect();
    assert_eq!((status, notes.len()), (0, 1), "{findings}");
    assert_eq!(
        (&notes[0]["severity"], &notes[0]["message"]),
        (
            &Value::from("note"),
            &Value::from("policy does not depend on Namepsaces, so it is ignored")
        )
    );
}

#[test]
fn render_prints_what_nft_would_load() {
    let closed = directory(&[("base.yaml", BASE), ("closed.yaml", CLOSED)]);

    let output = towpath(&["render", "--source", &source(&closed), "--node", "node-a"])
        .output()
        .unwrap();

    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success());
    assert!(text.contains("table inet towpath"), "{text}");
    assert!(text.contains("10.0.0.2"), "{text}");
    assert_eq!(String::from_utf8(output.stderr).unwrap(), "");

    let (status, _, remarks) = run(&["render", "--source", &source(&closed), "--node", "nod-a"]);

    let expected = "towpath: no manifest speaks of node \"nod-a\"; check --node\n";
    assert_eq!((status, remarks.as_str()), (0, expected));
}

#[test]
fn wrong_usage_exits_with_two() {
    let base = directory(&[("base.yaml", BASE)]);
    let source = source(&base);
    let cases: [&[&str]; 6] = [
        &["frobnicate"],
        &["explain", "--source", &source],
        &[
            "explain", "--source", "shop", "--from", "a/b", "--to", "a/b", "--port", "80",
        ],
        &[
            "explain", "--source", &source, "--from", "web", "--to", "shop/db", "--port", "80",
        ],
        &["agent", "--config", "/nonexistent/agent.yaml"],
        &["uninstall", "--state-dir", "/nonexistent/state"],
    ];
    for arguments in cases {
        let (status, _, remarks) = run(arguments);

        assert_eq!(status, 2, "{arguments:?}: {remarks}");
    }
}

#[test]
fn a_directory_that_is_not_there_is_told_with_what_to_do() {
    const SOURCE: &str = "file:/nonexistent/manifests";
    let ends = ["--from", "a/b", "--to", "a/c", "--port", "80"];
    let cases: [&[&str]; 5] = [
        &["lint", "/nonexistent/manifests"],
        &["lint", "/nonexistent/manifests", "-o", "json"],
        &["simulate", "--source", SOURCE],
        &["render", "--source", SOURCE, "--node", "n"],
        &["explain", "--source", SOURCE],
    ];
    for arguments in cases {
        let mut arguments = arguments.to_vec();
        if arguments[0] == "explain" {
            arguments.extend(ends);
        }

        let output = towpath(&arguments).output().unwrap();

        let remarks = String::from_utf8(output.stderr).unwrap();
        let expected = "towpath: cannot read manifests of /nonexistent/manifests: it does not exist; correct the path, make the directory, or mount what holds it\n";
        assert_eq!(remarks, expected, "{arguments:?}");
        assert_eq!(output.status.code(), Some(1));
        assert_eq!(String::from_utf8(output.stdout).unwrap(), "");
    }
}

#[test]
fn lint_tells_what_is_no_file() {
    let directory = directory(&[("base.yaml", BASE)]);
    let path = |name: &str| directory.path().join(name);
    symlink("nowhere", path("link.yaml")).unwrap();
    symlink("/dev/zero", path("zero.yaml")).unwrap();
    let lint = |path: &Path| run(&["lint", path.to_str().unwrap(), "-o", "json"]);

    let (status, findings, remarks) = lint(directory.path());

    let found: Vec<_> = findings.as_array().unwrap().iter().collect();
    assert_eq!((status, found.len()), (1, 2), "{findings}");
    for (finding, name, message, advice) in [
        (
            found[0],
            "link.yaml",
            "it cannot be read: the link leads nowhere",
            "bring back what it leads to, or remove the link",
        ),
        (
            found[1],
            "zero.yaml",
            "it cannot be read: it is a device, or a link to one",
            "put a file of manifests there, or remove it or its name's ending",
        ),
    ] {
        assert_eq!(finding["file"], path(name).to_str().unwrap());
        assert_eq!(finding["severity"], "error");
        assert_eq!(
            (&finding["message"], &finding["advice"]),
            (&message.into(), &advice.into())
        );
    }
    assert!(
        remarks.contains("not everything was looked at"),
        "{remarks}"
    );
    // The same as the argument itself.
    for (name, told) in [
        ("link.yaml", "leads nowhere"),
        ("zero.yaml", "neither a directory nor a file"),
    ] {
        let (status, findings, remarks) = lint(&path(name));

        assert_eq!((status, findings), (1, Value::Null));
        assert!(remarks.contains(told), "{remarks}");
    }
}

#[test]
fn all_faults_of_a_configuration_are_printed() {
    let directory = directory(&[("agent.yaml", "nod: x\nnflogGroup: -1\n")]);
    let file = directory.path().join("agent.yaml");

    let (status, _, remarks) = run(&["agent", "--config", file.to_str().unwrap()]);

    assert_eq!(status, 2);
    for place in ["agent.yaml:1:1", "agent.yaml:2:1", "--node", "--source"] {
        assert!(remarks.contains(place), "{place} is missing in {remarks}");
    }
}

#[test]
fn every_key_of_the_configuration_is_documented() {
    let directory = directory(&[("agent.yaml", "frobnicate: x\n")]);
    let file = directory.path().join("agent.yaml");
    let guide = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/command-line.md");
    let guide = fs::read_to_string(guide).unwrap();

    let (_, _, remarks) = run(&["agent", "--config", file.to_str().unwrap()]);

    let (_, keys) = remarks.split_once("the keys are ").unwrap();
    let keys = keys.lines().next().unwrap().split(", ");
    let missing: Vec<_> = keys
        .filter(|key| !guide.contains(&format!("\n{key}: ")))
        .collect();
    assert_eq!(missing, Vec::<&str>::new());
}

#[test]
fn status_without_an_agent_says_so() {
    let directory = directory(&[]);
    let socket = directory.path().join("towpath.sock");

    let (status, _, remarks) = run(&["status", "--socket", socket.to_str().unwrap()]);

    assert_eq!(status, 1);
    assert!(remarks.contains("cannot reach the agent"), "{remarks}");
}

#[test]
fn completions_and_the_manual_know_the_commands() {
    for arguments in [&["completions", "bash"][..], &["man"]] {
        let output = towpath(arguments).output().unwrap();

        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success());
        assert!(text.contains("simulate"), "{arguments:?}");
    }
}

#[test]
fn a_reader_that_has_gone_is_no_error() {
    let base = directory(&[("base.yaml", BASE)]);
    let program = assert_cmd::cargo::cargo_bin("towpath");
    let pipeline = format!(
        "set -o pipefail; {} simulate --source {} | true",
        program.display(),
        source(&base)
    );
    assert!(Path::new("/bin/bash").exists(), "the test needs bash");

    let status = std::process::Command::new("/bin/bash")
        .args(["-c", &pipeline])
        .status()
        .unwrap();

    assert!(status.success());
}

#[test]
fn lint_takes_one_file_of_any_name() {
    let directory = directory(&[("base.yaml", BASE), ("broken.txt", BROKEN)]);
    let lint = |name: &str| {
        let file = directory.path().join(name);
        run(&["lint", file.to_str().unwrap(), "-o", "json"])
    };

    let (good, _, remarks) = lint("base.yaml");
    let (broken, findings, _) = lint("broken.txt");
    let (absent, _, reason) = lint("absent.yaml");

    assert_eq!((good, broken, absent), (0, 1, 1), "{remarks}{reason}");
    let errors: Vec<_> = findings
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["severity"] == "error")
        .collect();
    assert!(
        errors[0]["file"].as_str().unwrap().ends_with("broken.txt"),
        "{findings}"
    );
    assert!(reason.contains("absent.yaml"), "{reason}");
}
