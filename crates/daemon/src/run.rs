//! `flanneld` from its flags to its end: opens the kernel, the store and the health server, then turns the loop.

use std::error::Error;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use flannel_core::addr::{Dual, Mac};
use flannel_core::facts::Facts;
use flannel_core::port_map::saved::DATA_DIR;
use flannel_core::rules::RuleMode;
use flannel_core::state::Scope;
use flannel_core::subnet_env::SubnetEnv;
use flannel_kernel::linux::KernelExecutor;
use flannel_kernel::memory;
use flannel_kernel::random;
use flannel_kernel::rules::RulesExecutor;
use flannel_store::etcd::EtcdStore;
use flannel_store::kube::KubeStore;
use flannel_store::local::LocalStore;
use flannel_store::{Host, Store};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use crate::agent::Agent;
use crate::fatal::{Fatal, chain};
use crate::flags::{Flags, StoreChoice};
use crate::health::{self, BEAT, Vitals};
use crate::published::Published;
use crate::subnet_file;
use crate::upkeep::Orders;
use crate::worker::{News, Question, Worker};

/// Runs the daemon until a signal ends it, which is its only good end. The data path stays as it is in any case.
///
/// `notify_socket` is the environment's `NOTIFY_SOCKET`.
pub fn run(flags: &Flags, notify_socket: Option<OsString>) -> Result<(), Fatal> {
    memory::share();
    let vitals = Arc::new(Vitals::new(Instant::now()));
    serve_health(flags, &vitals);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Fatal::new(1, format!("cannot start the event loop: {error}")))?;
    let end = runtime.block_on(serve(flags, notify_socket, vitals));
    // A store's file system may hang for ever: nobody waits for what is asked of it still.
    runtime.shutdown_background();
    end
}

fn serve_health(flags: &Flags, vitals: &Arc<Vitals>) {
    let Some(address) = flags.health else { return };
    if let Err(error) = health::serve(address, Arc::clone(vitals)) {
        tracing::warn!("{error}");
    }
}

async fn serve(flags: &Flags, notify_socket: Option<OsString>, vitals: Arc<Vitals>) -> Result<(), Fatal> {
    let mut signals = Signals::new()?;
    let store = open_store(&flags.store);
    let found = previous(&flags.subnet_file);
    subnet_file::check(&flags.subnet_file)?;
    let orders = Orders::new().map_err(|error| Fatal::new(1, format!("cannot make an eventfd: {error}")))?;
    let orders = Arc::new(orders);
    let (worker, mut news, facts) = start_worker(flags, Arc::clone(&orders))?;
    let mut agent = Agent::new(flags, notify_socket, store, orders, vitals, facts, found.as_ref());
    let mut beat = tokio::time::interval(BEAT);
    loop {
        tokio::select! {
            () = signals.end() => return Ok(()),
            said = agent.hear_store() => agent.on_store(said)?,
            Some(message) = news.recv() => agent.on_news(message)?,
            _ = beat.tick() => agent.look_after_subnet_env(),
        }
        agent.turn(Instant::now());
        if worker.is_dead() {
            return Err(Fatal::new(1, "the kernel thread ended").hint("this is a bug: please report the log above"));
        }
    }
}

fn open_store(choice: &StoreChoice) -> Box<dyn Store> {
    match choice {
        StoreChoice::Local(directory) => Box::new(LocalStore::new(directory, Host::here())),
        StoreChoice::Etcd(options) => Box::new(EtcdStore::new((**options).clone(), Host::here())),
        StoreChoice::Kube(options) => Box::new(KubeStore::new((**options).clone())),
    }
}

/// What `subnet.env` of our last run says; a file that says nothing of use is as good as none.
fn previous(path: &Path) -> Option<SubnetEnv> {
    subnet_file::read(path).unwrap_or_else(|error| {
        tracing::warn!("{error}; it will be written anew");
        None
    })
}

fn start_worker(flags: &Flags, orders: Arc<Orders>) -> Result<(Worker, UnboundedReceiver<News>, Facts), Fatal> {
    let mut kernel = open_kernel()?;
    let question = Question { reach: flags.node.external.can_reach, fresh_macs: fresh_macs()? };
    let facts = question.ask(&mut kernel, &Scope::default()).map_err(|error| Fatal::new(1, error.to_string()))?;
    let (sender, news) = unbounded_channel();
    let published = flags.restore_ports.then(|| Published::new(DATA_DIR.into(), Instant::now()));
    let worker = Worker::start(kernel, question, facts.clone(), flags.resync, published, orders, sender);
    let worker = worker.map_err(|error| Fatal::new(1, format!("cannot start the kernel thread: {error}")))?;
    Ok((worker, news, facts))
}

pub(crate) fn open_kernel() -> Result<KernelExecutor, Fatal> {
    let unusable = |error: &dyn Error| {
        Fatal::new(1, format!("flanneld may not change this host's network: {}", chain(error)))
            .hint("run it as root or with CAP_NET_ADMIN, in Kubernetes with capabilities add NET_ADMIN and NET_RAW")
    };
    let rules = RulesExecutor::open(RuleMode::Iptables).map_err(|error| unusable(&error))?;
    KernelExecutor::open(Some(rules)).map_err(|error| unusable(&error))
}

fn fresh_macs() -> Result<Dual<Mac>, Fatal> {
    Dual::try_from_fn(|_| {
        let random = random::bytes().map_err(|error| Fatal::new(1, format!("cannot draw a MAC: {error}")))?;
        Ok(Some(Mac::local(random)))
    })
}

/// The signals that end the daemon.
struct Signals {
    term: Signal,
    int: Signal,
}

impl Signals {
    fn new() -> Result<Self, Fatal> {
        let listen = |kind| signal(kind).map_err(|error| Fatal::new(1, format!("cannot listen to signals: {error}")));
        Ok(Self { term: listen(SignalKind::terminate())?, int: listen(SignalKind::interrupt())? })
    }

    async fn end(&mut self) {
        tokio::select! {
            _ = self.term.recv() => tracing::info!("SIGTERM: ending; the data path stays"),
            _ = self.int.recv() => tracing::info!("SIGINT: ending; the data path stays"),
        }
    }
}
