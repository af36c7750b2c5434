//! The bench `etcd`: what a fleet on etcd costs a flanneld and its server, on a real one.
//!
//! One daemon among many leases first: its start, a peer that joins, a minute without news, outages. Then a crowd of daemons
//! that all meet their server in the same moment.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::Result;
use flannel_kernel::process::Enclosed;

use crate::benches::{Part, Setting, Tell};
use crate::figure::{Figure, Unit};
use crate::fleet;
use crate::ground::{Daemon, Ground, Peer};
use crate::report::{Bound, Report, Row};
use crate::server::Requests;
use crate::switch::Outage;

/// The numbers of leases.
pub const SIZES: [u32; 1] = [5_000];
/// … when it is only shown that the bench runs.
pub const QUICK_SIZES: [u32; 1] = [50];

/// The prefix of the crowd's own network.
const CROWD: &str = "/crowd";

struct Extent {
    fleet: fleet::Extent,
    outage: Duration,
    outages: u32,
    /// How long the lists of a crowd are counted.
    counted: Duration,
}

impl Extent {
    const WHOLE: Self = Self {
        fleet: fleet::Extent::WHOLE,
        outage: Duration::from_secs(30),
        outages: 2,
        counted: Duration::from_secs(15),
    };
    const QUICK: Self = Self {
        fleet: fleet::Extent::QUICK,
        outage: Duration::from_millis(500),
        outages: 1,
        counted: Duration::from_secs(1),
    };
}

/// Measures one daemon with one number of leases.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    let program = setting.daemon(part);
    tell(&format!("{} with {} leases", part.column, part.peers));
    let mut ground = Ground::on_etcd(enclosed, part.peers)?;
    let (mut daemon, mut rows) = starts(&mut ground, program, part, &extent)?;
    rows.extend(changes(&mut ground, &mut daemon, part, &extent)?);
    tell(&format!("{}, nothing happens", part.column));
    rows.push(idle(&mut ground, part, &extent)?);
    for (outage, how) in [(Outage::Refused, "refused"), (Outage::Silent, "silent")] {
        tell(&format!("{}, outages: {how}", part.column));
        rows.push(outages(&mut ground, &mut daemon, part, &extent, outage, how)?);
    }
    drop(daemon);
    tell(&format!("{}, {} daemons at once", part.column, extent.fleet.crowd));
    rows.extend(crowd(&mut ground, program, part, &extent)?);
    Ok(Report { name: "etcd".into(), columns: vec![part.column.clone()], rows, notes: notes(&extent) })
}

fn notes(extent: &Extent) -> Vec<String> {
    vec![
        format!(
            "Starts are the median of {}, CPU and requests their worst, each in a network namespace that nobody has used; CPU \
             time is in ticks of 10 ms. Requests are messages that the server has received.",
            extent.fleet.starts
        ),
        format!(
            "Outages last {} s and are the worst of {}: `refused` is a server that is killed, `silent` one whose packets are lost.",
            extent.outage.as_secs(),
            extent.outages
        ),
    ]
}

fn row(part: &Part, what: &str, unit: Unit, figure: impl Into<Figure>) -> Row {
    Row::new(format!("{} leases: {what}", part.peers), unit).with(&part.column, figure)
}

/// Starts from nothing, and what they cost; with the daemon that was started last.
fn starts(ground: &mut Ground, program: &Path, part: &Part, extent: &Extent) -> Result<(Daemon, Vec<Row>)> {
    let requests = |ground: &mut Ground, _: Option<&Daemon>| Ok(ground.server()?.requests()?.all() as f64);
    let (daemon, cost) = fleet::starts(ground, program, &extent.fleet, requests)?;
    let row = |what: &str, unit, figure: f64| row(part, what, unit, figure);
    let most = |row: Row, bound| row.aim(Bound::AtMost(bound));
    let mib = f64::from(1 << 20);
    let rows = vec![
        row("exec to subnet.env", Unit::Seconds, cost.file),
        most(row("exec to all programmed", Unit::Seconds, cost.whole), 0.5),
        most(row("CPU of a start", Unit::Seconds, cost.cpu), 0.3),
        most(row("requests of a start", Unit::Count, cost.counted), 10.0),
        row("VmRSS after 10 s", Unit::Bytes, cost.resident),
        most(row("VmHWM", Unit::Bytes, cost.peak), 10.0 * mib),
    ];
    Ok((daemon, rows))
}

/// A peer comes and goes, again and again: the times from its put to the server's answer and to the kernel's route.
fn changes(ground: &mut Ground, daemon: &mut Daemon, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    let peers = part.peers..part.peers + extent.fleet.changes;
    let (answers, routes) = fleet::changes(ground, daemon, peers)?;
    Ok(vec![
        row(part, "a peer's put, until answered", Unit::Seconds, Figure::spread_of(&answers)),
        row(part, "a peer's put, until routed", Unit::Seconds, Figure::spread_of(&routes)).aim(Bound::AtMost(0.005)),
    ])
}

/// What the server hears while nothing happens.
fn idle(ground: &mut Ground, part: &Part, extent: &Extent) -> Result<Row> {
    let before = ground.server()?.requests()?;
    sleep(extent.fleet.watched);
    let asked = ground.server()?.requests()?.since(&before).all_but("LeaseKeepAlive");
    let row = row(part, "idle, requests in 60 s but renewals", Unit::Count, asked as f64);
    Ok(row.aim(Bound::AtMost(0.0)))
}

/// A peer joins while the daemon has no server: the time from the server's return to the route.
fn outages(
    ground: &mut Ground,
    daemon: &mut Daemon,
    part: &Part,
    extent: &Extent,
    outage: Outage,
    how: &str,
) -> Result<Row> {
    let mut worst = Duration::ZERO;
    for number in 0..extent.outages {
        let peer = Peer(part.peers + number);
        let back = ground.server()?.away(outage, extent.outage, |server| peer.join_on(server).map(drop))?;
        worst = worst.max(daemon.wait_route(peer, true, back)?);
        ground.leave(peer)?;
        daemon.wait_route(peer, false, back)?;
    }
    Ok(row(part, &format!("{how} outage, its end until routed"), Unit::Seconds, worst).aim(Bound::AtMost(1.0)))
}

/// Daemons of a network of their own that were started while the server was away: when do they list?
fn crowd(ground: &mut Ground, program: &Path, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    let config = r#"{"Network": "10.0.0.0/8", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#;
    ground.server()?.put(&format!("{CROWD}/config"), config)?;
    let _crowd = fleet::assemble(ground, program, &[&format!("--etcd-prefix={CROWD}")], &extent.fleet)?;
    fleet::rows(part, &extent.fleet, "lists and other reads", &lists(ground, extent)?)
}

/// When the server was asked for ranges of keys, from its return on; in seconds.
fn lists(ground: &mut Ground, extent: &Extent) -> Result<Vec<f64>> {
    let server = ground.server()?;
    let mut before: Requests = server.requests()?;
    let (mut lists, back): (_, Instant) = (Vec::new(), server.switch().mend()?);
    while back.elapsed() < extent.counted {
        sleep(Duration::from_millis(10));
        let now = server.requests()?;
        let came = now.since(&before).of("Range") as usize;
        lists.extend(std::iter::repeat_n(back.elapsed().as_secs_f64(), came));
        before = now;
    }
    Ok(lists)
}
