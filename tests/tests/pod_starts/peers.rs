//! Those whom new pods send to, and who count what comes.

use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use towpath_tests::lab::Pod;
use towpath_tests::netns::Namespace;

/// Where everybody listens.
pub(crate) const PORT: u16 = 9_000;

/// Somebody who counts packets by the number of the start that they carry. Dropping it ends its thread.
pub(crate) struct Peer {
    pub(crate) target: SocketAddr,
    counts: Arc<[AtomicU32]>,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Peer {
    /// Listens in a pod, for so many starts.
    pub(crate) fn listen(pod: &Pod, starts: u32) -> Result<Self> {
        ask_often(pod)?;
        Self::listen_at(&pod.namespace, pod.ipv4()?, starts)
    }

    /// Listens somewhere else.
    pub(crate) fn listen_at(place: &Namespace, address: Ipv4Addr, starts: u32) -> Result<Self> {
        let target = SocketAddr::from((address, PORT));
        let socket = place.enter(|| UdpSocket::bind(target))?;
        let socket = socket.with_context(|| format!("no socket at {target}"))?;
        // So that the thread sees its end when nothing comes.
        socket.set_read_timeout(Some(Duration::from_millis(50)))?;
        let counts: Arc<[AtomicU32]> = (0..starts).map(|_| AtomicU32::new(0)).collect();
        let is_over = Arc::new(AtomicBool::new(false));
        let thread = {
            let (counts, is_over) = (counts.clone(), is_over.clone());
            std::thread::spawn(move || count(&socket, &counts, &is_over))
        };
        Ok(Self {
            target,
            counts,
            is_over,
            thread: Some(thread),
        })
    }

    /// How many packets of a start have come.
    pub(crate) fn count(&self, number: u32) -> u32 {
        let count = usize::try_from(number)
            .ok()
            .and_then(|number| self.counts.get(number));
        count.map_or(0, |count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic has been printed.
            let _ = thread.join();
        }
    }
}

/// A question for a neighbour's hardware address that was dropped is asked again soon, not after a second.
fn ask_often(pod: &Pod) -> Result<()> {
    pod.namespace
        .set_sysctl("net/ipv4/neigh/eth0/retrans_time_ms", "10")
}

fn count(socket: &UdpSocket, counts: &[AtomicU32], is_over: &AtomicBool) {
    let mut packet = [0; 4];
    while !is_over.load(Ordering::Relaxed) {
        match socket.recv(&mut packet) {
            Ok(_) => {
                let number = usize::try_from(u32::from_be_bytes(packet)).ok();
                if let Some(count) = number.and_then(|number| counts.get(number)) {
                    count.fetch_add(1, Ordering::Relaxed);
                }
            }
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => panic!("a peer cannot receive: {error}"),
        }
    }
}

/// A socket that sends to pods at addresses that it is told.
pub(crate) fn sender(place: &Namespace) -> Result<UdpSocket> {
    let socket = place.enter(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))?;
    socket.context("no socket to send from")
}
