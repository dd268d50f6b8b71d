//! The control: a bare watch in this process, which does nothing with what it hears but note when.

use std::io::BufRead as _;
use std::sync::mpsc::{Receiver, channel};
use std::time::Instant;

use anyhow::{Context as _, Result};
use serde::Deserialize;
use towpath_tests::cluster::Api;
use towpath_tests::wait::PATIENCE;

/// Notes the events of one object.
pub(super) struct BareWatch {
    seen: Receiver<Instant>,
}

#[derive(Deserialize)]
struct Event {
    object: Object,
}

#[derive(Deserialize)]
struct Object {
    metadata: Metadata,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    name: String,
    #[serde(default)]
    resource_version: String,
}

impl BareWatch {
    /// Watches a kind in the whole cluster, as the agent does. Its thread ends when the server does.
    pub(super) fn start(api: &Api, kind: &str, name: &str) -> Result<Self> {
        let list: Object = serde_json::from_str(&api.text(&format!("{kind}?limit=1"))?)?;
        let from = list.metadata.resource_version;
        let mut lines = api.watch(&format!("{kind}?watch=1&resourceVersion={from}"))?;
        let (sender, seen) = channel();
        let name = name.to_owned();
        std::thread::Builder::new()
            .name("watch".to_owned())
            .spawn(move || {
                let mut line = Vec::new();
                while lines
                    .read_until(b'\n', &mut line)
                    .is_ok_and(|read| read > 0)
                {
                    let at = Instant::now();
                    let event = serde_json::from_slice::<Event>(&line);
                    line.clear();
                    let is_ours = event.is_ok_and(|event| event.object.metadata.name == name);
                    if is_ours && sender.send(at).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Self { seen })
    }

    /// When the next event of the object came.
    pub(super) fn next(&self) -> Result<Instant> {
        self.seen
            .recv_timeout(PATIENCE)
            .context("the bare watch saw nothing")
    }
}
