//! Audit: what policy denies passes and is told; a switch to enforcement closes it, and loses nothing that is allowed.

use std::net::SocketAddr;

use anyhow::Result;
use serde_json::Value;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::LabConfig;
use towpath_tests::matrix::Flow;
use towpath_tests::probe::Protocol;
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress};
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

/// shop/web may ask shop/api for HTTP; nothing else may enter a pod.
fn is_allowed(flow: &Flow<'_>) -> bool {
    flow.from.id() == "shop/web" && flow.to.id() == "shop/api" && flow.target.port == 80
}

fn options(configuration: &str) -> AgentOptions {
    AgentOptions {
        configuration: Some(configuration.to_owned()),
        ..AgentOptions::default()
    }
}

/// Pods whose policies deny all but one flow; no agent yet.
fn denied() -> Result<Stage> {
    let stage = Stage::new(&LabConfig::default())?;
    for namespace in ["shop", "other"] {
        stage.write(&format!("deny-{namespace}"), &deny_ingress(namespace))?;
    }
    stage.write("allow", &allow_http("shop", "api", "web"))?;
    Ok(stage)
}

/// Ends the agents and starts others with this configuration, as a node does that is configured anew.
fn configure(stage: &mut Stage, configuration: &str) -> Result<()> {
    for agent in stage.agents.drain(..) {
        agent.terminate()?;
    }
    stage.start_agents(&options(configuration))
}

fn status(agent: &Agent) -> Result<Value> {
    agent.ask(&["status"])
}

/// Flows that an agent lists as denied: destination pod, reason, and whether they passed.
fn denied_flows(agent: &Agent) -> Result<Vec<(String, String, bool)>> {
    let flows = agent.ask(&["get", "denied"])?;
    let text = |flow: &Value, key: &str| flow[key].as_str().unwrap_or_default().to_owned();
    let flows = flows.as_array().cloned().unwrap_or_default();
    Ok(flows
        .iter()
        .map(|flow| {
            let has_passed = flow["audited"] == true;
            (text(flow, "to"), text(flow, "reason"), has_passed)
        })
        .collect())
}

#[test]
fn an_audit_drops_nothing_and_tells_what_it_would() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = denied().unwrap();
    stage
        .start_agents(&options("enforcement: audit\n"))
        .unwrap();

    stage.settle(|_| true).unwrap();

    for (node, pod) in [("node-a", "shop/web"), ("node-b", "other/guest")] {
        let agent = stage.agent(node).unwrap();
        let seen = status(agent).unwrap();
        assert_eq!(seen["enforcement"], "audit", "{seen}");
        assert_eq!(seen["enforced"], false, "{seen}");
        until(&format!("the flows into {pod}"), PATIENCE, || {
            Ok(denied_flows(agent)?.iter().any(|(to, _, _)| to == pod))
        })
        .unwrap();
        for (to, reason, has_passed) in denied_flows(agent).unwrap() {
            assert!(has_passed, "{to}: {reason}");
        }
    }

    // The switch. A flow that is allowed goes on through it.
    let web = &stage.lab.pod("shop/web").unwrap().namespace;
    let api = stage.lab.pod("shop/api").unwrap().ipv4().unwrap();
    let stream = Stream::echo(web, SocketAddr::from((api, 80)), Protocol::Tcp, 1000).unwrap();
    configure(&mut stage, "enforcement: enforce\n").unwrap();
    stage.hold(is_allowed).unwrap();
    let report = stream.finish().unwrap();
    assert_eq!(report.error, None, "{report:?}");
    assert_eq!(report.received, report.sent, "{report:?}");
    let seen = status(stage.agent("node-a").unwrap()).unwrap();
    assert_eq!(seen["enforced"], true, "{seen}");

    // And back, for who has switched too early.
    configure(&mut stage, "enforcement: audit\n").unwrap();
    stage.hold(|_| true).unwrap();
}

#[test]
fn nodes_and_namespaces_can_be_audited_alone() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = denied().unwrap();

    stage
        .start_agents(&options("auditNodes: [node-a]\n"))
        .unwrap();
    stage
        .hold(|flow| flow.to.spec.node == "node-a" || is_allowed(flow))
        .unwrap();
    for (node, expected) in [("node-a", false), ("node-b", true)] {
        let seen = status(stage.agent(node).unwrap()).unwrap();
        assert_eq!(seen["enforced"], expected, "{seen}");
    }

    configure(&mut stage, "auditNamespaces: [shop]\n").unwrap();
    stage
        .hold(|flow| flow.to.spec.namespace == "shop" || is_allowed(flow))
        .unwrap();
    let agent = stage.agent("node-b").unwrap();
    until("flows of both kinds", PATIENCE, || {
        let flows = denied_flows(agent)?;
        let is_there = |pod: &str, passed: bool| {
            let of = |flow: &&(String, String, bool)| flow.0 == pod && flow.2 == passed;
            flows.iter().any(|flow| of(&flow))
        };
        Ok(is_there("shop/db", true) && is_there("other/guest", false))
    })
    .unwrap();
}
