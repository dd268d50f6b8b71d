//! Lists links and addresses of this namespace, and of the namespaces behind its veths.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::libc;

use super::decode::{
    self, IFA_TARGET_NETNSID, IFLA_EXT_MASK, IFLA_TARGET_NETNSID, LinkRecord,
    RTEXT_FILTER_SKIP_STATS, RTM_GETADDR, RTM_GETLINK, RTM_GETNSID, RTM_NEWADDR, RTM_NEWLINK,
    RTM_NEWNSID,
};
use super::error::NetlinkError;
use super::inventory::Inventory;
use super::model::{HostAddress, Interface, NamespaceId, Peer, PeerFacts, Scan, Snapshot};
use super::socket::{Outcome, RequestSocket};
use super::watch::Event;
use super::wire::{Attributes, NLM_F_ACK, NLM_F_DUMP, Request};

/// `NETLINK_ROUTE`.
const PROTOCOL: i32 = 0;
const NETNSA_NSID: u16 = 1;
const NETNSA_FD: u16 = 3;
/// Length of `struct rtgenmsg`, padded.
const GENERIC_HEADER: [u8; 4] = [0; 4];
/// `struct ifaddrmsg` of a dump of both families.
const ANY_ADDRESS: [u8; 8] = [0; 8];
/// How often a list that changes under us is asked for again.
const ATTEMPTS: u32 = 5;

/// Asks the kernel about the interfaces of the namespace in which it was opened.
#[derive(Debug)]
pub struct Scanner {
    pub(super) socket: RequestSocket,
    own_nsid: NamespaceId,
}

/// An interface in another namespace that names one of ours.
#[derive(Debug)]
struct End {
    /// The interface of this namespace.
    index: u32,
    /// The interface that names it.
    peer: Peer,
    facts: PeerFacts,
}

impl Scanner {
    /// Opens a scanner for the network namespace of the calling thread. Needs `CAP_NET_ADMIN`.
    pub fn open() -> Result<Self, NetlinkError> {
        let mut socket = RequestSocket::open(PROTOCOL)?;
        socket.enable_strict_checks()?;
        let own_nsid = own_namespace_id(&mut socket)?;
        Ok(Self { socket, own_nsid })
    }

    /// The number of our own namespace, as the other ends of our veths name it.
    pub(super) fn own_nsid(&self) -> NamespaceId {
        self.own_nsid
    }

    /// Lists everything: two lists of this namespace and two of each namespace behind a veth.
    ///
    /// A namespace that vanishes meanwhile is no error: its interfaces then have no facts.
    pub fn discover(&mut self) -> Result<Snapshot, NetlinkError> {
        let interfaces = self.interfaces()?;
        let namespaces: BTreeSet<NamespaceId> = interfaces
            .iter()
            .filter_map(|interface| Some(interface.peer?.nsid))
            .collect();
        let mut peers = BTreeMap::new();
        for nsid in namespaces {
            for end in self.ends_in(nsid)? {
                let known =
                    interfaces.binary_search_by_key(&end.index, |interface| interface.index);
                if known.is_ok_and(|position| interfaces[position].peer == Some(end.peer)) {
                    peers.insert(end.index, end.facts);
                }
            }
        }
        Ok(Snapshot {
            interfaces,
            host_addresses: self.host_addresses()?,
            peers,
        })
    }

    /// Looks only at what `event` is about, and at what `inventory` believed about it.
    pub fn follow(
        &mut self,
        event: &Event,
        inventory: &Inventory,
    ) -> Result<Vec<Scan>, NetlinkError> {
        match *event {
            Event::Link { index } => Ok(vec![self.rescan_link(index)?]),
            Event::HostAddresses => Ok(vec![Scan::HostAddresses(self.host_addresses()?)]),
            Event::Overrun | Event::Poll => Ok(vec![Scan::Full(self.discover()?)]),
            Event::Namespace { nsid } => {
                let members = self.rescan_namespace(nsid)?;
                let found: BTreeSet<u32> = match &members {
                    Scan::Namespace { members, .. } => members
                        .iter()
                        .map(|(interface, _)| interface.index)
                        .collect(),
                    Scan::Full(_) | Scan::Link { .. } | Scan::HostAddresses(_) => BTreeSet::new(),
                };
                let mut scans = vec![members];
                // An interface whose other end is no longer there is gone, or its other end has moved.
                for index in inventory.interfaces_into(nsid) {
                    if !found.contains(&index) {
                        scans.push(self.rescan_link(index)?);
                    }
                }
                Ok(scans)
            }
        }
    }

    /// Looks at one interface of this namespace and its other end.
    pub fn rescan_link(&mut self, index: u32) -> Result<Scan, NetlinkError> {
        let Some(interface) = self.interface(index)? else {
            return Ok(Scan::Link { index, found: None });
        };
        let facts = match interface.peer {
            Some(peer) => self
                .ends_in(peer.nsid)?
                .into_iter()
                .find(|end| end.index == index && end.peer == peer)
                .map(|end| end.facts),
            None => None,
        };
        Ok(Scan::Link {
            index,
            found: Some((interface, facts)),
        })
    }

    /// Looks at one other namespace and at the interfaces of this one that lead there.
    pub fn rescan_namespace(&mut self, nsid: NamespaceId) -> Result<Scan, NetlinkError> {
        let mut members = Vec::new();
        for end in self.ends_in(nsid)? {
            if let Some(interface) = self.interface(end.index)?
                && interface.peer == Some(end.peer)
            {
                members.push((interface, end.facts));
            }
        }
        Ok(Scan::Namespace { nsid, members })
    }

    /// The addresses of this namespace, in order.
    pub fn host_addresses(&mut self) -> Result<Vec<HostAddress>, NetlinkError> {
        let mut addresses = Vec::new();
        self.settled(
            format_args!("addresses of this host"),
            || Request::new(RTM_GETADDR, NLM_F_DUMP, &ANY_ADDRESS),
            &mut addresses,
            |addresses, payload| {
                addresses.extend(decode::address(payload).map(|record| HostAddress {
                    index: record.index,
                    address: record.address,
                    prefix_length: record.prefix_length,
                }));
            },
        )?;
        addresses.sort_unstable();
        Ok(addresses)
    }

    /// The interfaces of this namespace, by number.
    pub(super) fn interfaces(&mut self) -> Result<Vec<Interface>, NetlinkError> {
        let mut interfaces = Vec::new();
        self.settled(
            format_args!("interfaces of this host"),
            || links_request(0, NLM_F_DUMP),
            &mut interfaces,
            |interfaces, payload| {
                interfaces.extend(decode::link(payload).map(|record| record.interface));
            },
        )?;
        interfaces.sort_unstable_by_key(|interface| interface.index);
        Ok(interfaces)
    }

    /// One interface of this namespace, none if there is no such number.
    pub fn interface(&mut self, index: u32) -> Result<Option<Interface>, NetlinkError> {
        let mut found = None;
        let outcome = self.socket.exchange(
            "look up",
            format_args!("interface number {index}"),
            links_request(index, NLM_F_ACK),
            |message| {
                if message.kind == RTM_NEWLINK {
                    found = decode::link(message.payload);
                }
            },
        );
        match outcome {
            Ok(_) => Ok(found.map(|record| record.interface)),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The interfaces in `nsid` that name one of this namespace as their other end. Empty if `nsid` is gone.
    ///
    /// The caller keeps those whose other end names them in turn: a macvlan names its lower device too, and a number can
    /// come to mean another namespace between two requests.
    fn ends_in(&mut self, nsid: NamespaceId) -> Result<Vec<End>, NetlinkError> {
        let mut facts: BTreeMap<u32, PeerFacts> = BTreeMap::new();
        let addresses = self.listed(
            format_args!("addresses in {nsid}"),
            || {
                Request::new(RTM_GETADDR, NLM_F_DUMP, &ANY_ADDRESS)
                    .attribute(IFA_TARGET_NETNSID, &nsid.to_kernel())
            },
            &mut facts,
            |facts, payload| {
                if let Some(record) = decode::address(payload)
                    && record.target == Some(nsid)
                {
                    facts.entry(record.index).or_default().add(record.address);
                }
            },
        );
        let mut ends = Vec::new();
        let links = addresses.and_then(|_| {
            self.listed(
                format_args!("interfaces in {nsid}"),
                // No filter mask: for one, the kernel first measures every interface of our own namespace.
                || {
                    Request::new(RTM_GETLINK, NLM_F_DUMP, &decode::link_header(0))
                        .attribute(IFLA_TARGET_NETNSID, &nsid.to_kernel())
                },
                &mut ends,
                |ends: &mut Vec<LinkRecord>, payload| ends.extend(decode::link(payload)),
            )
        });
        match links {
            // The kernel knows no such number (any more).
            Err(error) if error.errno() == Some(Errno::EINVAL) => return Ok(Vec::new()),
            Err(error) => return Err(error),
            // A namespace that keeps changing announces each change, so the next event corrects this.
            Ok(Outcome::Complete | Outcome::Interrupted) => {}
        }
        Ok(ends
            .into_iter()
            .filter(|end| end.target == Some(nsid) && end.link_nsid == Some(self.own_nsid))
            .filter_map(|end| {
                let mut known = facts.remove(&end.interface.index).unwrap_or_default();
                known.addresses.sort_unstable();
                known.addresses.dedup();
                known.mac = end.interface.mac;
                Some(End {
                    index: end.link?,
                    peer: Peer {
                        nsid,
                        index: end.interface.index,
                    },
                    facts: known,
                })
            })
            .collect())
    }

    /// Lists until no change came in between; an error after [`ATTEMPTS`].
    fn settled<T>(
        &mut self,
        object: fmt::Arguments<'_>,
        request: impl Fn() -> Request,
        found: &mut T,
        each: impl Fn(&mut T, &[u8]),
    ) -> Result<(), NetlinkError>
    where
        T: Default,
    {
        match self.listed(object, request, found, each)? {
            Outcome::Complete => Ok(()),
            Outcome::Interrupted => Err(NetlinkError::Unsettled {
                object: object.to_string(),
                attempts: ATTEMPTS,
            }),
        }
    }

    /// Lists, and again if a change came in between, at most [`ATTEMPTS`] times.
    fn listed<T: Default>(
        &mut self,
        object: fmt::Arguments<'_>,
        request: impl Fn() -> Request,
        found: &mut T,
        each: impl Fn(&mut T, &[u8]),
    ) -> Result<Outcome, NetlinkError> {
        self.listed_kinds(object, &[RTM_NEWLINK, RTM_NEWADDR], request, found, each)
    }

    /// The same for messages of these kinds.
    pub(super) fn listed_kinds<T: Default>(
        &mut self,
        object: fmt::Arguments<'_>,
        kinds: &[u16],
        request: impl Fn() -> Request,
        found: &mut T,
        each: impl Fn(&mut T, &[u8]),
    ) -> Result<Outcome, NetlinkError> {
        for _ in 0..ATTEMPTS {
            *found = T::default();
            let outcome = self.socket.exchange("list", object, request(), |message| {
                if kinds.contains(&message.kind) {
                    each(found, message.payload);
                }
            })?;
            if outcome == Outcome::Complete {
                return Ok(outcome);
            }
        }
        Ok(Outcome::Interrupted)
    }
}

impl PeerFacts {
    /// Adds an address if others can send to it.
    fn add(&mut self, address: IpAddr) {
        let is_link_local = match address {
            IpAddr::V4(address) => address.is_link_local(),
            IpAddr::V6(address) => address.is_unicast_link_local(),
        };
        if is_link_local {
            self.has_link_local |= address.is_ipv6();
        } else if !address.is_loopback()
            && !address.is_multicast()
            && !address.is_unspecified()
            && self.addresses.len() < Self::MAX_ADDRESSES
        {
            self.addresses.push(address);
        }
    }
}

/// A request for one interface or, with 0 and the flag for it, all.
pub(super) fn links_request(index: u32, flags: u16) -> Request {
    Request::new(RTM_GETLINK, flags, &decode::link_header(index))
        .attribute(IFLA_EXT_MASK, &RTEXT_FILTER_SKIP_STATS.to_ne_bytes())
}

/// Asks for the number that our namespace has in its own list, and has one given out where it has none.
///
/// The kernel marks events and the far ends of our veths with it.
fn own_namespace_id(socket: &mut RequestSocket) -> Result<NamespaceId, NetlinkError> {
    let namespace = namespace_of(socket.as_fd())?;
    let descriptor = namespace.as_raw_fd().to_ne_bytes();
    let create = Request::new(RTM_NEWNSID, NLM_F_ACK, &GENERIC_HEADER)
        .attribute(NETNSA_NSID, &(-1_i32).to_ne_bytes())
        .attribute(NETNSA_FD, &descriptor);
    match socket.exchange("number", format_args!("our namespace"), create, |_| {}) {
        Ok(_) => {}
        Err(error) if error.errno() == Some(Errno::EEXIST) => {}
        Err(error) => return Err(error),
    }
    let mut found = None;
    let read =
        Request::new(RTM_GETNSID, NLM_F_ACK, &GENERIC_HEADER).attribute(NETNSA_FD, &descriptor);
    socket.exchange("look up", format_args!("our namespace"), read, |message| {
        found = message
            .payload
            .get(GENERIC_HEADER.len()..)
            .and_then(|attributes| Attributes(attributes).find(|(kind, _)| *kind == NETNSA_NSID))
            .and_then(|(_, value)| decode::namespace_id(value));
    })?;
    found.ok_or_else(|| NetlinkError::Malformed {
        object: "our namespace".to_owned(),
    })
}

/// Opens the network namespace of a socket, without the proc file system. Needs `CAP_NET_ADMIN`.
#[expect(unsafe_code, reason = "an ioctl that no safe crate wraps")]
fn namespace_of(socket: BorrowedFd<'_>) -> Result<OwnedFd, NetlinkError> {
    /// `SIOCGSKNS`: get a socket's network namespace.
    const GET_SOCKET_NAMESPACE: libc::c_ulong = 0x894c;
    // SAFETY: the descriptor is open for as long as `socket` lives, and this request takes no argument.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), GET_SOCKET_NAMESPACE as _) };
    let descriptor = Errno::result(result).map_err(|source| NetlinkError::Refused {
        action: "open",
        object: "our network namespace".to_owned(),
        detail: "; CAP_NET_ADMIN is needed".to_owned(),
        source,
    })?;
    // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}
