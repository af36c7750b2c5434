//! The kernel's own thread: waits for notices, ticks and new orders, and lets [`Upkeep`] act on them.
//!
//! A slow kernel or a hanging `iptables-restore` delays nothing but this thread. What it has to say goes to the loop as
//! [`News`].

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flannel_core::addr::{Dual, Mac};
use flannel_core::facts::Facts;
use flannel_core::state::Scope;
use flannel_kernel::executor::ObserveError;
use flannel_kernel::facts;
use flannel_kernel::linux::KernelExecutor;
use flannel_kernel::memory;
use flannel_store::Problem;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::sync::mpsc::UnboundedSender;

use crate::advice::{Advice, Setting};
use crate::published::Published;
use crate::upkeep::{Orders, Report, Upkeep};

/// Everything is read again at least this often, whatever the kernel told.
const FULL_READ: Duration = Duration::from_mins(10);
/// Notices about the underlay come in bursts: facts are read this long after the first.
const FACTS_PAUSE: Duration = Duration::from_millis(20);
/// So long after everything was read comes nothing more that is needed but then.
const CALM: Duration = Duration::from_secs(1);
/// Pause after the kernel could not be read.
const READ_PAUSE: Duration = Duration::from_secs(1);

/// What beside the kernel's own state goes into [`Facts`].
#[derive(Debug, Clone, Copy, Default)]
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
    /// What is wrong on the host beside flannel's own objects.
    Host(Vec<Problem>),
}

/// The thread, as its starter sees it.
pub struct Worker(JoinHandle<()>);

impl Worker {
    /// Starts the thread; it works on `orders` until nobody listens to its news.
    pub fn start(
        kernel: KernelExecutor,
        question: Question,
        known: Facts,
        resync: Duration,
        published: Option<Published>,
        orders: Arc<Orders>,
        news: UnboundedSender<News>,
    ) -> io::Result<Self> {
        let upkeep = Upkeep::new(kernel, Arc::clone(&orders));
        let clock = Clock::new(resync, Instant::now());
        let advice = Advice::default();
        let busy = false;
        let mut thread = Thread { upkeep, orders, question, known, news, advice, published, clock, busy };
        Ok(Self(std::thread::Builder::new().name("kernel".into()).spawn(move || thread.run())?))
    }

    /// Whether the thread has ended, which it never should.
    pub fn is_dead(&self) -> bool {
        self.0.is_finished()
    }
}

struct Thread {
    upkeep: Upkeep<KernelExecutor>,
    orders: Arc<Orders>,
    question: Question,
    known: Facts,
    news: UnboundedSender<News>,
    advice: Advice,
    /// Ports of containers, where they are to be kept.
    published: Option<Published>,
    clock: Clock,
    /// The last pass changed something: what the kernel told meanwhile may be with the executor already, where no poll sees it.
    busy: bool,
}

/// When things are due.
struct Clock {
    pause: Duration,
    resync: Instant,
    full_read: Instant,
    facts: Option<Instant>,
    /// Everything was read, and what that took has not been given back yet.
    calm: Option<Instant>,
    /// The kernel could not be read; nothing else is tried before.
    retry: Option<Instant>,
    /// The rules of others are to be looked at.
    look: bool,
}

impl Clock {
    fn new(resync: Duration, now: Instant) -> Self {
        Self {
            pause: resync,
            resync: now + resync,
            full_read: now + FULL_READ,
            facts: None,
            calm: None,
            retry: None,
            look: true,
        }
    }
}

impl Thread {
    fn run(&mut self) {
        while !self.news.is_closed() {
            self.wait();
            let now = Instant::now();
            self.clock.retry = match self.turn(now) {
                Ok(()) => None,
                Err(error) => {
                    self.warn(&error, now);
                    Some(now + READ_PAUSE)
                }
            };
            self.upkeep.changes.flush(now);
        }
    }

    /// Waits for notices, new orders, or the next thing that is due; after a failure to read for the latter two only.
    fn wait(&mut self) {
        let now = Instant::now();
        let left = if self.busy { Duration::ZERO } else { self.due(now).saturating_duration_since(now) };
        let timeout = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() };
        let readable = self.clock.retry.is_none();
        let notices = self.upkeep.reconciler.executor().poll_fds().into_iter().filter(|_| readable);
        let fds = std::iter::once(self.orders.fd()).chain(notices);
        let mut fds: Vec<_> = fds.map(|fd| PollFd::from_borrowed_fd(fd, PollFlags::IN)).collect();
        // A signal only ends the wait early.
        let _ = poll(&mut fds, Some(&timeout));
        self.orders.taken();
    }

    fn due(&self, now: Instant) -> Instant {
        let clock = &self.clock;
        let (repair, lines) = (self.upkeep.reconciler.next_due(now), self.upkeep.changes.pending());
        let published = self.published.as_ref().and_then(Published::due);
        let next = [Some(clock.full_read), clock.facts, clock.calm, repair, lines, published];
        let next = next.into_iter().flatten().fold(clock.resync, Instant::min);
        clock.retry.unwrap_or(next)
    }

    fn turn(&mut self, now: Instant) -> Result<(), ObserveError> {
        self.busy = false;
        self.take_notices(now)?;
        self.take_ticks(now);
        self.read_facts(now);
        if self.orders.are_whole() {
            // What it took to list and plan has gone before the kernel is programmed, which takes as much again.
            memory::give_back();
        }
        let outcome = self.upkeep.pass(now)?;
        self.busy = outcome.busy;
        if outcome.read {
            self.clock.facts.get_or_insert(now + FACTS_PAUSE);
            self.clock.calm = Some(now + CALM);
        }
        if self.clock.calm.is_some_and(|due| due <= now) && !self.busy {
            self.clock.calm = None;
            self.upkeep.reconciler.executor().pack();
            memory::give_back();
        }
        if let Some(report) = outcome.report {
            self.tell(News::Pass(report));
            self.advice.give(self.upkeep.reconciler.scope());
            self.advice.forget();
        }
        self.look_out();
        if let Some(published) = self.published.as_mut().filter(|_| !self.busy) {
            published.turn(now, &mut self.upkeep.changes);
        }
        Ok(())
    }

    /// Looks at the rules of others, once this node's own are made.
    fn look_out(&mut self) {
        let reconciler = &self.upkeep.reconciler;
        let Some(have) = reconciler.have().filter(|_| self.clock.look && !self.busy) else { return };
        self.clock.look = false;
        let setting = Setting { pods: self.orders.pods(), facts: &self.known, have, scope: reconciler.scope() };
        if let Some(problems) = self.advice.look(&setting) {
            let news = News::Host(problems.to_vec());
            self.tell(news);
        }
    }

    fn take_notices(&mut self, now: Instant) -> Result<(), ObserveError> {
        let reconciler = &mut self.upkeep.reconciler;
        let noticed = reconciler.notices().inspect_err(|_| reconciler.forget())?;
        if noticed.underlay {
            self.clock.facts.get_or_insert(now + FACTS_PAUSE);
            reconciler.retry(now);
        }
        if let Some(published) = self.published.as_mut().filter(|_| noticed.ports) {
            published.notice(now);
        }
        Ok(())
    }

    fn take_ticks(&mut self, now: Instant) {
        if self.clock.resync <= now {
            self.clock.resync = now + self.clock.pause;
            self.clock.look = true;
            self.published.iter_mut().for_each(|published| published.tick(now));
            if let Err(error) = self.upkeep.reconciler.resync() {
                self.warn(&error, now);
            }
        }
        if self.clock.full_read <= now {
            self.clock.full_read = now + FULL_READ;
            self.clock.facts = Some(now);
            self.upkeep.reconciler.forget();
            self.published.iter_mut().for_each(|published| published.notice(now));
        }
    }

    fn read_facts(&mut self, now: Instant) {
        if self.clock.facts.is_none_or(|due| due > now) {
            return;
        }
        self.clock.facts = None;
        let scope = self.upkeep.reconciler.scope().clone();
        match self.question.ask(self.upkeep.reconciler.executor(), &scope) {
            Ok(facts) if facts != self.known => {
                self.known = facts.clone();
                self.advice.forget();
                self.tell(News::Facts(Box::new(facts)));
            }
            Ok(_) => {}
            Err(error) => {
                self.warn(&error, now);
                self.clock.facts = Some(now + READ_PAUSE);
            }
        }
    }

    fn warn(&mut self, error: &ObserveError, now: Instant) {
        self.upkeep.changes.warn(now, || error.to_string());
    }

    fn tell(&self, news: News) {
        // The loop is gone only when the process ends.
        let _ = self.news.send(news);
    }
}
