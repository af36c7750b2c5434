//! What is told of how the node stands: `subnet.env`, readiness, the store.

use std::fs;
use std::time::Duration;

use flannel_core::state::Key;
use flannel_kernel::fake::Times;

use super::super::*;
use super::stage::Scene;
use crate::scene::{VXLAN, host, name, peer, record};

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
