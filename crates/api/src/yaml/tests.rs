//! Texts in, trees and messages out.

use std::fmt::Write as _;

use proptest::prelude::*;

use super::*;

/// The tree as compact text: plain scalars bare, others quoted, broken ones with `...`.
fn show(value: &Value<'_>) -> String {
    let end = if value.is_broken { "..." } else { "" };
    match &value.content {
        Content::Scalar {
            text,
            is_plain: true,
        } => text.to_string(),
        Content::Scalar {
            text,
            is_plain: false,
        } => format!("{text:?}"),
        Content::List(items) => {
            format!(
                "[{}{end}]",
                items.iter().map(show).collect::<Vec<_>>().join(" ")
            )
        }
        Content::Map(entries) => {
            let mut out = String::new();
            for (key, value) in entries {
                write!(out, "{key}={} ", show(value)).unwrap();
            }
            format!("{{{}{end}}}", out.trim_end())
        }
        Content::Skipped => "skipped".to_owned(),
    }
}

fn good(text: &str) -> String {
    let parsed = parse(text, 1);
    assert_eq!(parsed.error, None, "{text}");
    parsed.value.as_ref().map_or_else(String::new, show)
}

fn bad(text: &str) -> (String, String) {
    let parsed = parse(text, 1);
    let error = parsed.error.expect("an error");
    let tree = parsed.value.as_ref().map_or_else(String::new, show);
    (
        tree,
        format!(
            "{}: {}; {}",
            error.line, error.complaint.message, error.complaint.advice
        ),
    )
}

#[test]
fn keeps_spelling_and_quotes() {
    assert_eq!(
        good("a: 1.10\nb: \"1.10\"\nc: [~, yes]"),
        r#"{a=1.10 b="1.10" c=[~ yes]}"#
    );
    assert_eq!(
        good("a: !!str 8080\nb: !!int \"80\"\nc: ! 7"),
        r#"{a="8080" b=80 c="7"}"#
    );
}

#[test]
fn reads_json_with_tabs_and_escapes() {
    let text =
        "{\n\t\"a\": [1, true, null, \"x\\/y\\u00e9\\ud83d\\ude00\"],\n\t\"b\": {\"c\":\"d\"}\n}\n";

    assert_eq!(good(text), "{a=[1 true null \"x/yé😀\"] b={c=\"d\"}}");
}

#[test]
fn knows_lines() {
    let parsed = parse("a:\n  - x\n  - y:\n      z: 1\n", 10);

    let value = parsed.value.unwrap();
    let Content::List(items) = &value.get("a").unwrap().content else {
        panic!("no list")
    };
    assert_eq!(items[0].line, 11);
    assert_eq!(items[1].get("y").unwrap().get("z").unwrap().line, 13);
}

#[test]
fn merges_maps_as_kubectl_does() {
    let text = "base: &b {x: 1, y: 2}\nother: {<<: *b, y: 3}\nlist: {<<: [*b, {z: 4}], x: 5}";

    assert_eq!(
        good(text),
        "{base={x=1 y=2} other={y=3 x=1} list={x=5 y=2 z=4}}"
    );
}

#[test]
fn keeps_what_was_read_before_an_error() {
    let (tree, message) = bad("kind: NetworkPolicy\nspec:\n  podSelector: {}\n  ingress: [\n");

    assert_eq!(
        tree,
        "{kind=NetworkPolicy spec={podSelector={} ingress=[...]...}...}"
    );
    assert!(message.contains("not valid YAML: "), "{message}");
}

#[test]
fn repeated_keys_break_their_map_only() {
    assert_eq!(
        bad("kind: Pod\nspec:\n  a: 1\n  b: 2\n  a: 3\n"),
        (
            "{kind=Pod spec={b=2...}...}".to_owned(),
            "6: the key \"a\" stands twice in one map, first on line 3; remove one of the two"
                .to_owned()
        )
    );
}

#[test]
fn refuses_what_has_no_meaning() {
    for (text, expected) in [
        (
            "? [a]\n: b",
            "1: a key is a list or a map; keys are texts; put text of templates like {{ }} in quotes",
        ),
        (
            "a: {{ .Values.x }}",
            "1: a key is a list or a map; keys are texts; put text of templates like {{ }} in quotes",
        ),
        (
            "a: !secret b",
            "1: the tag \"!secret\" has no meaning here; remove it; if the text begins with '!', put it in quotes",
        ),
        (
            "a: !!binary aGk=",
            "1: the tag \"!!binary\" has no meaning here; remove it; if the text begins with '!', put it in quotes",
        ),
        (
            "a: &x [*x]",
            "1: an alias refers to the value that it stands in; write the value out",
        ),
        (
            "{a: 1}\n--- \n{b: 2}",
            "2: a second document begins here; put a line '---' between two documents",
        ),
        (
            "<<: 1",
            "1: a merge key (<<) needs a map or a list of maps; merge a map, or quote the key",
        ),
    ] {
        assert_eq!(bad(text).1, expected, "{text}");
    }
}

#[test]
fn alias_bombs_are_refused() {
    let mut text = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n".to_owned();
    for level in 1..12 {
        let inner = vec![format!("*a{}", level - 1); 9].join(", ");
        writeln!(text, "a{level}: &a{level} [{inner}]").unwrap();
    }

    let (_, message) = bad(&text);

    assert!(
        message.contains("the document has more than 400000 values"),
        "{message}"
    );
}

#[test]
fn aliases_of_a_long_text_are_refused() {
    let text = format!(
        "a: &a \"\\t{}\"\nb: [{}]\n",
        "x".repeat(100_000),
        "*a, ".repeat(100)
    );

    assert!(
        bad(&text)
            .1
            .contains("aliases repeat more than 1048576 bytes")
    );
}

#[test]
fn deep_nesting_is_refused() {
    for text in ["[".repeat(100_000), "- ".repeat(10_000), "{a: ".repeat(500)] {
        assert!(parse(&text, 1).error.is_some(), "{text:.20}");
    }
    let message = bad(&format!("{}x", "- ".repeat(65))).1;
    assert!(message.contains("nested more than 64 deep"), "{message}");
}

#[test]
fn too_large_documents_are_refused_by_size() {
    let text = format!("a: {}", "x".repeat(limits::DOCUMENT_BYTES));

    assert!(
        bad(&text)
            .1
            .starts_with("1: the document has 4194307 bytes, more than 4194304")
    );
}

proptest! {
    #[test]
    fn any_text_is_taken_or_refused(text in "(?s)[-\\[\\]{}:, \n&*!a<>|'\"%#?~\t]{0,60}|.{0,60}") {
        let _ = parse(&text, 1);
    }
}
