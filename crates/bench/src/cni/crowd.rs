//! Many pods at once: how fast they are added, and those that stay.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};

use super::WAYS;
use super::call::call;
use super::contender::Contender;
use super::stand::{Pod, Stand};
use crate::figure::Unit;
use crate::report::Row;

/// How many pods a second each contender adds when several calls are made at a time.
pub(super) fn parallel(count: usize, contenders: &[Contender], stand: &Stand) -> Result<Row> {
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
pub(super) fn fill(count: usize, contender: &Contender, stand: &Stand) -> Result<Vec<Pod>> {
    let pods = (0..count).map(|number| stand.pod(&format!("other{number}"), 0));
    let pods: Vec<Pod> = pods.collect::<Result<_>>()?;
    all_at_once(contender, "ADD", stand, &pods)?;
    Ok(pods)
}
