//! Routes to one address: where pods have no bridge, each has one by its own interface.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use smol_str::ToSmolStr as _;
use towpath_dataplane::link::{Route, Scanner};

use super::{Delta, EndpointSource, InterfaceRef, Observation, SourceError, SourceName};

/// Addresses kept of one interface, as for what is behind it.
const MOST_ADDRESSES: usize = 256;

/// What routes tell, an observation for each interface. Which interfaces are pods' is not decided here.
pub fn observations(routes: &[Route]) -> Vec<Observation> {
    let mut by_interface: BTreeMap<u32, Vec<IpAddr>> = BTreeMap::new();
    for route in routes.iter().filter(|route| route.is_to_one_host()) {
        let address = route.destination.addr();
        // Link-local routes to one address are neighbours of routing programs.
        let is_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        let addresses = by_interface.entry(route.index).or_default();
        if !is_local && !address.is_multicast() && addresses.len() < MOST_ADDRESSES {
            addresses.push(address);
        }
    }
    let observed = by_interface
        .into_iter()
        .filter(|(_, addresses)| !addresses.is_empty());
    observed
        .map(|(index, mut addresses)| {
            addresses.sort_unstable();
            addresses.dedup();
            Observation {
                key: index.to_smolstr(),
                interface: Some(InterfaceRef::Index(index)),
                addresses,
                ..Observation::default()
            }
        })
        .collect()
}

/// The source by itself: looks at the routes at intervals, since it is a fallback where nobody can look behind interfaces.
#[derive(Debug)]
pub struct RoutesSource {
    scanner: Scanner,
    told: Vec<Observation>,
}

impl RoutesSource {
    /// Opens the socket, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, SourceError> {
        Ok(Self {
            scanner: Scanner::open()?,
            told: Vec::new(),
        })
    }
}

impl EndpointSource for RoutesSource {
    fn name(&self) -> SourceName {
        SourceName::Routes
    }

    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError> {
        self.told = observations(&self.scanner.routes(Route::is_to_one_host)?);
        Ok(self.told.clone())
    }

    fn wait(&mut self, timeout: Duration) -> Result<Vec<Delta>, SourceError> {
        std::thread::sleep(timeout);
        let before = std::mem::take(&mut self.told);
        let now = self.snapshot()?;
        Ok(super::difference(&before, &now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_interface_has_all_addresses_that_lead_there() {
        let route = |destination: &str, index, gateway| Route {
            destination: destination.parse().unwrap(),
            index,
            gateway,
            table: 254,
        };
        let gateway = Some([192, 0, 2, 1].into());

        let found = observations(&[
            route("10.244.1.9/32", 7, None),
            route("fd00::9/128", 7, None),
            route("10.244.1.9/32", 7, None),
            route("169.254.1.1/32", 7, None),
            route("10.244.2.0/24", 7, None),
            route("10.244.3.1/32", 8, gateway),
            route("fe80::1/128", 9, None),
        ]);

        assert_eq!(found.len(), 1);
        assert_eq!(found[0].interface, Some(InterfaceRef::Index(7)));
        let addresses: [IpAddr; 2] = [[10, 244, 1, 9].into(), "fd00::9".parse().unwrap()];
        assert_eq!(found[0].addresses, addresses);
    }
}
