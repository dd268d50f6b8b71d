//! The real agent on a large cluster: time from start to enforced, memory, the kernel's share.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use towpath_core::calc::CalcGraph;
use towpath_tests::netns::Namespace;

use crate::kernel_memory::{KernelMemory, METHOD};
use crate::pods::Pods;
use crate::report::{Arm, Gate, Kind, MIB, Report, Section};
use crate::worlds::{self, NODE, Size};

/// Longest that a start may take before the measurement is given up.
const PATIENCE: Duration = Duration::from_mins(2);
/// Memory is read this long after sync (edge case 38).
const SETTLED: Duration = Duration::from_mins(1);
/// Where policies change before memory is read again.
const CHANGED_NAMESPACES: u32 = 25;
const BETWEEN_CHANGES: Duration = Duration::from_millis(100);
/// What was freed is given back within a second.
const AFTER_CHANGES: Duration = Duration::from_secs(5);

/// Bounds of one load.
struct Goals {
    size: Size,
    title: &'static str,
    /// Seconds from start to enforced.
    start: Option<f64>,
    /// Resident, MiB.
    resident: f64,
    /// High-water mark, MiB.
    peak: Option<f64>,
}

/// Starts the agent `rounds` times with the load of the goals and once with ten times the pods; memory is read in
/// the last round.
pub(crate) fn run(report: &mut Report, agent: &Path, rounds: u32) -> Result<()> {
    let node = Pods::new(Size::GOAL.local)?;
    let usual = Goals {
        size: Size::GOAL,
        title: "agent, 10k pods and 10k policies",
        start: Some(2.0),
        resident: 30.0,
        peak: Some(64.0),
    };
    measure(report, &node, agent, rounds, &usual)?;
    let large = Goals {
        size: Size::LARGE,
        title: "agent, 100k pods and 10k policies",
        start: None,
        resident: 120.0,
        peak: None,
    };
    measure(report, &node, agent, 1, &large)
}

fn measure(
    report: &mut Report,
    node: &Pods,
    agent: &Path,
    rounds: u32,
    goals: &Goals,
) -> Result<()> {
    let folder = tempfile::tempdir().context("cannot make a directory for manifests")?;
    write_manifests(folder.path(), goals.size)?;
    let mut start = Arm::new("start of the process to enforced");
    let mut notes = Vec::new();
    for round in 0..rounds {
        let began = Instant::now();
        let running = Running::start(node, agent, folder.path())?;
        running.wait_ready(began)?;
        start.samples.push(began.elapsed().as_secs_f64());
        if round + 1 == rounds {
            std::thread::sleep(SETTLED);
            notes = memory(report, &running, folder.path(), goals)?;
        }
    }
    if let Some(limit) = goals.start {
        report.gates.push(Gate::at_most(
            Kind::Mark,
            format!("{}: from files to enforced, s", goals.title),
            start.minimum(),
            limit,
        ));
    }
    notes.extend(kernel_share(goals.size)?);
    let title = format!("Start of the {}, {} local", goals.title, goals.size.local);
    let mut section = Section::new(title, "s", vec![start]);
    section.notes = notes;
    report.sections.push(section);
    Ok(())
}

/// What the tables of this load take in the kernel.
fn kernel_share(size: Size) -> Result<[String; 2]> {
    let mut graph = CalcGraph::new(NODE);
    worlds::updates(size).for_each(|update| graph.apply(&update));
    graph.flush();
    let share = KernelMemory::default().of(&graph.tables())?;
    Ok([
        format!(
            "in the kernel {:.1} MiB, MemAvailable less by {:.1} MiB",
            share.bytes / MIB,
            share.available / MIB
        ),
        METHOD.to_owned(),
    ])
}

/// Memory at rest, and after changes: code that had left memory is there again then.
fn memory(
    report: &mut Report,
    running: &Running,
    manifests: &Path,
    goals: &Goals,
) -> Result<Vec<String>> {
    let mut notes = Vec::new();
    let mut figures = |when: &'static str| -> Result<f64> {
        let resident = running.process_figure("VmRSS:")?;
        notes.push(format!(
            "resident {resident:.1} MiB {when}: anonymous {:.1}, of files {:.1}",
            running.process_figure("RssAnon:")?,
            running.process_figure("RssFile:")?
        ));
        Ok(resident)
    };
    let at_rest = figures("60 s after sync")?;
    change_policies(manifests)?;
    let after_changes = figures("after changes")?;
    let peak = running.process_figure("VmHWM:")?;
    notes.push(format!("high-water mark {peak:.1} MiB"));
    let bounds = [
        (
            "resident 60 s after sync, MiB",
            at_rest,
            Some(goals.resident),
        ),
        (
            "resident after changes, MiB",
            after_changes,
            Some(goals.resident),
        ),
        ("high-water mark, MiB", peak, goals.peak),
    ];
    for (name, measured, limit) in bounds {
        let name = format!("{}: {name}", goals.title);
        let gate = limit.map(|limit| Gate::at_most(Kind::Gate, name, measured, limit));
        report.gates.extend(gate);
    }
    Ok(notes)
}

/// One policy comes and goes in each of some namespaces with local pods.
fn change_policies(manifests: &Path) -> Result<()> {
    for namespace in 0..CHANGED_NAMESPACES {
        let file = manifests.join(format!("policies-{namespace}.yaml"));
        let before = fs::read_to_string(&file)?;
        let more = format!(
            "{before}---\napiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\n\
             metadata: {{ name: one-more, namespace: team-{namespace} }}\nspec: {{ podSelector: {{}}, policyTypes: [Ingress] }}\n"
        );
        for text in [more, before] {
            fs::write(&file, text)?;
            std::thread::sleep(BETWEEN_CHANGES);
        }
    }
    std::thread::sleep(AFTER_CHANGES);
    Ok(())
}

/// An agent that is ended with this value.
struct Running {
    child: Child,
    folder: tempfile::TempDir,
}

impl Running {
    fn start(node: &Namespace, agent: &Path, manifests: &Path) -> Result<Self> {
        let folder = tempfile::tempdir().context("cannot make a directory for the agent")?;
        let log = fs::File::create(folder.path().join("log"))?;
        let child = node.spawn(
            Command::new(agent)
                .arg("agent")
                .args(["--node", NODE])
                .arg("--source")
                .arg(format!("file:{}", manifests.display()))
                .arg("--socket")
                .arg(folder.path().join("socket"))
                .arg("--state-dir")
                .arg(folder.path().join("state"))
                .stdout(Stdio::null())
                .stderr(log),
        )?;
        Ok(Self { child, folder })
    }

    /// Waits until the agent says that all policy is in force.
    fn wait_ready(&self, began: Instant) -> Result<()> {
        let socket = self.folder.path().join("socket");
        while began.elapsed() < PATIENCE {
            if is_ready(&socket) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let log = fs::read_to_string(self.folder.path().join("log")).unwrap_or_default();
        bail!("the agent is not ready after {PATIENCE:?}; its log:\n{log}")
    }

    /// A figure of `/proc/PID/status` in MiB.
    fn process_figure(&self, key: &str) -> Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let kibibytes: f64 = line
            .and_then(|rest| rest.split_whitespace().next())
            .with_context(|| format!("no {key}"))?
            .parse()?;
        Ok(kibibytes / 1024.0)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait()) {
            eprintln!("cannot end the agent: {error}");
        }
    }
}

fn is_ready(socket: &Path) -> bool {
    use std::io::{Read as _, Write as _};
    let ask = || -> std::io::Result<String> {
        let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
        stream.write_all(b"GET /status HTTP/1.0\r\nHost: towpath\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    ask().is_ok_and(|answer| answer.contains("\"awaited\":[]"))
}

/// One file a namespace for its pods, one for its policies, as somebody exports them.
fn write_manifests(folder: &Path, size: Size) -> Result<()> {
    let count = usize::try_from(size.namespaces)?;
    let mut files = vec![(String::new(), String::new()); count];
    let mut cluster = String::new();
    for object in worlds::objects(size) {
        match object {
            towpath_core::model::Object::Namespace(namespace) => {
                let _ = writeln!(
                    cluster,
                    "---\napiVersion: v1\nkind: Namespace\nmetadata: {{ name: {} }}",
                    namespace.name
                );
            }
            towpath_core::model::Object::Node(node) => {
                let _ = writeln!(
                    cluster,
                    "---\napiVersion: v1\nkind: Node\nmetadata: {{ name: {} }}\nspec: {{ podCIDRs: [{}] }}\n\
                     status: {{ addresses: [{{ type: InternalIP, address: {} }}] }}",
                    node.name, node.pod_cidrs[0], node.addresses[0]
                );
            }
            _ => {}
        }
    }
    for index in 0..size.pods {
        worlds::pod_manifest(
            size,
            index,
            &mut files[usize::try_from(index % size.namespaces)?].0,
        );
    }
    for index in 0..size.policies {
        worlds::policy_manifest(
            size,
            index,
            &mut files[usize::try_from(index % size.namespaces)?].1,
        );
    }
    fs::write(folder.join("cluster.yaml"), cluster)?;
    for (index, (pods, policies)) in files.iter().enumerate() {
        fs::write(folder.join(format!("pods-{index}.yaml")), pods)?;
        fs::write(folder.join(format!("policies-{index}.yaml")), policies)?;
    }
    Ok(())
}
