//! Who plays in the demo, and what policy allows them: worked out by hand from `examples/demo`.

use anyhow::{Context as _, Result};
use towpath_tests::lab::{Lab, PodSpec};
use towpath_tests::probe::Protocol;

use crate::cargo::root;

/// Namespaces and their labels.
pub(crate) const NAMESPACES: [(&str, &str); 3] = [
    ("shop", "internal"),
    ("monitoring", "internal"),
    ("guest", "guest"),
];

/// Pod, node (by number), TCP port and its name. Every pod also answers on 53/udp.
const PODS: [(&str, &str, usize, u16, &str); 6] = [
    ("shop", "frontend", 0, 80, "http"),
    ("shop", "api", 1, 80, "http"),
    ("shop", "db", 0, 5432, "sql"),
    ("monitoring", "metrics", 1, 80, "http"),
    ("guest", "kiosk", 0, 80, "http"),
    ("guest", "visitor", 1, 80, "http"),
];

/// Files of `examples/demo`.
pub(crate) const POLICIES: [&str; 3] = ["guests-stay-out", "shop", "guests-serve-nobody"];

/// From, to, and the open ports.
type Door = (&'static str, &'static str, &'static [(u16, Protocol)]);

/// Everything that the policies leave open, and nothing else is.
const OPEN: [Door; 8] = [
    // The shop's own doors.
    ("shop/frontend", "shop/api", &[(80, Protocol::Tcp)]),
    ("shop/api", "shop/frontend", &[(80, Protocol::Tcp)]),
    ("shop/api", "shop/db", &[(5432, Protocol::Tcp)]),
    // Nothing restricts who reaches monitoring, but guests (Admin) and what the database may send (NetworkPolicy).
    (
        "shop/frontend",
        "monitoring/metrics",
        &[(80, Protocol::Tcp), (53, Protocol::Udp)],
    ),
    (
        "shop/api",
        "monitoring/metrics",
        &[(80, Protocol::Tcp), (53, Protocol::Udp)],
    ),
    // Admin lets monitoring in everywhere, before the shop's default deny is asked.
    (
        "monitoring/metrics",
        "shop/frontend",
        &[(80, Protocol::Tcp), (53, Protocol::Udp)],
    ),
    (
        "monitoring/metrics",
        "shop/api",
        &[(80, Protocol::Tcp), (53, Protocol::Udp)],
    ),
    (
        "monitoring/metrics",
        "shop/db",
        &[(5432, Protocol::Tcp), (53, Protocol::Udp)],
    ),
];

/// Whether the policies leave this open. `shop/late` is a second frontend that comes later.
pub(crate) fn is_open(from: &str, to: &str, port: u16, protocol: Protocol) -> bool {
    let [from, to] = [from, to].map(|name| if name == LATE { "shop/frontend" } else { name });
    if from == to {
        // The two frontends: frontend-for-everybody opens 80/tcp.
        return (port, protocol) == (80, Protocol::Tcp);
    }
    OPEN.iter().any(|(source, destination, ports)| {
        *source == from && *destination == to && ports.contains(&(port, protocol))
    })
}

/// The pod that comes later.
pub(crate) const LATE: &str = "shop/late";

/// The specification of the pod that comes later, on the first node.
pub(crate) fn late(lab: &Lab) -> Result<PodSpec> {
    let node = &lab.nodes().first().context("the lab has nodes")?.name;
    Ok(spec(node, "shop", "late", 80, "http").label("app", "frontend"))
}

/// Writes the namespaces and plugs and publishes the pods, spread over the lab's nodes.
pub(crate) fn enter(lab: &mut Lab) -> Result<()> {
    for (name, trust) in NAMESPACES {
        lab.write_namespace(name, &[("trust", trust)])?;
    }
    let nodes: Vec<String> = lab.nodes().iter().map(|node| node.name.clone()).collect();
    let pods = PODS.map(|(namespace, name, place, port, port_name)| {
        let node = &nodes[place % nodes.len()];
        spec(node, namespace, name, port, port_name).label("app", name)
    });
    lab.add_pods(pods.into())
}

/// Text of a file of `examples/demo`.
pub(crate) fn policy(name: &str) -> Result<String> {
    let path = root().join("examples/demo").join(format!("{name}.yaml"));
    std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))
}

fn spec(node: &str, namespace: &str, name: &str, port: u16, port_name: &str) -> PodSpec {
    PodSpec::new(node, namespace, name)
        .port(Some(port_name), Protocol::Tcp, port)
        .port(Some("dns"), Protocol::Udp, 53)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_frontend_has_the_doors_of_the_frontend() {
        assert!(is_open(LATE, "shop/api", 80, Protocol::Tcp));
        assert!(is_open("shop/frontend", LATE, 80, Protocol::Tcp));
        assert!(!is_open("shop/frontend", LATE, 53, Protocol::Udp));
        assert!(!is_open("guest/visitor", LATE, 80, Protocol::Tcp));
    }

    #[test]
    fn files_of_the_demo_are_there() {
        for name in POLICIES {
            assert!(policy(name).unwrap().contains("NetworkPolicy"));
        }
    }
}
