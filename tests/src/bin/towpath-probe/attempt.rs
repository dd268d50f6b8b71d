//! One probe in flight: a socket that never blocks, and what its next event means.

use std::io;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::PollFlags;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, SockaddrStorage, connect,
    getsockopt, recv, send, socket, sockopt,
};
use towpath_tests::probe::{Outcome, Protocol, Target};

/// A probe that waits for its answer.
pub(crate) struct Attempt {
    socket: OwnedFd,
    target: Target,
    state: State,
    started: Instant,
    /// Sets the answer of this attempt apart from an earlier one's (ICMP).
    tag: u16,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Connecting,
    Waiting,
}

impl Attempt {
    /// Sends the first packet. An error at once is an outcome of its own.
    pub(crate) fn start(target: Target, tag: u16) -> Result<Self, Outcome> {
        let started = Instant::now();
        let opened = match target.protocol {
            Protocol::Tcp => open_tcp(target),
            Protocol::Udp => open_udp(target),
            Protocol::Icmp => open_icmp(target, tag),
        };
        let (socket, state) = opened.map_err(|error| outcome_of(&error, started))?;
        Ok(Self {
            socket,
            target,
            state,
            started,
            tag,
        })
    }

    /// What to wait for.
    pub(crate) fn interest(&self) -> (BorrowedFd<'_>, PollFlags) {
        let flags = match self.state {
            State::Connecting => PollFlags::POLLOUT,
            State::Waiting => PollFlags::POLLIN,
        };
        (self.socket.as_fd(), flags)
    }

    /// Handles an event; `None` when the answer is still to come.
    pub(crate) fn advance(&mut self) -> Option<Outcome> {
        if self.state == State::Connecting {
            let error = getsockopt(&self.socket, sockopt::SocketError).unwrap_or(Errno::EIO as i32);
            if error != 0 {
                return Some(outcome_of(
                    &io::Error::from_raw_os_error(error),
                    self.started,
                ));
            }
            self.state = State::Waiting;
            return None;
        }
        let mut buffer = [0; 2048];
        match recv(self.socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
            Err(Errno::EAGAIN) => None,
            Err(error) => Some(outcome_of(&error.into(), self.started)),
            Ok(read) => self.answer(&buffer[..read]),
        }
    }

    fn answer(&self, bytes: &[u8]) -> Option<Outcome> {
        let by = match self.target.protocol {
            Protocol::Icmp if !is_echo_reply(self.target.address, bytes, self.tag) => return None,
            Protocol::Icmp => String::new(),
            Protocol::Tcp | Protocol::Udp => {
                let text = String::from_utf8_lossy(bytes);
                text.lines().next().unwrap_or_default().to_owned()
            }
        };
        Some(Outcome::Answered {
            by,
            micros: micros(self.started),
        })
    }
}

fn open_tcp(target: Target) -> io::Result<(OwnedFd, State)> {
    let address = SockaddrStorage::from(SocketAddr::new(target.address, target.port));
    let socket = socket(
        family(target.address),
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        None,
    )?;
    match connect(socket.as_raw_fd(), &address) {
        Ok(()) | Err(Errno::EINPROGRESS) => Ok((socket, State::Connecting)),
        Err(error) => Err(error.into()),
    }
}

fn open_udp(target: Target) -> io::Result<(OwnedFd, State)> {
    let any: IpAddr = match target.address {
        IpAddr::V4(_) => std::net::Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect((target.address, target.port))?;
    socket.send(b"probe\n")?;
    Ok((socket.into(), State::Waiting))
}

fn open_icmp(target: Target, tag: u16) -> io::Result<(OwnedFd, State)> {
    let (protocol, kind) = match target.address {
        IpAddr::V4(_) => (SockProtocol::Icmp, 8),
        IpAddr::V6(_) => (SockProtocol::IcmpV6, 128),
    };
    let socket = socket(
        family(target.address),
        SockType::Raw,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
        protocol,
    )?;
    connect(
        socket.as_raw_fd(),
        &SockaddrStorage::from(SocketAddr::new(target.address, 0)),
    )?;
    let [high, low] = tag.to_be_bytes();
    let mut request = [kind, 0, 0, 0, high, low, 0, 1];
    if target.address.is_ipv4() {
        // The kernel fills in the checksum for ICMPv6 only.
        let sum = towpath_tests::frame::checksum(&request);
        request[2..4].copy_from_slice(&sum.to_be_bytes());
    }
    send(socket.as_raw_fd(), &request, MsgFlags::empty())?;
    Ok((socket, State::Waiting))
}

/// A raw IPv4 socket hands out the IP header as well, an IPv6 one does not. Both see what others asked for.
fn is_echo_reply(address: IpAddr, bytes: &[u8], tag: u16) -> bool {
    let (message, kind) = match address {
        IpAddr::V4(_) => {
            let header = bytes
                .first()
                .map_or(0, |first| usize::from(first & 0x0f) * 4);
            (bytes.get(header..).unwrap_or_default(), 0)
        }
        IpAddr::V6(_) => (bytes, 129),
    };
    message.first() == Some(&kind) && message.get(4..6) == Some(&tag.to_be_bytes()[..])
}

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn outcome_of(error: &io::Error, started: Instant) -> Outcome {
    match error.kind() {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::ConnectionReset => Outcome::Refused {
            micros: micros(started),
        },
        _ => Outcome::Failed {
            error: error.to_string(),
        },
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
