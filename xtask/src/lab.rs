//! `cargo xtask lab`: a lab that stays up, and its end.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Alone, ControlPlaneConfig};
use towpath_tests::keeper::remove_everything;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::tools::Tool;
use towpath_tests::{netns, program};

use crate::cargo::build_programs;
use crate::demo::cast;
use crate::output::say;
use crate::{interrupt, setup};

/// What can be done with a lab.
#[derive(Subcommand)]
pub(crate) enum Verb {
    /// Builds nodes and pods in namespaces, starts an agent per node, and leaves them running
    Up {
        /// How many nodes
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=26))]
        nodes: u8,
        /// IPv6 beside IPv4
        #[arg(long)]
        ipv6: bool,
        /// Only nodes and pods: start agents by hand
        #[arg(long)]
        no_agents: bool,
        /// Only a real Kubernetes API server with its controllers, without nodes
        #[arg(long, conflicts_with_all = ["nodes", "no_agents"])]
        control_plane: bool,
    },
    /// Removes the lab that `lab up` or `demo --keep` left
    Down,
}

/// What `lab down` must know.
#[derive(Debug, Serialize, Deserialize)]
struct State {
    prefix: String,
    folder: PathBuf,
}

/// `cargo xtask lab`.
pub(crate) fn run(verb: &Verb) -> Result<ExitCode> {
    match verb {
        Verb::Up {
            control_plane: true,
            ipv6,
            ..
        } => up_control_plane(*ipv6)?,
        Verb::Up {
            nodes,
            ipv6,
            no_agents,
            ..
        } => {
            let config = LabConfig {
                nodes: *nodes,
                ipv6: *ipv6,
                ..LabConfig::default()
            };
            up(&config, !no_agents)?;
        }
        Verb::Down => down()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(config: &LabConfig, with_agents: bool) -> Result<()> {
    refuse_second()?;
    setup::install()?;
    build_programs()?;
    interrupt::watch()?;
    let mut lab = Lab::new(config)?;
    interrupt::clean_up_on_signal(lab.run());
    cast::enter(&mut lab)?;
    let mut agents = Vec::new();
    if with_agents {
        for node in lab.nodes() {
            agents.push(Agent::start(&lab, &node.name, &AgentOptions::default())?);
        }
        for agent in &mut agents {
            agent.wait_ready()?;
        }
    }
    keep(lab, agents)
}

fn up_control_plane(ipv6: bool) -> Result<()> {
    refuse_second()?;
    setup::install()?;
    setup::install_cluster()?;
    build_programs()?;
    interrupt::watch()?;
    let config = ControlPlaneConfig {
        ipv6,
        schedule: true,
        ..ControlPlaneConfig::default()
    };
    let alone = Alone::start(&config)?;
    interrupt::clean_up_on_signal(alone.run());
    note(alone.run().prefix(), alone.run().folder())?;
    let kubeconfig = alone.plane.kubeconfig().display();
    let kubectl = kubectl()?;
    say(&format!(
        "\nA control plane is up ({}). Try:\n  \
           export KUBECONFIG={kubeconfig}\n  \
           {kubectl} get --raw /readyz\n  \
           {kubectl} get namespaces\n\n\
         cargo xtask lab down removes all of it.",
        alone.run().prefix(),
    ));
    alone.release()
}

/// The user's kubectl, else the one that is built with the servers.
fn kubectl() -> Result<String> {
    if program::is_installed("kubectl") {
        return Ok("kubectl".to_owned());
    }
    Ok(Tool::Kubectl.path()?.display().to_string())
}

/// An error when a kept lab is there already.
pub(crate) fn refuse_second() -> Result<()> {
    let Some(state) = read_state()? else {
        return Ok(());
    };
    if netns::list(&state.prefix)?.is_empty() {
        // It went away by itself, say with a reboot.
        return Ok(fs::remove_file(state_file())?);
    }
    bail!(
        "a lab is up already ({}); cargo xtask lab down removes it",
        state.prefix
    )
}

/// Leaves a lab and its agents running, notes it for `lab down`, and says how to play with it.
pub(crate) fn keep(lab: Lab, agents: Vec<Agent>) -> Result<()> {
    note(lab.prefix(), lab.folder())?;
    say(&instructions(&lab, &agents)?);
    for agent in agents {
        agent.release();
    }
    lab.release()
}

/// Notes a lab for `lab down`.
fn note(prefix: &str, folder: &Path) -> Result<()> {
    let file = state_file();
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let state = State {
        prefix: prefix.to_owned(),
        folder: folder.to_owned(),
    };
    fs::write(&file, serde_json::to_string_pretty(&state)?)
        .with_context(|| format!("cannot note the lab in {}", file.display()))
}

fn down() -> Result<()> {
    let Some(state) = read_state()? else {
        say("no lab is up");
        return Ok(());
    };
    remove_everything(&state.prefix, &state.folder)?;
    fs::remove_file(state_file())?;
    say(&format!("removed lab {}", state.prefix));
    Ok(())
}

fn read_state() -> Result<Option<State>> {
    let file = state_file();
    match fs::read_to_string(&file) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        text => {
            let text = text.with_context(|| format!("cannot read {}", file.display()))?;
            let state = serde_json::from_str(&text)
                .with_context(|| format!("{} is not the note of a lab", file.display()))?;
            Ok(Some(state))
        }
    }
}

/// One lab may stay up per machine: `/run` forgets it with a reboot, as the kernel forgets the namespaces.
fn state_file() -> PathBuf {
    Path::new("/run/towpath-lab").join("state.json")
}

/// Where everything is, and what to try.
fn instructions(lab: &Lab, agents: &[Agent]) -> Result<String> {
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
    lines.extend(
        suggestions(lab)?
            .into_iter()
            .map(|line| format!("  {line}")),
    );
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
