//! How long the kernel executor takes for many IPv4 peers, in a network namespace of its own:
//!
//! ```text
//! cargo run --release -p flannel-kernel --example peers -- 10000
//! ```
//!
//! Prints the time from the wanted state to the last acknowledgement, and the CPU time of one changed peer from diff to
//! the state read back.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use flannel_core::addr::{LinkName, Mac, Mtu, Vni};
use flannel_core::diff::{Owner, Want, Wanted, diff};
use flannel_core::state::{Key, Link, LinkKind, Route, Scope, State, Value, Vxlan};
use flannel_kernel::executor::Executor;
use flannel_kernel::linux::KernelExecutor;
use rustix::thread::{UnshareFlags, unshare_unsafe};
use rustix::time::{ClockId, clock_gettime};

/// How often the change of one peer is measured.
const ROUNDS: u32 = 20;

fn main() -> Result<(), Box<dyn Error>> {
    let count = std::env::args().nth(1).map_or(Ok(10_000), |count| count.parse())?;
    // SAFETY: this process has one thread, which shares nothing with another.
    unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
    for line in ["link add ext0 type veth peer name far0", "link set ext0 up", "addr add 192.0.2.1/24 dev ext0"] {
        Command::new("ip").args(line.split(' ')).status()?;
    }
    let scope = Scope { networks: vec!["10.0.0.0/8".parse()?], externals: vec!["ext0".parse()?], ..Scope::default() };
    let mut kernel = KernelExecutor::open(None)?;
    let mut have = kernel.observe(&scope)?;
    let want = network(count)?;
    let (wall, cpu) = pass(&mut kernel, &scope, &want, &mut have)?;
    println!("{count} peers from nothing: {wall:.1?}, of which CPU {cpu:.1?}");
    let begun = Instant::now();
    let seen = kernel.observe(&scope)?;
    println!("read back whole: {:.1?}, the same: {}", begun.elapsed(), seen == have);
    change_one(&mut kernel, &scope, want, &mut have)?;
    Ok(())
}

/// Measures the change of one peer's MAC, the median of many.
fn change_one(
    kernel: &mut KernelExecutor,
    scope: &Scope,
    mut want: Want,
    have: &mut State,
) -> Result<(), Box<dyn Error>> {
    let mut times = Vec::new();
    for round in 0..ROUNDS {
        let old = peer(round % 2 + 2 * round, 0)?;
        let new = peer(round % 2 + 2 * round, 1)?;
        for (key, _) in &old {
            want.remove(key);
        }
        want.extend(new.into_iter().map(owned));
        times.push(pass(kernel, scope, &want, have)?);
    }
    times.sort_by_key(|(_, cpu)| *cpu);
    let (wall, cpu) = times[times.len() / 2];
    println!("one changed peer: CPU {cpu:.2?} (wall {wall:.2?}), median of {ROUNDS}");
    Ok(())
}

/// One pass from the wanted state to the state told by the kernel: wall and CPU time.
fn pass(
    kernel: &mut KernelExecutor,
    scope: &Scope,
    want: &Want,
    have: &mut State,
) -> Result<(Duration, Duration), Box<dyn Error>> {
    let (begun, cpu) = (Instant::now(), cpu_time());
    let ops = diff(want, have);
    let planned = begun.elapsed();
    if let Some(error) = kernel.apply(&ops).into_iter().next() {
        return Err(error.into());
    }
    let acknowledged = begun.elapsed();
    kernel.notices(scope, have)?;
    let cpu = cpu_time().saturating_sub(cpu);
    if ops.len() > 100 {
        let told = begun.elapsed();
        println!("{} ops: diff {planned:.1?}, last ACK {acknowledged:.1?}, notices taken in {told:.1?}", ops.len());
    }
    let left = diff(want, have).len();
    if left > 0 {
        return Err(format!("{left} ops are left over").into());
    }
    Ok((acknowledged, cpu))
}

/// User and system time of this thread.
fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), now.tv_nsec as u32)
}

fn network(count: u32) -> Result<Want, Box<dyn Error>> {
    let dev = device()?;
    let kind = LinkKind::Vxlan(Vxlan {
        vni: Vni::new(1).ok_or("VNI")?,
        port: 8472,
        local: Some("192.0.2.1".parse()?),
        lower: Some("ext0".parse()?),
        learning: false,
        gbp: false,
        checksums: true,
    });
    let link = Link { up: true, mtu: Mtu(1450), mac: Mac::local([7; 6]), accept_ra: false, kind };
    let mut want = Want::new();
    want.extend([
        owned((Key::Link(dev), Value::Link(Box::new(link)))),
        owned((Key::Address(dev, "10.0.0.0/32".parse()?), Value::Address)),
    ]);
    for n in 0..count {
        want.extend(peer(n, 0)?.into_iter().map(owned));
    }
    Ok(want)
}

fn device() -> Result<LinkName, Box<dyn Error>> {
    Ok("flannel.1".parse()?)
}

/// What a peer needs: neighbour, forwarding entry, route.
fn peer(n: u32, version: u8) -> Result<[(Key, Value); 3], Box<dyn Error>> {
    let dev = device()?;
    let subnet = Ipv4Addr::from(0x0a01_0000 + (n << 8));
    let [_, a, b, c] = n.to_be_bytes();
    let mac = Mac([2, version, a, b, c, 1]);
    let vtep = Ipv4Addr::from(0xc612_0000 + n).into();
    let route = Route::Unicast { dev, gateway: Some(subnet.into()), onlink: true };
    Ok([
        (Key::Neigh(dev, subnet.into()), Value::Neigh(mac)),
        (Key::Fdb(dev, mac), Value::Fdb(vtep)),
        (Route::key(ipnet::Ipv4Net::new(subnet, 24)?.into()), Value::Route(route)),
    ])
}

fn owned((key, value): (Key, Value)) -> (Key, Wanted) {
    (key, Wanted { value, owner: Owner::Node })
}
