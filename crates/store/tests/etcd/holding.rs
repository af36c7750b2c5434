//! Our own record: what it looks like in etcd, how it is acquired, kept, and lost.

use std::time::Duration;

use flannel_core::addr::Dual;
use flannel_core::lease::{Attributes, Claim};
use flannel_kernel::process::rerun_enclosed;
use flannel_store::etcd::EtcdStore;
use flannel_store::{Held, HoldError, Host, Store as _};
use tokio::time::sleep;
use tracing_subscriber::filter::LevelFilter;

use crate::laws::{Bench, CONFIG, Told, all_at_once, claim, config};
use crate::log::Log;
use crate::{Place, host, in_runtime, server, store};

const DUAL: &str =
    r#"{"Network": "10.1.0.0/16", "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "vxlan"}}"#;
const ONE: &str = r#"{"PublicIP":"192.0.2.1","PublicIPv6":null,"BackendType":"vxlan","BackendData":{"VNI":1,"VtepMAC":"02:00:00:00:00:01"}}"#;

fn dual(host: u8) -> Claim {
    let mut claim = claim(host);
    claim.public_ip.v6 = format!("2001:db8::{host}").parse().ok();
    claim
}

#[test]
fn a_record_is_as_other_flannels_write_it() {
    if !rerun_enclosed("holding::a_record_is_as_other_flannels_write_it") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let held = place.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(place.record(held.key.as_str()).await.as_deref(), Some(ONE));
        assert_eq!(
            place.keys(),
            ["config".to_owned(), format!("holders/{}", held.key), format!("subnets/{}", held.key)]
        );
        let (_, lease) = place.written(held.key.as_str());
        let life = server.ctl(&["lease", "timetolive", &format!("{lease:x}")]);
        assert!(life.contains("granted with TTL(86400s)"), "{life}");
        assert_eq!(server.ctl(&["lease", "list"]).lines().count(), 2, "a head line and one lease");
    });
}

#[test]
fn a_reservation_stays_one() {
    if !rerun_enclosed("holding::a_reservation_stays_one") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        place.put("10.1.7.0-24", r#"{"PublicIP":"192.0.2.1"}"#).await;
        let store = place.open(1);
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(held.key.as_str(), "10.1.7.0-24");
        assert_eq!(place.record("10.1.7.0-24").await.as_deref(), Some(ONE));
        let written = place.written("10.1.7.0-24");
        assert_eq!(written.1, 0);
        store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(place.written("10.1.7.0-24"), written, "nothing is written twice");
        let grown = store.hold(&config(DUAL), &dual(1)).await.unwrap();
        assert!(grown.key.as_str().starts_with("10.1.7.0-24&fc00:0:0:"), "{}", grown.key);
        assert_eq!(place.written(grown.key.as_str()).1, 0);
        assert_eq!(place.record("10.1.7.0-24").await, None, "the narrower record is gone");
        assert_eq!(server.ctl(&["lease", "list"]).lines().count(), 1, "no lease was needed, and none is left");
    });
}

#[test]
fn a_record_of_another_flannel_is_taken_over() {
    if !rerun_enclosed("holding::a_record_of_another_flannel_is_taken_over") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let granted = server.ctl(&["lease", "grant", "86400"]);
        let lease = granted.split_whitespace().nth(1).unwrap();
        let theirs = ONE.replace("00:01", "00:aa");
        server.ctl(&["put", "--lease", lease, &place.key("10.1.9.0-24"), &theirs]);
        let store = place.open(1);
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(held.key.as_str(), "10.1.9.0-24");
        assert_eq!(place.record("10.1.9.0-24").await, Some(theirs), "peers need no update");
        let (written, ours) = place.written("10.1.9.0-24");
        assert_ne!(format!("{ours:x}"), lease);
        drop(store);
        place.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(place.written("10.1.9.0-24"), (written, ours), "a restart writes nothing");
        let theirs = ONE.replace("00:01", "00:bb");
        server.ctl(&["put", "--lease", lease, &place.key("10.1.9.0-24"), &theirs]);
        let again = place.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap();
        assert_eq!(again.key.as_str(), "10.1.9.0-24", "and so after the other flannel ran in between");
    });
}

#[test]
fn the_previous_subnet_comes_first_and_a_host_knows_its_record() {
    if !rerun_enclosed("holding::the_previous_subnet_comes_first_and_a_host_knows_its_record") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let previous = Dual::of_nets(["10.1.200.0/24".parse().unwrap()]);
        let hold = async |number, as_host| {
            let claim = Claim { previous, ..claim(as_host) };
            place.open(number).hold(&config(CONFIG), &claim).await.unwrap().key.to_string()
        };
        assert_eq!(hold(1, 1).await, "10.1.200.0-24");
        assert_eq!(hold(1, 2).await, "10.1.200.0-24", "the address changed while it was down");
        assert_ne!(hold(3, 3).await, "10.1.200.0-24");
        assert_eq!(place.keys().iter().filter(|key| key.starts_with("subnets/")).count(), 2);
    });
}

#[test]
fn hosts_without_a_common_ipv4_are_known_by_ipv6() {
    if !rerun_enclosed("holding::hosts_without_a_common_ipv4_are_known_by_ipv6") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let text =
            r#"{"EnableIPv4": false, "EnableIPv6": true, "IPv6Network": "fc00::/48", "Backend": {"Type": "host-gw"}}"#;
        let hold = async |number: u8| {
            let public_ip = Dual { v4: None, v6: format!("2001:db8::{number}").parse().ok() };
            let claim = Claim { public_ip, attributes: Attributes::HostGw, previous: Dual::default() };
            place.open(number).hold(&config(text), &claim).await.unwrap().key.to_string()
        };
        let (one, two) = (hold(1).await, hold(2).await);
        assert_ne!(one, two);
        assert!(one.starts_with("0.0.0.0-0&fc00:0:0:"), "{one}");
        let record = r#"{"PublicIP":"0.0.0.0","PublicIPv6":"2001:db8::1","BackendType":"host-gw"}"#;
        assert_eq!(place.record(&one).await.as_deref(), Some(record));
        assert_eq!(hold(1).await, one);
    });
}

#[test]
fn of_two_hosts_with_one_public_ip_each_hears_of_the_other() {
    if !rerun_enclosed("holding::of_two_hosts_with_one_public_ip_each_hears_of_the_other") {
        return;
    }
    server::make_stage();
    let (server, log) = (server::alone(), Log::begin(LevelFilter::TRACE));
    let place = Place::new(&server);
    in_runtime(async {
        let elder = place.open(1);
        let mut told = Told::by(&*elder).await;
        let held = elder.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        let refused = place.open(2).hold(&config(CONFIG), &claim(1)).await.unwrap_err();
        let name = "host node-1 (machine m1, network namespace 1)";
        let expected = format!("public IP 192.0.2.1 of this host is held by {name}, as record {}", held.key);
        assert_eq!(refused.to_string(), expected);
        let heard = "host node-2 (machine m2, network namespace 2) claims our public IP 192.0.2.1 too; it got no lease";
        while !log.text().contains(heard) {
            sleep(Duration::from_millis(20)).await;
        }
        let results = all_at_once(&place, CONFIG, (11..=14).map(|host| (host, claim(9))).collect()).await;
        assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
        assert_eq!(place.keys().iter().filter(|key| key.starts_with("subnets/")).count(), 2);
    });
}

#[test]
fn no_subnet_is_given_twice() {
    if !rerun_enclosed("holding::no_subnet_is_given_twice") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let config = DUAL.replace("10.1.0.0/16", "10.1.0.0/19");
        let results = all_at_once(&place, &config, (1..=25).map(|host| (host, dual(host))).collect()).await;
        let held: Vec<Held> = results.into_iter().map(Result::unwrap).collect();
        let mut subnets: Vec<_> = held.iter().flat_map(|held| held.lease.subnet.values()).collect();
        subnets.sort();
        subnets.dedup();
        assert_eq!(subnets.len(), 50, "{held:?}");
    });
}

#[test]
fn the_younger_of_two_that_overlap_yields() {
    if !rerun_enclosed("holding::the_younger_of_two_that_overlap_yields") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        place.put("10.1.0.0-17", r#"{"PublicIP":"192.0.2.3"}"#).await;
        let store = place.open(2);
        let held = store.hold(&config(CONFIG), &claim(2)).await.unwrap();
        let key = held.key.to_string();
        assert!(!place.keys().contains(&"subnets/10.1.1.0-24".to_owned()), "{key} is outside what is taken");
        place.put(&key.replace("-24", "-25"), r#"{"PublicIP":"192.0.2.4"}"#).await;
        assert_eq!(store.hold(&config(CONFIG), &claim(2)).await.unwrap(), held, "the elder stays");
    });
}

#[test]
fn what_is_kept_alive_stays_and_what_is_not_goes() {
    if !rerun_enclosed("holding::what_is_kept_alive_stays_and_what_is_not_goes") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let (one, two) = (store(place.brief(), 1), store(place.brief(), 2));
        let mut told = Told::by(&*one).await;
        let kept = one.hold(&config(CONFIG), &claim(1)).await.unwrap();
        let left = two.hold(&config(CONFIG), &claim(2)).await.unwrap();
        let written = place.written(kept.key.as_str());
        let mut both = [format!("{}=1", kept.key), format!("{}=2", left.key)];
        both.sort();
        told.until(&both.join(" ")).await;
        told.until(&format!("{}=1", kept.key)).await;
        sleep(Duration::from_secs(4)).await;
        assert_eq!(place.written(kept.key.as_str()), written, "it is renewed without being written");
        server.ctl(&["lease", "revoke", &format!("{:x}", written.1)]);
        told.until("").await;
        told.keep(&*one, &kept, &claim(1)).await.unwrap();
        assert_eq!(place.record(kept.key.as_str()).await.as_deref(), Some(ONE), "a revoked lease is had again");
        let (_, again) = place.written(kept.key.as_str());
        server.ctl(&["put", "--lease", &format!("{again:x}"), &place.key(kept.key.as_str()), ONE]);
        sleep(Duration::from_secs(5)).await;
        assert_eq!(place.record(kept.key.as_str()).await.as_deref(), Some(ONE), "also when it was rewritten unchanged");
    });
}

#[test]
fn a_host_that_slept_through_its_lease_has_it_again() {
    if !rerun_enclosed("holding::a_host_that_slept_through_its_lease_has_it_again") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let store = store(place.brief(), 1);
        let mut told = Told::by(&*store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        let key = held.key.as_str();
        // Nothing of the daemon runs meanwhile, as in a machine that is suspended, or in one whose clock jumps.
        while place.record(key).await.is_some() {
            std::thread::sleep(Duration::from_millis(100));
        }
        told.until("").await;
        told.keep(&*store, &held, &claim(1)).await.unwrap();
        let (_, lease) = place.written(key);
        sleep(Duration::from_secs(4)).await;
        assert_eq!(place.record(key).await.as_deref(), Some(ONE));
        assert_eq!(place.written(key).1, lease, "what keeps it is renewed");
    });
}

#[test]
fn a_rebooted_host_is_the_same_host() {
    if !rerun_enclosed("holding::a_rebooted_host_is_the_same_host") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let held = place.open(1).hold(&config(CONFIG), &claim(1)).await.unwrap();
        let after = |netns| {
            let host = Host { boot: "b2".into(), netns, ..host(1) };
            EtcdStore::new(place.options(), host)
        };
        assert_eq!(after(77).hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
        let refused = after(78).hold(&config(CONFIG), &claim(1)).await.unwrap_err();
        assert!(matches!(refused, HoldError::Never { .. }), "{refused}");
    });
}
