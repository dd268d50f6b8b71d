//! A survey of a network namespace of the test's own.

use std::fs::{self, File};
use std::io::Write as _;
use std::process::{Command, Stdio};

use flannel_adapter::detect::{ObstacleKind, detect, read_conflists, survey};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::geteuid;
use towpath_dataplane::link::Scanner;

fn skip(name: &str, feature: &str, why: &str) {
    eprintln!("SKIP[detect] {name}: {feature}: {why}");
    if let Some(path) = std::env::var_os("TOWPATH_SKIP_LOG") {
        let mut file = File::options()
            .create(true)
            .append(true)
            .open(path)
            .unwrap();
        writeln!(file, "detect\t{name}\t{feature}\t{why}").unwrap();
    }
}

fn run(program: &str, words: &str) -> bool {
    let mut command = Command::new(program);
    command.args(words.split(' ')).stderr(Stdio::null());
    command.status().unwrap().success()
}

/// What `detect` says of this thread's network namespace.
fn found() -> Vec<ObstacleKind> {
    let mut scanner = Scanner::open().unwrap();
    let snapshot = scanner.discover().unwrap();
    let survey = survey(&mut scanner, &snapshot, None, |table| table == "towpath").unwrap();
    detect(&survey)
        .obstacles
        .iter()
        .map(|obstacle| obstacle.kind)
        .collect()
}

#[test]
fn obstacles_are_seen_in_the_kernel_and_go_when_they_go() {
    if !geteuid().is_root() {
        return skip("obstacles", "root", "needs root");
    }
    let work = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        assert!(run("ip", "link add cni0 type bridge"));
        assert_eq!(found(), []);

        assert!(run("ip", "link add kube-ipvs0 type bridge"));
        assert_eq!(found(), [ObstacleKind::Ipvs]);
        assert!(run("ip", "link del kube-ipvs0"));

        let table = |name: &str| {
            let text = format!(
                "table inet {name} {{\n flowtable ft {{\n hook ingress priority 0\n devices = {{ cni0 }}\n }}\n}}\n"
            );
            let mut nft = Command::new("nft")
                .args(["-f", "-"])
                .stdin(Stdio::piped())
                .spawn()
                .unwrap();
            nft.stdin
                .take()
                .unwrap()
                .write_all(text.as_bytes())
                .unwrap();
            nft.wait().unwrap().success()
        };
        if !table("towpath") {
            return skip("obstacles", "nft-flowtables", "the kernel lacks them");
        }
        assert_eq!(found(), [], "our own table");
        assert!(table("fast"));
        assert_eq!(found(), [ObstacleKind::Flowtable]);
    });
    if let Err(panic) = work.join() {
        std::panic::resume_unwind(panic);
    }
}

#[test]
fn a_folder_of_configurations_is_read_as_a_runtime_does() {
    let folder = tempfile::tempdir().unwrap();
    let missing = read_conflists(&folder.path().join("nothing")).unwrap();
    fs::create_dir(folder.path().join("00-folder.conf")).unwrap();
    fs::write(
        folder.path().join("10-x.conflist"),
        r#"{"name":"x","plugins":[{"type":"ptp"}]}"#,
    )
    .unwrap();
    fs::write(folder.path().join("notes.txt"), "{").unwrap();

    let (chosen, faults) = read_conflists(folder.path()).unwrap();

    assert_eq!(missing, (None, Vec::new()));
    assert_eq!(chosen.unwrap().plugins, ["ptp"]);
    assert_eq!(faults.len(), 1, "the folder is no file");
}
