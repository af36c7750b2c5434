//! The bench `restart`: what a running network loses when flanneld ends and starts again.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use flannel_core::addr::Family;
use flannel_kernel::process::Enclosed;
use flannel_lab::lab::{Lab, Pod};

use crate::benches::{Part, Setting, Tell};
use crate::figure::Unit;
use crate::report::{Bound, Report, Row};
use crate::statistics::median;

/// How long there is traffic before and after each restart.
const AROUND: Duration = Duration::from_millis(300);

/// How flanneld ends.
#[derive(Debug, Clone, Copy)]
enum End {
    Killed,
    Stopped,
}

/// What one kind of restart has cost, summed over all.
#[derive(Debug, Default)]
struct Loss {
    lost: usize,
    lost_flows: usize,
    unmasqueraded: usize,
    until_ready: Vec<f64>,
}

/// Measures one daemon with one kind of packet rules.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let times = if setting.quick { 1 } else { 10 };
    tell(&format!("{} with {}, {times} times each", part.column, part.rules.name()));
    let mut options = setting.lab(part);
    (options.nodes, options.pods) = (3, 1);
    let mut lab = Lab::start(enclosed, options, &setting.flannel, &mut |_| ())?;
    let mut rows = Vec::new();
    for (end, name) in [(End::Killed, "SIGKILL"), (End::Stopped, "SIGTERM")] {
        let mut loss = Loss::default();
        (0..times).try_for_each(|_| restart(&mut lab, end, &mut loss))?;
        rows.extend(of_end(part, name, &loss));
    }
    Ok(Report {
        name: "restart".into(),
        columns: vec![part.column.clone()],
        rows,
        notes: vec![format!(
            "{times} restarts of each kind, under 1,000 pings a second on each of three paths and 1,000 new flows a second to a host \
             outside."
        )],
    })
}

/// Ends the flanneld of a node and starts it again, with pings from and to its pod, and flows from it to the outside.
fn restart(lab: &mut Lab, end: End, loss: &mut Loss) -> Result<()> {
    let family = Family::V4;
    let pod = |node: usize| lab.node(node).pods().first().context("a node has no pod");
    let paths = [(0, 1), (1, 0), (2, 0)];
    let pingers = paths.map(|(from, to)| Ok::<_, anyhow::Error>(lab.pinger(pod(from)?, pod(to)?, family)?));
    let pingers = pingers.into_iter().collect::<Result<Vec<_>>>()?;
    let own = pod(0).map(Pod::addresses)?.get(family).copied().context("a pod has no address")?;
    let flows = lab.flows(pod(0)?, family)?;
    std::thread::sleep(AROUND);
    let arguments = lab.node(0).arguments().to_vec();
    let node = lab.node_mut(0);
    match end {
        End::Killed => node.flanneld.kill()?,
        End::Stopped => node.flanneld.stop()?,
    }
    let begun = Instant::now();
    node.start_again(&arguments)?;
    loss.until_ready.push(begun.elapsed().as_secs_f64());
    std::thread::sleep(AROUND);
    pingers.iter().for_each(flannel_lab::traffic::Pinger::halt);
    for pinger in pingers {
        let pings = pinger.finish()?;
        loss.lost += pings.lost.len();
    }
    let seen = flows.finish()?;
    loss.unmasqueraded += seen.by_source.get(&own).copied().unwrap_or_default();
    loss.lost_flows += seen.sent.saturating_sub(seen.by_source.values().sum());
    Ok(())
}

fn of_end(part: &Part, end: &str, loss: &Loss) -> Vec<Row> {
    let row = |what: &str, unit, value: f64| {
        Row::new(format!("{end}, {}: {what}", part.rules.name()), unit).with(&part.column, value)
    };
    let count = |what: &str, count: usize| row(what, Unit::Count, count as f64).aim(Bound::AtMost(0.0));
    vec![
        count("pings lost", loss.lost),
        count("flows lost", loss.lost_flows),
        count("flows unmasqueraded", loss.unmasqueraded),
        row("until ready again", Unit::Seconds, median(&loss.until_ready)),
    ]
}
