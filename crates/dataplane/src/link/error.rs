//! What can go wrong at a netlink socket.

use std::io;

use nix::errno::Errno;

/// A failed request to the kernel.
///
/// The cause is kept as source and is not part of the message; [`NetlinkError::is_retryable`] says whether the same
/// request can succeed later without a change by the operator.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// A socket call failed.
    #[error("cannot {action}")]
    Socket {
        /// What we tried.
        action: &'static str,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a request.
    #[error("cannot {action} {object}{detail}")]
    Refused {
        /// What we tried.
        action: &'static str,
        /// On what.
        object: String,
        /// The kernel's own words, after a separator, or empty.
        detail: String,
        /// The kernel's error number.
        source: Errno,
    },
    /// The tables of the kernel kept changing under a dump.
    #[error("{object} changed during each of {attempts} attempts to list them")]
    Unsettled {
        /// What was listed.
        object: String,
        /// How often.
        attempts: u32,
    },
    /// The kernel is too old or built without something.
    #[error("kernel lacks {feature}; {remedy}")]
    Unsupported {
        /// What is missing.
        feature: &'static str,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// The kernel accepted a setting, yet reads back another value.
    #[error("{object} does not keep the setting {setting}")]
    NotKept {
        /// On what.
        object: String,
        /// Which setting.
        setting: &'static str,
    },
    /// An answer does not fit into our buffer or is not what was asked for.
    #[error("cannot read the kernel's answer about {object}")]
    Malformed {
        /// What was asked for.
        object: String,
    },
}

impl NetlinkError {
    /// The kernel's error number, if it refused the request.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { source, .. } => Some(*source),
            Self::Socket { source, .. } => source.raw_os_error().map(Errno::from_raw),
            Self::Unsettled { .. }
            | Self::Unsupported { .. }
            | Self::NotKept { .. }
            | Self::Malformed { .. } => None,
        }
    }

    /// Whether the same request can succeed later although nobody changes anything.
    pub fn is_retryable(&self) -> bool {
        match self {
            Self::Unsettled { .. } | Self::Malformed { .. } => true,
            Self::Unsupported { .. } | Self::NotKept { .. } => false,
            Self::Socket { .. } | Self::Refused { .. } => !matches!(
                self.errno(),
                Some(Errno::EPERM | Errno::EACCES | Errno::EOPNOTSUPP | Errno::ENOPROTOOPT)
            ),
        }
    }

    /// For `map_err` of socket calls.
    pub(crate) fn socket<E: Into<io::Error>>(action: &'static str) -> impl FnOnce(E) -> Self {
        move |source| Self::Socket {
            action,
            source: source.into(),
        }
    }
}
