//! Many pods at once: how fast they are added, and those that stay.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::Value;

use super::call::{add, del, publish};
use super::contender::Wish;
use super::serial::rival;
use super::stand::Pod;
use super::{MODES, PORTS, Site, WAYS, verb};
use crate::figure::Unit;
use crate::report::{Bound, OURS, Row};

/// A pod that stays, and what its plugin has returned.
pub(super) type Other = (Pod, Value);

/// The pods that are added at once.
pub(super) fn crowd(site: &Site) -> Result<Vec<Pod>> {
    let port = |number: usize| u16::try_from(10_000 + number).map(|port| vec![port]);
    (0..site.extent.crowd).map(|number| site.stand.pod(&format!("crowd{number}"), number + 1, port(number)?)).collect()
}

/// How many pods a second each contender adds when several calls are made at a time, and how much more of them ours adds.
pub(super) fn parallel(site: &Site, wish: Wish, pods: &[Pod]) -> Result<Vec<Row>> {
    let contenders = site.able(wish);
    let what = if let Wish::Ports(mode) = wish { verb("ADD", mode) } else { "ADD".to_owned() };
    let mut row = Row::new(format!("{what}, {WAYS} at a time"), Unit::PerSecond);
    for contender in &contenders {
        let begun = Instant::now();
        let results = all_at_once(pods, |pod| Ok(add(contender, wish, &site.stand, pod)?.result))?;
        row = row.with(&contender.name, pods.len() as f64 / begun.elapsed().as_secs_f64());
        let added: Vec<(&Pod, Value)> = pods.iter().zip(results).collect();
        all_at_once(&added, |(pod, result)| del(contender, wish, &site.stand, pod, result).map(drop))?;
        pods.iter().try_for_each(Pod::wait_disconnected)?;
    }
    let times_ours = times_ours(&format!("{what}, {WAYS} at a time: ours over it"), &row);
    Ok(vec![row, times_ours.aim_of(rival(&contenders), Bound::AtLeast(10.0))])
}

fn times_ours(what: &str, row: &Row) -> Row {
    let ours = row.figures.get(OURS).map_or(f64::NAN, |figure| figure.value);
    let others = row.figures.iter().filter(|(column, _)| *column != OURS);
    others.fold(Row::new(what, Unit::Ratio), |row, (column, figure)| row.with(column, ours / figure.value))
}

/// Does the same for all, several at a time; what came of it is in their order.
fn all_at_once<T: Sync, R: Send>(all: &[T], work: impl Fn(&T) -> Result<R> + Sync) -> Result<Vec<R>> {
    let queue = Mutex::new(all.iter().enumerate());
    let next = || queue.lock().ok().and_then(|mut queue| queue.next());
    let some = || -> Result<Vec<(usize, R)>> {
        let mut done = Vec::new();
        while let Some((number, one)) = next() {
            done.push((number, work(one)?));
        }
        Ok(done)
    };
    let mut done = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..WAYS).map(|_| scope.spawn(some)).collect();
        let join = |worker: std::thread::ScopedJoinHandle<'_, _>| worker.join().ok().context("a worker died")?;
        workers.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?
    .into_iter()
    .flatten()
    .collect::<Vec<_>>();
    done.sort_by_key(|(number, _)| *number);
    Ok(done.into_iter().map(|(_, result)| result).collect())
}

/// Fills the node with pods.
pub(super) fn fill(site: &Site) -> Result<Vec<Other>> {
    let ports = |number: usize| (0..PORTS).map(move |port| u16::try_from(20_000 + number * PORTS + port));
    let pod = |number| site.stand.pod(&format!("other{number}"), 0, ports(number).collect::<Result<_, _>>()?);
    let pods: Vec<Pod> = (0..site.extent.pods).map(pod).collect::<Result<_>>()?;
    let results = all_at_once(&pods, |pod| Ok(add(&site.contenders[0], Wish::Link, &site.stand, pod)?.result))?;
    Ok(pods.into_iter().zip(results).collect())
}

/// Publishes the ports of pods, by each kind of rules.
pub(super) fn publish_all(site: &Site, others: &[Other]) -> Result<()> {
    let publish = |(pod, result): &Other| {
        MODES.into_iter().try_for_each(|mode| publish(&site.contenders[0], "ADD", mode, pod, result).map(drop))
    };
    all_at_once(others, publish).map(drop)
}
