//! Manifests in, findings out.

use towpath_api::Outcome;
use towpath_core::model::Update;

use super::*;

/// Namespaces a and b, a node, and pods a/web, a/db and b/web.
const WORLD: &str = "
---
{apiVersion: v1, kind: Namespace, metadata: {name: a, labels: {team: x}}}
---
{apiVersion: v1, kind: Namespace, metadata: {name: b}}
---
{apiVersion: v1, kind: Node, metadata: {name: n}, spec: {podCIDR: 10.244.1.0/24}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: a, labels: {app: web}}, spec: {containers: [{ports: [{name: http, containerPort: 80}]}]}, status: {podIP: 10.244.1.1}}
---
{apiVersion: v1, kind: Pod, metadata: {name: db, namespace: a, labels: {app: db}}, status: {podIP: 10.244.1.2}}
---
{apiVersion: v1, kind: Pod, metadata: {name: web, namespace: b, labels: {app: web}}, spec: {containers: [{ports: [{name: dns, containerPort: 53, protocol: UDP}]}]}, status: {podIP: 10.244.1.3}}
";

fn findings_of(text: &str) -> Vec<String> {
    let (mut cluster, mut places) = (Cluster::default(), BTreeMap::new());
    for document in towpath_api::read("f", text.as_bytes()) {
        let Outcome::Object { object, .. } = document.outcome else {
            panic!("{document:?}")
        };
        places.insert(
            object.key(),
            Place {
                file: "f".into(),
                line: document.line,
            },
        );
        cluster.apply(Update::Upsert(object));
    }
    lint(&cluster, &places)
        .iter()
        .map(ToString::to_string)
        .collect()
}

/// Findings about further manifests in that world, without the file.
fn lint_with(text: &str) -> Vec<String> {
    let lines = WORLD.lines().count();
    let mut findings = findings_of(&format!("{WORLD}{text}"));
    for finding in &mut findings {
        let (place, rest) = finding.split_once(": ").expect("a place");
        let line: usize = place
            .strip_prefix("f:")
            .expect("a file")
            .parse()
            .expect("a line");
        *finding = format!("{}: {rest}", line.saturating_sub(lines));
    }
    findings
}

fn policy(spec: &str) -> String {
    format!(
        "---\n{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: p, namespace: a}}, spec: {spec}}}\n"
    )
}

fn cluster_policy(name: &str, priority: u16, rules: &str) -> String {
    format!(
        "---\n{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, spec: {{tier: Admin, priority: {priority}, subject: {{namespaces: {{}}}}, {rules}}}}}\n"
    )
}

/// Each text with what is said about it, if anything.
fn assert_findings(table: &[(String, &[&str])]) {
    for (text, expected) in table {
        assert_eq!(lint_with(text), *expected, "{text}");
    }
}

const NONE: &[&str] = &[];

#[test]
fn a_sound_world_is_clean() {
    assert_eq!(findings_of(WORLD), NONE);
}

#[test]
fn policies_without_pods_are_told() {
    assert_findings(&[
        (policy("{podSelector: {matchLabels: {app: web}}}"), NONE),
        (policy("{podSelector: {matchLabels: {app: wbe}}}"),
            &["2: warning: NetworkPolicy a/p: spec: the policy selects no pod; compare its selector with the labels of the pods it is meant for"]),
        ("---\n{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: p, namespace: c}}\n".to_owned(),
            &["2: warning: NetworkPolicy c/p: spec: the policy selects nothing: there is no namespace c; correct metadata.namespace, or add the namespace's manifest"]),
    ]);
    assert_eq!(
        findings_of(&policy("{}")),
        NONE,
        "policies without any pod are a library"
    );
}

#[test]
fn a_dash_too_many_is_told() {
    let message = "2: warning: NetworkPolicy a/p: spec.ingress[0].from[0]: this peer and the next are two: all pods of some namespaces, or some pods of the own namespace; to mean some pods of these namespaces, write both selectors under one '-'; else swap the peers apart or ignore this";
    let rule = |peers: &str| policy(&format!("{{ingress: [{{from: [{peers}]}}]}}"));
    assert_findings(&[
        (
            rule(
                "{namespaceSelector: {matchLabels: {team: x}}}, {podSelector: {matchLabels: {app: web}}}",
            ),
            &[message],
        ),
        (
            rule("{podSelector: {matchLabels: {app: web}}}, {namespaceSelector: {}}"),
            &[message],
        ),
        (
            rule(
                "{namespaceSelector: {matchLabels: {team: x}}, podSelector: {matchLabels: {app: web}}}",
            ),
            NONE,
        ),
        (
            rule("{namespaceSelector: {}}, {namespaceSelector: {matchLabels: {team: x}}}"),
            NONE,
        ),
        (
            rule("{podSelector: {}}, {namespaceSelector: {matchLabels: {team: x}}}"),
            NONE,
        ),
    ]);
}

#[test]
fn named_ports_that_nobody_serves_are_told() {
    let message = |path: &str, whose: &str, port: &str| {
        format!(
            "2: warning: NetworkPolicy a/p: {path}: no pod that the {whose} declares a {port}, so this port matches nothing; correct the name or the protocol, or write the number; blocks and nodes have no named ports"
        )
    };
    let ingress = |port: &str| policy(&format!("{{ingress: [{{ports: [{port}]}}]}}"));
    let egress = |peers: &str| {
        policy(&format!(
            "{{policyTypes: [Egress], egress: [{{to: [{peers}], ports: [{{port: dns, protocol: UDP}}]}}]}}"
        ))
    };
    let (wrong_name, wrong_protocol, no_peer) = (
        message("spec.ingress[0]", "policy selects", "tcp port named https"),
        message("spec.ingress[0]", "policy selects", "udp port named http"),
        message("spec.egress[0]", "rule names", "udp port named dns"),
    );
    assert_findings(&[
        (ingress("{port: http}"), NONE),
        (ingress("{port: https}"), &[&wrong_name]),
        (ingress("{port: http, protocol: UDP}"), &[&wrong_protocol]),
        (egress("{namespaceSelector: {}}"), NONE),
        (egress("{ipBlock: {cidr: 192.0.2.0/24}}"), &[&no_peer]),
    ]);
}

#[test]
fn egress_without_name_resolution_is_told() {
    let message = "2: warning: NetworkPolicy a/p: spec.egress: 2 pods, a/db among them, may reach other pods but no name server: no policy lets them out to UDP port 53; add an egress rule to the cluster's DNS pods with UDP and TCP port 53";
    let egress = |rules: &str| policy(&format!("{{policyTypes: [Egress], egress: [{rules}]}}"));
    let to_db = "{to: [{podSelector: {matchLabels: {app: db}}}]}";
    let to_db_only = "{to: [{podSelector: {matchLabels: {app: db}}}], ports: [{port: 5432}]}";
    let dns = "{to: [{namespaceSelector: {}}], ports: [{port: 53, protocol: UDP}]}";
    let second = egress(dns).replace("name: p,", "name: q,");
    let admin = cluster_policy(
        "dns",
        1,
        "egress: [{action: Accept, to: [{namespaces: {}}], protocols: [{destinationNamedPort: dns}]}]",
    );
    assert_findings(&[
        (egress(to_db_only), &[message]),
        (egress(to_db), NONE),
        (egress(&format!("{to_db_only}, {dns}")), NONE),
        (egress(to_db_only) + &second, NONE),
        (egress(to_db_only) + &admin, NONE),
        (egress(""), NONE),
        (
            egress("{to: [{ipBlock: {cidr: 192.0.2.1/32}}], ports: [{port: 443}]}"),
            NONE,
        ),
    ]);
}

#[test]
fn blocks_over_pods_and_services_are_told() {
    let ingress = |block: &str| {
        policy(&format!(
            "{{ingress: [{{from: [{{ipBlock: {{{block}}}}}]}}]}}"
        ))
    };
    let egress = |block: &str| {
        policy(&format!(
            "{{policyTypes: [Egress], egress: [{{to: [{{ipBlock: {{{block}}}}}]}}]}}"
        ))
    };
    assert_findings(&[
        (
            ingress("cidr: 10.244.1.7/32"),
            &[
                "2: warning: NetworkPolicy a/p: spec.ingress[0].from: the block 10.244.1.7/32 lies in the pod addresses 10.244.1.0/24, which change with every restart; select pods by labels instead",
            ],
        ),
        (
            ingress("cidr: 0.0.0.0/0"),
            &[
                "2: note: NetworkPolicy a/p: spec.ingress[0].from: the block 0.0.0.0/0 matches pods too: 10.244.1.0/24 lies in it; if only outside addresses are meant, cut the pod addresses out with except, or a rule before this one",
            ],
        ),
        (ingress("cidr: 0.0.0.0/0, except: [10.244.0.0/16]"), NONE),
        (ingress("cidr: 192.168.0.0/16"), NONE),
        (
            egress("cidr: 10.96.0.1/32"),
            &[
                "2: note: NetworkPolicy a/p: spec.egress[0].to: the block 10.96.0.1/32 looks like addresses of Services, which no packet has when it is judged; name the pods behind the Service, or for the API server the addresses of its nodes",
            ],
        ),
        (ingress("cidr: 10.96.0.1/32"), NONE),
    ]);
}

#[test]
fn equal_priorities_are_told() {
    let rule = |port: u16| {
        format!(
            "ingress: [{{action: Deny, from: [{{namespaces: {{}}}}], protocols: [{{tcp: {{destinationPort: {{number: {port}}}}}}}]}}]"
        )
    };
    let egress = "egress: [{action: Deny, to: [{namespaces: {}}]}]";
    assert_findings(&[
        (
            cluster_policy("x", 5, &rule(1)) + &cluster_policy("y", 5, &rule(2)),
            &[
                "4: warning: ClusterNetworkPolicy y: spec.priority: x has priority 5 in tier Admin too; which comes first is up to the implementation (here: by name); give each policy of a tier its own priority",
            ],
        ),
        (
            cluster_policy("x", 5, &rule(1)) + &cluster_policy("y", 6, &rule(2)),
            NONE,
        ),
        (
            cluster_policy("x", 5, &rule(1)) + &cluster_policy("y", 5, egress),
            NONE,
        ),
        (
            cluster_policy("x", 5, &rule(1))
                + &cluster_policy("y", 5, &rule(2)).replace("tier: Admin", "tier: Baseline"),
            NONE,
        ),
    ]);
}

#[test]
fn shadowed_rules_are_told() {
    let message = "2: warning: ClusterNetworkPolicy x: spec.egress[1]: this rule is never reached: spec.egress[0] matches all that it matches; put the narrower rule first, or remove it";
    let pair = |first: &str, second: &str| {
        cluster_policy(
            "x",
            1,
            &format!("egress: [{{action: Pass, {first}}}, {{action: Deny, {second}}}]"),
        )
    };
    let (all, team) = (
        "to: [{namespaces: {}}]",
        "to: [{namespaces: {matchLabels: {team: x}}}]",
    );
    let web = "to: [{pods: {podSelector: {matchLabels: {app: web}}}}]";
    let nets = |net: &str| format!("to: [{{networks: [{net}]}}]");
    let tcp = |peers: &str, port: &str| {
        format!("{peers}, protocols: [{{tcp: {{destinationPort: {port}}}}}]")
    };
    assert_findings(&[
        (pair(all, all), &[message]),
        (pair(all, team), &[message]),
        (pair(all, web), &[message]),
        (pair(team, all), NONE),
        (pair(web, team), NONE),
        (pair(all, &nets("192.0.0.0/8")), NONE),
        (
            pair(&nets("192.0.0.0/8"), &nets("192.0.2.0/24")),
            &[message],
        ),
        (pair(&nets("192.0.2.0/24"), &nets("192.0.0.0/8")), NONE),
        (pair(all, &tcp(team, "{number: 80}")), &[message]),
        (pair(&tcp(all, "{number: 80}"), team), NONE),
        (
            pair(
                &tcp(all, "{range: {start: 1, end: 99}}"),
                &tcp(all, "{number: 80}"),
            ),
            &[message],
        ),
        (
            pair(&tcp(all, "{number: 80}"), &tcp(all, "{number: 81}")),
            NONE,
        ),
    ]);
    let rule = "egress: [{action: Deny, to: [{namespaces: {}}]}]";
    assert_findings(&[(
        cluster_policy("x", 1, rule) + &cluster_policy("y", 2, rule),
        &[
            "4: warning: ClusterNetworkPolicy y: spec.egress[0]: this rule is never reached: spec.egress[0] of x matches all that it matches; put the narrower rule first, or remove it",
        ],
    )]);
}

#[test]
fn pods_that_stay_closed_are_told() {
    let pod = |name: &str, rest: &str| {
        format!(
            "---\n{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: c}}, {rest}}}\n"
        )
    };
    assert_findings(&[
        (
            pod("x", "status: {}") + &pod("y", "status: {}"),
            &[
                "2: error: Pod c/x: metadata.namespace: namespace c has no manifest, so its 2 pods stay closed; add the manifest of namespace c, with its labels",
            ],
        ),
        (
            pod("x", "status: {}"),
            &[
                "2: error: Pod c/x: metadata.namespace: namespace c has no manifest, so this pod stays closed; add the manifest of namespace c, with its labels",
            ],
        ),
        (pod("x", "status: {phase: Failed}"), NONE),
        (
            pod("x", "status: {podIP: 10.244.1.1}").replace("namespace: c", "namespace: b"),
            &[
                "2: error: Pod b/x: the address 10.244.1.1 is also that of a/web; on its node it stays closed; remove the one that is gone, or correct its address",
            ],
        ),
        (
            pod("x", "status: {podIP: 10.244.1.1, phase: Succeeded}")
                .replace("namespace: c", "namespace: b"),
            NONE,
        ),
    ]);
}

#[test]
fn pods_on_the_host_network_are_told_where_a_policy_seems_to_protect_them() {
    let pod = "---\n{apiVersion: v1, kind: Pod, metadata: {name: h, namespace: a}, spec: {hostNetwork: true}}\n";
    assert_findings(&[
        (pod.to_owned(), NONE),
        (
            policy("{}") + pod,
            &[
                "4: note: Pod a/h: spec.hostNetwork: NetworkPolicy a/p seems to select this pod, but no policy applies to pods on the host network; protect the node itself, or take the pod off the host network",
            ],
        ),
    ]);
}
