//! The border to the kernel: whoever can commit a transaction and read a table back.

use std::fmt;

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
