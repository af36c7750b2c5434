//! The API server is a real one, and does what tests ask of it.

use std::path::Path;
use std::process::Command;

use flannel_cluster::{ApiServer, Identity, Options};
use flannel_kernel::mount;
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

const NODES: &str = "/api/v1/nodes";

/// In namespaces of the test's own.
fn start() -> ApiServer {
    mount::tmpfs(Path::new("/run")).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    ApiServer::start(Options::here(Path::new("/run/kubernetes"))).unwrap()
}

fn node(name: &str) -> Value {
    json!({ "apiVersion": "v1", "kind": "Node", "metadata": { "name": name }, "spec": { "podCIDR": "10.244.1.0/24" } })
}

fn status_of(api: &ApiServer, identity: &Identity, method: &str, path: &str, body: Option<&Value>) -> u16 {
    match api.request_as(identity, method, path, body) {
        Ok(_) => 200,
        Err(flannel_cluster::ClusterError::Refused { status, .. }) => status,
        Err(error) => panic!("{error:?}"),
    }
}

/// Everybody may do what a cluster lets them do, no more; and it is written down.
fn assert_rights(api: &ApiServer) {
    let patch = json!({ "metadata": { "annotations": { "a": "b" } } });
    let (own, foreign) = (format!("{NODES}/n1"), format!("{NODES}/n2"));
    let kubelet = api.node("n1").unwrap();
    assert_eq!(status_of(api, &kubelet, "PATCH", &own, Some(&patch)), 200);
    assert_eq!(status_of(api, &kubelet, "PATCH", &foreign, Some(&patch)), 403);
    let account = api.account("kube-system", "flannel").unwrap();
    assert_eq!(status_of(api, &account, "GET", &own, None), 403);
    let bind = ["create", "clusterrolebinding", "node-reader", "--clusterrole=node-reader"];
    let role = ["create", "clusterrole", "node-reader", "--verb=get", "--resource=nodes"];
    api.kubectl(&role, "").unwrap();
    api.kubectl(&[bind.as_slice(), &["--serviceaccount=kube-system:flannel"]].concat(), "").unwrap();
    assert_eq!(status_of(api, &account, "GET", &own, None), 200);
    let audit = api.audit().unwrap();
    let patches: Vec<_> =
        audit.iter().filter(|event| event["verb"] == "patch" && event["objectRef"]["resource"] == "nodes").collect();
    let seen =
        patches.iter().map(|event| (event["objectRef"]["name"].as_str(), event["responseStatus"]["code"].as_u64()));
    assert_eq!(seen.collect::<Vec<_>>(), [(Some("n1"), Some(200)), (Some("n2"), Some(403))]);
    assert_eq!(patches[0]["requestObject"], patch);
}

#[test]
fn a_server_is_what_a_cluster_has() {
    if !rerun_enclosed("a_server_is_what_a_cluster_has") {
        return;
    }
    let mut api = start();
    for name in ["n1", "n2"] {
        api.request("POST", NODES, Some(&node(name))).unwrap();
    }
    assert!(api.request("POST", NODES, Some(&node("n1"))).unwrap_err().is_conflict());
    assert_rights(&api);
    let config = api.kubeconfig("flannel", &api.account("kube-system", "flannel").unwrap()).unwrap();
    let words = ["get", "node", "n1", "--output=name", "--kubeconfig", config.to_str().unwrap()];
    assert_eq!(api.kubectl(&words, "").unwrap(), "node/n1");
    api.kill().unwrap();
    assert!(api.request("GET", NODES, None).unwrap_err().to_string().contains("GET /api/v1/nodes"));
    api.resume().unwrap();
    assert_eq!(api.request("GET", NODES, None).unwrap()["items"].as_array().unwrap().len(), 2);
}
