//! Numbers of the kernel's nftables interface (`linux/netfilter/nf_tables.h`) and of the user data in which nft keeps
//! what the kernel need not know (`libnftnl/udata.h`).

/// `NETLINK_NETFILTER`.
pub(super) const NETLINK_NETFILTER: isize = 12;
/// `NFNLGRP_NFTABLES`, the multicast group of ruleset events.
pub(super) const NFNLGRP_NFTABLES: u32 = 7;
/// `NFNL_SUBSYS_NFTABLES`.
pub(super) const NFNL_SUBSYS_NFTABLES: u16 = 10;
pub(super) const NFNL_MSG_BATCH_BEGIN: u16 = 0x10;
pub(super) const NFNL_MSG_BATCH_END: u16 = 0x11;
pub(super) const NFNL_BATCH_GENID: u16 = 1;

pub(super) const NLM_F_CREATE: u16 = 0x400;
pub(super) const NLM_F_APPEND: u16 = 0x800;
/// Deletes only what is empty.
pub(super) const NLM_F_NONREC: u16 = 0x100;
pub(super) const NLA_F_NESTED: u16 = 0x8000;

pub(super) const NFPROTO_INET: u8 = 1;
pub(super) const NFPROTO_IPV4: u8 = 2;
pub(super) const NFPROTO_BRIDGE: u8 = 7;
pub(super) const NFPROTO_IPV6: u8 = 10;

/// Messages (`enum nf_tables_msg_types`).
pub(super) mod message {
    pub(crate) const NEWTABLE: u8 = 0;
    pub(crate) const GETTABLE: u8 = 1;
    pub(crate) const DELTABLE: u8 = 2;
    pub(crate) const NEWCHAIN: u8 = 3;
    pub(crate) const GETCHAIN: u8 = 4;
    pub(crate) const DELCHAIN: u8 = 5;
    pub(crate) const NEWRULE: u8 = 6;
    pub(crate) const GETRULE: u8 = 7;
    pub(crate) const DELRULE: u8 = 8;
    pub(crate) const NEWSET: u8 = 9;
    pub(crate) const GETSET: u8 = 10;
    pub(crate) const DELSET: u8 = 11;
    pub(crate) const NEWSETELEM: u8 = 12;
    pub(crate) const GETSETELEM: u8 = 13;
    pub(crate) const DELSETELEM: u8 = 14;
    pub(crate) const NEWGEN: u8 = 15;
    pub(crate) const GETGEN: u8 = 16;
}

/// `NFTA_GEN_*`.
pub(super) mod generation {
    pub(crate) const ID: u16 = 1;
    /// `NFTA_GEN_PROC_PID`: what the kernel calls a pid, user space calls a thread id.
    pub(crate) const THREAD: u16 = 2;
}

/// `NFTA_TABLE_*`, `NFT_TABLE_F_*`.
pub(super) mod table {
    pub(crate) const NAME: u16 = 1;
    pub(crate) const FLAGS: u16 = 2;
    pub(crate) const HANDLE: u16 = 4;
    pub(crate) const OWNER: u16 = 7;
    pub(crate) const F_DORMANT: u32 = 1;
    pub(crate) const F_OWNER: u32 = 2;
    pub(crate) const F_PERSIST: u32 = 4;
}

/// `NFTA_CHAIN_*`, `NFTA_HOOK_*`.
pub(super) mod chain {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 3;
    pub(crate) const HOOK: u16 = 4;
    pub(crate) const POLICY: u16 = 5;
    pub(crate) const TYPE: u16 = 7;
    pub(crate) const HOOK_NUMBER: u16 = 1;
    pub(crate) const HOOK_PRIORITY: u16 = 2;
    /// `NF_ACCEPT`.
    pub(crate) const ACCEPT: u32 = 1;
}

/// `NFTA_RULE_*`, `NFTA_EXPR_*`.
pub(super) mod rule {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const CHAIN: u16 = 2;
    pub(crate) const EXPRESSIONS: u16 = 4;
    pub(crate) const EXPRESSION_NAME: u16 = 1;
    pub(crate) const EXPRESSION_DATA: u16 = 2;
}

/// `NFTA_SET_*`, `NFT_SET_*`, and nft's ids of data types.
pub(super) mod set {
    pub(crate) const TABLE: u16 = 1;
    pub(crate) const NAME: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    pub(crate) const HANDLE: u16 = 16;
    pub(crate) const KEY_TYPE: u16 = 4;
    pub(crate) const KEY_LEN: u16 = 5;
    pub(crate) const DATA_TYPE: u16 = 6;
    pub(crate) const DATA_LEN: u16 = 7;
    pub(crate) const DESC: u16 = 9;
    pub(crate) const ID: u16 = 10;
    pub(crate) const USERDATA: u16 = 13;
    pub(crate) const DESC_SIZE: u16 = 1;

    pub(crate) const F_ANONYMOUS: u32 = 1;
    pub(crate) const F_CONSTANT: u32 = 2;
    pub(crate) const F_INTERVAL: u32 = 4;
    pub(crate) const F_MAP: u32 = 8;
    pub(crate) const F_TIMEOUT: u32 = 16;

    /// `NFT_DATA_VERDICT`.
    pub(crate) const DATA_VERDICT: u32 = 0xffff_ff00;
    /// nft packs the type ids of a concatenation into six bits each.
    pub(crate) const TYPE_BITS: u32 = 6;
}

/// `NFTA_SET_ELEM_*`, `NFT_SET_ELEM_*`.
pub(super) mod element {
    pub(crate) const LIST_TABLE: u16 = 1;
    pub(crate) const LIST_SET: u16 = 2;
    pub(crate) const LIST_ELEMENTS: u16 = 3;
    pub(crate) const LIST_SET_ID: u16 = 4;

    pub(crate) const KEY: u16 = 1;
    pub(crate) const DATA: u16 = 2;
    pub(crate) const FLAGS: u16 = 3;
    /// Milliseconds.
    pub(crate) const TIMEOUT: u16 = 4;
    pub(crate) const USERDATA: u16 = 6;

    pub(crate) const F_INTERVAL_END: u32 = 1;
}

/// `NFTA_LIST_ELEM`.
pub(super) const LIST_ELEM: u16 = 1;

/// `NFTA_DATA_*`, `NFTA_VERDICT_*`, verdict codes.
pub(super) mod data {
    pub(crate) const VALUE: u16 = 1;
    pub(crate) const VERDICT: u16 = 2;
    pub(crate) const VERDICT_CODE: u16 = 1;
    pub(crate) const VERDICT_CHAIN: u16 = 2;

    pub(crate) const DROP: i32 = 0;
    pub(crate) const ACCEPT: i32 = 1;
    pub(crate) const CONTINUE: i32 = -1;
    pub(crate) const JUMP: i32 = -3;
    pub(crate) const GOTO: i32 = -4;
    pub(crate) const RETURN: i32 = -5;
}

/// Attributes of the expressions that rules are made of.
pub(super) mod expression {
    /// `NFT_REG_VERDICT`.
    pub(crate) const REGISTER_VERDICT: u32 = 0;
    /// `NFT_REG_1`: the registers of sixteen bytes are 1 to 4.
    pub(crate) const REGISTER_1: u32 = 1;
    /// `NFT_REG32_00`: the same memory in registers of four bytes.
    pub(crate) const REGISTER32_0: u32 = 8;

    pub(crate) const PAYLOAD_DREG: u16 = 1;
    pub(crate) const PAYLOAD_BASE: u16 = 2;
    pub(crate) const PAYLOAD_OFFSET: u16 = 3;
    pub(crate) const PAYLOAD_LEN: u16 = 4;
    pub(crate) const BASE_LINK: u32 = 0;
    pub(crate) const BASE_NETWORK: u32 = 1;
    pub(crate) const BASE_TRANSPORT: u32 = 2;

    pub(crate) const META_DREG: u16 = 1;
    pub(crate) const META_KEY: u16 = 2;
    pub(crate) const META_SREG: u16 = 3;
    pub(crate) const META_PROTOCOL: u32 = 1;
    pub(crate) const META_PRIORITY: u32 = 2;
    pub(crate) const META_IIFNAME: u32 = 6;
    pub(crate) const META_OIFNAME: u32 = 7;
    pub(crate) const META_IIFTYPE: u32 = 8;
    pub(crate) const META_NFPROTO: u32 = 15;
    pub(crate) const META_L4PROTO: u32 = 16;
    pub(crate) const META_PKTTYPE: u32 = 19;

    pub(crate) const CT_DREG: u16 = 1;
    pub(crate) const CT_KEY: u16 = 2;
    pub(crate) const CT_STATE: u32 = 0;
    pub(crate) const CT_DIRECTION: u32 = 1;

    pub(crate) const CMP_SREG: u16 = 1;
    pub(crate) const CMP_OP: u16 = 2;
    pub(crate) const CMP_DATA: u16 = 3;
    pub(crate) const CMP_EQ: u32 = 0;
    pub(crate) const CMP_NEQ: u32 = 1;
    pub(crate) const CMP_LTE: u32 = 3;
    pub(crate) const CMP_GTE: u32 = 5;

    pub(crate) const RANGE_SREG: u16 = 1;
    pub(crate) const RANGE_OP: u16 = 2;
    pub(crate) const RANGE_FROM: u16 = 3;
    pub(crate) const RANGE_TO: u16 = 4;
    pub(crate) const RANGE_NEQ: u32 = 1;

    pub(crate) const BITWISE_SREG: u16 = 1;
    pub(crate) const BITWISE_DREG: u16 = 2;
    pub(crate) const BITWISE_LEN: u16 = 3;
    pub(crate) const BITWISE_MASK: u16 = 4;
    pub(crate) const BITWISE_XOR: u16 = 5;

    pub(crate) const LOOKUP_SET: u16 = 1;
    pub(crate) const LOOKUP_SREG: u16 = 2;
    pub(crate) const LOOKUP_DREG: u16 = 3;
    pub(crate) const LOOKUP_SET_ID: u16 = 4;
    pub(crate) const LOOKUP_FLAGS: u16 = 5;
    pub(crate) const LOOKUP_F_INVERTED: u32 = 1;

    pub(crate) const IMMEDIATE_DREG: u16 = 1;
    pub(crate) const IMMEDIATE_DATA: u16 = 2;

    pub(crate) const COUNTER_BYTES: u16 = 1;
    pub(crate) const COUNTER_PACKETS: u16 = 2;

    pub(crate) const LIMIT_RATE: u16 = 1;
    pub(crate) const LIMIT_UNIT: u16 = 2;
    pub(crate) const LIMIT_BURST: u16 = 3;
    pub(crate) const LIMIT_TYPE: u16 = 4;
    pub(crate) const LIMIT_FLAGS: u16 = 5;

    pub(crate) const LOG_GROUP: u16 = 1;
    pub(crate) const LOG_PREFIX: u16 = 2;
    pub(crate) const LOG_SNAPLEN: u16 = 3;
    pub(crate) const LOG_QTHRESHOLD: u16 = 4;
}

/// `NFTNL_UDATA_*`: type, length and value, a byte each for the first two. nft reads it to print a set.
pub(super) mod userdata {
    pub(crate) const SET_KEY_BYTE_ORDER: u8 = 0;
    pub(crate) const SET_DATA_BYTE_ORDER: u8 = 1;
    pub(crate) const SET_KEY_TYPEOF: u8 = 3;
    pub(crate) const TYPEOF_EXPRESSION: u8 = 0;
    pub(crate) const TYPEOF_DATA: u8 = 1;
    pub(crate) const ELEMENT_FLAGS: u8 = 1;
    /// `NFTNL_SET_ELEM_F_INTERVAL_OPEN`: this interval reaches the end of the space.
    pub(crate) const ELEMENT_F_INTERVAL_OPEN: u32 = 1;

    pub(crate) const ORDER_NONE: u32 = 0;
    pub(crate) const ORDER_HOST: u32 = 1;
    pub(crate) const ORDER_BIG: u32 = 2;

    /// nft's `enum expr_types`.
    pub(crate) const EXPRESSION_PAYLOAD: u32 = 7;
    pub(crate) const EXPRESSION_META: u32 = 9;
    pub(crate) const EXPRESSION_CONCAT: u32 = 13;
}
