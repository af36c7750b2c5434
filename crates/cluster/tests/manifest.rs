//! What `deploy` holds, on a real API server: taken as it is, over another flannel, and given back.

use std::path::Path;
use std::process::Command;

use flannel_cluster::{ApiServer, Options};
use flannel_kernel::mount;
use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};

const MANIFEST: &str = include_str!("../../../deploy/kube-flannel.yml");
const DAEMONSET: &str = "/apis/apps/v1/namespaces/kube-flannel/daemonsets/kube-flannel-ds";

/// Another flannel, with what of it must be as ours and some of what is not.
fn other() -> String {
    let meta = |name: &str| json!({ "name": name, "namespace": "kube-flannel" });
    let of_pod = |path: &str| json!({ "fieldRef": { "fieldPath": path } });
    let lock = json!({ "name": "xtables-lock", "hostPath": { "path": "/run/xtables.lock", "type": "FileOrCreate" } });
    let run = json!({ "name": "run", "hostPath": { "path": "/run/flannel" } });
    let daemon = json!({
        "name": "kube-flannel", "image": "example.com/flannel:v0.28", "command": ["/opt/bin/flanneld"],
        "args": ["--ip-masq", "--kube-subnet-mgr", "--healthz-port=8081"],
        "ports": [{ "name": "healthz", "containerPort": 8081, "protocol": "TCP" }],
        "resources": { "requests": { "cpu": "100m", "memory": "50Mi" } },
        "securityContext": { "privileged": false, "capabilities": { "add": ["NET_ADMIN", "NET_RAW"] } },
        "env": [
            { "name": "POD_NAME", "valueFrom": of_pod("metadata.name") },
            { "name": "POD_NAMESPACE", "valueFrom": of_pod("metadata.namespace") },
            { "name": "EVENT_QUEUE_DEPTH", "value": "5000" },
        ],
        "volumeMounts": [
            { "name": "run", "mountPath": "/run/flannel" },
            { "name": "xtables-lock", "mountPath": "/run/xtables.lock" },
        ],
    });
    let pod = json!({
        "hostNetwork": true, "serviceAccountName": "flannel", "priorityClassName": "system-node-critical",
        "tolerations": [{ "operator": "Exists", "effect": "NoSchedule" }],
        "containers": [daemon], "volumes": [run, lock],
    });
    let labels = json!({ "app": "flannel", "tier": "node" });
    let daemonset = json!({
        "selector": { "matchLabels": { "app": "flannel" } },
        "template": { "metadata": { "labels": labels }, "spec": pod },
    });
    let objects = json!([
        { "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "kube-flannel" } },
        { "apiVersion": "v1", "kind": "ServiceAccount", "metadata": meta("flannel") },
        { "apiVersion": "v1", "kind": "ConfigMap", "metadata": meta("kube-flannel-cfg"), "data": { "net-conf.json": "{}" } },
        { "apiVersion": "apps/v1", "kind": "DaemonSet", "metadata": meta("kube-flannel-ds"), "spec": daemonset },
    ]);
    json!({ "apiVersion": "v1", "kind": "List", "items": objects }).to_string()
}

fn apply(api: &ApiServer, manifest: &str) -> Value {
    api.kubectl(&["apply", "--validate=strict", "--filename", "-"], manifest).unwrap();
    api.request("GET", DAEMONSET, None).unwrap()
}

/// The pods of the DaemonSet are what the namespace allows, which is told where they are made.
fn assert_allowed(api: &ApiServer, daemonset: &Value) {
    let template = &daemonset["spec"]["template"];
    let meta = json!({ "name": "one", "namespace": "kube-flannel", "labels": template["metadata"]["labels"] });
    let pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": template["spec"] });
    api.kubectl(&["create", "--dry-run=server", "--filename", "-"], &pod.to_string()).unwrap();
}

#[test]
fn the_manifest_takes_over_and_gives_back() {
    if !rerun_enclosed("the_manifest_takes_over_and_gives_back") {
        return;
    }
    mount::tmpfs(Path::new("/run")).unwrap();
    assert!(Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
    let api = ApiServer::start(Options::here(Path::new("/run/kubernetes"))).unwrap();

    let before = apply(&api, &other());
    let ours = apply(&api, MANIFEST);
    assert_eq!(ours["metadata"]["uid"], before["metadata"]["uid"], "changed in place");
    let pod = &ours["spec"]["template"]["spec"];
    let names = |list: &Value| -> Vec<String> {
        list.as_array().unwrap().iter().filter_map(|item| item["name"].as_str().map(str::to_owned)).collect()
    };
    assert_eq!(names(&pod["initContainers"]), ["install-cni-plugin", "install-cni"]);
    assert_eq!(names(&pod["volumes"]), ["run", "cni-plugin", "cni", "flannel-cfg"]);
    assert_eq!(names(&pod["containers"][0]["env"]), ["NODE_NAME", "POD_NAME", "POD_NAMESPACE"]);
    assert_eq!(pod["containers"][0]["securityContext"]["capabilities"]["drop"], json!(["ALL"]));
    assert_allowed(&api, &ours);

    let after = apply(&api, &other());
    assert_eq!(after["spec"], before["spec"], "as it was");
    assert_eq!(after["metadata"]["uid"], before["metadata"]["uid"]);
}
