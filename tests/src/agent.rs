//! The agent under test: one process per node, inside the node's namespace.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::lab::Lab;
use crate::netns::Namespace;
use crate::program;
use crate::wait::{PATIENCE, until, until_some};

/// Port of the probes, on the node's loopback. Every node has its own loopback, so all may use the same.
pub const HEALTH_PORT: u16 = 9440;
/// Port of the metrics, on the node's loopback.
pub const METRICS_PORT: u16 = 9441;

const HTTP_PATIENCE: Duration = Duration::from_secs(3);

/// How an agent is to be started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AgentOptions {
    /// More arguments, such as `--nft-backend command`.
    pub arguments: Vec<String>,
    /// Text of its configuration file.
    pub configuration: Option<String>,
    /// Its `--source`, if it is not the lab's.
    pub source: Option<String>,
    /// More variables of its environment.
    pub variables: Vec<(String, String)>,
}

/// A running agent. Dropping it kills it; what it put into the kernel stays.
#[derive(Debug)]
pub struct Agent {
    /// The node it serves.
    pub node: String,
    namespace: Namespace,
    socket: PathBuf,
    log: PathBuf,
    state: PathBuf,
    child: Child,
}

impl Agent {
    /// Starts the agent of a node on the lab's manifests.
    pub fn start(lab: &Lab, node: &str, options: &AgentOptions) -> Result<Self> {
        let namespace = Namespace::existing(lab.node(node)?.namespace.name());
        let folder = lab.folder().join(node);
        let state = folder.join("state");
        std::fs::create_dir_all(&state)?;
        let socket = folder.join("towpath.sock");
        let log = folder.join("agent.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let source = match &options.source {
            Some(source) => source.clone(),
            None => lab.source(node)?,
        };
        let mut command = Command::new(program::towpath()?);
        command
            .args(["agent", "--node", node])
            .arg("--source")
            .arg(source)
            .arg("--socket")
            .arg(&socket)
            .arg("--state-dir")
            .arg(&state)
            .args(["--metrics", &format!("127.0.0.1:{METRICS_PORT}")])
            .args(["--health", &format!("127.0.0.1:{HEALTH_PORT}")])
            .args(&options.arguments)
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            .process_group(0);
        if let Some(text) = &options.configuration {
            let path = folder.join("towpath.yaml");
            std::fs::write(&path, text)?;
            command.arg("--config").arg(path);
        }
        // The agent reads variables of its own; those of a test run are not for it.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("TOWPATH_") {
                command.env_remove(name);
            }
        }
        for (name, value) in &options.variables {
            command.env(name, value);
        }
        let child = namespace.spawn(&mut command)?;
        Ok(Self {
            node: node.to_owned(),
            namespace,
            socket,
            log,
            state,
            child,
        })
    }

    /// Waits until the agent says that it is in sync and has programmed the kernel.
    pub fn wait_ready(&mut self) -> Result<()> {
        let what = format!("agent of {} ready", self.node);
        let namespace = Namespace::existing(self.namespace.name());
        let ready = until(&what, PATIENCE, || {
            if let Some(status) = self.child.try_wait()? {
                bail!("the agent of {} ended with {status}", self.node);
            }
            // Nobody listens yet right after the start.
            Ok(http_get(&namespace, HEALTH_PORT, "/readyz").is_ok())
        });
        ready.map_err(|error| anyhow!("{error:#}; its log:\n{}", self.log_tail()))
    }

    /// Path of its control socket.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// The command that removes everything this agent changed; it is to be run in the node's namespace, once the
    /// agent has ended.
    pub fn uninstaller(&self) -> Result<Command> {
        let mut command = Command::new(program::towpath()?);
        command.args(["uninstall", "--yes"]);
        command.arg("--state-dir").arg(&self.state);
        command.arg("--socket").arg(&self.socket);
        Ok(command)
    }

    /// Where it keeps its state.
    pub fn state(&self) -> &Path {
        &self.state
    }

    /// Arguments of commands that say where this agent is, or was.
    pub fn place(&self) -> Result<Vec<String>> {
        let text = |path: &Path| {
            let text = path.to_str().map(str::to_owned);
            text.with_context(|| format!("{} is no text", path.display()))
        };
        Ok(vec![
            "--state-dir".to_owned(),
            text(&self.state)?,
            "--socket".to_owned(),
            text(&self.socket)?,
        ])
    }

    /// What a command of our program says of this agent, whatever its exit status.
    pub fn ask(&self, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(program::towpath()?);
        command.args(words).args(["-o", "json", "--socket"]);
        let output = command.arg(&self.socket).output()?;
        serde_json::from_slice(&output.stdout).with_context(|| {
            let complaint = String::from_utf8_lossy(&output.stderr);
            format!("{words:?} has no answer: {complaint}")
        })
    }

    /// Process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// All metrics as text.
    pub fn metrics(&self) -> Result<String> {
        http_get(&self.namespace, METRICS_PORT, "/metrics")
    }

    /// The value of one metric without labels, or the sum of those with labels.
    pub fn metric(&self, name: &str) -> Result<f64> {
        let text = self.metrics()?;
        sum_of(&text, name)
            .ok_or_else(|| anyhow!("the agent of {} has no metric {name}:\n{text}", self.node))
    }

    /// Waits until a metric is as the closure wants it. One that is not there yet counts as 0: labels come with their
    /// first value.
    pub fn wait_metric(&self, name: &str, is_enough: impl Fn(f64) -> bool) -> Result<f64> {
        until_some(&format!("metric {name} of {}", self.node), PATIENCE, || {
            let value = sum_of(&self.metrics()?, name).unwrap_or(0.0);
            Ok(is_enough(value).then_some(value))
        })
    }

    /// Ends the agent at once, as a crash would.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Stops it where it is, as a debugger would, until [`Agent::resume`].
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::SIGSTOP)
    }

    /// Lets a paused agent go on.
    pub fn resume(&self) -> Result<()> {
        self.signal(Signal::SIGCONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(Pid::from_raw(self.child.id().cast_signed()), signal)?)
    }

    /// Asks the agent to end and waits for it.
    pub fn terminate(self) -> Result<ExitStatus> {
        self.signal(Signal::SIGTERM)?;
        self.wait()
    }

    /// Waits for the agent's end.
    pub fn wait(mut self) -> Result<ExitStatus> {
        let status = until_some("the agent's end", PATIENCE, || Ok(self.child.try_wait()?));
        status.map_err(|error| anyhow!("{error:#}; its log:\n{}", self.log_tail()))
    }

    /// The agent goes on when this value is gone.
    pub fn release(self) {
        // A Child that is dropped is not killed; ours would be.
        std::mem::forget(self);
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let _ = writeln!(
                std::io::stderr(),
                "log of the agent of {}:\n{}",
                self.node,
                self.log_tail()
            );
        }
    }
}

/// Body of a plain HTTP answer with status 200, asked for inside a namespace.
pub fn http_get(namespace: &Namespace, port: u16, path: &str) -> Result<String> {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let answer = namespace.enter(|| -> Result<String> {
        let mut connection = TcpStream::connect_timeout(&address, HTTP_PATIENCE)?;
        connection.set_read_timeout(Some(HTTP_PATIENCE))?;
        write!(
            connection,
            "GET {path} HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n"
        )?;
        let mut text = String::new();
        connection.read_to_string(&mut text)?;
        Ok(text)
    })??;
    let (head, body) = answer
        .split_once("\r\n\r\n")
        .context("the answer is not HTTP")?;
    let status = head.lines().next().unwrap_or_default();
    if status.split(' ').nth(1) != Some("200") {
        bail!("{path}: {status}: {body}");
    }
    Ok(body.to_owned())
}

/// Sum of all samples of a metric in the Prometheus text format; `None` when there is none.
fn sum_of(text: &str, name: &str) -> Option<f64> {
    let values: Vec<f64> = text
        .lines()
        .filter_map(|line| line.strip_prefix(name))
        .filter(|rest| rest.starts_with([' ', '{']))
        .filter_map(|rest| rest.rsplit(' ').next()?.parse().ok())
        .collect();
    (!values.is_empty()).then(|| values.iter().sum())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metric_is_the_sum_over_its_labels_and_no_other_metric() {
        let text = "# TYPE commits counter\ncommits{result=\"ok\"} 3\ncommits{result=\"failed\"} 1\ncommits_seconds 9\n";

        assert_eq!(sum_of(text, "commits"), Some(4.0));
        assert_eq!(sum_of(text, "absent"), None);
    }
}
