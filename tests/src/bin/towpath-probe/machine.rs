//! The rest of a machine around a node: processes, mounts and `/run` of its own.
//!
//! A kubelet and a container runtime start processes and mount things all over. In a process namespace all of it ends
//! with the first process, and in a mount namespace nothing of it is seen outside or left behind.

use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

use super::Options;
use towpath_tests::cluster::machine::{PID_FILE, READY_FILE};

/// Settings of the whole kernel that a kubelet wants, and would change. It finds them as it likes them.
const TUNABLES: [(&str, &str); 6] = [
    ("vm/overcommit_memory", "1"),
    ("vm/panic_on_oom", "0"),
    ("kernel/panic", "10"),
    ("kernel/panic_on_oops", "1"),
    ("kernel/keys/root_maxkeys", "1000000"),
    ("kernel/keys/root_maxbytes", "25000000"),
];

/// Makes the namespaces and starts the first process in them.
pub(crate) fn run(options: &Options) -> Result<()> {
    let folder = PathBuf::from(options.one("folder")?);
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWPID)
        .context("cannot make a mount and a process namespace")?;
    private("/")?;
    // The first child is the first process of the new namespace; this one stays outside.
    let mut child = Command::new(std::env::current_exe()?)
        .arg("machine-init")
        .arg("--folder")
        .arg(&folder)
        .process_group(0)
        .spawn()?;
    fs::write(folder.join(PID_FILE), format!("{}\n", child.id()))?;
    let status = child.wait()?;
    ensure!(status.success(), "the first process ended with {status}");
    Ok(())
}

/// The first process: mounts, then collects whatever ends.
pub(crate) fn init(options: &Options) -> Result<()> {
    set_pdeathsig(Signal::SIGKILL)?;
    let folder = Path::new(options.one("folder")?);
    mount_all(folder)?;
    let mut ended = SigSet::empty();
    ended.add(Signal::SIGCHLD);
    ended.thread_block()?;
    fs::write(folder.join(READY_FILE), "")?;
    loop {
        ended.wait()?;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(_) => {}
                Err(error) => return Err(error).context("cannot collect what ended"),
            }
        }
    }
}

fn mount_all(folder: &Path) -> Result<()> {
    let plain = MsFlags::empty();
    mount(Some("proc"), "/proc", Some("proc"), plain, None::<&str>)
        .context("cannot mount /proc")?;
    for (name, value) in TUNABLES {
        let file = folder.join(name.replace('/', "-"));
        fs::write(&file, value)?;
        let target = Path::new("/proc/sys").join(name);
        mount(
            Some(&file),
            &target,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )
        .with_context(|| format!("cannot cover {}", target.display()))?;
    }
    mount(Some("run"), "/run", Some("tmpfs"), plain, Some("mode=755"))
        .context("cannot mount /run")?;
    let layers = ["var", "var-work"].map(|name| folder.join(name));
    for layer in &layers {
        fs::create_dir_all(layer)?;
    }
    let [upper, work] = layers.map(|layer| layer.display().to_string());
    let options = format!("lowerdir=/var,upperdir={upper},workdir={work}");
    mount(
        Some("var"),
        "/var",
        Some("overlay"),
        plain,
        Some(options.as_str()),
    )
    .context("cannot mount /var")?;
    // Volumes of pods that share mounts want this; nobody outside shares ours.
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_SHARED | MsFlags::MS_REC,
        None::<&str>,
    )
    .context("cannot share mounts")
}

fn private(path: &str) -> Result<()> {
    let flags = MsFlags::MS_PRIVATE | MsFlags::MS_REC;
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .with_context(|| format!("cannot make {path} private"))
}
