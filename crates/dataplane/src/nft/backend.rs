//! The border to the kernel: whoever can commit a transaction and read a table back.

use std::fmt;
use std::io;

use nix::libc;

use super::compare::ChainRules;
use super::object::{Element, Name, Table};
use super::transaction::Transaction;

/// Commits transactions.
pub trait Backend: Send + fmt::Debug {
    /// Commits all operations or none.
    fn commit(&mut self, transaction: &Transaction) -> Result<(), CommitError>;

    /// Whether the table exists.
    fn has_table(&mut self, table: &Table) -> Result<bool, CommitError>;

    /// The elements of a set; `None` when the table or the set is not there.
    fn elements(&mut self, table: &Table, set: &Name) -> Result<Option<Vec<Element>>, CommitError>;

    /// Names of the chains of a table that are not as wanted: missing, surplus, on another hook, or with other rules.
    /// When the table is not there or is switched off, these are all wanted ones.
    fn different_chains(
        &mut self,
        table: &Table,
        wanted: &[ChainRules],
    ) -> Result<Vec<String>, CommitError>;
}

/// Why a commit failed; nothing of it took effect.
#[derive(Debug, thiserror::Error)]
pub enum CommitError {
    /// One operation was refused.
    #[error("the kernel refused {operation}")]
    Refused {
        /// Index in the transaction, and the operation as nft text (shortened).
        operation: String,
        /// Index of the operation in the transaction.
        index: usize,
        /// The kernel's error.
        source: std::io::Error,
    },
    /// Somebody committed in between, or the kernel was short of something: read back and try again.
    #[error("the batch was not taken; a retry can help")]
    Again(#[source] std::io::Error),
    /// The socket or the `nft` program failed.
    #[error("cannot {action}")]
    Transport {
        /// What was tried.
        action: &'static str,
        /// Why not.
        source: std::io::Error,
    },
    /// The kernel lacks something; no retry helps.
    #[error("the kernel lacks {feature}")]
    Unsupported {
        /// What it lacks.
        feature: &'static str,
    },
}

impl CommitError {
    /// Whether reading back and trying again can help: the kernel was short of something, somebody committed in
    /// between, or the ruleset is not what the transaction was made for (something is missing, is there already or
    /// is in use).
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Again(_) => true,
            Self::Refused { source, .. } => matches!(
                source.raw_os_error(),
                Some(libc::EBUSY | libc::EEXIST | libc::ENOENT | libc::ENOTEMPTY)
            ),
            Self::Transport { .. } | Self::Unsupported { .. } => false,
        }
    }

    /// The kernel's error number, if it gave one.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Again(source) | Self::Refused { source, .. } | Self::Transport { source, .. } => {
                source.raw_os_error()
            }
            Self::Unsupported { .. } => None,
        }
    }

    /// The kernel's answer about the operation at `index`.
    pub(super) fn from_errno(errno: i32, index: usize, operation: impl FnOnce() -> String) -> Self {
        let source = io::Error::from_raw_os_error(errno);
        if is_transient(errno) {
            Self::Again(source)
        } else {
            Self::Refused {
                operation: operation(),
                index,
                source,
            }
        }
    }
}

/// Whether the kernel was short of something, or somebody committed in between.
pub(super) fn is_transient(errno: i32) -> bool {
    matches!(
        errno,
        libc::EINTR | libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM | libc::ERESTART
    )
}
