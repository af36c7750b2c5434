//! ADD and DEL one after the other: the times of each contender, and what they are beside those of the others.

use std::time::{Duration, Instant};

use anyhow::Result;
use flannel_core::rules::RuleMode;

use super::call::{add, del};
use super::contender::{Contender, FLOOR, Wish};
use super::{GO, Site, verb};
use crate::figure::{Figure, Unit};
use crate::floor::Parts;
use crate::report::{Bound, OURS, Row};
use crate::statistics::median;
use crate::turns::order;

/// What a DEL should take.
const SOON: Bound = Bound::MedianAtMost(3e-3);
/// How much more an ADD should take at most beside many rules: what two runs of one thing differ by.
const FLAT: Bound = Bound::AtMost(1.25);

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
pub(super) fn serial(site: &Site, wish: Wish, load: &str) -> Result<Vec<Row>> {
    let contenders = site.able(wish);
    let mut times: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    let rounds = if wish == Wish::Link { site.extent.rounds } else { site.extent.port_rounds };
    for round in 0..rounds {
        for who in order(round, contenders.len()) {
            once(contenders[who], wish, site, &mut times[who])?;
        }
    }
    Ok(match wish {
        Wish::Link => rows(load, &contenders, &times),
        Wish::Ports(mode) => port_rows(mode, load, &contenders, &times),
    })
}

fn once(contender: &Contender, wish: Wish, site: &Site, times: &mut Times) -> Result<()> {
    let cost = add(contender, wish, &site.stand, &site.pod)?;
    times.add.push(cost.wall.as_secs_f64());
    times.add_cpu.push(cost.cpu.as_secs_f64());
    note_parts(&mut times.add_parts, cost.wall, &cost.parts());
    let begun = Instant::now();
    let cost = del(contender, wish, &site.stand, &site.pod, &cost.result)?;
    times.del.push(cost.wall.as_secs_f64());
    note_parts(&mut times.del_parts, cost.wall, &cost.parts());
    site.pod.wait_disconnected()?;
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

fn row(what: String, contenders: &[&Contender], times: &[Times], value: impl Fn(&Times) -> Figure) -> Row {
    let figures = contenders.iter().zip(times);
    figures.fold(Row::new(what, Unit::Seconds), |row, (who, times)| row.with(&who.name, value(times)))
}

fn rows(load: &str, contenders: &[&Contender], times: &[Times]) -> Vec<Row> {
    let row = |what: &str, value: &dyn Fn(&Times) -> Figure| row(format!("{what}{load}"), contenders, times, value);
    let all = [
        row("ADD, p50 / p95", &|times| Figure::spread_of(&times.add)),
        row("ADD, CPU", &|times| median(&times.add_cpu).into()),
        row("DEL, p50 / p95", &|times| Figure::spread_of(&times.del)).aim(SOON),
        row("DEL, until the link is gone", &|times| Figure::spread_of(&times.gone)),
    ];
    let compared = [
        over_floor(&format!("ADD over the floor{load}"), &all[0]).aim(Bound::AtMost(1.5)),
        over_ours(&format!("ADD over ours{load}"), &all[0]).aim_of(rival(contenders), Bound::AtLeast(10.0)),
        over_floor(&format!("DEL over the floor{load}"), &all[2]),
        over_ours(&format!("DEL over ours{load}"), &all[2]),
    ];
    let floor = contenders.iter().zip(times).find(|(who, _)| who.name == FLOOR).map(|(_, times)| times);
    let parts = floor.filter(|_| load.is_empty()).into_iter().flat_map(floors_parts);
    all.into_iter().chain(compared).chain(parts).collect()
}

/// The first is of ADD.
fn port_rows(mode: RuleMode, load: &str, contenders: &[&Contender], times: &[Times]) -> Vec<Row> {
    let what = |name, part: &str| format!("{}{part}{load}", verb(name, mode));
    let add = row(what("ADD", ", p50 / p95"), contenders, times, |times| Figure::spread_of(&times.add));
    let del = row(what("DEL", ", p50 / p95"), contenders, times, |times| Figure::spread_of(&times.del));
    let mut compared = over_ours(&what("ADD", " over ours"), &add);
    if mode == RuleMode::Nftables {
        compared = compared.aim_of(rival(contenders), Bound::AtLeast(20.0));
    }
    let del_compared = over_ours(&what("DEL", " over ours"), &del);
    vec![add, del, compared, del_compared]
}

/// How much longer the first of the rows took than before.
pub(super) fn over_before(what: &str, before: &[Row], after: &[Row]) -> Option<Row> {
    let (before, after) = (before.first()?, after.first()?);
    let of = |column: &str| before.figures.get(column).map_or(f64::NAN, |figure| figure.value);
    let ratio = |row: Row, (column, figure): (&String, &Figure)| row.with(column, figure.value / of(column));
    Some(after.figures.iter().fold(Row::new(what, Unit::Ratio), ratio).aim(FLAT))
}

/// Whose chain ours is to beat: one that has the plugin `flannel` too, if such a one is there.
pub(super) fn rival<'a>(contenders: &[&'a Contender]) -> &'a str {
    let others = || contenders.iter().filter(|who| ![OURS, FLOOR].contains(&who.name.as_str()));
    others().find(|who| !who.is_without_flannel()).map_or(GO, |who| &who.name)
}

fn over_floor(what: &str, row: &Row) -> Row {
    over(what, row, FLOOR, |_| true)
}

pub(super) fn over_ours(what: &str, row: &Row) -> Row {
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
