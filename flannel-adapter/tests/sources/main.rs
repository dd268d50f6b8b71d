//! Sources against real files and the real kernel, in network namespaces of the tests' own.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod cni_cache;
mod kernel;
