//! Scenarios of the loop on a scripted store and a fake kernel, on one thread with paused time: what the store and the host
//! say in; calls to the store, the kernel's state, `subnet.env` and readiness out.

mod stage;

use std::fs;
use std::time::Duration;

use flannel_core::facts::{AddressFact, LinkFact};
use flannel_core::lease::{Attributes, Lease};
use flannel_core::state::Key;
use flannel_kernel::fake::Times;

use self::stage::{Scene, honest};
use super::*;
use crate::scene::{HOST_GW, VXLAN, gateway, host, key, mac, name, peer, peer_with_mac, record};

const DUAL: &str = r#"{"Network":"10.244.0.0/16","EnableIPv6":true,"IPv6Network":"2001:db8:42::/56","EnableNFTables":true,
    "Backend":{"Type":"vxlan"}}"#;

#[tokio::test(start_paused = true)]
async fn nothing_is_touched_before_config_and_lease() {
    let mut scene = Scene::start("order", &[]);
    scene.script.0.borrow_mut().tells = false;
    let check = |scene: &mut Scene, missing: &str| {
        assert_eq!(scene.readiness(), format!("flanneld is not ready yet\n{missing}"));
        assert_eq!((scene.state(), scene.kernel().take_applied().len()), (String::new(), 0));
        assert_eq!(scene.subnet_env(), None);
    };
    scene.turn().await.unwrap();
    check(&mut scene, "waiting for the network config");
    scene.later("the store is away");
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    check(&mut scene, "own lease: the store is away");
    tokio::time::advance(Duration::from_millis(250)).await;
    scene.hear().await.unwrap();
    check(&mut scene, "waiting for the list of leases");
    scene.pass().unwrap();
    assert!(scene.state().contains("flannel.1") && scene.subnet_env().is_some(), "{}", scene.state());
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nwaiting for the list of leases");
    scene.snapshot([scene.own_record(), peer(2)]);
    scene.hear().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nprogramming the peers");
    scene.pass().unwrap();
    scene.assert_ready();
    assert_eq!(scene.routes(), ["10.244.2.0/24"]);
}

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_left_stays_until_the_list() {
    let mut earlier = Scene::running("earlier", VXLAN, [peer(2), peer(3)]).await;
    let mut scene = Scene::start("unlisted", &[]);
    *scene.kernel() = std::mem::take(earlier.kernel());
    scene.script.0.borrow_mut().tells = false;
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    assert!(scene.subnet_env().is_some());
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nwaiting for the list of leases");
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"]);
    scene.snapshot([scene.own_record(), peer(2)]);
    scene.turn().await.unwrap();
    scene.assert_ready();
    assert_eq!(scene.routes(), ["10.244.2.0/24"]);
}

/// As when a Node of Kubernetes is deleted and made anew: pods must not start with the subnet it had.
#[tokio::test(start_paused = true)]
async fn who_lost_its_lease_is_not_ready_before_subnet_env_has_the_next() {
    let mut scene = Scene::running("lost", VXLAN, [peer(2)]).await;
    let Record { key, lease: Ok(lease) } = scene.own_record() else { panic!() };
    scene.later("the node has no spec.podCIDRs yet");
    scene.remove(key);
    scene.hear().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nour own lease is gone, and is being written again");
    let subnet = lease.subnet.map(|_, _| "10.244.9.0/24".parse().unwrap());
    scene.answer(Ok(Held { key: LeaseKey::new("10.244.9.0-24"), lease: Lease { subnet, ..Lease::clone(&lease) } }));
    tokio::time::advance(Duration::from_millis(250)).await;
    scene.hear().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nsubnet.env is not written yet");
    scene.pass().unwrap();
    scene.assert_ready();
    assert!(scene.subnet_env().unwrap().contains("FLANNEL_SUBNET=10.244.9.1/24"));
}

#[tokio::test(start_paused = true)]
async fn the_config_is_waited_for() {
    let mut scene = Scene::start("config", &[]);
    scene.snapshot([peer(2)]);
    for (told, says) in [
        (Err("cannot read /leases/config.json: not found".into()), "cannot read /leases/config.json: not found"),
        (Ok("{".into()), "not a JSON object"),
        (Ok(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"nonsense"}}"#.into()), "nonsense"),
    ] {
        scene.tell(StoreEvent::Config(told));
        scene.turn().await.unwrap();
        let text = scene.readiness();
        assert!(text.starts_with("flanneld is not ready yet\n") && text.contains(says), "{text}");
        assert_eq!((scene.state(), scene.asked().len()), (String::new(), 0));
    }
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn what_the_store_waits_for_is_said_until_it_has_come() {
    let mut scene = Scene::start("waits", &[]);
    let waits = || StoreEvent::Waits(Some("waiting for node n1".into()));
    scene.tell(waits());
    scene.turn().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nwaiting for node n1");
    assert_eq!((scene.state(), scene.asked().len()), (String::new(), 0));
    scene.tell(StoreEvent::Waits(None));
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    scene.assert_ready();
    // A node that has its lease and its peers goes on without what a store misses later.
    scene.tell(waits());
    scene.turn().await.unwrap();
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn addresses_that_an_operator_sets_go_before_ours() {
    let mut scene = Scene::start("overrides", &[]);
    let address = |text: &str| Dual { v4: text.parse().ok(), v6: None };
    let set = |published: &str, node: &str| {
        StoreEvent::Overrides(Overrides { published: address(published), node: address(node) })
    };
    scene.tell(set("198.51.100.7", ""));
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    scene.assert_ready();
    let claimed = |scene: &Scene| scene.asked().pop().map(|claim| claim.public_ip);
    assert_eq!(claimed(&scene), Some(address("198.51.100.7")));
    for (published, node, expect) in
        [("", "198.51.100.8", "198.51.100.8"), ("198.51.100.7", "198.51.100.8", "198.51.100.7")]
    {
        scene.tell(set(published, node));
        scene.turn().await.unwrap();
        assert_eq!(claimed(&scene), Some(address(expect)));
    }
}

#[tokio::test(start_paused = true)]
async fn a_config_that_breaks_leaves_the_one_before_in_force() {
    let mut scene = Scene::running("broken-config", VXLAN, [peer(2)]).await;
    let state = scene.state();
    scene.config("{");
    scene.tell(StoreEvent::Config(Err("cannot read config.json: not found".into())));
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    scene.assert_ready();
    scene.put(peer(3));
    scene.turn().await.unwrap();
    assert_eq!((scene.routes(), scene.asked().len()), (vec!["10.244.2.0/24".into(), "10.244.3.0/24".into()], 0));
    assert!(scene.state().starts_with(state.lines().next().unwrap()));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_is_away_is_asked_ever_less_often() {
    let mut scene = Scene::start("later", &[]);
    (0..12).for_each(|_| scene.later("the store is away"));
    scene.config(VXLAN);
    scene.snapshot([]);
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1);
    for millis in [250, 500, 1000, 2000, 4000, 8000, 16000, 30000, 30000, 30000, 30000] {
        scene.turn_after(Duration::from_millis(millis - 1)).await.unwrap();
        assert_eq!(scene.asked().len(), 0, "not before {millis} ms");
        scene.turn_after(Duration::from_millis(1)).await.unwrap();
        assert_eq!(scene.asked().len(), 1, "after {millis} ms");
        assert_eq!(scene.readiness(), "flanneld is not ready yet\nown lease: the store is away");
    }
    scene.turn_after(Duration::from_secs(30)).await.unwrap();
    scene.assert_ready();
    // The next failure is the first again.
    scene.later("the store is away");
    scene.remove(key(1));
    scene.turn().await.unwrap();
    scene.asked();
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    assert_eq!(scene.asked().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_cannot_be_had_ends_the_daemon_with_a_hint() {
    let mut scene = Scene::start("never", &[]);
    let never = HoldError::Never { cause: "no subnet of 10.244.0.0/16 is free".into(), hint: "make it larger".into() };
    scene.answer(Err(never));
    scene.config(VXLAN);
    scene.snapshot([]);
    let fatal = scene.turn().await.unwrap_err();
    assert_eq!((fatal.to_string(), fatal.code), ("no subnet of 10.244.0.0/16 is free".into(), 1));
    assert_eq!(fatal.hint.as_deref(), Some("make it larger"));
    assert_eq!(scene.state(), "");
}

#[tokio::test(start_paused = true)]
async fn our_own_record_is_taken_back_once() {
    let mut scene = Scene::running("own-record", VXLAN, [peer(2)]).await;
    scene.remove(key(1));
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "removed");
    scene.script.0.borrow_mut().written = None;
    scene.put(peer_with_mac(1, 99));
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "rewritten");
    scene.script.0.borrow_mut().written = None;
    scene.put(record(key(1).as_str(), "{bad"));
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "broken");
    scene.script.0.borrow_mut().written = None;
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "absent from a list");
    scene.turn_after(Duration::from_mins(5)).await.unwrap();
    assert_eq!(scene.asked().len(), 0);
    assert!(scene.state().contains("02:00:00:00:00:01 vxlan"), "the MAC stays ours");
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn news_of_others_and_of_what_we_wrote_ask_for_nothing() {
    let mut scene = Scene::running("no-loop", VXLAN, [peer(2)]).await;
    let own = scene.own_record();
    scene.put(own.clone());
    scene.snapshot([own, peer(2), peer(3)]);
    scene.put(peer_with_mac(2, 22));
    scene.remove(key(3));
    scene.turn_after(Duration::from_mins(5)).await.unwrap();
    assert_eq!(scene.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn pods_may_start_before_thousands_of_peers_are_programmed() {
    let mut scene = Scene::start("portions", &[]);
    scene.config(VXLAN);
    scene.snapshot((0..400_u16).map(|n| {
        let (high, low) = (128 + n / 16, n % 16 * 16);
        let vtep = format!(r#"{{"VNI":1,"VtepMAC":"02:00:00:01:{:02x}:{:02x}"}}"#, n / 256, n % 256);
        let text = format!(
            r#"{{"PublicIP":"198.51.{}.{}","BackendType":"vxlan","BackendData":{vtep},"Sequence":9}}"#,
            n / 200,
            1 + n % 200
        );
        record(&format!("10.244.{high}.{low}-28"), &text)
    }));
    scene.hear().await.unwrap();
    scene.pass().unwrap();
    assert!(scene.subnet_env().is_some(), "this node's own part stands");
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nprogramming the peers");
    scene.pass().unwrap();
    scene.assert_ready();
    scene.pass().unwrap();
    assert_eq!(scene.routes().len(), 400);
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_is_not_what_was_asked_for_does_not_spin() {
    let mut scene = Scene::start("wrong-answer", &[]);
    let mut wrong = honest(&crate::scene::parse(VXLAN), &wrong_claim());
    wrong.lease.public_ip.v4 = "192.0.2.99".parse().ok();
    (0..3).for_each(|_| scene.answer(Ok(wrong.clone())));
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1);
    for millis in [250, 500, 1000] {
        scene.turn_after(Duration::from_millis(millis)).await.unwrap();
        assert_eq!(scene.asked().len(), 1, "after {millis} ms");
    }
    scene.turn_after(Duration::from_mins(5)).await.unwrap();
    assert_eq!(scene.asked().len(), 0);
}

fn wrong_claim() -> Claim {
    Claim { public_ip: Dual::default(), attributes: Attributes::HostGw, previous: Dual::default() }
}

#[tokio::test(start_paused = true)]
async fn the_lease_we_find_keeps_its_mac() {
    let mut scene = Scene::start("mac", &[]);
    let own = peer_with_mac(1, 77);
    scene.answer(Ok(Held { key: own.key.clone(), lease: own.lease.as_deref().unwrap().clone() }));
    scene.config(VXLAN);
    scene.snapshot([own, peer(2)]);
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1);
    assert!(scene.state().contains(&format!("{} vxlan", mac(77))), "{}", scene.state());
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn an_older_lease_in_our_place_lets_the_store_decide() {
    for elder in [
        record("10.244.1.0-25", r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw","Sequence":1}"#),
        record("10.244.9.0-24", r#"{"PublicIP":"192.0.2.1","BackendType":"host-gw","Sequence":1}"#),
    ] {
        let mut scene = Scene::running("elder", VXLAN, [peer(2)]).await;
        let key = elder.key.clone();
        scene.put(elder.clone());
        scene.turn_after(Duration::from_mins(5)).await.unwrap();
        assert_eq!(scene.asked().len(), 1, "{key}: once, if the store says that it is ours");
        scene.remove(key.clone());
        scene.turn().await.unwrap();
        scene.asked();
        let cause = "our lease 10.244.1.0-24 is lost: its subnet is held by host c";
        scene.answer(Err(HoldError::Never { cause: cause.into(), hint: "start again".into() }));
        scene.put(elder);
        assert_eq!(scene.turn().await.unwrap_err().to_string(), cause, "{key}");
    }
    let mut scene = Scene::running("younger", VXLAN, [peer(2)]).await;
    scene.put(record("10.244.1.0-25", r#"{"PublicIP":"192.0.2.9","BackendType":"host-gw","Sequence":9}"#));
    scene.turn_after(Duration::from_mins(5)).await.unwrap();
    assert_eq!(scene.asked().len(), 0, "a younger one has to go itself");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_changes_while_it_is_written_is_written_again() {
    let mut scene = Scene::running("overtaken", VXLAN, [peer(2)]).await;
    scene.script.0.borrow_mut().tells = false;
    // The store is asked and has not answered, while it tells that the record is gone.
    scene.agent.on_leases(LeaseEvent::Put(peer_with_mac(1, 99))).unwrap();
    scene.agent.on_leases(LeaseEvent::Remove(key(1))).unwrap();
    assert_eq!(scene.asked().len(), 1);
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "again, once");
}

#[tokio::test(start_paused = true)]
async fn a_record_that_goes_before_the_first_answer_names_it_is_written_again() {
    let mut scene = Scene::start("before", &[]);
    scene.script.0.borrow_mut().tells = false;
    scene.agent.on_leases(LeaseEvent::Snapshot(vec![peer(1), peer(2)])).unwrap();
    scene.agent.on_config(Ok(VXLAN.into())).unwrap();
    // The store is asked and finds the record, and tells that it is gone before it answers.
    assert_eq!(scene.asked().len(), 1);
    scene.agent.on_leases(LeaseEvent::Remove(key(1))).unwrap();
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 1, "again, once");
}

#[tokio::test(start_paused = true)]
async fn another_external_address_is_claimed_and_planned_for() {
    let mut scene = Scene::running("address", VXLAN, [peer(2)]).await;
    let before = scene.subnet_env();
    scene.facts(host(50));
    scene.turn().await.unwrap();
    let public_ips: Vec<_> = scene.asked().iter().map(|claim| claim.public_ip.v4.unwrap().to_string()).collect();
    assert_eq!(public_ips, ["192.0.2.50"]);
    assert!(scene.state().contains("id 1 local 192.0.2.50 dev eth0"), "{}", scene.state());
    assert_eq!(scene.own_record().lease.unwrap().public_ip.v4.unwrap().to_string(), "192.0.2.50");
    assert_eq!(scene.subnet_env(), before);
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn another_external_address_is_used_while_the_store_is_away() {
    let mut scene = Scene::running("address-away", VXLAN, [peer(2)]).await;
    scene.later("the store is away");
    scene.facts(host(50));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("id 1 local 192.0.2.50 dev eth0"), "{}", scene.state());
    // Its pods have a network all the same.
    scene.assert_ready();
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_host_that_is_no_node_any_more_keeps_what_was_decided() {
    let mut scene = Scene::running("no-node", VXLAN, [peer(2)]).await;
    let state = scene.state();
    scene.facts(Facts::default());
    scene.turn().await.unwrap();
    assert_eq!((scene.state(), scene.asked().len()), (state, 0));
    scene.put(peer(3));
    scene.turn().await.unwrap();
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"]);
    scene.facts(host(1));
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 0);
    let mut scene = Scene::start("never-a-node", &[]);
    scene.facts(Facts::default());
    scene.config(VXLAN);
    let fatal = scene.turn().await.unwrap_err();
    assert!(fatal.to_string().starts_with("no default route"), "{fatal}");
    assert!(fatal.hint.is_some());
}

#[tokio::test(start_paused = true)]
async fn facts_that_change_nothing_of_ours_order_nothing() {
    let mut scene = Scene::running("facts", VXLAN, [peer(2)]).await;
    let version = scene.agent.in_force.as_ref().unwrap().version;
    let mut facts = host(1);
    let stranger = LinkFact { index: 9, name: name("dummy0"), addresses: Vec::new(), ..facts.links[0].clone() };
    facts.links.push(stranger);
    scene.facts(facts);
    assert_eq!(scene.agent.in_force.as_ref().unwrap().version, version);
}

#[tokio::test(start_paused = true)]
async fn a_list_is_the_whole_truth() {
    let mut scene = Scene::running("list", VXLAN, [peer(2), peer(3)]).await;
    let own = scene.own_record();
    scene.snapshot([own, peer_with_mac(3, 33), peer(4)]);
    scene.turn().await.unwrap();
    assert_eq!(scene.routes(), ["10.244.3.0/24", "10.244.4.0/24"]);
    let state = scene.state();
    assert!(!state.contains("10.244.2.0") && !state.contains(&mac(3).to_string()), "{state}");
    assert_eq!(scene.asked().len(), 0);
}

#[tokio::test(start_paused = true)]
async fn garbage_is_skipped_by_name_and_harms_nobody() {
    let vxlan = |subnet: &str, mac: &str| {
        let data = format!(r#""BackendType":"vxlan","BackendData":{{"VNI":1,"VtepMAC":{mac}}}"#);
        record(subnet, &format!(r#"{{"PublicIP":"192.0.2.66",{data},"Sequence":66}}"#))
    };
    let good = r#""02:00:00:00:00:42""#;
    let rows = [
        (record("10.244.66.0-24", "{bad"), "record"),
        (record("10.244.66.0-24", ""), "record"),
        (record("10.244.66.0-24", "[]"), "record"),
        (record("garbage", r#"{"PublicIP":"192.0.2.66"}"#), "key"),
        (record("10.42.999.0-24", r#"{"PublicIP":"192.0.2.66"}"#), "key"),
        (record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.666","BackendType":"vxlan"}"#), "PublicIP"),
        (
            record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.66","BackendType":"vxlan","BackendData":null}"#),
            "BackendData",
        ),
        (vxlan("10.244.66.0-24", "null"), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""00:00:00:00:00:00""#), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""01:00:5e:00:00:01""#), "BackendData.VtepMAC"),
        (vxlan("10.244.66.0-24", r#""02:00:00:00:00:00:00:01""#), "BackendData.VtepMAC"),
        (vxlan("10.9.66.0-24", good), "subnet"),
        (vxlan("192.0.2.0-24", good), "subnet"),
        (vxlan("10.244.0.0-20", good), "subnet"),
        (vxlan("10.244.1.0-24&fc00::-64", good), "subnet"),
        (vxlan("10.244.2.0-25", good), "subnet"),
        (record("10.244.66.0-24", r#"{"PublicIP":"192.0.2.66","BackendType":"wireguard"}"#), "BackendType"),
    ];
    for (garbage, field) in rows {
        let mut scene = Scene::running("garbage", VXLAN, [peer(2)]).await;
        let text = format!("{garbage:?}");
        let key = garbage.key.clone();
        scene.put(garbage);
        scene.put(peer(3));
        scene.turn().await.unwrap();
        assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"], "{text}");
        let remarks = scene.remarks();
        assert!(remarks.iter().any(|remark| remark.starts_with(&format!("{key}: {field}"))), "{text}: {remarks:?}");
        scene.assert_ready();
        scene.remove(key.clone());
        scene.turn().await.unwrap();
        assert_eq!((scene.remarks(), scene.asked().len()), (Vec::new(), 0), "{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn subnet_env_waits_for_this_node_and_not_for_peers() {
    let mut scene = Scene::start("env", &[]);
    let (device, route) =
        (Key::Link(name("flannel.1")), flannel_core::state::Route::key("10.244.2.0/24".parse().unwrap()));
    scene.kernel().fail(device, Times::Only(1), "no buffer space");
    scene.kernel().fail(route, Times::Always, "no buffer space");
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    let text = scene.readiness();
    assert!(text.contains("cannot set link flannel.1") && text.contains("no buffer space"), "{text}");
    assert_eq!(scene.subnet_env(), None);
    scene.now += Duration::from_millis(10);
    scene.turn().await.unwrap();
    scene.assert_ready();
    let expect = "FLANNEL_NETWORK=10.244.0.0/16\nFLANNEL_SUBNET=10.244.1.1/24\nFLANNEL_MTU=1450\nFLANNEL_IPMASQ=true\n";
    assert_eq!(scene.subnet_env().as_deref(), Some(expect));
}

#[tokio::test(start_paused = true)]
async fn subnet_env_is_written_when_it_changes_and_not_before_it_is_true() {
    let mut scene = Scene::running("rewrite", VXLAN, [peer(2)]).await;
    let file = scene.folder.join("subnet.env");
    let stamp = || std::os::unix::fs::MetadataExt::ino(&fs::metadata(&file).unwrap());
    let first = stamp();
    scene.put(peer(3));
    scene.facts(host(50));
    scene.turn().await.unwrap();
    assert_eq!(stamp(), first, "equal, not written");
    let mut facts = host(50);
    facts.links[0].mtu = flannel_core::addr::Mtu(9000);
    scene.facts(facts);
    scene.put(peer(4));
    // A pass over the orders before is reported late.
    scene.agent.on_news(News::Pass(Report { version: 1, ..Report::default() })).unwrap();
    assert_eq!(stamp(), first, "the device still has the old MTU");
    scene.turn().await.unwrap();
    assert!(scene.subnet_env().unwrap().contains("FLANNEL_MTU=8950\n"));
    scene.config(r#"{"Network":"10.99.0.0/16","EnableNFTables":true,"Backend":{"Type":"vxlan"}}"#);
    scene.turn().await.unwrap();
    let text = scene.subnet_env().unwrap();
    assert!(text.starts_with("FLANNEL_NETWORK=10.99.0.0/16\nFLANNEL_SUBNET=10.99.1.1/24\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn the_config_changes_live() {
    let mut scene = Scene::running("live", VXLAN, [peer(2)]).await;
    let with = |nft: bool, backend: &str| {
        format!(r#"{{"Network":"10.244.0.0/16","EnableNFTables":{nft},"Backend":{{"Type":"vxlan"{backend}}}}}"#)
    };
    scene.config(&with(true, r#","MTU":1400"#));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("link flannel.1 mtu 1350 "), "{}", scene.state());
    assert!(scene.subnet_env().unwrap().contains("FLANNEL_MTU=1350\n"));
    scene.config(&with(true, r#","DirectRouting":true"#));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("route 10.244.2.0/24 via 192.0.2.2 dev eth0\n"), "{}", scene.state());
    assert!(!scene.state().contains("fdb"), "{}", scene.state());
    scene.config(&with(false, ""));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("iptables chains") && !scene.state().contains("table ip flannel-ipv4"));
    assert!(scene.asked().is_empty(), "nothing of that is in our lease");
    scene.config(&with(true, r#","VNI":7"#));
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.contains("link flannel.7 ") && !state.contains("flannel.1 "), "{state}");
    assert_eq!(scene.asked().len(), 1, "our VNI is");
    scene.config(HOST_GW);
    scene.put(gateway(2));
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.starts_with("route 10.244.2.0/24 via 192.0.2.2 dev eth0\n"), "{state}");
    assert!(!state.contains("iptables"), "{state}");
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn a_config_that_this_host_cannot_follow_leaves_the_one_before_in_force() {
    let mut scene = Scene::running("misfit", VXLAN, [peer(2)]).await;
    scene.config(DUAL);
    scene.turn().await.unwrap();
    let misfit = "interface eth0 has no usable IPv6 address, and the network has IPv6 enabled; what was decided before stays in force";
    assert!(scene.agent.misfit.as_ref().is_some_and(|told| told.starts_with(misfit)), "{:?}", scene.agent.misfit);
    // What happens on the host is followed all the same.
    scene.facts(host(50));
    scene.turn().await.unwrap();
    assert!(scene.state().contains("id 1 local 192.0.2.50 dev eth0"), "{}", scene.state());
    assert_eq!(scene.asked().len(), 1);
    scene.assert_ready();
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    assert_eq!(scene.agent.misfit, None);
}

#[tokio::test(start_paused = true)]
async fn a_second_family_joins_live() {
    let mut scene = Scene::running("dual", VXLAN, [peer(2)]).await;
    scene.config(DUAL);
    scene.turn().await.unwrap();
    scene.assert_ready();
    assert!(!scene.state().contains("flannel-v6.1"), "no IPv6 address here: the old network stays");
    let mut facts = host(1);
    let address = facts.links[0].addresses[0];
    facts.links[0].addresses.push(AddressFact { net: "2001:db8::1/64".parse().unwrap(), ..address });
    scene.later("the store is away");
    scene.facts(facts);
    scene.put(peer(3));
    scene.turn().await.unwrap();
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"], "until it is leased, the plan before goes on");
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    assert!(scene.state().contains("link flannel-v6.1 mtu 1430 "), "{}", scene.state());
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"]);
    let text = scene.subnet_env().unwrap();
    assert!(text.contains("FLANNEL_IPV6_SUBNET=2001:db8:42:1::1/64\nFLANNEL_MTU=1430\n"), "{text}");
}

#[tokio::test(start_paused = true)]
async fn our_own_lease_under_another_name_is_nothing_to_remark_on() {
    let mut scene = Scene::running("renamed", VXLAN, [peer(2)]).await;
    scene.script.0.borrow_mut().tells = false;
    let mut facts = host(1);
    let address = facts.links[0].addresses[0];
    facts.links[0].addresses.push(AddressFact { net: "2001:db8::1/64".parse().unwrap(), ..address });
    scene.facts(facts);
    // The store tells that the new record is there and the old one is gone, before or after it answers.
    scene.agent.on_config(Ok(DUAL.into())).unwrap();
    let Held { key: new, lease } = scene.script.0.borrow().written.clone().unwrap();
    scene.agent.on_events(StoreEvent::Leases(LeaseEvent::Put(Record::new(new, Ok(lease))))).unwrap();
    assert_eq!(scene.remarks(), [""; 0]);
    scene.turn().await.unwrap();
    assert_eq!(scene.remarks(), [""; 0]);
    scene.remove(key(1));
    scene.turn().await.unwrap();
    assert_eq!(scene.remarks(), [""; 0]);
    scene.assert_ready();
}

#[tokio::test(start_paused = true)]
async fn without_masquerading_there_is_none() {
    for (words, masquerades) in [(vec![], true), (vec!["--ip-masq=false"], false)] {
        let mut scene = Scene::start("masq", &words);
        scene.config(VXLAN);
        scene.snapshot([peer(2)]);
        scene.turn().await.unwrap();
        assert_eq!(scene.state().contains("masquerade"), masquerades, "{}", scene.state());
        let line = format!("FLANNEL_IPMASQ={masquerades}\n");
        assert!(scene.subnet_env().unwrap().ends_with(&line));
    }
}

#[tokio::test(start_paused = true)]
async fn routes_and_blackholes_of_networks_before_stay_ours() {
    let mut scene = Scene::start("before", &["--ip-blackhole-route"]);
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    assert!(scene.state().contains("route blackhole 10.244.1.0/24\n"), "{}", scene.state());
    scene.config(r#"{"Network":"10.99.0.0/16","EnableNFTables":true,"Backend":{"Type":"host-gw"}}"#);
    scene.turn().await.unwrap();
    let state = scene.state();
    assert!(state.starts_with("route blackhole 10.99.1.0/24\ntable ip flannel-ipv4"), "{state}");
    let scope = scene.upkeep.reconciler.scope();
    let texts = |nets: &[IpNet]| nets.iter().map(ToString::to_string).collect::<BTreeSet<_>>();
    assert_eq!(texts(&scope.networks), ["10.244.0.0/16", "10.99.0.0/16"].map(ToOwned::to_owned).into());
    assert_eq!(texts(&scope.blackholes), ["10.244.1.0/24", "10.99.1.0/24"].map(ToOwned::to_owned).into());
}

#[tokio::test(start_paused = true)]
async fn routes_through_an_external_interface_of_before_stay_ours() {
    let mut scene = Scene::running("left", HOST_GW, [gateway(2)]).await;
    let mut facts = host(1);
    facts.links[0].name = name("eth1");
    facts.routes.iter_mut().for_each(|route| route.dev = name("eth1"));
    scene.facts(facts);
    scene.turn().await.unwrap();
    assert!(scene.state().contains("route 10.244.2.0/24 via 192.0.2.2 dev eth1\n"), "{}", scene.state());
    let scope = scene.upkeep.reconciler.scope();
    assert_eq!(scope.externals, [name("eth0"), name("eth1")]);
}

#[tokio::test(start_paused = true)]
async fn a_list_that_is_older_than_the_answer_is_no_reason_to_ask_at_once() {
    let mut scene = Scene::start("older", &[]);
    scene.script.0.borrow_mut().tells = false;
    scene.agent.on_config(Ok(VXLAN.into())).unwrap();
    assert_eq!(scene.asked().len(), 1);
    scene.agent.on_leases(LeaseEvent::Snapshot(vec![peer(2)])).unwrap();
    scene.turn().await.unwrap();
    assert_eq!(scene.asked().len(), 0, "news of our own record may be under way");
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    assert_eq!(scene.asked().len(), 1, "there were none");
}

#[tokio::test(start_paused = true)]
async fn the_store_is_told_how_the_node_stands_whenever_that_changes() {
    let mut scene = Scene::start("standing", &[]);
    scene.later("the store is away");
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    let told = |scene: &mut Scene| {
        scene.agent.turn(Instant::now());
        std::mem::take(&mut scene.script.0.borrow_mut().reports)
    };
    scene.turn().await.unwrap();
    let problem = |reason, text: &str, blocks_pods| Problem { reason, text: text.into(), blocks_pods };
    let away = problem("NotReady", "own lease: the store is away", true);
    assert_eq!(told(&mut scene), [Standing { ready: false, problems: vec![away], remarks: Vec::new() }]);
    let device = Key::Link(name("flannel.1"));
    scene.kernel().fail(device, Times::Only(1), "no buffer space");
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    let [Standing { ready: false, problems, .. }] = &*told(&mut scene) else { panic!("not told once") };
    assert!(problems[0].blocks_pods && problems[0].text.ends_with("no buffer space"), "{problems:?}");
    scene.now += Duration::from_secs(1);
    scene.pass().unwrap();
    assert_eq!(told(&mut scene), [Standing { ready: true, ..Standing::default() }]);
    assert_eq!(told(&mut scene), [], "nothing changed");
    scene.put(record("10.98.0.0-24", r#"{"PublicIP":"192.0.2.8","BackendType":"vxlan"}"#));
    scene.turn().await.unwrap();
    let [Standing { ready: true, remarks, .. }] = &*told(&mut scene) else { panic!("not told once") };
    assert_eq!((remarks[0].reason, &remarks[0].text[..32]), ("PeerSkipped", "lease 10.98.0.0-24 is skipped: B"));
    let chain = problem("PodTrafficDropped", "table ip filter drops it", true);
    scene.agent.on_news(News::Host(vec![chain.clone()])).unwrap();
    assert!(told(&mut scene)[0].blocking().eq([&chain]));
    scene.agent.on_news(News::Host(Vec::new())).unwrap();
    assert_eq!(told(&mut scene)[0].blocking().count(), 0);
    scene.config("{");
    scene.turn().await.unwrap();
    let problems = &told(&mut scene)[0].problems;
    assert!(problems[0].reason == "ConfigUnreadable" && !problems[0].blocks_pods, "{problems:?}");
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    assert_eq!(told(&mut scene)[0].problems, []);
}
