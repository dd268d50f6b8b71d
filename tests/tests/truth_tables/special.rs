//! Rows that need more than objects and probes: connections that live, and pods that come.

use anyhow::{Result, ensure};
use serde_json::json;
use towpath_tests::lab::PodSpec;
use towpath_tests::probe::Protocol;
use towpath_tests::stage::deny_ingress;
use towpath_tests::stream::Stream;
use towpath_tests::wait::{PATIENCE, until};

use crate::bed::{Bed, ask};
use crate::case::Family;
use crate::probes;

/// What is wrong, and how many probes there were.
type Outcome = Result<(Vec<String>, usize)>;

/// Row, name, and what plays it.
type Special = (&'static str, &'static str, fn(&mut Bed) -> Outcome);

/// All of them.
pub(crate) const ALL: [Special; 3] = [
    (
        "established connections",
        "established connections: they outlive a policy that would deny them, and new ones do not begin",
        established,
    ),
    (
        "start of a pod",
        "start of a pod: it is closed until its object lists its address, and policy that was there before holds from then on",
        start,
    ),
    ("status", "status: a NetworkPolicy has none", status),
];

fn established(bed: &mut Bed) -> Outcome {
    let mut streams = Vec::new();
    for family in [Family::V4, Family::V6] {
        let to = (bed.address("x/b", family)?, 80).into();
        streams.push(Stream::echo(bed.place("x/c")?, to, Protocol::Tcp, 1000)?);
    }
    let policy = deny_ingress("x");
    bed.api()?.apply(&policy)?;
    bed.wait_heard()?;
    let told = probes::wrong(bed, "x/c x/b tcp/80 closed", false)?;
    for stream in streams {
        let report = stream.finish()?;
        ensure!(
            report.sent > 0 && report.sent == report.received && report.error.is_none(),
            "the stream broke: {report:?}"
        );
    }
    bed.api()?.withdraw(&policy)?;
    Ok(told)
}

/// The pod is selected before it has an address; nobody but its own node reaches it before its object tells of it.
fn start(bed: &mut Bed) -> Outcome {
    let policy = "{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: young, namespace: x}, \
         spec: {podSelector: {matchLabels: {app: young}}, ingress: [{from: [{podSelector: {matchLabels: {app: a}}}]}]}}";
    bed.api()?.apply(policy)?;
    let spec = PodSpec::new("node-a", "x", "young")
        .label("app", "young")
        .tcp(80);
    bed.lab.cluster()?.declare(&spec)?;
    bed.wait_heard()?;
    let id = bed.lab.plug(spec)?.id();
    let (mut wrong, mut count) = probes::wrong(
        bed,
        "x/a x/young tcp/80 closed\nx/c x/young tcp/80 closed\nx/young x/a tcp/80 closed",
        false,
    )?;
    bed.lab.publish(&id)?;
    bed.wait_heard()?;
    let agent = &bed.agents[0];
    until("the new pod's policy", PATIENCE, || {
        let endpoints = ask(agent, &["get", "endpoints"])?;
        let mut endpoints = endpoints.as_array().into_iter().flatten();
        Ok(endpoints
            .any(|endpoint| endpoint["name"] == "young" && endpoint["state"] == "programmed"))
    })?;
    bed.wait_heard()?;
    let (more, probes) = probes::wrong(
        bed,
        "x/a x/young tcp/80 open\nx/c x/young tcp/80 closed\nz/a x/young tcp/80 closed\nx/young x/a tcp/80 open",
        false,
    )?;
    wrong.extend(more);
    count += probes;
    bed.lab.remove_pod(&id)?;
    bed.api()?.withdraw(policy)?;
    Ok((wrong, count))
}

fn status(bed: &mut Bed) -> Outcome {
    let policy = deny_ingress("x");
    bed.api()?.apply(&policy)?;
    bed.wait_heard()?;
    let path = "/apis/networking.k8s.io/v1/namespaces/x/networkpolicies/deny-ingress";
    let object = bed.api()?.get(path)?;
    bed.api()?.withdraw(&policy)?;
    let wrong = (object["status"] != json!(null)).then(|| format!("it has one: {object}"));
    Ok((wrong.into_iter().collect(), 0))
}
