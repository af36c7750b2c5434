//! One ping, sent and watched: captures on every device that it may pass, and what the places count meanwhile.
//!
//! Surface: [`Watch`], opened before the ping, and what it saw, [`Seen`].

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use flannel_core::addr::Family;
use flannel_kernel::capture::{Capture, Frame, LinkLayer, Room};
use flannel_kernel::netlink::{link, neigh};

use super::counters::Counters;
use super::packet::Tunnels;
use super::rules::{Tracer, Traces};
use super::sight::Sight;
use super::story::Point;
use super::terrain::{At, Role, Terrain};
use super::{pcapng, sign};
use crate::echo::{EchoSocket, HEADER, fresh_token};
use crate::error::{Doing, LabError};
use crate::place::Place;

/// How long an answer is waited for: longer than the first of the kernel's questions for a neighbour takes.
const PATIENCE: Duration = Duration::from_millis(1200);
/// How long to wait for what still arrives after the answer.
const ECHOES: Duration = Duration::from_millis(20);
/// Frames that a capture holds.
const FRAMES: u32 = 128;

/// A capture with its name.
#[derive(Debug)]
struct Tap {
    place: String,
    device: String,
    capture: Capture,
}

/// All that listens.
#[derive(Debug)]
pub(super) struct Watch {
    taps: Vec<Tap>,
    tracer: Tracer,
    counters: Vec<(Place, Counters)>,
    tunnels: Tunnels,
    token: u64,
}

/// A frame with the capture that took it: its name, and what its frames begin with.
#[derive(Debug, Clone)]
pub(super) struct Taken {
    pub(super) name: String,
    pub(super) layer: LinkLayer,
    pub(super) frame: Frame,
}

/// What was seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Frames that have to do with the ping, as they came.
    pub(super) sights: Vec<Sight>,
    /// What packet rules did to it, and to ARP and ND meanwhile.
    pub(super) traces: Traces,
    /// Counters that grew: place, counter, growth.
    pub(super) counted: Vec<(String, String, u64)>,
    /// Those frames as they are, for a file.
    pub(super) taken: Vec<Taken>,
    /// Why the sender could not send.
    pub(super) refused: Option<io::Error>,
    /// The devices that were watched: place and name.
    pub(super) watched: HashSet<(String, String)>,
    /// From sending to the reply.
    pub(super) round_trip: Option<Duration>,
}

impl Seen {
    /// Whether a capture point was watched.
    pub(super) fn watches(&self, point: &Point) -> bool {
        self.watched.contains(&(point.place.clone(), point.device.clone()))
    }

    /// The frames as a pcapng file, with a point for each device.
    pub(super) fn pcapng(&self) -> io::Result<Vec<u8>> {
        let (mut writer, mut points) = (pcapng::Writer::new(Vec::new())?, BTreeMap::new());
        for Taken { name, layer, frame } in &self.taken {
            let point = match points.get(name) {
                Some(point) => *point,
                None => writer.point(name, *layer)?,
            };
            points.insert(name, point);
            writer.frame(point, frame, None)?;
        }
        Ok(writer.into_inner())
    }
}

impl Watch {
    /// Begins to listen on every device of these sites that a packet between them may pass.
    ///
    /// `requesters` are the addresses from which a tunnel's packet with the request can come.
    pub(super) fn open(
        terrain: &Terrain,
        sites: &[At],
        size: usize,
        requesters: Vec<IpAddr>,
    ) -> Result<Self, LabError> {
        let (mut taps, mut counters) = (Vec::new(), Vec::new());
        let snap = (size + HEADER + 200).clamp(512, 16 << 10) as u32;
        for at in sites {
            let site = &terrain.sites[*at];
            for link in site.links.iter().filter(|link| interesting(terrain, *at, link, sites)) {
                let open = || Capture::open(link.index, Room { frames: FRAMES, snap });
                let capture = site.place.inside(open)?.map_err(|error| LabError::Kernel {
                    action: format!("capture on {} of {}", link.name.as_str(), site.name()),
                    cause: error.to_string(),
                })?;
                let (place, device) = (site.name().to_owned(), link.name.as_str().to_owned());
                taps.push(Tap { place, device, capture });
            }
            counters.push((site.place.clone(), Counters::read(&site.place)?));
        }
        let vxlan = terrain.sites.iter().flat_map(|site| site.vxlans().map(|(_, vxlan)| vxlan.port)).collect();
        let tunnels = Tunnels { vxlan, ..Tunnels::default() };
        let token = fresh_token();
        let places: Vec<&Place> = sites.iter().map(|at| &terrain.sites[*at].place).collect();
        let tracer = Tracer::start(&places, &sign::patterns(token), requesters)?;
        Ok(Self { taps, tracer, counters, tunnels, token })
    }

    /// Pings once, and tells what was seen.
    pub(super) fn ping(mut self, from: &Place, to: IpAddr, size: usize) -> Result<Seen, LabError> {
        let (refused, round_trip) = self.probe(from, to, size)?;
        std::thread::sleep(ECHOES);
        let mut seen = Seen {
            sights: Vec::new(),
            traces: Traces::default(),
            counted: Vec::new(),
            taken: Vec::new(),
            refused,
            watched: self.taps.iter().map(|tap| (tap.place.clone(), tap.device.clone())).collect(),
            round_trip,
        };
        for tap in &mut self.taps {
            let layer = tap.capture.link_layer();
            for frame in tap.capture.drain() {
                let sight = Sight::of(&tap.place, &tap.device, &frame, layer, self.token, &self.tunnels);
                if let Some(sight) = sight {
                    seen.sights.push(sight);
                    seen.taken.push(Taken { name: format!("{}/{}", tap.place, tap.device), layer, frame });
                }
            }
        }
        seen.sights.sort_by_key(|sight| sight.at);
        seen.taken.sort_by_key(|taken| taken.frame.at);
        for (place, before) in &self.counters {
            let grown = Counters::read(place)?.since(before);
            seen.counted.extend(grown.into_iter().map(|(name, by)| (place.name().to_owned(), name, by)));
        }
        seen.traces = self.tracer.finish()?;
        Ok(seen)
    }

    fn probe(&self, from: &Place, to: IpAddr, size: usize) -> Result<(Option<io::Error>, Option<Duration>), LabError> {
        let socket = EchoSocket::open(from, Family::of(to))?;
        socket.keep_whole().doing(|| format!("ping from {}", from.name()))?;
        let sent = Instant::now();
        if let Err(error) = socket.request_of(to, self.token, 1, size) {
            return Ok((Some(error), None));
        }
        let deadline = sent + PATIENCE;
        while let Some(echo) = socket.receive(deadline).doing(|| format!("listen for pings on {}", from.name()))? {
            if !echo.request && echo.token == self.token {
                return Ok((None, Some(sent.elapsed())));
            }
        }
        Ok((None, None))
    }
}

/// On a node the devices of its other pods, and on the router the ports of other nodes, see nothing of a ping.
fn interesting(terrain: &Terrain, at: At, link: &link::Report, sites: &[At]) -> bool {
    let port = &*link.kind == "veth" && link.bridge_port;
    let concerned = || match terrain.role(at) {
        Role::Node => terrain.peer(at, link).is_some_and(|(pod, _)| sites.contains(&pod)),
        Role::Router => terrain.named(link.name.as_str()).is_some_and(|node| sites.contains(&node)),
        _ => true,
    };
    link.name.as_str() != "lo" && link.is_up() && (!port || concerned())
}

/// Forgets the neighbours that were learned at a site, so that they are asked for again.
pub(super) fn forget_neighbours(terrain: &mut Terrain, at: At) -> Result<(), LabError> {
    let site = &mut terrain.sites[at];
    let requests: Vec<_> = site.learned().map(|(index, address)| neigh::delete(index, address)).collect();
    site.tell(&requests)
}
