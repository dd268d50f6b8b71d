//! The lab's hands inside a namespace: servers, probes, streams, raw frames, and the keeper of a run.
//!
//! Not a tool for users; its library side is `towpath_tests`.

#![forbid(unsafe_code)]

mod attempt;
mod connect;
mod forward;
mod machine;
mod raw;
mod serve;
mod stream;

use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use towpath_tests::keeper;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("towpath-probe: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let verb = arguments.next().unwrap_or_default();
    let options = Options::parse(arguments)?;
    match verb.as_str() {
        "serve" => serve::run(&options),
        "connect" => connect::run(),
        "stream" => stream::run(&options),
        "send" => raw::send(&options),
        "capture" => raw::capture(),
        "forward" => forward::run(&options),
        "machine" => machine::run(&options),
        "machine-init" => machine::init(&options),
        "keep" => keeper::keep(options.one("prefix")?, Path::new(options.one("folder")?)),
        _ => bail!(
            "verb {verb:?} is none of serve, connect, stream, send, capture, forward, machine, keep"
        ),
    }
}

/// `--name value` pairs; a name may come more than once.
struct Options(Vec<(String, String)>);

impl Options {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Self> {
        let mut pairs = Vec::new();
        while let Some(argument) = arguments.next() {
            let Some(name) = argument.strip_prefix("--") else {
                bail!("{argument:?} is no option");
            };
            let value = arguments
                .next()
                .with_context(|| format!("option {argument} has no value"))?;
            pairs.push((name.to_owned(), value));
        }
        Ok(Self(pairs))
    }

    fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(found, _)| found == name)
            .map(|(_, value)| value.as_str())
    }

    fn one<'a>(&'a self, name: &'a str) -> Result<&'a str> {
        self.all(name)
            .next()
            .with_context(|| format!("option --{name} is missing"))
    }
}
