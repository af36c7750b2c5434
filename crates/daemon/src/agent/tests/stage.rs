//! The stage of the loop's scenarios: a store that follows a script, a fake kernel, and a loop between them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::Duration;

use flannel_core::lease::{Lease, Since};
use flannel_core::state::Key;
use flannel_kernel::fake::FakeKernel;
use flannel_store::Call;
use tokio::sync::mpsc::{Sender, channel};

use super::super::*;
use crate::flags::{self, Command};
use crate::scene::host;
use crate::upkeep::Upkeep;

/// A store that does as it is told.
#[derive(Clone)]
pub(super) struct Script(pub(super) Rc<RefCell<Inner>>);

pub(super) struct Inner {
    pub(super) sender: Sender<StoreEvent>,
    pub(super) receiver: Option<Receiver<StoreEvent>>,
    /// What was asked for.
    pub(super) asked: Vec<Claim>,
    /// What it answers next; after that, as an honest store with nothing else in it.
    pub(super) answers: VecDeque<HoldAnswer>,
    /// Whether it tells of records it writes.
    pub(super) tells: bool,
    pub(super) written: Option<Held>,
    /// What it was told of how the node stands.
    pub(super) reports: Vec<Standing>,
}

impl Inner {
    /// Writes our own record, and tells of it as of any other.
    fn write(&mut self, held: &Held) {
        if self.tells && self.written.as_ref() != Some(held) {
            let record = Record::new(held.key.clone(), Ok(held.lease.clone()));
            self.sender.try_send(StoreEvent::Leases(LeaseEvent::Put(record))).unwrap();
        }
        self.written = Some(held.clone());
    }
}

impl Store for Script {
    fn watch(&self) -> Receiver<StoreEvent> {
        self.0.borrow_mut().receiver.take().unwrap()
    }

    fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Call<HoldAnswer> {
        let mut inner = self.0.borrow_mut();
        inner.asked.push(claim.clone());
        let answer = inner.answers.pop_front().unwrap_or_else(|| Ok(honest(config, claim)));
        if let Ok(held) = &answer {
            inner.write(held);
        }
        Box::pin(std::future::ready(answer))
    }

    fn report(&self, standing: &Standing) {
        self.0.borrow_mut().reports.push(standing.clone());
    }
}

/// The lease that host 1 gets: subnet 1 of each network, as the first of all.
pub(super) fn honest(config: &NetworkConfig, claim: &Claim) -> Held {
    let subnets = [
        ("10.244.0.0/16", "10.244.1.0/24"),
        ("10.99.0.0/16", "10.99.1.0/24"),
        ("2001:db8:42::/56", "2001:db8:42:1::/64"),
    ];
    let subnet = config.network.map(|_, network| {
        let of_network = subnets.iter().find(|(of, _)| of.parse() == Ok(*network)).unwrap();
        of_network.1.parse().unwrap()
    });
    let key = subnet.values().map(|net: &IpNet| format!("{}-{}", net.addr(), net.prefix_len()));
    let lease = Lease {
        subnet,
        public_ip: claim.public_ip,
        attributes: claim.attributes.clone(),
        since: Since { at: 5, tie: 0 },
        flaws: Vec::new(),
    };
    Held { key: LeaseKey::new(key.collect::<Vec<_>>().join("&")), lease }
}

pub(super) struct Scene {
    pub(super) agent: Agent<'static>,
    pub(super) script: Script,
    pub(super) upkeep: Upkeep<FakeKernel>,
    pub(super) vitals: Arc<Vitals>,
    pub(super) folder: PathBuf,
    /// The time of the next pass.
    pub(super) now: Instant,
}

impl Scene {
    /// Host 1 starts with these flags, beside those for a store, a file and masquerading.
    pub(super) fn start(test: &str, more: &[&str]) -> Self {
        let folder = std::env::temp_dir().join(format!("flannel-agent-{test}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&folder);
        let file = format!("--subnet-file={}", folder.join("subnet.env").display());
        let words = ["--local-store=/leases", "--ip-masq", &file];
        let words = words.iter().chain(more).map(OsString::from);
        let Ok(Command::Run(flags)) = flags::parse(words, std::iter::empty()) else { panic!("{more:?}") };
        let (sender, receiver) = channel(64);
        let receiver = Some(receiver);
        let (asked, answers) = (Vec::new(), VecDeque::new());
        let inner = Inner { sender, receiver, asked, answers, tells: true, written: None, reports: Vec::new() };
        let script = Script(Rc::new(RefCell::new(inner)));
        let vitals = Arc::new(Vitals::new(Instant::now()));
        let orders = Arc::new(Orders::new().unwrap());
        let upkeep = Upkeep::new(FakeKernel::new(), Arc::clone(&orders));
        let store = Box::new(script.clone());
        let agent = Agent::new(Box::leak(flags), None, store, orders, Arc::clone(&vitals), host(1), None);
        Self { agent, script, upkeep, vitals, folder, now: Instant::now() }
    }

    /// The same, with config and peers there and everything programmed.
    pub(super) async fn running(test: &str, config: &str, peers: impl IntoIterator<Item = Record>) -> Self {
        let mut scene = Self::start(test, &[]);
        scene.config(config);
        scene.snapshot(peers);
        scene.turn().await.unwrap();
        scene.assert_ready();
        scene.asked();
        scene
    }

    pub(super) fn tell(&self, event: StoreEvent) {
        self.script.0.borrow().sender.try_send(event).unwrap();
    }

    pub(super) fn config(&self, text: &str) {
        self.tell(StoreEvent::Config(Ok(text.into())));
    }

    pub(super) fn snapshot(&self, records: impl IntoIterator<Item = Record>) {
        self.tell(StoreEvent::Leases(LeaseEvent::Snapshot(records.into_iter().collect())));
    }

    pub(super) fn put(&self, record: Record) {
        self.tell(StoreEvent::Leases(LeaseEvent::Put(record)));
    }

    pub(super) fn remove(&self, key: LeaseKey) {
        let mut inner = self.script.0.borrow_mut();
        inner.written.take_if(|held| held.key == key);
        drop(inner);
        self.tell(StoreEvent::Leases(LeaseEvent::Remove(key)));
    }

    pub(super) fn answer(&self, answer: HoldAnswer) {
        self.script.0.borrow_mut().answers.push_back(answer);
    }

    pub(super) fn later(&self, cause: &str) {
        self.answer(Err(HoldError::Later(cause.into())));
    }

    /// The claims that the store was asked for since the last call.
    pub(super) fn asked(&self) -> Vec<Claim> {
        std::mem::take(&mut self.script.0.borrow_mut().asked)
    }

    pub(super) fn own_record(&self) -> Record {
        let held = self.script.0.borrow().written.clone().unwrap();
        Record::new(held.key, Ok(held.lease))
    }

    pub(super) fn facts(&mut self, facts: Facts) {
        self.agent.on_news(News::Facts(Box::new(facts))).unwrap();
    }

    /// Lets the loop hear all that is said now, without passes over the kernel.
    pub(super) async fn hear(&mut self) -> Result<(), Fatal> {
        while let Ok(said) = tokio::time::timeout(Duration::ZERO, self.agent.hear_store()).await {
            self.agent.on_store(said)?;
        }
        Ok(())
    }

    /// Makes a pass, and lets the loop know.
    pub(super) fn pass(&mut self) -> Result<(), Fatal> {
        self.upkeep.reconciler.notices().unwrap();
        match self.upkeep.pass(self.now).unwrap().report {
            Some(report) => self.agent.on_news(News::Pass(report)),
            None => Ok(()),
        }
    }

    /// Hears, and makes two passes: at the start the first is over this node's own part, which the peers wait for.
    pub(super) async fn turn(&mut self) -> Result<(), Fatal> {
        self.hear().await?;
        self.pass()?;
        self.pass()
    }

    pub(super) async fn turn_after(&mut self, pause: Duration) -> Result<(), Fatal> {
        tokio::time::advance(pause).await;
        self.turn().await
    }

    pub(super) fn kernel(&mut self) -> &mut FakeKernel {
        self.upkeep.reconciler.executor()
    }

    pub(super) fn state(&mut self) -> String {
        self.kernel().to_string()
    }

    /// The destinations of the routes there are.
    pub(super) fn routes(&mut self) -> Vec<String> {
        let keys = self.kernel().state().objects.keys();
        let routes = keys.filter_map(|key| if let Key::Route(to, _) = key { Some(to.to_string()) } else { None });
        routes.collect()
    }

    pub(super) fn subnet_env(&self) -> Option<String> {
        fs::read_to_string(self.folder.join("subnet.env")).ok()
    }

    pub(super) fn readiness(&self) -> String {
        self.vitals.readiness().1
    }

    pub(super) fn assert_ready(&self) {
        assert_eq!(self.readiness(), "flanneld is ready");
    }

    /// What is said about leases, `key: field: why`.
    pub(super) fn remarks(&self) -> Vec<String> {
        let all = self.agent.skipped.iter();
        all.flat_map(|(key, remarks)| remarks.iter().map(move |remark| format!("{key}: {remark}"))).collect()
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}
