//! Readiness: named conditions that must all hold, and what is awaited while one does not.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// All conditions of a process.
#[derive(Clone, Debug, Default)]
pub struct Readiness {
    /// Why a condition does not hold; `None` when it does.
    conditions: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

/// One condition; who owns it says whether it holds.
#[derive(Clone, Debug)]
pub struct Condition {
    name: &'static str,
    readiness: Readiness,
}

/// A condition that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Awaited {
    /// Its name.
    pub condition: &'static str,
    /// What is missing.
    pub reason: String,
}

impl Readiness {
    /// Adds a condition that does not hold yet.
    pub fn add(&self, name: &'static str, reason: impl Into<String>) -> Condition {
        self.lock().insert(name, Some(reason.into()));
        Condition {
            name,
            readiness: self.clone(),
        }
    }

    /// The conditions that do not hold, by name; empty means ready.
    pub fn awaited(&self) -> Vec<Awaited> {
        let conditions = self.lock();
        let unmet = conditions.iter().filter_map(|(condition, reason)| {
            reason.clone().map(|reason| Awaited { condition, reason })
        });
        unmet.collect()
    }

    /// Whether all conditions hold.
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    /// A panic elsewhere cannot leave the map half changed, so a poisoned lock is as good as any.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.conditions
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

impl Condition {
    /// It holds. Returns whether that is news.
    pub fn met(&self) -> bool {
        self.readiness
            .lock()
            .insert(self.name, None)
            .flatten()
            .is_some()
    }

    /// It does not hold, because of `reason`. Returns whether that is news.
    pub fn unmet(&self, reason: impl Into<String>) -> bool {
        let reason = reason.into();
        let before = self
            .readiness
            .lock()
            .insert(self.name, Some(reason.clone()))
            .flatten();
        before.is_none_or(|before| before != reason)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_what_is_awaited() {
        let readiness = Readiness::default();
        let sync = readiness.add("source", "not read yet");
        let commit = readiness.add("first-commit", "nothing committed yet");

        sync.met();

        let reason = "nothing committed yet".to_owned();
        assert_eq!(
            readiness.awaited(),
            [Awaited {
                condition: "first-commit",
                reason
            }]
        );
        assert!(commit.met());
        assert!(!commit.met());
        assert!(readiness.is_ready());
    }

    #[test]
    fn a_condition_can_be_lost_again() {
        let readiness = Readiness::default();
        let sync = readiness.add("source", "not read yet");
        sync.met();

        let is_news = sync.unmet("directory is gone");

        assert!(is_news);
        assert!(!sync.unmet("directory is gone"));
        assert!(!readiness.is_ready());
    }
}
