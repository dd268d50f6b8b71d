//! Claims one by one, and random walks against a reading of the rules that remembers no effects.

use proptest::prelude::*;
use towpath_core::model::{Labels, Lifecycle};

use super::*;

const HERE: &str = "node-a";
const UIDS: [&str; 2] = [
    "00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000002",
];

fn ip(last: u8) -> IpAddr {
    [10, 244, 1, last].into()
}

fn uid(number: usize) -> PodUid {
    UIDS[number].parse().unwrap()
}

fn pod(name: &str, addresses: &[u8]) -> Endpoint {
    Endpoint {
        id: pod_id("shop", name),
        uid: Some(uid(0)),
        labels: Labels::default(),
        node: Some(HERE.into()),
        addresses: addresses.iter().copied().map(ip).collect(),
        ports: Vec::new(),
        host_network: false,
        lifecycle: Lifecycle::Live,
        interface: None,
        mac: None,
    }
}

fn claim(container: &str, name: &str, last: u8) -> Claim {
    Claim {
        attachment: Attachment {
            network: "cbr0".to_owned(),
            container: container.to_owned(),
            interface: "eth0".to_owned(),
        },
        pod: pod_id("shop", name),
        uid: Some(uid(0)),
        addresses: vec![ip(last)],
        host_interfaces: vec!["cni0".parse().unwrap(), veth(u32::from(last))],
    }
}

fn veth(index: u32) -> InterfaceName {
    format!("veth{index}").parse().unwrap()
}

fn interface(index: u32, addresses: &[u8]) -> Update {
    Update::Upsert(Object::Interface(ObservedInterface {
        index,
        name: veth(index),
        bridge: Some("cni0".parse().unwrap()),
        mac: None,
        addresses: addresses.iter().copied().map(ip).collect(),
    }))
}

/// Claims and the cluster that follows from them.
struct World {
    claims: CniClaims,
    cluster: Cluster,
    now: Instant,
}

impl World {
    fn new() -> Self {
        Self {
            claims: CniClaims::new(HERE),
            cluster: Cluster::default(),
            now: Instant::now(),
        }
    }

    fn take(&mut self, updates: Vec<Update>) {
        for update in updates {
            self.cluster.apply(update);
        }
    }

    fn source(&mut self, update: &Update) {
        let told = self.claims.source(update, &self.cluster).into_owned();
        self.cluster.apply(told);
    }

    fn upsert(&mut self, endpoint: Endpoint) {
        self.source(&Update::Upsert(Object::Endpoint(endpoint)));
    }

    fn interface(&mut self, update: Update) {
        self.cluster.apply(update);
        let follows = self.claims.interfaces(&self.cluster);
        self.take(follows);
    }

    fn add(&mut self, claim: Claim) {
        let follows = self.claims.add(claim, &self.cluster, self.now).unwrap();
        self.take(follows);
    }

    fn delete(&mut self, container: &str) {
        let attachment = claim(container, "web", 5).attachment;
        let follows = self.claims.delete(&[attachment], &self.cluster);
        self.take(follows);
    }

    fn addresses(&self, name: &str) -> Vec<IpAddr> {
        let endpoint = self.cluster.endpoints.get(&pod_id("shop", name));
        endpoint
            .map(|found| found.addresses.clone())
            .unwrap_or_default()
    }
}

/// Pod, interface and claim come in any order.
fn orders() -> [[u8; 3]; 6] {
    [
        [0, 1, 2],
        [0, 2, 1],
        [1, 0, 2],
        [1, 2, 0],
        [2, 0, 1],
        [2, 1, 0],
    ]
}

#[test]
fn a_pod_without_addresses_gets_those_that_it_was_plugged_with_in_any_order() {
    for order in orders() {
        let mut world = World::new();
        for (step, part) in order.into_iter().enumerate() {
            assert!(world.addresses("web").is_empty(), "{order:?} at {step}");
            match part {
                0 => world.upsert(pod("web", &[])),
                1 => world.interface(interface(5, &[5])),
                _ => world.add(claim("c1", "web", 5)),
            }
        }

        assert_eq!(world.addresses("web"), [ip(5)], "{order:?}");
    }
}

#[test]
fn what_the_object_lists_at_last_is_what_counts() {
    for (listed, is_other) in [([5], false), ([6], true)] {
        let mut world = World::new();
        world.upsert(pod("web", &[]));
        world.interface(interface(5, &[5]));
        world.add(claim("c1", "web", 5));

        world.upsert(pod("web", &listed));

        assert_eq!(world.addresses("web"), [ip(listed[0])]);
        assert!(world.claims.is_empty());
        // Emptied again: nothing is remembered.
        world.upsert(pod("web", &[]));
        assert!(world.addresses("web").is_empty(), "{is_other}");
    }
}

#[test]
fn a_new_sandbox_replaces_the_addresses_of_the_old_one() {
    let mut world = World::new();
    world.upsert(pod("web", &[4]));
    world.add(claim("c2", "web", 5));

    let unproven = world.addresses("web");
    world.interface(interface(5, &[5]));
    let proven = world.addresses("web");
    // The kubelet writes something else, the addresses are still the old ones.
    world.upsert(Endpoint {
        labels: [("app", "web")].into_iter().collect(),
        ..pod("web", &[4])
    });
    let written = world.addresses("web");
    world.upsert(pod("web", &[5]));

    assert_eq!(unproven, [ip(4)]);
    assert_eq!((proven, written), (vec![ip(5)], vec![ip(5)]));
    assert_eq!(world.addresses("web"), [ip(5)]);
    assert!(world.claims.is_empty());
}

#[test]
fn of_two_sandboxes_the_later_one_is_the_pods() {
    let mut world = World::new();
    world.upsert(pod("web", &[]));
    world.interface(interface(5, &[5]));
    world.interface(interface(6, &[6]));

    world.add(claim("c1", "web", 5));
    world.add(claim("c2", "web", 6));
    let both = world.addresses("web");
    world.delete("c2");
    let one = world.addresses("web");
    world.delete("c1");

    assert_eq!((both, one), (vec![ip(6)], vec![ip(5)]));
    assert!(world.addresses("web").is_empty());
    assert!(world.claims.is_empty());
}

#[test]
fn an_object_of_an_earlier_pod_of_the_name_is_left_alone() {
    let mut world = World::new();
    world.upsert(pod("web", &[4]));
    let newer = Claim {
        uid: Some(uid(1)),
        ..claim("c2", "web", 5)
    };
    world.interface(interface(5, &[5]));
    world.add(newer);

    let before = world.addresses("web");
    world.source(&Update::Remove(ObjectKey::Endpoint(pod_id("shop", "web"))));
    world.upsert(Endpoint {
        uid: Some(uid(1)),
        ..pod("web", &[])
    });

    assert_eq!(before, [ip(4)]);
    assert_eq!(world.addresses("web"), [ip(5)]);
}

#[test]
fn pods_elsewhere_finished_or_on_the_host_network_claim_nothing() {
    let changes: [fn(&mut Endpoint); 4] = [
        |pod| pod.node = Some("node-b".into()),
        |pod| pod.node = None,
        |pod| pod.lifecycle = Lifecycle::Finished,
        |pod| pod.host_network = true,
    ];
    for change in changes {
        let mut other = pod("web", &[]);
        change(&mut other);
        let mut world = World::new();
        world.interface(interface(5, &[5]));
        world.add(claim("c1", "web", 5));

        world.upsert(other.clone());
        let early = world.addresses("web");
        world.upsert(pod("web", &[]));
        let met = world.addresses("web");
        world.upsert(other);

        assert_eq!((early, met), (vec![], vec![ip(5)]));
        assert!(world.addresses("web").is_empty());
        assert!(
            world.claims.is_empty(),
            "it has met its pod, which is no longer"
        );
    }
}

#[test]
fn an_address_on_an_interface_of_another_proves_nothing() {
    let mut world = World::new();
    world.upsert(pod("web", &[]));
    world.add(claim("c1", "web", 5));

    // The earlier owner's interface is not gone yet.
    world.interface(interface(9, &[5]));
    let early = world.addresses("web");
    world.interface(interface(5, &[5]));
    let both = world.addresses("web");
    world.interface(Update::Remove(ObjectKey::Interface(9)));

    assert_eq!((early, both), (vec![], vec![]));
    assert_eq!(world.addresses("web"), [ip(5)]);
}

#[test]
fn a_claim_goes_with_its_interface_and_with_its_pod() {
    for part in 0..3 {
        let mut world = World::new();
        world.upsert(pod("web", &[]));
        world.interface(interface(5, &[5]));
        world.add(claim("c1", "web", 5));

        match part {
            0 => world.interface(Update::Remove(ObjectKey::Interface(5))),
            1 => world.interface(interface(5, &[6])),
            _ => world.source(&Update::Remove(ObjectKey::Endpoint(pod_id("shop", "web")))),
        }

        assert!(world.claims.is_empty(), "{part}");
        assert!(world.addresses("web").is_empty(), "{part}");
    }
}

#[test]
fn a_result_that_names_only_the_bridge_allows_any_interface() {
    let mut world = World::new();
    world.upsert(pod("web", &[]));
    world.interface(interface(5, &[5]));

    world.add(Claim {
        host_interfaces: vec!["cni0".parse().unwrap()],
        ..claim("c1", "web", 5)
    });

    assert_eq!(world.addresses("web"), [ip(5)]);
}

#[test]
fn what_never_settles_expires_and_what_has_settled_stays() {
    let mut world = World::new();
    world.upsert(pod("web", &[]));
    world.interface(interface(5, &[5]));
    world.add(claim("c1", "web", 5));
    world.add(claim("c2", "ghost", 6));

    let follows = world.claims.expire(world.now + PATIENCE, &world.cluster);

    assert_eq!(follows, []);
    assert_eq!(world.claims.len(), 1);
    assert_eq!(world.addresses("web"), [ip(5)]);
}

#[test]
fn garbage_is_what_the_runtime_no_longer_has() {
    let mut world = World::new();
    for (container, name, last) in [("c1", "web", 5), ("c2", "api", 6)] {
        world.upsert(pod(name, &[]));
        world.interface(interface(u32::from(last), &[last]));
        world.add(claim(container, name, last));
    }
    let valid = BTreeSet::from([("c2".to_owned(), "eth0".to_owned())]);

    let other = world
        .claims
        .keep_only("other", &BTreeSet::new(), &world.cluster);
    let follows = world.claims.keep_only("cbr0", &valid, &world.cluster);
    world.take(follows);

    assert_eq!(other, []);
    assert_eq!(
        (world.addresses("web"), world.addresses("api")),
        (vec![], vec![ip(6)])
    );
}

#[test]
fn there_are_never_more_than_the_bound() {
    let mut world = World::new();
    for number in 0..MOST_CLAIMS {
        world.add(claim(&format!("c{number}"), "ghost", 5));
    }

    let again = world
        .claims
        .add(claim("c0", "ghost", 6), &world.cluster, world.now);
    let more = world
        .claims
        .add(claim("more", "ghost", 5), &world.cluster, world.now);

    assert_eq!((again, more), (Ok(vec![]), Err(TooMany)));
    assert_eq!(world.claims.len(), MOST_CLAIMS);
}

#[test]
fn a_restart_keeps_what_was_claimed_and_what_it_replaced() {
    let mut world = World::new();
    world.upsert(pod("web", &[4]));
    world.interface(interface(5, &[5]));
    world.add(claim("c1", "web", 5));

    for is_source_first in [true, false] {
        let mut next = World::new();
        next.claims.restore(world.claims.kept(), next.now);
        if is_source_first {
            next.upsert(pod("web", &[4]));
            assert_eq!(next.addresses("web"), [ip(4)], "not proven yet");
            next.interface(interface(5, &[5]));
        } else {
            next.interface(interface(5, &[5]));
            next.upsert(pod("web", &[4]));
        }

        assert_eq!(next.addresses("web"), [ip(5)], "{is_source_first}");
        assert_eq!(next.claims.kept(), world.claims.kept());
    }
}

/// One thing that happens in a walk.
#[derive(Clone, Debug)]
enum Step {
    Upsert(Endpoint),
    Remove(usize),
    Interface(u32, Vec<u8>),
    Gone(u32),
    Add(Claim),
    Delete(usize),
}

const NAMES: [&str; 3] = ["web", "api", "db"];
const CONTAINERS: [&str; 4] = ["c1", "c2", "c3", "c4"];

fn step() -> impl Strategy<Value = Step> {
    let lasts = || prop::collection::vec(1..5_u8, 0..2);
    let endpoint = (0..3_usize, lasts(), 0..2_usize, 0..8_u8);
    let endpoint = endpoint.prop_map(|(name, addresses, number, sort)| Endpoint {
        uid: (sort != 5).then(|| uid(number)),
        node: Some(if sort == 6 { "node-b" } else { HERE }.into()),
        lifecycle: if sort == 7 {
            Lifecycle::Finished
        } else {
            Lifecycle::Live
        },
        ..pod(NAMES[name], &addresses)
    });
    let add = (0..4_usize, 0..3_usize, 1..5_u8, 0..2_usize);
    let add = add.prop_map(|(container, name, last, number)| Claim {
        uid: Some(uid(number)),
        ..claim(CONTAINERS[container], NAMES[name], last)
    });
    prop_oneof![
        3 => endpoint.prop_map(Step::Upsert),
        1 => (0..3_usize).prop_map(Step::Remove),
        3 => (1..5_u32, lasts()).prop_map(|(index, lasts)| Step::Interface(index, lasts)),
        1 => (1..5_u32).prop_map(Step::Gone),
        3 => add.prop_map(Step::Add),
        1 => (0..4_usize).prop_map(Step::Delete),
    ]
}

proptest! {
    #[test]
    fn walks_give_no_pod_an_address_that_is_not_proven(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        // What the source says, untouched; claims as they were added and not deleted.
        let mut listed: BTreeMap<EndpointId, Endpoint> = BTreeMap::new();
        let mut added: BTreeMap<String, Claim> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Upsert(endpoint) => {
                    listed.insert(endpoint.id.clone(), endpoint.clone());
                    world.upsert(endpoint);
                }
                Step::Remove(name) => {
                    let id = pod_id("shop", NAMES[name]);
                    listed.remove(&id);
                    world.source(&Update::Remove(ObjectKey::Endpoint(id)));
                }
                Step::Interface(index, lasts) => world.interface(interface(index, &lasts)),
                Step::Gone(index) => world.interface(Update::Remove(ObjectKey::Interface(index))),
                Step::Add(claim) => {
                    added.insert(claim.attachment.container.clone(), claim.clone());
                    world.add(claim);
                }
                Step::Delete(container) => {
                    added.remove(CONTAINERS[container]);
                    world.delete(CONTAINERS[container]);
                }
            }
            // The same pods, changed in nothing but their addresses.
            prop_assert_eq!(world.cluster.endpoints.len(), listed.len());
            for (id, said) in &listed {
                let found = world.cluster.endpoints.get(id).unwrap();
                prop_assert_eq!(&Endpoint { addresses: said.addresses.clone(), ..found.clone() }, said);
                if found.addresses == said.addresses {
                    continue;
                }
                // Some claim that was made and not deleted proves them, on its own interface and no other.
                let is_proven = |claim: &Claim| {
                    let shown: Vec<&InterfaceName> = world.cluster.interfaces.values()
                        .filter(|seen| seen.addresses.iter().any(|at| claim.addresses.contains(at)))
                        .map(|seen| &seen.name)
                        .collect();
                    let of_it = found.addresses.iter().all(|at| claim.addresses.contains(at));
                    let own = claim.host_interfaces.last().unwrap();
                    let is_here = claim.is_of(said) && said.is_workload() && said.node.as_deref() == Some(HERE);
                    claim.pod == *id && of_it && is_here && shown.contains(&own)
                        && (found.addresses.is_empty() || shown == [own])
                };
                prop_assert!(added.values().any(is_proven), "{:?} has {:?}", said, found.addresses);
            }
        }
        for container in CONTAINERS {
            world.delete(container);
        }
        prop_assert!(world.claims.is_empty());
        for (id, said) in &listed {
            prop_assert_eq!(&world.cluster.endpoints.get(id).unwrap().addresses, &said.addresses);
        }
    }

    #[test]
    fn the_order_of_pods_interfaces_and_claims_makes_no_difference(
        parts in prop::collection::vec((0..3_usize, 1..5_u8), 1..4),
        keys in prop::collection::vec(any::<u32>(), 12),
    ) {
        let mut steps = Vec::new();
        let mut owners = BTreeMap::new();
        for (name, last) in parts {
            // One container a pod, one pod an address: what else there is depends on who came last.
            if owners.values().any(|known| *known == name) || owners.contains_key(&last) {
                continue;
            }
            owners.insert(last, name);
            steps.push(Step::Upsert(pod(NAMES[name], &[])));
            steps.push(Step::Interface(u32::from(last), vec![last]));
            steps.push(Step::Add(claim(CONTAINERS[name], NAMES[name], last)));
        }
        let mut shuffled: Vec<_> = steps.into_iter().zip(keys).collect();
        shuffled.sort_by_key(|(_, key)| *key);

        let mut world = World::new();
        for (step, _) in shuffled {
            match step {
                Step::Upsert(endpoint) => world.upsert(endpoint),
                Step::Interface(index, lasts) => world.interface(interface(index, &lasts)),
                Step::Add(claim) => world.add(claim),
                Step::Remove(_) | Step::Gone(_) | Step::Delete(_) => {}
            }
        }

        for (last, name) in owners {
            prop_assert_eq!(world.addresses(NAMES[name]), [ip(last)]);
        }
    }
}
