//! Brings a kernel to the wanted state and keeps it there: observe once, then diff, apply, and take notices in.
//!
//! [`Reconciler`] owns what is known of the kernel (`have`). It takes `now` as an argument and never waits: the thread
//! around it ([`crate::worker`]) does. A change that fails is tried again alone, ever less often, and so is one that another
//! program keeps changing back; all others go on.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flannel_core::addr::LinkName;
use flannel_core::diff::{Change, Op, Owner, Want, steps};
use flannel_core::objects::Rewant;
use flannel_core::state::{Key, Scope, State, lives_on};
use flannel_kernel::executor::{Executor, Noticed, ObserveError};

/// Operations of one pass: as many as keep the kernel busy, few enough that thousands of peers take no memory to speak of,
/// and that this node's own part, which comes first, is told to be right at once.
pub const AT_ONCE: usize = 1024;
/// First pause after a failure; it doubles with each further one.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
/// The longest pause between two tries.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// An object set more often than this within [`CHURN_WINDOW`] is being fought over. A repair takes well below a
/// millisecond, so that up to here the fight costs some percent of a CPU.
const CHURN_LIMIT: u32 = 1000;
const CHURN_WINDOW: Duration = Duration::from_secs(10);

/// A kernel, what is known of it, and what failed on it.
pub struct Reconciler<E> {
    executor: E,
    scope: Scope,
    /// What is wanted, and what is known of the kernel beside it.
    have: State,
    /// What is left over stays.
    spares: bool,
    /// The kernel was read, and `have` kept up to date since.
    known: bool,
    failures: BTreeMap<Identity, Failure>,
    /// Owners whose failures went away without another try, not told yet.
    settled: Vec<Owner>,
    churn: BTreeMap<Key, u32>,
    churn_since: Option<Instant>,
}

/// The object a change is about, and whether it is set: a failure concerns the same, whatever the value.
type Identity = (Key, bool);

/// A change that failed last time, or did not last. Until it is due again, that very change is not tried.
#[derive(Debug, Clone)]
struct Failure {
    owner: Owner,
    change: Change,
    /// A line that says what, on which object, why.
    error: String,
    /// It works, but another program keeps changing it back.
    contested: bool,
    /// How often in a row.
    tries: u32,
    due: Instant,
}

impl Failure {
    fn holds_back(&self, change: &Change, now: Instant) -> bool {
        self.due > now && self.change == *change
    }

    /// Until when it counts although nothing needs to be done.
    fn lasts(&self) -> Option<Instant> {
        self.contested.then(|| self.due + CHURN_WINDOW)
    }
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    /// The operations that succeeded.
    pub applied: Vec<Change>,
    /// Failures that are new, or say something else than before; not those that only follow from a device's.
    pub failed: Vec<(Owner, String)>,
    /// Owners that failed before and are right now.
    pub recovered: Vec<Owner>,
}

impl<E: Executor> Reconciler<E> {
    /// A reconciler that has not looked at its kernel yet.
    pub fn new(executor: E) -> Self {
        let (scope, churn) = (Scope::default(), BTreeMap::new());
        let have = State::default();
        let (failures, settled) = (BTreeMap::new(), Vec::new());
        Self { executor, scope, have, spares: false, known: false, failures, settled, churn, churn_since: None }
    }

    /// The kernel behind it.
    pub fn executor(&mut self) -> &mut E {
        &mut self.executor
    }

    /// What is ours.
    pub fn scope(&self) -> &Scope {
        &self.scope
    }

    /// Changes what is ours; everything is read again if that differs.
    pub fn set_scope(&mut self, scope: &Scope) {
        if self.scope != *scope {
            self.scope = scope.clone();
            self.known = false;
        }
    }

    /// Lets what nobody wants stay, or go as usual.
    pub fn spare(&mut self, spares: bool) {
        self.spares = spares;
    }

    /// Forgets what is known, so that the next pass reads everything.
    pub fn forget(&mut self) {
        self.known = false;
    }

    /// Replaces all that is wanted.
    pub fn want(&mut self, want: Want) {
        self.have.objects.want(want);
    }

    /// Replaces what some leases want.
    pub fn rewant(&mut self, leases: Rewant) {
        self.have.objects.rewant(leases);
    }

    /// What is known of the kernel, if it was read.
    pub fn have(&self) -> Option<&State> {
        self.known.then_some(&self.have)
    }

    /// What fails at present of an owner's, a line each.
    pub fn errors(&self, owner: &Owner) -> Vec<String> {
        let of_owner = self.failures.values().filter(|failure| failure.owner == *owner);
        of_owner.map(|failure| failure.error.clone()).collect()
    }

    /// The owners of whom something fails at present.
    pub fn failing(&self) -> BTreeSet<&Owner> {
        self.failures.values().map(|failure| &failure.owner).collect()
    }

    /// When to make the next pass if nothing happens until then.
    pub fn next_due(&self, now: Instant) -> Option<Instant> {
        let due = |failure: &Failure| failure.lasts().filter(|_| failure.due <= now).unwrap_or(failure.due);
        self.failures.values().map(due).min()
    }

    /// Lets failing operations be tried at once: something they may have waited for has changed.
    pub fn retry(&mut self, now: Instant) {
        self.failures.values_mut().filter(|failure| !failure.contested).for_each(|failure| failure.due = now);
    }

    /// Takes in what the kernel told.
    pub fn notices(&mut self) -> Result<Noticed, ObserveError> {
        let mut unread = State::default();
        self.executor.notices(&self.scope, if self.known { &mut self.have } else { &mut unread })
    }

    /// Reads again what sends no notices.
    pub fn resync(&mut self) -> Result<(), ObserveError> {
        if self.known { self.executor.resync(&self.scope, &mut self.have) } else { Ok(()) }
    }

    /// Reads everything, unless it is known; answers whether it did.
    pub fn observe(&mut self) -> Result<bool, ObserveError> {
        let unknown = !self.known;
        if unknown {
            self.have.objects.hold(self.executor.observe(&self.scope)?.objects);
            self.known = true;
        }
        Ok(unknown)
    }

    /// The first operations that are due now, at most [`AT_ONCE`], by what [`Reconciler::observe`] read; none before. What
    /// is on a device waits for it, and is due with it.
    pub fn plan_ops(&mut self, now: Instant) -> Vec<Op> {
        if !self.known {
            return Vec::new();
        }
        self.forget_settled(now);
        let (mut made, mut missing) = (Vec::new(), Vec::new());
        let is_due = |op: &Op| {
            let change = &op.change;
            let held_back = self.failures.get(&identity(change)).is_some_and(|failure| failure.holds_back(change, now));
            let is_on = |links: &[LinkName]| links.iter().any(|link| lives_on(change.key(), change.value(), *link));
            let due = is_on(&made) || !(held_back || is_on(&missing));
            match made_link(change) {
                Some(link) if due => made.push(link),
                Some(link) if !self.have.objects.contains_key(change.key()) => missing.push(link),
                _ => {}
            }
            due
        };
        let may_go = |op: &Op| !self.spares || op.owner != Owner::Nobody;
        steps(&self.have).filter(may_go).filter(is_due).take(AT_ONCE).collect()
    }

    /// Drops failures of what is no longer to be done.
    fn forget_settled(&mut self, now: Instant) {
        if self.failures.is_empty() {
            return;
        }
        let open: BTreeSet<_> = steps(&self.have).map(|op| identity(&op.change)).collect();
        let mut settled = BTreeSet::new();
        self.failures.retain(|identity, failure| {
            let stays = open.contains(identity) || failure.lasts().is_some_and(|end| end > now);
            if !stays {
                settled.insert(failure.owner.clone());
            }
            stays
        });
        if settled.is_empty() {
            return;
        }
        let present: BTreeSet<_> = self
            .have
            .objects
            .wanted()
            .values()
            .map(|wanted| &wanted.owner)
            .chain([&Owner::Node, &Owner::Nobody])
            .collect();
        let failing = self.failing();
        settled.retain(|owner| present.contains(owner) && !failing.contains(owner));
        self.settled.extend(settled);
    }

    /// Applies operations and takes the answers in. `repair` says that what is wanted did not change since the last pass:
    /// then something else changed the kernel, and an object that this happens to all the time is left alone for a while.
    pub fn apply(&mut self, ops: Vec<Op>, repair: bool, now: Instant) -> Pass {
        let fought_over = self.fought_over(&ops, repair, now);
        let failed = if ops.is_empty() { Vec::new() } else { self.executor.apply(&ops) };
        let mut failed: BTreeMap<usize, String> = failed.into_iter().map(|e| (e.index, e.to_string())).collect();
        let broken: Vec<_> = failed.keys().filter_map(|index| made_link(&ops[*index].change)).collect();
        let mut pass = Pass { recovered: std::mem::take(&mut self.settled), ..Pass::default() };
        let mut right_again = BTreeSet::new();
        for (index, op) in ops.into_iter().enumerate() {
            let error = failed.remove(&index);
            if error.is_none() {
                self.take_over(&op.change);
                pass.applied.push(op.change.clone());
            }
            let contested = fought_over.contains(op.change.key()).then(|| another_program(op.change.key()));
            let follows = broken.iter().any(|link| stands_on(&op.change, *link));
            match error.clone().or(contested) {
                Some(text) => {
                    let news = self.note_failure(op, text, error.is_none(), now);
                    pass.failed.extend(news.filter(|_| !follows));
                }
                None => right_again.extend(self.failures.remove(&identity(&op.change)).map(|failure| failure.owner)),
            }
        }
        let failing = self.failing();
        pass.recovered.extend(right_again.into_iter().filter(|owner| !failing.contains(owner)));
        pass
    }

    /// Keeps `have` as the kernel must be after a change that succeeded.
    fn take_over(&mut self, change: &Change) {
        match change {
            Change::Set(key, value) => self.have.objects.insert(*key, value.clone()),
            Change::Remove(Key::Link(name), _) => self.have.remove_link(*name),
            Change::Remove(key, _) => self.have.objects.remove(key),
        }
    }

    /// Keeps a failure, and answers with it if it is news.
    fn note_failure(&mut self, op: Op, error: String, contested: bool, now: Instant) -> Option<(Owner, String)> {
        let identity = identity(&op.change);
        let before = self.failures.remove(&identity);
        let tries = before.as_ref().map_or(0, |failure| failure.tries);
        let known = before.is_some_and(|failure| failure.error == error);
        let news = (!known).then(|| (op.owner.clone(), error.clone()));
        let pause = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
        let Op { owner, change } = op;
        self.failures.insert(identity, Failure { owner, change, error, contested, tries: tries + 1, due: now + pause });
        news
    }

    /// Names the objects that are set again and again, and counts how often each is repaired.
    fn fought_over(&mut self, ops: &[Op], repair: bool, now: Instant) -> BTreeSet<Key> {
        if self.churn_since.is_none_or(|since| now - since > CHURN_WINDOW) {
            self.churn.clear();
            self.churn_since = Some(now);
        }
        let contested = self.failures.values().filter(|failure| failure.contested);
        let mut fought_over: BTreeSet<Key> = contested.map(|failure| *failure.change.key()).collect();
        for op in ops.iter().filter(|_| repair) {
            let count = self.churn.entry(*op.change.key()).or_default();
            *count += 1;
            if *count > CHURN_LIMIT {
                fought_over.insert(*op.change.key());
            }
        }
        fought_over
    }
}

/// The device that a change makes or alters: what failed on it before may work now.
fn made_link(change: &Change) -> Option<LinkName> {
    match change {
        Change::Set(Key::Link(name), _) => Some(*name),
        _ => None,
    }
}

/// Whether a change is about something on a device, not about the device itself.
fn stands_on(change: &Change, link: LinkName) -> bool {
    *change.key() != Key::Link(link) && lives_on(change.key(), change.value(), link)
}

fn identity(change: &Change) -> Identity {
    (*change.key(), matches!(change, Change::Set(..)))
}

fn another_program(key: &Key) -> String {
    format!("{key}: another program keeps changing it back")
}

#[cfg(test)]
mod tests;
