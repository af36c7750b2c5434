//! All keys of a kind, read at one revision: in one answer, or in pages where one would be too large. And lease records read.
//!
//! The [`Listing`] of records that a watch begins with serves who acquires a lease at the same time too (see [`Shared`]).

use flannel_core::lease::Record;
use flannel_core::record::{self, SubnetKey, sequenced};

use super::client::Client;
use super::keys::{Keys, end_of, name_below};
use super::rpc::{KeyValue, RangeRequest, ResponseHeader};
use super::trouble::{Kind, Trouble};

/// Records that are asked for at once: with the sizes that records have, a few MiB.
const PAGE: i64 = 10_000;

/// The records there were at the header's revision.
#[derive(Debug)]
pub(super) struct Listing {
    pub(super) header: ResponseHeader,
    pub(super) found: Vec<Found>,
}

/// A record as it was listed.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) kv: KeyValue,
    pub(super) record: Record,
}

/// The list that the watch begins with, for who decides on a lease.
#[derive(Debug, Default)]
pub(super) enum Shared {
    /// There is none, and none to be waited for.
    #[default]
    Absent,
    /// It is being made.
    Coming,
    /// Nobody has used it yet.
    Here(Listing),
}

/// Lists all records there are, about so many.
pub(super) async fn list_records(client: &Client, keys: &Keys, about: usize) -> Result<Listing, Trouble> {
    let mut found = Vec::with_capacity(about);
    let take = |kv: KeyValue| found.push(Found { record: read(keys, &kv), kv });
    let header = list(client, keys.subnets(), take).await?;
    Ok(Listing { header, found })
}

/// Hands out each key that begins with `prefix`, which ends in `/`; the answer's header has the revision at which all of
/// them were.
pub(super) async fn list(
    client: &Client,
    prefix: String,
    mut take: impl FnMut(KeyValue),
) -> Result<ResponseHeader, Trouble> {
    let end = end_of(&prefix);
    let action = format!("list {prefix}");
    let mut request =
        RangeRequest { key: prefix.into(), range_end: end.into(), limit: PAGE, ..RangeRequest::default() };
    let mut first = None;
    loop {
        let page = match client.range(&action, request.clone()).await {
            Err(trouble) if trouble.kind == Kind::TooLarge && request.limit > 1 => {
                request.limit /= 2;
                continue;
            }
            page => page?,
        };
        let header = *first.get_or_insert(page.header.unwrap_or_default());
        let next = page.kvs.last().filter(|_| page.more).map(|last| [&last.key, [0].as_slice()].concat());
        page.kvs.into_iter().for_each(&mut take);
        let Some(next) = next else { return Ok(header) };
        (request.key, request.revision) = (next.into(), header.revision);
    }
}

/// A lease record as the daemon takes it in. Its place in the order of leases is the revision that made it.
pub(super) fn read(keys: &Keys, kv: &KeyValue) -> Record {
    let key = name_below(&keys.subnets(), &kv.key);
    let subnet = key.as_str().parse().map(|SubnetKey(subnet)| subnet).unwrap_or_default();
    record::read(key, &kv.value, sequenced(&subnet, kv.create_revision.unsigned_abs()))
}
