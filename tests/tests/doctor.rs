//! `towpath doctor` on nodes of a lab: a good node has no warning, and each fault that is made for real is told as itself
//! and nothing else.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::{Value, json};
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::cluster::KubernetesConfig;
use towpath_tests::cni::PluginSet;
use towpath_tests::lab::{Lab, LabConfig, Node, PodSpec};
use towpath_tests::program;
use towpath_tests::require;
use towpath_tests::wait::{PATIENCE, until_some};

const CONFLIST: &str = r#"{"cniVersion": "0.3.1", "name": "cbr0", "plugins": [
    {"type": "flannel", "delegate": {"bridge": "cni0"}}, {"type": "portmap"}]}"#;

/// A node of a lab, as a doctor sees it.
struct Patient<'a> {
    lab: &'a Lab,
    node: &'a Node,
}

impl<'a> Patient<'a> {
    /// With what flanneld would have written.
    fn new(lab: &'a Lab) -> Result<Self> {
        let patient = Self::beside_flanneld(lab)?;
        fs::write(
            patient.path("subnet.env"),
            "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n",
        )?;
        Ok(patient)
    }

    /// A node with a flanneld, which has written what it writes.
    fn beside_flanneld(lab: &'a Lab) -> Result<Self> {
        let patient = Self {
            lab,
            node: lab.node("node-a")?,
        };
        fs::create_dir_all(patient.path("net.d"))?;
        fs::write(patient.path("net.d/10-flannel.conflist"), CONFLIST)?;
        Ok(patient)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.folder().join("node-a").join(name)
    }

    fn command(&self) -> Result<Command> {
        let mut command = Command::new(program::towpath()?);
        command.args(["doctor", "--output", "json", "--node", "node-a"]);
        command.arg("--source").arg(self.lab.source("node-a")?);
        for (flag, name) in [
            ("--subnet-env", "subnet.env"),
            ("--cni-config-dir", "net.d"),
            ("--state-dir", "state"),
            ("--socket", "towpath.sock"),
        ] {
            command.arg(flag).arg(self.path(name));
        }
        Ok(command)
    }

    /// What is worse than a note, and the exit status. Unlike the notes these must be none on a good node.
    fn faults(&self) -> Result<(Vec<(String, String)>, i32)> {
        let (all, status) = self.findings()?;
        let grave = ["warning", "serious", "unseen"];
        let faults = all
            .into_iter()
            .filter(|(_, severity)| grave.contains(&severity.as_str()));
        Ok((faults.collect(), status))
    }

    fn findings(&self) -> Result<(Vec<(String, String)>, i32)> {
        let output = self.node.namespace.output(&mut self.command()?)?;
        let list: Vec<Value> = serde_json::from_slice(&output.stdout)?;
        let text =
            |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let found = list
            .iter()
            .map(|finding| (text(finding, "id"), text(finding, "severity")));
        Ok((found.collect(), output.status.code().unwrap_or(-1)))
    }

    /// What the agent lists.
    fn get(&self, what: &str) -> Result<Value> {
        let mut command = Command::new(program::towpath()?);
        command
            .args(["get", what, "-o", "json", "--socket"])
            .arg(self.path("towpath.sock"));
        Ok(serde_json::from_str(
            &self.node.namespace.run(&mut command)?,
        )?)
    }

    fn run(&self, words: &str) -> Result<()> {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        self.node.namespace.run(command.args(words))?;
        Ok(())
    }
}

fn lab() -> Result<Lab> {
    let mut lab = Lab::new(&LabConfig::default())?;
    lab.write_namespace("shop", &[])?;
    lab.add_pod(PodSpec::new("node-a", "shop", "web"))?;
    Ok(lab)
}

#[test]
fn a_good_node_has_no_fault_with_and_without_an_agent() {
    require!("doctor", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let lab = lab().unwrap();
    let patient = Patient::new(&lab).unwrap();

    let before = patient.faults().unwrap();
    let mut agent = Agent::start(&lab, "node-a", &AgentOptions::default()).unwrap();
    agent.wait_ready().unwrap();
    let during = patient.faults().unwrap();
    agent.kill().unwrap();
    let after = patient.faults().unwrap();

    assert_eq!(before, (vec![], 0));
    assert_eq!(during, (vec![], 0));
    let orphaned = vec![("agent".to_owned(), "serious".to_owned())];
    assert_eq!(after, (orphaned, 1));
}

#[test]
fn a_node_of_a_real_cluster_is_good_until_it_is_not() {
    require!(
        "doctor",
        Root,
        KubernetesServers,
        Flanneld,
        CniModulePlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut lab = Lab::new(&LabConfig {
        plugins: PluginSet::Module,
        kubernetes: Some(KubernetesConfig::default()),
        ..LabConfig::default()
    })
    .unwrap();
    lab.write_namespace("shop", &[]).unwrap();
    lab.add_pod(PodSpec::new("node-a", "shop", "web")).unwrap();
    let patient = Patient::beside_flanneld(&lab).unwrap();
    let options = AgentOptions {
        configuration: Some(format!(
            "flannelSubnetEnv: {}\ncniConfigDirectory: {}\n",
            patient.path("subnet.env").display(),
            patient.path("net.d").display()
        )),
        ..AgentOptions::default()
    };
    let mut agent = Agent::start(&lab, "node-a", &options).unwrap();
    agent.wait_ready().unwrap();

    // What the agent tells is what the real flanneld set up.
    let flannel = until_some("Flannel", PATIENCE, || {
        let flannel = patient.get("flannel")?;
        Ok((!flannel.is_null()).then_some(flannel))
    })
    .unwrap();
    let own = lab.node("node-a").unwrap().pod_cidrs[0].to_string();
    assert_eq!(flannel["backend"], "vxlan", "{flannel}");
    assert_eq!(flannel["podCIDRs"], json!([own]), "{flannel}");
    assert_eq!(flannel["tunnels"][0]["udpPort"], 8472, "{flannel}");
    assert_eq!(flannel["contradictions"], json!([]), "{flannel}");

    assert_eq!(patient.faults().unwrap(), (vec![], 0));
    let (all, _) = patient.findings().unwrap();
    assert!(
        all.contains(&("nodes".to_owned(), "ok".to_owned())),
        "{all:?}"
    );

    // Somebody registers a node with the pods of another one.
    let network = lab.node("node-b").unwrap().pod_cidrs[0].to_string();
    let api = lab.cluster().unwrap().api();
    let twin = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": { "name": "twin" },
        "spec": { "podCIDR": network, "podCIDRs": [network] },
    });
    api.create("/api/v1/nodes", &twin).unwrap();
    let serious = |id: &str| (vec![(id.to_owned(), "serious".to_owned())], 1);
    assert_eq!(patient.faults().unwrap(), serious("pod-network"));
    api.delete("/api/v1/nodes/twin").unwrap();
    assert_eq!(patient.faults().unwrap(), (vec![], 0));

    // What flanneld keeps over its restart when a node goes meanwhile.
    let mut parts: Vec<&str> = network.split('.').collect();
    parts[2] = "77";
    let gone = parts.join(".");
    let gateway = gone.split('/').next().unwrap_or_default();
    patient
        .run(&format!(
            "ip route add {gone} via {gateway} dev flannel.1 onlink"
        ))
        .unwrap();
    let stale = vec![("stale-routes".to_owned(), "warning".to_owned())];
    assert_eq!(patient.faults().unwrap(), (stale, 0));
    patient.run(&format!("ip route delete {gone}")).unwrap();
    assert_eq!(patient.faults().unwrap(), (vec![], 0));

    // What the real flanneld told of its device is no longer so.
    patient
        .run("ip link set flannel.1 address 02:00:00:00:00:99")
        .unwrap();
    assert_eq!(patient.faults().unwrap(), serious("vtep"));
    agent.kill().unwrap();
    lab.close().unwrap();
}

/// How a fault is made, how it is undone, and what it is called.
const FAULTS: &[(&str, &str, &str, &str)] = &[
    (
        "nft add table inet fw ; add chain inet fw through { type filter hook forward priority 0 ; policy drop ; }",
        "nft delete table inet fw",
        "forward-drop",
        "warning",
    ),
    (
        "nft add table inet fw ; add chain inet fw through { type filter hook forward priority 0 ; } ; add rule inet fw through counter reject",
        "nft delete table inet fw",
        "forward-drop",
        "warning",
    ),
    (
        "nft add table ip filter ; add chain ip filter cali-FORWARD",
        "nft delete table ip filter",
        "other-policy",
        "warning",
    ),
    (
        "nft add table inet kube-network-policies",
        "nft delete table inet kube-network-policies",
        "other-policy",
        "warning",
    ),
    (
        "nft add table ip raw ; add chain ip raw PREROUTING { type filter hook prerouting priority -300 ; } ; add rule ip raw PREROUTING udp dport 53 notrack",
        "nft delete table ip raw",
        "local-dns",
        "note",
    ),
    (
        "nft add table ip nat ; add chain ip nat FLANNEL-POSTRTG",
        "nft delete table ip nat",
        "client-address",
        "note",
    ),
    (
        "ip link add kube-ipvs0 type bridge",
        "ip link delete kube-ipvs0",
        "past-policy",
        "serious",
    ),
    (
        "ip link add nodelocaldns type bridge",
        "ip link delete nodelocaldns",
        "local-dns",
        "note",
    ),
    (
        "ip address delete 10.244.1.1/24 dev cni0",
        "ip address add 10.244.1.1/24 dev cni0",
        "bridge-address",
        "serious",
    ),
    (
        "ip route add 10.244.77.0/24 dev flannel.1",
        "ip route delete 10.244.77.0/24 dev flannel.1",
        "stale-routes",
        "warning",
    ),
    (
        "ip link set eth0 mtu 1480",
        "ip link set eth0 mtu 1500",
        "mtu",
        "warning",
    ),
    (
        "ip link set flannel.1 mtu 1400",
        "ip link set flannel.1 mtu 1450",
        "mtu",
        "warning",
    ),
    (
        "sysctl -qw net.ipv4.ip_forward=0",
        "sysctl -qw net.ipv4.ip_forward=1",
        "forwarding",
        "serious",
    ),
    (
        "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=60",
        "sysctl -qw net.netfilter.nf_conntrack_tcp_timeout_established=432000",
        "conntrack",
        "warning",
    ),
];

#[test]
fn each_fault_of_the_kernel_is_told_as_itself() {
    require!("doctor", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let lab = lab().unwrap();
    let patient = Patient::new(&lab).unwrap();
    let good: BTreeSet<_> = patient.findings().unwrap().0.into_iter().collect();

    for (make, undo, id, severity) in FAULTS {
        patient.run(make).unwrap();
        let (found, status) = patient.findings().unwrap();
        patient.run(undo).unwrap();

        let expected = ((*id).to_owned(), (*severity).to_owned());
        let new: Vec<_> = found
            .into_iter()
            .filter(|one| !good.contains(one))
            .collect();
        assert_eq!(new, [expected], "{make}");
        assert_eq!(status, i32::from(*severity == "serious"), "{make}");
    }
    let again: BTreeSet<_> = patient.findings().unwrap().0.into_iter().collect();
    assert_eq!(again, good);
}

#[test]
fn faults_of_files_and_objects_are_told_as_themselves() {
    require!("doctor", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let lab = lab().unwrap();
    let patient = Patient::new(&lab).unwrap();
    let expect = |id: &str, severity: &str| {
        let one = (id.to_owned(), severity.to_owned());
        let status = i32::from(severity == "serious");
        assert_eq!(patient.faults().unwrap(), (vec![one], status));
    };
    let replace = |name: &str, from: &str, to: &str| {
        let path = patient.path(name);
        let before = fs::read_to_string(&path).unwrap();
        assert!(before.contains(from), "{before}");
        fs::write(&path, before.replace(from, to)).unwrap();
        before
    };

    let before = fs::read_to_string(patient.path("subnet.env")).unwrap();
    fs::remove_file(patient.path("subnet.env")).unwrap();
    expect("flannel", "serious");
    fs::write(patient.path("subnet.env"), &before).unwrap();

    replace("subnet.env", "FLANNEL_MTU=1450", "FLANNEL_MTU=many");
    expect("flannel", "warning");
    fs::write(patient.path("subnet.env"), &before).unwrap();

    fs::write(patient.path("net.d/05-x.conflist"), "{").unwrap();
    expect("cni", "warning");
    fs::remove_file(patient.path("net.d/05-x.conflist")).unwrap();

    let manifest = lab.manifests.read("node-node-a").unwrap().unwrap();
    let name = "node-node-a";
    lab.manifests
        .write(name, &manifest.replace("10.244.1.0/24", "10.244.9.0/24"))
        .unwrap();
    expect("pod-network", "serious");
    lab.manifests.write(name, &manifest).unwrap();

    assert_eq!(patient.faults().unwrap(), (vec![], 0));
    // Last, since nobody undoes it: what other nodes were told of flannel.1 is no longer so.
    patient
        .run("ip link set flannel.1 address 02:00:00:00:00:99")
        .unwrap();
    expect("vtep", "serious");
}

#[test]
fn without_rights_nothing_is_called_good_that_was_not_seen() {
    require!("doctor", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let lab = lab().unwrap();
    let patient = Patient::new(&lab).unwrap();
    let whole = patient.command().unwrap();
    let mut bare = Command::new("setpriv");
    bare.args(["--bounding-set", "-all", "--inh-caps", "-all"]);
    bare.arg(whole.get_program()).args(whole.get_args());

    let output = patient.node.namespace.output(&mut bare).unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    let findings: Vec<Value> = serde_json::from_slice(&output.stdout).expect(&said);
    for id in ["forward-drop", "other-policy", "past-policy", "mtu", "vtep"] {
        let found = findings.iter().find(|finding| finding["id"] == id);
        let severity = found.map(|finding| &finding["severity"]);
        assert_eq!(severity, Some(&Value::from("unseen")), "{id}");
    }
}
