//! A kernel that takes seconds for each transaction, because somebody else keeps it busy: changes join, what is kept
//! of them is bounded, the last one counts, and the node says that it lags.

use std::time::Duration;

use anyhow::Result;
use towpath_tests::agent::{Agent, HEALTH_PORT, http_get};
use towpath_tests::busy::Busy;
use towpath_tests::lab::{LabConfig, Node};
use towpath_tests::matrix::Flow;
use towpath_tests::probe::Protocol;
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

/// How long a transaction of somebody else holds the kernel.
const HOLD: Duration = Duration::from_secs(4);
/// Least changes while the kernel is slow.
const CHANGES: u32 = 100;
/// Memory that so many changes may cost, and a debug build's allocator may keep.
const MOST_BYTES: f64 = 48.0 * 1024.0 * 1024.0;

/// Who may reach shop/db: the last change says web, those before say web or api.
fn only_web_reaches_db(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.spec.name == "web" && flow.to.spec.name == "db" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn commits(agent: &Agent) -> Result<f64> {
    agent.metric("towpath_dataplane_commits_total")
}

/// Changes who may reach shop/db, and waits until the agent has heard of it.
fn change(stage: &Stage, agent: &Agent, from: &str) -> Result<()> {
    let heard = || agent.metric("towpath_graph_events_total");
    let before = heard()?;
    let text = allow_http("shop", "db", from).replace("db-for-api", "db-for-web");
    stage.write("allow", &text)?;
    until("the agent hears of a change", PATIENCE, || {
        Ok(heard()? > before)
    })
}

/// Why a node is not ready.
fn complaint(node: &Node) -> Option<String> {
    let answer = http_get(&node.namespace, HEALTH_PORT, "/readyz");
    answer.err().map(|error| format!("{error:#}"))
}

#[test]
fn changes_join_while_the_kernel_is_slow_and_the_last_one_counts() {
    require!("slow", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let stage = Stage::with_agents(&LabConfig::default()).unwrap();
    stage.write("deny", &deny_ingress("shop")).unwrap();
    stage
        .write("allow", &allow_http("shop", "db", "web"))
        .unwrap();
    stage.settle(only_web_reaches_db).unwrap();
    let node = stage.lab.node("node-b").unwrap();
    let agent = stage.agent("node-b").unwrap();
    let peak = || agent.metric("towpath_agent_memory_peak_bytes").unwrap();
    let db = stage.lab.pod("shop/db").unwrap().ipv4().unwrap();
    let guest = &stage.lab.pod("other/guest").unwrap().namespace;
    let (commits_before, peak_before) = (commits(agent).unwrap(), peak());

    let busy = Busy::start(&node.namespace, HOLD).unwrap();
    let forbidden = Stream::echo(guest, (db, 53).into(), Protocol::Udp, 1000).unwrap();
    let (mut changes, mut said, mut pending) = (0, None, 0.0_f64);
    until("the node says that its kernel is slow", PATIENCE, || {
        // An even number of them ends with web.
        for from in ["api", "web"] {
            change(&stage, agent, from)?;
            changes += 1;
        }
        said = complaint(node).or(said.take());
        pending = pending.max(agent.metric("towpath_dataplane_pending_generations")?);
        Ok(said.is_some() && changes >= CHANGES)
    })
    .unwrap();

    let said = said.unwrap();
    assert!(said.contains("too slowly"), "{said}");
    // Several wait at once, and go together.
    assert!(pending >= 2.0, "{pending}");
    // It lags, and is well.
    http_get(&node.namespace, HEALTH_PORT, "/livez").unwrap();
    // Nobody has to wait for the kernel to be quick again.
    agent
        .wait_metric("towpath_dataplane_pending_generations", |pending| {
            pending < 1.0
        })
        .unwrap();
    assert_eq!(complaint(node), None);
    stage.hold(only_web_reaches_db).unwrap();
    let forbidden = forbidden.finish().unwrap();
    assert!(
        forbidden.sent > 0 && forbidden.received == 0,
        "{forbidden:?}"
    );
    let taken = commits(agent).unwrap() - commits_before;
    assert!(
        (1.0..=f64::from(changes) / 2.0).contains(&taken),
        "{taken} commits of {changes} changes"
    );
    let grown = peak() - peak_before;
    assert!(grown < MOST_BYTES, "{grown} bytes for {changes} changes");
    busy.end().unwrap();
    stage.settle(only_web_reaches_db).unwrap();
}
