//! The process shell that our binaries share: configuration layers, whole files, logs, liveness, readiness, local HTTP.
//!
//! It knows nothing of policy or of the kernel.
#![forbid(unsafe_code)]

pub mod config;
pub mod file;
pub mod http;
pub mod liveness;
pub mod logs;
pub mod process;
pub mod readiness;
pub mod serve;
