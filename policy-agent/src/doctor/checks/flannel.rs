//! What Flannel set up: the findings of the adapter, by subject, and what it does not look at.

use flannel_adapter::backend::BackendType;
use flannel_adapter::{Finding, Severity as Found};
use smol_str::format_smolstr;

use super::super::facts::{Facts, Flannel, LinkFacts};
use super::super::{Said, Severity, seen};

/// Bytes that a tunnel adds, by the beginning of its device's name and its kind.
const OVERHEADS: [(&str, u32); 3] = [("flannel.ipip", 20), ("flannel-wg", 80), ("flannel.", 50)];

/// Whether Node objects were read.
pub(super) fn nodes(facts: &Facts) -> Vec<Said> {
    match &facts.nodes {
        super::super::Look::Seen(count) => Said::ok(format!("{count} Node objects")),
        super::super::Look::Unseen(reason) => Said::unseen(
            reason,
            "give --source; without Node objects, what other nodes were told of this one is not compared",
        ),
    }
}

/// The findings that belong to one check.
fn told(
    facts: &Facts,
    is_here: impl Fn(&Finding) -> bool,
    good: &'static str,
    more: impl FnOnce(&Flannel) -> Vec<Said>,
) -> Vec<Said> {
    seen(&facts.flannel, |flannel| {
        if !flannel.is_there {
            return Said::ok("no sign of Flannel here");
        }
        let findings = flannel.facts.findings.iter();
        let mut said: Vec<Said> = findings
            .filter(|finding| is_here(finding))
            .map(say)
            .collect();
        said.extend(more(flannel));
        if said.is_empty() {
            said = Said::ok(good);
        }
        said
    })
}

/// A finding's text has what is wrong before the first `; ` or `: `, and then what to do.
fn say(finding: &Finding) -> Said {
    let severity = match finding.severity() {
        Found::Notice => Severity::Note,
        Found::Warning => Severity::Warning,
        Found::Serious => Severity::Serious,
    };
    let text = finding.to_string();
    let (what, way_out) = match text.split_once("; ") {
        Some((what, way_out)) => (what.to_owned(), way_out.to_owned()),
        None => (text, String::new()),
    };
    Said::new(severity, what, why(finding), way_out)
}

fn why(finding: &Finding) -> &'static str {
    match finding {
        Finding::SubnetEnvMissing => "Flannel's plugin reads it for every new pod",
        Finding::PodNetworkMissing { .. } => "no pod of that node gets an address",
        Finding::Unmanaged { .. } => "Flannel works on marked nodes only",
        Finding::SubnetDiffers { .. } => {
            "new pods get addresses of a network that no other node routes here"
        }
        Finding::SubnetOutside { .. } => "rules and routes of Flannel do not cover it",
        Finding::SubnetsOverlap { .. } => {
            "an address may be two pods', and policy cannot tell them apart"
        }
        Finding::BridgeAddressDiffers { .. } => "the bridge plugin refuses to plug new pods in",
        Finding::MtuDiffers { .. } => {
            "large packets are lost, and connections hang once they carry data"
        }
        Finding::DeviceMissing { .. } => "it carries what goes to pods of other nodes",
        Finding::VtepMacDiffers { .. } => {
            "packets from other nodes arrive for a hardware address that is not here, and are dropped"
        }
        Finding::BackendDiffers { .. } => {
            "nodes with different backends do not understand each other"
        }
        Finding::BackendByDefault => "each packet goes through a program",
        Finding::PublicAddressShared { .. } => "packets for one of them reach the other",
        Finding::AddressOfPods { .. } => "a pod would be taken for a host",
        Finding::StaleRoute { .. } => {
            "packets to that network go nowhere, or to a node that does not expect them"
        }
    }
}

/// Files and configuration.
pub(super) fn configuration(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| {
        matches!(
            finding,
            Finding::SubnetEnvMissing
                | Finding::BackendDiffers { .. }
                | Finding::BackendByDefault
                | Finding::Unmanaged { .. }
                | Finding::PublicAddressShared { .. }
                | Finding::AddressOfPods { .. }
        )
    };
    told(
        facts,
        is_here,
        "Flannel's files and annotations agree",
        |flannel| {
            let faults = flannel.faults.iter();
            faults
                .map(|fault| {
                    Said::new(
                        Severity::Warning,
                        fault.as_str(),
                        "that field is not believed",
                        "correct it where it comes from",
                    )
                })
                .collect()
        },
    )
}

/// Which networks pods get addresses from.
pub(super) fn pod_network(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| {
        matches!(
            finding,
            Finding::PodNetworkMissing { .. }
                | Finding::SubnetDiffers { .. }
                | Finding::SubnetOutside { .. }
                | Finding::SubnetsOverlap { .. }
        )
    };
    told(facts, is_here, "networks of pods fit together", |_| {
        Vec::new()
    })
}

/// The bridge's own address.
pub(super) fn bridge_address(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| matches!(finding, Finding::BridgeAddressDiffers { .. });
    told(
        facts,
        is_here,
        "the bridge has its address, or is not there yet",
        |_| Vec::new(),
    )
}

/// Flannel's tunnel ends.
pub(super) fn vtep(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| {
        matches!(
            finding,
            Finding::VtepMacDiffers { .. } | Finding::DeviceMissing { .. }
        )
    };
    told(
        facts,
        is_here,
        "Flannel's devices are as other nodes were told",
        |flannel| {
            let links = facts.links.get().map_or(&[][..], Vec::as_slice);
            told_devices(flannel, links)
                .into_iter()
                .map(|finding| say(&finding))
                .collect()
        },
    )
}

/// Where the configuration is not known, the node's own annotation names its devices: the adapter leaves them alone then.
fn told_devices(flannel: &Flannel, links: &[LinkFacts]) -> Vec<Finding> {
    let own = flannel
        .facts
        .own_node()
        .filter(|_| flannel.facts.options.is_none());
    let Some(own) = own else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (start, vtep) in [("flannel.", own.vtep), ("flannel-v6.", own.vtep_v6)] {
        let Some(vtep) = vtep else { continue };
        let device = format_smolstr!("{start}{}", vtep.vni);
        match links.iter().find(|link| link.name == device) {
            None => findings.push(Finding::DeviceMissing { device }),
            Some(link) => findings.extend(link.mac.filter(|mac| *mac != vtep.mac).map(|found| {
                Finding::VtepMacDiffers {
                    device,
                    found,
                    told: vtep.mac,
                }
            })),
        }
    }
    findings
}

/// Routes that lead to nobody.
pub(super) fn stale_routes(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| matches!(finding, Finding::StaleRoute { .. });
    if facts.nodes.get().is_none() {
        return Said::unseen("which nodes there are is not known", "give --source");
    }
    told(
        facts,
        is_here,
        "every route of Flannel's leads to a node",
        |_| Vec::new(),
    )
}

/// Largest packets, from the pods' interfaces to the uplink.
pub(super) fn mtu(facts: &Facts) -> Vec<Said> {
    let is_here = |finding: &Finding| matches!(finding, Finding::MtuDiffers { .. });
    told(
        facts,
        is_here,
        "largest packets fit from pods to the uplink",
        |flannel| {
            let links = facts.links.get().map_or(&[][..], Vec::as_slice);
            let mut said = Vec::new();
            if let Some(wanted) = flannel.facts.mtu {
                said.extend(ports(facts, links, wanted));
                said.extend(tunnel(flannel, links, wanted));
                said.extend(uplink(flannel, links, wanted));
            }
            said
        },
    )
}

/// Pods whose interface is not as Flannel says: they are older than the last change.
fn ports(facts: &Facts, links: &[LinkFacts], wanted: u32) -> Option<Said> {
    let is_port = |link: &&LinkFacts| {
        let master = link.master.as_ref();
        link.mtu != wanted && master.is_some_and(|master| facts.pod_bridges.contains(master))
    };
    let odd: Vec<String> = links
        .iter()
        .filter(is_port)
        .map(|link| format!("{} ({})", link.name, link.mtu))
        .collect();
    let first = odd.first()?;
    let more = match odd.len() {
        1 => String::new(),
        count => format!(" and {} more", count - 1),
    };
    Some(Said::new(
        Severity::Warning,
        format!("{first}{more} of the pods' bridge has another MTU than Flannel's {wanted}"),
        "such a pod was plugged in before a change; its large packets may be lost",
        "restart these pods",
    ))
}

/// Flannel's IPv4 device, where the configuration is not known and the adapter leaves it alone.
fn tunnel(flannel: &Flannel, links: &[LinkFacts], wanted: u32) -> Option<Said> {
    let is_known = flannel.facts.options.is_some();
    let link = links
        .iter()
        .find(|link| link.name.starts_with("flannel."))?;
    (!is_known && link.mtu != wanted).then(|| {
        say(&Finding::MtuDiffers {
            interface: link.name.clone(),
            found: link.mtu,
            wanted,
        })
    })
}

/// A tunnel's packets must fit into the uplink's.
fn uplink(flannel: &Flannel, links: &[LinkFacts], wanted: u32) -> Option<Said> {
    let tunnel = links.iter().find_map(|link| {
        let row = OVERHEADS
            .iter()
            .find(|(start, _)| link.name.starts_with(start))?;
        Some(row.1)
    });
    let overhead = match &flannel.facts.backend {
        Some(BackendType::HostGateway) => 0,
        _ => tunnel?,
    };
    let is_inner = |link: &LinkFacts| link.name == "lo" || link.name.starts_with("flannel");
    let by_route = links.iter().filter(|link| link.has_default_route);
    let others = links.iter().filter(|link| {
        !is_inner(link) && link.kind.as_deref() != Some("bridge") && !link.addresses.is_empty()
    });
    let widest = by_route
        .max_by_key(|link| link.mtu)
        .or_else(|| others.max_by_key(|link| link.mtu))?;
    let needed = wanted + overhead;
    (widest.mtu < needed).then(|| {
        Said::new(
            Severity::Warning,
            format!(
                "pods send packets of {wanted} bytes, {needed} with the tunnel's header; {} carries {}",
                widest.name, widest.mtu
            ),
            "large packets to other nodes are lost or cut into pieces",
            "restart flanneld, which takes the uplink's MTU, and then the pods; or set MTU in net-conf.json",
        )
    })
}

/// Checksums of tunnelled packets.
pub(super) fn checksum(facts: &Facts) -> Vec<Said> {
    seen(&facts.links, |links| {
        let offloading: Vec<&LinkFacts> = links
            .iter()
            .filter(|link| link.kind.as_deref() == Some("vxlan"))
            .filter(|link| link.offloads_checksums == Some(true))
            .collect();
        let Some(first) = offloading.first() else {
            return Said::ok("no vxlan device leaves checksums to hardware");
        };
        let is_old = facts
            .kernel
            .get()
            .and_then(|release| super::host::version(release))
            .is_some_and(|version| version < (5, 7));
        let (is_translated, public) = is_translated(facts, links);
        if !is_old && !is_translated {
            return Said::ok(format!(
                "{} leaves checksums to hardware, which this kernel gets right",
                first.name
            ));
        }
        let cause = if is_old {
            "kernels before 5.7 send wrong checksums for packets to Services".to_owned()
        } else {
            format!(
                "the node's public address {public} is translated on the way, where wrong checksums are kept"
            )
        };
        vec![Said::new(
            Severity::Warning,
            format!("{} leaves checksums to hardware", first.name),
            format!("{cause}; connections then start after 1, 3, 7 up to 63 s"),
            format!("ethtool -K {} tx-checksum-ip-generic off", first.name),
        )]
    })
}

/// Whether other nodes reach this one at an address that is on none of its interfaces.
fn is_translated(facts: &Facts, links: &[LinkFacts]) -> (bool, String) {
    let own = facts
        .flannel
        .get()
        .and_then(|flannel| flannel.facts.own_node());
    let public = own.and_then(|node| node.public.iter().next());
    match public {
        Some(public) => {
            let is_here = links.iter().any(|link| link.addresses.contains(&public));
            (!is_here, public.to_string())
        }
        None => (false, String::new()),
    }
}
