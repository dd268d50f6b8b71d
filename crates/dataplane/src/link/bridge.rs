//! The settings of bridges on which enforcement depends.
//!
//! With the netfilter switches on, the inet hooks see the frames that a bridge forwards between its ports; without,
//! policy between pods of one node would silently not exist. They are set per bridge, because the system-wide switch
//! belongs to others.

use super::decode::{
    self, BR_BOOLOPT_NO_LL_LEARN, IFLA_BR_MULTI_BOOLOPT, IFLA_BR_NF_CALL_IP6TABLES,
    IFLA_BR_NF_CALL_IPTABLES, IFLA_INFO_DATA, IFLA_INFO_KIND, IFLA_LINKINFO, RTM_NEWLINK,
};
use super::error::NetlinkError;
use super::model::{BridgeSettings, Interface};
use super::scan::Scanner;
use super::wire::{NLM_F_ACK, Request};

/// Exists as long as `br_netfilter` is loaded or built in.
const MARKER: &str = "/proc/sys/net/bridge/bridge-nf-call-iptables";

/// Whether `br_netfilter` is there, without which the switches can be set but do nothing.
///
/// The switches themselves do not tell: the bridge module keeps them either way.
pub fn bridge_netfilter_available() -> Result<bool, NetlinkError> {
    std::fs::exists(MARKER).map_err(NetlinkError::socket("look for br_netfilter in /proc/sys"))
}

impl Scanner {
    /// Sets a bridge as `wanted`, unless it already is so, and reads the settings back.
    ///
    /// Returns the values from before, for the uninstall to restore.
    pub fn set_bridge(
        &mut self,
        index: u32,
        wanted: BridgeSettings,
    ) -> Result<BridgeSettings, NetlinkError> {
        let (bridge, before) = self.settings(index)?;
        if before == wanted {
            return Ok(before);
        }
        self.socket.exchange(
            "set up",
            format_args!("bridge {}", bridge.name),
            request(index, wanted),
            |_| {},
        )?;
        if self.settings(index)?.1 != wanted {
            return Err(NetlinkError::NotKept {
                object: format!("bridge {}", bridge.name),
                setting: "nf_call_iptables, nf_call_ip6tables and no_linklocal_learn",
            });
        }
        Ok(before)
    }

    /// Reads the settings of a bridge.
    pub fn bridge_settings(&mut self, index: u32) -> Result<BridgeSettings, NetlinkError> {
        self.settings(index).map(|(_, settings)| settings)
    }

    fn settings(&mut self, index: u32) -> Result<(Interface, BridgeSettings), NetlinkError> {
        let interface = self
            .interface(index)?
            .filter(Interface::is_bridge)
            .ok_or_else(|| NetlinkError::Refused {
                action: "find",
                object: format!("a bridge with number {index}"),
                detail: String::new(),
                source: nix::errno::Errno::ENODEV,
            })?;
        let settings = interface.bridge_settings.ok_or(NetlinkError::Unsupported {
            feature: "netfilter switches of bridges",
            remedy: "Linux 5.0 or later with CONFIG_BRIDGE_NETFILTER is needed",
        })?;
        Ok((interface, settings))
    }
}

fn request(index: u32, wanted: BridgeSettings) -> Request {
    // `struct br_boolopt_multi`: the values, then which of them are meant.
    let mut options = [0; 8];
    let learn = u32::from(wanted.no_linklocal_learn) * BR_BOOLOPT_NO_LL_LEARN;
    options[..4].copy_from_slice(&learn.to_ne_bytes());
    options[4..].copy_from_slice(&BR_BOOLOPT_NO_LL_LEARN.to_ne_bytes());
    let header = decode::link_header(index);
    Request::new(RTM_NEWLINK, NLM_F_ACK, &header).nested(IFLA_LINKINFO, |link| {
        link.attribute(IFLA_INFO_KIND, b"bridge")
            .nested(IFLA_INFO_DATA, |settings| {
                settings
                    .attribute(
                        IFLA_BR_NF_CALL_IPTABLES,
                        &[u8::from(wanted.nf_call_iptables)],
                    )
                    .attribute(
                        IFLA_BR_NF_CALL_IP6TABLES,
                        &[u8::from(wanted.nf_call_ip6tables)],
                    )
                    .attribute(IFLA_BR_MULTI_BOOLOPT, &options)
            })
    })
}
