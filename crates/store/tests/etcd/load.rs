//! Much, and rubbish: lists in pages, values of a megabyte, keys that are no text.

use flannel_kernel::process::rerun_enclosed;

use crate::laws::{Bench, CONFIG, Told, claim, config, record};
use crate::server::run;
use crate::{Place, in_runtime, server};

/// Writes many records at once, as one transaction a hundred.
fn fill(place: &Place<'_>, count: usize, value: &str) {
    let keys: Vec<String> = (0..count).map(|at| place.key(&format!("10.{}.{}.0-24", 2 + at / 250, at % 250))).collect();
    for some in keys.chunks(100) {
        let puts: Vec<String> = some.iter().map(|key| format!("put {key} {value}")).collect();
        std::fs::write("/run/txn", format!("\n{}\n\n\n", puts.join("\n"))).unwrap();
        run("sh", &["-c", "etcdctl --endpoints=http://127.0.0.1:12379 txn < /run/txn > /dev/null"]);
    }
}

#[test]
fn a_large_fleet_is_listed_in_pages() {
    if !rerun_enclosed("load::a_large_fleet_is_listed_in_pages") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    fill(&place, 25_000, "'{}'");
    in_runtime(async {
        let store = place.open(1);
        let mut told = Told::by(&*store).await;
        assert_eq!(told.leases.len(), 25_000);
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        while told.leases.record(&held.key).is_none() {
            told.next().await;
        }
        assert_eq!(told.leases.len(), 25_001);
    });
}

#[test]
fn values_too_large_for_one_message_come_in_smaller_pages() {
    if !rerun_enclosed("load::values_too_large_for_one_message_come_in_smaller_pages") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    std::fs::write("/run/large", vec![b'x'; 1_000_000]).unwrap();
    let put = |key: &str| {
        let line = format!("etcdctl --endpoints=http://127.0.0.1:12379 put {} < /run/large", place.key(key));
        run("sh", &["-c", &line]);
    };
    in_runtime(async {
        for number in 1..=70 {
            put(&format!("10.3.{number}.0-24"));
        }
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let store = place.open(9);
        let mut told = Told::by(&*store).await;
        assert_eq!(told.leases.len(), 71);
        put("10.3.71.0-24");
        while told.leases.len() < 72 {
            told.next().await;
        }
        store.hold(&config(CONFIG), &claim(9)).await.unwrap();
    });
}

#[test]
fn keys_of_every_kind_are_told_by_name() {
    if !rerun_enclosed("load::keys_of_every_kind_are_told_by_name") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let store = place.open(9);
        let mut told = Told::by(&*store).await;
        let long = "9".repeat(5000);
        for key in ["", "a/b", "10.1.1.0-24/x", "\u{1b}[31m", "10.1.1.0-24&", &long] {
            place.put(key, &record(1, 1)).await;
        }
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let cut = format!("{}…", "9".repeat(80));
        told.until(&format!("! \\u{{1b}}[31m! 10.1.1.0-24=1 10.1.1.0-24&! 10.1.1.0-24/x! {cut}! a/b!")).await;
        store.hold(&config(CONFIG), &claim(9)).await.unwrap();
    });
}
