//! The kernel executor: reads and changes what flannel has in the network namespace of the thread that opened it.
//!
//! [`KernelExecutor`] owns a request and a notice socket and everything that must be remembered between calls: the links
//! by index, how IPv4 routes are written down, and notices taken in but not yet told. `observe` is here, `apply` and `notices`
//! are in modules of their own. Which objects ought to exist is none of its business.

mod apply;
mod device;
mod notice;
mod refusal;

use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};

use flannel_core::addr::Family;
use flannel_core::diff::Op;
use flannel_core::rules::RuleMode;
use flannel_core::state::{Key, Scope, State, Value};

use crate::executor::{Executor, Noticed, ObserveError, OpError};
use crate::facts::unreadable;
use crate::links::Links;
use crate::netlink::route::{Hop, Target};
use crate::netlink::{Error, Message, NoticeSocket, Protocol, Request, Socket, address, link, neigh, route};
use crate::nexthops::{Encoding, Nexthops, Written};
use crate::reading::{hops, read_address, read_link, read_neigh, read_route};
use crate::rules::RulesExecutor;
use notice::Event;

/// The executor for a real kernel.
#[derive(Debug)]
pub struct KernelExecutor {
    socket: Socket,
    notices: NoticeSocket,
    rules: Option<RulesExecutor>,
    /// Told by the kernel, or acknowledged, since `have` was last brought up to date.
    pending: Vec<Event>,
    /// Notices were lost since then.
    overrun: bool,
    links: Links,
    nexthops: Nexthops,
    encoding: Encoding,
    /// Objects in the place of ours that cannot be replaced as they are, and for routes where they lead.
    odd: HashMap<Key, Option<Target>>,
    /// What devices are said to have, where we may not set it.
    accept_ra: Option<bool>,
}

impl KernelExecutor {
    /// An executor for the network namespace of this thread; fails where this process may not change it. Without `rules` it knows no packet rules: it reads none, and
    /// setting them fails.
    pub fn open(rules: Option<RulesExecutor>) -> Result<Self, Error> {
        let mut socket = Socket::open(Protocol::Route)?;
        try_rights(&mut socket)?;
        Ok(Self {
            socket,
            notices: NoticeSocket::open(Protocol::Route, &notice::GROUPS)?,
            rules,
            pending: Vec::new(),
            overrun: false,
            links: Links::default(),
            nexthops: Nexthops::default(),
            encoding: Encoding::default(),
            odd: HashMap::new(),
            accept_ra: None,
        })
    }

    /// The descriptors that become readable when [`Executor::notices`] has something to take in.
    pub fn poll_fds(&self) -> Vec<BorrowedFd<'_>> {
        let rules = self.rules.as_ref().and_then(RulesExecutor::notice_fd);
        std::iter::once(self.notices.as_fd()).chain(rules).collect()
    }

    /// Packs what is remembered between calls, after everything was read or made.
    pub fn pack(&mut self) {
        self.nexthops.pack();
        self.encoding.pack();
        self.pending.shrink_to_fit();
    }

    /// The request socket, for reading [`crate::facts`] in the same namespace.
    pub fn socket(&mut self) -> &mut Socket {
        &mut self.socket
    }

    fn read_links(&mut self, have: &mut State) -> Result<(), ObserveError> {
        let reports = self.socket.dump(&link::list(), link::Report::read).map_err(unreadable("links"))?;
        self.links = reports.iter().collect();
        have.objects.extend(reports.iter().filter_map(|report| self.read_link(report)));
        Ok(())
    }

    fn read_link(&self, report: &link::Report) -> Option<(Key, Value)> {
        let (key, mut value) = read_link(report, &self.links)?;
        if let (Value::Link(link), Some(accept_ra)) = (&mut value, self.accept_ra) {
            link.accept_ra = accept_ra;
        }
        Some((key, value))
    }

    /// Reads all that lives on our devices but routes.
    fn read_devices(&mut self, have: &mut State) -> Result<(), ObserveError> {
        for (index, forwards) in self.own_devices() {
            for family in Family::ALL {
                for report in self.list(&address::list(family, Some(index)), "addresses", address::Report::read)? {
                    if let Some((key, value)) = read_address(&report, &self.links) {
                        self.put(have, key, value, None);
                    }
                }
                for report in self.list(&neigh::list(family, index), "neighbours", neigh::Report::read)? {
                    self.put_neigh(have, &report);
                }
            }
            if forwards {
                self.read_forwarding(have, index)?;
            }
        }
        Ok(())
    }

    /// Indices of our devices, and whether they forward by MAC.
    fn own_devices(&self) -> Vec<(u32, bool)> {
        self.links.iter().filter(|seen| seen.is_ours()).map(|seen| (seen.index, &*seen.kind == "vxlan")).collect()
    }

    fn read_forwarding(&mut self, have: &mut State, index: u32) -> Result<(), ObserveError> {
        let reports = self.list(&neigh::list_forwarding(index), "forwarding entries", neigh::Report::read)?;
        reports.iter().filter(|report| report.index == index).for_each(|report| self.put_neigh(have, report));
        Ok(())
    }

    /// Reads our routes: those through our devices, through the external interfaces, and the blackholes.
    fn read_all_routes(&mut self, scope: &Scope, have: &mut State) -> Result<(), ObserveError> {
        self.nexthops = Nexthops::read(&mut self.socket).map_err(unreadable("nexthop objects"))?;
        self.encoding = Encoding::default();
        let externals = scope.externals.iter().filter_map(|name| self.links.named(*name)).map(|seen| seen.index);
        let own = self.own_devices().into_iter().map(|(index, _)| index);
        for index in own.chain(externals.collect::<Vec<_>>()) {
            self.read_routes(scope, have, route::Filter { index: Some(index), ..route::Filter::default() })?;
        }
        if !scope.blackholes.is_empty() {
            let kind = Some(libc::RTN_BLACKHOLE);
            self.read_routes(scope, have, route::Filter { kind, ..route::Filter::default() })?;
        }
        Ok(())
    }

    fn read_routes(&mut self, scope: &Scope, have: &mut State, filter: route::Filter) -> Result<(), ObserveError> {
        for family in Family::ALL {
            for report in self.list(&route::list(family, filter), "routes", route::Report::read)? {
                self.put_route(scope, have, &report);
            }
        }
        Ok(())
    }

    /// A dump; none where the kernel has no such family.
    fn list<T>(
        &mut self,
        request: &Request,
        what: &'static str,
        read: impl FnMut(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, ObserveError> {
        match self.socket.dump(request, read) {
            Err(error) if error.is_unsupported() || error.is_absent() => Ok(Vec::new()),
            result => result.map_err(unreadable(what)),
        }
    }

    /// Reads packet rules. Those that cannot be read hide nothing else: they are there, and not as anybody wants them, so
    /// that setting them is tried and fails with the cause. In nftables mode those of the other one are what iptables-nft has left over.
    fn read_rules(&mut self, scope: &Scope, systems: &[RuleMode], have: &mut State) {
        let Some(rules) = &mut self.rules else { return };
        rules.use_mode(if scope.iptables { RuleMode::Iptables } else { RuleMode::Nftables });
        for (mode, family) in systems.iter().flat_map(|mode| Family::ALL.map(|family| (*mode, family))) {
            let found = match rules.observe(mode, family) {
                Ok(found) => found.map(|found| Value::Rules(Box::new(found))),
                Err(error) => Some(Value::Other(format!("cannot be read: {error}").into())),
            };
            have.objects.set(Key::Rules(mode, family), found);
        }
    }

    fn put(&mut self, have: &mut State, key: Key, value: Value, target: Option<Target>) {
        if matches!(value, Value::Other(_)) {
            self.odd.insert(key, target);
        } else {
            self.odd.remove(&key);
        }
        have.objects.insert(key, value);
    }

    fn take(&mut self, have: &mut State, key: &Key) {
        self.odd.remove(key);
        have.objects.remove(key);
    }

    /// A neighbour or forwarding entry of a listing. The kernel lists a MAC with several destinations several times.
    fn put_neigh(&mut self, have: &mut State, report: &neigh::Report) {
        if let Some((key, Some(value))) = read_neigh(report, &self.links) {
            let several = matches!(key, Key::Fdb(..)) && have.objects.get(&key).is_some_and(|held| *held != value);
            let value = if several { Value::Other("several dst".into()) } else { value };
            self.put(have, key, value, None);
        }
    }

    /// A route of a listing. The kernel lists several under one key when they were appended; the first is in force.
    fn put_route(&mut self, scope: &Scope, have: &mut State, report: &route::Report) {
        let Some((key, value)) = read_route(report, &self.links, &self.nexthops, scope) else { return };
        if let Some(first) = have.objects.get(&key) {
            let first = self.target(key, report.destination, first);
            self.put(have, key, Value::Other("several routes".into()), first);
        } else {
            self.note_route(report);
            let target = self.target_of(report);
            self.put(have, key, value, target);
        }
    }

    /// Remembers how a route of ours is written down.
    fn note_route(&mut self, report: &route::Report) {
        if let [hop] = hops(report, &self.nexthops).as_slice()
            && Encoding::concerns(report.destination, report.metric, hop)
        {
            let target = report.object.map_or(Target::Link(*hop), Target::Object);
            self.encoding.note(report.destination, Written::new(*hop, target));
        }
    }

    /// What a removal must name of a route whose next hops are not one gateway.
    fn target_of(&self, report: &route::Report) -> Option<Target> {
        let first = hops(report, &self.nexthops).first().map(|hop| Hop { gateway: None, ..*hop });
        report.object.map(Target::Object).or(first.map(Target::Link))
    }
}

/// Asks to change a link that cannot be there, which shows whether we may change any: rights are looked at first.
fn try_rights(socket: &mut Socket) -> Result<(), Error> {
    match socket.tell(&link::change(i32::MAX.unsigned_abs(), &link::Settings::default())) {
        Err(error) if !error.is_absent() => Err(error),
        _ => Ok(()),
    }
}

/// Both rule systems.
const RULE_SYSTEMS: [RuleMode; 2] = [RuleMode::Nftables, RuleMode::Iptables];

impl Executor for KernelExecutor {
    fn observe(&mut self, scope: &Scope) -> Result<State, ObserveError> {
        self.forget_notices();
        let mut have = State::default();
        self.read_links(&mut have)?;
        self.read_devices(&mut have)?;
        self.read_all_routes(scope, &mut have)?;
        self.read_rules(scope, &RULE_SYSTEMS, &mut have);
        Ok(have)
    }

    fn apply(&mut self, ops: &[Op]) -> Vec<OpError> {
        self.apply_ops(ops)
    }

    fn notices(&mut self, scope: &Scope, have: &mut State) -> Result<Noticed, ObserveError> {
        self.take_notices(scope, have)
    }

    fn resync(&mut self, scope: &Scope, have: &mut State) -> Result<(), ObserveError> {
        if let Some(rules) = self.rules.as_mut().filter(|_| scope.iptables) {
            rules.resync();
            self.read_rules(scope, &[RuleMode::Iptables], have);
        }
        Ok(())
    }
}
