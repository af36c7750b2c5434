//! All Nodes at once: a streamed list where the server has it, else pages.
//!
//! Items are taken one by one as they come. A streamed list (`sendInitialEvents`, Kubernetes 1.34, or where its feature gate WatchList
//! is on) costs the server the least: it is answered from its cache, and never made as a whole.

use std::sync::Arc;

use super::ask::{Ask, NODES, Verb, encoded};
use super::client::{Client, Form};
use super::inflow::{Inflow, Item};
use super::trouble::Trouble;
use super::wire::{ListMeta, Malformed, Meta, Object, Status, WatchEvent};

/// Objects in a page.
const PAGE: usize = 500;
/// How long a server lets a watch run, in seconds: up to twice as long. That is what the API's own clients ask for.
const LONGEST_WATCH: u64 = 300;

/// A streamed list, which goes on as a watch.
pub(super) fn streamed() -> Ask {
    Ask::of(Verb::Watch, NODES).with(format!(
        "watch=true&allowWatchBookmarks=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&timeoutSeconds={}",
        LONGEST_WATCH * 2
    ))
}

/// A watch of what comes after a version; of one Node alone, where it is given.
pub(super) fn watch(version: &str, name: Option<&str>, share: u64) -> Ask {
    let only =
        name.map(|name| format!("&fieldSelector={}", encoded(&format!("metadata.name={name}")))).unwrap_or_default();
    // Not all at the same time: each daemon's ends at another.
    let timeout = LONGEST_WATCH + share % LONGEST_WATCH;
    Ask::of(Verb::Watch, NODES).with(format!(
        "watch=true&allowWatchBookmarks=true&resourceVersion={}&timeoutSeconds={timeout}{only}",
        encoded(version)
    ))
}

/// What one look at a list or watch found.
#[derive(Debug)]
pub(super) enum Found<'a> {
    /// A Node that is there, new or changed: its message.
    Node(&'a [u8]),
    /// A Node that is gone.
    Gone(&'a [u8]),
    /// One that is too long to be read: its length, and its name.
    TooLong(usize, Option<String>),
    /// Nothing was missed up to a version; and whether the list ends here.
    Mark(&'a [u8], bool),
    /// The watch ended.
    End,
}

/// What the next event of a watch says.
pub(super) async fn next(inflow: &mut Inflow) -> Result<Found<'_>, Trouble> {
    let origin = Arc::clone(&inflow.origin);
    let frame = match inflow.event().await? {
        None => return Ok(Found::End),
        Some(Item::TooLong(length, name)) => return Ok(Found::TooLong(length, name)),
        Some(Item::Whole(frame)) => frame,
    };
    let read = || -> Result<_, Malformed> {
        let WatchEvent { event, object } = WatchEvent::read(frame)?;
        Ok((event, Object::read(object)?.message))
    };
    let (event, message) = read().map_err(|cause| origin.malformed(&cause))?;
    match event {
        "ADDED" | "MODIFIED" => Ok(Found::Node(message)),
        "DELETED" => Ok(Found::Gone(message)),
        "BOOKMARK" => {
            let ends = Meta::of(message).map(|meta| meta.ends_list()).map_err(|cause| origin.malformed(&cause))?;
            Ok(Found::Mark(message, ends))
        }
        "ERROR" => {
            let status = Status::read(message).map_err(|cause| origin.malformed(&cause))?;
            Err(Trouble::of_status(&origin.ask, &origin.link.server, &status, None))
        }
        _ => Err(origin.malformed(&Malformed("an event has no known type"))),
    }
}

/// Takes each Node of a list in pages, and answers with the version that it is of.
pub(super) async fn pages(
    client: &Client,
    form: Form,
    mut take: impl FnMut(Found<'_>) -> Result<(), Malformed>,
) -> Result<String, Trouble> {
    let mut meta = ListMeta::default();
    loop {
        let next = if meta.next.is_empty() { String::new() } else { format!("&continue={}", encoded(&meta.next)) };
        let ask = Ask::of(Verb::List, NODES).with(format!("limit={PAGE}{next}"));
        let mut inflow = client.stream(&ask, form).await?;
        meta.next.clear();
        inflow.open_list().await?;
        loop {
            let taken = match inflow.item(&mut meta).await? {
                None => break,
                Some(Item::Whole(node)) => take(Found::Node(node)),
                Some(Item::TooLong(length, name)) => take(Found::TooLong(length, name)),
            };
            taken.map_err(|cause| inflow.origin.malformed(&cause))?;
        }
        if meta.next.is_empty() {
            return Ok(meta.version);
        }
    }
}

/// Takes each Node of a streamed list, and answers with the version that it is of and the watch that it goes on as.
pub(super) async fn stream(
    client: &Client,
    form: Form,
    mut take: impl FnMut(Found<'_>) -> Result<(), Malformed>,
) -> Result<(String, Inflow), Trouble> {
    let mut inflow = client.stream(&streamed(), form).await?;
    let origin = Arc::clone(&inflow.origin);
    let malformed = |cause: Malformed| origin.malformed(&cause);
    loop {
        match next(&mut inflow).await? {
            Found::Mark(bookmark, true) => {
                let version = Meta::of(bookmark).map_err(malformed)?.version.to_owned();
                return Ok((version, inflow));
            }
            Found::Mark(_, false) => {}
            Found::End => return Err(malformed(Malformed("the list ended too soon"))),
            found => take(found).map_err(malformed)?,
        }
    }
}
