//! A netlink socket that asks and waits for the answer.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};

use netlink_sys::{Socket, SocketAddr};
use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::error::NetlinkError;
use super::wire::{
    Attributes, HEADER, Message, Messages, NLM_F_ACK_TLVS, NLM_F_CAPPED, NLM_F_DUMP_INTR,
    NLMSG_DONE, NLMSG_ERROR, Request, i32_at, text, u32_at,
};

/// The kernel fills at most 32 KiB per datagram of a dump.
const BUFFER: usize = 64 * 1024;
/// The kernel answers at once; this only keeps a kernel fault from blocking the thread for ever.
const ANSWER_SECONDS: i64 = 5;
/// `NLMSGERR_ATTR_MSG`: the kernel's error text.
const ERROR_TEXT: u16 = 1;

/// One socket, one request at a time. Bound to the network namespace of the thread that opened it.
#[derive(Debug)]
pub(crate) struct RequestSocket {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The answer is complete.
    Complete,
    /// The tables changed while they were listed; entries may be missing.
    Interrupted,
}

impl RequestSocket {
    /// Opens a socket for `protocol`, for example `NETLINK_ROUTE`.
    pub(crate) fn open(protocol: i32) -> Result<Self, NetlinkError> {
        let socket = open(protocol)?;
        setsockopt(
            &socket,
            sockopt::ReceiveTimeout,
            &TimeVal::new(ANSWER_SECONDS, 0),
        )
        .map_err(NetlinkError::socket("limit the wait of a netlink socket"))?;
        Ok(Self {
            socket,
            buffer: vec![0; BUFFER],
            sequence: 0,
        })
    }

    /// Makes the kernel check requests and honour the filters of dumps (Linux 4.20).
    ///
    /// Without it the kernel would ignore a target namespace and list our own one instead.
    pub(crate) fn enable_strict_checks(&self) -> Result<(), NetlinkError> {
        self.socket
            .set_netlink_get_strict_chk(true)
            .map_err(|_| NetlinkError::Unsupported {
                feature: "strict netlink dumps",
                remedy: "Linux 4.20 or later is needed",
            })
    }

    /// Gives up the asking and keeps the socket, with whatever was set by it.
    pub(crate) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Sends `request`, hands each message of the answer to `each`, and waits for its end.
    ///
    /// The request must ask for a dump or for an acknowledgement, else the end cannot be seen.
    pub(crate) fn exchange(
        &mut self,
        action: &'static str,
        object: fmt::Arguments<'_>,
        request: Request,
        mut each: impl FnMut(&Message<'_>),
    ) -> Result<Outcome, NetlinkError> {
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = request.finish(self.sequence);
        self.socket
            .send_to(&bytes, &SocketAddr::new(0, 0), 0)
            .map_err(NetlinkError::socket("send a netlink request"))?;
        let mut outcome = Outcome::Complete;
        loop {
            let mut window = self.buffer.as_mut_slice();
            let received = match self.socket.recv_from(&mut window, libc::MSG_TRUNC) {
                Ok((length, sender)) if sender.port_number() == 0 => length,
                // Only the kernel may answer.
                Ok(_) => continue,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(NetlinkError::socket("read a netlink answer")(error)),
            };
            let Some(datagram) = self.buffer.get(..received) else {
                return Err(NetlinkError::Malformed {
                    object: object.to_string(),
                });
            };
            for message in Messages(datagram) {
                if message.sequence != self.sequence {
                    // The rest of an exchange that was given up.
                    continue;
                }
                if message.flags & NLM_F_DUMP_INTR != 0 {
                    outcome = Outcome::Interrupted;
                }
                match message.kind {
                    NLMSG_DONE | NLMSG_ERROR => {
                        return finish(&message, action, object).map(|()| outcome);
                    }
                    _ => each(&message),
                }
            }
        }
    }
}

impl AsFd for RequestSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Opens and binds a socket whose errors carry the kernel's text.
pub(crate) fn open(protocol: i32) -> Result<Socket, NetlinkError> {
    let protocol = isize::try_from(protocol).expect("protocol numbers are small");
    let mut socket =
        Socket::new(protocol).map_err(NetlinkError::socket("open a netlink socket"))?;
    socket
        .bind_auto()
        .map_err(NetlinkError::socket("bind a netlink socket"))?;
    match socket.set_ext_ack(true) {
        Ok(()) => {}
        // Texts are a courtesy of Linux 4.12 and later; everything works without them.
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {}
        Err(error) => return Err(NetlinkError::socket("set up a netlink socket")(error)),
    }
    Ok(socket)
}

/// Turns the message that ends an exchange into a result.
fn finish(
    message: &Message<'_>,
    action: &'static str,
    object: fmt::Arguments<'_>,
) -> Result<(), NetlinkError> {
    // An empty NLMSG_DONE means success.
    let code = i32_at(message.payload, 0).unwrap_or(0);
    if code == 0 || (message.kind == NLMSG_DONE && code > 0) {
        return Ok(());
    }
    let detail = error_text(message)
        .map(|text| format!("; the kernel says: {text}"))
        .unwrap_or_default();
    Err(NetlinkError::Refused {
        action,
        object: object.to_string(),
        detail,
        source: Errno::from_raw(code.saturating_neg()),
    })
}

/// The text that the kernel attached to an error.
fn error_text(message: &Message<'_>) -> Option<String> {
    if message.flags & NLM_F_ACK_TLVS == 0 {
        return None;
    }
    // An error repeats our request before its attributes, or only the header where it is capped.
    let skipped = match message.kind {
        NLMSG_ERROR if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER,
        NLMSG_ERROR => 4 + usize::try_from(u32_at(message.payload, 4)?).ok()?,
        _ => 4,
    };
    let attributes = message.payload.get(skipped..)?;
    Attributes(attributes)
        .find(|(kind, _)| *kind == ERROR_TEXT)
        .map(|(_, value)| text(value).into_owned())
}
