//! The part of a packet's way that a place's IP layer decides: is it for us, may it pass, by which route, to which MAC.

use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_core::rules::evaluate::Hook;
use flannel_kernel::netlink::Error;
use flannel_kernel::netlink::link;
use flannel_kernel::netlink::neigh::Entry;
use flannel_kernel::netlink::route::Question;

use super::obstacle::Obstacle;
use super::site::Routed;
use super::story::{Direction, Point, Step};
use super::terrain::{At, Role};
use super::way::{Cargo, Halt, Next, Walker};
use super::words;
use crate::layout::EXTERNAL;

impl Walker<'_> {
    /// Up from a link into the place: for itself, or to be sent on.
    pub(super) fn up(&mut self, at: At, index: u32, mac: Mac, mut cargo: Cargo) -> Result<Next, Halt> {
        let link = self.link(at, index)?;
        let here = &*link.kind == "bridge" && self.terrain.sites[at].with_mac(mac).is_some();
        if link.mac.is_some_and(|own| own != mac) && !here {
            return Err(self.nobodys(at, mac, Some(&link)).into());
        }
        // In a tunnel it may still be for a MAC that nobody has.
        if cargo.inner.is_none() && self.terrain.home(cargo.destination) == Some(at) {
            self.suspect = None;
        }
        self.rules(at, &[Hook::Prerouting], &cargo, (Some(index), None));
        let translated = cargo.inner.is_none() && self.translate_back(at, &mut cargo);
        if !translated && self.terrain.sites[at].owner(cargo.destination).is_some() {
            return self.deliver(at, Some(index), cargo);
        }
        if at == self.goal && !matches!(self.terrain.role(at), Role::Node | Role::Router) {
            return Err(Obstacle::no_address(self.terrain.name(at), cargo.destination).into());
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

    /// Whether the place sends packets of others on, and takes this one's source from this link.
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
        match (family, cargo.source) {
            (Family::V4, Some(source)) => self.accepts_source(at, link, source),
            _ => Ok(()),
        }
    }

    /// `rp_filter`: the greater of the device's and everybody's value; 1 is strict, 2 loose (ip-sysctl).
    fn accepts_source(&mut self, at: At, link: &link::Report, source: IpAddr) -> Result<(), Halt> {
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
        self.doubt(at, &cargo, &routed);
        cargo.source = cargo.source.or(routed.route.source);
        let link = self.link(at, hop.index)?;
        if words::kind(&routed.route) == Some("local") {
            return self.deliver(at, input, cargo);
        }
        let own: &[Hook] = &[Hook::Output, Hook::Postrouting];
        let hooks = if input.is_some() { &[Hook::Forward, Hook::Postrouting] } else { own };
        self.rules(at, hooks, &cargo, (input, Some(link.index)));
        self.fits(at, &link, routed.route.mtu, &cargo)?;
        self.masquerade(at, &mut cargo);
        let mac = self.resolve(at, &link, hop.gateway.unwrap_or(cargo.destination))?;
        Ok(Next::Leave(at, link.index, mac, cargo))
    }

    /// A node that sends a packet for another node's pods by a route that is not for pods has lost the right one.
    fn doubt(&mut self, at: At, cargo: &Cargo, routed: &Routed) {
        let to = cargo.destination;
        let covered = |net: &ipnet::IpNet| self.terrain.networks.iter().any(|pods| pods.contains(net));
        if self.terrain.role(at) != Role::Node || !self.terrain.is_pods(to) || cargo.inner.is_some() {
            return;
        }
        match &routed.entry {
            Some((net, taken)) if !covered(net) => self.suspect = Some(self.lost_route(at, to, Some(taken))),
            Some((net, taken)) => self.suspect = self.astray(at, to, routed, (net, taken)).or(self.suspect.take()),
            None => {}
        }
    }

    /// A route for pods of another node whose gateway is the router or a third node.
    fn astray(&self, at: At, to: IpAddr, routed: &Routed, (net, taken): (&ipnet::IpNet, &str)) -> Option<Obstacle> {
        let gateway = routed.route.hops.first()?.gateway?;
        let (owner, home) = (self.terrain.who_has(gateway)?.0, self.terrain.home(to)?);
        let names = (self.terrain.name(owner), self.terrain.name(home));
        (owner != home && home != at).then(|| Obstacle::astray(self.terrain.name(at), net, taken, names))
    }

    /// Why there is no route to a pod of another node: its device, or the route alone.
    fn lost_route(&self, at: At, to: IpAddr, taken: Option<&str>) -> Obstacle {
        let site = &self.terrain.sites[at];
        if self.terrain.home(to) == Some(at) {
            let own = self.no_own_way(at, to);
            return own.unwrap_or_else(|| Obstacle::no_route(site.name(), to, None));
        }
        let missing =
            [EXTERNAL].into_iter().chain(self.terrain.tunnel(to)).find_map(|device| match site.named(device) {
                None => Some(Obstacle::no_device(site.name(), device)),
                Some(link) if !link.is_up() => Some(Obstacle::down(site.name(), device, self.flannels(at, link))),
                Some(_) => None,
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
        let device = if own { "cni0" } else { EXTERNAL };
        match site.named(device) {
            None => Some(Obstacle::no_device(site.name(), device)),
            Some(link) if !link.is_up() => Some(Obstacle::down(site.name(), device, None)),
            Some(link) if !site.addresses_of(link.index).any(|own| Family::of(own) == family) => {
                Some(Obstacle::without_address(site.name(), device, family))
            }
            Some(_) => None,
        }
    }

    /// Whether the packet is small enough for the link. A tunnel's own packet may be cut into pieces.
    fn fits(&mut self, at: At, link: &link::Report, known: Option<u32>, cargo: &Cargo) -> Result<(), Halt> {
        // A path MTU may have been learned from this very packet; it counts if it kept the packet from leaving.
        let limit = known.filter(|_| self.kept).unwrap_or(link.mtu.0).min(link.mtu.0);
        if cargo.length <= limit as usize || cargo.inner.is_some() {
            return Ok(());
        }
        let family = Family::of(cargo.destination);
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
        let owner = self.terrain.who_has(hop).map(|(owner, link)| (self.terrain.name(owner), link.mac));
        if let Some((owner, Some(right))) = owner.filter(|(_, right)| *right != Some(mac)) {
            self.suspect = Some(Obstacle::neighbour_of_another(&place, &text, owner, right));
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
        let owner = owner.map(|(owner, link)| (self.terrain.name(owner), link, self.terrain.who_has(hop).is_some()));
        Obstacle::unanswered(point, hop, state, owner, flannels)
    }
}
