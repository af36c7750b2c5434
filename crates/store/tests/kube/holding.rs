//! Our own Node: what is waited for, what is written, and what is not.

use flannel_core::addr::Dual;
use flannel_core::lease::Claim;
use flannel_kernel::process::rerun_enclosed;
use flannel_store::{HoldError, Store};
use serde_json::json;
use tokio::task::LocalSet;
use tokio::time::timeout;

use crate::laws::{CONFIG, Told, claim, config};
use crate::stage::{PATIENCE, Stage, in_runtime, one, peer};

/// Holds the claim of a host, as long as nobody refuses it.
async fn hold(store: &dyn Store, host: u8) -> Result<String, HoldError> {
    let held = timeout(PATIENCE, store.hold(&config(CONFIG), &claim(host))).await.expect("it is not held in time")?;
    Ok(held.lease.subnet.v4.unwrap().to_string())
}

fn later(result: Result<String, HoldError>) -> String {
    match result {
        Err(HoldError::Later(why)) => why,
        other => panic!("{other:?}"),
    }
}

#[test]
fn our_own_node_is_kept_as_it_should_be() {
    if !rerun_enclosed("holding::our_own_node_is_kept_as_it_should_be") {
        return;
    }
    let stage = Stage::new(&[]);
    in_runtime(async {
        the_node_and_its_pod_cidr_are_waited_for(&stage).await;
        a_restart_writes_nothing(&stage).await;
        what_somebody_wipes_or_makes_anew_is_written_again(&stage).await;
        a_pod_cidr_that_cannot_be_ours_is_refused_before_anything_is_written(&stage).await;
        an_older_node_keeps_its_pod_cidr(&stage).await;
        the_mac_of_before_is_kept(&stage).await;
        an_operator_sets_addresses(&stage).await;
    });
}

async fn the_node_and_its_pod_cidr_are_waited_for(stage: &Stage) {
    let store = stage.store("n1");
    let mut told = Told::from(&*store);
    told.until_it("waiting for the node", |told| {
        told.waits
            .as_ref()
            .is_some_and(|line| line.starts_with("waiting for node n1: the Kubernetes API has none of that name"))
    })
    .await;
    let local = LocalSet::new();
    let call = store.hold(&config(CONFIG), &claim(1));
    let held = local.spawn_local(call);
    let act = async {
        stage.make_node("n1", &[]);
        told.until_it("waiting for its pod CIDR", |told| {
            told.waits.as_ref().is_some_and(|line| line.starts_with("waiting for spec.podCIDRs of node n1"))
        })
        .await;
        assert!(!held.is_finished());
        stage.give("n1", &["10.1.1.0/24"]);
        let held = timeout(PATIENCE, held).await.unwrap().unwrap().unwrap();
        assert_eq!(held.lease.subnet.v4.unwrap().to_string(), "10.1.1.0/24");
        told.until("n1=1").await;
        assert_eq!(told.waits, None);
    };
    local.run_until(act).await;
}

async fn a_restart_writes_nothing(stage: &Stage) {
    let before = stage.patches("n1").len();
    let store = stage.store("n1");
    let mut told = Told::by(&*store).await;
    assert_eq!(hold(&*store, 1).await.unwrap(), "10.1.1.0/24");
    told.until("n1=1").await;
    assert_eq!(stage.patches("n1").len(), before);
    let moved = Claim { public_ip: claim(7).public_ip, ..claim(1) };
    store.hold(&config(CONFIG), &moved).await.unwrap();
    let last = stage.patches("n1").pop().unwrap();
    let only = json!({ "metadata": { "annotations": one("public-ip", "192.0.2.7") } });
    assert_eq!((stage.patches("n1").len(), last), (before + 1, only));
    store.hold(&config(CONFIG), &claim(1)).await.unwrap();
}

async fn what_somebody_wipes_or_makes_anew_is_written_again(stage: &Stage) {
    let store = stage.store("n1");
    let mut told = Told::by(&*store).await;
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    stage.strip("n1");
    told.until("").await;
    told.keep(&*store, &held, &claim(1)).await.unwrap();
    assert_eq!(stage.annotation("n1", "public-ip").as_deref(), Some("192.0.2.1"));
    stage.delete("n1");
    told.until("").await;
    told.until_it("waiting", |told| told.waits.is_some()).await;
    stage.make_node("n1", &["10.1.2.0/24"]);
    assert_eq!(hold(&*store, 1).await.unwrap(), "10.1.2.0/24");
    told.until("n1=1").await;
    assert_eq!(told.waits, None);
}

async fn a_pod_cidr_that_cannot_be_ours_is_refused_before_anything_is_written(stage: &Stage) {
    for (name, cidrs, why) in [
        (
            "far",
            &["10.9.1.0/24"][..],
            "pod CIDR 10.9.1.0/24 of node far lies outside Network 10.1.0.0/16 of the network config",
        ),
        (
            "six",
            &["2001:db8:1::/64"][..],
            "node six has no IPv4 pod CIDR, and the network config has Network 10.1.0.0/16",
        ),
    ] {
        stage.make_node(name, cidrs);
        let store = stage.store(name);
        let told = Told::by(&*store).await;
        let refused = later(hold(&*store, 3).await);
        assert!(refused.starts_with(why), "{refused}");
        assert_eq!((stage.patches(name).len(), told.waits), (0, None));
        stage.delete(name);
    }
}

async fn an_older_node_keeps_its_pod_cidr(stage: &Stage) {
    stage.make_peer("older", 5);
    std::thread::sleep(std::time::Duration::from_millis(1100));
    stage.make_node("younger", &["10.1.5.0/24"]);
    let store = stage.store("younger");
    let mut told = Told::by(&*store).await;
    let refused = later(hold(&*store, 6).await);
    let start = "pod CIDR of node younger is taken: node older is older and has 10.1.5.0/24";
    assert!(refused.starts_with(start), "{refused}");
    assert_eq!(stage.patches("younger").len(), 0);
    stage.delete("older");
    told.until("n1=1").await;
    assert_eq!(hold(&*store, 6).await.unwrap(), "10.1.5.0/24");
    stage.delete("younger");
}

async fn the_mac_of_before_is_kept(stage: &Stage) {
    stage.make_node("kept", &["10.1.9.0/24"]);
    stage.annotate("kept", &peer(9));
    let store = stage.store("kept");
    let _told = Told::by(&*store).await;
    let fresh = Claim { public_ip: claim(9).public_ip, ..claim(77) };
    let held = store.hold(&config(CONFIG), &fresh).await.unwrap();
    assert_eq!(held.lease.attributes, claim(9).attributes, "a device that has to be made gets the MAC that peers know");
    assert_eq!(stage.patches("kept").len(), 0);
    stage.annotate("kept", &one("backend-data", "{\"VNI\":1,\"VtepMAC\":\"ff:ff:ff:ff:ff:ff\"}"));
    let store = stage.store("kept");
    let _told = Told::by(&*store).await;
    let held = store.hold(&config(CONFIG), &fresh).await.unwrap();
    assert_eq!(held.lease.attributes, claim(77).attributes, "one that is none is not kept");
    stage.delete("kept");
}

async fn an_operator_sets_addresses(stage: &Stage) {
    let store = stage.store("n1");
    let mut told = Told::by(&*store).await;
    assert!(told.overrides.take().is_some());
    stage.annotate("n1", &one("public-ip-overwrite", "198.51.100.7"));
    stage.annotate("n1", &one("node-public-ip", "198.51.100.8"));
    let address = |text: &str| Dual { v4: text.parse().ok(), v6: None };
    told.until_it("told of the addresses", |told| {
        let told = told.overrides.as_ref();
        told.is_some_and(|set| set.published == address("198.51.100.7") && set.node == address("198.51.100.8"))
    })
    .await;
}
