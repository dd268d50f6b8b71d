//! Which denied flows become Events, and when: pure, with the clock as an argument.
//!
//! A flow that is denied for the first time makes an Event, where the budgets of its pod and of the node allow it. What
//! follows is counted, and the Event's series is brought up to date once a minute. Everything here is bounded: who
//! scans a pod's ports fills the pod's budget, and no table.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use smol_str::SmolStr;

use super::denied::DeniedNote;

/// Events that a pod may make at once, and how long each takes to come back.
const POD: (f64, Duration) = (4.0, Duration::from_mins(1));
/// Requests of the whole node, likewise: new Events and series.
const NODE: (f64, Duration) = (20.0, Duration::from_secs(6));
/// Least time between two writes of a series.
const EXTEND: Duration = Duration::from_mins(1);
/// A series that is silent for so long is over.
const OVER: Duration = Duration::from_mins(10);
/// Series at a time.
const MOST_SERIES: usize = 128;
/// Pods with a budget that is not full.
const MOST_PODS: usize = 128;

/// What becomes of a denied flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fate {
    /// It is to become an Event; the budgets have paid for it.
    Create,
    /// An Event tells of it already.
    Counted,
    /// Nobody is told of it.
    Suppressed,
}

/// A series that is to be brought up to date.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) note: DeniedNote,
    /// Name of the Event.
    pub(super) name: String,
    /// Packets that were logged so far.
    pub(super) packets: u64,
}

/// So many, and more with time.
#[derive(Clone, Copy, Debug)]
struct Budget {
    left: f64,
    at: Instant,
    most: f64,
    each: Duration,
}

impl Budget {
    fn new((most, each): (f64, Duration), now: Instant) -> Self {
        Self {
            left: most,
            at: now,
            most,
            each,
        }
    }

    fn refill(&mut self, now: Instant) {
        let gained = now.duration_since(self.at).as_secs_f64() / self.each.as_secs_f64();
        self.left = (self.left + gained).min(self.most);
        self.at = now;
    }

    fn has_one(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= 1.0
    }

    fn is_full(&mut self, now: Instant) -> bool {
        self.refill(now);
        self.left >= self.most
    }

    fn take(&mut self) {
        self.left -= 1.0;
    }
}

/// A flow of which an Event tells.
#[derive(Clone, Debug)]
struct One {
    name: String,
    packets: u64,
    /// Whether packets came since the last write.
    is_behind: bool,
    written: Instant,
    heard: Instant,
}

/// All flows of which Events tell.
#[derive(Debug)]
pub(super) struct Series {
    flows: BTreeMap<DeniedNote, One>,
    pods: BTreeMap<(SmolStr, SmolStr), Budget>,
    node: Budget,
}

impl Series {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            flows: BTreeMap::new(),
            pods: BTreeMap::new(),
            node: Budget::new(NODE, now),
        }
    }

    /// Takes packets of a denied flow.
    pub(super) fn take(&mut self, note: &DeniedNote, packets: u64, now: Instant) -> Fate {
        self.flows
            .retain(|_, one| now.duration_since(one.heard) < OVER);
        if let Some(one) = self.flows.get_mut(note) {
            one.packets = one.packets.saturating_add(packets);
            one.heard = now;
            one.is_behind = true;
            return Fate::Counted;
        }
        self.pods.retain(|_, budget| !budget.is_full(now));
        let pod = (note.namespace.clone(), note.pod.clone());
        let has_room = self.flows.len() < MOST_SERIES
            && (self.pods.len() < MOST_PODS || self.pods.contains_key(&pod));
        if !has_room || !self.node.has_one(now) {
            return Fate::Suppressed;
        }
        let budget = self.pods.entry(pod);
        let budget = budget.or_insert_with(|| Budget::new(POD, now));
        if !budget.has_one(now) {
            return Fate::Suppressed;
        }
        budget.take();
        self.node.take();
        Fate::Create
    }

    /// The Event is there under this name.
    pub(super) fn created(&mut self, note: DeniedNote, name: String, packets: u64, now: Instant) {
        let one = One {
            name,
            packets,
            is_behind: false,
            written: now,
            heard: now,
        };
        self.flows.insert(note, one);
    }

    /// When a series is due next.
    pub(super) fn next(&self) -> Option<Instant> {
        let behind = self.flows.values().filter(|one| one.is_behind);
        behind.map(|one| one.written + EXTEND).min()
    }

    /// A series that is due, if the node's budget allows it. One of a single packet is none.
    pub(super) fn due(&mut self, now: Instant) -> Option<Due> {
        let is_due = |one: &One| one.is_behind && one.written + EXTEND <= now;
        let (note, one) = self.flows.iter_mut().find(|(_, one)| is_due(one))?;
        one.written = now;
        if !self.node.has_one(now) {
            return None;
        }
        self.node.take();
        one.is_behind = false;
        Some(Due {
            note: note.clone(),
            name: one.name.clone(),
            packets: one.packets.max(2),
        })
    }

    /// The Event is not there any more; the next packet makes a new one.
    pub(super) fn forget(&mut self, note: &DeniedNote) {
        self.flows.remove(note);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn note(pod: &str, text: &str) -> DeniedNote {
        DeniedNote {
            namespace: "shop".into(),
            pod: pod.into(),
            uid: None,
            is_dropped: true,
            text: text.to_owned(),
        }
    }

    /// Takes one packet, and makes the Event if one is wanted.
    fn deny(series: &mut Series, note: &DeniedNote, now: Instant) -> Fate {
        let fate = series.take(note, 1, now);
        if fate == Fate::Create {
            series.created(note.clone(), format!("{}.1", note.pod), 1, now);
        }
        fate
    }

    #[test]
    fn packets_of_one_flow_are_a_series_that_is_written_once_a_minute() {
        let start = Instant::now();
        let mut series = Series::new(start);
        let web = note("web", "a");
        let seconds = |seconds| start + Duration::from_secs(seconds);

        assert_eq!(deny(&mut series, &web, start), Fate::Create);
        assert_eq!(series.next(), None, "one packet is no series");
        assert_eq!(deny(&mut series, &web, seconds(1)), Fate::Counted);
        assert_eq!(deny(&mut series, &web, seconds(2)), Fate::Counted);

        assert_eq!(series.due(seconds(59)), None);
        assert_eq!(series.next(), Some(seconds(60)));
        let due = Due {
            note: web.clone(),
            name: "web.1".to_owned(),
            packets: 3,
        };
        assert_eq!(series.due(seconds(60)), Some(due));
        assert_eq!(series.due(seconds(600)), None, "nothing came since");
        assert_eq!(deny(&mut series, &web, seconds(700)), Fate::Create);
    }

    #[test]
    fn a_pod_that_is_scanned_uses_up_its_own_budget_only() {
        let start = Instant::now();
        let mut series = Series::new(start);

        let fates: Vec<Fate> = (0..10)
            .map(|port| deny(&mut series, &note("web", &port.to_string()), start))
            .collect();

        assert_eq!(
            fates.iter().filter(|fate| **fate == Fate::Create).count(),
            4
        );
        assert_eq!(deny(&mut series, &note("db", "0"), start), Fate::Create);
        let later = start + POD.1;
        assert_eq!(deny(&mut series, &note("web", "x"), later), Fate::Create);
        assert_eq!(
            deny(&mut series, &note("web", "y"), later),
            Fate::Suppressed
        );
    }

    #[test]
    fn a_node_makes_no_more_than_its_budget_whatever_happens() {
        let start = Instant::now();
        let mut series = Series::new(start);
        let mut created = 0;

        for second in 0..3_600_u64 {
            for pod in 0..20 {
                let now = start + Duration::from_secs(second);
                let note = note(&format!("pod-{pod}"), &second.to_string());
                created += u64::from(deny(&mut series, &note, now) == Fate::Create);
                created += u64::from(series.due(now).is_some());
            }
            assert!(series.flows.len() <= MOST_SERIES && series.pods.len() <= MOST_PODS);
        }

        assert!((600..=620).contains(&created), "{created}");
    }
}
