//! Address blocks that match pods, or nothing.

use ipnet::IpNet;
use towpath_api::Severity;
use towpath_core::model::{Direction, Peer, Peers, Policy};

use super::index::Index;
use super::{PER_OBJECT, Report, key_of, peers_field, rule_path};

/// Service ranges of common distributions.
const SERVICE_RANGES: [&str; 2] = ["10.96.0.0/12", "10.43.0.0/16"];

pub(super) fn check(index: &Index<'_>, policy: &Policy, report: &mut Report<'_>) {
    let pod_cidrs: Vec<IpNet> = index
        .cluster
        .nodes
        .values()
        .flat_map(|node| node.pod_cidrs.iter().copied())
        .collect();
    let mut count = 0;
    for direction in Direction::BOTH {
        for (number, rule) in policy
            .rules(direction)
            .unwrap_or_default()
            .iter()
            .enumerate()
        {
            let Peers::Of(peers) = &rule.peers else {
                continue;
            };
            let path = format!(
                "{}.{}",
                rule_path(direction, number),
                peers_field(direction)
            );
            for peer in peers {
                let Peer::Network { cidr, except } = peer else {
                    continue;
                };
                count += usize::from(check_block(
                    policy,
                    direction,
                    &path,
                    (*cidr, except),
                    &pod_cidrs,
                    report,
                ));
                if count >= PER_OBJECT {
                    return;
                }
            }
        }
    }
}

/// Whether there was something to say about a block.
fn check_block(
    policy: &Policy,
    direction: Direction,
    path: &str,
    (cidr, except): (IpNet, &[IpNet]),
    pod_cidrs: &[IpNet],
    report: &mut Report<'_>,
) -> bool {
    let is_cut_out = |pods: &IpNet| except.iter().any(|hole| hole.contains(pods));
    if let Some(pods) = pod_cidrs.iter().find(|pods| pods.contains(&cidr)) {
        report.add(
            &key_of(policy),
            Severity::Warning,
            path,
            format!(
                "the block {cidr} lies in the pod addresses {pods}, which change with every restart"
            ),
            "select pods by labels instead",
        );
        return true;
    }
    if let Some(pods) = pod_cidrs
        .iter()
        .find(|pods| cidr.contains(*pods) && !is_cut_out(pods))
    {
        report.add(
            &key_of(policy),
            Severity::Note,
            path,
            format!("the block {cidr} matches pods too: {pods} lies in it"),
            "if only outside addresses are meant, cut the pod addresses out with except, or a rule before this one",
        );
        return true;
    }
    let is_service = SERVICE_RANGES
        .iter()
        .filter_map(|range| range.parse::<IpNet>().ok())
        .any(|range| range.contains(&cidr));
    if is_service && direction == Direction::Egress {
        report.add(
            &key_of(policy),
            Severity::Note,
            path,
            format!("the block {cidr} looks like addresses of Services, which no packet has when it is judged"),
            "name the pods behind the Service, or for the API server the addresses of its nodes",
        );
        return true;
    }
    false
}
