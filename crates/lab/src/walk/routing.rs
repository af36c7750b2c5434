//! The part of a packet's way that a place's IP layer decides: is it for us, may it pass, by which route, to which MAC.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_core::rules::evaluate::Hook;
use flannel_kernel::netlink::Error;
use flannel_kernel::netlink::link;
use flannel_kernel::netlink::neigh::Entry;
use flannel_kernel::netlink::route::Question;
use ipnet::IpNet;

use super::obstacle::Obstacle;
use super::site::Routed;
use super::story::{Cause, Direction, Point, Step};
use super::terrain::{At, Role};
use super::way::{Cargo, Halt, Next, Walker};
use super::words;
use crate::layout::{BRIDGE, EXTERNAL};

impl Walker<'_> {
    /// Up from a link into the place: for itself, or to be sent on.
    pub(super) fn up(&mut self, at: At, index: u32, mac: Mac, mut cargo: Cargo) -> Result<Next, Halt> {
        let link = self.link(at, index)?;
        let here = &*link.kind == "bridge" && self.terrain.sites[at].with_mac(mac).is_some();
        if link.mac.is_some_and(|own| own != mac) && !here {
            return Err(self.nobodys(at, mac, Some(&link)).into());
        }
        let family = Family::of(cargo.destination);
        if self.terrain.sites[at].disabled(link.name.as_str(), family).is_some() {
            return Err(self.without_address(at, link.name.as_str(), family).into());
        }
        // In a tunnel it may still be for a MAC that nobody has.
        if cargo.inner.is_none() && self.terrain.home(cargo.destination) == Some(at) {
            self.suspect = None;
        }
        self.rules(at, &[Hook::Prerouting], &cargo, (Some(index), None));
        let translated = cargo.inner.is_none() && self.translate_back(at, &mut cargo);
        self.accepts_source(at, &link, &cargo)?;
        if !translated && self.terrain.sites[at].owner(cargo.destination).is_some() {
            return self.deliver(at, Some(index), cargo);
        }
        if at == self.goal && !matches!(self.terrain.role(at), Role::Node | Role::Router) {
            let lacking = Obstacle::no_address(self.terrain.name(at), cargo.destination);
            return Err(self.lacking(lacking, at, link.name.as_str(), family).into());
        }
        self.may_forward(at, &link, &cargo)?;
        Ok(Next::Route(at, Some(index), cargo))
    }

    /// For this place: out of its tunnel, or there.
    fn deliver(&mut self, at: At, input: Option<u32>, cargo: Cargo) -> Result<Next, Halt> {
        self.rules(at, &[Hook::Input], &cargo, (input, None));
        match cargo.inner {
            Some(inner) => self.unwrap(at, Family::of(cargo.destination), *inner),
            None if at == self.goal => Err(Halt::Arrived),
            None => Err(Obstacle::elsewhere(self.terrain.name(at), cargo.destination).into()),
        }
    }

    /// Whether the place sends packets of others on.
    fn may_forward(&mut self, at: At, link: &link::Report, cargo: &Cargo) -> Result<(), Halt> {
        let family = Family::of(cargo.destination);
        let site = &self.terrain.sites[at];
        let (all, own) = match family {
            Family::V4 => ("net/ipv4/ip_forward", format!("net/ipv4/conf/{}/forwarding", link.name.as_str())),
            Family::V6 => ("net/ipv6/conf/all/forwarding", "net/ipv6/conf/all/forwarding".to_owned()),
        };
        if site.sysctl(&own)? == Some(0) {
            let named = if site.sysctl(all)? == Some(0) { all } else { &own };
            return Err(Obstacle::forwarding_off(site.name(), named).into());
        }
        Ok(())
    }

    /// Whether the place believes that a packet's source can come in by this link: only IPv4 asks (`fib_validate_source` of the
    /// kernel).
    fn accepts_source(&mut self, at: At, link: &link::Report, cargo: &Cargo) -> Result<(), Halt> {
        let Some(source) = cargo.source.filter(IpAddr::is_ipv4) else { return Ok(()) };
        let site = &self.terrain.sites[at];
        if site.owner(source).is_some() {
            return Err(Obstacle::martian(site.name(), link.name.as_str(), source).into());
        }
        self.passes_filter(at, link, source)
    }

    /// `rp_filter`: the greater of the device's and everybody's value; 1 is strict, 2 loose (ip-sysctl).
    fn passes_filter(&mut self, at: At, link: &link::Report, source: IpAddr) -> Result<(), Halt> {
        let device = link.name.as_str();
        let site = &mut self.terrain.sites[at];
        let mut mode = 0;
        let mut by = String::new();
        for scope in ["all", device] {
            let sysctl = format!("net/ipv4/conf/{scope}/rp_filter");
            let value = site.sysctl(&sysctl)?.unwrap_or_default();
            if value > mode {
                (mode, by) = (value, sysctl);
            }
        }
        if mode == 0 {
            return Ok(());
        }
        let asked = Question { to: source, from: None, input: None, entry: false };
        let back = site.route(asked)?.ok().and_then(|routed| Some((routed.route.hops.first()?.index, routed.text)));
        match back {
            Some((out, _)) if out == link.index || mode == 2 => Ok(()),
            back => Err(Obstacle::reverse_path(site.name(), device, source, &by, back.map(|(_, text)| text)).into()),
        }
    }

    /// The routing tables say by which link and gateway.
    pub(super) fn route(&mut self, at: At, input: Option<u32>, mut cargo: Cargo) -> Result<Next, Halt> {
        let asked = Question { to: cargo.destination, from: cargo.source, input, entry: false };
        let routed = match self.terrain.sites[at].route(asked)? {
            Ok(routed) => routed,
            Err(error) => return Err(self.no_way(at, &cargo, &error)?.into()),
        };
        let place = self.place(at);
        let entry = routed.entry.as_ref().map(|(_, text)| text.clone());
        self.decide(Step::Route { place: place.clone(), text: routed.text.clone(), entry: entry.clone() });
        if let Some(kind) = words::kind(&routed.route).filter(|kind| *kind != "local") {
            let entry = entry.unwrap_or(routed.text);
            return Err(Obstacle::refused(&place, cargo.destination, kind, &entry, None).into());
        }
        let Some(hop) = routed.route.hops.first().copied() else {
            return Err(Obstacle::no_route(&place, cargo.destination, None).into());
        };
        cargo.source = cargo.source.or(routed.route.source);
        if words::kind(&routed.route) == Some("local") {
            return self.deliver(at, input, cargo);
        }
        let link = self.link(at, hop.index)?;
        self.doubt(at, &link, &cargo, &routed);
        let own: &[Hook] = &[Hook::Output, Hook::Postrouting];
        let hooks = if input.is_some() { &[Hook::Forward, Hook::Postrouting] } else { own };
        self.rules(at, hooks, &cargo, (input, Some(link.index)));
        self.fits(at, &link, routed.route.mtu, &mut cargo)?;
        self.masquerade(at, &mut cargo);
        let mac = self.resolve(at, &link, hop.gateway.unwrap_or(cargo.destination))?;
        Ok(Next::Leave(at, link.index, mac, cargo))
    }

    /// A route that leads elsewhere explains what goes wrong later. A node that sends a packet for another node's pods by one that
    /// is not for pods has lost the right one.
    fn doubt(&mut self, at: At, link: &link::Report, cargo: &Cargo, routed: &Routed) {
        let Some(entry) = &routed.entry else { return };
        let to = cargo.destination;
        let covered = || self.terrain.networks.iter().any(|pods| pods.contains(&entry.0));
        let right = match self.terrain.role(at) {
            Role::Pod(node) => Some(node),
            Role::Node if self.terrain.is_pods(to) && cargo.inner.is_none() => self.terrain.home(to),
            _ => None,
        };
        let doubt = match right {
            Some(_) if self.terrain.role(at) == Role::Node && !covered() => {
                Some(self.lost_route(at, to, Some(&entry.1)))
            }
            Some(right) => self.misled(at, to, routed, entry, right),
            None => None,
        };
        self.suspect = doubt.or_else(|| self.astray(at, link, to, routed, entry)).or(self.suspect.take());
    }

    /// A route whose gateway is somebody else than the node that has the way.
    fn misled(&self, at: At, to: IpAddr, routed: &Routed, entry: &(IpNet, String), right: At) -> Option<Obstacle> {
        let gateway = routed.route.hops.first()?.gateway?;
        let owner = self.terrain.who_has(gateway).or_else(|| self.terrain.was_given(gateway)).map(|(owner, _)| owner);
        // The far end of a tunnel is gone with its device.
        let tunnel = self.terrain.role(at) == Role::Node;
        let owner_name = match owner {
            Some(owner) if owner == right => return None,
            None if tunnel => return None,
            Some(owner) => self.terrain.name(owner),
            None => "nobody",
        };
        let misled = Obstacle::misled(self.terrain.name(at), &entry.1, to, (owner_name, self.terrain.name(right)));
        Some(self.kept_right(at, to, entry, misled))
    }

    /// A route by a device that its next hop is not behind.
    fn astray(
        &self,
        at: At,
        link: &link::Report,
        to: IpAddr,
        routed: &Routed,
        entry: &(IpNet, String),
    ) -> Option<Obstacle> {
        let hop = routed.route.hops.first()?.gateway.unwrap_or(to);
        let (owner, device) = self.terrain.who_has(hop)?;
        let (here, there) = (self.terrain.segment(at, link)?, self.terrain.segment(owner, device)?);
        let astray = || Obstacle::astray(self.terrain.name(at), link.name.as_str(), &entry.1, hop);
        (here != there).then(astray).map(|astray| self.kept_right(at, to, entry, astray))
    }

    /// What is wrong with a route. flanneld keeps those of a node's main table right that are for whole subnets of others.
    fn kept_right(&self, at: At, to: IpAddr, (net, taken): &(IpNet, String), wrong: Obstacle) -> Obstacle {
        let others = self.terrain.role(at) == Role::Node && self.terrain.home(to) != Some(at);
        let flannels = others && self.terrain.subnet(to) == Some(*net);
        if flannels && !taken.contains(" table ") { wrong.owned() } else { wrong }
    }

    /// Why there is no route to a pod of another node: its device, or the route alone.
    fn lost_route(&self, at: At, to: IpAddr, taken: Option<&str>) -> Obstacle {
        let (site, family) = (&self.terrain.sites[at], Family::of(to));
        if self.terrain.home(to) == Some(at) {
            let own = self.no_own_way(at, to);
            return own.unwrap_or_else(|| Obstacle::no_route(site.name(), to, None));
        }
        let missing =
            [EXTERNAL].into_iter().chain(self.terrain.tunnel(to)).find_map(|device| match site.named(device) {
                None => Some(Obstacle::no_device(site.name(), device)),
                Some(link) if !link.is_up() => Some(Obstacle::down(site.name(), device, self.flannels(at, link))),
                Some(_) => site.disabled(device, family).map(|_| self.without_address(at, device, family)),
            });
        let subnet = self.terrain.subnet(to).map_or_else(|| to.to_string(), |net| net.to_string());
        let lost = Obstacle::lost_route(site.name(), &subnet, taken);
        missing.map(|obstacle| lost.clone().explained_by(Some(obstacle))).unwrap_or(lost)
    }

    /// The kernel knows no way.
    fn no_way(&mut self, at: At, cargo: &Cargo, error: &Error) -> Result<Obstacle, Halt> {
        let to = cargo.destination;
        let (role, place) = (self.terrain.role(at), self.place(at));
        let owner = (role == Role::Node && self.terrain.is_pods(to)).then(|| place.clone());
        if let Some(entry) = self.terrain.sites[at].refusal(to)? {
            let kind = entry.split(' ').next().unwrap_or_default().to_owned();
            return Ok(Obstacle::refused(&place, to, &kind, &entry, owner));
        }
        if let Some(entry) = self.terrain.sites[at].unused(to)? {
            return Ok(Obstacle::passed_over(&place, to, &entry, &error.to_string()));
        }
        if role == Role::Node && self.terrain.home(to) != Some(at) && self.terrain.is_pods(to) {
            return Ok(self.lost_route(at, to, None));
        }
        let own = if role == Role::Router { None } else { self.no_own_way(at, to) };
        Ok(own.unwrap_or_else(|| Obstacle::no_route(&place, to, Some(&error.to_string()))))
    }

    /// What is wrong with the device by which a pod, or a node to its own pods, has its routes.
    fn no_own_way(&self, at: At, to: IpAddr) -> Option<Obstacle> {
        let (site, family) = (&self.terrain.sites[at], Family::of(to));
        let own = self.terrain.role(at) == Role::Node && self.terrain.home(to) == Some(at);
        let device = if own { BRIDGE } else { EXTERNAL };
        match site.named(device) {
            None => Some(Obstacle::no_device(site.name(), device)),
            Some(link) if !link.is_up() => Some(Obstacle::down(site.name(), device, None)),
            Some(link) if !site.addresses_of(link.index).any(|own| Family::of(own) == family) => {
                Some(self.without_address(at, device, family))
            }
            Some(_) => None,
        }
    }

    fn without_address(&self, at: At, device: &str, family: Family) -> Obstacle {
        self.lacking(Obstacle::without_address(self.terrain.name(at), device, family), at, device, family)
    }

    /// The same, with how a link gets an address again that it lacks.
    fn lacking(&self, lacking: Obstacle, at: At, device: &str, family: Family) -> Obstacle {
        let site = &self.terrain.sites[at];
        let again = match (self.terrain.role(at), self.terrain.given(at, family)) {
            (Role::Pod(_), _) => format!("CNI DEL and ADD for {}", site.name()),
            (Role::Node, _) if device == BRIDGE => format!("CNI ADD for a pod on {}", site.name()),
            (_, Some(given)) if device == EXTERNAL => format!("give {given} to {device} of {} again", site.name()),
            _ => format!("flanneld on {} does the rest", site.name()),
        };
        lacking.regained(&again, site.disabled(device, family).as_deref())
    }

    /// Whether the packet is small enough for the link, or may be cut into pieces that are.
    fn fits(&mut self, at: At, link: &link::Report, known: Option<u32>, cargo: &mut Cargo) -> Result<(), Halt> {
        // A path MTU may have been learned from this very packet; it counts if it kept the packet from leaving.
        let limit = known.filter(|_| self.kept).unwrap_or(link.mtu.0).min(link.mtu.0);
        let family = Family::of(cargo.destination);
        if cargo.length <= limit as usize {
            return Ok(());
        }
        // Kernels let anybody cut a tunnel's packets, and routers their echo replies of IPv4.
        if cargo.inner.is_some() || (self.back && family == Family::V4) {
            cargo.length = limit as usize;
            return Ok(());
        }
        Err(Obstacle::too_big(self.terrain.name(at), link.name.as_str(), (limit, family), cargo.length).into())
    }

    /// The translation that the packet was seen to undergo here.
    fn masquerade(&mut self, at: At, cargo: &mut Cargo) {
        let done = |t: &&super::way::Translation| !self.back && t.at == at && Some(t.before) == cargo.source;
        let Some(translation) = self.translations.iter().find(done).copied() else { return };
        cargo.source = Some(translation.after);
        let (place, before, after) = (self.place(at), translation.before, translation.after);
        self.decide(Step::Nat { place, end: "source".into(), before, after });
    }

    /// The neighbour table says which MAC the next hop has.
    fn resolve(&mut self, at: At, link: &link::Report, hop: IpAddr) -> Result<Mac, Halt> {
        let site = &self.terrain.sites[at];
        let (place, device) = (site.name().to_owned(), link.name.as_str());
        let Some(entry) = site.neigh(link.index, hop).copied() else {
            self.decide(Step::Neigh { place, text: format!("{hop} dev {device}: no entry") });
            return Err(self.unresolved(at, link, hop, "no entry").into());
        };
        let text = words::neigh(&entry, device);
        self.decide(Step::Neigh { place: place.clone(), text: text.clone() });
        let known = !matches!(words::state(&entry), "FAILED" | "INCOMPLETE");
        let Entry::Neighbour(_, Some(mac)) = entry.entry else {
            return Err(self.unresolved(at, link, hop, words::state(&entry)).into());
        };
        if !known {
            return Err(self.unresolved(at, link, hop, words::state(&entry)).into());
        }
        self.neigh = Some((place.clone(), text.clone()));
        let owner = self.terrain.who_has(hop).filter(|(_, link)| link.mac != Some(mac));
        if let Some((owner, Some(right))) = owner.map(|(owner, link)| (self.terrain.name(owner), link.mac)) {
            let mut holders = self.terrain.holders(hop);
            let other = holders.find(|(_, link)| link.mac == Some(mac)).map(|(other, _)| self.terrain.name(other));
            self.suspect = Some(match other {
                Some(other) => Obstacle::duplicate(hop, (owner, other), (&place, &text)),
                None => Obstacle::neighbour_of_another(&place, &text, owner, right),
            });
        }
        Ok(mac)
    }

    fn unresolved(&mut self, at: At, link: &link::Report, hop: IpAddr, state: &str) -> Obstacle {
        let (place, device, flannels) = (self.place(at), link.name.as_str(), self.flannels(at, link));
        let owner = self.terrain.who_has(hop).or_else(|| self.terrain.was_given(hop));
        let point = Point { place, device: device.to_owned(), direction: Direction::Out };
        let up = owner.filter(|(_, link)| link.is_running());
        if let Some(obstacle) = up.and_then(|owner| self.between((at, link), owner)) {
            return Obstacle { missing: Some(point), ..obstacle };
        }
        let hears = |(at, link): (At, &link::Report)| Point {
            place: self.place(at),
            device: link.name.as_str().to_owned(),
            direction: Direction::In,
        };
        self.asked = up.filter(|_| flannels.is_none()).map(|owner| (hop, hears(owner)));
        let has = self.terrain.who_has(hop).is_some();
        let names = owner.map(|(owner, link)| (self.terrain.name(owner), link, has));
        let asked = owner.filter(|_| flannels.is_none());
        let unanswered = Obstacle::unanswered(point, hop, state, names, flannels);
        match (unanswered.cause, asked) {
            (Cause::NoAddress, Some((at, link))) => self.lacking(unanswered, at, link.name.as_str(), Family::of(hop)),
            (Cause::NeighbourUnanswered, Some((at, link))) => unanswered.explained_by(self.mute(at, link, hop)),
            _ => unanswered,
        }
    }

    /// What keeps a link from answering for an address of its own.
    fn mute(&self, at: At, link: &link::Report, address: IpAddr) -> Option<Obstacle> {
        if !link.is_running() {
            return Some(self.dead_port(at, link));
        }
        let site = &self.terrain.sites[at];
        let sysctl = site.mute(link.name.as_str(), Family::of(address));
        (sysctl.is_some() || !link.resolves()).then(|| Obstacle::mute(site.name(), link, sysctl.as_deref()))
    }
}
