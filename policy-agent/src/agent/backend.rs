//! Which backend the applier gets, and what the layout may use of this kernel.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use towpath_core::model::Protocol;
use towpath_dataplane::nft::{
    Backend, CommandBackend, CommitError, NetlinkBackend, Table, TableFlags,
};
use tracing::info;

use super::config::{Config, NftBackend};
use crate::layout::{DEFAULT_OVERLAY_PORT, LayoutOptions, TableId};

/// Logged packets per second and reason, and at once.
const LOG_RATE: (u64, u32) = (100, 100);
/// An `nft` process that takes longer hangs.
const COMMAND_TIMEOUT: Duration = Duration::from_mins(1);

/// A backend with what the layout may use.
pub(super) struct Opened {
    pub(super) backend: Box<dyn Backend>,
    pub(super) options: LayoutOptions,
    /// Port of the socket whose commits are ours; the `nft` program has a new one each time.
    pub(super) port: Option<u32>,
}

/// Why the tables cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TablesError {
    /// The kernel cannot be asked.
    #[error("cannot use nftables")]
    Kernel(#[from] CommitError),
    /// They belong to a program that runs, and the kernel lets nobody else change them. No retry helps.
    #[error(
        "table {table} belongs to another running program, with netlink port {owner}, usually its process id; another \
         agent may serve this node from another --state-dir, stop it first"
    )]
    Owned {
        /// The table.
        table: Table,
        /// Port of the owner's socket.
        owner: u32,
    },
}

impl TablesError {
    /// Whether the kernel lacks something.
    pub(crate) fn is_unsupported(&self) -> bool {
        matches!(self, Self::Kernel(CommitError::Unsupported { .. }))
    }
}

/// Fails when one of our tables belongs to somebody else's socket. A table whose owner has gone belongs to nobody.
pub(crate) fn refuse_owned(backend: &mut NetlinkBackend) -> Result<(), TablesError> {
    for table in TableId::ALL.map(TableId::table) {
        let state = backend.table_state(&table)?;
        let owner = state.and_then(|state| state.owner);
        if let Some(owner) = owner.filter(|owner| *owner != backend.port()) {
            return Err(TablesError::Owned { table, owner });
        }
    }
    Ok(())
}

/// Opens the configured backend in the network namespace of the calling thread.
pub(super) fn open(config: &Config) -> Result<Opened, TablesError> {
    let mut netlink = NetlinkBackend::open()?;
    refuse_owned(&mut netlink)?;
    let (backend, table_flags, port): (Box<dyn Backend>, TableFlags, Option<u32>) =
        match config.nft_backend {
            NftBackend::Netlink => {
                let features = netlink.probe_features()?;
                let flags = features.table_flags();
                info!(
                    owner = flags.owner,
                    persist = flags.persist,
                    "nftables over netlink"
                );
                let port = netlink.port();
                (Box::new(netlink), flags, Some(port))
            }
            NftBackend::Command => {
                info!("nftables through the nft program, on plain tables");
                (
                    Box::new(CommandBackend::new("nft", COMMAND_TIMEOUT)),
                    TableFlags::default(),
                    None,
                )
            }
        };
    Ok(Opened {
        backend,
        options: LayoutOptions {
            stateless_protocols: untracked_protocols(),
            ..layout_options(config, table_flags)
        },
        port,
    })
}

/// The layout that the configuration asks for.
pub(crate) fn layout_options(config: &Config, table_flags: TableFlags) -> LayoutOptions {
    let (log_rate, log_burst) = LOG_RATE;
    LayoutOptions {
        table_flags,
        overlay_ports: [config.overlay_udp_port.unwrap_or(DEFAULT_OVERLAY_PORT)].into(),
        log_group: config.nflog_group,
        log_rate,
        log_burst,
        dhcp: config.dhcp,
        enforcement: config.enforcement_here(),
        ..LayoutOptions::default()
    }
}

/// Protocols with ports for which connection tracking of this kernel knows only addresses. Without its settings to be
/// seen a protocol counts as untracked: then every packet is judged, and none passes for another's sake.
fn untracked_protocols() -> BTreeSet<u8> {
    let trackers = [(
        Protocol::Sctp,
        "/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established",
    )];
    let untracked = trackers
        .into_iter()
        .filter(|(_, setting)| !Path::new(setting).exists());
    untracked.map(|(protocol, _)| protocol.number()).collect()
}
