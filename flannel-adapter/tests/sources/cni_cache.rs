use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use flannel_adapter::source::cni_cache::{CniCacheSource, read};
use flannel_adapter::source::{
    Delta, EndpointSource as _, Identity, InterfaceRef, Observation, SourceName,
};
use proptest::prelude::*;
use serde_json::{Value, json};
use towpath_core::model::MacAddress;

/// What the bridge plugin's result looks like after the bandwidth plugin.
fn result(last: u8) -> Value {
    json!({
        "cniVersion": "0.3.1",
        "interfaces": [
            {"name": "cni0", "mac": "02:00:00:00:00:ff"},
            {"name": format!("veth{last}"), "mac": "02:00:00:00:00:fe"},
            {"name": "eth0", "mac": format!("02:00:00:00:00:{last:02x}"), "sandbox": "/var/run/netns/x"},
            {"name": "bwp1", "mac": "02:00:00:00:00:fd"}
        ],
        "ips": [
            {"version": "4", "interface": 2, "address": format!("10.244.1.{last}/24"), "gateway": "10.244.1.1"},
            {"version": "6", "interface": 2, "address": format!("fd00:1::{last:x}/64")},
            {"version": "4", "interface": 0, "address": "10.244.1.1/24"}
        ],
        "routes": [{"dst": "10.244.0.0/16"}]
    })
}

fn kept(name: &str, last: u8) -> Value {
    json!({
        "kind": "cniCacheV1",
        "containerId": format!("sandbox-{name}"),
        "config": "e30=",
        "ifName": "eth0",
        "networkName": "cbr0",
        "netns": "/var/run/netns/x",
        "cniArgs": [
            ["IgnoreUnknown", "1"],
            ["K8S_POD_NAMESPACE", "default"],
            ["K8S_POD_NAME", name],
            ["K8S_POD_INFRA_CONTAINER_ID", format!("sandbox-{name}")],
            ["K8S_POD_UID", "0d3f"]
        ],
        "result": result(last)
    })
}

fn web() -> Observation {
    Observation {
        key: "cbr0-web-eth0".into(),
        interface: Some(InterfaceRef::Name("veth7".into())),
        addresses: vec![[10, 244, 1, 7].into(), "fd00:1::7".parse().unwrap()],
        mac: Some(MacAddress([2, 0, 0, 0, 0, 7])),
        identity: Some(Identity::Pod {
            namespace: "default".into(),
            name: "web".into(),
            uid: Some("0d3f".into()),
            sandbox: Some("sandbox-web".into()),
        }),
        ..Observation::default()
    }
}

#[test]
fn a_kept_result_tells_who_and_where() {
    let found = read("cbr0-web-eth0", kept("web", 7).to_string().as_bytes());

    assert_eq!(found, Ok(Some(web())));
}

#[test]
fn results_of_every_version_are_understood() {
    let with = |result: Value| {
        let mut text = kept("web", 7);
        text["result"] = result;
        read("x", text.to_string().as_bytes()).unwrap().unwrap()
    };

    let newer = with(json!({
        "cniVersion": "1.1.0",
        "interfaces": [{"name": "cali7", "mtu": 1450}, {"name": "eth0", "sandbox": "/x", "mtu": 1450}],
        "ips": [{"interface": 1, "address": "10.244.1.7/32"}]
    }));
    let hosts_only = with(json!({
        "interfaces": [{"name": "cali7"}],
        "ips": [{"address": "10.244.1.7/32"}]
    }));
    let old = with(
        json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.244.1.7/24"}, "ip6": {"ip": "fd00::7/64"}}),
    );

    let cali7 = Some(InterfaceRef::Name("cali7".into()));
    assert_eq!((newer.interface, newer.addresses.len()), (cali7.clone(), 1));
    assert_eq!(
        (hosts_only.interface, hosts_only.addresses.len()),
        (cali7, 1)
    );
    assert_eq!((old.interface, old.addresses.len()), (None, 2));
}

#[test]
fn what_is_no_pods_is_passed_over_and_what_is_broken_is_named() {
    let mut nameless = kept("web", 7);
    nameless["cniArgs"] = json!([["IgnoreUnknown", "1"]]);
    let mut unknown = kept("web", 7);
    unknown["kind"] = json!("cniCacheV9");

    assert_eq!(read("x", nameless.to_string().as_bytes()), Ok(None));
    let fault = read("x", unknown.to_string().as_bytes()).unwrap_err();
    assert!(
        fault
            .to_string()
            .starts_with("CNI result x: the file is \"cniCacheV9\""),
        "{fault}"
    );
    assert!(
        read("x", b"{\"kind\":")
            .unwrap_err()
            .to_string()
            .contains("line 1")
    );
}

/// Waits until a source has told so many deltas, which are returned.
fn heard(source: &mut CniCacheSource, count: usize) -> Vec<Delta> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut heard: Vec<Delta> = Vec::new();
    while heard.len() < count {
        assert!(Instant::now() < deadline, "heard only {heard:?}");
        for delta in source.wait(Duration::from_millis(200)).unwrap() {
            // A file is written in steps; the last one counts.
            let key = |delta: &Delta| match delta {
                Delta::Seen(seen) => seen.key.clone(),
                Delta::Gone(key) => key.clone(),
                Delta::Lagged => "".into(),
            };
            heard.retain(|other| key(other) != key(&delta));
            let is_step = matches!(&delta, Delta::Gone(key) if key.contains("web"));
            if !is_step {
                heard.push(delta);
            }
        }
    }
    heard
}

fn write(folder: &Path, name: &str, last: u8) {
    fs::write(
        folder.join(format!("cbr0-{name}-eth0")),
        kept(name, last).to_string(),
    )
    .unwrap();
}

#[test]
fn files_that_come_and_go_are_heard_of() {
    let folder = tempfile::tempdir().unwrap();
    write(folder.path(), "old", 8);
    fs::write(folder.path().join("broken"), "{").unwrap();
    let mut source = CniCacheSource::new(folder.path());

    let first = source.snapshot().unwrap();
    let faults = source.faults().count();
    write(folder.path(), "web", 7);
    let came = heard(&mut source, 1);
    fs::remove_file(folder.path().join("cbr0-old-eth0")).unwrap();
    let went = heard(&mut source, 1);

    assert_eq!(source.name(), SourceName::CniCache);
    assert_eq!(first.len(), 1);
    assert_eq!(faults, 1);
    assert_eq!(came, [Delta::seen(web())]);
    assert_eq!(went, [Delta::Gone("cbr0-old-eth0".into())]);
}

#[test]
fn a_folder_that_comes_later_is_noticed() {
    let parent = tempfile::tempdir().unwrap();
    let folder = parent.path().join("results");
    let mut source = CniCacheSource::new(&folder);
    assert_eq!(source.snapshot().unwrap(), []);

    fs::create_dir(&folder).unwrap();
    write(&folder, "web", 7);
    let heard = source.wait(Duration::from_millis(10)).unwrap();

    assert_eq!(heard, [Delta::Lagged]);
    assert_eq!(source.snapshot().unwrap(), [web()]);
}

proptest! {
    #[test]
    fn any_text_is_read_without_panic(text in any::<Vec<u8>>(), number in any::<i64>(), word in any::<String>()) {
        prop_assert!(read("x", &text).is_err());
        let mut near = kept("web", 7);
        near["result"]["ips"][0]["interface"] = json!(number);
        near["result"]["ips"][1]["address"] = json!(word);
        near["result"]["interfaces"][2]["mac"] = json!(word);
        let found = read("x", near.to_string().as_bytes()).unwrap().unwrap();
        prop_assert!(found.addresses.len() <= 2);
    }
}
