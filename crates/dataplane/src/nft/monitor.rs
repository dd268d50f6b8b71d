//! Hears who changes the ruleset, so that tampering can be healed where tables cannot be owned.
//!
//! An event says that a commit happened, whose it was and which of our families' tables it touched, not what it did:
//! whoever heals reads back and compares. Our own commits are heard too; [`Commit::port`] tells them apart.

use std::collections::BTreeSet;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use netlink_sys::Socket;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::backend::CommitError;
use super::batch::NFGENMSG;
use super::decode;
use super::netlink::{receive, transport};
use super::object::Table;
use super::uapi::{NETLINK_NETFILTER, NFNL_SUBSYS_NFTABLES, NFNLGRP_NFTABLES, message};
use crate::link::Waker;
use crate::link::wake::Sleeper;
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

/// What one wait brought.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Heard {
    /// The events in the kernel's order.
    pub events: Vec<RulesetEvent>,
    /// Whether a [`Waker`] ended the wait.
    pub is_woken: bool,
}

/// A socket that hears the events of the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Monitor {
    socket: Socket,
    sleeper: Sleeper,
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
            sleeper: Sleeper::new().map_err(transport("make a pipe"))?,
            buffer: vec![0; DATAGRAM],
            tables: BTreeSet::new(),
        })
    }

    /// A handle that ends [`Monitor::wait`] from another thread.
    pub fn waker(&self) -> Waker {
        self.sleeper.waker()
    }

    /// Waits for events, a waker or the end of `timeout`, whichever is first, and takes what is there. A commit whose
    /// end was not heard yet is no event.
    pub fn wait(&mut self, timeout: Duration) -> Result<Heard, CommitError> {
        let awake = self
            .sleeper
            .wait(self.socket.as_fd(), timeout)
            .map_err(transport("wait for ruleset events"))?;
        Ok(Heard {
            events: self.read()?,
            is_woken: awake.is_woken,
        })
    }

    /// What was heard so far; does not wait.
    fn read(&mut self) -> Result<Vec<RulesetEvent>, CommitError> {
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
