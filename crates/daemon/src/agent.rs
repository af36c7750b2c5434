//! The one loop of `flanneld`: what the store, the kernel's thread and the signals say, in; what is wanted, out.
//!
//! [`Agent`] never waits for anything but the next event. Each event may complete what was missing ([`Agent::settle`]):
//! config, node, own lease, first snapshot; from then on a plan is always in force, and every change, of whatever kind, ends
//! in a new one. Nothing on the host is touched before that.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::sync::Arc;
use std::time::Instant;

use flannel_core::addr::Dual;
use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::facts::Facts;
use flannel_core::lease::{Claim, LeaseEvent, LeaseKey, Record};
use flannel_core::lease_set::LeaseSet;
use flannel_core::node::{Node, claim, node};
use flannel_core::plan::{Ground, Plan};
use flannel_core::subnet_env::SubnetEnv;
use flannel_store::{Held, HoldError, Store, StoreEvent};
use ipnet::IpNet;
use tokio::sync::mpsc::Receiver;

use crate::attempt::{Attempt, Step};
use crate::fatal::Fatal;
use crate::flags::Flags;
use crate::health::Vitals;
use crate::log::Changes;
use crate::upkeep::{Orders, Report};
use crate::worker::News;
use crate::{notify, subnet_file};

type HoldAnswer = Result<Held, HoldError>;

/// Everything the loop knows.
pub(crate) struct Agent<'a> {
    flags: &'a Flags,
    notify_socket: Option<OsString>,
    store: Box<dyn Store>,
    events: Receiver<StoreEvent>,
    orders: Arc<Orders>,
    vitals: Arc<Vitals>,
    changes: Changes,
    facts: Facts,
    config: Option<NetworkConfig>,
    /// Why there is no config, or no lease, yet.
    trouble: Option<String>,
    /// Networks this node was in before: their routes are still ours to remove.
    before: Vec<IpNet>,
    /// The subnets that `subnet.env` held last.
    previous: Dual<IpNet>,
    leases: LeaseSet,
    listed: bool,
    node: Option<Node>,
    held: Option<Held>,
    hold_call: Attempt<HoldAnswer>,
    claimed: Option<Claim>,
    planned: bool,
    report: Option<Report>,
    written: Option<SubnetEnv>,
    ready: bool,
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
        Self {
            flags,
            notify_socket,
            events: store.watch(),
            store,
            orders,
            vitals,
            changes: Changes::default(),
            facts,
            config: None,
            trouble: None,
            before: found.map(|env| env.networks.clone()).unwrap_or_default(),
            previous: found.map(|env| env.subnets).unwrap_or_default(),
            leases: LeaseSet::default(),
            listed: false,
            node: None,
            held: None,
            hold_call: Attempt::new(),
            claimed: None,
            planned: false,
            report: None,
            written: None,
            ready: false,
        }
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
            Said::Event(Some(StoreEvent::Config(text))) => self.on_config(text),
            Said::Event(Some(StoreEvent::Leases(event))) => self.on_leases(event),
            Said::Event(None) => Err(Fatal::new(1, "the store ended").hint("this is a bug: please report it")),
            Said::Hold(Step::Answer(answer)) => self.on_hold_answer(answer),
            Said::Hold(Step::Again) => {
                self.call_hold();
                Ok(())
            }
        }
    }

    fn on_config(&mut self, text: Result<String, String>) -> Result<(), Fatal> {
        let parse = |text: String| NetworkConfig::parse(&text, ConfigRules::Etcd);
        match text.and_then(|text| parse(text).map_err(|error| format!("{error} (hint: {})", error.hint()))) {
            Ok((config, warnings)) => {
                for warning in warnings {
                    tracing::warn!("{warning}");
                }
                self.take_config(config)
            }
            Err(problem) if self.config.is_some() => {
                tracing::warn!("{problem}; the network config read before stays in force");
                Ok(())
            }
            Err(problem) => {
                self.note_trouble(problem);
                Ok(())
            }
        }
    }

    /// Says what is in the way, once.
    fn note_trouble(&mut self, text: String) {
        if self.trouble.as_ref() != Some(&text) {
            tracing::warn!("not ready: {text}");
            self.trouble = Some(text);
        }
        self.tell_vitals();
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
                self.hold_call.succeeded();
                self.trouble = None;
                self.held = Some(held);
                self.settle()
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

    fn on_leases(&mut self, event: LeaseEvent) -> Result<(), Fatal> {
        self.log_leases(&event);
        self.listed |= matches!(event, LeaseEvent::Snapshot(_));
        let touched = self.leases.apply(event);
        if self.own_record_differs() {
            self.call_hold();
        }
        if self.planned {
            self.replan(&touched);
            Ok(())
        } else {
            self.settle()
        }
    }

    /// Whether the store's record of our own lease is not what we wrote: removed or rewritten, it is taken back.
    fn own_record_differs(&self) -> bool {
        let Some(held) = self.held.as_ref().filter(|_| self.listed) else { return false };
        !matches!(self.leases.record(&held.key), Some(Ok(lease)) if *lease == held.lease)
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
                self.settle()
            }
            News::Pass(report) => self.on_report(report),
        }
    }

    fn on_report(&mut self, report: Report) -> Result<(), Fatal> {
        self.report = Some(report);
        self.write_subnet_env()?;
        self.tell_vitals();
        Ok(())
    }

    /// Goes as far as what is known allows: node, own lease, plan.
    fn settle(&mut self) -> Result<(), Fatal> {
        let own = self.held.as_ref().map(|held| &held.lease);
        let Some(decided) = self.config.as_ref().map(|config| node(&self.flags.node, config, &self.facts, own)) else {
            return Ok(());
        };
        match decided {
            Ok(node) => self.take_node(node),
            Err(error) if self.node.is_none() => return Err(Fatal::new(1, error.to_string()).hint(error.hint())),
            Err(error) => {
                self.changes.warn(Instant::now(), || format!("{error}; what was decided before stays in force"));
            }
        }
        Ok(())
    }

    fn take_node(&mut self, node: Node) {
        let known = self.node.as_ref().map(|node| node.warnings.clone()).unwrap_or_default();
        for warning in node.warnings.iter().filter(|warning| !known.contains(warning)) {
            tracing::warn!("{warning}");
        }
        self.node = Some(node);
        if self.holds_what_we_claim() {
            self.plan_whole();
        } else {
            self.call_hold();
        }
        self.tell_vitals();
    }

    /// Whether our own lease is held, fits the config and says what it must.
    fn holds_what_we_claim(&self) -> bool {
        let (Some(config), Some(node), Some(held)) = (&self.config, &self.node, &self.held) else { return false };
        let claim = claim(config, node, self.previous);
        config.fits(&held.lease.subnet)
            && held.lease.public_ip == claim.public_ip
            && held.lease.attributes == claim.attributes
    }

    /// Asks the store for our own lease, unless it is at that very claim.
    fn call_hold(&mut self) {
        let (Some(config), Some(node)) = (&self.config, &self.node) else { return };
        let claim = claim(config, node, self.previous);
        if !self.hold_call.is_idle() && self.claimed.as_ref() == Some(&claim) {
            return;
        }
        self.hold_call.call(self.store.hold(config, &claim));
        self.claimed = Some(claim);
    }

    fn plan_whole(&mut self) {
        let (Some(config), Some(node), true) = (&self.config, &self.node, self.listed) else { return };
        let own = self.held.as_ref().map(|held| &held.key);
        let plan = Plan::whole(&Ground { config, node, leases: &self.leases, own });
        let scope = node.scope(config, &self.before);
        log_skipped(&mut self.changes, &plan, plan.skipped.keys());
        self.orders.change(|desired| {
            desired.plan = Some(plan);
            desired.scope = scope;
        });
        self.planned = true;
    }

    fn replan(&mut self, touched: &BTreeSet<LeaseKey>) {
        let (Some(config), Some(node)) = (&self.config, &self.node) else { return };
        let own = self.held.as_ref().map(|held| &held.key);
        let (ground, changes) = (Ground { config, node, leases: &self.leases, own }, &mut self.changes);
        self.orders.change(|desired| {
            if let Some(plan) = &mut desired.plan {
                plan.update(&ground, touched);
                log_skipped(changes, plan, touched.iter());
            }
        });
    }

    /// Writes `subnet.env` once this node's own part of the kernel is right: from then on pods may start.
    fn write_subnet_env(&mut self) -> Result<(), Fatal> {
        let (Some(config), Some(node), Some(report)) = (&self.config, &self.node, &self.report) else { return Ok(()) };
        if !report.node.is_empty() || node.subnet.is_empty() {
            return Ok(());
        }
        let content = SubnetEnv {
            networks: config.network.values().copied().collect(),
            subnets: node.subnet,
            mtu: node.least_mtu(),
            ip_masq: node.rules.masquerade.is_some(),
        };
        if self.written.as_ref() == Some(&content) {
            return Ok(());
        }
        let path = &self.flags.subnet_file;
        subnet_file::write(path, &content)?;
        tracing::info!("wrote {}: {}", path.display(), shown(&content.subnets));
        self.previous = content.subnets;
        self.written = Some(content);
        Ok(())
    }

    /// Tells the health server, and once systemd, how we stand.
    fn tell_vitals(&mut self) {
        let missing = self.missing();
        if missing.is_empty() && !self.ready {
            self.ready = true;
            tracing::info!("ready: {} leases", self.leases.len());
            if let Err(error) = notify::ready(self.notify_socket.as_deref()) {
                tracing::warn!("cannot tell systemd that flanneld is ready: {error}");
            }
        }
        self.vitals.set_missing(missing);
    }

    /// What keeps this node from being ready, a line each.
    fn missing(&self) -> Vec<String> {
        if let Some(trouble) = &self.trouble {
            return vec![trouble.clone()];
        }
        if self.config.is_none() {
            return vec!["waiting for the network config".into()];
        }
        if self.held.is_none() {
            return vec!["waiting for our own lease".into()];
        }
        if !self.listed {
            return vec!["waiting for the list of leases".into()];
        }
        match &self.report {
            None => vec!["programming the kernel".into()],
            Some(report) if !report.node.is_empty() => report.node.clone(),
            Some(_) if self.written.is_none() => vec!["subnet.env is not written yet".into()],
            Some(_) => Vec::new(),
        }
    }

    /// Called at every turn of the loop.
    pub(crate) fn turn(&mut self, now: Instant) {
        self.vitals.turn(now);
        self.changes.flush(now);
    }
}

fn log_skipped<'a>(changes: &mut Changes, plan: &Plan, keys: impl Iterator<Item = &'a LeaseKey>) {
    let now = Instant::now();
    for key in keys {
        for remark in plan.skipped.get(key).into_iter().flatten() {
            let skipped = if remark.warning { "" } else { " is skipped" };
            changes.warn(now, || format!("lease {key}{skipped}: {remark}"));
        }
    }
}

fn shown<T: std::fmt::Display>(dual: &Dual<T>) -> String {
    dual.values().map(ToString::to_string).collect::<Vec<_>>().join(" ")
}
