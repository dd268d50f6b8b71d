//! The plugin as a node has it: installed by `towpath cni install` beside the configuration of somebody else, called by
//! libcni through cnitool, with the plugins of CNI 1.1: drop-in, copy, STATUS, GC, and nothing left at the end.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use towpath_tests::agent::AgentOptions;
use towpath_tests::cni::{BRIDGE, NETWORK_NAME};
use towpath_tests::lab::{Lab, LabConfig, Node};
use towpath_tests::netns::Namespace;
use towpath_tests::stage::{Stage, server};
use towpath_tests::tools::Tool;
use towpath_tests::wait::{PATIENCE, until};
use towpath_tests::{program, require};

const UID: &str = "00000000-0000-4000-8000-000000000001";

/// A node with a ready agent, and directories as a runtime uses them.
struct Host {
    stage: Stage,
    folder: PathBuf,
    namespace: Namespace,
}

impl Host {
    fn start() -> Result<Self> {
        let lab = Lab::new(&LabConfig {
            nodes: 1,
            ..LabConfig::default()
        })?;
        let mut stage = Stage {
            lab,
            agents: Vec::new(),
        };
        stage.lab.write_namespace("shop", &[])?;
        // The bridge is there before the agent, as on a node that is in use.
        stage.lab.add_pod(server("node-a", "shop", "web"))?;
        stage.start_agents(&AgentOptions::default())?;
        let folder = stage.lab.folder().join("runtime");
        for name in ["net.d", "bin", "var"] {
            fs::create_dir_all(folder.join(name))?;
        }
        let namespace = Namespace::create(&format!("{}-pod-x1", stage.lab.prefix()))?;
        let host = Self {
            stage,
            folder,
            namespace,
        };
        host.configure()?;
        Ok(host)
    }

    fn node(&self) -> &Node {
        &self.stage.lab.nodes()[0]
    }

    fn state(&self) -> PathBuf {
        self.stage.lab.folder().join("node-a/state")
    }

    /// What Flannel's meta-plugin would have the bridge plugin do, as a list of the newest version.
    fn configure(&self) -> Result<()> {
        let list = json!({
            "cniVersion": "1.1.0",
            "name": NETWORK_NAME,
            "plugins": [{
                "type": "bridge",
                "bridge": BRIDGE,
                "isDefaultGateway": true,
                "hairpinMode": true,
                "ipam": {
                    "type": "host-local",
                    "dataDir": self.stage.lab.folder().join("node-a/networks"),
                    "ranges": [[{ "subnet": self.node().pod_cidrs[0].to_string() }]],
                },
            }],
        });
        fs::write(
            self.folder.join("net.d/10-flannel.conflist"),
            list.to_string(),
        )?;
        Ok(())
    }

    fn towpath(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(program::towpath()?);
        command.args(words).arg("--state-dir").arg(self.state());
        self.node().namespace.output(&mut command)
    }

    fn install(&self, method: &str) -> Result<()> {
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let output = self.towpath(&[
            "cni",
            "install",
            "--method",
            method,
            "--timeout",
            "2",
            "--conf-dir",
            &text(self.folder.join("net.d")),
            "--bin-dir",
            &text(self.folder.join("bin")),
            "--socket",
            &text(self.stage.lab.folder().join("node-a/towpath.sock")),
        ])?;
        anyhow::ensure!(output.status.success(), "{}", said(&output));
        Ok(())
    }

    /// Calls libcni. It keeps results in a fixed place, which is a directory of ours here.
    fn cnitool(&self, verb: &str) -> Result<Output> {
        let plugins = Tool::Bridge.path()?;
        let plugins = plugins.parent().context("plugins have a folder")?;
        let search = format!(
            "{}:{}",
            plugins.display(),
            self.folder.join("bin").display()
        );
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-c",
                "mount --bind \"$0\" /var/lib && exec \"$@\"",
            ])
            .arg(self.folder.join("var"))
            .arg(Tool::Cnitool.path()?)
            .args([verb, NETWORK_NAME])
            .arg(self.namespace.path())
            .env("NETCONFPATH", self.folder.join("net.d"))
            .env("CNI_PATH", search)
            .env(
                "CNI_ARGS",
                format!(
                    "IgnoreUnknown=1;K8S_POD_NAMESPACE=shop;K8S_POD_NAME=late;K8S_POD_UID={UID}"
                ),
            );
        self.node().namespace.output(&mut command)
    }

    /// Adds the pod; its address, without the length of the prefix.
    fn add(&self) -> Result<String> {
        let output = self.cnitool("add")?;
        anyhow::ensure!(output.status.success(), "{}", said(&output));
        let result: Value = serde_json::from_slice(&output.stdout)?;
        let text = result["ips"][0]["address"].as_str().context("an address")?;
        Ok(text.split('/').next().unwrap_or_default().to_owned())
    }

    fn is_bound(&self, address: &str) -> Result<bool> {
        let mut list = Command::new("nft");
        list.args(["list", "table", "bridge", "towpath"]);
        let text = self.node().namespace.run(&mut list)?;
        Ok(text.contains(&format!("{address} ")))
    }

    /// Every file in the directories that the runtime reads.
    fn files(&self) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
        let mut found = BTreeMap::new();
        let mut left = ["net.d", "bin"].map(|name| self.folder.join(name)).to_vec();
        while let Some(folder) = left.pop() {
            for entry in fs::read_dir(&folder)? {
                let path = entry?.path();
                if path.is_dir() {
                    left.push(path.clone());
                    found.insert(path, Vec::new());
                } else {
                    found.insert(path.clone(), fs::read(&path)?);
                }
            }
        }
        Ok(found)
    }

    /// The pod as the API server has it before its containers run.
    fn publish(&self) -> Result<()> {
        let text = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: late, namespace: shop, uid: {UID}}}\n\
             spec: {{nodeName: node-a, containers: [{{name: server}}]}}\n"
        );
        self.stage.lab.manifests.write("pod-shop-late", &text)?;
        Ok(())
    }
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

/// Interfaces and address stores that a failed ADD could leave.
fn ports(node: &Node) -> Result<usize> {
    let mut list = Command::new("ip");
    list.args(["-json", "link", "show", "master", BRIDGE]);
    let ports: Vec<Value> = serde_json::from_str(&node.namespace.run(&mut list)?)?;
    Ok(ports.len())
}

fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

#[test]
fn a_runtime_calls_what_was_installed_and_nothing_is_left() {
    require!(
        "cni",
        Root,
        CniPlugins,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    for (method, file) in [
        ("drop-in", "net.d/cbr0/90-towpath.conf"),
        ("copy", "net.d/05-towpath.conflist"),
    ] {
        let mut host = Host::start().unwrap();
        let before = (host.files().unwrap(), ports(host.node()).unwrap());

        host.install(method).unwrap();
        assert!(is_there(&host.folder.join(file)), "{method}");
        let status = host.cnitool("status").unwrap();
        assert!(status.status.success(), "{method}: {}", said(&status));
        // Nobody has told of the pod.
        let refused = host.cnitool("add").unwrap();
        assert!(!refused.status.success(), "{method}");
        assert!(
            said(&refused).contains("the source has not told of pod shop/late"),
            "{}",
            said(&refused)
        );
        assert!(host.cnitool("del").unwrap().status.success());
        assert_eq!(ports(host.node()).unwrap(), before.1);

        host.publish().unwrap();
        let address = host.add().unwrap();
        assert!(host.is_bound(&address).unwrap(), "{method}: {address}");
        // Without attachments to keep, all is garbage.
        let collected = host.cnitool("gc").unwrap();
        assert!(collected.status.success(), "{method}: {}", said(&collected));
        until("the binding goes", PATIENCE, || {
            Ok(!host.is_bound(&address)?)
        })
        .unwrap();
        let again = host.add().unwrap();
        assert!(host.is_bound(&again).unwrap(), "{method}: {again}");
        assert!(host.cnitool("del").unwrap().status.success());

        host.stage.agents.pop().unwrap().kill().unwrap();
        let status = host.cnitool("status").unwrap();
        assert!(
            said(&status).contains("the agent does not answer"),
            "{}",
            said(&status)
        );
        let refused = host.cnitool("add").unwrap();
        assert!(
            said(&refused).contains("is it running?"),
            "{}",
            said(&refused)
        );
        assert!(host.cnitool("del").unwrap().status.success());
        let removed = host.towpath(&["cni", "remove"]).unwrap();
        assert!(removed.status.success(), "{}", said(&removed));
        host.add().unwrap();
        assert!(host.cnitool("del").unwrap().status.success());
        assert_eq!(
            (host.files().unwrap(), ports(host.node()).unwrap()),
            before,
            "{method}"
        );
    }
}

#[test]
fn uninstall_takes_the_plugin_out_of_the_chain() {
    require!(
        "cni",
        Root,
        CniPlugins,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut host = Host::start().unwrap();
    let before = host.files().unwrap();
    host.install("drop-in").unwrap();

    let agent = host.stage.agents.pop().unwrap();
    let mut uninstaller = agent.uninstaller().unwrap();
    assert!(agent.terminate().unwrap().success());
    host.node().namespace.run(&mut uninstaller).unwrap();

    assert_eq!(host.files().unwrap(), before);
    assert!(!is_there(&host.state()));
}
