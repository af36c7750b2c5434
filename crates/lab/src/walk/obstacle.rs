//! What stops a packet, in words: where, why, and what helps.
//!
//! Surface: [`Obstacle`] and a constructor for each kind. Pure text.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_core::state::Vxlan;
use flannel_kernel::netlink::link;

use super::story::{Cause, Point};
use super::terrain::Daemon;
use crate::layout::EXTERNAL;

/// Something that stops a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Obstacle {
    /// The place.
    pub(super) place: String,
    /// What kind.
    pub(super) cause: Cause,
    /// A sentence without its full stop.
    pub(super) why: String,
    /// What helps, likewise.
    pub(super) remedy: String,
    /// The node whose flanneld keeps the object right that is wrong.
    pub(super) owner: Option<String>,
    /// The capture point that it would have reached next.
    pub(super) missing: Option<Point>,
}

impl Obstacle {
    fn new(place: &str, cause: Cause, why: String, remedy: String) -> Self {
        Self { place: place.to_owned(), cause, why, remedy, owner: None, missing: None }
    }

    /// The same, of an object that the place's flanneld keeps right.
    pub(super) fn owned(self) -> Self {
        Self { owner: Some(self.place.clone()), ..self }
    }

    /// The same stop, with an earlier decision as its cause.
    pub(super) fn explained_by(self, suspect: Option<Self>) -> Self {
        match suspect {
            None => self,
            Some(suspect) => {
                let why = format!("{}; so {}", suspect.why, self.why);
                Self { place: self.place, missing: self.missing, why, ..suspect }
            }
        }
    }

    /// What helps, and what flanneld does about it.
    pub(super) fn advice(&self, daemon: impl Fn(&str) -> Option<Daemon>) -> String {
        let Some((node, daemon)) = self.owner.as_deref().and_then(|node| Some((node, daemon(node)?))) else {
            return self.remedy.clone();
        };
        let says = match daemon {
            Daemon::Running => {
                format!("flanneld on {node} runs and should have repaired this: see its log, /run/flanneld.log")
            }
            Daemon::Halted => {
                format!("flanneld on {node} is halted (SIGSTOP) and cannot repair this: let it go on (SIGCONT)")
            }
            Daemon::Gone => format!("flanneld on {node} does not run and cannot repair this: start it"),
        };
        if self.remedy.is_empty() { says } else { format!("{says}; by hand: {}", self.remedy) }
    }

    pub(super) fn circle(place: &str) -> Self {
        let why = format!("the tables send the packet in circles; the last place is {place}");
        Self::new(place, Cause::Loop, why, "compare the routes with `ip route get` in each place".into())
    }

    pub(super) fn down(place: &str, device: &str, owner: Option<String>) -> Self {
        let why = format!("{device} of {place} is down");
        let up = Self::new(place, Cause::DeviceDown, why, format!("ip link set {device} up"));
        Self { owner, ..up }
    }

    pub(super) fn unplugged(place: &str, link: &link::Report, bridge: &str) -> Self {
        let device = link.name.as_str();
        let why = format!("{device} of {place} is no port of a bridge");
        Self::new(place, Cause::BridgePort, why, format!("ip link set {device} master BRIDGE, with {bridge} for it"))
    }

    pub(super) fn blocked(place: &str, link: &link::Report) -> Self {
        let device = link.name.as_str();
        let why = format!("the spanning tree (STP) keeps {device}, a port of a bridge of {place}, from forwarding");
        let remedy = "wait for it (twice the forward delay, 30 s), or ip link set BRIDGE type bridge stp_state 0";
        Self::new(place, Cause::BridgePort, why, remedy.into())
    }

    pub(super) fn isolated(place: &str, from: &link::Report, to: &link::Report) -> Self {
        let (from, to) = (from.name.as_str(), to.name.as_str());
        let why =
            format!("{from} and {to} of {place} are isolated ports of a bridge, which passes nothing between such");
        Self::new(place, Cause::BridgePort, why, format!("bridge link set dev {to} isolated off"))
    }

    pub(super) fn no_device(place: &str, device: &str) -> Self {
        let why = format!("{place} has no {device}");
        let flannels = device.starts_with("flannel");
        let remedy = if flannels { String::new() } else { format!("make {device} again (a pod's: CNI DEL and ADD)") };
        let missing = Self::new(place, Cause::DeviceMissing, why, remedy);
        if flannels { missing.owned() } else { missing }
    }

    pub(super) fn cut(place: &str, device: &str) -> Self {
        let why = format!("nothing is at the other end of {device} of {place}");
        Self::new(place, Cause::DeviceMissing, why, "make the cable again (a pod's: CNI DEL and ADD)".into())
    }

    pub(super) fn refused_as_too_big(place: &str, far: &link::Report, length: usize) -> Self {
        let (device, mtu) = (far.name.as_str(), far.mtu);
        let why =
            format!("the packet has {length} bytes and {device} of {place}, with MTU {mtu}, takes no more than that");
        let remedy = format!("give both ends of that cable one MTU: ip link set {device} mtu … on {place}");
        Self::new(place, Cause::TooBig, why, remedy)
    }

    pub(super) fn too_big(place: &str, device: &str, (limit, family): (u32, Family), length: usize) -> Self {
        let why =
            format!("the packet has {length} bytes, must not be fragmented, and {device} of {place} takes {limit}");
        Self::new(place, Cause::TooBig, why, smaller(limit, family))
    }

    /// An ICMP error said so.
    pub(super) fn told_too_big(place: &str, error: &str, mtu: u32, family: Family) -> Self {
        let why = format!("the packet must not be fragmented and is too big for a link on its way: {error}");
        Self::new(place, Cause::TooBig, why, smaller(mtu, family))
    }

    pub(super) fn wrong_neighbour(
        (place, entry): (&str, &str),
        mac: Mac,
        owner: Option<&str>,
        receiver: Option<(&str, &link::Report)>,
    ) -> Self {
        let whose = owner.map_or_else(|| "nobody has".to_owned(), |owner| format!("{owner} has"));
        let own = receiver.and_then(|(place, link)| Some((place, link.name.as_str(), link.mac?)));
        let leaves = match own {
            Some((place, device, own)) => format!("{device} of {place} has {own} and leaves it"),
            None => "its receiver leaves it".to_owned(),
        };
        let why = format!("the frame is addressed to {mac}, which {whose}; {leaves}");
        let wrong =
            Self::new(place, Cause::NeighbourWrong, why, format!("on {place}, mend the neighbour entry `{entry}`"));
        if entry.contains(" dev flannel") { wrong.owned() } else { wrong }
    }

    pub(super) fn neighbour_of_another(place: &str, entry: &str, owner: &str, right: Mac) -> Self {
        let why = format!("the neighbour entry on {place} `{entry}` is wrong, {owner} has {right}");
        let wrong =
            Self::new(place, Cause::NeighbourWrong, why, format!("on {place}, set the neighbour entry to {right}"));
        if entry.contains(" dev flannel") { wrong.owned() } else { wrong }
    }

    /// Two have one address, and the neighbour entry, of a place, is the wrong one's.
    pub(super) fn duplicate(address: IpAddr, (owner, other): (&str, &str), (place, entry): (&str, &str)) -> Self {
        let why = format!(
            "{owner} and {other} both have {address}, and the neighbour entry on {place} `{entry}` is {other}'s"
        );
        Self::new(other, Cause::DuplicateAddress, why, format!("take {address} from {other}"))
    }

    /// Somebody else answered.
    pub(super) fn impostor(address: IpAddr, owner: &str, other: &str, mac: Mac) -> Self {
        let why = format!("{other}, with {mac}, has {address} too and answered in place of {owner}");
        Self::new(other, Cause::DuplicateAddress, why, format!("take {address} from {other}"))
    }

    /// A place takes packets of others that come from its own address for forged.
    pub(super) fn martian(place: &str, device: &str, source: IpAddr) -> Self {
        let why = format!("{place} has {source} itself and takes what comes from it by {device} for forged (martian)");
        Self::new(place, Cause::DuplicateAddress, why, format!("take {source} from {place}"))
    }

    pub(super) fn no_forwarding(place: &str, device: &str, mac: Mac) -> Self {
        let why = format!("{device} of {place} has no forwarding (FDB) entry for {mac} and does not know the VTEP");
        let remedy = format!("bridge fdb append {mac} dev {device} dst VTEP self permanent");
        Self::new(place, Cause::FdbMissing, why, remedy).owned()
    }

    pub(super) fn wrong_forwarding(
        place: &str,
        device: &str,
        mac: Mac,
        vtep: IpAddr,
        (home, right): (&str, IpAddr),
    ) -> Self {
        let why =
            format!("the FDB entry of {device} on {place} sends {mac} to {vtep}, but that MAC is {home}'s, at {right}");
        let remedy = format!("bridge fdb replace {mac} dev {device} dst {right} self permanent");
        Self::new(place, Cause::FdbWrong, why, remedy).owned()
    }

    /// A tunnel's end is at an address that its node has no more.
    pub(super) fn moved(place: &str, device: &str, local: IpAddr, now: IpAddr) -> Self {
        let why = format!("{device} of {place} is at {local}, but {place} has {now} instead");
        let remedy = format!("give {local} to {EXTERNAL} of {place} again, or start flanneld there anew");
        Self::new(place, Cause::NoAddress, why, remedy).owned()
    }

    pub(super) fn no_tunnel_end(
        place: &str,
        (vni, port): (u32, u16),
        found: Option<(&link::Report, &Vxlan)>,
        family: Family,
    ) -> Self {
        let (cause, why) = match found {
            None => {
                let device = if family == Family::V4 { "flannel.1" } else { "flannel-v6.1" };
                (Cause::DeviceMissing, format!("{place} has no VXLAN device (no {device}) that takes the packet"))
            }
            Some((link, vxlan)) => (
                Cause::VxlanMismatch,
                format!(
                    "the packet comes with VNI {vni} to port {port}, but {} of {place} has VNI {} and port {}",
                    link.name.as_str(),
                    vxlan.vni,
                    vxlan.port
                ),
            ),
        };
        let remedy =
            if cause == Cause::VxlanMismatch { "VNI and Port of the network config hold for all nodes" } else { "" };
        Self::new(place, cause, why, remedy.into()).owned()
    }

    pub(super) fn no_address(place: &str, address: IpAddr) -> Self {
        let why = format!("{place} got the packet but does not have the address {address}");
        Self::new(place, Cause::NoAddress, why, String::new())
    }

    pub(super) fn without_address(place: &str, device: &str, family: Family) -> Self {
        let why = format!("{device} of {place} has no {family} address");
        Self::new(place, Cause::NoAddress, why, String::new())
    }

    /// An address that is missing: how it comes back, and the sysctl that keeps it away.
    pub(super) fn regained(self, again: &str, sysctl: Option<&str>) -> Self {
        let Some(sysctl) = sysctl.map(dotted) else { return Self { remedy: again.to_owned(), ..self } };
        let why = format!("{}, because {sysctl} is 1", self.why);
        Self { why, remedy: format!("sysctl -w {sysctl}=0, then {again}"), ..self }
    }

    pub(super) fn elsewhere(place: &str, address: IpAddr) -> Self {
        let why = format!("{place} has the address {address} itself and keeps the packet");
        Self::new(place, Cause::NoAddress, why, format!("take {address} from {place}"))
    }

    pub(super) fn forwarding_off(place: &str, sysctl: &str) -> Self {
        let name = dotted(sysctl);
        let why = format!("{place} does not forward: {name} is 0");
        Self::new(place, Cause::ForwardingOff, why, format!("sysctl -w {name}=1"))
    }

    pub(super) fn reverse_path(place: &str, device: &str, source: IpAddr, sysctl: &str, back: Option<String>) -> Self {
        let name = dotted(sysctl);
        let back = back.map_or_else(|| "there is no route back".to_owned(), |back| format!("the way back is `{back}`"));
        let why = format!("{name} refuses {source} coming in by {device} of {place}, because {back}");
        Self::new(place, Cause::ReversePathFilter, why, format!("sysctl -w {name}=0 (or 2), or mend the route back"))
    }

    pub(super) fn refused(place: &str, to: IpAddr, kind: &str, entry: &str, owner: Option<String>) -> Self {
        let why = format!("a route of {place} refuses packets to {to} ({kind}): `{entry}`");
        let refused = Self::new(place, Cause::RouteRefuses, why, format!("ip route delete {entry}"));
        Self { owner, ..refused }
    }

    pub(super) fn no_route(place: &str, to: IpAddr, error: Option<&str>) -> Self {
        let error = error.map_or_else(String::new, |error| format!(" ({error})"));
        let why = format!("{place} has no route to {to}{error}");
        let remedy =
            format!("see `ip route` on {place}: a pod's come with CNI ADD, a node's to other nodes with its setup");
        Self::new(place, Cause::NoRoute, why, remedy)
    }

    pub(super) fn lost_route(place: &str, subnet: &str, taken: Option<&str>) -> Self {
        let why = match taken {
            Some(taken) => format!("{place} has no route of flannel's to {subnet} and took `{taken}`"),
            None => format!("{place} has no route to {subnet}"),
        };
        Self::new(place, Cause::NoRoute, why, String::new()).owned()
    }

    /// There is a route, but a policy rule or another table had its say before.
    pub(super) fn passed_over(place: &str, to: IpAddr, entry: &str, error: &str) -> Self {
        let why =
            format!("{place} has the route `{entry}`, but refuses packets to {to} before it is looked at ({error})");
        Self::new(place, Cause::RouteRefuses, why, format!("see `ip rule` on {place}, and the tables that it names"))
    }

    /// A route leads to somebody else than to who has the way.
    pub(super) fn misled(place: &str, taken: &str, to: IpAddr, (owner, right): (&str, &str)) -> Self {
        let why = format!("{place} took `{taken}`, but that leads to {owner}, and the way to {to} is by {right}");
        let remedy = format!("ip route delete {taken}");
        let further = if taken.contains(" table ") {
            format!("; `ip rule` on {place} says what looks there")
        } else {
            String::new()
        };
        Self::new(place, Cause::NoRoute, why, remedy + &further)
    }

    /// A route's next hop is not behind its device.
    pub(super) fn astray(place: &str, device: &str, taken: &str, hop: IpAddr) -> Self {
        let why = format!("{place} took `{taken}`, but {hop} is not on the link of {device}");
        let remedy = if taken.contains(" proto kernel") {
            format!("this route comes with an address of {device}: give it the right prefix length")
        } else {
            format!("ip route delete {taken}")
        };
        Self::new(place, Cause::NoRoute, why, remedy)
    }

    pub(super) fn unanswered(
        point: Point,
        hop: IpAddr,
        state: &str,
        owner: Option<(&str, &link::Report, bool)>,
        flannels: Option<String>,
    ) -> Self {
        let asks = if hop.is_ipv4() { "ARP" } else { "ND" };
        let place = point.place.clone();
        let (cause, why, remedy) = match (&flannels, owner) {
            (Some(_), _) => (
                Cause::NeighbourUnanswered,
                format!("{} of {place} has no neighbour entry for {hop} ({state})", point.device),
                format!("ip neigh replace {hop} dev {} lladdr MAC nud permanent", point.device),
            ),
            (None, None) => (
                Cause::NeighbourUnanswered,
                format!("nobody answers {asks} for {hop} on {} of {place} ({state}): nobody here has it", point.device),
                format!("give {hop} back to its owner, or mend the route that names it"),
            ),
            (None, Some((owner, link, has))) => {
                let device = link.name.as_str();
                let (cause, state_of, remedy) = match (link.is_up(), has) {
                    (false, _) => (Cause::DeviceDown, ", which is down", format!("ip link set {device} up")),
                    (true, true) => (Cause::NeighbourUnanswered, "", deaf(owner, device, asks)),
                    (true, false) => (Cause::NoAddress, ", which has lost it", String::new()),
                };
                let on = format!("it is on {device} of {owner}{state_of}");
                let why = format!("{asks} for {hop} on {} of {place} has no answer ({state}): {on}", point.device);
                (cause, why, remedy)
            }
        };
        let stopped = Self::new(&place, cause, why, remedy);
        Self { owner: flannels, missing: Some(point), ..stopped }
    }

    /// A link's answers are switched off.
    pub(super) fn mute(place: &str, link: &link::Report, sysctl: Option<&str>) -> Self {
        let device = link.name.as_str();
        let (why, remedy) = match sysctl.map(dotted) {
            Some(sysctl) => (format!("{sysctl} of {place} is 8"), format!("sysctl -w {sysctl}=0")),
            None => (format!("{device} of {place} is set to `arp off`"), format!("ip link set {device} arp on")),
        };
        Self::new(place, Cause::NeighbourUnanswered, why, remedy)
    }

    pub(super) fn echo_ignored(place: &str, sysctl: &str) -> Self {
        let name = dotted(sysctl);
        Self::new(
            place,
            Cause::EchoIgnored,
            format!("{place} answers no pings: {name} is 1"),
            format!("sysctl -w {name}=0"),
        )
    }

    pub(super) fn not_masqueraded(place: &str, source: IpAddr) -> Self {
        let why = format!("{place} let the packet out with the pod's own address {source}, not masqueraded");
        Self::new(place, Cause::NotMasqueraded, why, "run flanneld with --ip-masq".into()).owned()
    }

    /// A packet rule dropped something.
    pub(super) fn rule(place: &str, what: &str, rule: &str, flannels: bool) -> Self {
        let why = format!("a packet rule of {place} dropped {what}: {rule}");
        let remedy = "change or delete that rule (`nft -a list ruleset` shows handles)".to_owned();
        let rule = Self::new(place, Cause::Rule, why, remedy);
        if flannels { rule.owned() } else { rule }
    }

    /// Nothing that was looked at says why.
    pub(super) fn unknown(place: &str) -> Self {
        let why = format!("nothing that {place} tells says why");
        let remedy = "what was counted meanwhile is below; queues (`tc -s qdisc`) and programs and rules at the devices (tc, \
                      XDP, nft's netdev tables) do not tell";
        Self::new(place, Cause::Unknown, why, remedy.into())
    }

    /// Nothing that was looked at says why, but an ICMP error does.
    pub(super) fn told(place: &str, error: &str) -> Self {
        Self::new(place, Cause::Unknown, error.to_owned(), format!("ask the tables and rules of {place} why"))
    }

    /// Its destination was translated.
    pub(super) fn readdressed(place: &str, before: IpAddr, after: IpAddr, who: &str) -> Self {
        let why = format!("a packet rule of {place} changed the destination {before} to {after}, where {who} answered");
        let remedy = format!("see what says dnat or redirect on {place} (`nft -a list ruleset`)");
        Self::new(place, Cause::Rule, why, remedy)
    }
}

/// What to look at where nobody answers without a reason that is known.
fn deaf(owner: &str, device: &str, asks: &str) -> String {
    let rules = "`nft list ruleset`, tables of arp, bridge and netdev; ebtables, arptables";
    format!("look at {device} of {owner}, the cable to it, and rules on the way that drop {asks} ({rules})")
}

/// A path below `/proc/sys` as sysctl(8) names it: dots and slashes change places.
fn dotted(path: &str) -> String {
    let swap = |c| match c {
        '/' => '.',
        '.' => '/',
        other => other,
    };
    path.chars().map(swap).collect()
}

/// How much data an echo message may have on a link: what the headers of IP and ICMP leave.
fn smaller(mtu: u32, family: Family) -> String {
    let headers = if family == Family::V4 { 28 } else { 48 };
    format!("send at most {} bytes (`--size`), or raise the MTU if the underlay allows", mtu.saturating_sub(headers))
}
