//! The client side of a long flow; see `towpath_tests::stream`.

use std::io::{self, ErrorKind, Read, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use towpath_tests::stream::Report;

use crate::Options;

/// How long a TCP connection may take to open.
const OPEN: Duration = Duration::from_secs(3);
/// How long messages in flight may take after the end.
const LINGER: Duration = Duration::from_millis(300);

/// Runs until standard input closes, then prints the report.
pub(crate) fn run(options: &Options) -> Result<()> {
    let to: SocketAddr = options.one("to")?.parse()?;
    let interval = match options.all("interval").next() {
        Some(text) => Some(Duration::from_micros(text.parse()?)),
        None => None,
    };
    let mut flow = match options.one("protocol")? {
        "tcp" => Flow::open_tcp(to)?,
        "udp" => Flow::open_udp(to)?,
        other => bail!("protocol {other:?} is none of tcp, udp"),
    };
    writeln!(std::io::stdout(), "ready")?;
    let report = talk(&mut flow, interval)?;
    writeln!(std::io::stdout(), "{}", serde_json::to_string(&report)?)?;
    Ok(())
}

enum Flow {
    Tcp { socket: TcpStream, pending: Vec<u8> },
    Udp { socket: UdpSocket },
}

impl Flow {
    fn open_tcp(to: SocketAddr) -> Result<Self> {
        let mut socket = TcpStream::connect_timeout(&to, OPEN)
            .with_context(|| format!("cannot connect to {to}"))?;
        socket.set_nodelay(true)?;
        let mut byte = [0];
        // The greeting ends with a line feed; numbers follow.
        while byte != [b'\n'] {
            socket.read_exact(&mut byte).context("no greeting")?;
        }
        socket.set_nonblocking(true)?;
        Ok(Self::Tcp {
            socket,
            pending: Vec::new(),
        })
    }

    fn open_udp(to: SocketAddr) -> Result<Self> {
        let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_nonblocking(true)?;
        Ok(Self::Udp { socket })
    }

    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp { socket, .. } => socket.as_fd(),
            Self::Udp { socket } => socket.as_fd(),
        }
    }

    /// Sends one number. A full buffer sends nothing: a stalled flow shows in the report as a gap.
    fn send(&mut self, number: u64) -> io::Result<bool> {
        let bytes = number.to_be_bytes();
        let sent = match self {
            Self::Tcp { socket, .. } => socket.write(&bytes),
            Self::Udp { socket } => socket.send(&bytes),
        };
        match sent {
            Ok(8) => Ok(true),
            Ok(_) => Err(io::Error::other("a number was cut in two")),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// How many whole messages have come.
    fn receive(&mut self) -> io::Result<u64> {
        let mut buffer = [0; 16 * 1024];
        let read = match self {
            Self::Tcp { socket, .. } => socket.read(&mut buffer),
            Self::Udp { socket } => socket.recv(&mut buffer),
        };
        match (read, self) {
            (Err(error), _) if error.kind() == ErrorKind::WouldBlock => Ok(0),
            (Err(error), _) => Err(error),
            (Ok(0), Self::Tcp { .. }) => Err(ErrorKind::UnexpectedEof.into()),
            (Ok(_), Self::Udp { .. }) => Ok(1),
            (Ok(count), Self::Tcp { pending, .. }) => {
                pending.extend_from_slice(&buffer[..count]);
                let whole = pending.len() / 8;
                pending.drain(..whole * 8);
                Ok(whole as u64)
            }
        }
    }
}

fn talk(flow: &mut Flow, interval: Option<Duration>) -> Result<Report> {
    let start = Instant::now();
    let mut report = Report::default();
    let mut last = start;
    let mut next = interval.map(|_| start);
    let mut end: Option<Instant> = None;
    loop {
        let now = Instant::now();
        if end.is_some_and(|end| now >= end) {
            break;
        }
        if let (Some(due), Some(interval), None) = (next, interval, end)
            && now >= due
        {
            match flow.send(report.sent) {
                Ok(sent) => report.sent += u64::from(sent),
                Err(error) => report.error = Some(error.to_string()),
            }
            next = Some(due.max(now.checked_sub(interval).unwrap_or(due)) + interval);
        }
        let wake = [end, next.filter(|_| end.is_none())]
            .into_iter()
            .flatten()
            .min();
        let [readable, closing] = wait(flow, end.is_none(), wake)?;
        if closing && end.is_none() {
            report.ended = micros(start, Instant::now());
            report.longest_gap = report.longest_gap.max(micros(last, Instant::now()));
            end = Some(Instant::now() + LINGER);
        }
        if readable {
            match flow.receive() {
                Ok(0) => {}
                Ok(count) => {
                    let now = Instant::now();
                    report.received += count;
                    if end.is_none() {
                        report.longest_gap = report.longest_gap.max(micros(last, now));
                    }
                    report.last_received = micros(start, now);
                    last = now;
                }
                Err(error) => {
                    report.error = Some(error.to_string());
                    if matches!(flow, Flow::Tcp { .. }) {
                        break;
                    }
                }
            }
        }
        if interval.is_some() && end.is_some() && report.received >= report.sent {
            break;
        }
    }
    if report.ended == 0 {
        report.ended = micros(start, Instant::now());
    }
    Ok(report)
}

/// Whether the flow has something to read, and whether standard input has closed.
fn wait(flow: &Flow, with_input: bool, wake: Option<Instant>) -> Result<[bool; 2]> {
    let input = std::io::stdin();
    let mut descriptors = vec![PollFd::new(flow.as_fd(), PollFlags::POLLIN)];
    if with_input {
        descriptors.push(PollFd::new(input.as_fd(), PollFlags::POLLIN));
    }
    let timeout = match wake {
        None => PollTimeout::NONE,
        Some(wake) => {
            // Rounded up to whole milliseconds by poll(2): short intervals come in small bursts.
            let left = wake.saturating_duration_since(Instant::now());
            PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
        }
    };
    poll(&mut descriptors, timeout)?;
    let has_event = |place: usize| {
        descriptors
            .get(place)
            .and_then(PollFd::revents)
            .is_some_and(|events| !events.is_empty())
    };
    Ok([has_event(0), has_event(1)])
}

fn micros(from: Instant, to: Instant) -> u64 {
    u64::try_from(to.duration_since(from).as_micros()).unwrap_or(u64::MAX)
}
