//! Events on our own Node: which problem is to be told, when, how often, and as what object.
//!
//! Surface: [`Ledger`], which is pure, and the object as JSON. An Event is told when a problem has lasted a while, again now and then
//! for as long as it lasts (the API forgets Events after an hour), and never more of them than people read. The same problem is
//! the same Event, also after a restart: its name is made of its content.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::{Duration, Instant, SystemTime};

use flannel_core::cut;
use serde_json::json;

use super::time::rfc3339;
use crate::{Problem, Standing};

/// What does not last so long is told nobody: a start, a server that hiccups.
pub(super) const GRACE: Duration = Duration::from_secs(5);
/// A problem that lasts is told again after so long.
const AGAIN: Duration = Duration::from_mins(30);
/// So many Events are told in a row at most, and one more in each pause.
const BURST: u32 = 10;
const PAUSE: Duration = Duration::from_secs(30);
/// So many problems are known at a time.
const MOST: usize = 64;
/// The longest message that the API takes, in characters.
const LONGEST: usize = 1024;
/// The namespace of Events on what has none.
pub(super) const NAMESPACE: &str = "default";

/// The problems there are, and what was told of them.
#[derive(Debug)]
pub(super) struct Ledger {
    known: BTreeMap<Problem, Entry>,
    left: u32,
    /// When the next one may be told where none is left.
    refill: Instant,
    barred: Option<Instant>,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    since: Instant,
    told: Option<Instant>,
    count: u32,
}

/// An Event that is to be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Event {
    problem: Problem,
    /// How often it was told before, as far as is known.
    count: u32,
}

impl Ledger {
    pub(super) fn new(now: Instant) -> Self {
        Self { known: BTreeMap::new(), left: BURST, refill: now + PAUSE, barred: None }
    }

    /// Takes in how the node stands.
    pub(super) fn take(&mut self, standing: &Standing, now: Instant) {
        let all = || standing.problems.iter().chain(&standing.remarks);
        self.known.retain(|problem, _| all().any(|present| present == problem));
        for problem in all() {
            if self.known.len() < MOST && !self.known.contains_key(problem) {
                self.known.insert(problem.clone(), Entry { since: now, told: None, count: 0 });
            }
        }
    }

    /// Whether a problem has lasted a while.
    pub(super) fn lasts(&self, problem: &Problem, now: Instant) -> bool {
        self.known.get(problem).is_some_and(|entry| entry.since + GRACE <= now)
    }

    /// The next Event to be told now, if there is one.
    pub(super) fn next(&mut self, now: Instant) -> Option<Event> {
        while self.refill <= now && self.left < BURST {
            self.left += 1;
            self.refill += PAUSE;
        }
        if self.left == BURST {
            self.refill = now + PAUSE;
        }
        let may = self.left > 0 && self.barred.is_none_or(|until| until <= now);
        let (problem, entry) = self.known.iter().find(|(_, entry)| may && entry.due() <= now)?;
        Some(Event { problem: problem.clone(), count: entry.count })
    }

    /// An Event was told.
    pub(super) fn told(&mut self, event: &Event, now: Instant) {
        self.left = self.left.saturating_sub(1);
        if let Some(entry) = self.known.get_mut(&event.problem) {
            (entry.told, entry.count) = (Some(now), entry.count.saturating_add(1));
        }
    }

    /// Nothing can be told until then.
    pub(super) fn bar(&mut self, until: Instant) {
        self.barred = Some(until);
    }

    /// When there is something to do, also because a problem has lasted a while then.
    pub(super) fn due(&self, now: Instant) -> Option<Instant> {
        let lasting = self.known.values().map(|entry| entry.since + GRACE).filter(|at| *at > now).min();
        let telling = self.known.values().map(Entry::due).min();
        let free = self.barred.into_iter().chain((self.left == 0).then_some(self.refill)).max();
        let telling = telling.map(|at| free.map_or(at, |free| at.max(free)));
        lasting.into_iter().chain(telling).min()
    }
}

impl Entry {
    fn due(&self) -> Instant {
        self.told.map_or(self.since + GRACE, |told| told + AGAIN)
    }
}

impl Event {
    /// Its name, which is that of the same problem on the same Node.
    pub(super) fn name(&self, node: &str) -> String {
        let mut hasher = DefaultHasher::new();
        (node, self.problem.reason, &self.problem.text).hash(&mut hasher);
        format!("flannel-{:016x}", hasher.finish())
    }

    /// The object.
    pub(super) fn object(&self, node: &str, now: SystemTime) -> String {
        let now = rfc3339(now);
        json!({
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": self.name(node), "namespace": NAMESPACE},
            // kubelets put the name of a Node in the place of its uid, and `kubectl describe` looks for that.
            "involvedObject": {"apiVersion": "v1", "kind": "Node", "name": node, "uid": node},
            "source": {"component": "flannel", "host": node},
            "type": "Warning",
            "reason": self.problem.reason,
            "message": cut(&self.problem.text, LONGEST),
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        })
        .to_string()
    }

    /// The patch that tells it once more where it is there already.
    pub(super) fn again(&self, now: SystemTime) -> String {
        json!({"count": (self.count + 1).max(2), "lastTimestamp": rfc3339(now)}).to_string()
    }
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use super::*;

    fn problem(text: &str) -> Problem {
        Problem { reason: "PeerSkipped", text: text.into(), blocks_pods: false }
    }

    fn standing(texts: &[&str]) -> Standing {
        Standing { remarks: texts.iter().map(|text| problem(text)).collect(), ..Standing::default() }
    }

    /// Tells what there is to tell.
    fn tell(ledger: &mut Ledger, now: Instant) -> Vec<String> {
        let mut told = Vec::new();
        while let Some(event) = ledger.next(now) {
            ledger.told(&event, now);
            told.push(event.problem.text);
        }
        told
    }

    #[test]
    fn a_problem_that_lasts_is_told_once_and_again_much_later() {
        let begun = Instant::now();
        let mut ledger = Ledger::new(begun);
        ledger.take(&standing(&["a", "b"]), begun);
        assert_eq!((tell(&mut ledger, begun).len(), ledger.due(begun)), (0, Some(begun + GRACE)));
        assert!(!ledger.lasts(&problem("a"), begun));
        ledger.take(&standing(&["a"]), begun + GRACE);
        assert_eq!(tell(&mut ledger, begun + GRACE), ["a"], "the other one did not last");
        assert!(ledger.lasts(&problem("a"), begun + GRACE) && !ledger.lasts(&problem("b"), begun + GRACE));
        let later = begun + GRACE + AGAIN;
        assert_eq!((tell(&mut ledger, begun + AGAIN).len(), ledger.due(begun + GRACE)), (0, Some(later)));
        assert_eq!(tell(&mut ledger, later), ["a"]);
        ledger.take(&standing(&[]), later);
        assert_eq!((tell(&mut ledger, later + AGAIN).len(), ledger.due(later)), (0, None));
    }

    #[test]
    fn there_are_never_more_than_people_read() {
        let begun = Instant::now();
        let mut ledger = Ledger::new(begun);
        let texts: Vec<String> = (0..1000).map(|n| format!("{n:04}")).collect();
        ledger.take(&standing(&texts.iter().map(String::as_str).collect::<Vec<_>>()), begun);
        assert_eq!(ledger.known.len(), MOST);
        let mut now = begun + GRACE;
        assert_eq!(tell(&mut ledger, now).len(), BURST as usize);
        for _ in 0..3 {
            now = ledger.due(now).unwrap();
            assert_eq!(tell(&mut ledger, now).len(), 1);
        }
        assert!(now >= begun + PAUSE * 3);
        let until = now + PAUSE * 2;
        ledger.bar(until);
        assert_eq!((tell(&mut ledger, now + PAUSE).len(), ledger.due(now)), (0, Some(until)));
        assert!(!tell(&mut ledger, until).is_empty());
    }

    #[test]
    fn the_object_is_one_of_the_node() {
        let mut ledger = Ledger::new(Instant::now());
        let begun = Instant::now();
        ledger.take(&standing(&["a"]), begun);
        let event = ledger.next(begun + GRACE).unwrap();
        let object: serde_json::Value = serde_json::from_str(&event.object("n1", UNIX_EPOCH)).unwrap();
        assert_eq!(object["involvedObject"]["name"], "n1");
        assert_eq!(object["metadata"]["name"], event.name("n1"));
        assert_eq!((event.name("n1").len(), event.name("n1") == event.name("n2")), (24, false));
        let counted = |event: &Event| {
            serde_json::from_str::<serde_json::Value>(&event.again(UNIX_EPOCH)).unwrap()["count"].clone()
        };
        // It is there from an earlier run: told at least twice now.
        assert_eq!(counted(&event), 2);
        ledger.told(&event, begun + GRACE);
        assert_eq!(counted(&ledger.next(begun + GRACE + AGAIN).unwrap()), 2);
    }
}
