//! Tests that cannot run here say so aloud and are counted.
//!
//! A skip prints `SKIP[area] test: feature` and appends `area<TAB>test<TAB>feature<TAB>reason` to the file that
//! `TOWPATH_SKIP_LOG` names. `cargo xtask test` compares that file with `tests/expected-skips`.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context as _, Result};

use crate::netns::{isolated, run};
use crate::program;
use crate::tools::{self, Tool};

/// The variable that names the file in which skips are collected.
pub const SKIP_LOG: &str = "TOWPATH_SKIP_LOG";

/// What a test may need from the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Feature {
    /// Network namespaces may be made.
    Root,
    /// The CNI plugins `bridge` and `host-local`.
    CniPlugins,
    /// `nft`.
    Nft,
    /// `conntrack`.
    Conntrack,
    /// A kernel with vxlan devices.
    Vxlan,
    /// A kernel that shows bridged frames to the inet hooks.
    BridgeNetfilter,
    /// A kernel with IPv6.
    Ipv6,
    /// A kernel whose connection tracking knows SCTP.
    SctpConntrack,
    /// etcd, API server and controllers.
    KubernetesServers,
    /// The command line of Kubernetes.
    Kubectl,
    /// Flannel's daemon.
    Flanneld,
    /// kube-proxy.
    KubeProxy,
    /// The CNI plugins of CNI 1.1, and cnitool.
    CniModulePlugins,
    /// kubelet, containerd, and what builds images.
    Kubelet,
}

impl Feature {
    /// Its name in `tests/expected-skips`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Root => "root",
            Self::CniPlugins => "cni-plugins",
            Self::Nft => "nft",
            Self::Conntrack => "conntrack",
            Self::Vxlan => "vxlan",
            Self::BridgeNetfilter => "br-netfilter",
            Self::Ipv6 => "ipv6",
            Self::SctpConntrack => "sctp-conntrack",
            Self::KubernetesServers => "kubernetes-servers",
            Self::Kubectl => "kubectl",
            Self::Flanneld => "flanneld",
            Self::KubeProxy => "kube-proxy",
            Self::CniModulePlugins => "cni-module-plugins",
            Self::Kubelet => "kubelet",
        }
    }

    /// Why the machine lacks it; `None` when it is there.
    pub fn lack(self) -> Option<String> {
        static KNOWN: Mutex<BTreeMap<Feature, Option<String>>> = Mutex::new(BTreeMap::new());
        let mut known = KNOWN.lock().expect("no test panics while it asks");
        known.entry(self).or_insert_with(|| self.find()).clone()
    }

    fn find(self) -> Option<String> {
        match self {
            Self::Root => isolated(|| ()).err().map(|error| format!("{error:#}")),
            Self::CniPlugins => program::cni_folder().is_none().then(|| {
                format!(
                    "no plugins bridge and host-local in {:?}",
                    program::CNI_FOLDERS
                )
            }),
            Self::Nft => missing("nft"),
            Self::Conntrack => missing("conntrack"),
            Self::Vxlan => kernel(&[
                "link", "add", "name", "vxlan0", "type", "vxlan", "id", "1", "dstport", "8472",
            ]),
            Self::BridgeNetfilter => kernel(&[
                "link",
                "add",
                "name",
                "bridge0",
                "type",
                "bridge",
                "nf_call_iptables",
                "1",
            ])
            .or_else(|| {
                // The attribute is accepted without the module; the module brings the settings.
                isolated(|| std::fs::metadata("/proc/sys/net/bridge/bridge-nf-call-iptables"))
                    .and_then(|found| Ok(found.map(drop)?))
                    .err()
                    .map(|_| "module br_netfilter is not loaded".to_owned())
            }),
            Self::Ipv6 => kernel(&["-6", "address", "add", "fd00::1/64", "dev", "lo"]),
            Self::SctpConntrack => isolated(has_sctp_tracker)
                .and_then(|found| found)
                .err()
                .map(|error| format!("{error:#}")),
            Self::KubernetesServers => tools::etcd()
                .is_none()
                .then(|| "program etcd is not installed".to_owned())
                .or_else(|| unbuilt(&[Tool::ApiServer, Tool::ControllerManager, Tool::Scheduler])),
            Self::Kubectl => tools::kubectl().err().map(|error| format!("{error:#}")),
            Self::Flanneld => unbuilt(&[Tool::Flanneld]),
            Self::KubeProxy => unbuilt(&[Tool::Proxy]),
            Self::CniModulePlugins => unbuilt(&Tool::PLUGINS).or_else(|| unbuilt(&[Tool::Cnitool])),
            Self::Kubelet => unbuilt(&[Tool::Kubelet])
                .or_else(|| {
                    ["containerd", "runc", "umoci", "skopeo"]
                        .into_iter()
                        .find_map(missing)
                })
                .or_else(|| {
                    (!program::has_static_busybox()).then(|| "no static busybox".to_owned())
                }),
        }
    }
}

/// Whether all features are there; else says aloud what is missing. Called by [`require!`](crate::require).
pub fn has_all(area: &str, test: &str, features: &[Feature]) -> bool {
    for feature in features {
        if let Some(reason) = feature.lack() {
            report(area, test, feature.name(), &reason);
            return false;
        }
    }
    true
}

/// Says that a test is skipped.
pub fn report(area: &str, test: &str, feature: &str, reason: &str) {
    let mut error = std::io::stderr().lock();
    let _ = writeln!(error, "SKIP[{area}] {test}: {feature}: {reason}");
    if let Some(path) = std::env::var_os(SKIP_LOG) {
        let line = format!(
            "{area}\t{test}\t{feature}\t{}\n",
            reason.replace(['\n', '\t'], " ")
        );
        let written = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(line.as_bytes()));
        if let Err(problem) = written {
            // A skip that is not counted would pass for a test that ran.
            panic!("cannot note the skip in {}: {problem}", path.display());
        }
    }
}

fn has_sctp_tracker() -> Result<()> {
    // A rule that looks at connections: it brings the module, and the module the settings.
    let rule = "add table inet t; add chain inet t c { type filter hook input priority 0; }; \
                add rule inet t c ct state new";
    run(Command::new("nft").arg(rule))?;
    std::fs::metadata("/proc/sys/net/netfilter/nf_conntrack_sctp_timeout_established")
        .map(drop)
        .context("connection tracking does not know SCTP")
}

fn missing(name: &str) -> Option<String> {
    (!program::is_installed(name)).then(|| format!("program {name} is not installed"))
}

fn unbuilt(wanted: &[Tool]) -> Option<String> {
    let error = wanted.iter().find_map(|tool| tool.path().err())?;
    Some(format!("{error:#}"))
}

fn kernel(arguments: &[&str]) -> Option<String> {
    let output = isolated(|| Command::new("ip").args(arguments).output());
    match output {
        Ok(Ok(output)) if output.status.success() => None,
        Ok(Ok(output)) => Some(String::from_utf8_lossy(&output.stderr).trim().to_owned()),
        Ok(Err(error)) => Some(error.to_string()),
        Err(error) => Some(format!("{error:#}")),
    }
}

/// Returns from the test, aloud, when the machine lacks a feature: `require!("lab", Root, Vxlan);`
#[macro_export]
macro_rules! require {
    ($area:literal, $($feature:ident),+ $(,)?) => {{
        fn here() {}
        let name = std::any::type_name_of_val(&here);
        let name = name.trim_end_matches("::here").trim_end_matches("::{{closure}}");
        let features = [$($crate::skip::Feature::$feature),+];
        if !$crate::skip::has_all($area, name, &features) {
            return;
        }
    }};
}
