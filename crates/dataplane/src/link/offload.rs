//! Whether an interface leaves checksums to hardware.

use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::error::NetlinkError;

/// `SIOCETHTOOL`.
const ETHTOOL: libc::c_ulong = 0x8946;
/// `ETHTOOL_GTXCSUM`.
const GET_TRANSMIT_CHECKSUM: u32 = 0x16;

/// `struct ethtool_value`.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether checksums of what leaves by the interface `name` are left to hardware; none where the interface is gone or
/// does not say.
#[expect(unsafe_code, reason = "an ioctl that no safe crate wraps")]
pub fn offloads_checksums(name: &str) -> Result<Option<bool>, NetlinkError> {
    let socket = socket(
        AddressFamily::Inet,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .map_err(NetlinkError::socket("open a socket to ask for offloads"))?;
    let mut value = EthtoolValue {
        command: GET_TRANSMIT_CHECKSUM,
        data: 0,
    };
    let mut named = [0; libc::IFNAMSIZ];
    if name.len() >= named.len() {
        return Ok(None);
    }
    for (to, from) in named.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    let mut request = libc::ifreq {
        ifr_name: named,
        ifr_ifru: libc::__c_anonymous_ifr_ifru {
            ifru_data: (&raw mut value).cast(),
        },
    };
    // SAFETY: `request` and the `value` that it points to live until the call returns, and have the layout that this
    // request reads and writes.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), ETHTOOL as _, &raw mut request) };
    match Errno::result(result) {
        Ok(_) => Ok(Some(value.data != 0)),
        Err(Errno::ENODEV | Errno::EOPNOTSUPP) => Ok(None),
        Err(source) => Err(NetlinkError::Refused {
            action: "ask for the offloads of",
            object: name.to_owned(),
            detail: String::new(),
            source,
        }),
    }
}
