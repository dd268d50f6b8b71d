//! Hears who changes the ruleset, so that tampering can be healed where tables cannot be owned.
//!
//! An event says that a commit happened, whose it was and which of our families' tables it touched, not what it did:
//! whoever heals reads back and compares. Our own commits are heard too; [`Commit::port`] tells them apart.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::Socket;
use nix::errno::Errno;
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};

use super::backend::CommitError;
use super::batch::NFGENMSG;
use super::decode;
use super::netlink::{receive, transport};
use super::object::Table;
use super::uapi::{NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, message};
use crate::link::wire::{Attributes, Message, Messages};

/// Room for the messages of a commit with some ten thousand elements.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
const DATAGRAM: usize = 64 * 1024;

/// What was heard.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RulesetEvent {
    /// Somebody committed.
    Commit(Commit),
    /// Messages were lost: anything may have changed.
    Overrun,
}

/// One commit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Commit {
    /// Generation of the ruleset since then.
    pub generation: u32,
    /// Port of the socket that committed; ours is [`super::NetlinkBackend::port`].
    pub port: u32,
    /// Id of the thread that committed, as the kernel counts: in a PID namespace it is not ours.
    pub thread: u32,
    /// The inet and bridge tables in which something was added, changed or removed.
    pub tables: BTreeSet<Table>,
}

/// A socket that hears the events of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    buffer: Vec<u8>,
    /// Tables of the commit whose end was not heard yet.
    tables: BTreeSet<Table>,
}

impl Monitor {
    /// Opens the socket; what is committed from now on is heard.
    pub fn open() -> Result<Self, CommitError> {
        let mut socket =
            Socket::new(NETLINK_NETFILTER).map_err(transport("open a netlink socket"))?;
        // Without an address the group delivers nothing.
        socket
            .bind_auto()
            .map_err(transport("bind a netlink socket"))?;
        socket
            .set_non_blocking(true)
            .map_err(transport("set up a netlink socket"))?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER)
            .map_err(|error| transport("enlarge a netlink buffer")(error.into()))?;
        socket
            .add_membership(NFNLGRP_NFTABLES)
            .map_err(transport("listen to ruleset events"))?;
        Ok(Self {
            socket,
            buffer: vec![0; DATAGRAM],
            tables: BTreeSet::new(),
        })
    }

    /// Waits until something is heard, or for `timeout`; then nothing may be given.
    pub fn wait(&mut self, timeout: Duration) -> Result<Vec<RulesetEvent>, CommitError> {
        let deadline = Instant::now() + timeout;
        loop {
            let events = self.read()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if !events.is_empty() || left.is_zero() {
                return Ok(events);
            }
            let mut descriptors = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
            // Rounded up, so that the last millisecond is not spent spinning.
            let milliseconds = PollTimeout::try_from(left + Duration::from_millis(1));
            match poll(&mut descriptors, milliseconds.unwrap_or(PollTimeout::MAX)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(transport("wait for ruleset events")(error.into())),
            }
        }
    }

    /// What was heard so far; does not wait.
    pub fn read(&mut self) -> Result<Vec<RulesetEvent>, CommitError> {
        let mut events = Vec::new();
        loop {
            let length = match receive(&self.socket, &mut self.buffer) {
                Ok(Some(length)) => length,
                Ok(None) => return Ok(events),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    events.push(RulesetEvent::Overrun);
                    continue;
                }
                Err(error) => return Err(transport("read ruleset events")(error)),
            };
            for message in Messages(self.buffer.get(..length).unwrap_or_default()) {
                events.extend(hear(&mut self.tables, &message));
            }
        }
    }
}

impl AsFd for Monitor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Collects tables until the message that ends a commit.
fn hear(tables: &mut BTreeSet<Table>, received: &Message<'_>) -> Option<RulesetEvent> {
    let [subsystem, kind] = received.kind.to_be_bytes();
    if u16::from(subsystem) != NFNL_SUBSYS_NFTABLES {
        return None;
    }
    if kind != message::NEWGEN {
        tables.extend(decode::touched_table(received));
        return None;
    }
    let attributes = Attributes(received.payload.get(NFGENMSG..)?);
    let (generation, thread) = decode::generation_and_thread(&attributes)?;
    let tables = std::mem::take(tables);
    Some(RulesetEvent::Commit(Commit {
        generation,
        port: received.port,
        thread,
        tables,
    }))
}
