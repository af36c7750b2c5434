//! A network whose backend has no peers: no Node but our own is asked for.

use std::fs;

use flannel_core::lease::{Attributes, Claim};
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

use crate::laws::{CONFIG, Told, claim, config};
use crate::stage::{Stage, in_runtime, one};

/// The requests for Nodes of flannel's account, by verb, that are for others than our own too.
fn of_others(stage: &Stage) -> Vec<Value> {
    let flannel = "system:serviceaccount:kube-flannel:flannel";
    let is_of_nodes = |event: &Value| event["objectRef"]["resource"] == "nodes" && event["user"]["username"] == flannel;
    let is_of_one = |event: &Value| {
        event["objectRef"]["name"] == "own"
            || event["requestURI"].as_str().is_some_and(|uri| uri.contains("fieldSelector=metadata.name%3Down&"))
    };
    let events = stage.api.audit().unwrap().into_iter().filter(is_of_nodes);
    let mut others: Vec<_> =
        events.filter(|event| !is_of_one(event)).map(|event| event["requestURI"].clone()).collect();
    others.dedup();
    others
}

/// Lets flannel see and write one Node only.
fn grant_own(stage: &Stage) {
    let of_own = |resource: &str, verbs: &[&str]| json!({ "apiGroups": [""], "resources": [resource], "resourceNames": ["own"], "verbs": verbs });
    let rules = json!({ "rules": [of_own("nodes", &["get", "watch"]), of_own("nodes/status", &["patch"])] });
    stage.request("PATCH", "/apis/rbac.authorization.k8s.io/v1/clusterroles/flannel", Some(&rules));
}

#[test]
fn who_needs_no_peers_sees_its_own_node_alone() {
    if !rerun_enclosed("alone::who_needs_no_peers_sees_its_own_node_alone") {
        return;
    }
    let stage = Stage::new(&[]);
    let alloc = CONFIG.replace("vxlan", "alloc");
    let claim_of = |text: &str| {
        let attributes = config(text).backend.has_peers().then(|| claim(1).attributes);
        Claim { attributes: attributes.unwrap_or(Attributes::Other("".into())), ..claim(1) }
    };
    let configure = |text: &str| fs::write("/run/net-conf.json", text).unwrap();
    grant_own(&stage);
    stage.make_peer("p2", 2);
    in_runtime(async {
        our_own_node_is_seen_before_there_is_a_config(&stage).await;
        configure(&alloc);
        let store = stage.store("own");
        let mut told = Told::by(&*store).await;
        assert_eq!((told.summary().as_str(), told.waits.is_some()), ("", true), "the node is not there yet");
        stage.make_node("own", &["10.1.1.0/24"]);
        store.hold(&config(&alloc), &claim_of(&alloc)).await.unwrap();
        assert_eq!(stage.annotation("own", "backend-type").as_deref(), Some(""));
        told.until("own=1").await;
        stage.make_peer("p3", 3);
        stage.annotate("own", &one("public-ip", "192.0.2.77"));
        told.until("own=77").await;
        store.hold(&config(&alloc), &claim_of(&alloc)).await.unwrap();
        told.until("own=1").await;
        stage.delete("own");
        told.until("").await;
        stage.make_node("own", &["10.1.4.0/24"]);
        store.hold(&config(&alloc), &claim_of(&alloc)).await.unwrap();
        told.until("own=1").await;
        assert_eq!(of_others(&stage), Vec::<Value>::new());
        stage.grant_all();
        configure(CONFIG);
        told.until("own=1 p2=2 p3=3").await;
        let asked = of_others(&stage);
        assert!(asked[0].as_str().is_some_and(|uri| uri.contains("sendInitialEvents")), "{asked:?}");
        store.hold(&config(CONFIG), &claim_of(CONFIG)).await.unwrap();
        configure(&alloc);
        told.until_config(&Ok(alloc.clone())).await;
        stage.make_peer("p4", 5);
        // The config before stays in force until the lease is held for the other one.
        told.until("own=1 p2=2 p3=3 p4=5").await;
        store.hold(&config(&alloc), &claim_of(&alloc)).await.unwrap();
        told.until("own=1").await;
    });
}

async fn our_own_node_is_seen_before_there_is_a_config(stage: &Stage) {
    fs::remove_file("/run/net-conf.json").unwrap();
    let store = stage.store("own");
    let mut told = Told::from(&*store);
    told.until_it("waiting for the node", |told| told.waits.is_some()).await;
    stage.make_peer("own", 1);
    told.until_it("told that it is there", |told| told.waits.is_none()).await;
    for address in ["192.0.2.8", "192.0.2.9"] {
        stage.annotate("own", &one("node-public-ip", address));
        let set = |told: &Told| told.overrides.as_ref().and_then(|overrides| overrides.node.v4);
        told.until_it("told of an operator's address", |told| set(told) == address.parse().ok()).await;
    }
    assert_eq!((told.summary().as_str(), told.snapshots), ("", 0), "whose leases are to be told is not known");
    stage.delete("own");
}
