//! The proofs: who reaches whom, and under which source address.
//!
//! Surface: [`Lab::prove`](crate::lab::Lab::prove) and [`Lab::prove_unmasqueraded`](crate::lab::Lab::prove_unmasqueraded),
//! which answer with one [`Proof`] for each packet path; a proof that fails is a value, not an error.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use flannel_core::addr::{Dual, Family};

use crate::echo;
use crate::error::{Doing, LabError};
use crate::lab::{Lab, Node, Pod};
use crate::place::Place;
use crate::report::time;

/// How long a single packet path is given, and how long once some have failed: a broken network is told of soon.
const PATIENCE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_millis(100));
/// How many failures of a claim it takes to lose patience.
const SOME: usize = 3;

/// What is proved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Claim {
    /// A ping from pod to pod arrives with the sender's own address, and comes back.
    PodPing,
    /// A TCP connection from pod to pod arrives with the sender's own address.
    PodTcp,
    /// A ping from a node to a pod comes back.
    NodePing,
    /// A TCP connection from a pod to the host outside arrives with the node's address.
    Masqueraded,
    /// Without `--ip-masq` it arrives with the pod's own address.
    Unmasqueraded,
}

impl Claim {
    /// All, in the order in which they are proved.
    pub const ALL: [Self; 5] = [Self::PodPing, Self::PodTcp, Self::NodePing, Self::Masqueraded, Self::Unmasqueraded];

    /// The claim as one reads it in a table.
    pub fn sentence(self) -> &'static str {
        match self {
            Self::PodPing => "every pod pings every pod; the receiver sees the sender's address",
            Self::PodTcp => "every pod reaches every pod by TCP; the receiver sees the sender's address",
            Self::NodePing => "every node pings every pod",
            Self::Masqueraded => "pod to outside: outside sees the node's address (masqueraded)",
            Self::Unmasqueraded => "the same without --ip-masq: outside sees the pod's own address",
        }
    }
}

/// One packet path, proved or not.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proof {
    /// What is claimed.
    pub claim: Claim,
    /// Of which family.
    pub family: Family,
    /// Who sends.
    pub from: String,
    /// Who receives.
    pub to: String,
    /// The source address that the receiver saw, where it looked.
    pub seen: Option<IpAddr>,
    /// The time of the round trip or of the connection's opening, or what is wrong.
    pub outcome: Result<Duration, String>,
}

impl Lab {
    /// Proves all claims but the last; `tell` hears which one is at work.
    pub fn prove(&self, tell: &mut dyn FnMut(&str)) -> Result<Vec<Proof>, LabError> {
        let mut proofs = Vec::new();
        for claim in &Claim::ALL[..4] {
            tell(claim.sentence());
            for family in Family::ALL.into_iter().filter(|family| self.options().speaks(*family)) {
                proofs.extend(self.prove_claim(*claim, family)?);
            }
        }
        Ok(proofs)
    }

    fn prove_claim(&self, claim: Claim, family: Family) -> Result<Vec<Proof>, LabError> {
        let pods: Vec<(&Node, &Pod)> = self.pods().collect();
        let pairs = pods.iter().flat_map(|from| pods.iter().map(move |to| (from.1, to.1)));
        let pairs = pairs.filter(|(from, to)| from.name() != to.name());
        match claim {
            Claim::PodPing => one_by_one(pairs, |(from, to), patience| pod_ping(from, to, family, patience)),
            Claim::PodTcp => one_by_one(pairs, |(from, to), patience| pod_tcp(from, to, family, patience)),
            Claim::NodePing => {
                let pairs = self.nodes().iter().flat_map(|node| pods.iter().map(move |(_, pod)| (node, *pod)));
                one_by_one(pairs, |(node, pod), patience| node_ping(node, pod, family, patience))
            }
            Claim::Masqueraded | Claim::Unmasqueraded => {
                one_by_one(pods.iter(), |(node, pod), patience| self.to_outside(claim, node, pod, family, patience))
            }
        }
    }

    /// Proves the last claim on one node, whose flanneld is started anew without `--ip-masq` for it and again as it was.
    pub fn prove_unmasqueraded(&mut self, node: usize, tell: &mut dyn FnMut(&str)) -> Result<Vec<Proof>, LabError> {
        tell(Claim::Unmasqueraded.sentence());
        let arguments = self.node(node).arguments().to_vec();
        let without: Vec<String> = arguments.iter().filter(|word| *word != "--ip-masq").cloned().collect();
        self.node_mut(node).flanneld.stop()?;
        self.node_mut(node).start_again(&without)?;
        let mut proofs = Vec::new();
        for family in Family::ALL.into_iter().filter(|family| self.options().speaks(*family)) {
            let node = self.node(node);
            proofs.extend(one_by_one(node.pods().iter(), |pod, patience| {
                self.to_outside(Claim::Unmasqueraded, node, pod, family, patience)
            })?);
        }
        self.node_mut(node).flanneld.stop()?;
        self.node_mut(node).start_again(&arguments)?;
        Ok(proofs)
    }

    fn to_outside(
        &self,
        claim: Claim,
        node: &Node,
        pod: &Pod,
        family: Family,
        patience: Duration,
    ) -> Result<Proof, LabError> {
        let expected = if claim == Claim::Masqueraded { node.external_addresses()? } else { pod.addresses() };
        let Some(to) = self.outside_address(family) else { return Ok(missing(claim, family, pod.name(), "outside")) };
        let found = connect(pod.place(), self.outside(), to, patience)?;
        Ok(judge(claim, family, (pod.name(), "outside"), found, expected))
    }
}

/// Proves path after path, with less patience once some have failed.
fn one_by_one<T>(
    paths: impl Iterator<Item = T>,
    prove: impl Fn(T, Duration) -> Result<Proof, LabError>,
) -> Result<Vec<Proof>, LabError> {
    let (mut proofs, mut failed) = (Vec::new(), 0);
    for path in paths {
        let proof = prove(path, if failed < SOME { PATIENCE.0 } else { PATIENCE.1 })?;
        failed += usize::from(proof.outcome.is_err());
        proofs.push(proof);
    }
    Ok(proofs)
}

fn pod_ping(from: &Pod, to: &Pod, family: Family, patience: Duration) -> Result<Proof, LabError> {
    let Some(address) = to.addresses().get(family).copied() else {
        return Ok(missing(Claim::PodPing, family, from.name(), to.name()));
    };
    let found = echo::ping(from.place(), Some(to.place()), address, patience)?;
    let found = found.ok_or_else(|| no_answer(address, patience)).map(|(took, seen)| (seen, took));
    Ok(judge(Claim::PodPing, family, (from.name(), to.name()), found, from.addresses()))
}

fn pod_tcp(from: &Pod, to: &Pod, family: Family, patience: Duration) -> Result<Proof, LabError> {
    let Some(address) = to.addresses().get(family).copied() else {
        return Ok(missing(Claim::PodTcp, family, from.name(), to.name()));
    };
    let found = connect(from.place(), to.place(), address, patience)?;
    Ok(judge(Claim::PodTcp, family, (from.name(), to.name()), found, from.addresses()))
}

fn node_ping(from: &Node, to: &Pod, family: Family, patience: Duration) -> Result<Proof, LabError> {
    let names = (from.place().name(), to.name());
    let Some(address) = to.addresses().get(family).copied() else {
        return Ok(missing(Claim::NodePing, family, names.0, names.1));
    };
    let found = echo::ping(from.place(), None, address, patience)?;
    let found = found.ok_or_else(|| no_answer(address, patience)).map(|(took, _)| (None, took));
    Ok(judge(Claim::NodePing, family, names, found, Dual::default()))
}

fn no_answer(to: IpAddr, patience: Duration) -> String {
    format!("no answer from {to} within {}", time(patience))
}

fn missing(claim: Claim, family: Family, from: &str, to: &str) -> Proof {
    let outcome = Err(format!("{to} has no {family} address"));
    Proof { claim, family, from: from.to_owned(), to: to.to_owned(), seen: None, outcome }
}

/// What a receiver found: the source address it saw, and the time.
type Found = Result<(Option<IpAddr>, Duration), String>;

/// A proof holds if the packet arrived, and with the address expected where one is expected.
fn judge(claim: Claim, family: Family, (from, to): (&str, &str), found: Found, expected: Dual<IpAddr>) -> Proof {
    let seen = found.as_ref().ok().and_then(|(seen, _)| *seen);
    let outcome = found.and_then(|(_, took)| match (expected.get(family).copied(), seen) {
        (None, _) => Ok(took),
        (expected, seen) if expected == seen => Ok(took),
        (Some(expected), Some(seen)) => Err(format!("{to} saw {seen} as the source, not {expected}")),
        (Some(expected), None) => Err(format!("{to} never saw the packet from {expected}")),
    });
    Proof { claim, family, from: from.to_owned(), to: to.to_owned(), seen, outcome }
}

/// Opens a TCP connection and asks the receiver whom it sees.
fn connect(from: &Place, to: &Place, address: IpAddr, patience: Duration) -> Result<Found, LabError> {
    let listen = |at: IpAddr| TcpListener::bind(SocketAddr::new(at, 0));
    let listener = to.inside(|| listen(address))?.doing(|| format!("listen on {}", to.name()))?;
    let target = listener.local_addr().doing(|| format!("listen on {}", to.name()))?;
    let started = Instant::now();
    let opened =
        from.inside(|| TcpStream::connect_timeout(&target, patience).map(|stream| (stream, started.elapsed())))?;
    Ok(opened
        .and_then(|(_stream, took)| accept(&listener, Instant::now() + patience).map(|peer| (Some(peer), took)))
        .map_err(|error| format!("TCP to {target}: {error}")))
}

/// Whose connection the listener was given. The sender's end can be open before the receiver's is: that needs one packet more.
fn accept(listener: &TcpListener, deadline: Instant) -> io::Result<IpAddr> {
    if !echo::wait(listener, deadline)? {
        return Err(io::Error::other("the handshake's last packet never arrived"));
    }
    listener.accept().map(|(_, peer)| peer.ip().to_canonical())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_waited_for_until_the_deadline() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let target = listener.local_addr().unwrap();
        let nobody = accept(&listener, Instant::now() + Duration::from_millis(20)).unwrap_err();
        assert_eq!(nobody.to_string(), "the handshake's last packet never arrived");
        let late = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(50));
            TcpStream::connect(target).unwrap()
        });
        assert_eq!(accept(&listener, Instant::now() + Duration::from_secs(10)).unwrap(), target.ip());
        late.join().unwrap();
    }

    #[test]
    fn a_wrong_source_address_fails_the_proof_in_words() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let expected = Dual { v4: Some(address("10.244.1.2")), v6: None };
        let judged = |seen| {
            let found = Ok((seen, Duration::from_millis(1)));
            judge(Claim::PodTcp, Family::V4, ("pod1-1", "pod2-1"), found, expected).outcome
        };
        assert_eq!(judged(expected.v4), Ok(Duration::from_millis(1)));
        assert_eq!(
            judged(Some(address("192.0.2.11"))),
            Err("pod2-1 saw 192.0.2.11 as the source, not 10.244.1.2".to_owned())
        );
        assert_eq!(judged(None), Err("pod2-1 never saw the packet from 10.244.1.2".to_owned()));
    }
}
