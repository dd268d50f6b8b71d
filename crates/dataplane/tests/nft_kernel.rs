//! The netlink backend against the kernel of this machine.

mod lab;
mod ruleset;

use std::process::Command;

use lab::in_fresh_namespace;
use towpath_dataplane::nft::{Backend, NetlinkBackend, TableFlags};

use ruleset::everything;

fn nft(arguments: &[&str]) -> String {
    let output = Command::new("nft").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "nft {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn commits_everything() {
    in_fresh_namespace("nft", "commits_everything", || {
        let mut backend = NetlinkBackend::open().unwrap();
        println!("{:?}", backend.probe_features());

        backend.commit(&everything(TableFlags::default())).unwrap();

        println!("{}", nft(&["list", "ruleset"]));
    });
}
