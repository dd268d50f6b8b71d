//! What Flannel set up, from the texts in which it stands.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod annotations;
mod hostile;
mod lease;
mod merge;
mod net_conf;
mod subnet_env;

use std::net::IpAddr;

use flannel_adapter::{Networks, Parsed};
use ipnet::IpNet;

/// Networks of any family, in any order.
fn networks(texts: &[&str]) -> Networks {
    let mut networks = Networks::default();
    for text in texts {
        match text.parse().unwrap() {
            IpNet::V4(network) => networks.ipv4 = Some(network),
            IpNet::V6(network) => networks.ipv6 = Some(network),
        }
    }
    networks
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

/// What is wrong, as an operator reads it.
fn faults<T>(parsed: &Parsed<T>) -> Vec<String> {
    parsed.faults.iter().map(ToString::to_string).collect()
}
