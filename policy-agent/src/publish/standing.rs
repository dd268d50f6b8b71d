//! How each part of what is told does: a line of status, a line of the log when that changes, and a counter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tracing::{debug, info, warn};

use super::metrics::{Metrics, WriteResult};
use crate::source::kubernetes::Failure;

/// Something that is told to the API server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Feature {
    /// The startup taint of this node.
    StartupTaint,
    /// The status object of this node.
    NodeStatus,
    /// Events on pods.
    DeniedEvents,
}

impl Feature {
    /// As in JSON, metrics and logs.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::StartupTaint => "startup-taint",
            Self::NodeStatus => "node-status",
            Self::DeniedEvents => "denied-events",
        }
    }
}

/// How it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// It works.
    Working,
    /// Something must happen first.
    Waiting,
    /// The API server does not have the kind.
    Missing,
    /// The API server refuses for want of a right.
    Refused,
    /// It failed and is tried again.
    Failing,
}

/// How all parts do; clones share it. Never held across an await.
#[derive(Clone, Debug, Default)]
pub(crate) struct Standings(Arc<Mutex<BTreeMap<Feature, (Standing, String)>>>);

impl Standings {
    /// Each part that was asked for, how it does, and why.
    pub(crate) fn all(&self) -> Vec<(Feature, Standing, String)> {
        let standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        standings
            .iter()
            .map(|(feature, (standing, text))| (*feature, *standing, text.clone()))
            .collect()
    }

    /// Returns how it did before.
    fn set(&self, feature: Feature, standing: Standing, text: &str) -> Option<Standing> {
        let mut standings = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = standings.insert(feature, (standing, text.to_owned()));
        before.map(|(standing, _)| standing)
    }
}

/// Tells how one part does.
pub(super) struct Teller {
    feature: Feature,
    standings: Standings,
    pub(super) metrics: Metrics,
}

impl Teller {
    pub(super) fn new(feature: Feature, standings: Standings, metrics: Metrics) -> Self {
        standings.set(feature, Standing::Waiting, "nothing is written yet");
        Self {
            feature,
            standings,
            metrics,
        }
    }

    /// A write worked.
    pub(super) fn done(&self, text: &str) {
        self.metrics.count(self.feature, WriteResult::Done);
        self.stand(Standing::Working, text);
    }

    /// A write did not work. What is missing is no failure: the kind may come.
    pub(super) fn failed(&self, failure: &Failure, way_out: &str) {
        let (result, standing) = match failure {
            Failure::Refused { .. } => (WriteResult::Refused, Standing::Refused),
            Failure::NotFound { .. } => (WriteResult::Failed, Standing::Missing),
            _ => (WriteResult::Failed, Standing::Failing),
        };
        self.metrics.count(self.feature, result);
        let text = if way_out.is_empty() {
            failure.to_string()
        } else {
            format!("{failure}; {way_out}")
        };
        self.stand(standing, &text);
    }

    /// Says how it does; the log hears of it when that is news.
    pub(super) fn stand(&self, standing: Standing, text: &str) {
        let before = self.standings.set(self.feature, standing, text);
        let what = self.feature.name();
        if before == Some(standing) {
            debug!(what, reason = text, "as before with the API server");
            return;
        }
        match standing {
            Standing::Working => info!(what, detail = text, "the API server is told"),
            Standing::Waiting => debug!(what, reason = text, "not told to the API server yet"),
            Standing::Missing => info!(what, reason = text, "the API server cannot be told"),
            Standing::Refused | Standing::Failing => {
                warn!(what, reason = text, "the API server cannot be told");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_stands_as_it_was_told_last() {
        let standings = Standings::default();
        let teller = Teller::new(Feature::StartupTaint, standings.clone(), Metrics::default());
        let refused = Failure::Refused {
            message: "no".to_owned(),
            advice: "grant it".to_owned(),
        };

        teller.failed(&refused, "");

        assert_eq!(
            standings.all(),
            [(
                Feature::StartupTaint,
                Standing::Refused,
                "the API server refuses: no; grant it".to_owned()
            )]
        );
    }
}
