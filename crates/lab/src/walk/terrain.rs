//! The lab as a walk sees it: all places with their tables, how they are cabled, and who has which address and MAC.
//!
//! Surface: [`Terrain`]. Read once, after the ping.

use std::fs;
use std::net::IpAddr;

use flannel_core::addr::{Dual, Family, Mac};
use flannel_kernel::netlink::link;
use ipnet::IpNet;

use super::site::Site;
use crate::error::LabError;
use crate::lab::Lab;
use crate::layout::{BRIDGE, EXTERNAL, OUTSIDE, OUTSIDE_PORT, ROUTER};

/// The index of a site in a [`Terrain`].
pub(super) type At = usize;

/// What a site is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// A pod, on the node that is at this site.
    Pod(At),
    /// A node.
    Node,
    /// The router.
    Router,
    /// The host outside.
    Outside,
}

/// What frames come to without being routed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Segment {
    /// A bridge, by its index, and what is cabled to its ports.
    Bridge(At, u32),
    /// All VXLAN devices.
    Tunnel,
}

/// All sites.
#[derive(Debug)]
pub(super) struct Terrain {
    /// The sites; their roles and the addresses that they were given are in the same order.
    pub(super) sites: Vec<Site>,
    roles: Vec<Role>,
    given: Vec<Dual<IpAddr>>,
    /// The pod subnet and the state of the flanneld of each node.
    nodes: Vec<(At, Dual<IpNet>, Daemon)>,
    /// The networks that pods are in.
    pub(super) networks: Vec<IpNet>,
    /// The names that can be ends of a walk.
    pub(super) ends: Vec<String>,
    /// The names of flannel's tunnel devices, as far as any node has one.
    tunnels: Dual<String>,
}

/// What a node's flanneld does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Daemon {
    /// It runs.
    Running,
    /// It is halted by a signal (SIGSTOP).
    Halted,
    /// It does not run.
    Gone,
}

impl Terrain {
    /// Looks at the whole lab.
    pub(super) fn survey(lab: &Lab) -> Result<Self, LabError> {
        let mut terrain = Self {
            sites: Vec::new(),
            roles: Vec::new(),
            given: Vec::new(),
            nodes: Vec::new(),
            networks: crate::options::pod_networks(),
            ends: lab.pods().map(|(_, pod)| pod.name().to_owned()).collect(),
            tunnels: Dual::default(),
        };
        terrain.ends.extend(lab.nodes().iter().map(|node| node.place().name().to_owned()));
        terrain.ends.push(OUTSIDE.to_owned());
        for (node, seat) in lab.nodes().iter().zip(&lab.layout().nodes) {
            let external = node.external_addresses().unwrap_or_default();
            let given = Dual::from_fn(|family| {
                external.get(family).copied().or_else(|| seat.address.get(family).map(IpNet::addr))
            });
            let at = terrain.add(Site::read(node.place())?, Role::Node, given);
            terrain.nodes.push((at, node.subnets(), daemon(node.flanneld.pid())));
            for pod in node.pods() {
                terrain.add(Site::read(pod.place())?, Role::Pod(at), pod.addresses());
            }
        }
        terrain.add(Site::read(lab.place(ROUTER)?)?, Role::Router, Dual::default());
        terrain.add(Site::read(lab.outside())?, Role::Outside, lab.layout().outside.map(|_, net| net.addr()));
        terrain.tunnels = terrain.find_tunnels();
        Ok(terrain)
    }

    /// flannel's devices are called `flannel.VNI` and `flannel-v6.VNI` (compat §6).
    fn find_tunnels(&self) -> Dual<String> {
        let names = || self.sites.iter().flat_map(Site::vxlans).map(|(link, _)| link.name.as_str());
        let first = |start: &str| names().find(|name| name.starts_with(start)).map(str::to_owned);
        Dual { v4: first("flannel."), v6: first("flannel-v6.") }
    }

    /// The tunnel device that packets to an address of a pod on another node would take.
    pub(super) fn tunnel(&self, to: IpAddr) -> Option<&str> {
        self.tunnels.get(Family::of(to)).map(String::as_str)
    }

    fn add(&mut self, site: Site, role: Role, given: Dual<IpAddr>) -> At {
        self.sites.push(site);
        self.roles.push(role);
        self.given.push(given);
        self.sites.len() - 1
    }

    /// The site of a name.
    pub(super) fn named(&self, name: &str) -> Option<At> {
        self.sites.iter().position(|site| site.name() == name)
    }

    /// What a site is.
    pub(super) fn role(&self, at: At) -> Role {
        self.roles[at]
    }

    /// Its name.
    pub(super) fn name(&self, at: At) -> &str {
        self.sites[at].name()
    }

    /// The address that a site was given when it was made, whether or not it still has it.
    pub(super) fn given(&self, at: At, family: Family) -> Option<IpAddr> {
        self.given[at].get(family).copied()
    }

    /// What the flanneld of a node does; of no other site.
    pub(super) fn daemon(&self, place: &str) -> Option<Daemon> {
        self.nodes.iter().find(|(at, ..)| self.name(*at) == place).map(|(.., daemon)| *daemon)
    }

    /// The node whose pod subnet an address is in, or that has it itself.
    pub(super) fn home(&self, address: IpAddr) -> Option<At> {
        let leased = self.nodes.iter().find(|(_, subnets, _)| subnets.values().any(|net| net.contains(&address)));
        leased.map(|(at, ..)| *at).or_else(|| {
            let owner = self.who_has(address)?.0;
            Some(if let Role::Pod(node) = self.roles[owner] { node } else { owner })
        })
    }

    /// The pod subnet of a node's that an address is in.
    pub(super) fn subnet(&self, address: IpAddr) -> Option<IpNet> {
        let all = self.nodes.iter().flat_map(|(_, subnets, _)| subnets.values());
        all.copied().find(|net| net.contains(&address))
    }

    /// Whether an address is one of the pod networks'.
    pub(super) fn is_pods(&self, address: IpAddr) -> bool {
        self.networks.iter().any(|net| net.contains(&address))
    }

    /// The sites and links that have an address.
    pub(super) fn holders(&self, address: IpAddr) -> impl Iterator<Item = (At, &link::Report)> {
        self.sites.iter().enumerate().filter_map(move |(at, site)| Some((at, site.owner(address)?)))
    }

    /// The site and link that have an address; of several those that it was given to.
    pub(super) fn who_has(&self, address: IpAddr) -> Option<(At, &link::Report)> {
        let given = self.was_given(address).map(|(at, _)| at);
        self.holders(address).min_by_key(|(at, _)| Some(*at) != given)
    }

    /// The site that was given an address when it was made, and the link that it was put on: a node's bridge has the first of
    /// its subnet.
    pub(super) fn was_given(&self, address: IpAddr) -> Option<(At, &link::Report)> {
        let own = self.given.iter().position(|given| given.values().any(|own| *own == address));
        let first = |net: &IpNet| net.hosts().find(|host| *host != net.network());
        let gateway = |(at, subnets, _): &(At, Dual<IpNet>, Daemon)| {
            subnets.values().any(|net| first(net) == Some(address)).then_some((*at, BRIDGE))
        };
        let (at, device) = own.map(|at| (at, EXTERNAL)).or_else(|| self.nodes.iter().find_map(gateway))?;
        Some((at, self.sites[at].named(device)?))
    }

    /// The site and link that have a MAC.
    pub(super) fn with_mac(&self, mac: Mac) -> Option<(At, &link::Report)> {
        self.sites.iter().enumerate().find_map(|(at, site)| Some((at, site.with_mac(mac)?)))
    }

    /// The external address of a node.
    pub(super) fn external(&self, at: At, like: IpAddr) -> Option<IpAddr> {
        let site = &self.sites[at];
        site.addresses_of(site.named(EXTERNAL)?.index).find(|address| address.is_ipv4() == like.is_ipv4())
    }

    /// The other end of a cable: site and index of the link there.
    pub(super) fn peer(&self, at: At, link: &link::Report) -> Option<(At, u32)> {
        let other = link.peer?;
        let fits = |site: &Site| site.link(other).is_some_and(|found| found.peer == Some(link.index));
        let beside = |candidate: At| self.cabled(at, link, candidate);
        (0..self.sites.len())
            .find(|candidate| beside(*candidate) && fits(&self.sites[*candidate]))
            .map(|at| (at, other))
    }

    /// What frames of a link come to without being routed, where that is more than the other end of a cable.
    pub(super) fn segment(&self, at: At, link: &link::Report) -> Option<Segment> {
        match &*link.kind {
            "bridge" => Some(Segment::Bridge(at, link.index)),
            "vxlan" => Some(Segment::Tunnel),
            _ => {
                let (there, port) = self.peer(at, link)?;
                Some(Segment::Bridge(there, self.sites[there].link(port)?.master?))
            }
        }
    }

    /// Whether a cable can lead from a link of one site to the other: external interfaces to the router and back, the others
    /// between a node and its pods.
    fn cabled(&self, at: At, link: &link::Report, other: At) -> bool {
        let external = link.name.as_str() == EXTERNAL;
        match (self.roles[at], self.roles[other]) {
            (Role::Node | Role::Outside, Role::Router) => external,
            (Role::Router, Role::Node) => link.name.as_str() == self.name(other),
            (Role::Router, Role::Outside) => link.name.as_str() == OUTSIDE_PORT,
            (Role::Pod(node), Role::Node) => node == other,
            (Role::Node, Role::Pod(node)) => node == at && !external,
            _ => false,
        }
    }
}

/// The third word of `/proc/PID/stat` is the state; T is stopped by a signal, Z has ended (proc(5)).
fn daemon(pid: Option<u32>) -> Daemon {
    let state = |pid: u32| -> Option<char> {
        let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        text.rsplit_once(')')?.1.trim_start().chars().next()
    };
    match pid.and_then(state) {
        None | Some('Z' | 'X') => Daemon::Gone,
        Some('T' | 't') => Daemon::Halted,
        Some(_) => Daemon::Running,
    }
}
