//! Our own lease: asked for, kept, lost, disputed, and when the store is asked again.

use std::time::Duration;

use flannel_core::facts::AddressFact;
use flannel_core::lease::{Attributes, Lease};

use super::super::*;
use super::DUAL;
use super::stage::{Scene, honest};
use crate::scene::{VXLAN, host, key, mac, peer, peer_with_mac, record};

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
async fn a_lease_that_need_not_be_asked_for_any_more_is_no_trouble() {
    let mut scene = Scene::running("flap", VXLAN, [peer(2)]).await;
    let told = |scene: &mut Scene| {
        scene.agent.turn(Instant::now());
        scene.agent.told.problems.iter().map(|problem| problem.text.clone()).collect::<Vec<_>>()
    };
    scene.later("the store is away");
    scene.facts(host(50));
    scene.turn().await.unwrap();
    assert_eq!(told(&mut scene), ["own lease: the store is away"]);
    scene.facts(host(1));
    scene.turn_after(Duration::from_millis(250)).await.unwrap();
    assert_eq!(scene.asked().len(), 1, "the address is that of the lease again");
    assert_eq!(told(&mut scene), [""; 0]);
}
