use super::*;

fn clock(now: Instant, wall: u64) -> Clock {
    Clock { now, wall }
}

fn opening(scope: BypassScope, seconds: u64) -> Opening {
    Opening {
        scope,
        seconds,
        reason: "the shop is down".to_owned(),
    }
}

fn pod(namespace: &str, name: &str) -> BypassScope {
    BypassScope::Pod {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn namespace(name: &str) -> BypassScope {
    BypassScope::Namespace {
        namespace: name.to_owned(),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn book() -> Book {
    let owner = |namespace: &str, name: &str| Owner {
        namespace: namespace.into(),
        name: name.into(),
    };
    [
        (ip("10.244.1.2"), owner("shop", "web")),
        (ip("10.244.1.3"), owner("shop", "db")),
        (ip("fd00::3"), owner("shop", "db")),
        (ip("10.244.1.4"), owner("bank", "db")),
    ]
    .into()
}

#[test]
fn opens_what_the_scopes_say_until_the_latest_end() {
    let now = Instant::now();
    let after = |seconds| now + Duration::from_secs(seconds);
    let mut bypasses = Bypasses::default();
    for (scope, seconds) in [
        (namespace("shop"), 60),
        (pod("shop", "db"), 90),
        (
            BypassScope::Address {
                address: ip("10.9.9.9"),
            },
            30,
        ),
        (pod("bank", "gone"), 30),
    ] {
        bypasses
            .open(opening(scope, seconds), clock(now, 1_000))
            .unwrap();
    }

    let bypassed = bypasses.bypassed(&book());

    let expected = Bypassed {
        node: None,
        addresses: [
            (ip("10.244.1.2"), after(60)),
            (ip("10.244.1.3"), after(90)),
            (ip("fd00::3"), after(90)),
            (ip("10.9.9.9"), after(30)),
        ]
        .into(),
    };
    assert_eq!(bypassed, expected);
}

#[test]
fn the_same_scope_is_open_once_and_ends_when_it_is_over() {
    let now = Instant::now();
    let mut bypasses = Bypasses::default();
    for seconds in [600, 60] {
        bypasses
            .open(opening(BypassScope::Node, seconds), clock(now, 1_000))
            .unwrap();
    }
    bypasses
        .open(opening(namespace("shop"), 61), clock(now, 1_000))
        .unwrap();

    let early = bypasses.expire(now + Duration::from_secs(59));
    let late = bypasses.expire(now + Duration::from_mins(1));

    assert_eq!(early, []);
    assert_eq!(late.len(), 1);
    assert_eq!((late[0].begun, late[0].until), (1_000, 1_060));
    assert_eq!(bypasses.iter().count(), 1);
    assert_eq!(bypasses.close(Some(&BypassScope::Node)), []);
    assert_eq!(bypasses.close(None).len(), 1);
    assert!(bypasses.is_empty());
}

#[test]
fn a_file_gives_back_what_is_left() {
    let directory = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut bypasses = Bypasses::default();
    bypasses
        .open(opening(BypassScope::Node, 600), clock(now, 1_000))
        .unwrap();
    bypasses.store(directory.path()).unwrap();
    store_book(directory.path(), &book()).unwrap();
    let left = |wall| {
        let loaded = Bypasses::load(directory.path(), clock(now, wall)).unwrap();
        loaded
            .bypassed(&Book::new())
            .node
            .map(|ends| ends.duration_since(now).as_secs())
    };

    assert_eq!(left(1_100), Some(500));
    assert_eq!(left(5_000), Some(0));
    // A clock that was set back.
    assert_eq!(left(10), Some(600));
    assert_eq!(load_book(directory.path()).unwrap(), book());
    bypasses.close(None);
    bypasses.store(directory.path()).unwrap();
    assert_eq!(left(1_100), None);
}

#[test]
fn starts_on_a_clock_that_was_set_back_add_no_time() {
    let directory = tempfile::tempdir().unwrap();
    let now = Instant::now();
    let mut bypasses = Bypasses::default();
    bypasses
        .open(opening(BypassScope::Node, 600), clock(now, 100_000))
        .unwrap();
    bypasses.store(directory.path()).unwrap();
    let left = |wall| {
        let loaded = Bypasses::load(directory.path(), clock(now, wall)).unwrap();
        loaded.store(directory.path()).unwrap();
        let ends = loaded.bypassed(&Book::new()).node.unwrap();
        ends.duration_since(now).as_secs()
    };

    assert_eq!(
        [left(10), left(310), left(609), left(611)],
        [600, 300, 1, 0]
    );
}

#[test]
fn a_file_that_is_not_ours_opens_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let clock = clock(Instant::now(), 1_000);
    for text in ["", "{}", "[{}]", "[{\"scope\":{\"kind\":\"cluster\"}}]"] {
        fs::write(directory.path().join(BYPASSES), text).unwrap();

        assert!(Bypasses::load(directory.path(), clock).is_err(), "{text}");
    }
}

#[test]
fn refuses_what_has_no_bounds_or_no_reason() {
    let long = "x".repeat(300);
    let because = |reason: &str| Opening {
        reason: reason.to_owned(),
        ..opening(BypassScope::Node, 60)
    };
    let bad = [
        opening(BypassScope::Node, 0),
        opening(BypassScope::Node, 86_401),
        opening(namespace(""), 60),
        opening(namespace("a b"), 60),
        opening(pod("shop", &long), 60),
        because(""),
        because(" "),
        because("two\nlines"),
        because(&long),
    ];

    for opening in bad {
        assert!(opening.check().is_err(), "{opening:?}");
    }
    assert_eq!(opening(pod("shop", "web"), 86_400).check(), Ok(()));
}

#[test]
fn there_is_a_limit() {
    let clock = clock(Instant::now(), 0);
    let mut bypasses = Bypasses::default();
    for number in 0..MOST_BYPASSES {
        let scope = namespace(&number.to_string());
        bypasses.open(opening(scope, 60), clock).unwrap();
    }

    assert!(bypasses.open(opening(namespace("one"), 60), clock).is_err());
    assert!(bypasses.open(opening(namespace("0"), 60), clock).is_ok());
}
