//! The second backend: transactions through the `nft` program, as JSON on its standard input.
//!
//! For debugging, and as the oracle of the netlink backend in tests. Tables are plain: nft 1.0.6 does not know the
//! flag `persist`. It deletes a chain together with its rules, where the netlink backend refuses. No shell is
//! involved, and the program is killed when it takes too long.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::Value as Json;

use super::backend::{Backend, CommitError};
use super::compare::ChainRules;
use super::netlink::NetlinkBackend;
use super::object::{Element, Name, Table};
use super::text::{
    SetType, SetTypes, describe, family_text, is_typeof, learn_types, text_with_types,
};
use super::transaction::{Operation, Transaction};
use super::{json, listing};

/// Runs `nft`, in the network namespace of the calling thread.
#[derive(Debug)]
pub struct CommandBackend {
    program: PathBuf,
    timeout: Duration,
    types: SetTypes,
}

/// What a run of `nft` gave.
#[derive(Debug)]
struct Run {
    is_success: bool,
    stdout: Vec<u8>,
    stderr: String,
}

impl CommandBackend {
    /// A backend that runs `program` (`nft` is looked for in the path) and kills it after `timeout`.
    pub fn new(program: impl Into<PathBuf>, timeout: Duration) -> Self {
        Self {
            program: program.into(),
            timeout,
            types: SetTypes::default(),
        }
    }

    /// The listing of a table, as `nft -j` prints it; `None` when the table is not there.
    pub fn list_table(&mut self, table: &Table) -> Result<Option<Json>, CommitError> {
        self.list(&[
            "list",
            "table",
            family_text(table.family),
            table.name.as_str(),
        ])
    }

    fn list(&self, words: &[&str]) -> Result<Option<Json>, CommitError> {
        let action = "list with the nft program";
        let arguments = [&["-j", "-n"], words].concat();
        let run = self.run(&arguments, &[]).map_err(transport(action))?;
        if run.is_success {
            return serde_json::from_slice(&run.stdout)
                .map(Some)
                .map_err(|error| transport(action)(error.into()));
        }
        match errno(&run.stderr) {
            Some(libc::ENOENT) => Ok(None),
            Some(number) => Err(transport(action)(io::Error::from_raw_os_error(number))),
            None => Err(transport(action)(io::Error::other(run.stderr))),
        }
    }

    /// Sets may have been made by an earlier run: asks for their types when an operation needs them.
    fn ask_types(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        let is_unknown = |operation: &Operation| match operation {
            Operation::AddElements(table, set, _)
            | Operation::AddTimedElements(table, set, _)
            | Operation::DeleteElements(table, set, _)
            | Operation::FlushSet(table, set)
            | Operation::DeleteSet(table, set) => {
                !self.types.contains_key(&(table.clone(), set.clone()))
            }
            _ => false,
        };
        if !transaction.operations.iter().any(is_unknown) {
            return Ok(());
        }
        for words in [["list", "sets"], ["list", "maps"]] {
            let Some(document) = self.list(&words)? else {
                continue;
            };
            for (family, table, spec, _) in listing::sets(&document) {
                let Some(table) = known_table(transaction, family, table) else {
                    continue;
                };
                let kind = SetType {
                    key: spec.key,
                    is_map: spec.data.is_some(),
                };
                self.types.entry((table, spec.name)).or_insert(kind);
            }
        }
        Ok(())
    }

    /// Finds the operation that nft refuses: only text has line numbers in its errors.
    fn locate(&self, transaction: &Transaction) -> Option<usize> {
        let text = text_with_types(transaction, &self.types).ok()?;
        let run = self.run(&["-c", "-f", "-"], text.as_bytes()).ok()?;
        if run.is_success {
            None
        } else {
            error_line(&run.stderr)?.checked_sub(1)
        }
    }

    fn run(&self, arguments: &[&str], input: &[u8]) -> io::Result<Run> {
        let mut child = Command::new(&self.program)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        let outcome = converse(&mut child, input, Instant::now() + self.timeout);
        if outcome.is_err() {
            child.kill()?;
        }
        let status = child.wait()?;
        let (stdout, stderr) = outcome?;
        let stderr = String::from_utf8_lossy(&stderr).trim().to_owned();
        Ok(Run {
            is_success: status.success(),
            stdout,
            stderr,
        })
    }
}

impl Backend for CommandBackend {
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        if transaction.is_empty() {
            return Ok(());
        }
        let known = self.types.clone();
        learn_types(&mut self.types, transaction);
        let result = self.commit_known(transaction);
        if result.is_err() {
            self.types = known;
        }
        result
    }

    fn has_table(&mut self, table: &Table) -> Result<bool, CommitError> {
        // Not as JSON: nft 1.0.6 writes the flag of a dormant table from memory that is not its own, or nothing at all.
        let action = "list tables with the nft program";
        let run = self
            .run(&["list", "tables"], &[])
            .map_err(transport(action))?;
        if !run.is_success {
            return Err(transport(action)(io::Error::other(run.stderr)));
        }
        let wanted = format!("table {} {}", family_text(table.family), table.name);
        let listing = String::from_utf8_lossy(&run.stdout);
        Ok(listing.lines().any(|line| line.trim() == wanted))
    }

    fn elements(&mut self, table: &Table, set: &Name) -> Result<Option<Vec<Element>>, CommitError> {
        for kind in ["set", "map"] {
            let words = [
                "list",
                kind,
                family_text(table.family),
                table.name.as_str(),
                set.as_str(),
            ];
            let Some(document) = self.list(&words)? else {
                continue;
            };
            for (_, _, spec, list) in listing::sets(&document) {
                if spec.name == *set {
                    let elements = listing::elements(&spec, list).ok_or_else(|| {
                        let source = io::Error::new(
                            io::ErrorKind::InvalidData,
                            "the listing has elements of another type than ours",
                        );
                        transport("read the elements of a set")(source)
                    })?;
                    return Ok(Some(elements));
                }
            }
        }
        Ok(None)
    }

    /// Reads over netlink: a listing says the same rule in many ways.
    fn different_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError> {
        NetlinkBackend::open()?.compare_chains(table, wanted)
    }
}

impl CommandBackend {
    fn commit_known(&mut self, transaction: &Transaction) -> Result<(), CommitError> {
        self.ask_types(transaction)?;
        let needs_text = transaction
            .operations
            .iter()
            .any(|operation| matches!(operation, Operation::AddSet(_, spec) if is_typeof(spec)));
        let written = if needs_text {
            text_with_types(transaction, &self.types).map(String::into_bytes)
        } else {
            json::document(transaction, &self.types)
                .map(|document| document.to_string().into_bytes())
        };
        let input = written.map_err(|error| CommitError::Refused {
            operation: "the transaction".to_owned(),
            index: 0,
            source: io::Error::new(io::ErrorKind::InvalidInput, error),
        })?;
        let arguments: &[&str] = if needs_text {
            &["-f", "-"]
        } else {
            &["-j", "-f", "-"]
        };
        let run = self
            .run(arguments, &input)
            .map_err(transport("run the nft program"))?;
        if run.is_success {
            Ok(())
        } else {
            Err(self.explain(transaction, &run.stderr))
        }
    }

    fn explain(&self, transaction: &Transaction, stderr: &str) -> CommitError {
        let index = self.locate(transaction).unwrap_or(0);
        let operation = || {
            transaction
                .operations
                .get(index)
                .map(describe)
                .unwrap_or_default()
        };
        match errno(stderr) {
            Some(number) => CommitError::from_errno(number, index, operation),
            None => CommitError::Refused {
                operation: operation(),
                index,
                source: io::Error::other(stderr.to_owned()),
            },
        }
    }
}

/// The table of a transaction with this family and name.
fn known_table(transaction: &Transaction, family: &str, name: &str) -> Option<Table> {
    transaction
        .operations
        .iter()
        .map(Operation::table)
        .find(|table| family_text(table.family) == family && table.name.as_str() == name)
        .cloned()
}

/// Writes the input while it reads both outputs to their ends.
fn converse(child: &mut Child, input: &[u8], deadline: Instant) -> io::Result<(Vec<u8>, Vec<u8>)> {
    let missing = || io::Error::other("a pipe of the nft program is missing");
    let mut stdin = child.stdin.take().ok_or_else(missing)?;
    let stdout = child.stdout.take().ok_or_else(missing)?;
    let stderr = child.stderr.take().ok_or_else(missing)?;
    thread::scope(|scope| {
        // A program that fails early closes its input; its own words say why.
        scope.spawn(move || stdin.write_all(input).ok());
        let errors = scope.spawn(move || read_until(stderr, deadline));
        let output = read_until(stdout, deadline);
        if output.is_err() {
            // Ends the pipes, so that the threads end.
            child.kill()?;
        }
        let errors = errors
            .join()
            .map_err(|_| io::Error::other("a reader of the nft program died"))?;
        Ok((output?, errors?))
    })
}

fn read_until(mut pipe: impl Read + AsFd, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut chunk = [0; 8 * 1024];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        let mut descriptors = [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)];
        match poll(&mut descriptors, timeout) {
            Ok(0) => {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the nft program hangs",
                ));
            }
            Ok(_) => {}
            Err(nix::errno::Errno::EINTR) => continue,
            Err(error) => return Err(error.into()),
        }
        match pipe.read(&mut chunk)? {
            0 => return Ok(bytes),
            length => bytes.extend_from_slice(&chunk[..length]),
        }
    }
}

/// The kernel's error from nft's words, which end in the C library's text for it.
fn errno(stderr: &str) -> Option<i32> {
    const KNOWN: [i32; 12] = [
        libc::ENOENT,
        libc::EEXIST,
        libc::EBUSY,
        libc::EPERM,
        libc::EINVAL,
        libc::ENFILE,
        libc::EOPNOTSUPP,
        libc::ENOTEMPTY,
        libc::EINTR,
        libc::ENOBUFS,
        libc::ENOMEM,
        libc::ELOOP,
    ];
    KNOWN.into_iter().find(|number| {
        let text = io::Error::from_raw_os_error(*number).to_string();
        text.split(" (os error")
            .next()
            .is_some_and(|text| stderr.contains(text))
    })
}

/// The line of the first error: `/dev/stdin:3:1-20: Error: ...`.
fn error_line(stderr: &str) -> Option<usize> {
    let line = stderr.lines().find(|line| line.contains(": Error:"))?;
    line.split(':').nth(1)?.parse().ok()
}

fn transport(action: &'static str) -> impl FnOnce(io::Error) -> CommitError {
    move |source| CommitError::Transport { action, source }
}
