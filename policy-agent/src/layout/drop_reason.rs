//! Why packets are dropped: one chain, counter and log prefix each.

use towpath_dataplane::nft::{Chain, Name, Rule, RuleVerdict, Statement};

use super::{ChainLayout, Enforcement, LayoutOptions, RuleBuilder, made_name};

/// Bytes of a dropped packet that are logged: link-layer, IPv6 and TCP headers with room to spare.
const SNAPLEN: u32 = 128;

/// Why a packet is dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DropReason {
    /// A policy denies it, or isolates its endpoint and no rule allows it.
    Policy,
    /// It is from or to an address or interface of pods that no known endpoint has.
    Unknown,
    /// Its source is not its sender's.
    Spoofed,
    /// An IPv6 packet with a link-local source or none, from a port and hardware address without IPv6: the endpoint
    /// has no IPv6 address, or is not known yet. Each pod's kernel sends such packets when its interface comes up.
    Unbound,
    /// Conntrack finds it invalid, and its endpoint is restricted.
    Invalid,
    /// A pod sends an encapsulated packet to a node.
    Encapsulation,
    /// A pod sends a router advertisement or a redirect.
    Advertisement,
    /// A multicast or broadcast packet to an endpoint that policy protects.
    Multicast,
    /// A frame that is neither untagged ARP, IPv4 nor IPv6, or goes to the bridge's own control addresses.
    Frame,
}

impl DropReason {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Policy,
        Self::Unknown,
        Self::Spoofed,
        Self::Unbound,
        Self::Invalid,
        Self::Encapsulation,
        Self::Advertisement,
        Self::Multicast,
        Self::Frame,
    ];

    /// The log prefix.
    pub fn name(self) -> &'static str {
        match self {
            Self::Policy => "policy",
            Self::Unknown => "unknown",
            Self::Spoofed => "spoofed",
            Self::Unbound => "unbound",
            Self::Invalid => "invalid",
            Self::Encapsulation => "encapsulation",
            Self::Advertisement => "advertisement",
            Self::Multicast => "multicast",
            Self::Frame => "frame",
        }
    }

    /// The log prefix where the packet is not dropped, since its node or endpoint is audited.
    pub fn audit_name(self) -> &'static str {
        match self {
            Self::Policy => "audit_policy",
            Self::Unknown => "audit_unknown",
            Self::Spoofed => "audit_spoofed",
            Self::Unbound => "audit_unbound",
            Self::Invalid => "audit_invalid",
            Self::Encapsulation => "audit_encapsulation",
            Self::Advertisement => "audit_advertisement",
            Self::Multicast => "audit_multicast",
            Self::Frame => "audit_frame",
        }
    }

    /// Those for which a packet passes while enforcement is open for its endpoint or node. What a pod may never send is
    /// not among them.
    pub const BYPASSED: [Self; 3] = [Self::Policy, Self::Unknown, Self::Invalid];

    /// The log prefix where the packet is not dropped, since enforcement is open for a while.
    pub fn bypass_name(self) -> String {
        format!("bypass_{}", self.name())
    }

    /// The chain that packets go to.
    pub(crate) fn chain(self) -> Name {
        made_name(&format!("drop_{}", self.name()))
    }

    /// The chain that packets of audited endpoints go to, for a reason that concerns one endpoint.
    pub(super) fn audit_chain(self) -> Name {
        made_name(self.audit_name())
    }

    /// The chain of packets that pass since enforcement is open for a while.
    pub(super) fn bypass_chain(self) -> Name {
        made_name(&self.bypass_name())
    }

    /// The chain of [`Self::chain`]: count, log some, drop all; or pass all on a node that is audited.
    pub(super) fn layout(self, options: &LayoutOptions) -> ChainLayout {
        let end = match options.enforcement {
            Enforcement::Enforce => (self.name(), RuleVerdict::Drop),
            Enforcement::Audit => (self.audit_name(), RuleVerdict::Return),
        };
        denial(self.chain(), end, options)
    }

    /// The chain of [`Self::bypass_chain`]: count, log some, pass all.
    pub(super) fn bypass_layout(self, options: &LayoutOptions) -> ChainLayout {
        let end = (self.bypass_name(), RuleVerdict::Return);
        denial(self.bypass_chain(), (&end.0, end.1), options)
    }

    /// The chain of [`Self::audit_chain`]: count, log some, pass all.
    pub(super) fn audit_layout(self, options: &LayoutOptions) -> ChainLayout {
        let end = (self.audit_name(), RuleVerdict::Return);
        denial(self.audit_chain(), end, options)
    }
}

/// `return` comes back to the base chain, or before what else is to be judged: no packet that is passed here skips
/// the judgement of its other side.
fn denial(
    name: Name,
    (prefix, verdict): (&str, RuleVerdict),
    options: &LayoutOptions,
) -> ChainLayout {
    let log = Rule {
        statements: vec![
            Statement::Limit {
                rate: options.log_rate,
                burst: options.log_burst,
            },
            Statement::Log {
                prefix: made_name(prefix),
                group: options.log_group,
                snaplen: SNAPLEN,
            },
        ],
    };
    let count = Rule {
        statements: vec![Statement::Counter],
    };
    let end = RuleBuilder::new().verdict(verdict);
    let chain = Chain { name, base: None };
    ChainLayout {
        chain,
        rules: vec![count, log, end],
    }
}
