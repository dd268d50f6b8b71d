//! The kernel side of towpath: nftables, links, bridges and packet logs over netlink.
//!
//! It knows nothing of policy. The only crate that opens netlink sockets or holds `unsafe`.

pub mod link;
pub mod nflog;
pub mod nft;
pub mod program_text;
pub mod read_lease;
