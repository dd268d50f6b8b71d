//! The shape of the workspace: who may use whom, and who may hold `unsafe`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use cargo_metadata::{Metadata, MetadataCommand, Package, TargetKind};

/// Allowed edges between our crates, as in ARCHITECTURE.md. `tests` and `xtask` may use everything.
const ALLOWED: [(&str, &[&str]); 7] = [
    ("towpath-core", &[]),
    ("towpath-dataplane", &[]),
    ("towpath-runtime", &[]),
    ("towpath-cni", &[]),
    ("towpath-api", &["towpath-core"]),
    ("flannel-adapter", &["towpath-core", "towpath-dataplane"]),
    (
        "policy-agent",
        &[
            "flannel-adapter",
            "towpath-api",
            "towpath-core",
            "towpath-dataplane",
            "towpath-runtime",
        ],
    ),
];

/// Users of everything.
const FREE: [&str; 2] = ["towpath-tests", "xtask"];

/// The only crate that may hold `unsafe`.
const MAY_BE_UNSAFE: &str = "towpath-dataplane";

fn metadata() -> Metadata {
    let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
    MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata reads this workspace")
}

fn edges(package: &Package, members: &BTreeSet<String>) -> BTreeSet<String> {
    package
        .dependencies
        .iter()
        .map(|dependency| dependency.name.clone())
        .filter(|name| members.contains(name))
        .collect()
}

#[test]
fn crates_use_only_what_the_architecture_allows() {
    let metadata = metadata();
    let packages = metadata.workspace_packages();
    let members: BTreeSet<String> = packages
        .iter()
        .map(|package| package.name.to_string())
        .collect();
    let allowed: BTreeMap<&str, &[&str]> = ALLOWED.into();

    let mut refused = Vec::new();
    for package in packages {
        let name = package.name.as_str();
        if FREE.contains(&name) {
            continue;
        }
        let Some(allowed) = allowed.get(name) else {
            refused.push(format!("{name}: not in the list of crates"));
            continue;
        };
        for used in edges(package, &members) {
            // A crate may switch features of its own on for its tests.
            if used != name && !allowed.contains(&used.as_str()) {
                refused.push(format!("{name} uses {used}"));
            }
        }
    }

    assert_eq!(refused, Vec::<String>::new());
}

#[test]
fn every_listed_crate_exists() {
    let metadata = metadata();
    let members: BTreeSet<String> = metadata
        .workspace_packages()
        .iter()
        .map(|package| package.name.to_string())
        .collect();

    let listed: BTreeSet<String> = ALLOWED
        .iter()
        .map(|(name, _)| *name)
        .chain(FREE)
        .map(str::to_owned)
        .collect();

    assert_eq!(members, listed);
}

#[test]
fn only_dataplane_may_hold_unsafe_code() {
    let metadata = metadata();

    let mut lax = Vec::new();
    for package in metadata.workspace_packages() {
        if package.name.as_str() == MAY_BE_UNSAFE {
            continue;
        }
        for target in &package.targets {
            let is_program_or_library = target
                .kind
                .iter()
                .any(|kind| matches!(kind, TargetKind::Lib | TargetKind::Bin));
            let text = fs::read_to_string(&target.src_path).expect("cargo names files that exist");
            if is_program_or_library && !text.contains("#![forbid(unsafe_code)]") {
                lax.push(target.src_path.to_string());
            }
        }
    }

    assert_eq!(lax, Vec::<String>::new());
}

#[test]
fn every_crate_takes_the_lints_of_the_workspace() {
    let metadata = metadata();

    let lax: Vec<String> = metadata
        .workspace_packages()
        .iter()
        .filter(|package| {
            let text =
                fs::read_to_string(&package.manifest_path).expect("cargo names files that exist");
            !text.contains("[lints]\nworkspace = true")
        })
        .map(|package| package.name.to_string())
        .collect();

    assert_eq!(lax, Vec::<String>::new());
}
