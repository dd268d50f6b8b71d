//! Tells when links or addresses change, here and in the namespaces behind our veths.

use std::collections::BTreeSet;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, NetlinkAddr, recvmsg, setsockopt, sockopt};

use super::decode::{self, RTM_DELADDR, RTM_DELLINK, RTM_NEWADDR, RTM_NEWLINK};
use super::error::NetlinkError;
use super::model::NamespaceId;
use super::scan::Scanner;
use super::socket;
use super::wake::{Sleeper, Waker};
use super::wire::Messages;

/// `NETLINK_ROUTE`.
const PROTOCOL: i32 = 0;
const SOL_NETLINK: i32 = 270;
const NETLINK_LISTEN_ALL_NSID: i32 = 8;
/// `RTNLGRP_LINK`, `RTNLGRP_IPV4_IFADDR`, `RTNLGRP_IPV6_IFADDR`.
const GROUPS: [u32; 3] = [1, 5, 9];
/// Room for bursts, such as a node that drains.
const RECEIVE_BUFFER: usize = 4 * 1024 * 1024;
/// The kernel allocates one page per notification, of up to 64 KiB on large-page machines.
const DATAGRAM: usize = 64 * 1024;
/// More different events than this in one go are answered by one full scan.
const MOST_EVENTS: usize = 512;
/// Datagrams read in one go, so that a flood cannot keep the caller from acting.
const MOST_DATAGRAMS: usize = 4096;
/// How often to look again where namespaces cannot be heard.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// What may have changed. Events say where to look, not what happened; see [`Scanner::follow`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    /// An interface of this namespace appeared, changed or vanished.
    Link {
        /// The interface's number.
        index: u32,
    },
    /// An address of this namespace.
    HostAddresses,
    /// An interface or an address in another namespace.
    Namespace {
        /// That namespace.
        nsid: NamespaceId,
    },
    /// Events were lost; everything may have changed.
    Overrun,
    /// Without the right to hear other namespaces: time to look at everything again.
    Poll,
}

/// What one wait brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wakeup {
    /// The events, each once, in order.
    pub events: Vec<Event>,
    /// Whether a [`Waker`] ended the wait.
    pub is_woken: bool,
}

/// A socket that hears of changes. Open it before the first scan, so that nothing falls in between.
#[derive(Debug)]
pub struct Watcher {
    socket: Socket,
    sleeper: Sleeper,
    own_nsid: NamespaceId,
    buffer: Vec<u8>,
    /// When to look again, where namespaces cannot be heard.
    next_poll: Option<Instant>,
}

impl Watcher {
    /// Starts to listen in the namespace of the calling thread, which must be that of `scanner`.
    ///
    /// Without `CAP_NET_BROADCAST` it works, but hears only this namespace and reports [`Event::Poll`] each second;
    /// [`Watcher::hears_namespaces`] tells.
    pub fn open(scanner: &Scanner) -> Result<Self, NetlinkError> {
        let mut socket = socket::open(PROTOCOL)?;
        enlarge_buffer(&mut socket)?;
        let next_poll = match socket.set_listen_all_namespaces(true) {
            Ok(()) => None,
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => {
                Some(Instant::now() + POLL_INTERVAL)
            }
            Err(error) => return Err(NetlinkError::socket("listen to other namespaces")(error)),
        };
        for group in GROUPS {
            socket
                .add_membership(group)
                .map_err(NetlinkError::socket("listen to links and addresses"))?;
        }
        Ok(Self {
            socket,
            sleeper: Sleeper::new().map_err(NetlinkError::socket("make a pipe"))?,
            own_nsid: scanner.own_nsid(),
            buffer: vec![0; DATAGRAM],
            next_poll,
        })
    }

    /// Whether changes in other namespaces are heard at once rather than found by looking each second.
    pub fn hears_namespaces(&self) -> bool {
        self.next_poll.is_none()
    }

    /// A handle that ends [`Watcher::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    /// Waits for events, a waker or the end of `timeout`, whichever is first, and takes what is there.
    pub fn wait(&mut self, timeout: Duration) -> Result<Wakeup, NetlinkError> {
        let until_poll = self
            .next_poll
            .map(|due| due.saturating_duration_since(Instant::now()));
        let awake = self
            .sleeper
            .wait(
                self.socket.as_fd(),
                until_poll.map_or(timeout, |until_poll| until_poll.min(timeout)),
            )
            .map_err(NetlinkError::socket("wait for a netlink socket"))?;
        let mut events = BTreeSet::new();
        if awake.is_readable {
            self.read_all(&mut events)?;
        }
        let now = Instant::now();
        if self.next_poll.is_some_and(|due| due <= now) {
            self.next_poll = Some(now + POLL_INTERVAL);
            events.insert(Event::Poll);
        }
        // Both mean a look at everything.
        if events.contains(&Event::Overrun) {
            events = BTreeSet::from([Event::Overrun]);
        } else if events.contains(&Event::Poll) {
            events = BTreeSet::from([Event::Poll]);
        }
        Ok(Wakeup {
            events: events.into_iter().collect(),
            is_woken: awake.is_woken,
        })
    }

    /// Reads until the socket is empty.
    fn read_all(&mut self, events: &mut BTreeSet<Event>) -> Result<(), NetlinkError> {
        for _ in 0..MOST_DATAGRAMS {
            match self.read_one(events) {
                Ok(()) | Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                // The kernel had to drop notifications.
                Err(Errno::ENOBUFS) => {
                    events.insert(Event::Overrun);
                }
                Err(error) => return Err(NetlinkError::socket("read netlink events")(error)),
            }
            if events.len() > MOST_EVENTS {
                events.clear();
                events.insert(Event::Overrun);
            }
        }
        Ok(())
    }

    fn read_one(&mut self, events: &mut BTreeSet<Event>) -> Result<(), Errno> {
        let mut window = [IoSliceMut::new(&mut self.buffer)];
        let mut control = nix::cmsg_space!([i32; 1]);
        let received = recvmsg::<NetlinkAddr>(
            self.socket.as_raw_fd(),
            &mut window,
            Some(&mut control),
            MsgFlags::MSG_DONTWAIT,
        )?;
        if received.address.is_none_or(|sender| sender.pid() != 0) {
            // Only the kernel may tell us.
            return Ok(());
        }
        if received
            .flags
            .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC)
        {
            events.insert(Event::Overrun);
            return Ok(());
        }
        let origin = received.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::Unknown(message)
                if message.cmsg_header.cmsg_level == SOL_NETLINK
                    && message.cmsg_header.cmsg_type == NETLINK_LISTEN_ALL_NSID =>
            {
                decode::namespace_id(&message.data_bytes)
            }
            _ => None,
        });
        // Our own events carry our own number or none.
        let origin = origin.filter(|nsid| *nsid != self.own_nsid);
        let length = received.bytes;
        for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
            match (message.kind, origin) {
                (RTM_NEWLINK | RTM_DELLINK | RTM_NEWADDR | RTM_DELADDR, Some(nsid)) => {
                    events.insert(Event::Namespace { nsid });
                }
                (RTM_NEWLINK | RTM_DELLINK, None) => {
                    events.extend(
                        decode::link_index(message.payload).map(|index| Event::Link { index }),
                    );
                }
                (RTM_NEWADDR | RTM_DELADDR, None) => {
                    events.insert(Event::HostAddresses);
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Asks for a large buffer, and beyond the system's limit where we may.
pub(crate) fn enlarge_buffer(socket: &mut Socket) -> Result<(), NetlinkError> {
    setsockopt(socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
        .or_else(|_| setsockopt(socket, sockopt::RcvBuf, &RECEIVE_BUFFER))
        .map_err(NetlinkError::socket("enlarge a netlink buffer"))
}
