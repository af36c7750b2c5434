//! A full range: addresses of containers that are gone without a DEL, as after a restart of the machine, are free again.
//!
//! Surface: [`reclaim`]. A container is taken for gone only on evidence: for some minutes its record is there, and none of its addresses is
//! at the other end of any veth pair of this node. One pair that leads to no address at all, as where a virtual machine has taken it over,
//! spoils the evidence: then nothing is freed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::{Duration, SystemTime};

use flannel_kernel::pod_link::Links;

use super::store::{Store, StoreError};

/// How old a record is at least. A younger one may be of an ADD that has not made its link yet.
const AGE: Duration = Duration::from_mins(5);

/// Frees the addresses of containers that are gone. Tells whether there were any.
pub(super) fn reclaim(store: &mut Store) -> Result<bool, StoreError> {
    let Some(live) = live_addresses() else { return Ok(false) };
    let taken = store.taken()?;
    let mut owners = taken.by_owner();
    owners.retain(|_, addresses| !addresses.iter().any(|address| live.contains(address)));
    let gone: Vec<_> = owners.into_values().flatten().filter(|address| is_old(store, *address)).collect();
    store.free(&gone)?;
    Ok(!gone.is_empty())
}

/// What is at the other ends of this node's pairs; none when that does not say who lives.
fn live_addresses() -> Option<BTreeSet<IpAddr>> {
    let pairs = Links::here().and_then(|mut links| links.pairs()).ok()?;
    let known = pairs.iter().all(|pair| !pair.addresses.is_empty());
    known.then(|| pairs.into_iter().flat_map(|pair| pair.addresses).collect())
}

fn is_old(store: &Store, address: IpAddr) -> bool {
    let written = store.written(address);
    written.and_then(|written| SystemTime::now().duration_since(written).ok()).is_some_and(|age| age >= AGE)
}
