//! Taking in what the kernel tells: from notices to changes of `have`, and to the question whether the underlay changed.
//!
//! Notices come in order, and applying them in order to any state read since the first of them ends in the kernel's state; so
//! the executor's own echoes need no recognising. Three things break the rule, and are read again once the queue is
//! empty: IPv4 routes and nexthop objects vanish silently with their link, their link's `up` and its last IPv4 address;
//! entries under one key can hide each other; and a full queue loses notices.

use std::collections::BTreeSet;

use flannel_core::addr::Family;
use flannel_core::diff::Change;
use flannel_core::state::{Key, Route, Scope, State, Value, lives_on};

use super::{KernelExecutor, RULE_SYSTEMS};
use crate::executor::{Executor, Noticed, ObserveError};
use crate::facts::unreadable;
use crate::links::Seen;
use crate::netlink::route::Filter;
use crate::netlink::{Message, address, link, neigh, nexthop, route};
use crate::nexthops::Nexthops;
use crate::reading::{read_address, read_neigh, read_route, route_key};

/// What the executor listens to (`RTNLGRP_*`).
pub(super) const GROUPS: [u32; 7] = [
    libc::RTNLGRP_LINK,
    libc::RTNLGRP_NEIGH,
    libc::RTNLGRP_IPV4_IFADDR,
    libc::RTNLGRP_IPV4_ROUTE,
    libc::RTNLGRP_IPV6_IFADDR,
    libc::RTNLGRP_IPV6_ROUTE,
    libc::RTNLGRP_NEXTHOP,
];

/// A thing that happened.
#[derive(Debug)]
pub(super) enum Event {
    Link(link::Report),
    LinkGone(link::Report),
    Address(address::Report),
    AddressGone(address::Report),
    Neigh(neigh::Report),
    NeighGone(neigh::Report),
    Route {
        report: route::Report,
        replaces: bool,
    },
    RouteGone(route::Report),
    Nexthop(nexthop::Report),
    /// The kernel acknowledged a change of ours. Told before the echoes, because it may have changed nothing and have none.
    Done(Change),
}

impl Event {
    fn read(message: Message<'_>) -> Option<Self> {
        let replaces = message.flags & libc::NLM_F_REPLACE as u16 != 0;
        Some(match message.kind {
            libc::RTM_NEWLINK => Self::Link(link::Report::read(message)?),
            libc::RTM_DELLINK => Self::LinkGone(link::Report::read(message)?),
            libc::RTM_NEWADDR => Self::Address(address::Report::read(message)?),
            libc::RTM_DELADDR => Self::AddressGone(address::Report::read(message)?),
            libc::RTM_NEWNEIGH => Self::Neigh(neigh::Report::read(message)?),
            libc::RTM_DELNEIGH => Self::NeighGone(neigh::Report::read(message)?),
            libc::RTM_NEWROUTE => Self::Route { report: route::Report::read(message)?, replaces },
            libc::RTM_DELROUTE => Self::RouteGone(route::Report::read(message)?),
            _ => Self::Nexthop(nexthop::Report::read(message)?),
        })
    }
}

/// Parts of `have` that must be read again.
#[derive(Debug, Default)]
struct Doubts {
    /// Routes through these links.
    routes: BTreeSet<u32>,
    /// Forwarding entries of these links.
    forwarding: BTreeSet<u32>,
    /// All of it.
    everything: bool,
}

impl KernelExecutor {
    /// Takes notices from the socket into memory, so that its queue cannot overflow.
    pub(super) fn drain(&mut self) -> Result<(), ObserveError> {
        loop {
            match self.notices.drain(|message| self.pending.extend(Event::read(message))) {
                Ok(()) => return Ok(()),
                Err(error) if error.is_overrun() => self.overrun = true,
                Err(error) => return Err(unreadable("notices")(error)),
            }
        }
    }

    /// Throws away all notices: everything is about to be read.
    pub(super) fn forget_notices(&mut self) {
        while self.notices.drain(|_| ()).is_err_and(|error| error.is_overrun()) {}
        self.pending.clear();
        self.overrun = false;
        self.odd.clear();
    }

    /// Brings `have` up to date.
    pub(super) fn take_notices(&mut self, scope: &Scope, have: &mut State) -> Result<Noticed, ObserveError> {
        self.drain()?;
        let mut noticed = Noticed::default();
        let mut doubts = Doubts { everything: self.overrun, ..Doubts::default() };
        for event in std::mem::take(&mut self.pending) {
            noticed.underlay |= self.take_in(event, scope, have, &mut doubts);
        }
        // Which link a route of several next hops is on, its value does not say.
        let several = |(key, value): (&Key, &Value)| matches!((key, value), (Key::Route(..), Value::Other(_)));
        if doubts.everything || !doubts.routes.is_empty() && have.objects.iter().any(several) {
            noticed.underlay = true;
            have.objects.hold(self.observe(scope)?.objects);
        } else {
            self.settle(&doubts, scope, have)?;
        }
        noticed.ports = self.take_rule_notices(scope, have)?;
        Ok(noticed)
    }

    /// Tells whether rules of published ports may be gone.
    fn take_rule_notices(&mut self, scope: &Scope, have: &mut State) -> Result<bool, ObserveError> {
        let Some(rules) = &mut self.rules else { return Ok(false) };
        let changed =
            rules.changed().map_err(|error| ObserveError { what: "packet rules", cause: error.to_string() })?;
        let took_ports = rules.took_ports();
        if changed {
            self.read_rules(scope, &RULE_SYSTEMS, have);
        }
        Ok(took_ports)
    }

    /// Reads again what is in doubt.
    fn settle(&mut self, doubts: &Doubts, scope: &Scope, have: &mut State) -> Result<(), ObserveError> {
        if !doubts.routes.is_empty() {
            self.nexthops = Nexthops::read(&mut self.socket).map_err(unreadable("nexthop objects"))?;
        }
        for index in &doubts.routes {
            self.encoding.forget_link(*index);
            let Some(name) = self.links.name(*index) else { continue };
            have.objects.retain(|_, value| !matches!(value, Value::Route(route) if route.dev() == Some(name)));
            self.read_routes(scope, have, Filter { index: Some(*index), ..Filter::default() })?;
        }
        for index in &doubts.forwarding {
            let Some(name) = self.links.name(*index) else { continue };
            have.objects.retain(|key, _| !matches!(key, Key::Fdb(dev, _) if *dev == name));
            self.read_forwarding(have, *index)?;
        }
        Ok(())
    }

    /// Applies one event to `have`; answers whether it concerns the underlay.
    fn take_in(&mut self, event: Event, scope: &Scope, have: &mut State, doubts: &mut Doubts) -> bool {
        match event {
            Event::Link(report) => return self.link_seen(&report, scope, have, doubts),
            Event::LinkGone(report) => return self.link_gone(&report, scope, have),
            Event::Address(report) => match read_address(&report, &self.links) {
                Some((key, value)) => self.put(have, key, value, None),
                None => return self.is_underlay_address(&report, scope),
            },
            Event::AddressGone(report) => return self.address_gone(&report, scope, have, doubts),
            Event::Neigh(report) => self.neigh_seen(&report, have, doubts),
            Event::NeighGone(report) => {
                if let Some((key, _)) = read_neigh(&report, &self.links) {
                    self.neigh_gone(&report, &key, have, doubts);
                }
            }
            Event::Route { report, replaces } => return self.route_seen(&report, replaces, scope, have, doubts),
            Event::RouteGone(report) => return self.route_gone(&report, scope, have, doubts),
            Event::Nexthop(report) => self.nexthop_seen(&report, doubts),
            Event::Done(change) => self.done(change, have),
        }
        false
    }

    fn link_seen(&mut self, report: &link::Report, scope: &Scope, have: &mut State, doubts: &mut Doubts) -> bool {
        let before = self.links.note(report);
        let Some(seen) = self.links.at(report.index).cloned() else { return false };
        let renamed = before.as_ref().is_some_and(|before| before.name != seen.name);
        let rose_or_fell = before.as_ref().is_some_and(|before| before.up != seen.up);
        let matters = |seen: &Seen| seen.is_ours() || scope.externals.contains(&seen.name);
        // What is held names devices, those that routes and tunnels leave by too.
        doubts.everything |= renamed && (before.as_ref().is_some_and(matters) || matters(&seen));
        if rose_or_fell && matters(&seen) {
            doubts.routes.insert(seen.index);
        }
        match self.read_link(report) {
            Some((key, value)) => self.put(have, key, value, None),
            None => return before.as_ref() != Some(&seen) && counts(&seen, scope),
        }
        false
    }

    fn link_gone(&mut self, report: &link::Report, scope: &Scope, have: &mut State) -> bool {
        let seen = self.links.forget(report.index);
        self.encoding.forget_link(report.index);
        self.nexthops.forget_link(report.index);
        let Some(seen) = seen else { return false };
        if seen.is_ours() || scope.externals.contains(&seen.name) {
            have.remove_link(seen.name);
            self.odd.retain(|key, _| have.objects.contains_key(key));
        }
        !seen.is_ours() && counts(&seen, scope)
    }

    /// Before the first plan nothing was read, and any link may be the external interface.
    fn is_underlay_address(&self, report: &address::Report, scope: &Scope) -> bool {
        self.links
            .at(report.index)
            .is_none_or(|seen| !seen.is_ours() && (counts(seen, scope) || report.is_global() && !seen.is_pods()))
    }

    fn address_gone(&mut self, report: &address::Report, scope: &Scope, have: &mut State, doubts: &mut Doubts) -> bool {
        let Some(seen) = self.links.at(report.index).cloned() else { return true };
        let ours = seen.is_ours();
        if Family::of_net(report.net) == Family::V4 && (ours || scope.externals.contains(&seen.name)) {
            doubts.routes.insert(report.index);
        }
        if ours {
            self.take(have, &Key::Address(seen.name, report.net));
        }
        self.is_underlay_address(report, scope)
    }

    fn neigh_seen(&mut self, report: &neigh::Report, have: &mut State, doubts: &mut Doubts) {
        match read_neigh(report, &self.links) {
            Some((key @ Key::Fdb(..), Some(value))) => {
                // An appended destination is told like a replaced one; only these MACs can have several.
                let several = matches!(key, Key::Fdb(_, mac) if !mac.is_host());
                if several && have.objects.get(&key).is_some_and(|held| *held != value) {
                    doubts.forwarding.insert(report.index);
                }
                self.put(have, key, value, None);
            }
            Some((key, Some(value))) => self.put(have, key, value, None),
            Some((key, None)) => self.take(have, &key),
            None => {}
        }
    }

    fn neigh_gone(&mut self, report: &neigh::Report, key: &Key, have: &mut State, doubts: &mut Doubts) {
        if matches!(have.objects.get(key), Some(Value::Other(_))) {
            doubts.forwarding.insert(report.index);
        }
        self.take(have, key);
    }

    fn route_seen(
        &mut self,
        report: &route::Report,
        replaces: bool,
        scope: &Scope,
        have: &mut State,
        doubts: &mut Doubts,
    ) -> bool {
        let Some(key) = route_key(report) else { return false };
        let read = read_route(report, &self.links, &self.nexthops, scope);
        let held = have.objects.get(&key);
        let joins = !replaces && held.is_some_and(|held| read.as_ref().is_none_or(|(_, value)| value != held));
        if joins {
            self.doubt_route(&key, have, doubts);
            doubts.routes.extend(report.hops.first().map(|hop| hop.index).filter(|_| read.is_some()));
        }
        let ours = read.is_some();
        match read {
            Some((key, value)) => {
                self.note_route(report);
                let target = self.target_of(report);
                self.put(have, key, value, target);
            }
            None if replaces => self.take_route(have, &key, report),
            None => {}
        }
        !ours && self.is_underlay_route(report)
    }

    fn route_gone(&mut self, report: &route::Report, scope: &Scope, have: &mut State, doubts: &mut Doubts) -> bool {
        let Some(key) = route_key(report) else { return false };
        let read = read_route(report, &self.links, &self.nexthops, scope);
        let ours = read.is_some();
        match (read, have.objects.get(&key)) {
            (Some((_, value)), Some(held)) if *held == value => self.take_route(have, &key, report),
            (_, Some(_)) => self.doubt_route(&key, have, doubts),
            (_, None) => {}
        }
        !ours && self.is_underlay_route(report)
    }

    fn take_route(&mut self, have: &mut State, key: &Key, report: &route::Report) {
        self.encoding.forget(report.destination);
        self.take(have, key);
    }

    /// What is held under a route's key may not be what is in force.
    fn doubt_route(&mut self, key: &Key, have: &State, doubts: &mut Doubts) {
        match have.objects.get(key) {
            Some(Value::Route(Route::Unicast { dev, .. })) => {
                doubts.routes.extend(self.links.named(*dev).map(|seen| seen.index));
            }
            Some(_) => doubts.everything = true,
            None => {}
        }
    }

    fn is_underlay_route(&self, report: &route::Report) -> bool {
        let own = |index| self.links.at(index).is_some_and(Seen::is_ours);
        report.kind == libc::RTN_UNICAST && !report.is_link_local() && !report.hops.iter().any(|hop| own(hop.index))
    }

    fn nexthop_seen(&mut self, report: &nexthop::Report, doubts: &mut Doubts) {
        if report.gone && self.encoding.objects().contains(&report.id) {
            doubts.routes.extend(self.nexthops.hop(report.id).map(|hop| hop.index));
        }
        self.nexthops.note(report);
    }

    fn done(&mut self, change: Change, have: &mut State) {
        match change {
            Change::Set(key, value) => self.put(have, key, value, None),
            Change::Remove(Key::Link(name), _) => have.objects.retain(|key, value| !lives_on(key, value, name)),
            // The removal of a route names where it leads, and leaves another one in its place alone.
            Change::Remove(key @ Key::Route(..), value)
                if have.objects.get(&key).is_some_and(|held| *held != value) => {}
            Change::Remove(key, _) => self.take(have, &key),
        }
    }
}

/// Whether what happens to a link that is not ours is of interest: an external interface, or anything but the veths that
/// come and go with pods.
fn counts(seen: &Seen, scope: &Scope) -> bool {
    scope.externals.contains(&seen.name) || &*seen.kind != "veth"
}
