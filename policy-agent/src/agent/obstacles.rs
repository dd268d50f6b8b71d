//! The thread that looks at what others do on this node: what carries packets of pods past policy, like other dataplanes,
//! IPVS and flowtables; what Flannel set up; what became of the chain of CNI plugins. While there is any obstacle, the node
//! is not ready and says why; the rules stay in force for everything else.

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use flannel_adapter::Fault;
use flannel_adapter::detect::{
    Carrier, ConfList, Detection, Note, SurveyError, detect, read_conflists, survey,
};
use flannel_adapter::here::{Here, Places};
use towpath_dataplane::link::{Scanner, Snapshot};
use towpath_runtime::readiness::Condition;
use tracing::{info, warn};

use super::AgentError;
use super::config::Config;
use super::event::Event;
use super::link::chain;
use super::surroundings::{Chain, Surroundings};
use super::thread::spawn;
use crate::cli::cni;

/// How often it looks. Programs that are attached, tables that are loaded and files that are written make no event that
/// we hear.
const INTERVAL: Duration = Duration::from_secs(10);
/// When it is told to look, it waits for more: a device and its addresses come one after the other.
const SETTLE: Duration = Duration::from_millis(250);

/// Makes the thread look now.
#[derive(Clone, Debug)]
pub(super) struct Lookout(SyncSender<()>);

impl Lookout {
    /// A handle, and what the thread hears of it. The thread ends when all handles are gone.
    pub(super) fn new() -> (Self, Receiver<()>) {
        let (sender, receiver) = sync_channel(1);
        (Self(sender), receiver)
    }

    /// Something has changed that others may have set up.
    pub(super) fn look(&self) {
        // One that waits to be heard is enough.
        self.0.try_send(()).ok();
    }
}

/// The running thread.
pub(super) struct ObstacleThread {
    lookout: Lookout,
    thread: JoinHandle<()>,
}

impl ObstacleThread {
    /// Opens its socket in the network namespace of the calling thread, and starts.
    pub(super) fn start(
        config: &Config,
        clear: Condition,
        (lookout, wakeups): (Lookout, Receiver<()>),
        sender: SyncSender<Event>,
    ) -> Result<Self, AgentError> {
        let mut watch = Watch {
            scanner: Scanner::open()?,
            cni_configurations: config.cni_config_directory.clone(),
            state_directory: config.state_directory.clone(),
            flannel: Places {
                subnet_env: config.flannel_subnet_env.clone(),
                net_conf: config.flannel_net_conf.clone(),
            },
            told: Told::new(clear),
            surroundings: Surroundings::default(),
            is_told: false,
            sender: sender.clone(),
        };
        let thread = spawn("obstacles", sender, move || watch.run(&wakeups))?;
        Ok(Self { lookout, thread })
    }

    /// Ends it, once the graph is gone.
    pub(super) fn end(self) -> std::thread::Result<()> {
        drop(self.lookout);
        self.thread.join()
    }
}

struct Watch {
    scanner: Scanner,
    cni_configurations: PathBuf,
    state_directory: PathBuf,
    flannel: Places,
    told: Told,
    surroundings: Surroundings,
    /// Whether the graph knows of any surroundings.
    is_told: bool,
    sender: SyncSender<Event>,
}

impl Watch {
    fn run(&mut self, wakeups: &Receiver<()>) {
        loop {
            self.look();
            let is_over = match wakeups.recv_timeout(INTERVAL) {
                Ok(()) => {
                    let more = wakeups.recv_timeout(SETTLE);
                    more == Err(RecvTimeoutError::Disconnected)
                }
                Err(error) => error == RecvTimeoutError::Disconnected,
            };
            if is_over {
                return;
            }
        }
    }

    fn look(&mut self) {
        let read = read_conflists(&self.cni_configurations);
        let snapshot = self.scanner.discover();
        let (conflist, faults, snapshot) = match (read, snapshot) {
            (Ok((conflist, faults)), Ok(snapshot)) => (conflist, faults, snapshot),
            (Err(error), _) => return self.unseen(&chain(&error)),
            (_, Err(error)) => return self.unseen(&chain(&error)),
        };
        let mut here = Here::look(
            &mut self.scanner,
            &snapshot,
            conflist.as_ref(),
            &self.flannel,
        );
        if let Ok(here) = &mut here {
            // Where the agent's container does not show the folder, nothing is known of the file.
            let folder = self.flannel.subnet_env.parent();
            here.expects_subnet_env &= folder.is_some_and(std::path::Path::exists);
        }
        match self.detect(&snapshot, conflist) {
            Ok(detection) => self.told.tell(&detection, faults),
            Err(error) => self.told.unseen(&chain(&error)),
        }
        self.tell(here.map_err(|error| chain(&error)));
    }

    fn detect(
        &mut self,
        snapshot: &Snapshot,
        conflist: Option<ConfList>,
    ) -> Result<Detection, SurveyError> {
        // No table of ours has a flowtable, so every one is another's.
        let survey = survey(&mut self.scanner, snapshot, conflist, |_| false)?;
        Ok(detect(&survey))
    }

    fn unseen(&mut self, reason: &str) {
        self.told.unseen(reason);
        self.tell(Err(reason.to_owned()));
    }

    /// Tells the graph what is new. When the graph is gone, the agent ends.
    fn tell(&mut self, here: Result<Here, String>) {
        let mut seen = self.surroundings.clone();
        seen.see(here, chain_of(&self.state_directory));
        if self.is_told && seen == self.surroundings {
            return;
        }
        self.is_told = true;
        self.surroundings = seen.clone();
        self.sender.send(Event::Surroundings(Box::new(seen))).ok();
    }
}

/// What was noted of an installation of the CNI plugin, and what others made of it.
fn chain_of(state_directory: &std::path::Path) -> Result<Chain, String> {
    let is_installed = cni::is_installed(state_directory).map_err(|error| chain(&error))?;
    let fault = cni::fault(state_directory).map_err(|error| chain(&error))?;
    Ok(Chain {
        is_installed,
        fault: fault.map(|fault| fault.to_string()),
    })
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
