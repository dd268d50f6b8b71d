//! What carries packets past the hooks in which policy is enforced.

use std::fmt;

use smol_str::{SmolStr, format_smolstr};
use towpath_dataplane::link::ProgramHook;

use super::{Survey, SurveyedProgram};
use crate::source::names;

/// Why policy could not be enforced.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ObstacleKind {
    /// Another agent's eBPF programs forward packets themselves.
    EbpfDataplane,
    /// IPVS sends packets on without the forward hook.
    Ipvs,
    /// A flowtable carries established connections past the forward hook.
    Flowtable,
    /// Open vSwitch forwards packets itself.
    OpenVswitch,
    /// The host does not see packets of pods at all.
    NotSeen,
}

/// Something that carries packets of pods past the hooks in which policy is enforced.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Obstacle {
    /// Which kind.
    pub kind: ObstacleKind,
    /// What was found.
    pub what: String,
    /// Why it is in the way.
    pub why: &'static str,
    /// What to do.
    pub way_out: &'static str,
}

impl fmt::Display for Obstacle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}; {}", self.what, self.why, self.way_out)
    }
}

/// Something worth knowing that hinders nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Note {
    /// A program of which nobody knows what it does.
    Program {
        /// The interface.
        interface: SmolStr,
        /// Where it hangs.
        hook: ProgramHook,
        /// Its name, if it is known.
        name: Option<SmolStr>,
    },
    /// Programs that only filter: both they and we must allow.
    Filter {
        /// Whose they are.
        owner: &'static str,
    },
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Program {
                interface,
                hook,
                name,
            } => {
                let hook = match hook {
                    ProgramHook::Xdp => "XDP",
                    ProgramHook::Ingress => "tc ingress",
                    ProgramHook::Egress => "tc egress",
                };
                let name = name.as_deref().unwrap_or("without a name");
                write!(
                    formatter,
                    "an unknown program ({name}) at {interface}, {hook}; what it redirects is not judged"
                )
            }
            Self::Filter { owner } => write!(
                formatter,
                "{owner} filters packets too; what either denies is denied"
            ),
        }
    }
}

/// Whose programs they are, by the beginnings of their names.
struct Row {
    prefix: &'static str,
    owner: &'static str,
    /// Whether they forward packets themselves.
    is_dataplane: bool,
}

const PROGRAMS: [Row; 7] = [
    Row {
        prefix: "cil_",
        owner: "Cilium",
        is_dataplane: true,
    },
    Row {
        prefix: "bpf_lxc",
        owner: "Cilium",
        is_dataplane: true,
    },
    Row {
        prefix: "bpf_host",
        owner: "Cilium",
        is_dataplane: true,
    },
    Row {
        prefix: "cali_tc",
        owner: "Calico's eBPF dataplane",
        is_dataplane: true,
    },
    Row {
        prefix: "calico_tc",
        owner: "Calico's eBPF dataplane",
        is_dataplane: true,
    },
    Row {
        prefix: "handle_ingress",
        owner: "Amazon's network policy agent",
        is_dataplane: false,
    },
    Row {
        prefix: "handle_egress",
        owner: "Amazon's network policy agent",
        is_dataplane: false,
    },
];

/// Interfaces by which a dataplane is known, by the whole name.
struct Device {
    name: &'static str,
    owner: &'static str,
    kind: ObstacleKind,
}

const DEVICES: [Device; 9] = [
    Device {
        name: "cilium_host",
        owner: "Cilium",
        kind: ObstacleKind::EbpfDataplane,
    },
    Device {
        name: "cilium_net",
        owner: "Cilium",
        kind: ObstacleKind::EbpfDataplane,
    },
    Device {
        name: "bpfout.cali",
        owner: "Calico's eBPF dataplane",
        kind: ObstacleKind::EbpfDataplane,
    },
    Device {
        name: "bpfin.cali",
        owner: "Calico's eBPF dataplane",
        kind: ObstacleKind::EbpfDataplane,
    },
    Device {
        name: "kube-ipvs0",
        owner: "kube-proxy in IPVS mode",
        kind: ObstacleKind::Ipvs,
    },
    Device {
        name: "antrea-gw0",
        owner: "Antrea",
        kind: ObstacleKind::OpenVswitch,
    },
    Device {
        name: "ovn-k8s-mp0",
        owner: "OVN-Kubernetes",
        kind: ObstacleKind::OpenVswitch,
    },
    Device {
        name: "ovn0",
        owner: "Kube-OVN",
        kind: ObstacleKind::OpenVswitch,
    },
    Device {
        name: "kube-dummy-if",
        owner: "kube-router's service proxy",
        kind: ObstacleKind::Ipvs,
    },
];

fn obstacle(kind: ObstacleKind, what: String) -> Obstacle {
    let (why, way_out) = match kind {
        ObstacleKind::EbpfDataplane => (
            "its eBPF programs forward packets of pods past nftables",
            "use its own network policies on this node, or remove it; it needs a reboot, or its own clean-up, to be gone",
        ),
        ObstacleKind::Ipvs => (
            "IPVS sends packets to Services on without the forward hook",
            "run kube-proxy in nftables or iptables mode, and remove kube-ipvs0 (kube-proxy --cleanup)",
        ),
        ObstacleKind::Flowtable => (
            "what it has taken over passes no chain any more, so a policy that changes is not seen",
            "remove the flowtable, or leave pods' interfaces out of it",
        ),
        ObstacleKind::OpenVswitch => (
            "Open vSwitch forwards packets of pods past nftables",
            "use its own network policies on this node",
        ),
        ObstacleKind::NotSeen => (
            "packets of such pods do not pass the host's hooks",
            "use a plugin with a bridge or routed interfaces for pods that need policy",
        ),
    };
    Obstacle {
        kind,
        what,
        why,
        way_out,
    }
}

/// Everything in the way, and everything worth knowing; each once, in order.
pub(super) fn find(survey: &Survey) -> (Vec<Obstacle>, Vec<Note>) {
    let mut obstacles = Vec::new();
    let mut notes = Vec::new();
    devices(survey, &mut obstacles);
    for program in &survey.programs {
        judge(program, &mut obstacles, &mut notes);
    }
    flowtables(survey, &mut obstacles);
    plugins(survey, &mut obstacles);
    obstacles.sort_unstable();
    obstacles.dedup();
    notes.sort_unstable();
    notes.dedup();
    (obstacles, notes)
}

fn devices(survey: &Survey, obstacles: &mut Vec<Obstacle>) {
    for link in &survey.links {
        if let Some(device) = DEVICES.iter().find(|device| link.name == device.name) {
            obstacles.push(obstacle(
                device.kind,
                format!("{} ({})", device.owner, link.name),
            ));
        } else if link.has_peer && names::provider(&link.name) == Some("cilium") {
            obstacles.push(obstacle(
                ObstacleKind::EbpfDataplane,
                "Cilium (lxc interfaces)".to_owned(),
            ));
        }
    }
}

fn judge(program: &SurveyedProgram, obstacles: &mut Vec<Obstacle>, notes: &mut Vec<Note>) {
    let name = program.name.as_deref().unwrap_or_default();
    match PROGRAMS.iter().find(|row| name.starts_with(row.prefix)) {
        Some(row) if row.is_dataplane => {
            let what = format!("{} (program {name} at {})", row.owner, program.interface);
            obstacles.push(obstacle(ObstacleKind::EbpfDataplane, what));
        }
        Some(row) => notes.push(Note::Filter { owner: row.owner }),
        None => notes.push(Note::Program {
            interface: program.interface.clone(),
            hook: program.hook,
            name: program.name.clone(),
        }),
    }
}

/// A flowtable hinders where it can carry packets of pods: with an interface of a pod or a bridge of pods. One between
/// uplinks does not concern pods, and one without interfaces carries nothing.
fn flowtables(survey: &Survey, obstacles: &mut Vec<Obstacle>) {
    for flowtable in &survey.flowtables {
        let concerned = flowtable.interfaces.iter().find(|name| {
            let link = survey.links.iter().find(|link| link.name == **name);
            link.is_some_and(|link| link.has_peer || link.kind.as_deref() == Some("bridge"))
        });
        if let Some(interface) = concerned {
            let what = format!(
                "the flowtable {} of table {} with {interface}",
                flowtable.name, flowtable.table
            );
            obstacles.push(obstacle(ObstacleKind::Flowtable, what));
        }
    }
}

fn plugins(survey: &Survey, obstacles: &mut Vec<Obstacle>) {
    let first = survey
        .conflist
        .as_ref()
        .and_then(|conflist| conflist.plugins.first());
    let Some(plugin) = first else {
        return;
    };
    let kind = match plugin.as_str() {
        "cilium-cni" => ObstacleKind::EbpfDataplane,
        "antrea" | "ovn-k8s-cni-overlay" | "kube-ovn" => ObstacleKind::OpenVswitch,
        "macvlan" | "ipvlan" | "host-device" | "sriov" => ObstacleKind::NotSeen,
        _ => return,
    };
    let what = format_smolstr!("the CNI plugin {plugin}");
    obstacles.push(obstacle(kind, what.to_string()));
}
