//! An answer that comes bit by bit, and is never held whole: the items of a list, the events of a watch.
//!
//! Whatever a server sends, no more is held than one item; what is longer than an item can be is passed over, and named.

use std::sync::Arc;

use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::ask::Ask;
use super::client::Link;
use super::trouble::Trouble;
use super::wire::{ListMeta, Malformed, name_in_cut_event, name_in_cut_object, varint};
use crate::connection::causes;

/// The longest item that is read, in bytes. The API takes objects of up to 3 MiB, and etcd by default of 1.5.
const LONGEST: usize = 4 << 20;
/// How much is kept of what is longer, so that it can be named.
const KEPT: usize = 16 * 1024;
/// More room than this is given back when it is not needed any more, in bytes.
const ROOM: usize = 64 * 1024;

/// The rest of an answer.
#[derive(Debug)]
pub(super) struct Inflow {
    pub(super) origin: Arc<Origin>,
    body: Incoming,
    /// What came and was not taken, from `start`.
    held: Vec<u8>,
    start: usize,
    /// What is being passed over.
    passing: Option<Passing>,
}

/// Where an answer comes from, and to what it is one.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) ask: Ask,
    pub(super) link: Link,
}

impl Origin {
    /// Says that what came is not what it should be.
    pub(super) fn malformed(&self, cause: &Malformed) -> Trouble {
        Trouble::malformed(&self.ask, &self.link.server, cause)
    }
}

/// Something too long, of which so much is still to come.
#[derive(Debug)]
struct Passing {
    left: usize,
    length: usize,
    name: Option<String>,
}

/// A part of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Item<'a> {
    /// As it came.
    Whole(&'a [u8]),
    /// It is so long, and was passed over: its name, if that could be found.
    TooLong(usize, Option<String>),
}

impl Inflow {
    pub(super) fn new(ask: Ask, link: Link, body: Incoming) -> Self {
        Self { origin: Arc::new(Origin { ask, link }), body, held: Vec::new(), start: 0, passing: None }
    }

    fn held(&self) -> &[u8] {
        &self.held[self.start..]
    }

    /// Waits for more; false if there is none.
    async fn more(&mut self) -> Result<bool, Trouble> {
        loop {
            let Some(frame) = self.body.frame().await else { return Ok(false) };
            let frame = frame.map_err(|error| self.origin.link.trouble(&self.origin.ask, &causes(&error)))?;
            let Ok(bytes) = frame.into_data() else { continue };
            if bytes.is_empty() {
                continue;
            }
            self.held.drain(..self.start);
            self.start = 0;
            if self.held.is_empty() && self.held.capacity() > ROOM {
                self.held = Vec::new();
            }
            self.held.extend_from_slice(&bytes);
            return Ok(true);
        }
    }

    /// Waits until so much is held; false if the answer ended just here.
    async fn fill(&mut self, length: usize) -> Result<bool, Trouble> {
        while self.held().len() < length {
            if !self.more().await? {
                return if self.held().is_empty() { Ok(false) } else { Err(self.malformed("it ends too soon")) };
            }
        }
        Ok(true)
    }

    /// Passes over what comes next.
    async fn skip(&mut self, length: usize) -> Result<(), Trouble> {
        self.passing = Some(Passing { left: length, length, name: None });
        self.pass().await.map(drop)
    }

    /// Goes on to pass over what was begun.
    async fn pass(&mut self) -> Result<Option<Passing>, Trouble> {
        while let Some(passing) = &mut self.passing {
            let step = passing.left.min(self.held.len() - self.start);
            self.start += step;
            passing.left -= step;
            if passing.left == 0 {
                break;
            }
            if !self.more().await? {
                return Err(self.malformed("it ends too soon"));
            }
        }
        Ok(self.passing.take())
    }

    /// Passes over what is too long, `at` bytes from here.
    async fn pass_over(
        &mut self,
        at: usize,
        length: usize,
        name: fn(&[u8]) -> Option<&str>,
    ) -> Result<Option<Passing>, Trouble> {
        self.fill(at + KEPT).await?;
        let name = self.held().get(at..at + KEPT).and_then(name).map(str::to_owned);
        self.passing = Some(Passing { left: at + length, length, name });
        self.pass().await
    }

    /// All there is, but no more than so much.
    pub(super) async fn all(&mut self, most: usize) -> Result<Vec<u8>, Trouble> {
        while self.more().await? {
            if self.held().len() > most {
                return Err(self.malformed("it is longer than an object can be"));
            }
        }
        let start = std::mem::take(&mut self.start);
        let mut all = std::mem::take(&mut self.held);
        all.drain(..start);
        Ok(all)
    }

    /// The next event of a watch; none at its end. Dropping the future loses nothing.
    pub(super) async fn event(&mut self) -> Result<Option<Item<'_>>, Trouble> {
        if let Some(Passing { length, name, .. }) = self.pass().await? {
            return Ok(Some(Item::TooLong(length, name)));
        }
        if !self.fill(4).await? {
            return Ok(None);
        }
        let length = self.held().first_chunk().map_or(0, |length| u32::from_be_bytes(*length) as usize);
        if length > LONGEST {
            let passed = self.pass_over(4, length, name_in_cut_event).await?;
            return Ok(passed.map(|Passing { length, name, .. }| Item::TooLong(length, name)));
        }
        if !self.fill(4 + length).await? {
            return Err(self.malformed("it ends too soon"));
        }
        Ok(Some(Item::Whole(self.take(4, length))))
    }

    /// Takes what lies `at` bytes from here, which is held.
    fn take(&mut self, at: usize, length: usize) -> &[u8] {
        let begin = self.start + at;
        self.start = begin + length;
        &self.held[begin..self.start]
    }

    /// Goes to the beginning of the list that the answer is, into its envelope.
    pub(super) async fn open_list(&mut self) -> Result<(), Trouble> {
        if !self.fill(4).await? || self.held()[..4] != *b"k8s\0" {
            return Err(self.malformed("a list does not begin with k8s"));
        }
        self.skip(4).await?;
        loop {
            match self.field().await? {
                Some((2, _)) => return Ok(()),
                Some((_, length)) => self.skip(length).await?,
                None => return Err(self.malformed("a list is missing")),
            }
        }
    }

    /// The next item of a list; none at its end. What comes before the items is taken into `meta`.
    pub(super) async fn item(&mut self, meta: &mut ListMeta) -> Result<Option<Item<'_>>, Trouble> {
        loop {
            let Some((number, length)) = self.field().await? else { return Ok(None) };
            match number {
                2 if length > LONGEST => {
                    let passed = self.pass_over(0, length, name_in_cut_object).await?;
                    return Ok(passed.map(|Passing { length, name, .. }| Item::TooLong(length, name)));
                }
                2 => {
                    self.fill_all(length).await?;
                    return Ok(Some(Item::Whole(self.take(0, length))));
                }
                1 if length <= LONGEST => {
                    self.fill_all(length).await?;
                    let read = ListMeta::read(self.take(0, length));
                    *meta = read.map_err(|cause| self.origin.malformed(&cause))?;
                }
                // What follows the list in its envelope has other numbers.
                _ => self.skip(length).await?,
            }
        }
    }

    /// Waits until so much is held.
    async fn fill_all(&mut self, length: usize) -> Result<(), Trouble> {
        if self.fill(length).await? { Ok(()) } else { Err(self.malformed("it ends too soon")) }
    }

    /// The number of the next field and the length of what it holds; none at the end. Fields without a length are passed over.
    async fn field(&mut self) -> Result<Option<(u32, usize)>, Trouble> {
        loop {
            let Some(key) = self.varint().await? else { return Ok(None) };
            let end = || Malformed("a message ends too soon");
            match key & 7 {
                0 => drop(self.varint().await?.ok_or_else(|| self.origin.malformed(&end()))?),
                2 => {
                    let length = self.varint().await?.ok_or_else(|| self.origin.malformed(&end()))?;
                    let bad = |_| self.malformed("a length is too long");
                    return Ok(Some((u32::try_from(key >> 3).map_err(bad)?, usize::try_from(length).map_err(bad)?)));
                }
                _ => return Err(self.malformed("a field has no type")),
            }
        }
    }

    async fn varint(&mut self) -> Result<Option<u64>, Trouble> {
        loop {
            match varint(self.held()).map_err(|cause| self.origin.malformed(&cause))? {
                Some((number, length)) => {
                    self.start += length;
                    return Ok(Some(number));
                }
                None if self.more().await? => {}
                None if self.held().is_empty() => return Ok(None),
                None => return Err(self.malformed("it ends too soon")),
            }
        }
    }

    fn malformed(&self, why: &'static str) -> Trouble {
        self.origin.malformed(&Malformed(why))
    }
}
