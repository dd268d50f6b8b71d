//! The first backend: transactions as one netlink batch each.
//!
//! The kernel handles a batch inside `send`, so all answers are there when it returns, and nothing here ever waits.
//! The socket is also the owner of the tables that it made with the owner flag: keep it for the life of the agent.

use std::fmt;
use std::io;

use netlink_sys::{Socket, SocketAddr};
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

use super::backend::{Backend, CommitError, is_transient};
use super::batch::Batch;
use super::compare::{ChainRules, VerifiedRules};
use super::encode::Encoder;
use super::object::{Element, Family, Name, Table, TableFlags};
use super::text::describe;
use super::transaction::{Operation, Transaction};
use super::uapi::NETLINK_NETFILTER;
use crate::link::wire::{
    HEADER, Message, Messages, NLM_F_DUMP_INTR, NLMSG_DONE, NLMSG_ERROR, i32_at, u32_at,
};

/// A batch is one datagram: room for 200,000 elements, taken by the kernel only while it is in flight.
const SEND_BUFFER: usize = 64 * 1024 * 1024;
/// Room for one error per operation of a large batch.
const RECEIVE_BUFFER: usize = 8 * 1024 * 1024;
/// The kernel fills at most 32 KiB per datagram of a dump.
const DATAGRAM: usize = 64 * 1024;
/// Batches keep this much memory between commits.
const KEPT_BUFFER: usize = 256 * 1024;

/// What the kernel can do with tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Features {
    /// A table can belong to a socket (kernel 5.12+).
    pub owner: bool,
    /// An owned table can outlive its socket and be adopted (kernel 6.9+).
    pub persist: bool,
}

impl Features {
    /// The flags with which tables are made here: owned and persistent, or plain. Never owned alone: such a table
    /// would die with the agent.
    pub fn table_flags(self) -> TableFlags {
        let both = self.owner && self.persist;
        TableFlags {
            owner: both,
            persist: both,
        }
    }
}

/// A netlink socket for nftables, of the network namespace of the thread that opened it.
pub struct NetlinkBackend {
    socket: Socket,
    port: u32,
    pub(super) batch: Batch,
    /// First sequence number of each operation of the batch.
    starts: Vec<u32>,
    receive: Vec<u8>,
    /// What comparisons have found right.
    pub(super) verified: VerifiedRules,
}

impl fmt::Debug for NetlinkBackend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetlinkBackend")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

/// An answer of the kernel to one message.
#[derive(Clone, Copy, Debug)]
struct Answer {
    sequence: u32,
    errno: i32,
}

impl NetlinkBackend {
    /// Opens the socket.
    pub fn open() -> Result<Self, CommitError> {
        let mut socket =
            Socket::new(NETLINK_NETFILTER).map_err(transport("open a netlink socket"))?;
        let address = socket
            .bind_auto()
            .map_err(transport("bind a netlink socket"))?;
        socket
            .set_non_blocking(true)
            .map_err(transport("set up a netlink socket"))?;
        // Without it an error repeats the whole message that it is about.
        socket
            .set_cap_ack(true)
            .map_err(transport("set up a netlink socket"))?;
        setsockopt(&socket, sockopt::SndBufForce, &SEND_BUFFER).map_err(|error| {
            transport("enlarge a netlink buffer (needs CAP_NET_ADMIN)")(error.into())
        })?;
        setsockopt(&socket, sockopt::RcvBufForce, &RECEIVE_BUFFER).map_err(|error| {
            transport("enlarge a netlink buffer (needs CAP_NET_ADMIN)")(error.into())
        })?;
        Ok(Self {
            socket,
            port: address.port_number(),
            batch: Batch::default(),
            starts: Vec::new(),
            receive: vec![0; DATAGRAM],
            verified: VerifiedRules::default(),
        })
    }

    /// Number of the socket: what owns our tables, and what [`super::Commit::port`] says of our own commits.
    pub fn port(&self) -> u32 {
        self.port
    }

    /// Tries which table flags the kernel knows, with a table that the same batch deletes.
    pub fn probe_features(&mut self) -> Result<Features, CommitError> {
        let owner = self.accepts(TableFlags {
            owner: true,
            persist: false,
        })?;
        let persist = self.accepts(TableFlags {
            owner: true,
            persist: true,
        })?;
        Ok(Features { owner, persist })
    }

    fn accepts(&mut self, flags: TableFlags) -> Result<bool, CommitError> {
        let name: Name = "towpath_probe".parse().expect("a good name");
        let table = Table {
            family: Family::Inet,
            name,
        };
        let operations = vec![
            Operation::AddTable(table.clone(), flags),
            Operation::DeleteTable(table),
        ];
        match self.commit(&Transaction { operations }) {
            Ok(()) => Ok(true),
            Err(CommitError::Refused { source, .. })
                if matches!(source.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EINVAL)) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Commits all operations or none, provided that the ruleset is still of this generation.
    pub fn commit_at(
        &mut self,
        transaction: &Transaction,
        generation: u32,
    ) -> Result<(), CommitError> {
        self.commit_batch(transaction, Some(generation))
    }

    fn commit_batch(
        &mut self,
        transaction: &Transaction,
        generation: Option<u32>,
    ) -> Result<(), CommitError> {
        if !self.encode(transaction, generation)? {
            return Ok(());
        }
        let result = self.send_batch(transaction);
        self.batch.shrink_to(KEPT_BUFFER);
        result
    }

    /// Fills the batch; `false` when there is nothing to do.
    fn encode(
        &mut self,
        transaction: &Transaction,
        generation: Option<u32>,
    ) -> Result<bool, CommitError> {
        self.batch.clear();
        self.starts.clear();
        self.batch.begin(generation);
        let begin = self.batch.sequence();
        let mut encoder = Encoder::new(&mut self.batch);
        for (index, operation) in transaction.operations.iter().enumerate() {
            self.starts.push(encoder.batch.sequence().wrapping_add(1));
            encoder
                .operation(operation)
                .map_err(|error| CommitError::Refused {
                    operation: describe(operation),
                    index,
                    source: io::Error::new(io::ErrorKind::InvalidInput, error.0),
                })?;
        }
        if self.batch.sequence() == begin {
            return Ok(false);
        }
        self.batch.end();
        Ok(true)
    }

    fn send_batch(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.drain();
        match self
            .socket
            .send_to(self.batch.bytes(), &SocketAddr::new(0, 0), 0)
        {
            Ok(_) => {}
            Err(error) if error.raw_os_error().is_some_and(is_transient) => {
                return Err(CommitError::Again(error));
            }
            Err(error) => return Err(transport("send a batch")(error)),
        }
        match self.first_answer()? {
            Answer { errno: 0, .. } => Ok(()),
            answer => Err(self.explain(answer, transaction)),
        }
    }

    /// Reads all answers to the batch: the first error, else the acknowledgement of the last message.
    fn first_answer(&mut self) -> Result<Answer, CommitError> {
        let mut acknowledged = None;
        let mut refused: Option<Answer> = None;
        let mut trouble = None;
        loop {
            let length = match receive(&self.socket, &mut self.receive) {
                Ok(Some(length)) => length,
                Ok(None) => break,
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {
                    trouble = Some(error);
                    continue;
                }
                Err(error) => return Err(transport("read a netlink answer")(error)),
            };
            for message in Messages(self.receive.get(..length).unwrap_or_default()) {
                let Some(answer) = error_answer(&message) else {
                    continue;
                };
                if answer.errno == 0 {
                    acknowledged = Some(answer);
                } else if refused.is_none_or(|first| answer.sequence < first.sequence) {
                    refused = Some(answer);
                }
            }
        }
        match (refused, trouble, acknowledged) {
            (Some(answer), _, _) | (None, None, Some(answer)) => Ok(answer),
            (None, Some(error), _) => Err(CommitError::Again(error)),
            (None, None, None) => Err(malformed("read the answer to a batch")),
        }
    }

    fn explain(&self, answer: Answer, transaction: &Transaction) -> CommitError {
        // Errors of the whole batch carry the number of its first message.
        let following = self
            .starts
            .partition_point(|start| *start <= answer.sequence);
        let Some(index) = following.checked_sub(1) else {
            return whole_batch_error(answer.errno);
        };
        CommitError::from_errno(answer.errno, index, || {
            transaction
                .operations
                .get(index)
                .map(describe)
                .unwrap_or_default()
        })
    }

    /// Throws away what an exchange that was given up left.
    fn drain(&mut self) {
        loop {
            match receive(&self.socket, &mut self.receive) {
                Ok(Some(_)) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => {}
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Sends the message that is in the batch and hands each message of the answer to `each`.
    pub(super) fn exchange(
        &mut self,
        action: &'static str,
        mut each: impl FnMut(&Message<'_>) -> Option<()>,
    ) -> Result<(), CommitError> {
        self.drain();
        self.socket
            .send_to(self.batch.bytes(), &SocketAddr::new(0, 0), 0)
            .map_err(transport(action))?;
        let mut is_interrupted = false;
        while let Some(length) =
            receive(&self.socket, &mut self.receive).map_err(transport(action))?
        {
            for message in Messages(self.receive.get(..length).unwrap_or_default()) {
                is_interrupted |= message.flags & NLM_F_DUMP_INTR != 0;
                match message.kind {
                    NLMSG_ERROR | NLMSG_DONE => {
                        let errno = i32_at(message.payload, 0).unwrap_or(0).saturating_neg();
                        if errno == 0 && !is_interrupted {
                            return Ok(());
                        }
                        let error = if errno == 0 { libc::EINTR } else { errno };
                        return Err(answer_error(action, error));
                    }
                    _ => each(&message).ok_or_else(|| malformed(action))?,
                }
            }
        }
        Ok(())
    }
}

impl Backend for NetlinkBackend {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.commit_batch(transaction, None)
    }

    fn has_table(&mut self, table: &Table) -> Result<bool, CommitError> {
        Ok(self.table_state(table)?.is_some())
    }

    fn elements(&mut self, table: &Table, set: &Name) -> Result<Option<Vec<Element>>, CommitError> {
        self.read_elements(table, set)
    }

    fn different_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError> {
        self.compare_chains(table, wanted)
    }
}

/// Reads one datagram; `None` when there is none.
pub(super) fn receive(socket: &Socket, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    loop {
        let mut window = &mut *buffer;
        match socket.recv_from(&mut window, 0) {
            // Only the kernel may answer.
            Ok((length, sender)) if sender.port_number() == 0 => return Ok(Some(length)),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads an error or acknowledgement: the error number, then the header of the message that it is about.
fn error_answer(message: &Message<'_>) -> Option<Answer> {
    if message.kind != NLMSG_ERROR {
        return None;
    }
    let errno = i32_at(message.payload, 0)?.saturating_neg();
    let about = message.payload.get(4..4 + HEADER)?;
    Some(Answer {
        sequence: u32_at(about, 8)?,
        errno,
    })
}

/// An error that is about no single operation.
fn whole_batch_error(errno: i32) -> CommitError {
    let source = io::Error::from_raw_os_error(errno);
    match errno {
        libc::EPERM => transport("commit a batch without CAP_NET_ADMIN")(source),
        libc::EOPNOTSUPP | libc::EINVAL => CommitError::Unsupported {
            feature: "nf_tables",
        },
        _ => CommitError::Again(source),
    }
}

fn answer_error(action: &'static str, errno: i32) -> CommitError {
    let source = io::Error::from_raw_os_error(errno);
    if is_transient(errno) {
        CommitError::Again(source)
    } else {
        CommitError::Transport { action, source }
    }
}

pub(super) fn malformed(action: &'static str) -> CommitError {
    CommitError::Transport {
        action,
        source: io::Error::new(
            io::ErrorKind::InvalidData,
            "the kernel's answer is not understood",
        ),
    }
}

/// For `map_err` of socket calls.
pub(super) fn transport(action: &'static str) -> impl FnOnce(io::Error) -> CommitError {
    move |source| CommitError::Transport { action, source }
}
