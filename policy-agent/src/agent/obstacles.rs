//! The thread that looks for what carries packets of pods past policy: other dataplanes, IPVS, flowtables. While there is
//! any, the node is not ready and says why; the rules stay in force for everything else.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use flannel_adapter::Fault;
use flannel_adapter::detect::{
    Carrier, Detection, Note, SurveyError, detect, read_conflists, survey,
};
use towpath_dataplane::link::Scanner;
use towpath_runtime::readiness::Condition;
use tracing::{info, warn};

use super::AgentError;
use super::event::Event;
use super::link::chain;
use super::thread::spawn;

/// How often it looks. Programs that are attached and tables that are loaded make no event that we hear.
const INTERVAL: Duration = Duration::from_secs(10);

/// The running thread.
pub(super) struct ObstacleThread {
    /// Nothing is ever sent; the thread ends when this is dropped.
    alive: SyncSender<()>,
    thread: JoinHandle<()>,
}

impl ObstacleThread {
    /// Opens its socket in the network namespace of the calling thread, and starts.
    pub(super) fn start(
        cni_configurations: PathBuf,
        clear: Condition,
        sender: SyncSender<Event>,
    ) -> Result<Self, AgentError> {
        let mut lookout = Lookout {
            scanner: Scanner::open()?,
            cni_configurations,
            told: Told::new(clear),
        };
        let (alive, ended) = sync_channel(1);
        let thread = spawn("obstacles", sender, move || lookout.run(&ended))?;
        Ok(Self { alive, thread })
    }

    /// Ends it.
    pub(super) fn end(self) -> std::thread::Result<()> {
        drop(self.alive);
        self.thread.join()
    }
}

struct Lookout {
    scanner: Scanner,
    cni_configurations: PathBuf,
    told: Told,
}

impl Lookout {
    fn run(&mut self, ended: &Receiver<()>) {
        loop {
            match self.look() {
                Ok((detection, faults)) => self.told.tell(&detection, faults),
                Err(error) => self.told.unseen(&chain(&error)),
            }
            if ended.recv_timeout(INTERVAL) != Err(RecvTimeoutError::Timeout) {
                return;
            }
        }
    }

    fn look(&mut self) -> Result<(Detection, Vec<Fault>), SurveyError> {
        let (conflist, faults) = read_conflists(&self.cni_configurations)?;
        let snapshot = self.scanner.discover()?;
        // No table of ours has a flowtable, so every one is another's.
        let survey = survey(&mut self.scanner, &snapshot, conflist, |_| false)?;
        Ok((detect(&survey), faults))
    }
}

/// What was told last, so that each change is told once.
struct Told {
    clear: Condition,
    carriers: Option<Vec<Carrier>>,
    notes: Vec<Note>,
    faults: Vec<Fault>,
}

impl Told {
    fn new(clear: Condition) -> Self {
        Self {
            clear,
            carriers: None,
            notes: Vec::new(),
            faults: Vec::new(),
        }
    }

    fn tell(&mut self, detection: &Detection, faults: Vec<Fault>) {
        match detection.refusal() {
            None => {
                self.clear.met();
            }
            Some(reason) => {
                if self.clear.unmet(reason.as_str()) {
                    warn!(reason, "policy cannot be enforced for all packets here");
                }
            }
        }
        if self.carriers.as_ref() != Some(&detection.carriers) {
            let carriers: Vec<String> =
                detection.carriers.iter().map(ToString::to_string).collect();
            info!(
                carriers = carriers.join(", "),
                "who carries packets of pods"
            );
            self.carriers = Some(detection.carriers.clone());
        }
        for note in detection
            .notes
            .iter()
            .filter(|note| !self.notes.contains(note))
        {
            info!(%note, "another is at work on this node, too");
        }
        self.notes.clone_from(&detection.notes);
        for fault in faults.iter().filter(|fault| !self.faults.contains(fault)) {
            warn!(%fault, "cannot read a CNI configuration");
        }
        self.faults = faults;
    }

    /// Who cannot look does not know that nothing is there.
    fn unseen(&mut self, reason: &str) {
        if self.clear.unmet(reason) {
            warn!(reason, "cannot look for what carries packets past policy");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flannel_adapter::detect::{Survey, SurveyedLink};
    use towpath_runtime::readiness::Readiness;

    fn with_link(name: &str) -> Detection {
        detect(&Survey {
            links: vec![SurveyedLink {
                index: 9,
                name: name.into(),
                kind: None,
                master: None,
                has_peer: false,
            }],
            ..Survey::default()
        })
    }

    #[test]
    fn a_node_is_ready_while_nothing_is_in_the_way() {
        let readiness = Readiness::default();
        let mut told = Told::new(readiness.add("other dataplanes", "not looked at yet"));
        assert!(!readiness.is_ready());

        told.tell(&with_link("eth0"), Vec::new());
        assert!(readiness.is_ready());

        told.tell(&with_link("kube-ipvs0"), Vec::new());
        let awaited = readiness.awaited();
        assert!(
            awaited[0]
                .reason
                .contains("IPVS sends packets to Services on"),
            "{awaited:?}"
        );

        told.tell(&with_link("eth0"), Vec::new());
        assert!(readiness.is_ready());

        told.unseen("no answer");
        assert_eq!(readiness.awaited()[0].reason, "no answer");
    }
}
