//! The bench `etcd`: what a fleet on etcd costs a flanneld and its server, on a real one.
//!
//! One daemon among many leases first: its start, a peer that joins, a minute without news, outages. Then a crowd of daemons
//! that all meet their server in the same moment.

use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_kernel::process::Enclosed;

use crate::benches::{Part, Setting, Tell};
use crate::figure::{Figure, Unit};
use crate::ground::{Daemon, Ground, Peer};
use crate::report::{Bound, Report, Row};
use crate::server::Requests;
use crate::statistics::{densest, median, span};
use crate::switch::Outage;

/// The numbers of leases.
pub const SIZES: [u32; 1] = [5_000];
/// … when it is only shown that the bench runs.
pub const QUICK_SIZES: [u32; 1] = [50];

/// The prefix of the crowd's own network.
const CROWD: &str = "/crowd";

struct Extent {
    starts: usize,
    settle: Duration,
    changes: u32,
    idle: Duration,
    outage: Duration,
    outages: u32,
    crowd: u8,
    /// How long the daemons of a crowd have to be up, and how long their lists are counted.
    crowded: (Duration, Duration),
}

impl Extent {
    const WHOLE: Self = Self {
        starts: 5,
        settle: Duration::from_secs(10),
        changes: 50,
        idle: Duration::from_mins(1),
        outage: Duration::from_secs(30),
        outages: 2,
        crowd: 200,
        crowded: (Duration::from_secs(5), Duration::from_secs(15)),
    };
    const QUICK: Self = Self {
        starts: 1,
        settle: Duration::from_secs(1),
        changes: 3,
        idle: Duration::from_secs(1),
        outage: Duration::from_millis(500),
        outages: 1,
        crowd: 4,
        crowded: (Duration::from_millis(500), Duration::from_secs(1)),
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
    tell(&format!("{}, {} daemons at once", part.column, extent.crowd));
    rows.extend(crowd(&mut ground, program, part, &extent)?);
    Ok(Report { name: "etcd".into(), columns: vec![part.column.clone()], rows, notes: notes(&extent) })
}

fn notes(extent: &Extent) -> Vec<String> {
    vec![
        format!(
            "Starts are the median of {}, CPU and requests their worst, each in a network namespace that nobody has used; CPU \
             time is in ticks of 10 ms. Requests are messages that the server has received.",
            extent.starts
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
    let (mut file, mut whole, mut cpu, mut requests) = (Vec::new(), Vec::new(), 0.0_f64, 0.0_f64);
    loop {
        ground.renew()?;
        let before = ground.server()?.requests()?;
        let mut daemon = ground.start(program)?;
        file.push(daemon.wait_subnet_file()?.as_secs_f64());
        whole.push(daemon.wait_programmed()?.as_secs_f64());
        let last = whole.len() >= extent.starts;
        sleep(if last { extent.settle } else { extent.settle / 10 });
        cpu = cpu.max(daemon.cpu()?.as_secs_f64());
        requests = requests.max(ground.server()?.requests()?.since(&before).all() as f64);
        if last {
            let (resident, peak) = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
            let most = |row: Row, bound| row.aim(Bound::AtMost(bound));
            let mib = f64::from(1 << 20);
            let rows = vec![
                row(part, "exec to subnet.env", Unit::Seconds, median(&file)),
                most(row(part, "exec to all programmed", Unit::Seconds, median(&whole)), 0.5),
                most(row(part, "CPU of a start", Unit::Seconds, cpu), 0.3),
                most(row(part, "requests of a start", Unit::Count, requests), 10.0),
                row(part, "VmRSS after 10 s", Unit::Bytes, resident),
                most(row(part, "VmHWM", Unit::Bytes, peak), 10.0 * mib),
            ];
            return Ok((daemon, rows));
        }
    }
}

/// A peer comes and goes, again and again: the times from its put to the server's answer and to the kernel's route.
fn changes(ground: &mut Ground, daemon: &mut Daemon, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    let (mut answers, mut routes) = (Vec::new(), Vec::new());
    for number in 0..extent.changes {
        let peer = Peer(part.peers + number);
        let begun = peer.join_on(ground.server()?)?;
        answers.push(begun.elapsed().as_secs_f64());
        routes.push(daemon.wait_route(peer, true, begun)?.as_secs_f64());
        peer.leave_from(ground.server()?)?;
        daemon.wait_route(peer, false, begun)?;
    }
    Ok(vec![
        row(part, "a peer's put, until answered", Unit::Seconds, Figure::spread_of(&answers)),
        row(part, "a peer's put, until routed", Unit::Seconds, Figure::spread_of(&routes)).aim(Bound::AtMost(0.005)),
    ])
}

/// What the server hears while nothing happens.
fn idle(ground: &mut Ground, part: &Part, extent: &Extent) -> Result<Row> {
    let before = ground.server()?.requests()?;
    sleep(extent.idle);
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
        peer.leave_from(ground.server()?)?;
        daemon.wait_route(peer, false, back)?;
    }
    Ok(row(part, &format!("{how} outage, its end until routed"), Unit::Seconds, worst).aim(Bound::AtMost(1.0)))
}

/// Daemons of a network of their own that were started while the server was away: when do they list?
fn crowd(ground: &mut Ground, program: &Path, part: &Part, extent: &Extent) -> Result<Vec<Row>> {
    ground.unplug()?;
    let config = r#"{"Network": "10.0.0.0/8", "EnableNFTables": true, "Backend": {"Type": "vxlan"}}"#;
    ground.server()?.put(&format!("{CROWD}/config"), config)?;
    let first = ground.namespaces();
    let mut daemons = Vec::new();
    for number in 0..extent.crowd {
        ground.move_on(format!("192.0.2.{}/24", number + 1).parse()?)?;
        daemons.push(member(ground, program, first, number)?);
    }
    // All of them are known before they are ended.
    for (daemon, number) in daemons.iter_mut().zip(0..) {
        daemon.wait_file(&subnet_file(number))?;
    }
    daemons.clear();
    ground.server()?.switch().cut(Outage::Refused)?;
    for number in 0..extent.crowd {
        daemons.push(member(ground, program, first, number)?);
    }
    sleep(extent.crowded.0);
    let lists = lists(ground, extent)?;
    let row = |what: &str, unit, value: f64| {
        Row::new(format!("{} daemons at once: {what}", extent.crowd), unit).with(&part.column, value)
    };
    Ok(vec![
        row("lists and other reads", Unit::Count, lists.len() as f64),
        row("from the first to the last", Unit::Seconds, span(&lists)).aim(Bound::AtLeast(5.0)),
        row("most within 100 ms", Unit::Count, densest(&lists) as f64),
    ])
}

fn subnet_file(number: u8) -> String {
    format!("/run/crowd-{number}.env")
}

/// Starts a daemon of the crowd, in its own namespace.
fn member(ground: &Ground, program: &Path, first: usize, number: u8) -> Result<Daemon> {
    ground.move_back(first + usize::from(number))?;
    let words = [format!("--etcd-prefix={CROWD}"), format!("--subnet-file={}", subnet_file(number))];
    ground.start_as("", program, &[&words[0], &words[1]])
}

/// When the server was asked for ranges of keys, from its return on; in seconds.
fn lists(ground: &mut Ground, extent: &Extent) -> Result<Vec<f64>> {
    let server = ground.server()?;
    let mut before: Requests = server.requests()?;
    let (mut lists, back): (_, Instant) = (Vec::new(), server.switch().mend()?);
    while back.elapsed() < extent.crowded.1 {
        sleep(Duration::from_millis(10));
        let now = server.requests()?;
        let came = now.since(&before).of("Range") as usize;
        lists.extend(std::iter::repeat_n(back.elapsed().as_secs_f64(), came));
        before = now;
    }
    lists.first().context("nobody lists")?;
    Ok(lists)
}
