//! What users type, and what it means.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Serialize, Serializer};
use smol_str::SmolStr;
use towpath_core::model::Protocol;

/// Where objects come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SourceLocation {
    /// A directory of manifests.
    File(PathBuf),
    /// An API server: that of a kubeconfig, or without one that of the cluster in which this process is a pod.
    Kubernetes(Option<PathBuf>),
}

impl std::fmt::Display for SourceLocation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(directory) => write!(f, "file:{}", directory.display()),
            Self::Kubernetes(None) => f.write_str("kubernetes"),
            Self::Kubernetes(Some(kubeconfig)) => write!(f, "kubernetes:{}", kubeconfig.display()),
        }
    }
}

impl Serialize for SourceLocation {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(self)
    }
}

impl FromStr for SourceLocation {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "kubernetes" {
            return Ok(Self::Kubernetes(None));
        }
        match text.split_once(':') {
            Some(("file", "")) => Err("a directory is missing after file:".to_owned()),
            Some(("file", directory)) => Ok(Self::File(directory.into())),
            Some(("kubernetes", "")) => Err("a kubeconfig is missing after kubernetes:".to_owned()),
            Some(("kubernetes", kubeconfig)) => Ok(Self::Kubernetes(Some(kubeconfig.into()))),
            _ => Err(format!(
                "write file:{text} for a directory of manifests, kubernetes:KUBECONFIG for a cluster, or kubernetes inside of one"
            )),
        }
    }
}

/// One end of a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// A pod or workload endpoint.
    Endpoint {
        /// Its namespace.
        namespace: SmolStr,
        /// Its name.
        name: SmolStr,
    },
    /// An address, whoever owns it.
    Address(IpAddr),
}

impl std::fmt::Display for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Endpoint { namespace, name } => write!(f, "{namespace}/{name}"),
            Self::Address(address) => write!(f, "{address}"),
        }
    }
}

impl FromStr for End {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Ok(address) = text.parse::<IpAddr>() {
            return Ok(Self::Address(address.to_canonical()));
        }
        match text.split_once('/') {
            Some((namespace, name))
                if !namespace.is_empty() && !name.is_empty() && !name.contains('/') =>
            {
                Ok(Self::Endpoint {
                    namespace: namespace.into(),
                    name: name.into(),
                })
            }
            _ => Err("write NAMESPACE/POD or an IP address".to_owned()),
        }
    }
}

/// What is tried at the destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Service {
    /// A port number of a transport protocol.
    Port(Protocol, u16),
    /// A port that the destination declares under this name.
    Named(Option<Protocol>, SmolStr),
    /// A protocol without ports, by IANA number.
    Protocol(u8),
}

impl std::fmt::Display for Service {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Port(protocol, port) => write!(f, "{port}/{protocol}"),
            Self::Named(Some(protocol), name) => write!(f, "{name}/{protocol}"),
            Self::Named(None, name) => write!(f, "{name}"),
            Self::Protocol(number) => write!(f, "{}", protocol_name(*number)),
        }
    }
}

impl FromStr for Service {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (port, protocol) = match text.split_once('/') {
            Some((port, protocol)) => (port, Some(parse_protocol(protocol)?)),
            None => (text, None),
        };
        if let Some(number) = PORTLESS.iter().find(|(name, _)| *name == port)
            && protocol.is_none()
        {
            return Ok(Self::Protocol(number.1));
        }
        match port.parse::<u16>() {
            Ok(0) => Err("port 0 does not exist".to_owned()),
            Ok(number) => Ok(Self::Port(protocol.unwrap_or(Protocol::Tcp), number)),
            Err(_) if is_port_name(port) => Ok(Self::Named(protocol, port.into())),
            Err(_) => Err(format!(
                "{text:?} is no port; write 80/tcp, http/tcp, or icmp"
            )),
        }
    }
}

/// Protocols without ports that people ask about.
const PORTLESS: [(&str, u8); 6] = [
    ("icmp", 1),
    ("icmpv6", 58),
    ("ipip", 4),
    ("gre", 47),
    ("esp", 50),
    ("ah", 51),
];

/// The usual name of an IP protocol, or its number.
pub fn protocol_name(number: u8) -> String {
    if let Some(protocol) = Protocol::from_number(number) {
        return protocol.to_string();
    }
    let known = PORTLESS.iter().find(|(_, known)| *known == number);
    known.map_or_else(|| number.to_string(), |(name, _)| (*name).to_owned())
}

fn parse_protocol(text: &str) -> Result<Protocol, String> {
    Protocol::ALL
        .into_iter()
        .find(|protocol| protocol.to_string().eq_ignore_ascii_case(text))
        .ok_or_else(|| format!("{text:?} is no protocol with ports; write tcp, udp or sctp"))
}

/// Kubernetes' rule: 1 to 15 of `[a-z0-9-]`, at least one letter.
fn is_port_name(text: &str) -> bool {
    (1..=15).contains(&text.len())
        && text
            .bytes()
            .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == b'-')
        && text.bytes().any(|c| c.is_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_services() {
        let cases = [
            ("80/tcp", Ok(Service::Port(Protocol::Tcp, 80))),
            ("53/UDP", Ok(Service::Port(Protocol::Udp, 53))),
            ("443", Ok(Service::Port(Protocol::Tcp, 443))),
            (
                "http/tcp",
                Ok(Service::Named(Some(Protocol::Tcp), "http".into())),
            ),
            ("dns", Ok(Service::Named(None, "dns".into()))),
            ("icmp", Ok(Service::Protocol(1))),
        ];
        for (text, expected) in cases {
            assert_eq!(text.parse::<Service>(), expected, "{text}");
        }
        for bad in [
            "",
            "0/tcp",
            "65536/tcp",
            "80/icmp",
            "80/",
            "/tcp",
            "a b",
            "-",
        ] {
            assert!(bad.parse::<Service>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_ends() {
        let pod = End::Endpoint {
            namespace: "shop".into(),
            name: "db-0".into(),
        };
        assert_eq!("shop/db-0".parse(), Ok(pod));
        assert_eq!(
            "10.0.0.1".parse(),
            Ok(End::Address("10.0.0.1".parse().unwrap()))
        );
        assert_eq!(
            "::ffff:10.0.0.1".parse(),
            Ok(End::Address("10.0.0.1".parse().unwrap()))
        );
        for bad in ["db-0", "/db", "shop/", "a/b/c"] {
            assert!(bad.parse::<End>().is_err(), "{bad}");
        }
    }

    #[test]
    fn reads_sources() {
        for text in [
            "file:examples/shop",
            "kubernetes",
            "kubernetes:/etc/kubernetes/admin.conf",
        ] {
            let source: SourceLocation = text.parse().unwrap();
            assert_eq!(source.to_string(), text);
        }
        for bad in ["file:", "kubernetes:", "etcd:x"] {
            assert!(bad.parse::<SourceLocation>().is_err(), "{bad}");
        }
        let advice = "examples/shop".parse::<SourceLocation>().unwrap_err();
        assert!(advice.contains("file:examples/shop"), "{advice}");
    }
}
