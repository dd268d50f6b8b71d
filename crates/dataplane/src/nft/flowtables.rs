//! Flowtables of this namespace. We have none; those of others carry established traffic past our chains.

use nix::errno::Errno;
use smol_str::SmolStr;

use super::uapi::NETLINK_NETFILTER;
use crate::link::NetlinkError;
use crate::link::socket::RequestSocket;
use crate::link::wire::{Attributes, NLM_F_DUMP, Request, text};

/// `NFT_MSG_NEWFLOWTABLE` and `NFT_MSG_GETFLOWTABLE` of the subsystem `NFNL_SUBSYS_NFTABLES`.
const NEW_FLOWTABLE: u16 = 0x0a16;
const GET_FLOWTABLE: u16 = 0x0a17;
const NFTA_FLOWTABLE_TABLE: u16 = 1;
const NFTA_FLOWTABLE_NAME: u16 = 2;
const NFTA_FLOWTABLE_HOOK: u16 = 3;
const NFTA_FLOWTABLE_HOOK_DEVS: u16 = 3;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

/// A flowtable.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Flowtable {
    /// Its table.
    pub table: SmolStr,
    /// Its name.
    pub name: SmolStr,
    /// Names of the interfaces between which it carries packets.
    pub interfaces: Vec<SmolStr>,
}

/// Lists the flowtables of the network namespace of the calling thread, of all families, in order.
pub fn flowtables() -> Result<Vec<Flowtable>, NetlinkError> {
    let mut socket =
        RequestSocket::open(i32::try_from(NETLINK_NETFILTER).expect("a small number"))?;
    let mut found = Vec::new();
    let request = Request::new(GET_FLOWTABLE, NLM_F_DUMP, &[0; HEADER]);
    let listed = socket.exchange("list", format_args!("flowtables"), request, |message| {
        if message.kind == NEW_FLOWTABLE {
            found.extend(flowtable(message.payload));
        }
    });
    match listed {
        // A kernel without flowtables has none.
        Err(error) if matches!(error.errno(), Some(Errno::EOPNOTSUPP | Errno::EINVAL)) => {
            return Ok(Vec::new());
        }
        listed => listed?,
    };
    found.sort_unstable();
    Ok(found)
}

fn flowtable(payload: &[u8]) -> Option<Flowtable> {
    let (mut table, mut name, mut interfaces) = (None, None, Vec::new());
    for (kind, value) in Attributes(payload.get(HEADER..)?) {
        match kind {
            NFTA_FLOWTABLE_TABLE => table = Some(SmolStr::new(text(value))),
            NFTA_FLOWTABLE_NAME => name = Some(SmolStr::new(text(value))),
            NFTA_FLOWTABLE_HOOK => {
                let devices =
                    Attributes(value).filter(|(kind, _)| *kind == NFTA_FLOWTABLE_HOOK_DEVS);
                let names = devices.flat_map(|(_, devices)| Attributes(devices));
                interfaces.extend(names.map(|(_, name)| SmolStr::new(text(name))));
            }
            _ => {}
        }
    }
    interfaces.sort_unstable();
    Some(Flowtable {
        table: table?,
        name: name?,
        interfaces,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(flowtable(&bytes).is_none() || bytes.len() >= HEADER);
        }
    }
}
