//! What an operator has opened for a while, as elements that end by themselves.
//!
//! It is always said as a whole, with the time that is left: a flush before the elements gives those that are there
//! their new time, and does not mind that one has just gone.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use towpath_dataplane::nft::{Operation, SetKey, Value};

use super::elements::address;
use crate::layout::{Capacities, IpVersion, SetId};

/// `meta nfproto` of both versions.
const NFPROTO: [u8; 2] = [2, 10];

/// For whom enforcement is open, and until when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Bypassed {
    /// The whole node.
    pub node: Option<Instant>,
    /// Addresses of pods.
    pub addresses: BTreeMap<IpAddr, Instant>,
}

impl Bypassed {
    /// Opens an address until then, or longer if it is; not when the kernel has no room for it.
    pub fn open(&mut self, address: IpAddr, until: Instant) {
        let has_room = self.addresses.len() < Capacities::TIMED as usize;
        match self.addresses.get_mut(&address) {
            Some(known) => *known = (*known).max(until),
            None if has_room => drop(self.addresses.insert(address, until)),
            None => {}
        }
    }

    /// The elements that are not over at `now`, with the time that is left to each.
    pub(crate) fn elements(&self, now: Instant) -> BTreeMap<SetId, Vec<(SetKey, Duration)>> {
        let mut elements: BTreeMap<SetId, Vec<(SetKey, Duration)>> = SetId::all()
            .filter(|set| set.is_timed())
            .map(|set| (set, Vec::new()))
            .collect();
        let mut add = |set, value, until: Instant| {
            let left = until.saturating_duration_since(now);
            if !left.is_zero() {
                let of_set: &mut Vec<_> = elements.entry(set).or_default();
                of_set.push((SetKey::Exact(vec![value]), left));
            }
        };
        if let Some(until) = self.node {
            for version in NFPROTO {
                add(SetId::BypassedNode, Value::U8(version), until);
            }
        }
        for (endpoint, until) in &self.addresses {
            let set = SetId::Bypassed(IpVersion::of(*endpoint));
            add(set, address(*endpoint), *until);
        }
        elements
    }
}

/// Makes the sets hold just these.
pub fn bypass(bypassed: &Bypassed, now: Instant) -> impl Iterator<Item = Operation> {
    bypassed
        .elements(now)
        .into_iter()
        .flat_map(|(set, elements)| {
            let (table, name) = (set.table().table(), set.name());
            [
                Operation::FlushSet(table.clone(), name.clone()),
                Operation::AddTimedElements(table, name, elements),
            ]
        })
}

#[cfg(test)]
mod tests {
    use towpath_dataplane::nft::{Transaction, transaction_text};

    use super::*;

    #[test]
    fn says_what_is_left_of_each_and_nothing_of_what_is_over() {
        let now = Instant::now();
        let after = |seconds| now + Duration::from_secs(seconds);
        let bypassed = Bypassed {
            node: Some(after(90)),
            addresses: [
                ("10.244.1.2".parse().unwrap(), after(60)),
                ("10.244.1.3".parse().unwrap(), after(30)),
                ("fd00::2".parse().unwrap(), after(40)),
            ]
            .into(),
        };

        let operations = bypass(&bypassed, after(30)).collect();

        insta::assert_snapshot!(transaction_text(&Transaction { operations }).unwrap(), @r"
        flush set inet towpath bypassed
        add element inet towpath bypassed { 10.244.1.2 timeout 30s }
        flush set inet towpath bypassed6
        add element inet towpath bypassed6 { fd00::2 timeout 10s }
        flush set inet towpath bypassed_node
        add element inet towpath bypassed_node { 2 timeout 60s, 10 timeout 60s }
        ");
    }
}
