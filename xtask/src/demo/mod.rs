//! `cargo xtask demo`: the main job, told so that a newcomer understands it.
//!
//! Every verdict shown is checked. The first wrong one ends the story with an error.

pub(crate) mod cast;
mod explain;
mod latency;
mod scene;

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use towpath_tests::lab::{Lab, LabConfig};

use self::scene::Story;
use crate::cargo::build_programs;
use crate::output::say;
use crate::{interrupt, lab, setup};

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Leaves the lab up with policies and agents in force, and prints commands to play with it
    #[arg(long)]
    keep: bool,
    /// Tells the story on a real cluster: API server, Flannel, kube-proxy, kubelets
    #[arg(long)]
    kubernetes: bool,
}

/// `cargo xtask demo`.
pub(crate) fn run(arguments: &Arguments) -> Result<ExitCode> {
    if arguments.keep {
        lab::refuse_second()?;
    }
    setup::install()?;
    if arguments.kubernetes {
        setup::install_cluster()?;
    }
    build_programs()?;
    // From here on things are made that ctrl-C must remove. Until here it just ends everything.
    interrupt::watch()?;
    let started = Instant::now();
    let told = tell(arguments);
    interrupt::yield_to_signal();
    told?;
    say(&format!(
        "\nEvery verdict shown was the right one. The story took {} s.",
        started.elapsed().as_secs()
    ));
    Ok(ExitCode::SUCCESS)
}

fn tell(arguments: &Arguments) -> Result<()> {
    let keep = arguments.keep;
    let config = if arguments.kubernetes {
        say("starting the cluster: API server, Flannel, kubelets, and six pods");
        LabConfig::real()
    } else {
        LabConfig::default()
    };
    let mut lab = Lab::new(&config)?;
    interrupt::clean_up_on_signal(lab.run());
    cast::enter(&mut lab)?;
    let mut story = Story::new(lab, if keep { 7 } else { 9 });
    story.opening()?;
    story.everything_open()?;
    story.policies_arrive()?;
    story.one_denial_explained()?;
    story.agent_is_killed()?;
    story.agent_comes_back()?;
    story.new_pod_is_closed_until_programmed()?;
    if keep {
        let (lab, agents) = story.into_parts();
        return lab::keep(lab, agents);
    }
    story.policies_go()?;
    story.uninstall()?;
    let (lab, agents) = story.into_parts();
    drop(agents);
    lab.close()
}
