//! The walks through a cluster's life.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_cluster::{Cluster, ClusterOptions};
use flannel_core::addr::Family;
use flannel_kernel::process::Enclosed;
use serde_json::Value;

use crate::Plan;
use crate::pods::{self, PATIENCE, Pod};
use crate::stream::Streams;

/// A walk.
pub(crate) type Walk = fn(Enclosed, &Plan) -> Result<()>;
/// All of them, by name.
pub(crate) const WALKS: [(&str, Walk); 2] = [("dual-stack", dual_stack), ("ipv6", second_family_alone)];

const NODES: &str = "/api/v1/nodes";
const DAEMONS: &str = "/api/v1/namespaces/kube-flannel/pods?labelSelector=app%3Dflannel";
/// The node that is taken out and comes back: the last of two.
const LAST: usize = 1;

/// Does a part of a walk and says how long it took.
fn step<T>(name: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let begun = Instant::now();
    let found = work().with_context(|| name.to_owned())?;
    println!("e2e: {name}: {:.1} s", begun.elapsed().as_secs_f64());
    Ok(found)
}

/// Nodes of both families: first with pods of one as `kube-flannel.yml` has it, then of both; daemons rolled, the API server away,
/// a node gone and back.
fn dual_stack(enclosed: Enclosed, plan: &Plan) -> Result<()> {
    let families = vec![Family::V4, Family::V6];
    let mut cluster = start(enclosed, plan, ClusterOptions { nodes: 2, families, proxy: "iptables" })?;
    let manifest = plan.deploy.join("kube-flannel.yml");
    step("kube-flannel.yml applied: nodes ready", || {
        cluster.api.kubectl(&["apply", "--filename", &manifest.display().to_string()], "")?;
        wait_ready(&cluster)
    })?;
    let pods = pods_talk(&cluster, 1)?;
    assert_served(&cluster, &pods)?;
    step("daemons rolled, to both families, without a loss", || {
        without_loss(&pods, || apply_overlay(&cluster, plan, "dual-stack").and_then(|()| roll(&cluster)))
    })?;
    roll_out(&cluster, "--namespace=default", "daemonset/web")?;
    let pods = pods_talk(&cluster, 2)?;
    let away = plan.away.as_secs();
    step(&format!("API server away for {away} s"), || without_loss(&pods, || stay_away(&mut cluster, plan.away)))?;
    step("node deleted and back", || delete_and_return(&mut cluster))?;
    pods_talk(&cluster, 2).map(drop)
}

/// Nodes that have IPv6 alone.
fn second_family_alone(enclosed: Enclosed, plan: &Plan) -> Result<()> {
    let options = ClusterOptions { nodes: 2, families: vec![Family::V6], proxy: "nftables" };
    let cluster = start(enclosed, plan, options)?;
    step("overlay ipv6 applied: nodes ready", || {
        apply_overlay(&cluster, plan, "ipv6")?;
        wait_ready(&cluster)
    })?;
    let pods = pods_talk(&cluster, 1)?;
    step("daemons rolled without a loss", || without_loss(&pods, || roll(&cluster)))
}

fn start(enclosed: Enclosed, plan: &Plan, options: ClusterOptions) -> Result<Cluster> {
    let families: Vec<String> = options.families.iter().map(ToString::to_string).collect();
    let name = format!("{} nodes with {}, kube-proxy with {}", options.nodes, families.join(" and "), options.proxy);
    step(&name, || {
        let cluster = Cluster::start(enclosed, options)?;
        cluster.import(&plan.image)?;
        Ok(cluster)
    })
}

fn apply_overlay(cluster: &Cluster, plan: &Plan, name: &str) -> Result<()> {
    let overlay = plan.deploy.join("kustomize/overlays").join(name);
    cluster.api.kubectl(&["apply", "--kustomize", &overlay.display().to_string()], "")?;
    Ok(())
}

/// Waits until all nodes are ready, and the pod network by what flannel says of it.
fn wait_ready(cluster: &Cluster) -> Result<()> {
    let expected = cluster.nodes().len();
    let look = |nodes: &Value| {
        let all = nodes["items"].as_array().into_iter().flatten();
        let states: Vec<String> = all.map(state).collect();
        let right = states.len() == expected && states.iter().all(|state| state == READY);
        if right { Ok(()) } else { Err(format!("{states:?}\n{}", daemons(cluster))) }
    };
    Ok(cluster.until(PATIENCE, NODES, look)?)
}

const READY: &str = "Ready=True NetworkUnavailable=False FlannelIsUp";

fn state(node: &Value) -> String {
    let condition = |kind: &str| {
        let mut all = node["status"]["conditions"].as_array().into_iter().flatten();
        all.find(|condition| condition["type"] == kind).cloned().unwrap_or_default()
    };
    let text = |value: &Value| value.as_str().unwrap_or("?").to_owned();
    let (ready, network) = (condition("Ready"), condition("NetworkUnavailable"));
    let status = [&ready["status"], &network["status"], &network["reason"]].map(text);
    format!("Ready={} NetworkUnavailable={} {}", status[0], status[1], status[2])
}

/// What the daemons say, for who wonders why a node does not become ready.
fn daemons(cluster: &Cluster) -> String {
    let words =
        ["logs", "--namespace=kube-flannel", "--selector=app=flannel", "--all-containers", "--prefix", "--tail=15"];
    cluster.api.kubectl(&words, "").unwrap_or_else(|error| error.to_string())
}

/// Has the pods made and waits for them; they reach all that they may.
fn pods_talk(cluster: &Cluster, families: usize) -> Result<Vec<Pod>> {
    let pods = step("a pod ready on every node", || {
        pods::apply(cluster)?;
        pods::wait(cluster, families)
    })?;
    step("pods, a service, host ports and pods on the host's network reached", || {
        pods::assert_reachable(cluster, &pods)
    })?;
    Ok(pods)
}

/// `kubectl` runs a program in a pod and reads what it says.
fn assert_served(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for pod in pods {
        let said = cluster.api.kubectl(&["exec", &pod.name, "--", "hostname"], "")?;
        ensure!(said == pod.name, "{said} is not {}", pod.name);
    }
    Ok(())
}

/// Does something while packets go between all pods, of which none may be lost.
fn without_loss(pods: &[Pod], work: impl FnOnce() -> Result<()>) -> Result<()> {
    let streams = Streams::start(pods)?;
    work()?;
    let packets = streams.end()?;
    println!("e2e:   {packets} packets went and came");
    Ok(())
}

/// Exchanges the daemons of all nodes, one after the other.
fn roll(cluster: &Cluster) -> Result<()> {
    roll_out(cluster, "--namespace=kube-flannel", "daemonset/kube-flannel-ds")?;
    wait_ready(cluster)
}

/// Exchanges pods, and waits until the new ones are ready.
fn roll_out(cluster: &Cluster, namespace: &str, what: &str) -> Result<()> {
    for word in ["restart", "status"] {
        cluster.api.kubectl(&["rollout", word, namespace, what], "")?;
    }
    Ok(())
}

/// The API server ends and comes back; the daemons go on, and the nodes are ready again.
fn stay_away(cluster: &mut Cluster, away: Duration) -> Result<()> {
    let before = restarts(cluster)?;
    cluster.api.kill()?;
    sleep(away);
    cluster.api.resume()?;
    wait_ready(cluster)?;
    let since = restarts(cluster)?;
    ensure!(since == before, "daemons were restarted: {before:?}, then {since:?}");
    Ok(())
}

/// The daemons by name, and how often each was restarted.
fn restarts(cluster: &Cluster) -> Result<Vec<(String, u64)>> {
    let pods = cluster.api.request("GET", DAEMONS, None)?;
    let all = pods["items"].as_array().into_iter().flatten();
    let mut restarts: Vec<(String, u64)> = all
        .map(|pod| {
            let count = pod["status"]["containerStatuses"][0]["restartCount"].as_u64();
            (pod["metadata"]["name"].to_string(), count.unwrap_or(u64::MAX))
        })
        .collect();
    restarts.sort();
    Ok(restarts)
}

/// A node's object is deleted while its kubelet is down: the other node forgets it. Its kubelet registers it again.
fn delete_and_return(cluster: &mut Cluster) -> Result<()> {
    let node = format!("{NODES}/{}", cluster.nodes()[LAST].name());
    let address = cluster.nodes()[LAST].addresses()[0].to_string();
    cluster.node_mut(LAST).kill_kubelet()?;
    cluster.api.request("DELETE", &node, None)?;
    let begun = Instant::now();
    while knows(cluster, &address)? {
        ensure!(begun.elapsed() < PATIENCE, "the other node still knows {address}");
        sleep(Duration::from_millis(50));
    }
    cluster.node_mut(LAST).start_kubelet()?;
    wait_ready(cluster)?;
    // With its new object it has another subnet; what was there before is not moved by Kubernetes.
    let words = ["delete", "pods", "--selector=app=web", "--wait=false"];
    cluster.api.kubectl(&words, "").map(drop).context("pods of the node before")
}

/// Whether the first node has a tunnel to an address.
fn knows(cluster: &Cluster, address: &str) -> Result<bool> {
    let mut command = std::process::Command::new("bridge");
    command.args(["fdb", "show", "dev", "flannel.1"]);
    let entries = cluster.nodes()[0].place().run(command, "")?;
    Ok(entries.lines().any(|line| line.split(' ').any(|word| word == address)))
}
