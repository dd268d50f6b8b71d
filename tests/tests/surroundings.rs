//! What others set up on a node, as the running agent tells it: Flannel, its ports, and the chain of CNI plugins.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;
use serde_json::Value;
use towpath_tests::agent::{Agent, AgentOptions};
use towpath_tests::lab::{Lab, LabConfig, PodSpec};
use towpath_tests::wait::{PATIENCE, until};
use towpath_tests::{program, require};

const NODE: &str = "node-a";
const CONFLIST: &str = r#"{"cniVersion": "0.3.1", "name": "cbr0", "plugins": [
    {"type": "flannel", "delegate": {"bridge": "cni0"}}, {"type": "portmap"}]}"#;

/// A node with Flannel's files and a running agent.
struct Watched {
    lab: Lab,
    agent: Agent,
}

impl Watched {
    fn start() -> Result<Self> {
        let mut lab = Lab::new(&LabConfig {
            nodes: 1,
            ..LabConfig::default()
        })?;
        lab.write_namespace("shop", &[])?;
        lab.add_pod(PodSpec::new(NODE, "shop", "old"))?;
        let folder = lab.folder().join(NODE);
        fs::create_dir_all(folder.join("net.d"))?;
        fs::create_dir_all(folder.join("bin"))?;
        fs::write(folder.join("net.d/10-flannel.conflist"), CONFLIST)?;
        write_subnet(&lab, "10.244.1.1/24")?;
        let options = AgentOptions {
            configuration: Some(format!(
                "flannelSubnetEnv: {0}/subnet.env\nflannelNetConf: {0}/none\ncniConfigDirectory: {0}/net.d\n",
                folder.display()
            )),
            ..AgentOptions::default()
        };
        let mut agent = Agent::start(&lab, NODE, &options)?;
        agent.wait_ready()?;
        Ok(Self { lab, agent })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.lab.folder().join(NODE).join(name)
    }

    fn run(&self, words: &str) -> Result<String> {
        let mut words = words.split(' ');
        let mut command = Command::new(words.next().unwrap_or_default());
        self.lab.node(NODE)?.namespace.run(command.args(words))
    }

    fn until_status(&self, what: &str, is_so: impl Fn(&Value) -> bool) -> Result<()> {
        until(what, PATIENCE, || Ok(is_so(&self.agent.ask(&["status"])?)))
    }

    fn until_warned(&self, kind: &str, count: u32) -> Result<()> {
        let line = format!("towpath_agent_warnings{{kind=\"{kind}\"}} {count}\n");
        // Pods may be late for most of one such time.
        until(&line, PATIENCE * 2, || {
            Ok(self.agent.metrics()?.contains(&line))
        })
    }
}

fn write_subnet(lab: &Lab, subnet: &str) -> Result<()> {
    let text = format!(
        "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET={subnet}\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n"
    );
    Ok(fs::write(lab.folder().join(NODE).join("subnet.env"), text)?)
}

#[test]
fn the_agent_tells_what_flannel_set_up_and_closes_the_ports_of_tunnels() {
    require!(
        "surroundings",
        Root,
        CniPlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let node = Watched::start().unwrap();
    let closes = |ports: &str| -> Result<bool> {
        let ruleset = node.run("nft list chain inet towpath to_endpoint")?;
        Ok(ruleset.contains(&format!("udp dport {ports} jump encapsulation")))
    };

    node.until_status("Flannel", |status| !status["flannel"].is_null())
        .unwrap();
    let flannel = node.agent.ask(&["get", "flannel"]).unwrap();
    assert_eq!(flannel["backend"], "vxlan", "{flannel}");
    assert_eq!(flannel["rules"], "iptables", "{flannel}");
    assert_eq!(flannel["mtu"], 1450, "{flannel}");
    assert_eq!(flannel["podCIDRs"][0], "10.244.1.0/24", "{flannel}");
    assert_eq!(flannel["tunnels"][0]["name"], "flannel.1", "{flannel}");
    assert_eq!(flannel["tunnels"][0]["udpPort"], 8472, "{flannel}");
    assert_eq!(flannel["tunnels"][0]["addresses"][0], "10.244.1.0");
    assert!(
        flannel["contradictions"].as_array().unwrap().is_empty(),
        "{flannel}"
    );
    assert!(closes("8472").unwrap());

    // A tunnel that comes is unpacked by this node as well.
    node.run("ip link add vxlan7 type vxlan id 7 dstport 4789 dev eth0")
        .unwrap();
    node.run("ip address add 192.0.2.7/32 dev vxlan7").unwrap();
    until("the new tunnel's port", PATIENCE, || {
        closes("{ 4789, 8472 }")
    })
    .unwrap();
    node.until_status("both ports", |status| {
        status["overlayPorts"] == serde_json::json!([4789, 8472])
    })
    .unwrap();
    node.run("ip link delete vxlan7").unwrap();
    until("the old port alone", PATIENCE, || closes("8472")).unwrap();

    // The file that pods get their addresses by, and the Node object, name different subnets.
    write_subnet(&node.lab, "10.244.9.1/24").unwrap();
    node.until_warned("flannel", 2).unwrap();
    node.until_status("the contradiction", |status| {
        let warnings = status["warnings"].to_string();
        warnings.contains("subnet.env says 10.244.9.0/24, the node has 10.244.1.0/24")
    })
    .unwrap();
    write_subnet(&node.lab, "10.244.1.1/24").unwrap();
    node.until_warned("flannel", 0).unwrap();
    node.agent.kill().unwrap();
    node.lab.close().unwrap();
}

#[test]
fn a_stale_copy_and_pods_that_nobody_announced_are_told() {
    require!(
        "surroundings",
        Root,
        CniPlugins,
        Vxlan,
        BridgeNetfilter,
        Nft
    );
    let mut node = Watched::start().unwrap();
    node.until_warned("cni-chain", 0).unwrap();
    let mut install = Command::new(program::towpath().unwrap());
    install.args(["cni", "install", "--method", "copy"]);
    for (flag, name) in [
        ("--conf-dir", "net.d"),
        ("--bin-dir", "bin"),
        ("--state-dir", "state"),
    ] {
        install.arg(flag).arg(node.path(name));
    }
    install.arg("--plugin").arg(program::towpath().unwrap());
    let namespace = &node.lab.node(NODE).unwrap().namespace;
    namespace.run(&mut install).unwrap();

    let newer = CONFLIST.replace("cni0", "cni7");
    fs::write(node.path("net.d/10-flannel.conflist"), newer).unwrap();
    node.until_warned("cni-chain", 1).unwrap();
    node.until_status("the stale copy", |status| {
        status["warnings"].to_string().contains("is out of date")
    })
    .unwrap();
    fs::write(node.path("net.d/10-flannel.conflist"), CONFLIST).unwrap();
    node.until_warned("cni-chain", 0).unwrap();
    node.until_warned("cni-silent", 0).unwrap();

    // The lab's chain of plugins is its own, and ours is not in it.
    node.lab.add_pod(PodSpec::new(NODE, "shop", "new")).unwrap();
    node.until_warned("cni-silent", 1).unwrap();

    let warnings = node.agent.ask(&["status"]).unwrap()["warnings"].to_string();
    assert!(
        warnings.contains("was not called for shop/new:"),
        "{warnings}"
    );
    node.agent.kill().unwrap();
    node.lab.close().unwrap();
}
