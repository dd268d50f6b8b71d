//! `v1` Pod and our own `WorkloadEndpoint`.

use std::net::IpAddr;

use smol_str::SmolStr;
use towpath_core::model::{
    ContainerPort, Endpoint, EndpointId, EndpointKind, InterfaceName, Lifecycle, MacAddress,
    Object, Protocol,
};

use super::Converted;
use super::meta::Meta;
use super::selector::all;
use crate::check;
use crate::fault::Complaint;
use crate::field::{Field, Fields};
use crate::limits;

/// Converts a Pod.
pub(super) fn convert_pod(root: &Fields<'_>, meta: &Meta) -> Converted {
    let spec = root.get("spec");
    let spec = match &spec {
        None => Some(PodSpec::default()),
        Some(spec) => read_pod_spec(spec),
    };
    let status = root.get("status");
    let status = match &status {
        None => Some((Vec::new(), Lifecycle::Live)),
        Some(status) => read_pod_status(status),
    };
    let endpoint = || {
        let PodSpec {
            node,
            host_network,
            ports,
        } = spec?;
        let (addresses, lifecycle) = status?;
        Some(Endpoint {
            id: read_id(meta, EndpointKind::Pod)?,
            uid: meta.uid,
            labels: meta.labels.clone(),
            node,
            addresses,
            ports,
            host_network,
            lifecycle,
            interface: None,
            mac: None,
        })
    };
    Converted {
        object: endpoint().map(Object::Endpoint),
        stand_in: None,
    }
}

fn read_id(meta: &Meta, kind: EndpointKind) -> Option<EndpointId> {
    let (namespace, name) = (meta.namespace.clone()?, meta.name.clone()?);
    Some(EndpointId {
        kind,
        namespace,
        name,
    })
}

#[derive(Default)]
struct PodSpec {
    node: Option<SmolStr>,
    host_network: bool,
    ports: Vec<ContainerPort>,
}

fn read_pod_spec(field: &Field<'_>) -> Option<PodSpec> {
    let spec = field.fields()?;
    let node = read_node_name(&spec, "nodeName");
    let host_network = spec
        .get("hostNetwork")
        .map_or(Some(false), |field| field.boolean());
    let containers = spec
        .get("containers")
        .map(|list| read_containers(&list, |_| true));
    // Sidecars run as long as the pod; other init containers end before it serves.
    let sidecars = spec.get("initContainers").map(|list| {
        read_containers(&list, |container| {
            container
                .get("restartPolicy")
                .and_then(|policy| policy.text())
                == Some("Always")
        })
    });
    let mut ports = containers.unwrap_or_else(|| Some(Vec::new()))?;
    ports.extend(sidecars.unwrap_or_else(|| Some(Vec::new()))?);
    Some(PodSpec {
        node,
        host_network: host_network?,
        ports: tidy(ports),
    })
}

/// The node that a field names.
fn read_node_name(spec: &Fields<'_>, field: &str) -> Option<SmolStr> {
    let field = spec.get(field)?;
    match field.text()? {
        "" => None,
        text => field.checked(check::object_name(text)).map(SmolStr::new),
    }
}

fn read_containers(
    field: &Field<'_>,
    counts: impl Fn(&Fields<'_>) -> bool,
) -> Option<Vec<ContainerPort>> {
    let containers = all(field.items(limits::PORTS)?.map(|item| {
        let container = item.fields()?;
        match container.get("ports") {
            Some(ports) if counts(&container) => all(ports
                .items(limits::PORTS)?
                .map(|port| read_port(&port, "containerPort"))),
            _ => Some(Vec::new()),
        }
    }))?;
    let ports: Vec<_> = containers.into_iter().flatten().collect();
    if ports.len() > limits::PORTS {
        field.error(
            format!("the containers declare more than {} ports", limits::PORTS),
            "declare those only to which policies refer by name",
        );
        return None;
    }
    Some(ports)
}

fn read_port(field: &Field<'_>, number: &'static str) -> Option<ContainerPort> {
    let port = field.fields()?;
    let name = read_optional(&port, "name", |text| {
        check::port_name(text).map(SmolStr::new)
    });
    let protocol = match port.get("protocol") {
        None => Some(Protocol::Tcp),
        Some(protocol) => protocol
            .text()
            .and_then(|text| protocol.checked(check::protocol(text))),
    };
    let number = port
        .require(number, "write the port's number")
        .and_then(|number| {
            let value = number.integer()?;
            number.checked(check::port_number(value))
        });
    Some(ContainerPort {
        name,
        protocol: protocol?,
        number: number?,
    })
}

fn tidy(mut ports: Vec<ContainerPort>) -> Vec<ContainerPort> {
    ports.sort();
    ports.dedup();
    ports.shrink_to_fit();
    ports
}

fn read_pod_status(field: &Field<'_>) -> Option<(Vec<IpAddr>, Lifecycle)> {
    let status = field.fields()?;
    let lifecycle = match status.get("phase") {
        None => Lifecycle::Live,
        Some(phase) => match phase.text()? {
            "Succeeded" | "Failed" => Lifecycle::Finished,
            _ => Lifecycle::Live,
        },
    };
    let mut addresses = match status.get("podIPs") {
        None => Vec::new(),
        Some(list) => all(list.items(limits::ADDRESSES)?.map(|item| {
            let fields = item.fields()?;
            read_address(&fields.require("ip", "write the address")?)
        }))?,
    };
    if addresses.is_empty()
        && let Some(single) = status.get("podIP")
        && single.text() != Some("")
    {
        addresses.push(read_address(&single)?);
    }
    Some((tidy_addresses(addresses), lifecycle))
}

fn read_address(field: &Field<'_>) -> Option<IpAddr> {
    let text = field.text()?;
    field.checked(check::unicast_address(text))
}

/// Each address once, the first ones first: that order says which is the primary one.
fn tidy_addresses(addresses: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut tidy = Vec::with_capacity(addresses.len());
    for address in addresses {
        if !tidy.contains(&address) {
            tidy.push(address);
        }
    }
    tidy
}

/// Converts a `WorkloadEndpoint`. The kind is ours, so unknown fields are mistakes.
pub(super) fn convert_workload_endpoint(root: &Fields<'_>, meta: &Meta) -> Converted {
    root.only(&["apiVersion", "kind", "metadata", "spec"]);
    let endpoint = || {
        let field = root.require("spec", "write spec with at least addresses")?;
        let spec = field.fields()?;
        spec.only(&["addresses", "interface", "mac", "node", "ports"]);
        let addresses = spec.require("addresses", "list the endpoint's IP addresses");
        let addresses = addresses.and_then(|list| {
            all(list
                .items(limits::ADDRESSES)?
                .map(|item| read_address(&item)))
        });
        let node = read_node_name(&spec, "node");
        let ports = spec.get("ports").map_or(Some(Vec::new()), |list| {
            all(list.items(limits::PORTS)?.map(|port| {
                port.fields()?.only(&["name", "protocol", "port"]);
                read_port(&port, "port")
            }))
        });
        let interface = read_optional(&spec, "interface", |text| {
            text.parse::<InterfaceName>().map_err(|error| {
                Complaint::new(
                    error.to_string(),
                    "write the host-side interface's name, like vethweb0",
                )
            })
        });
        let mac = read_optional(&spec, "mac", |text| {
            text.parse::<MacAddress>()
                .map_err(|error| Complaint::new(error, "write it like 02:42:0a:f4:01:05"))
        });
        Some(Endpoint {
            id: read_id(meta, EndpointKind::WorkloadEndpoint)?,
            uid: None,
            labels: meta.labels.clone(),
            node,
            addresses: tidy_addresses(addresses?),
            ports: tidy(ports?),
            host_network: false,
            lifecycle: Lifecycle::Live,
            interface,
            mac,
        })
    };
    Converted {
        object: endpoint().map(Object::Endpoint),
        stand_in: None,
    }
}

/// A field that may be absent.
fn read_optional<T>(
    spec: &Fields<'_>,
    name: &str,
    parse: impl Fn(&str) -> Result<T, Complaint>,
) -> Option<T> {
    let field = spec.get(name)?;
    field.checked(parse(field.text()?))
}
