//! A pod: a namespace, plugged by the CNI plugins, with servers inside.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Child, Command, Stdio};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::Node;
use crate::cni::Sandbox;
use crate::frame::{Mac, parse_mac};
use crate::netns::Namespace;
use crate::probe::{Protocol, Target};
use crate::program;

/// A port on which a pod serves.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodPort {
    /// Its name, for policies with named ports.
    pub name: Option<String>,
    /// TCP or UDP.
    pub protocol: Protocol,
    /// Its number.
    pub port: u16,
}

/// What a pod is to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodSpec {
    /// The node it runs on.
    pub node: String,
    /// Kubernetes namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Where it serves, and what its manifest declares.
    pub ports: Vec<PodPort>,
    /// Whether a scheduler is to bind it to the node, the only one that fits. Else it is bound from the beginning.
    pub is_scheduled: bool,
}

impl PodSpec {
    /// A pod `namespace/name` on a node, without labels and ports.
    pub fn new(node: &str, namespace: &str, name: &str) -> Self {
        Self {
            node: node.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            labels: BTreeMap::new(),
            ports: Vec::new(),
            is_scheduled: false,
        }
    }

    /// Leaves it to the scheduler to bind it.
    #[must_use]
    pub fn scheduled(mut self) -> Self {
        self.is_scheduled = true;
        self
    }

    /// Adds a label.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Adds a TCP server.
    #[must_use]
    pub fn tcp(self, port: u16) -> Self {
        self.port(None, Protocol::Tcp, port)
    }

    /// Adds a UDP server.
    #[must_use]
    pub fn udp(self, port: u16) -> Self {
        self.port(None, Protocol::Udp, port)
    }

    /// Adds a server, perhaps with a named port.
    #[must_use]
    pub fn port(mut self, name: Option<&str>, protocol: Protocol, port: u16) -> Self {
        let name = name.map(str::to_owned);
        self.ports.push(PodPort {
            name,
            protocol,
            port,
        });
        self
    }

    /// `namespace/name`.
    pub fn id(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// A plugged pod.
#[derive(Debug)]
pub struct Pod {
    /// What it was to be.
    pub spec: PodSpec,
    /// Where it lives.
    pub namespace: Namespace,
    /// Its addresses, IPv4 first.
    pub addresses: Vec<IpAddr>,
    /// The bridge's port for it, on the node.
    pub host_interface: String,
    /// Hardware address of its eth0.
    pub mac: Mac,
    /// Who it is to the plugins.
    pub sandbox: Sandbox,
    server: Option<Child>,
    /// Whether a kubelet runs it, and pulls it out.
    has_kubelet: bool,
}

impl Pod {
    /// `number` is the pod's own in this lab, `run` are the four hex digits of the lab's prefix.
    pub(super) fn create(
        node: &Node,
        run: &str,
        number: u32,
        spec: PodSpec,
        uid: Option<String>,
    ) -> Result<Self> {
        let mut namespace = Namespace::create(&format!("tp{run}-pod-{number}"))?;
        namespace.release();
        if node.addresses.len() > 1 {
            // The plugin waits until duplicate address detection is over.
            namespace.set_sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        }
        let sandbox = Sandbox {
            container: format!("{run}{number:060x}"),
            namespace: spec.namespace.clone(),
            name: spec.name.clone(),
            uid: uid.unwrap_or_else(|| format!("{run}0000-0000-4000-8000-{number:012x}")),
            path: namespace.path(),
        };
        let attachment = node.plugins.add(&node.namespace, &sandbox)?;
        let mut pod = Self {
            spec,
            namespace,
            addresses: attachment.addresses,
            host_interface: attachment.host_interface,
            mac: parse_mac(&attachment.mac)?,
            sandbox,
            server: None,
            has_kubelet: false,
        };
        pod.start_servers()?;
        Ok(pod)
    }

    /// A pod that a kubelet has started.
    pub(crate) fn found(
        node: &Node,
        spec: PodSpec,
        namespace: Namespace,
        addresses: Vec<IpAddr>,
        sandbox: Sandbox,
    ) -> Result<Self> {
        let inside = &link(&namespace, "eth0")?;
        let mac = inside["address"].as_str().context("eth0 has no address")?;
        let peer = inside["link_index"].to_string();
        let outside = &link(&node.namespace, &format!("if{peer}"))?;
        Ok(Self {
            mac: parse_mac(mac)?,
            host_interface: outside["ifname"].as_str().unwrap_or_default().to_owned(),
            spec,
            namespace,
            addresses,
            sandbox,
            server: None,
            has_kubelet: true,
        })
    }

    /// `namespace/name`.
    pub fn id(&self) -> String {
        self.spec.id()
    }

    /// Its IPv4 address.
    pub fn ipv4(&self) -> Result<Ipv4Addr> {
        let found = self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        found.with_context(|| format!("pod {} has no IPv4 address", self.id()))
    }

    /// Its IPv6 address.
    pub fn ipv6(&self) -> Result<Ipv6Addr> {
        let found = self.addresses.iter().find_map(|address| match address {
            IpAddr::V4(_) => None,
            IpAddr::V6(address) => Some(*address),
        });
        found.with_context(|| format!("pod {} has no IPv6 address", self.id()))
    }

    /// Everything it serves, at each of its addresses.
    pub fn targets(&self) -> Vec<Target> {
        let mut targets = Vec::new();
        for &address in &self.addresses {
            for port in &self.spec.ports {
                targets.push(Target {
                    address,
                    port: port.port,
                    protocol: port.protocol,
                });
            }
        }
        targets
    }

    /// Starts one more server that speaks unasked, for [`Stream::listen`](crate::stream::Stream::listen).
    pub fn serve_push(&self, port: u16) -> Result<Server> {
        let arguments = ["--push".to_owned(), port.to_string()];
        Ok(Server(self.serve(&arguments)?))
    }

    fn start_servers(&mut self) -> Result<()> {
        if self.spec.ports.is_empty() {
            return Ok(());
        }
        let mut arguments = Vec::new();
        for port in &self.spec.ports {
            arguments.push(format!("--{}", port.protocol));
            arguments.push(port.port.to_string());
        }
        self.server = Some(self.serve(&arguments)?);
        Ok(())
    }

    fn serve(&self, arguments: &[String]) -> Result<Child> {
        serve(&self.namespace, &self.id(), arguments)
    }

    /// The server goes on when this value is dropped.
    pub(super) fn release(&mut self) {
        self.server = None;
    }

    pub(super) fn destroy(mut self, node: &Node) -> Result<()> {
        self.stop();
        if !self.has_kubelet {
            node.plugins.delete(&node.namespace, &self.sandbox)?;
        }
        crate::netns::run(Command::new("ip").args(["netns", "delete", self.namespace.name()]))?;
        Ok(())
    }

    fn stop(&mut self) {
        if let Some(mut server) = self.server.take() {
            let _ = server.kill();
            let _ = server.wait();
        }
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.stop();
    }
}

/// A link by name, or by number as `ifN`.
fn link(namespace: &Namespace, name: &str) -> Result<Value> {
    let text = namespace.run(Command::new("ip").args(["-json", "link", "show"]))?;
    let links: Vec<Value> = serde_json::from_str(&text)?;
    let found = links
        .into_iter()
        .find(|link| link["ifname"] == name || format!("if{}", link["ifindex"]) == name);
    found.with_context(|| format!("{} has no link {name}", namespace.name()))
}

/// Starts a server that says its name, and waits until it listens.
fn serve(namespace: &Namespace, name: &str, arguments: &[String]) -> Result<Child> {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(program::probe()?);
    command.arg("serve").args(["--name", name]).args(arguments);
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // ctrl-C at a terminal is for the run, which then ends its servers in order.
    command.process_group(0);
    let mut child = namespace.spawn(&mut command)?;
    crate::wait::first_line(&mut child, &format!("the server {name}"))?;
    Ok(child)
}

/// A server that ends when this value is dropped.
#[derive(Debug)]
pub struct Server(Child);

impl Server {
    /// Starts one at all addresses of a namespace; arguments such as `--tcp 53`.
    pub fn start(namespace: &Namespace, name: &str, arguments: &[&str]) -> Result<Self> {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        serve(namespace, name, &arguments).map(Self)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
