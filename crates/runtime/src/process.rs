//! What the process itself uses, and the signals that end it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident bytes now.
    pub resident: u64,
    /// Most resident bytes so far.
    pub peak: u64,
}

impl Memory {
    /// Reads `/proc/self/status`; `None` when it cannot be read.
    pub fn read() -> Option<Self> {
        let status = std::fs::read_to_string("/proc/self/status").ok()?;
        Self::parse(&status)
    }

    fn parse(status: &str) -> Option<Self> {
        let bytes = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name))?;
            let kilobytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
            Some(kilobytes * 1024)
        };
        Some(Self {
            resident: bytes("VmRSS:")?,
            peak: bytes("VmHWM:")?,
        })
    }
}

/// Waits for SIGTERM or SIGINT and names it.
pub async fn end_signal() -> io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_memory_of_the_kernels_report() {
        let status = "Name:\tx\nVmHWM:\t  2048 kB\nVmRSS:\t    1024 kB\n";

        let memory = Memory::parse(status);

        assert_eq!(
            memory,
            Some(Memory {
                resident: 1 << 20,
                peak: 2 << 20
            })
        );
    }

    #[test]
    fn this_process_has_memory() {
        assert!(Memory::read().is_some_and(|memory| memory.resident > 0));
    }
}
