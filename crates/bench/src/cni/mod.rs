//! The bench `cni`: what connecting a pod and disconnecting it costs, as a runtime pays for it.
//!
//! All contenders work on one node and one pod namespace, turn about: ADD, DEL, and a wait until the pod's link is really gone,
//! so that nobody pays for the one before. They share the bridge and the folders of host-local. Rooms: [`stand`] (node and pods),
//! [`contender`] (who is called, with which conf), [`mod@call`] (the runtime's part), [`mod@serial`] and [`mod@crowd`] (one pod,
//! many pods).

pub mod call;
pub mod contender;
mod crowd;
mod serial;
pub mod stand;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use flannel_core::rules::RuleMode;
use flannel_kernel::nft::Nft;
use flannel_kernel::process::Enclosed;

use self::call::{add, call, del, peak};
use self::contender::{Contender, Wish, key};
use self::crowd::{crowd, fill, parallel, publish_all};
use self::serial::{over_before, serial};
use self::stand::{Pod, Stand};
use crate::benches::{Setting, Tell, columns};
use crate::figure::{Figure, Unit};
use crate::report::{Bound, Report, Row};
use crate::turns::order;

/// The column of the Go plugins that `cargo xtask go-plugins` builds.
pub const GO: &str = "go";
/// The column of Debian's plugins.
const DEBIAN: &str = "debian";
/// Where Debian's package `containernetworking-plugins` has its programs.
const DEBIAN_FOLDER: &str = "/usr/lib/cni";
/// How many calls are made at a time in the parallel part.
const WAYS: usize = 8;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// ADD and DEL of each contender, at each load.
    rounds: usize,
    /// The same with a port published.
    port_rounds: usize,
    /// Starts of each contender's program.
    starts: usize,
    /// Other pods on the node when it is loaded.
    pods: usize,
    /// Pods that are added in parallel.
    crowd: usize,
}

impl Extent {
    const WHOLE: Self = Self { rounds: 72, port_rounds: 24, starts: 240, pods: 250, crowd: 100 };
    const QUICK: Self = Self { rounds: 3, port_rounds: 1, starts: 3, pods: 8, crowd: 8 };
}

/// How many ports each of the other pods publishes.
const PORTS: usize = 2;
/// The kinds of rules that publish ports.
const MODES: [RuleMode; 2] = [RuleMode::Nftables, RuleMode::Iptables];

/// On what all is measured.
#[derive(Debug)]
struct Site {
    stand: Stand,
    contenders: Vec<Contender>,
    pod: Pod,
    extent: Extent,
}

/// Runs the bench.
pub fn bench(enclosed: Enclosed, setting: &Setting, tell: &Tell) -> Result<Report> {
    let site = Site::new(enclosed, setting)?;
    tell("an empty node");
    let mut rows = serial(&site, Wish::Link, "")?;
    rows.push(starts(&site)?);
    rows.push(memory(&setting.floor, &site, Wish::Link)?);
    tell(&format!("{} pods at once, {WAYS} calls at a time", site.extent.crowd));
    let pods = crowd(&site)?;
    rows.extend(parallel(&site, Wish::Link, &pods)?);
    tell("the same with ports");
    rows.extend(with_ports(&site, "")?);
    rows.push(memory(&setting.floor, &site, Wish::Ports(RuleMode::Nftables))?);
    rows.extend(parallel(&site, Wish::Ports(RuleMode::Nftables), &pods)?);
    drop(pods);
    let pods = site.extent.pods;
    tell(&format!("beside {pods} pods"));
    let others = fill(&site)?;
    let load = format!(", {pods} pods");
    rows.extend(serial(&site, Wish::Link, &load)?);
    let before = with_ports(&site, &load)?;
    tell(&format!("beside {} ports", pods * PORTS));
    publish_all(&site, &others)?;
    let after = with_ports(&site, &format!("{load}, {} ports", pods * PORTS))?;
    let slower =
        over_before(&format!("{}{load}: {} ports over none", verb("ADD", MODES[0]), pods * PORTS), &before, &after);
    rows.extend(before.into_iter().chain(after).chain(slower));
    let columns = site.contenders.iter().map(|contender| contender.name.clone()).collect();
    Ok(Report { name: "cni".into(), columns, rows, notes: notes(setting, &site.contenders) })
}

fn with_ports(site: &Site, load: &str) -> Result<Vec<Row>> {
    Ok(MODES.map(|mode| serial(site, Wish::Ports(mode), load)).into_iter().collect::<Result<Vec<_>>>()?.concat())
}

impl Site {
    fn new(enclosed: Enclosed, setting: &Setting) -> Result<Self> {
        let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
        let stand = Stand::new(enclosed, &setting.flannel)?;
        let (contenders, pod) = (contenders(setting, &stand)?, stand.pod("pod", 0, vec![8080])?);
        let mut site = Self { stand, contenders, pod, extent };
        site.warm_up()?;
        Ok(site)
    }

    /// The first pod of a node pays for the bridge, the first port for the tables; neither is measured. Every program is in the page
    /// cache afterwards, and it is known who publishes ports how: `portmap` of before 1.6 does not know `backend`.
    fn warm_up(&mut self) -> Result<()> {
        let (stand, pod) = (&mut self.stand, &self.pod);
        for contender in &mut self.contenders {
            call(contender, "ADD", stand, pod)?;
            stand.note_bridge()?;
            call(contender, "DEL", stand, pod)?;
            let modes = contender.portmap().map_or(&[][..], |_| &MODES);
            for &mode in modes {
                let result = add(contender, Wish::Ports(mode), stand, pod)?.result;
                if mode == RuleMode::Iptables || is_published_by_nft(pod)? {
                    contender.publishes.push(mode);
                }
                del(contender, Wish::Ports(mode), stand, pod, &result)?;
            }
            pod.wait_disconnected()?;
        }
        Ok(())
    }

    /// Who can do what is wished.
    fn able(&self, wish: Wish) -> Vec<&Contender> {
        self.contenders.iter().filter(|contender| contender.can(wish)).collect()
    }
}

fn is_published_by_nft(pod: &Pod) -> Result<bool> {
    let nft = Nft::open()?;
    Ok(nft.map_or(Ok(false), |mut nft| nft.publishes(&pod.name))?)
}

/// A verb as it is called in a row.
fn verb(verb: &str, mode: RuleMode) -> String {
    format!("{verb} with a port ({})", key(mode))
}

/// Ours first, then the floor, then who is there of the others.
fn contenders(setting: &Setting, stand: &Stand) -> Result<Vec<Contender>> {
    let mut contenders = vec![Contender::ours(stand.plugins()), Contender::floor(&setting.floor)];
    contenders.extend(Contender::of_folder(DEBIAN, Path::new(DEBIAN_FOLDER)));
    contenders.extend(setting.go.as_ref().and_then(|folder| Contender::of_folder(GO, folder)));
    for (name, folder) in columns(&setting.cni) {
        let found = Contender::of_folder(&name, &folder);
        contenders
            .push(found.with_context(|| format!("there are no `bridge` and `host-local` in {}", folder.display()))?);
    }
    Ok(contenders)
}

fn notes(setting: &Setting, contenders: &[Contender]) -> Vec<String> {
    let without: Vec<&str> =
        contenders.iter().filter(|contender| contender.is_without_flannel()).map(|who| who.name.as_str()).collect();
    let spared = "has no plugin `flannel`: the runtime calls `bridge` directly there, which spares one process";
    let go = setting.go.as_ref().and_then(|folder| folder.file_name());
    let go = go.map(|version| format!("`{GO}` is of github.com/containernetworking/plugins {}.", version.display()));
    without.iter().map(|name| format!("`{name}` {spared}.")).chain(go).collect()
}

/// The times of processes that do nothing but start, tell something and end.
fn starts(site: &Site) -> Result<Row> {
    let mut times: Vec<Vec<f64>> = vec![Vec::new(); site.contenders.len()];
    for round in 0..site.extent.starts {
        for who in order(round, site.contenders.len()) {
            times[who].push(call(&site.contenders[who], "VERSION", &site.stand, &site.pod)?.wall.as_secs_f64());
        }
    }
    let row = Row::new("start and end of a process, p50 / p95", Unit::Seconds);
    let row =
        site.contenders.iter().zip(&times).fold(row, |row, (who, times)| row.with(&who.name, Figure::spread_of(times)));
    Ok(row.aim(Bound::MedianAtMost(0.6e-3)))
}

/// The largest memory of a process of the plugin that is called for the interface, or for the ports.
fn memory(floor: &Path, site: &Site, wish: Wish) -> Result<Row> {
    let (stand, pod) = (&site.stand, &site.pod);
    let ports = if let Wish::Ports(mode) = wish { format!(" for ports ({})", key(mode)) } else { String::new() };
    let mut row = Row::new(format!("largest memory of a process{ports}"), Unit::Bytes);
    for contender in site.able(wish) {
        let of = |plugin: (Command, String)| peak(floor, plugin).with_context(|| format!("peak of {}", contender.name));
        let (added, result) = of(contender.call("ADD", stand, pod))?;
        let published = match wish {
            Wish::Link => None,
            Wish::Ports(mode) => {
                let publish = |verb| of(contender.publish(verb, mode, pod, &result));
                Some(publish("ADD")?.0.max(publish("DEL")?.0))
            }
        };
        let (deleted, _) = of(contender.call("DEL", stand, pod))?;
        pod.wait_disconnected()?;
        row = row.with(&contender.name, published.unwrap_or(added.max(deleted)) as f64);
    }
    Ok(row.aim(Bound::AtMost(f64::from(2 << 20))))
}
