//! Kernel objects as they are held beside those that are wanted: all is as wanted, except what differs.
//!
//! A node with thousands of peers holds what it wants nearly all the time. So [`Objects`] keeps what is wanted once, and of
//! what is held only the differences: memory is spent on an object once, and [`Objects::differences`] need no search. Who
//! only reads or changes what is held sees a map like any other; without anything wanted it is one.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};

use crate::diff::{Owner, Want, Wanted};
use crate::lease::LeaseKey;
use crate::state::{Key, Value};

/// What leases want, by lease, in the place of all that they wanted before.
pub type Rewant = BTreeMap<LeaseKey, Vec<(Key, Value)>>;

/// The objects held, and those wanted.
#[derive(Debug, Clone, Default)]
pub struct Objects {
    want: Want,
    /// What is held under the keys where that is not what is wanted; none if nothing is.
    except: BTreeMap<Key, Option<Value>>,
}

impl Objects {
    /// What is wanted.
    pub fn wanted(&self) -> &Want {
        &self.want
    }

    /// Replaces all that is wanted; what is held stays.
    pub fn want(&mut self, want: Want) {
        let before = std::mem::take(self);
        let compared = side_by_side(want.iter(), before.iter());
        let differing = compared.filter(|(_, wanted, held)| wanted.map(|wanted| &wanted.value) != *held);
        self.except = differing.map(|(key, _, held)| (*key, held.cloned())).collect();
        self.want = want;
    }

    /// Replaces what some leases want; what is held stays.
    pub fn rewant(&mut self, leases: Rewant) {
        let is_old = |wanted: &Wanted| matches!(&wanted.owner, Owner::Peer(key) if leases.contains_key(key));
        let old = self.want.iter().filter(|(_, wanted)| is_old(wanted)).map(|(key, _)| *key);
        let new = leases.values().flatten().map(|(key, _)| *key);
        let keys: BTreeSet<Key> = old.chain(new).collect();
        let held: Vec<_> = keys.into_iter().map(|key| (key, self.get(&key).cloned())).collect();
        self.want.retain(|_, wanted| !is_old(wanted));
        for (key, objects) in leases {
            let owner = Owner::Peer(key);
            self.want.extend(objects.into_iter().map(|(key, value)| (key, Wanted { value, owner: owner.clone() })));
        }
        for (key, value) in held {
            self.set(key, value);
        }
    }

    /// Replaces all that is held; what is wanted stays.
    pub fn hold(&mut self, held: Self) {
        let want = std::mem::take(&mut self.want);
        *self = held;
        self.want(want);
    }

    /// What is held under a key.
    pub fn get(&self, key: &Key) -> Option<&Value> {
        match self.except.get(key) {
            Some(held) => held.as_ref(),
            None => self.want.get(key).map(|wanted| &wanted.value),
        }
    }

    /// Whether anything is held under a key.
    pub fn contains_key(&self, key: &Key) -> bool {
        self.get(key).is_some()
    }

    /// Something is held from now on under a key, or nothing.
    pub fn set(&mut self, key: Key, held: Option<Value>) {
        if held.as_ref() == self.want.get(&key).map(|wanted| &wanted.value) {
            self.except.remove(&key);
        } else {
            self.except.insert(key, held);
        }
    }

    /// Something is held from now on.
    pub fn insert(&mut self, key: Key, value: Value) {
        self.set(key, Some(value));
    }

    /// Nothing is held any more under a key.
    pub fn remove(&mut self, key: &Key) {
        self.set(*key, None);
    }

    /// Of what is held keeps only what fulfils a condition.
    pub fn retain(&mut self, keeps: impl Fn(&Key, &Value) -> bool) {
        let goes: Vec<_> = self.iter().filter(|(key, value)| !keeps(key, value)).map(|(key, _)| *key).collect();
        for key in &goes {
            self.remove(key);
        }
    }

    /// What is held, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Value)> {
        self.side_by_side().filter_map(|(key, _, held)| Some((key, held?)))
    }

    /// The keys of what is held, in order.
    pub fn keys(&self) -> impl Iterator<Item = &Key> {
        self.iter().map(|(key, _)| key)
    }

    /// How many objects are held.
    pub fn len(&self) -> usize {
        self.iter().count()
    }

    /// Whether nothing is held.
    pub fn is_empty(&self) -> bool {
        self.iter().next().is_none()
    }

    /// Under how many keys what is held is not what is wanted.
    pub fn differing(&self) -> usize {
        self.except.len()
    }

    /// What is wanted and what is held instead under each key where that is not the same, in the order of keys.
    pub fn differences(&self) -> impl Iterator<Item = (&Key, Option<&Wanted>, Option<&Value>)> {
        self.except.iter().map(|(key, held)| (key, self.want.get(key), held.as_ref()))
    }

    /// What is wanted and what is held under each key, in the order of keys.
    pub fn side_by_side(&self) -> impl Iterator<Item = (&Key, Option<&Wanted>, Option<&Value>)> {
        side_by_side(self.want.iter(), self.except.iter()).map(|(key, wanted, excepted)| {
            let held = excepted.map_or(wanted.map(|wanted| &wanted.value), Option::as_ref);
            (key, wanted, held)
        })
    }
}

/// The values of two maps under each key that one of them has, in the order of keys.
fn side_by_side<'a, A, B>(
    left: impl Iterator<Item = (&'a Key, A)>,
    right: impl Iterator<Item = (&'a Key, B)>,
) -> impl Iterator<Item = (&'a Key, Option<A>, Option<B>)> {
    let (mut left, mut right) = (left.peekable(), right.peekable());
    std::iter::from_fn(move || {
        let order = match (left.peek(), right.peek()) {
            (Some((left, _)), Some((right, _))) => left.cmp(right),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (None, None) => return None,
        };
        let left = left.next_if(|_| order.is_le());
        let right = right.next_if(|_| order.is_ge());
        let key = left.as_ref().map(|(key, _)| *key).or(right.as_ref().map(|(key, _)| *key))?;
        Some((key, left.map(|(_, value)| value), right.map(|(_, value)| value)))
    })
}

/// The same is held.
impl PartialEq for Objects {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Objects {}

impl Extend<(Key, Value)> for Objects {
    fn extend<I: IntoIterator<Item = (Key, Value)>>(&mut self, objects: I) {
        for (key, value) in objects {
            self.insert(key, value);
        }
    }
}

/// What is held, with nothing wanted.
impl FromIterator<(Key, Value)> for Objects {
    fn from_iter<I: IntoIterator<Item = (Key, Value)>>(objects: I) -> Self {
        let except = objects.into_iter().map(|(key, value)| (key, Some(value))).collect();
        Self { want: Want::new(), except }
    }
}

#[cfg(test)]
mod tests;
