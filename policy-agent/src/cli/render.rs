//! `towpath render`: the nft text that an agent would load. It looks at no kernel.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde::Serialize;
use towpath_core::calc::CalcGraph;
use towpath_core::model::{
    Cluster, Endpoint, EndpointKind, InterfaceName, MacAddress, Object, ObservedInterface, Update,
};
use towpath_dataplane::nft::TableFlags;

use super::arguments::SourceLocation;
use super::error::{CommandError, Exit};
use super::output::{Format, Output};
use super::{OutputArguments, remark, world};
use crate::agent::backend::layout_options;
use crate::agent::config::{Config, Flags};
use crate::layout::NodeFacts;
use crate::render::render_text;

#[derive(Clone, Debug, Args)]
pub(super) struct RenderArguments {
    #[arg(
        long,
        help = "Where objects come from: file:DIR, kubernetes:KUBECONFIG, or kubernetes inside of a cluster [env: TOWPATH_SOURCE]"
    )]
    source: Option<SourceLocation>,
    #[arg(long, help = "The node whose tables are meant [env: TOWPATH_NODE]")]
    node: Option<String>,
    /// Configuration file of the agent: bridges, prefixes, ports.
    #[arg(long, value_name = "FILE", env = "TOWPATH_CONFIG")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArguments,
}

/// What the text is for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Rendered {
    node: String,
    placeholders: Vec<Placeholder>,
    text: String,
}

/// An interface that stands for that of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Placeholder {
    interface: String,
    endpoint: String,
}

pub(super) fn run(arguments: &RenderArguments) -> Result<Exit, CommandError> {
    let flags = Flags {
        node: arguments.node.clone(),
        source: arguments.source.clone(),
        ..Flags::default()
    };
    let variable = |name: &str| std::env::var(name).ok();
    let config = Config::load(arguments.config.as_deref(), variable, flags)?;
    let source = config
        .source
        .as_ref()
        .expect("a loaded configuration has a source");
    let cluster = world::load(source)?.cluster;
    let is_known = cluster.nodes.contains_key(config.node.as_str());
    let rendered = render(cluster, &config)?;
    if !is_known && rendered.placeholders.is_empty() {
        let node = &config.node;
        remark(&format!(
            "towpath: no manifest speaks of node {node:?}; check --node"
        ));
    }
    let mut output = Output::stdout(arguments.output.format);
    if arguments.output.format == Format::Table {
        print_head(&rendered, &mut output)?;
        output.text(&rendered.text)?;
    } else {
        output.value(&rendered)?;
    }
    output.flush()?;
    Ok(Exit::Done)
}

fn print_head(rendered: &Rendered, output: &mut Output) -> std::io::Result<()> {
    output.line(&format!(
        "# The tables of node {:?}. Where the kernel can, the agent adds the flags owner and persist.",
        rendered.node
    ))?;
    if !rendered.placeholders.is_empty() {
        let remark = "No kernel was asked, so interfaces and hardware addresses are placeholders:";
        output.line(&format!("# {remark}"))?;
    }
    rendered.placeholders.iter().try_for_each(
        |Placeholder {
             interface,
             endpoint,
         }| { output.line(&format!("#   {interface} for {endpoint}")) },
    )
}

fn render(cluster: Cluster, config: &Config) -> Result<Rendered, CommandError> {
    let bound = placeholders(&cluster, config);
    let node_addresses = cluster
        .nodes
        .values()
        .flat_map(NodeFacts::addresses_of)
        .collect();
    let (on_bridge, routed): (Vec<_>, Vec<_>) = bound
        .iter()
        .map(|(_, interface)| interface)
        .partition(|interface| interface.bridge.is_some());
    let names = |interfaces: Vec<&ObservedInterface>| {
        interfaces
            .into_iter()
            .map(|interface| interface.name.clone())
            .collect()
    };
    let mut facts = NodeFacts {
        pod_interfaces: config.pod_bridges.iter().cloned().collect(),
        routed_interfaces: names(routed),
        pod_ports: names(on_bridge),
        node_addresses: Arc::new(node_addresses),
        ..NodeFacts::default()
    };
    facts
        .pod_interfaces
        .extend(facts.routed_interfaces.iter().cloned());
    let mut graph = CalcGraph::new(config.node.as_str());
    let placeholders = bound
        .iter()
        .map(|(endpoint, interface)| Placeholder {
            interface: interface.name.to_string(),
            endpoint: endpoint.clone(),
        })
        .collect();
    objects(cluster)
        .chain(
            bound
                .into_iter()
                .map(|(_, interface)| Object::Interface(interface)),
        )
        .for_each(|object| graph.apply(&Update::Upsert(object)));
    graph.flush();
    let options = layout_options(config, TableFlags::default());
    let text = render_text(&graph.tables(), &facts, &options)
        .map_err(|error| CommandError::Failed(error.to_string()))?;
    Ok(Rendered {
        node: config.node.clone(),
        placeholders,
        text,
    })
}

fn objects(cluster: Cluster) -> impl Iterator<Item = Object> {
    let Cluster {
        namespaces,
        nodes,
        endpoints,
        policies,
        interfaces,
    } = cluster;
    let namespaces = namespaces.into_values().map(Object::Namespace);
    namespaces
        .chain(nodes.into_values().map(Object::Node))
        .chain(endpoints.into_values().map(Object::Endpoint))
        .chain(policies.into_values().map(Object::Policy))
        .chain(interfaces.into_values().map(Object::Interface))
}

/// An interface for each endpoint of the node: a port of the first pod bridge, else a routed one.
fn placeholders(cluster: &Cluster, config: &Config) -> Vec<(String, ObservedInterface)> {
    let is_local = |endpoint: &&Endpoint| {
        let is_here = match &endpoint.node {
            Some(node) => *node == config.node,
            None => endpoint.id.kind == EndpointKind::WorkloadEndpoint,
        };
        is_here && endpoint.is_workload() && !endpoint.addresses.is_empty()
    };
    let local = cluster.endpoints.values().filter(is_local);
    (1..)
        .zip(local)
        .map(|(index, endpoint)| (endpoint.id.to_string(), stand_in(index, endpoint, config)))
        .collect()
}

fn stand_in(index: u32, endpoint: &Endpoint, config: &Config) -> ObservedInterface {
    let made = || -> InterfaceName {
        format!("pod{index}")
            .parse()
            .expect("pod and a number is an interface name")
    };
    let [_, b, c, d] = index.to_be_bytes();
    ObservedInterface {
        index,
        name: endpoint.interface.clone().unwrap_or_else(made),
        bridge: config.pod_bridges.first().cloned(),
        mac: endpoint.mac.or(Some(MacAddress([0x02, 0, 0, b, c, d]))),
        addresses: endpoint.addresses.clone(),
    }
}
