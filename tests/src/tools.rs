//! The real servers and plugins of the test bed, built from Go modules into the user's cache directory.
//!
//! `tests/tools/go.mod` pins them. Only [`build_missing`] builds, and only `cargo xtask setup` (and what begins with
//! it) calls that; a test looks with [`Tool::path`] or skips.

use std::fs::{self, File};
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::program;
use crate::wait::until_some;

/// Where Kubernetes developers have `kube-apiserver` and `etcd`, if they have them.
pub const ASSETS: &str = "KUBEBUILDER_ASSETS";

/// The release whose version the servers tell; `go.mod` requires the same.
const KUBERNETES: &str = "v1.36.3";
/// The longest takes five minutes on two cores.
const BUDGET: Duration = Duration::from_mins(20);

/// A program of the test bed that no Debian package brings in the version we want.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Tool {
    /// The CNI plugin `bridge` 1.9.1; Debian's is 1.1.1.
    Bridge,
    /// The CNI plugin `host-local` 1.9.1.
    HostLocal,
    /// The CNI plugin `loopback` 1.9.1.
    Loopback,
    /// The CNI plugin `ptp` 1.9.1.
    Ptp,
    /// The CNI plugin `portmap` 1.9.1.
    Portmap,
    /// A CNI runtime without containers, for drop-ins, STATUS and GC.
    Cnitool,
    /// Flannel's daemon.
    Flanneld,
    /// The API server.
    ApiServer,
    /// The controllers: service accounts, endpoints, deployments, ...
    ControllerManager,
    /// The scheduler.
    Scheduler,
    /// Services on a node.
    Proxy,
    /// The node agent.
    Kubelet,
    /// The command line.
    Kubectl,
}

impl Tool {
    /// All, the quick ones first.
    pub const ALL: [Self; 13] = [
        Self::Bridge,
        Self::HostLocal,
        Self::Loopback,
        Self::Ptp,
        Self::Portmap,
        Self::Cnitool,
        Self::Flanneld,
        Self::ApiServer,
        Self::ControllerManager,
        Self::Scheduler,
        Self::Proxy,
        Self::Kubelet,
        Self::Kubectl,
    ];

    /// The plugins, as one folder has them.
    pub const PLUGINS: [Self; 5] = [
        Self::Bridge,
        Self::HostLocal,
        Self::Loopback,
        Self::Ptp,
        Self::Portmap,
    ];

    /// Its file name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::HostLocal => "host-local",
            Self::Loopback => "loopback",
            Self::Ptp => "ptp",
            Self::Portmap => "portmap",
            Self::Cnitool => "cnitool",
            Self::Flanneld => "flanneld",
            Self::ApiServer => "kube-apiserver",
            Self::ControllerManager => "kube-controller-manager",
            Self::Scheduler => "kube-scheduler",
            Self::Proxy => "kube-proxy",
            Self::Kubelet => "kubelet",
            Self::Kubectl => "kubectl",
        }
    }

    /// Where it is; an error says how to get it.
    pub fn path(self) -> Result<PathBuf> {
        self.find().with_context(|| {
            format!(
                "{} is not built yet; cargo xtask setup builds it",
                self.name()
            )
        })
    }

    /// Where it is, if it is.
    pub fn find(self) -> Option<PathBuf> {
        let assets = matches!(self, Self::ApiServer)
            .then(|| asset(self.name()))
            .flatten();
        assets.or_else(|| {
            let path = folder().ok()?.join(self.place());
            path.exists().then_some(path)
        })
    }

    /// Its place in the folder of tools. The plugins have a folder of their own, as CNI wants it.
    fn place(self) -> PathBuf {
        if Self::PLUGINS.contains(&self) {
            Path::new("cni").join(self.name())
        } else {
            PathBuf::from(self.name())
        }
    }

    fn package(self) -> String {
        let name = self.name();
        match self {
            Self::Bridge | Self::Loopback | Self::Ptp => {
                format!("github.com/containernetworking/plugins/plugins/main/{name}")
            }
            Self::HostLocal => {
                format!("github.com/containernetworking/plugins/plugins/ipam/{name}")
            }
            Self::Portmap => format!("github.com/containernetworking/plugins/plugins/meta/{name}"),
            Self::Cnitool => format!("github.com/containernetworking/cni/{name}"),
            Self::Flanneld => "github.com/flannel-io/flannel".to_owned(),
            _ => format!("k8s.io/kubernetes/cmd/{name}"),
        }
    }

    fn build(self, folder: &Path) -> Result<()> {
        let path = folder.join(self.place());
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        let unfinished = path.with_extension("part");
        let log = folder.join(format!("{}.log", self.name()));
        // Without a version kubectl cannot make sense of the server's.
        let flags = format!("-s -w -X k8s.io/component-base/version.gitVersion={KUBERNETES}");
        let mut command = Command::new("nice");
        command
            .args([
                "go",
                "build",
                "-p",
                "2",
                "-trimpath",
                "-ldflags",
                &flags,
                "-o",
            ])
            .arg(&unfinished)
            .arg(self.package())
            .current_dir(sources())
            // One backend of flanneld has C in it.
            .env(
                "CGO_ENABLED",
                if self == Self::Flanneld { "1" } else { "0" },
            )
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(&log)?);
        let mut child = command
            .spawn()
            .context("cannot start go; install Go 1.26 or later")?;
        let ended = until_some(&format!("go build of {}", self.name()), BUDGET, || {
            Ok(child.try_wait()?)
        });
        let status = match ended {
            Ok(status) => status,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        };
        if !status.success() {
            let words = fs::read_to_string(&log).unwrap_or_default();
            bail!("cannot build {}: {}", self.name(), words.trim());
        }
        fs::remove_file(&log)?;
        Ok(fs::rename(&unfinished, &path)?)
    }
}

/// A program of `KUBEBUILDER_ASSETS`.
pub fn asset(name: &str) -> Option<PathBuf> {
    let path = Path::new(&std::env::var_os(ASSETS)?).join(name);
    path.exists().then_some(path)
}

/// The etcd server: of `KUBEBUILDER_ASSETS`, else Debian's.
pub fn etcd() -> Option<PathBuf> {
    asset("etcd").or_else(|| program::on_path("etcd"))
}

/// kubectl: the user's own, else the one that is built with the servers.
pub fn kubectl() -> Result<PathBuf> {
    program::on_path("kubectl").map_or_else(|| Tool::Kubectl.path(), Ok)
}

/// The folder with the CNI plugins 1.9.1, when all are built.
pub fn plugin_folder() -> Option<PathBuf> {
    let is_complete = Tool::PLUGINS.iter().all(|tool| tool.find().is_some());
    is_complete.then(folder)?.ok().map(|path| path.join("cni"))
}

/// The tools that are not there.
pub fn missing() -> Vec<Tool> {
    Tool::ALL
        .into_iter()
        .filter(|tool| tool.find().is_none())
        .collect()
}

/// Builds what is missing, one after the other, and says what it does. Whoever comes second waits for the first.
pub fn build_missing(say: impl Fn(&str)) -> Result<()> {
    if missing().is_empty() {
        return Ok(());
    }
    let folder = folder()?;
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    if lock.try_lock().is_err() {
        say("waiting for another build of the test bed's tools");
        lock.lock()?;
    }
    let tools = missing();
    if tools.is_empty() {
        return Ok(());
    }
    say(&format!(
        "building {} tools of the test bed into {}; once, and about ten minutes on two cores if all are missing",
        tools.len(),
        folder.display()
    ));
    for (place, tool) in tools.iter().enumerate() {
        let started = Instant::now();
        tool.build(&folder)?;
        say(&format!(
            "  {}/{} {} built in {} s",
            place + 1,
            tools.len(),
            tool.name(),
            started.elapsed().as_secs()
        ));
    }
    Ok(())
}

/// `tests/tools`.
fn sources() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tools"))
}

/// The folder of this version of the tools.
pub fn folder() -> Result<PathBuf> {
    Ok(cache()?.join("tools").join(key()?))
}

/// `$XDG_CACHE_HOME/towpath`.
pub fn cache() -> Result<PathBuf> {
    let given = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty());
    let base = if let Some(path) = given {
        PathBuf::from(path)
    } else {
        let home = std::env::var_os("HOME").context("neither XDG_CACHE_HOME nor HOME is set")?;
        Path::new(&home).join(".cache")
    };
    Ok(base.join("towpath"))
}

/// What the tools are built from, in 16 hex digits.
fn key() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for name in ["go.mod", "go.sum"] {
        let path = sources().join(name);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                bail!("{} is not there", path.display());
            }
            text => text
                .with_context(|| format!("cannot read {}", path.display()))?
                .hash(&mut hasher),
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_tool_is_pinned() {
        let pinned = fs::read_to_string(sources().join("go.mod")).unwrap();

        for tool in Tool::ALL {
            let line = format!("\t{}\n", tool.package());
            assert!(pinned.contains(&line), "go.mod has no tool {line}");
        }
        assert!(pinned.contains(&format!("k8s.io/kubernetes {KUBERNETES}")));
    }
}
