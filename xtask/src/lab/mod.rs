//! `cargo xtask lab`: a lab that stays up, and its end.

mod instructions;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::{Alone, ControlPlane, ControlPlaneConfig, Crowd};
use towpath_tests::keeper::remove_everything;
use towpath_tests::lab::{Lab, LabConfig};
use towpath_tests::netns;

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
        /// A real cluster: API server, Flannel, kube-proxy, and containerd with a kubelet on each node
        #[arg(long, conflicts_with = "control_plane")]
        kubernetes: bool,
        /// Only a real Kubernetes API server with its controllers, without nodes
        #[arg(long, conflicts_with_all = ["nodes", "no_agents"])]
        control_plane: bool,
        /// Beside it this many pods, and a node for ten of them, that are objects only
        #[arg(long, value_name = "PODS", value_parser = clap::value_parser!(u32).range(1..=40_960))]
        crowd: Option<u32>,
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
            crowd,
            ..
        } => up_control_plane(*ipv6, *crowd)?,
        Verb::Up {
            nodes,
            ipv6,
            no_agents,
            kubernetes,
            crowd,
            ..
        } => {
            let config = LabConfig {
                nodes: *nodes,
                ipv6: *ipv6,
                ..if *kubernetes {
                    LabConfig::real()
                } else {
                    LabConfig::default()
                }
            };
            up(&config, !no_agents, *crowd)?;
        }
        Verb::Down => down()?,
    }
    Ok(ExitCode::SUCCESS)
}

fn up(config: &LabConfig, with_agents: bool, crowd: Option<u32>) -> Result<()> {
    refuse_second()?;
    setup::install()?;
    if config.kubernetes.is_some() {
        setup::install_cluster()?;
    }
    build_programs()?;
    interrupt::watch()?;
    let built = build(config, with_agents, crowd);
    interrupt::yield_to_signal();
    let (lab, agents) = built?;
    keep(lab, agents)
}

fn build(config: &LabConfig, with_agents: bool, crowd: Option<u32>) -> Result<(Lab, Vec<Agent>)> {
    if config.kubernetes.is_some() {
        say("starting the cluster: API server, Flannel, kubelets, and six pods");
    }
    let mut lab = Lab::new(config)?;
    interrupt::clean_up_on_signal(lab.run());
    cast::enter(&mut lab)?;
    enter_crowd(crowd, || Ok(&lab.cluster()?.plane))?;
    let mut agents = Vec::new();
    if with_agents {
        for node in lab.nodes() {
            agents.push(Agent::start(&lab, &node.name, &AgentOptions::default())?);
        }
        for agent in &mut agents {
            agent.wait_ready()?;
        }
    }
    Ok((lab, agents))
}

fn up_control_plane(ipv6: bool, crowd: Option<u32>) -> Result<()> {
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
    enter_crowd(crowd, || Ok(&alone.plane))?;
    note(alone.run().prefix(), alone.run().folder())?;
    let kubeconfig = alone.plane.kubeconfig().display();
    let kubectl = instructions::kubectl()?;
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

fn enter_crowd<'a>(
    pods: Option<u32>,
    plane: impl FnOnce() -> Result<&'a ControlPlane>,
) -> Result<()> {
    let Some(pods) = pods else {
        return Ok(());
    };
    let crowd = Crowd::of(pods);
    let started = Instant::now();
    crowd.enter(plane()?)?;
    say(&format!(
        "{} nodes, {} namespaces and {pods} pods that are objects only, in {} s",
        crowd.nodes,
        crowd.namespaces,
        started.elapsed().as_secs()
    ));
    Ok(())
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
    say(&instructions::instructions(&lab, &agents)?);
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
