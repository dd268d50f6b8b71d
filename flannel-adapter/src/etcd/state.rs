//! What etcd holds of Flannel, kept from its lists and changes. Does no I/O.

use std::collections::BTreeMap;

use super::wire::{Change, KeyValue};
use crate::fault::{Fault, LastGood};
use crate::lease::{self, Key, KeyNames};
use crate::net_conf::NetConf;
use crate::node::NodeFacts;

/// What etcd holds of Flannel, for others to read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EtcdView {
    /// Why this may be old, while etcd cannot be read; also before the first list.
    pub stale: Option<String>,
    /// Flannel's configuration.
    pub net_conf: Option<NetConf>,
    /// The nodes that have a subnet.
    pub nodes: Vec<NodeFacts>,
    /// What is wrong with keys and values. An earlier good value of such a key stays.
    pub faults: Vec<Fault>,
    /// Revision of etcd to which this belongs.
    pub revision: i64,
}

impl EtcdView {
    /// What there is before the first list.
    pub fn unread() -> Self {
        Self {
            stale: Some("not read yet".to_owned()),
            ..Self::default()
        }
    }
}

/// Keys and values, each as last understood.
#[derive(Debug)]
pub(super) struct EtcdState {
    names: KeyNames,
    config: LastGood<Option<NetConf>>,
    leases: BTreeMap<String, LastGood<NodeFacts>>,
    /// Keys that are no subnet though they lie among them.
    strangers: BTreeMap<String, Fault>,
    revision: i64,
}

impl EtcdState {
    pub(super) fn new(names: KeyNames) -> Self {
        Self {
            names,
            config: LastGood::default(),
            leases: BTreeMap::new(),
            strangers: BTreeMap::new(),
            revision: 0,
        }
    }

    /// Takes over a full list. What is not in it is gone.
    pub(super) fn replace(&mut self, entries: Vec<KeyValue>, revision: i64) {
        let listed: std::collections::BTreeSet<&str> =
            entries.iter().map(|entry| entry.key.as_str()).collect();
        self.leases.retain(|key, _| listed.contains(key.as_str()));
        self.strangers
            .retain(|key, _| listed.contains(key.as_str()));
        if !listed.contains(self.names.config().as_str()) {
            self.config.remove();
        }
        for entry in entries {
            self.put(entry);
        }
        self.revision = revision;
    }

    /// Takes over changes.
    pub(super) fn apply(&mut self, changes: Vec<Change>, revision: i64) {
        for change in changes {
            match change {
                Change::Put(entry) => self.put(entry),
                Change::Delete(key) => self.delete(&key),
            }
        }
        self.revision = self.revision.max(revision);
    }

    /// The revision up to which this is known.
    pub(super) fn revision(&self) -> i64 {
        self.revision
    }

    /// What others read.
    pub(super) fn view(&self) -> EtcdView {
        let mut faults: Vec<Fault> = self.config.faults().to_vec();
        faults.extend(self.strangers.values().cloned());
        faults.extend(
            self.leases
                .values()
                .flat_map(|lease| lease.faults().iter().cloned()),
        );
        EtcdView {
            stale: None,
            net_conf: self.config.get().cloned().flatten(),
            nodes: self
                .leases
                .values()
                .filter_map(|lease| lease.get().cloned())
                .collect(),
            faults,
            revision: self.revision,
        }
    }

    fn put(&mut self, entry: KeyValue) {
        match self.names.classify(&entry.key) {
            Ok(Key::Config) => self
                .config
                .take(NetConf::parse("etcd config", &entry.value)),
            Ok(Key::Subnet(subnets)) => {
                let read = lease::read(subnets, &entry.value);
                self.leases.entry(entry.key).or_default().take(read);
            }
            Ok(Key::Other) => {}
            Err(fault) => drop(self.strangers.insert(entry.key, fault)),
        }
    }

    fn delete(&mut self, key: &str) {
        if key == self.names.config() {
            self.config.remove();
        }
        self.leases.remove(key);
        self.strangers.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(key: &str, value: &str) -> KeyValue {
        KeyValue {
            key: format!("/coreos.com/network/{key}"),
            value: value.to_owned(),
            raw_key: Vec::new(),
        }
    }

    const CONF: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;
    const LEASE: &str = r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw"}"#;

    #[test]
    fn a_list_replaces_and_changes_add() {
        let mut state = EtcdState::new(KeyNames::default());
        state.replace(
            vec![entry("config", CONF), entry("subnets/10.5.1.0-24", LEASE)],
            5,
        );

        state.apply(
            vec![
                Change::Put(entry("subnets/10.5.2.0-24", LEASE)),
                Change::Delete(entry("subnets/10.5.1.0-24", "").key),
            ],
            7,
        );
        let changed = state.view();
        state.replace(vec![], 9);

        assert_eq!((changed.nodes.len(), changed.revision), (1, 7));
        assert!(changed.net_conf.is_some() && changed.faults.is_empty());
        let empty = EtcdView {
            revision: 9,
            ..EtcdView::default()
        };
        assert_eq!(state.view(), empty);
    }

    #[test]
    fn a_bad_value_keeps_the_good_one_and_is_told() {
        let mut state = EtcdState::new(KeyNames::default());
        state.replace(
            vec![entry("config", CONF), entry("subnets/10.5.1.0-24", LEASE)],
            5,
        );
        let good = state.view();

        let bad = [
            entry("config", "{"),
            entry("subnets/10.5.1.0-24", "[]"),
            entry("subnets/nonsense", LEASE),
            entry("elsewhere", "{"),
        ];
        state.apply(bad.into_iter().map(Change::Put).collect(), 6);
        let view = state.view();

        assert_eq!((view.net_conf, view.nodes), (good.net_conf, good.nodes));
        assert_eq!(view.faults.len(), 3);
    }
}
