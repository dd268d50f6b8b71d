//! A long flow of numbered messages, to see what a change of policy or a restart loses.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::netns::{Namespace, checked};
use crate::probe::Protocol;
use crate::program;

/// Microseconds between two messages of a `push` server.
pub const PUSH_INTERVAL: u64 = 10_000;

/// What the client saw. Times are in microseconds since its start.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Messages sent.
    pub sent: u64,
    /// Messages that came back (or were pushed).
    pub received: u64,
    /// The longest time without a message, the time after the last one included.
    pub longest_gap: u64,
    /// When the last message came.
    pub last_received: u64,
    /// When the client was told to end.
    pub ended: u64,
    /// The system's words when the flow broke.
    pub error: Option<String>,
}

/// A client that runs inside a namespace until it is told to end.
#[derive(Debug)]
pub struct Stream {
    child: Child,
    command: Command,
}

impl Stream {
    /// Sends a numbered message every `interval` microseconds to an echo server and counts what comes back.
    pub fn echo(
        from: &Namespace,
        to: SocketAddr,
        protocol: Protocol,
        interval: u64,
    ) -> Result<Self> {
        Self::start(from, to, protocol, &["--interval", &interval.to_string()])
    }

    /// Connects once to a `push` server and only listens.
    pub fn listen(from: &Namespace, to: SocketAddr) -> Result<Self> {
        Self::start(from, to, Protocol::Tcp, &[])
    }

    fn start(from: &Namespace, to: SocketAddr, protocol: Protocol, more: &[&str]) -> Result<Self> {
        let mut command = Command::new(program::probe()?);
        command
            .arg("stream")
            .args(["--to", &to.to_string(), "--protocol", &protocol.to_string()])
            .args(more)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let child = from.spawn(&mut command)?;
        let mut stream = Self { child, command };
        crate::wait::first_line(&mut stream.child, "stream")?;
        Ok(stream)
    }

    /// Ends the flow; messages in flight get a moment to come back.
    pub fn finish(mut self) -> Result<Report> {
        drop(self.child.stdin.take());
        let output = self.child.wait_with_output()?;
        let text = checked(&self.command, &output)?;
        serde_json::from_str(&text).with_context(|| format!("the stream's report: {text}"))
    }
}
