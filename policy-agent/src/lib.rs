//! The binary `towpath`: the agent of a node, and the command line on the same code.
//!
//! What decides stands in `towpath-core`, what talks to the kernel in `towpath-dataplane`. Here they are wired.
#![forbid(unsafe_code)]

pub mod agent;
pub mod applier;
pub mod cli;
pub mod doctor;
pub mod layout;
pub mod lint;
pub mod publish;
pub mod render;
pub mod snapshot;
pub mod source;
