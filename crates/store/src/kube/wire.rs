//! What the Kubernetes API says in protobuf, read where it lies.
//!
//! The API's objects are protobuf messages (`k8s.io/api/core/v1/generated.proto`, `…/apimachinery/pkg/apis/meta/v1/…`) in an envelope:
//! the magic `k8s\0`, then `runtime.Unknown`. A daemon needs a few fields of each, and sees hundreds of Nodes a second of which none
//! of these fields changed: so nothing is copied here, and what is not needed is passed over. What does not have the form of a
//! message is [`Malformed`], never a guess.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use flannel_core::addr::Dual;
use flannel_core::annotations::{Annotations, Prefix, read_pod_cidrs};
use flannel_core::lease::{Flaw, Since};
use ipnet::IpNet;
use serde::Deserialize;

/// What an object begins with.
const MAGIC: &[u8] = b"k8s\0";

/// Something that has not the form that it should.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the answer is malformed: {0}")]
pub(super) struct Malformed(pub(super) &'static str);

type Result<T> = std::result::Result<T, Malformed>;

const SHORT: Malformed = Malformed("a message ends too soon");

/// A field of a message: its number and what it holds, where that has a length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Field<'a> {
    /// A string, bytes or a message.
    Bytes(u32, &'a [u8]),
    /// A number.
    Number(u32, u64),
}

/// The fields of a message.
#[derive(Debug, Clone)]
pub(super) struct Fields<'a> {
    rest: &'a [u8],
    /// The message is only the beginning of one: what is cut off is no error.
    cut: bool,
}

/// The fields of a whole message.
pub(super) fn fields(message: &[u8]) -> Fields<'_> {
    Fields { rest: message, cut: false }
}

/// The fields of the beginning of a message.
pub(super) fn fields_of_cut(message: &[u8]) -> Fields<'_> {
    Fields { rest: message, cut: true }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<Field<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.read();
        if field.is_err() {
            self.rest = &[];
            return if self.cut { None } else { Some(field) };
        }
        Some(field)
    }
}

impl<'a> Fields<'a> {
    fn read(&mut self) -> Result<Field<'a>> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).map_err(|_| Malformed("a field has no number"))?;
        match key & 7 {
            0 => Ok(Field::Number(number, self.varint()?)),
            1 => self.take(8).map(|_| Field::Number(number, 0)),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| SHORT)?;
                let length = if self.cut { length.min(self.rest.len()) } else { length };
                Ok(Field::Bytes(number, self.take(length)?))
            }
            5 => self.take(4).map(|_| Field::Number(number, 0)),
            _ => Err(Malformed("a field has no type")),
        }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(SHORT)?;
        self.rest = rest;
        Ok(taken)
    }

    fn varint(&mut self) -> Result<u64> {
        let (number, length) = varint(self.rest)?.ok_or(SHORT)?;
        self.rest = &self.rest[length..];
        Ok(number)
    }

    /// What the field of a number holds, the last if there are several; empty if there is none.
    fn last(mut self, number: u32) -> Result<&'a [u8]> {
        self.try_fold(&[][..], |last, field| match field? {
            Field::Bytes(found, bytes) if found == number => Ok(bytes),
            _ => Ok(last),
        })
    }

    /// The same of a field that holds a number; 0 if there is none.
    fn last_number(mut self, number: u32) -> Result<u64> {
        self.try_fold(0, |last, field| match field? {
            Field::Number(found, value) if found == number => Ok(value),
            _ => Ok(last),
        })
    }
}

/// A varint at the beginning of some bytes, and its length; none if they end before it does.
pub(super) fn varint(bytes: &[u8]) -> Result<Option<(u64, usize)>> {
    let mut number = 0;
    for (at, byte) in bytes.iter().enumerate().take(10) {
        number |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Ok(Some((number, at + 1)));
        }
    }
    if bytes.len() < 10 { Ok(None) } else { Err(Malformed("a number has no end")) }
}

fn text(bytes: &[u8]) -> Result<&str> {
    std::str::from_utf8(bytes).map_err(|_| Malformed("a text is not UTF-8"))
}

/// An object of the API as it comes: its kind, and its message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Object<'a> {
    pub(super) kind: &'a str,
    pub(super) message: &'a [u8],
}

impl<'a> Object<'a> {
    /// Takes an object out of its envelope.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self> {
        let unknown = bytes.strip_prefix(MAGIC).ok_or(Malformed("an object does not begin with k8s"))?;
        let (mut kind, mut message): (&[u8], &[u8]) = (&[], &[]);
        for field in fields(unknown) {
            match field? {
                Field::Bytes(1, of) => kind = fields(of).last(2)?,
                Field::Bytes(2, raw) => message = raw,
                _ => {}
            }
        }
        Ok(Self { kind: text(kind)?, message })
    }
}

/// What a watch tells: the type of the event, and the object in its envelope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct WatchEvent<'a> {
    pub(super) event: &'a str,
    pub(super) object: &'a [u8],
}

impl<'a> WatchEvent<'a> {
    pub(super) fn read(frame: &'a [u8]) -> Result<Self> {
        let (mut event, mut object): (&[u8], &[u8]) = (&[], &[]);
        for field in fields(frame) {
            match field? {
                Field::Bytes(1, name) => event = name,
                Field::Bytes(2, extension) => object = fields(extension).last(1)?,
                _ => {}
            }
        }
        Ok(Self { event: text(event)?, object })
    }
}

/// The name of the object in the beginning of an event that is too long to be read whole.
pub(super) fn name_in_cut_event(begin: &[u8]) -> Option<&str> {
    let object = fields_of_cut(begin).last(2).and_then(|extension| fields_of_cut(extension).last(1)).ok()?;
    let message = fields_of_cut(object.strip_prefix(MAGIC)?).last(2).ok()?;
    name_in_cut_object(message)
}

/// The name of an object in the beginning of its message.
pub(super) fn name_in_cut_object(begin: &[u8]) -> Option<&str> {
    let first = |message, number| {
        fields_of_cut(message).find_map(|field| match field {
            Ok(Field::Bytes(found, bytes)) if found == number => Some(bytes),
            _ => None,
        })
    };
    text(first(first(begin, 1)?, 1)?).ok().filter(|name| !name.is_empty())
}

/// Who an object is: the first half and the second of its uid.
pub(super) type Uid = (u64, u64);

/// The metadata of an object (`meta.v1.ObjectMeta`), as far as it matters.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meta<'a> {
    pub(super) name: &'a str,
    pub(super) uid: Uid,
    /// `resourceVersion`.
    pub(super) version: &'a str,
    pub(super) since: Since,
    message: &'a [u8],
}

impl<'a> Meta<'a> {
    /// Reads the metadata of an object: the first field of its message, whatever its kind.
    pub(super) fn of(object: &'a [u8]) -> Result<Self> {
        let message = fields(object).last(1)?;
        let mut meta = Self { name: "", uid: (0, 0), version: "", since: Since::default(), message };
        let mut created = 0;
        for field in fields(message) {
            match field? {
                Field::Bytes(1, name) => meta.name = text(name)?,
                Field::Bytes(5, uid) => meta.uid = read_uid(uid),
                Field::Bytes(6, version) => meta.version = text(version)?,
                Field::Bytes(8, time) => created = fields(time).last_number(1)?,
                _ => {}
            }
        }
        meta.since = Since { at: created, tie: meta.uid.0 };
        Ok(meta)
    }

    /// The annotations, as they lie there.
    fn annotations(&self) -> impl Iterator<Item = Result<(&'a str, &'a [u8])>> {
        let entries = fields(self.message).filter_map(|field| match field {
            Ok(Field::Bytes(12, entry)) => Some(Ok(entry)),
            Ok(_) => None,
            Err(error) => Some(Err(error)),
        });
        entries.map(|entry| {
            let (mut key, mut value): (&[u8], &[u8]) = (&[], &[]);
            for field in fields(entry?) {
                match field? {
                    Field::Bytes(1, bytes) => key = bytes,
                    Field::Bytes(2, bytes) => value = bytes,
                    _ => {}
                }
            }
            Ok((text(key)?, value))
        })
    }

    /// A number that tells whether annotations of flannel's changed.
    pub(super) fn digest(&self, prefix: &Prefix) -> Result<u64> {
        let mut hasher = DefaultHasher::new();
        for annotation in self.annotations() {
            let (key, value) = annotation?;
            if prefix.begins(key) {
                (key, value).hash(&mut hasher);
            }
        }
        Ok(hasher.finish())
    }

    /// The annotations of flannel's.
    pub(super) fn ours(&self, prefix: &Prefix) -> Result<Annotations> {
        let ours = |annotation: &Result<(&str, &[u8])>| annotation.as_ref().map_or(true, |(key, _)| prefix.begins(key));
        let owned = |annotation: Result<(&str, &[u8])>| {
            let (key, value) = annotation?;
            Ok((key.to_owned(), String::from_utf8_lossy(value).into_owned()))
        };
        self.annotations().filter(ours).map(owned).collect()
    }

    /// Whether this is where a streamed list ends (`sendInitialEvents`).
    pub(super) fn ends_list(&self) -> bool {
        let is_end = |annotation: Result<(&str, &[u8])>| annotation == Ok(("k8s.io/initial-events-end", b"true"));
        self.annotations().any(is_end)
    }
}

/// A uid in halves. It is 32 hexadecimal digits with dashes, or else any text.
fn read_uid(text: &[u8]) -> Uid {
    let mut digits = text.iter().filter(|byte| **byte != b'-').map(|byte| (*byte as char).to_digit(16));
    let mut half = || (0..16).try_fold(0, |half, _| Some(half << 4 | u64::from(digits.next()??)));
    if let (Some(first), Some(second)) = (half(), half())
        && digits.next().is_none()
    {
        return (first, second);
    }
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    (hasher.finish(), 0)
}

/// The subnets of a Node: `spec.podCIDRs`, or else `spec.podCIDR`; none if it has none yet.
pub(super) type PodCidrs = Option<std::result::Result<Dual<IpNet>, Flaw>>;

/// Reads the subnets of a whole Node.
pub(super) fn pod_cidrs(node: &[u8]) -> Result<PodCidrs> {
    let (mut one, mut all) = (Vec::new(), Vec::new());
    for field in fields(fields(node).last(2)?) {
        match field? {
            Field::Bytes(1, cidr) if !cidr.is_empty() => one = vec![text(cidr)?.to_owned()],
            Field::Bytes(7, cidr) => all.push(text(cidr)?.to_owned()),
            _ => {}
        }
    }
    let cidrs = if all.is_empty() { one } else { all };
    Ok((!cidrs.is_empty()).then(|| read_pod_cidrs(&cidrs)))
}

/// The name of the Node that a whole Pod runs on; empty if it runs on none.
pub(super) fn node_of_pod(pod: &[u8]) -> Result<&str> {
    text(fields(fields(pod).last(2)?).last(10)?)
}

/// The metadata of a list (`meta.v1.ListMeta`).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ListMeta {
    /// `resourceVersion`.
    pub(super) version: String,
    /// `continue`: where the next page begins; empty after the last.
    pub(super) next: String,
}

impl ListMeta {
    pub(super) fn read(message: &[u8]) -> Result<Self> {
        let read = |number| Ok(text(fields(message).last(number)?)?.to_owned());
        Ok(Self { version: read(2)?, next: read(3)? })
    }
}

/// What the API answers instead of what it was asked for (`meta.v1.Status`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub(super) struct Status {
    pub(super) message: String,
    /// The HTTP status.
    pub(super) code: u16,
}

impl Status {
    /// Reads the message of a Status.
    pub(super) fn read(message: &[u8]) -> Result<Self> {
        Ok(Self {
            message: String::from_utf8_lossy(fields(message).last(3)?).into_owned(),
            code: u16::try_from(fields(message).last_number(6)?).unwrap_or_default(),
        })
    }

    /// Reads one in JSON.
    pub(super) fn read_json(text: &[u8]) -> Result<Self> {
        serde_json::from_slice(text).map_err(|_| Malformed("it is no Status"))
    }
}

#[cfg(test)]
mod tests;
