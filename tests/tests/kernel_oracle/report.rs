//! What a person needs to understand a mismatch.

use std::fmt::{self, Write as _};

use towpath_core::evaluate::{Certainty, Evaluator, Explanation, Flow};
use towpath_core::model::{
    Cluster, Direction, Endpoint, Labels, Lifecycle, Peers, Policy, Ports, Rule,
};
use towpath_core::tables::Tables;

use super::batch::Mismatch;

/// The probe, the state, the evaluator's explanation and the tables' judgement: who of compiler, layout and kernel
/// errs.
pub(crate) fn report(mismatch: &Mismatch, cluster: &Cluster, tables: &Tables) -> String {
    let mut text = String::new();
    write(&mut text, mismatch, cluster, tables).expect("a string takes every text");
    text
}

fn write(
    text: &mut String,
    mismatch: &Mismatch,
    cluster: &Cluster,
    tables: &Tables,
) -> fmt::Result {
    let Mismatch {
        shot,
        expectations,
        has_arrived,
    } = mismatch;
    let Flow {
        source,
        destination,
        protocol,
        port,
    } = shot.flow;
    writeln!(
        text,
        "{source} -> {destination}, protocol {protocol}, port {port:?}: {}, from {:?} to {:?}, {:?}",
        if *has_arrived {
            "arrived"
        } else {
            "did not arrive"
        },
        shot.from,
        shot.to,
        shot.way
    )?;
    for expectation in expectations {
        writeln!(text, "expected: {}", expectation.verdict)?;
        for (side, cause) in [
            ("source", &expectation.source),
            ("destination", &expectation.destination),
        ] {
            if let Some(cause) = cause {
                writeln!(text, "  at the {side}: {cause}")?;
            }
        }
    }
    let evaluator = Evaluator::new(cluster);
    for direction in Direction::BOTH {
        let (endpoint, peer) = shot.flow.sides(direction);
        let judgement = tables.judge(direction, endpoint, peer, protocol, port.unwrap_or(0));
        writeln!(
            text,
            "{direction}: the tables say {judgement:?}, state {:?}, peer of class {}",
            tables.direction(direction).state.get(&endpoint),
            tables.class_of(peer).0
        )?;
        explain(text, &evaluator.explain(direction, &shot.flow))?;
    }
    describe(text, cluster)
}

fn explain(text: &mut String, explanation: &Explanation<'_>) -> fmt::Result {
    let decision = &explanation.decision;
    writeln!(
        text,
        "  the evaluator says {}: {}; endpoint {}; peer {}",
        decision.verdict, decision.reason, explanation.side, explanation.peer
    )?;
    for tier in explanation.walks.iter().flat_map(|walk| &walk.tiers) {
        writeln!(text, "    tier {}: {}", tier.tier.name, tier.end)?;
        for (policy, rule) in tier
            .policies
            .iter()
            .flat_map(|policy| policy.rules.iter().map(move |rule| (policy, rule)))
        {
            let outcome = match (rule.matched, rule.mismatch()) {
                (Certainty::No, mismatch) => mismatch.unwrap_or_default(),
                (certainty, _) => format!("matches: {certainty:?}"),
            };
            let (id, index, action) = (&policy.policy.id, rule.index, rule.rule.action);
            writeln!(text, "      {id} rule {index} {action}: {outcome}")?;
        }
    }
    Ok(())
}

/// All objects, one a line.
fn describe(text: &mut String, cluster: &Cluster) -> fmt::Result {
    for namespace in cluster.namespaces.values() {
        writeln!(
            text,
            "namespace {} {}",
            namespace.name,
            labels(&namespace.labels)
        )?;
    }
    for node in cluster.nodes.values() {
        let (name, addresses, networks) = (&node.name, &node.addresses, &node.pod_cidrs);
        writeln!(
            text,
            "node {name} {}: {addresses:?}, pods {networks:?}",
            labels(&node.labels)
        )?;
    }
    for endpoint in cluster.endpoints.values() {
        describe_endpoint(text, endpoint)?;
    }
    for interface in cluster.interfaces.values() {
        writeln!(
            text,
            "interface {}: {:?}",
            interface.name, interface.addresses
        )?;
    }
    cluster
        .policies
        .values()
        .try_for_each(|policy| describe_policy(text, policy))
}

fn describe_endpoint(text: &mut String, endpoint: &Endpoint) -> fmt::Result {
    let node = endpoint.node.as_deref().unwrap_or("no node");
    let (kind, id) = (endpoint.id.kind, &endpoint.id);
    let (labels, addresses) = (labels(&endpoint.labels), &endpoint.addresses);
    write!(text, "{kind:?} {id} {labels} on {node}: {addresses:?}")?;
    for port in &endpoint.ports {
        let name = port.name.as_deref().unwrap_or("-");
        write!(text, " {name}={}/{}", port.number, port.protocol)?;
    }
    if let Some(interface) = &endpoint.interface {
        write!(text, " at {interface}")?;
    }
    if endpoint.host_network {
        text.push_str(" host network");
    }
    if endpoint.lifecycle == Lifecycle::Finished {
        text.push_str(" finished");
    }
    writeln!(text)
}

fn describe_policy(text: &mut String, policy: &Policy) -> fmt::Result {
    let Policy {
        id,
        tier,
        order,
        subject,
        ..
    } = policy;
    writeln!(
        text,
        "{id}, tier {}, order {order}, for {subject:?}",
        tier.name
    )?;
    for direction in Direction::BOTH {
        match policy.rules(direction) {
            None => {}
            Some([]) => writeln!(text, "  {direction}: no rules")?,
            Some(rules) => {
                for (index, rule) in rules.iter().enumerate() {
                    writeln!(text, "  {direction} {index}: {}", describe_rule(rule))?;
                }
            }
        }
    }
    Ok(())
}

fn describe_rule(rule: &Rule) -> String {
    let peers = match &rule.peers {
        Peers::Any => "anybody".to_owned(),
        Peers::Of(peers) => format!("{peers:?}"),
    };
    let ports = match &rule.ports {
        Ports::Any => "everything".to_owned(),
        Ports::Of(ports) => format!("{ports:?}"),
    };
    format!("{} {peers}, {ports}", rule.action)
}

fn labels(labels: &Labels) -> String {
    let pairs: Vec<String> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    format!("{{{}}}", pairs.join(","))
}
