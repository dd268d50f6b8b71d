//! What a newcomer is told about a lab that stays up.

use anyhow::Result;
use towpath_tests::agent::Agent;
use towpath_tests::cluster::{Cluster, LAB};
use towpath_tests::lab::{Lab, Pod, PodSpec};
use towpath_tests::{program, tools};

/// Where everything is, and what to try.
pub(super) fn instructions(lab: &Lab, agents: &[Agent]) -> Result<String> {
    let folder = lab.manifests.folder().display();
    let mut lines = vec![
        String::new(),
        format!("The lab {} is up. Manifests: {folder}", lab.prefix()),
        String::new(),
    ];
    for node in lab.nodes() {
        let (name, namespace) = (&node.name, node.namespace.name());
        lines.push(format!(
            "  {name:20} {:44} ip netns exec {namespace} bash",
            ""
        ));
    }
    for pod in lab.pods() {
        let addresses: Vec<String> = pod.addresses.iter().map(ToString::to_string).collect();
        lines.push(format!(
            "  {:20} {:8} {:35} ip netns exec {} bash",
            pod.id(),
            pod.spec.node,
            addresses.join(" "),
            pod.namespace.name()
        ));
    }
    lines.extend([String::new(), "Try:".to_owned()]);
    let suggestions = match lab.cluster() {
        Ok(cluster) => suggestions_for_cluster(lab, cluster)?,
        Err(_) => suggestions(lab)?,
    };
    lines.extend(suggestions.into_iter().map(|line| format!("  {line}")));
    let towpath = program::towpath()?;
    for agent in agents {
        let socket = agent.socket().display();
        lines.push(format!("  {} status --socket {socket}", towpath.display()));
    }
    lines.extend([
        String::new(),
        "cargo xtask lab down removes all of it.".to_owned(),
    ]);
    Ok(lines.join("\n"))
}

fn suggestions(lab: &Lab) -> Result<Vec<String>> {
    let from = lab.pod("shop/frontend")?;
    let to = lab.pod("shop/db")?;
    let node = lab.node(&to.spec.node)?;
    let towpath = program::towpath()?;
    let towpath = towpath.display();
    let folder = lab.manifests.folder().display();
    let change = if lab.manifests.folder().join("shop.yaml").exists() {
        format!("rm {folder}/shop.yaml")
    } else {
        format!("cp examples/demo/*.yaml {folder}/")
    };
    Ok(vec![
        format!(
            "ip netns exec {} ping -c 1 {}",
            from.namespace.name(),
            to.ipv4()?
        ),
        format!("{change}   # takes effect at once"),
        format!("{towpath} simulate --source file:{folder}"),
        format!(
            "{towpath} explain --source file:{folder} --from {} --to {} --port 5432/tcp",
            from.id(),
            to.id()
        ),
        format!("ip netns exec {} nft list ruleset", node.namespace.name()),
    ])
}

fn suggestions_for_cluster(lab: &Lab, cluster: &Cluster) -> Result<Vec<String>> {
    let db = lab.pod("shop/db")?;
    let guest = lab.pod("guest/visitor")?;
    let kubectl = kubectl()?;
    let towpath = program::towpath()?;
    // The servers say the name of their pod to whoever comes.
    let ask = |from: &Pod| -> Result<String> {
        let PodSpec {
            namespace, name, ..
        } = &from.spec;
        Ok(format!(
            "{kubectl} -n {namespace} exec {name} -- nc -w 2 {} 5432",
            db.ipv4()?
        ))
    };
    let node = lab.node(&db.spec.node)?.namespace.name();
    let mut lines = vec![
        format!("export KUBECONFIG={}", cluster.plane.kubeconfig().display()),
        format!("{kubectl} get nodes,pods -A -o wide"),
    ];
    let open = format!("{}   # prints {}", ask(guest)?, db.id());
    let apply = format!("{kubectl} apply -f examples/demo/   # takes effect at once");
    let closed = format!("{}   # silence", ask(guest)?);
    let delete = format!("{kubectl} delete -f examples/demo/");
    // The demo leaves its policies in force.
    lines.extend(if lab.manifests.folder().join("shop.yaml").exists() {
        [closed, delete, open, apply]
    } else {
        [open, apply, closed, delete]
    });
    lines.extend([
        format!(
            "{kubectl} -n shop exec api -- nc -w 2 {} 5432   # prints {} in either case",
            db.ipv4()?,
            db.id()
        ),
        format!(
            "{} simulate --source {}",
            towpath.display(),
            lab.source_on_host()
        ),
        format!("{kubectl} -n shop logs db"),
        format!("{kubectl} run web --image={LAB} -- httpd -f -p 80"),
        format!("ip netns exec {node} nft list ruleset"),
    ]);
    Ok(lines)
}

/// As short as it can be typed.
pub(super) fn kubectl() -> Result<String> {
    if program::is_installed("kubectl") {
        return Ok("kubectl".to_owned());
    }
    Ok(tools::kubectl()?.display().to_string())
}
