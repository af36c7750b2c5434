//! What a walk found: the one object that is drawn as text and printed as JSON.
//!
//! Surface: [`Story`] and its parts. Pure data; the field names are the JSON's and stay (docs/lab.md describes them). Times
//! are nanoseconds since the first capture.

use std::fmt;
use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use serde::{Deserialize, Serialize};

/// One ping, followed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Story {
    /// Who pings.
    pub from: End,
    /// Who is pinged.
    pub to: End,
    /// 4 or 6.
    pub ip: u8,
    /// Bytes of data behind the ICMP header.
    pub size: usize,
    /// What came of it.
    pub outcome: Outcome,
    /// The echo request's way, in the order of travel.
    pub request: Vec<Step>,
    /// The echo reply's way, in the order of travel.
    pub reply: Vec<Step>,
    /// What is worth knowing besides.
    pub remarks: Vec<String>,
}

/// One end of the walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// Its name in the lab.
    pub name: String,
    /// The node it is on; none for what is no pod.
    pub node: Option<String>,
    /// Its address.
    pub address: Option<IpAddr>,
}

/// What came of the ping.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "result", rename_all = "kebab-case")]
pub enum Outcome {
    /// The reply came back.
    Answered {
        /// From sending to receiving.
        round_trip_ns: u64,
    },
    /// It did not.
    Died(Box<Death>),
}

/// Where and why a packet died.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Death {
    /// `request` or `reply`.
    pub way: Way,
    /// The place in the lab.
    pub place: String,
    /// The last capture that saw it.
    pub last: Option<Point>,
    /// The next on its way, which did not.
    pub missing: Option<Point>,
    /// Why, as a word.
    pub cause: Cause,
    /// Why, as a sentence.
    pub why: String,
    /// What helps.
    pub remedy: String,
    /// What else was seen that says so: ICMP errors, counters that grew.
    pub evidence: Vec<String>,
}

/// The two ways of a ping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// The echo request's.
    Request,
    /// The echo reply's.
    Reply,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Request => "request",
            Self::Reply => "reply",
        })
    }
}

/// A capture point: a device of a place, and whether packets come in by it or go out.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Point {
    /// The place.
    pub place: String,
    /// The device.
    pub device: String,
    /// Seen from the place.
    pub direction: Direction,
}

/// Whether a packet comes in by a device or goes out by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// It comes in.
    In,
    /// It goes out.
    Out,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let way = match self.direction {
            Direction::In => "coming in by",
            Direction::Out => "going out by",
        };
        write!(f, "{} {way} {}", self.place, self.device)
    }
}

/// Something that happened to the packet, or decided what did.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "step", rename_all = "kebab-case")]
pub enum Step {
    /// A capture saw it.
    Seen {
        /// Where.
        #[serde(flatten)]
        point: Point,
        /// When.
        at_ns: u64,
        /// The packet as it was there.
        packet: Packet,
        /// The point is part of the wire: a port of the lab's switch.
        wire: bool,
    },
    /// It should have been seen here next, and was not.
    Missing {
        /// Where.
        #[serde(flatten)]
        point: Point,
    },
    /// The routing tables were asked.
    Route {
        /// Where.
        place: String,
        /// The answer, as `ip route get` prints it.
        text: String,
        /// The entry that decided, as `ip route show` prints it.
        entry: Option<String>,
    },
    /// The neighbour table gave the MAC.
    Neigh {
        /// Where.
        place: String,
        /// As `ip neigh` prints it.
        text: String,
    },
    /// A neighbour was asked for, by ARP or ND, or answered.
    Resolution {
        /// Where.
        #[serde(flatten)]
        point: Point,
        /// When.
        at_ns: u64,
        /// As tcpdump prints it, about.
        text: String,
    },
    /// A forwarding table, of a VXLAN device or of a bridge, gave the way for a MAC.
    Fdb {
        /// Where.
        place: String,
        /// As `bridge fdb` prints it.
        text: String,
    },
    /// A packet rule had its say.
    Rule {
        /// Where.
        place: String,
        /// Family and name of its table.
        table: String,
        /// Its chain.
        chain: String,
        /// Its handle, as `nft -a` prints it.
        handle: Option<u64>,
        /// The rule; or the chain's policy.
        text: String,
        /// What it said: `accept`, `drop`, `return`, `masquerade`, …
        verdict: String,
        /// The kernel said so (nf_tables trace); else it was worked out from the rules.
        traced: bool,
    },
    /// An address was translated.
    Nat {
        /// Where.
        place: String,
        /// `source` or `destination`.
        end: String,
        /// Before.
        before: IpAddr,
        /// After.
        after: IpAddr,
    },
}

/// A packet as a capture saw it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Packet {
    /// The frame's source and destination.
    pub macs: Option<(Mac, Mac)>,
    /// What it is wrapped in.
    pub outer: Option<Outer>,
    /// The frame inside the wrapping: source and destination.
    pub inner_macs: Option<(Mac, Mac)>,
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// TTL or hop limit.
    pub ttl: u8,
    /// Bytes, from the IP header on, without the wrapping.
    pub length: usize,
    /// What it says: `echo request`, `echo reply`.
    pub message: String,
}

/// VXLAN around a packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Outer {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port.
    pub port: u16,
    /// VXLAN network identifier.
    pub vni: u32,
    /// Bytes, from the outer IP header on.
    pub length: usize,
}

/// Why a packet died.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Cause {
    /// A packet rule dropped or rejected it.
    Rule,
    /// No route leads there.
    NoRoute,
    /// A route says blackhole, unreachable or prohibit.
    RouteRefuses,
    /// A device that it needs does not exist.
    DeviceMissing,
    /// A port of a bridge is missing, blocked or isolated.
    BridgePort,
    /// A device that it needs is down, here or at the other end of the cable.
    DeviceDown,
    /// The receiver does not have the address.
    NoAddress,
    /// Two have the address, and the wrong one got the packet.
    DuplicateAddress,
    /// Nobody answers ARP or ND for the next hop.
    NeighbourUnanswered,
    /// The neighbour entry names a MAC that the next hop does not have.
    NeighbourWrong,
    /// The VXLAN device has no forwarding entry for the MAC.
    FdbMissing,
    /// The forwarding entry leads to a host that does not have the MAC.
    FdbWrong,
    /// The receiving VXLAN device has another VNI or port.
    VxlanMismatch,
    /// The place does not forward packets of the family.
    ForwardingOff,
    /// The reverse path filter refused the source address.
    ReversePathFilter,
    /// The packet is bigger than an MTU on its way and must not be fragmented.
    TooBig,
    /// It left with its own address, to which no way leads back.
    NotMasqueraded,
    /// The receiver was told not to answer pings.
    EchoIgnored,
    /// It went in circles.
    Loop,
    /// Nothing that was looked at says why.
    Unknown,
}

impl Cause {
    /// The word it has in JSON.
    pub fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// The family of a story.
pub(crate) fn family(ip: u8) -> Family {
    if ip == 6 { Family::V6 } else { Family::V4 }
}
