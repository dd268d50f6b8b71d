//! Flannel's facts in a real etcd, which must be installed (Debian: `etcd-server`). Each test runs a server of its own on
//! loopback.

#![expect(clippy::unwrap_used, reason = "helpers of tests; a panic is a failure")]

mod server;

use std::sync::Arc;
use std::time::Duration;

use flannel_adapter::NodeKey;
use flannel_adapter::etcd::{Credentials, EtcdConfig, EtcdView, TlsFiles, follow};
use flannel_adapter::lease::KeyNames;
use tokio::sync::watch;

use crate::server::{Etcd, Gate};

const CONFIG: &str = "/coreos.com/network/config";
const VXLAN: &str = r#"{"Network":"10.5.0.0/16","Backend":{"Type":"vxlan"}}"#;

fn subnet(number: u32) -> String {
    format!(
        "/coreos.com/network/subnets/10.5.{}.{}-28",
        number / 16,
        number % 16 * 16
    )
}

fn lease(last: u8) -> String {
    format!(
        r#"{{"PublicIP":"192.0.2.{last}","PublicIPv6":null,"BackendType":"host-gw","BackendData":null}}"#
    )
}

fn config(endpoints: &[&str]) -> EtcdConfig {
    EtcdConfig {
        endpoints: endpoints.iter().map(|text| text.parse().unwrap()).collect(),
        names: KeyNames::default(),
        credentials: None,
        tls: None,
        resync: None,
    }
}

/// Somebody who reads what `follow` tells.
struct Follower {
    views: watch::Receiver<Arc<EtcdView>>,
}

impl Follower {
    fn start(config: EtcdConfig) -> Self {
        let (sender, views) = watch::channel(Arc::new(EtcdView::unread()));
        tokio::spawn(follow(config, sender));
        Self { views }
    }

    /// The first view that is as awaited.
    async fn until(&mut self, what: &str, is_awaited: impl Fn(&EtcdView) -> bool) -> Arc<EtcdView> {
        let awaited = self.views.wait_for(|view| is_awaited(view));
        let found = match tokio::time::timeout(Duration::from_secs(30), awaited).await {
            Ok(view) => Some(view.unwrap().clone()),
            Err(_) => None,
        };
        found.unwrap_or_else(|| panic!("never saw {what}; last: {:?}", self.views.borrow()))
    }
}

fn keys(view: &EtcdView) -> Vec<String> {
    let keys = view.nodes.iter().map(|node| match &node.key {
        NodeKey::Lease(name) | NodeKey::Node(name) => name.to_string(),
    });
    keys.collect()
}

#[tokio::test]
async fn what_is_there_is_listed_and_what_changes_is_heard() {
    let etcd = Etcd::start().await;
    etcd.put(CONFIG, VXLAN).await;
    etcd.put(&subnet(16), &lease(1)).await;

    let mut follower = Follower::start(config(&[&etcd.url()]));
    let first = follower
        .until("the list", |view| view.stale.is_none())
        .await;
    etcd.put(&subnet(17), &lease(2)).await;
    let added = follower
        .until("the new lease", |view| view.nodes.len() == 2)
        .await;
    etcd.put(&subnet(17), &lease(3)).await;
    let moved = follower
        .until("the new address", |view| {
            view.nodes
                .iter()
                .any(|node| node.public.ipv4 == Some([192, 0, 2, 3].into()))
        })
        .await;
    etcd.delete(&subnet(16)).await;
    let gone = follower
        .until("the end of a lease", |view| view.nodes.len() == 1)
        .await;
    etcd.delete(CONFIG).await;
    follower
        .until("the end of the configuration", |view| {
            view.net_conf.is_none()
        })
        .await;

    assert_eq!(keys(&first), ["10.5.1.0/28"]);
    assert_eq!(
        first.net_conf.as_ref().unwrap().networks.ipv4,
        Some("10.5.0.0/16".parse().unwrap())
    );
    assert_eq!(keys(&added), ["10.5.1.0/28", "10.5.1.16/28"]);
    assert!(moved.revision > added.revision);
    assert_eq!(keys(&gone), ["10.5.1.16/28"]);
}

#[tokio::test]
async fn a_bad_value_is_told_and_the_good_one_stays() {
    let etcd = Etcd::start().await;
    etcd.put(CONFIG, VXLAN).await;
    etcd.put(&subnet(16), &lease(1)).await;
    let mut follower = Follower::start(config(&[&etcd.url()]));
    let good = follower
        .until("the list", |view| view.stale.is_none())
        .await;

    etcd.put(CONFIG, r#"{"Network":"#).await;
    etcd.put("/coreos.com/network/subnets/nonsense", "x").await;
    let bad = follower
        .until("the faults", |view| view.faults.len() == 2)
        .await;

    assert_eq!(bad.net_conf, good.net_conf);
    assert_eq!(bad.nodes, good.nodes);
}

#[tokio::test]
async fn many_leases_are_listed_page_by_page() {
    let etcd = Etcd::start().await;
    for number in 0..1_100 {
        etcd.put(&subnet(number), &lease(1)).await;
    }

    let mut follower = Follower::start(config(&[&etcd.url()]));
    let view = follower
        .until("the list", |view| view.stale.is_none())
        .await;

    assert_eq!(view.nodes.len(), 1_100);
}

#[tokio::test]
async fn what_was_compacted_while_cut_off_is_listed_again() {
    let etcd = Etcd::start().await;
    etcd.put(&subnet(16), &lease(1)).await;
    let gate = Gate::start(etcd.address()).await;
    let mut follower = Follower::start(config(&[&gate.url()]));
    let before = follower
        .until("the list", |view| view.stale.is_none())
        .await;

    gate.close();
    let cut = follower.until("the cut", |view| view.stale.is_some()).await;
    etcd.put(&subnet(17), &lease(2)).await;
    etcd.delete(&subnet(16)).await;
    etcd.compact().await;
    gate.open();
    let after = follower
        .until("the new list", |view| view.stale.is_none())
        .await;

    assert_eq!(cut.nodes, before.nodes, "what was known stays");
    assert_eq!(keys(&after), ["10.5.1.16/28"]);
}

#[tokio::test]
async fn a_server_that_is_down_is_passed_over() {
    let etcd = Etcd::start().await;
    etcd.put(&subnet(16), &lease(1)).await;

    // Nobody listens on the discard port.
    let mut follower = Follower::start(config(&["http://127.0.0.1:9", &etcd.url()]));
    let view = follower
        .until("the list of the second server", |view| view.stale.is_none())
        .await;

    assert_eq!(view.nodes.len(), 1);
}

#[tokio::test]
async fn lists_come_again_without_a_sign_of_trouble() {
    let etcd = Etcd::start().await;
    let gate = Gate::start(etcd.address()).await;
    let mut follower = Follower::start(EtcdConfig {
        resync: Some(Duration::from_millis(300)),
        ..config(&[&gate.url()])
    });
    follower
        .until("the list", |view| view.stale.is_none())
        .await;

    // The connection stays, and nothing comes through any more.
    gate.stop_answers();
    etcd.put(&subnet(16), &lease(1)).await;

    follower
        .until("the new list", |view| view.nodes.len() == 1)
        .await;
}

#[tokio::test]
async fn a_name_and_a_password_open_what_is_closed() {
    let etcd = Etcd::start().await;
    etcd.put(&subnet(16), &lease(1)).await;
    etcd.require_password("root", "secret").await;
    let with = |password: &str| EtcdConfig {
        credentials: Some(Credentials {
            name: "root".into(),
            password: password.into(),
        }),
        ..config(&[&etcd.url()])
    };

    let mut without = Follower::start(config(&[&etcd.url()]));
    let mut wrong = Follower::start(with("guess"));
    let mut right = Follower::start(with("secret"));
    let is_refused = |view: &EtcdView| {
        view.stale
            .as_ref()
            .is_some_and(|why| why.contains("answered 4"))
    };

    without.until("the refusal", is_refused).await;
    let told = wrong.until("the refusal of the password", is_refused).await;
    let view = right.until("the list", |view| view.stale.is_none()).await;

    assert!(!format!("{told:?} {:?}", with("guess")).contains("guess"));
    assert_eq!(view.nodes.len(), 1);
}

#[tokio::test]
async fn tls_works_with_the_right_certificates_only() {
    let folder = tempfile::tempdir().unwrap();
    let etcd = Etcd::start_secure(folder.path()).await;
    let file = |name: &str| folder.path().join(name);
    let files = |own| TlsFiles {
        authorities: file("ca.pem"),
        own,
    };
    let with = |tls| EtcdConfig {
        tls,
        ..config(&[&etcd.url()])
    };

    let own = Some((file("own.pem"), file("own.key")));
    let mut right = Follower::start(with(Some(files(own.clone()))));
    let mut stranger = Follower::start(with(Some(TlsFiles {
        authorities: file("other.pem"),
        own,
    })));
    let mut without = Follower::start(with(None));
    let mut missing = Follower::start(with(Some(TlsFiles {
        authorities: file("nothing.pem"),
        own: None,
    })));
    let says = |text: &'static str| {
        move |view: &EtcdView| view.stale.as_ref().is_some_and(|why| why.contains(text))
    };

    right.until("the list", |view| view.stale.is_none()).await;
    stranger
        .until("the refusal", says("invalid peer certificate"))
        .await;
    without
        .until("the refusal", says("no certificates are configured"))
        .await;
    missing.until("the missing file", says("nothing.pem")).await;
}
