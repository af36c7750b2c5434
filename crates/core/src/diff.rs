//! The operations that lead from the state the kernel has to the state we want, in an order that works.

use std::collections::BTreeMap;
use std::fmt;

use crate::addr::LinkName;
use crate::lease::LeaseKey;
use crate::state::{Key, LinkKind, Object, State, Value, lives_on};

/// On whose behalf an object exists: back-off, skips and errors are kept for each owner apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Owner {
    /// This node itself.
    Node,
    /// A peer's lease.
    Peer(LeaseKey),
    /// Nobody any more: what is left over from before and only has to go.
    Nobody,
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.write_str("this node"),
            Self::Peer(key) => write!(f, "lease {key}"),
            Self::Nobody => f.write_str("left over"),
        }
    }
}

/// A wanted object and its owner.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The object's value.
    pub value: Value,
    /// On whose behalf.
    pub owner: Owner,
}

/// What we want, by object.
pub type Want = BTreeMap<Key, Wanted>;

/// One change to the kernel. Each may be applied twice: setting what is there and removing what is absent succeed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Op {
    /// On whose behalf.
    pub owner: Owner,
    /// What to do.
    pub change: Change,
}

/// Make it so, or make it gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// Create the object, or change the one under that key in place.
    Set(Key, Value),
    /// Remove the object; the value is the one observed.
    Remove(Key, Value),
}

impl Change {
    /// The object's name.
    pub fn key(&self) -> &Key {
        match self {
            Self::Set(key, _) | Self::Remove(key, _) => key,
        }
    }

    /// The object's value.
    pub fn value(&self) -> &Value {
        match self {
            Self::Set(_, value) | Self::Remove(_, value) => value,
        }
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Set(key, value) => write!(f, "set {}", Object(key, value)),
            Self::Remove(key, value) => write!(f, "remove {}", Object(key, value)),
        }
    }
}

/// The changes that turn `have` into `want`, whatever that is kept beside, in the order of [`steps`].
pub fn diff(want: &Want, have: &State) -> Vec<Op> {
    let mut have = have.clone();
    have.objects.want(want.clone());
    steps(&have).collect()
}

/// The changes that turn what is held into what is wanted, in order: devices that cannot change in place go first and take
/// all that is on them along; then everything is set, each thing before what needs it, and this node's own before its
/// peers': pods can start without those; then what is left over goes, in reverse.
///
/// Who takes only the first ones, and then the first of what is to be done still, and so on, ends the same.
pub fn steps(have: &State) -> impl Iterator<Item = Op> + use<'_> {
    let want = have.objects.wanted();
    let doomed = replaced_links(want, have);
    let on_doomed = |key: &Key, value: &Value| doomed.iter().any(|link| lives_on(key, value, *link));
    let (mut own, mut peers, mut unwanted) = (Vec::new(), Vec::new(), Vec::new());
    for (key, wanted, held) in to_compare(have, &doomed) {
        match (wanted, held) {
            (Some(wanted), held) if held.is_none_or(|value| *value != wanted.value || on_doomed(key, value)) => {
                if wanted.owner == Owner::Node { &mut own } else { &mut peers }.push((key, wanted));
            }
            (None, Some(value)) if !on_doomed(key, value) => unwanted.push((key, value)),
            _ => {}
        }
    }
    let links = unwanted_links(want, have);
    let goes_along = |key: &Key, value: &Value| links.iter().any(|link| lives_on(key, value, *link));
    unwanted.retain(|(key, value)| matches!(key, Key::Link(_)) || !goes_along(key, value));
    let replaced = doomed.into_iter().filter_map(|name| {
        let key = Key::Link(name);
        Some(remove(key, have.objects.get(&key)?, want[&key].owner.clone()))
    });
    let set = |(key, wanted): (&Key, &Wanted)| Op {
        owner: wanted.owner.clone(),
        change: Change::Set(*key, wanted.value.clone()),
    };
    let left_over = unwanted.into_iter().rev().map(|(key, value)| remove(*key, value, Owner::Nobody));
    replaced.chain(own.into_iter().chain(peers).map(set)).chain(left_over)
}

/// Differences beyond this many are found by a walk over everything: that takes less than as many searches.
const MANY: usize = 500;

/// Where there may be something to do: where what is held differs, and everywhere if devices are to be made again, which
/// takes along what is right on them.
fn to_compare<'a>(
    have: &'a State,
    doomed: &[LinkName],
) -> Box<dyn Iterator<Item = (&'a Key, Option<&'a Wanted>, Option<&'a Value>)> + 'a> {
    let few = have.objects.differing() <= MANY && doomed.is_empty();
    if few { Box::new(have.objects.differences()) } else { Box::new(have.objects.side_by_side()) }
}

fn remove(key: Key, value: &Value, owner: Owner) -> Op {
    Op { owner, change: Change::Remove(key, value.clone()) }
}

/// Devices that are there, are wanted, and can only become what is wanted by being made again.
fn replaced_links(want: &Want, have: &State) -> Vec<LinkName> {
    links(have)
        .filter(|(name, kind)| match want.get(&Key::Link(*name)) {
            Some(Wanted { value: Value::Link(link), .. }) => !kind.is_some_and(|kind| kind.can_become(&link.kind)),
            _ => false,
        })
        .map(|(name, _)| name)
        .collect()
}

/// Devices that go altogether; what is on them needs no removal of its own.
fn unwanted_links(want: &Want, have: &State) -> Vec<LinkName> {
    links(have).map(|(name, _)| name).filter(|name| !want.contains_key(&Key::Link(*name))).collect()
}

fn links(state: &State) -> impl Iterator<Item = (LinkName, Option<&LinkKind>)> {
    state.objects.iter().map_while(|(key, value)| match (key, value) {
        (Key::Link(name), Value::Link(link)) => Some((*name, Some(&link.kind))),
        (Key::Link(name), _) => Some((*name, None)),
        _ => None,
    })
}

#[cfg(test)]
mod tests;
