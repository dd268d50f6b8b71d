//! One value for each address family, either of which may be absent, in any order of the input.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// At most one network of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Networks {
    /// IPv4.
    pub ipv4: Option<Ipv4Net>,
    /// IPv6.
    pub ipv6: Option<Ipv6Net>,
}

impl Networks {
    /// Sets the network of its family, without host bits; `false` if another one stands there already.
    pub(crate) fn put(&mut self, network: IpNet) -> bool {
        match network {
            IpNet::V4(network) => put(&mut self.ipv4, network.trunc()),
            IpNet::V6(network) => put(&mut self.ipv6, network.trunc()),
        }
    }

    /// The networks that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpNet> + use<> {
        let ipv4 = self.ipv4.map(IpNet::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpNet::V6))
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.ipv4.is_none() && self.ipv6.is_none()
    }

    /// These, and of a family that they lack those of `other`.
    pub(crate) fn or(self, other: Self) -> Self {
        Self {
            ipv4: self.ipv4.or(other.ipv4),
            ipv6: self.ipv6.or(other.ipv6),
        }
    }
}

/// At most one address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Addresses {
    /// IPv4.
    pub ipv4: Option<Ipv4Addr>,
    /// IPv6.
    pub ipv6: Option<Ipv6Addr>,
}

impl Addresses {
    /// The addresses that there are, IPv4 first.
    pub fn iter(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let ipv4 = self.ipv4.map(IpAddr::V4);
        ipv4.into_iter().chain(self.ipv6.map(IpAddr::V6))
    }
}

fn put<T: PartialEq + Copy>(slot: &mut Option<T>, value: T) -> bool {
    *slot.get_or_insert(value) == value
}

/// Whether an address can be that of an interface which others send to.
pub(crate) fn is_usable(address: IpAddr) -> bool {
    !(address.is_unspecified()
        || address.is_loopback()
        || address.is_multicast()
        || address == IpAddr::V4(Ipv4Addr::BROADCAST))
}
