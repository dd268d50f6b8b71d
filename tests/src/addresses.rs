//! The address plan of a lab.

use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::Result;
use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use crate::netns::Namespace;

/// Who has which addresses. Node numbers begin with 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Addresses {
    ipv6: bool,
    /// Third byte of the fabric's network, and a part of its IPv6 network.
    fabric: u8,
    /// Second byte of the pods' network.
    pods: u8,
    /// Second byte of the services' network.
    services: u8,
}

impl Addresses {
    /// The plan that documentation shows: fabric 192.168.77.0/24, pods 10.244.0.0/16, services 10.96.0.0/16.
    pub fn usual(ipv6: bool) -> Self {
        Self {
            ipv6,
            fabric: 77,
            pods: 244,
            services: 96,
        }
    }

    /// A plan of the run's own, so that nothing comes to rely on an address.
    pub fn of_run(prefix: &str, ipv6: bool) -> Self {
        let sum = prefix
            .bytes()
            .fold(0_u8, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
        Self {
            ipv6,
            fabric: 20 + sum % 200,
            pods: 128 + sum % 100,
            services: 16 + sum % 100,
        }
    }

    /// Whether there are IPv6 addresses too.
    pub fn has_ipv6(&self) -> bool {
        self.ipv6
    }

    /// The address of the API server on the fabric, IPv4.
    pub fn server(&self) -> Ipv4Addr {
        Ipv4Addr::new(192, 168, self.fabric, 254)
    }

    /// What the fabric's bridge has, IPv4 first.
    pub fn fabric(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(self.server(), 24);
        let v6 = Ipv6Net::new_assert(self.node6(0xfe), 64);
        self.families(v4, v6)
    }

    /// The addresses of a node, IPv4 first.
    pub fn node(&self, index: u8) -> Vec<IpAddr> {
        let v4 = Ipv4Addr::new(192, 168, self.fabric, index + 1);
        let v6 = self.node6(u16::from(index) + 1);
        self.families(v4, v6)
    }

    /// Where the addresses of a node's pods come from, IPv4 first.
    pub fn pod_cidrs(&self, index: u8) -> Vec<IpNet> {
        let part = index + 1;
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, self.pods, part, 0), 24);
        let v6 = Ipv6Net::new_assert(self.pod6(u16::from(part)), 64);
        self.families(v4, v6)
    }

    /// The networks of all pods, IPv4 first.
    pub fn pod_networks(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, self.pods, 0, 0), 16);
        self.families(v4, Ipv6Net::new_assert(self.pod6(0), 48))
    }

    /// The networks of Services, IPv4 first.
    pub fn services(&self) -> Vec<IpNet> {
        let v4 = Ipv4Net::new_assert(Ipv4Addr::new(10, self.services, 0, 0), 16);
        let v6 = Ipv6Addr::new(0xfd00, 0x96, same_digits(self.services), 0, 0, 0, 0, 0);
        self.families(v4, Ipv6Net::new_assert(v6, 112))
    }

    /// Makes the bridge between the nodes, with the fabric's addresses.
    pub fn set_up(&self, fabric: &Namespace) -> Result<()> {
        let mut lines = "link add br-lab type bridge\n".to_owned();
        for address in self.fabric() {
            let more = if address.addr().is_ipv6() {
                " nodad"
            } else {
                ""
            };
            let _ = writeln!(lines, "address add {address} dev br-lab{more}");
        }
        lines.push_str("link set br-lab up\n");
        fabric.ip_batch(&lines)
    }

    fn node6(&self, part: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, same_digits(self.fabric), 0, 0, 0, 0, 0, part)
    }

    fn pod6(&self, part: u16) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x10, same_digits(self.pods), part, 0, 0, 0, 0)
    }

    fn families<T>(&self, v4: impl Into<T>, v6: impl Into<T>) -> Vec<T> {
        let mut both = vec![v4.into()];
        if self.ipv6 {
            both.push(v6.into());
        }
        both
    }
}

/// The number whose hexadecimal digits are the decimal ones of this: 244 is 0x244.
fn same_digits(number: u8) -> u16 {
    let number = u16::from(number);
    ((number / 100) << 8) | ((number / 10 % 10) << 4) | (number % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_plan_is_the_one_of_the_documentation() {
        let plan = Addresses::usual(true);

        let shown: Vec<String> = plan.pod_cidrs(0).iter().map(ToString::to_string).collect();

        assert_eq!(shown, ["10.244.1.0/24", "fd00:10:244:1::/64"]);
        assert_eq!(plan.node(1)[1].to_string(), "fd00:77::2");
    }

    #[test]
    fn plans_of_runs_differ_and_networks_never_meet() {
        let plans: Vec<Addresses> = (0_u16..300)
            .map(|run| Addresses::of_run(&format!("tp{run:04x}"), true))
            .collect();

        assert!(plans.iter().any(|plan| *plan != plans[0]));
        for plan in plans {
            let pods = plan.pod_networks();
            let services = plan.services();
            for (pods, services) in pods.iter().zip(&services) {
                assert!(
                    !pods.contains(services) && !services.contains(pods),
                    "{plan:?}"
                );
            }
            assert!(pods[0].contains(&plan.pod_cidrs(25)[0]));
            assert!(pods[1].contains(&plan.pod_cidrs(25)[1]));
        }
    }
}
