//! Plugs pods in as a container runtime does: the real plugins `bridge` or `ptp` with `host-local`, with the
//! configuration that Flannel's meta-plugin would hand them.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context as _, Result, anyhow, bail};
use ipnet::IpNet;
use serde_json::{Value, json};

use crate::netns::{Namespace, feed};
use crate::{program, tools};

/// The name of Flannel's network, as in its stock configuration.
pub const NETWORK_NAME: &str = "cbr0";
/// The bridge that Flannel's configuration asks for.
pub const BRIDGE: &str = "cni0";

/// Whose plugins are called.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PluginSet {
    /// The system's; Debian has 1.1.1, which speaks CNI up to 1.0.
    #[default]
    System,
    /// 1.9.1, built with the test bed's tools: CNI up to 1.1.
    Module,
}

impl PluginSet {
    /// The folder that holds `bridge`, `host-local` and the others.
    pub fn folder(self) -> Result<PathBuf> {
        match self {
            Self::System => program::cni_folder().ok_or_else(|| {
                anyhow!("no CNI plugins; install the Debian package containernetworking-plugins")
            }),
            Self::Module => tools::plugin_folder().ok_or_else(|| {
                anyhow!("the CNI plugins are not built yet; cargo xtask setup builds them")
            }),
        }
    }
}

/// What a pod's cable is plugged into.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Plug {
    /// A port of `cni0`, by the plugin `bridge`.
    #[default]
    Bridge,
    /// The node itself, with a route for each pod, by the plugin `ptp`.
    PointToPoint,
}

/// The plugin chain of one node.
#[derive(Debug)]
pub struct Plugins {
    plug: Plug,
    folder: PathBuf,
    configuration: String,
}

/// Who a pod is, as the runtime tells the plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sandbox {
    /// Id of the container that holds the network namespace: 64 hex digits.
    pub container: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Pod name.
    pub name: String,
    /// Pod UID.
    pub uid: String,
    /// File of the pod's network namespace.
    pub path: PathBuf,
}

/// What ADD answered.
#[derive(Clone, Debug, PartialEq)]
pub struct Attachment {
    /// The pod's addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The bridge's port.
    pub host_interface: String,
    /// Hardware address inside the pod.
    pub mac: String,
    /// The whole result.
    pub result: Value,
}

impl Plugins {
    /// The chain of a node with these pod CIDRs in these cluster networks; `data` keeps the given addresses.
    pub fn new(
        set: PluginSet,
        pod_cidrs: &[IpNet],
        networks: &[IpNet],
        mtu: u16,
        data: &Path,
    ) -> Result<Self> {
        let ranges: Vec<Value> = pod_cidrs
            .iter()
            .map(|cidr| json!([{ "subnet": cidr.to_string() }]))
            .collect();
        let routes: Vec<Value> = networks
            .iter()
            .map(|network| json!({ "dst": network.to_string() }))
            .collect();
        let configuration = json!({
            "cniVersion": "0.3.1",
            "name": NETWORK_NAME,
            "type": "bridge",
            "bridge": BRIDGE,
            "hairpinMode": true,
            "isDefaultGateway": true,
            "isGateway": true,
            "ipMasq": false,
            "mtu": mtu,
            "ipam": { "type": "host-local", "dataDir": data, "ranges": ranges, "routes": routes },
        });
        Ok(Self {
            plug: Plug::Bridge,
            folder: set.folder()?,
            configuration: configuration.to_string(),
        })
    }

    /// The same chain with another first plugin.
    pub fn with_plug(self, plug: Plug) -> Result<Self> {
        let configuration = match plug {
            Plug::Bridge => self.configuration,
            Plug::PointToPoint => {
                let mut configuration: Value = serde_json::from_str(&self.configuration)?;
                let fields = configuration.as_object_mut().context("no object")?;
                for key in ["bridge", "hairpinMode", "isDefaultGateway", "isGateway"] {
                    fields.remove(key);
                }
                fields.insert("type".to_owned(), json!("ptp"));
                let routes = fields["ipam"]["routes"]
                    .as_array_mut()
                    .context("no routes")?;
                // The plugin `bridge` makes it by itself, this one only on demand.
                let default = |network: &Value| match network["dst"].as_str() {
                    Some(text) if text.contains(':') => json!({ "dst": "::/0" }),
                    _ => json!({ "dst": "0.0.0.0/0" }),
                };
                routes.extend(routes.iter().map(default).collect::<Vec<_>>());
                configuration.to_string()
            }
        };
        Ok(Self {
            plug,
            configuration,
            ..self
        })
    }

    /// The chain that Flannel's meta-plugin would make of flanneld's `subnet.env`.
    pub fn of_subnet_env(set: PluginSet, text: &str, data: &Path) -> Result<Self> {
        let value = |key: &str| {
            text.lines()
                .filter_map(|line| line.split_once('='))
                .find(|(name, _)| *name == key)
                .map(|(_, value)| value)
        };
        let network = |key: &str| -> Result<Option<IpNet>> {
            let found = value(key).map(str::parse::<IpNet>).transpose();
            Ok(found
                .with_context(|| format!("{key} in {text}"))?
                .map(|net| net.trunc()))
        };
        // The subnets are written as the gateway's address.
        let subnets = [network("FLANNEL_SUBNET")?, network("FLANNEL_IPV6_SUBNET")?];
        let networks = [
            network("FLANNEL_NETWORK")?,
            network("FLANNEL_IPV6_NETWORK")?,
        ];
        let mtu = value("FLANNEL_MTU").context("subnet.env has no FLANNEL_MTU")?;
        Self::new(
            set,
            &subnets.into_iter().flatten().collect::<Vec<_>>(),
            &networks.into_iter().flatten().collect::<Vec<_>>(),
            mtu.parse()?,
            data,
        )
    }

    /// The configuration that the first plugin reads.
    pub fn configuration(&self) -> &str {
        &self.configuration
    }

    /// The folder of the plugins.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Plugs a pod in.
    pub fn add(&self, node: &Namespace, sandbox: &Sandbox) -> Result<Attachment> {
        let text = self.call(node, sandbox, "ADD")?;
        let result: Value = serde_json::from_str(&text).context("CNI ADD printed no JSON")?;
        parse(&result).with_context(|| format!("in the result of CNI ADD: {text}"))
    }

    /// Pulls a pod out.
    pub fn delete(&self, node: &Namespace, sandbox: &Sandbox) -> Result<()> {
        self.call(node, sandbox, "DEL")?;
        Ok(())
    }

    fn call(&self, node: &Namespace, sandbox: &Sandbox, verb: &str) -> Result<String> {
        let plugin = self.folder.join(match self.plug {
            Plug::Bridge => "bridge",
            Plug::PointToPoint => "ptp",
        });
        let output = invoke(node, &plugin, sandbox, verb, &self.configuration)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            // A plugin explains itself on stdout.
            bail!(
                "CNI {verb} of pod {}/{} in {} failed: {text}{}",
                sandbox.namespace,
                sandbox.name,
                node.name(),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(text)
    }
}

/// Calls a plugin as a runtime does; what it says is not looked at.
pub fn invoke(
    node: &Namespace,
    plugin: &Path,
    sandbox: &Sandbox,
    verb: &str,
    configuration: &str,
) -> Result<Output> {
    let identity = format!(
        // The plugins refuse unknown keys without the first one.
        "IgnoreUnknown=1;K8S_POD_NAMESPACE={};K8S_POD_NAME={};K8S_POD_UID={}",
        sandbox.namespace, sandbox.name, sandbox.uid
    );
    let mut command = Command::new(plugin);
    command
        .env("CNI_COMMAND", verb)
        .env("CNI_CONTAINERID", &sandbox.container)
        .env("CNI_NETNS", &sandbox.path)
        .env("CNI_IFNAME", "eth0")
        .env("CNI_PATH", plugin.parent().unwrap_or(Path::new("/")))
        .env("CNI_ARGS", identity)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    feed(node.spawn(&mut command)?, configuration.as_bytes())
}

fn parse(result: &Value) -> Result<Attachment> {
    let interfaces = result["interfaces"].as_array().context("no interfaces")?;
    let port = interfaces
        .iter()
        .find(|interface| interface["sandbox"].is_null() && interface["name"] != BRIDGE)
        .context("no interface of the host")?;
    let inside = interfaces
        .iter()
        .find(|interface| !interface["sandbox"].is_null())
        .context("no interface inside")?;
    let mut addresses = Vec::new();
    for entry in result["ips"].as_array().context("no addresses")? {
        let text = entry["address"].as_str().context("address is no text")?;
        addresses.push(text.parse::<IpNet>()?.addr());
    }
    addresses.sort_by_key(IpAddr::is_ipv6);
    Ok(Attachment {
        addresses,
        host_interface: port["name"].as_str().unwrap_or_default().to_owned(),
        mac: inside["mac"].as_str().unwrap_or_default().to_owned(),
        result: result.clone(),
    })
}
