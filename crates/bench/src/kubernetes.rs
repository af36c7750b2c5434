//! The bench `kube`: what a fleet on Kubernetes costs a flanneld, on a real API server.
//!
//! One daemon among many Nodes first: its start, a Node that joins, a minute in which kubelets tell that they live. Then a crowd of
//! daemons that all meet their server in the same moment.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use flannel_kernel::process::Enclosed;

use crate::benches::{Part, Setting, Tell};
use crate::figure::{Figure, Unit};
use crate::fleet::{self, Member};
use crate::ground::{Daemon, Ground, Peer};
use crate::node;
use crate::report::{Bound, Report, Row};

/// The numbers of Nodes.
pub const SIZES: [u32; 1] = [5_000];
/// … when it is only shown that the bench runs.
pub const QUICK_SIZES: [u32; 1] = [50];

/// The heartbeats in a second of 5,000 kubelets that each tell of themselves about every ten.
const HEARTBEATS: u32 = 484;
/// Those of a minute, for which a daemon is to take no more than 3 s of CPU and 65 MB.
const ALL_BEATS: f64 = HEARTBEATS as f64 * 60.0;

struct Extent {
    fleet: fleet::Extent,
    /// How long the lists of a crowd are counted.
    counted: Duration,
}

impl Extent {
    const WHOLE: Self = Self { fleet: fleet::Extent::WHOLE, counted: Duration::from_secs(20) };
    const QUICK: Self = Self { fleet: fleet::Extent::QUICK, counted: Duration::from_secs(3) };
}

/// Measures one daemon with one number of Nodes.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    let program = setting.daemon(part);
    tell(&format!("{} with {} Nodes", part.column, part.peers));
    let mut ground = Ground::on_kubernetes(enclosed, part.peers)?;
    let size = ground.api()?.create(&node::of_peer(Peer(part.peers)))?;
    ground.api()?.delete(&Peer(part.peers).name())?;
    let (mut daemon, mut rows) = starts(&mut ground, program, part, &extent)?;
    rows.push(changes(&mut ground, &mut daemon, part, &extent)?);
    tell(&format!("{}, heartbeats", part.column));
    rows.extend(heartbeats(&mut ground, &daemon, part, &extent)?);
    drop(daemon);
    tell(&format!("{}, {} daemons at once", part.column, extent.fleet.crowd));
    rows.extend(crowd(&mut ground, program, part, &extent)?);
    Ok(Report { name: "kube".into(), columns: vec![part.column.clone()], rows, notes: notes(&extent, size) })
}

fn notes(extent: &Extent, size: usize) -> Vec<String> {
    vec![
        format!(
            "Starts are the median of {}, CPU and bytes their worst, each in a network namespace that nobody has used, as a Node \
             that is new; CPU time is in ticks of 10 ms. Bytes are those of its interface, TLS and TCP with them.",
            extent.fleet.starts
        ),
        format!(
            "A Node has {size} bytes as JSON. {HEARTBEATS} heartbeats a second are sent if the server keeps up; the targets for each are \
             3 s and 65 MB in a minute of so many."
        ),
        format!("The daemons at once are those of another, small cluster: {} Nodes, each its own.", extent.fleet.crowd),
    ]
}

fn row(part: &Part, what: &str, unit: Unit, figure: impl Into<Figure>) -> Row {
    Row::new(format!("{} Nodes: {what}", part.peers), unit).with(&part.column, figure)
}

fn most(row: Row, bound: f64) -> Row {
    row.aim(Bound::AtMost(bound))
}

const MIB: f64 = (1 << 20) as f64;

/// Starts from nothing, and what they cost; with the daemon that was started last.
fn starts(ground: &mut Ground, program: &Path, part: &Part, extent: &Extent) -> Result<(Daemon, Vec<Row>)> {
    let received = |_: &mut Ground, daemon: Option<&Daemon>| daemon.map_or(Ok(0.0), Daemon::received);
    let (daemon, cost) = fleet::starts(ground, program, &extent.fleet, received)?;
    let row = |what: &str, unit, figure: f64| row(part, what, unit, figure);
    let rows = vec![
        most(row("exec to subnet.env", Unit::Seconds, cost.file), 0.2),
        most(row("exec to all programmed", Unit::Seconds, cost.whole), 1.0),
        most(row("CPU of a start", Unit::Seconds, cost.cpu), 0.5),
        row("received by a start", Unit::Bytes, cost.counted),
        most(row("VmRSS after 10 s", Unit::Bytes, cost.resident), 12.0 * MIB),
        most(row("VmHWM", Unit::Bytes, cost.peak), 16.0 * MIB),
    ];
    Ok((daemon, rows))
}

/// A Node comes and goes, again and again: the time from its creation, all annotations on it, to the kernel's route.
fn changes(ground: &mut Ground, daemon: &mut Daemon, part: &Part, extent: &Extent) -> Result<Row> {
    let peers = part.peers..part.peers + extent.fleet.changes;
    let (_, routes) = fleet::changes(ground, daemon, peers)?;
    Ok(row(part, "a Node's creation, until routed", Unit::Seconds, Figure::spread_of(&routes)))
}

/// What it costs the daemon that kubelets tell that they live.
fn heartbeats(ground: &mut Ground, daemon: &Daemon, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    let (cpu, received, begun) = (daemon.cpu()?, daemon.received()?, Instant::now());
    let beats = f64::from(ground.api()?.beat(part.peers, HEARTBEATS, extent.fleet.watched)?);
    let seconds = begun.elapsed().as_secs_f64();
    sleep(extent.fleet.settle / 10);
    let (cpu, received) = ((daemon.cpu()?.saturating_sub(cpu)).as_secs_f64(), daemon.received()? - received);
    let (resident, peak) = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
    Ok(vec![
        row(part, "heartbeats", Unit::PerSecond, beats / seconds),
        row(part, "CPU in a minute of them", Unit::Seconds, cpu),
        row(part, "received in a minute of them", Unit::Bytes, received),
        most(row(part, "CPU for each", Unit::Seconds, cpu / beats), 3.0 / ALL_BEATS),
        most(row(part, "bytes received for each", Unit::Count, received / beats), 65e6 / ALL_BEATS),
        most(row(part, "VmRSS after them", Unit::Bytes, resident), 12.0 * MIB),
        most(row(part, "VmHWM after them", Unit::Bytes, peak), 16.0 * MIB),
    ])
}

/// Daemons of a cluster of their own that were started while the server was away: when do they list?
fn crowd(ground: &mut Ground, program: &Path, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    ground.api()?.clear()?;
    for number in 0..extent.fleet.crowd {
        let (member, subnet) = (Member(number), Peer(number.into()).pod_cidr());
        ground.api()?.create(&node::node(&member.name(), member.address(), subnet))?;
    }
    let _crowd = fleet::assemble(ground, program, &[], &extent.fleet)?;
    let before = ground.api()?.lists()?.len();
    ground.api()?.switch().mend()?;
    sleep(extent.counted);
    fleet::rows(part, &extent.fleet, "lists", &ground.api()?.lists()?.split_off(before))
}
