//! Carrying out operations: from [`Op`]s to requests, in batches, and back to errors that name the object.
//!
//! Devices are made and changed one by one, since what lives on them needs their index; everything else goes in batches. Between
//! batches notices are taken in, so that a thousand echoes cannot fill the socket.

use std::collections::{BTreeMap, BTreeSet};

use flannel_core::addr::{Family, LinkName};
use flannel_core::diff::{Change, Op};
use flannel_core::state::{Key, Route, Value};
use ipnet::IpNet;
use rustix::io::Errno;

use super::{Event, KernelExecutor};
use crate::executor::OpError;
use crate::links::Seen;
use crate::netlink::route::{Hop, Target};
use crate::netlink::{BATCH, Request, address, neigh, nexthop, route};
use crate::nexthops::{Encoding, Written};
use crate::rules::{RulesError, RulesExecutor};

/// Requests that wait to be sent together.
#[derive(Debug, Default)]
struct Queue {
    requests: Vec<Request>,
    /// For each request the op it serves, and whether the object's absence is what the op wanted.
    origins: Vec<(usize, bool)>,
    /// How routes will be written down, by op; none for removals.
    encodings: BTreeMap<usize, (IpNet, Option<Written>)>,
}

impl Queue {
    fn set(&mut self, op: usize, request: Request) {
        self.requests.push(request);
        self.origins.push((op, false));
    }

    fn remove(&mut self, op: usize, request: Request) {
        self.requests.push(request);
        self.origins.push((op, true));
    }
}

/// What came of the ops so far.
#[derive(Debug, Default)]
struct Progress {
    /// Causes, by op.
    failed: BTreeMap<usize, String>,
    /// Devices that could not be made or changed.
    broken: BTreeSet<LinkName>,
}

impl KernelExecutor {
    pub(super) fn apply_ops(&mut self, ops: &[Op]) -> Vec<OpError> {
        let mut progress = Progress::default();
        let mut queue = Queue::default();
        let routes = ops.iter().any(|op| matches!(op.change.key(), Key::Route(to, 0) if to.addr().is_ipv4()));
        if routes {
            self.decide_encoding(ops);
        }
        for (index, op) in ops.iter().enumerate() {
            if matches!(op.change.key(), Key::Link(_) | Key::Rules(..)) {
                self.flush(&mut queue, ops, &mut progress);
                self.apply_alone(index, &op.change, &mut progress);
            } else if let Err(cause) = self.enqueue(index, &op.change, &mut queue, &progress) {
                progress.failed.insert(index, cause);
            }
            if queue.requests.len() >= BATCH {
                self.flush(&mut queue, ops, &mut progress);
            }
        }
        self.flush(&mut queue, ops, &mut progress);
        if routes {
            self.tidy_encoding();
        }
        let error = |(index, cause)| OpError { index, change: first_line(&ops[index].change), cause };
        progress.failed.into_iter().map(error).collect()
    }

    /// Devices and packet rules.
    fn apply_alone(&mut self, index: usize, change: &Change, progress: &mut Progress) {
        let result = match change {
            Change::Set(Key::Link(name), Value::Link(want)) => {
                let result = self.set_link(*name, want);
                if result.is_err() {
                    progress.broken.insert(*name);
                }
                result
            }
            Change::Remove(Key::Link(name), _) => self.remove_link(*name),
            Change::Set(Key::Rules(mode, family), Value::Rules(rules)) => {
                self.with_rules(|system| system.set(*mode, *family, rules))
            }
            Change::Remove(Key::Rules(mode, family), _) => self.with_rules(|system| system.remove(*mode, *family)),
            _ => Err("no such thing can be made".to_owned()),
        };
        match result {
            // A device was read back; it may not be all that was asked for.
            Ok(()) if matches!(change, Change::Set(Key::Link(_), _)) => {}
            Ok(()) => self.pending.push(Event::Done(change.clone())),
            Err(cause) => drop(progress.failed.insert(index, cause)),
        }
        self.keep_up();
    }

    fn with_rules(&mut self, change: impl FnOnce(&mut RulesExecutor) -> Result<(), RulesError>) -> Result<(), String> {
        let rules = self.rules.as_mut().ok_or("packet rules are not handled here")?;
        change(rules).map_err(|error| error.to_string())
    }

    /// Puts the requests of one change into the queue; an error says why there can be none.
    fn enqueue(&mut self, op: usize, change: &Change, queue: &mut Queue, progress: &Progress) -> Result<(), String> {
        match change {
            Change::Set(key, value) => self.enqueue_set(op, *key, value, queue, progress),
            Change::Remove(key, value) => {
                if !self.enqueue_removal(op, *key, value, queue) {
                    self.pending.push(Event::Done(change.clone()));
                }
                Ok(())
            }
        }
    }

    fn enqueue_set(
        &mut self,
        op: usize,
        key: Key,
        value: &Value,
        queue: &mut Queue,
        progress: &Progress,
    ) -> Result<(), String> {
        if self.odd.contains_key(&key) {
            self.enqueue_removal(op, key, &Value::Other("in the way".into()), queue);
        }
        match (key, value) {
            (Key::Address(dev, net), Value::Address) => {
                queue.set(op, address::set(self.own_device(dev, progress)?, net));
            }
            (Key::Neigh(dev, address), Value::Neigh(mac)) => {
                queue.set(op, neigh::set(self.own_device(dev, progress)?, address, *mac));
            }
            (Key::Fdb(dev, mac), Value::Fdb(vtep)) => {
                queue.set(op, neigh::set_forwarding(self.own_device(dev, progress)?, mac, *vtep));
            }
            (Key::Route(destination, metric), Value::Route(route)) => {
                return self.enqueue_route(op, destination, metric, route, queue, progress);
            }
            _ => return Err("no such thing can be made".to_owned()),
        }
        Ok(())
    }

    fn enqueue_route(
        &mut self,
        op: usize,
        destination: IpNet,
        metric: u32,
        route: &Route,
        queue: &mut Queue,
        progress: &Progress,
    ) -> Result<(), String> {
        let Route::Unicast { dev, gateway, onlink } = *route else {
            queue.set(op, route::set(destination, metric, Target::Blackhole));
            return Ok(());
        };
        let hop = Hop { index: self.device(dev, progress)?, gateway, onlink };
        let mut target = Target::Link(hop);
        if Encoding::concerns(destination, metric, &hop) {
            if self.encoding.is_crowded(dev)
                && let Some(id) = self.nexthops.id_for(hop)
            {
                queue.set(op, nexthop::set(id, &hop));
                target = Target::Object(id);
            }
            queue.encodings.insert(op, (destination, Some(Written::new(hop, target))));
        }
        queue.set(op, route::set(destination, metric, target));
        Ok(())
    }

    /// False if there is nothing to remove, because the device is gone.
    fn enqueue_removal(&mut self, op: usize, key: Key, value: &Value, queue: &mut Queue) -> bool {
        let index = |dev| self.links.named(dev).filter(|seen| seen.is_ours()).map(|seen| seen.index);
        let request = match key {
            Key::Address(dev, net) => index(dev).map(|index| address::delete(index, net)),
            Key::Neigh(dev, address) => index(dev).map(|index| neigh::delete(index, address)),
            Key::Fdb(dev, mac) => index(dev).map(|index| neigh::delete_forwarding(index, mac)),
            Key::Route(destination, metric) => {
                queue.encodings.insert(op, (destination, None));
                self.target(key, destination, value).map(|target| route::delete(destination, metric, Some(target)))
            }
            Key::Link(_) | Key::Rules(..) => None,
        };
        let found = request.is_some();
        if let Some(request) = request {
            queue.remove(op, request);
        }
        found
    }

    /// Where a route to be removed leads, so that no other one is hit.
    pub(super) fn target(&self, key: Key, destination: IpNet, value: &Value) -> Option<Target> {
        match value {
            Value::Route(Route::Blackhole) => Some(Target::Blackhole),
            Value::Route(Route::Unicast { dev, gateway, onlink }) => {
                let index = self.links.named(*dev)?.index;
                let hop = Hop { index, gateway: *gateway, onlink: *onlink };
                let object = self.encoding.object(destination).filter(|id| self.nexthops.hop(*id) == Some(hop));
                Some(object.map_or(Target::Link(hop), Target::Object))
            }
            _ => self.odd.get(&key).copied().flatten(),
        }
    }

    /// The index of a device of ours.
    fn own_device(&self, name: LinkName, progress: &Progress) -> Result<u32, String> {
        let index = self.device(name, progress)?;
        let ours = self.links.at(index).is_some_and(Seen::is_ours);
        if ours { Ok(index) } else { Err(format!("device {name} is not flannel's")) }
    }

    fn device(&self, name: LinkName, progress: &Progress) -> Result<u32, String> {
        if progress.broken.contains(&name) {
            return Err(format!("device {name} could not be made"));
        }
        self.links.named(name).map(|seen| seen.index).ok_or_else(|| format!("there is no device {name}"))
    }

    /// Sends what is queued and notes what came of it.
    fn flush(&mut self, queue: &mut Queue, ops: &[Op], progress: &mut Progress) {
        let queue = std::mem::take(queue);
        for (start, requests) in (0..).step_by(BATCH).zip(queue.requests.chunks(BATCH)) {
            for failure in self.socket.batch(requests, || ()) {
                let (op, absent_is_fine) = queue.origins[start + failure.index];
                let fine = absent_is_fine && failure.error.is_absent();
                let refused = failure.error.errno() == Errno::INVAL;
                if !(fine || refused && self.set_anew(&ops[op].change, &requests[failure.index])) {
                    progress.failed.entry(op).or_insert_with(|| failure.error.to_string());
                }
            }
            for at in start..start + requests.len() {
                let (op, _) = queue.origins[at];
                let is_last = queue.origins.get(at + 1).is_none_or(|(next, _)| *next != op);
                if is_last && !progress.failed.contains_key(&op) {
                    self.pending.push(Event::Done(ops[op].change.clone()));
                    self.note_encoding(queue.encodings.get(&op));
                }
            }
            self.keep_up();
        }
    }

    /// Linux looks an IPv6 gateway up even if it is said to be on the link, and refuses it when it finds it elsewhere. The
    /// gateway lies in its own subnet, so the route that is to be replaced is in the way of the one that replaces it.
    fn set_anew(&mut self, change: &Change, request: &Request) -> bool {
        let Change::Set(Key::Route(to, metric), Value::Route(Route::Unicast { onlink: true, .. })) = change else {
            return false;
        };
        let family = Family::of_net(*to);
        let requests = [route::delete(*to, *metric, None), request.clone()];
        family == Family::V6 && !self.socket.batch(&requests, || ()).iter().any(|failure| failure.index == 1)
    }

    /// Takes in what the kernel told, lest it be lost.
    pub(super) fn keep_up(&mut self) {
        self.overrun |= self.drain().is_err();
    }

    fn note_encoding(&mut self, encoding: Option<&(IpNet, Option<Written>)>) {
        match encoding {
            Some((destination, Some(written))) => self.encoding.note(*destination, *written),
            Some((destination, None)) => self.encoding.forget(*destination),
            None => {}
        }
    }

    /// Decides which devices' routes go through nexthop objects, with these ops in view.
    fn decide_encoding(&mut self, ops: &[Op]) {
        let added = ops.iter().filter_map(|op| match &op.change {
            Change::Set(Key::Route(to, 0), Value::Route(Route::Unicast { dev, gateway: Some(_), .. })) => {
                Some((*to, *dev))
            }
            _ => None,
        });
        let removed = ops.iter().filter_map(|op| match op.change {
            Change::Remove(Key::Route(destination, 0), _) => Some(destination),
            _ => None,
        });
        let added = added.filter(|(destination, _)| Family::of_net(*destination) == Family::V4);
        self.encoding.decide(&self.links, added, removed);
    }

    /// Brings routes back from nexthop objects where they are few again, and removes objects that no route uses.
    fn tidy_encoding(&mut self) {
        if self.nexthops.is_empty() {
            return;
        }
        let outdated = self.encoding.outdated(&self.links).into_iter();
        let outdated: Vec<_> = outdated.filter_map(|(to, id)| Some((to, self.nexthops.hop(id)?))).collect();
        let set = |(to, hop): &(IpNet, Hop)| route::set(*to, 0, Target::Link(*hop));
        let failed = self.send_all(&outdated.iter().map(set).collect::<Vec<_>>());
        for (_, (to, hop)) in outdated.iter().enumerate().filter(|(at, _)| !failed.contains(at)) {
            self.encoding.note(*to, Written::new(*hop, Target::Link(*hop)));
        }
        let unused = self.nexthops.unused(&self.encoding.objects());
        let failed = self.send_all(&unused.iter().map(|id| nexthop::delete(*id)).collect::<Vec<_>>());
        for (_, id) in unused.iter().enumerate().filter(|(at, _)| !failed.contains(at)) {
            self.nexthops.forget(*id);
        }
    }

    /// Sends requests that serve no op; answers with the indices of those that failed. They are tried again next time.
    fn send_all(&mut self, requests: &[Request]) -> BTreeSet<usize> {
        let mut failed = BTreeSet::new();
        for (start, requests) in (0..).step_by(BATCH).zip(requests.chunks(BATCH)) {
            for failure in self.socket.batch(requests, || ()).into_iter().filter(|failure| !failure.error.is_absent()) {
                tracing::debug!("a nexthop object stays as it is: {}", failure.error);
                failed.insert(start + failure.index);
            }
            self.keep_up();
        }
        failed
    }
}

/// An op's object on one line.
fn first_line(change: &Change) -> String {
    change.to_string().lines().next().unwrap_or_default().to_owned()
}
