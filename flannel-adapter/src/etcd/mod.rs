//! Flannel's facts in etcd mode, read from etcd v3 and kept up to date.
//!
//! Asked is etcd's own JSON gateway, over the HTTP client that the agent has anyway. A client of etcd's native protocol would
//! bring gRPC, HTTP/2 and generated code for two requests: a list, and a watch.
//!
//! [`follow()`] lists everything under the prefix, watches from that revision on, and lists again when etcd has compacted
//! what it missed, when the connection ends, and every few minutes for good measure. Nothing is ever written.

mod client;
mod follow;
mod state;
mod tls;
mod wire;

pub use client::{Credentials, Endpoint, EndpointError, EtcdError};
pub use follow::{EtcdConfig, follow};
pub use state::EtcdView;
pub use tls::{TlsError, TlsFiles};
