//! Keeps pod bridges set up so that their traffic can be judged, and says whether it can.

use towpath_dataplane::link::{BridgeSettings, Interface, NetlinkError};
use towpath_runtime::readiness::Condition;
use tracing::{info, warn};

use super::link::chain;
use super::state::StateDirectory;

/// Says whether `br_netfilter` is there. The kernel keeps the switches either way, so they do not tell.
pub(super) type ModuleCheck = fn() -> Result<bool, NetlinkError>;

/// Sets up the bridge with this number.
pub(super) type Set<'a> =
    &'a mut dyn FnMut(u32, BridgeSettings) -> Result<BridgeSettings, NetlinkError>;

/// The pod bridges of this host.
#[derive(Debug)]
pub(super) struct PodBridges {
    /// Whether any bridge is configured; without, there is nothing to keep.
    are_configured: bool,
    state: StateDirectory,
    check: ModuleCheck,
    /// Whether the module was there at the last look.
    is_module_there: Option<bool>,
    /// Holds while the frames of every pod bridge can be seen.
    filtered: Condition,
}

impl PodBridges {
    pub(super) fn new(
        are_configured: bool,
        state: StateDirectory,
        check: ModuleCheck,
        filtered: Condition,
    ) -> Self {
        Self {
            are_configured,
            state,
            check,
            is_module_there: None,
            filtered,
        }
    }

    /// Whether to [`Self::keep`] again without an event: the module has come or gone, of which the kernel tells nobody,
    /// or the settings of before could not be written down.
    pub(super) fn must_look(&self) -> bool {
        let is_module_changed = || (self.check)().ok() != self.is_module_there;
        self.are_configured && (self.state.is_unwritten() || is_module_changed())
    }

    /// Sets up those of the `bridges` that are not as they should be, and says whether their traffic can be judged.
    pub(super) fn keep(&mut self, bridges: &[Interface], set: Set<'_>) {
        match self.kept(bridges, set) {
            Ok(()) => drop(self.filtered.met()),
            Err(reason) => {
                if self.filtered.unmet(reason.as_str()) {
                    warn!(reason, "traffic between ports of a bridge cannot be judged");
                }
            }
        }
    }

    /// The settings come first: they also count when the module comes later.
    fn kept(&mut self, bridges: &[Interface], set: Set<'_>) -> Result<(), String> {
        if !self.are_configured {
            return Ok(());
        }
        if self.state.is_unwritten() && self.state.write().is_ok() {
            info!("what an uninstall has to undo is noted");
        }
        let checked = (self.check)();
        self.is_module_there = checked.as_ref().ok().copied();
        let mut faults = Vec::new();
        for bridge in bridges {
            if bridge.bridge_settings != Some(BridgeSettings::ENFORCING)
                && let Err(fault) = self.set_up(bridge, set)
            {
                faults.push(format!("{}: {fault}", bridge.name));
            }
        }
        match checked {
            Ok(true) => {}
            Ok(false) => faults
                .push("the kernel module br_netfilter is missing; load it on the host".to_owned()),
            Err(error) => faults.push(chain(&error)),
        }
        if faults.is_empty() {
            Ok(())
        } else {
            Err(faults.join(", "))
        }
    }

    fn set_up(&mut self, bridge: &Interface, set: Set<'_>) -> Result<(), String> {
        // A bridge that is not set up is open, so a disk that fails does not hold it up.
        if let Some(before) = bridge.bridge_settings
            && let Err(error) = self.state.record_bridge(&bridge.name, before)
        {
            warn!(
                bridge = %bridge.name,
                error = chain(&error),
                "cannot note the settings of before, which an uninstall would restore; trying again"
            );
        }
        set(bridge.index, BridgeSettings::ENFORCING).map_err(|error| chain(&error))?;
        info!(bridge = %bridge.name, "set up, so that traffic between its ports is judged");
        // The inventory learns it from the event that the change itself makes.
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;
    use std::collections::BTreeMap;
    use tempfile::TempDir;
    use towpath_runtime::readiness::Readiness;

    const OFF: BridgeSettings = BridgeSettings {
        nf_call_iptables: false,
        nf_call_ip6tables: false,
        no_linklocal_learn: false,
    };

    thread_local! {
        static IS_MODULE_THERE: Cell<bool> = const { Cell::new(true) };
    }

    /// The module as the test of this thread wants it.
    #[expect(clippy::unnecessary_wraps, reason = "the shape of a `ModuleCheck`")]
    fn check() -> Result<bool, NetlinkError> {
        Ok(IS_MODULE_THERE.get())
    }

    struct Node {
        bridges: PodBridges,
        readiness: Readiness,
        folder: TempDir,
        kernel: BTreeMap<u32, BridgeSettings>,
    }

    impl Node {
        fn start(are_configured: bool) -> Self {
            let folder = tempfile::tempdir().unwrap();
            let state = StateDirectory::open(folder.path()).unwrap();
            let readiness = Readiness::default();
            let filtered = readiness.add("bridge netfilter", "not looked at yet");
            Self {
                bridges: PodBridges::new(are_configured, state, check, filtered),
                readiness,
                folder,
                kernel: BTreeMap::from([(3, OFF)]),
            }
        }

        fn cni0(&self) -> Interface {
            Interface {
                index: 3,
                name: "cni0".into(),
                kind: Some("bridge".into()),
                master: None,
                mac: None,
                mtu: 1450,
                is_up: true,
                peer: None,
                bridge_settings: self.kernel.get(&3).copied(),
            }
        }

        fn keep(&mut self) {
            let seen = [self.cni0()];
            let kernel = &mut self.kernel;
            self.bridges.keep(&seen, &mut |index, wanted| {
                Ok(kernel.insert(index, wanted).unwrap())
            });
        }

        fn reasons(&self) -> Vec<String> {
            let awaited = self.readiness.awaited();
            awaited.into_iter().map(|awaited| awaited.reason).collect()
        }
    }

    #[test]
    fn a_bridge_is_set_up_again_and_its_first_settings_are_remembered() {
        let mut node = Node::start(true);

        node.keep();
        node.kernel.insert(
            3,
            BridgeSettings {
                nf_call_ip6tables: false,
                ..BridgeSettings::ENFORCING
            },
        );
        node.keep();

        assert!(node.readiness.is_ready());
        assert_eq!(node.kernel[&3], BridgeSettings::ENFORCING);
        drop(node.bridges);
        let state = StateDirectory::open(node.folder.path()).unwrap();
        assert_eq!(state.bridges().collect::<Vec<_>>(), [("cni0", OFF)]);
    }

    #[test]
    fn without_the_module_the_node_is_not_ready_although_the_settings_hold() {
        IS_MODULE_THERE.set(false);
        let mut node = Node::start(true);

        node.keep();

        assert_eq!(node.kernel[&3], BridgeSettings::ENFORCING);
        assert_eq!(
            node.reasons(),
            ["the kernel module br_netfilter is missing; load it on the host"]
        );
    }

    #[test]
    fn a_disk_that_fails_leaves_no_bridge_open() {
        let mut node = Node::start(true);
        let folder = node.folder.path().to_owned();
        let aside = folder.with_extension("aside");
        std::fs::rename(&folder, &aside).unwrap();

        node.keep();
        assert_eq!(node.kernel[&3], BridgeSettings::ENFORCING);
        assert!(node.readiness.is_ready() && node.bridges.must_look());
        node.keep();
        assert!(node.bridges.must_look());
        std::fs::rename(&aside, &folder).unwrap();
        node.keep();

        assert!(!node.bridges.must_look());
        drop(node.bridges);
        let state = StateDirectory::open(&folder).unwrap();
        assert_eq!(state.bridges().collect::<Vec<_>>(), [("cni0", OFF)]);
    }

    #[test]
    fn a_module_that_comes_or_goes_is_noticed() {
        IS_MODULE_THERE.set(false);
        let mut node = Node::start(true);
        node.keep();
        assert!(!node.bridges.must_look());

        IS_MODULE_THERE.set(true);
        assert!(node.bridges.must_look());
        node.keep();
        assert!(node.readiness.is_ready() && !node.bridges.must_look());

        IS_MODULE_THERE.set(false);
        assert!(node.bridges.must_look());
        node.keep();
        assert!(!node.readiness.is_ready());
    }

    #[test]
    fn a_refusal_is_told_and_the_others_are_set_up() {
        let mut node = Node::start(true);
        let second = Interface {
            index: 4,
            name: "br1".into(),
            ..node.cni0()
        };
        let seen = [node.cni0(), second];
        let mut set = Vec::new();

        node.bridges.keep(&seen, &mut |index, _| {
            set.push(index);
            if index == 3 {
                let (object, setting) = ("bridge cni0".to_owned(), "nf_call_iptables");
                return Err(NetlinkError::NotKept { object, setting });
            }
            Ok(OFF)
        });

        assert_eq!(set, [3, 4]);
        assert_eq!(
            node.reasons(),
            ["cni0: bridge cni0 does not keep the setting nf_call_iptables"]
        );
    }

    #[test]
    fn without_configured_bridges_the_module_does_not_matter() {
        IS_MODULE_THERE.set(false);
        let mut node = Node::start(false);

        node.bridges
            .keep(&[], &mut |_, _| unreachable!("no bridge"));

        assert!(node.readiness.is_ready() && !node.bridges.must_look());
    }
}
