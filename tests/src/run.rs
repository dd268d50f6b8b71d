//! A run: a prefix that nobody else has, a folder, and the keeper that removes everything under either.

use std::fs::OpenOptions;
use std::hash::{BuildHasher as _, RandomState};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::keeper::{FOLDER_PREFIX, Keeper};
use crate::netns::{NAMESPACE_FOLDER, Namespace};

/// The variable that names a file in which each run notes its prefix, so that a test run can look for remains.
pub const LAB_LOG: &str = "TOWPATH_LAB_LOG";

/// What is made under one prefix. Dropping it removes everything.
#[derive(Debug)]
pub struct Run {
    prefix: String,
    folder: PathBuf,
    /// The network between the nodes, and where the control plane lives.
    pub fabric: Namespace,
    keeper: Keeper,
}

impl Run {
    /// Makes the fabric's namespace under a prefix that nobody has, and the keeper that watches over it.
    pub fn claim() -> Result<Self> {
        let random = RandomState::new();
        for attempt in 0_u32..64 {
            let prefix = format!("tp{:04x}", random.hash_one(attempt) & 0xffff);
            let name = format!("{prefix}-fabric");
            if Path::new(NAMESPACE_FOLDER).join(&name).exists() {
                continue;
            }
            // Making the namespace is the claim: it fails when another run was faster.
            let Ok(mut fabric) = Namespace::create(&name) else {
                if attempt < 3 {
                    continue;
                }
                // Not a name that was taken: say what is wrong.
                return Err(Namespace::create(&name).expect_err("it has just failed"))
                    .context("cannot make network namespaces; are you root?");
            };
            let folder = tempfile::Builder::new()
                .prefix(FOLDER_PREFIX)
                .tempdir()?
                .keep();
            let keeper = Keeper::start(&prefix, &folder)?;
            note_prefix(&prefix)?;
            fabric.release();
            return Ok(Self {
                prefix,
                folder,
                fabric,
                keeper,
            });
        }
        bail!("no free prefix for network namespaces; are labs left over? see ip netns")
    }

    /// What every namespace of this run starts with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The run's folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Leaves everything running. `cargo xtask lab down` removes it.
    pub fn release(mut self) -> Result<()> {
        self.keeper.release()
    }

    /// Removes everything, and says what went wrong, which a drop cannot.
    pub fn close(mut self) -> Result<()> {
        self.keeper.clean()
    }
}

fn note_prefix(prefix: &str) -> Result<()> {
    if let Some(path) = std::env::var_os(LAB_LOG) {
        let mut file = OpenOptions::new().create(true).append(true).open(path)?;
        // In one write: test programs that run at the same time append to the same file.
        file.write_all(format!("{prefix}\n").as_bytes())?;
    }
    Ok(())
}
