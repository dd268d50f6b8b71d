//! An explanation as text.

use std::io;
use std::net::IpAddr;

use towpath_core::evaluate::{
    Certainty, Evaluator, Explanation, PolicyTrace, RuleTrace, TierTrace, Walk,
};
use towpath_core::model::{Direction, Verdict};

use super::super::arguments::protocol_name;
use super::super::output::{Colour, Output};
use super::super::text::{peers_text, ports_text};
use super::Asked;

/// Rules of one policy that are shown although they did not match.
const MOST_MISMATCHES: usize = 12;

pub(super) fn print(
    evaluator: &Evaluator<'_>,
    asked: &Asked,
    output: &mut Output,
) -> io::Result<()> {
    let flow = &asked.flow;
    let explain = |direction: &Direction| evaluator.explain(*direction, flow);
    let explanations: Vec<Explanation<'_>> = asked.directions.iter().map(explain).collect();
    let verdict = explanations.iter().map(|one| one.decision.verdict).max();
    let service = match flow.port {
        Some(port) => format!("{port}/{}", protocol_name(flow.protocol)),
        None => protocol_name(flow.protocol),
    };
    let verdict = paint(output, verdict.unwrap_or(Verdict::Deny));
    let end = |name: &str, address: IpAddr| format!("{name} ({address})");
    let from = end(&asked.from, flow.source);
    let to = end(&asked.to, flow.destination);
    output.line(&format!("{from} -> {to} {service}: {verdict}"))?;
    for step in &asked.steps {
        output.line(&format!("  {step}"))?;
    }
    for explanation in &explanations {
        direction(explanation, output)?;
    }
    output.line("")
}

fn paint(output: &Output, verdict: Verdict) -> String {
    let colour = match verdict {
        Verdict::Allow => Colour::Green,
        Verdict::Deny => Colour::Red,
    };
    output.paint(colour, &verdict.to_string())
}

fn direction(explanation: &Explanation<'_>, output: &mut Output) -> io::Result<()> {
    let decision = &explanation.decision;
    let (direction, reason) = (decision.direction, &decision.reason);
    let verdict = paint(output, decision.verdict);
    output.line(&format!(
        "\n{direction} at {}: {verdict}, {reason}",
        explanation.side
    ))?;
    output.line(&format!(
        "  peer: {} ({})",
        explanation.peer, explanation.peer_address
    ))?;
    for one in &explanation.walks {
        walk(one, output)?;
    }
    let near_misses = explanation.near_misses();
    if decision.verdict == Verdict::Deny && !near_misses.is_empty() {
        output.line("  nearly matched:")?;
        for miss in near_misses {
            let text = output.paint(Colour::Yellow, &miss.to_string());
            output.line(&format!("    {text}"))?;
        }
    }
    if !explanation.unselected.is_empty() {
        output.line("  would apply if one label were different:")?;
        for unselected in &explanation.unselected {
            output.line(&format!("    {unselected}"))?;
        }
    }
    Ok(())
}

fn walk(walk: &Walk<'_>, output: &mut Output) -> io::Result<()> {
    if let Some((policy, rule)) = walk.assumed_pass {
        output.line(&format!("  if rule {rule} of {} passes:", policy.id))?;
    }
    for one in &walk.tiers {
        tier(one, output)?;
    }
    if walk.tiers.is_empty() {
        output.line("  no policy selects it")?;
    }
    Ok(())
}

fn tier(tier: &TierTrace<'_>, output: &mut Output) -> io::Result<()> {
    let name = output.paint(Colour::Bold, &tier.tier.name);
    output.line(&format!("  tier {name}: {}", tier.end))?;
    tier.policies.iter().try_for_each(|one| policy(one, output))
}

fn policy(policy: &PolicyTrace<'_>, output: &mut Output) -> io::Result<()> {
    output.line(&format!("    {}", policy.policy.id))?;
    if policy.rules.is_empty() {
        return output.line("      has no rules for this direction");
    }
    let mut hidden = 0;
    let mut shown = 0;
    for one in &policy.rules {
        let is_shown = one.matched != Certainty::No || shown < MOST_MISMATCHES;
        if is_shown {
            rule(one, output)?;
            shown += 1;
        } else {
            hidden += 1;
        }
    }
    if hidden > 0 {
        output.line(&format!("      and {hidden} more rules that do not match"))?;
    }
    Ok(())
}

fn rule(trace: &RuleTrace<'_>, output: &mut Output) -> io::Result<()> {
    let name = trace
        .rule
        .name
        .as_ref()
        .map(|name| format!(" ({name})"))
        .unwrap_or_default();
    let (peers, ports) = (peers_text(&trace.rule.peers), ports_text(&trace.rule.ports));
    let line = format!(
        "      rule {}{name} {}: {peers}, {ports}",
        trace.index, trace.rule.action
    );
    let outcome = match (trace.matched, trace.mismatch()) {
        (Certainty::Yes, _) => output.paint(Colour::Bold, "matches"),
        (Certainty::Uncertain, _) => "may match: the peer's namespace is not known yet".to_owned(),
        (Certainty::No, mismatch) => {
            let text = mismatch.unwrap_or_else(|| "does not match".to_owned());
            output.paint(Colour::Dim, &format!("no match; {text}"))
        }
    };
    let mark = if trace.is_deciding { " <- decides" } else { "" };
    output.line(&line)?;
    output.line(&format!("        {outcome}{mark}"))
}
