//! `flannel lab walk`: one ping followed through the lab, hop by hop, with what sent it on and, if it died, where and why.
//!
//! Surface: [`WalkArgs`], the command line; [`run`], the caller's side, which draws; [`Asked`] and [`Lab::walk`], the lab's side,
//! which pings and watches; and [`story::Story`], what goes between them. The order of work: captures and traces are opened,
//! one ping is sent, then the tables of all places are read, the way that they give is followed ([`way`]), and what was seen
//! is laid over it ([`explain`]). Nothing is changed but, with `--fresh`, learned neighbours, and a trace table while it is used.

mod counters;
mod explain;
mod legacy;
mod obstacle;
pub mod packet;
pub mod pcapng;
mod plain;
mod render;
mod routing;
mod rules;
mod sight;
pub mod sign;
mod site;
pub mod story;
mod terrain;
mod watch;
mod way;
mod words;

use std::io::{self, IsTerminal, Write};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use flannel_core::addr::Family;
use serde::{Deserialize, Serialize};

use crate::control;
use crate::error::{Doing, LabError};
use crate::lab::Lab;
use legacy::Legacy;
use obstacle::Obstacle;
use sight::What;
use story::{Direction, End, Outcome, Point, Step, Story, Way};
use terrain::{At, Daemon, Role, Terrain};
use watch::{Seen, Watch, forget_neighbours};
use way::{Cargo, Trail, Translation, Walker};

/// The data of a ping unless told otherwise, as ping(8) has it.
const USUAL: usize = 56;
/// The most data that a ping can have: an IPv4 packet has 65,535 bytes.
const MOST: usize = 65_507;

/// What to follow.
#[derive(Debug, Clone, Args)]
pub struct WalkArgs {
    /// Who pings: a pod, a node, or `outside`.
    from: String,
    /// Who is pinged: a pod, a node, or `outside`.
    to: String,
    /// Over IPv4.
    #[arg(short = '4', conflicts_with = "ipv6")]
    ipv4: bool,
    /// Over IPv6.
    #[arg(short = '6')]
    ipv6: bool,
    /// Bytes of data in the ping, which is never fragmented.
    #[arg(long, default_value_t = USUAL, value_parser = clap::builder::RangedU64ValueParser::<usize>::new().range(16..=MOST as u64))]
    size: usize,
    /// Show the reply's way in full too.
    #[arg(long)]
    reply: bool,
    /// First let all places on the way forget the neighbours that they learned, so that ARP or ND is seen.
    #[arg(long)]
    fresh: bool,
    /// Leave out what differs from run to run: times; MACs and names of devices are numbered.
    #[arg(long)]
    plain: bool,
    /// How to tell it.
    #[arg(short, long, default_value = "text")]
    output: Form,
    /// Write the captured frames to a file (pcapng), for Wireshark.
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
}

/// A form of output.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Form {
    /// For people.
    Text,
    /// One JSON object.
    Json,
}

/// What the lab is asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Who pings.
    pub from: String,
    /// Who is pinged.
    pub to: String,
    /// 4 or 6; none lets the lab choose the first that it speaks.
    pub ip: Option<u8>,
    /// Bytes of data.
    pub size: usize,
    /// Forget learned neighbours first.
    pub fresh: bool,
}

/// What the lab answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Walked {
    /// The story.
    pub story: Story,
    /// The captured frames that belong to it, as a pcapng file.
    pub capture: Vec<u8>,
}

/// Asks the lab that is up, and tells. Answers with 0 if the ping was answered, 1 if it died.
pub(crate) fn run(args: &WalkArgs, out: &mut dyn Write) -> Result<u8, LabError> {
    walk(args, out).map_err(|error| LabError::Unwalked(Box::new(error)))
}

fn walk(args: &WalkArgs, out: &mut dyn Write) -> Result<u8, LabError> {
    let file = args.pcap.as_ref().map(|path| NewFile::open(path.clone())).transpose()?;
    let mut answer = Vec::new();
    control::ask(&control::Ask::Walk(args.asked()), &mut answer)?;
    let walked: Walked =
        serde_json::from_slice(&answer).map_err(io::Error::from).doing(|| "read the lab's answer".into())?;
    if let Some(file) = file {
        file.fill(&walked.capture)?;
    }
    let story = if args.plain { plain::plain(&walked.story)? } else { walked.story };
    let text = match args.output {
        Form::Json => {
            serde_json::to_string_pretty(&story).map_err(io::Error::from).doing(|| "write JSON".into())? + "\n"
        }
        Form::Text => {
            let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            render::text(&story, render::Style { colours, times: !args.plain, reply: args.reply })
        }
    };
    let _reader_may_be_gone = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    Ok(u8::from(matches!(story.outcome, Outcome::Died(_))))
}

impl WalkArgs {
    fn asked(&self) -> Asked {
        let ip = match (self.ipv4, self.ipv6) {
            (true, _) => Some(4),
            (_, true) => Some(6),
            _ => None,
        };
        Asked { from: self.from.clone(), to: self.to.clone(), ip, size: self.size, fresh: self.fresh }
    }
}

/// A file that is opened before there is something to write, and is gone again if there never is.
struct NewFile {
    path: PathBuf,
    file: std::fs::File,
    made: bool,
}

impl NewFile {
    fn open(path: PathBuf) -> Result<Self, LabError> {
        let made = !path.exists();
        let file =
            std::fs::OpenOptions::new().write(true).create(true).truncate(false).open(&path).on("write", &path)?;
        Ok(Self { path, file, made })
    }

    fn fill(mut self, bytes: &[u8]) -> Result<(), LabError> {
        // A pipe or a terminal has no length.
        let _ = self.file.set_len(0);
        self.file.write_all(bytes).on("write", &self.path)?;
        self.made = false;
        Ok(())
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if self.made {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

impl Lab {
    /// Sends one ping and follows it.
    pub fn walk(&self, asked: &Asked) -> Result<Walked, LabError> {
        let family = self.walkable(asked)?;
        let mut before = Terrain::survey(self)?;
        let ends = Ends::of(&before, asked, family)?;
        let sites = ends.sites(&before);
        if asked.fresh {
            sites.iter().try_for_each(|at| forget_neighbours(&mut before, *at))?;
        }
        let watch = Watch::open(&before, &sites, asked.size, ends.requesters(&before))?;
        let mut seen = watch.ping(&before.sites[ends.from].place, ends.address, asked.size)?;
        let mut terrain = Terrain::survey(self)?;
        let legacy = Legacy::read(&terrain, &sites)?;
        let story =
            Teller { terrain: &mut terrain, ends, seen: &mut seen, legacy, size: asked.size }.tell(asked, family)?;
        let capture = seen.pcapng().doing(|| "write the captured frames".into())?;
        Ok(Walked { story, capture })
    }

    /// Refuses what cannot be walked; answers with the family.
    fn walkable(&self, asked: &Asked) -> Result<Family, LabError> {
        if asked.from == asked.to {
            return Err(LabError::Options(format!("{} is both ends: name two different ones", asked.from)));
        }
        let family = asked.ip.map(story::family);
        let first = || Family::ALL.into_iter().find(|family| self.options().speaks(*family)).unwrap_or(Family::V4);
        let family = family.unwrap_or_else(first);
        if !self.options().speaks(family) {
            let hint = if family == Family::V6 { "--dual or --ipv6" } else { "--dual, or without --ipv6" };
            return Err(LabError::Options(format!("this lab does not speak {family}: bring it up with {hint}")));
        }
        Ok(family)
    }
}

/// The two ends of a walk.
#[derive(Debug, Clone, Copy)]
struct Ends {
    from: At,
    to: At,
    address: IpAddr,
}

impl Ends {
    fn of(terrain: &Terrain, asked: &Asked, family: Family) -> Result<Self, LabError> {
        let end = |name: &str| match terrain.named(name) {
            Some(at) if terrain.role(at) == Role::Router => Err(LabError::Options(format!(
                "a walk passes `{name}` but does not end there: {}",
                terrain.ends.join(", ")
            ))),
            Some(at) => Ok(at),
            None => Err(LabError::Unknown { name: name.to_owned(), known: terrain.ends.join(", ") }),
        };
        let (from, to) = (end(&asked.from)?, end(&asked.to)?);
        let address = terrain.given(to, family);
        let address = address.ok_or_else(|| LabError::Options(format!("{} has no {family} address", asked.to)))?;
        Ok(Self { from, to, address })
    }

    /// All addresses of the node that the request comes from.
    fn requesters(self, terrain: &Terrain) -> Vec<IpAddr> {
        let node = if let Role::Pod(node) = terrain.role(self.from) { node } else { self.from };
        let site = &terrain.sites[node];
        site.links.iter().flat_map(|link| site.addresses_of(link.index)).collect()
    }

    /// The places that a packet between them may pass.
    fn sites(self, terrain: &Terrain) -> Vec<At> {
        let mut sites = Vec::new();
        for end in [self.from, self.to] {
            sites.push(end);
            if let Role::Pod(node) = terrain.role(end) {
                sites.push(node);
            }
        }
        sites.extend((0..terrain.sites.len()).filter(|at| terrain.role(*at) == Role::Router));
        sites.sort_unstable();
        sites.dedup();
        sites
    }
}

/// Makes the story of what was seen.
struct Teller<'a> {
    terrain: &'a mut Terrain,
    ends: Ends,
    seen: &'a mut Seen,
    legacy: Legacy,
    size: usize,
}

impl Teller<'_> {
    fn tell(mut self, asked: &Asked, family: Family) -> Result<Story, LabError> {
        let begin = self.seen.sights.first().map(|sight| sight.at).unwrap_or_default();
        let translations = self.translations();
        let (request, cargo) = self.request(&translations)?;
        self.work_out(Way::Request, &request);
        let there = self.lay(Way::Request, &request, begin);
        let strayed = self.impostor().or_else(|| self.readdressed());
        let answered = self.seen.round_trip.filter(|_| strayed.is_none());
        let arrived = answered.is_some() || strayed.is_none() && self.arrived(Way::Request, &request, &there);
        let reply = if arrived { Some(self.reply(&translations, &cargo)?) } else { None };
        if let Some(reply) = &reply {
            self.work_out(Way::Reply, reply);
        }
        let back = reply.as_ref().map(|reply| self.lay(Way::Reply, reply, begin)).unwrap_or_default();
        let outcome = match (answered, &reply) {
            (Some(took), _) => Outcome::Answered { round_trip_ns: u64::try_from(took.as_nanos()).unwrap_or(u64::MAX) },
            (None, Some(reply)) => Outcome::Died(Box::new(self.death(Way::Reply, &back, reply, None))),
            (None, None) => Outcome::Died(Box::new(self.death(Way::Request, &there, &request, strayed))),
        };
        Ok(Story {
            from: self.end(self.ends.from, self.source().or(cargo.source)),
            to: self.end(self.ends.to, Some(self.ends.address)),
            ip: if family == Family::V4 { 4 } else { 6 },
            size: asked.size,
            remarks: self.remarks(&outcome, &translations),
            outcome,
            request: there.steps,
            reply: back.steps,
        })
    }

    fn end(&self, at: At, address: Option<IpAddr>) -> End {
        let node = match self.terrain.role(at) {
            Role::Pod(node) => Some(self.terrain.name(node).to_owned()),
            _ => None,
        };
        End { name: self.terrain.name(at).to_owned(), node, address }
    }

    /// Our packets of a way, as they came: where, with which source and destination.
    fn own(&self, way: Way) -> impl Iterator<Item = (&sight::Sight, &story::Packet)> {
        self.seen.sights.iter().filter_map(move |sight| match &sight.what {
            What::Own(of, packet) if *of == way => Some((sight, packet)),
            _ => None,
        })
    }

    /// The source address that the request set out with.
    fn source(&self) -> Option<IpAddr> {
        self.own(Way::Request).next().map(|(_, packet)| packet.source)
    }

    /// Where the request's source changed.
    fn translations(&self) -> Vec<Translation> {
        let all: Vec<_> = self.own(Way::Request).collect();
        let changes = all.windows(2).filter(|two| two[0].1.source != two[1].1.source);
        changes
            .filter_map(|two| {
                let at = self.terrain.named(&two[1].0.point.place)?;
                Some(Translation { at, before: two[0].1.source, after: two[1].1.source })
            })
            .collect()
    }

    fn request(&mut self, translations: &[Translation]) -> Result<(Trail, Cargo), LabError> {
        let header = if self.ends.address.is_ipv4() { 20 } else { 40 };
        let length = header + crate::echo::HEADER + self.size;
        let source = self.source().or_else(|| self.terrain.given(self.ends.from, Family::of(self.ends.address)));
        let source = source.filter(|source| self.terrain.sites[self.ends.from].owner(*source).is_some());
        let cargo = Cargo { source, destination: self.ends.address, length, inner: None };
        let mut walker = Walker::new(self.terrain, self.ends.to, translations, false);
        walker.kept = self.seen.refused.is_some();
        Ok((Trail::of(walker, self.ends.from, cargo.clone())?, cargo))
    }

    /// The reply goes to the address that its maker saw, in the size in which it was seen first: its maker may have cut it.
    fn reply(&mut self, translations: &[Translation], request: &Cargo) -> Result<Trail, LabError> {
        let own = self.source().or(request.source).unwrap_or(self.ends.address);
        let destination = translations.last().map_or(own, |translation| translation.after);
        let length = self.own(Way::Reply).next().map_or(request.length, |(_, packet)| packet.length);
        let cargo = Cargo { source: Some(self.ends.address), destination, length, inner: None };
        let unmasqueraded = self.unmasqueraded(destination);
        let mut walker = Walker::new(self.terrain, self.ends.from, translations, true);
        walker.suspect = unmasqueraded;
        Trail::of(walker, self.ends.to, cargo)
    }

    /// A pod's packet that came to a host outside with the pod's own address.
    fn unmasqueraded(&self, source: IpAddr) -> Option<Obstacle> {
        let Role::Pod(node) = self.terrain.role(self.ends.from) else { return None };
        let outside = self.terrain.role(self.ends.to) == Role::Outside && self.terrain.is_pods(source);
        outside.then(|| Obstacle::not_masqueraded(self.terrain.name(node), source))
    }

    /// Adds what rules of iptables-legacy do on a way.
    fn work_out(&mut self, way: Way, trail: &Trail) {
        let hits = self.legacy.hits(way, trail, |at| self.terrain.name(at).to_owned());
        self.seen.traces.hits.extend(hits);
    }

    fn lay(&self, way: Way, trail: &Trail, begin: Duration) -> explain::Told {
        explain::tell_way(way, trail, self.seen, begin, |at| self.terrain.name(at).to_owned())
    }

    /// Whether a packet was seen all along its way and nothing stopped it at the end.
    fn arrived(&self, way: Way, trail: &Trail, told: &explain::Told) -> bool {
        let dropped = explain::dropped(way, told, self.seen).is_some();
        let replied = way == Way::Request && self.own(Way::Reply).next().is_some();
        replied || (!dropped && trail.obstacle.is_none() && told.next.is_none() && told.last.is_some())
    }

    /// `strayed` says that somebody else got the request.
    fn death(&self, way: Way, told: &explain::Told, trail: &Trail, strayed: Option<Obstacle>) -> story::Death {
        use story::Cause::{DuplicateAddress, Rule, TooBig, Unknown};
        let goal = self.terrain.name(trail.end);
        let mut death = explain::death(way, told, trail, self.seen, |node| self.terrain.daemon(node), goal);
        let better = match (way, death.cause) {
            (_, Rule | TooBig | DuplicateAddress) => None,
            (Way::Reply, Unknown) if told.last.is_none() => self.silent(),
            // What the tables say of the address that was asked for then matters no more.
            _ => strayed,
        };
        if let Some(Obstacle { place, cause, why, remedy, .. }) = better {
            let last = || self.own(Way::Request).last().map(|(sight, _)| sight.point.clone());
            death.last = death.last.or_else(last);
            death = story::Death { place, cause, why, remedy, ..death };
        }
        if way == Way::Request && self.seen.round_trip.is_some() {
            death.evidence.push(format!("a reply came, but not from {}", self.terrain.name(self.ends.to)));
        }
        death
    }

    /// A receiver that was told not to answer.
    fn silent(&self) -> Option<Obstacle> {
        let site = &self.terrain.sites[self.ends.to];
        let sysctl = match Family::of(self.ends.address) {
            Family::V4 => "net/ipv4/icmp_echo_ignore_all",
            Family::V6 => "net/ipv6/icmp/echo_ignore_all",
        };
        let ignores = site.sysctl(sysctl).ok().flatten() == Some(1);
        ignores.then(|| Obstacle::echo_ignored(site.name(), sysctl))
    }

    /// Somebody who answered in the receiver's place: the first frame of the reply has the MAC of another who has the address,
    /// or of nobody known.
    fn impostor(&self) -> Option<Obstacle> {
        let (to, address) = (self.ends.to, self.ends.address);
        let mac = self.own(Way::Reply).next()?.1.macs?.0;
        let receiver = self.terrain.name(to);
        let other = match self.terrain.with_mac(mac) {
            Some((at, _)) if at == to || self.terrain.sites[at].owner(address).is_none() => return None,
            None if self.seen.sights.iter().any(|sight| sight.point.place == receiver) => return None,
            Some((at, _)) => self.terrain.name(at),
            None => "somebody",
        };
        Some(Obstacle::impostor(address, receiver, other, mac))
    }

    /// A request whose destination somebody translated.
    fn readdressed(&self) -> Option<Obstacle> {
        let address = self.ends.address;
        let (sight, packet) = self.own(Way::Request).find(|(_, packet)| packet.destination != address)?;
        let answers = self.own(Way::Reply).next().and_then(|_| self.terrain.who_has(packet.destination));
        let who = answers.map_or("nobody", |(at, _)| self.terrain.name(at));
        Some(Obstacle::readdressed(&sight.point.place, address, packet.destination, who))
    }

    /// What is worth knowing besides.
    fn remarks(&self, outcome: &Outcome, translations: &[Translation]) -> Vec<String> {
        let mut remarks = self.seen.traces.remarks.clone();
        let own = self.source().filter(|_| translations.is_empty());
        if let (Some(obstacle), Outcome::Answered { .. }) = (own.and_then(|own| self.unmasqueraded(own)), outcome) {
            remarks.push(format!("{}; the lab's router is told the way for what comes from outside", obstacle.why));
        }
        for at in self.ends.sites(self.terrain) {
            let name = self.terrain.name(at);
            if matches!(outcome, Outcome::Died(death) if death.remedy.contains(&format!("on {name} "))) {
                continue;
            }
            match self.terrain.daemon(name) {
                Some(Daemon::Gone) => remarks.push(format!("flanneld on {name} does not run")),
                Some(Daemon::Halted) => remarks.push(format!("flanneld on {name} is halted (SIGSTOP)")),
                Some(Daemon::Running) | None => {}
            }
        }
        remarks.extend(self.cut());
        if matches!(outcome, Outcome::Answered { .. }) {
            remarks.extend(self.namesakes());
        }
        remarks
    }

    /// Others who have the address of an end.
    fn namesakes(&self) -> Vec<String> {
        let ends = [(self.ends.from, self.source()), (self.ends.to, Some(self.ends.address))];
        let all = ends.into_iter().filter_map(|(end, address)| Some((end, address?)));
        let others = all.flat_map(|(end, address)| {
            let holders = self.terrain.holders(address).filter(move |(at, _)| *at != end);
            holders
                .map(move |(at, _)| format!("{} has {address} too: who gets a packet is chance", self.terrain.name(at)))
        });
        others.collect()
    }

    /// Where the tunnel's packets, and where the reply, were cut in pieces because of the MTU of the device.
    fn cut(&self) -> Vec<String> {
        let sent = self.own(Way::Request).next().map(|(_, packet)| packet.length);
        let out = |way| self.own(way).filter(|(sight, _)| sight.point.direction == Direction::Out);
        let of_tunnel = out(Way::Request).find_map(|(sight, packet)| {
            let mtu = self.mtu(&sight.point)?;
            let length = packet.outer.as_ref()?.length;
            (length > mtu as usize).then(|| format!("{} cuts the tunnel's packets in pieces: MTU {mtu}", sight.point))
        });
        let of_reply = out(Way::Reply).find(|(_, packet)| Some(packet.length) < sent).map(|(sight, packet)| {
            let mtu = self.mtu(&sight.point).filter(|mtu| Some(*mtu as usize) < sent);
            let because = mtu.map_or_else(|| "a path MTU that it learned".to_owned(), |mtu| format!("MTU {mtu}"));
            format!("{} cuts the reply in pieces, the first of {} bytes: {because}", sight.point, packet.length)
        });
        of_tunnel.into_iter().chain(of_reply).collect()
    }

    fn mtu(&self, point: &Point) -> Option<u32> {
        Some(self.terrain.sites[self.terrain.named(&point.place)?].named(&point.device)?.mtu.0)
    }
}

/// The place of a step.
pub(crate) fn place_of(step: &Step) -> &str {
    match step {
        Step::Seen { point, .. } | Step::Missing { point } | Step::Resolution { point, .. } => &point.place,
        Step::Route { place, .. }
        | Step::Neigh { place, .. }
        | Step::Fdb { place, .. }
        | Step::Rule { place, .. }
        | Step::Nat { place, .. } => place,
    }
}
