//! What changes on the host, and what an operator says of it.

use std::time::Duration;

use flannel_core::facts::LinkFact;

use super::super::*;
use super::stage::Scene;
use crate::scene::{HOST_GW, VXLAN, gateway, host, name, peer};

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
async fn an_answer_to_a_host_that_is_no_node_any_more_is_told() {
    let mut scene = Scene::start("answer-no-node", &[]);
    scene.script.0.borrow_mut().tells = false;
    scene.later("the store is away");
    scene.config(VXLAN);
    scene.turn().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nown lease: the store is away");
    scene.facts(Facts::default());
    tokio::time::advance(Duration::from_millis(250)).await;
    scene.hear().await.unwrap();
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nwaiting for the list of leases");
}
