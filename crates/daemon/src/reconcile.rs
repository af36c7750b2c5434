//! Brings a kernel to the wanted state and keeps it there: observe once, then diff, apply, and take notices in.
//!
//! [`Reconciler`] owns what is known of the kernel (`have`). It takes `now` as an argument and never waits: the thread
//! around it ([`crate::worker`]) does. A failing owner is tried again alone, ever less often; an object that another
//! program keeps changing back counts as failing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use flannel_core::addr::LinkName;
use flannel_core::diff::{Change, Op, Owner, Want, diff};
use flannel_core::state::{Key, Scope, State, lives_on};
use flannel_kernel::executor::{Executor, Noticed, ObserveError};

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
    have: Option<State>,
    failures: BTreeMap<Owner, Failure>,
    /// Owners whose failures went away without another try, not told yet.
    settled: Vec<Owner>,
    churn: BTreeMap<Key, u32>,
    churn_since: Option<Instant>,
}

/// An owner whose last operations failed. Until it is due again, those very operations are not tried; others are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The changes that failed, each with a line that says what, on which object, why.
    pub failed: Vec<(Change, String)>,
    /// How often in a row.
    pub tries: u32,
    /// When it is tried again.
    pub due: Instant,
}

impl Failure {
    /// The errors, a line each.
    pub fn errors(&self) -> Vec<String> {
        self.failed.iter().map(|(_, error)| error.clone()).collect()
    }

    fn holds_back(&self, change: &Change, now: Instant) -> bool {
        self.due > now && self.failed.iter().any(|(failed, _)| failed == change)
    }
}

/// What one pass did.
#[derive(Debug, Default)]
pub struct Pass {
    /// The operations that succeeded.
    pub applied: Vec<Change>,
    /// Owners whose failure is new, or says something else than before.
    pub failed: Vec<(Owner, Vec<String>)>,
    /// Owners that failed before and are right now.
    pub recovered: Vec<Owner>,
}

impl<E: Executor> Reconciler<E> {
    /// A reconciler that has not looked at its kernel yet.
    pub fn new(executor: E) -> Self {
        let (scope, churn) = (Scope::default(), BTreeMap::new());
        Self { executor, scope, have: None, failures: BTreeMap::new(), settled: Vec::new(), churn, churn_since: None }
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
            self.have = None;
        }
    }

    /// Forgets what is known, so that the next pass reads everything.
    pub fn forget(&mut self) {
        self.have = None;
    }

    /// What is known of the kernel, if it was read.
    pub fn have(&self) -> Option<&State> {
        self.have.as_ref()
    }

    /// The owners whose operations fail at present.
    pub fn failures(&self) -> &BTreeMap<Owner, Failure> {
        &self.failures
    }

    /// When the next failing owner is due, if any.
    pub fn next_due(&self) -> Option<Instant> {
        self.failures.values().map(|failure| failure.due).min()
    }

    /// Lets failing operations be tried at once: something they may have waited for has changed.
    pub fn retry(&mut self, now: Instant) {
        self.failures.values_mut().for_each(|failure| failure.due = now);
    }

    /// Takes in what the kernel told.
    pub fn notices(&mut self) -> Result<Noticed, ObserveError> {
        let mut unread = State::default();
        self.executor.notices(&self.scope, self.have.as_mut().unwrap_or(&mut unread))
    }

    /// Reads again what sends no notices.
    pub fn resync(&mut self) -> Result<(), ObserveError> {
        match &mut self.have {
            Some(have) => self.executor.resync(&self.scope, have),
            None => Ok(()),
        }
    }

    /// The operations that are due now. The caller may hold a lock on `want` for this long only.
    pub fn plan_ops(&mut self, want: &Want, now: Instant) -> Result<Vec<Op>, ObserveError> {
        if self.have.is_none() {
            self.have = Some(self.executor.observe(&self.scope)?);
        }
        let have = self.have.as_ref().unwrap_or(&EMPTY);
        let mut ops = diff(want, have);
        self.forget_settled(&ops);
        let made: Vec<_> = ops.iter().filter_map(|op| made_link(&op.change)).collect();
        ops.retain(|op| {
            let stands_on_new = made.iter().any(|link| lives_on(op.change.key(), op.change.value(), *link));
            stands_on_new || !self.failures.get(&op.owner).is_some_and(|failure| failure.holds_back(&op.change, now))
        });
        Ok(ops)
    }

    /// Drops failures of what is no longer to be done.
    fn forget_settled(&mut self, ops: &[Op]) {
        if self.failures.is_empty() {
            return;
        }
        let open: BTreeSet<_> = ops.iter().map(|op| identity(&op.change)).collect();
        for (owner, failure) in &mut self.failures {
            failure.failed.retain(|(change, _)| open.contains(&identity(change)));
            if failure.failed.is_empty() {
                self.settled.push(owner.clone());
            }
        }
        self.failures.retain(|_, failure| !failure.failed.is_empty());
    }

    /// Applies operations and takes the answers in. `repair` says that what is wanted did not change since the last pass:
    /// then something else changed the kernel, and an object that this happens to all the time is left alone for a while.
    pub fn apply(&mut self, ops: Vec<Op>, repair: bool, now: Instant) -> Pass {
        let fought_over = if repair { self.fought_over(&ops, now) } else { BTreeSet::new() };
        let failed = self.executor.apply(&ops);
        let mut failed: BTreeMap<usize, String> = failed.into_iter().map(|e| (e.index, e.to_string())).collect();
        let mut pass = Pass { recovered: std::mem::take(&mut self.settled), ..Pass::default() };
        let mut owners = BTreeMap::<Owner, Tried>::new();
        for (index, op) in ops.into_iter().enumerate() {
            let tried = owners.entry(op.owner).or_default();
            tried.changes.insert(identity(&op.change));
            if let Some(error) = failed.remove(&index) {
                tried.failed.push((op.change, error));
                continue;
            }
            self.take_over(&op.change);
            if fought_over.contains(op.change.key()) {
                tried.failed.push((op.change.clone(), another_program(op.change.key())));
            }
            pass.applied.push(op.change);
        }
        for (owner, tried) in owners {
            self.judge(owner, tried, now, &mut pass);
        }
        pass
    }

    /// Keeps `have` as the kernel must be after a change that succeeded.
    fn take_over(&mut self, change: &Change) {
        let Some(have) = &mut self.have else { return };
        match change {
            Change::Set(key, value) => drop(have.objects.insert(*key, value.clone())),
            Change::Remove(Key::Link(name), _) => have.remove_link(*name),
            Change::Remove(key, _) => drop(have.objects.remove(key)),
        }
    }

    fn judge(&mut self, owner: Owner, tried: Tried, now: Instant, pass: &mut Pass) {
        let before = self.failures.remove(&owner);
        let tries = before.as_ref().map_or(0, |failure| failure.tries);
        let mut held_back = before.map(|failure| failure.failed).unwrap_or_default();
        let known = held_back.clone();
        held_back.retain(|(change, _)| !tried.changes.contains(&identity(change)));
        if tried.failed.is_empty() && held_back.is_empty() {
            pass.recovered.extend((tries > 0).then_some(owner));
            return;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << tries.min(16)).min(LONGEST_PAUSE);
        let new = tried
            .failed
            .iter()
            .filter(|failed| !known.contains(failed))
            .map(|(_, error)| error.clone())
            .collect::<Vec<_>>();
        if !new.is_empty() {
            pass.failed.push((owner.clone(), new));
        }
        let failed = held_back.into_iter().chain(tried.failed).collect();
        self.failures.insert(owner, Failure { failed, tries: tries + 1, due: now + pause });
    }

    /// Counts how often each object is set, and names those that are set again and again.
    fn fought_over(&mut self, ops: &[Op], now: Instant) -> BTreeSet<Key> {
        if self.churn_since.is_none_or(|since| now - since > CHURN_WINDOW) {
            self.churn.clear();
            self.churn_since = Some(now);
        }
        let mut fought_over = BTreeSet::new();
        for op in ops {
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

/// What one owner's operations came to in a pass.
#[derive(Default)]
struct Tried {
    changes: BTreeSet<(Key, bool)>,
    failed: Vec<(Change, String)>,
}

/// The object a change is about, and whether it is set: a failure concerns the same, whatever the value.
fn identity(change: &Change) -> (Key, bool) {
    (*change.key(), matches!(change, Change::Set(..)))
}

fn another_program(key: &Key) -> String {
    format!("{key}: another program keeps changing it back")
}

static EMPTY: State = State { objects: BTreeMap::new() };
