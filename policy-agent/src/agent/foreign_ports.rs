//! Ports of bridges that are no pod bridges.
//!
//! Nothing checks which source a frame has there, so what is behind such a port is nobody's endpoint, whatever object
//! names it: the graph does not hear of these interfaces, and reports say why.

use std::collections::BTreeMap;

use towpath_core::model::{InterfaceName, Object, ObjectKey, Update};

/// The ports that were kept from the graph.
#[derive(Debug, Default)]
pub(super) struct ForeignPorts {
    /// By the interface's number: its name and that of its bridge.
    by_index: BTreeMap<u32, (InterfaceName, InterfaceName)>,
}

impl ForeignPorts {
    /// What the graph may hear of a change of interfaces, with these pod bridges.
    pub(super) fn pass(&mut self, update: Update, pod_bridges: &[InterfaceName]) -> Update {
        match update {
            Update::Upsert(Object::Interface(interface)) => match interface.bridge {
                Some(bridge) if !pod_bridges.contains(&bridge) => {
                    let index = interface.index;
                    self.by_index.insert(index, (interface.name, bridge));
                    // It may have been a pod's before.
                    Update::Remove(ObjectKey::Interface(index))
                }
                Some(_) | None => {
                    self.by_index.remove(&interface.index);
                    Update::Upsert(Object::Interface(interface))
                }
            },
            Update::Remove(ObjectKey::Interface(index)) => {
                self.by_index.remove(&index);
                update
            }
            Update::Upsert(_) | Update::Remove(_) => update,
        }
    }

    /// The bridge of a port that was kept back.
    pub(super) fn bridge_of(&self, port: &InterfaceName) -> Option<&InterfaceName> {
        self.by_index
            .values()
            .find_map(|(name, bridge)| (name == port).then_some(bridge))
    }
}
