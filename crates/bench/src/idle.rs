//! The bench `idle`: what a flanneld costs while nothing happens.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use flannel_kernel::process::Enclosed;

use crate::benches::{Part, Setting, Tell};
use crate::figure::Unit;
use crate::ground::{Daemon, Ground, Rules, last_pid};
use crate::report::{Bound, Report, Row};

/// The numbers of peers.
pub const SIZES: [u32; 2] = [3, 5_000];

/// Measures one daemon with one number of peers and one kind of packet rules.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let (settle, seconds) = if setting.quick { (1, 3) } else { (20, 60) };
    tell(&format!("{} with {} peers and {}", part.column, part.peers, part.rules.name()));
    let mut ground = Ground::new(enclosed, part.peers, part.rules)?;
    ground.renew()?;
    let mut daemon = ground.start(setting.daemon(part))?;
    daemon.wait_programmed()?;
    std::thread::sleep(Duration::from_secs(settle));
    let (cpu, processes) = watch(&daemon, seconds)?;
    let row = |what: &str, unit| Row::new(format!("{} peers, {}: {what}", part.peers, part.rules.name()), unit);
    let most = if part.rules == Rules::IptablesLegacy { 24.0 } else { 0.0 };
    Ok(Report {
        name: "idle".into(),
        columns: vec![part.column.clone()],
        rows: vec![
            row("CPU in 60 s", Unit::Seconds).with(&part.column, cpu).aim(Bound::AtMost(0.05)),
            row("processes in 60 s", Unit::Count).with(&part.column, processes).aim(Bound::AtMost(most)),
        ],
        notes: vec!["CPU time is of the daemon and the processes it started, in ticks of 10 ms.".into()],
    })
}

/// CPU time, and processes that were made.
///
/// The kernel numbers processes and threads alike, and nobody else is in this PID namespace: what was numbered meanwhile and
/// was never a thread of the daemon was a process. Its threads live for seconds, so that a look each second sees them.
fn watch(daemon: &Daemon, seconds: u32) -> Result<(f64, f64)> {
    let known: BTreeSet<String> = daemon.threads()?.into_iter().collect();
    let (cpu, first, mut threads) = (daemon.cpu()?, last_pid()?, known.clone());
    for _ in 0..seconds {
        std::thread::sleep(Duration::from_secs(1));
        threads.extend(daemon.threads()?);
    }
    let numbered = last_pid()?.saturating_sub(first);
    let processes = numbered.saturating_sub((threads.len() - known.len()) as u64);
    Ok((daemon.cpu()?.saturating_sub(cpu).as_secs_f64(), processes as f64))
}
