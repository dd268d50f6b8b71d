use std::os::unix::fs::PermissionsExt;

use proptest::prelude::*;
use towpath_core::generate::{LOCAL_NODE, world};
use towpath_core::model::{EndpointId, Update};

use super::*;

fn written(cluster: &Cluster) -> Vec<u8> {
    let mut bytes = Vec::new();
    write(&mut bytes, LOCAL_NODE, cluster, 7).unwrap();
    bytes
}

/// The cluster that a snapshot stands for.
fn cluster_of(objects: Vec<Object>) -> Cluster {
    let mut cluster = Cluster::default();
    for object in objects {
        cluster.apply(Update::Upsert(object));
    }
    cluster
}

/// What a snapshot keeps of a cluster.
fn kept(cluster: &Cluster) -> Cluster {
    let mut kept = Cluster {
        interfaces: std::collections::BTreeMap::new(),
        ..cluster.clone()
    };
    let local: Vec<EndpointId> = cluster
        .endpoints
        .values()
        .filter(|endpoint| endpoint.node.as_deref() == Some(LOCAL_NODE) && !endpoint.host_network)
        .map(|endpoint| endpoint.id.clone())
        .collect();
    for id in local {
        let mut endpoint = kept.endpoints.get(&id).unwrap().clone();
        endpoint.addresses.clear();
        kept.apply(Update::Upsert(Object::Endpoint(endpoint)));
    }
    kept
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written(world in world()) {
        let cluster = world.cluster();

        let snapshot = read(&written(&cluster)[..], LOCAL_NODE).unwrap();

        prop_assert_eq!(snapshot.written_at, 7);
        prop_assert_eq!(cluster_of(snapshot.objects), kept(&cluster));
    }

    #[test]
    fn a_part_of_a_snapshot_is_none(world in world(), cut in any::<prop::sample::Index>()) {
        let bytes = written(&world.cluster());
        // Without the last line break the last object is still whole.
        let length = cut.index(bytes.len() - 1);

        prop_assert!(read(&bytes[..length], LOCAL_NODE).is_err());
    }

    #[test]
    fn noise_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let header = written(&Cluster::default());

        prop_assert!(read(&bytes[..], LOCAL_NODE).is_err());
        prop_assert_eq!(read(&[&header[..], &bytes].concat()[..], LOCAL_NODE).is_ok(), bytes.is_empty());
    }
}

#[test]
fn a_snapshot_of_another_node_or_version_is_not_used() {
    let bytes = written(&Cluster::default());
    let text = String::from_utf8(bytes.clone()).unwrap();
    let newer = text.replace("\"version\":2", "\"version\":3");

    assert!(matches!(
        read(&bytes[..], "elsewhere"),
        Err(SnapshotError::Node { .. })
    ));
    assert!(matches!(
        read(newer.as_bytes(), LOCAL_NODE),
        Err(SnapshotError::Version { found: 3 })
    ));
}

#[test]
fn only_root_reads_the_file() {
    let directory = tempfile::tempdir().unwrap();
    let nothing = load(directory.path(), "n").unwrap();

    save(directory.path(), "n", &Cluster::default(), 1).unwrap();

    let path = directory.path().join(SNAPSHOT);
    let mode = path.metadata().unwrap().permissions().mode();
    assert_eq!((nothing, mode & 0o777), (None, 0o600));
    assert!(load(directory.path(), "n").unwrap().is_some());
}
