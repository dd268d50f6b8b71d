//! Which backend the applier gets, and what the layout may use of this kernel.

use std::time::Duration;

use towpath_dataplane::nft::{Backend, CommandBackend, CommitError, NetlinkBackend, TableFlags};
use tracing::info;

use super::config::{Config, NftBackend};
use crate::layout::LayoutOptions;

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

/// Opens the configured backend in the network namespace of the calling thread.
pub(super) fn open(config: &Config) -> Result<Opened, CommitError> {
    let (backend, table_flags, port): (Box<dyn Backend>, TableFlags, Option<u32>) =
        match config.nft_backend {
            NftBackend::Netlink => {
                let mut backend = NetlinkBackend::open()?;
                let features = backend.probe_features()?;
                let flags = features.table_flags();
                info!(
                    owner = flags.owner,
                    persist = flags.persist,
                    "nftables over netlink"
                );
                let port = backend.port();
                (Box::new(backend), flags, Some(port))
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
        options: layout_options(config, table_flags),
        port,
    })
}

/// The layout that the configuration asks for.
pub(crate) fn layout_options(config: &Config, table_flags: TableFlags) -> LayoutOptions {
    let (log_rate, log_burst) = LOG_RATE;
    LayoutOptions {
        table_flags,
        overlay_port: config.overlay_udp_port,
        log_group: config.nflog_group,
        log_rate,
        log_burst,
        dhcp: config.dhcp,
        ..LayoutOptions::default()
    }
}
