//! The rows of the specification, as a closed list.

macro_rules! rows {
    ($($name:ident => $text:literal,)*) => {
        /// Rows of the specification of both policy kinds, and of the decisions about unknown and shared
        /// addresses.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Row {
            $(#[doc = $text] $name,)*
        }

        impl Row {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name,)*];

            /// What it says.
            pub fn text(self) -> &'static str {
                match self { $(Self::$name => $text,)* }
            }
        }
    };
}

rows! {
    NoPolicyAllows => "no policy selects the endpoint: allowed",
    OtherDirectionOnly => "a policy selects it in the other direction only: no isolation",
    Isolated => "selected by a NetworkPolicy, no rule matches: denied",
    EmptyRuleList => "a policy without rules in this direction isolates",
    SubjectEverything => "an empty subject selector takes every pod of the namespace",
    UnionOfPolicies => "a later NetworkPolicy accepts what an earlier one does not",
    AllowAllRule => "a rule without peers and ports accepts everything",
    AnyPeer => "no peer list: anybody matches",
    EmptyPeers => "an empty peer list matches nobody",
    EmptyPorts => "an empty port list matches nothing",
    OwnNamespace => "pod selector only: pods of the own namespace",
    NamedNamespace => "a namespace by name that is not the policy's own",
    AllNamespaces => "an empty namespace selector matches all pods",
    AllNamespacesOnlyPods => "an empty namespace selector matches no outside address",
    NamespaceOnly => "a namespace selector without pod selector",
    NamespaceAndPods => "namespace and pod selector must both match",
    SelectorIn => "selector: in",
    SelectorNotIn => "selector: not in, with another value",
    SelectorNotInMissing => "selector: not in, without the key",
    SelectorExists => "selector: key exists",
    SelectorDoesNotExist => "selector: key does not exist",
    BlockOutside => "a block matches an outside address",
    BlockPod => "a block matches a pod",
    BlockNode => "a block matches a node",
    BlockZero => "a block of length 0",
    BlockHost => "a block of one address",
    BlockMisses => "a block does not hold the address",
    BlockExcept => "an exception takes the address out of its block",
    BlockExceptElsewhere => "excepted in one block, accepted by another condition",
    BlockOtherFamily => "a block of the other family does not match",
    DualStack => "an endpoint with addresses of both families",
    FamilyV4 => "judged by IPv4",
    FamilyV6 => "judged by IPv6",
    ProtocolTcp => "a TCP port matches",
    ProtocolUdp => "a UDP port matches",
    ProtocolSctp => "an SCTP port matches",
    ProtocolOther => "the right port of the wrong protocol does not match",
    WholeProtocol => "all ports of a protocol",
    RangeInside => "a port inside a range",
    RangeFirst => "the first port of a range",
    RangeLast => "the last port of a range",
    RangeBeside => "a port next to a range does not match",
    AnyPort => "no port list matches TCP, UDP and SCTP",
    AnyProtocol => "no port list matches every other protocol",
    OtherProtocolDenied => "rules with ports match no other protocol: denied",
    NamedIngress => "named port, ingress: a number of the selected pod",
    NamedIngressBlock => "named port, ingress, from a block",
    NamedEgress => "named port, egress: a number of the destination pod",
    NamedEgressAny => "named port, egress to anybody: a number of the destination pod",
    NamedSeveral => "a named port that stands for several numbers",
    NamedWithoutProtocol => "a named port of whichever protocol",
    NamedOtherNumber => "a named port that is another number here",
    NamedUnserved => "a named port that nobody serves",
    NamedOutside => "named port, egress to an outside address: no match",
    NamedEgressBlock => "named port, egress to a block that holds the pod: no match",
    HostNetworkPeer => "a host-network pod meets no pod selector",
    FinishedPeer => "a finished pod meets no pod selector",
    OwnNode => "the workload's own node reaches it",
    RemoteNode => "another node is judged by its address",
    UnknownAddress => "an address of a pod network without owner is closed",
    UnknownNamespaceSubject => "an endpoint of an unknown namespace is closed",
    UnknownNamespaceAccept => "unknown namespace of the peer: accept does not match",
    UnknownNamespaceDeny => "unknown namespace of the peer: deny matches",
    UnknownNamespacePass => "unknown namespace of the peer: both sides of a pass must allow",
    UnknownNamespaceNamed => "unknown namespace of the peer, with a named port",
    SharedSubject => "an endpoint whose address is claimed by several is closed",
    SharedPeerAllowed => "a shared peer address where every claimant is allowed",
    SharedPeerDenied => "a shared peer address where a claimant is denied",
    SharedPeerLaterDenied => "a shared peer address where only a later claimant is denied",
    AdminAccept => "Admin: Accept",
    AdminDeny => "Admin: Deny",
    AdminPass => "Admin: Pass",
    AdminPassThenPolicy => "Admin passes, NetworkPolicy decides",
    AdminPassThenBaseline => "Admin passes, Baseline decides",
    AdminUndecided => "Admin selects and does not decide: next tier",
    BaselineAccept => "Baseline: Accept",
    BaselineDeny => "Baseline: Deny",
    BaselinePass => "Baseline: Pass",
    BaselineUndecided => "Baseline selects and does not decide: allowed",
    PolicyDecidesFinally => "NetworkPolicy decides, Baseline is not asked",
    LaterOrder => "a ClusterNetworkPolicy of later order decides",
    EqualOrder => "two ClusterNetworkPolicies of equal order: by name",
    LaterRule => "a later rule decides",
    Networks => "ClusterNetworkPolicy: networks match",
    Nodes => "ClusterNetworkPolicy: nodes match",
    NodesMiss => "ClusterNetworkPolicy: nodes do not match another node",
    EveryProtocol => "ClusterNetworkPolicy: a rule without protocols decides ICMP",
}
