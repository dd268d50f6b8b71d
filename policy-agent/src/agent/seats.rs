//! Which interface an address of a pod was seen on first, so that the next owner of the address has none of the pod's
//! rights (edge case 19).
//!
//! Without the chained plugin nobody says whose a new interface is: it shows an address, and the source lists that
//! address for some pod. When that pod's interface has gone and another one shows the address, the source may be late
//! with the news that the address is another pod's. So the address counts as shown by nobody, which closes it, until
//!
//! * the source tells of the pod again: what it lists then is newer than the old interface's end; or
//! * the plugins have said that the interface was made for a pod that has this address; or
//! * nothing was said for so long that nothing will be: the pod has got another sandbox with the address of the first.
//!
//! Nothing here reads a clock or the kernel: updates in, updates out. An agent that starts knows no seats; until then
//! the kernel has bindings of interface, hardware address and address.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use towpath_core::model::{
    Endpoint, EndpointId, EndpointKind, InterfaceName, Object, ObjectKey, ObservedInterface, Update,
};
use tracing::info;

/// A kubelet tells of a pod's new sandbox and address at once, and tries again every ten seconds.
const PATIENCE: Duration = Duration::from_secs(30);

/// The interface that has shown a pod's address.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seat {
    pod: EndpointId,
    index: u32,
    /// Since when it does so no longer.
    gone: Option<Instant>,
}

/// Seats of the pods of this node, and what is shown to sit on them.
#[derive(Clone, Debug)]
pub(super) struct Seats {
    node: String,
    /// Addresses that the source lists for pods of this node.
    listed: BTreeMap<EndpointId, Vec<IpAddr>>,
    /// Interfaces of pods as they were seen.
    shown: BTreeMap<u32, ObservedInterface>,
    taken: BTreeMap<IpAddr, Seat>,
}

impl Seats {
    /// No seats, on the node of this name.
    pub(super) fn new(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            listed: BTreeMap::new(),
            shown: BTreeMap::new(),
            taken: BTreeMap::new(),
        }
    }

    /// An interface has changed: what the graph is to be told instead, of this one first. `is_claimed` tells whether the
    /// plugins have made the interface of this name for a pod with this address.
    pub(super) fn interface(
        &mut self,
        update: Update,
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
        now: Instant,
    ) -> Vec<Update> {
        let (index, update) = match update {
            Update::Upsert(Object::Interface(interface)) => {
                let index = interface.index;
                self.shown.insert(index, interface);
                (index, None)
            }
            Update::Remove(ObjectKey::Interface(index)) => {
                self.shown.remove(&index);
                (index, Some(update))
            }
            other => return vec![other],
        };
        let changed = self.look(index, now);
        let interface = self.shown.get(&index).cloned();
        if let Some(interface) = &interface {
            self.sit(&interface.addresses);
        }
        let told = interface.map(|interface| self.told(&interface, &is_claimed));
        let told = told.map(|told| Update::Upsert(Object::Interface(told)));
        let mut updates: Vec<Update> = update.or(told).into_iter().collect();
        updates.extend(self.tell_again(&changed, Some(index), is_claimed));
        updates
    }

    /// The source has told this: interfaces of which the graph is to be told again.
    pub(super) fn source(
        &mut self,
        update: &Update,
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
    ) -> Vec<Update> {
        let (pod, listed) = match update {
            Update::Upsert(Object::Endpoint(endpoint)) => {
                let listed = self.is_here(endpoint).then(|| endpoint.addresses.clone());
                (&endpoint.id, listed)
            }
            Update::Remove(ObjectKey::Endpoint(id)) => (id, None),
            _ => return Vec::new(),
        };
        let before = match &listed {
            Some(listed) => self.listed.insert(pod.clone(), listed.clone()),
            None => self.listed.remove(pod),
        };
        if before.is_none() && listed.is_none() {
            return Vec::new();
        }
        let listed = listed.unwrap_or_default();
        let again = self.leave(|address, seat| {
            seat.pod == *pod && (seat.is_gone() || !listed.contains(address))
        });
        self.sit(&before.unwrap_or_default());
        self.sit(&listed);
        self.tell_again(&again, None, is_claimed)
    }

    /// Something was claimed: interfaces of which the graph is to be told again.
    pub(super) fn claimed(
        &self,
        addresses: &[IpAddr],
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
    ) -> Vec<Update> {
        let is_kept = |address: &&IpAddr| self.taken.get(*address).is_some_and(Seat::is_gone);
        let again: Vec<IpAddr> = addresses.iter().filter(is_kept).copied().collect();
        self.tell_again(&again, None, is_claimed)
    }

    /// Gives up seats whose pod nobody has told of for long. To be called while the source is in sync.
    pub(super) fn expire(
        &mut self,
        now: Instant,
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
    ) -> Vec<Update> {
        let is_over = |gone: Instant| now.saturating_duration_since(gone) >= PATIENCE;
        let again = self.leave(|_, seat| seat.gone.is_some_and(is_over));
        self.sit(&again);
        self.tell_again(&again, None, is_claimed)
    }

    /// Whether an endpoint is bound by the address that an interface of this node shows.
    fn is_here(&self, endpoint: &Endpoint) -> bool {
        endpoint.id.kind == EndpointKind::Pod
            && endpoint.node.as_deref() == Some(self.node.as_str())
            && endpoint.interface.is_none()
            && endpoint.is_workload()
    }

    /// Notes which seats an interface keeps; the addresses for which that is news.
    fn look(&mut self, index: u32, now: Instant) -> Vec<IpAddr> {
        let interface = self.shown.get(&index);
        let mut changed = Vec::new();
        for (address, seat) in &mut self.taken {
            if seat.index != index {
                continue;
            }
            let is_shown = interface.is_some_and(|shown| shown.addresses.contains(address));
            if is_shown == seat.is_gone() {
                changed.push(*address);
                seat.gone = (!is_shown).then_some(now);
            }
        }
        changed
    }

    /// Gives seats to those of the addresses that exactly one pod lists and exactly one interface shows.
    fn sit(&mut self, addresses: &[IpAddr]) {
        for address in addresses {
            if self.taken.contains_key(address) {
                continue;
            }
            let mut pods = self
                .listed
                .iter()
                .filter(|(_, listed)| listed.contains(address));
            let mut showing = self
                .shown
                .values()
                .filter(|shown| shown.addresses.contains(address));
            if let (Some((pod, _)), None, Some(interface), None) =
                (pods.next(), pods.next(), showing.next(), showing.next())
            {
                let seat = Seat {
                    pod: pod.clone(),
                    index: interface.index,
                    gone: None,
                };
                self.taken.insert(*address, seat);
            }
        }
    }

    /// Gives up seats; their addresses.
    fn leave(&mut self, is_left: impl Fn(&IpAddr, &Seat) -> bool) -> Vec<IpAddr> {
        let left = self
            .taken
            .iter()
            .filter(|(address, seat)| is_left(address, seat));
        let left: Vec<IpAddr> = left.map(|(address, _)| *address).collect();
        for address in &left {
            self.taken.remove(address);
        }
        left
    }

    /// The interfaces that show one of these, but for one of which the graph is told anyway.
    fn tell_again(
        &self,
        addresses: &[IpAddr],
        but: Option<u32>,
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
    ) -> Vec<Update> {
        let is_one = |address: &IpAddr| addresses.contains(address);
        let again = self
            .shown
            .values()
            .filter(|interface| Some(interface.index) != but)
            .filter(|interface| interface.addresses.iter().any(is_one));
        let told = again.map(|interface| self.told(interface, &is_claimed));
        told.map(|told| Update::Upsert(Object::Interface(told)))
            .collect()
    }

    /// An interface without the addresses that are kept for somebody whose interface has gone.
    fn told(
        &self,
        interface: &ObservedInterface,
        is_claimed: impl Fn(IpAddr, &InterfaceName) -> bool,
    ) -> ObservedInterface {
        let (index, name) = (interface.index, &interface.name);
        let is_free = |address: &&IpAddr| {
            let seat = self.taken.get(*address);
            let Some(seat) = seat.filter(|seat| seat.is_gone() && seat.index != index) else {
                return true;
            };
            let is_free = is_claimed(**address, name);
            if !is_free {
                let pod = &seat.pod;
                info!(%pod, %address, interface = %name, "closed: it was on another interface, and may be another pod's now");
            }
            is_free
        };
        ObservedInterface {
            addresses: interface
                .addresses
                .iter()
                .filter(is_free)
                .copied()
                .collect(),
            ..interface.clone()
        }
    }
}

impl Seat {
    fn is_gone(&self) -> bool {
        self.gone.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::cni_claims::pod_id;
    use std::slice;
    use towpath_core::model::{Labels, Lifecycle};

    const ADDRESS: [u8; 4] = [10, 244, 1, 2];

    fn nothing_is_claimed(_: IpAddr, _: &InterfaceName) -> bool {
        false
    }

    fn shows(index: u32, addresses: &[[u8; 4]]) -> Update {
        Update::Upsert(Object::Interface(ObservedInterface {
            index,
            name: format!("veth{index}").parse().unwrap(),
            bridge: Some("cni0".parse().unwrap()),
            mac: None,
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
        }))
    }

    fn gone(index: u32) -> Update {
        Update::Remove(ObjectKey::Interface(index))
    }

    fn pod_on(node: &str, name: &str, addresses: &[[u8; 4]]) -> Update {
        Update::Upsert(Object::Endpoint(Endpoint {
            id: pod_id("shop", name),
            uid: None,
            labels: Labels::default(),
            node: Some(node.into()),
            addresses: addresses.iter().map(|address| (*address).into()).collect(),
            ports: Vec::new(),
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface: None,
            mac: None,
        }))
    }

    fn pod(name: &str, addresses: &[[u8; 4]]) -> Update {
        pod_on("here", name, addresses)
    }

    fn removed(name: &str) -> Update {
        Update::Remove(ObjectKey::Endpoint(pod_id("shop", name)))
    }

    struct Bed {
        seats: Seats,
        start: Instant,
    }

    impl Bed {
        /// Pod `web` with its interface.
        fn seated() -> Self {
            let mut bed = Self {
                seats: Seats::new("here"),
                start: Instant::now(),
            };
            assert_eq!(bed.source(&pod("web", &[ADDRESS])), []);
            assert_eq!(bed.see(shows(7, &[ADDRESS])), [shows(7, &[ADDRESS])]);
            bed
        }

        /// The interface has gone, and another one has the address: it shows nothing.
        fn reused() -> Self {
            let mut bed = Self::seated();
            assert_eq!(bed.see(gone(7)), [gone(7)]);
            assert_eq!(bed.see(shows(8, &[ADDRESS])), [shows(8, &[])]);
            bed
        }

        fn see(&mut self, update: Update) -> Vec<Update> {
            self.seats.interface(update, nothing_is_claimed, self.start)
        }

        fn source(&mut self, update: &Update) -> Vec<Update> {
            self.seats.source(update, nothing_is_claimed)
        }

        fn expire(&mut self, after: Duration) -> Vec<Update> {
            self.seats.expire(self.start + after, nothing_is_claimed)
        }
    }

    #[test]
    fn the_next_owner_shows_the_address_once_the_source_has_told_of_the_first() {
        for news in [removed("web"), pod("web", &[[10, 244, 1, 9]])] {
            let mut bed = Bed::reused();
            assert_eq!(bed.source(&pod("batch", &[ADDRESS])), []);

            assert_eq!(bed.source(&news), [shows(8, &[ADDRESS])]);

            // From now on it is its own.
            bed.see(gone(8));
            assert_eq!(bed.see(shows(9, &[ADDRESS])), [shows(9, &[])]);
            assert_eq!(bed.source(&removed("batch")), [shows(9, &[ADDRESS])]);
        }
    }

    #[test]
    fn the_pod_may_have_another_sandbox() {
        let mut bed = Bed::reused();

        assert_eq!(bed.source(&pod("web", &[ADDRESS])), [shows(8, &[ADDRESS])]);

        bed.see(gone(8));
        assert_eq!(bed.see(shows(7, &[ADDRESS])), [shows(7, &[])]);
    }

    #[test]
    fn what_nobody_tells_of_is_given_up_after_a_while() {
        let mut bed = Bed::reused();

        assert_eq!(bed.expire(PATIENCE / 2), []);
        assert_eq!(bed.expire(PATIENCE), [shows(8, &[ADDRESS])]);
        assert_eq!(bed.expire(PATIENCE * 2), []);
    }

    #[test]
    fn an_interface_that_comes_back_keeps_its_seat() {
        let mut bed = Bed::seated();

        assert_eq!(bed.see(shows(7, &[])), [shows(7, &[])]);
        assert_eq!(bed.see(shows(7, &[ADDRESS])), [shows(7, &[ADDRESS])]);

        assert_eq!(bed.expire(PATIENCE * 2), []);
        let other = shows(8, &[ADDRESS]);
        assert_eq!(bed.see(other.clone()), [other], "a conflict");
    }

    #[test]
    fn a_thief_does_not_inherit() {
        let mut bed = Bed::seated();
        let own = [10, 244, 1, 8];
        let both = shows(8, &[ADDRESS, own]);
        // Two interfaces show the address, which the graph takes for a conflict.
        assert_eq!(bed.see(both.clone()), slice::from_ref(&both));

        assert_eq!(bed.see(gone(7)), [gone(7), shows(8, &[own])]);
        assert_eq!(bed.see(both.clone()), [shows(8, &[own])]);

        let back = shows(7, &[ADDRESS]);
        assert_eq!(bed.see(back.clone()), [back, both]);
    }

    #[test]
    fn the_plugins_say_whose_an_interface_is() {
        let is_claimed = |_: IpAddr, name: &InterfaceName| name.as_str() == "veth8";
        let mut bed = Bed::reused();

        let again = bed.seats.claimed(&[ADDRESS.into()], is_claimed);

        assert_eq!(again, [shows(8, &[ADDRESS])]);
        let now = bed.start;
        let other = bed.seats.interface(shows(9, &[ADDRESS]), is_claimed, now);
        assert_eq!(other, [shows(9, &[])]);
    }

    #[test]
    fn pods_elsewhere_have_no_seats() {
        let mut bed = Bed {
            seats: Seats::new("here"),
            start: Instant::now(),
        };
        bed.source(&pod_on("there", "web", &[ADDRESS]));
        bed.see(shows(7, &[ADDRESS]));
        bed.see(gone(7));

        assert_eq!(bed.see(shows(8, &[ADDRESS])), [shows(8, &[ADDRESS])]);
        assert!(bed.seats.listed.is_empty());
    }
}
