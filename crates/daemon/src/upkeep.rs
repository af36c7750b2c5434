//! A kernel kept as the loop orders: [`Orders`] are shared with the loop, [`Upkeep`] makes passes over them.
//!
//! It knows no thread and no clock: [`crate::worker`] drives it on the kernel's own thread. Orders wait under a
//! lock only until they are taken over: it is never held for long.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use flannel_core::addr::Dual;
use flannel_core::diff::{Change, Owner, Want};
use flannel_core::objects::Rewant;
use flannel_core::rules::PodNetworks;
use flannel_core::state::Scope;
use flannel_kernel::executor::{Executor, ObserveError};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::log::Changes;
use crate::reconcile::{AT_ONCE, Pass, Reconciler};

/// What the loop wants of the kernel, as far as it was not taken over yet, with a number that grows with each change.
#[derive(Debug, Default)]
pub struct Desired {
    /// A plan is in force: our own lease is held. Before, nothing is touched.
    in_force: bool,
    /// All that is wanted.
    whole: Option<Want>,
    /// What leases want since then.
    leases: Rewant,
    /// What is ours.
    pub scope: Scope,
    /// The networks of this node's pods.
    pub pods: Dual<PodNetworks>,
    /// Not all peers are planned: nothing that is left over goes yet, for it may be theirs.
    pub spares: bool,
    /// Grows with each change.
    version: u64,
}

impl Desired {
    /// Wants all that a plan says.
    pub fn want(&mut self, want: Want) {
        (self.in_force, self.whole, self.leases) = (true, Some(want), Rewant::new());
    }

    /// Wants something else of some leases.
    pub fn rewant(&mut self, leases: Rewant) {
        self.leases.extend(leases);
    }
}

/// What is wanted, and a way to wake whoever works on it.
#[derive(Debug)]
pub struct Orders {
    desired: Mutex<Desired>,
    wake: OwnedFd,
}

impl Orders {
    /// Nothing is wanted yet.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { desired: Mutex::default(), wake })
    }

    /// Changes what is wanted, and wakes. Answers with the new version.
    pub fn change(&self, change: impl FnOnce(&mut Desired)) -> u64 {
        let mut desired = self.lock();
        change(&mut desired);
        desired.version += 1;
        let version = desired.version;
        drop(desired);
        // The counter can only overflow if nobody ever reads it; whoever should is awake then anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        version
    }

    /// Becomes readable when what is wanted changes, until [`Orders::taken`].
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }

    /// Makes the descriptor unreadable until the next change.
    pub fn taken(&self) {
        // Nothing to read means that nobody called.
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    /// Whether a plan was made of everything that is not taken over yet.
    pub fn are_whole(&self) -> bool {
        self.lock().whole.is_some()
    }

    /// The networks of this node's pods, as far as they are known.
    pub fn pods(&self) -> Dual<PodNetworks> {
        self.lock().pods
    }

    fn lock(&self) -> MutexGuard<'_, Desired> {
        self.desired.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The outcome of a pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The version of [`Desired`] it worked on.
    pub version: u64,
    /// Failures of this node's own objects, a line each; empty means they are all right.
    pub node: Vec<String>,
    /// How many peers fail.
    pub peers: usize,
    /// All operations that were due were tried; otherwise those of some peers wait for the next pass.
    pub whole: bool,
}

/// What a pass came to.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// It changed something, or tried to.
    pub busy: bool,
    /// Everything was read, which swallows what the kernel told meanwhile: facts may be out of date.
    pub read: bool,
    /// How the kernel stands, if that is another than at the last pass.
    pub report: Option<Report>,
}

/// A kernel in our care.
pub struct Upkeep<E> {
    /// The kernel, and what is known of it.
    pub reconciler: Reconciler<E>,
    /// Lines about what changes.
    pub changes: Changes,
    orders: Arc<Orders>,
    done: Option<Report>,
}

impl<E: Executor> Upkeep<E> {
    /// Takes a kernel over.
    pub fn new(kernel: E, orders: Arc<Orders>) -> Self {
        Self { reconciler: Reconciler::new(kernel), changes: Changes::default(), orders, done: None }
    }

    /// Does what is to be done now. Without a plan that is nothing.
    pub fn pass(&mut self, now: Instant) -> Result<Outcome, ObserveError> {
        let mut read = false;
        loop {
            let Some(scope) = self.scope() else { return Ok(Outcome::default()) };
            self.reconciler.set_scope(&scope);
            read |= self.reconciler.observe()?;
            let Some(version) = self.take_over(&scope) else { continue };
            let ops = self.reconciler.plan_ops(now);
            let (busy, whole) = (!ops.is_empty(), ops.len() < AT_ONCE);
            let repair = self.done.as_ref().is_some_and(|report| report.version == version && report.whole);
            let pass = self.reconciler.apply(ops, repair, now);
            self.log(&pass, repair, now);
            return Ok(Outcome { busy, read, report: self.report(version, whole) });
        }
    }

    /// What is ours by the present orders, if there are any.
    fn scope(&self) -> Option<Scope> {
        let desired = self.orders.lock();
        desired.in_force.then(|| desired.scope.clone())
    }

    /// Takes the orders over and answers with their version; not if by them something else is ours.
    fn take_over(&mut self, scope: &Scope) -> Option<u64> {
        let mut desired = self.orders.lock();
        if desired.scope != *scope {
            return None;
        }
        let (version, whole, leases) = (desired.version, desired.whole.take(), std::mem::take(&mut desired.leases));
        self.reconciler.spare(desired.spares);
        drop(desired);
        if let Some(want) = whole {
            self.reconciler.want(want);
        }
        if !leases.is_empty() {
            self.reconciler.rewant(leases);
        }
        Some(version)
    }

    fn report(&mut self, version: u64, whole: bool) -> Option<Report> {
        let peers = self.reconciler.failing().into_iter().filter(|owner| matches!(owner, Owner::Peer(_))).count();
        let report = Some(Report { version, node: self.reconciler.errors(&Owner::Node), peers, whole });
        let is_new = self.done != report;
        self.done.clone_from(&report);
        report.filter(|_| is_new)
    }

    fn log(&mut self, pass: &Pass, repair: bool, now: Instant) {
        for change in &pass.applied {
            if repair {
                self.changes.line(now, || format!("repaired: {}", first_line(change)));
            } else {
                tracing::debug!("{change}");
            }
        }
        for (owner, error) in &pass.failed {
            self.changes.warn(now, || format!("{owner}: {error}"));
        }
        for owner in &pass.recovered {
            self.changes.line(now, || format!("{owner}: works again"));
        }
    }
}

/// A change without the rules in it.
fn first_line(change: &Change) -> String {
    change.to_string().lines().next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests;
