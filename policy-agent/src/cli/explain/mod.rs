//! `towpath explain`: why a connection is allowed or denied, tier by tier, in both directions.

mod record;
mod text;
mod via;

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use smol_str::SmolStr;
use towpath_core::evaluate::{Evaluator, Flow};
use towpath_core::model::{Cluster, Direction, Endpoint, Protocol};

use self::record::Record;
use self::via::{Question, Via};
use super::arguments::{End, Service, SourceLocation};
use super::error::{CommandError, Exit};
use super::output::{Format, Output};
use super::placeholder::Placeholders;
use super::{OutputArguments, remark, world};
use crate::agent::config::Config;
use crate::agent::local_services;
use crate::source::kubernetes::{KubernetesSource, LoadError};
use crate::source::{ServiceSeen, see_in_files};

#[derive(Clone, Debug, Args)]
pub(super) struct ExplainArguments {
    #[arg(
        long,
        env = "TOWPATH_SOURCE",
        help = "Where objects come from: file:DIR, kubernetes:KUBECONFIG, or kubernetes inside of a cluster"
    )]
    source: SourceLocation,
    /// Who connects: NAMESPACE/POD or an IP address.
    #[arg(long, visible_alias = "client")]
    from: End,
    /// To whom: NAMESPACE/POD or an IP address, after Service translation; with --via only this pod of the Service.
    #[arg(long, required_unless_present = "via")]
    to: Option<End>,
    /// Through service/NAMESPACE/NAME: each step of the translation, and what policy says of each pod behind it.
    #[arg(long, value_name = "SERVICE")]
    via: Option<Via>,
    /// With --via: the node whose port of the Service is asked.
    #[arg(long, requires = "via")]
    node: Option<String>,
    /// What is tried: 80/tcp, a port name, or a protocol such as icmp. With --via a port of the Service, else of the
    /// destination.
    #[arg(long)]
    port: Service,
    /// Configuration of the agents: its localServices count too.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    output: OutputArguments,
}

/// Exit status 0 whatever the verdict: the question was answered.
pub(super) fn run(arguments: &ExplainArguments) -> Result<Exit, CommandError> {
    let mut cluster = world::load(&arguments.source)?.cluster;
    if let Some(file) = &arguments.config {
        let config = Config::read(file)?;
        for update in local_services::updates(&config.local_services) {
            cluster.apply(update);
        }
    }
    if Placeholders::default().fill(&mut cluster) > 0 {
        remark("towpath: endpoints without an address are judged under addresses of 198.18.0.0/15");
    }
    let asked = match &arguments.via {
        None => direct(&cluster, arguments)?,
        Some(via) => {
            let seen = see(&arguments.source, via)?;
            let question = Question {
                via,
                from: &arguments.from,
                to: arguments.to.as_ref(),
                port: &arguments.port,
                node: arguments.node.as_deref(),
            };
            via::asked(&cluster, &seen, &question)?
        }
    };
    let evaluator = Evaluator::new(&cluster);
    let mut output = Output::stdout(arguments.output.format);
    if arguments.output.format == Format::Table {
        for one in &asked {
            text::print(&evaluator, one, &mut output)?;
        }
    } else {
        output.value(&Record::new(arguments, &evaluator, &asked))?;
    }
    output.flush()?;
    Ok(Exit::Done)
}

/// A flow that is asked about.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Asked {
    /// Both ends as the user knows them.
    from: String,
    to: String,
    flow: Flow,
    /// Where it is judged, in the order of the packet.
    directions: &'static [Direction],
    /// What happens to the packet on its way, in words.
    steps: Vec<String>,
    /// Flows of one group make up one connection: all of them must be allowed.
    group: usize,
}

fn direct(cluster: &Cluster, arguments: &ExplainArguments) -> Result<Vec<Asked>, CommandError> {
    let Some(to) = &arguments.to else {
        return Err(CommandError::Usage("give --to, or --via".to_owned()));
    };
    let flows = flows(cluster, &arguments.from, to, &arguments.port)?;
    let asked = flows.into_iter().enumerate().map(|(group, flow)| Asked {
        from: arguments.from.to_string(),
        to: to.to_string(),
        flow,
        directions: &DIRECTIONS,
        steps: Vec::new(),
        group,
    });
    Ok(asked.collect())
}

fn see(source: &SourceLocation, via: &Via) -> Result<ServiceSeen, CommandError> {
    let seen = match source {
        SourceLocation::File(root) => see_in_files(root, &via.namespace, &via.name),
        SourceLocation::Kubernetes(kubeconfig) => KubernetesSource::open(kubeconfig.as_deref())
            .map_err(LoadError::from)?
            .see_service(&via.namespace, &via.name)?,
    };
    seen.ok_or_else(|| CommandError::Failed(format!("there is no {via}")))
}

/// The flows that the question means: one per address family that both ends have, and one per number of a named
/// port.
fn flows(
    cluster: &Cluster,
    from: &End,
    to: &End,
    service: &Service,
) -> Result<Vec<Flow>, CommandError> {
    let (sources, destinations) = (addresses(cluster, from)?, addresses(cluster, to)?);
    let services = services(cluster, to, service)?;
    let mut flows = Vec::new();
    for source in &sources {
        for destination in destinations
            .iter()
            .filter(|to| to.is_ipv4() == source.is_ipv4())
        {
            flows.extend(services.iter().map(|(protocol, port)| Flow {
                source: *source,
                destination: *destination,
                protocol: *protocol,
                port: *port,
            }));
        }
    }
    if flows.is_empty() {
        return Err(CommandError::Failed(format!(
            "{from} and {to} share no address family"
        )));
    }
    Ok(flows)
}

/// The first address of each family; an endpoint's further ones are judged alike.
fn addresses(cluster: &Cluster, end: &End) -> Result<Vec<IpAddr>, CommandError> {
    let (namespace, name) = match end {
        End::Address(address) => return Ok(vec![*address]),
        End::Endpoint { namespace, name } => (namespace, name),
    };
    let endpoint = find(cluster, namespace, name)?;
    let first = |is_v4| {
        endpoint
            .addresses
            .iter()
            .copied()
            .find(|a| a.is_ipv4() == is_v4)
    };
    let addresses: Vec<IpAddr> = [true, false].into_iter().filter_map(first).collect();
    if addresses.is_empty() {
        return Err(CommandError::Failed(format!("{end} has no address")));
    }
    if endpoint.host_network {
        remark(&format!(
            "towpath: {end} is on the host network: it is judged as its node"
        ));
    } else if !endpoint.is_workload() {
        remark(&format!(
            "towpath: {end} has finished: its address may be another's"
        ));
    }
    Ok(addresses)
}

fn find<'a>(
    cluster: &'a Cluster,
    namespace: &SmolStr,
    name: &SmolStr,
) -> Result<&'a Endpoint, CommandError> {
    let is_it =
        |endpoint: &&Endpoint| endpoint.id.namespace == *namespace && endpoint.id.name == *name;
    cluster.endpoints.values().find(is_it).ok_or_else(|| {
        CommandError::Failed(format!(
            "there is no pod or workload endpoint {namespace}/{name}"
        ))
    })
}

/// Protocol numbers and ports of a service; a named port may stand for several.
fn services(
    cluster: &Cluster,
    to: &End,
    service: &Service,
) -> Result<Vec<(u8, Option<u16>)>, CommandError> {
    let (protocol, name) = match service {
        Service::Port(protocol, port) => return Ok(vec![(protocol.number(), Some(*port))]),
        Service::Protocol(number) => return Ok(vec![(*number, None)]),
        Service::Named(protocol, name) => (protocol, name),
    };
    let endpoint = match to {
        End::Endpoint { namespace, name } => find(cluster, namespace, name)?,
        End::Address(address) => cluster
            .endpoints
            .values()
            .find(|endpoint| endpoint.is_workload() && endpoint.addresses.contains(address))
            .ok_or_else(|| {
                CommandError::Failed(format!("{to} is no pod, so it has no port names"))
            })?,
    };
    let is_meant = |known: Protocol| protocol.is_none_or(|wanted| wanted == known);
    let mut found: Vec<(u8, Option<u16>)> = endpoint
        .ports
        .iter()
        .filter(|port| port.name.as_ref() == Some(name) && is_meant(port.protocol))
        .map(|port| (port.protocol.number(), Some(port.number)))
        .collect();
    found.sort_unstable();
    found.dedup();
    if found.is_empty() {
        return Err(CommandError::Failed(format!(
            "{to} declares no port named {service}"
        )));
    }
    Ok(found)
}

/// Both directions in the order of the packet.
const DIRECTIONS: [Direction; 2] = [Direction::Egress, Direction::Ingress];

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::cli::output::tests::Captured;
    use crate::cli::world::tests::{DATABASE_POLICY, SHOP, cluster};

    fn arguments(from: &str, to: &str, port: &str) -> ExplainArguments {
        ExplainArguments {
            source: "file:unused".parse().unwrap(),
            from: from.parse().unwrap(),
            to: Some(to.parse().unwrap()),
            via: None,
            node: None,
            port: port.parse().unwrap(),
            config: None,
            output: OutputArguments {
                format: Format::Table,
            },
        }
    }

    fn explained(from: &str, port: &str) -> String {
        let cluster = cluster(&format!("{SHOP}---\n{DATABASE_POLICY}"));
        let arguments = arguments(from, "shop/db", port);
        let asked = direct(&cluster, &arguments).unwrap();
        text_of(&cluster, &asked)
    }

    pub(super) fn text_of(cluster: &Cluster, asked: &[Asked]) -> String {
        let evaluator = Evaluator::new(cluster);
        let captured = Captured::default();
        let mut output = captured.output(Format::Table);
        for one in asked {
            text::print(&evaluator, one, &mut output).unwrap();
        }
        captured.text()
    }

    #[test]
    fn a_denial_names_the_tier_the_policies_and_the_near_misses() {
        insta::assert_snapshot!(explained("shop/cron", "5432/tcp"));
    }

    #[test]
    fn both_families_of_an_allowed_flow_are_explained() {
        insta::assert_snapshot!(explained("shop/web", "sql"));
    }

    #[test]
    fn the_record_names_the_deciding_rule() {
        let cluster = cluster(&format!("{SHOP}---\n{DATABASE_POLICY}"));
        let arguments = arguments("shop/web", "10.0.0.2", "5432/tcp");
        let asked = direct(&cluster, &arguments).unwrap();
        let evaluator = Evaluator::new(&cluster);

        let record = serde_json::to_value(Record::new(&arguments, &evaluator, &asked)).unwrap();
        assert_eq!(record["verdict"], "allow");
        let expected = serde_json::json!({
            "tier": "NetworkPolicy",
            "policies": ["NetworkPolicy shop/db"],
            "rule": 0,
            "ruleName": null,
            "action": "Accept",
        });
        assert_eq!(record["flows"][0]["directions"][1]["deciding"], expected);
    }

    #[test]
    fn what_does_not_exist_is_an_error() {
        let cluster = cluster(SHOP);
        for (from, port) in [("shop/nobody", "80/tcp"), ("shop/web", "http")] {
            let arguments = arguments(from, "shop/db", port);

            let error = direct(&cluster, &arguments).unwrap_err();

            assert_eq!(error.exit(), Exit::Failed, "{error}");
        }
    }
}
