//! ADD and DEL one after the other: the times of each contender, and what they are beside those of the others.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::GO;
use super::call::call;
use super::contender::{Contender, FLOOR};
use super::stand::{Pod, Stand};
use crate::figure::{Figure, Unit};
use crate::floor::Parts;
use crate::report::{Bound, OURS, Row};
use crate::statistics::median;
use crate::turns::order;

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
pub(super) fn serial(
    rounds: usize,
    load: &str,
    contenders: &[Contender],
    stand: &Stand,
    pod: &Pod,
) -> Result<Vec<Row>> {
    let mut times: Vec<Times> = contenders.iter().map(|_| Times::default()).collect();
    for round in 0..rounds {
        for who in order(round, contenders.len()) {
            once(&contenders[who], stand, pod, &mut times[who])?;
        }
    }
    Ok(rows(load, contenders, &times))
}

fn once(contender: &Contender, stand: &Stand, pod: &Pod, times: &mut Times) -> Result<()> {
    let cost = call(contender, "ADD", stand, pod)?;
    times.add.push(cost.wall.as_secs_f64());
    times.add_cpu.push(cost.cpu.as_secs_f64());
    note_parts(&mut times.add_parts, cost.wall, &cost.parts);
    let begun = Instant::now();
    let cost = call(contender, "DEL", stand, pod)?;
    times.del.push(cost.wall.as_secs_f64());
    note_parts(&mut times.del_parts, cost.wall, &cost.parts);
    pod.wait_disconnected()?;
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

fn rows(load: &str, contenders: &[Contender], times: &[Times]) -> Vec<Row> {
    let row = |what: &str, value: &dyn Fn(&Times) -> Figure| {
        let row = Row::new(format!("{what}{load}"), Unit::Seconds);
        contenders.iter().zip(times).fold(row, |row, (who, times)| row.with(&who.name, value(times)))
    };
    let all = [
        row("ADD, p50 / p95", &|times| Figure::spread_of(&times.add)),
        row("ADD, CPU", &|times| median(&times.add_cpu).into()),
        row("DEL, p50 / p95", &|times| Figure::spread_of(&times.del)),
        row("DEL, until the link is gone", &|times| Figure::spread_of(&times.gone)),
    ];
    let compared = [
        over_floor(&format!("ADD over the floor{load}"), &all[0]).aim(Bound::AtMost(1.5)),
        over_ours(&format!("ADD over ours{load}"), &all[0]).aim_of(rival(contenders), Bound::AtLeast(8.0)),
        over_floor(&format!("DEL over the floor{load}"), &all[2]),
        over_ours(&format!("DEL over ours{load}"), &all[2]),
    ];
    let floor = contenders.iter().zip(times).find(|(who, _)| who.name == FLOOR).map(|(_, times)| times);
    let parts = floor.filter(|_| load.is_empty()).into_iter().flat_map(floors_parts);
    all.into_iter().chain(compared).chain(parts).collect()
}

/// Whose chain ours is to beat: one that has the plugin `flannel` too, if such a one is there.
fn rival(contenders: &[Contender]) -> &str {
    let others = || contenders.iter().filter(|who| ![OURS, FLOOR].contains(&who.name.as_str()));
    others().find(|who| !who.is_without_flannel()).map_or(GO, |who| &who.name)
}

fn over_floor(what: &str, row: &Row) -> Row {
    over(what, row, FLOOR, |_| true)
}

fn over_ours(what: &str, row: &Row) -> Row {
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
