//! Checks of single texts and numbers: names, labels, ports, addresses, blocks.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use towpath_core::model::Protocol;

use crate::fault::{Complaint, quote};

type Checked<T> = Result<T, Complaint>;

fn is_lower(byte: u8) -> bool {
    byte.is_ascii_lowercase() || byte.is_ascii_digit()
}

/// A name of the form of a DNS label (RFC 1123): namespaces.
pub(crate) fn label_name(text: &str) -> Checked<&str> {
    let bytes = text.as_bytes();
    let is_good = matches!(bytes.len(), 1..=63)
        && bytes.iter().all(|b| is_lower(*b) || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-');
    if is_good {
        return Ok(text);
    }
    Err(Complaint::new(
        format!("{} is not a valid name", quote(text)),
        "use 1 to 63 lower-case letters, digits and '-', the first and last of them no '-'",
    ))
}

/// A name of the form of a DNS subdomain (RFC 1123): pods, nodes, policies.
pub(crate) fn object_name(text: &str) -> Checked<&str> {
    if is_subdomain(text) {
        return Ok(text);
    }
    Err(Complaint::new(
        format!("{} is not a valid name", quote(text)),
        "use 1 to 253 lower-case letters, digits, '-' and '.', with a letter or digit at both ends of each part",
    ))
}

fn is_subdomain(text: &str) -> bool {
    let is_part = |part: &str| {
        let bytes = part.as_bytes();
        !bytes.is_empty()
            && bytes.iter().all(|b| is_lower(*b) || *b == b'-')
            && bytes.first() != Some(&b'-')
            && bytes.last() != Some(&b'-')
    };
    text.len() <= 253 && text.split('.').all(is_part)
}

/// The name part of a label key, or a value that is not empty.
fn is_qualified(text: &str) -> bool {
    let bytes = text.as_bytes();
    matches!(bytes.len(), 1..=63)
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
        && bytes.first().is_some_and(u8::is_ascii_alphanumeric)
        && bytes.last().is_some_and(u8::is_ascii_alphanumeric)
}

/// The key of a label: a name, with a DNS subdomain and a slash before it or without.
pub(crate) fn label_key(text: &str) -> Checked<&str> {
    let is_good = match text.split_once('/') {
        None => is_qualified(text),
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified(name),
    };
    if is_good {
        return Ok(text);
    }
    Err(Complaint::new(
        format!("{} is not a valid label key", quote(text)),
        "use at most 63 letters, digits, '-', '_' and '.', after an optional domain and '/', like example.com/role",
    ))
}

/// The value of a label; empty is fine.
pub(crate) fn label_value(text: &str) -> Checked<&str> {
    if text.is_empty() || is_qualified(text) {
        return Ok(text);
    }
    Err(Complaint::new(
        format!("{} is not a valid label value", quote(text)),
        "use at most 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends",
    ))
}

/// The name of a port (an IANA service name).
pub(crate) fn port_name(text: &str) -> Checked<&str> {
    let bytes = text.as_bytes();
    let is_good = matches!(bytes.len(), 1..=15)
        && bytes.iter().all(|b| is_lower(*b) || *b == b'-')
        && bytes.iter().any(u8::is_ascii_lowercase)
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
        && !text.contains("--");
    if is_good {
        return Ok(text);
    }
    let advice = if bytes.iter().all(u8::is_ascii_digit) && !text.is_empty() {
        "remove the quotes to mean the port's number"
    } else {
        "use 1 to 15 lower-case letters, digits and single '-', at least one letter, no '-' at the ends"
    };
    Err(Complaint::new(
        format!("{} is not a valid port name", quote(text)),
        advice,
    ))
}

/// A port number.
pub(crate) fn port_number(number: i64) -> Checked<u16> {
    match u16::try_from(number) {
        Ok(port @ 1..) => Ok(port),
        _ => Err(Complaint::new(
            format!("{number} is not a port number"),
            "use a number from 1 to 65535",
        )),
    }
}

/// The name of a transport protocol.
pub(crate) fn protocol(text: &str) -> Checked<Protocol> {
    match text {
        "TCP" => Ok(Protocol::Tcp),
        "UDP" => Ok(Protocol::Udp),
        "SCTP" => Ok(Protocol::Sctp),
        _ => Err(Complaint::new(
            format!("{} is not a protocol that policies know", quote(text)),
            "use TCP, UDP or SCTP, in capital letters",
        )),
    }
}

/// An address; an IPv4 address in IPv6 notation becomes the IPv4 address.
pub(crate) fn address(text: &str) -> Checked<IpAddr> {
    text.parse::<IpAddr>()
        .map(|address| address.to_canonical())
        .map_err(|_| {
            Complaint::new(
                format!("{} is not an IP address", quote(text)),
                "write it like 10.244.1.5 or fd00::5, without a prefix length or leading zeros",
            )
        })
}

/// An address that a pod or node can own.
pub(crate) fn unicast_address(text: &str) -> Checked<IpAddr> {
    let address = address(text)?;
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local() || v4.is_broadcast(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    if address.is_unspecified() || address.is_loopback() || address.is_multicast() || is_link_local
    {
        return Err(Complaint::new(
            format!("{address} cannot be the address of a pod or node"),
            "write the unicast address under which others reach it",
        ));
    }
    Ok(address)
}

/// An address block as read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Block {
    /// Host bits cleared; IPv4 in IPv6 notation is IPv4.
    pub(crate) network: IpNet,
    /// Host bits were set.
    pub(crate) had_host_bits: bool,
    /// It was IPv4 in IPv6 notation.
    pub(crate) was_mapped: bool,
}

/// An address block in CIDR notation.
pub(crate) fn block(text: &str) -> Checked<Block> {
    let bad = |advice: &str| {
        Err(Complaint::new(
            format!("{} is not an address block", quote(text)),
            advice,
        ))
    };
    let Some((address, length)) = text.split_once('/') else {
        return match address(text) {
            Ok(IpAddr::V4(v4)) => bad(&format!("write {v4}/32 for this one address")),
            Ok(IpAddr::V6(v6)) => bad(&format!("write {v6}/128 for this one address")),
            Err(_) => bad("write it like 10.0.0.0/8 or fd00::/8"),
        };
    };
    let Ok(address) = address.parse::<IpAddr>() else {
        return bad("write the address like 10.0.0.0/8 or fd00::/8, without leading zeros");
    };
    let longest = if address.is_ipv4() { 32 } else { 128 };
    let is_decimal = !length.is_empty() && length.bytes().all(|b| b.is_ascii_digit());
    let network = length
        .parse()
        .ok()
        .filter(|_| is_decimal)
        .map(|bits| IpNet::new(address, bits));
    let Some(Ok(network)) = network else {
        return bad(&format!("use a prefix length from 0 to {longest}"));
    };
    let had_host_bits = network != network.trunc();
    let network = network.trunc();
    let IpNet::V6(v6) = network else {
        return Ok(Block {
            network,
            had_host_bits,
            was_mapped: false,
        });
    };
    match (v6.addr().to_ipv4_mapped(), v6.prefix_len().checked_sub(96)) {
        (Some(v4), Some(bits)) => {
            let network = Ipv4Net::new(v4, bits).map_err(|_| Complaint::new("", ""))?;
            Ok(Block {
                network: IpNet::V4(network),
                had_host_bits,
                was_mapped: true,
            })
        }
        _ => Ok(Block {
            network,
            had_host_bits,
            was_mapped: false,
        }),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names() {
        for good in ["a", "a-b", "0", "web-1", &"x".repeat(63)] {
            assert!(label_name(good).is_ok(), "{good}");
            assert!(object_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "-a",
            "a-",
            "A",
            "a_b",
            "a b",
            "a\n",
            "a\"",
            "{a}",
            "ä",
            &"x".repeat(64),
        ] {
            assert!(label_name(bad).is_err(), "{bad}");
        }
        assert!(object_name("a.b-c.d").is_ok() && label_name("a.b").is_err());
        for bad in [
            "",
            ".",
            "a.",
            ".a",
            "a..b",
            "a.-b",
            "a-.b",
            "a\0",
            &"x".repeat(254),
        ] {
            assert!(object_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn labels() {
        for good in ["app", "app.kubernetes.io/name", "A_b.c-1", "x/y"] {
            assert!(label_key(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "/",
            "a/",
            "/b",
            "a/b/c",
            "A/b",
            "-a",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(label_key(bad).is_err(), "{bad}");
        }
        for good in ["", "a", "1.0", "A_b", &"x".repeat(63)] {
            assert!(label_value(good).is_ok(), "{good}");
        }
        for bad in ["-", "a/b", "a ", "_a", "a\u{0}", &"x".repeat(64)] {
            assert!(label_value(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn port_names() {
        for good in ["http", "a", "http-2", "8080a"] {
            assert!(port_name(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "8080",
            "Http",
            "-a",
            "a-",
            "a--b",
            "a_b",
            "sixteencharslong",
        ] {
            assert!(port_name(bad).is_err(), "{bad}");
        }
        assert_eq!(
            port_name("80").unwrap_err().advice,
            "remove the quotes to mean the port's number"
        );
    }

    #[test]
    fn port_numbers() {
        assert_eq!((port_number(1), port_number(65535)), (Ok(1), Ok(65535)));
        for bad in [0, -1, 65536, i64::MAX, i64::MIN] {
            assert!(port_number(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn blocks() {
        let read = |text: &str| {
            let Block {
                network,
                had_host_bits,
                was_mapped,
            } = block(text).unwrap();
            (network.to_string(), had_host_bits, was_mapped)
        };
        assert_eq!(read("10.0.0.0/8"), ("10.0.0.0/8".into(), false, false));
        assert_eq!(read("10.1.2.3/8"), ("10.0.0.0/8".into(), true, false));
        assert_eq!(read("0.0.0.0/0"), ("0.0.0.0/0".into(), false, false));
        assert_eq!(read("fd00::1/64"), ("fd00::/64".into(), true, false));
        assert_eq!(
            read("::ffff:10.0.0.0/104"),
            ("10.0.0.0/8".into(), false, true)
        );
        assert_eq!(
            read("::ffff:10.1.0.0/104"),
            ("10.0.0.0/8".into(), true, true)
        );
        assert_eq!(read("::ffff:0:0/96"), ("0.0.0.0/0".into(), false, true));
        assert_eq!(read("::ffff:0:0/95").0, "::fffe:0:0/95");
        assert_eq!(read("::/0").0, "::/0");
    }

    #[test]
    fn bad_blocks_say_what_to_do() {
        for (text, advice) in [
            ("10.0.0.1", "write 10.0.0.1/32 for this one address"),
            ("fd00::1", "write fd00::1/128 for this one address"),
            ("10.0.0.0/33", "use a prefix length from 0 to 32"),
            ("fd00::/129", "use a prefix length from 0 to 128"),
            ("10.0.0.0/", "use a prefix length from 0 to 32"),
            ("10.0.0.0/+8", "use a prefix length from 0 to 32"),
            ("10.0.0.0/-1", "use a prefix length from 0 to 32"),
            (
                "10.0.0/8",
                "write the address like 10.0.0.0/8 or fd00::/8, without leading zeros",
            ),
            (
                "010.0.0.0/8",
                "write the address like 10.0.0.0/8 or fd00::/8, without leading zeros",
            ),
            ("", "write it like 10.0.0.0/8 or fd00::/8"),
        ] {
            assert_eq!(block(text).unwrap_err().advice, advice, "{text}");
        }
    }

    #[test]
    fn addresses() {
        assert_eq!(address("::ffff:10.0.0.1").unwrap().to_string(), "10.0.0.1");
        for bad in [
            "",
            "10.0.0",
            "10.0.0.1/32",
            "010.0.0.1",
            "fe80::1%eth0",
            "localhost",
        ] {
            assert!(address(bad).is_err(), "{bad}");
        }
        for bad in [
            "0.0.0.0",
            "::",
            "127.0.0.1",
            "::1",
            "224.0.0.1",
            "ff02::1",
            "fe80::1",
            "169.254.1.1",
            "255.255.255.255",
        ] {
            assert!(unicast_address(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_is_accepted_needs_no_escape(text in "\\PC{0,20}|[a-z0-9./-]{0,20}") {
            let is_plain = |text: &str| text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\{}".contains(&b));
            for accepted in [label_name(&text), object_name(&text), label_key(&text), label_value(&text), port_name(&text)] {
                prop_assert!(accepted.is_err() || is_plain(&text));
            }
        }

        #[test]
        fn blocks_read_back(address: u32, bits in 0_u8..=32) {
            let text = format!("{}/{bits}", std::net::Ipv4Addr::from(address));
            let read = block(&text).unwrap();
            prop_assert_eq!(read.network, text.parse::<IpNet>().unwrap().trunc());
            prop_assert_eq!(block(&read.network.to_string()).unwrap(), Block { network: read.network, had_host_bits: false, was_mapped: false });
        }
    }
}
