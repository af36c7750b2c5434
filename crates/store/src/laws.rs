//! The laws of every store (see the crate's documentation), to be run on each.

use std::time::Duration;

use flannel_core::addr::{Dual, Mac, Vni};
use flannel_core::lease::{Attributes, Claim, LeaseEvent, LeaseKey, Vtep};
use flannel_core::lease_set::LeaseSet;
use tokio::time::timeout;

use crate::{HoldError, LeaseEvents, Store};

/// A store under test: how daemons open it, and what somebody else does to it.
pub(crate) trait Bench {
    /// The store as the daemon of a host sees it. The network is 10.1.0.0/16, backend vxlan.
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

/// How long anything may take to be told.
const PATIENCE: Duration = Duration::from_secs(10);

/// Checks all laws, each on a new store.
pub(crate) async fn check<B: Bench>(fresh: impl Fn() -> B) {
    a_snapshot_comes_first_and_changes_follow(&fresh()).await;
    the_unreadable_is_named_and_hides_nothing(&fresh()).await;
    a_lost_connection_is_no_news(&fresh()).await;
    our_own_record_is_told_too(&fresh()).await;
    holding_again_changes_nothing(&fresh()).await;
    a_lease_follows_its_claim(&fresh()).await;
    what_we_hold_stays_as_claimed(&fresh()).await;
    a_lost_lease_names_who_has_it(&fresh()).await;
    one_public_ip_is_one_hosts(&fresh()).await;
    many_hosts_get_a_subnet_each(&fresh()).await;
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

/// Events as a daemon takes them in.
pub(crate) struct Told {
    events: LeaseEvents,
    pub(crate) leases: LeaseSet,
}

impl Told {
    /// Subscribes, and takes the first event, which has to be a snapshot.
    pub(crate) async fn by(store: &dyn Store) -> Self {
        let mut events = store.events();
        let first = timeout(PATIENCE, events.next()).await.expect("no event came");
        let mut leases = LeaseSet::default();
        assert!(matches!(first, Some(LeaseEvent::Snapshot(_))), "{first:?}");
        leases.apply(first.unwrap());
        Self { events, leases }
    }

    /// All records as `key=last digits of the public IP` or `key!`.
    pub(crate) fn summary(&self) -> String {
        let one = |(key, lease): (&LeaseKey, &Result<flannel_core::lease::Lease, _>)| match lease {
            Ok(lease) => format!("{key}={}", lease.public_ip.v4.unwrap().to_string().rsplit('.').next().unwrap()),
            Err(_) => format!("{key}!"),
        };
        self.leases.iter().map(one).collect::<Vec<_>>().join(" ")
    }

    /// Takes events in until all is as expected.
    pub(crate) async fn until(&mut self, expect: &str) {
        let wait = async {
            while self.summary() != expect {
                self.leases.apply(self.events.next().await.expect("the stream ended"));
            }
        };
        let in_time = timeout(PATIENCE, wait).await.is_ok();
        assert!(in_time, "told: {}\nexpected: {expect}", self.summary());
    }

    /// Asserts that nothing is told for a while.
    async fn stays(&mut self, while_: Duration) {
        let before = self.summary();
        while let Ok(event) = timeout(while_, self.events.next()).await {
            self.leases.apply(event.expect("the stream ended"));
            assert_eq!(self.summary(), before);
        }
    }
}

/// Waits until a record is as expected.
async fn until_record(bench: &impl Bench, key: &str, expect: &str) {
    let wait = async {
        while bench.record(key).await.as_deref() != Some(expect) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = timeout(PATIENCE, wait).await.is_ok();
    assert!(in_time, "{key} is {:?}, expected {expect}", bench.record(key).await);
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
    let held = store.hold(claim(1)).await.unwrap();
    told.until(&format!("{}=1", held.key)).await;
    assert_eq!(told.leases.record(&held.key), Some(&Ok(held.lease.clone())));
}

async fn holding_again_changes_nothing(bench: &impl Bench) {
    let held = bench.open(1).hold(claim(1)).await.unwrap();
    let text = bench.record(held.key.as_str()).await.unwrap();
    let again = bench.open(1).hold(claim(1)).await.unwrap();
    assert_eq!((&again.key, &again.lease), (&held.key, &held.lease));
    assert_eq!(bench.record(held.key.as_str()).await.unwrap(), text);
}

async fn a_lease_follows_its_claim(bench: &impl Bench) {
    let store = bench.open(1);
    let first = store.hold(claim(1)).await.unwrap();
    let moved = Claim { public_ip: claim(2).public_ip, ..claim(1) };
    let second = store.hold(moved).await.unwrap();
    assert_eq!((&second.key, second.lease.since), (&first.key, first.lease.since));
    assert_eq!(second.lease.public_ip, claim(2).public_ip);
    drop(first);
    let mac = Claim { attributes: claim(7).attributes, ..claim(2) };
    let third = store.hold(mac).await.unwrap();
    assert_eq!(third.lease.attributes, claim(1).attributes, "the lease wins over the device");
}

async fn what_we_hold_stays_as_claimed(bench: &impl Bench) {
    let store = bench.open(1);
    let held = store.hold(claim(1)).await.unwrap();
    let key = held.key.as_str();
    let text = bench.record(key).await.unwrap();
    bench.remove(key).await;
    until_record(bench, key, &text).await;
    for edit in [text.replace("192.0.2.1", "192.0.2.77"), text.replace("02:", "06:"), String::new(), "{bad".to_owned()]
    {
        bench.put(key, &edit).await;
        until_record(bench, key, &text).await;
    }
    bench.wipe().await;
    until_record(bench, key, &text).await;
    bench.cut().await;
    bench.remove(key).await;
    bench.mend().await;
    until_record(bench, key, &text).await;
}

async fn a_lost_lease_names_who_has_it(bench: &impl Bench) {
    let store = bench.open(1);
    let mut held = store.hold(claim(1)).await.unwrap();
    let key = held.key.to_string();
    bench.cut().await;
    bench.put(&key, &record(2, 9)).await;
    bench.mend().await;
    let lost = timeout(PATIENCE, held.changed()).await.expect("the loss went unnoticed").unwrap_err();
    assert_eq!(lost.to_string(), format!("our lease {key} is lost: its subnet is held by public IP 192.0.2.2"));
    assert_eq!(bench.record(&key).await, Some(record(2, 9)));
}

async fn one_public_ip_is_one_hosts(bench: &impl Bench) {
    let elder = bench.open(1).hold(claim(1)).await.unwrap();
    let text = bench.record(elder.key.as_str()).await.unwrap();
    let refused = bench.open(2).hold(claim(1)).await.unwrap_err();
    assert!(matches!(&refused, HoldError::PublicIpTaken { key, .. } if *key == elder.key), "{refused}");
    assert!(refused.to_string().starts_with("public IP 192.0.2.1 of this host is held by "), "{refused}");
    assert_eq!(bench.record(elder.key.as_str()).await.unwrap(), text);
    drop(elder);
    bench.open(2).hold(claim(1)).await.unwrap_err();
    bench.open(1).hold(claim(1)).await.unwrap();
}

async fn many_hosts_get_a_subnet_each(bench: &impl Bench) {
    let hosts: Vec<_> = (1..=60).map(|host| (host, bench.open(host))).collect();
    let tasks: Vec<_> =
        hosts.into_iter().map(|(host, store)| tokio::spawn(async move { store.hold(claim(host)).await })).collect();
    let mut subnets = std::collections::BTreeSet::new();
    for task in tasks {
        let held = task.await.unwrap().unwrap();
        assert!(subnets.insert(held.lease.subnet.v4.unwrap()), "{} twice", held.key);
    }
    let told = Told::by(&*bench.open(99)).await;
    assert_eq!(told.leases.len(), 60);
}
