//! The kernel's own thread: waits for notices, ticks and new plans, and lets the [`Reconciler`] act on them.
//!
//! A slow kernel or a hanging `iptables-restore` delays nothing but this thread. Plan and thread share one lock, held for
//! the time of a diff; what the thread has to say goes to the loop as [`News`].

use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flannel_core::addr::{Dual, Mac};
use flannel_core::diff::Owner;
use flannel_core::facts::Facts;
use flannel_core::plan::Plan;
use flannel_core::state::Scope;
use flannel_kernel::executor::ObserveError;
use flannel_kernel::facts;
use flannel_kernel::linux::KernelExecutor;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fd::{AsFd, OwnedFd};
use tokio::sync::mpsc::UnboundedSender;

use crate::advice::Advice;
use crate::log::Changes;
use crate::reconcile::{Failure, Pass, Reconciler};

/// Everything is read again at least this often, whatever the kernel told.
const FULL_READ: Duration = Duration::from_mins(10);
/// Notices about the underlay come in bursts: facts are read this long after the first.
const FACTS_PAUSE: Duration = Duration::from_millis(20);
/// Pause after the kernel could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// What the loop wants of the kernel, with a number that grows with each change.
#[derive(Debug, Default)]
pub struct Desired {
    /// The plan; `None` until our own lease is held, and then nothing is touched.
    pub plan: Option<Plan>,
    /// What is ours.
    pub scope: Scope,
    /// Grows with each change.
    pub version: u64,
}

/// What beside the kernel's own state goes into [`Facts`].
#[derive(Debug, Clone, Copy)]
pub struct Question {
    /// The address of `--iface-can-reach`.
    pub reach: Option<IpAddr>,
    /// MACs drawn at start.
    pub fresh_macs: Dual<Mac>,
}

impl Question {
    /// Reads the facts; routes in `scope` are ours and none of them.
    pub fn ask(self, kernel: &mut KernelExecutor, scope: &Scope) -> Result<Facts, ObserveError> {
        facts::read(kernel.socket(), scope, self.reach, self.fresh_macs)
    }
}

/// What the thread tells the loop.
#[derive(Debug)]
pub enum News {
    /// The host's facts changed.
    Facts(Box<Facts>),
    /// A pass over plan `version` is done.
    Pass(Report),
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
}

/// The loop's end of the thread.
pub struct Worker {
    shared: Arc<Mutex<Desired>>,
    wake: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Worker {
    /// Starts the thread.
    pub fn start(
        kernel: KernelExecutor,
        question: Question,
        known: Facts,
        resync: Duration,
        news: UnboundedSender<News>,
    ) -> io::Result<Self> {
        let shared = Arc::new(Mutex::new(Desired::default()));
        let wake = Arc::new(eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?);
        let mut thread = Thread::new(kernel, question, known, resync, news, Arc::clone(&shared), Arc::clone(&wake));
        let thread = std::thread::Builder::new().name("kernel".into()).spawn(move || thread.run())?;
        Ok(Self { shared, wake, thread })
    }

    /// Changes what is wanted, and wakes the thread.
    pub fn change(&self, change: impl FnOnce(&mut Desired)) -> u64 {
        let mut desired = lock(&self.shared);
        change(&mut desired);
        desired.version += 1;
        let version = desired.version;
        drop(desired);
        // The counter can only overflow if the thread never reads it; it is awake then anyway.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
        version
    }

    /// Whether the thread has ended, which it never should.
    pub fn is_dead(&self) -> bool {
        self.thread.is_finished()
    }
}

fn lock(shared: &Mutex<Desired>) -> MutexGuard<'_, Desired> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Thread {
    reconciler: Reconciler<KernelExecutor>,
    question: Question,
    known: Facts,
    news: UnboundedSender<News>,
    shared: Arc<Mutex<Desired>>,
    wake: Arc<OwnedFd>,
    changes: Changes,
    advice: Advice,
    resync: Duration,
    clock: Clock,
    done: Option<Report>,
    /// The last pass changed something: what the kernel told meanwhile may be with the executor already, where no poll sees it.
    busy: bool,
}

/// When things are due.
struct Clock {
    resync: Instant,
    full_read: Instant,
    facts: Option<Instant>,
    retry: Option<Instant>,
}

impl Thread {
    fn new(
        kernel: KernelExecutor,
        question: Question,
        known: Facts,
        resync: Duration,
        news: UnboundedSender<News>,
        shared: Arc<Mutex<Desired>>,
        wake: Arc<OwnedFd>,
    ) -> Self {
        let now = Instant::now();
        let clock = Clock { resync: now + resync, full_read: now + FULL_READ, facts: None, retry: None };
        let (reconciler, changes) = (Reconciler::new(kernel), Changes::default());
        let advice = Advice::default();
        Self {
            reconciler,
            question,
            known,
            news,
            shared,
            wake,
            changes,
            advice,
            resync,
            clock,
            done: None,
            busy: false,
        }
    }

    fn run(&mut self) {
        while !self.news.is_closed() {
            self.wait();
            let now = Instant::now();
            self.take_notices(now);
            self.take_ticks(now);
            self.read_facts(now);
            match self.pass(now) {
                Ok(()) => self.clock.retry = None,
                Err(error) => self.unreadable(&error, now),
            }
        }
    }

    fn wait(&mut self) {
        let clock = &self.clock;
        let due = [Some(clock.resync), Some(clock.full_read), clock.facts, clock.retry, self.reconciler.next_due()];
        let due = due.into_iter().flatten().chain(self.changes.pending()).min().unwrap_or(clock.resync);
        let left = if self.busy { Duration::ZERO } else { due.saturating_duration_since(Instant::now()) };
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let kernel = self.reconciler.executor();
        let notices = kernel.poll_fds();
        let fds = std::iter::once(self.wake.as_fd()).chain(notices);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // A signal only ends the wait early.
        let _ = poll(&mut fds, Some(&timeout));
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
    }

    fn take_notices(&mut self, now: Instant) {
        match self.reconciler.notices() {
            Ok(noticed) if noticed.underlay => {
                self.clock.facts.get_or_insert(now + FACTS_PAUSE);
                self.reconciler.retry(now);
            }
            Ok(_) => {}
            Err(error) => {
                self.unreadable(&error, now);
                self.reconciler.forget();
            }
        }
    }

    fn take_ticks(&mut self, now: Instant) {
        if self.clock.resync <= now {
            self.clock.resync = now + self.resync;
            if let Err(error) = self.reconciler.resync() {
                self.unreadable(&error, now);
            }
        }
        if self.clock.full_read <= now {
            self.clock.full_read = now + FULL_READ;
            self.clock.facts = Some(now);
            self.reconciler.forget();
        }
    }

    fn read_facts(&mut self, now: Instant) {
        if self.clock.facts.is_none_or(|due| due > now) {
            return;
        }
        self.clock.facts = None;
        let scope = self.reconciler.scope().clone();
        match self.question.ask(self.reconciler.executor(), &scope) {
            Ok(facts) if facts != self.known => {
                self.known = facts.clone();
                self.tell(News::Facts(Box::new(facts)));
            }
            Ok(_) => {}
            Err(error) => {
                self.unreadable(&error, now);
                self.clock.facts = Some(now + READ_PAUSE);
            }
        }
    }

    fn pass(&mut self, now: Instant) -> Result<(), ObserveError> {
        let desired = lock(&self.shared);
        let Some(plan) = &desired.plan else { return Ok(()) };
        let version = desired.version;
        self.reconciler.set_scope(&desired.scope);
        let ops = self.reconciler.plan_ops(&plan.want, now)?;
        drop(desired);
        let repair = self.done.as_ref().is_some_and(|report| report.version == version);
        self.busy = !ops.is_empty();
        if self.busy {
            let pass = self.reconciler.apply(ops, repair, now);
            self.log(&pass, repair, now);
        }
        self.changes.flush(now);
        self.report(version);
        self.advice.give(self.reconciler.scope());
        Ok(())
    }

    fn report(&mut self, version: u64) {
        let failures = self.reconciler.failures();
        let node = failures.get(&Owner::Node).map(Failure::errors).unwrap_or_default();
        let peers = failures.keys().filter(|owner| **owner != Owner::Node).count();
        let report = Report { version, node, peers };
        if self.done.as_ref() != Some(&report) {
            self.done = Some(report.clone());
            self.tell(News::Pass(report));
        }
    }

    fn log(&mut self, pass: &Pass, repair: bool, now: Instant) {
        for change in &pass.applied {
            if repair {
                self.changes.line(now, || format!("repaired: {change}"));
            } else {
                tracing::debug!("{change}");
            }
        }
        for (owner, errors) in &pass.failed {
            for error in errors {
                self.changes.warn(now, || format!("{owner}: {error}"));
            }
        }
        for owner in &pass.recovered {
            self.changes.line(now, || format!("{owner}: works again"));
        }
    }

    fn unreadable(&mut self, error: &ObserveError, now: Instant) {
        self.changes.warn(now, || error.to_string());
        self.clock.retry = Some(now + READ_PAUSE);
    }

    fn tell(&self, news: News) {
        // The loop is gone only when the process ends.
        let _ = self.news.send(news);
    }
}
