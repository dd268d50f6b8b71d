//! The netfilter switches of bridges.
//!
//! With them on, the inet hooks see the frames that a bridge forwards between its ports; without, policy between pods
//! of one node would silently not exist. They are set per bridge, because the system-wide switch belongs to others.

use super::decode::{
    self, IFLA_BR_NF_CALL_IP6TABLES, IFLA_BR_NF_CALL_IPTABLES, IFLA_INFO_DATA, IFLA_INFO_KIND,
    IFLA_LINKINFO, RTM_NEWLINK,
};
use super::error::NetlinkError;
use super::model::{BridgeNetfilter, Interface};
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
    /// Sets the netfilter switches of a bridge, unless they already are as `wanted`, and reads them back.
    ///
    /// Returns the values from before, for the uninstall to restore.
    pub fn set_bridge_netfilter(
        &mut self,
        index: u32,
        wanted: BridgeNetfilter,
    ) -> Result<BridgeNetfilter, NetlinkError> {
        let (bridge, before) = self.switches(index)?;
        if before == wanted {
            return Ok(before);
        }
        let request = Request::new(RTM_NEWLINK, NLM_F_ACK, &decode::link_header(index)).nested(
            IFLA_LINKINFO,
            |link| {
                link.attribute(IFLA_INFO_KIND, b"bridge")
                    .nested(IFLA_INFO_DATA, |switches| {
                        switches
                            .attribute(IFLA_BR_NF_CALL_IPTABLES, &[u8::from(wanted.ipv4)])
                            .attribute(IFLA_BR_NF_CALL_IP6TABLES, &[u8::from(wanted.ipv6)])
                    })
            },
        );
        self.socket.exchange(
            "set netfilter switches of",
            format_args!("bridge {}", bridge.name),
            request,
            |_| {},
        )?;
        if self.switches(index)?.1 != wanted {
            return Err(NetlinkError::NotKept {
                object: format!("bridge {}", bridge.name),
                setting: "nf_call_iptables and nf_call_ip6tables",
            });
        }
        Ok(before)
    }

    /// Reads the netfilter switches of a bridge.
    pub fn bridge_netfilter(&mut self, index: u32) -> Result<BridgeNetfilter, NetlinkError> {
        self.switches(index).map(|(_, switches)| switches)
    }

    fn switches(&mut self, index: u32) -> Result<(Interface, BridgeNetfilter), NetlinkError> {
        let interface = self
            .interface(index)?
            .filter(Interface::is_bridge)
            .ok_or_else(|| NetlinkError::Refused {
                action: "find",
                object: format!("a bridge with number {index}"),
                detail: String::new(),
                source: nix::errno::Errno::ENODEV,
            })?;
        let switches = interface
            .bridge_netfilter
            .ok_or(NetlinkError::Unsupported {
                feature: "netfilter switches of bridges",
                remedy: "build it with CONFIG_BRIDGE_NETFILTER",
            })?;
        Ok((interface, switches))
    }
}
