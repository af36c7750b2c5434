//! Links: `struct ifinfomsg` requests and reports.
//!
//! Knows the kinds that flannel makes (vxlan, bridge, veth, dummy) and reads any. Whose a link is, is decided elsewhere.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use flannel_core::addr::{LinkName, Mac, Mtu, Vni};
use flannel_core::state::Vxlan;

use super::message::{Attributes, Message, Request};
use super::uapi::{bridge, ifla, vxlan as attr};

/// Bytes of `struct ifinfomsg`.
const HEADER: usize = 16;
/// Seconds after which learned forwarding entries are forgotten: the kernel's and flannel's default (compat §6).
const AGEING: u32 = 300;

/// Settings of a link, each left alone when none.
#[derive(Debug, Clone, Copy, Default)]
pub struct Settings<'a> {
    /// Its name.
    pub name: Option<LinkName>,
    /// Its MAC.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<Mtu>,
    /// Administratively up or down.
    pub up: Option<bool>,
    /// Receives all frames.
    pub promisc: Option<bool>,
    /// Index of the bridge it is a port of; 0 takes it out.
    pub master: Option<u32>,
    /// The network namespace it moves to or is made in.
    pub netns: Option<BorrowedFd<'a>>,
    /// What it is called beside its name.
    pub alias: Option<&'a str>,
}

/// What to make.
#[derive(Debug, Clone, Copy)]
pub enum Kind<'a> {
    /// A VXLAN device with flannel's fixed attributes (compat §6). The index of its lower device; `vxlan.lower` is not looked at.
    Vxlan(&'a Vxlan, Option<u32>),
    /// A bridge.
    Bridge {
        /// Filters by VLAN; kernels can be built without.
        vlan_filtering: bool,
    },
    /// A pair of devices; the settings are the other end's. A namespace in them is where that end appears at once.
    Veth(Settings<'a>),
    /// A device that drops everything.
    Dummy,
}

impl Kind<'_> {
    fn name(&self) -> &'static str {
        match self {
            Self::Vxlan(..) => "vxlan",
            Self::Bridge { .. } => "bridge",
            Self::Veth(_) => "veth",
            Self::Dummy => "dummy",
        }
    }

    fn write(&self, request: Request) -> Request {
        match self {
            Self::Vxlan(vxlan, lower) => write_vxlan(request, vxlan, *lower),
            Self::Bridge { vlan_filtering } => request.maybe(bridge::VLAN_FILTERING, vlan_filtering.then_some(1_u8)),
            Self::Veth(peer) => request.nest(ifla::VETH_PEER, |request| peer.write(request, 0)),
            Self::Dummy => request,
        }
    }
}

impl Settings<'_> {
    fn write(&self, request: Request, index: u32) -> Request {
        let wanted = [(libc::IFF_UP, self.up), (libc::IFF_PROMISC, self.promisc)];
        let (mut flags, mut change) = (0, 0);
        for (flag, on) in wanted.iter().filter_map(|(flag, on)| Some((*flag as u32, (*on)?))) {
            change |= flag;
            flags |= if on { flag } else { 0 };
        }
        request
            .body(&header(index, flags, change))
            .maybe(ifla::IFNAME, self.name)
            .maybe(ifla::ADDRESS, self.mac)
            .maybe(ifla::MTU, self.mtu.map(|mtu| mtu.0))
            .maybe(ifla::MASTER, self.master)
            .maybe(ifla::NET_NS_FD, self.netns.map(|fd| fd.as_raw_fd()))
            .maybe(ifla::ALIAS, self.alias)
    }
}

/// `struct ifinfomsg`.
fn header(index: u32, flags: u32, change: u32) -> [u8; HEADER] {
    let mut bytes = [0; HEADER];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn write_vxlan(request: Request, vxlan: &Vxlan, lower: Option<u32>) -> Request {
    let zero_checksums = u8::from(!vxlan.checksums);
    let request = request
        .attr(attr::ID, vxlan.vni.id())
        .attr(attr::PORT, vxlan.port.to_be_bytes())
        .attr(attr::TTL, 0_u8)
        .attr(attr::AGEING, AGEING)
        .attr(attr::UDP_CSUM, u8::from(vxlan.checksums))
        .attr(attr::UDP_ZERO_CSUM6_TX, zero_checksums)
        .attr(attr::UDP_ZERO_CSUM6_RX, zero_checksums)
        .maybe(attr::GBP, vxlan.gbp.then_some([]));
    write_changeable(request, vxlan, lower)
}

/// The attributes of a VXLAN device that can change while it exists.
fn write_changeable(request: Request, vxlan: &Vxlan, lower: Option<u32>) -> Request {
    let local = vxlan.local.map(|local| if local.is_ipv4() { attr::LOCAL } else { attr::LOCAL6 });
    request
        .attr(attr::LEARNING, u8::from(vxlan.learning))
        .maybe(attr::LINK, lower)
        .maybe(local.unwrap_or_default(), vxlan.local)
}

/// Makes a link that must not exist yet.
pub fn create(settings: &Settings<'_>, kind: &Kind<'_>) -> Request {
    let flags = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
    settings.write(Request::new(libc::RTM_NEWLINK, flags), 0).nest(ifla::LINKINFO, |request| {
        request.attr(ifla::INFO_KIND, kind.name()).nest(ifla::INFO_DATA, |request| kind.write(request))
    })
}

/// Changes a link.
pub fn change(index: u32, settings: &Settings<'_>) -> Request {
    settings.write(Request::new(libc::RTM_NEWLINK, 0), index)
}

/// Sets `net.ipv4.conf.<link>.arp_notify`: the link tells its neighbours of its IPv4 addresses when it comes up.
pub fn announce(index: u32) -> Request {
    let family = libc::AF_INET as u16;
    Request::new(libc::RTM_NEWLINK, 0).body(&header(index, 0, 0)).nest(ifla::AF_SPEC, |request| {
        request
            .nest(family, |request| request.nest(ifla::INET_CONF, |request| request.attr(ifla::CONF_ARP_NOTIFY, 1_u32)))
    })
}

/// Changes what can be changed of a VXLAN device: learning, lower device, local address.
pub fn change_vxlan(index: u32, vxlan: &Vxlan, lower: Option<u32>) -> Request {
    Request::new(libc::RTM_NEWLINK, 0).body(&header(index, 0, 0)).nest(ifla::LINKINFO, |request| {
        request
            .attr(ifla::INFO_KIND, "vxlan")
            .nest(ifla::INFO_DATA, |request| write_changeable(request.attr(attr::ID, vxlan.vni.id()), vxlan, lower))
    })
}

/// Deletes a link; of a veth both ends.
pub fn delete(index: u32) -> Request {
    Request::new(libc::RTM_DELLINK, 0).body(&header(index, 0, 0))
}

/// Asks for a link by its name.
pub fn by_name(name: LinkName) -> Request {
    Request::new(libc::RTM_GETLINK, 0)
        .body(&header(0, 0, 0))
        .attr(ifla::IFNAME, name)
        .attr(ifla::EXT_MASK, ifla::SKIP_STATS)
}

/// Asks for a link by its index.
pub fn by_index(index: u32) -> Request {
    Request::new(libc::RTM_GETLINK, 0).body(&header(index, 0, 0)).attr(ifla::EXT_MASK, ifla::SKIP_STATS)
}

/// Asks for all links.
pub fn list() -> Request {
    by_index(0)
}

/// Asks for the ports of a bridge; kernels before 4.6 give all links.
pub fn ports(bridge: u32) -> Request {
    list().attr(ifla::MASTER, bridge)
}

/// A link as the kernel reports it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Report {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: LinkName,
    /// Its flags (`IFF_*`).
    pub flags: u32,
    /// Its MTU.
    pub mtu: Mtu,
    /// Its MAC, if it has one of six bytes.
    pub mac: Option<Mac>,
    /// Its kind (`vxlan`, `veth`); empty for hardware.
    pub kind: Box<str>,
    /// The index of the device it is a port of.
    pub master: Option<u32>,
    /// `IFLA_LINK`: of a veth the index of its other end, in the namespace of that.
    pub peer: Option<u32>,
    /// It is a port of a bridge.
    pub bridge_port: bool,
    /// It is a port of a bridge, up, and the spanning tree does not let it forward.
    pub blocked: bool,
    /// It is a port of a bridge that passes nothing to other such ports (`isolated` of bridge(8)).
    pub isolated: bool,
    /// `net.ipv6.conf.<device>.accept_ra` is not 0; false without IPv6.
    pub accept_ra: bool,
    /// The attributes of a VXLAN device (its `lower` unset) and the index of its lower device.
    pub vxlan: Option<(Vxlan, Option<u32>)>,
}

impl Report {
    /// Administratively up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP as u32 != 0
    }

    /// Up, and its other end too: frames can pass (`IFF_RUNNING`).
    pub fn is_running(&self) -> bool {
        self.is_up() && self.flags & libc::IFF_RUNNING as u32 != 0
    }

    /// Asks for neighbours and answers them (not `IFF_NOARP`).
    pub fn resolves(&self) -> bool {
        self.flags & libc::IFF_NOARP as u32 == 0
    }

    /// Reads a `RTM_NEWLINK` or `RTM_DELLINK` message of family unspecified; a bridge's messages about its ports are none.
    pub fn read(message: Message<'_>) -> Option<Self> {
        let (header, attributes) = message.split(HEADER)?;
        if !matches!(message.kind, libc::RTM_NEWLINK | libc::RTM_DELLINK) || header[0] != libc::AF_UNSPEC as u8 {
            return None;
        }
        let number = |at: usize| header[at..at + 4].try_into().map(u32::from_ne_bytes).ok();
        let link_info = attributes.inside(ifla::LINKINFO);
        let bridge_port =
            link_info.find(ifla::INFO_PORT_KIND).and_then(super::message::Payload::text) == Some("bridge");
        let port = |kind| link_info.inside(ifla::INFO_PORT_DATA).find(kind)?.u8().filter(|_| bridge_port);
        let kind = link_info.find(ifla::INFO_KIND).and_then(super::message::Payload::text).unwrap_or_default();
        Some(Self {
            index: number(4)?,
            name: attributes.find(ifla::IFNAME)?.link_name()?,
            flags: number(8)?,
            mtu: Mtu(attributes.find(ifla::MTU).and_then(super::message::Payload::u32).unwrap_or_default()),
            mac: attributes.find(ifla::ADDRESS).and_then(super::message::Payload::mac),
            kind: kind.into(),
            master: attributes.find(ifla::MASTER).and_then(super::message::Payload::u32),
            peer: attributes.find(ifla::LINK).and_then(super::message::Payload::u32).filter(|index| *index != 0),
            bridge_port,
            // A port that is down is disabled, whatever the tree says.
            blocked: port(ifla::PORT_STATE).is_some_and(|state| !matches!(state, 0 | ifla::FORWARDING)),
            isolated: port(ifla::PORT_ISOLATED) == Some(1),
            accept_ra: accept_ra(attributes),
            vxlan: if kind == "vxlan" { read_vxlan(link_info.inside(ifla::INFO_DATA)) } else { None },
        })
    }
}

fn accept_ra(attributes: Attributes<'_>) -> bool {
    let conf = attributes.inside(ifla::AF_SPEC).inside(libc::AF_INET6 as u16).find(ifla::INET6_CONF);
    conf.and_then(|conf| conf.0.get(ifla::CONF_ACCEPT_RA * 4..)?.get(..4)).is_some_and(|value| value != [0; 4])
}

fn read_vxlan(attributes: Attributes<'_>) -> Option<(Vxlan, Option<u32>)> {
    let number = |kind| attributes.find(kind).and_then(super::message::Payload::u8).unwrap_or_default();
    let local = [attr::LOCAL, attr::LOCAL6].into_iter().find_map(|kind| attributes.find(kind)?.address());
    let vxlan = Vxlan {
        vni: Vni::new(attributes.find(attr::ID)?.u32()?)?,
        port: attributes.find(attr::PORT)?.be16()?,
        local: local.filter(|local: &IpAddr| !local.is_unspecified()),
        lower: None,
        learning: number(attr::LEARNING) != 0,
        gbp: attributes.find(attr::GBP).is_some(),
        checksums: [attr::UDP_CSUM, attr::UDP_ZERO_CSUM6_TX, attr::UDP_ZERO_CSUM6_RX].map(number) == [1, 0, 0],
    };
    Some((vxlan, attributes.find(attr::LINK).and_then(super::message::Payload::u32).filter(|lower| *lower != 0)))
}
