//! Disks that fail: a small file system in a mount namespace of its own, which is full or cannot be written at will.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};

const NOTHING: Option<&str> = None;
/// What fills a disk.
const FILLER: &str = "filler";

/// Runs a closure on a thread with a mount namespace of its own. What it starts sees its mounts; they end with the last
/// process that does. What others mount meanwhile is seen too.
pub fn with_own_mounts<T: Send>(work: impl FnOnce() -> T + Send) -> Result<T> {
    let name = std::thread::current().name().unwrap_or("mounts").to_owned();
    std::thread::scope(|scope| {
        let thread =
            std::thread::Builder::new()
                .name(name)
                .spawn_scoped(scope, || -> Result<T> {
                    unshare(CloneFlags::CLONE_NEWNS).context("cannot make a mount namespace")?;
                    let one_way = MsFlags::MS_REC | MsFlags::MS_SLAVE;
                    mount(NOTHING, "/", NOTHING, one_way, NOTHING)?;
                    Ok(work())
                })?;
        thread.join().unwrap_or_else(|panic| resume_unwind(panic))
    })
}

/// How a disk fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// There is no space.
    Full,
    /// Nothing can be written, as after an error of the device.
    ReadOnly,
}

/// A small file system at a folder, for use inside [`with_own_mounts`].
#[derive(Debug)]
pub struct Disk {
    folder: PathBuf,
}

impl Disk {
    /// Mounts it over a folder, which is made if need be.
    pub fn mount(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder)?;
        let size = Some("size=256k,mode=700");
        mount(NOTHING, folder, Some("tmpfs"), MsFlags::empty(), size)
            .with_context(|| format!("cannot mount at {}", folder.display()))?;
        let folder = folder.to_owned();
        Ok(Self { folder })
    }

    /// From now on nothing can be written.
    pub fn fail(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Full => self.fill(),
            // A file system that is written to cannot be made read-only as a whole; a second mount of it can.
            Fault::ReadOnly => {
                let folder = &self.folder;
                mount(Some(folder), folder, NOTHING, MsFlags::MS_BIND, NOTHING)?;
                let flags = MsFlags::MS_REMOUNT | MsFlags::MS_BIND | MsFlags::MS_RDONLY;
                mount(NOTHING, folder, NOTHING, flags, NOTHING)?;
                Ok(())
            }
        }?;
        let probe = self.folder.join("probe");
        let written = fs::write(&probe, "something");
        ensure!(written.is_err(), "{} can be written", self.folder.display());
        if fault == Fault::Full {
            fs::remove_file(probe)?;
        }
        Ok(())
    }

    /// It is as it was before [`Disk::fail`].
    pub fn recover(&self, fault: Fault) -> Result<()> {
        match fault {
            Fault::Full => fs::remove_file(self.folder.join(FILLER))?,
            Fault::ReadOnly => umount2(&self.folder, MntFlags::MNT_DETACH)?,
        }
        Ok(())
    }

    fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.folder.join(FILLER))?;
        loop {
            match filler.write(&[0; 4096]) {
                Err(error) if error.kind() == io::ErrorKind::StorageFull => return Ok(()),
                written => ensure!(written? > 0, "nothing was written"),
            }
        }
    }
}
