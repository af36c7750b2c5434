//! A kernel for tests: keeps a [`State`], takes operations, and does to it what Linux would.
//!
//! [`FakeKernel`] models the cascades (a device that goes down, goes away or changes its MAC; a device's last IPv4 address), refuses
//! what Linux refuses of flannel's operations, and can be told to fail. Tests damage it with or without notice. It models
//! nothing of the underlay but whether its devices are up, and knows no nexthop objects. A test with random operations holds it
//! against the real kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use flannel_core::addr::{Family, LinkName};
use flannel_core::diff::{Change, Op};
use flannel_core::state::{Key, Link, Route, Scope, State, Value, lives_on};

use crate::executor::{Executor, Noticed, ObserveError, OpError};

/// How often an injected fault happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Times {
    /// This many times, then never again.
    Only(u32),
    /// Until [`FakeKernel::heal`].
    Always,
}

/// See the module.
#[derive(Debug, Default)]
pub struct FakeKernel {
    state: State,
    /// Devices that are not flannel's: their kinds. Those not named are there, and up.
    strangers: BTreeMap<LinkName, Box<str>>,
    down: BTreeSet<LinkName>,
    faults: BTreeMap<Key, (Times, String)>,
    /// Keys whose change the executor has not been told yet.
    untold: BTreeSet<Key>,
    noticed: Noticed,
    overrun: bool,
    /// How often reading will fail.
    unreadable: u32,
    applied: Vec<Change>,
}

impl FakeKernel {
    /// A kernel that holds nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// What it holds.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// The changes asked for since the last call, those that failed too.
    pub fn take_applied(&mut self) -> Vec<Change> {
        std::mem::take(&mut self.applied)
    }

    /// Lets setting or removing an object fail.
    pub fn fail(&mut self, key: Key, times: Times, cause: &str) {
        self.faults.insert(key, (times, cause.to_owned()));
    }

    /// Ends the faults of an object.
    pub fn heal(&mut self, key: &Key) {
        self.faults.remove(key);
    }

    /// Puts a device of another kind, which is not flannel's, under a name.
    pub fn put_stranger(&mut self, name: LinkName, kind: &str) {
        self.strangers.insert(name, kind.into());
    }

    /// Somebody else makes or replaces an object, with notice.
    pub fn set(&mut self, key: Key, value: Value) -> Result<(), String> {
        self.change(&Change::Set(key, value))
    }

    /// Somebody else removes an object, with all that goes with it, with notice.
    pub fn remove(&mut self, key: Key) {
        if let Some(value) = self.state.objects.get(&key).cloned() {
            // Removing what is there never fails.
            let _ = self.change(&Change::Remove(key, value));
        }
    }

    /// Takes a device down, flannel's or an external one, with notice.
    pub fn take_down(&mut self, name: LinkName) {
        if let Some(link) = self.state.link(name) {
            let link = Link { up: false, ..link.clone() };
            self.put(Key::Link(name), Value::Link(Box::new(link)));
        } else {
            self.down.insert(name);
            self.drop_all(|key, value| matches!(key, Key::Route(..)) && lives_on(key, value, name));
            self.change_underlay();
        }
    }

    /// Brings an external device up again, with notice.
    pub fn bring_up(&mut self, name: LinkName) {
        self.down.remove(&name);
        self.change_underlay();
    }

    /// Changes anything without a notice.
    pub fn damage_silently(&mut self, damage: impl FnOnce(&mut State)) {
        damage(&mut self.state);
    }

    /// Something of the underlay changed: the next notices say so.
    pub fn change_underlay(&mut self) {
        self.noticed.underlay = true;
    }

    /// Notices are lost: the next call reads everything.
    pub fn lose_notices(&mut self) {
        self.overrun = true;
    }

    /// Lets it be unreadable this many times.
    pub fn fail_reading(&mut self, times: u32) {
        self.unreadable = times;
    }

    fn attempt(&mut self, change: &Change) -> Result<(), String> {
        self.applied.push(change.clone());
        match self.faults.get_mut(change.key()) {
            Some((Times::Only(0), _)) | None => self.change(change),
            Some((times, cause)) => {
                if let Times::Only(left) = times {
                    *left -= 1;
                }
                Err(cause.clone())
            }
        }
    }

    fn change(&mut self, change: &Change) -> Result<(), String> {
        match change {
            Change::Set(key, value) => self.allows(key, value).map(|()| self.put(*key, value.clone())),
            Change::Remove(Key::Route(..), value) if self.state.objects.get(change.key()) != Some(value) => Ok(()),
            Change::Remove(key, _) => {
                self.stranger(key.link().filter(|_| matches!(key, Key::Link(_))))?;
                self.take(key);
                Ok(())
            }
        }
    }

    /// Refuses what Linux refuses.
    fn allows(&self, key: &Key, value: &Value) -> Result<(), String> {
        match (key, value) {
            (_, Value::Other(_)) => Err("no such thing can be made".to_owned()),
            (Key::Link(name), Value::Link(want)) => match self.state.link(*name) {
                Some(have) if !have.kind.can_become(&want.kind) => Err("it must be made again".to_owned()),
                _ => self.stranger(Some(*name)),
            },
            (Key::Route(..), Value::Route(Route::Unicast { dev, .. })) if !self.is_up(*dev)? => {
                Err(format!("device {dev} is down"))
            }
            _ => key.link().map_or(Ok(()), |dev| self.is_up(dev).map(drop)),
        }
    }

    fn stranger(&self, name: Option<LinkName>) -> Result<(), String> {
        match name.and_then(|name| self.strangers.get(&name)) {
            Some(kind) => Err(format!("a device of that name but of kind {kind} is there and not flannel's")),
            None => Ok(()),
        }
    }

    /// Whether a device is up; an error if a device of flannel's is not there.
    fn is_up(&self, dev: LinkName) -> Result<bool, String> {
        let flannels = ["vxlan", "tun", "ipip", "wireguard"].iter().any(|kind| Scope::owns_link(dev.as_str(), kind));
        match self.state.link(dev) {
            Some(link) => Ok(link.up),
            None if flannels => Err(format!("there is no device {dev}")),
            None => Ok(!self.down.contains(&dev)),
        }
    }

    fn put(&mut self, key: Key, value: Value) {
        let before = self.state.objects.get(&key).cloned();
        self.state.objects.insert(key, value);
        self.untold.insert(key);
        let after = self.state.objects.get(&key);
        if let (Key::Link(name), Some(Value::Link(before)), Some(Value::Link(after))) = (key, before, after) {
            let (fell, new_mac) = (before.up && !after.up, before.mac != after.mac);
            if fell || new_mac {
                self.drop_all(|key, _| matches!(key, Key::Neigh(dev, _) if *dev == name));
            }
            if fell {
                self.drop_all(|key, value| falls_with(key, value, name));
            }
        }
    }

    fn take(&mut self, key: &Key) {
        if !self.state.objects.contains_key(key) {
            return;
        }
        self.state.objects.remove(key);
        self.untold.insert(*key);
        match *key {
            Key::Link(name) => self.drop_all(|key, value| lives_on(key, value, name)),
            Key::Address(name, net) if Family::of_net(net) == Family::V4 && !self.has_address(name) => {
                self.drop_all(|key, value| needs_address(key, value, name));
            }
            _ => {}
        }
    }

    /// Whether a device has an IPv4 address.
    fn has_address(&self, name: LinkName) -> bool {
        let is = |key: &Key| matches!(key, Key::Address(dev, net) if *dev == name && net.addr().is_ipv4());
        self.state.objects.keys().any(is)
    }

    fn drop_all(&mut self, doomed: impl Fn(&Key, &Value) -> bool) {
        let untold = &mut self.untold;
        untold.extend(self.state.objects.iter().filter(|(key, value)| doomed(key, value)).map(|(key, _)| *key));
        self.state.objects.retain(|key, value| !doomed(key, value));
    }
}

/// What goes when a device goes down, beside its neighbours: routes and IPv6 addresses.
fn falls_with(key: &Key, value: &Value, name: LinkName) -> bool {
    match key {
        Key::Route(..) => lives_on(key, value, name),
        Key::Address(dev, net) => *dev == name && net.addr().is_ipv6(),
        _ => false,
    }
}

/// What goes with a device's last IPv4 address: IPv4 routes and neighbours.
fn needs_address(key: &Key, value: &Value, name: LinkName) -> bool {
    match key {
        Key::Route(to, _) => to.addr().is_ipv4() && lives_on(key, value, name),
        Key::Neigh(dev, address) => *dev == name && address.is_ipv4(),
        _ => false,
    }
}

impl fmt::Display for FakeKernel {
    /// What it holds, as `ip`, `bridge` and `nft` would print it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.state.fmt(f)
    }
}

impl Executor for FakeKernel {
    fn observe(&mut self, _scope: &Scope) -> Result<State, ObserveError> {
        if self.unreadable > 0 {
            self.unreadable -= 1;
            return Err(ObserveError { what: "links", cause: "interrupted".to_owned() });
        }
        self.untold.clear();
        self.overrun = false;
        Ok(self.state.clone())
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<OpError> {
        let mut broken = BTreeSet::new();
        let mut errors = Vec::new();
        for (index, op) in ops.iter().enumerate() {
            let dev = match op.change.value() {
                Value::Route(route) => route.dev(),
                _ => op.change.key().link(),
            };
            let is_set = matches!(op.change, Change::Set(..));
            let result = match dev.filter(|dev| is_set && broken.contains(dev)) {
                Some(dev) => Err(format!("device {dev} could not be made")),
                None => self.attempt(&op.change),
            };
            if let Err(cause) = result {
                broken.extend(dev.filter(|_| is_set && matches!(op.change.key(), Key::Link(_))));
                let change = op.change.to_string().lines().next().unwrap_or_default().to_owned();
                errors.push(OpError { index, change, cause });
            }
        }
        errors
    }

    fn notices(&mut self, scope: &Scope, have: &mut State) -> Result<Noticed, ObserveError> {
        let mut noticed = std::mem::take(&mut self.noticed);
        if self.overrun {
            noticed.underlay = true;
            have.objects.hold(self.observe(scope)?.objects);
        }
        for key in std::mem::take(&mut self.untold) {
            have.objects.set(key, self.state.objects.get(&key).cloned());
        }
        Ok(noticed)
    }

    fn resync(&mut self, _scope: &Scope, have: &mut State) -> Result<(), ObserveError> {
        have.objects.retain(|key, _| !matches!(key, Key::Rules(..)));
        let rules = self.state.objects.iter().filter(|(key, _)| matches!(key, Key::Rules(..)));
        have.objects.extend(rules.map(|(key, value)| (*key, value.clone())));
        Ok(())
    }
}
