//! Numbers of nf_tables that `libc` lacks, from the kernel's `include/uapi/linux/netfilter/nf_tables.h` (prefix `NFTA_` cut).

/// Every message about a table, or something in one, names the table here: `TABLE_NAME`, `CHAIN_TABLE`, `RULE_TABLE`, ….
pub(super) const TABLE: u16 = 1;
pub(super) const TABLE_FLAGS: u16 = 2;
pub(super) const TABLE_USERDATA: u16 = 6;
/// `NFT_TABLE_F_DORMANT`: the hooks of the table's chains are not registered.
pub(super) const TABLE_DORMANT: u32 = 1;
/// `NFT_TABLE_F_OWNER`: the table belongs to the socket that made it, and goes with it.
pub(super) const TABLE_OWNER: u32 = 2;

pub(super) const CHAIN_NAME: u16 = 3;
pub(super) const CHAIN_HOOK: u16 = 4;
pub(super) const CHAIN_POLICY: u16 = 5;
pub(super) const CHAIN_TYPE: u16 = 7;
pub(super) const CHAIN_USERDATA: u16 = 12;
pub(super) const HOOK_NUMBER: u16 = 1;
pub(super) const HOOK_PRIORITY: u16 = 2;

pub(super) const RULE_CHAIN: u16 = 2;
pub(super) const RULE_HANDLE: u16 = 3;
pub(super) const RULE_EXPRESSIONS: u16 = 4;
pub(super) const RULE_USERDATA: u16 = 7;

/// `NFTA_LIST_ELEM`.
pub(super) const ELEMENT: u16 = 1;
pub(super) const EXPR_NAME: u16 = 1;
pub(super) const EXPR_DATA: u16 = 2;

pub(super) const DATA_VALUE: u16 = 1;
pub(super) const DATA_VERDICT: u16 = 2;
pub(super) const VERDICT_CODE: u16 = 1;
pub(super) const VERDICT_CHAIN: u16 = 2;

pub(super) const PAYLOAD_DREG: u16 = 1;
pub(super) const PAYLOAD_BASE: u16 = 2;
pub(super) const PAYLOAD_OFFSET: u16 = 3;
pub(super) const PAYLOAD_LEN: u16 = 4;

pub(super) const BITWISE_SREG: u16 = 1;
pub(super) const BITWISE_DREG: u16 = 2;
pub(super) const BITWISE_LEN: u16 = 3;
pub(super) const BITWISE_MASK: u16 = 4;
pub(super) const BITWISE_XOR: u16 = 5;
pub(super) const BITWISE_OP: u16 = 6;

pub(super) const CMP_SREG: u16 = 1;
pub(super) const CMP_OP: u16 = 2;
pub(super) const CMP_DATA: u16 = 3;

pub(super) const META_DREG: u16 = 1;
pub(super) const META_KEY: u16 = 2;
pub(super) const META_SREG: u16 = 3;

/// Of conntrack the key; of sets the name, and a flag that says outside instead of inside.
pub(super) const CT_KEY: u16 = 2;
pub(super) const LOOKUP_SET: u16 = 1;
pub(super) const LOOKUP_SREG: u16 = 2;
pub(super) const LOOKUP_DREG: u16 = 3;
pub(super) const LOOKUP_FLAGS: u16 = 5;
/// Of matches and targets of iptables (`NFTA_MATCH_*`, `NFTA_TARGET_*`).
pub(super) const XT_NAME: u16 = 1;
pub(super) const XT_REVISION: u16 = 2;
pub(super) const XT_CONTENT: u16 = 3;

pub(super) const FIB_DREG: u16 = 1;
pub(super) const FIB_RESULT: u16 = 2;
pub(super) const FIB_FLAGS: u16 = 3;
/// `NFT_FIB_RESULT_ADDRTYPE` and `NFTA_FIB_F_DADDR`.
pub(super) const FIB_ADDRESS_TYPE: u32 = 3;
pub(super) const FIB_DESTINATION: u32 = 1 << 1;

pub(super) const CT_DREG: u16 = 1;
pub(super) const CT_DIRECTION: u16 = 3;
pub(super) const CT_SREG: u16 = 4;

pub(super) const RANGE_SREG: u16 = 1;
pub(super) const RANGE_OP: u16 = 2;
pub(super) const RANGE_FROM: u16 = 3;
pub(super) const RANGE_TO: u16 = 4;

/// Of the elements of a set (`NFTA_SET_ELEM_LIST_*`), and of one of them (`NFTA_SET_ELEM_*`).
pub(super) const ELEMENTS_SET: u16 = 2;
pub(super) const ELEMENTS: u16 = 3;
pub(super) const ELEMENT_KEY: u16 = 1;
pub(super) const ELEMENT_DATA: u16 = 2;
pub(super) const ELEMENT_FLAGS: u16 = 3;
pub(super) const ELEMENT_KEY_END: u16 = 10;

pub(super) const NAT_TYPE: u16 = 1;
pub(super) const NAT_FAMILY: u16 = 2;
pub(super) const NAT_ADDRESS: u16 = 3;
pub(super) const NAT_PORT: u16 = 5;
/// `NFT_NAT_DNAT`.
pub(super) const NAT_DESTINATION: u32 = 1;

pub(super) const IMMEDIATE_DREG: u16 = 1;
pub(super) const IMMEDIATE_DATA: u16 = 2;

pub(super) const MASQ_FLAGS: u16 = 1;
/// `NF_NAT_RANGE_PROTO_RANDOM_FULLY` of `netfilter/nf_nat.h`.
pub(super) const MASQ_FULLY_RANDOM: u32 = 1 << 4;

pub(super) const GEN_ID: u16 = 1;

pub(super) const TRACE_TABLE: u16 = 1;
pub(super) const TRACE_CHAIN: u16 = 2;
pub(super) const TRACE_RULE_HANDLE: u16 = 3;
pub(super) const TRACE_TYPE: u16 = 4;
pub(super) const TRACE_VERDICT: u16 = 5;
pub(super) const TRACE_ID: u16 = 6;
pub(super) const TRACE_NETWORK_HEADER: u16 = 8;
pub(super) const TRACE_TRANSPORT_HEADER: u16 = 9;
pub(super) const TRACE_IIF: u16 = 10;
pub(super) const TRACE_OIF: u16 = 12;
pub(super) const TRACE_MARK: u16 = 14;
pub(super) const TRACE_POLICY: u16 = 16;
