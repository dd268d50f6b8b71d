//! The thread that reads the results of CNI plugins which the container runtime keeps, and tells the watch of interfaces: who
//! plugged a pod in knows which address is whose.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;
use std::time::Duration;

use flannel_adapter::source::cni_cache::CniCacheSource;
use flannel_adapter::source::{Delta, News, Observation, feed};
use smol_str::SmolStr;
use tracing::warn;

use super::AgentError;
use super::event::Event;
use super::link::{LinkControl, chain};
use super::thread::spawn;

/// How soon it notices that it is to end.
const INTERVAL: Duration = Duration::from_millis(250);

/// The running thread.
pub(super) struct KeptResultsThread {
    is_ended: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl KeptResultsThread {
    /// Starts to read `folder`, which need not be there.
    pub(super) fn start(
        folder: PathBuf,
        link: LinkControl,
        sender: SyncSender<Event>,
    ) -> Result<Self, AgentError> {
        let is_ended = Arc::new(AtomicBool::new(false));
        let asked = is_ended.clone();
        let body = move || {
            let mut source = CniCacheSource::new(folder);
            let mut results = Results::default();
            feed(&mut source, INTERVAL, |news| {
                if let Some(all) = results.take(news) {
                    link.set_kept_results(all);
                }
                if asked.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            });
        };
        let thread = spawn("kept results", sender, body)?;
        Ok(Self { is_ended, thread })
    }

    /// Ends it.
    pub(super) fn end(self) -> std::thread::Result<()> {
        self.is_ended.store(true, Ordering::Relaxed);
        self.thread.join()
    }
}

/// The results as last read.
#[derive(Debug, Default)]
struct Results {
    by_file: BTreeMap<SmolStr, Observation>,
    failure: Option<String>,
}

impl Results {
    /// All results, if they changed. After a failure those that were read still count.
    fn take(&mut self, news: News) -> Option<Vec<Observation>> {
        let before = self.by_file.clone();
        match news {
            News::Snapshot(all) => {
                self.failure = None;
                self.by_file = all
                    .into_iter()
                    .map(|seen| (seen.key.clone(), seen))
                    .collect();
            }
            News::Changes(deltas) => {
                for delta in deltas {
                    match delta {
                        Delta::Seen(seen) => drop(self.by_file.insert(seen.key.clone(), *seen)),
                        Delta::Gone(key) => drop(self.by_file.remove(&key)),
                        Delta::Lagged => {}
                    }
                }
            }
            News::Failed(error) => {
                let failure = chain(&error);
                if self.failure.as_ref() != Some(&failure) {
                    warn!(
                        error = failure,
                        "cannot read kept results of CNI plugins; trying again"
                    );
                    self.failure = Some(failure);
                }
            }
        }
        (self.by_file != before).then(|| self.by_file.values().cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(key: &str) -> Observation {
        Observation {
            key: key.into(),
            ..Observation::default()
        }
    }

    #[test]
    fn only_changes_are_told_and_all_results_with_them() {
        let mut results = Results::default();

        assert_eq!(results.take(News::Snapshot(Vec::new())), None);
        assert_eq!(
            results.take(News::Snapshot(vec![seen("a")])),
            Some(vec![seen("a")])
        );
        assert_eq!(
            results.take(News::Changes(vec![Delta::seen(seen("a"))])),
            None
        );
        let both = results.take(News::Changes(vec![Delta::seen(seen("b"))]));
        assert_eq!(both, Some(vec![seen("a"), seen("b")]));
        let one = results.take(News::Changes(vec![Delta::Gone("a".into())]));
        assert_eq!(one, Some(vec![seen("b")]));
    }
}
