//! The examples are read whole and have nothing that `lint` would say a word about.

use std::path::PathBuf;

use policy_agent::lint::review;
use policy_agent::source::{Detail, Loaded, load};

fn example(name: &str) -> Loaded {
    let directory = PathBuf::from(env!("CARGO_MANIFEST_DIR"))
        .join("../examples")
        .join(name);
    load(&directory, Detail::Everything)
}

#[test]
fn the_shop_is_clean() {
    let shop = example("shop");

    assert!(shop.state.is_in_sync());
    let findings: Vec<_> = review(&shop).iter().map(ToString::to_string).collect();
    assert_eq!(findings, Vec::<String>::new());
    let cluster = shop.cluster;
    let counts = [
        cluster.namespaces.len(),
        cluster.nodes.len(),
        cluster.endpoints.len(),
        cluster.policies.len(),
    ];
    assert_eq!(counts, [3, 2, 8, 8]);
}

#[test]
fn the_hosts_are_clean() {
    let hosts = example("hosts");

    assert!(hosts.state.is_in_sync());
    assert_eq!(review(&hosts), Vec::new());
    assert_eq!(
        (hosts.cluster.endpoints.len(), hosts.cluster.policies.len()),
        (2, 1)
    );
}
