//! Much, and rubbish: lists in pages, values of a megabyte, keys that are no text.

use flannel_kernel::process::rerun_enclosed;

use crate::laws::{Bench, CONFIG, Told, claim, config, record};
use crate::server::run;
use crate::{Place, in_runtime, server};

/// Keys that are written in one transaction.
const AT_ONCE: usize = 10_000;

/// Writes many records, by the server's JSON gateway: `etcdctl` takes five times as long.
fn fill(place: &Place<'_>, count: usize) {
    let put = |at: usize| {
        let key = place.key(&format!("10.{}.{}.{}-28", 2 + at / 4000, at / 16 % 250, at % 16 * 16));
        format!(r#"{{"request_put":{{"key":"{}","value":"{}"}}}}"#, base64(&key), base64("{}"))
    };
    let puts: Vec<String> = (0..count).map(put).collect();
    for some in puts.chunks(AT_ONCE) {
        let answer = place.server.post("/v3/kv/txn", &format!(r#"{{"success":[{}]}}"#, some.join(",")));
        assert!(answer.contains(r#""succeeded":true"#), "{answer:.500}");
    }
}

/// As RFC 4648 §4 says.
fn base64(text: &str) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let four = |three: &[u8]| {
        let bits = three.iter().chain(&[0, 0]).take(3).fold(0, |bits, byte| bits << 8 | usize::from(*byte));
        let letter =
            move |at: usize| if at > three.len() { '=' } else { char::from(LETTERS[bits >> (18 - 6 * at) & 63]) };
        (0..4).map(letter).collect::<String>()
    };
    text.as_bytes().chunks(3).map(four).collect()
}

#[test]
fn a_hundred_thousand_records_are_listed_in_pages() {
    if !rerun_enclosed("load::a_hundred_thousand_records_are_listed_in_pages") {
        return;
    }
    server::make_stage();
    let server = server::alone_with(&[&format!("--max-txn-ops={AT_ONCE}")]);
    let place = Place::new(&server);
    fill(&place, 100_000);
    in_runtime(async {
        let store = place.open(1);
        let mut told = Told::by(&*store).await;
        assert_eq!(told.leases.len(), 100_000);
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        while told.leases.record(&held.key).is_none() {
            told.next().await;
        }
        assert_eq!(told.leases.len(), 100_001);
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

#[test]
fn who_lists_much_draws_a_number() {
    if !rerun_enclosed("load::who_lists_much_draws_a_number") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    let starts = || place.keys().iter().any(|key| key == "starts");
    in_runtime(async {
        fill(&place, 60);
        assert_eq!(Told::by(&*place.open(1)).await.leases.len(), 60);
        assert!(!starts(), "a list of so few is no load");
        fill(&place, 100);
        for number in 1..=12 {
            let store = place.open(number);
            assert_eq!(Told::by(&*store).await.leases.len(), 100);
        }
        let key = format!("{}/starts", place.prefix);
        let drawn: serde_json::Value = serde_json::from_str(&server.ctl(&["get", "--write-out=json", &key])).unwrap();
        assert_eq!(drawn["kvs"][0]["version"], 12);
        while starts() {
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    });
}
