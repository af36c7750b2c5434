//! The bench `cni`: what connecting a pod and disconnecting it costs, as a runtime pays for it.
//!
//! All contenders work on one node and one pod namespace, turn about: ADD, DEL, and a wait until the pod's link is really gone,
//! so that nobody pays for the one before. They share the bridge and the folders of host-local. Rooms: [`stand`] (node and pods),
//! [`contender`] (who is called, with which conf), [`mod@call`] (the runtime's part).

pub mod call;
pub mod contender;
pub mod stand;

use std::path::Path;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_kernel::process::Enclosed;

use self::call::{call, peak};
use self::contender::{Contender, FLOOR};
use self::stand::{Pod, Stand};
use crate::benches::{Setting, Tell, columns};
use crate::figure::{Figure, Unit};
use crate::floor::Parts;
use crate::report::{Bound, OURS, Report, Row};
use crate::statistics::median;
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
    /// Other pods on the node when it is loaded.
    pods: usize,
    /// Pods that are added in parallel.
    crowd: usize,
}

impl Extent {
    const WHOLE: Self = Self { rounds: 72, pods: 250, crowd: 100 };
    const QUICK: Self = Self { rounds: 3, pods: 8, crowd: 8 };
}

/// Runs the bench.
pub fn bench(enclosed: Enclosed, setting: &Setting, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    let mut stand = Stand::new(enclosed, &setting.flannel)?;
    let contenders = contenders(setting, &stand)?;
    let pod = stand.pod("pod", 0)?;
    make_bridge(&mut stand, &contenders, &pod)?;
    let mut rows = Vec::new();
    tell(&format!("{} rounds on an empty node", extent.rounds));
    rows.extend(serial(extent.rounds, "", &contenders, &stand, &pod)?);
    tell("largest memory of a process");
    rows.push(memory(&setting.floor, &contenders, &stand, &pod)?);
    tell(&format!("{} pods at once, {WAYS} calls at a time", extent.crowd));
    rows.push(parallel(extent.crowd, &contenders, &stand)?);
    tell(&format!("{} pods to fill the node, {} rounds beside them", extent.pods, extent.rounds));
    let crowd = fill(extent.pods, &contenders[0], &stand)?;
    rows.extend(serial(extent.rounds, &format!(", {} pods", extent.pods), &contenders, &stand, &pod)?);
    drop(crowd);
    let columns = contenders.iter().map(|contender| contender.name.clone()).collect();
    Ok(Report { name: "cni".into(), columns, rows, notes: notes(setting, &contenders) })
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

/// The first pod of a node pays for the bridge; it is not measured. Every program is in the page cache afterwards.
fn make_bridge(stand: &mut Stand, contenders: &[Contender], pod: &Pod) -> Result<()> {
    for contender in contenders {
        call(contender, "ADD", stand, pod)?;
        stand.note_bridge()?;
        call(contender, "DEL", stand, pod)?;
        pod.wait_disconnected()?;
    }
    Ok(())
}

/// The times of one contender, in seconds.
#[derive(Debug, Default)]
struct Times {
    add: Vec<f64>,
    add_cpu: Vec<f64>,
    del: Vec<f64>,
    gone: Vec<f64>,
    add_parts: PartTimes,
    del_parts: PartTimes,
}

/// The times of the floor's parts, in the order of its work.
type PartTimes = Vec<(String, Vec<f64>)>;

/// ADD and DEL one after the other, the contenders in another order each round.
fn serial(rounds: usize, load: &str, contenders: &[Contender], stand: &Stand, pod: &Pod) -> Result<Vec<Row>> {
    let mut times: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for round in 0..rounds {
        for who in order(round, contenders.len()) {
            once(&contenders[who], stand, pod, &mut times[who])?;
        }
    }
    Ok(rows(load, contenders, &times))
}

fn once(contender: &Contender, stand: &Stand, pod: &Pod, times: &mut Times) -> Result<()> {
    let cost = call(contender, "ADD", stand, pod)?;
    times.add.push(cost.wall.as_secs_f64());
    times.add_cpu.push(cost.cpu.as_secs_f64());
    note_parts(&mut times.add_parts, cost.wall, &cost.parts);
    let begun = Instant::now();
    let cost = call(contender, "DEL", stand, pod)?;
    times.del.push(cost.wall.as_secs_f64());
    note_parts(&mut times.del_parts, cost.wall, &cost.parts);
    pod.wait_disconnected()?;
    times.gone.push(begun.elapsed().as_secs_f64());
    Ok(())
}

/// What a program does not tell of is its process: start, end, and what the runner sees of it.
fn note_parts(into: &mut PartTimes, wall: Duration, parts: &Parts) {
    if parts.is_empty() {
        return;
    }
    let told: u64 = parts.iter().map(|(_, nanos)| nanos).sum();
    let process = ("process".to_owned(), wall.saturating_sub(Duration::from_nanos(told)));
    let parts = parts.iter().map(|(part, nanos)| (part.clone(), Duration::from_nanos(*nanos)));
    for (at, (part, time)) in std::iter::once(process).chain(parts).enumerate() {
        if into.len() == at {
            into.push((part, Vec::new()));
        }
        into[at].1.push(time.as_secs_f64());
    }
}

fn rows(load: &str, contenders: &[Contender], times: &[Times]) -> Vec<Row> {
    let row = |what: &str, value: &dyn Fn(&Times) -> Figure| {
        let row = Row::new(format!("{what}{load}"), Unit::Seconds);
        contenders.iter().zip(times).fold(row, |row, (who, times)| row.with(&who.name, value(times)))
    };
    let all = [
        row("ADD, p50 / p95", &|times| Figure::spread_of(&times.add)),
        row("ADD, CPU", &|times| median(&times.add_cpu).into()),
        row("DEL, p50 / p95", &|times| Figure::spread_of(&times.del)),
        row("DEL, until the link is gone", &|times| Figure::spread_of(&times.gone)),
    ];
    let compared = [
        over_floor(&format!("ADD over the floor{load}"), &all[0]).aim(Bound::AtMost(1.5)),
        over_ours(&format!("ADD over ours{load}"), &all[0]).aim_of(rival(contenders), Bound::AtLeast(8.0)),
        over_floor(&format!("DEL over the floor{load}"), &all[2]),
        over_ours(&format!("DEL over ours{load}"), &all[2]),
    ];
    let floor = contenders.iter().zip(times).find(|(who, _)| who.name == FLOOR).map(|(_, times)| times);
    let parts = floor.filter(|_| load.is_empty()).into_iter().flat_map(floors_parts);
    all.into_iter().chain(compared).chain(parts).collect()
}

/// Whose chain ours is to beat: one that has the plugin `flannel` too, if such a one is there.
fn rival(contenders: &[Contender]) -> &str {
    let others = || contenders.iter().filter(|who| ![OURS, FLOOR].contains(&who.name.as_str()));
    others().find(|who| !who.is_without_flannel()).map_or(GO, |who| &who.name)
}

fn over_floor(what: &str, row: &Row) -> Row {
    over(what, row, FLOOR, |_| true)
}

fn over_ours(what: &str, row: &Row) -> Row {
    over(what, row, OURS, |column| column != OURS && column != FLOOR)
}

/// The figures of a row over that of one column.
fn over(what: &str, row: &Row, base: &str, of: impl Fn(&str) -> bool) -> Row {
    let base = row.figures.get(base).map_or(f64::NAN, |figure| figure.value);
    let figures = row.figures.iter().filter(|(column, _)| of(column));
    figures.fold(Row::new(what, Unit::Ratio), |row, (column, figure)| row.with(column, figure.value / base))
}

fn floors_parts(times: &Times) -> Vec<Row> {
    let of = |verb: &str, parts: &PartTimes| -> Vec<Row> {
        let row = |(part, times): &(String, Vec<f64>)| {
            Row::new(format!("{verb}'s part: {part}"), Unit::Seconds).with(FLOOR, median(times))
        };
        parts.iter().map(row).collect()
    };
    [of("ADD", &times.add_parts), of("DEL", &times.del_parts)].concat()
}

fn memory(floor: &Path, contenders: &[Contender], stand: &Stand, pod: &Pod) -> Result<Row> {
    let mut row = Row::new("largest memory of a process", Unit::Bytes);
    for contender in contenders {
        let add = peak(floor, contender, "ADD", stand, pod)?;
        let del = peak(floor, contender, "DEL", stand, pod)?;
        pod.wait_disconnected()?;
        row = row.with(&contender.name, add.max(del) as f64);
    }
    Ok(row.aim(Bound::AtMost(f64::from(2 << 20))))
}

/// How many pods a second each contender adds when several calls are made at a time.
fn parallel(count: usize, contenders: &[Contender], stand: &Stand) -> Result<Row> {
    let pods = (0..count).map(|number| stand.pod(&format!("crowd{number}"), number + 1));
    let pods: Vec<Pod> = pods.collect::<Result<_>>()?;
    let mut row = Row::new(format!("ADD, {WAYS} at a time"), Unit::PerSecond);
    for contender in contenders {
        let begun = Instant::now();
        all_at_once(contender, "ADD", stand, &pods)?;
        row = row.with(&contender.name, count as f64 / begun.elapsed().as_secs_f64());
        all_at_once(contender, "DEL", stand, &pods)?;
        pods.iter().try_for_each(Pod::wait_disconnected)?;
    }
    Ok(row)
}

fn all_at_once(contender: &Contender, verb: &str, stand: &Stand, pods: &[Pod]) -> Result<()> {
    let queue = Mutex::new(pods.iter());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let work = || -> Result<()> {
        while let Some(pod) = next() {
            call(contender, verb, stand, pod)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WAYS).map(|_| scope.spawn(work)).collect();
        let join =
            |worker: std::thread::ScopedJoinHandle<'_, Result<()>>| worker.join().ok().context("a worker died")?;
        workers.into_iter().try_for_each(join)
    })
}

/// Pods that stay.
fn fill(count: usize, contender: &Contender, stand: &Stand) -> Result<Vec<Pod>> {
    let pods = (0..count).map(|number| stand.pod(&format!("other{number}"), 0));
    let pods: Vec<Pod> = pods.collect::<Result<_>>()?;
    all_at_once(contender, "ADD", stand, &pods)?;
    Ok(pods)
}
