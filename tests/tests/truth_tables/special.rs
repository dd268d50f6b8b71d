//! Rows that need more than objects and probes: connections that live, and pods that come.

use anyhow::{Result, ensure};
use ipnet::IpNet;
use serde_json::json;
use towpath_tests::cni::invoke;
use towpath_tests::lab::PodSpec;
use towpath_tests::probe::Protocol;
use towpath_tests::stage::deny_ingress;
use towpath_tests::stream::Stream;
use towpath_tests::tools::Tool;
use towpath_tests::wait::{PATIENCE, until};

use crate::bed::Bed;
use crate::case::Family;
use crate::probes;

/// What is wrong, and how many probes there were.
type Outcome = Result<(Vec<String>, usize)>;

/// Row, name, and what plays it.
type Special = (&'static str, &'static str, fn(&mut Bed) -> Outcome);

/// All of them.
pub(crate) const ALL: [Special; 4] = [
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
    (
        "Services",
        "Services: a port of the node that leads to a pod is judged by the pod's address and port",
        host_port,
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
        let endpoints = agent.ask(&["get", "endpoints"])?;
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

/// `hostPort`, as the real plugin `portmap` serves it.
fn host_port(bed: &mut Bed) -> Outcome {
    let call = |bed: &Bed, verb: &str| -> Result<()> {
        let pod = bed.lab.pod("x/b")?;
        let node = &bed.lab.node(&pod.spec.node)?.namespace;
        let ips = pod
            .addresses
            .iter()
            .map(|address| json!({ "address": IpNet::from(*address).to_string(), "interface": 0 }));
        let configuration = json!({
            "cniVersion": "1.0.0", "name": "cbr0", "type": "portmap",
            "runtimeConfig": { "portMappings": [{ "hostPort": 8088, "containerPort": 80, "protocol": "tcp" }] },
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{ "name": "eth0", "sandbox": pod.sandbox.path }],
                "ips": ips.collect::<Vec<_>>(),
            },
        });
        let plugin = Tool::Portmap.path()?;
        let output = invoke(
            node,
            &plugin,
            &pod.sandbox,
            verb,
            &configuration.to_string(),
        )?;
        ensure!(
            output.status.success(),
            "portmap {verb}: {}",
            String::from_utf8_lossy(&output.stdout)
        );
        Ok(())
    };
    let policy = |rules: &str| {
        format!(
            "{{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {{name: port, namespace: x}}, spec: {rules}}}"
        )
    };
    let steps = [
        (
            "{podSelector: {matchLabels: {app: none}}}",
            "outside node-a tcp/8088 open\nx/c node-a tcp/8088 open\nx/a node-a tcp/8088 open",
        ),
        (
            "{podSelector: {matchLabels: {app: b}}, ingress: [{from: [{ipBlock: {cidr: '<outside v4>/32'}}, {ipBlock: {cidr: '<outside v6>/128'}}], ports: [{port: 80}]}]}",
            "outside node-a tcp/8088 open\nx/c node-a tcp/8088 closed\nx/a node-a tcp/8088 closed",
        ),
        (
            "{podSelector: {matchLabels: {app: b}}, ingress: [{ports: [{port: 8088}]}]}",
            "outside node-a tcp/8088 closed\nx/a node-a tcp/8088 closed",
        ),
        (
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: b}}}], ports: [{port: 80}]}]}",
            "x/a node-a tcp/8088 open\nx/a node-a tcp/81 closed",
        ),
        (
            "{podSelector: {matchLabels: {app: a}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: '<node-a v4>/32'}}, {ipBlock: {cidr: '<node-a v6>/128'}}]}]}",
            "x/a node-a tcp/8088 closed\nx/a node-a tcp/81 open",
        ),
    ];
    call(bed, "ADD")?;
    let (mut wrong, mut count) = (Vec::new(), 0);
    for (number, (rules, lines)) in steps.into_iter().enumerate() {
        let text = bed.fill(&policy(rules))?;
        bed.api()?.apply(&text)?;
        bed.wait_heard()?;
        let (faults, probes) = probes::wrong(bed, lines, false)?;
        let faults = faults.into_iter();
        wrong.extend(faults.map(|fault| format!("step {}: {fault}", number + 1)));
        count += probes;
    }
    bed.api()?.withdraw(&policy("{podSelector: {}}"))?;
    call(bed, "DEL")?;
    bed.wait_heard()?;
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
