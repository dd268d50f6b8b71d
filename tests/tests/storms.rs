//! Storms of changes: labels that flip without a pause, a namespace whose pods all change sides, and a cluster whose pods,
//! policies and namespaces come and go. Nothing forbidden passes meanwhile, nothing allowed breaks, the agent stays
//! ready and small, and what it ends with is what an agent says that has seen only the end.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions, HEALTH_PORT, http_get};
use towpath_tests::cluster::{Api, Crowd, KubernetesConfig};
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::LabConfig;
use towpath_tests::manifest::pod_file;
use towpath_tests::matrix::Flow;
use towpath_tests::probe::Protocol;
use towpath_tests::random::Random;
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

/// What a storm may cost in memory: many times what its objects need, and little beside what its events would.
const MOST_BYTES: f64 = 64.0 * 1024.0 * 1024.0;
/// The node of which agent and kernel are looked at: shop/db and other/guest are there.
const NODE: &str = "node-b";

/// Ingress to shop/db at 53/udp from pods of the namespace with a label, and at 80/tcp from namespaces with one.
const BY_LABELS: &str = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata: {name: by-labels, namespace: shop}
spec:
  podSelector: {matchLabels: {app: db}}
  ingress:
    - from: [{podSelector: {matchLabels: {role: front}}}]
      ports: [{protocol: UDP, port: 53}]
    - from: [{namespaceSelector: {matchLabels: {side: friend}}}]
      ports: [{protocol: TCP, port: 80}]
";

/// What passes all the time and what never does, measured with a message each millisecond.
struct Watch {
    allowed: Stream,
    forbidden: Vec<Stream>,
    peak: f64,
}

impl Watch {
    /// shop/api may reach shop/db at 80/tcp by a policy of its own; other/guest may never reach it at 53/udp, nor shop/web
    /// at all, which no policy lets anybody reach.
    fn begin(stage: &Stage) -> Result<Self> {
        let pod = |id| stage.lab.pod(id);
        let (db, web) = (pod("shop/db")?.ipv4()?, pod("shop/web")?.ipv4()?);
        let guest = &pod("other/guest")?.namespace;
        let api = &pod("shop/api")?.namespace;
        let deny = |to| Stream::echo(guest, (to, 53).into(), Protocol::Udp, 1000);
        Ok(Self {
            allowed: Stream::echo(api, (db, 80).into(), Protocol::Tcp, 1000)?,
            forbidden: vec![deny(db)?, deny(web)?],
            peak: peak(stage)?,
        })
    }

    fn end(self, stage: &Stage) -> Result<()> {
        for stream in self.forbidden {
            let report = stream.finish()?;
            ensure!(
                report.sent > 0 && report.received == 0,
                "leaked: {report:?}"
            );
        }
        let report = self.allowed.finish()?;
        ensure!(report.error.is_none(), "broken: {report:?}");
        ensure!(
            report.sent > 0 && report.sent == report.received,
            "lost: {report:?}"
        );
        let grown = peak(stage)? - self.peak;
        ensure!(grown < MOST_BYTES, "the agent grew by {grown} bytes");
        Ok(())
    }
}

fn peak(stage: &Stage) -> Result<f64> {
    stage.agent(NODE)?.metric("towpath_agent_memory_peak_bytes")
}

fn is_ready(stage: &Stage) -> Result<()> {
    for agent in &stage.agents {
        let node = stage.lab.node(&agent.node)?;
        http_get(&node.namespace, HEALTH_PORT, "/readyz")?;
    }
    Ok(())
}

/// Which peers are told apart from which: the classes of the tables, without their numbers.
fn classes(agent: &Agent) -> Result<BTreeSet<String>> {
    let classes = agent.ask(&["get", "classes"])?;
    let classes = classes.as_array().context("no list")?.iter();
    Ok(classes
        .map(|class| format!("{} {}", class["addresses"], class["blocks"]))
        .collect())
}

/// Elements of the sets of our tables in the kernel.
fn elements(stage: &Stage) -> Result<usize> {
    let mut nft = Command::new("nft");
    nft.args(["-j", "list", "table", "inet", "towpath"]);
    let text = stage.lab.node(NODE)?.namespace.run(&mut nft)?;
    let listing: Value = serde_json::from_str(&text)?;
    let objects = listing["nftables"].as_array().context("no objects")?.iter();
    let of = |object: &Value, kind: &str| object[kind]["elem"].as_array().map_or(0, Vec::len);
    Ok(objects
        .map(|object| of(object, "set") + of(object, "map"))
        .sum())
}

/// What a storm left must be what an agent makes of its end alone.
fn is_what_a_fresh_agent_says(stage: &mut Stage) -> Result<()> {
    let agent = stage.agent(NODE)?;
    let drift = agent.metric("towpath_dataplane_drift_repaired_objects_total")?;
    ensure!(
        drift < 1.0,
        "the kernel held something else: {drift} objects"
    );
    let place = stage.agents.iter().position(|agent| agent.node == NODE);
    let place = place.context("no agent")?;
    let old = stage.agents.remove(place);
    // What only packets in flight could read goes a second later.
    let mut settled = (BTreeSet::new(), 0);
    until("nothing is left to collect", PATIENCE, || {
        let now = (classes(&old)?, elements(stage)?);
        let pending = old.metric("towpath_dataplane_pending_generations")?;
        let is_settled = now == settled && pending < 1.0;
        settled = now;
        Ok(is_settled)
    })?;
    old.kill()?;
    let agent = Agent::start(&stage.lab, NODE, &options())?;
    stage.agents.insert(place, agent);
    stage.agents[place].wait_ready()?;
    let fresh = classes(&stage.agents[place])?;
    ensure!(fresh == settled.0, "{fresh:?}\nand not\n{:?}", settled.0);
    until("as many elements", PATIENCE, || {
        Ok(elements(stage)? == settled.1)
    })
}

fn options() -> AgentOptions {
    AgentOptions {
        configuration: Some("verifyIntervalSeconds: 1\n".to_owned()),
        ..AgentOptions::default()
    }
}

fn stage(config: &LabConfig) -> Result<Stage> {
    let mut stage = Stage::new(config)?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "db", "api"))?;
    stage.write("by-labels", BY_LABELS)?;
    stage.start_agents(&options())?;
    stage.settle(|flow| passes(flow, &[], false))?;
    Ok(stage)
}

/// What [`stage`]'s policies let pass, when these pods are in front and namespace `other` is a friend or not.
fn passes(flow: &Flow<'_>, front: &[&str], is_friend: bool) -> bool {
    let (from, to) = (&flow.from.spec, &flow.to.spec);
    if to.namespace != "shop" {
        return true;
    }
    if to.name != "db" {
        return false;
    }
    match flow.target.port {
        80 => from.name == "api" || (is_friend && from.namespace == "other"),
        _ => front.contains(&from.name.as_str()),
    }
}

#[test]
fn labels_that_flip_all_the_time_end_as_they_are() {
    const FLIPS: usize = 900;
    require!("storms", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = stage(&LabConfig::default()).unwrap();
    let pods = ["web", "api"].map(|name| {
        let pod = stage.lab.pod(&format!("shop/{name}")).unwrap();
        let file = pod_file(&pod.spec);
        let text = stage.lab.manifests.read(&file).unwrap().unwrap();
        (name, file, text)
    });
    let watch = Watch::begin(&stage).unwrap();
    let mut random = Random::new(21);

    for last in [None, Some("web"), Some("api")] {
        for number in 0..FLIPS / 3 {
            for (_, file, text) in &pods {
                let role = random.pick(&["front", "back"]);
                let labels = format!("    role: {role}\n    app: ");
                let text = text.replacen("    app: ", &labels, 1);
                stage.lab.manifests.write(file, &text).unwrap();
            }
            if number % 50 == 0 {
                is_ready(&stage).unwrap();
            }
        }
        for (name, file, text) in &pods {
            let role = if Some(*name) == last { "front" } else { "back" };
            let labels = format!("    role: {role}\n    app: ");
            let text = text.replacen("    app: ", &labels, 1);
            stage.lab.manifests.write(file, &text).unwrap();
        }
        stage
            .settle(|flow| passes(flow, last.as_slice(), false))
            .unwrap();
    }

    is_ready(&stage).unwrap();
    watch.end(&stage).unwrap();
    is_what_a_fresh_agent_says(&mut stage).unwrap();
    stage.hold(|flow| passes(flow, &["api"], false)).unwrap();
}

#[test]
fn a_namespace_takes_a_thousand_pods_to_another_side_in_one_change() {
    const PODS: usize = 1000;
    const FLIPS: usize = 40;
    require!("storms", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = stage(&LabConfig::default()).unwrap();
    let mut crowd = String::new();
    for number in 0..PODS {
        let _ = write!(
            crowd,
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: crowd-{number}, namespace: other}}\n\
             spec: {{nodeName: distant, containers: [{{name: server}}]}}\n\
             status: {{phase: Running, podIP: 10.245.{}.{}, podIPs: [{{ip: 10.245.{0}.{1}}}]}}\n",
            number / 250,
            number % 250 + 2,
        );
    }
    stage.write("crowd", &crowd).unwrap();
    let agent = stage.agent(NODE).unwrap();
    agent
        .wait_metric("towpath_graph_cluster_endpoints", |count| count >= 1000.0)
        .unwrap();
    let generation = || {
        agent
            .ask(&["status"])
            .map(|status| status["commits"].clone())
    };
    let side = |side: &str| {
        stage
            .lab
            .write_namespace("other", &[("team", "other"), ("side", side)])
    };
    let are_friends = |wanted: bool| {
        until("all pods have changed sides", PATIENCE, || {
            let classes = agent.ask(&["get", "classes"])?;
            let classes = classes.as_array().context("no list")?.iter();
            let sizes = classes.map(|class| class["addresses"].as_array().map_or(0, Vec::len));
            // Those that no policy names are in no class.
            Ok((sizes.max() > Some(PODS)) == wanted)
        })
    };
    are_friends(false).unwrap();
    let watch = Watch::begin(&stage).unwrap();

    // One after the other: each is one flush, and at most one more that collects.
    let before = generation().unwrap();
    for number in 0..6 {
        side(if number % 2 == 0 { "friend" } else { "foe" }).unwrap();
        are_friends(number % 2 == 0).unwrap();
    }
    let after = generation().unwrap();
    let number = |commits: &Value| commits["wantedGeneration"].as_u64().unwrap();
    let flushes = number(&after) - number(&before);
    assert!(
        (6..=16).contains(&flushes),
        "{flushes} flushes of 6 changes"
    );
    // And without a pause.
    for number in 0..FLIPS {
        side(if number % 2 == 0 { "friend" } else { "foe" }).unwrap();
        is_ready(&stage).unwrap();
    }
    side("friend").unwrap();
    are_friends(true).unwrap();
    stage.settle(|flow| passes(flow, &[], true)).unwrap();

    watch.end(&stage).unwrap();
    is_what_a_fresh_agent_says(&mut stage).unwrap();
    stage.hold(|flow| passes(flow, &[], true)).unwrap();
}

/// Where the storm of the cluster blows: objects only, on nodes that nobody has.
const CROWD: Crowd = Crowd {
    nodes: 20,
    pods: 200,
    namespaces: 8,
};
/// Changes by each worker.
const STEPS: usize = 100;
const WORKERS: u32 = 8;

/// Changes of one worker: pods of its own namespace go and come, change labels, policies come and go, and the namespace
/// changes its label.
fn storm(api: &Api, worker: u32) -> Result<()> {
    let mut random = Random::new(u64::from(worker) + 54);
    let namespace = CROWD.namespace(worker);
    let mine: Vec<u32> = (0..CROWD.pods)
        .filter(|pod| CROWD.namespace(*pod) == namespace)
        .collect();
    let mut gone = BTreeSet::new();
    for step in 0..STEPS {
        let pod = random.pick(&mine);
        let path = format!("/api/v1/namespaces/{namespace}/pods/crowd-{pod}");
        if gone.remove(&pod) {
            CROWD.enter_pods(api, pod..pod + 1)?;
            continue;
        }
        match random.below(6) {
            0 | 1 => {
                api.delete(&format!("{path}?gracePeriodSeconds=0"))?;
                gone.insert(pod);
            }
            2 | 3 => {
                let role = random.pick(&["front", "back"]);
                api.merge(
                    &path,
                    &json!({ "metadata": { "labels": { "role": role } } }),
                )?;
            }
            4 => {
                let side = random.pick(&["friend", "foe"]);
                let path = format!("/api/v1/namespaces/{namespace}");
                api.merge(
                    &path,
                    &json!({ "metadata": { "labels": { "side": side } } }),
                )?;
            }
            _ => {
                let text = allow_http(&namespace, "app-1", &format!("app-{}", step % 10));
                api.apply(&text)?;
                if random.once_in(2) {
                    api.withdraw(&text)?;
                }
            }
        }
    }
    Ok(())
}

/// How many objects the API server has of these.
fn count(api: &Api, path: &str) -> Result<usize> {
    let list = api.get(path)?;
    Ok(list["items"].as_array().context("no list")?.len())
}

#[test]
fn a_cluster_in_which_everything_comes_and_goes_ends_as_it_is() {
    require!(
        "kubernetes",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut stage = stage(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    })
    .unwrap();
    let plane = &stage.lab.cluster().unwrap().plane;
    CROWD.enter(plane).unwrap();
    let api = stage.lab.cluster().unwrap().api().clone();
    let agent = stage.agent(NODE).unwrap();
    let is_told = || {
        let pods = count(&api, "/api/v1/pods")?;
        let policies = count(&api, "/apis/networking.k8s.io/v1/networkpolicies")?;
        let status = agent.ask(&["status"])?;
        Ok(status["clusterEndpoints"] == pods && status["policies"] == policies)
    };
    until("all objects are known", PATIENCE, is_told).unwrap();
    let watch = Watch::begin(&stage).unwrap();

    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WORKERS)
            .map(|worker| {
                let api = &api;
                scope.spawn(move || storm(api, worker))
            })
            .collect();
        while workers.iter().any(|worker| !worker.is_finished()) {
            is_ready(&stage).unwrap();
        }
        for worker in workers {
            worker.join().unwrap().unwrap();
        }
    });
    let label = json!({ "metadata": { "labels": { "side": "friend" } } });
    api.merge("/api/v1/namespaces/other", &label).unwrap();
    let label = json!({ "metadata": { "labels": { "role": "front" } } });
    api.merge("/api/v1/namespaces/shop/pods/web", &label)
        .unwrap();
    stage.settle(|flow| passes(flow, &["web"], true)).unwrap();
    until("all objects are known", PATIENCE, is_told).unwrap();

    is_ready(&stage).unwrap();
    watch.end(&stage).unwrap();
    is_what_a_fresh_agent_says(&mut stage).unwrap();
    stage.hold(|flow| passes(flow, &["web"], true)).unwrap();
}
