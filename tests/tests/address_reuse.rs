//! An address that one pod leaves and another gets: the new one has none of the old one's rights.

use std::fs;
use std::net::Ipv4Addr;

use anyhow::{Context as _, Result, ensure};
use towpath_tests::cni::NETWORK_NAME;
use towpath_tests::lab::LabConfig;
use towpath_tests::manifest;
use towpath_tests::matrix::Flow;
use towpath_tests::require;
use towpath_tests::stage::{Stage, allow_http, deny_ingress, server};
use towpath_tests::wait::{PATIENCE, until};

const NODE: &str = "node-a";

/// shop/db, on the other node, may ask shop/web for HTTP; nothing else may enter a pod of namespace shop.
fn db_reaches_web(flow: &Flow<'_>) -> bool {
    let is_allowed =
        flow.from.id() == "shop/db" && flow.to.id() == "shop/web" && flow.target.port == 80;
    flow.to.spec.namespace != "shop" || is_allowed
}

fn stage() -> Result<Stage> {
    let stage = Stage::with_agents(&LabConfig::default())?;
    stage.write("deny", &deny_ingress("shop"))?;
    stage.write("allow", &allow_http("shop", "web", "db"))?;
    stage.settle(db_reaches_web)?;
    Ok(stage)
}

/// Plugs a pod in, which gets exactly this address: that of the pod that was removed last.
fn plug_again(stage: &mut Stage, name: &str, address: Ipv4Addr) -> Result<()> {
    // host-local gives addresses out in turn; without its note of the last one, it begins with the lowest.
    let store = stage
        .lab
        .folder()
        .join(NODE)
        .join("networks")
        .join(NETWORK_NAME);
    fs::remove_file(store.join("last_reserved_ip.0"))?;
    let pod = stage.lab.plug(server(NODE, "shop", name))?;
    ensure!(
        pod.ipv4()? == address,
        "{name} has {:?}, not {address}",
        pod.addresses
    );
    Ok(())
}

#[test]
fn a_new_owner_has_none_of_the_old_ones_rights() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = stage().unwrap();
    let address = stage.lab.pod("shop/web").unwrap().ipv4().unwrap();
    stage.lab.remove_pod("shop/web").unwrap();

    plug_again(&mut stage, "batch", address).unwrap();
    // Nobody has told whose the address is now.
    let is_batch =
        |flow: &Flow<'_>| [flow.from.id(), flow.to.id()].contains(&"shop/batch".to_owned());
    stage
        .hold(|flow| !is_batch(flow) && db_reaches_web(flow))
        .unwrap();
    stage.lab.publish("shop/batch").unwrap();
    stage.settle(db_reaches_web).unwrap();

    // And back: the rights come with the name and its labels.
    stage.lab.remove_pod("shop/batch").unwrap();
    plug_again(&mut stage, "web", address).unwrap();
    stage.lab.publish("shop/web").unwrap();
    stage.settle(db_reaches_web).unwrap();
    let matrix = stage.hold(db_reaches_web).unwrap();
    assert!(
        matrix
            .checks
            .iter()
            .any(|check| { check.expected && check.from == "shop/db" && check.to == "shop/web" })
    );
}

#[test]
fn while_the_old_object_is_there_the_new_owner_is_closed() {
    require!("enforcement", Root, CniPlugins, Vxlan, BridgeNetfilter, Nft);
    let mut stage = stage().unwrap();
    let address = stage.lab.pod("shop/web").unwrap().ipv4().unwrap();
    let spec = stage.lab.pod("shop/web").unwrap().spec.clone();
    stage.lab.unplug("shop/web").unwrap();

    plug_again(&mut stage, "batch", address).unwrap();
    let is_batch =
        |flow: &Flow<'_>| [flow.from.id(), flow.to.id()].contains(&"shop/batch".to_owned());
    // Only the old object lists the address, and its rights are not for the new interface.
    stage
        .hold(|flow| !is_batch(flow) && db_reaches_web(flow))
        .unwrap();
    stage.lab.publish("shop/batch").unwrap();
    let agent = stage.agent(NODE).unwrap();
    until("the conflict", PATIENCE, || {
        let endpoints = agent.ask(&["get", "endpoints"])?;
        let mut endpoints = endpoints.as_array().context("an array")?.iter();
        Ok(endpoints
            .any(|endpoint| endpoint["name"] == "batch" && endpoint["state"] != "programmed"))
    })
    .unwrap();
    stage
        .hold(|flow| !is_batch(flow) && db_reaches_web(flow))
        .unwrap();

    stage
        .lab
        .manifests
        .remove(&manifest::pod_file(&spec))
        .unwrap();
    stage.settle(db_reaches_web).unwrap();
}
