//! What bridges have learnt, for virtual machines: a tap has no other end to look at. What was learnt is forgotten after
//! five minutes of silence, so this is the last resort; who can, writes a static configuration.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use smol_str::ToSmolStr as _;
use towpath_core::model::MacAddress;
use towpath_dataplane::link::{ForwardingEntry, Neighbour, Scanner};

use super::{Delta, EndpointSource, InterfaceRef, Observation, SourceError, SourceName};

/// What was learnt: for each port the one hardware address behind it, and the addresses that neighbours told with it. A port with
/// several hardware addresses is a switch, not a machine, and is left out.
pub fn observations(entries: &[ForwardingEntry], neighbours: &[Neighbour]) -> Vec<Observation> {
    let mut ports: BTreeMap<u32, Vec<[u8; 6]>> = BTreeMap::new();
    for entry in entries {
        let macs = ports.entry(entry.port).or_default();
        if !macs.contains(&entry.mac) && macs.len() < 2 {
            macs.push(entry.mac);
        }
    }
    let machines = ports.into_iter().filter_map(|(port, macs)| match macs[..] {
        [mac] => Some((port, mac)),
        _ => None,
    });
    machines
        .map(|(port, mac)| {
            let of_machine = neighbours.iter().filter(|neighbour| neighbour.mac == mac);
            let mut addresses: Vec<IpAddr> =
                of_machine.map(|neighbour| neighbour.address).collect();
            addresses.sort_unstable();
            addresses.dedup();
            Observation {
                key: port.to_smolstr(),
                interface: Some(InterfaceRef::Index(port)),
                addresses,
                mac: Some(MacAddress(mac)),
                ..Observation::default()
            }
        })
        .collect()
}

/// The source by itself: looks at intervals.
#[derive(Debug)]
pub struct FdbSource {
    scanner: Scanner,
    told: Vec<Observation>,
}

impl FdbSource {
    /// Opens the socket, in the network namespace of the calling thread.
    pub fn open() -> Result<Self, SourceError> {
        Ok(Self {
            scanner: Scanner::open()?,
            told: Vec::new(),
        })
    }
}

impl EndpointSource for FdbSource {
    fn name(&self) -> SourceName {
        SourceName::Fdb
    }

    fn snapshot(&mut self) -> Result<Vec<Observation>, SourceError> {
        let entries = self.scanner.forwarding_entries()?;
        self.told = observations(&entries, &self.scanner.neighbours()?);
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
    fn a_port_with_one_address_is_a_machine() {
        let entry = |port, last| ForwardingEntry {
            port,
            mac: [2, 0, 0, 0, 0, last],
        };
        let neighbour = |last| Neighbour {
            index: 3,
            address: [192, 168, 122, last].into(),
            mac: [2, 0, 0, 0, 0, last],
        };

        let found = observations(
            &[entry(7, 1), entry(8, 2), entry(8, 3), entry(9, 4)],
            &[neighbour(1), neighbour(2)],
        );

        let seen: Vec<(&str, usize)> = found
            .iter()
            .map(|found| (found.key.as_str(), found.addresses.len()))
            .collect();
        assert_eq!(seen, [("7", 1), ("9", 0)]);
    }
}
