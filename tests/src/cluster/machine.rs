//! A node with processes, mounts, containerd and kubelet of its own.
//!
//! The namespaces are made by `towpath-probe machine`; everything in them ends with their first process. Control groups
//! have no namespace here: each machine has one in every hierarchy, by its namespace's name, and the keeper removes it.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use serde_json::json;

use super::certificates::Identity;
use super::control_plane::{ControlPlane, Credential, View};
use super::daemon::{Daemon, Recipe};
use super::{control_groups, images};
use crate::lab::Node;
use crate::netns::Namespace;
use crate::program;
use crate::tools::Tool;

/// Where the id of the first process is.
pub const PID_FILE: &str = "machine.pid";
/// What the first process makes when all is mounted.
pub const READY_FILE: &str = "machine.ready";

/// Inside the machine, whose `/run` is its own.
const SOCKET: &str = "/run/containerd/containerd.sock";

/// A running machine. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Machine {
    kubelet: Daemon,
    containerd: Daemon,
    init: Daemon,
    name: String,
    pid: u32,
}

impl Machine {
    /// Starts containerd and kubelet around a node, which Flannel has given its addresses.
    pub(crate) fn start(plane: &ControlPlane, node: &Node, folder: &Path) -> Result<Self> {
        let folder = folder.join(&node.name);
        let (init, pid) = start_init(node, &folder)?;
        let group = node.namespace.name();
        control_groups::make(group)?;
        write_plugins(node, &folder)?;
        let mut containerd = inside(pid, "containerd", node, &folder)
            .arg("containerd")
            .arg("--config")
            .arg(write_containerd(&folder)?)
            .start()?;
        containerd.wait("containerd's socket", || {
            Ok(seen_from(pid, Path::new(SOCKET)).exists())
        })?;
        for archive in images::archives(&folder)? {
            let mut command = in_machine(pid);
            command
                .args(["ctr", "--address", SOCKET, "--namespace", "k8s.io"])
                .args(["images", "import"])
                .arg(archive);
            let imported = node.namespace.run(&mut command);
            imported.map_err(|error| containerd.explain(&error))?;
        }
        let user = format!("system:node:{}", node.name);
        let identity = plane
            .authority()
            .client(&node.name, &user, "system:nodes")?;
        let kubelet = start_kubelet(plane, node, &folder, pid, &identity)?;
        Ok(Self {
            kubelet,
            containerd,
            init,
            name: node.name.clone(),
            pid,
        })
    }

    /// Waits until the API says that the node is ready for pods.
    pub(crate) fn wait_ready(&mut self, plane: &ControlPlane) -> Result<()> {
        let path = format!("/api/v1/nodes/{}", self.name);
        self.kubelet
            .wait(&format!("{} Ready by its kubelet", self.name), || {
                let node = plane.api().get(&path)?;
                let conditions = node["status"]["conditions"].as_array();
                Ok(conditions.into_iter().flatten().any(|condition| {
                    condition["type"] == "Ready"
                        && condition["status"] == "True"
                        && condition["reason"] == "KubeletReady"
                }))
            })
    }

    /// The first process, by its id outside.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// A path of the machine, as it is reached from outside.
    pub fn path(&self, path: &Path) -> PathBuf {
        seen_from(self.pid, path)
    }

    /// All of it goes on when this value is gone.
    pub(crate) fn release(self) {
        for daemon in [self.kubelet, self.containerd, self.init] {
            daemon.release();
        }
    }
}

/// Process ids outside of containers whose command line has these words, in pods of a machine.
pub(crate) fn processes_of(group: &str, words: &[&str]) -> Result<Vec<i32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        let Some(id) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        // Processes come and go meanwhile.
        let read = |name: &str| fs::read_to_string(entry.path().join(name)).unwrap_or_default();
        let line = read("cmdline");
        let parts: Vec<&str> = line.split('\0').collect();
        if parts.windows(words.len()).any(|part| part == words) && read("cgroup").contains(group) {
            found.push(id);
        }
    }
    Ok(found)
}

fn start_init(node: &Node, folder: &Path) -> Result<(Daemon, u32)> {
    let mut init = Recipe::new("machine", &program::probe()?, &node.namespace, folder)
        .arg("machine")
        .arg("--folder")
        .arg(folder)
        .start()?;
    let [ready, id] = [READY_FILE, PID_FILE].map(|name| folder.join(name));
    // Two processes write them, in no order.
    let read = || -> Option<u32> {
        fs::read_to_string(&id)
            .ok()?
            .strip_suffix('\n')?
            .parse()
            .ok()
    };
    init.wait("the machine's mounts", || {
        Ok(ready.exists() && read().is_some())
    })?;
    let pid = read().context("the machine's first process has no id")?;
    Ok((init, pid))
}

/// A server inside the machine: the recipe's arguments are its command line.
fn inside(pid: u32, name: &str, node: &Node, folder: &Path) -> Recipe {
    let mut recipe = Recipe::new(name, Path::new("nsenter"), &node.namespace, folder);
    for word in enter_words(pid) {
        recipe = recipe.arg(word);
    }
    recipe
}

fn in_machine(pid: u32) -> Command {
    let mut command = Command::new("nsenter");
    command.args(enter_words(pid));
    command
}

fn enter_words(pid: u32) -> [String; 5] {
    [
        "--target".to_owned(),
        pid.to_string(),
        "--mount".to_owned(),
        "--pid".to_owned(),
        "--".to_owned(),
    ]
}

fn seen_from(pid: u32, path: &Path) -> PathBuf {
    let inside = path.strip_prefix("/").unwrap_or(path);
    Path::new("/proc")
        .join(pid.to_string())
        .join("root")
        .join(inside)
}

/// The plugins by links, so that others can be installed beside them, and the chain that Flannel installs.
fn write_plugins(node: &Node, folder: &Path) -> Result<()> {
    let [programs, configurations] = plugin_folders(folder);
    fs::create_dir_all(&programs)?;
    fs::create_dir_all(&configurations)?;
    for entry in fs::read_dir(node.plugins.folder())? {
        let entry = entry?;
        symlink(entry.path(), programs.join(entry.file_name()))?;
    }
    let mut first: serde_json::Value = serde_json::from_str(node.plugins.configuration())?;
    let name = first["name"].take();
    let version = first["cniVersion"].take();
    let list = json!({
        "name": name,
        "cniVersion": version,
        "plugins": [without_nulls(first), { "type": "portmap", "capabilities": { "portMappings": true } }],
    });
    fs::write(
        configurations.join("10-flannel.conflist"),
        serde_json::to_string_pretty(&list)?,
    )?;
    Ok(())
}

fn without_nulls(value: serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(fields) => fields
            .into_iter()
            .filter(|(_, value)| !value.is_null())
            .collect::<BTreeMap<_, _>>()
            .into_iter()
            .collect(),
        other => other,
    }
}

/// Programs and configurations of CNI.
fn plugin_folders(folder: &Path) -> [PathBuf; 2] {
    ["bin", "net.d"].map(|name| folder.join("cni").join(name))
}

fn write_containerd(folder: &Path) -> Result<PathBuf> {
    let [programs, configurations] = plugin_folders(folder);
    let path = folder.join("containerd.toml");
    let text = format!(
        "version = 2\n\
         root = \"{root}\"\n\
         state = \"/run/containerd\"\n\
         [grpc]\n\
         address = \"{SOCKET}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\"]\n\
         sandbox_image = \"{pause}\"\n\
         # Machines may refuse negative scores.\n\
         restrict_oom_score_adj = true\n\
         [plugins.\"io.containerd.grpc.v1.cri\".cni]\n\
         bin_dir = \"{programs}\"\n\
         conf_dir = \"{configurations}\"\n\
         [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n\
         # The native one copies the whole image for each container.\n\
         snapshotter = \"overlayfs\"\n",
        root = folder.join("containerd").display(),
        pause = images::PAUSE,
        programs = programs.display(),
        configurations = configurations.display(),
    );
    fs::write(&path, text)?;
    Ok(path)
}

fn start_kubelet(
    plane: &ControlPlane,
    node: &Node,
    folder: &Path,
    pid: u32,
    identity: &Identity,
) -> Result<Daemon> {
    let credential = Credential::Certificate(identity);
    let name = format!("kubelet-{}", node.name);
    let kubeconfig = plane.write_kubeconfig(&name, View::Lab, credential)?;
    let config = json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "containerRuntimeEndpoint": format!("unix://{SOCKET}"),
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": format!("/{}", node.namespace.name()),
        "failCgroupV1": false,
        "failSwapOn": false,
        "enforceNodeAllocatable": [],
        "localStorageCapacityIsolation": false,
        "evictionHard": {},
        "authentication": {
            "anonymous": { "enabled": false },
            "webhook": { "enabled": false },
            "x509": { "clientCAFile": plane.authority().file() },
        },
        // Who has a certificate of the cluster may ask.
        "authorization": { "mode": "AlwaysAllow" },
        "healthzPort": 0,
        // Addresses of the cluster's DNS would stand here; the lab has none.
        "resolvConf": "",
        "registerNode": true,
    });
    let file = folder.join("kubelet.json");
    fs::write(&file, config.to_string())?;
    let addresses: Vec<String> = node.addresses.iter().map(ToString::to_string).collect();
    inside(pid, "kubelet", node, folder)
        .arg(Tool::Kubelet.path()?)
        .flag("config", file)
        .flag("kubeconfig", kubeconfig)
        .flag("root-dir", folder.join("kubelet"))
        .flag("cert-dir", folder.join("kubelet-pki"))
        .flag("hostname-override", node.name.as_str())
        .flag("node-ip", addresses.join(","))
        .start()
}

/// Gives the network namespace of a process a name, as those of the lab have.
pub(crate) fn name_network(name: &str, process: i32) -> Result<Namespace> {
    let id = process.to_string();
    crate::netns::run(Command::new("ip").args(["netns", "attach", name, &id]))?;
    Ok(Namespace::existing(name))
}
