//! What Flannel, or another provider of interfaces, set up on this node and on the others, as data.
//!
//! It only reads: nothing of Flannel's is ever changed. Nearly everything here is plain functions over text that was read
//! elsewhere; what reads files, sockets or the kernel stands in thin modules of its own.
//!
//! All input is hostile. A bad field is named in a [`Fault`] and left out, and nothing panics.

#![forbid(unsafe_code)]

pub mod annotations;
pub mod backend;
pub mod detect;
pub mod etcd;
pub mod facts;
mod family;
mod fault;
pub mod files;
pub mod finding;
pub mod here;
mod json;
pub mod lease;
pub mod merger;
pub mod net_conf;
mod node;
pub mod source;
pub mod subnet_env;

pub use facts::{FlannelFacts, Inputs, Link};
pub use family::{Addresses, Networks};
pub use fault::{Fault, FaultKind, LastGood, Parsed};
pub use finding::{Finding, Severity};
pub use node::{NodeFacts, NodeKey, Vtep};
