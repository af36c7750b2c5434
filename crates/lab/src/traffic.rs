//! Traffic that goes on while something is done to the network, and what became of it.
//!
//! Surface: [`Lab::pinger`] (1,000 pings a second from pod to pod) and [`Lab::flows`] (a new UDP flow each millisecond from a
//! pod to the host outside, which notes the source addresses it sees). Each runs on threads of its own until it is finished.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use flannel_core::addr::Family;

use crate::echo::{EchoSocket, fresh_token, keep_much};
use crate::error::{Doing, LabError};
use crate::lab::{Lab, Pod};
use crate::place::Place;

/// The time between two pings, and between two flows.
const INTERVAL: Duration = Duration::from_millis(1);
/// How long after the last one an answer still counts.
const GRACE: Duration = Duration::from_millis(500);

/// Work that goes on until it is told to stop.
#[derive(Debug)]
struct Ongoing<T> {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<T, LabError>>,
}

impl<T: Send + 'static> Ongoing<T> {
    fn start(work: impl FnOnce(&AtomicBool) -> Result<T, LabError> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        Self { stop, thread: std::thread::spawn(move || work(&told)) }
    }

    fn halt(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    fn finish(self) -> Result<T, LabError> {
        self.halt();
        self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

/// Pings that go on.
#[derive(Debug)]
pub struct Pinger(Ongoing<Pings>);

/// What became of the pings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pings {
    /// How many were sent.
    pub sent: usize,
    /// Those that were not answered: how long after the first each was due.
    pub lost: Vec<Duration>,
}

impl Pinger {
    /// Ends the pings without waiting.
    pub fn halt(&self) {
        self.0.halt();
    }

    /// Ends the pings and waits for the last answers.
    pub fn finish(self) -> Result<Pings, LabError> {
        self.0.finish()
    }
}

/// Flows that go on.
#[derive(Debug)]
pub struct Flows {
    sender: Ongoing<usize>,
    receiver: Ongoing<BTreeMap<IpAddr, usize>>,
}

/// What became of the flows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How many were begun.
    pub sent: usize,
    /// How many the outside host saw, by the source address it saw.
    pub by_source: BTreeMap<IpAddr, usize>,
}

impl Flows {
    /// Begins no more flows, without waiting.
    pub fn halt(&self) {
        self.sender.halt();
    }

    /// Ends the flows and waits for the last to arrive.
    pub fn finish(self) -> Result<Seen, LabError> {
        let sent = self.sender.finish()?;
        Ok(Seen { sent, by_source: self.receiver.finish()? })
    }
}

impl Lab {
    /// Begins to ping one pod from another.
    pub fn pinger(&self, from: &Pod, to: &Pod, family: Family) -> Result<Pinger, LabError> {
        let socket = EchoSocket::open(from.place(), family)?;
        let to = address(to, family)?;
        Ok(Pinger(Ongoing::start(move |stop| ping(&socket, to, stop))))
    }

    /// Begins to open flows from a pod to the host outside.
    pub fn flows(&self, from: &Pod, family: Family) -> Result<Flows, LabError> {
        let outside = self.outside_address(family).ok_or_else(|| no_address("outside", family))?;
        let bind = || UdpSocket::bind(SocketAddr::new(outside, 0));
        let listener = self.outside().inside(bind)?.doing(|| "listen outside".into())?;
        keep_much(&listener).doing(|| "listen outside".into())?;
        let to = listener.local_addr().doing(|| "listen outside".into())?;
        let place = from.place().clone();
        Ok(Flows {
            sender: Ongoing::start(move |stop| send_flows(&place, to, stop)),
            receiver: Ongoing::start(move |stop| receive_flows(&listener, stop)),
        })
    }
}

fn address(pod: &Pod, family: Family) -> Result<IpAddr, LabError> {
    pod.addresses().get(family).copied().ok_or_else(|| no_address(pod.name(), family))
}

fn no_address(name: &str, family: Family) -> LabError {
    LabError::Options(format!("{name} has no {family} address"))
}

fn ping(socket: &EchoSocket, to: IpAddr, stop: &AtomicBool) -> Result<Pings, LabError> {
    let (token, start) = (fresh_token(), Instant::now());
    let mut answered = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        // What cannot be sent is not answered either, and so is counted.
        let _lost = socket.request(to, token, answered.len() as u64);
        answered.push(false);
        note_answers(socket, token, start + INTERVAL * answered.len() as u32, &mut answered)?;
    }
    note_answers(socket, token, Instant::now() + GRACE, &mut answered)?;
    let lost = answered.iter().zip(0..).filter(|(answered, _)| !**answered).map(|(_, count)| INTERVAL * count);
    Ok(Pings { sent: answered.len(), lost: lost.collect() })
}

/// Notes the answers that come in until the deadline.
fn note_answers(socket: &EchoSocket, token: u64, deadline: Instant, answered: &mut [bool]) -> Result<(), LabError> {
    while let Some(echo) = socket.receive(deadline).doing(|| "receive pings".into())? {
        if !echo.request
            && echo.token == token
            && let Some(place) = usize::try_from(echo.count).ok().and_then(|count| answered.get_mut(count))
        {
            *place = true;
        }
    }
    Ok(())
}

/// Each flow is a socket of its own, and so a source port of its own.
fn send_flows(place: &Place, to: SocketAddr, stop: &AtomicBool) -> Result<usize, LabError> {
    let any = SocketAddr::new(Family::of(to.ip()).unspecified(), 0);
    let flow = || UdpSocket::bind(any).and_then(|socket| socket.send_to(b"flow", to));
    place.inside(|| {
        let (mut due, mut sent) = (Instant::now(), 0);
        while !stop.load(Ordering::Relaxed) {
            sent += usize::from(flow().is_ok());
            due += INTERVAL;
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
        }
        sent
    })
}

fn receive_flows(listener: &UdpSocket, stop: &AtomicBool) -> Result<BTreeMap<IpAddr, usize>, LabError> {
    listener.set_read_timeout(Some(GRACE)).doing(|| "listen outside".into())?;
    let mut seen = BTreeMap::new();
    loop {
        match listener.recv_from(&mut [0; 16]) {
            Ok((_, from)) => *seen.entry(from.ip()).or_insert(0) += 1,
            Err(_) if stop.load(Ordering::Relaxed) => return Ok(seen),
            Err(_) => {}
        }
    }
}
