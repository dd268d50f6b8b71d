//! The Kubernetes source against a real API server: what it tells while objects come, change and break, while
//! connections and the server itself go away, and in which order.

mod follow;
mod proxy;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use follow::{Follow, NODE, cluster_policy_id, pod_id, policy_id};
use proxy::Proxy;
use towpath_core::model::ObjectKey;
use towpath_tests::cluster::{Alone, ControlPlane, ControlPlaneConfig, Credential, View};
use towpath_tests::{program, require};

fn namespace(name: &str) -> String {
    format!("{{apiVersion: v1, kind: Namespace, metadata: {{name: {name}}}}}\n---\n")
}

fn policy(namespace: &str, name: &str, block: &str) -> String {
    format!(
        "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{podSelector: {{}}, ingress: [{{from: [{{ipBlock: {{cidr: {block}}}}}]}}]}}}}\n---\n"
    )
}

fn pod(namespace: &str, name: &str, node: &str) -> String {
    format!(
        "{{apiVersion: v1, kind: Pod, metadata: {{name: {name}, namespace: {namespace}}}, \
         spec: {{nodeName: {node}, containers: [{{name: c, image: i}}]}}}}\n---\n"
    )
}

fn cluster_policy(name: &str) -> String {
    format!(
        "{{apiVersion: policy.networking.k8s.io/v1alpha2, kind: ClusterNetworkPolicy, metadata: {{name: {name}}}, \
         spec: {{tier: Admin, priority: 1, subject: {{namespaces: {{}}}}, ingress: [{{name: r, action: Deny, from: [{{namespaces: {{}}}}]}}]}}}}\n---\n"
    )
}

fn apply(plane: &ControlPlane, text: &str) {
    plane.api().apply(text).expect("the API server takes it");
}

/// A namespace that takes pods.
fn make_namespace(plane: &ControlPlane, name: &str) {
    apply(plane, &namespace(name));
    plane.wait_account(name).expect("the API server takes it");
}

#[test]
fn the_state_is_told_at_once_and_then_each_change() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    make_namespace(plane, "told");
    let first = policy("told", "first", "10.0.0.0/8")
        + &pod("told", "a", NODE)
        + &pod("told", "b", "there");
    apply(plane, &first);

    let follow = Follow::start(plane.kubeconfig()).unwrap();
    follow.wait_policy("told", "first");
    {
        let told = follow.told();
        assert!(told.cluster.namespaces.contains_key("told"));
        assert!(told.cluster.endpoints.contains_key(&pod_id("told", "a")));
        assert!(told.cluster.endpoints.contains_key(&pod_id("told", "b")));
    }
    follow.wait_in_sync();

    apply(plane, &policy("told", "second", "10.0.0.0/8"));
    plane
        .api()
        .withdraw(&policy("told", "first", "10.0.0.0/8"))
        .unwrap();
    plane.api().withdraw(&pod("told", "b", "there")).unwrap();
    follow.wait("changes", |told| {
        let policies = &told.cluster.policies;
        policies.contains_key(&policy_id("told", "second"))
            && !policies.contains_key(&policy_id("told", "first"))
            && !told.cluster.endpoints.contains_key(&pod_id("told", "b"))
    });
    assert!(follow.told().state.is_in_sync());
}

#[test]
fn a_new_pod_comes_after_its_policies_although_their_watch_is_late() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    make_namespace(plane, "order");
    let proxy = Proxy::start(plane).unwrap();
    let follow = Follow::start(proxy.kubeconfig()).unwrap();
    follow.wait_in_sync();
    proxy.hold("networkpolicies");
    proxy.hold("namespaces");

    let mut waits = Vec::new();
    for round in 0..20 {
        let (rule, name) = (format!("rule-{round}"), format!("pod-{round}"));
        apply(plane, &policy("order", &rule, "10.0.0.0/8"));
        apply(plane, &pod("order", &name, NODE));
        let created = Instant::now();
        follow.wait("the pod", |told| {
            told.cluster.endpoints.contains_key(&pod_id("order", &name))
        });
        let told = follow.told();
        let (_, policies, at) = told
            .pods
            .iter()
            .find(|(id, ..)| *id == pod_id("order", &name))
            .unwrap();
        assert!(
            policies.contains(&policy_id("order", &rule)),
            "{rule} comes after {name}"
        );
        waits.push(at.saturating_duration_since(created));
    }
    waits.sort();
    eprintln!(
        "a new pod is told {:?} (median), {:?} (longest) after its create returned",
        waits[10], waits[19]
    );

    // What the late watch then says is old, removals included.
    plane
        .api()
        .withdraw(&policy("order", "rule-0", "10.0.0.0/8"))
        .unwrap();
    apply(plane, &pod("order", "last", NODE));
    follow.wait("the removal", |told| {
        !told
            .cluster
            .policies
            .contains_key(&policy_id("order", "rule-0"))
    });
    let before = follow.told().batches;
    proxy.release();
    apply(plane, &policy("order", "after", "10.0.0.0/8"));
    follow.wait_policy("order", "after");
    let told = follow.told();
    assert!(told.batches > before);
    assert!(
        !told
            .cluster
            .policies
            .contains_key(&policy_id("order", "rule-0"))
    );
    let of_rule = ObjectKey::Policy(policy_id("order", "rule-1"));
    assert!(
        !told.removed.contains(&of_rule),
        "nothing that is there was taken out"
    );
}

#[test]
fn a_bad_object_is_named_and_the_last_good_version_stays() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    make_namespace(plane, "broken");
    let proxy = Proxy::start(plane).unwrap();
    // A list has bad objects too; a policy without a good version closes what it selects.
    proxy.change("198.51.100.0/24", "198.51.100.0/99");
    apply(plane, &policy("broken", "bad", "198.51.100.0/24"));
    apply(plane, &policy("broken", "good", "192.0.2.0/24"));
    let follow = Follow::start(proxy.kubeconfig()).unwrap();
    follow.wait_in_sync();
    {
        let told = follow.told();
        let stand_in = told
            .cluster
            .policies
            .get(&policy_id("broken", "bad"))
            .expect("a stand-in");
        assert!(stand_in.invalid.is_some());
        let finding = told
            .findings
            .iter()
            .find(|finding| finding.object.as_deref() == Some("NetworkPolicy broken/bad"))
            .expect("it is named");
        assert_eq!(finding.path, "spec.ingress[0].from[0].ipBlock.cidr");
        assert_eq!(told.malformed, [("NetworkPolicy", 1)].into());
    }
    let good = follow
        .told()
        .cluster
        .policies
        .get(&policy_id("broken", "good"))
        .cloned();

    // Now the good one turns bad, and its watch goes on.
    proxy.change("203.0.113.0/24", "nonsense");
    apply(plane, &policy("broken", "good", "203.0.113.0/24"));
    follow.wait("the fault", |told| {
        let object = Some("NetworkPolicy broken/good");
        told.findings
            .iter()
            .any(|finding| finding.object.as_deref() == object)
    });
    apply(plane, &policy("broken", "next", "10.0.0.0/8"));
    follow.wait_policy("broken", "next");
    assert_eq!(
        follow
            .told()
            .cluster
            .policies
            .get(&policy_id("broken", "good"))
            .cloned(),
        good
    );

    assert_eq!(follow.told().malformed, [("NetworkPolicy", 2)].into());

    // A line that is no JSON leads to a list, which says nothing new.
    proxy.change_nothing();
    proxy.change("\"type\":\"ADDED\"", "\"type\":");
    apply(plane, &policy("broken", "cut", "10.0.0.0/8"));
    follow.wait_trouble(&["networkpolicies", "cannot understand"]);
    proxy.change_nothing();
    follow.wait_policy("broken", "cut");
    for name in ["bad", "good"] {
        apply(plane, &policy("broken", name, "10.0.0.0/8"));
    }
    follow.wait("no fault", |told| {
        told.findings.iter().all(|finding| {
            !finding
                .object
                .as_deref()
                .unwrap_or_default()
                .contains("broken/")
        })
    });
    follow.wait_in_sync();
    assert_eq!(follow.removed_policies("broken"), []);
}

#[test]
fn the_rights_of_the_manifest_are_enough_and_without_them_the_missing_one_is_named() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/rbac.yaml");
    apply(plane, &std::fs::read_to_string(manifest).unwrap());
    apply(
        plane,
        "{apiVersion: v1, kind: ServiceAccount, metadata: {name: nobody, namespace: default}}",
    );
    let config = |namespace: &str, account: &str| {
        let token = plane.api().service_token(namespace, account).unwrap();
        plane
            .write_kubeconfig(account, View::Host, Credential::Token(&token))
            .unwrap()
    };
    let (agent, nobody) = (
        config("kube-system", "towpath-agent"),
        config("default", "nobody"),
    );
    let guessed = plane
        .write_kubeconfig("guessed", View::Host, Credential::Token("guessed"))
        .unwrap();

    let follow = Follow::start(&agent).unwrap();
    follow.wait_in_sync();
    make_namespace(plane, "rights");
    apply(plane, &pod("rights", "a", NODE));
    follow.wait("a new pod", |told| {
        told.cluster.endpoints.contains_key(&pod_id("rights", "a"))
    });

    Follow::start(&nobody).unwrap().wait_trouble(&[
        "cannot list resource \"pods\"",
        "grant",
        "deploy/rbac.yaml",
    ]);
    Follow::start(&guessed)
        .unwrap()
        .wait_trouble(&["Unauthorized", "token"]);

    let status = |source: &str| {
        let mut command = Command::new(program::towpath().unwrap());
        command.args(["simulate", "--source", source]);
        command.output().unwrap().status.code()
    };
    let source = |path: &Path| format!("kubernetes:{}", path.display());
    assert_eq!(status(&source(&agent)), Some(0));
    assert_eq!(status(&source(&nobody)), Some(4));
    assert_eq!(status(&source(&guessed)), Some(4));
    assert_eq!(status("kubernetes:/nonexistent/kubeconfig"), Some(2));
    assert_eq!(status("kubernetes"), Some(2));
}

#[test]
fn an_outage_of_the_server_changes_nothing_and_afterwards_only_what_has_changed() {
    require!("kubernetes", Root, KubernetesServers);
    let mut alone = Alone::start(&ControlPlaneConfig::default()).unwrap();
    let plane = &mut alone.plane;
    make_namespace(plane, "outage");
    for name in ["stays", "goes"] {
        apply(plane, &policy("outage", name, "10.0.0.0/8"));
    }
    apply(plane, &pod("outage", "a", NODE));
    let follow = Follow::start(plane.kubeconfig()).unwrap();
    follow.wait_in_sync();
    let before = follow.told().cluster.clone();

    plane.stop_server();
    follow.wait_trouble(&["cannot reach the API server"]);
    assert_eq!(follow.told().cluster, before);

    plane.start_server().unwrap();
    plane
        .api()
        .withdraw(&policy("outage", "goes", "10.0.0.0/8"))
        .unwrap();
    apply(plane, &policy("outage", "comes", "10.0.0.0/8"));
    follow.wait("what has changed", |told| {
        !told
            .cluster
            .policies
            .contains_key(&policy_id("outage", "goes"))
            && told
                .cluster
                .policies
                .contains_key(&policy_id("outage", "comes"))
    });
    follow.wait_in_sync();
    let removed: Vec<_> = follow.told().removed.clone();
    assert_eq!(removed, [ObjectKey::Policy(policy_id("outage", "goes"))]);

    cluster_policies_come_and_go(plane, &follow);
}

#[test]
fn a_watch_whose_version_is_forgotten_leads_to_a_list_that_takes_out_only_what_is_gone() {
    require!("kubernetes", Root, KubernetesServers);
    let mut alone = Alone::start(&ControlPlaneConfig::default()).unwrap();
    let plane = &mut alone.plane;
    make_namespace(plane, "forgotten");
    for name in ["stays", "goes"] {
        apply(plane, &policy("forgotten", name, "10.0.0.0/8"));
    }
    let proxy = Proxy::start(plane).unwrap();
    let follow = Follow::start(proxy.kubeconfig()).unwrap();
    follow.wait_in_sync();
    assert_eq!(follow.told().expired, BTreeMap::new());

    // The source hears nothing more, so it will go on from a version that is forgotten by then.
    proxy.refuse();
    follow.wait_trouble(&["cannot reach the API server"]);
    plane
        .api()
        .withdraw(&policy("forgotten", "goes", "10.0.0.0/8"))
        .unwrap();
    apply(plane, &policy("forgotten", "comes", "10.0.0.0/8"));
    plane.compact().unwrap();
    // What the API server itself remembers goes with it.
    plane.stop_server();
    plane.start_server().unwrap();
    proxy.accept();
    follow.wait_policy("forgotten", "comes");
    follow.wait_in_sync();

    let told = follow.told();
    assert!(
        told.expired.contains_key("NetworkPolicy"),
        "the server did not answer 410: {:?}",
        told.expired
    );
    assert_eq!(
        told.removed,
        [ObjectKey::Policy(policy_id("forgotten", "goes"))]
    );
}

/// On a server of its own, for the kind is there for all.
fn cluster_policies_come_and_go(plane: &ControlPlane, follow: &Follow) {
    plane
        .define_cluster_policies()
        .expect("the API server takes it");
    apply(plane, &cluster_policy("closed"));
    // A new pod does not wait for the next look at the kind.
    apply(plane, &pod("outage", "b", NODE));
    follow.wait("the pod", |told| {
        told.cluster.endpoints.contains_key(&pod_id("outage", "b"))
    });
    {
        let told = follow.told();
        let (_, policies, _) = told
            .pods
            .iter()
            .find(|(id, ..)| *id == pod_id("outage", "b"))
            .expect("the API server takes it");
        assert!(
            policies.contains(&cluster_policy_id("closed")),
            "{policies:?}"
        );
    }

    plane
        .remove_cluster_policies()
        .expect("the API server takes it");
    follow.wait("no policy", |told| {
        !told
            .cluster
            .policies
            .contains_key(&cluster_policy_id("closed"))
    });
    follow.wait_in_sync();

    plane
        .define_cluster_policies()
        .expect("the API server takes it");
    apply(plane, &cluster_policy("again"));
    follow.wait("the policy", |told| {
        told.cluster
            .policies
            .contains_key(&cluster_policy_id("again"))
    });
    follow.wait_in_sync();
}

#[test]
fn connections_that_break_are_nobodys_business() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    make_namespace(plane, "cuts");
    apply(plane, &policy("cuts", "stays", "10.0.0.0/8"));
    let proxy = Proxy::start(plane).unwrap();
    let follow = Follow::start(proxy.kubeconfig()).unwrap();
    follow.wait_in_sync();

    for round in 0..5 {
        let name = format!("rule-{round}");
        apply(plane, &policy("cuts", &name, "10.0.0.0/8"));
        proxy.cut();
        follow.wait_policy("cuts", &name);
    }

    follow.wait_in_sync();
    assert_eq!(follow.removed_policies("cuts"), []);
}
