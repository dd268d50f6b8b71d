//! The heart of towpath: what a policy means, and what the kernel tables must hold because of it.
//!
//! Nothing here does I/O, reads a clock, spawns or locks. State comes in as [`model::Update`]s; what the
//! dataplane must hold comes out as [`tables::Delta`]s. Two engines share the [`model`] and nothing else:
//!
//! * [`calc`] compiles every policy of this node into flat verdict tables, incrementally;
//! * [`evaluate`] decides one flow by walking tiers and rules in order; it explains, simulates, and is the
//!   oracle that the compiler is tested against.
#![forbid(unsafe_code)]

pub mod calc;
pub mod evaluate;
#[cfg(feature = "generate")]
pub mod generate;
pub mod model;
pub mod tables;
