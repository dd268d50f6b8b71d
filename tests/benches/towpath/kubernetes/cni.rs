//! What the chained plugin adds to the start of a pod.

use std::time::Instant;

use anyhow::Result;
use serde_json::Value;
use towpath_tests::cni::Sandbox;
use towpath_tests::lab::PodSpec;
use towpath_tests::netns::Namespace;

use super::bed::{Bed, NAMESPACE, NODE};
use super::say;
use crate::report::{Arm, Gate, Kind, Report, Section};

/// Pods that start, one after the other.
const STARTS: u32 = 200;

/// Starts pods at this size of the cluster. Each was created in the API just before, as a kubelet sees it.
pub(super) fn measure(report: &mut Report, bed: &Bed, title: &str) -> Result<()> {
    say(&format!("{title}: {STARTS} times CNI ADD"));
    let mut control = Arm::new("control: ADD of the plugins bridge and host-local");
    let mut added = Arm::new("ADD of towpath-cni, until the pod is programmed");
    for number in 0..STARTS {
        let [of_others, ours] = start(bed, number)?;
        control.samples.push(of_others);
        added.samples.push(ours);
    }
    for (what, quantile, limit) in [("median", 0.5, 10.0), ("p99", 0.99, 50.0)] {
        report.gates.push(Gate::at_most(
            Kind::Gate,
            format!("{title}: added to CNI ADD, {what}, ms"),
            added.quantile(quantile),
            limit,
        ));
    }
    let arms = vec![control, added];
    report.sections.push(Section::side_by_side(
        format!("CNI ADD, {title}"),
        "ms",
        arms,
    ));
    Ok(())
}

/// Milliseconds of the others and of ours.
fn start(bed: &Bed, number: u32) -> Result<[f64; 2]> {
    let (cluster, node) = (bed.lab.cluster()?, bed.lab.node(NODE)?);
    let spec = PodSpec::new(NODE, NAMESPACE, &format!("start-{number}")).label("app", "app-0");
    let uid = cluster.declare(&spec)?;
    let namespace = Namespace::create(&format!("{}-pod-s{number}", bed.lab.prefix()))?;
    let sandbox = Sandbox {
        container: format!("{}5{number:059x}", &bed.lab.prefix()[2..]),
        namespace: spec.namespace.clone(),
        name: spec.name.clone(),
        uid,
        path: namespace.path(),
    };
    let began = Instant::now();
    let attachment = node.plugins.add(&node.namespace, &sandbox)?;
    let plugged = Instant::now();
    bed.lab
        .call_plugin(NODE, &sandbox, "ADD", &attachment.result)?;
    let times = [plugged - began, plugged.elapsed()];
    bed.lab.call_plugin(NODE, &sandbox, "DEL", &Value::Null)?;
    node.plugins.delete(&node.namespace, &sandbox)?;
    cluster.forget(&spec)?;
    Ok(times.map(|time| time.as_secs_f64() * 1e3))
}
