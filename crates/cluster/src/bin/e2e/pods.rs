//! The pods of a walk: a web server on every node, and what they reach.

use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use flannel_cluster::{BUSYBOX, Cluster, Place};
use serde_json::Value;

/// How long anything may take to come true. Kubernetes' own controllers and kube-proxy look for a server that was away ever less often.
pub(crate) const PATIENCE: Duration = Duration::from_mins(3);
/// The port of the node that leads to its web server.
const HOST_PORT: u16 = 8080;
const PODS: &str = "/api/v1/namespaces/default/pods?labelSelector=app%3Dweb";
const SERVICE: &str = "/api/v1/namespaces/default/services/web";
const API: &str = "/api/v1/namespaces/default/services/kubernetes";

/// Two web servers that say who they are, one by a pod network and one by the node's own, and a service for the first.
const MANIFEST: &str = r#"
apiVersion: v1
kind: Service
metadata: { name: web }
spec:
  ipFamilyPolicy: PreferDualStack
  selector: { app: web }
  ports: [{ port: 80 }]
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: web }
spec:
  selector: { matchLabels: { app: web } }
  updateStrategy: { rollingUpdate: { maxUnavailable: 100% } }
  template:
    metadata: { labels: { app: web } }
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: web
        image: BUSYBOX
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www; hostname >/www/index.html; exec httpd -f -p 80 -h /www"]
        ports: [{ containerPort: 80, hostPort: 8080 }]
        readinessProbe: { httpGet: { port: 80 }, periodSeconds: 1 }
---
apiVersion: apps/v1
kind: DaemonSet
metadata: { name: on-host }
spec:
  selector: { matchLabels: { app: on-host } }
  template:
    metadata: { labels: { app: on-host } }
    spec:
      hostNetwork: true
      terminationGracePeriodSeconds: 1
      containers:
      - name: on-host
        image: BUSYBOX
        imagePullPolicy: Never
        command: [sh, -c, "mkdir /www; echo host >/www/index.html; exec httpd -f -p 8888 -h /www"]
        readinessProbe: { httpGet: { port: 8888 }, periodSeconds: 1 }
"#;
/// The port of the web server that is on the host's network.
const ON_HOST: u16 = 8888;

/// A web server on a node.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    /// Its name, which its page says.
    pub(crate) name: String,
    /// The place of its node in the order.
    pub(crate) node: usize,
    /// Its addresses, the preferred family first.
    pub(crate) addresses: Vec<IpAddr>,
    /// Its network.
    pub(crate) place: Place,
}

/// Has the pods made, where they are not there yet.
pub(crate) fn apply(cluster: &Cluster) -> Result<()> {
    Ok(cluster.apply(&MANIFEST.replace("BUSYBOX", BUSYBOX))?)
}

/// Waits until there is a ready one on each node, with addresses of so many families, in the order of nodes.
pub(crate) fn wait(cluster: &Cluster, families: usize) -> Result<Vec<Pod>> {
    let nodes = cluster.nodes();
    let found = cluster.until(PATIENCE, PODS, |pods| {
        let all = pods["items"].as_array().cloned().unwrap_or_default();
        let ready: Vec<&Value> = all.iter().filter(|pod| is_ready(pod)).collect();
        let right = all.len() == nodes.len() && ready.len() == all.len();
        if right { Ok(all) } else { Err(format!("{} pods, {} ready: {}", all.len(), ready.len(), pods["items"])) }
    })?;
    let mut pods = found.iter().map(|pod| read(cluster, pod)).collect::<Result<Vec<_>>>()?;
    pods.sort_by_key(|pod| pod.node);
    for pod in &pods {
        ensure!(pod.addresses.len() == families, "{} has the addresses {:?}", pod.name, pod.addresses);
    }
    Ok(pods)
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().into_iter().flatten();
    let is_going = !pod["metadata"]["deletionTimestamp"].is_null();
    !is_going && conditions.into_iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True")
}

fn read(cluster: &Cluster, pod: &Value) -> Result<Pod> {
    let node = pod["spec"]["nodeName"].as_str().unwrap_or_default();
    let node = cluster.nodes().iter().position(|other| other.name() == node).context("a pod on no node")?;
    let addresses = pod["status"]["podIPs"].as_array().into_iter().flatten();
    let addresses: Vec<IpAddr> = addresses.filter_map(|address| address["ip"].as_str()?.parse().ok()).collect();
    let first = *addresses.first().context("a pod without addresses")?;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    Ok(Pod { name, node, place: cluster.nodes()[node].pod(first)?, addresses })
}

/// Whatever a pod may reach it reaches, in each family: every pod, the service, the ports on nodes, pods on the host's network, the
/// API by its service; nodes reach pods; and the outside the ports on nodes.
pub(crate) fn assert_reachable(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for from in pods {
        for to in pods.iter().flat_map(|to| to.addresses.iter().map(move |address| (to, *address))) {
            expect(&from.place, (to.1, 80).into(), &to.0.name).with_context(|| format!("from {}", from.name))?;
        }
        assert_hosts_reached(cluster, pods, from)?;
        assert_services_reached(cluster, pods, from)?;
    }
    assert_reached_from_hosts(cluster, pods)
}

/// A pod reaches the service of the pods, and the API by its own.
fn assert_services_reached(cluster: &Cluster, pods: &[Pod], from: &Pod) -> Result<()> {
    for address in services(cluster, SERVICE)?.into_iter().filter(|it| from.has_family_of(*it)) {
        let page = fetch(&from.place, (address, 80).into()).with_context(|| format!("from {}", from.name))?;
        ensure!(pods.iter().any(|pod| pod.name == page), "the service says {page}");
    }
    for address in services(cluster, API)?.into_iter().filter(|it| from.has_family_of(*it)) {
        let connected = from.place.inside(|| TcpStream::connect_timeout(&(address, 443).into(), PATIENCE))?;
        connected.with_context(|| format!("the API at {address} from {}", from.name))?;
    }
    Ok(())
}

/// A pod reaches what is on the nodes' own network.
fn assert_hosts_reached(cluster: &Cluster, pods: &[Pod], from: &Pod) -> Result<()> {
    for to in pods {
        for address in cluster.nodes()[to.node].addresses().iter().filter(|it| to.has_family_of(**it)) {
            let who = || format!("{address} from {}", from.name);
            expect(&from.place, (*address, HOST_PORT).into(), &to.name).with_context(who)?;
            expect(&from.place, (*address, ON_HOST).into(), "host").with_context(who)?;
        }
    }
    Ok(())
}

/// A node reaches all pods, and the outside their ports on nodes.
fn assert_reached_from_hosts(cluster: &Cluster, pods: &[Pod]) -> Result<()> {
    for to in pods {
        for node in cluster.nodes() {
            for address in &to.addresses {
                expect(node.place(), (*address, 80).into(), &to.name)
                    .with_context(|| format!("from {}", node.name()))?;
            }
        }
        for address in cluster.nodes()[to.node].addresses().iter().filter(|it| to.has_family_of(**it)) {
            expect(&Place::here(), (*address, HOST_PORT).into(), &to.name).context("from outside")?;
        }
    }
    Ok(())
}

impl Pod {
    fn has_family_of(&self, address: IpAddr) -> bool {
        self.addresses.iter().any(|own| own.is_ipv4() == address.is_ipv4())
    }
}

/// The addresses of a service.
fn services(cluster: &Cluster, path: &str) -> Result<Vec<IpAddr>> {
    let service = cluster.api.request("GET", path, None)?;
    let addresses = service["spec"]["clusterIPs"].as_array().into_iter().flatten();
    Ok(addresses.filter_map(|address| address.as_str()?.parse().ok()).collect())
}

fn expect(place: &Place, address: SocketAddr, page: &str) -> Result<()> {
    let found = fetch(place, address)?;
    ensure!(found == page, "{address} says {found:?}, not {page:?}");
    Ok(())
}

/// The page of a web server. What is new may take a while to be known to kube-proxy.
fn fetch(place: &Place, address: SocketAddr) -> Result<String> {
    let begun = Instant::now();
    loop {
        match place.inside(|| try_fetch(address))? {
            Ok(page) => return Ok(page),
            Err(error) if begun.elapsed() > PATIENCE => {
                return Err(error).with_context(|| address.to_string());
            }
            Err(_) => sleep(Duration::from_millis(50)),
        }
    }
}

fn try_fetch(address: SocketAddr) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(3))?;
    stream.set_read_timeout(Some(Duration::from_secs(3)))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let page = answer.split_once("\r\n\r\n").map_or("", |(_, page)| page).trim();
    if page.is_empty() { Err(std::io::Error::other("no page")) } else { Ok(page.to_owned()) }
}
