//! Addresses for endpoints that have none yet, so that manifests can be judged before anything runs.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use towpath_core::model::{Cluster, EndpointId, Object, Update};

/// First address given out: the block for benchmarks, RFC 2544, which no real pod has.
const FIRST_V4: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 1);
/// First address given out where the cluster has IPv6 only: the block for documentation, RFC 3849.
const FIRST_V6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);

/// Gives one endpoint one address, the same in every state that it is asked about.
#[derive(Debug, Default)]
pub(super) struct Placeholders {
    given: BTreeMap<EndpointId, IpAddr>,
}

impl Placeholders {
    /// Gives an address to each live workload without one; returns how many there were.
    pub(super) fn fill(&mut self, cluster: &mut Cluster) -> usize {
        let used: BTreeSet<IpAddr> = cluster
            .endpoints
            .values()
            .flat_map(|endpoint| endpoint.addresses.iter().copied())
            .collect();
        let is_v6_only = !used.is_empty() && used.iter().all(IpAddr::is_ipv6);
        let bare: Vec<_> = cluster
            .endpoints
            .values()
            .filter(|endpoint| endpoint.is_workload() && endpoint.addresses.is_empty())
            .cloned()
            .collect();
        let count = bare.len();
        for mut endpoint in bare {
            let address = match self.given.get(&endpoint.id) {
                Some(address) => *address,
                None => self.next(is_v6_only, &used),
            };
            self.given.insert(endpoint.id.clone(), address);
            endpoint.addresses.push(address);
            cluster.apply(Update::Upsert(Object::Endpoint(endpoint)));
        }
        count
    }

    fn next(&self, is_v6: bool, used: &BTreeSet<IpAddr>) -> IpAddr {
        let mut offset = u32::try_from(self.given.len()).unwrap_or(u32::MAX);
        loop {
            let address = if is_v6 {
                IpAddr::V6(Ipv6Addr::from_bits(FIRST_V6.to_bits() + u128::from(offset)))
            } else {
                IpAddr::V4(Ipv4Addr::from_bits(FIRST_V4.to_bits() + offset))
            };
            if !used.contains(&address) && self.given.values().all(|given| *given != address) {
                return address;
            }
            offset += 1;
        }
    }
}
