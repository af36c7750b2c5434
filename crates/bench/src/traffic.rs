//! The bench `traffic`: throughput and round trip from pod to pod on another node, beside a network of the same shape that was
//! made by hand ([`crate::by_hand`]).
//!
//! Both are measured turn about, and what counts is the median of the rounds' ratios. A network that masquerades is compared with
//! one that does, and one that does not with one that does not: the first rule that masquerades lets the kernel track every
//! connection, whoever wrote it, and that costs what it costs.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use flannel_kernel::namespace::{Namespaces, NetNamespace};
use flannel_kernel::process::{Enclosed, spawn_in};
use flannel_lab::lab::{Lab, Node};
use flannel_lab::options::LabOptions;
use serde_json::Value;

use crate::benches::{Part, Setting, Tell};
use crate::by_hand::{ByHand, PODS};
use crate::figure::{Figure, Unit};
use crate::report::{Bound, Report, Row};
use crate::statistics::median;
use crate::turns::order;

/// The column of the network made by hand.
const BY_HAND: &str = "by hand";
/// The backends compared.
pub const BACKENDS: [&str; 2] = ["vxlan", "host-gw"];
/// The port that answers round trips.
const PORT: u16 = 7;

struct Extent {
    rounds: usize,
    seconds: u32,
    round_trips: usize,
}

impl Extent {
    const WHOLE: Self = Self { rounds: 12, seconds: 2, round_trips: 5_000 };
    const QUICK: Self = Self { rounds: 1, seconds: 1, round_trips: 100 };
}

/// Measures one daemon with one backend, with masquerade or without.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    tell(&format!("{} with {}, {} rounds", part.column, shape(part), extent.rounds));
    let options = LabOptions { nodes: 2, pods: 1, ..setting.lab(part) };
    let mut lab = Lab::start(enclosed, options, &setting.flannel, &mut |_| ())?;
    let hand = ByHand::make(&part.backend)?;
    if part.masquerade {
        hand.masquerade()?;
    } else {
        stop_masquerading(&mut lab)?;
    }
    let paths = [Path::of_lab(&lab)?, Path::by_hand(&hand)?];
    let throughput = rounds(extent.rounds, &paths, |path| path.throughput(extent.seconds))?;
    let round_trip = rounds(extent.rounds, &paths, |path| path.round_trip(extent.round_trips))?;
    Ok(Report {
        name: "traffic".into(),
        columns: vec![part.column.clone(), BY_HAND.into()],
        rows: [
            rows(part, "throughput", Unit::BitsPerSecond, &throughput, |[it, hand]| it / hand),
            rows(part, "round trip", Unit::Seconds, &round_trip, |[it, hand]| hand / it),
        ]
        .concat(),
        notes: vec![NOTE.into()],
    })
}

/// Starts each flanneld anew without masquerade; pods that are there by then are left alone, so their plugins add none either.
fn stop_masquerading(lab: &mut Lab) -> Result<()> {
    for number in 0..lab.nodes().len() {
        let node = lab.node_mut(number);
        let arguments = [node.arguments(), &["--ip-masq=false".to_owned()]].concat();
        node.flanneld.stop()?;
        node.start_again(&arguments)?;
    }
    Ok(())
}

/// What kind of network, for people.
fn shape(part: &Part) -> String {
    let masquerading = if part.masquerade { ", masquerading" } else { "" };
    format!("{}{masquerading}", part.backend)
}

const NOTE: &str = "Throughput is of one TCP stream with cubic, a round trip of a byte in UDP. Parity says how good it is against \
    the network made by hand (1 is equal, less is worse): the median over the rounds, with the interval that holds it at 95 %.";

/// From pod to pod, with what answers at the far end.
struct Path<'a> {
    near: &'a NetNamespace,
    to: IpAddr,
    _server: Running,
}

/// A process that ends with its owner.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _gone_already = self.0.kill().and_then(|()| self.0.wait());
    }
}

impl<'a> Path<'a> {
    fn of_lab(lab: &'a Lab) -> Result<Self> {
        let [near, far] = [lab.node(0), lab.node(1)].map(Node::pods);
        let (near, far) = (near.first().context("no pod")?, far.first().context("no pod")?);
        let to = far.addresses().values().next().copied().context("the pod has no address")?;
        Self::between(near.place().net(), far.place().net(), to)
    }

    fn by_hand(hand: &'a ByHand) -> Result<Self> {
        Self::between(&hand.pods[0], &hand.pods[1], PODS[1].parse()?)
    }

    fn between(near: &'a NetNamespace, far: &NetNamespace, to: IpAddr) -> Result<Self> {
        let mut server = Command::new("iperf3");
        server.args(["--server", "--bind", &to.to_string()]).stdout(Stdio::null());
        let server = Running(run_in(server, far)?);
        wait_listening(far)?;
        let echo = far.run(|| UdpSocket::bind(SocketAddr::new(to, PORT)))??;
        std::thread::spawn(move || answer(&echo));
        Ok(Self { near, to, _server: server })
    }

    /// Bits a second of one TCP stream.
    fn throughput(&self, seconds: u32) -> Result<f64> {
        /// What the server says while it has not yet noticed that the last client is gone.
        const BUSY: &str = "the server is busy";
        let mut result = self.stream(seconds)?;
        for _ in 0..20 {
            if !result["error"].as_str().is_some_and(|error| error.starts_with(BUSY)) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            result = self.stream(seconds)?;
        }
        ensure!(result["error"].is_null(), "iperf3 to {}: {}", self.to, result["error"]);
        result.pointer("/end/sum_received/bits_per_second").and_then(Value::as_f64).context("iperf3 told no figure")
    }

    /// What iperf3 tells of one TCP stream.
    fn stream(&self, seconds: u32) -> Result<Value> {
        let mut client = Command::new("iperf3");
        client.args(["--client", &self.to.to_string(), "--congestion", "cubic", "--json"]);
        client.args(["--omit", "0", "--time", &seconds.to_string()]).stdout(Stdio::piped());
        let output = run_in(client, self.near)?.wait_with_output()?;
        Ok(serde_json::from_slice(&output.stdout)?)
    }

    /// The median time in seconds of a packet of one byte to the far pod and back.
    fn round_trip(&self, count: usize) -> Result<f64> {
        let socket = self.near.run(|| UdpSocket::bind("0.0.0.0:0"))??;
        socket.connect(SocketAddr::new(self.to, PORT))?;
        socket.set_read_timeout(Some(Duration::from_secs(1)))?;
        let mut times = Vec::with_capacity(count);
        for _ in 0..count {
            let begun = Instant::now();
            socket.send(&[0])?;
            socket.recv(&mut [0])?;
            times.push(begun.elapsed().as_secs_f64());
        }
        Ok(median(&times))
    }
}

/// Waits until the server of iperf3 listens; a connection to find out would be a client to it.
fn wait_listening(far: &NetNamespace) -> Result<()> {
    /// Its port, 5201, and the state LISTEN as `/proc/net/tcp` has them.
    const LISTENING: &str = ":1451 00000000:0000 0A";
    for _ in 0..200 {
        let sockets = far.run(|| std::fs::read_to_string("/proc/thread-self/net/tcp"))??;
        if sockets.contains(LISTENING) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    bail!("the server of iperf3 does not listen")
}

fn run_in(command: Command, place: &NetNamespace) -> Result<Child> {
    spawn_in(command, Namespaces::of(place, None)?).context("iperf3 (of the package iperf3)")
}

/// Sends back what comes, as long as the process lives.
fn answer(echo: &UdpSocket) {
    while let Ok((length, from)) = echo.recv_from(&mut [0; 16]) {
        let _lost = echo.send_to(&[0; 16][..length.min(16)], from);
    }
}

/// Measures both turn about; the first round only warms up.
fn rounds(count: usize, paths: &[Path<'_>; 2], measure: impl Fn(&Path<'_>) -> Result<f64>) -> Result<Vec<[f64; 2]>> {
    let mut rounds = Vec::new();
    for number in 0..=count {
        let mut round = [0.0; 2];
        for which in order(number, paths.len()) {
            round[which] = measure(&paths[which])?;
        }
        rounds.push(round);
    }
    Ok(rounds.split_off(1))
}

fn rows(part: &Part, what: &str, unit: Unit, rounds: &[[f64; 2]], ratio: fn([f64; 2]) -> f64) -> [Row; 2] {
    let of = |which: usize| median(&rounds.iter().map(|round| round[which]).collect::<Vec<_>>());
    let ratios: Vec<f64> = rounds.iter().copied().map(ratio).collect();
    let absolute = Row::new(format!("{}: {what}", shape(part)), unit);
    let parity = Row::new(format!("{}: {what}, parity", shape(part)), Unit::Ratio);
    [
        absolute.with(&part.column, of(0)).with(BY_HAND, of(1)),
        parity.with(&part.column, Figure::median_of(&ratios)).aim(Bound::AtLeast(0.97)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parity_is_of_rounds_and_not_of_medians() {
        let part = Part { column: crate::report::OURS.into(), backend: "vxlan".into(), ..Part::default() };
        let rounds = [[1.0, 2.0], [8.0, 8.0], [9.0, 8.0]];
        let [absolute, parity] = rows(&part, "rate", Unit::BitsPerSecond, &rounds, |[it, hand]| it / hand);
        assert_eq!(absolute.figures["ours"].value.to_string(), "8");
        assert_eq!(parity.figures["ours"].value.to_string(), "1");
        assert!(parity.target.is_some_and(|target| target.met));
    }
}
