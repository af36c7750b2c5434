//! The way that the tables of the places give a packet: from place to place, until it arrives or something stops it.
//!
//! Surface: [`Trail::of`], which follows a [`Cargo`] over a [`Terrain`] as the kernel would, one decision after another. What
//! really passed is not looked at here: that is laid over the trail in [`super::explain`]. This file has cables, bridges
//! and tunnels; routing is in [`super::routing`].

use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_core::rules::evaluate::Hook;
use flannel_kernel::netlink::link;
use flannel_kernel::netlink::neigh::Entry;

use super::obstacle::Obstacle;
use super::story::{Direction, Point, Step};
use super::terrain::{At, Role, Terrain};
use super::words;
use crate::error::LabError;
use crate::layout::BRIDGE;

/// A packet under way.
#[derive(Debug, Clone)]
pub(super) struct Cargo {
    /// Its source; none where the routing tables still choose.
    pub(super) source: Option<IpAddr>,
    /// Its destination.
    pub(super) destination: IpAddr,
    /// Bytes from the IP header on.
    pub(super) length: usize,
    /// The packet inside, of a tunnel's.
    pub(super) inner: Option<Box<Inner>>,
}

/// What a tunnel's packet carries.
#[derive(Debug, Clone)]
pub(super) struct Inner {
    /// The packet.
    pub(super) cargo: Cargo,
    /// The MAC its frame is addressed to.
    mac: Mac,
    vni: u32,
    port: u16,
    /// The place and text of the neighbour entry that gave the MAC.
    neigh: Option<(String, String)>,
}

/// A source address that was translated on the way there, so that the other way translates it back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Translation {
    /// Where.
    pub(super) at: At,
    /// The address before.
    pub(super) before: IpAddr,
    /// The address after.
    pub(super) after: IpAddr,
}

/// Where in a place's course the packet rules are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// As it comes in: the hook prerouting.
    Entry,
    /// Once it is known where it goes: the hooks input, forward, output and postrouting.
    Course,
}

/// A part of the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Leg {
    /// A decision.
    Step(Step),
    /// It passes a device.
    Pass {
        /// The capture point.
        point: Point,
        /// A port of the lab's switch.
        wire: bool,
    },
    /// It meets the packet rules of a place.
    Rules {
        /// The place.
        at: At,
        /// As what.
        meets: Meets,
    },
}

/// A packet as packet rules meet it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Meets {
    /// Where in its course through the place.
    pub(super) stage: Stage,
    /// At which hooks.
    pub(super) hooks: &'static [Hook],
    /// It is a tunnel's packet.
    pub(super) wrapped: bool,
    /// Its source, if it is known yet.
    pub(super) source: Option<IpAddr>,
    /// Its destination.
    pub(super) destination: IpAddr,
    /// The device that it came in by.
    pub(super) input: Option<String>,
    /// The device that it goes out by.
    pub(super) output: Option<String>,
}

/// The whole way.
#[derive(Debug)]
pub(super) struct Trail {
    /// Its parts in order.
    pub(super) legs: Vec<Leg>,
    /// What stops it; none if it arrives.
    pub(super) obstacle: Option<Obstacle>,
    /// The address that somebody asked for by ARP or ND in vain, and where its owner, who is up, would hear the question.
    pub(super) asked: Option<(IpAddr, Point)>,
    /// The last place it reached.
    pub(super) end: At,
}

/// What comes next.
pub(super) enum Next {
    /// Routing, for a packet that came in by a link, or was made here.
    Route(At, Option<u32>, Cargo),
    /// A frame leaves by a link.
    Leave(At, u32, Mac, Cargo),
    /// A frame comes out of a cable.
    Arrive(At, u32, Mac, Cargo),
    /// A frame was taken in by a link of the place.
    Up(At, u32, Mac, Cargo),
}

/// Why the following ends.
pub(super) enum Halt {
    /// It is there.
    Arrived,
    /// It cannot go on.
    Stopped(Box<Obstacle>),
    /// The kernel could not be asked.
    Failed(LabError),
}

impl From<LabError> for Halt {
    fn from(error: LabError) -> Self {
        Self::Failed(error)
    }
}

impl From<Obstacle> for Halt {
    fn from(obstacle: Obstacle) -> Self {
        Self::Stopped(Box::new(obstacle))
    }
}

/// How many decisions a way may have; more is a circle.
const LONGEST: usize = 200;

/// Follows one packet.
pub(super) struct Walker<'a> {
    pub(super) terrain: &'a mut Terrain,
    /// Where it is to arrive.
    pub(super) goal: At,
    /// Translations that happened on the way there, and, on the way back, are undone.
    pub(super) translations: &'a [Translation],
    /// It is the way back.
    pub(super) back: bool,
    /// The sender's kernel did not let it out.
    pub(super) kept: bool,
    pub(super) legs: Vec<Leg>,
    /// A decision that looks wrong, and explains what goes wrong later.
    pub(super) suspect: Option<Obstacle>,
    /// The place and text of the last neighbour entry.
    pub(super) neigh: Option<(String, String)>,
    /// See [`Trail::asked`].
    pub(super) asked: Option<(IpAddr, Point)>,
}

impl Trail {
    /// Follows a packet that is made at a site.
    pub(super) fn of(mut walker: Walker<'_>, start: At, cargo: Cargo) -> Result<Self, LabError> {
        let mut next = Next::Route(start, None, cargo);
        for _ in 0..LONGEST {
            let end = next.at();
            let halt = match walker.step(next) {
                Ok(on) => {
                    next = on;
                    continue;
                }
                Err(halt) => halt,
            };
            let obstacle = match halt {
                Halt::Arrived => None,
                Halt::Failed(error) => return Err(error),
                Halt::Stopped(obstacle) => Some(obstacle.explained_by(walker.suspect.take())),
            };
            return Ok(Self { legs: walker.legs, obstacle, asked: walker.asked, end });
        }
        let end = next.at();
        let obstacle = Some(Obstacle::circle(walker.terrain.name(end)));
        Ok(Self { legs: walker.legs, obstacle, asked: None, end })
    }
}

impl Next {
    fn at(&self) -> At {
        match self {
            Self::Route(at, ..) | Self::Leave(at, ..) | Self::Arrive(at, ..) | Self::Up(at, ..) => *at,
        }
    }
}

impl<'a> Walker<'a> {
    /// For a packet on its way to a site, or back to it.
    pub(super) fn new(terrain: &'a mut Terrain, goal: At, translations: &'a [Translation], back: bool) -> Self {
        Self {
            terrain,
            goal,
            translations,
            back,
            kept: false,
            legs: Vec::new(),
            suspect: None,
            neigh: None,
            asked: None,
        }
    }

    fn step(&mut self, next: Next) -> Result<Next, Halt> {
        match next {
            Next::Route(at, input, cargo) => self.route(at, input, cargo),
            Next::Leave(at, link, mac, cargo) => self.leave(at, link, mac, cargo),
            Next::Arrive(at, link, mac, cargo) => self.arrive(at, link, mac, cargo),
            Next::Up(at, link, mac, cargo) => self.up(at, link, mac, cargo),
        }
    }

    pub(super) fn place(&self, at: At) -> String {
        self.terrain.name(at).to_owned()
    }

    /// A link that a table just named.
    pub(super) fn link(&self, at: At, index: u32) -> Result<link::Report, Halt> {
        let found = self.terrain.sites[at].link(index).cloned();
        found.ok_or_else(|| LabError::Control("a link went away while the walk looked at it").into())
    }

    pub(super) fn decide(&mut self, step: Step) {
        self.legs.push(Leg::Step(step));
    }

    /// The packet meets the rules of a place at these hooks.
    pub(super) fn rules(
        &mut self,
        at: At,
        hooks: &'static [Hook],
        cargo: &Cargo,
        (input, output): (Option<u32>, Option<u32>),
    ) {
        let device = |index: Option<u32>| index.map(|index| self.terrain.sites[at].device(index).to_owned());
        let stage = if hooks == [Hook::Prerouting] { Stage::Entry } else { Stage::Course };
        let (input, output) = (device(input), device(output));
        let (source, destination) = (cargo.source, cargo.destination);
        let meets = Meets { stage, hooks, wrapped: cargo.inner.is_some(), source, destination, input, output };
        self.legs.push(Leg::Rules { at, meets });
    }

    pub(super) fn pass(&mut self, at: At, link: &link::Report, direction: Direction) {
        let point = Point { place: self.place(at), device: link.name.as_str().to_owned(), direction };
        let wire = self.terrain.role(at) == Role::Router && link.bridge_port;
        self.legs.push(Leg::Pass { point, wire });
    }

    /// By the kind of the device: through a bridge, into a tunnel, or into the cable.
    fn leave(&mut self, at: At, index: u32, mac: Mac, cargo: Cargo) -> Result<Next, Halt> {
        let link = self.link(at, index)?;
        self.pass(at, &link, Direction::Out);
        match &*link.kind {
            "bridge" => self.switch(at, &link, None, mac, cargo),
            "vxlan" => self.wrap(at, &link, mac, cargo),
            _ => self.cross(at, &link, mac, cargo),
        }
    }

    /// Through a cable. The far device takes frames of its MTU and a VLAN tag (`is_skb_forwardable` of the kernel).
    fn cross(&mut self, at: At, link: &link::Report, mac: Mac, cargo: Cargo) -> Result<Next, Halt> {
        const TAG: usize = 4;
        let (place, device) = (self.place(at), link.name.as_str());
        if !link.is_up() {
            return Err(Obstacle::down(&place, device, self.flannels(at, link)).into());
        }
        let Some((there, other)) = self.terrain.peer(at, link) else {
            return Err(Obstacle::cut(&place, device).into());
        };
        let far = self.link(there, other)?;
        if !far.is_up() {
            return Err(Obstacle::down(self.terrain.name(there), far.name.as_str(), None).into());
        }
        if cargo.length > far.mtu.0 as usize + TAG {
            return Err(Obstacle::refused_as_too_big(self.terrain.name(there), &far, cargo.length).into());
        }
        Ok(Next::Arrive(there, other, mac, cargo))
    }

    /// Out of a cable: into the bridge that the device is a port of, or into the place.
    fn arrive(&mut self, at: At, index: u32, mac: Mac, cargo: Cargo) -> Result<Next, Halt> {
        let link = self.link(at, index)?;
        self.pass(at, &link, Direction::In);
        let Some(bridge) = link.master else {
            let unplugged = self.unplugged(at, &link).filter(|_| link.mac != Some(mac));
            return unplugged.map_or(Ok(Next::Up(at, index, mac, cargo)), |obstacle| Err(obstacle.into()));
        };
        let bridge = self.link(at, bridge)?;
        if link.blocked {
            return Err(Obstacle::blocked(self.terrain.name(at), &link).into());
        }
        if !bridge.is_up() {
            return Err(Obstacle::down(self.terrain.name(at), bridge.name.as_str(), None).into());
        }
        if self.terrain.sites[at].port(bridge.index, mac).is_some_and(|port| port.local) {
            self.pass(at, &bridge, Direction::In);
            return Ok(Next::Up(at, bridge.index, mac, cargo));
        }
        // br_netfilter shows the rules of IP what a bridge passes on.
        let through = Some(bridge.index);
        self.rules(at, &[Hook::Prerouting], &cargo, (through, None));
        self.rules(at, &[Hook::Forward, Hook::Postrouting], &cargo, (through, through));
        self.switch(at, &bridge, Some(&link), mac, cargo)
    }

    /// A bridge finds the port for a MAC that came in by one, or from the place itself. What it does not know it sends out by all
    /// of them, so that the right one gets it too.
    fn switch(
        &mut self,
        at: At,
        bridge: &link::Report,
        from: Option<&link::Report>,
        mac: Mac,
        cargo: Cargo,
    ) -> Result<Next, Halt> {
        let site = &self.terrain.sites[at];
        let (name, place) = (bridge.name.as_str(), site.name().to_owned());
        let known = site.port(bridge.index, mac).filter(|port| !port.local).map(|port| port.index);
        let text = match known {
            Some(port) => words::bridge_entry(mac, site.device(port), name, false),
            None => format!("{mac} is not known to {name}: out by all its ports"),
        };
        let port = known.or_else(|| self.port_to(at, bridge.index, mac));
        self.decide(Step::Fdb { place, text });
        let port = port.ok_or_else(|| self.off(at, mac).unwrap_or_else(|| self.nobodys(at, mac, None)))?;
        let link = self.link(at, port)?;
        if !link.is_running() {
            return Err(self.dead_port(at, &link).into());
        }
        if let Some(obstacle) = self.shut(at, from, &link) {
            return Err(obstacle.into());
        }
        self.pass(at, &link, Direction::Out);
        self.cross(at, &link, mac, cargo)
    }

    /// A link that is down, or whose other end is: a bridge sends nothing out by such a port.
    pub(super) fn dead_port(&self, at: At, link: &link::Report) -> Obstacle {
        let far = self.terrain.peer(at, link).filter(|_| link.is_up());
        let (there, device) = match far.and_then(|(there, far)| Some((there, self.terrain.sites[there].link(far)?))) {
            Some((there, far)) => (there, far.name.as_str()),
            None => (at, link.name.as_str()),
        };
        let missing = Point { place: self.place(at), device: link.name.as_str().to_owned(), direction: Direction::Out };
        Obstacle { missing: Some(missing), ..Obstacle::down(self.terrain.name(there), device, None) }
    }

    /// What keeps a bridge from sending out by a port that is up, if something does.
    fn shut(&self, at: At, from: Option<&link::Report>, to: &link::Report) -> Option<Obstacle> {
        let place = self.terrain.name(at);
        let isolated = from.filter(|from| from.isolated && to.isolated);
        let shut = match isolated {
            _ if to.blocked => Obstacle::blocked(place, to),
            Some(from) => Obstacle::isolated(place, from, to),
            None => return None,
        };
        let missing = Point { place: place.to_owned(), device: to.name.as_str().to_owned(), direction: Direction::Out };
        Some(Obstacle { missing: Some(missing), ..shut })
    }

    /// The near end of a cable to a pod or a node, if it is no port of a bridge.
    fn unplugged(&self, at: At, link: &link::Report) -> Option<Obstacle> {
        let bridge = match (self.terrain.role(at), self.terrain.role(self.terrain.peer(at, link)?.0)) {
            (Role::Node, Role::Pod(_)) => BRIDGE,
            (Role::Router, Role::Node) => "its segment",
            _ => return None,
        };
        link.master.is_none().then(|| Obstacle::unplugged(self.terrain.name(at), link, bridge))
    }

    /// The near end of the cable to the owner of a MAC, which no port of the site's bridges leads to.
    fn off(&self, at: At, mac: Mac) -> Option<Obstacle> {
        let (owner, link) = self.terrain.with_mac(mac)?;
        let (there, port) = self.terrain.peer(owner, link).filter(|(there, _)| *there == at)?;
        self.unplugged(there, self.terrain.sites[there].link(port)?)
    }

    /// What lies between two links that should be on one bridge, or be one and a port of it, so that questions for
    /// neighbours do not pass.
    pub(super) fn between(&self, from: (At, &link::Report), to: (At, &link::Report)) -> Option<Obstacle> {
        let ports = [from, to].map(|(at, link)| {
            let (there, port) = self.terrain.peer(at, link).filter(|_| &*link.kind != "bridge")?;
            Some((there, self.terrain.sites[there].link(port)?))
        });
        let bad = |(at, port): (At, &link::Report)| self.unplugged(at, port).or_else(|| self.shut(at, None, port));
        let missing = |obstacle| Obstacle { missing: None, ..obstacle };
        ports.into_iter().flatten().find_map(bad).map(missing).or_else(|| {
            let [Some((at, from)), Some((there, to))] = ports else { return None };
            self.shut(at, Some(from), to).filter(|_| at == there).map(missing)
        })
    }

    /// The port of a bridge at whose other end a MAC is.
    fn port_to(&self, at: At, bridge: u32, mac: Mac) -> Option<u32> {
        let ports = self.terrain.sites[at].links.iter().filter(|link| link.master == Some(bridge));
        let mut with = ports.filter(|link| {
            let far = self.terrain.peer(at, link).and_then(|(there, index)| self.terrain.sites[there].link(index));
            far.is_some_and(|far| far.mac == Some(mac))
        });
        with.next().map(|link| link.index)
    }

    /// The frame is addressed to a MAC that its receiver, a link of the site or all of it, does not have.
    pub(super) fn nobodys(&self, at: At, mac: Mac, receiver: Option<&link::Report>) -> Obstacle {
        let (from, entry) = self.neigh.clone().unwrap_or_else(|| (self.place(at), mac.to_string()));
        let owner = self.terrain.with_mac(mac).map(|(at, _)| self.terrain.name(at));
        let receiver = receiver.map(|link| (self.terrain.name(at), link));
        Obstacle::wrong_neighbour((&from, &entry), mac, owner, receiver)
    }

    /// Into a VXLAN tunnel: the forwarding entry of the MAC says to which VTEP.
    fn wrap(&mut self, at: At, link: &link::Report, mac: Mac, cargo: Cargo) -> Result<Next, Halt> {
        let (place, device) = (self.place(at), link.name.as_str());
        let Some((vxlan, _)) = &link.vxlan else {
            return Err(LabError::Control("a VXLAN device whose attributes cannot be read").into());
        };
        let found = self.terrain.sites[at].forwarding(link.index, mac).copied();
        let Some(entry) = found.filter(|entry| matches!(entry.entry, Entry::Forwarding(_, Some(_)))) else {
            return Err(Obstacle::no_forwarding(&place, device, mac).into());
        };
        let Entry::Forwarding(_, Some(vtep)) = entry.entry else { unreachable!("filtered") };
        self.decide(Step::Fdb { place: place.clone(), text: words::neigh(&entry, device) });
        self.suspect = self.mistaken(at, link, mac, vtep).or(self.suspect.take());
        let length = cargo.length + overhead(Family::of(vtep));
        let neigh = self.neigh.clone();
        let inner = Inner { cargo, mac, vni: vxlan.vni.id(), port: vxlan.port, neigh };
        let outer = Cargo { source: vxlan.local, destination: vtep, length, inner: Some(Box::new(inner)) };
        Ok(Next::Route(at, None, outer))
    }

    /// What is wrong with the ends of a tunnel: an address that a node has no more, or an entry that leads elsewhere.
    fn mistaken(&self, at: At, link: &link::Report, mac: Mac, vtep: IpAddr) -> Option<Obstacle> {
        let far = self.terrain.with_mac(mac);
        let wrong = || {
            let home = far?.0;
            let right = self.terrain.external(home, vtep).filter(|right| *right != vtep)?;
            let (place, home) = (self.terrain.name(at), self.terrain.name(home));
            Some(Obstacle::wrong_forwarding(place, link.name.as_str(), mac, vtep, (home, right)))
        };
        let moved = [(at, link)].into_iter().chain(far).find_map(|(end, device)| self.moved(end, device));
        moved.or_else(wrong)
    }

    /// A VXLAN device that sends from an address which its node has exchanged for another.
    fn moved(&self, at: At, link: &link::Report) -> Option<Obstacle> {
        let local = link.vxlan.as_ref()?.0.local?;
        let now = self.terrain.external(at, local)?;
        let site = &self.terrain.sites[at];
        site.owner(local).is_none().then(|| Obstacle::moved(site.name(), link.name.as_str(), local, now))
    }

    /// Out of a tunnel: the VXLAN device of the outer family with the packet's VNI and port takes it.
    pub(super) fn unwrap(&mut self, at: At, outer: Family, inner: Inner) -> Result<Next, Halt> {
        let (place, Inner { cargo, mac, vni, port, neigh }) = (self.place(at), inner);
        self.neigh = neigh;
        let all = self.terrain.sites[at].vxlans();
        let ends: Vec<_> = all.filter(|(_, vxlan)| vxlan.local.map(Family::of) == Some(outer)).collect();
        let Some((link, _)) = ends.iter().find(|(_, vxlan)| vxlan.vni.id() == vni && vxlan.port == port) else {
            return Err(Obstacle::no_tunnel_end(&place, (vni, port), ends.first().copied(), outer).into());
        };
        let link = (*link).clone();
        if !link.is_up() {
            return Err(Obstacle::down(&place, link.name.as_str(), self.flannels(at, &link)).into());
        }
        self.pass(at, &link, Direction::In);
        Ok(Next::Up(at, link.index, mac, cargo))
    }

    /// The node whose flanneld a link belongs to, if it is flannel's.
    pub(super) fn flannels(&self, at: At, link: &link::Report) -> Option<String> {
        (self.terrain.role(at) == Role::Node && link.name.as_str().starts_with("flannel")).then(|| self.place(at))
    }

    /// Undoes a translation that the packet met on the way there, if it is on its way back here.
    pub(super) fn translate_back(&mut self, at: At, cargo: &mut Cargo) -> bool {
        let undone = |t: &&Translation| self.back && t.at == at && t.after == cargo.destination;
        let Some(translation) = self.translations.iter().find(undone).copied() else { return false };
        cargo.destination = translation.before;
        let place = self.place(at);
        let (before, after) = (translation.after, translation.before);
        self.decide(Step::Nat { place, end: "destination".into(), before, after });
        true
    }
}

/// What VXLAN puts before a packet: Ethernet (14), VXLAN (8), UDP (8) and IP (RFC 7348 §5).
fn overhead(outer: Family) -> usize {
    30 + match outer {
        Family::V4 => 20,
        Family::V6 => 40,
    }
}
