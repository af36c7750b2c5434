//! Numbers of the kernel's user interface that the `libc` crate lacks, each group with the header that defines it.

/// `linux/if_link.h`: `IFLA_*`.
pub(super) mod ifla {
    pub(crate) const ADDRESS: u16 = 1;
    pub(crate) const IFNAME: u16 = 3;
    pub(crate) const MTU: u16 = 4;
    pub(crate) const LINK: u16 = 5;
    pub(crate) const MASTER: u16 = 10;
    pub(crate) const LINKINFO: u16 = 18;
    pub(crate) const ALIAS: u16 = 20;
    pub(crate) const AF_SPEC: u16 = 26;
    pub(crate) const NET_NS_FD: u16 = 28;
    pub(crate) const EXT_MASK: u16 = 29;
    /// `IFLA_INFO_KIND`, inside `LINKINFO`.
    pub(crate) const INFO_KIND: u16 = 1;
    /// `IFLA_INFO_DATA`, inside `LINKINFO`.
    pub(crate) const INFO_DATA: u16 = 2;
    /// `IFLA_INFO_SLAVE_KIND`, inside `LINKINFO`.
    pub(crate) const INFO_PORT_KIND: u16 = 4;
    /// `IFLA_INFO_SLAVE_DATA`, inside `LINKINFO`.
    pub(crate) const INFO_PORT_DATA: u16 = 5;
    /// `IFLA_BRPORT_STATE` and `IFLA_BRPORT_ISOLATED`, inside `INFO_PORT_DATA` of a bridge's port.
    pub(crate) const PORT_STATE: u16 = 1;
    pub(crate) const PORT_ISOLATED: u16 = 33;
    /// `BR_STATE_FORWARDING` of `linux/if_bridge.h`.
    pub(crate) const FORWARDING: u8 = 3;
    /// `IFLA_INET_CONF`, inside the part for `AF_INET` of `AF_SPEC`: attributes of 32 bits by number of the parameter.
    pub(crate) const INET_CONF: u16 = 1;
    /// `IPV4_DEVCONF_ARP_NOTIFY` of `linux/ip.h`.
    pub(crate) const CONF_ARP_NOTIFY: u16 = 22;
    /// `IFLA_INET6_CONF`, inside the part for `AF_INET6` of `AF_SPEC`: an array of 32-bit numbers.
    pub(crate) const INET6_CONF: u16 = 2;
    /// Place of `accept_ra` in that array (`DEVCONF_ACCEPT_RA` of `linux/ipv6.h`).
    pub(crate) const CONF_ACCEPT_RA: usize = 3;
    /// `VETH_INFO_PEER` (`linux/veth.h`): an `ifinfomsg` and attributes of the other end.
    pub(crate) const VETH_PEER: u16 = 1;
    /// `RTEXT_FILTER_SKIP_STATS` (`linux/rtnetlink.h`).
    pub(crate) const SKIP_STATS: u32 = 8;
}

/// `linux/if_bridge.h` and, of a bridge itself, `IFLA_BR_*` of `linux/if_link.h`.
pub(super) mod bridge {
    /// `IFLA_BR_VLAN_FILTERING`, inside `INFO_DATA`.
    pub(crate) const VLAN_FILTERING: u16 = 7;
    /// `IFLA_BR_VLAN_DEFAULT_PVID`, inside `INFO_DATA`; told by kernels that can filter only.
    pub(crate) const DEFAULT_PVID: u16 = 39;
    /// `IFLA_BRIDGE_VLAN_INFO`, inside `AF_SPEC`.
    pub(crate) const VLAN_INFO: u16 = 2;
    /// `BRIDGE_VLAN_INFO_*`.
    pub(crate) const PVID: u16 = 2;
    pub(crate) const UNTAGGED: u16 = 4;
    pub(crate) const RANGE_BEGIN: u16 = 8;
    pub(crate) const RANGE_END: u16 = 16;
    /// `RTEXT_FILTER_BRVLAN_COMPRESSED` of `linux/rtnetlink.h`.
    pub(crate) const LIST_VLANS: u32 = 4;
}

/// `linux/if_link.h`: `IFLA_VXLAN_*`.
pub(super) mod vxlan {
    pub(crate) const ID: u16 = 1;
    pub(crate) const LINK: u16 = 3;
    pub(crate) const LOCAL: u16 = 4;
    pub(crate) const TTL: u16 = 5;
    pub(crate) const LEARNING: u16 = 7;
    pub(crate) const AGEING: u16 = 8;
    pub(crate) const PORT: u16 = 15;
    pub(crate) const LOCAL6: u16 = 17;
    pub(crate) const UDP_CSUM: u16 = 18;
    pub(crate) const UDP_ZERO_CSUM6_TX: u16 = 19;
    pub(crate) const UDP_ZERO_CSUM6_RX: u16 = 20;
    pub(crate) const GBP: u16 = 23;
}

/// `linux/rtnetlink.h`.
pub(super) mod rt {
    /// `RTA_NH_ID`.
    pub(crate) const NH_ID: u16 = 30;
    /// `RTM_F_FIB_MATCH`.
    pub(crate) const FIB_MATCH: u32 = 0x2000;
    /// `RTAX_MTU`, inside `RTA_METRICS`.
    pub(crate) const METRIC_MTU: u16 = 2;
    /// `RTNH_F_ONLINK`.
    pub(crate) const ONLINK: u32 = 4;
    /// `RTM_NEWNEXTHOP`.
    pub(crate) const NEW_NEXTHOP: u16 = 104;
    /// `RTM_DELNEXTHOP`.
    pub(crate) const DEL_NEXTHOP: u16 = 105;
    /// `RTM_GETNEXTHOP`.
    pub(crate) const GET_NEXTHOP: u16 = 106;
}

/// `linux/nexthop.h`: `NHA_*`.
pub(super) mod nha {
    pub(crate) const ID: u16 = 1;
    pub(crate) const OIF: u16 = 5;
    pub(crate) const GATEWAY: u16 = 6;
}
