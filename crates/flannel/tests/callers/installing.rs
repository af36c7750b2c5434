//! Plugins put in the place of others while pods are started and ended: no call fails because a file is busy, half written or
//! gone.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::by_hand::{Caller, baseline};
use crate::machine::{DEBIANS, Machine, conf_list};
use crate::network::enclosed;

/// Pods that are started at a time.
const WORKERS: u16 = 3;
/// How often each kind of plugins is put there.
const ROUNDS: usize = 4;
/// How many pods come and go at least between two exchanges.
const BETWEEN: usize = 2;

/// Ends the workers also when the test fails.
struct StopAtLast<'a>(&'a AtomicBool);

impl Drop for StopAtLast<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Starts and ends pods until it is told to stop.
fn work(machine: &Machine, number: u16, stop: &AtomicBool, done: &AtomicUsize) {
    let list = conf_list("1.0.0", &json!({ "backend": "iptables" }));
    let caller = Caller::new(machine, list).publishing(Some(9000 + number));
    let id = format!("worker{number}");
    machine.sh(&format!("ip netns add {id}"));
    let netns = format!("/run/netns/{id}");
    while !stop.load(Ordering::Relaxed) {
        let result = caller.try_add(&id, &netns).unwrap_or_else(|error| panic!("ADD of {id}: {error}"));
        caller.del(&id, Some(&netns), Some(&result));
        done.fetch_add(1, Ordering::Relaxed);
    }
    machine.sh(&format!("ip netns del {id}"));
}

#[test]
fn no_pod_fails_while_plugins_are_replaced() {
    if !enclosed("installing::no_pod_fails_while_plugins_are_replaced") {
        return;
    }
    let machine = Machine::start();
    let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
    let before = baseline(&machine, &Caller::new(&machine, conf_list("1.0.0", &json!({ "backend": "iptables" }))));
    std::thread::scope(|scope| {
        let (machine, stop, done) = (&machine, &stop, &done);
        let _stop = StopAtLast(stop);
        let workers: Vec<_> =
            (0..WORKERS).map(|number| scope.spawn(move || work(machine, number, stop, done))).collect();
        let goes_on = || workers.iter().all(|worker| !worker.is_finished());
        for _ in 0..ROUNDS {
            let to_go = |machine: &Machine| machine.put_plugins(Path::new(DEBIANS));
            for put in [Machine::install_ours, to_go, Machine::copy_ours] {
                put(machine);
                let seen = done.load(Ordering::Relaxed);
                while goes_on() && done.load(Ordering::Relaxed) < seen + BETWEEN {
                    std::thread::sleep(Duration::from_millis(1));
                }
            }
        }
    });
    let mut names: Vec<_> = fs::read_dir(machine.bin()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["bridge", "flannel", "host-local", "loopback", "portmap"]);
    machine.install_ours();
    Caller::new(&machine, conf_list("1.1.0", &json!({ "backend": "iptables" }))).gc(&[]);
    machine.assert_as_before(&before);
}
