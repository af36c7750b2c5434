//! The laws of every store (see the crate's documentation), to be run on each.

#![allow(dead_code, reason = "no store has it all")]

use std::sync::Arc;
use std::time::Duration;

use flannel_core::addr::{Dual, Mac, Vni};
use flannel_core::annotations::Overrides;
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::lease::{Attributes, Claim, Lease, LeaseEvent, LeaseKey, Vtep};
use flannel_core::lease_set::LeaseSet;
use tokio::sync::mpsc::Receiver;
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::{Held, HoldError, Store, StoreEvent};

/// A store under test: how daemons open it, and what somebody else does to it.
pub(crate) trait Bench {
    /// The store as the daemon of a host sees it. It holds the text of [`CONFIG`].
    fn open(&self, host: u8) -> Box<dyn Store>;
    /// Writes a record behind the daemons' backs.
    async fn put(&self, key: &str, text: &str);
    /// Removes a record behind the daemons' backs.
    async fn remove(&self, key: &str);
    /// The text of a record.
    async fn record(&self, key: &str) -> Option<String>;
    /// Loses all records.
    async fn wipe(&self);
    /// Cuts the daemons off.
    async fn cut(&self);
    /// Lets them reach the store again.
    async fn mend(&self);
}

/// How long anything may take to be told: a list alone is put off by ten seconds where the server is slow.
const PATIENCE: Duration = Duration::from_secs(30);

/// Checks all laws, each on a new store.
pub(crate) async fn check<B: Bench>(fresh: impl Fn() -> B) {
    check_any(&fresh).await;
    a_lease_moves_into_its_network(&fresh()).await;
    a_lost_lease_names_who_has_it(&fresh()).await;
    one_public_ip_is_one_hosts(&fresh()).await;
    many_hosts_get_a_subnet_each(&fresh()).await;
}

/// Checks the laws of stores in which somebody else says who has which subnet, too.
pub(crate) async fn check_any<B: Bench>(fresh: impl Fn() -> B) {
    a_snapshot_comes_first_and_changes_follow(&fresh()).await;
    the_unreadable_is_named_and_hides_nothing(&fresh()).await;
    a_lost_connection_is_no_news(&fresh()).await;
    our_own_record_is_told_too(&fresh()).await;
    holding_again_changes_nothing(&fresh()).await;
    a_lease_follows_its_claim(&fresh()).await;
    what_we_hold_stays_as_claimed(&fresh()).await;
    a_store_away_is_tried_again_later(&fresh()).await;
}

/// What the daemon of a host claims.
pub(crate) fn claim(host: u8) -> Claim {
    let vtep = Vtep { vni: Vni::new(1).unwrap(), mac: Mac([2, 0, 0, 0, 0, host]) };
    Claim {
        public_ip: Dual { v4: format!("192.0.2.{host}").parse().ok(), v6: None },
        attributes: Attributes::Vxlan(Dual { v4: Some(vtep), v6: None }),
        previous: Dual::default(),
    }
}

/// The record of a host.
pub(crate) fn record(host: u8, sequence: u64) -> String {
    let claim = claim(host);
    flannel_core::record::write(&claim.public_ip, &claim.attributes, Some(sequence))
}

/// The network config of the store under test.
pub(crate) const CONFIG: &str = r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}"#;

/// A config read.
pub(crate) fn config(text: &str) -> NetworkConfig {
    NetworkConfig::parse(text, ConfigRules::Etcd).unwrap().0
}

/// What a store tells, as a daemon takes it in.
pub(crate) struct Told {
    events: Receiver<StoreEvent>,
    pub(crate) leases: LeaseSet,
    pub(crate) config: Option<Result<String, String>>,
    /// How many snapshots came.
    pub(crate) snapshots: usize,
    /// What else was told, where a store has such: addresses set by an operator, and what is waited for.
    pub(crate) overrides: Option<Overrides>,
    pub(crate) waits: Option<String>,
}

impl Told {
    /// Watches.
    pub(crate) fn from(store: &dyn Store) -> Self {
        let (events, leases) = (store.watch(), LeaseSet::default());
        Self { events, leases, config: None, snapshots: 0, overrides: None, waits: None }
    }

    /// Watches until the snapshot has come, which has to be the first that is told of leases.
    pub(crate) async fn by(store: &dyn Store) -> Self {
        let mut told = Self::from(store);
        while let Some(event) = timeout(PATIENCE, told.events.recv()).await.expect("no event came") {
            let is_snapshot = matches!(event, StoreEvent::Leases(LeaseEvent::Snapshot(_)));
            let is_of_leases = matches!(event, StoreEvent::Leases(_));
            assert!(is_snapshot || !is_of_leases, "{event:?} before a snapshot");
            told.apply(event);
            if is_snapshot {
                break;
            }
        }
        told
    }

    fn apply(&mut self, event: StoreEvent) {
        self.snapshots += usize::from(matches!(event, StoreEvent::Leases(LeaseEvent::Snapshot(_))));
        match event {
            StoreEvent::Config(config) => self.config = Some(config),
            StoreEvent::Leases(event) => drop(self.leases.apply(event)),
            StoreEvent::Overrides(overrides) => self.overrides = Some(overrides),
            StoreEvent::Waits(waits) => self.waits = waits,
        }
    }

    /// Takes in one event.
    pub(crate) async fn next(&mut self) {
        let event = self.events.recv().await.expect("the stream ended");
        self.apply(event);
    }

    /// All records as `key=last digits of the public IP` or `key!`.
    pub(crate) fn summary(&self) -> String {
        let one = |(key, lease): (&LeaseKey, &Result<Arc<Lease>, _>)| match lease {
            Ok(lease) => format!("{key}={}", lease.public_ip.v4.unwrap().to_string().rsplit('.').next().unwrap()),
            Err(_) => format!("{key}!"),
        };
        self.leases.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Takes events in until all leases are as expected.
    pub(crate) async fn until(&mut self, expect: &str) {
        let wait = async {
            while self.summary() != expect {
                self.next().await;
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "told: {}\nexpected: {expect}", self.summary());
    }

    /// Takes events in until something is so.
    pub(crate) async fn until_it(&mut self, what: &str, is_so: impl Fn(&Self) -> bool) {
        let wait = async {
            while !is_so(self) {
                self.next().await;
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "not {what}; told: {}, waits: {:?}, config: {:?}", self.summary(), self.waits, self.config);
    }

    /// Takes events in until the config is as expected.
    pub(crate) async fn until_config(&mut self, expect: &Result<String, String>) {
        let wait = async {
            while self.config.as_ref() != Some(expect) {
                self.next().await;
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "told: {:?}\nexpected: {expect:?}", self.config);
    }

    /// Asserts that nothing is told of leases for a while.
    async fn stays(&mut self, this_long: Duration) {
        let before = self.summary();
        while timeout(this_long, self.next()).await.is_ok() {
            assert_eq!(self.summary(), before);
        }
    }

    /// Whether what was told of a lease is what we hold.
    fn tells(&self, held: &Held) -> bool {
        self.leases.record(&held.key) == Some(&Ok(Arc::new(held.lease.clone())))
    }

    /// Holds as the daemon's loop does: again, whenever our record is told to be other than what we hold. Ends with the
    /// first error, or when all is quiet.
    pub(crate) async fn keep(&mut self, store: &dyn Store, held: &Held, claim: &Claim) -> Result<(), HoldError> {
        let config = config(CONFIG);
        let mut held = held.clone();
        loop {
            if !self.tells(&held) {
                held = store.hold(&config, claim).await?;
            }
            let quiet = timeout(Duration::from_millis(300), self.next()).await.is_err();
            if quiet && self.tells(&held) {
                return Ok(());
            }
        }
    }
}

const ONE: &str = "10.1.1.0-24";
const TWO: &str = "10.1.2.0-24";

async fn a_snapshot_comes_first_and_changes_follow(bench: &impl Bench) {
    bench.put(ONE, &record(1, 1)).await;
    let store = bench.open(9);
    let mut told = Told::by(&*store).await;
    assert_eq!(told.summary(), "10.1.1.0-24=1");
    bench.put(TWO, &record(2, 2)).await;
    told.until("10.1.1.0-24=1 10.1.2.0-24=2").await;
    bench.put(ONE, &record(3, 1)).await;
    told.until("10.1.1.0-24=3 10.1.2.0-24=2").await;
    bench.remove(ONE).await;
    told.until("10.1.2.0-24=2").await;
    bench.wipe().await;
    told.until("").await;
}

async fn the_unreadable_is_named_and_hides_nothing(bench: &impl Bench) {
    let store = bench.open(9);
    let mut told = Told::by(&*store).await;
    for (key, text) in [(ONE, "{bad"), ("10.1.3.0-24", ""), ("10.42.999.0-24", "[]"), ("garbage", &record(7, 7))] {
        bench.put(key, text).await;
    }
    bench.put(TWO, &record(2, 2)).await;
    told.until("10.1.1.0-24! 10.1.2.0-24=2 10.1.3.0-24! 10.42.999.0-24! garbage!").await;
    bench.put(ONE, &record(1, 1)).await;
    told.until("10.1.1.0-24=1 10.1.2.0-24=2 10.1.3.0-24! 10.42.999.0-24! garbage!").await;
}

async fn a_lost_connection_is_no_news(bench: &impl Bench) {
    bench.put(ONE, &record(1, 1)).await;
    bench.put(TWO, &record(2, 2)).await;
    let store = bench.open(9);
    let mut told = Told::by(&*store).await;
    bench.cut().await;
    told.stays(Duration::from_millis(1500)).await;
    bench.remove(ONE).await;
    bench.mend().await;
    told.until("10.1.2.0-24=2").await;
}

async fn our_own_record_is_told_too(bench: &impl Bench) {
    let store = bench.open(1);
    let mut told = Told::by(&*store).await;
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    told.until(&format!("{}=1", held.key)).await;
    assert_eq!(told.leases.record(&held.key), Some(&Ok(Arc::new(held.lease.clone()))));
}

async fn holding_again_changes_nothing(bench: &impl Bench) {
    let store = bench.open(1);
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let text = bench.record(held.key.as_str()).await.unwrap();
    assert_eq!(store.hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
    assert_eq!(bench.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap(), held, "after a restart");
    assert_eq!(bench.record(held.key.as_str()).await.unwrap(), text);
}

async fn a_lease_follows_its_claim(bench: &impl Bench) {
    let store = bench.open(1);
    let first = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let moved = Claim { public_ip: claim(2).public_ip, ..claim(1) };
    let second = store.hold(&config(CONFIG), &moved).await.unwrap();
    assert_eq!((&second.key, second.lease.since), (&first.key, first.lease.since));
    assert_eq!(second.lease.public_ip, claim(2).public_ip);
    let mac = Claim { attributes: claim(7).attributes, ..claim(2) };
    let third = store.hold(&config(CONFIG), &mac).await.unwrap();
    assert_eq!(third, second, "the lease's MAC wins over the device's");
}

async fn a_lease_moves_into_its_network(bench: &impl Bench) {
    let store = bench.open(1);
    let first = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let outside = config(&CONFIG.replace("10.1.", "10.2."));
    let second = store.hold(&outside, &claim(1)).await.unwrap();
    assert!(outside.fits(&second.lease.subnet));
    assert_eq!(bench.record(first.key.as_str()).await, None, "a record that does not fit is deleted");
}

async fn what_we_hold_stays_as_claimed(bench: &impl Bench) {
    let store = bench.open(1);
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let mut told = Told::by(&*store).await;
    let key = held.key.as_str();
    let text = bench.record(key).await.unwrap();
    let edits = [text.replace("192.0.2.1", "192.0.2.77"), text.replace("02:", "06:"), String::new(), "{bad".to_owned()];
    for edit in edits {
        bench.put(key, &edit).await;
        told.until(&told_as(&held.key, &edit)).await;
        told.keep(&*store, &held, &claim(1)).await.unwrap();
        assert_eq!(bench.record(key).await.as_ref(), Some(&text), "after {edit}");
    }
    bench.remove(key).await;
    told.until("").await;
    told.keep(&*store, &held, &claim(1)).await.unwrap();
    bench.wipe().await;
    told.until("").await;
    told.keep(&*store, &held, &claim(1)).await.unwrap();
    assert_eq!(bench.record(key).await, Some(text));
}

/// What is told of a record of this text alone in a store.
fn told_as(key: &LeaseKey, text: &str) -> String {
    match flannel_core::record::claimed_by(text.as_bytes()).v4 {
        Some(ip) => format!("{key}={}", ip.to_string().rsplit('.').next().unwrap()),
        None => format!("{key}!"),
    }
}

async fn a_store_away_is_tried_again_later(bench: &impl Bench) {
    let store = bench.open(1);
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let mut told = Told::by(&*store).await;
    bench.cut().await;
    bench.remove(held.key.as_str()).await;
    let moved = Claim { public_ip: claim(2).public_ip, ..claim(1) };
    let away = store.hold(&config(CONFIG), &moved).await.unwrap_err();
    assert!(matches!(away, HoldError::Later(_)), "{away}");
    bench.mend().await;
    told.until("").await;
    told.keep(&*store, &held, &claim(1)).await.unwrap();
}

async fn a_lost_lease_names_who_has_it(bench: &impl Bench) {
    let store = bench.open(1);
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let mut told = Told::by(&*store).await;
    bench.remove(held.key.as_str()).await;
    bench.put(held.key.as_str(), &record(2, 9)).await;
    told.until(&format!("{}=2", held.key)).await;
    let lost = told.keep(&*store, &held, &claim(1)).await.unwrap_err();
    let start = format!("our lease {} is lost: its subnet is held by public IP 192.0.2.2", held.key);
    assert!(matches!(&lost, HoldError::Never { cause, .. } if cause.starts_with(&start)), "{lost}");
    assert_eq!(bench.record(held.key.as_str()).await, Some(record(2, 9)));
}

async fn one_public_ip_is_one_hosts(bench: &impl Bench) {
    let elder = bench.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap();
    let text = bench.record(elder.key.as_str()).await.unwrap();
    for _ in 0..2 {
        let refused = bench.open(2).hold(&config(CONFIG), &claim(1)).await.unwrap_err();
        let start = "public IP 192.0.2.1 of this host is held by ";
        assert!(matches!(&refused, HoldError::Never { cause, .. } if cause.starts_with(start)), "{refused}");
    }
    assert_eq!(bench.record(elder.key.as_str()).await.unwrap(), text);
    assert_eq!(bench.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap(), elder);
}

/// What hosts get that claim at the same moment.
pub(crate) async fn all_at_once(
    bench: &impl Bench,
    text: &str,
    claims: Vec<(u8, Claim)>,
) -> Vec<Result<Held, HoldError>> {
    let daemons = LocalSet::new();
    let hold = |(host, claim): (u8, Claim)| {
        let (store, config) = (bench.open(host), config(text));
        daemons.spawn_local(async move { store.hold(&config, &claim).await })
    };
    let tasks: Vec<_> = claims.into_iter().map(hold).collect();
    daemons.await;
    let mut results = Vec::new();
    for task in tasks {
        results.push(task.await.unwrap());
    }
    results
}

async fn many_hosts_get_a_subnet_each(bench: &impl Bench) {
    let results = all_at_once(bench, CONFIG, (1..=60).map(|host| (host, claim(host))).collect()).await;
    let mut subnets = std::collections::BTreeSet::new();
    for held in results {
        let held = held.unwrap();
        assert!(subnets.insert(held.lease.subnet.v4.unwrap()), "{} twice", held.key);
    }
    assert_eq!(Told::by(&*bench.open(99)).await.leases.len(), 60);
}
