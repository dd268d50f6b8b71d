//! Who reaches whom: many probes at once from one namespace.
//!
//! The probing itself is done by the program `towpath-probe` inside the namespace; this module is its border.

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use crate::netns::{Namespace, checked, feed};
use crate::program;

/// What a probe speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A connection and the server's greeting.
    Tcp,
    /// A datagram and its echo.
    Udp,
    /// An echo request of ICMP or ICMPv6; the port is 0.
    Icmp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Icmp => "icmp",
        })
    }
}

/// One thing to reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Target {
    /// Destination address.
    pub address: IpAddr,
    /// Destination port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl Target {
    /// A TCP port.
    pub fn tcp(address: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            address: address.into(),
            port,
            protocol: Protocol::Tcp,
        }
    }

    /// A UDP port.
    pub fn udp(address: impl Into<IpAddr>, port: u16) -> Self {
        Self {
            address: address.into(),
            port,
            protocol: Protocol::Udp,
        }
    }

    /// An echo request.
    pub fn icmp(address: impl Into<IpAddr>) -> Self {
        Self {
            address: address.into(),
            port: 0,
            protocol: Protocol::Icmp,
        }
    }
}

/// What came back. Refused, timed out and answered are three different results.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "outcome")]
pub enum Outcome {
    /// The server answered with its name (empty for ICMP).
    Answered {
        /// The name that the server was started with.
        by: String,
        /// From the first packet of the attempt to the answer.
        micros: u64,
    },
    /// The other side has no server there: the packet went through and something came back.
    Refused {
        /// From the first packet of the attempt to the refusal.
        micros: u64,
    },
    /// Nothing came back in any attempt.
    TimedOut,
    /// The packet could not be sent, or the network said that there is no way.
    Failed {
        /// The system's words.
        error: String,
    },
}

impl Outcome {
    /// Whether the packet reached its destination and the answer came back.
    pub fn passed(&self) -> bool {
        matches!(self, Self::Answered { .. } | Self::Refused { .. })
    }
}

/// How long silence must last before it counts.
///
/// An answer counts at once, so patience costs time only where packets are dropped. Each attempt is a new flow: a lost
/// or late packet of the first does not decide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Patience {
    /// Attempts before silence counts as closed; at least 1.
    pub attempts: u32,
    /// How long each waits.
    pub millis: u64,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            attempts: 2,
            millis: 250,
        }
    }
}

impl Patience {
    /// For probes that are expected to pass: a machine under load gets time.
    pub const LONG: Self = Self {
        attempts: 4,
        millis: 1000,
    };
}

/// What the prober reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Request {
    /// What to reach.
    pub targets: Vec<Target>,
    /// When to give up.
    pub patience: Patience,
}

/// Probes all targets at once from a namespace; the outcomes are in the order of the targets.
pub fn probe(from: &Namespace, targets: &[Target], patience: Patience) -> Result<Vec<Outcome>> {
    start(from, targets, patience)?.finish()
}

/// Probes from several namespaces at once.
pub fn probe_all(
    work: &[(&Namespace, Vec<Target>)],
    patience: Patience,
) -> Result<Vec<Vec<Outcome>>> {
    let running: Vec<Running> = work
        .iter()
        .map(|(from, targets)| start(from, targets, patience))
        .collect::<Result<_>>()?;
    // Each prober has its own pipe and prints once at its end, so they may be collected one after the other.
    std::thread::scope(|scope| {
        let threads: Vec<_> = running
            .into_iter()
            .map(|running| scope.spawn(|| running.finish()))
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("collecting does not panic"))
            .collect()
    })
}

struct Running {
    command: Command,
    child: Child,
    request: String,
    count: usize,
}

fn start(from: &Namespace, targets: &[Target], patience: Patience) -> Result<Running> {
    let request = serde_json::to_string(&Request {
        targets: targets.to_vec(),
        patience,
    })?;
    let mut command = Command::new(program::probe()?);
    command.arg("connect");
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let child = from.spawn(&mut command)?;
    Ok(Running {
        command,
        child,
        request,
        count: targets.len(),
    })
}

impl Running {
    fn finish(self) -> Result<Vec<Outcome>> {
        let output = feed(self.child, self.request.as_bytes())?;
        let text = checked(&self.command, &output)?;
        let outcomes: Vec<Outcome> = serde_json::from_str(&text).context("the prober's answer")?;
        ensure!(
            outcomes.len() == self.count,
            "the prober lost targets: {text}"
        );
        Ok(outcomes)
    }
}

/// How many of each outcome there are, for messages.
pub fn summary(outcomes: &[Outcome]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for outcome in outcomes {
        let name = match outcome {
            Outcome::Answered { .. } => "answered",
            Outcome::Refused { .. } => "refused",
            Outcome::TimedOut => "timed out",
            Outcome::Failed { .. } => "failed",
        };
        *counts.entry(name).or_insert(0) += 1;
    }
    counts
}
