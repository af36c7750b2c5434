//! Servers that die, stall, forget and come back: nothing is concluded from silence, and what was missed is told.

use std::cell::Cell;
use std::fs;
use std::rc::Rc;
use std::time::{Duration, Instant};

use flannel_kernel::process::rerun_enclosed;
use flannel_store::HoldError;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::LocalSet;
use tokio::time::{sleep, timeout};

use crate::laws::{Bench, CONFIG, Told, claim, config, record};
use crate::server::{self, Server};
use crate::{Place, in_runtime, options, store};

/// What detecting a silent server takes at most, and then some.
const LONG: Duration = Duration::from_mins(1);

#[test]
fn what_was_compacted_while_away_is_listed() {
    if !rerun_enclosed("faults::what_was_compacted_while_away_is_listed") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        place.put("10.1.1.0-24", &record(1, 1)).await;
        place.put("10.1.2.0-24", &record(2, 2)).await;
        let mut told = Told::by(&*place.open(9)).await;
        compact(&place);
        place.put("10.1.3.0-24", &record(3, 3)).await;
        told.until("10.1.1.0-24=1 10.1.2.0-24=2 10.1.3.0-24=3").await;
        server::cut();
        place.remove("10.1.1.0-24").await;
        place.put("10.1.2.0-24", &record(22, 2)).await;
        place.put("10.1.4.0-24", &record(4, 4)).await;
        compact(&place);
        server::mend();
        told.until("10.1.2.0-24=22 10.1.3.0-24=3 10.1.4.0-24=4").await;
        place.put("10.1.5.0-24", &record(5, 5)).await;
        told.until("10.1.2.0-24=22 10.1.3.0-24=3 10.1.4.0-24=4 10.1.5.0-24=5").await;
    });
}

#[test]
fn a_removal_that_was_compacted_at_while_away_is_told() {
    if !rerun_enclosed("faults::a_removal_that_was_compacted_at_while_away_is_told") {
        return;
    }
    server::make_stage();
    let mut server = server::alone();
    in_runtime(async {
        let place = Place::new(&server);
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let mut told = Told::by(&*place.open(9)).await;
        place.put("10.1.2.0-24", &record(2, 2)).await;
        told.until("10.1.1.0-24=1 10.1.2.0-24=2").await;
        let [gone, new] = ["10.1.1.0-24", "10.1.3.0-24"].map(|name| place.key(name));
        // The watch ends first: of what is written next nothing may get through.
        server.kill();
        server::cut();
        server.start();
        server.ctl(&["del", &gone]);
        compact_all(&server);
        server.ctl(&["put", &new, &record(3, 3)]);
        server::mend();
        told.until("10.1.2.0-24=2 10.1.3.0-24=3").await;
    });
}

#[test]
fn news_of_progress_keep_a_list_from_being_read_again() {
    if !rerun_enclosed("faults::news_of_progress_keep_a_list_from_being_read_again") {
        return;
    }
    server::make_stage();
    let server = server::alone_with(&["--experimental-watch-progress-notify-interval=200ms"]);
    let place = Place::new(&server);
    in_runtime(async {
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let mut told = Told::by(&*place.open(9)).await;
        // Others write beside the leases: that nothing was missed of these revisions, only progress tells.
        for number in 0..20 {
            server.ctl(&["put", "/elsewhere", &number.to_string()]);
        }
        sleep(Duration::from_secs(1)).await;
        compact_all(&server);
        server::cut();
        sleep(Duration::from_millis(200)).await;
        server::mend();
        place.put("10.1.2.0-24", &record(2, 2)).await;
        told.until("10.1.1.0-24=1 10.1.2.0-24=2").await;
        assert_eq!(told.snapshots, 1);
    });
}

/// Compacts all revisions but the last, which is a lease's.
fn compact(place: &Place<'_>) {
    place.server.ctl(&["put", &place.key("10.1.99.0-24"), "x"]);
    place.server.ctl(&["del", &place.key("10.1.99.0-24")]);
    compact_all(place.server);
}

/// Compacts all revisions but the last.
fn compact_all(server: &Server) {
    let status = server.ctl(&["endpoint", "status", "--write-out=json"]);
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    let revision = status[0]["Status"]["header"]["revision"].to_string();
    server.ctl(&["compact", &revision]);
    server.ctl(&["defrag"]);
}

#[test]
fn a_server_that_lost_its_data_is_registered_with_again() {
    if !rerun_enclosed("faults::a_server_that_lost_its_data_is_registered_with_again") {
        return;
    }
    server::make_stage();
    let mut server = server::alone();
    in_runtime(async {
        let place = Place::new(&server);
        let (prefix, store) = (place.prefix.clone(), place.open(1));
        for number in 2..30 {
            place.put(&format!("10.1.{number}.0-24"), &record(number, 1)).await;
        }
        let mut told = Told::by(&*store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        server.kill();
        fs::remove_dir_all(server.data()).unwrap();
        server.start();
        told.until("").await;
        told.until_config(&Err(format!(
            "etcd key {prefix}/config does not exist; waiting for it (hint: etcdctl put {prefix}/config \
             '{{\"Network\": \"10.5.0.0/16\", \"Backend\": {{\"Type\": \"vxlan\"}}}}')"
        )))
        .await;
        server.ctl(&["put", &format!("{prefix}/config"), CONFIG]);
        told.until_config(&Ok(CONFIG.into())).await;
        told.keep(&*store, &held, &claim(1)).await.unwrap();
        assert_eq!(told.summary(), format!("{}=1", held.key));
    });
}

#[test]
fn a_restored_backup_is_the_truth() {
    if !rerun_enclosed("faults::a_restored_backup_is_the_truth") {
        return;
    }
    server::make_stage();
    let mut server = server::alone();
    in_runtime(async {
        let place = Place::new(&server);
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let key = |number: u8| place.key(&format!("10.1.{number}.0-24"));
        let later: Vec<String> = (3..20).map(key).collect();
        server.ctl(&["snapshot", "save", "/run/backup"]);
        place.put("10.1.2.0-24", &record(2, 2)).await;
        place.put("10.1.1.0-24", &record(11, 1)).await;
        let store = place.open(9);
        let mut told = Told::by(&*store).await;
        assert_eq!(told.summary(), "10.1.1.0-24=11 10.1.2.0-24=2");
        server::cut();
        server.kill();
        fs::remove_dir_all(server.data()).unwrap();
        let data = server.data().display().to_string();
        let restore = ["snapshot", "restore", "/run/backup", "--name=m1", "--data-dir", &data];
        let peers =
            ["--initial-cluster=m1=http://127.0.0.1:2380", "--initial-advertise-peer-urls=http://127.0.0.1:2380"];
        server::util(&[restore.as_slice(), &peers].concat());
        server.start();
        // By now its revision is past the one that was told of.
        for key in &later {
            server.ctl(&["put", key, "x"]);
            server.ctl(&["del", key]);
        }
        server::mend();
        told.until("10.1.1.0-24=1").await;
    });
}

#[test]
fn a_cluster_is_as_good_as_its_majority() {
    if !rerun_enclosed("faults::a_cluster_is_as_good_as_its_majority") {
        return;
    }
    server::make_stage();
    let mut servers = server::three();
    in_runtime(async {
        servers[0].ctl(&["put", "/n/config", CONFIG]);
        let all = "http://127.0.0.1:2379,http://127.0.0.2:2379,http://127.0.0.3:2379";
        let store = store(options(all, "/n"), 1);
        let mut told = Told::by(&*store).await;
        let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
        told.until(&format!("{}=1", held.key)).await;
        for round in 2..5 {
            let leader = leader(&servers);
            servers[leader].kill();
            let other = &servers[(leader + 1) % 3];
            other.wait();
            let key = "10.1.0.0-24";
            other.ctl(&["put", &format!("/n/subnets/{key}"), &record(round, 1)]);
            told.until(&format!("{key}={round} {}=1", held.key)).await;
            assert_eq!(store.hold(&config(CONFIG), &claim(1)).await.unwrap(), held);
            other.ctl(&["del", &format!("/n/subnets/{key}")]);
            told.until(&format!("{}=1", held.key)).await;
            servers[leader].start();
        }
        // Two of three stall: nothing can be written, nothing is concluded, and the third is not run down.
        let before = servers[2].requests();
        servers[0].signal("STOP");
        servers[1].signal("STOP");
        let away = store.hold(&config(CONFIG), &claim(1)).await.unwrap_err();
        assert!(matches!(away, HoldError::Later(_)), "{away}");
        let quiet = timeout(Duration::from_secs(8), told.until("never")).await;
        assert!(quiet.is_err());
        let asked = servers[2].requests() - before;
        assert!(asked < 40, "{asked} requests");
        assert_eq!(told.summary(), format!("{}=1", held.key));
        servers[0].signal("CONT");
        servers[1].signal("CONT");
        servers[2].wait();
        servers[2].ctl(&["put", "/n/subnets/10.1.0.0-24", &record(7, 1)]);
        told.until(&format!("10.1.0.0-24=7 {}=1", held.key)).await;
    });
}

/// The number of the server that leads, once one does: who comes back may have caused an election.
fn leader(servers: &[Server]) -> usize {
    let leads = |server: &Server| {
        let status: serde_json::Value =
            serde_json::from_str(&server.ctl(&["endpoint", "status", "--write-out=json"])).unwrap();
        let status = &status[0]["Status"];
        status["leader"] == status["header"]["member_id"]
    };
    let begun = Instant::now();
    loop {
        if let Some(leader) = servers.iter().position(leads) {
            return leader;
        }
        assert!(begun.elapsed() < LONG, "no leader");
    }
}

#[test]
fn a_server_that_falls_silent_is_left() {
    if !rerun_enclosed("faults::a_server_that_falls_silent_is_left") {
        return;
    }
    server::make_stage();
    let servers = server::three();
    in_runtime(async {
        servers[0].ctl(&["put", "/n/config", CONFIG]);
        let store = store(options("http://127.0.0.1:1,http://127.0.0.1:2379,http://127.0.0.2:2379", "/n"), 1);
        let mut told = Told::by(&*store).await;
        servers[0].signal("STOP");
        servers[1].wait();
        servers[1].ctl(&["put", "/n/subnets/10.1.1.0-24", &record(7, 1)]);
        let heard = async {
            while told.summary().is_empty() {
                told.next().await;
            }
        };
        timeout(LONG, heard).await.expect("the other server is not asked");
    });
}

#[test]
fn a_server_that_hangs_up_again_and_again_is_asked_ever_less_often() {
    if !rerun_enclosed("faults::a_server_that_hangs_up_again_and_again_is_asked_ever_less_often") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        let calls = Rc::new(Cell::new(0));
        let flighty = LocalSet::new();
        let taken = Rc::clone(&calls);
        flighty.spawn_local(async move {
            let listener = TcpListener::bind("127.0.0.1:2400").await.unwrap();
            loop {
                let (mut client, _) = listener.accept().await.unwrap();
                taken.set(taken.get() + 1);
                let mut server = TcpStream::connect("127.0.0.1:2379").await.unwrap();
                let _ = timeout(Duration::from_millis(50), copy_bidirectional(&mut client, &mut server)).await;
            }
        });
        let store = store(options("http://127.0.0.1:2400", &place.prefix), 1);
        let listen = async {
            let mut told = Told::by(&*store).await;
            let _ = timeout(Duration::from_secs(5), told.until("never")).await;
        };
        flighty.run_until(listen).await;
        assert!((3..25).contains(&calls.get()), "{} connections", calls.get());
    });
}

#[test]
fn packets_that_get_lost_are_no_news() {
    if !rerun_enclosed("faults::packets_that_get_lost_are_no_news") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    let place = Place::new(&server);
    in_runtime(async {
        place.put("10.1.1.0-24", &record(1, 1)).await;
        let store = place.open(9);
        let mut told = Told::by(&*store).await;
        server::lose();
        place.put("10.1.2.0-24", &record(2, 1)).await;
        let away = store.hold(&config(CONFIG), &claim(9)).await.unwrap_err();
        assert!(matches!(away, HoldError::Later(_)), "{away}");
        sleep(Duration::from_secs(16)).await;
        assert_eq!(told.summary(), "10.1.1.0-24=1");
        server::mend();
        told.until("10.1.1.0-24=1 10.1.2.0-24=2").await;
    });
}
