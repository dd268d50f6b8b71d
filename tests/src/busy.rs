//! A foreign program that keeps the nftables of a node busy, so that every commit of others waits for it.
//!
//! The kernel takes transactions of a network namespace one after the other. This one's are large and without an end,
//! so the kernel works through them and takes nothing: no table changes, and nobody is told.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, send, setsockopt, socket, sockopt,
};

use crate::netns::Namespace;

/// Elements of the transaction by which the kernel's speed is measured.
const SAMPLE: u32 = 50_000;
/// More than these would cost too much memory.
const MOST_ELEMENTS: u32 = 2_000_000;
/// Elements of one message: 16 bytes each, in an attribute of at most 64 KiB.
const ELEMENTS_A_MESSAGE: u32 = 4_000;

const BATCH_BEGIN: u16 = 0x10;
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const NEW_SET: u16 = (NFTABLES << 8) + 9;
const NEW_ELEMENTS: u16 = (NFTABLES << 8) + 12;
const INET: u8 = 1;
/// Names of the table and of its set.
const NAME: &[u8] = b"busy\0";

/// Keeps a namespace's nftables busy until it is dropped.
#[derive(Debug)]
pub struct Busy {
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Busy {
    /// Holds the kernel's lock for about `hold` or more at a time, again and again without a pause.
    pub fn start(namespace: &Namespace, hold: Duration) -> Result<Self> {
        let socket = namespace.enter(open)??;
        let first = next_size(SAMPLE, hold / 4, timed(&socket, &batch(SAMPLE))?);
        let mut size = next_size(first, hold, timed(&socket, &batch(first))?);
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = {
            let is_over = is_over.clone();
            std::thread::spawn(move || {
                let mut transaction = batch(size);
                while !is_over.load(Ordering::Relaxed) {
                    let took = timed(&socket, &transaction).expect("the kernel took some before");
                    // The machine was busier when the size was measured.
                    if took < hold && size < MOST_ELEMENTS {
                        size = next_size(size, hold, took);
                        transaction = batch(size);
                    }
                }
            })
        };
        Ok(Self {
            is_over,
            thread: Some(thread),
        })
    }

    /// Ends it, after the transaction at hand.
    pub fn end(mut self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().map(JoinHandle::join);
        ensure!(!matches!(ended, Some(Err(_))), "the thread has panicked");
        Ok(())
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

/// How long the kernel works on a transaction.
fn timed(socket: &OwnedFd, batch: &[u8]) -> Result<Duration> {
    let started = Instant::now();
    push(socket, batch)?;
    Ok(started.elapsed())
}

/// How many elements hold the kernel for so long, when that many took that time.
fn next_size(size: u32, hold: Duration, took: Duration) -> u32 {
    let factor = hold.as_secs_f64() / took.as_secs_f64();
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a count that is clamped"
    )]
    let next = (f64::from(size) * factor).clamp(1.0, f64::from(MOST_ELEMENTS)) as u32;
    next
}

fn open() -> Result<OwnedFd> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkNetFilter,
    )?;
    setsockopt(&socket, sockopt::SndBufForce, &(256 << 20))?;
    Ok(socket)
}

/// The kernel works through the messages before this returns.
fn push(socket: &OwnedFd, batch: &[u8]) -> Result<()> {
    let sent = send(socket.as_raw_fd(), batch, MsgFlags::empty());
    let sent = sent.context("cannot send a transaction")?;
    ensure!(sent == batch.len(), "only {sent} bytes were sent");
    Ok(())
}

/// A table with a set of so many addresses, and no end of the transaction.
fn batch(elements: u32) -> Vec<u8> {
    let mut batch = Vec::new();
    message(&mut batch, BATCH_BEGIN, 0, NFTABLES, &[]);
    message(&mut batch, NEW_TABLE, INET, 0, &attribute(1, NAME));
    let number = |kind, value: u32| attribute(kind, &value.to_be_bytes());
    // Table, name, flags, type and length of keys, number within the transaction.
    let set = [
        attribute(1, NAME),
        attribute(2, NAME),
        number(3, 0),
        number(4, 7),
        number(5, 4),
        number(10, 1),
    ];
    message(&mut batch, NEW_SET, INET, 0, &set.concat());
    let pattern = element(0);
    for first in (0..elements).step_by(ELEMENTS_A_MESSAGE as usize) {
        let last = elements.min(first + ELEMENTS_A_MESSAGE);
        // Most of the bytes: made quickly, so that there is no long pause before a larger transaction.
        let mut list = Vec::with_capacity((last - first) as usize * pattern.len());
        for value in first..last {
            list.extend_from_slice(&pattern[..12]);
            list.extend_from_slice(&value.to_be_bytes());
        }
        let parts = [attribute(1, NAME), attribute(2, NAME), nest(3, &list)];
        message(&mut batch, NEW_ELEMENTS, INET, 0, &parts.concat());
    }
    batch
}

fn element(value: u32) -> Vec<u8> {
    nest(1, &nest(1, &attribute(1, &value.to_be_bytes())))
}

/// A netlink message with the header of nfnetlink.
fn message(to: &mut Vec<u8>, kind: u16, family: u8, resource: u16, attributes: &[u8]) {
    const REQUEST_CREATE: u16 = 0x401;
    let length = u32::try_from(20 + attributes.len()).expect("messages are small");
    to.extend(length.to_ne_bytes());
    to.extend(kind.to_ne_bytes());
    to.extend(REQUEST_CREATE.to_ne_bytes());
    // Sequence number and port: nobody answers.
    to.extend([0; 8]);
    to.extend([family, 0]);
    to.extend(resource.to_be_bytes());
    to.extend(attributes);
}

fn nest(kind: u16, content: &[u8]) -> Vec<u8> {
    attribute(kind | 0x8000, content)
}

fn attribute(kind: u16, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + content.len()).expect("attributes are small");
    let mut attribute = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    attribute.extend(content);
    attribute.resize(attribute.len().next_multiple_of(4), 0);
    attribute
}
