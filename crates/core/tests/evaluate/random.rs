//! Laws that every world obeys.

use proptest::prelude::*;
use towpath_core::evaluate::{Evaluator, Reason};
use towpath_core::generate::{LOCAL_NODE, difference, world};
use towpath_core::model::{Cluster, Verdict};

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn explanation_and_verdict_agree_with_the_decision(world in world(), seed: u64) {
        let cluster = world.cluster();
        let evaluator = Evaluator::new(&cluster);
        for probe in world.flows(seed, 40) {
            let flow = probe.flow();
            let decision = evaluator.decide(&flow);
            prop_assert_eq!(evaluator.verdict(&flow), decision.verdict);
            for side in [&decision.egress, &decision.ingress] {
                let explanation = evaluator.explain(side.direction, &flow);
                prop_assert_eq!(&explanation.decision, side);
                if let Some(walk) = explanation.walks.last() {
                    let is_denied = explanation.walks.iter().any(|walk| walk.verdict == Verdict::Deny);
                    prop_assert_eq!(is_denied, side.verdict == Verdict::Deny);
                    prop_assert_eq!(&walk.reason, &side.reason);
                }
            }
        }
    }

    #[test]
    fn endpoint_and_address_are_judged_alike(world in world(), seed: u64) {
        let cluster = world.cluster();
        let evaluator = Evaluator::new(&cluster);
        for probe in world.flows(seed, 40) {
            let flow = probe.flow();
            let by_address = evaluator.judge(probe.direction, &flow);
            let Some(id) = by_address.endpoint.clone() else { continue };
            let by_id = evaluator.judge_endpoint(
                probe.direction, &id, probe.endpoint, probe.peer, flow.protocol, flow.port,
            );
            prop_assert_eq!(by_id, by_address);
        }
    }

    #[test]
    fn only_closed_endpoints_of_this_node_are_unknown(world in world(), seed: u64) {
        let cluster = world.cluster();
        let evaluator = Evaluator::new(&cluster);
        for probe in world.flows(seed, 40) {
            let owners: Vec<_> = cluster
                .endpoints
                .values()
                .filter(|endpoint| endpoint.is_workload() && endpoint.addresses.contains(&probe.endpoint))
                .collect();
            let is_known = owners.len() == 1
                && cluster.namespaces.contains_key(&owners[0].id.namespace)
                && owners[0].node.as_deref() == Some(LOCAL_NODE);
            let decision = evaluator.judge(probe.direction, &probe.flow());
            prop_assert_eq!(decision.reason == Reason::Unknown, !is_known);
        }
    }

    #[test]
    fn difference_leads_from_one_world_to_another(old in world(), new in world()) {
        let (old, new) = (old.cluster(), new.cluster());
        let mut state: Cluster = old.clone();
        for update in difference(&old, &new) {
            state.apply(update);
        }
        prop_assert_eq!(state, new);
    }
}
