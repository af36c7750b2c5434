//! The local store on real directories.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use flannel_core::addr::Dual;
use flannel_core::lease::{LeaseKey, Record};
use flannel_core::record::SubnetKey;

use super::scan::Scanner;
use super::*;
use crate::laws::{self, Bench, CONFIG, Told, all_at_once, claim, config, record};

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

    /// What the daemon of a host gets for its claim.
    async fn hold(&self, number: u8, claim: &Claim) -> Result<Held, HoldError> {
        let text = fs::read_to_string(self.dir().join("config.json")).unwrap();
        self.open(number).hold(&config(&text), claim).await
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
async fn the_config_is_told_whenever_it_changes() {
    let place = Place::new();
    let mut told = Told::by(&*place.open(1)).await;
    assert_eq!(told.config, Some(Ok(CONFIG.to_owned())));
    let file = place.dir().join("config.json");
    for text in ["{bad", "", DUAL] {
        fs::write(&file, text).unwrap();
        told.until_config(&Ok(text.to_owned())).await;
    }
    fs::remove_file(&file).unwrap();
    let cause = "No such file or directory (os error 2)";
    let hint = "the store is a directory with a config.json; create both, or correct --local-store";
    told.until_config(&Err(format!("cannot read {}: {cause} (hint: {hint})", file.display()))).await;
}

#[tokio::test]
async fn unusable_directories() {
    async fn check(place: &Place, cause: &str, hint: &str) {
        let base = place.dir().display().to_string();
        let Err(HoldError::Never { cause: said, hint: hinted }) = place.open(1).hold(&config(CONFIG), &claim(1)).await
        else {
            panic!("not refused for good, expected: {cause}")
        };
        assert_eq!((said.replace(&base, "DIR").as_str(), hinted.as_str()), (cause, hint));
    }
    let absent = "cannot find DIR/config.json: No such file or directory (os error 2)";
    let create = "the store is a directory with a config.json; create both, or correct --local-store";
    check(&Place::empty(), absent, create).await;

    let empty = Place::empty();
    fs::create_dir(empty.dir()).unwrap();
    check(&empty, absent, create).await;

    let file = Place::empty();
    fs::write(file.dir(), "").unwrap();
    check(&file, "cannot find DIR/config.json: Not a directory (os error 20)", create).await;

    let read_only = Place::new();
    symlink("/sys/kernel", read_only.dir().join("subnets")).unwrap();
    let refused = read_only.hold(1, &claim(1)).await.unwrap_err();
    let HoldError::Never { cause, hint } = &refused else { panic!("{refused}") };
    let start = format!("cannot write {}/subnets/10.1.", read_only.dir().display());
    assert!(cause.starts_with(&start) && cause.contains(".0-24.json: "), "{cause}");
    assert_eq!(hint, "flanneld must be allowed to read and write in the store's directory");
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
    let held = place.hold(1, &claim(1)).await.unwrap();
    assert_eq!(held.key.as_str(), "10.1.2.0-24");
    let full = place.hold(2, &claim(2)).await.unwrap_err();
    assert_eq!(full.to_string(), "no subnet of 10.1.0.0/22 is free for this node");
}

#[tokio::test]
async fn our_own_broken_record_is_mended_at_start() {
    let place = Place::new();
    place.put("10.1.7.0-24", &record(1, 3).replace("02:00:00:00:00:01", "00:00:00:00:00:00")).await;
    let held = place.hold(1, &claim(1)).await.unwrap();
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
    let held = place.hold(1, &claim(1)).await.unwrap();
    assert_eq!((held.key.as_str(), held.lease.since.at), ("10.1.7.0-24", 0));
    let text = place.record("10.1.7.0-24").await.unwrap();
    assert_eq!(text, record(1, 0).replace("00:01", "00:aa"));
    assert_eq!(place.keys(), ["10.1.7.0-24.json"], "what does not fit the config is deleted");
}

#[tokio::test]
async fn the_previous_subnet_comes_first_and_a_host_knows_its_record() {
    let place = Place::new();
    let previous = Dual::of_nets(["10.1.200.0/24".parse().unwrap()]);
    let held = place.hold(1, &Claim { previous, ..claim(1) }).await.unwrap();
    assert_eq!(held.key.as_str(), "10.1.200.0-24");
    drop(held);
    let moved = place.hold(1, &Claim { previous, ..claim(2) }).await.unwrap();
    assert_eq!((moved.key.as_str(), place.keys().len()), ("10.1.200.0-24", 1), "the address changed while it was down");
    let other = place.hold(3, &Claim { previous, ..claim(3) }).await.unwrap();
    assert_ne!(other.key.as_str(), "10.1.200.0-24");
}

#[tokio::test]
async fn a_lease_grows_when_the_network_becomes_dual_stack() {
    let place = Place::new();
    let before = place.hold(1, &claim(1)).await.unwrap();
    fs::write(place.dir().join("config.json"), DUAL).unwrap();
    let mut grown = claim(1);
    grown.public_ip.v6 = "2001:db8::1".parse().ok();
    let after = place.hold(1, &grown).await.unwrap();
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
    let one = place.hold(1, &only_ipv6(1)).await.unwrap();
    let two = place.hold(2, &only_ipv6(2)).await.unwrap();
    assert_ne!(one.key, two.key);
    assert!(one.key.as_str().starts_with("0.0.0.0-0&fc00:0:0:"), "{}", one.key);
    assert!(
        place
            .record(one.key.as_str())
            .await
            .unwrap()
            .starts_with(r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","#)
    );
    assert_eq!(place.hold(1, &only_ipv6(1)).await.unwrap().key, one.key);
}

#[tokio::test]
async fn what_a_killed_writer_left_is_swept() {
    let place = Place::new();
    let subnets = place.dir().join("subnets");
    fs::create_dir(&subnets).unwrap();
    for name in [".tmp-killed-1-0", ".tmp-impatient-2-0"] {
        fs::write(subnets.join(name), "{").unwrap();
    }
    let killed = fs::File::options().write(true).open(subnets.join(".tmp-killed-1-0")).unwrap();
    killed.set_modified(std::time::SystemTime::now() - std::time::Duration::from_hours(1)).unwrap();
    let held = place.hold(1, &claim(1)).await.unwrap();
    assert_eq!(place.keys(), [".tmp-impatient-2-0".to_owned(), format!("{}.json", held.key)]);
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
    place.put("10.1.4.0-24", &record(4, 4)).await;
    let keys = |records: Vec<Record>| records.into_iter().map(|record| record.key).collect::<BTreeSet<_>>();
    let all = ["10.1.2.0-24", "10.1.3.0-24", "10.1.4.0-24"].map(LeaseKey::new);
    assert_eq!(keys(scanner.survey(&directory, |_| true).unwrap()), BTreeSet::from(all.clone()));
    let Ok(Seen::Changes(records, _)) = scanner.look(&directory, &Look::Everywhere) else { panic!("no changes") };
    assert_eq!(keys(records), BTreeSet::from([all[2].clone()]), "a survey in between hides nothing");
    place.remove("10.1.4.0-24").await;
    place.cut().await;
    assert!(scanner.look(&directory, &Look::Everywhere).is_err());
    place.mend().await;
    assert!(matches!(scanner.look(&directory, &Look::Everywhere), Ok(Seen::All(records)) if records.len() == 2));
}

#[tokio::test]
async fn of_many_records_none_is_lost() {
    let place = Place::new();
    let key = |number: usize| format!("10.1.{}.{}-28", number / 16, number % 16 * 16);
    for number in 0..1000 {
        place.put(&key(number), &record(1, number as u64)).await;
    }
    place.put(&key(900), "{").await;
    let directory = Directory::new(&place.dir(), &host(9));
    let mut scanner = Scanner::default();
    let Ok(Seen::All(records)) = scanner.look(&directory, &Look::Everywhere) else { panic!("not all") };
    assert_eq!(records.len(), 1000);
    for Record { key, lease } in records {
        let Ok(SubnetKey(subnet)) = key.as_str().parse() else { panic!("{key}") };
        assert_eq!(lease.is_ok_and(|lease| lease.subnet == subnet), key.as_str() != "10.1.56.64-28", "{key}");
    }
}

#[tokio::test]
async fn a_directory_at_rest_is_surveyed_by_its_stamp() {
    let place = Place::new();
    place.put("10.1.1.0-24", &record(1, 1)).await;
    let directory = Directory::new(&place.dir(), &host(9));
    let mut scanner = Scanner::default();
    while directory.records().unwrap().at_rest().is_none() {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    assert!(scanner.look(&directory, &Look::Everywhere).is_ok());
    let surveyed = |scanner: &Scanner| scanner.survey(&directory, |_| true).unwrap();
    let before = surveyed(&scanner);
    fs::write(place.file("10.1.1.0-24"), record(7, 1)).unwrap();
    assert_eq!(surveyed(&scanner), before, "no file was looked at");
    assert!(matches!(scanner.look(&directory, &Look::Everywhere), Ok(Seen::Changes(records, _)) if records.len() == 1));
    assert_ne!(surveyed(&scanner), before, "the look saw what was written in place");
    place.put("10.1.2.0-24", &record(2, 2)).await;
    assert_eq!(surveyed(&scanner).len(), 2);
    place.remove("10.1.1.0-24").await;
    assert_eq!(surveyed(&scanner).len(), 1);
}

#[tokio::test]
async fn a_rebooted_host_is_the_same_host() {
    let place = Place::new();
    let held = place.hold(1, &claim(1)).await.unwrap();
    let in_namespace = |netns| LocalStore::new(&place.dir(), Host { boot: "b2".into(), netns, ..host(1) });
    assert_eq!(in_namespace(77).hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
    let refused = in_namespace(78).hold(&config(CONFIG), &claim(1)).await.unwrap_err();
    assert!(matches!(refused, HoldError::Never { .. }), "{refused}");
}

#[tokio::test]
async fn of_two_hosts_with_one_public_ip_each_hears_of_the_other() {
    let place = Place::new();
    let store = place.open(1);
    let elder = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    let note = place.dir().join(format!("holders/{}.rival", elder.key));
    let refused = place.hold(2, &claim(1)).await.unwrap_err();
    let name = "host node-1 (machine m1, network namespace 1)";
    assert_eq!(
        refused.to_string(),
        format!("public IP 192.0.2.1 of this host is held by {name}, as record {}", elder.key)
    );
    let left = fs::read_to_string(&note).unwrap();
    assert_eq!(left, r#"{"Name":"node-2","Machine":"m2","Boot":"b1","Netns":2}"#);
    Told::by(&*store).await;
    assert!(!note.exists(), "the elder's daemon reads the note and takes it away");
}

#[tokio::test]
async fn the_younger_of_two_that_overlap_yields() {
    let place = Place::new();
    let store = place.open(2);
    let held = store.hold(&config(CONFIG), &claim(2)).await.unwrap();
    let key = held.key.to_string();
    place.put(&key.replace("-24", "-25"), &record(3, held.lease.since.at + 1)).await;
    assert_eq!(store.hold(&config(CONFIG), &claim(2)).await.unwrap(), held, "the elder stays");
    place.put(&key.replace("-24", "-26"), &record(3, 0)).await;
    let lost = store.hold(&config(CONFIG), &claim(2)).await.unwrap_err();
    let by = format!("public IP 192.0.2.3 (record {})", key.replace("-24", "-26"));
    assert_eq!(lost.to_string(), format!("our lease {key} is lost: its subnet is held by {by}"));
    assert_eq!(place.record(&key).await, None, "what is lost is not left in the way");
}

/// Holds the store's lock as long as it lives.
fn stick(place: &Place) -> fs::File {
    let stuck = fs::File::create(place.dir().join("lock")).unwrap();
    stuck.lock().unwrap();
    stuck
}

#[tokio::test]
async fn without_a_lock_no_subnet_is_given_twice() {
    let place = Place::new();
    let _stuck = stick(&place);
    let config = DUAL.replace("10.1.0.0/16", "10.1.0.0/19");
    let dual = |host| {
        let mut claim = claim(host);
        claim.public_ip.v6 = format!("2001:db8::{host}").parse().ok();
        (host, claim)
    };
    let results = all_at_once(&place, &config, (1..=12).map(dual).collect()).await;
    let held: Vec<Held> = results.into_iter().map(Result::unwrap).collect();
    let mut subnets: Vec<_> = held.iter().flat_map(|held| held.lease.subnet.values()).collect();
    subnets.sort();
    subnets.dedup();
    assert_eq!(subnets.len(), 24, "{held:?}");
    assert_eq!(place.keys().len(), 12);
}

#[tokio::test]
async fn without_a_lock_one_public_ip_gets_one_lease() {
    let place = Place::new();
    let _stuck = stick(&place);
    let results = all_at_once(&place, CONFIG, (1..=3).map(|host| (host, claim(9))).collect()).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    assert_eq!(place.keys().len(), 1);
}
