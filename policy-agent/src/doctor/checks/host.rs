//! The kernel and its settings.

use super::super::facts::{Facts, LinkFacts};
use super::super::{RIGHTS, Said, Severity, seen};

/// Major and minor number of a release.
pub(super) fn version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|character: char| !character.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// What this kernel guarantees.
pub(super) fn kernel(facts: &Facts) -> Vec<Said> {
    seen(&facts.kernel, |release| {
        let Some(version) = version(release) else {
            return Said::unseen(&format!("the release {release:?} is no version"), "");
        };
        match version {
            (..5, _) => vec![Said::new(
                Severity::Serious,
                format!("Linux {release}"),
                "bridges of this kernel cannot be switched one by one, so pods of one node would not be judged",
                "use Linux 5.10 or later",
            )],
            (5, ..10) => vec![Said::new(
                Severity::Warning,
                format!("Linux {release}"),
                "it is older than what this program is tried on",
                "use Linux 5.10 or later",
            )],
            (5, _) | (6, ..9) => vec![Said::new(
                Severity::Note,
                format!("Linux {release}: rules outlive the agent; others may change them"),
                "tables of this kernel cannot outlive their owner (6.9), so they are plain; the agent hears of a change and puts it right",
                "",
            )],
            _ => Said::ok(format!(
                "Linux {release}: rules outlive the agent, and nobody else can change them while it runs"
            )),
        }
    })
}

/// The program `nft`, which is needed to look at rules only.
pub(super) fn nft_program(facts: &Facts) -> Vec<Said> {
    let Some(line) = &facts.nft_program else {
        return Said::ok("no program nft here; only looking at rules by hand needs it");
    };
    let number = line
        .split_whitespace()
        .find_map(|word| word.strip_prefix('v'))
        .unwrap_or_default();
    let mut parts = number
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let version = [(); 3].map(|()| parts.next().unwrap_or(0));
    if version < [1, 0, 0] {
        return vec![Said::new(
            Severity::Note,
            format!("nft {number}"),
            "it is too old to show our rules as they are, and listing may fail",
            "look at rules with nft 1.0 or later; the agent itself does not use it",
        )];
    }
    Said::ok(format!("nft {number}"))
}

/// Whether the inet hooks see what pod bridges forward.
pub(super) fn bridge_netfilter(facts: &Facts) -> Vec<Said> {
    let Some(links) = facts.links.get() else {
        return seen(&facts.links, |_| Vec::new());
    };
    if facts.pod_bridges.is_empty() {
        return Said::ok("no pod is on a bridge");
    }
    seen(&facts.has_bridge_netfilter, |is_there| {
        if !is_there {
            return vec![Said::new(
                Severity::Serious,
                "the module br_netfilter is missing",
                "packets between pods of this node pass no policy, and Flannel in iptables mode does not start",
                "load it now and at boot: modprobe br_netfilter, and its name in a file of /etc/modules-load.d",
            )];
        }
        let bridges: Vec<&LinkFacts> = links
            .iter()
            .filter(|link| facts.pod_bridges.contains(&link.name))
            .collect();
        let said: Vec<Said> = bridges
            .iter()
            .filter(|link| !is_filtered(facts, link))
            .map(|link| switched_off(facts, link))
            .collect();
        if !said.is_empty() {
            return said;
        }
        if bridges.is_empty() {
            return Said::ok("br_netfilter is there; the bridge comes with the first pod");
        }
        Said::ok("br_netfilter is there, and pod bridges hand their packets over")
    })
}

fn is_filtered(facts: &Facts, link: &LinkFacts) -> bool {
    let settings = &facts.settings;
    let own = link.bridge;
    let is_on = |own: Option<bool>, all: Option<bool>| own == Some(true) || all == Some(true);
    is_on(
        own.map(|own| own.nf_call_iptables),
        settings.all_bridges_ipv4,
    ) && is_on(
        own.map(|own| own.nf_call_ip6tables),
        settings.all_bridges_ipv6,
    )
}

fn switched_off(facts: &Facts, link: &LinkFacts) -> Said {
    let what = format!(
        "{} does not hand packets between its ports to netfilter",
        link.name
    );
    if matches!(facts.agent.get(), Some(Some(_))) {
        return Said::new(
            Severity::Serious,
            what,
            "packets between pods of this node pass no policy, although an agent runs: somebody switched it off",
            "find who sets nf_call_iptables of this bridge; the agent's log says when",
        );
    }
    Said::new(
        Severity::Note,
        what,
        "packets between pods of this node pass no policy",
        "nothing: the agent switches it on, on this bridge only",
    )
}

/// Whether this host forwards packets at all.
pub(super) fn forwarding(facts: &Facts) -> Vec<Said> {
    let Some(forwards_ipv4) = facts.settings.forwards_ipv4 else {
        return Said::unseen("net.ipv4.ip_forward cannot be read", RIGHTS);
    };
    let networks = facts
        .flannel
        .get()
        .map(|flannel| flannel.facts.pod_networks);
    let has_ipv6 = networks.is_some_and(|networks| networks.ipv6.is_some());
    let has_ipv4 = networks.is_none_or(|networks| networks.ipv4.is_some() || networks.is_empty());
    let mut said = Vec::new();
    let off = |name: &str| {
        Said::new(
            Severity::Serious,
            format!("{name} is 0"),
            "pods reach neither other nodes nor anything outside",
            format!("set {name} = 1 in a file of /etc/sysctl.d, and load it with sysctl --system"),
        )
    };
    if has_ipv4 && !forwards_ipv4 {
        said.push(off("net.ipv4.ip_forward"));
    }
    if has_ipv6 && facts.settings.forwards_ipv6 == Some(false) {
        said.push(off("net.ipv6.conf.all.forwarding"));
    }
    if said.is_empty() {
        said = Said::ok("this host forwards packets");
    }
    said
}

/// Strict reverse path filters drop without a trace.
pub(super) fn reverse_path(facts: &Facts) -> Vec<Said> {
    seen(&facts.links, |links| {
        let uplinks = links.iter().filter(|link| link.has_default_route).count();
        let is_concerned = |link: &&LinkFacts| {
            link.reverse_path == Some(1)
                && (link.name.starts_with("flannel")
                    || facts.pod_bridges.contains(&link.name)
                    || link.has_default_route && uplinks > 1)
        };
        let strict: Vec<&str> = links
            .iter()
            .filter(is_concerned)
            .map(|link| link.name.as_str())
            .collect();
        if strict.is_empty() {
            return Said::ok("no strict reverse path filter in the way of pods");
        }
        vec![Said::new(
            Severity::Note,
            format!("rp_filter is strict on {}", strict.join(", ")),
            "a packet is dropped without a trace when its answer would leave by another interface, as with several uplinks",
            "if packets of other nodes get lost, set net.ipv4.conf.INTERFACE.rp_filter = 2",
        )]
    })
}

/// Whether connection tracking has room, and remembers long enough.
pub(super) fn conntrack(facts: &Facts) -> Vec<Said> {
    /// Below this share there is room for a storm.
    const NEARLY_FULL: u64 = 80;
    const FULL: u64 = 95;
    /// Shorter than the keepalives of most programs (RFC 5382 asks for at least two hours).
    const SHORT_SECONDS: u64 = 7_200;
    let settings = &facts.settings;
    let (Some(count), Some(most)) = (settings.connections, settings.most_connections) else {
        return Said::unseen(
            "connection tracking has no settings here",
            "its module comes with the first rule that needs it",
        );
    };
    let mut said = Vec::new();
    let percent = count.saturating_mul(100).checked_div(most).unwrap_or(0);
    if most > 0 && percent >= NEARLY_FULL {
        let severity = if percent >= FULL {
            Severity::Serious
        } else {
            Severity::Warning
        };
        said.push(Said::new(
            severity,
            format!("connection tracking is {percent} % full: {count} of {most}"),
            "once it is full, new connections of everybody on this node are dropped",
            "raise net.netfilter.nf_conntrack_max, or find who opens so many (conntrack -L)",
        ));
    }
    if let Some(seconds) = settings
        .tcp_seconds
        .filter(|seconds| *seconds < SHORT_SECONDS)
    {
        said.push(Said::new(
            Severity::Warning,
            format!("idle TCP connections are forgotten after {seconds} s"),
            "the next packet of such a connection is judged as a new one, by the policy of then, and Services lose it",
            "set net.netfilter.nf_conntrack_tcp_timeout_established to 7200 or more (kube-proxy sets 86400)",
        ));
    }
    if said.is_empty() {
        said = Said::ok(format!("connection tracking holds {count} of {most}"));
    }
    said
}
