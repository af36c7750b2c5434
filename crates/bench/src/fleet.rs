//! What the benches with many leases have in common: daemons that start from nothing, peers that come and go, and a crowd of
//! daemons that all meet their server in the same moment.
//!
//! Surface: [`Extent`], [`starts`], [`changes`], [`Member`], [`assemble`], [`rows`]. What a server is asked, and how that is counted,
//! is the benches' own.

use std::net::Ipv4Addr;
use std::ops::Range;
use std::path::Path;
use std::thread::sleep;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::benches::Part;
use crate::figure::Unit;
use crate::ground::{Daemon, Ground, Peer};
use crate::report::{Bound, Row};
use crate::statistics::{densest, median, span};
use crate::switch::Outage;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// The number of starts.
    pub starts: usize,
    /// How long the last daemon that was started may settle; those before it have a tenth of that.
    pub settle: Duration,
    /// The number of peers that come and go.
    pub changes: u32,
    /// How long a daemon is only watched.
    pub watched: Duration,
    /// The number of daemons in a crowd.
    pub crowd: u8,
    /// How long these have to be up before their server is back.
    pub crowded: Duration,
}

impl Extent {
    /// All of it.
    pub const WHOLE: Self = Self {
        starts: 5,
        settle: Duration::from_secs(10),
        changes: 50,
        watched: Duration::from_mins(1),
        crowd: 200,
        crowded: Duration::from_secs(5),
    };
    /// When it is only shown that the bench runs.
    pub const QUICK: Self = Self {
        starts: 1,
        settle: Duration::from_secs(1),
        changes: 3,
        watched: Duration::from_secs(1),
        crowd: 4,
        crowded: Duration::from_millis(500),
    };
}

/// What starts cost.
#[derive(Debug, Clone, Copy)]
pub struct Starts {
    /// From exec to `subnet.env` in seconds, the median.
    pub file: f64,
    /// From exec until all was programmed in seconds, the median.
    pub whole: f64,
    /// CPU time in seconds, the worst.
    pub cpu: f64,
    /// What was counted, the worst.
    pub counted: f64,
    /// `VmRSS` of the last one in bytes.
    pub resident: f64,
    /// `VmHWM` of the last one in bytes.
    pub peak: f64,
}

/// Starts daemons from nothing, one after the other; with the one that was started last. What `count` answers before a start, when
/// there is no daemon yet, is subtracted from what it answers when that has settled.
pub fn starts(
    ground: &mut Ground,
    program: &Path,
    extent: &Extent,
    count: impl Fn(&mut Ground, Option<&Daemon>) -> Result<f64>,
) -> Result<(Daemon, Starts)> {
    let (mut file, mut whole, mut cpu, mut counted) = (Vec::new(), Vec::new(), 0.0_f64, 0.0_f64);
    loop {
        ground.renew()?;
        let before = count(ground, None)?;
        let mut daemon = ground.start(program)?;
        file.push(daemon.wait_subnet_file()?.as_secs_f64());
        whole.push(daemon.wait_programmed()?.as_secs_f64());
        let last = whole.len() >= extent.starts;
        sleep(if last { extent.settle } else { extent.settle / 10 });
        cpu = cpu.max(daemon.cpu()?.as_secs_f64());
        counted = counted.max(count(ground, Some(&daemon))? - before);
        if last {
            let (resident, peak) = (daemon.memory("VmRSS")?, daemon.memory("VmHWM")?);
            let (file, whole) = (median(&file), median(&whole));
            return Ok((daemon, Starts { file, whole, cpu, counted, resident, peak }));
        }
    }
}

/// Peers come and go, one after the other: of each the seconds from its lease's being sent until that was answered, and until the
/// kernel routes to it.
pub fn changes(ground: &mut Ground, daemon: &mut Daemon, peers: Range<u32>) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut answers, mut routes) = (Vec::new(), Vec::new());
    for peer in peers.map(Peer) {
        let begun = ground.join(peer)?;
        answers.push(begun.elapsed().as_secs_f64());
        routes.push(daemon.wait_route(peer, true, begun)?.as_secs_f64());
        ground.leave(peer)?;
        daemon.wait_route(peer, false, begun)?;
    }
    Ok((answers, routes))
}

/// A daemon of a crowd by its number, on a node of its own.
#[derive(Debug, Clone, Copy)]
pub struct Member(pub u8);

impl Member {
    /// The name of its node.
    pub fn name(self) -> String {
        format!("crowd-{}", self.0)
    }

    /// The address of its node.
    pub fn address(self) -> Ipv4Addr {
        Ipv4Addr::new(192, 0, 2, self.0 + 1)
    }

    fn subnet_file(self) -> String {
        format!("/run/{}.env", self.name())
    }

    fn start(self, ground: &Ground, program: &Path, arguments: &[&str]) -> Result<Daemon> {
        let file = format!("--subnet-file={}", self.subnet_file());
        ground.start_as(&self.name(), program, &[arguments, &[&file]].concat())
    }
}

/// Starts a crowd, with further arguments, while the server is away. It knows them all from a time before.
pub fn assemble(ground: &mut Ground, program: &Path, arguments: &[&str], extent: &Extent) -> Result<Vec<Daemon>> {
    ground.unplug()?;
    let (first, members) = (ground.namespaces(), (0..extent.crowd).map(Member));
    let mut daemons = Vec::new();
    for member in members.clone() {
        ground.move_on(format!("{}/24", member.address()).parse()?)?;
        daemons.push(member.start(ground, program, arguments)?);
    }
    // All of them have told of themselves before they are ended.
    for (daemon, member) in daemons.iter_mut().zip(members.clone()) {
        daemon.wait_file(&member.subnet_file())?;
    }
    daemons.clear();
    ground.switch().context("there is no server")?.cut(Outage::Refused)?;
    for (member, namespace) in members.zip(first..) {
        ground.move_back(namespace)?;
        daemons.push(member.start(ground, program, arguments)?);
    }
    sleep(extent.crowded);
    Ok(daemons)
}

/// Rows of the moments in seconds, in order, at which a crowd asked for what is called so.
pub fn rows(part: &Part, extent: &Extent, called: &str, asked: &[f64]) -> Result<Vec<Row>> {
    asked.first().with_context(|| format!("no {called}"))?;
    let row = |what: &str, unit, value: f64| {
        Row::new(format!("{} daemons at once: {what}", extent.crowd), unit).with(&part.column, value)
    };
    Ok(vec![
        row(called, Unit::Count, asked.len() as f64),
        row("from the first to the last", Unit::Seconds, span(asked)).aim(Bound::AtLeast(5.0)),
        row("most within 100 ms", Unit::Count, densest(asked) as f64),
    ])
}
