//! The control plane of the test bed itself: it is real, it is apart from the host, and it comes back.

use std::collections::BTreeSet;
use std::process::Command;

use serde_json::json;
use towpath_tests::cluster::{Alone, ControlPlaneConfig, Crowd, View};
use towpath_tests::{netns, require, tools};

#[test]
fn applied_objects_are_there_and_withdrawn_ones_are_gone() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: applied}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: closed, namespace: applied}
spec: {podSelector: {}}
";
    let path = "/apis/networking.k8s.io/v1/namespaces/applied/networkpolicies/closed";

    plane.api().apply(text).unwrap();
    let policy = plane.api().get(path).unwrap();
    plane.api().withdraw(text).unwrap();

    assert_eq!(policy["spec"]["podSelector"], json!({}));
    assert_eq!(plane.api().find(path).unwrap(), None);
}

#[test]
fn service_account_may_do_what_its_role_says_and_nothing_else() {
    require!("kubernetes", Root, KubernetesServers);
    let plane = &Alone::shared().unwrap().plane;
    plane
        .api()
        .apply(
            "\
apiVersion: v1
kind: ServiceAccount
metadata: {name: reader, namespace: default}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [nodes], verbs: [list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{kind: ServiceAccount, name: reader, namespace: default}]
",
        )
        .unwrap();
    let token = plane.api().service_token("default", "reader").unwrap();
    let reader = plane.api().with_token(&token);

    let status = |path: &str| reader.request("GET", path, "", "").unwrap().status;

    assert_eq!(status("/api/v1/nodes"), 200);
    assert_eq!(status("/api/v1/secrets"), 403);
    assert_eq!(
        plane
            .api()
            .with_token("guessed")
            .request("GET", "/api/v1/nodes", "", "")
            .unwrap()
            .status,
        401
    );
}

#[test]
fn kubectl_works_from_the_host() {
    require!("kubernetes", Root, KubernetesServers, Kubectl);
    let plane = &Alone::shared().unwrap().plane;
    let mut command = Command::new(tools::kubectl().unwrap());
    command.arg("--kubeconfig").arg(plane.kubeconfig());

    let text = netns::run(command.args(["get", "namespaces", "-o", "name"])).unwrap();

    assert!(text.contains("namespace/kube-system"), "{text}");
}

#[test]
fn server_that_crashed_comes_back_with_everything_and_two_runs_do_not_meet() {
    require!("kubernetes", Root, KubernetesServers);
    let shared = Alone::shared().unwrap();
    let mut other = Alone::start(&ControlPlaneConfig::default()).unwrap();
    other
        .plane
        .api()
        .apply("{apiVersion: v1, kind: Namespace, metadata: {name: only-there}}")
        .unwrap();

    other.plane.stop_server();
    let while_down = other.plane.api().is_ready();
    other.plane.start_server().unwrap();

    assert!(!while_down);
    let path = "/api/v1/namespaces/only-there";
    assert!(other.plane.api().find(path).unwrap().is_some());
    assert_eq!(shared.plane.api().find(path).unwrap(), None);
    assert_ne!(other.plane.url(View::Host), shared.plane.url(View::Host));
}

#[test]
fn watch_since_a_forgotten_version_is_told_to_list_anew() {
    require!("kubernetes", Root, KubernetesServers);
    let mut alone = Alone::start(&ControlPlaneConfig::default()).unwrap();
    let api = alone.plane.api().clone();
    let list = api.get("/api/v1/configmaps").unwrap();
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    for name in ["one", "two"] {
        let object =
            json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name } });
        api.create("/api/v1/namespaces/default/configmaps", &object)
            .unwrap();
    }

    alone.plane.compact().unwrap();
    // What the API server remembers itself goes with it.
    alone.plane.stop_server();
    alone.plane.start_server().unwrap();
    let path = format!("/api/v1/configmaps?watch=1&timeoutSeconds=2&resourceVersion={version}");
    let answer = api.request("GET", &path, "", "").unwrap();

    let code = answer.body["object"]["code"].as_u64();
    assert!(answer.status == 410 || code == Some(410), "{answer:?}");
}

#[test]
fn crowd_is_as_large_as_asked_for_and_every_pod_has_an_address_of_its_own() {
    require!("kubernetes", Root, KubernetesServers);
    let alone = Alone::start(&ControlPlaneConfig::default()).unwrap();
    let crowd = Crowd {
        nodes: 20,
        pods: 300,
        namespaces: 5,
    };

    crowd.enter(&alone.plane).unwrap();

    let api = alone.plane.api();
    let count = |path: &str| api.get(path).unwrap()["items"].as_array().unwrap().len();
    assert_eq!(count("/api/v1/nodes"), 20);
    let pods = api.get("/api/v1/pods").unwrap();
    let addresses: BTreeSet<&str> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| pod["status"]["podIP"].as_str().unwrap())
        .collect();
    assert_eq!(addresses.len(), 300);
    assert_eq!(count("/api/v1/namespaces/crowd-4/pods"), 60);
}
