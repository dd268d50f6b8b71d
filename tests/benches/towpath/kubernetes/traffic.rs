//! Packets that never stop: UDP from one pod to another with a fine period. Each carries the moment at which it was
//! sent, so that only senders' clocks count: when the receiver gets to run does not matter.
//!
//! Nobody answers, so to connection tracking the flow stays new, and every packet is judged as a first one.

use std::io::ErrorKind;
use std::net::{SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::prctl::set_timerslack;
use towpath_tests::netns::Namespace;
use towpath_tests::wait::{PATIENCE, until, until_some};

/// Between two packets, without what the kernel adds.
const PERIOD: Duration = Duration::from_micros(100);
/// No packet for so long, while they are sent, means that none passes.
const SILENCE: Duration = Duration::from_millis(15);
/// So many packets must have been sent in the silence.
const SILENT_PACKETS: usize = 40;
/// Packets after a change that must all pass.
const PASSING_PACKETS: usize = 40;

/// Moments since [`Traffic::base`], in nanoseconds, in order.
type Stamps = Arc<Mutex<Vec<u64>>>;

/// A flow; dropping it ends its threads.
pub(super) struct Traffic {
    base: Instant,
    sent: Stamps,
    arrived: Stamps,
    is_over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

/// A change as packets tell it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Turn {
    /// When the first packet was sent that met the new verdict.
    pub(super) first: Instant,
    /// How long before it the last packet was sent that met the old one.
    pub(super) gap: Duration,
    /// Packets that met the old verdict after it.
    pub(super) strays: usize,
}

impl Traffic {
    /// Sends from one namespace to an address of another.
    pub(super) fn start(from: &Namespace, to: &Namespace, target: SocketAddr) -> Result<Self> {
        let receiver = to
            .enter(|| UdpSocket::bind(target))?
            .context("no socket in the target")?;
        let sender = from.enter(|| -> std::io::Result<UdpSocket> {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.connect(target)?;
            Ok(socket)
        })?;
        let sender = sender.context("no socket in the sender")?;
        // So that the thread sees its end when nothing comes.
        receiver.set_read_timeout(Some(Duration::from_millis(50)))?;
        let mut traffic = Self {
            base: Instant::now(),
            sent: Stamps::default(),
            arrived: Stamps::default(),
            is_over: Arc::default(),
            threads: Vec::new(),
        };
        let (base, is_over) = (traffic.base, traffic.is_over.clone());
        let sent = traffic.sent.clone();
        let send = move || send(&sender, base, &sent, &is_over);
        let (arrived, is_over) = (traffic.arrived.clone(), traffic.is_over.clone());
        let receive = move || receive(&receiver, &arrived, &is_over);
        traffic.threads.push(
            std::thread::Builder::new()
                .name("sender".to_owned())
                .spawn(send)?,
        );
        traffic.threads.push(
            std::thread::Builder::new()
                .name("receiver".to_owned())
                .spawn(receive)?,
        );
        Ok(traffic)
    }

    /// Forgets what was, before a change.
    pub(super) fn forget(&self) {
        lock(&self.sent).clear();
        lock(&self.arrived).clear();
    }

    /// Waits until packets pass, and goes on passing for a while. Before, none did.
    pub(super) fn await_open(&self) -> Result<Turn> {
        let open = until_some("packets to pass", PATIENCE, || {
            let arrived = lock(&self.arrived);
            let is_enough = arrived.len() >= PASSING_PACKETS;
            Ok(is_enough.then(|| {
                (
                    arrived[0],
                    *arrived.last().expect("not empty"),
                    arrived.len(),
                )
            }))
        });
        let (first, last, count) = open?;
        let sent = lock(&self.sent);
        let passing = sent
            .iter()
            .filter(|stamp| (first..=last).contains(*stamp))
            .count();
        Ok(self.turn(first, &sent, passing.saturating_sub(count)))
    }

    /// Waits until no packet passes any more.
    pub(super) fn await_closed(&self) -> Result<Turn> {
        let mut turn = None;
        until("packets to be dropped", PATIENCE, || {
            let last = lock(&self.arrived).last().copied().unwrap_or(0);
            let sent = lock(&self.sent);
            let mut lost = sent.iter().filter(|stamp| **stamp > last);
            let Some(&first) = lost.next() else {
                return Ok(false);
            };
            let is_silent = self.now().saturating_sub(first) >= nanoseconds(SILENCE);
            if !is_silent || lost.count() < SILENT_PACKETS {
                return Ok(false);
            }
            turn = Some(self.turn(first, &sent, 0));
            Ok(true)
        })?;
        turn.context("no packet was sent")
    }

    fn turn(&self, first: u64, sent: &[u64], strays: usize) -> Turn {
        let before = sent.iter().rfind(|stamp| **stamp < first).copied();
        Turn {
            first: self.base + Duration::from_nanos(first),
            gap: Duration::from_nanos(before.map_or(0, |before| first - before)),
            strays,
        }
    }

    fn now(&self) -> u64 {
        nanoseconds(self.base.elapsed())
    }
}

impl Drop for Traffic {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

fn send(socket: &UdpSocket, base: Instant, sent: &Mutex<Vec<u64>>, is_over: &AtomicBool) {
    // Without it, the period is half as long again. A kernel that refuses makes it coarser, which the report shows.
    let _ = set_timerslack(1);
    while !is_over.load(Ordering::Relaxed) {
        let stamp = nanoseconds(base.elapsed());
        // A full queue loses a packet, which then counts as dropped: that makes figures worse, never better.
        if socket.send(&stamp.to_be_bytes()).is_ok() {
            lock(sent).push(stamp);
        }
        std::thread::sleep(PERIOD);
    }
}

fn receive(socket: &UdpSocket, arrived: &Mutex<Vec<u64>>, is_over: &AtomicBool) {
    let mut packet = [0; 8];
    while !is_over.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(_) => lock(arrived).push(u64::from_be_bytes(packet)),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => {
                eprintln!("the target cannot receive: {error}");
                return;
            }
        }
    }
}

fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

fn lock(stamps: &Mutex<Vec<u64>>) -> std::sync::MutexGuard<'_, Vec<u64>> {
    stamps.lock().unwrap_or_else(PoisonError::into_inner)
}
