//! Contradictions between sources. What they are about stays closed.

use std::fmt;
use std::net::IpAddr;

use smol_str::SmolStr;
use towpath_core::model::MacAddress;

use crate::source::{Identity, SourceName};

/// A contradiction.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Conflict {
    /// Two sources take an interface for two endpoints.
    Identities {
        /// The interface.
        interface: SmolStr,
        /// Who one says it is.
        first: (SourceName, Identity),
        /// Who the other says it is.
        second: (SourceName, Identity),
    },
    /// A source tells addresses of an interface behind which there are only others.
    Addresses {
        /// The interface.
        interface: SmolStr,
        /// Who tells.
        source: SourceName,
        /// What it tells.
        told: Vec<IpAddr>,
        /// What is there.
        found: Vec<IpAddr>,
    },
    /// Several interfaces have one address, and nobody knows whose it is.
    Shared {
        /// The address.
        address: IpAddr,
        /// The interfaces.
        interfaces: Vec<SmolStr>,
    },
    /// An interface has an address that is known to be another's. It stays the other's.
    Taken {
        /// The address.
        address: IpAddr,
        /// Whose it is.
        owner: SmolStr,
        /// Who has it too.
        taker: SmolStr,
    },
    /// Several ports of a bridge show one hardware address. It stays that of the one of which who plugged it in told it, or that
    /// had it first; without such a one, all are closed.
    Hardware {
        /// The hardware address.
        mac: MacAddress,
        /// Whose it stays.
        owner: Option<SmolStr>,
        /// The others.
        closed: Vec<SmolStr>,
    },
}

impl fmt::Display for Conflict {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |addresses: &[IpAddr]| {
            let texts: Vec<String> = addresses.iter().map(ToString::to_string).collect();
            texts.join(" ")
        };
        match self {
            Self::Identities {
                interface,
                first,
                second,
            } => write!(
                formatter,
                "{interface} is {} for {} and {} for {}; it stays closed until they agree",
                first.1, first.0, second.1, second.0
            ),
            Self::Addresses {
                interface,
                source,
                told,
                found,
            } => write!(
                formatter,
                "{source} tells {} of {interface}, which has {}; it stays closed until they agree",
                list(told),
                list(found)
            ),
            Self::Shared {
                address,
                interfaces,
            } => write!(
                formatter,
                "{address} is behind {}; it stays closed until one is left",
                interfaces.join(" and ")
            ),
            Self::Taken {
                address,
                owner,
                taker,
            } => write!(
                formatter,
                "{taker} has {address} too, which is that of {owner}; it is not let in with it"
            ),
            Self::Hardware { mac, owner, closed } => {
                let closed = closed.join(" and ");
                match owner {
                    Some(owner) => write!(
                        formatter,
                        "{closed} has {mac} too, which is that of {owner}; it stays closed until it has another"
                    ),
                    None => write!(
                        formatter,
                        "{mac} is behind {closed}; they stay closed until one is left"
                    ),
                }
            }
        }
    }
}
