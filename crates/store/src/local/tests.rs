//! The local store on real directories.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flannel_core::addr::Dual;
use flannel_core::lease::LeaseKey;
use tokio::time::timeout;

use super::*;
use crate::laws::{self, Bench, Told, claim, record};

const CONFIG: &str = r#"{"Network": "10.1.0.0/16", "Backend": {"Type": "vxlan"}}"#;
const DUAL: &str =
    r#"{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}"#;

/// A directory of its own, gone with the test.
struct Place {
    base: PathBuf,
}

impl Place {
    fn empty() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let base = std::env::temp_dir().join(format!("flannel-store-{}-{number}", std::process::id()));
        fs::create_dir(&base).unwrap();
        Self { base }
    }

    fn new() -> Self {
        let place = Self::empty();
        fs::write(place.dir().join("config.json"), CONFIG).unwrap_or_else(|_| {
            fs::create_dir(place.dir()).unwrap();
            fs::write(place.dir().join("config.json"), CONFIG).unwrap();
        });
        place
    }

    fn dir(&self) -> PathBuf {
        self.base.join("store")
    }

    fn away(&self) -> PathBuf {
        self.base.join("away")
    }

    /// Where the store is now, cut off or not.
    fn now(&self) -> PathBuf {
        if self.away().exists() { self.away() } else { self.dir() }
    }

    fn file(&self, key: &str) -> PathBuf {
        self.now().join("subnets").join(format!("{key}.json"))
    }

    fn keys(&self) -> Vec<String> {
        let names = fs::read_dir(self.now().join("subnets")).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.sort();
        names
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        drop(fs::remove_dir_all(&self.base));
    }
}

fn host(number: u8) -> Host {
    Host { name: format!("node-{number}"), machine: format!("m{number}"), boot: "b1".into(), netns: u64::from(number) }
}

impl Bench for Place {
    fn open(&self, number: u8) -> Box<dyn Store> {
        Box::new(LocalStore::new(&self.dir(), host(number)))
    }

    async fn put(&self, key: &str, text: &str) {
        fs::create_dir_all(self.now().join("subnets")).unwrap();
        fs::write(self.file(key), text).unwrap();
    }

    async fn remove(&self, key: &str) {
        drop(fs::remove_file(self.file(key)));
    }

    async fn record(&self, key: &str) -> Option<String> {
        fs::read_to_string(self.file(key)).ok()
    }

    async fn wipe(&self) {
        fs::remove_dir_all(self.now().join("subnets")).unwrap();
        drop(fs::remove_dir_all(self.now().join("holders")));
    }

    async fn cut(&self) {
        fs::rename(self.dir(), self.away()).unwrap();
    }

    async fn mend(&self) {
        fs::rename(self.away(), self.dir()).unwrap();
    }
}

#[tokio::test]
async fn it_keeps_the_laws_of_stores() {
    laws::check(Place::new).await;
}

#[tokio::test]
async fn the_config_is_followed_while_it_is_usable() {
    let place = Place::new();
    let store = place.open(1);
    let mut config = store.config().await.unwrap();
    assert_eq!(config.borrow().network.v6, None);
    let file = place.dir().join("config.json");
    for unusable in ["{bad", "", r#"{"Network": "10.1.0.0/16"}"#] {
        fs::write(&file, unusable).unwrap();
        assert!(timeout(Duration::from_millis(100), config.changed()).await.is_err(), "{unusable}");
    }
    fs::write(&file, DUAL).unwrap();
    timeout(Duration::from_secs(10), config.changed()).await.unwrap().unwrap();
    assert!(config.borrow_and_update().network.v6.is_some());
    fs::write(&file, format!("{DUAL} ")).unwrap();
    assert!(timeout(Duration::from_millis(100), config.changed()).await.is_err(), "the same config is no change");
}

#[tokio::test]
async fn unusable_directories() {
    async fn check(place: &Place, config: &str, hold: &str, hint: &str) {
        let base = place.dir().display().to_string();
        let store = place.open(1);
        let error = store.config().await.map(drop).map_err(|error| chain(&error));
        assert_eq!(error.err().unwrap_or_default().replace(&base, "DIR"), config);
        let error = store.hold(claim(1)).await.unwrap_err();
        assert_eq!((chain(&error).replace(&base, "DIR").as_str(), error.hint()), (hold, hint));
    }
    let absent = "cannot read DIR/config.json: No such file or directory (os error 2)";
    let create = "the store is a directory with a config.json; create both, or correct --local-store";
    check(&Place::empty(), absent, absent, create).await;

    let empty = Place::empty();
    fs::create_dir(empty.dir()).unwrap();
    check(&empty, absent, absent, create).await;

    let file = Place::empty();
    fs::write(file.dir(), "").unwrap();
    let text = "cannot read DIR/config.json: Not a directory (os error 20)";
    check(&file, text, text, create).await;

    let bad = Place::new();
    fs::write(bad.dir().join("config.json"), "{bad").unwrap();
    let text =
        "cannot use DIR/config.json: network config is not a JSON object: key must be a string at line 1 column 2";
    let least = r#"the least it may hold is {"Network": "10.244.0.0/16", "Backend": {"Type": "vxlan"}}"#;
    check(&bad, text, text, least).await;

    let read_only = Place::new();
    symlink("/sys/kernel", read_only.dir().join("subnets")).unwrap();
    let store = read_only.open(1);
    let error = store.hold(claim(1)).await.unwrap_err();
    let text = chain(&error).replace(&read_only.dir().display().to_string(), "DIR");
    assert!(text.starts_with("cannot write DIR/subnets/10.1.") && text.contains(".0-24.json: "), "{text}");
    assert_eq!(error.hint(), "flanneld must be allowed to read and write in the store's directory");
}

#[tokio::test]
async fn what_is_no_record_is_passed_over_or_named() {
    let place = Place::new();
    place.put("10.1.1.0-24", &record(1, 1)).await;
    fs::write(place.now().join("subnets/README"), "no record").unwrap();
    fs::write(place.now().join("subnets/.10.1.9.0-24.json.swp"), "no record").unwrap();
    fs::write(place.now().join("subnets/.10.1.9.0-24.json"), "no record").unwrap();
    fs::create_dir(place.file("10.1.2.0-24")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        place.file("10.1.3.0-24"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o600),
        0,
    )
    .unwrap();
    fs::write(place.file("10.1.4.0-24"), vec![b'x'; 1 << 20]).unwrap();
    let told = Told::by(&*place.open(9)).await;
    assert_eq!(told.summary(), "10.1.1.0-24=1 10.1.2.0-24! 10.1.3.0-24! 10.1.4.0-24!");
    let why = told.leases.record(&LeaseKey::new("10.1.4.0-24")).unwrap().as_ref().unwrap_err().to_string();
    assert_eq!(why, "record: has 65537 bytes, more than 65536");
}

#[tokio::test]
async fn unreadable_records_keep_their_subnets() {
    let place = Place::new();
    fs::write(place.dir().join("config.json"), CONFIG.replace("10.1.0.0/16", "10.1.0.0/22")).unwrap();
    place.put("10.1.1.0-24", "{half").await;
    place.put("10.1.3.0-24", "").await;
    let held = place.open(1).hold(claim(1)).await.unwrap();
    assert_eq!(held.key.as_str(), "10.1.2.0-24");
    let full = place.open(2).hold(claim(2)).await.unwrap_err();
    assert_eq!(full.to_string(), "no subnet of 10.1.0.0/22 is free for this node");
}

#[tokio::test]
async fn our_own_broken_record_is_mended_at_start() {
    let place = Place::new();
    place.put("10.1.7.0-24", &record(1, 3).replace("02:00:00:00:00:01", "00:00:00:00:00:00")).await;
    let held = place.open(1).hold(claim(1)).await.unwrap();
    assert_eq!(held.key.as_str(), "10.1.7.0-24");
    assert_eq!(held.lease.attributes, claim(1).attributes);
}

#[tokio::test]
async fn a_record_made_by_hand_is_taken_over_with_its_mac() {
    let place = Place::new();
    let by_hand =
        r#"{"PublicIP": "192.0.2.1", "BackendType": "vxlan", "BackendData": {"VtepMAC": "02:00:00:00:00:aa"}}"#;
    place.put("10.1.7.0-24", by_hand).await;
    place.put("10.9.7.0-24", &record(1, 1)).await;
    let held = place.open(1).hold(claim(1)).await.unwrap();
    assert_eq!((held.key.as_str(), held.lease.since.at), ("10.1.7.0-24", 0));
    let text = place.record("10.1.7.0-24").await.unwrap();
    assert_eq!(text, record(1, 0).replace("00:01", "00:aa"));
    assert_eq!(place.keys(), ["10.1.7.0-24.json"], "what does not fit the config is deleted");
}

#[tokio::test]
async fn the_previous_subnet_comes_first_and_a_host_knows_its_record() {
    let place = Place::new();
    let previous = Dual::of_nets(["10.1.200.0/24".parse().unwrap()]);
    let held = place.open(1).hold(Claim { previous, ..claim(1) }).await.unwrap();
    assert_eq!(held.key.as_str(), "10.1.200.0-24");
    drop(held);
    let moved = place.open(1).hold(Claim { previous, ..claim(2) }).await.unwrap();
    assert_eq!((moved.key.as_str(), place.keys().len()), ("10.1.200.0-24", 1), "the address changed while it was down");
    let other = place.open(3).hold(Claim { previous, ..claim(3) }).await.unwrap();
    assert_ne!(other.key.as_str(), "10.1.200.0-24");
}

#[tokio::test]
async fn a_rebooted_host_is_the_same_host() {
    let place = Place::new();
    let held = place.open(1).hold(claim(1)).await.unwrap();
    let rebooted = LocalStore::new(&place.dir(), Host { boot: "b2".into(), netns: 77, ..host(1) });
    assert_eq!(rebooted.hold(claim(1)).await.unwrap().key, held.key);
    let another_namespace = LocalStore::new(&place.dir(), Host { boot: "b2".into(), netns: 78, ..host(1) });
    assert!(matches!(another_namespace.hold(claim(1)).await, Err(HoldError::PublicIpTaken { .. })));
}

#[tokio::test]
async fn the_holder_takes_the_note_of_a_rival() {
    let place = Place::new();
    let elder = place.open(1).hold(claim(1)).await.unwrap();
    let note = place.dir().join(format!("holders/{}.rival", elder.key));
    let refused = place.open(2).hold(claim(1)).await.unwrap_err();
    assert!(refused.to_string().contains("host node-1 (machine m1, network namespace 1)"), "{refused}");
    assert!(note.exists());
    drop(elder);
    let shared = Arc::new(Shared::new(Arc::new(Directory::new(&place.dir(), &host(1))), host(1)));
    let config = read_config(&shared.directory).unwrap();
    let mut keeper = Keeper::acquire(&shared, &config, &claim(1)).unwrap();
    keeper.check(&Look::Everywhere).unwrap();
    assert!(!note.exists(), "the note was read");
}

#[tokio::test]
async fn a_younger_record_yields_without_a_lock() {
    let place = Place::new();
    let store = place.open(2);
    let mut held = store.hold(claim(2)).await.unwrap();
    let (key, since) = (held.key.to_string(), held.lease.since.at);
    place.put(&key.replace("-24", "-25"), &record(3, since + 1)).await;
    assert!(timeout(Duration::from_millis(200), held.changed()).await.is_err(), "the elder stays");
    place.put(&key.replace("-24", "-26"), &record(3, 0)).await;
    let lost = timeout(Duration::from_secs(10), held.changed()).await.unwrap().unwrap_err();
    assert_eq!(lost.to_string(), format!("our lease {key} is lost: its subnet is held by public IP 192.0.2.3"));
    assert_eq!(place.record(&key).await, None);
}

#[tokio::test]
async fn a_subnet_taken_meanwhile_is_not_taken_back() {
    let place = Place::new();
    let store = place.open(1);
    let mut held = store.hold(claim(1)).await.unwrap();
    let key = held.key.to_string();
    place.cut().await;
    place.remove(&key).await;
    place.put(&key.replace("-24", "-23").replace(".1.", ".0."), "").await;
    let wider = key.replace("-24", "-25");
    place.put(&wider, &record(5, 50)).await;
    place.mend().await;
    let lost = timeout(Duration::from_secs(10), held.changed()).await.unwrap().unwrap_err();
    assert!(lost.to_string().starts_with(&format!("our lease {key} is lost: its subnet is held by ")), "{lost}");
}

#[tokio::test]
async fn a_lease_grows_when_the_network_becomes_dual_stack() {
    let place = Place::new();
    let before = place.open(1).hold(claim(1)).await.unwrap();
    fs::write(place.dir().join("config.json"), DUAL).unwrap();
    let mut grown = claim(1);
    grown.public_ip.v6 = "2001:db8::1".parse().ok();
    let after = place.open(1).hold(grown).await.unwrap();
    assert_eq!((after.lease.subnet.v4, after.lease.since), (before.lease.subnet.v4, before.lease.since));
    assert!(after.lease.subnet.v6.is_some());
    assert_eq!(place.keys(), [format!("{}.json", after.key)], "the narrower record is gone");
}

#[tokio::test]
async fn hosts_without_a_common_ipv4_are_known_by_ipv6() {
    let place = Place::new();
    let config =
        r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "host-gw"}}"#;
    fs::write(place.dir().join("config.json"), config).unwrap();
    let only_ipv6 = |host: u8| Claim {
        public_ip: Dual { v4: None, v6: format!("2001:db8::{host}").parse().ok() },
        attributes: flannel_core::lease::Attributes::HostGw,
        previous: Dual::default(),
    };
    let one = place.open(1).hold(only_ipv6(1)).await.unwrap();
    let two = place.open(2).hold(only_ipv6(2)).await.unwrap();
    assert_ne!(one.key, two.key);
    assert!(one.key.as_str().starts_with("0.0.0.0-0&fc00:0:0:"), "{}", one.key);
    assert!(
        place
            .record(one.key.as_str())
            .await
            .unwrap()
            .starts_with(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","#)
    );
    assert_eq!(place.open(1).hold(only_ipv6(1)).await.unwrap().key, one.key);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_swept() {
    let place = Place::new();
    fs::create_dir(place.dir().join("subnets")).unwrap();
    fs::write(place.dir().join("subnets/.tmp-someone-1-0"), "{").unwrap();
    let held = place.open(1).hold(claim(1)).await.unwrap();
    assert_eq!(place.keys(), [format!("{}.json", held.key)]);
}

#[tokio::test]
async fn a_stuck_lock_holds_nobody_up_for_long() {
    let place = Place::new();
    let stuck = fs::File::create(place.dir().join("lock")).unwrap();
    stuck.lock().unwrap();
    let hosts = [1, 2, 3].map(|number| (number, place.open(number)));
    let tasks =
        hosts.map(|(number, store)| tokio::spawn(async move { store.hold(claim(number)).await.unwrap().key.clone() }));
    let mut keys = std::collections::BTreeSet::new();
    for task in tasks {
        assert!(keys.insert(task.await.unwrap()));
    }
}

#[tokio::test]
async fn a_look_without_hints_finds_what_changed() {
    let place = Place::new();
    place.put("10.1.1.0-24", &record(1, 1)).await;
    place.put("10.1.2.0-24", &record(2, 2)).await;
    place.put("10.1.3.0-24", &record(3, 3)).await;
    let directory = Directory::new(&place.dir(), &host(9));
    let mut scanner = Scanner::default();
    assert!(matches!(scanner.look(&directory, &Look::Everywhere), Ok(Seen::All(records)) if records.len() == 3));
    place.remove("10.1.1.0-24").await;
    place.put("10.1.2.0-24", &record(22, 2)).await;
    let Ok(Seen::Changes(records, gone)) = scanner.look(&directory, &Look::Everywhere) else { panic!("no changes") };
    assert_eq!(records.iter().map(|record| record.key.as_str()).collect::<Vec<_>>(), ["10.1.2.0-24"]);
    assert_eq!(gone, [LeaseKey::new("10.1.1.0-24")]);
    place.cut().await;
    assert!(scanner.look(&directory, &Look::Everywhere).is_err());
    place.mend().await;
    assert!(matches!(scanner.look(&directory, &Look::Everywhere), Ok(Seen::All(records)) if records.len() == 2));
}
