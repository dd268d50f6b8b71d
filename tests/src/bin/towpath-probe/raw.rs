//! Raw Ethernet frames in and out, as hex lines; see `towpath_tests::frame`.

use std::io::{BufRead as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::ifaddrs::getifaddrs;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, MsgFlags, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt,
    socket, sockopt,
};
use towpath_tests::frame::{from_hex, to_hex};

use crate::Options;

/// Sends each frame of standard input on the interface; stops at the first that the kernel refuses.
pub(crate) fn send(options: &Options) -> Result<()> {
    let interface = options.one("interface")?;
    let address = link(interface)?;
    let socket = packet_socket()?;
    for line in std::io::stdin().lock().lines() {
        let frame = from_hex(&line?)?;
        sendto(socket.as_raw_fd(), &frame, &address, MsgFlags::empty())
            .with_context(|| format!("cannot send a frame on {interface}"))?;
    }
    Ok(())
}

/// Prints every frame of the namespace until standard input closes. `ready` comes first.
pub(crate) fn capture() -> Result<()> {
    let socket = packet_socket()?;
    // Room for a burst while this process does not run.
    setsockopt(&socket, sockopt::RcvBuf, &(4 << 20))?;
    let input = std::io::stdin();
    let mut output = std::io::stdout().lock();
    writeln!(output, "ready")?;
    output.flush()?;
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let mut descriptors = [
            PollFd::new(socket.as_fd(), PollFlags::POLLIN),
            PollFd::new(input.as_fd(), PollFlags::POLLIN),
        ];
        poll(&mut descriptors, PollTimeout::NONE)?;
        let is_closing = descriptors[1]
            .revents()
            .is_some_and(|events| !events.is_empty());
        loop {
            match recv(socket.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(read) => writeln!(output, "{}", to_hex(&buffer[..read]))?,
                Err(Errno::EAGAIN) => break,
                Err(error) => return Err(error).context("cannot read frames"),
            }
        }
        output.flush()?;
        if is_closing {
            return Ok(());
        }
    }
}

fn packet_socket() -> Result<OwnedFd> {
    socket(
        AddressFamily::Packet,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::EthAll,
    )
    .context("cannot open a packet socket")
}

/// The kernel's own link-layer address of an interface, which names it to a packet socket.
fn link(interface: &str) -> Result<LinkAddr> {
    getifaddrs()?
        .filter(|entry| entry.interface_name == interface)
        .find_map(|entry| entry.address?.as_link_addr().copied())
        .with_context(|| format!("no interface {interface}"))
}
