//! What a start waits for, in which order, and what it touches before.

use std::time::Duration;

use flannel_core::state::Key;
use flannel_kernel::fake::Times;

use super::super::*;
use super::stage::Scene;
use crate::scene::{VXLAN, key, peer, record};

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

#[tokio::test(start_paused = true)]
async fn what_an_earlier_run_left_stays_until_the_peers_are_planned() {
    let mut earlier = Scene::running("before", VXLAN, [peer(2), peer(3)]).await;
    let mut scene = Scene::start("again", &[]);
    *scene.kernel() = std::mem::take(earlier.kernel());
    scene.config(VXLAN);
    scene.snapshot([peer(2), peer(4)]);
    scene.hear().await.unwrap();
    // Until the first report comes the config may change too.
    scene.config(r#"{"Network":"10.244.0.0/16","Backend":{"Type":"vxlan","MTU":1400}}"#);
    scene.hear().await.unwrap();
    scene.pass().unwrap();
    let written = scene.subnet_env().unwrap();
    assert!(written.contains("FLANNEL_MTU=1350"), "{written}");
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.3.0/24"]);
    scene.pass().unwrap();
    scene.assert_ready();
    assert_eq!(scene.routes(), ["10.244.2.0/24", "10.244.4.0/24"]);
}

#[tokio::test(start_paused = true)]
async fn a_device_that_fails_at_first_keeps_no_peer_from_being_planned() {
    let mut scene = Scene::start("device", &[]);
    let device = Key::Link("flannel.1".parse().unwrap());
    scene.kernel().fail(device, Times::Only(1), "operation not supported");
    scene.config(VXLAN);
    scene.snapshot([peer(2)]);
    scene.turn().await.unwrap();
    assert!(scene.readiness().contains("operation not supported"), "{}", scene.readiness());
    scene.now += Duration::from_secs(1);
    scene.turn().await.unwrap();
    scene.assert_ready();
    assert_eq!(scene.routes(), ["10.244.2.0/24"]);
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
async fn pods_may_start_before_thousands_of_peers_are_planned() {
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
    assert_eq!(scene.routes().len(), 0);
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nprogramming the peers");
    scene.pass().unwrap();
    assert!((1..400).contains(&scene.routes().len()), "a portion of them");
    assert_eq!(scene.readiness(), "flanneld is not ready yet\nprogramming the peers");
    (0..3).for_each(|_| scene.pass().unwrap());
    assert_eq!(scene.routes().len(), 400);
    scene.assert_ready();
}
