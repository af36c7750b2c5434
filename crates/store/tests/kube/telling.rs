//! What is told of peers: each as it is, whatever the others say.

use flannel_core::addr::Family;
use flannel_core::lease::{LeaseKey, Since};
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

use crate::laws::Told;
use crate::stage::{Stage, in_runtime, one, peer};

/// What is wrong with a peer's record, or with what of it is not used.
fn flaw(told: &Told, key: &str) -> String {
    match told.leases.record(&LeaseKey::new(key)) {
        Some(Ok(lease)) => lease.flaws.iter().map(ToString::to_string).collect(),
        Some(Err(flaw)) => flaw.to_string(),
        None => "no record".into(),
    }
}

fn since(told: &Told, key: &str) -> Since {
    told.leases.record(&LeaseKey::new(key)).unwrap().as_ref().unwrap().since
}

#[test]
fn peers_are_told_as_they_are() {
    if !rerun_enclosed("telling::peers_are_told_as_they_are") {
        return;
    }
    let stage = Stage::new(&[]);
    stage.make_node("own", &["10.1.1.0/24"]);
    in_runtime(async {
        broken_peers_are_named_and_delay_nobody(&stage).await;
        a_peer_may_become_one_late(&stage).await;
        changes_are_told_and_heartbeats_are_not(&stage).await;
        who_went_while_we_were_away_is_not_listed(&stage).await;
        of_two_with_one_pod_cidr_the_older_is_first(&stage).await;
        what_is_too_long_for_a_page_is_listed_all_the_same(&stage).await;
    });
}

async fn broken_peers_are_named_and_delay_nobody(stage: &Stage) {
    let broken: [(&str, Value, &str); 8] = [
        ("b1", one("backend-data", "null"), "backend-data: null is not an object like {\"VNI\":1,\"VtepMAC\":\"…\"}"),
        ("b2", one("backend-data", "{\"VNI\":1}"), "backend-data.VtepMAC: is missing"),
        (
            "b3",
            one("backend-data", "{\"VNI\":1,\"VtepMAC\":\"00:00:00:00:00:00\"}"),
            "backend-data.VtepMAC: 00:00:00:00:00:00 is not the MAC address of a host",
        ),
        (
            "b4",
            one("backend-data", "{\"VNI\":1,\"VtepMAC\":\"01:00:5e:00:00:01\"}"),
            "backend-data.VtepMAC: 01:00:5e:00:00:01 is not the MAC address of a host",
        ),
        (
            "b5",
            one("backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:05:00:01\"}"),
            "backend-data.VtepMAC: `02:00:00:00:00:05:00:01` is not a 6-byte MAC address",
        ),
        ("b6", one("public-ip", "0.0.0.0"), "public-ip: `0.0.0.0` is not an IPv4 address of a host"),
        ("b7", json!({ "flannel.alpha.coreos.com/public-ip": null }), "public-ip: is missing"),
        ("b8", one("backend-data", "{bad"), "backend-data: "),
    ];
    for (at, (name, change, _)) in broken.iter().enumerate() {
        stage.make_peer(name, 10 + at as u8);
        stage.annotate(name, change);
    }
    stage.make_peer("p2", 2);
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    stage.make_peer("p3", 3);
    told.until("b1! b2! b3! b4! b5! b6! b7! b8! p2=2 p3=3").await;
    for (name, _, why) in &broken {
        let start = format!("flannel.alpha.coreos.com/{why}");
        assert!(flaw(&told, name).starts_with(&start), "{name}: {}, not {start}", flaw(&told, name));
    }
    for (at, (name, ..)) in broken.iter().enumerate() {
        stage.annotate(name, &peer(10 + at as u8));
    }
    told.until("b1=10 b2=11 b3=12 b4=13 b5=14 b6=15 b7=16 b8=17 p2=2 p3=3").await;
    for (name, ..) in &broken {
        stage.delete(name);
    }
    told.until("p2=2 p3=3").await;
}

async fn a_peer_may_become_one_late(stage: &Stage) {
    stage.make_node("late", &["10.1.4.0/24"]);
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    stage.make_node("later", &["10.1.5.0/24"]);
    stage.annotate("late", &peer(4));
    stage.annotate("later", &peer(5));
    told.until("late=4 later=5 p2=2 p3=3").await;
    stage.make_node("bare", &[]);
    stage.annotate("bare", &peer(6));
    told.until("bare! late=4 later=5 p2=2 p3=3").await;
    assert_eq!(flaw(&told, "bare"), "spec.podCIDRs: is empty");
    stage.give("bare", &["10.1.6.0/24"]);
    told.until("bare=6 late=4 later=5 p2=2 p3=3").await;
    stage.annotate("late", &one("kube-subnet-manager", "false"));
    told.until("bare=6 later=5 p2=2 p3=3").await;
    for name in ["late", "later", "bare"] {
        stage.delete(name);
    }
    told.until("p2=2 p3=3").await;
}

async fn changes_are_told_and_heartbeats_are_not(stage: &Stage) {
    let store = stage.store("own");
    let mut told = Told::by(&*store).await;
    for beat in 0..5 {
        let condition = json!({ "type": "Ready", "status": "True", "message": beat.to_string() });
        let beat = json!({ "status": { "conditions": [condition] } });
        stage.request("PATCH", "/api/v1/nodes/p2/status", Some(&beat));
    }
    stage.annotate("p2", &one("backend-data", "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:99\"}"));
    let mut events = 0;
    let mac = |told: &Told| {
        let lease = told.leases.record(&LeaseKey::new("p2")).unwrap().as_ref().unwrap();
        lease.attributes.vteps().get(Family::V4).unwrap().mac.to_string()
    };
    while mac(&told) != "02:00:00:00:00:99" {
        told.next().await;
        events += 1;
    }
    assert_eq!(events, 1, "heartbeats are told");
    let six = json!({ "flannel.alpha.coreos.com/public-ipv6": "2001:db8::2",
        "flannel.alpha.coreos.com/backend-v6-data": "{\"VNI\":1,\"VtepMAC\":\"02:00:00:00:00:06\"}" });
    stage.make_node("dual", &["10.1.7.0/24", "2001:db8:1:7::/64"]);
    stage.annotate("dual", &peer(7));
    told.until("dual=7 p2=2 p3=3").await;
    stage.annotate("dual", &six);
    let families =
        |told: &Told| told.leases.record(&LeaseKey::new("dual")).unwrap().as_ref().unwrap().subnet.families().count();
    told.until_it("dual", |told| families(told) == 2).await;
    stage.delete("dual");
    told.until("p2=2 p3=3").await;
}

async fn who_went_while_we_were_away_is_not_listed(stage: &Stage) {
    drop(Told::by(&*stage.store("own")).await);
    stage.delete("p3");
    assert_eq!(Told::by(&*stage.store("own")).await.summary(), "p2=2");
}

async fn of_two_with_one_pod_cidr_the_older_is_first(stage: &Stage) {
    stage.make_node("z-old", &["10.1.8.0/24"]);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    stage.make_node("a-new", &["10.1.8.0/24"]);
    stage.annotate("a-new", &peer(8));
    stage.annotate("z-old", &peer(9));
    let told = Told::by(&*stage.store("own")).await;
    assert_eq!(told.summary(), "a-new=8 p2=2 z-old=9");
    assert!(since(&told, "z-old") < since(&told, "a-new"));
    for name in ["z-old", "a-new"] {
        stage.delete(name);
    }
}

/// Nodes as large as real ones, more than a page has.
async fn what_is_too_long_for_a_page_is_listed_all_the_same(stage: &Stage) {
    make_many(stage);
    let told = Told::by(&*stage.store("own")).await;
    assert_eq!(told.leases.len(), 601);
}

/// Makes 600 peers in one go.
fn make_many(stage: &Stage) {
    let node = |at: u32| {
        let mut annotations = peer((at % 200) as u8);
        annotations["example.org/load"] = "x".repeat(2000).into();
        let cidr = format!("10.{}.{}.0/24", 2 + at / 200, at % 200);
        json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": format!("m{at}"), "annotations": annotations },
            "spec": { "podCIDR": cidr, "podCIDRs": [cidr] } })
    };
    let nodes: Vec<Value> = (0..600).map(node).collect();
    let list = json!({ "apiVersion": "v1", "kind": "List", "items": nodes });
    stage.api.kubectl(&["create", "-f", "-"], &list.to_string()).unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn a_server_that_streams_no_lists_is_asked_for_pages() {
    if !rerun_enclosed("telling::a_server_that_streams_no_lists_is_asked_for_pages") {
        return;
    }
    let stage = Stage::new(&["--feature-gates=WatchList=false"]);
    stage.make_node("own", &["10.1.1.0/24"]);
    make_many(&stage);
    in_runtime(async {
        let store = stage.store("own");
        let mut told = Told::by(&*store).await;
        assert_eq!(told.leases.len(), 600);
        stage.make_peer("p2", 2);
        told.until_it("told of p2", |told| told.leases.len() == 601).await;
        // Of a server that begins anew no daemon can go on from where it was.
        let mut stage = stage;
        stage.api.kill().unwrap();
        stage.api.resume().unwrap();
        stage.delete("p2");
        stage.delete("m7");
        told.until_it("without p2", |told| told.leases.len() == 599).await;
    });
}
