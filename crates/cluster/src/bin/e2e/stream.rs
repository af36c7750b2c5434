//! A stream of packets between two pods, each of which comes back or is counted as lost.

use std::collections::BTreeSet;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use flannel_cluster::Place;

use crate::pods::Pod;

/// The time between two packets of a stream.
const PACE: Duration = Duration::from_millis(10);
/// How long the last ones may be under way.
const LAST: Duration = Duration::from_secs(1);
/// How long is waited for a packet before the time is looked at.
const WAIT: Duration = Duration::from_millis(2);
/// Where packets are sent back.
const PORT: u16 = 7777;

/// Streams that go on until they are ended.
pub(crate) struct Streams {
    end: Arc<AtomicBool>,
    running: Vec<(String, JoinHandle<(u64, u64)>)>,
    // Sends back as long as it is there.
    echoing: Arc<AtomicBool>,
}

impl Streams {
    /// From each pod to each other, in each of their families.
    pub(crate) fn start(pods: &[Pod]) -> Result<Self> {
        let mut streams = Self { end: Arc::default(), running: Vec::new(), echoing: Arc::new(AtomicBool::new(true)) };
        for to in pods {
            for address in to.addresses.iter().map(|address| SocketAddr::new(*address, PORT)) {
                streams.echo(&to.place, address)?;
                pods.iter().filter(|from| from.name != to.name).try_for_each(|from| streams.send(from, to, address))?;
            }
        }
        Ok(streams)
    }

    fn echo(&self, place: &Place, address: SocketAddr) -> Result<()> {
        let (socket, echoing) = (open(place, address)?, Arc::clone(&self.echoing));
        spawn(move || {
            while echoing.load(Ordering::Relaxed) {
                let mut packet = [0; 8];
                if let Ok((_, from)) = socket.recv_from(&mut packet) {
                    // What cannot be sent back is missed by who counts.
                    let _lost = socket.send_to(&packet, from);
                }
            }
        });
        Ok(())
    }

    fn send(&mut self, from: &Pod, to: &Pod, address: SocketAddr) -> Result<()> {
        let own = from.addresses.iter().find(|own| own.is_ipv4() == address.is_ipv4());
        let own = *own.with_context(|| format!("{} cannot reach {address}", from.name))?;
        let socket = open(&from.place, SocketAddr::new(own, 0))?;
        let end = Arc::clone(&self.end);
        let running = spawn(move || count(&socket, address, &end));
        self.running.push((format!("{} to {} at {address}", from.name, to.name), running));
        Ok(())
    }

    /// Ends them; how many packets came back, which has to be all.
    pub(crate) fn end(mut self) -> Result<u64> {
        self.end.store(true, Ordering::Relaxed);
        let mut all = 0;
        for (name, stream) in std::mem::take(&mut self.running) {
            let (sent, came) = stream.join().map_err(|_| anyhow!("{name} panicked"))?;
            ensure!(sent > 0 && sent == came, "{name}: of {sent} packets {} are lost", sent - came);
            all += came;
        }
        Ok(all)
    }
}

impl Drop for Streams {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
        self.echoing.store(false, Ordering::Relaxed);
    }
}

fn open(place: &Place, address: SocketAddr) -> Result<UdpSocket> {
    let socket = place.inside(|| UdpSocket::bind(address))?.with_context(|| address.to_string())?;
    socket.set_read_timeout(Some(WAIT))?;
    Ok(socket)
}

/// Sends until the end; how many were sent and how many came back.
fn count(socket: &UdpSocket, to: SocketAddr, end: &AtomicBool) -> (u64, u64) {
    let (mut sent, mut back) = (0_u64, BTreeSet::new());
    while !end.load(Ordering::Relaxed) {
        let next = Instant::now() + PACE;
        // A packet that the kernel refuses is lost like any other.
        let _lost = socket.send_to(&sent.to_be_bytes(), to);
        sent += 1;
        while Instant::now() < next {
            receive(socket, &mut back);
        }
    }
    let last = Instant::now() + LAST;
    while (back.len() as u64) < sent && Instant::now() < last {
        receive(socket, &mut back);
    }
    (sent, back.len() as u64)
}

fn receive(socket: &UdpSocket, back: &mut BTreeSet<u64>) {
    let mut packet = [0; 8];
    if matches!(socket.recv(&mut packet), Ok(8)) {
        back.insert(u64::from_be_bytes(packet));
    }
}
