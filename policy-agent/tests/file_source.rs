//! The file source on real directories: what it tells while files come, change, break and go.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use policy_agent::source::{Batch, Detail, FileSource, SourceState, WatchHandle, load};
use tempfile::TempDir;
use towpath_api::{Identity, Severity};
use towpath_core::model::{Object, Update};

/// Long enough for any machine; only a failing test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

fn pod(name: &str, version: u8) -> String {
    format!(
        "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}}}, status: {{podIP: 10.0.0.{version}}}}}\n"
    )
}

fn policy(name: &str, spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}}}, spec: {spec}}}\n"
    )
}

fn show(updates: &[Update]) -> Vec<String> {
    let show = |update: &Update| match update {
        Update::Upsert(Object::Policy(policy)) if policy.invalid.is_some() => {
            format!("~{}", policy.id.name)
        }
        Update::Upsert(object) => format!("+{}", name(&object.key())),
        Update::Remove(key) => format!("-{}", name(key)),
    };
    updates.iter().map(show).collect()
}

fn name(key: &towpath_core::model::ObjectKey) -> String {
    Identity::of(key)
        .and_then(|identity| identity.name)
        .expect("a name")
        .to_string()
}

/// A directory that is watched.
struct Watched {
    directory: TempDir,
    batches: Receiver<Batch>,
    // Dropped last: it ends the thread.
    _handle: WatchHandle,
}

impl Watched {
    /// Watches a directory with these files; tells the first batch.
    fn start(files: &[(&str, &str)]) -> (Self, Batch) {
        let directory = tempfile::tempdir().expect("a directory");
        for (name, text) in files {
            fs::write(directory.path().join(name), text).expect("a file");
        }
        let (sender, batches) = channel();
        let source = FileSource::open(directory.path(), Detail::Problems);
        let emit = move |batch| {
            // The receiver goes first when a test ends.
            let _ = sender.send(batch);
        };
        let handle = source.watch(emit).expect("a thread");
        let watched = Self {
            directory,
            batches,
            _handle: handle,
        };
        let first = watched.next();
        (watched, first)
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.directory.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("a file");
    }

    fn next(&self) -> Batch {
        self.batches.recv_timeout(PATIENCE).expect("a batch")
    }

    /// The updates up to and with the one that is waited for, each batch a list.
    fn until(&self, last: &str) -> Vec<Vec<String>> {
        let mut told = Vec::new();
        loop {
            let updates = show(&self.next().updates);
            let is_last = updates.iter().any(|update| update == last);
            if !updates.is_empty() {
                told.push(updates);
            }
            if is_last {
                return told;
            }
        }
    }

    fn until_state(&self, is_wanted: impl Fn(&SourceState) -> bool) -> Vec<String> {
        let mut told = Vec::new();
        loop {
            let batch = self.next();
            told.extend(show(&batch.updates));
            if is_wanted(&batch.state) {
                return told;
            }
        }
    }
}

#[test]
fn a_directory_is_read_once() {
    let directory = tempfile::tempdir().unwrap();
    fs::create_dir(directory.path().join("sub")).unwrap();
    for (name, text) in [
        ("b.yaml", pod("b", 1) + &policy("p", "{}")),
        (
            "sub/a.json",
            r#"{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}}"#.to_owned(),
        ),
        (
            "c.yml",
            pod("b", 2) + &policy("q", "{x: 1}") + &policy("r", "{ingress: []}"),
        ),
        ("readme.txt", "{".to_owned()),
        (".hidden.yaml", "{".to_owned()),
    ] {
        fs::write(directory.path().join(name), text).unwrap();
    }

    let loaded = load(directory.path(), Detail::Everything);

    assert_eq!(loaded.state, SourceState::InSync);
    assert_eq!(
        (
            loaded.cluster.endpoints.len(),
            loaded.cluster.policies.len()
        ),
        (2, 3)
    );
    let shown: Vec<_> = loaded
        .findings
        .iter()
        .map(|finding| {
            (
                finding.severity,
                finding.place.line,
                finding.object.as_deref().unwrap_or(""),
            )
        })
        .collect();
    assert_eq!(
        shown,
        [
            (Severity::Error, 2, "Pod default/b"),
            (Severity::Error, 4, "NetworkPolicy default/q"),
            (Severity::Note, 6, "NetworkPolicy default/r"),
        ]
    );
    let file = directory.path().join("c.yml");
    assert_eq!(
        loaded.findings[0].to_string(),
        format!(
            "{}:2: error: Pod default/b: the same object stands at {}:2, which is in force; remove one of the two, or give it another name",
            file.display(),
            directory.path().join("b.yaml").display()
        )
    );
    assert_eq!(
        serde_json::to_value(&loaded.findings[1]).unwrap(),
        serde_json::json!({
            "severity": "error",
            "file": file,
            "line": 4,
            "object": "NetworkPolicy default/q",
            "path": "spec.x",
            "message": "unknown field",
            "advice": "remove it; known here: podSelector, policyTypes, ingress, egress",
        })
    );
}

#[test]
fn many_files_on_several_threads_give_what_one_thread_gives() {
    let directory = tempfile::tempdir().unwrap();
    for number in 0..200 {
        let text = pod(&format!("x{}", number % 150), 1) + &policy(&format!("p{number}"), "{}");
        fs::write(directory.path().join(format!("{number:03}.yaml")), text).unwrap();
    }

    let loaded = load(directory.path(), Detail::Problems);

    assert_eq!(
        (
            loaded.cluster.endpoints.len(),
            loaded.cluster.policies.len()
        ),
        (150, 200)
    );
    assert_eq!(loaded.findings.len(), 50);
    assert!(
        loaded
            .findings
            .iter()
            .all(|finding| finding.place.file.contains("/1"))
    );
}

#[test]
fn a_directory_that_is_not_there_is_not_in_sync() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("gone");

    let loaded = load(&path, Detail::Problems);

    let reason = format!(
        "cannot read {}: No such file or directory (os error 2)",
        path.display()
    );
    assert_eq!(loaded.state, SourceState::NotInSync { reason });
}

#[test]
fn a_path_cannot_break_the_line_of_a_reason() {
    let loaded = load(Path::new("/nonexistent/a\n\u{1b}[2J"), Detail::Problems);

    let SourceState::NotInSync { reason } = loaded.state else {
        panic!("in sync")
    };
    assert!(!reason.contains(char::is_control), "{reason:?}");
    assert!(reason.contains(r"/nonexistent/a\n\u{1b}[2J"), "{reason}");
}

#[test]
fn a_file_too_large_is_refused_and_its_objects_kept() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("a.yaml");
    fs::write(&file, pod("a", 1)).unwrap();
    let mut source = FileSource::open(directory.path(), Detail::Problems);
    assert_eq!(show(&source.load().updates), ["+a"]);

    fs::write(&file, "# ".to_owned() + &"x".repeat(9 << 20)).unwrap();
    let batch = source.load();

    assert_eq!(show(&batch.updates), Vec::<String>::new());
    assert_eq!(
        batch.findings[0].to_string(),
        format!(
            "{}: error: it cannot be read: it has more than 8388608 bytes; split it over several files",
            file.display()
        )
    );
    // Policies may be in there.
    assert!(!batch.state.is_in_sync());
    assert!(!source.load().state.is_in_sync());
    fs::write(&file, pod("b", 1)).unwrap();
    let batch = source.load();
    assert_eq!(show(&batch.updates), ["-a", "+b"]);
    assert!(batch.state.is_in_sync());
}

#[test]
fn a_second_load_tells_changes_only() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("a.yaml"), pod("a", 1)).unwrap();
    let mut source = FileSource::open(directory.path(), Detail::Problems);
    source.load();

    assert_eq!(show(&source.load().updates), Vec::<String>::new());
    // The same size, and perhaps the same time stamp.
    fs::write(directory.path().join("a.yaml"), pod("a", 2)).unwrap();
    assert_eq!(show(&source.load().updates), ["+a"]);
}

#[test]
fn the_first_batch_is_the_whole_state() {
    let (_watched, first) =
        Watched::start(&[("a.yaml", &pod("a", 1)), ("b.yaml", &policy("p", "{x: 1}"))]);

    assert_eq!(show(&first.updates), ["+a", "~p"]);
    assert_eq!(
        (first.state, first.objects, first.files),
        (SourceState::InSync, 2, 2)
    );
    assert_eq!(first.findings.len(), 1);
}

#[test]
fn an_empty_directory_is_in_sync() {
    let (_watched, first) = Watched::start(&[]);

    assert_eq!((first.state, first.updates.len()), (SourceState::InSync, 0));
}

#[test]
fn files_come_change_and_go() {
    let (watched, _) = Watched::start(&[]);

    watched.write("a.yaml", &pod("a", 1));
    assert_eq!(watched.until("+a"), [["+a"]]);
    watched.write("a.yaml", &pod("a", 2));
    assert_eq!(watched.until("+a"), [["+a"]]);
    fs::remove_file(watched.path("a.yaml")).unwrap();
    assert_eq!(watched.until("-a"), [["-a"]]);
}

#[test]
fn a_batch_knows_when_its_event_came() {
    let (watched, first) = Watched::start(&[]);

    watched.write("a.yaml", &pod("a", 1));
    let batch = watched.next();

    assert!(batch.received > first.received);
}

#[test]
fn a_renamed_file_leaves_no_gap() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1))]);

    fs::rename(watched.path("a.yaml"), watched.path("b.yaml")).unwrap();
    watched.write("c.yaml", &pod("c", 1));

    assert_eq!(watched.until("+c"), [["+c"]]);
}

#[test]
fn a_file_that_is_moved_over_another_is_one_change() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1))]);

    watched.write(".a.yaml.swp", "{");
    watched.write("4913", "");
    watched.write(".a.yaml.new", &pod("a", 2));
    fs::rename(watched.path(".a.yaml.new"), watched.path("a.yaml")).unwrap();

    assert_eq!(watched.until("+a"), [["+a"]]);
}

#[test]
fn a_file_half_written_changes_nothing_until_it_is_whole() {
    use std::io::Write as _;
    let (watched, _) = Watched::start(&[("a.yaml", &(pod("a", 1) + &pod("b", 1)))]);

    // The writer keeps the file open while the source looks at it.
    let mut file = fs::File::create(watched.path("a.yaml")).unwrap();
    file.write_all(pod("a", 2).as_bytes()).unwrap();
    let half = watched.next();
    assert_eq!(show(&half.updates), Vec::<String>::new());
    assert_eq!(
        half.findings[0].to_string(),
        format!(
            "{}: error: the file is open for writing; what it held stays in force; close it: it is read then",
            watched.path("a.yaml").display()
        )
    );
    assert_eq!((half.objects, half.state), (2, SourceState::InSync));
    file.write_all(pod("c", 1).as_bytes()).unwrap();
    drop(file);

    let mut told = watched.until("+c").concat();
    told.sort();
    assert_eq!(told, ["+a", "+c", "-b"]);
}

#[test]
fn wherever_a_text_is_cut_nothing_changes_before_the_file_is_closed() {
    use std::io::Write as _;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a.yaml");
    // Block style: nearly every cut is a valid text.
    let text = "apiVersion: v1\nkind: Pod\nmetadata:\n  name: web\n  labels:\n    app: front\nstatus:\n  podIP: 10.0.0.1\n"
        .to_owned()
        + &policy("deny", "{podSelector: {}}");
    fs::write(&path, &text).unwrap();
    let mut source = FileSource::open(directory.path(), Detail::Problems);
    assert_eq!(show(&source.load().updates), ["+web", "+deny"]);

    for end in 0..text.len() {
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(&text.as_bytes()[..end]).unwrap();
        let batch = source.load();
        assert_eq!(show(&batch.updates), Vec::<String>::new(), "{end}");
        assert_eq!(batch.findings.len(), 1, "{end}");
        assert_eq!(batch.state, SourceState::InSync, "{end}");
        file.write_all(&text.as_bytes()[end..]).unwrap();
        drop(file);
        let batch = source.load();
        assert_eq!((batch.updates, batch.findings), (vec![], vec![]), "{end}");
    }
}

#[test]
fn a_file_that_is_being_written_at_the_start_is_waited_for() {
    use std::io::Write as _;
    let directory = tempfile::tempdir().unwrap();
    let mut file = fs::File::create(directory.path().join("a.yaml")).unwrap();
    file.write_all(pod("a", 1).as_bytes()).unwrap();
    let mut source = FileSource::open(directory.path(), Detail::Problems);

    let first = source.load();
    assert_eq!(show(&first.updates), Vec::<String>::new());
    assert!(!first.state.is_in_sync());
    drop(file);

    let second = source.load();
    assert_eq!(show(&second.updates), ["+a"]);
    assert_eq!(second.state, SourceState::InSync);
}

#[test]
fn a_file_that_was_opened_and_not_written_keeps_its_objects() {
    let (watched, _) = Watched::start(&[("a.yaml", &(pod("a", 1) + &policy("p", "{}")))]);

    // As a program does that is ended before it has written anything.
    fs::File::create(watched.path("a.yaml")).unwrap();
    let empty = watched.next();
    assert_eq!(show(&empty.updates), Vec::<String>::new());
    assert_eq!(
        empty.findings[0].to_string(),
        format!(
            "{}: error: the file is empty; what it held stays in force; write it whole, or remove it",
            watched.path("a.yaml").display()
        )
    );
    watched.write("a.yaml", &pod("a", 2));

    let told = watched.until("+a");
    assert_eq!(told, [["+a", "-p"]]);
    watched.write("b.yaml", "");
    watched.write("c.yaml", &pod("c", 1));
    watched.until("+c");
    fs::remove_file(watched.path("c.yaml")).unwrap();
    let (findings, objects) = loop {
        let batch = watched.next();
        if show(&batch.updates) == ["-c"] {
            break (batch.findings, batch.objects);
        }
    };
    assert_eq!((findings, objects), (Vec::new(), 1));
}

#[test]
fn what_a_link_leads_to_may_be_away_for_a_while() {
    let (watched, _) = Watched::start(&[("z.yaml", &pod("z", 1))]);
    let volume = tempfile::tempdir().unwrap();
    let (mounted, away) = (volume.path().join("mounted"), volume.path().join("away"));
    fs::create_dir(&mounted).unwrap();
    fs::write(mounted.join("a.yaml"), pod("a", 1)).unwrap();
    fs::write(mounted.join("b.yaml"), pod("b", 1)).unwrap();
    symlink(&mounted, watched.path("folder.d")).unwrap();
    symlink(mounted.join("b.yaml"), watched.path("b.yaml")).unwrap();
    watched.until("+b");

    fs::rename(&mounted, &away).unwrap();
    watched.write("z.yaml", &pod("z", 2));
    symlink("nowhere", watched.path("look")).unwrap();
    let told = watched.until_state(|state| !state.is_in_sync());
    assert!(told.iter().all(|update| update == "+z"), "{told:?}");
    fs::remove_file(watched.path("look")).unwrap();
    fs::rename(&away, &mounted).unwrap();

    let told = watched.until_state(SourceState::is_in_sync);
    assert!(told.iter().all(|update| update == "+z"), "{told:?}");
    fs::remove_file(watched.path("folder.d")).unwrap();
    assert!(watched.until("-a").concat().contains(&"-a".to_owned()));
}

#[test]
fn what_was_mounted_below_may_be_away_for_a_while() {
    let (watched, _) = Watched::start(&[("z.yaml", &pod("z", 1))]);
    let mounted = tempfile::tempdir().unwrap();
    // A link to another file system looks like a place at which nothing is mounted any more.
    let bare = tempfile::tempdir_in("/dev/shm").unwrap();
    fs::write(mounted.path().join("a.yaml"), pod("a", 1)).unwrap();
    let switch = |target: &Path| {
        symlink(target, watched.path(".next")).unwrap();
        fs::rename(watched.path(".next"), watched.path("volume")).unwrap();
    };
    switch(mounted.path());
    watched.until("+a");

    switch(bare.path());
    let told = watched.until_state(|state| {
        matches!(state, SourceState::NotInSync { reason } if reason.contains("another file system"))
    });
    assert_eq!(told, Vec::<String>::new());
    switch(mounted.path());

    let told = watched.until_state(SourceState::is_in_sync);
    assert_eq!(told, Vec::<String>::new());
    fs::remove_file(watched.path("volume")).unwrap();
    assert_eq!(watched.until("-a"), [["-a"]]);
}

#[test]
fn a_file_that_becomes_a_pipe_stays_in_force() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1))]);
    mkfifo(&watched.path(".pipe"), Mode::S_IRUSR).unwrap();

    fs::rename(watched.path(".pipe"), watched.path("a.yaml")).unwrap();
    let batch = loop {
        let batch = watched.next();
        assert_eq!(show(&batch.updates), Vec::<String>::new());
        if !batch.state.is_in_sync() {
            break batch;
        }
    };
    let expected = format!(
        "{}: error: it cannot be read: it is a named pipe, or a link to one; put a file of manifests there, or remove it or its name's ending",
        watched.path("a.yaml").display()
    );
    let findings: Vec<_> = batch.findings.iter().map(ToString::to_string).collect();
    assert_eq!(findings, [expected]);
    fs::remove_file(watched.path("a.yaml")).unwrap();

    assert_eq!(watched.until("-a"), [["-a"]]);
}

#[test]
fn a_broken_file_is_told_and_mended() {
    let (watched, _) = Watched::start(&[("a.yaml", &policy("p", "{}"))]);

    watched.write("a.yaml", &policy("p", "{podSelectr: {}}"));
    let broken = watched.next();
    assert_eq!(show(&broken.updates), Vec::<String>::new());
    assert_eq!(
        broken.findings[0].to_string(),
        format!(
            "{}:2: error: NetworkPolicy default/p: spec.podSelectr: unknown field; did you mean podSelector?",
            watched.path("a.yaml").display()
        )
    );
    watched.write("a.yaml", &policy("p", "{}"));
    let mended = watched.next();
    assert_eq!((mended.findings.len(), mended.updates.len()), (0, 0));
}

#[test]
fn new_directories_are_followed() {
    let (watched, _) = Watched::start(&[]);

    fs::create_dir_all(watched.path("x/y")).unwrap();
    watched.write("x/y/a.yaml", &pod("a", 1));
    assert_eq!(watched.until("+a"), [["+a"]]);
    watched.write("x/y/b.yaml", &pod("b", 1));
    assert_eq!(watched.until("+b"), [["+b"]]);
    fs::remove_dir_all(watched.path("x")).unwrap();
    watched.until("-b");
    fs::create_dir_all(watched.path("x/y")).unwrap();
    watched.write("x/y/c.yaml", &pod("c", 1));
    assert_eq!(watched.until("+c"), [["+c"]]);
}

/// Writes a version of a mounted `ConfigMap` and switches to it as the kubelet does.
fn mount(directory: &Path, version: &str, text: &str) {
    fs::create_dir(directory.join(version)).expect("a mount");
    fs::write(directory.join(version).join("a.yaml"), text).expect("a mount");
    symlink(version, directory.join("..data_tmp")).expect("a mount");
    fs::rename(directory.join("..data_tmp"), directory.join("..data")).expect("a mount");
}

#[test]
fn a_mounted_config_map_changes_as_a_whole() {
    let (watched, _) = Watched::start(&[]);
    mount(watched.directory.path(), "..2026_1", &pod("a", 1));
    symlink("..data/a.yaml", watched.path("a.yaml")).unwrap();
    watched.until("+a");

    mount(watched.directory.path(), "..2026_2", &pod("a", 2));
    fs::remove_dir_all(watched.path("..2026_1")).unwrap();

    assert_eq!(watched.until("+a"), [["+a"]]);
}

#[test]
fn a_directory_that_vanishes_keeps_everything_in_force() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1)), ("b.yaml", &pod("b", 1))]);
    let away = tempfile::tempdir().unwrap();
    let elsewhere = away.path().join("moved");

    fs::rename(watched.directory.path(), &elsewhere).unwrap();
    let told = watched.until_state(|state| !state.is_in_sync());
    assert_eq!(told, Vec::<String>::new());
    fs::write(elsewhere.join("a.yaml"), pod("a", 2)).unwrap();
    fs::remove_file(elsewhere.join("b.yaml")).unwrap();
    fs::rename(&elsewhere, watched.directory.path()).unwrap();

    assert_eq!(watched.until_state(SourceState::is_in_sync), ["+a"]);
    assert_eq!(watched.until("-b"), [["-b"]]);
    watched.write("c.yaml", &pod("c", 1));
    assert_eq!(watched.until("+c"), [["+c"]]);
}

#[test]
fn an_empty_directory_in_the_place_of_a_full_one_is_no_removal() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1)), ("b.yaml", &pod("b", 1))]);
    let away = tempfile::tempdir().unwrap();

    // As when what was mounted there is unmounted.
    fs::rename(watched.directory.path(), away.path().join("moved")).unwrap();
    fs::create_dir(watched.directory.path()).unwrap();
    let told = watched.until_state(|state| {
        matches!(state, SourceState::NotInSync { reason } if reason.contains("another directory"))
    });
    assert_eq!(told, Vec::<String>::new());
    watched.write("a.yaml", &pod("a", 1));

    let told = watched.until_state(SourceState::is_in_sync);
    assert_eq!(told, Vec::<String>::new());
    assert_eq!(watched.until("-b"), [["-b"]]);
}

#[test]
fn links_in_a_circle_end() {
    let (watched, _) = Watched::start(&[("a.yaml", &pod("a", 1))]);

    symlink(watched.directory.path(), watched.path("loop")).unwrap();
    watched.write("b.yaml", &pod("b", 1));

    assert_eq!(watched.until("+b"), [["+b"]]);
}

#[test]
fn a_namespace_outlives_its_file_until_its_last_pod_is_gone() {
    let namespace = "{apiVersion: v1, kind: Namespace, metadata: {name: default}}";
    let (watched, _) = Watched::start(&[
        ("namespace.yaml", namespace),
        ("a.yaml", &pod("a", 1)),
        ("b.yaml", &pod("b", 2)),
    ]);

    for name in ["namespace.yaml", "a.yaml"] {
        fs::remove_file(watched.path(name)).unwrap();
    }
    let first = watched.until("-a");
    fs::remove_file(watched.path("b.yaml")).unwrap();
    let last = watched.until("-default");

    assert_eq!(first, [["-a"]]);
    assert_eq!(last, [["-b", "-default"]]);
}
