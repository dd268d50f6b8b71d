//! Configuration of the agent: defaults, then a YAML file, then `TOWPATH_*` variables, then flags.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize, Serializer};
use serde_json::Value;
use towpath_core::model::InterfaceName;
use towpath_runtime::config::{ConfigError, Fault, Setting, layer, put};
use towpath_runtime::http::parse_listen_address;
use towpath_runtime::logs::LogFormat;

use super::local_services::{self, LocalService};
use crate::cli::arguments::SourceLocation;
use crate::layout::Enforcement;
use crate::publish::taint::StartupTaint;

/// Where the control socket is when nobody says otherwise.
pub const DEFAULT_SOCKET: &str = "/run/towpath/towpath.sock";
/// Where the agent keeps what must outlive it.
pub const DEFAULT_STATE_DIRECTORY: &str = "/var/lib/towpath";
/// Where container runtimes look for CNI configurations unless told otherwise.
pub const DEFAULT_CNI_CONFIG_DIRECTORY: &str = "/etc/cni/net.d";

/// How transactions reach the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum NftBackend {
    /// Netlink, in this process.
    #[default]
    Netlink,
    /// One `nft` process per transaction, on plain tables; for debugging.
    Command,
}

/// Everything that can be configured. Units stand in the names.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Name of this node.
    pub node: String,
    /// Where manifests come from.
    pub source: Option<SourceLocation>,
    /// Control socket.
    pub socket: PathBuf,
    /// Where what must outlive the agent is kept: its lock and the bridge settings that it changed.
    pub state_directory: PathBuf,
    /// Address of `/metrics`; none unless asked for.
    pub metrics: Option<SocketAddr>,
    /// Address of `/livez` and `/readyz`; none unless asked for.
    pub health: Option<SocketAddr>,
    /// How transactions reach the kernel.
    pub nft_backend: NftBackend,
    /// Bridges whose ports are pods.
    #[serde(serialize_with = "names_as_text")]
    pub pod_bridges: Vec<InterfaceName>,
    /// Ports of pod bridges that lead elsewhere and are no pods.
    #[serde(serialize_with = "names_as_text")]
    pub bridge_uplinks: Vec<InterfaceName>,
    /// Interfaces without a bridge are pods when their name starts with one of these.
    pub interface_prefixes: Vec<String>,
    /// Interfaces whose source addresses are not checked. Only here, never in a manifest.
    #[serde(serialize_with = "names_as_text")]
    pub spoof_exempt_interfaces: Vec<InterfaceName>,
    /// Where the container runtime finds its CNI configurations; they are read to tell who carries packets of pods.
    pub cni_config_directory: PathBuf,
    /// Where the container runtime keeps results of CNI plugins; they tell whose an address is that two have.
    pub cni_results_directory: PathBuf,
    /// What flanneld writes at its start; it is read to tell what Flannel set up here.
    pub flannel_subnet_env: PathBuf,
    /// Flannel's configuration, where the host has it as a file.
    pub flannel_net_conf: PathBuf,
    /// A UDP port to which pods may not send on a node, besides those of the tunnels that are found here.
    pub overlay_udp_port: Option<u16>,
    /// Whether pods get their address by DHCP, which isolated pods may then use.
    pub dhcp: bool,
    /// NFLOG group of denied packets.
    pub nflog_group: u16,
    /// Denied flows that are kept for `towpath get denied`.
    pub denied_flows_kept: usize,
    /// How often the tables in the kernel are compared with the wanted ones.
    pub verify_interval_seconds: u64,
    /// Whether what is denied is dropped, or only counted and logged.
    pub enforcement: Enforcement,
    /// Nodes that only count and log, whatever `enforcement` says.
    pub audit_nodes: Vec<String>,
    /// Addresses of the node that stand for the pods of a Service, as those of a DNS cache do.
    pub local_services: Vec<LocalService>,
    /// Namespaces whose pods on this node are only counted and logged. Only here, never in a manifest.
    pub audit_namespaces: Vec<String>,
    /// Taint that is taken from this node's object once the node is ready; none unless asked for.
    pub startup_taint: Option<StartupTaint>,
    /// Whether this node has a status object at the API server.
    pub node_status: bool,
    /// Least time between two writes of it.
    pub node_status_interval_seconds: u64,
    /// Whether pods get Events for traffic that policy denies.
    pub denied_events: bool,
    /// How log lines look.
    pub log_format: LogFormat,
    /// A level, or `target=level` pairs.
    pub log: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            node: String::new(),
            source: None,
            socket: DEFAULT_SOCKET.into(),
            state_directory: DEFAULT_STATE_DIRECTORY.into(),
            metrics: None,
            health: None,
            nft_backend: NftBackend::default(),
            pod_bridges: vec!["cni0".parse().expect("cni0 is an interface name")],
            bridge_uplinks: Vec::new(),
            interface_prefixes: Vec::new(),
            spoof_exempt_interfaces: Vec::new(),
            cni_config_directory: DEFAULT_CNI_CONFIG_DIRECTORY.into(),
            cni_results_directory: flannel_adapter::source::cni_cache::DEFAULT_FOLDER.into(),
            flannel_subnet_env: flannel_adapter::subnet_env::DEFAULT_PATH.into(),
            flannel_net_conf: flannel_adapter::here::DEFAULT_NET_CONF.into(),
            overlay_udp_port: None,
            dhcp: false,
            nflog_group: 747,
            denied_flows_kept: 256,
            verify_interval_seconds: 60,
            enforcement: Enforcement::default(),
            audit_nodes: Vec::new(),
            audit_namespaces: Vec::new(),
            local_services: Vec::new(),
            startup_taint: None,
            node_status: false,
            node_status_interval_seconds: 10,
            denied_events: false,
            log_format: LogFormat::default(),
            log: "info".to_owned(),
        }
    }
}

/// What flags add on top; each flag also has a variable, which clap leaves to the layer below.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Flags {
    /// `--node`
    pub node: Option<String>,
    /// `--source`
    pub source: Option<SourceLocation>,
    /// `--socket`
    pub socket: Option<PathBuf>,
    /// `--state-dir`
    pub state_directory: Option<PathBuf>,
    /// `--metrics`
    pub metrics: Option<SocketAddr>,
    /// `--health`
    pub health: Option<SocketAddr>,
    /// `--nft-backend`
    pub nft_backend: Option<NftBackend>,
    /// `--pod-bridge`, which may be given several times.
    pub pod_bridges: Vec<InterfaceName>,
    /// `--enforcement`
    pub enforcement: Option<Enforcement>,
    /// `--log-format`
    pub log_format: Option<LogFormat>,
    /// `--log`
    pub log: Option<String>,
}

/// Keys of the file and their variables.
const SETTINGS: &[Setting<Config>] = &[
    Setting {
        key: "node",
        variable: "TOWPATH_NODE",
        set: |c, v| put(&mut c.node, v),
    },
    Setting {
        key: "source",
        variable: "TOWPATH_SOURCE",
        set: |c, v| parsed(v).map(|source| c.source = Some(source)),
    },
    Setting {
        key: "socket",
        variable: "TOWPATH_SOCKET",
        set: |c, v| put(&mut c.socket, v),
    },
    Setting {
        key: "stateDirectory",
        variable: "TOWPATH_STATE_DIRECTORY",
        set: |c, v| put(&mut c.state_directory, v),
    },
    Setting {
        key: "metrics",
        variable: "TOWPATH_METRICS",
        set: |c, v| address(&v).map(|address| c.metrics = address),
    },
    Setting {
        key: "health",
        variable: "TOWPATH_HEALTH",
        set: |c, v| address(&v).map(|address| c.health = address),
    },
    Setting {
        key: "nftBackend",
        variable: "TOWPATH_NFT_BACKEND",
        set: |c, v| put(&mut c.nft_backend, v),
    },
    Setting {
        key: "podBridges",
        variable: "TOWPATH_POD_BRIDGES",
        set: |c, v| names(v).map(|names| c.pod_bridges = names),
    },
    Setting {
        key: "bridgeUplinks",
        variable: "TOWPATH_BRIDGE_UPLINKS",
        set: |c, v| names(v).map(|names| c.bridge_uplinks = names),
    },
    Setting {
        key: "interfacePrefixes",
        variable: "TOWPATH_INTERFACE_PREFIXES",
        set: |c, v| prefixes(v).map(|prefixes| c.interface_prefixes = prefixes),
    },
    Setting {
        key: "spoofExemptInterfaces",
        variable: "TOWPATH_SPOOF_EXEMPT_INTERFACES",
        set: |c, v| names(v).map(|names| c.spoof_exempt_interfaces = names),
    },
    Setting {
        key: "cniConfigDirectory",
        variable: "TOWPATH_CNI_CONFIG_DIRECTORY",
        set: |c, v| put(&mut c.cni_config_directory, v),
    },
    Setting {
        key: "cniResultsDirectory",
        variable: "TOWPATH_CNI_RESULTS_DIRECTORY",
        set: |c, v| put(&mut c.cni_results_directory, v),
    },
    Setting {
        key: "flannelSubnetEnv",
        variable: "TOWPATH_FLANNEL_SUBNET_ENV",
        set: |c, v| put(&mut c.flannel_subnet_env, v),
    },
    Setting {
        key: "flannelNetConf",
        variable: "TOWPATH_FLANNEL_NET_CONF",
        set: |c, v| put(&mut c.flannel_net_conf, v),
    },
    Setting {
        key: "overlayUdpPort",
        variable: "TOWPATH_OVERLAY_UDP_PORT",
        set: |c, v| put(&mut c.overlay_udp_port, v),
    },
    Setting {
        key: "dhcp",
        variable: "TOWPATH_DHCP",
        set: |c, v| put(&mut c.dhcp, v),
    },
    Setting {
        key: "nflogGroup",
        variable: "TOWPATH_NFLOG_GROUP",
        set: |c, v| put(&mut c.nflog_group, v),
    },
    Setting {
        key: "deniedFlowsKept",
        variable: "TOWPATH_DENIED_FLOWS_KEPT",
        set: |c, v| {
            between(&v, 1, 100_000).and_then(|count| {
                c.denied_flows_kept = usize::try_from(count).map_err(|error| error.to_string())?;
                Ok(())
            })
        },
    },
    Setting {
        key: "verifyIntervalSeconds",
        variable: "TOWPATH_VERIFY_INTERVAL_SECONDS",
        set: |c, v| between(&v, 1, 86_400).map(|seconds| c.verify_interval_seconds = seconds),
    },
    Setting {
        key: "enforcement",
        variable: "TOWPATH_ENFORCEMENT",
        set: |c, v| put(&mut c.enforcement, v),
    },
    Setting {
        key: "auditNodes",
        variable: "TOWPATH_AUDIT_NODES",
        set: |c, v| texts(v).map(|names| c.audit_nodes = names),
    },
    Setting {
        key: "auditNamespaces",
        variable: "TOWPATH_AUDIT_NAMESPACES",
        set: |c, v| texts(v).map(|names| c.audit_namespaces = names),
    },
    Setting {
        key: "localServices",
        variable: "TOWPATH_LOCAL_SERVICES",
        set: |c, v| local_services::parse(v).map(|services| c.local_services = services),
    },
    Setting {
        key: "startupTaint",
        variable: "TOWPATH_STARTUP_TAINT",
        set: |c, v| taint(v).map(|taint| c.startup_taint = taint),
    },
    Setting {
        key: "nodeStatus",
        variable: "TOWPATH_NODE_STATUS",
        set: |c, v| put(&mut c.node_status, v),
    },
    Setting {
        key: "nodeStatusIntervalSeconds",
        variable: "TOWPATH_NODE_STATUS_INTERVAL_SECONDS",
        set: |c, v| between(&v, 1, 3_600).map(|seconds| c.node_status_interval_seconds = seconds),
    },
    Setting {
        key: "deniedEvents",
        variable: "TOWPATH_DENIED_EVENTS",
        set: |c, v| put(&mut c.denied_events, v),
    },
    Setting {
        key: "logFormat",
        variable: "TOWPATH_LOG_FORMAT",
        set: |c, v| put(&mut c.log_format, v),
    },
    Setting {
        key: "log",
        variable: "TOWPATH_LOG",
        set: |c, v| put(&mut c.log, v),
    },
];

impl Config {
    /// Lays file, variables and flags over the defaults. All faults are reported at once.
    pub fn load(
        file: Option<&Path>,
        variable: impl Fn(&str) -> Option<String>,
        flags: Flags,
    ) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let mut faults = layer(&mut config, SETTINGS, file, variable);
        config.lay_flags(flags);
        // What is missing may stand in a file that could not be read.
        if !faults.is_file_unread {
            faults.extend(config.missing());
        }
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { faults })
        }
    }

    /// What a file says over the defaults, for commands that are no agent: neither variables nor what is missing count.
    ///
    /// # Errors
    ///
    /// All faults of the file.
    pub fn read(file: &Path) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let faults = layer(&mut config, SETTINGS, Some(file), |_| None);
        if faults.is_empty() {
            Ok(config)
        } else {
            Err(ConfigError { faults })
        }
    }

    /// How often the tables in the kernel are compared with the wanted ones.
    pub fn verify_interval(&self) -> Duration {
        Duration::from_secs(self.verify_interval_seconds)
    }

    /// Least time between two writes of this node's status.
    pub fn node_status_interval(&self) -> Duration {
        Duration::from_secs(self.node_status_interval_seconds)
    }

    /// Whether this node drops what is denied.
    pub fn enforcement_here(&self) -> Enforcement {
        if self.audit_nodes.contains(&self.node) {
            Enforcement::Audit
        } else {
            self.enforcement
        }
    }

    fn lay_flags(&mut self, flags: Flags) {
        fn lay<T>(field: &mut T, flag: Option<T>) {
            if let Some(value) = flag {
                *field = value;
            }
        }

        lay(&mut self.node, flags.node);
        lay(&mut self.source, flags.source.map(Some));
        lay(&mut self.socket, flags.socket);
        lay(&mut self.state_directory, flags.state_directory);
        lay(&mut self.metrics, flags.metrics.map(Some));
        lay(&mut self.health, flags.health.map(Some));
        lay(&mut self.nft_backend, flags.nft_backend);
        lay(&mut self.enforcement, flags.enforcement);
        lay(&mut self.log_format, flags.log_format);
        lay(&mut self.log, flags.log);
        if !flags.pod_bridges.is_empty() {
            self.pod_bridges = flags.pod_bridges;
        }
    }

    /// What is to be told to an API server where there is none.
    fn untellable(&self) -> Vec<Fault> {
        if !matches!(self.source, Some(SourceLocation::File(_))) {
            return Vec::new();
        }
        let asked = [
            ("startupTaint", self.startup_taint.is_some()),
            ("nodeStatus", self.node_status),
            ("deniedEvents", self.denied_events),
        ];
        let asked = asked.into_iter().filter(|(_, is_asked)| *is_asked);
        let fault = |(key, _): (&str, bool)| Fault {
            place: key.to_owned(),
            message: "needs the source kubernetes: it is told to the API server".to_owned(),
        };
        asked.map(fault).collect()
    }

    fn missing(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut missing = |flag: &str, variable: &str| {
            let message = format!("is missing; give {flag}, {variable} or the key in the file");
            faults.push(Fault {
                place: flag.to_owned(),
                message,
            });
        };
        if self.node.is_empty() {
            missing("--node", "TOWPATH_NODE");
        }
        if self.source.is_none() {
            missing("--source", "TOWPATH_SOURCE");
        }
        faults.extend(self.untellable());
        faults
    }
}

/// A taint; null or an empty text is none.
fn taint(value: Value) -> Result<Option<StartupTaint>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        value => parsed(value).map(Some),
    }
}

/// A value that has a text form of its own.
fn parsed<T: std::str::FromStr<Err: ToString>>(value: Value) -> Result<T, String> {
    let text: String = serde_json::from_value(value).map_err(|error| error.to_string())?;
    text.parse().map_err(|error: T::Err| error.to_string())
}

/// An address to listen on; null or an empty text is none.
fn address(value: &Value) -> Result<Option<SocketAddr>, String> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) if text.is_empty() => Ok(None),
        Value::String(text) => parse_listen_address(text).map(Some),
        Value::Number(port) => parse_listen_address(&port.to_string()).map(Some),
        _ => Err("write a port or ADDRESS:PORT".to_owned()),
    }
}

/// Interface names; a single one need not be a list.
fn names(value: Value) -> Result<Vec<InterfaceName>, String> {
    texts(value)?
        .iter()
        .map(|text| text.parse().map_err(|error| format!("{text:?}: {error}")))
        .collect()
}

/// Prefixes of interface names. They go into rules, so the same characters are allowed.
fn prefixes(value: Value) -> Result<Vec<String>, String> {
    let texts = texts(value)?;
    for text in &texts {
        text.parse::<InterfaceName>()
            .map_err(|error| format!("{text:?}: {error}"))?;
    }
    Ok(texts)
}

fn texts(value: Value) -> Result<Vec<String>, String> {
    match value {
        Value::String(text) => Ok(vec![text]),
        value => serde_json::from_value(value).map_err(|error| error.to_string()),
    }
}

fn between(value: &Value, least: u64, most: u64) -> Result<u64, String> {
    let number = value
        .as_u64()
        .filter(|number| (least..=most).contains(number));
    number.ok_or_else(|| format!("{value} is no number from {least} to {most}"))
}

fn names_as_text<S: Serializer>(names: &[InterfaceName], to: S) -> Result<S::Ok, S::Error> {
    to.collect_seq(names.iter().map(InterfaceName::as_str))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(text: &str, variables: &[(&str, &str)], flags: Flags) -> Result<Config, ConfigError> {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("agent.yaml");
        std::fs::write(&file, text).unwrap();
        let variable = |name: &str| {
            variables
                .iter()
                .find(|(known, _)| *known == name)
                .map(|(_, text)| (*text).to_owned())
        };
        Config::load(Some(&file), variable, flags)
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_the_file() {
        let text =
            "node: file\nsource: file:/a\nsocket: /s\nmetrics: 9100\npodBridges: [cni0, br1]";
        let flags = Flags {
            node: Some("flag".to_owned()),
            ..Flags::default()
        };

        let config = load(
            text,
            &[("TOWPATH_NODE", "variable"), ("TOWPATH_DHCP", "true")],
            flags,
        );

        let expected = Config {
            node: "flag".to_owned(),
            source: Some(SourceLocation::File("/a".into())),
            socket: "/s".into(),
            metrics: Some("127.0.0.1:9100".parse().unwrap()),
            pod_bridges: vec!["cni0".parse().unwrap(), "br1".parse().unwrap()],
            dhcp: true,
            ..Config::default()
        };
        assert_eq!(config.unwrap(), expected);
    }

    #[test]
    fn all_faults_come_at_once() {
        let text = "podBridges: ['a b']\nnflogGroup: 70000\nverifyIntervalSeconds: 0\nnod: x\n";

        let error = load(text, &[("TOWPATH_METRICS", "nowhere")], Flags::default()).unwrap_err();

        let places: Vec<&str> = error
            .faults
            .kept()
            .iter()
            .map(|fault| fault.place.rsplit('/').next().unwrap_or_default())
            .collect();
        let expected = [
            "agent.yaml:1:1",
            "agent.yaml:2:1",
            "agent.yaml:3:1",
            "agent.yaml:4:1",
            "TOWPATH_METRICS",
            "--node",
            "--source",
        ];
        assert_eq!(places, expected);
    }

    #[test]
    fn nothing_is_missing_that_may_stand_in_an_unreadable_file() {
        let error = load("node: a\nsource: [\n", &[], Flags::default()).unwrap_err();

        let places: Vec<&str> = error
            .faults
            .kept()
            .iter()
            .map(|fault| fault.place.as_str())
            .collect();
        assert!(
            matches!(places[..], [place] if place.contains("agent.yaml")),
            "{error}"
        );
    }

    #[test]
    fn what_an_api_server_is_to_be_told_needs_one() {
        let told = "node: here\nstartupTaint: towpath.io/not-ready:NoSchedule\nnodeStatus: true\n";

        let error = load(&format!("{told}source: file:/a"), &[], Flags::default()).unwrap_err();
        let config = load(&format!("{told}source: kubernetes"), &[], Flags::default()).unwrap();

        let faults = error.faults.kept().iter();
        let places: Vec<&str> = faults.map(|fault| fault.place.as_str()).collect();
        assert_eq!(places, ["startupTaint", "nodeStatus"]);
        assert!(config.node_status && config.startup_taint.is_some());
        let bad = format!("{told}source: kubernetes").replace("NoSchedule", "Never");
        assert!(load(&bad, &[], Flags::default()).is_err());
    }

    #[test]
    fn every_field_has_a_key_and_every_key_a_field() {
        let fields = serde_json::to_value(Config::default()).unwrap();

        let mut keys: Vec<&str> = SETTINGS.iter().map(|setting| setting.key).collect();
        keys.sort_unstable();

        let mut expected: Vec<String> = fields.as_object().unwrap().keys().cloned().collect();
        expected.sort();
        assert_eq!(keys, expected);
    }

    #[test]
    fn the_effective_configuration_can_be_loaded_again() {
        let flags = Flags {
            node: Some("n".to_owned()),
            source: Some(SourceLocation::File("/a".into())),
            ..Flags::default()
        };
        let config = load("", &[], flags).unwrap();

        let text = serde_json::to_string(&config).unwrap();

        assert_eq!(load(&text, &[], Flags::default()).unwrap(), config);
    }
}
