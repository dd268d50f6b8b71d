//! Reads what the checks need: the kernel, files, the Node objects of a source. Changes nothing, and a look that fails is
//! told as one.

mod nodes;

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::SystemTime;

use flannel_adapter::FlannelFacts;
use flannel_adapter::annotations::AnnotationNames;
use flannel_adapter::detect::{self, Detection, MOST_BYTES, parse_conflist};
use flannel_adapter::here::{self, Here};
use smol_str::SmolStr;
use towpath_core::model::MacAddress;
use towpath_dataplane::link::{
    NetlinkError, Scanner, Snapshot, bridge_netfilter_available, offloads_checksums,
};
use towpath_dataplane::nft::{FORWARD_HOOK, SurveyedTable, survey_rules, survey_tables};

use super::facts::{Cni, Facts, Flannel, LinkFacts, Look, Settings, State, Tables};
use crate::agent::bypass::{self, Bypasses, Clock};
use crate::agent::report::{Bypass, Status};
use crate::applier::MARKER;
use crate::cli::arguments::SourceLocation;

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// Name of this node, if it is known.
    pub node: Option<SmolStr>,
    /// Where Node objects are.
    pub source: Option<SourceLocation>,
    /// Bridges of pods besides the one that the CNI configuration names.
    pub pod_bridges: BTreeSet<SmolStr>,
    /// Flannel's files.
    pub flannel: here::Places,
    /// Folder of CNI configurations.
    pub cni_configurations: PathBuf,
    /// The agent's state directory.
    pub state_directory: PathBuf,
}

/// Looks at everything, in the network namespace of the calling thread. `agent` is what the agent said.
pub fn gather(places: &Places, agent: Look<Option<Status>>) -> Facts {
    let cni = cni(&places.cni_configurations, &places.state_directory);
    let kernel = Kernel::look(&cni, &places.flannel);
    let pod_bridges = pod_bridges(places, &cni, agent.get());
    let nodes = nodes::read(places.source.as_ref());
    let flannel = flannel(places, &kernel.here, &nodes, pod_bridges.first());
    Facts {
        links: kernel.links,
        pod_bridges,
        has_bridge_netfilter: look(bridge_netfilter_available()),
        tables: tables(),
        detection: kernel.detection,
        flannel,
        nodes: match nodes {
            Look::Seen(nodes) => Look::Seen(nodes.records.len()),
            Look::Unseen(reason) => Look::Unseen(reason),
        },
        kernel: match setting_text("/proc/sys/kernel/osrelease") {
            Some(release) => Look::Seen(release),
            None => Look::Unseen("the kernel does not tell its release".to_owned()),
        },
        nft_program: nft_program(),
        settings: settings(),
        cni,
        agent,
        state: state(&places.state_directory),
    }
}

/// A look, with all causes of its failure.
fn look<T, E: std::error::Error>(result: Result<T, E>) -> Look<T> {
    match result {
        Ok(value) => Look::Seen(value),
        Err(error) => Look::Unseen(chain(&error)),
    }
}

/// An error with its causes on one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// What netlink tells.
struct Kernel {
    links: Look<Vec<LinkFacts>>,
    detection: Look<Detection>,
    /// What shows of Flannel.
    here: Look<Here>,
}

impl Kernel {
    fn look(cni: &Look<Cni>, flannel: &here::Places) -> Self {
        Self::try_look(cni, flannel).unwrap_or_else(|error| {
            let reason = chain(&error);
            Self {
                links: Look::Unseen(reason.clone()),
                detection: Look::Unseen(reason.clone()),
                here: Look::Unseen(reason),
            }
        })
    }

    fn try_look(cni: &Look<Cni>, flannel: &here::Places) -> Result<Self, NetlinkError> {
        let mut scanner = Scanner::open()?;
        let snapshot = scanner.discover()?;
        let all = scanner.routes(|route| route.destination.prefix_len() == 0)?;
        let defaults: BTreeSet<u32> = all.iter().map(|route| route.index).collect();
        let chosen = cni.get().and_then(Cni::chosen).cloned();
        let here = Here::look(&mut scanner, &snapshot, chosen.as_ref(), flannel);
        let detection = detect::survey(&mut scanner, &snapshot, chosen, |table| table == "towpath");
        Ok(Self {
            links: Look::Seen(links(&snapshot, &defaults)),
            detection: look(detection.map(|survey| detect::detect(&survey))),
            here: look(here),
        })
    }
}

fn links(snapshot: &Snapshot, defaults: &BTreeSet<u32>) -> Vec<LinkFacts> {
    let for_all = number("/proc/sys/net/ipv4/conf/all/rp_filter");
    let each = snapshot.interfaces.iter().map(|link| {
        let own = number(&format!("/proc/sys/net/ipv4/conf/{}/rp_filter", link.name));
        let master = link.master.and_then(|master| {
            let found = snapshot
                .interfaces
                .iter()
                .find(|other| other.index == master);
            found.map(|other| other.name.clone())
        });
        let addresses = snapshot.host_addresses.iter();
        LinkFacts {
            name: link.name.clone(),
            kind: link.kind.clone(),
            master,
            mac: link.mac.map(MacAddress),
            mtu: link.mtu,
            addresses: addresses
                .filter(|address| address.index == link.index)
                .map(|address| address.address)
                .filter(|address| !is_link_local(*address))
                .collect(),
            bridge: link.bridge_settings,
            offloads_checksums: offloads_checksums(&link.name).ok().flatten(),
            reverse_path: for_all.max(own).and_then(|value| u8::try_from(value).ok()),
            has_default_route: defaults.contains(&link.index),
        }
    });
    each.collect()
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local(),
        IpAddr::V6(address) => address.is_unicast_link_local(),
    }
}

fn pod_bridges(
    places: &Places,
    cni: &Look<Cni>,
    agent: Option<&Option<Status>>,
) -> BTreeSet<SmolStr> {
    let mut bridges = places.pod_bridges.clone();
    if let Some(Some(status)) = agent {
        bridges.extend(
            status
                .bridges
                .iter()
                .map(|bridge| SmolStr::new(&bridge.name)),
        );
    }
    if let Some(chosen) = cni.get().and_then(Cni::chosen) {
        match (chosen.plugins.first().map(SmolStr::as_str), &chosen.bridge) {
            (_, Some(bridge)) => {
                bridges.insert(bridge.clone());
            }
            (Some("flannel" | "bridge"), None) => {
                bridges.insert("cni0".into());
            }
            _ => {}
        }
    } else if bridges.is_empty() {
        bridges.insert("cni0".into());
    }
    bridges
}

fn flannel(
    places: &Places,
    here: &Look<Here>,
    nodes: &Look<nodes::Nodes>,
    bridge: Option<&SmolStr>,
) -> Look<Flannel> {
    let mut here = match here {
        Look::Seen(here) => here.clone(),
        Look::Unseen(reason) => return Look::Unseen(reason.clone()),
    };
    let mut faults: Vec<String> = here.faults.iter().map(ToString::to_string).collect();
    let mut records = Vec::new();
    if let Look::Seen(read) = nodes {
        let names = AnnotationNames::default();
        for record in &read.records {
            let parsed = names.read(record);
            faults.extend(parsed.faults.iter().map(ToString::to_string));
            records.push(parsed.value);
        }
        // What Flannel was told last wins over a file that its pod may have left.
        if let Some(parsed) = &read.net_conf {
            faults.extend(parsed.faults.iter().map(ToString::to_string));
            here.net_conf.clone_from(&parsed.value);
        }
    }
    let inputs = here.inputs(own_name(places), records, bridge.cloned());
    Look::Seen(Flannel {
        is_there: here.is_there,
        facts: FlannelFacts::merge(&inputs),
        faults,
    })
}

/// The node's name: what was given, else the host's, as kubelets take it.
fn own_name(places: &Places) -> SmolStr {
    let host = || setting_text("/proc/sys/kernel/hostname").map(|name| name.to_lowercase());
    places
        .node
        .clone()
        .or_else(|| host().map(SmolStr::from))
        .unwrap_or_default()
}

fn tables() -> Look<Tables> {
    let listed = survey_tables().and_then(|tables| {
        let mut found = Tables::default();
        for table in &tables {
            found.closing.extend(closing(table)?);
            if takes_out(table)? {
                found.untracking.insert((table.family, table.name.clone()));
            }
        }
        found.legacy = legacy();
        found.tables = tables;
        Ok(found)
    });
    look(listed)
}

/// Base chains of a table at the forward hook that end in a drop.
fn closing(
    table: &SurveyedTable,
) -> Result<BTreeSet<(&'static str, SmolStr, SmolStr)>, NetlinkError> {
    let mut found = BTreeSet::new();
    for chain in &table.chains {
        if chain
            .hook
            .as_ref()
            .is_none_or(|hook| hook.number != FORWARD_HOOK)
        {
            continue;
        }
        let rules = survey_rules(table.family, &table.name, Some(&chain.name))?;
        if rules
            .last()
            .is_some_and(towpath_dataplane::nft::SurveyedRule::drops_all)
        {
            found.insert((table.family, table.name.clone(), chain.name.clone()));
        }
    }
    Ok(found)
}

/// Whether a table takes packets out of connection tracking. Only one with a chain before the tracker can.
fn takes_out(table: &SurveyedTable) -> Result<bool, NetlinkError> {
    /// `NF_IP_PRI_CONNTRACK`.
    const TRACKER: i32 = -200;
    let is_early = table
        .chains
        .iter()
        .filter_map(|chain| chain.hook.as_ref())
        .any(|hook| hook.priority < TRACKER && matches!(hook.number, 0 | 3));
    if !is_early || !matches!(table.family, "ip" | "ip6" | "inet") {
        return Ok(false);
    }
    let rules = survey_rules(table.family, &table.name, None)?;
    Ok(rules
        .iter()
        .flat_map(|rule| &rule.expressions)
        .any(|word| matches!(word.as_str(), "notrack" | "target NOTRACK" | "target CT")))
}

/// Tables of the old iptables; the files are there once its modules are.
fn legacy() -> Vec<String> {
    let mut found = Vec::new();
    for file in ["ip_tables_names", "ip6_tables_names"] {
        let text = fs::read_to_string(Path::new("/proc/net").join(file)).unwrap_or_default();
        found.extend(
            text.lines()
                .map(|name| format!("{} {name}", file.trim_end_matches("_names"))),
        );
    }
    found
}

fn settings() -> Settings {
    let switch = |path: &str| number(path).map(|value| value != 0);
    Settings {
        forwards_ipv4: switch("/proc/sys/net/ipv4/ip_forward"),
        forwards_ipv6: switch("/proc/sys/net/ipv6/conf/all/forwarding"),
        all_bridges_ipv4: switch("/proc/sys/net/bridge/bridge-nf-call-iptables"),
        all_bridges_ipv6: switch("/proc/sys/net/bridge/bridge-nf-call-ip6tables"),
        connections: number("/proc/sys/net/netfilter/nf_conntrack_count"),
        most_connections: number("/proc/sys/net/netfilter/nf_conntrack_max"),
        tcp_seconds: number("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established"),
    }
}

fn setting_text(path: &str) -> Option<String> {
    Some(fs::read_to_string(path).ok()?.trim().to_owned())
}

fn number(path: &str) -> Option<u64> {
    setting_text(path)?.parse().ok()
}

/// One line of the program `nft`.
fn nft_program() -> Option<String> {
    let output = Command::new("nft")
        .arg("--version")
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next().map(str::to_owned)
}

fn cni(folder: &Path, state: &Path) -> Look<Cni> {
    let fault = match crate::cli::cni::fault(state) {
        Ok(fault) => fault,
        Err(error) => return Look::Unseen(chain(&error)),
    };
    let mut cni = Cni {
        folder: folder.display().to_string(),
        fault,
        ..Cni::default()
    };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Look::Seen(cni),
        Err(error) => return Look::Unseen(format!("cannot read {}: {error}", cni.folder)),
    };
    for entry in entries.flatten() {
        let Some(name) = entry.file_name().to_str().map(SmolStr::new) else {
            continue;
        };
        let path = entry.path();
        if path.is_dir() {
            if has_own_drop_in(&path) {
                cni.drop_ins.push(name);
            }
        } else if [".conflist", ".conf", ".json"]
            .iter()
            .any(|end| name.ends_with(end))
        {
            let read = configuration(&path, &name);
            cni.files.push((name, read));
        }
    }
    cni.files
        .sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
    cni.drop_ins.sort_unstable();
    Look::Seen(cni)
}

fn configuration(path: &Path, name: &str) -> Result<detect::ConfList, String> {
    let length = fs::metadata(path).map_err(|error| error.to_string())?.len();
    if usize::try_from(length).unwrap_or(usize::MAX) > MOST_BYTES {
        return Err(format!("it has {length} bytes"));
    }
    let text = fs::read_to_string(path).map_err(|error| error.to_string())?;
    parse_conflist(name, &text).map_err(|fault| fault.kind.to_string())
}

/// Whether a network's folder has a file of our plugin.
fn has_own_drop_in(folder: &Path) -> bool {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .any(|name| name.contains("towpath"))
}

fn state(folder: &Path) -> Look<Option<State>> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Look::Seen(None),
        Err(error) => {
            return Look::Unseen(format!("cannot read {}: {error}", folder.display()));
        }
    };
    let bypasses = match bypasses(folder) {
        Ok(bypasses) => bypasses,
        Err(error) => {
            let folder = folder.display();
            return Look::Unseen(format!("cannot read what is bypassed in {folder}: {error}"));
        }
    };
    let newest = entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok()?.modified().ok())
        .max();
    let ago = newest.and_then(|at| SystemTime::now().duration_since(at).ok());
    Look::Seen(Some(State {
        folder: folder.display().to_string(),
        has_enforced: folder.join(MARKER).exists(),
        seconds_ago: ago.map(|ago| ago.as_secs()),
        bypasses,
    }))
}

fn bypasses(folder: &Path) -> std::io::Result<Vec<Bypass>> {
    let clock = Clock::read();
    let mut bypasses = Bypasses::load(folder, clock)?;
    bypasses.expire(clock.now);
    Ok(bypasses.report(&bypass::load_book(folder)?, clock.now))
}
