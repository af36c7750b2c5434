//! The plugin `host-local`: addresses from ranges in the configuration, each owned by one container, remembered in files.
//!
//! Surface: [`call`]. Rooms: [`conf`] (the keys), [`range`]
//! (arithmetic), [`mod@reclaim`] (what is free again when a range is full), [`store`] (the files, interchangeable with the Go plugin's). What is written down is decided under one
//! lock for all range sets, so an ADD has all of its addresses or none.

pub mod conf;
pub mod range;
mod reclaim;
pub mod store;

use std::net::IpAddr;

use crate::protocol::attachments::Attachments;
use crate::protocol::conf::NetConf;
use crate::protocol::environment::{Call, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::result::{CniResult, IpConfig};
use crate::{Afterwards, Outcome};

use conf::IpamConf;
use range::RangeSet;
use store::{Owner, Store, StoreError, Taken, Unsearched};

/// Runs one verb.
pub(crate) fn call(call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    match call.verb {
        Verb::Add => add(call, &IpamConf::read(conf, call)?).map(Outcome::from),
        Verb::Del => del(call, conf).map(|left| Afterwards::from(left).into()),
        Verb::Check => check(call, &IpamConf::read(conf, call)?).map(Outcome::from),
        Verb::Status => IpamConf::read(conf, call).map(|_| Outcome::default()),
        Verb::Gc => gc(conf).map(Outcome::from),
        Verb::Version => Ok(Outcome::default()),
    }
}

/// Reads the keys.
pub(crate) fn read(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    IpamConf::read(conf, call).map(drop)
}

fn add(call: &Call<'_>, conf: &IpamConf) -> Result<CniResult, Failure> {
    let ifname = call.ifname()?;
    let owner = Owner { container_id: call.container_id, ifname: ifname.as_str() };
    let dns = conf.dns()?;
    let mut store = Store::create(&conf.data_dir, &conf.network).map_err(IpamError::from)?;
    let ips = allocate(&mut store, conf, owner, call.is_new)?;
    Ok(CniResult { ips, routes: conf.routes.clone(), dns, ..CniResult::default() })
}

/// Picks an address of each range set, then writes all of them down; those written are taken back when one fails.
///
/// For a new interface the names of the records suffice. Their content says who has which address, and which are nobody's: it is
/// read when that matters, for a node has hundreds.
fn allocate(store: &mut Store, conf: &IpamConf, owner: Owner<'_>, is_new: bool) -> Result<Vec<IpConfig>, IpamError> {
    let by_name = if is_new { pick(store, conf, owner, &store.names()?).ok() } else { None };
    let picked = match by_name {
        Some(picked) => picked,
        None => pick_by_owner(store, conf, owner, is_new)?,
    };
    store.reserve(&picked.iter().map(|ip| ip.address.addr()).collect::<Vec<_>>(), owner)?;
    Ok(picked)
}

/// Knowing whose the addresses are; where a range is full, without those of containers that are gone. The links of a node say who is
/// only for a plugin that makes such links.
fn pick_by_owner(
    store: &mut Store,
    conf: &IpamConf,
    owner: Owner<'_>,
    is_new: bool,
) -> Result<Vec<IpConfig>, IpamError> {
    match pick(store, conf, owner, &store.taken()?) {
        Err(IpamError::Full { .. }) if is_new && reclaim::reclaim(store)? => pick(store, conf, owner, &store.taken()?),
        picked => picked,
    }
}

/// An address of each range set that is not taken.
fn pick(store: &Store, conf: &IpamConf, owner: Owner<'_>, taken: &Taken) -> Result<Vec<IpConfig>, IpamError> {
    let mut requested = conf.requested.clone();
    let mut picked = Vec::with_capacity(conf.ranges.len());
    for (index, set) in conf.ranges.iter().enumerate() {
        if let Some(address) = taken.of(owner).find(|address| set.contains(*address)) {
            return Err(IpamError::Duplicate { address, container: owner.container_id.into() });
        }
        let wish = requested.iter().position(|wish| set.contains(*wish)).map(|at| requested.remove(at));
        let ip = match wish {
            Some(wish) => set.requested(wish, taken.holder(wish))?,
            None => set
                .next_free(store.last_reserved(index), taken.len(), |address| !taken.holds(address))
                .ok_or_else(|| full(set, store))?,
        };
        picked.push(ip);
    }
    if requested.is_empty() { Ok(picked) } else { Err(IpamError::NotInAnyRange(requested)) }
}

fn full(set: &RangeSet, store: &Store) -> IpamError {
    IpamError::Full { set: set.to_string(), dir: store.dir().display().to_string() }
}

/// Frees by container and interface. Of the configuration only the network's name and the folder matter, so that ranges
/// that have become wrong do not keep an address taken.
///
/// The addresses that the interface was seen to have are freed at once, and with what else it may hold the runtime need not wait.
fn del(call: &Call<'_>, conf: &NetConf) -> Result<Option<Unsearched>, Failure> {
    let ifname = call.ifname()?;
    let owner = Owner { container_id: call.container_id, ifname: ifname.as_str() };
    let store = Store::open(&conf::data_dir(conf)?, &conf.name).map_err(IpamError::from)?;
    let Some(mut store) = store else { return Ok(None) };
    if store.release_known(owner, &call.had).map_err(IpamError::from)? {
        return Ok(Some(store.unsearched(owner)));
    }
    store.release(owner).map_err(IpamError::from)?;
    Ok(None)
}

fn check(call: &Call<'_>, conf: &IpamConf) -> Result<(), Failure> {
    let ifname = call.ifname()?;
    let owner = Owner { container_id: call.container_id, ifname: ifname.as_str() };
    let taken = match Store::open(&conf.data_dir, &conf.network).map_err(IpamError::from)? {
        Some(store) => store.taken().map_err(IpamError::from)?,
        None => Taken::default(),
    };
    if taken.of(owner).next().is_some() {
        return Ok(());
    }
    Err(IpamError::NotFound { container: call.container_id.into(), dir: conf.data_dir.join(&conf.network) }.into())
}

/// The addresses of containers that a runtime no longer knows.
pub(crate) fn stale(conf: &NetConf, valid: &Attachments) -> Result<Taken, Failure> {
    let store = Store::open(&conf::data_dir(conf)?, &conf.name).map_err(IpamError::from)?;
    let taken = store.map_or_else(|| Ok(Taken::default()), |store| store.taken()).map_err(IpamError::from)?;
    Ok(taken.where_owner(|id, ifname| !is_known(valid, id, ifname)))
}

/// Frees them.
fn gc(conf: &NetConf) -> Result<(), Failure> {
    let valid = Attachments::read(conf)?;
    if let Some(mut store) = Store::open(&conf::data_dir(conf)?, &conf.name).map_err(IpamError::from)? {
        let freed = store.release_where(|id, ifname| !is_known(&valid, id, ifname));
        freed.map_err(IpamError::from)?;
    }
    Ok(())
}

fn is_known(valid: &Attachments, id: &str, ifname: Option<&str>) -> bool {
    ifname.map_or_else(|| valid.has_container(id), |ifname| valid.has(id, ifname))
}

/// An address cannot be given, freed or verified.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    /// The container has one on that interface already.
    #[error("host-local: {address} has been allocated to {container}, duplicate allocation is not allowed")]
    Duplicate {
        /// What it has.
        address: IpAddr,
        /// The container.
        container: String,
    },
    /// No address left.
    #[error("host-local: no IP addresses available in range set: {set}")]
    Full {
        /// The ranges.
        set: String,
        /// Where the owners are written down.
        dir: String,
    },
    /// A requested address has an owner.
    #[error("host-local: requested IP address {address} is not available in range set {set}{}", held(holder.as_deref()))]
    Taken {
        /// What was asked for.
        address: IpAddr,
        /// The ranges.
        set: String,
        /// Who has it; none when it is no container's, as the last address of an IPv4 subnet.
        holder: Option<String>,
    },
    /// A requested address is the gateway's.
    #[error("host-local: requested IP address {0} is the subnet's gateway")]
    Gateway(IpAddr),
    /// Requested addresses that no range set holds.
    #[error("host-local: failed to allocate all requested IPs: {} not in any range set", list(.0))]
    NotInAnyRange(Vec<IpAddr>),
    /// CHECK finds no address of the container's.
    #[error("host-local: failed to find an address of container {container} in {}", dir.display())]
    NotFound {
        /// The container.
        container: String,
        /// Where it should be written down.
        dir: std::path::PathBuf,
    },
    /// The files.
    #[error(transparent)]
    Store(#[from] StoreError),
}

fn held(holder: Option<&str>) -> String {
    holder.map(|holder| format!(": container {holder} has it")).unwrap_or_default()
}

fn list(addresses: &[IpAddr]) -> String {
    addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

impl Explain for IpamError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        match self {
            Self::Duplicate { .. } => "call DEL for the container before it is added again".into(),
            Self::Full { dir, .. } => {
                format!(
                    "each file in {dir} is an address and names its container: delete those whose container is gone, or use a larger subnet"
                )
            }
            Self::Taken { .. } => "ask for another address, or none".into(),
            Self::Gateway(_) | Self::NotInAnyRange(_) => {
                "ask for an address inside `ipam.ranges` of the network configuration, and not a gateway".into()
            }
            Self::NotFound { .. } => "the address may be given to another container now: recreate this one".into(),
            Self::Store(error) => error.hint(),
        }
    }
}

/// In a folder of any content, an address is given that nobody has, and freed again; other records stay as they are.
#[cfg(any(test, feature = "laws"))]
pub(crate) fn law(call: &Call<'_>, data_dir: &std::path::Path, network: &str) {
    let keys = serde_json::json!({"cniVersion": "1.0.0", "name": network, "ipam": {"dataDir": data_dir,
        "ranges": [[{"subnet": "10.1.0.0/29"}, {"subnet": "10.2.0.0/30"}], [{"subnet": "fd00::/125"}]]}});
    let conf = IpamConf::read(&NetConf::from_value(keys).unwrap(), call).unwrap();
    let owner = Owner { container_id: call.container_id, ifname: "eth0" };
    let mut store = Store::create(data_dir, network).unwrap();
    let before = store.taken().unwrap();
    let others = |taken: &Taken| -> Vec<_> {
        let mut of: Vec<_> = taken.by_owner().into_iter().map(|(id, list)| (id.to_owned(), list)).collect();
        of.retain_mut(|(id, list)| {
            list.sort();
            id != &format!("{}\r\neth0", owner.container_id) && id != owner.container_id
        });
        of
    };
    for is_new in [false, true] {
        if is_new && pick(&store, &conf, owner, &before).is_err() {
            continue;
        }
        let Ok(ips) = allocate(&mut store, &conf, owner, is_new) else { continue };
        let after = store.taken().unwrap();
        for (ip, set) in ips.iter().zip(&conf.ranges) {
            let address = ip.address.addr();
            assert!(set.contains(address) && !before.holds(address) && Some(address) != ip.gateway);
            assert_eq!(after.holder(address).unwrap(), "c1 (eth0)");
        }
        store.release(owner).unwrap();
        assert_eq!(others(&store.taken().unwrap()), others(&before));
    }
    store.release(owner).unwrap();
    store.release(owner).unwrap();
    let left = store.taken().unwrap();
    assert_eq!((left.of(owner).count(), others(&left)), (0, others(&before)));
}
