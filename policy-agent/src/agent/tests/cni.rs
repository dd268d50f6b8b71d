//! The CNI plugin's requests through the graph thread and the applier.

use tokio::sync::oneshot::error::TryRecvError;

use super::super::cni::{Acknowledged, Health, Programmed};
use super::super::cni_claims::{Attachment, Claim, pod_id};
use super::super::interfaces::BridgeFacts;
use super::*;

const UID: &str = "00000000-0000-4000-8000-000000000001";
const OTHER_UID: &str = "00000000-0000-4000-8000-000000000002";

/// The source of the other tests, with a pod that lists no address yet.
fn starting() -> Vec<Update> {
    let mut updates = source();
    if let Some(Update::Upsert(Object::Endpoint(pod))) = updates.last_mut() {
        pod.addresses.clear();
        pod.uid = UID.parse().ok();
    }
    updates
}

fn claim() -> Claim {
    Claim {
        attachment: Attachment {
            network: "cbr0".to_owned(),
            container: "c1".to_owned(),
            interface: "eth0".to_owned(),
        },
        pod: pod_id("shop", "web"),
        uid: UID.parse().ok(),
        addresses: vec!["10.244.1.5".parse().unwrap()],
        host_interfaces: vec!["cni0".parse().unwrap(), "veth7".parse().unwrap()],
    }
}

impl Running {
    fn add(&self, claim: Claim) -> oneshot::Receiver<Programmed> {
        let (to, answer) = oneshot::channel();
        let waits = true;
        self.tell(Event::Cni(CniRequest::Add { claim, waits, to }));
        answer
    }

    fn check(&self) -> Programmed {
        let (to, answer) = oneshot::channel();
        let claim = claim();
        self.tell(Event::Cni(CniRequest::Check { claim, to }));
        answer.blocking_recv().unwrap()
    }

    fn delete(&self) {
        let (to, answer) = oneshot::channel();
        let (gone, to) = (vec![claim().attachment], Some(to));
        self.tell(Event::Cni(CniRequest::Delete { gone, to }));
        assert_eq!(answer.blocking_recv(), Ok(Acknowledged {}));
    }

    fn health(&self) -> Health {
        let (to, answer) = oneshot::channel();
        self.tell(Event::Cni(CniRequest::Health(to)));
        answer.blocking_recv().unwrap()
    }

    /// Interfaces, and whether the frames of cni0 can be judged.
    fn tell_node(&self, updates: Vec<Update>, is_filtered: bool) {
        let name = "cni0".parse().unwrap();
        let host = HostFacts {
            bridges: vec![BridgeFacts { name, is_filtered }],
            ..HostFacts::default()
        };
        let (host, at) = (Some(host), Instant::now());
        self.tell(Event::Interfaces(InterfaceChange { updates, host, at }));
    }

    fn bindings(&self) -> usize {
        self.elements(SetId::Bindings(IpVersion::V4))
    }
}

const DONE: Programmed = Programmed {
    programmed: true,
    reason: String::new(),
};

#[test]
fn add_is_answered_when_the_kernel_has_the_pod() {
    /// `EAGAIN` as Linux numbers it.
    const AGAIN: i32 = 11;
    let running = start();
    running.tell_source(starting(), Ok(()));
    running.tell_node(interface(), true);
    running.settled(0);
    // The kernel refuses for a while: whoever is answered too early sees no binding.
    for more in 1..=5 {
        running.kernel.fail_commit(more, AGAIN);
    }

    let answer = running.add(claim()).blocking_recv().unwrap();

    assert_eq!((answer, running.bindings()), (DONE, 1));
    assert_eq!(running.check(), DONE);
    running.end().unwrap();
}

#[test]
fn add_waits_for_the_object_the_interface_and_the_bridge() {
    let running = start();
    running.tell_source(Vec::new(), Ok(()));
    running.tell_node(Vec::new(), false);
    running.settled(0);

    let mut answer = running.add(claim());
    let no_pod = running.check().reason;
    running.tell_source(starting(), Ok(()));
    let no_interface = running.check().reason;
    running.tell_node(interface(), false);
    running.until("the commit of the binding", |_| running.bindings() == 1);
    let no_bridge = running.check().reason;
    let early = answer.try_recv();
    running.tell_node(Vec::new(), true);

    assert_eq!(no_pod, "the source has not told of pod shop/web");
    assert_eq!(no_interface, "no interface of a pod shows 10.244.1.5");
    assert_eq!(
        no_bridge,
        "bridge cni0 is not set up yet, or is no bridge of pods"
    );
    assert_eq!(early, Err(TryRecvError::Empty));
    assert_eq!(answer.blocking_recv(), Ok(DONE));
    running.end().unwrap();
}

#[test]
fn an_earlier_pod_of_the_name_is_not_taken_for_the_new_one() {
    let running = start();
    running.tell_source(source_with_uid(OTHER_UID), Ok(()));
    running.tell_node(interface(), true);
    running.settled(0);
    let bound = running.bindings();

    let mut answer = running.add(claim());
    let reason = running.check().reason;
    let early = answer.try_recv();
    running.tell_source(starting(), Ok(()));

    assert_eq!(bound, 1, "the earlier one has the address");
    assert_eq!(
        reason,
        "the source has told of an earlier pod shop/web only, with another uid"
    );
    assert_eq!(early, Err(TryRecvError::Empty));
    assert_eq!(answer.blocking_recv(), Ok(DONE));
    running.end().unwrap();
}

fn source_with_uid(uid: &str) -> Vec<Update> {
    let mut updates = source();
    if let Some(Update::Upsert(Object::Endpoint(pod))) = updates.last_mut() {
        pod.uid = uid.parse().ok();
    }
    updates
}

#[test]
fn an_address_that_another_pod_lists_stays_closed() {
    let running = start();
    running.tell_source(starting(), Ok(()));
    let mut other = source();
    if let Some(Update::Upsert(Object::Endpoint(pod))) = other.last_mut() {
        pod.id.name = "old".into();
    }
    running.tell_source(other, Ok(()));
    running.tell_node(interface(), true);
    running.settled(0);

    let mut answer = running.add(claim());
    running.until("the commit of the conflict", |_| running.bindings() == 0);
    let reason = running.check().reason;
    let early = answer.try_recv();
    let gone = Update::Remove(ObjectKey::Endpoint(pod_id("shop", "old")));
    running.tell_source(vec![gone], Ok(()));

    assert_eq!(reason, "pod shop/old has 10.244.1.5 too");
    assert_eq!(early, Err(TryRecvError::Empty));
    assert_eq!(answer.blocking_recv(), Ok(DONE));
    running.end().unwrap();
}

#[test]
fn del_takes_the_address_away_and_ends_the_wait() {
    let running = start();
    running.tell_source(starting(), Ok(()));
    running.tell_node(interface(), true);
    let before = running.settled(0);
    assert_eq!(running.add(claim()).blocking_recv(), Ok(DONE));
    running.settled(before.commits.generation);

    running.delete();
    running.until("the commit of the deletion", |_| running.bindings() == 0);
    running.tell_node(Vec::new(), false);
    let waiting = running.add(claim());
    running.delete();

    let answer = waiting.blocking_recv().unwrap();
    assert_eq!(answer.reason, "the pod was taken away meanwhile");
    running.delete();
    running.end().unwrap();
}

#[test]
fn an_exempt_pod_does_not_wait_and_is_programmed_all_the_same() {
    let running = start();
    running.tell_source(starting(), Ok(()));
    running.tell_node(Vec::new(), true);
    running.settled(0);

    let (to, answer) = oneshot::channel();
    let (claim, waits) = (claim(), false);
    running.tell(Event::Cni(CniRequest::Add { claim, waits, to }));
    let answer = answer.blocking_recv().unwrap();
    running.tell_node(interface(), true);

    assert!(!answer.programmed);
    running.until("the binding", |_| running.bindings() == 1);
    running.end().unwrap();
}

#[test]
fn health_tells_not_ready_from_broken() {
    let running = start();

    let new = running.health();
    running.tell_source(starting(), Ok(()));
    running.tell_node(interface(), true);
    running.settled(0);
    let good = running.health();
    running.tell_source(Vec::new(), Err("the API server is out of reach"));
    let cut_off = running.health();
    let filtered = running.readiness.add(BRIDGE_NETFILTER, "no module");
    let broken = running.health();

    assert!(
        !new.ready && !new.is_datapath_broken && new.reason.contains("source"),
        "{new:?}"
    );
    assert!(good.ready && cut_off.ready);
    assert!(!broken.ready && broken.is_datapath_broken, "{broken:?}");
    assert_eq!(broken.reason, "no module");
    filtered.met();
    running.end().unwrap();
}

#[test]
fn who_went_away_waits_no_longer_and_too_many_are_sent_away() {
    let running = start();
    running.tell_source(starting(), Ok(()));
    running.tell_node(Vec::new(), true);
    running.settled(0);
    let of = |number: usize| Claim {
        attachment: Attachment {
            container: format!("c{number}"),
            ..claim().attachment
        },
        ..claim()
    };

    let waiting: Vec<_> = (0..48).map(|number| running.add(of(number))).collect();
    let refused = running.add(of(48)).blocking_recv();
    drop(waiting);
    // The next look at the clock forgets them.
    let deadline = Instant::now() + PATIENCE;
    let answer = loop {
        let mut answer = running.add(of(49));
        // Who has room waits; who has none is sent away, which closes the channel. The health is answered after the
        // ADD was taken, so one of both has happened by then.
        running.health();
        match answer.try_recv() {
            Err(TryRecvError::Empty) => break answer,
            sent_away => assert_eq!(sent_away, Err(TryRecvError::Closed)),
        }
        assert!(Instant::now() < deadline, "there is never room again");
    };
    running.tell_node(interface(), true);

    assert!(refused.is_err());
    assert_eq!(answer.blocking_recv(), Ok(DONE));
    running.end().unwrap();
}
