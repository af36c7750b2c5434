//! What the kernel of one place says: its links, addresses, neighbours, forwarding tables, sysctls; and its routes, on asking.
//!
//! Surface: [`Site`]. Read by netlink requests and from `/proc`, changed never.

use std::fs;
use std::net::IpAddr;

use flannel_core::addr::{Family, Mac};
use flannel_kernel::netlink::neigh::{BridgePort, Entry};
use flannel_kernel::netlink::route::{Question, Report as Route};
use flannel_kernel::netlink::{Error, Request, Socket, address, link, neigh, route};
use ipnet::IpNet;

use super::words;
use crate::error::LabError;
use crate::place::Place;
use crate::wire::open;

/// A place with its tables as they were when it was last looked at.
#[derive(Debug)]
pub(super) struct Site {
    /// The place.
    pub(super) place: Place,
    /// Its links.
    pub(super) links: Vec<link::Report>,
    addresses: Vec<address::Report>,
    neighs: Vec<neigh::Report>,
    ports: Vec<BridgePort>,
    socket: Socket,
}

/// What the routing tables say of a packet.
#[derive(Debug, Clone)]
pub(super) struct Routed {
    /// The way.
    pub(super) route: Route,
    /// The answer, as `ip route get` prints it.
    pub(super) text: String,
    /// The entry that decides: its destination, and all of it as `ip route show` prints it.
    pub(super) entry: Option<(IpNet, String)>,
}

impl Site {
    /// Reads a place's tables.
    pub(super) fn read(place: &Place) -> Result<Self, LabError> {
        let mut socket = open(place)?;
        let failed = |error: Error| LabError::Kernel {
            action: format!("read the network tables of {}", place.name()),
            cause: error.to_string(),
        };
        let links = socket.dump(&link::list(), link::Report::read).map_err(failed)?;
        let (mut addresses, mut neighs, mut ports) = (Vec::new(), Vec::new(), Vec::new());
        for family in Family::ALL {
            addresses.extend(socket.dump(&address::list(family, None), address::Report::read).map_err(failed)?);
        }
        for link in &links {
            let reads = Family::ALL.map(|family| neigh::list(family, link.index));
            for request in reads.iter().chain(&[neigh::list_forwarding(link.index)]) {
                let found = socket.dump(request, neigh::Report::read).map_err(failed)?;
                neighs.extend(found.into_iter().filter(|report| report.index == link.index));
            }
            if &*link.kind == "bridge" {
                ports.extend(socket.dump(&neigh::list_bridge(link.index), BridgePort::read).map_err(failed)?);
            }
        }
        Ok(Self { place: place.clone(), links, addresses, neighs, ports, socket })
    }

    /// Its name.
    pub(super) fn name(&self) -> &str {
        self.place.name()
    }

    /// A link by its index.
    pub(super) fn link(&self, index: u32) -> Option<&link::Report> {
        self.links.iter().find(|link| link.index == index)
    }

    /// A link by its name.
    pub(super) fn named(&self, name: &str) -> Option<&link::Report> {
        self.links.iter().find(|link| link.name.as_str() == name)
    }

    /// The name of a link.
    pub(super) fn device(&self, index: u32) -> &str {
        self.link(index).map_or("", |link| link.name.as_str())
    }

    /// The VXLAN devices.
    pub(super) fn vxlans(&self) -> impl Iterator<Item = (&link::Report, &flannel_core::state::Vxlan)> {
        self.links.iter().filter_map(|link| Some((link, &link.vxlan.as_ref()?.0)))
    }

    /// The link that has an address.
    pub(super) fn owner(&self, address: IpAddr) -> Option<&link::Report> {
        let own = self.addresses.iter().find(|report| report.net.addr() == address)?;
        self.link(own.index)
    }

    /// The addresses on a link, of global scope.
    pub(super) fn addresses_of(&self, index: u32) -> impl Iterator<Item = IpAddr> {
        let own = self.addresses.iter().filter(move |report| report.index == index && report.is_global());
        own.map(|report| report.net.addr())
    }

    /// The link that has a MAC.
    pub(super) fn with_mac(&self, mac: Mac) -> Option<&link::Report> {
        self.links.iter().find(|link| link.mac == Some(mac))
    }

    /// The neighbour entry of an address on a link.
    pub(super) fn neigh(&self, index: u32, address: IpAddr) -> Option<&neigh::Report> {
        let is = |report: &&neigh::Report| matches!(report.entry, Entry::Neighbour(found, _) if found == address);
        self.neighs.iter().filter(|report| report.index == index).find(is)
    }

    /// The neighbours that were learned: link and address.
    pub(super) fn learned(&self) -> impl Iterator<Item = (u32, IpAddr)> {
        self.neighs.iter().filter(|report| !report.is_permanent()).filter_map(|report| match report.entry {
            Entry::Neighbour(address, _) => Some((report.index, address)),
            Entry::Forwarding(..) => None,
        })
    }

    /// Sends requests, whatever becomes of each: what is to be removed may be gone.
    pub(super) fn tell(&mut self, requests: &[Request]) -> Result<(), LabError> {
        for request in requests {
            match self.socket.tell(request) {
                Err(error) if !error.is_absent() => {
                    let action = format!("change the neighbour table of {}", self.name());
                    return Err(LabError::Kernel { action, cause: error.to_string() });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// A VXLAN device's forwarding entry for a MAC.
    pub(super) fn forwarding(&self, index: u32, mac: Mac) -> Option<&neigh::Report> {
        let is = |report: &&neigh::Report| matches!(report.entry, Entry::Forwarding(found, _) if found == mac);
        self.neighs.iter().filter(|report| report.index == index).find(is)
    }

    /// A bridge's forwarding entry for a MAC.
    pub(super) fn port(&self, bridge: u32, mac: Mac) -> Option<BridgePort> {
        let of_bridge = |index: u32| index == bridge || self.link(index).is_some_and(|l| l.master == Some(bridge));
        let found = self.ports.iter().filter(|port| port.mac == mac && of_bridge(port.index));
        found.copied().max_by_key(|port| port.local)
    }

    /// Asks the routing tables about a packet. The inner error is the kernel's refusal: there is no way, or one that refuses.
    pub(super) fn route(&mut self, asked: Question) -> Result<Result<Routed, Error>, LabError> {
        let found = match self.socket.ask(&route::question(asked), Route::read) {
            Ok(found) => found,
            Err(error) => return Ok(Err(error)),
        };
        let Some(route) = found.into_iter().next() else {
            return Err(LabError::Control("the kernel answers a route question with no route"));
        };
        let input = asked.input.map(|index| self.device(index).to_owned());
        let text = words::answer(asked.to, asked.from, input.as_deref(), &route, self.out(&route));
        let entry = self.entry(asked);
        Ok(Ok(Routed { route, text, entry }))
    }

    /// The entry that answers a question, where the kernel tells.
    fn entry(&mut self, asked: Question) -> Option<(IpNet, String)> {
        let found = self.socket.ask(&route::question(Question { entry: true, ..asked }), Route::read).ok()?;
        let route = found.into_iter().next()?;
        Some((route.destination, words::entry(&route, self.out(&route))))
    }

    /// The best entry of the main table for an address.
    fn best(&mut self, to: IpAddr) -> Result<Option<Route>, LabError> {
        let all = self.socket.dump(&route::list(Family::of(to), route::Filter::default()), Route::read);
        let all = all.map_err(|error| LabError::Kernel {
            action: format!("list the routes of {}", self.name()),
            cause: error.to_string(),
        })?;
        let covering = all.into_iter().filter(|route| route.is_main() && route.destination.contains(&to));
        Ok(covering.max_by_key(|route| (route.destination.prefix_len(), std::cmp::Reverse(route.metric))))
    }

    /// The best entry of the main table for an address, if it refuses packets.
    pub(super) fn refusal(&mut self, to: IpAddr) -> Result<Option<String>, LabError> {
        let refuses = |route: &Route| route.hops.is_empty() || words::kind(route).is_some();
        Ok(self.best(to)?.filter(refuses).map(|route| words::entry(&route, "")))
    }

    /// The best entry of the main table for an address, if it could be used: its device runs.
    pub(super) fn unused(&mut self, to: IpAddr) -> Result<Option<String>, LabError> {
        let Some(best) = self.best(to)?.filter(|route| words::kind(route).is_none()) else { return Ok(None) };
        let runs = best.hops.first().and_then(|hop| self.link(hop.index)).is_some_and(link::Report::is_running);
        Ok(runs.then(|| words::entry(&best, self.out(&best))))
    }

    fn out(&self, route: &Route) -> &str {
        route.hops.first().map_or("", |hop| self.device(hop.index))
    }

    /// The sysctl that keeps addresses of a family from a link, if it does.
    pub(super) fn disabled(&self, device: &str, family: Family) -> Option<String> {
        let sysctl = match family {
            Family::V4 => None,
            Family::V6 => Some(format!("net/ipv6/conf/{device}/disable_ipv6")),
        };
        sysctl.filter(|sysctl| self.sysctl(sysctl).ok().flatten() == Some(1))
    }

    /// The sysctl that keeps a link from answering for its addresses, if it does: of everybody and of the link the greater value
    /// counts, and 8 is silence (ip-sysctl).
    pub(super) fn mute(&self, device: &str, family: Family) -> Option<String> {
        let scopes: &[&str] = match family {
            Family::V4 => &["all", device],
            Family::V6 => &[],
        };
        let mut sysctls = scopes.iter().map(|scope| format!("net/ipv4/conf/{scope}/arp_ignore"));
        sysctls.find(|sysctl| self.sysctl(sysctl).ok().flatten() == Some(8))
    }

    /// A sysctl by its path below `/proc/sys`, as a number.
    pub(super) fn sysctl(&self, path: &str) -> Result<Option<i64>, LabError> {
        let text = self.place.inside(|| fs::read_to_string(format!("/proc/sys/{path}")))?;
        Ok(text.ok().and_then(|text| text.trim().parse().ok()))
    }
}
