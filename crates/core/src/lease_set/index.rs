//! The leases that publish a value of some kind, in the order of those values, and under one value in the order of leases.
//!
//! An [`Index`] is a sorted vector and holds no value itself: it looks into the leases. Finding a place takes a dozen
//! steps, and making one moves some ten kilobytes at thousands of leases, which is still less work than reading a record.

use std::sync::Arc;

use crate::addr::Family;
use crate::lease::{Lease, LeaseKey, Since};

/// A lease and its key.
pub(super) type Named = (LeaseKey, Arc<Lease>);

/// Leases by what they publish for one family.
#[derive(Debug, Clone)]
pub(super) struct Index<T> {
    family: Family,
    published: fn(&Lease, Family) -> Option<T>,
    leases: Vec<Named>,
}

impl<T: Copy + Ord> Index<T> {
    /// The index of those among some leases that publish something for a family.
    pub(super) fn new(
        family: Family,
        published: fn(&Lease, Family) -> Option<T>,
        leases: impl IntoIterator<Item = Named>,
    ) -> Self {
        let publishes = |(_, lease): &Named| published(lease, family).is_some();
        let mut index = Self { family, published, leases: leases.into_iter().filter(publishes).collect() };
        let mut leases = std::mem::take(&mut index.leases);
        leases.sort_unstable_by(|(key, lease), (other, their)| index.place(key, lease).cmp(&index.place(other, their)));
        leases.shrink_to_fit();
        Self { leases, ..index }
    }

    /// Takes a lease in if it publishes anything.
    pub(super) fn insert(&mut self, key: &LeaseKey, lease: &Arc<Lease>) {
        if (self.published)(lease, self.family).is_some() {
            let at = self.start(key, lease);
            self.leases.insert(at, (key.clone(), Arc::clone(lease)));
        }
    }

    /// Takes a lease out.
    pub(super) fn remove(&mut self, key: &LeaseKey, lease: &Lease) {
        let at = self.start(key, lease);
        if self.leases.get(at).is_some_and(|(held, _)| held == key) {
            self.leases.remove(at);
        }
    }

    /// The leases with a value of at least this.
    pub(super) fn from(&self, value: T) -> &[Named] {
        &self.leases[self.leases.partition_point(|(_, lease)| (self.published)(lease, self.family) < Some(value))..]
    }

    /// The leases under a value that come before a place in the order of leases.
    pub(super) fn before(&self, value: T, (since, key): (Since, &LeaseKey)) -> &[Named] {
        let same = self.from(value);
        &same[..same.partition_point(|(other, lease)| self.place(other, lease) < (Some(value), since, key))]
    }

    /// The leases under the value that a lease publishes, from that one's place on.
    pub(super) fn beside(&self, key: &LeaseKey, lease: &Lease) -> impl Iterator<Item = &LeaseKey> + use<'_, T> {
        let value = (self.published)(lease, self.family);
        let same = move |(_, other): &&Named| value.is_some() && (self.published)(other, self.family) == value;
        self.leases[self.start(key, lease)..].iter().take_while(same).map(|(key, _)| key)
    }

    /// Where a lease is, or should be.
    fn start(&self, key: &LeaseKey, lease: &Lease) -> usize {
        let place = self.place(key, lease);
        self.leases.partition_point(|(other, their)| self.place(other, their) < place)
    }

    fn place<'a>(&self, key: &'a LeaseKey, lease: &Lease) -> (Option<T>, Since, &'a LeaseKey) {
        ((self.published)(lease, self.family), lease.since, key)
    }
}
