//! Manifests: from bytes to objects of the model, with errors a person can act on.
//!
//! [`read`] takes a file apart into documents, each of which is an [`Object`](towpath_core::model::Object), a
//! [`BadObject`] or of no interest; [`convert()`] does the same for one object that is already parsed (a [`Value`],
//! which any serde format can fill); [`read_object`] reads one as the API server sends it. Everything here is a pure function.
//!
//! * An object is checked whole: every fault is found at once, and each names the field, the line and the cure.
//! * Unknown fields are ignored in Pods, Nodes and Namespaces and refused in policies.
//! * A policy that is refused comes with a closed stand-in, as far as it could be read (edge case 1); [`decide`]
//!   says what becomes of a refused object.
//! * Memory is bounded by [`limits`].
//!
//! Not here: reading of directories, and which of two objects of one name counts (crate `policy-agent`).
#![forbid(unsafe_code)]

mod check;
mod convert;
mod document;
mod fault;
mod field;
mod json;
pub mod limits;
mod outcome;
mod value;
mod yaml;

pub use convert::convert;
pub use document::{Document, read};
pub use fault::{Fault, Place, Severity};
pub use json::{Header, read_header, read_object};
pub use outcome::{BadObject, Decision, Identity, Kind, Outcome, decide};
pub use value::Value;
