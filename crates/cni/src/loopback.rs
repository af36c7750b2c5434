//! The plugin `loopback`: brings up `lo` in the container.

use flannel_core::addr::{Family, LinkName};
use flannel_kernel::pod_link::{Found, Links};

use crate::protocol::conf::NetConf;
use crate::protocol::environment::{Call, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::result::{CniResult, Interface, IpConfig};
use crate::{Outcome, netns};

/// Runs one verb.
pub(crate) fn call(call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    match call.verb {
        Verb::Add => add(call, conf).map(Outcome::from),
        Verb::Del => del(call).map(Outcome::from),
        Verb::Check => check(call).map(Outcome::from),
        Verb::Status | Verb::Gc | Verb::Version => Ok(Outcome::default()),
    }
}

/// Reads the result of the plugins before, if there is one.
pub(crate) fn read(conf: &NetConf) -> Result<(), Failure> {
    if conf.keys.get("prevResult").is_some_and(|prev| !prev.is_null()) {
        conf.prev_result()?;
    }
    Ok(())
}

fn lo(links: &mut Links) -> Result<Found, Failure> {
    let name: LinkName = "lo".parse().map_err(|_| LoopbackError::Absent)?;
    Ok(links.find(name)?.ok_or(LoopbackError::Absent)?)
}

/// In a chain, what the plugins before have made is the result; alone, `lo` with its addresses.
fn add(call: &Call<'_>, conf: &NetConf) -> Result<CniResult, Failure> {
    let mut links = netns::links(&netns::open(call)?)?;
    let lo = lo(&mut links)?;
    links.set_up(&lo, true, false)?;
    if conf.keys.get("prevResult").is_some_and(|prev| !prev.is_null()) {
        return Ok(conf.prev_result()?);
    }
    let interface = Interface {
        name: lo.link.name.to_string(),
        mac: lo.link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: call.netns.unwrap_or_default().into(),
        ..Interface::default()
    };
    let mut ips = Vec::new();
    for family in Family::ALL {
        let first = links.addresses(&lo, family)?.into_iter().next();
        ips.extend(first.map(|address| IpConfig { interface: Some(0), address, gateway: None }));
    }
    Ok(CniResult { interfaces: vec![interface], ips, ..CniResult::default() })
}

fn del(call: &Call<'_>) -> Result<(), Failure> {
    let Some(netns) = netns::open_if_there(call)? else { return Ok(()) };
    let mut links = netns::links(&netns)?;
    let lo = lo(&mut links)?;
    Ok(links.set_up(&lo, false, false)?)
}

fn check(call: &Call<'_>) -> Result<(), Failure> {
    let lo = lo(&mut netns::links(&netns::open(call)?)?)?;
    if lo.link.is_up() { Ok(()) } else { Err(LoopbackError::Down.into()) }
}

#[derive(Debug, thiserror::Error)]
enum LoopbackError {
    #[error("loopback: the container has no interface lo")]
    Absent,
    #[error("loopback: interface lo in the container is down")]
    Down,
}

impl Explain for LoopbackError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        match self {
            Self::Absent => "every network namespace is born with one: check what CNI_NETNS points to".into(),
            Self::Down => "recreate the container, or set lo up in it".into(),
        }
    }
}
