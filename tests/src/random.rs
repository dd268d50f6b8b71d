//! Random policies as manifests, for a lab whose pods have the labels and ports of [`PODS`].
//!
//! The same seed gives the same policies. Every kind of peer, port and action of both APIs comes up.

use std::fmt::Write as _;

use crate::lab::PodSpec;
use crate::probe::Protocol;

/// Node, namespace, name, label `app`, label `env` if any.
pub const PODS: [(&str, &str, &str, &str, Option<&str>); 8] = [
    ("node-a", "red", "web-1", "web", Some("prod")),
    ("node-b", "red", "web-2", "web", Some("dev")),
    ("node-a", "red", "api-1", "api", None),
    ("node-b", "blue", "web-3", "web", Some("prod")),
    ("node-a", "blue", "api-2", "api", Some("dev")),
    ("node-b", "blue", "db-1", "db", Some("prod")),
    ("node-a", "green", "db-2", "db", None),
    ("node-b", "green", "api-3", "api", Some("dev")),
];

/// Namespaces and their label `team`.
pub const NAMESPACES: [(&str, &str); 3] = [("red", "x"), ("blue", "y"), ("green", "x")];

/// The pods of [`PODS`]. Each serves four ports; `http` is not the same number everywhere.
pub fn pods() -> Vec<PodSpec> {
    let specify = |(node, namespace, name, app, env): (&str, &str, &str, &str, Option<&str>)| {
        let (first, second) = if app == "web" {
            ("http", "alt")
        } else {
            ("alt", "http")
        };
        let mut spec = PodSpec::new(node, namespace, name)
            .label("app", app)
            .port(Some(first), Protocol::Tcp, 80)
            .port(Some(second), Protocol::Tcp, 8080)
            .port(Some("dns"), Protocol::Udp, 53)
            .udp(5000);
        if let Some(env) = env {
            spec = spec.label("env", env);
        }
        spec
    };
    PODS.into_iter().map(specify).collect()
}

/// A stream of choices that a seed decides (`SplitMix64`).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The stream of a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = self.0;
        bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        bits ^ (bits >> 31)
    }

    /// A number below `bound`.
    pub fn below(&mut self, bound: usize) -> usize {
        let bound = u64::try_from(bound).expect("usize has at most 64 bits");
        usize::try_from(self.next_bits() % bound).expect("the bound was a usize")
    }

    /// True once in `n` times.
    pub fn once_in(&mut self, n: usize) -> bool {
        self.below(n) == 0
    }

    /// One of a list.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[self.below(from.len())]
    }
}

/// One manifest with one policy, named by its number.
pub fn policy(random: &mut Random, number: usize) -> String {
    if random.once_in(3) {
        cluster_network_policy(random, number)
    } else {
        network_policy(random, number)
    }
}

fn network_policy(random: &mut Random, number: usize) -> String {
    let namespace = random.pick(&NAMESPACES).0;
    let types = random.pick(&["[Ingress]", "[Egress]", "[Ingress, Egress]", "[Ingress]"]);
    let mut text = format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
         metadata: {{name: p{number}, namespace: {namespace}}}\n\
         spec:\n  podSelector: {}\n  policyTypes: {types}\n",
        pod_selector(random)
    );
    for (direction, list, side) in [("Ingress", "ingress", "from"), ("Egress", "egress", "to")] {
        if !types.contains(direction) {
            continue;
        }
        let rules = random.below(3);
        let _ = writeln!(text, "  {list}:{}", if rules == 0 { " []" } else { "" });
        for _ in 0..rules {
            let _ = writeln!(text, "    - {}", rule(random, side));
        }
    }
    text
}

fn rule(random: &mut Random, side: &str) -> String {
    let mut fields = Vec::new();
    if !random.once_in(6) {
        let count = 1 + random.below(3);
        let peers: Vec<String> = (0..count).map(|_| peer(random)).collect();
        fields.push(format!("{side}: [{}]", peers.join(", ")));
    }
    if !random.once_in(3) {
        let count = 1 + random.below(2);
        let ports: Vec<&str> = (0..count).map(|_| port(random)).collect();
        fields.push(format!("ports: [{}]", ports.join(", ")));
    }
    format!("{{{}}}", fields.join(", "))
}

fn peer(random: &mut Random) -> String {
    match random.below(4) {
        0 => format!("{{podSelector: {}}}", pod_selector(random)),
        1 => format!("{{namespaceSelector: {}}}", namespace_selector(random)),
        2 => format!(
            "{{namespaceSelector: {}, podSelector: {}}}",
            namespace_selector(random),
            pod_selector(random)
        ),
        _ => format!("{{ipBlock: {}}}", block(random)),
    }
}

fn block(random: &mut Random) -> &'static str {
    random.pick(&[
        "{cidr: 0.0.0.0/0}",
        "{cidr: \"::/0\"}",
        "{cidr: 10.244.1.0/24}",
        "{cidr: 10.244.0.0/16, except: [10.244.2.0/30]}",
        "{cidr: 10.244.2.0/29, except: [10.244.2.3/32]}",
        "{cidr: 10.244.1.2/31}",
        "{cidr: \"fd00:10:244::/48\", except: [\"fd00:10:244:1::/64\"]}",
        "{cidr: \"fd00:10:244:2::/125\"}",
        "{cidr: 192.168.77.0/24}",
    ])
}

fn port(random: &mut Random) -> &'static str {
    random.pick(&[
        "{protocol: TCP, port: 80}",
        "{port: 8080}",
        "{protocol: TCP, port: http}",
        "{port: alt}",
        "{protocol: UDP, port: dns}",
        "{protocol: UDP, port: 5000}",
        "{protocol: UDP}",
        "{protocol: TCP}",
        "{protocol: TCP, port: 79, endPort: 8079}",
        "{protocol: UDP, port: 54, endPort: 6000}",
        "{protocol: SCTP, port: 80}",
    ])
}

fn cluster_network_policy(random: &mut Random, number: usize) -> String {
    let tier = random.pick(&["Admin", "Baseline"]);
    // Equal priorities have no defined order, so each policy has its own.
    let priority = number * 10 + random.below(10);
    let mut text = format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\n\
         metadata: {{name: p{number}}}\n\
         spec:\n  tier: {tier}\n  priority: {priority}\n  subject: {{{}}}\n",
        subject(random)
    );
    for (list, side) in [("ingress", "from"), ("egress", "to")] {
        let rules = random.below(3);
        if rules > 0 {
            let _ = writeln!(text, "  {list}:");
        }
        for _ in 0..rules {
            let _ = writeln!(text, "    - {}", cluster_rule(random, side));
        }
    }
    text
}

fn cluster_rule(random: &mut Random, side: &str) -> String {
    let action = random.pick(&["Accept", "Deny", "Pass"]);
    let count = 1 + random.below(2);
    let mut has_networks = false;
    let mut peers = Vec::new();
    for _ in 0..count {
        if side == "to" && random.once_in(3) {
            has_networks = true;
            peers.push(
                random
                    .pick(&[
                        "{networks: [10.244.1.0/24]}",
                        "{networks: [\"fd00:10:244:2::/64\", 10.244.2.4/32]}",
                        "{networks: [0.0.0.0/0, \"::/0\"]}",
                    ])
                    .to_owned(),
            );
        } else {
            peers.push(format!("{{{}}}", subject(random)));
        }
    }
    let mut text = format!("{{action: {action}, {side}: [{}]", peers.join(", "));
    if random.once_in(2) {
        let numbered = [
            "{tcp: {destinationPort: {number: 80}}}",
            "{tcp: {destinationPort: {range: {start: 81, end: 9000}}}}",
            "{udp: {destinationPort: {number: 53}}}",
            "{udp: {}}",
            "{tcp: {}}",
            "{destinationNamedPort: http}",
            "{destinationNamedPort: dns}",
        ];
        // Named ports may not stand beside networks.
        let usable = if has_networks {
            &numbered[..5]
        } else {
            &numbered[..]
        };
        let _ = write!(text, ", protocols: [{}]", random.pick(usable));
    }
    text.push('}');
    text
}

fn subject(random: &mut Random) -> String {
    if random.once_in(2) {
        format!("namespaces: {}", namespace_selector(random))
    } else {
        format!(
            "pods: {{namespaceSelector: {}, podSelector: {}}}",
            namespace_selector(random),
            pod_selector(random)
        )
    }
}

fn pod_selector(random: &mut Random) -> &'static str {
    random.pick(&[
        "{}",
        "{matchLabels: {app: web}}",
        "{matchLabels: {app: api}}",
        "{matchLabels: {app: db, env: prod}}",
        "{matchExpressions: [{key: app, operator: In, values: [web, db]}]}",
        "{matchExpressions: [{key: env, operator: NotIn, values: [prod]}]}",
        "{matchExpressions: [{key: env, operator: Exists}]}",
        "{matchExpressions: [{key: env, operator: DoesNotExist}]}",
        "{matchLabels: {app: nobody}}",
    ])
}

fn namespace_selector(random: &mut Random) -> &'static str {
    random.pick(&[
        "{}",
        "{matchLabels: {team: x}}",
        "{matchLabels: {kubernetes.io/metadata.name: blue}}",
        "{matchExpressions: [{key: team, operator: NotIn, values: [x]}]}",
        "{matchExpressions: [{key: kubernetes.io/metadata.name, operator: In, values: [red, green]}]}",
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_seed_gives_the_same_policies() {
        let policies = |seed| {
            let mut random = Random::new(seed);
            (0..20)
                .map(|number| policy(&mut random, number))
                .collect::<Vec<_>>()
        };

        assert_eq!(policies(7), policies(7));
        assert_ne!(policies(7), policies(8));
    }

    #[test]
    fn every_kind_of_peer_port_and_action_comes_up() {
        let mut random = Random::new(1);
        let text: String = (0..500).map(|number| policy(&mut random, number)).collect();

        for word in [
            "except",
            "endPort",
            "port: http",
            "policyTypes: [Egress]",
            "ingress: []",
            "Admin",
            "Baseline",
            "Accept",
            "Deny",
            "Pass",
            "networks",
            "destinationNamedPort",
            "range",
            "DoesNotExist",
            "NotIn",
            "::/0",
        ] {
            assert!(text.contains(word), "{word}");
        }
    }
}
