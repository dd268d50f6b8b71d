//! Others who filter, translate or redirect packets.

use flannel_adapter::detect::Note;
use towpath_dataplane::nft::{FORWARD_HOOK, SurveyedTable};

use super::super::facts::{Facts, Tables};
use super::super::{RIGHTS, Said, Severity, seen};

/// What carries packets of pods past our hooks.
pub(super) fn past_policy(facts: &Facts) -> Vec<Said> {
    seen(&facts.detection, |detection| {
        let mut said: Vec<Said> = detection
            .obstacles
            .iter()
            .map(|obstacle| {
                Said::new(
                    Severity::Serious,
                    obstacle.what.as_str(),
                    obstacle.why,
                    obstacle.way_out,
                )
            })
            .collect();
        said.extend(detection.notes.iter().filter_map(|note| match note {
            Note::Program { .. } => Some(Said::new(
                Severity::Note,
                note.to_string(),
                "we do not know what it does",
                "find out whose it is: bpftool net show",
            )),
            // Told among other policy engines.
            Note::Filter { .. } => None,
        }));
        if said.is_empty() {
            let carriers: Vec<String> =
                detection.carriers.iter().map(ToString::to_string).collect();
            let carriers = if carriers.is_empty() {
                "no pod yet".to_owned()
            } else {
                carriers.join(", ")
            };
            said = Said::ok(format!("nothing carries packets past policy ({carriers})"));
        }
        said
    })
}

fn is_own(table: &SurveyedTable) -> bool {
    table.name == "towpath" && matches!(table.family, "inet" | "bridge")
}

/// Chains of others that drop what they do not know, at the hook where pods' packets pass.
pub(super) fn forward_drop(facts: &Facts) -> Vec<Said> {
    seen(&facts.tables, |tables| {
        let mut said = Vec::new();
        for table in tables.tables.iter().filter(|table| !is_own(table)) {
            for chain in &table.chains {
                let Some(hook) = &chain.hook else { continue };
                let key = (table.family, table.name.clone(), chain.name.clone());
                let drops = hook.drops || tables.closing.contains(&key);
                let sees_pods = matches!(table.family, "inet" | "ip" | "ip6" | "bridge");
                if hook.number == FORWARD_HOOK && drops && sees_pods && hook.is_filter {
                    said.push(closed_chain(table, &chain.name));
                }
            }
        }
        if said.is_empty() {
            said = match tables.legacy.as_slice() {
                [] => Said::ok("no chain of others drops what it does not know"),
                legacy => Said::unseen(
                    &format!("legacy iptables has tables here ({})", legacy.join(", ")),
                    "look with iptables-legacy-save; better move everything to iptables-nft",
                ),
            };
        }
        said
    })
}

/// A drop in one table is not undone by an accept in another, but Flannel's own accept comes first within its table.
fn closed_chain(table: &SurveyedTable, chain: &str) -> Said {
    let place = format!("{} {} {chain}", table.family, table.name);
    let has_flannel = table.chains.iter().any(|chain| chain.name == "FLANNEL-FWD");
    if has_flannel {
        return Said::new(
            Severity::Note,
            format!(
                "the chain {place} drops what it does not know; Flannel's chain there lets pods through"
            ),
            "packets of pods depend on Flannel's chain, which flanneld fills again every few seconds",
            "",
        );
    }
    Said::new(
        Severity::Warning,
        format!("the chain {place} drops what it does not know"),
        "what policy allows is dropped there all the same, unless a rule of that chain lets pods through",
        format!(
            "let pods through in that chain, for example (nft): insert rule {place} accept for source and destination in the pods' network; \
             with Docker or a firewall, tell it about the pods' network"
        ),
    )
}

/// Another engine for network policy, by what its chains or tables are called.
struct Engine {
    name: &'static str,
    chains: &'static [&'static str],
    tables: &'static [&'static str],
    clean_up: &'static str,
}

const ENGINES: &[Engine] = &[
    Engine {
        name: "Calico or Canal",
        chains: &["cali-", "felix-"],
        tables: &["calico"],
        clean_up: "remove its DaemonSet, then its chains (calico-node -felix cleanup, or a reboot)",
    },
    Engine {
        name: "kube-router (k3s)",
        chains: &["KUBE-ROUTER-", "KUBE-POD-FW-", "KUBE-NWPLCY-"],
        tables: &["kube-router-filter-ipv4", "kube-router-filter-ipv6"],
        clean_up: "k3s: --disable-network-policy; then kube-router --cleanup-config, or a reboot",
    },
    Engine {
        name: "kube-network-policies (kindnet)",
        chains: &[],
        tables: &["kube-network-policies", "kindnet-network-policies"],
        clean_up: "remove its DaemonSet, then its table: nft delete table inet with the name above",
    },
    Engine {
        name: "Cilium",
        // It gives chains of its last run the longer name before it replaces them.
        chains: &["CILIUM_", "OLD_CILIUM_"],
        tables: &[],
        clean_up: "remove its DaemonSet, then cilium-dbg post-uninstall-cleanup, or a reboot",
    },
    Engine {
        name: "Antrea",
        chains: &["ANTREA-"],
        tables: &["antrea"],
        clean_up: "remove its DaemonSet, then antrea-agent's clean-up manifest, or a reboot",
    },
    Engine {
        name: "Weave",
        chains: &["WEAVE-NPC"],
        tables: &[],
        clean_up: "remove its DaemonSet, then weave reset, or a reboot",
    },
    Engine {
        name: "Azure NPM",
        chains: &["AZURE-NPM"],
        tables: &[],
        clean_up: "remove its DaemonSet; its chains go with a reboot",
    },
];

impl Engine {
    /// How many chains it has, and its first sign.
    fn signs(&self, tables: &Tables) -> Option<String> {
        for table in tables.tables.iter().filter(|table| !is_own(table)) {
            if self.tables.contains(&table.name.as_str()) {
                return Some(format!("table {} {}", table.family, table.name));
            }
            let is_its = |name: &str| self.chains.iter().any(|start| name.starts_with(start));
            let count = table
                .chains
                .iter()
                .filter(|chain| is_its(&chain.name))
                .count();
            if let Some(first) = table.chains.iter().find(|chain| is_its(&chain.name)) {
                return Some(format!(
                    "{count} chains such as {} in table {} {}",
                    first.name, table.family, table.name
                ));
            }
        }
        None
    }
}

/// Other engines for network policy: running, or what they left.
pub(super) fn other_policy(facts: &Facts) -> Vec<Said> {
    seen(&facts.tables, |tables| {
        let mut said: Vec<Said> = ENGINES
            .iter()
            .filter_map(|engine| {
                let signs = engine.signs(tables)?;
                Some(Said::new(
                    Severity::Warning,
                    format!("{} is or was at work here: {signs}", engine.name),
                    "two engines judge each packet, and what either denies is denied; rules that were left deny what nobody sees",
                    engine.clean_up,
                ))
            })
            .collect();
        let notes = facts.detection.get().map(|found| found.notes.as_slice());
        for note in notes.unwrap_or_default() {
            if let Note::Filter { .. } = note {
                said.push(Said::new(
                    Severity::Warning,
                    note.to_string(),
                    "two engines judge each packet",
                    "switch one of them off",
                ));
            }
        }
        if said.is_empty() {
            said = Said::ok("no other engine for network policy");
        }
        said
    })
}

/// `NodeLocal` `DNSCache` answers on the node, past connection tracking.
pub(super) fn local_dns(facts: &Facts) -> Vec<Said> {
    let Some(links) = facts.links.get() else {
        return Said::unseen("interfaces cannot be listed", RIGHTS);
    };
    let device = links.iter().find(|link| link.name == "nodelocaldns");
    let untracking = facts
        .tables
        .get()
        .and_then(|tables| tables.untracking.first());
    let what = match (device, untracking) {
        (Some(device), _) => {
            let addresses: Vec<String> = device.addresses.iter().map(ToString::to_string).collect();
            format!(
                "NodeLocal DNSCache answers on this node at {}",
                addresses.join(", ")
            )
        }
        (None, Some((family, name))) => {
            format!("rules of table {family} {name} take packets out of connection tracking")
        }
        (None, None) => {
            return Said::ok(
                "no NodeLocal DNSCache, and nothing is taken out of connection tracking",
            );
        }
    };
    vec![Said::new(
        Severity::Note,
        what,
        "packets that are not tracked are judged one by one, and answers as well as questions",
        "say in the agents' configuration for which pods it answers (localServices), or let pods reach its addresses by an ipBlock",
    )]
}

/// Whether pods see the addresses of clients from outside.
pub(super) fn client_address(facts: &Facts) -> Vec<Said> {
    seen(&facts.tables, |tables| {
        let masquerading = tables.tables.iter().find(|table| {
            table
                .chains
                .iter()
                .any(|chain| chain.name == "FLANNEL-POSTRTG")
        });
        if masquerading.is_none() {
            return Said::ok("Flannel does not hide clients' addresses");
        }
        vec![Said::new(
            Severity::Note,
            "Flannel masquerades what comes from outside to pods of other nodes (iptables mode)",
            "a pod sees the entry node's address and not the client's, so an ipBlock for clients matches only where they enter on the pod's node",
            "use Flannel's nftables mode (EnableNFTables), or externalTrafficPolicy: Local on the Service",
        )]
    })
}
