//! Which eBPF programs others have attached to interfaces, as far as netlink tells: XDP and the traffic control hooks.
//!
//! Programs of the newer `tcx` and `netkit` hooks and of control groups are not to be seen this way.

use std::collections::BTreeMap;

use nix::errno::Errno;
use smol_str::SmolStr;

use super::decode::{self, IFLA_XDP};
use super::error::NetlinkError;
use super::scan::{Scanner, links_request};
use super::wire::{Attributes, NLM_F_DUMP, Request, text, u32_at};

const RTM_NEWLINK: u16 = 16;
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_NAME: u16 = 7;
const IFLA_XDP_ATTACHED: u16 = 2;
/// Length of `struct tcmsg`.
const HEADER: usize = 20;
/// `TC_H_CLSACT` with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`. The older qdisc `ingress` has its filters at the first.
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Where a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgramHook {
    /// Before the kernel makes a packet of what it received.
    Xdp,
    /// Traffic control, on the way in.
    Ingress,
    /// Traffic control, on the way out.
    Egress,
}

/// A program on an interface.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AttachedProgram {
    /// The interface.
    pub index: u32,
    /// Where it hangs.
    pub hook: ProgramHook,
    /// Its name, where it has one and the kernel tells: not for XDP.
    pub name: Option<SmolStr>,
}

impl Scanner {
    /// The programs on interfaces of this namespace, in order.
    pub fn attached_programs(&mut self) -> Result<Vec<AttachedProgram>, NetlinkError> {
        let mut found = self.sorted_list(
            "XDP programs",
            RTM_NEWLINK,
            || links_request(0, NLM_F_DUMP),
            xdp_program,
        )?;
        let qdiscs = self.sorted_list(
            "queueing disciplines",
            RTM_NEWQDISC,
            || Request::new(RTM_GETQDISC, NLM_F_DUMP, &[0; HEADER]),
            hooking_qdisc,
        );
        let qdiscs = match qdiscs {
            // A kernel without traffic control has none.
            Err(error) if error.errno() == Some(Errno::EOPNOTSUPP) => Vec::new(),
            listed => listed?,
        };
        for index in qdiscs {
            for (parent, hook) in [
                (INGRESS, ProgramHook::Ingress),
                (EGRESS, ProgramHook::Egress),
            ] {
                found.extend(self.filters(index, parent, hook)?);
            }
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    fn filters(
        &mut self,
        index: u32,
        parent: u32,
        hook: ProgramHook,
    ) -> Result<Vec<AttachedProgram>, NetlinkError> {
        let mut header = [0; HEADER];
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        header[12..16].copy_from_slice(&parent.to_ne_bytes());
        let listed = self.sorted_list(
            "filters of an interface",
            RTM_NEWTFILTER,
            || Request::new(RTM_GETTFILTER, NLM_F_DUMP, &header),
            |payload| filter(payload, hook),
        );
        match listed {
            // The interface, or its discipline, is gone; `ingress` has no way out.
            Err(error)
                if matches!(
                    error.errno(),
                    Some(Errno::EINVAL | Errno::ENODEV | Errno::ENOENT)
                ) =>
            {
                Ok(Vec::new())
            }
            listed => listed,
        }
    }
}

fn xdp_program(payload: &[u8]) -> Option<AttachedProgram> {
    let record = decode::link(payload)?;
    let (_, xdp) = Attributes(payload.get(16..)?).find(|(kind, _)| *kind == IFLA_XDP)?;
    let (_, attached) = Attributes(xdp).find(|(kind, _)| *kind == IFLA_XDP_ATTACHED)?;
    (attached.first() != Some(&0)).then_some(AttachedProgram {
        index: record.interface.index,
        hook: ProgramHook::Xdp,
        name: None,
    })
}

/// The interface of a discipline at which programs may hang.
fn hooking_qdisc(payload: &[u8]) -> Option<u32> {
    let attributes = attributes(payload)?;
    let kind = text(attributes.get(&TCA_KIND)?);
    matches!(&*kind, "clsact" | "ingress").then(|| u32_at(payload, 4))?
}

fn filter(payload: &[u8], hook: ProgramHook) -> Option<AttachedProgram> {
    let attributes = attributes(payload)?;
    if text(attributes.get(&TCA_KIND)?) != "bpf" {
        return None;
    }
    // The first message about a chain of filters has none.
    let options = attributes.get(&TCA_OPTIONS)?;
    // A classic program has no name.
    let name = Attributes(options).find(|(kind, _)| *kind == TCA_BPF_NAME);
    Some(AttachedProgram {
        index: u32_at(payload, 4)?,
        hook,
        name: name.map(|(_, name)| SmolStr::new(text(name))),
    })
}

fn attributes(payload: &[u8]) -> Option<BTreeMap<u16, &[u8]>> {
    Some(Attributes(payload.get(HEADER..)?).collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_read_without_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(xdp_program(&bytes).is_none() || bytes.len() >= 16);
            prop_assert!(hooking_qdisc(&bytes).is_none() || bytes.len() >= HEADER);
            prop_assert!(filter(&bytes, ProgramHook::Ingress).is_none() || bytes.len() >= HEADER);
        }
    }
}
