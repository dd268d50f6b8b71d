//! What `towpath simulate` says of a lab's manifests, to be compared with what the kernel did.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context as _, Result, anyhow, bail};
use serde::Deserialize;

use crate::lab::Lab;
use crate::netns;
use crate::probe::Target;
use crate::program;

/// One object of `towpath simulate -o json`.
#[derive(Debug, Deserialize)]
struct Line {
    from: String,
    to: String,
    port: u16,
    protocol: String,
    verdict: String,
    rule: String,
    families: Vec<String>,
}

/// From, to, port, protocol, family.
type Key = (String, String, u16, String, &'static str);

/// Verdicts of every pair of pods at every declared port.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Simulation(BTreeMap<Key, (bool, String)>);

impl Simulation {
    /// Asks the command line about the lab's manifests as they are now.
    pub fn run(lab: &Lab) -> Result<Self> {
        let mut command = Command::new(program::towpath()?);
        let source = lab.source_on_host();
        command.args(["simulate", "--source", &source, "-o", "json"]);
        let text = netns::run(&mut command)?;
        let lines: Vec<Line> = serde_json::from_str(&text)
            .with_context(|| format!("towpath simulate printed {text}"))?;
        let mut verdicts = BTreeMap::new();
        for line in lines {
            let passes = match line.verdict.as_str() {
                "allow" => true,
                "deny" => false,
                other => bail!("towpath simulate has a verdict {other:?}"),
            };
            for family in ["ipv4", "ipv6"] {
                if line.families.iter().any(|found| found == family) {
                    let (from, to, protocol) =
                        (line.from.clone(), line.to.clone(), line.protocol.clone());
                    let key = (from, to, line.port, protocol, family);
                    verdicts.insert(key, (passes, line.rule.clone()));
                }
            }
        }
        Ok(Self(verdicts))
    }

    /// Whether a pod (`namespace/name`) may reach another there.
    pub fn passes(&self, from: &str, to: &str, target: Target) -> Result<bool> {
        Ok(self.find(from, to, target)?.0)
    }

    /// What decided, in words.
    pub fn rule(&self, from: &str, to: &str, target: Target) -> Result<&str> {
        Ok(&self.find(from, to, target)?.1)
    }

    fn find(&self, from: &str, to: &str, target: Target) -> Result<&(bool, String)> {
        let family = if target.address.is_ipv4() {
            "ipv4"
        } else {
            "ipv6"
        };
        let key = (
            from.to_owned(),
            to.to_owned(),
            target.port,
            target.protocol.to_string(),
            family,
        );
        self.0
            .get(&key)
            .ok_or_else(|| anyhow!("towpath simulate says nothing of {key:?}"))
    }
}
