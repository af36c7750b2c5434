//! The servers of etcd besieged: random faults of theirs while nodes come, go and change, under a [`judge`].
//!
//! Surface: [`siege`] with [`Siege`], and [`show`] for the command `flannel lab break --servers`. A round does one fault, some
//! [`deeds`], heals, and waits until all is as etcd says. Meanwhile pods that stay ping each other. The schedule follows from
//! its seed; what the machine makes of it is as random as ever.

mod deeds;
mod fault;
mod judge;

use std::fmt;
use std::io::Write;
use std::time::{Duration, Instant};

use flannel_core::addr::Family;

use self::deeds::Deed;
use self::fault::{Fault, heal};
use self::judge::Judge;
use crate::echo::fresh_token;
use crate::error::{Doing, LabError};
use crate::lab::Lab;
use crate::report::time;
use crate::traffic::Pinger;

/// How long the nodes may take until they are as etcd says.
const PATIENCE: Duration = Duration::from_mins(1);
/// The longest that a fault is left alone, but for the silence of servers, which takes this long to be noticed.
const SHORT: u64 = 2000;
const LONG: u64 = 15_000;
/// How many lost pings are listed; the rest is only counted.
const LISTED: usize = 12;

/// Numbers that follow from a seed (SplitMix64).
#[derive(Debug)]
pub(crate) struct Dice(u64);

impl Dice {
    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below a limit that is not 0.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}

/// What came of a siege.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Siege {
    /// What its schedule followed from.
    pub seed: u64,
    /// How many faults the servers had.
    pub faults: usize,
    /// How many pings were sent.
    pub pings: usize,
    /// Those that were not answered: how long after the first each was due.
    pub lost: Vec<Duration>,
    /// The longest that it took until all was well after a fault had ended.
    pub slowest: Duration,
}

impl fmt::Display for Siege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, faults, pings, lost, slowest } = self;
        write!(f, "seed {seed}: {faults} faults; after each, every node was as etcd says within {}; ", time(*slowest))?;
        write!(f, "no subnet was held twice; {} of {pings} pings lost", lost.len())?;
        let listed: Vec<String> = lost.iter().take(LISTED).map(|at| time(*at)).collect();
        if listed.is_empty() { Ok(()) } else { write!(f, ", after {}", listed.join(", ")) }
    }
}

/// The command `flannel lab break --servers`.
pub(crate) fn show(lab: &mut Lab, minutes: u64, seed: Option<u64>, out: &mut dyn Write) -> Result<(), LabError> {
    let mut write = |text: &str| writeln!(out, "{text}").doing(|| "write".into());
    let came = siege(lab, Duration::from_secs(minutes * 60), seed.unwrap_or_else(fresh_token), &mut write)?;
    write(&came.to_string())
}

/// Besieges the lab's servers for so long, and longer by the round that is under way. Each fault is told. Fails if something
/// does not become what it must be; pings that are lost are only counted.
pub fn siege(
    lab: &mut Lab,
    length: Duration,
    seed: u64,
    tell: &mut dyn FnMut(&str) -> Result<(), LabError>,
) -> Result<Siege, LabError> {
    if lab.etcd().is_none_or(|etcd| etcd.members().len() < 3) {
        return Err(LabError::Options("only three servers can be besieged: flannel lab up --store etcd:3".into()));
    }
    tell(&format!("seed {seed}"))?;
    // The last of several nodes comes and goes.
    let staying = lab.nodes().len() - usize::from(lab.nodes().len() > 2);
    let (judge, pingers) = (Judge::new(lab, staying), pingers(lab, staying)?);
    let (mut dice, began) = (Dice(seed), Instant::now());
    let (mut left, mut faults, mut slowest) = (Vec::new(), 0, Duration::ZERO);
    while began.elapsed() < length {
        // Each comes once before any comes again.
        if left.is_empty() {
            left = Fault::ALL.to_vec();
        }
        let fault = left.swap_remove(dice.below(left.len() as u64) as usize);
        slowest = slowest.max(round(lab, &judge, fault, &mut dice, tell)?);
        faults += 1;
    }
    let mut came = Siege { seed, faults, pings: 0, lost: Vec::new(), slowest };
    for pinger in pingers {
        let pings = pinger.finish()?;
        came.pings += pings.sent;
        came.lost.extend(pings.lost);
    }
    Ok(came)
}

/// Each of the first nodes pings the next, from pod to pod.
fn pingers(lab: &Lab, staying: usize) -> Result<Vec<Pinger>, LabError> {
    let firsts: Vec<_> = lab.nodes()[..staying].iter().filter_map(|node| node.pods().first()).collect();
    let families = || Family::ALL.into_iter().filter(|family| lab.options().speaks(*family));
    let ring = firsts.iter().zip(firsts.iter().cycle().skip(1)).filter(|_| firsts.len() > 1);
    ring.flat_map(|(from, to)| families().map(move |family| lab.pinger(from, to, family))).collect()
}

/// One fault from beginning to end; answers with the time until all was well after it.
fn round(
    lab: &mut Lab,
    judge: &Judge,
    fault: Fault,
    dice: &mut Dice,
    tell: &mut dyn FnMut(&str) -> Result<(), LabError>,
) -> Result<Duration, LabError> {
    let longest = if dice.below(8) == 0 { LONG } else { SHORT };
    let length = Duration::from_millis(200 + dice.below(longest));
    let mut done = perform(lab, judge, dice)?;
    fault.begin(lab, dice)?;
    let begun = Instant::now();
    done.extend(perform(lab, judge, dice)?);
    while begun.elapsed() < length {
        refuse(lab, &judge.wrong_at_any_time(lab))?;
        std::thread::sleep(Duration::from_millis(100));
    }
    let lasted = begun.elapsed();
    heal(lab, fault)?;
    let took = settle(lab, judge)?;
    tell(&format!("{} for {}; {}; all well after {}", fault.name(), time(lasted), done.join(", "), time(took)))?;
    Ok(took)
}

/// Does some deeds, and says what was done.
fn perform(lab: &mut Lab, judge: &Judge, dice: &mut Dice) -> Result<Vec<String>, LabError> {
    let deeds = Deed::some(lab, judge.staying(), dice);
    deeds.into_iter().map(|deed| deed.perform(lab, dice)).collect()
}

/// Waits until all is as etcd says.
fn settle(lab: &mut Lab, judge: &Judge) -> Result<Duration, LabError> {
    let since = Instant::now();
    loop {
        for at in 0..lab.nodes().len() {
            lab.node_mut(at).flanneld.wait_ready_for(PATIENCE)?;
        }
        let wrong = judge.wrong_now(lab)?;
        if wrong.is_empty() || since.elapsed() > PATIENCE {
            return refuse(lab, &wrong).map(|()| since.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes an error of what is wrong, with the logs of all daemons.
fn refuse(lab: &Lab, wrong: &[String]) -> Result<(), LabError> {
    if wrong.is_empty() {
        return Ok(());
    }
    let log = lab.nodes().iter().map(|node| format!("  {}\n{}", node.place().name(), node.flanneld.log_tail()));
    Err(LabError::Besieged { wrong: wrong.join("; "), log: log.collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_follows_from_its_seed() {
        let numbers = |seed| {
            let mut dice = Dice(seed);
            (0..20).map(|_| dice.below(15)).collect::<Vec<_>>()
        };
        assert_eq!(numbers(7), numbers(7));
        assert_ne!(numbers(7), numbers(8));
    }
}
