//! What the API server says of this very node, noted in passing for those who write to it.

use std::borrow::Cow;

use serde::Deserialize;
use tokio::sync::watch;

use crate::publish::taint::StartupTaint;

/// This node's object, as far as it is needed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct OwnNode {
    pub(crate) uid: String,
    pub(crate) version: u64,
    /// Where in its list of taints the startup taint is.
    pub(crate) startup_taint: Option<usize>,
}

/// Notes what is heard of this node.
#[derive(Debug)]
pub(crate) struct OwnNodeWatch {
    name: String,
    startup_taint: Option<StartupTaint>,
    told: watch::Sender<Option<OwnNode>>,
}

#[derive(Deserialize)]
struct NodeObject<'a> {
    #[serde(borrow)]
    metadata: Metadata<'a>,
    #[serde(borrow, default)]
    spec: Spec<'a>,
}

#[derive(Deserialize)]
struct Metadata<'a> {
    #[serde(borrow)]
    uid: Cow<'a, str>,
}

#[derive(Default, Deserialize)]
struct Spec<'a> {
    #[serde(borrow, default)]
    taints: Option<Vec<Taint<'a>>>,
}

#[derive(Deserialize)]
struct Taint<'a> {
    #[serde(borrow)]
    key: Cow<'a, str>,
    #[serde(borrow)]
    effect: Cow<'a, str>,
}

impl OwnNodeWatch {
    pub(crate) fn new(name: &str, startup_taint: Option<StartupTaint>) -> Self {
        Self {
            name: name.to_owned(),
            startup_taint,
            told: watch::Sender::new(None),
        }
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Option<OwnNode>> {
        self.told.subscribe()
    }

    /// A Node is there in this version. What cannot be understood is not noted; the source names it.
    pub(super) fn see(&self, name: &str, version: u64, bytes: &[u8]) {
        if name != self.name {
            return;
        }
        let Ok(object) = serde_json::from_slice::<NodeObject<'_>>(bytes) else {
            return;
        };
        let taints = object.spec.taints.unwrap_or_default();
        let is_it = |taint: &Taint<'_>| {
            let wanted = self.startup_taint.as_ref();
            wanted.is_some_and(|wanted| wanted.is(&taint.key, &taint.effect))
        };
        self.tell(Some(OwnNode {
            uid: object.metadata.uid.into_owned(),
            version,
            startup_taint: taints.iter().position(is_it),
        }));
    }

    /// A Node is gone.
    pub(super) fn miss(&self, name: &str) {
        if name == self.name {
            self.tell(None);
        }
    }

    /// The object changes every few minutes in ways that nobody here looks at; the version goes along.
    fn tell(&self, node: Option<OwnNode>) {
        self.told.send_if_modified(|told| {
            let key = |node: &Option<OwnNode>| {
                node.as_ref()
                    .map(|node| (node.uid.clone(), node.startup_taint))
            };
            let is_news = key(told) != key(&node) || node.as_ref().is_some_and(is_tainted);
            *told = node;
            is_news
        });
    }
}

/// A tainted one is news in each version: the last patch was for another.
fn is_tainted(node: &OwnNode) -> bool {
    node.startup_taint.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_taint_is_found_in_the_list_of_this_node_only() {
        let taint = "towpath.io/not-ready:NoSchedule".parse().unwrap();
        let own = OwnNodeWatch::new("here", Some(taint));
        let mut heard = own.subscribe();
        let node = |taints: serde_json::Value| {
            json!({ "metadata": { "uid": "u" }, "spec": { "taints": taints } }).to_string()
        };
        let not_ready = json!({ "key": "towpath.io/not-ready", "effect": "NoSchedule" });
        let other = json!({ "key": "towpath.io/not-ready", "effect": "NoExecute", "value": "x" });

        own.see("there", 1, node(json!([not_ready])).as_bytes());
        assert_eq!(*heard.borrow_and_update(), None);

        own.see("here", 2, node(json!([other, not_ready])).as_bytes());
        let expected = OwnNode {
            uid: "u".to_owned(),
            version: 2,
            startup_taint: Some(1),
        };
        assert_eq!(*heard.borrow_and_update(), Some(expected.clone()));

        own.see("here", 3, node(json!([other])).as_bytes());
        assert!(heard.has_changed().unwrap());
        heard.borrow_and_update();
        own.see("here", 4, node(json!(null)).as_bytes());
        assert!(!heard.has_changed().unwrap(), "nothing that matters");
        own.see("here", 5, b"{}");
        assert_eq!(
            *heard.borrow_and_update(),
            Some(OwnNode {
                version: 4,
                startup_taint: None,
                ..expected
            })
        );

        own.miss("here");
        assert_eq!(*heard.borrow_and_update(), None);
    }
}
