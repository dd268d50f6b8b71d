//! A server of the lab: a process in a namespace, with its words in a file.

use std::ffi::OsString;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Namespace;
use crate::wait::{PATIENCE, until, until_some};

/// How many lines of a log an error shows.
const TAIL: usize = 30;

/// How long a server may take to start. Seconds on an idle machine; builds and other tests may run beside.
pub const START_PATIENCE: Duration = Duration::from_mins(2);

/// How to start a server, and where.
#[derive(Clone, Debug)]
pub struct Recipe {
    name: String,
    namespace: String,
    program: PathBuf,
    arguments: Vec<OsString>,
    variables: Vec<(String, OsString)>,
    log: PathBuf,
}

impl Recipe {
    /// A server that writes `NAME.log` in a folder.
    pub fn new(name: &str, program: &Path, namespace: &Namespace, folder: &Path) -> Self {
        Self {
            name: name.to_owned(),
            namespace: namespace.name().to_owned(),
            program: program.to_owned(),
            arguments: Vec::new(),
            variables: Vec::new(),
            log: folder.join(format!("{name}.log")),
        }
    }

    /// Adds an argument.
    #[must_use]
    pub fn arg(mut self, argument: impl Into<OsString>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Adds `--name=value`.
    #[must_use]
    pub fn flag(self, name: &str, value: impl Into<OsString>) -> Self {
        let mut text = OsString::from(format!("--{name}="));
        text.push(value.into());
        self.arg(text)
    }

    /// Sets a variable of its environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.push((name.to_owned(), value.into()));
        self
    }

    /// Starts it.
    pub fn start(self) -> Result<Daemon> {
        self.start_with(Stdio::null())
    }

    /// Starts it with something on its standard input.
    pub fn start_with(self, input: Stdio) -> Result<Daemon> {
        let child = self.spawn(input)?;
        Ok(Daemon {
            recipe: self,
            child: Some(child),
        })
    }

    fn spawn(&self, input: Stdio) -> Result<Child> {
        let output = File::options().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .envs(
                self.variables
                    .iter()
                    .map(|(name, value)| (name.as_str(), value)),
            )
            .stdin(input)
            .stdout(output.try_clone()?)
            .stderr(output)
            // ctrl-C at a terminal is for the run, which then ends its servers in order.
            .process_group(0);
        Namespace::existing(&self.namespace).spawn(&mut command)
    }
}

/// A running server. Dropping it kills it.
#[derive(Debug)]
pub struct Daemon {
    recipe: Recipe,
    child: Option<Child>,
}

impl Daemon {
    /// Waits until it is ready; an error shows the end of its log.
    pub fn wait(&mut self, what: &str, is_ready: impl Fn() -> Result<bool>) -> Result<()> {
        let ready = until(what, START_PATIENCE, || {
            self.check()?;
            is_ready()
        });
        ready.map_err(|error| self.explain(&error))
    }

    /// An error when it has ended.
    pub fn check(&mut self) -> Result<()> {
        let Some(child) = &mut self.child else {
            bail!("{} is stopped", self.recipe.name);
        };
        match child.try_wait()? {
            Some(status) => bail!("{} ended with {status}", self.recipe.name),
            None => Ok(()),
        }
    }

    /// Adds the end of the log to an error.
    pub fn explain(&self, error: &anyhow::Error) -> anyhow::Error {
        let name = &self.recipe.name;
        anyhow!("{error:#}; end of the log of {name}:\n{}", self.log_tail())
    }

    /// Ends it at once, as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Asks it to end, and waits.
    pub fn terminate(&mut self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if let Some(mut child) = self.child.take() {
            let what = format!("the end of {}", self.recipe.name);
            let ended = until_some(&what, PATIENCE, || Ok(child.try_wait()?));
            if ended.is_err() {
                child.kill()?;
                child.wait()?;
            }
            ended.map_err(|error| self.explain(&error))?;
        }
        Ok(())
    }

    /// Starts it again in the same way; one that still runs is killed first.
    pub fn restart(&mut self) -> Result<()> {
        self.kill();
        self.child = Some(self.recipe.spawn(Stdio::null())?);
        Ok(())
    }

    /// Sends it a signal; STOP and CONT make a server that hangs.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if let Some(child) = &self.child {
            kill(Pid::from_raw(child.id().cast_signed()), signal)?;
        }
        Ok(())
    }

    /// Process id, while it runs.
    pub fn id(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The file with its words.
    pub fn log(&self) -> &Path {
        &self.recipe.log
    }

    /// The last lines of its log.
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.recipe.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }

    /// It goes on when this value is gone.
    pub fn release(mut self) {
        // A Child that is dropped is not killed.
        self.child = None;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if std::thread::panicking() && self.child.is_some() {
            let _ = writeln!(
                std::io::stderr(),
                "end of the log of {}:\n{}",
                self.recipe.name,
                self.log_tail()
            );
        }
        self.kill();
    }
}
