//! The scenes of the story, in order.

use std::fmt::Write as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::{Lab, Node};
use towpath_tests::matrix::{Check, Flow, Matrix, Style};
use towpath_tests::simulate::Simulation;

use super::cast::{self, LATE, POLICIES, is_open};
use super::explain::explain;
use super::latency::{Reading, milliseconds};
use crate::output::say;

/// How long a change may take to be seen in the matrix. It takes milliseconds; this is for a machine under load.
const SETTLE: Duration = Duration::from_secs(10);

/// What the lab is.
const NAMESPACES: &[&str] = &[
    "Each node is a network namespace, set up as Flannel does it: a bridge cni0 for its pods, a vxlan device to",
    "the other node. The pods were plugged in by the CNI plugins bridge and host-local, and each runs a TCP and",
    "a UDP server. Nothing outside these namespaces is touched.",
];

/// What the cluster is.
const CLUSTER: &[&str] = &[
    "A real cluster: etcd, kube-apiserver and its controllers; on each node flanneld (vxlan), kube-proxy, containerd and",
    "a kubelet. Each node is a network namespace. The kubelets run the pods, and each of these runs a TCP and a UDP",
    "server. Nothing outside these namespaces is touched.",
];

/// The stage.
pub(super) struct Story {
    lab: Lab,
    agents: Vec<Agent>,
    style: Style,
    scene: usize,
    scenes: usize,
}

impl Story {
    pub(super) fn new(lab: Lab, scenes: usize) -> Self {
        Self {
            lab,
            agents: Vec::new(),
            style: Style::of_stdout(),
            scene: 0,
            scenes,
        }
    }

    pub(super) fn into_parts(self) -> (Lab, Vec<Agent>) {
        (self.lab, self.agents)
    }

    pub(super) fn opening(&mut self) -> Result<()> {
        self.title("Two nodes, six pods");
        for line in if self.is_cluster() {
            CLUSTER
        } else {
            NAMESPACES
        } {
            say(line);
        }
        say("");
        for pod in self.lab.pods() {
            let address = pod.ipv4()?.to_string();
            let ports: Vec<String> = pod
                .spec
                .ports
                .iter()
                .map(|port| format!("{}/{}", port.port, port.protocol))
                .collect();
            say(&format!(
                "  {:20} {address:12} on {}   serves {}",
                pod.id(),
                pod.spec.node,
                ports.join(" ")
            ));
        }
        Ok(())
    }

    pub(super) fn everything_open(&mut self) -> Result<()> {
        self.title("One agent per node, no policies: everything reaches everything");
        for node in self.lab.nodes() {
            let agent = Agent::start(&self.lab, &node.name, &AgentOptions::default())?;
            self.agents.push(agent);
        }
        for agent in &mut self.agents {
            agent.wait_ready()?;
        }
        say(if self.is_cluster() {
            "Each agent follows the API server with an account of its own and finds its own pods by asking the kernel."
        } else {
            "Each agent reads the manifests in one directory and finds its own pods by asking the kernel."
        });
        say("A number is a port that answered a real probe, dots are one that stayed silent.\n");
        self.settle(|_| true)?;
        Ok(())
    }

    pub(super) fn policies_arrive(&mut self) -> Result<()> {
        self.title(if self.is_cluster() {
            "Policies are applied to the API server: the matrix changes"
        } else {
            "Policies are dropped into the directory: the matrix changes"
        });
        say(
            "  guests-stay-out      ClusterNetworkPolicy, Admin tier: guests reach nothing internal, monitoring reaches all",
        );
        say(
            "  shop                 NetworkPolicies: closed by default; frontend for all, api for frontend, db for api",
        );
        say("  guests-serve-nobody  ClusterNetworkPolicy, Baseline tier: guests serve nobody\n");
        let texts: Vec<String> = POLICIES
            .iter()
            .map(|name| cast::policy(name))
            .collect::<Result<_>>()?;
        let timing = self.timed(&self.nodes(), |lab| {
            let changed = Instant::now();
            for (name, text) in POLICIES.iter().zip(&texts) {
                lab.apply(name, text)?;
            }
            Ok(changed)
        })?;
        let matrix = self.settle(as_the_policies_say)?;
        say(&format!("\n{}", timing.trim_end()));
        let compared = self.compare_with_simulation(&matrix)?;
        say(&format!(
            "\nAll {compared} verdicts are those worked out by hand, and those of: towpath simulate"
        ));
        Ok(())
    }

    pub(super) fn one_denial_explained(&mut self) -> Result<()> {
        self.title("Why can a guest not reach the database?");
        let (command, text) = explain(&self.lab, "guest/visitor", "shop/db", "5432/tcp")?;
        say(&format!("$ {command}\n"));
        for line in text.lines() {
            say(format!("  {line}").trim_end());
        }
        for word in ["Admin", "guests-stay-out"] {
            ensure!(
                text.to_lowercase().contains(&word.to_lowercase()),
                "the explanation does not name {word}"
            );
        }
        Ok(())
    }

    pub(super) fn agent_is_killed(&mut self) -> Result<()> {
        self.title(
            "The agents are killed with -9: forbidden stays forbidden, allowed stays allowed",
        );
        for agent in self.agents.drain(..) {
            say(&format!(
                "  kill -9 {}   (agent of {})",
                agent.id(),
                agent.node
            ));
            agent.kill()?;
        }
        say("");
        self.hold(as_the_policies_say)
    }

    pub(super) fn agent_comes_back(&mut self) -> Result<()> {
        self.title("The agents come back without a memory, and change nothing that was right");
        for node in self.lab.nodes() {
            let agent = Agent::start(&self.lab, &node.name, &AgentOptions::default())?;
            self.agents.push(agent);
        }
        for agent in &mut self.agents {
            agent.wait_ready()?;
        }
        self.hold(as_the_policies_say)
    }

    pub(super) fn new_pod_is_closed_until_programmed(&mut self) -> Result<()> {
        self.title("A new pod is closed until its policy is in the kernel");
        let late = cast::late(&self.lab)?;
        let node = late.node.clone();
        if self.is_cluster() {
            self.agent(&node)?.pause()?;
            self.lab.add_pod(late)?;
            say(&format!(
                "The agent of {node} is stopped for a moment (kill -STOP), so that it hears of nothing. {LATE} is created \
                 in\nthe API, and its kubelet starts it. It runs its servers, but the agent has not seen it yet:\n"
            ));
        } else {
            self.lab.plug(late)?;
            say(&format!(
                "{LATE} is plugged in and runs its servers, but no manifest speaks of it yet:\n"
            ));
        }
        self.hold(|flow| {
            let is_late = [flow.from.id(), flow.to.id()].contains(&LATE.to_owned());
            !is_late && as_the_policies_say(flow)
        })?;
        let matrix = if self.is_cluster() {
            say(
                "The agent goes on. The pod has the label app=frontend, so it may do what shop/frontend may:\n",
            );
            self.agent(&node)?.resume()?;
            self.settle(as_the_policies_say)?
        } else {
            say(
                "Its manifest arrives. It has the label app=frontend, so it may do what shop/frontend may:\n",
            );
            let timing = self.timed(&[node], |lab| {
                let changed = Instant::now();
                lab.publish(LATE)?;
                Ok(changed)
            })?;
            let matrix = self.settle(as_the_policies_say)?;
            say(&format!("\n{}", timing.trim_end()));
            matrix
        };
        self.compare_with_simulation(&matrix)?;
        Ok(())
    }

    pub(super) fn policies_go(&mut self) -> Result<()> {
        self.title("The policies are deleted: everything reaches everything again");
        for name in POLICIES {
            self.lab.withdraw(name)?;
        }
        self.settle(|_| true)?;
        Ok(())
    }

    pub(super) fn uninstall(&mut self) -> Result<()> {
        self.title("Uninstall: nothing of ours is left in the kernel");
        for agent in std::mem::take(&mut self.agents) {
            let name = agent.node.clone();
            let node = self.lab.node(&name)?;
            let mut uninstaller = agent.uninstaller()?;
            agent.terminate()?;
            let tables = tables(node)?;
            ensure!(
                !tables.is_empty(),
                "the tables of {name} did not outlive the agent"
            );
            say(&format!(
                "  {name}: the agent ended, its tables stay: {}",
                tables.join(", ")
            ));
            node.namespace.run(&mut uninstaller)?;
            let left = self::tables(node)?;
            ensure!(left.is_empty(), "tables are left on {name}: {left:?}");
            let filtered = bridge_settings(node)?;
            ensure!(
                filtered == [0, 0],
                "the bridge of {name} is not as it was: {filtered:?}"
            );
            say(&format!(
                "  {name}: after towpath uninstall: no tables of ours, cni0 as Flannel made it"
            ));
        }
        say("");
        self.hold(|_| true)
    }

    /// Whether there is a real API server.
    fn is_cluster(&self) -> bool {
        self.lab.cluster().is_ok()
    }

    fn agent(&self, node: &str) -> Result<&Agent> {
        let found = self.agents.iter().find(|agent| agent.node == node);
        found.with_context(|| format!("{node} has no agent"))
    }

    fn title(&mut self, text: &str) {
        self.scene += 1;
        let line = format!("\n[{}/{}] {text}", self.scene, self.scenes);
        say(&self.style.paint("1", &line));
    }

    fn nodes(&self) -> Vec<String> {
        self.lab
            .nodes()
            .iter()
            .map(|node| node.name.clone())
            .collect()
    }

    /// Makes a change and says how long it took until these nodes had it in the kernel.
    fn timed(
        &self,
        nodes: &[String],
        change: impl FnOnce(&Lab) -> Result<Instant>,
    ) -> Result<String> {
        let mut before = Vec::new();
        for agent in self
            .agents
            .iter()
            .filter(|agent| nodes.contains(&agent.node))
        {
            before.push((agent, Reading::take(agent)?));
        }
        let changed = change(&self.lab)?;
        let outside: Vec<Result<Duration>> = std::thread::scope(|scope| {
            let threads: Vec<_> = before
                .iter()
                .map(|(agent, reading)| scope.spawn(|| reading.until_commit(agent, changed)))
                .collect();
            threads
                .into_iter()
                .map(|thread| thread.join().expect("asking an agent does not panic"))
                .collect()
        });
        let what = if self.is_cluster() {
            "API requests sent"
        } else {
            "file changed"
        };
        let mut text = String::new();
        for ((agent, reading), outside) in before.into_iter().zip(outside) {
            let own = milliseconds(reading.own_mean(agent)?);
            let outside = milliseconds(outside?);
            let _ = writeln!(
                text,
                "  {}: {what} -> in the kernel: {outside}; of that, agent told -> in the kernel: {own}",
                agent.node
            );
        }
        Ok(text)
    }

    /// Compares what the kernel did with what `towpath simulate` says; how many verdicts that were.
    fn compare_with_simulation(&self, matrix: &Matrix) -> Result<usize> {
        let simulation = Simulation::run(&self.lab)?;
        for check in &matrix.checks {
            if simulation.passes(&check.from, &check.to, check.target)? != check.outcome.passed() {
                let rule = simulation.rule(&check.from, &check.to, check.target)?;
                bail!(
                    "towpath simulate says otherwise ({rule}): {}",
                    check.describe()
                );
            }
        }
        Ok(matrix.checks.len())
    }

    /// Shows the matrix once it is as expected; never comes an error with what is wrong.
    fn settle(&self, expected: impl Fn(&Flow<'_>) -> bool) -> Result<Matrix> {
        let matrix = Matrix::settle(&self.lab, SETTLE, expected)?;
        say(matrix.render(self.style).trim_end());
        Ok(matrix)
    }

    /// Shows the matrix, which must be as expected at the first look.
    fn hold(&self, expected: impl Fn(&Flow<'_>) -> bool) -> Result<()> {
        let matrix = Matrix::probe(&self.lab, expected)?;
        say(matrix.render(self.style).trim_end());
        let wrong: Vec<String> = matrix.wrong().map(Check::describe).collect();
        if !wrong.is_empty() {
            bail!("wrong verdicts:\n{}", wrong.join("\n"));
        }
        Ok(())
    }
}

fn as_the_policies_say(flow: &Flow<'_>) -> bool {
    is_open(
        &flow.from.id(),
        &flow.to.id(),
        flow.target.port,
        flow.target.protocol,
    )
}

/// Ours: `inet towpath` and so on. Flannel and kube-proxy may have their own.
fn tables(node: &Node) -> Result<Vec<String>> {
    let text = node
        .namespace
        .run(Command::new("nft").args(["list", "tables"]))?;
    Ok(text
        .lines()
        .map(|line| line.trim_start_matches("table ").to_owned())
        .filter(|table| table.contains("towpath"))
        .collect())
}

/// Whether cni0 shows bridged frames to the inet hooks, for IPv4 and IPv6.
fn bridge_settings(node: &Node) -> Result<[u64; 2]> {
    let mut command = Command::new("ip");
    let text = node
        .namespace
        .run(command.args(["-json", "-details", "link", "show", "dev", "cni0"]))?;
    let links: Value = serde_json::from_str(&text)?;
    let settings = &links[0]["linkinfo"]["info_data"];
    let read = |key: &str| {
        settings[key]
            .as_u64()
            .with_context(|| format!("ip shows no {key}: {text}"))
    };
    Ok([read("nf_call_iptables")?, read("nf_call_ip6tables")?])
}
