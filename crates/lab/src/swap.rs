//! Exchanges the build that a node runs, under traffic, and tells what was lost.
//!
//! Surface: [`Lab::swap`](crate::lab::Lab::swap) for one node, [`SwapArgs`] and [`Order`] for the command, [`Swapped`] for
//! what came of it. A build that does not become ready is taken out again. Whether a build speaks the lab's store is for
//! itself to find out.

use std::fmt::{self, Write as _};
use std::io::Write;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use clap::Args;
use flannel_core::addr::Family;
use serde::{Deserialize, Serialize};

use crate::build::Build;
use crate::error::{Doing, LabError};
use crate::lab::{Lab, Node, Pod};
use crate::report::{table, time};
use crate::traffic::{Flows, Pinger};
use crate::watch::Watch;

/// With how many other nodes the node talks meanwhile: each direction and family is a thread that sends 1,000 pings a second.
const PEERS: usize = 3;
/// How long there is traffic before and after the exchange.
const AROUND: Duration = Duration::from_millis(300);
/// How many changes or losses are listed; the rest is only counted.
const LISTED: usize = 12;

/// What to put in the place of what.
#[derive(Debug, Args)]
pub struct SwapArgs {
    /// The node, such as `node2`.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    node: Option<String>,
    /// Every node, one after the other.
    #[arg(long)]
    all: bool,
    /// The build of flanneld to run; what the lab was brought up with if not given.
    #[arg(long, value_name = "PATH")]
    flanneld: Option<PathBuf>,
    /// A directory with the CNI plugins to use; what the lab was brought up with if not given.
    #[arg(long, value_name = "DIR")]
    cni: Option<PathBuf>,
    /// Further arguments for flanneld, in one word.
    #[arg(long, value_name = "WORDS", allow_hyphen_values = true, default_value = "")]
    args: String,
    /// How many seconds the new build may take to become ready.
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    patience: u64,
    /// `json` for one JSON document.
    #[arg(short, long, value_name = "FORMAT")]
    output: Option<Format>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Json,
}

/// What the lab is asked to exchange.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The node; every node if none is named.
    node: Option<String>,
    build: Build,
    patience: Duration,
    json: bool,
}

impl SwapArgs {
    /// The order, if the files it names can be run.
    pub(crate) fn order(&self) -> Result<Order, LabError> {
        let arguments = self.args.split_whitespace().map(str::to_owned).collect();
        let build = Build { flanneld: self.flanneld.clone(), cni: self.cni.clone(), arguments };
        Ok(Order {
            node: self.node.clone(),
            build: build.check()?,
            patience: Duration::from_secs(self.patience),
            json: self.output == Some(Format::Json),
        })
    }
}

/// A build as it runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Running {
    /// The program of its daemon; none for the lab's own.
    pub flanneld: Option<PathBuf>,
    /// What that says to `--version`.
    pub version: Option<String>,
    /// Where plugins are looked for before the lab's own.
    pub cni: Option<PathBuf>,
}

/// What became of the pings from one pod to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PingLoss {
    /// The pod that pings.
    pub from: String,
    /// The pod that answers.
    pub to: String,
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How many were sent.
    pub sent: usize,
    /// Those without an answer, in milliseconds after the first.
    pub lost_at_ms: Vec<u64>,
}

/// What became of the flows from a pod of the node to the host outside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FlowLoss {
    /// `IPv4` or `IPv6`.
    pub family: String,
    /// How many were begun.
    pub sent: usize,
    /// How many did not arrive.
    pub lost: usize,
    /// How many arrived with the pod's own address.
    pub unmasqueraded: usize,
}

/// An exchange and what it cost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Swapped {
    /// The node.
    pub node: String,
    /// What ran before.
    pub before: Running,
    /// What was to run then.
    pub after: Running,
    /// From the end that was asked of the old daemon to the new one's `/readyz`, in µs; none if it never was.
    pub ready_us: Option<u64>,
    /// The pings, to and from up to three other nodes and within the node.
    pub pings: Vec<PingLoss>,
    /// The flows to the outside.
    pub flows: Vec<FlowLoss>,
    /// What changed among flannel's objects on the node meanwhile, in order.
    pub changes: Vec<String>,
    /// Why the old build runs again, with the end of the new one's log.
    pub failure: Option<Failure>,
}

/// Why a build was taken out again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// What it did not do.
    pub why: String,
    /// The end of its log, indented.
    pub log: String,
}

impl Swapped {
    /// Pings and flows lost, and flows that went out unmasqueraded, of one family or all.
    fn losses(&self, family: &str) -> [(usize, usize); 3] {
        let pings = self.pings.iter().filter(|pings| pings.family == family);
        let flows = || self.flows.iter().filter(|flows| flows.family == family);
        let begun = flows().map(|flows| flows.sent).sum();
        [
            pings.fold((0, 0), |(lost, sent), one| (lost + one.lost_at_ms.len(), sent + one.sent)),
            (flows().map(|flows| flows.lost).sum(), begun),
            (flows().map(|flows| flows.unmasqueraded).sum(), begun),
        ]
    }

    /// Whether every ping was answered, and every flow arrived masqueraded.
    pub fn is_lossless(&self) -> bool {
        let flows = self.flows.iter().all(|flows| flows.lost + flows.unmasqueraded == 0);
        flows && self.pings.iter().all(|pings| pings.lost_at_ms.is_empty())
    }
}

/// Traffic of and to a node.
struct Traffic {
    pings: Vec<(PingLoss, Pinger)>,
    flows: Vec<(Family, IpAddr, Flows)>,
}

impl Traffic {
    /// Begins pings between the node and others, and within it, and flows to the outside. A node without pods has none.
    fn around(lab: &Lab, node: usize) -> Result<Self, LabError> {
        let mut traffic = Self { pings: Vec::new(), flows: Vec::new() };
        let Some(own) = lab.node(node).pods().first() else { return Ok(traffic) };
        for (family, address) in own.addresses().iter() {
            for (from, to) in pairs(lab, node, own) {
                let loss = PingLoss {
                    from: from.name().into(),
                    to: to.name().into(),
                    family: family.to_string(),
                    sent: 0,
                    lost_at_ms: Vec::new(),
                };
                traffic.pings.push((loss, lab.pinger(from, to, family)?));
            }
            traffic.flows.push((family, *address, lab.flows(own, family)?));
        }
        Ok(traffic)
    }

    /// Ends all of it at once, and then waits for the last answers.
    fn finish(self) -> Result<(Vec<PingLoss>, Vec<FlowLoss>), LabError> {
        self.pings.iter().for_each(|(_, pinger)| pinger.halt());
        self.flows.iter().for_each(|(_, _, flows)| flows.halt());
        let pings = self.pings.into_iter().map(|(loss, pinger)| {
            let pings = pinger.finish()?;
            let lost_at_ms = pings.lost.iter().map(|at| at.as_millis() as u64).collect();
            Ok(PingLoss { sent: pings.sent, lost_at_ms, ..loss })
        });
        let flows = self.flows.into_iter().map(|(family, own, flows)| {
            let seen = flows.finish()?;
            let unmasqueraded = seen.by_source.get(&own).copied().unwrap_or_default();
            let lost = seen.sent.saturating_sub(seen.by_source.values().sum());
            Ok(FlowLoss { family: family.to_string(), sent: seen.sent, lost, unmasqueraded })
        });
        Ok((pings.collect::<Result<_, LabError>>()?, flows.collect::<Result<_, LabError>>()?))
    }
}

/// Who pings whom: the node's first pod and the first of the nodes after it, both ways; and the node's second pod.
fn pairs<'a>(lab: &'a Lab, node: usize, own: &'a Pod) -> Vec<(&'a Pod, &'a Pod)> {
    let count = lab.nodes().len();
    let others = (1..count).map(|step| lab.node((node + step) % count)).filter_map(|other| other.pods().first());
    let both_ways = others.take(PEERS).flat_map(|other| [(own, other), (other, own)]);
    both_ways.chain(lab.node(node).pods().get(1).map(|neighbour| (own, neighbour))).collect()
}

impl Lab {
    /// Makes another build a node's, under traffic. If it does not become ready in time, the old one is put back, and the
    /// answer says why; an error is what leaves the node without a flanneld that is ready.
    pub fn swap(&mut self, node: usize, build: Build, patience: Duration) -> Result<Swapped, LabError> {
        let before = running(self.node(node));
        let traffic = Traffic::around(self, node)?;
        let watch = Watch::on(self.node(node).place())?;
        std::thread::sleep(AROUND);
        let since = Instant::now();
        let _ended_by_force = self.node_mut(node).flanneld.stop();
        let build = build.or(&self.options().default_build());
        let old = self.install(node, build);
        let outcome = self.come_up(node, patience);
        let ready_us = outcome.is_ok().then(|| since.elapsed().as_micros() as u64);
        let after = running(self.node(node));
        let failure = outcome.err().map(|error| self.put_back(node, old, &error)).transpose()?;
        std::thread::sleep(AROUND);
        let changes = watch.finish()?;
        let (pings, flows) = traffic.finish()?;
        let node = self.node(node).place().name().to_owned();
        Ok(Swapped { node, before, after, ready_us, pings, flows, changes, failure })
    }

    fn come_up(&mut self, node: usize, patience: Duration) -> Result<(), LabError> {
        let node = self.node_mut(node);
        let arguments = node.arguments().to_vec();
        node.flanneld.start(&arguments)?;
        node.flanneld.wait_ready_for(patience)
    }

    /// Takes a build that failed out and the one before in again.
    fn put_back(&mut self, node: usize, old: Build, error: &LabError) -> Result<Failure, LabError> {
        let cause = std::error::Error::source(error).map(|cause| format!(": {cause}")).unwrap_or_default();
        let failure = Failure { why: format!("{error}{cause}"), log: self.node(node).flanneld.log_tail() };
        self.node_mut(node).flanneld.kill()?;
        self.install(node, old);
        let arguments = self.node(node).arguments().to_vec();
        self.node_mut(node).start_again(&arguments)?;
        Ok(failure)
    }
}

fn running(node: &Node) -> Running {
    Running { flanneld: node.build().flanneld.clone(), version: node.flanneld.version(), cni: node.build().cni.clone() }
}

impl fmt::Display for Running {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let program =
            self.flanneld.as_ref().map_or_else(|| "the lab's own".to_owned(), |path| path.display().to_string());
        write!(f, "{program} {}", self.version.as_deref().unwrap_or("(names no version)"))?;
        match &self.cni {
            Some(cni) => write!(f, ", plugins of {}", cni.display()),
            None => Ok(()),
        }
    }
}

/// Does what the order says, node after node up to the first whose new build fails, and shows it.
pub(crate) fn show(lab: &mut Lab, order: &Order, out: &mut dyn Write) -> Result<(), LabError> {
    let mut swaps = Vec::new();
    for node in chosen(lab, order)? {
        let swapped = lab.swap(node, order.build.clone(), order.patience)?;
        let failed = swapped.failure.is_some();
        swaps.push(swapped);
        if failed {
            break;
        }
    }
    let as_json = || serde_json::to_string_pretty(&swaps).map_err(std::io::Error::from);
    let text = if order.json { as_json().doing(|| "write JSON".into())? } else { in_words(&swaps) };
    writeln!(out, "{}", text.trim_end()).doing(|| "answer".into())?;
    match swaps.into_iter().find_map(|swapped| Some((swapped.node, swapped.failure?))) {
        Some((node, failure)) => Err(LabError::Swap { node, why: failure.why }),
        None => Ok(()),
    }
}

fn chosen(lab: &Lab, order: &Order) -> Result<Vec<usize>, LabError> {
    let Some(name) = &order.node else { return Ok((0..lab.nodes().len()).collect()) };
    lab.node_named(name).map(|node| vec![node])
}

/// What was exchanged, one table of what was lost, and where.
fn in_words(swaps: &[Swapped]) -> String {
    let exchanges =
        swaps.iter().map(|swapped| format!("{}: {}\n    → {}\n", swapped.node, swapped.before, swapped.after));
    let head = ["node", "", "ready after", "pings lost", "flows lost", "unmasqueraded", "changes"];
    let mut table = table(&head, 2);
    table.add_rows(swaps.iter().flat_map(rows));
    let details: String = swaps.iter().map(details).collect();
    format!("{}\n{table}\n{details}", exchanges.collect::<String>())
}

/// A row for each family; what is of both is said in the first.
fn rows(swapped: &Swapped) -> Vec<[String; 7]> {
    let ready = swapped.ready_us.map(|micros| time(Duration::from_micros(micros)));
    let ready = ready.unwrap_or_else(|| "✗ never".into());
    let families = Family::ALL.map(|family| family.to_string()).into_iter();
    let spoken = families.filter(|family| swapped.flows.iter().any(|flows| flows.family == *family));
    let spoken = spoken.chain(swapped.flows.is_empty().then(|| "no pods".to_owned()));
    let row = |(at, family): (usize, String)| {
        let once = |text: &str| if at == 0 { text.to_owned() } else { String::new() };
        let [pings, flows, bare] = swapped.losses(&family).map(|(lost, sent)| format!("{lost} of {sent}"));
        [once(&swapped.node), family, once(&ready), pings, flows, bare, once(&swapped.changes.len().to_string())]
    };
    spoken.enumerate().map(row).collect()
}

/// Between whom pings were lost and when, what changed, why it failed.
fn details(swapped: &Swapped) -> String {
    let mut text = String::new();
    for PingLoss { from, to, family, lost_at_ms, .. } in &swapped.pings {
        if let (Some(first), Some(last)) = (lost_at_ms.first(), lost_at_ms.last()) {
            let count = lost_at_ms.len();
            let _ = writeln!(text, "{from} → {to} ({family}): {count} lost, {first} to {last} ms after the first ping");
        }
    }
    for change in swapped.changes.iter().take(LISTED) {
        let _ = writeln!(text, "changed on {}: {change}", swapped.node);
    }
    if swapped.changes.len() > LISTED {
        let _ = writeln!(text, "… and {} changes more", swapped.changes.len() - LISTED);
    }
    if let Some(Failure { log, .. }) = &swapped.failure {
        let _ = write!(text, "the log of flanneld on {} ends with:\n{log}", swapped.node);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swapped() -> Swapped {
        let running = |path: &str| Running { flanneld: Some(path.into()), version: Some("v1".into()), cni: None };
        let pings = |from: &str, to: &str, lost_at_ms| PingLoss {
            from: from.into(),
            to: to.into(),
            family: "IPv4".into(),
            sent: 700,
            lost_at_ms,
        };
        Swapped {
            node: "node1".into(),
            before: running("/old"),
            after: Running { cni: Some("/plugins".into()), version: None, ..running("/new") },
            ready_us: Some(31_400),
            pings: vec![pings("pod1-1", "pod2-1", vec![310, 311]), pings("pod2-1", "pod1-1", Vec::new())],
            flows: vec![FlowLoss { family: "IPv4".into(), sent: 690, lost: 0, unmasqueraded: 3 }],
            changes: vec!["set route 10.244.2.0/24".into()],
            failure: None,
        }
    }

    #[test]
    fn losses_are_counted_and_placed() {
        let text = in_words(&[swapped()]);
        assert!(text.starts_with("node1: /old v1\n    → /new (names no version), plugins of /plugins\n"), "{text}");
        let row: Vec<&str> = text.lines().find(|line| line.contains("31.4 ms")).unwrap().split_whitespace().collect();
        assert_eq!(row.join(" "), "node1 IPv4 31.4 ms 2 of 1400 0 of 690 3 of 690 1");
        assert!(text.contains("pod1-1 → pod2-1 (IPv4): 2 lost, 310 to 311 ms after the first ping\n"), "{text}");
        assert!(text.contains("changed on node1: set route 10.244.2.0/24\n"), "{text}");
        assert!(!swapped().is_lossless());
    }

    #[test]
    fn a_node_without_pods_has_a_row_too() {
        let text = in_words(&[Swapped { pings: Vec::new(), flows: Vec::new(), ..swapped() }]);
        assert!(text.lines().any(|line| line.contains(" no pods ") && line.contains("31.4 ms")), "{text}");
    }

    #[test]
    fn a_failure_shows_the_log() {
        let failure = Some(Failure { why: "flanneld on node1 ended".into(), log: "    no store\n".into() });
        let text = in_words(&[Swapped { ready_us: None, failure, ..swapped() }]);
        assert!(text.contains("✗ never") && text.ends_with("ends with:\n    no store\n"), "{text}");
    }
}
