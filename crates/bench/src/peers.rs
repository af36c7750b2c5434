//! The bench `peers`: what many leases cost a flanneld on the local store, from its start to one change.

use std::path::Path;
use std::time::Duration;

use anyhow::Result;
use flannel_kernel::process::Enclosed;

use crate::benches::{Part, Setting, Tell};
use crate::figure::{Figure, Unit};
use crate::fleet;
use crate::ground::{Daemon, Ground, Rules};
use crate::report::{Bound, Report, Row};
use crate::statistics::median;

/// The numbers of leases.
pub const SIZES: [u32; 4] = [100, 1_000, 5_000, 10_000];
/// … when it is only shown that the bench runs.
pub const QUICK_SIZES: [u32; 2] = [10, 100];

struct Extent {
    starts: usize,
    settle: Duration,
    changes: u32,
}

impl Extent {
    const WHOLE: Self = Self { starts: 5, settle: Duration::from_secs(10), changes: 50 };
    const QUICK: Self = Self { starts: 2, settle: Duration::from_secs(1), changes: 3 };
}

/// Measures one daemon with one number of leases.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    tell(&format!("{} with {} leases", part.column, part.peers));
    let mut ground = Ground::new(enclosed, part.peers, Rules::Nft)?;
    let (mut daemon, starts) = starts(&mut ground, setting.daemon(part), extent.starts)?;
    std::thread::sleep(extent.settle);
    let memory = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
    let change = changes(&mut ground, &mut daemon, part.peers, extent.changes)?;
    Ok(Report {
        name: "peers".into(),
        columns: vec![part.column.clone()],
        rows: rows(part, &starts, memory, change),
        notes: vec!["Starts are the median of five, each in a network namespace that nobody has used.".into()],
    })
}

/// The times from start to `subnet.env` and to all programmed, in seconds; and the daemon that was started last.
fn starts(ground: &mut Ground, program: &Path, count: usize) -> Result<(Daemon, [Vec<f64>; 2])> {
    let mut times = [Vec::new(), Vec::new()];
    loop {
        ground.renew()?;
        let mut daemon = ground.start(program)?;
        times[0].push(daemon.wait_subnet_file()?.as_secs_f64());
        times[1].push(daemon.wait_programmed()?.as_secs_f64());
        if times[0].len() >= count {
            return Ok((daemon, times));
        }
    }
}

/// A peer comes and goes, again and again: the median time until the kernel routes to it, and the CPU time of each change.
fn changes(ground: &mut Ground, daemon: &mut Daemon, peers: u32, count: u32) -> Result<(f64, f64)> {
    let before = daemon.cpu()?;
    let (_, routes) = fleet::changes(ground, daemon, peers..peers + count)?;
    let cpu = daemon.cpu()?.saturating_sub(before).as_secs_f64() / f64::from(2 * count);
    Ok((median(&routes), cpu))
}

fn rows(part: &Part, starts: &[Vec<f64>; 2], memory: (f64, f64), change: (f64, f64)) -> Vec<Row> {
    let row = |what: &str, unit, figure: Figure, target: &[(u32, f64)]| {
        let row = Row::new(format!("{} leases: {what}", part.peers), unit).with(&part.column, figure);
        let target = target.iter().find(|(peers, _)| *peers == part.peers);
        target.map_or(row.clone(), |(_, bound)| row.aim(Bound::AtMost(*bound)))
    };
    let mib = f64::from(1 << 20);
    vec![
        row("exec to subnet.env", Unit::Seconds, median(&starts[0]).into(), &[(100, 0.020), (5_000, 0.080)]),
        row("exec to all programmed", Unit::Seconds, median(&starts[1]).into(), &[]),
        row("VmRSS after 10 s", Unit::Bytes, memory.0.into(), &[(5_000, 8.0 * mib)]),
        row("VmHWM", Unit::Bytes, memory.1.into(), &[]),
        row("one peer more, until routed", Unit::Seconds, change.0.into(), &[]),
        row("one change, CPU", Unit::Seconds, change.1.into(), &[(10_000, 0.010)]),
    ]
}
