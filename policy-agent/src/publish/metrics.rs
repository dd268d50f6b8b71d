//! Metrics of what is written to the API server.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

use super::standing::Feature;

/// How a write ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WriteResult {
    /// The API server took it.
    Done,
    /// It refused for want of a right.
    Refused,
    /// Anything else.
    Failed,
}

impl WriteResult {
    fn label(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteLabel {
    what: &'static str,
    result: &'static str,
}

/// The counters; clones share the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    writes: Family<WriteLabel, Counter>,
    /// Denied flows of which no Event tells.
    pub(crate) events_suppressed: Counter,
}

impl Metrics {
    /// Makes and registers them.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "api_writes",
            "Writes to the API server by result",
            metrics.writes.clone(),
        );
        registry.register(
            "api_events_suppressed",
            "Denied flows that no Event tells of, because there are too many",
            metrics.events_suppressed.clone(),
        );
        metrics
    }

    pub(super) fn count(&self, feature: Feature, result: WriteResult) {
        let label = WriteLabel {
            what: feature.name(),
            result: result.label(),
        };
        self.writes.get_or_create(&label).inc();
    }
}
