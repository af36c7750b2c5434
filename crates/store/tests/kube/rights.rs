//! Rights that are missing: each is named with the rule that grants it, and what can be done without it is done.

use flannel_kernel::process::rerun_enclosed;
use flannel_store::kube::{KubeStore, NodeName};
use flannel_store::{HoldError, Store};

use crate::laws::{CONFIG, Told, claim, config};
use crate::stage::{DOOR, Stage, in_runtime, options};

fn rule(resource: &str, verb: &str) -> String {
    format!("- {{apiGroups: [\"\"], resources: [\"{resource}\"], verbs: [\"{verb}\"]}}")
}

#[test]
fn what_is_not_granted_is_named() {
    if !rerun_enclosed("rights::what_is_not_granted_is_named") {
        return;
    }
    let stage = Stage::new(&[]);
    stage.make_node("own", &["10.1.1.0/24"]);
    stage.make_peer("p2", 2);
    in_runtime(async {
        without_any_it_waits_and_goes_on_when_granted(&stage).await;
        without_the_right_to_patch_peers_are_known(&stage).await;
        a_kubelets_credential_keeps_its_own_node(&stage).await;
        a_pod_tells_which_node_it_runs_on(&stage).await;
    });
}

async fn waits_for(told: &mut Told, parts: &[&str]) {
    told.until_it(&format!("waiting for {parts:?}"), |told| {
        told.waits.as_ref().is_some_and(|line| parts.iter().all(|part| line.contains(part)))
    })
    .await;
}

async fn without_any_it_waits_and_goes_on_when_granted(stage: &Stage) {
    stage.grant(&[]);
    let store = stage.store("own");
    let mut told = Told::from(&*store);
    waits_for(&mut told, &["refuses to read node own: 403 ", &rule("nodes", "get")]).await;
    stage.grant_all();
    told.until("p2=2").await;
    assert_eq!(told.waits, None);
}

async fn without_the_right_to_patch_peers_are_known(stage: &Stage) {
    stage.grant(&[("nodes", &["get", "list", "watch"])]);
    let store = stage.store("own");
    let told = Told::by(&*store).await;
    assert_eq!(told.summary(), "p2=2");
    let refused = store.hold(&config(CONFIG), &claim(1)).await.unwrap_err();
    let HoldError::Later(why) = refused else { panic!("{refused}") };
    assert!(
        why.contains("refuses to patch the status of node own: 403 ") && why.contains(&rule("nodes/status", "patch")),
        "{why}"
    );
    stage.grant_all();
}

async fn a_kubelets_credential_keeps_its_own_node(stage: &Stage) {
    let kubeconfig = stage.kubeconfig_of(&stage.api.node("own").unwrap());
    let store = KubeStore::new(options(&format!("https://{DOOR}:6443"), Some(kubeconfig), "own"));
    let mut told = Told::from(&store);
    waits_for(&mut told, &["refuses to watch nodes: 403 ", "which from Kubernetes 1.32 on sees only its own node"])
        .await;
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    assert_eq!(stage.annotation("own", "public-ip").as_deref(), Some("192.0.2.1"));
    told.until("own=1").await;
    assert_eq!(told.snapshots, 0, "a snapshot would say that there are no others");
    stage.strip("own");
    told.until("").await;
    told.keep(&store, &held, &claim(1)).await.unwrap();
    assert_eq!(stage.annotation("own", "public-ip").as_deref(), Some("192.0.2.1"));
    stage.strip("own");
}

async fn a_pod_tells_which_node_it_runs_on(stage: &Stage) {
    let pod = serde_json::json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "flannel-x" },
        "spec": { "nodeName": "own", "automountServiceAccountToken": false, "serviceAccountName": "flannel",
            "containers": [{ "name": "c", "image": "i" }] } });
    stage.request("POST", "/api/v1/namespaces/kube-flannel/pods", Some(&pod));
    let mut options = stage.options("ignored");
    options.node = NodeName::OfPod { namespace: "kube-flannel".into(), name: "flannel-x".into() };
    let store = KubeStore::new(options);
    let _told = Told::by(&store).await;
    let held = store.hold(&config(CONFIG), &claim(1)).await.unwrap();
    assert_eq!(held.key.as_str(), "own");
}
