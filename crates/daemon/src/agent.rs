//! The one loop of `flanneld`: what the store, the kernel's thread and the signals say, in; what is wanted, out.
//!
//! [`Agent`] never waits for anything but the next event. Each event may complete what was missing ([`Agent::settle`]):
//! config, node, own lease; from then on a plan is always in force, at first that of this node's own part alone, which is enough for
//! pods to start, and once that was tried and the first snapshot is there, of everything; and every change, of whatever kind, ends in
//! a new one. Nothing on the host is touched before that. How the node stands is told to others in a module of its own.

mod standing;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use flannel_core::addr::{Dual, Family, LinkName};
use flannel_core::annotations::Overrides;
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::facts::Facts;
use flannel_core::lease::{Claim, LeaseEvent, LeaseKey, Record};
use flannel_core::lease_set::LeaseSet;
use flannel_core::node::{Node, NodeError, Options, claim, node};
use flannel_core::plan::{Ground, Plan, Replan, Skipped};
use flannel_core::rules::{PodNetworks, RuleMode};
use flannel_core::state::Scope;
use flannel_core::subnet_env::SubnetEnv;
use flannel_store::{Held, HoldError, Problem, Standing, Store, StoreEvent};
use ipnet::IpNet;
use tokio::sync::mpsc::Receiver;

use crate::attempt::{Attempt, Step};
use crate::fatal::Fatal;
use crate::flags::Flags;
use crate::health::Vitals;
use crate::log::Changes;
use crate::subnet_file;
use crate::upkeep::{Orders, Report};
use crate::worker::News;

type HoldAnswer = Result<Held, HoldError>;

/// Everything the loop knows.
pub(crate) struct Agent<'a> {
    flags: &'a Flags,
    /// What the flags say about this node, and what an operator set on its record.
    options: Options,
    notify_socket: Option<OsString>,
    store: Box<dyn Store>,
    rules: ConfigRules,
    events: Receiver<StoreEvent>,
    orders: Arc<Orders>,
    vitals: Arc<Vitals>,
    changes: Changes,
    facts: Facts,
    config: Option<NetworkConfig>,
    /// Why there is no config, or no lease, yet.
    trouble: Option<String>,
    /// What the store waits for.
    waits: Option<String>,
    /// Why the config does not suit this host, where one that did stays in force.
    misfit: Option<String>,
    /// Why the config that there is now cannot be read, where one that could stays in force.
    unread: Option<String>,
    /// Networks this node was in before: their routes are still ours to remove.
    before: BTreeSet<IpNet>,
    /// Subnets this node had: their blackhole routes are ours too.
    had: BTreeSet<IpNet>,
    /// External interfaces of this run: our routes through those of before are ours to remove.
    externals: BTreeSet<LinkName>,
    /// What `subnet.env` said last, also before this run: pods were made of it.
    promised: Option<SubnetEnv>,
    leases: LeaseSet,
    /// Leases to be planned again.
    touched: BTreeSet<LeaseKey>,
    listed: bool,
    decided: Option<Decided>,
    held: Option<Held>,
    hold_call: Attempt<HoldAnswer>,
    /// What the store was asked last.
    asked: Option<(NetworkConfig, Claim)>,
    /// Our own record changed since then.
    overtaken: bool,
    in_force: Option<InForce>,
    /// The remarks on leases that were logged.
    skipped: BTreeMap<LeaseKey, Vec<Skipped>>,
    report: Option<Report>,
    /// Everything that is wanted was tried once.
    tried: bool,
    written: Option<SubnetEnv>,
    ready: bool,
    /// What is wrong on this host beside flannel's own objects.
    host: Vec<Problem>,
    /// What the store was told last.
    told: Standing,
}

/// What this node is in a network.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decided {
    config: NetworkConfig,
    node: Node,
}

/// What the plan in force was made of.
struct InForce {
    decided: Decided,
    /// The key of our own lease.
    own: LeaseKey,
    /// It is of the peers too; else of this node's own part alone.
    peers: bool,
    /// The orders' version that began with it.
    version: u64,
}

impl InForce {
    fn ground<'a>(&'a self, leases: &'a LeaseSet) -> Ground<'a> {
        let Decided { config, node } = &self.decided;
        Ground { config, node, leases, own: Some(&self.own) }
    }

    fn plan(&self, leases: &LeaseSet) -> Plan {
        if self.peers { Plan::whole(&self.ground(leases)) } else { Plan::whole(&self.ground(&LeaseSet::default())) }
    }
}

/// What the store has for us.
pub(crate) enum Said {
    Event(Option<StoreEvent>),
    Hold(Step<HoldAnswer>),
}

impl<'a> Agent<'a> {
    pub(crate) fn new(
        flags: &'a Flags,
        notify_socket: Option<OsString>,
        store: Box<dyn Store>,
        orders: Arc<Orders>,
        vitals: Arc<Vitals>,
        facts: Facts,
        found: Option<&SubnetEnv>,
    ) -> Self {
        let agent = Self {
            flags,
            options: flags.node.clone(),
            notify_socket,
            events: store.watch(),
            rules: store.rules(),
            store,
            orders,
            vitals,
            changes: Changes::default(),
            facts,
            config: None,
            trouble: None,
            waits: None,
            misfit: None,
            unread: None,
            before: found.iter().flat_map(|env| env.networks.iter().copied()).collect(),
            had: found.iter().flat_map(|env| env.subnets.values().copied()).collect(),
            externals: BTreeSet::new(),
            promised: found.cloned(),
            leases: LeaseSet::default(),
            touched: BTreeSet::new(),
            listed: false,
            decided: None,
            held: None,
            hold_call: Attempt::new(),
            asked: None,
            overtaken: false,
            in_force: None,
            skipped: BTreeMap::new(),
            report: None,
            tried: false,
            written: None,
            ready: false,
            host: Vec::new(),
            told: Standing::default(),
        };
        agent.vitals.set_missing(agent.missing());
        agent
    }

    /// Waits for the store to say something. Dropping the future loses nothing.
    pub(crate) async fn hear_store(&mut self) -> Said {
        tokio::select! {
            event = self.events.recv() => Said::Event(event),
            step = self.hold_call.step() => Said::Hold(step),
        }
    }

    pub(crate) fn on_store(&mut self, said: Said) -> Result<(), Fatal> {
        match said {
            Said::Event(Some(event)) => self.on_events(event)?,
            Said::Event(None) => return Err(Fatal::new(1, "the store ended").hint("this is a bug: please report it")),
            Said::Hold(Step::Answer(answer)) => self.on_hold_answer(answer)?,
            Said::Hold(Step::Again) => self.hold_again(),
        }
        self.tell_vitals();
        Ok(())
    }

    /// Takes an event in, and those that came with it: what they touch is planned again once.
    fn on_events(&mut self, first: StoreEvent) -> Result<(), Fatal> {
        let mut next = Some(first);
        while let Some(event) = next {
            match event {
                StoreEvent::Config(text) => self.on_config(text)?,
                StoreEvent::Leases(event) => self.on_leases(event)?,
                StoreEvent::Overrides(overrides) => self.on_overrides(&overrides)?,
                StoreEvent::Waits(waits) => self.on_waits(waits),
            }
            next = self.events.try_recv().ok();
        }
        self.replan();
        Ok(())
    }

    fn on_config(&mut self, text: Result<String, String>) -> Result<(), Fatal> {
        let parse = |text: String| NetworkConfig::parse(&text, self.rules);
        match text.and_then(|text| parse(text).map_err(|error| format!("{error} (hint: {})", error.hint()))) {
            Ok((config, warnings)) => {
                for warning in warnings {
                    self.changes.warn(Instant::now(), || warning.to_string());
                }
                self.unread = None;
                self.take_config(config)
            }
            Err(problem) if self.config.is_some() => {
                let text = format!("{problem}; the network config read before stays in force");
                tracing::warn!("{text}");
                self.unread = Some(text);
                Ok(())
            }
            Err(problem) => {
                self.note_trouble(problem);
                Ok(())
            }
        }
    }

    fn on_overrides(&mut self, overrides: &Overrides) -> Result<(), Fatal> {
        self.options.external = self.flags.node.external.clone().with(overrides);
        self.settle()
    }

    /// What the store waits for is told where it keeps us from being ready.
    fn on_waits(&mut self, waits: Option<String>) {
        if let Some(line) = &waits {
            let state = if self.held.is_some() && self.listed { "" } else { "not ready: " };
            tracing::warn!("{state}{line}");
        }
        self.waits = waits;
    }

    /// Says what is in the way, once.
    fn note_trouble(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            let state = if self.held.is_some() { "" } else { "not ready: " };
            tracing::warn!("{state}{text}");
            self.trouble = Some(text);
        }
    }

    fn take_config(&mut self, config: NetworkConfig) -> Result<(), Fatal> {
        if self.config.as_ref() == Some(&config) {
            return Ok(());
        }
        self.trouble = None;
        if let Some(old) = self.config.replace(config) {
            tracing::info!("the network config changed");
            self.before.extend(old.network.values());
        }
        self.settle()
    }

    fn on_hold_answer(&mut self, answer: HoldAnswer) -> Result<(), Fatal> {
        match answer {
            Ok(held) => {
                if self.held.as_ref() != Some(&held) {
                    tracing::info!("own lease: {} at {}", held.key, shown(&held.lease.public_ip));
                }
                self.trouble = None;
                let before = self.held.replace(held.clone());
                if let Some(before) = before.filter(|before| before.key != held.key) {
                    // The record that the new one replaced is nobody's, also until the store tells that it is gone.
                    self.touched.extend(self.leases.apply(LeaseEvent::Remove(before.key)));
                }
                // An answer that is not what was asked for is asked for again, but not at once.
                self.hold_call.wait();
                self.settle()?;
                self.end_hold();
                Ok(())
            }
            Err(HoldError::Later(cause)) => {
                let pause = self.hold_call.wait();
                self.note_trouble(format!("own lease: {cause}"));
                tracing::debug!("own lease is asked for again in {pause:?}");
                Ok(())
            }
            Err(HoldError::Never { cause, hint }) => Err(Fatal::new(1, cause).hint(hint)),
        }
    }

    /// After an answer: done, unless our own record was changed while it was under way. That it is not known yet may be because
    /// the list is older than the answer: then the news of it are under way, and there is a pause to wait for them.
    fn end_hold(&mut self) {
        let overtaken = std::mem::take(&mut self.overtaken) && self.must_hold_again();
        if overtaken || (self.holds_what_we_claim() && !self.own_record_differs()) {
            self.end_asking();
        }
        if overtaken {
            self.call_hold();
        }
    }

    /// The store need not be asked any more, so what kept it from answering is no trouble.
    fn end_asking(&mut self) {
        self.hold_call.succeeded();
        self.trouble = None;
    }

    /// After a pause: asks again, if there still is a reason.
    fn hold_again(&mut self) {
        if self.holds_what_we_claim() && !self.own_record_differs() {
            self.end_asking();
        } else {
            self.call_hold();
        }
    }

    fn on_leases(&mut self, event: LeaseEvent) -> Result<(), Fatal> {
        self.log_leases(&event);
        let is_list = matches!(event, LeaseEvent::Snapshot(_));
        self.listed |= is_list;
        let touched = self.leases.apply(event);
        let of_own = |held: &Held| is_list || touched.contains(&held.key);
        // Which record will be ours shows only with the first answer, and this may be news of it that is newer. A list seldom is.
        self.overtaken |= !is_list && self.held.is_none() && !self.hold_call.is_idle();
        if self.held.as_ref().is_some_and(of_own) {
            if self.must_hold_again() {
                self.overtaken = true;
                self.call_hold();
            } else if self.hold_call.is_waiting() && self.holds_what_we_claim() {
                self.end_asking();
            }
        }
        match &self.in_force {
            Some(in_force) if in_force.peers => self.touched.extend(touched),
            Some(_) => self.plan_peers(),
            None => self.settle()?,
        }
        Ok(())
    }

    /// Whether peers are planned: thousands take longer than this node's own part, which is therefore seen to first.
    fn minds_peers(&self) -> bool {
        self.listed && self.report.is_some()
    }

    fn must_hold_again(&self) -> bool {
        self.own_record_differs() || self.is_disputed()
    }

    /// Whether the store's record of our own lease is not what we wrote: removed or rewritten, it is taken back.
    fn own_record_differs(&self) -> bool {
        let Some(held) = &self.held else { return false };
        !matches!(self.leases.record(&held.key), Some(Ok(lease)) if **lease == held.lease)
    }

    /// Whether an older lease has our subnet or our address: the store knows whose it is, and who has to go.
    fn is_disputed(&self) -> bool {
        let Some(Held { key, lease }) = &self.held else { return false };
        let subnets = lease.subnet.values().flat_map(|subnet| self.leases.overlapping(*subnet));
        let (since, first) = (lease.since, LeaseKey::default());
        let addresses = lease.public_ip.values().flat_map(|address| self.leases.at_address(*address, (since, &first)));
        subnets.chain(addresses).any(|(other, their)| other != key && their.since < lease.since)
    }

    fn log_leases(&mut self, event: &LeaseEvent) {
        let now = Instant::now();
        match event {
            LeaseEvent::Snapshot(records) => self.changes.line(now, || format!("{} leases listed", records.len())),
            LeaseEvent::Put(Record { key, lease: Ok(lease) }) => {
                self.changes.line(now, || format!("lease {key} at {}", shown(&lease.public_ip)));
            }
            LeaseEvent::Put(_) => {}
            LeaseEvent::Remove(key) => self.changes.line(now, || format!("lease {key} is gone")),
        }
    }

    pub(crate) fn on_news(&mut self, news: News) -> Result<(), Fatal> {
        match news {
            News::Facts(facts) => {
                self.facts = *facts;
                self.settle()?;
            }
            News::Pass(report) => self.on_report(report)?,
            News::Host(problems) => self.host = problems,
        }
        self.tell_vitals();
        Ok(())
    }

    /// A report on orders before those in force says nothing of them.
    fn on_report(&mut self, report: Report) -> Result<(), Fatal> {
        if self.in_force.as_ref().is_some_and(|in_force| report.version < in_force.version) {
            return Ok(());
        }
        self.write_subnet_env(&report)?;
        self.tried |= report.whole && self.in_force.as_ref().is_some_and(|in_force| in_force.peers);
        self.report = Some(report);
        self.plan_peers();
        Ok(())
    }

    /// Goes as far as what is known allows: node, own lease, plan. A config that this host cannot follow leaves the one before
    /// in force, with the facts of now.
    fn settle(&mut self) -> Result<(), Fatal> {
        let Some(config) = self.config.clone() else { return Ok(()) };
        match self.node_in(&config) {
            Ok(node) => {
                self.misfit = None;
                self.decide(Decided { config, node });
            }
            Err(error) => {
                let Some(before) = self.decided.as_ref().map(|decided| decided.config.clone()) else {
                    return Err(Fatal::new(1, error.to_string()).hint(error.hint()));
                };
                self.note_misfit(&error);
                if before != config
                    && let Ok(node) = self.node_in(&before)
                {
                    self.decide(Decided { config: before, node });
                }
            }
        }
        Ok(())
    }

    /// What this node is in a network, as far as the facts allow.
    fn node_in(&self, config: &NetworkConfig) -> Result<Node, NodeError> {
        node(&self.options, config, &self.facts, self.held.as_ref().map(|held| &held.lease))
    }

    /// Plans with our own lease as far as it fits, also while what it says of us is being written.
    fn decide(&mut self, decided: Decided) {
        let known = self.decided.as_ref().map(|decided| decided.node.warnings.clone()).unwrap_or_default();
        for warning in decided.node.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!("{warning}");
        }
        let own =
            self.held.as_ref().filter(|held| decided.config.fits(&held.lease.subnet)).map(|held| held.key.clone());
        self.decided = Some(decided.clone());
        if let Some(own) = own {
            let in_force = self.in_force.as_ref().map(|in_force| (&in_force.decided, &in_force.own, in_force.peers));
            if in_force != Some((&decided, &own, self.minds_peers())) {
                self.plan_whole(decided, own);
            }
        }
        if !self.holds_what_we_claim() {
            self.call_hold();
        }
    }

    /// What our own lease must say.
    fn claim(&self) -> Option<(NetworkConfig, Claim)> {
        let Decided { config, node } = self.decided.as_ref()?;
        let previous = self.promised.as_ref().map(|env| env.subnets).unwrap_or_default();
        Some((config.clone(), claim(config, node, previous)))
    }

    /// Whether our own lease is held, fits the config and says what it must.
    fn holds_what_we_claim(&self) -> bool {
        let (Some((config, claim)), Some(Held { lease, .. })) = (self.claim(), &self.held) else { return false };
        config.fits(&lease.subnet) && lease.public_ip == claim.public_ip && lease.attributes == claim.attributes
    }

    /// Asks the store for our own lease, unless it is asked that very thing already.
    fn call_hold(&mut self) {
        let asked = self.claim();
        let Some((config, claim)) = &asked else { return };
        if self.hold_call.is_idle() || self.asked != asked {
            self.overtaken = false;
            self.hold_call.call(self.store.hold(config, claim));
            self.asked = asked;
        }
    }

    /// Plans of the peers too, if it is time for them and the plan in force is not.
    fn plan_peers(&mut self) {
        if let Some(InForce { decided, own, peers: false, .. }) = &self.in_force
            && self.minds_peers()
        {
            self.plan_whole(decided.clone(), own.clone());
        }
    }

    fn plan_whole(&mut self, decided: Decided, own: LeaseKey) {
        let mut in_force = InForce { decided, own, peers: self.minds_peers(), version: 0 };
        let Plan { want, skipped } = in_force.plan(&self.leases);
        let scope = self.scope(&in_force.decided);
        let Decided { config, node } = &in_force.decided;
        let pods = PodNetworks::of(&config.network, &node.subnet);
        in_force.version = self.orders.change(|desired| {
            desired.want(want);
            desired.scope = scope;
            desired.pods = pods;
            desired.spares = !in_force.peers;
        });
        self.in_force = Some(in_force);
        self.log_skipped(&skipped);
        self.skipped = skipped;
    }

    /// What is ours, that of earlier networks, subnets and external interfaces included.
    fn scope(&mut self, Decided { config, node }: &Decided) -> Scope {
        self.had.extend(node.subnet.values());
        self.externals.extend(node.external.values().map(|external| external.name));
        let blackholes = if node.rules.blackhole { self.had.iter().copied().collect() } else { Vec::new() };
        Scope {
            networks: config.network.values().chain(&self.before).copied().collect(),
            externals: self.externals.iter().copied().collect(),
            blackholes,
            iptables: node.rule_mode == RuleMode::Iptables,
        }
    }

    /// Plans the leases that events touched again, on the ground of the plan in force.
    fn replan(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        let Some(in_force) = self.in_force.as_ref().filter(|_| !touched.is_empty()) else { return };
        let Replan { want, mut skipped } = Replan::of(&in_force.ground(&self.leases), &touched);
        self.orders.change(|desired| desired.rewant(want));
        skipped.retain(|key, _| !self.is_becoming_ours(key));
        self.log_skipped(&skipped);
        self.skipped.retain(|key, _| !touched.contains(key));
        self.skipped.extend(skipped);
    }

    /// Whether a record is that of our own lease under another name, of which the store has not answered yet.
    fn is_becoming_ours(&self, key: &LeaseKey) -> bool {
        let (Some(held), Some(Ok(lease))) = (&self.held, self.leases.record(key)) else { return false };
        let shares =
            |family| lease.subnet.get(family).is_some() && lease.subnet.get(family) == held.lease.subnet.get(family);
        let is_at = |family| lease.public_ip.get(family).is_some_and(|ip| held.lease.public_ip.get(family) == Some(ip));
        !self.hold_call.is_idle() && Family::ALL.into_iter().any(|family| shares(family) && is_at(family))
    }

    /// Logs the remarks on leases that are new.
    fn log_skipped(&mut self, skipped: &BTreeMap<LeaseKey, Vec<Skipped>>) {
        let now = Instant::now();
        for (key, remarks) in skipped {
            let known = self.skipped.get(key).map(Vec::as_slice).unwrap_or_default();
            for remark in remarks.iter().filter(|remark| !known.contains(remark)) {
                self.changes.warn(now, || standing::line(key, remark));
            }
        }
    }

    /// Writes `subnet.env` once this node's own part of the kernel is right: from then on pods may start.
    fn write_subnet_env(&mut self, report: &Report) -> Result<(), Fatal> {
        let Some(content) = self.subnet_env().filter(|_| report.node.is_empty()) else { return Ok(()) };
        if self.written.as_ref() == Some(&content) {
            return Ok(());
        }
        let path = &self.flags.subnet_file;
        subnet_file::write(path, &content)?;
        tracing::info!("wrote {}: {}", path.display(), shown(&content.subnets));
        if let Some(lack) = self.promised.as_ref().and_then(|promised| subnet_file::outdated(promised, &content)) {
            tracing::warn!("pods made before {lack}: make them anew");
        }
        self.promised = Some(content.clone());
        self.written = Some(content);
        Ok(())
    }

    /// Sees that `subnet.env` still says what was written: somebody may have emptied its directory.
    pub(crate) fn look_after_subnet_env(&mut self) {
        let Some(content) = &self.written else { return };
        let path = &self.flags.subnet_file;
        match subnet_file::write(path, content) {
            Ok(false) => {}
            Ok(true) => tracing::warn!("{} was changed or removed: written again", path.display()),
            Err(error) => self.changes.warn(Instant::now(), || error.to_string()),
        }
    }

    /// Called at every turn of the loop.
    pub(crate) fn turn(&mut self, now: Instant) {
        self.vitals.turn(now);
        self.tell_store();
        self.changes.flush(now);
    }
}

fn shown<T: std::fmt::Display>(dual: &Dual<T>) -> String {
    dual.values().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests;
