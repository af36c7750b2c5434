//! Damage done to a running node, and the time until flanneld has repaired it.
//!
//! Surface: [`Lab::damage`], [`Lab::wait_repaired`] with [`Injury`], and [`show`], the command `flannel lab break`. Damage is
//! done by this process' own requests to the kernel, so that the time begins at the damaging request's return (for iptables,
//! where a program does it, at that program's start).

use std::io::Write;
use std::time::{Duration, Instant};

use flannel_core::addr::{Dual, Family};
use flannel_core::rules::RuleMode;
use flannel_core::state::{Object, Scope, State, Value};
use flannel_kernel::executor::{Executor, ObserveError};
use flannel_kernel::linux::KernelExecutor;
use flannel_kernel::rules::RulesExecutor;
use ipnet::IpNet;

use crate::command::BreakArgs;
use crate::damage::{Damage, after_move, external};
use crate::echo::fresh_token;
use crate::error::{Doing, LabError};
use crate::lab::{Lab, Node};
use crate::layout::EXTERNAL;
use crate::report::{percentile, table, time};
use crate::wire::{Wire, lay};

/// How long a repair is waited for.
const PATIENCE: Duration = Duration::from_secs(15);
/// The pause between two looks at a damaged node. A look takes about a millisecond itself: the times are no finer.
const POLL: Duration = Duration::from_micros(100);
/// How long the host is left without what an external damage took.
const ABSENCE: Duration = Duration::from_millis(100);

/// A damage that was done.
#[derive(Debug)]
pub struct Injury {
    /// The node it was done to.
    pub node: usize,
    /// Which it was.
    pub damage: Damage,
    /// What was done, in `ip` words, line by line.
    pub done: Vec<String>,
    since: Instant,
    wanted: Vec<(usize, State)>,
}

impl Injury {
    /// A damage that was just done by other means to a node that was whole before.
    pub fn by_hand(node: usize, damage: Damage, whole: State) -> Self {
        Self { node, damage, done: Vec::new(), since: Instant::now(), wanted: vec![(node, whole)] }
    }
}

impl Lab {
    /// What of flannel's the kernel holds on a node.
    pub fn observe(&self, node: usize) -> Result<State, LabError> {
        self.with_kernel(node, |kernel, scope| {
            kernel.observe(scope).map_err(|error| failed(self.node(node), "observe flannel's state", &error))
        })
    }

    /// Works with a kernel executor on a node: on a thread there, as programs it runs must be there too.
    pub(crate) fn with_kernel<T: Send>(
        &self,
        node: usize,
        work: impl FnOnce(&mut KernelExecutor, &Scope) -> Result<T, LabError> + Send,
    ) -> Result<T, LabError> {
        let (scope, mode) = (self.scope(), self.options().rule_mode());
        let name = self.node(node);
        name.place().inside(|| {
            let rules = RulesExecutor::open(mode).map_err(|error| failed(name, "open packet rules", &error))?;
            let mut kernel = KernelExecutor::open(Some(rules)).map_err(|error| failed(name, "open netlink", &error))?;
            work(&mut kernel, &scope)
        })?
    }

    fn scope(&self) -> Scope {
        Scope {
            networks: crate::options::pod_networks(),
            externals: external().into_iter().collect(),
            blackholes: Vec::new(),
            iptables: self.options().rule_mode() == RuleMode::Iptables,
        }
    }

    /// Damages a node that is whole. Answers with none where the node has nothing of the kind (host-gw has no device).
    pub fn damage(&self, node: usize, damage: Damage) -> Result<Option<Injury>, LabError> {
        let whole = wanted_part(self.observe(node)?);
        if damage.is_external() {
            return self.damage_external(node, damage, whole).map(Some);
        }
        if damage == Damage::RulesUnhooked && !self.options().nftables {
            return self.remove_jumps(node, whole).map(Some);
        }
        let ops = damage.changes(&whole);
        if ops.is_empty() {
            return Ok(None);
        }
        let done = ops.iter().map(|op| op.change.to_string()).collect();
        let by_program = damage.is_of_rules() && !self.options().nftables;
        let since = self.with_kernel(node, |kernel, scope| {
            // The executor changes only what it has seen.
            kernel.observe(scope).map_err(|error| failed(self.node(node), "observe", &error))?;
            let before = Instant::now();
            let failures = kernel.apply(&ops);
            let after = Instant::now();
            match failures.first() {
                Some(error) => Err(failed(self.node(node), "damage", error)),
                None => Ok(if by_program { before } else { after }),
            }
        })?;
        Ok(Some(Injury { node, damage, done, since, wanted: vec![(node, whole)] }))
    }

    /// Removes iptables' jumps to flannel's masquerade chains. Nothing else is in that chain of iptables in a lab.
    fn remove_jumps(&self, node: usize, whole: State) -> Result<Injury, LabError> {
        let (since, mut done) = (Instant::now(), Vec::new());
        for family in Family::ALL.into_iter().filter(|family| self.options().speaks(*family)) {
            let program = if family == Family::V4 { "iptables" } else { "ip6tables" };
            let line = format!("{program} -w -t nat -F POSTROUTING");
            self.node(node).run_line(&line)?;
            done.push(line);
        }
        Ok(Injury { node, damage: Damage::RulesUnhooked, done, since, wanted: vec![(node, whole)] })
    }

    fn damage_external(&self, node: usize, damage: Damage, whole: State) -> Result<Injury, LabError> {
        let place = self.node(node).place();
        let seat = self.layout().nodes[node].address;
        let (old, new) = match damage {
            Damage::ExternalAddressChanged => self.other_addresses(node)?,
            _ => (seat, seat),
        };
        let away: Vec<Wire> = match damage {
            Damage::ExternalDownUp => vec![Wire::Up(EXTERNAL.to_owned(), false)],
            _ => old.values().map(|net| Wire::NoAddress(EXTERNAL.to_owned(), *net)).collect(),
        };
        let wanted = self.wanted_after(node, damage, whole, old, new)?;
        lay(place, &away)?;
        std::thread::sleep(ABSENCE);
        let gateway = self.layout().segments[self.layout().nodes[node].segment].gateway();
        let back = std::iter::once(Wire::Up(EXTERNAL.to_owned(), true))
            .chain(new.values().map(|net| Wire::Address(EXTERNAL.to_owned(), *net)))
            .chain(gateway.values().map(|gateway| Wire::DefaultRoute(EXTERNAL, *gateway)));
        let back: Vec<Wire> = back.collect();
        lay(place, &back)?;
        let since = Instant::now();
        self.lay_return_routes()?;
        let done = away.iter().chain(&back).map(ToString::to_string).collect();
        Ok(Injury { node, damage, done, since, wanted })
    }

    /// The external addresses now, and those to change to: away from the seat's, or back to them.
    fn other_addresses(&self, node: usize) -> Result<(Dual<IpNet>, Dual<IpNet>), LabError> {
        let (seat, moved) = (self.layout().nodes[node].address, self.layout().moved(self.options(), node));
        let now = self.node(node).external_addresses()?;
        let at_seat = now.iter().any(|(family, address)| seat.get(family).is_some_and(|net| net.addr() == *address));
        Ok(if at_seat { (seat, moved) } else { (moved, seat) })
    }

    /// What every node concerned must hold in the end.
    fn wanted_after(
        &self,
        node: usize,
        damage: Damage,
        whole: State,
        old: Dual<IpNet>,
        new: Dual<IpNet>,
    ) -> Result<Vec<(usize, State)>, LabError> {
        let mut wanted = vec![(node, whole)];
        if damage == Damage::ExternalAddressChanged {
            for peer in (0..self.nodes().len()).filter(|peer| *peer != node) {
                wanted.push((peer, wanted_part(self.observe(peer)?)));
            }
        }
        let moves = old.iter().filter_map(|(family, old)| Some((old.addr(), new.get(family)?.addr())));
        let moves: Vec<_> = moves.collect();
        for (_, state) in &mut wanted {
            *state = moves.iter().fold(std::mem::take(state), |state, (old, new)| after_move(&state, *old, *new));
        }
        Ok(wanted)
    }

    /// Waits until all that the damage took is there again, as it was, and answers with the time since.
    pub fn wait_repaired(&self, injury: &Injury) -> Result<Duration, LabError> {
        let mut repaired = Duration::ZERO;
        for (node, wanted) in &injury.wanted {
            repaired = repaired.max(self.wait_until_holds(*node, wanted, injury)?);
        }
        Ok(repaired)
    }

    fn wait_until_holds(&self, node: usize, wanted: &State, injury: &Injury) -> Result<Duration, LabError> {
        self.with_kernel(node, |kernel, scope| {
            loop {
                // A listing that the repair itself disturbs is made again.
                let missing = look(kernel, scope).map(|have| missing(wanted, &have));
                let took = injury.since.elapsed();
                match missing {
                    Ok(missing) if missing.is_empty() => return Ok(took),
                    Ok(missing) if took > PATIENCE => return Err(self.unrepaired(node, injury, &missing)),
                    Err(error) if took > PATIENCE => return Err(failed(self.node(node), "observe", &error)),
                    Ok(_) | Err(_) => std::thread::sleep(POLL),
                }
            }
        })
    }

    fn unrepaired(&self, node: usize, injury: &Injury, missing: &[String]) -> LabError {
        LabError::Timeout {
            what: format!(
                "the repair of {} on {} (missing: {})",
                injury.damage.name(),
                self.node(node).place().name(),
                missing.join("; ")
            ),
            after: PATIENCE,
            log: self.node(node).flanneld.log_tail(),
        }
    }
}

/// Reads a node's state; of iptables-legacy, which tells of no change, by a tick of its own.
fn look(kernel: &mut KernelExecutor, scope: &Scope) -> Result<State, ObserveError> {
    kernel.resync(scope, &mut State::default())?;
    kernel.observe(scope)
}

fn failed(node: &Node, action: &str, error: &dyn std::error::Error) -> LabError {
    LabError::Kernel { action: format!("{action} on {}", node.place().name()), cause: error.to_string() }
}

/// A state without what is there but not flannel's to want (a learned neighbour, …).
pub(crate) fn wanted_part(mut state: State) -> State {
    state.objects.retain(|_, value| !matches!(value, Value::Other(_)));
    state
}

/// The wanted objects that are absent or different.
pub fn missing(wanted: &State, have: &State) -> Vec<String> {
    let absent = wanted.objects.iter().filter(|(key, value)| have.objects.get(key) != Some(value));
    absent.map(|(key, value)| Object(key, value).to_string().lines().next().unwrap_or_default().to_owned()).collect()
}

/// The command `flannel lab break`.
pub(crate) fn show(lab: &mut Lab, what: &BreakArgs, out: &mut dyn Write) -> Result<(), LabError> {
    let write = |out: &mut dyn Write, text: &str| writeln!(out, "{text}").doing(|| "write".into());
    if let Some(minutes) = what.random {
        let storm = storm(lab, Duration::from_secs(minutes * 60), &mut |text| write(out, text))?;
        return write(out, &storm.to_string());
    }
    if let Some(minutes) = what.servers {
        return crate::siege::show(lab, minutes, what.seed, out);
    }
    let damages = chosen(what)?;
    if damages.is_empty() {
        return write(out, &list());
    }
    let node = lab.node_named(&what.node)?;
    let mut table = table(&["damage", "repaired", "p50", "p95", "slowest"], 1);
    for damage in damages {
        match repeat(lab, node, damage, what, &mut |text| write(out, text))? {
            None => table.add_row([damage.name(), "nothing of the kind here"]),
            Some(times) => table.add_row([
                damage.name().to_owned(),
                format!("✓ {}", times.len()),
                time(percentile(&times, 50)),
                time(percentile(&times, 95)),
                time(percentile(&times, 100)),
            ]),
        };
    }
    write(out, &table.to_string())
}

fn chosen(what: &BreakArgs) -> Result<Vec<Damage>, LabError> {
    if what.all {
        return Ok(Damage::ALL.to_vec());
    }
    let named = |name: &String| {
        let known = || Damage::ALL.map(Damage::name).join(", ");
        Damage::named(name).ok_or_else(|| LabError::Unknown { name: name.clone(), known: known() })
    };
    what.damages.iter().map(named).collect()
}

fn list() -> String {
    let mut table = table(&["damage", "what is done"], 2);
    for damage in Damage::ALL {
        table.add_row([damage.name(), damage.sentence()]);
    }
    format!(
        "{table}\n\nbreak one: flannel lab break device-deleted\nall, 50 times each: flannel lab break --all --times 50"
    )
}

/// Does one damage again and again; the first time it is shown what is done.
fn repeat(
    lab: &Lab,
    node: usize,
    damage: Damage,
    what: &BreakArgs,
    tell: &mut dyn FnMut(&str) -> Result<(), LabError>,
) -> Result<Option<Vec<Duration>>, LabError> {
    let mut times = Vec::new();
    for round in 0..what.times.max(1) {
        let Some(injury) = lab.damage(node, damage)? else { return Ok(None) };
        let took = lab.wait_repaired(&injury)?;
        if round == 0 {
            let done: Vec<&str> = injury.done.iter().filter_map(|done| done.lines().next()).collect();
            tell(&format!(
                "{}: {}\n  {}\n  repaired after {}",
                what.node,
                damage.sentence(),
                done.join("\n  "),
                time(took)
            ))?;
        }
        times.push(took);
    }
    Ok(Some(times))
}

/// What came of a storm of damages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Storm {
    /// How many damages were done.
    pub damages: usize,
    /// What each node's flanneld has allocated in KiB: after the first tenth of the time, and in the end. Pages of the program
    /// are not in it: there are the more of them the more kinds of damage it has seen.
    pub memory: Vec<(u32, u32)>,
}

impl Storm {
    /// The largest growth of memory after the first tenth, in percent.
    pub fn growth(&self) -> f64 {
        let growth =
            self.memory.iter().map(|(early, late)| (f64::from(*late) / f64::from((*early).max(1)) - 1.0) * 100.0);
        growth.fold(0.0, f64::max)
    }
}

impl std::fmt::Display for Storm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{} damages; every node is whole again", self.damages)?;
        for (node, (early, late)) in self.memory.iter().enumerate() {
            writeln!(
                f,
                "node{}: flanneld has allocated {early} KiB after the first tenth, {late} KiB in the end",
                node + 1
            )?;
        }
        write!(f, "largest growth: {:.1} %", self.growth())
    }
}

/// Damages random nodes at random moments without waiting for repair, then waits until every node holds what it held.
pub fn storm(
    lab: &Lab,
    length: Duration,
    tell: &mut dyn FnMut(&str) -> Result<(), LabError>,
) -> Result<Storm, LabError> {
    let nodes = 0..lab.nodes().len();
    let whole: Vec<State> = nodes.clone().map(|node| lab.observe(node).map(wanted_part)).collect::<Result<_, _>>()?;
    let memory = || nodes.clone().map(|node| lab.node(node).flanneld.allocated_kib().unwrap_or_default());
    let (started, mut early, mut count) = (Instant::now(), None, 0);
    while started.elapsed() < length {
        let dice = fresh_token();
        let node = (dice % lab.nodes().len() as u64) as usize;
        let damage = Damage::ALL[(dice >> 16) as usize % (Damage::ALL.len() - 1)];
        // A change may come too late for an object that the damage before it took.
        count += usize::from(matches!(lab.damage(node, damage), Ok(Some(_))));
        if early.is_none() && started.elapsed() >= length / 10 {
            early = Some(memory().collect::<Vec<_>>());
            tell(&format!("{count} damages in the first tenth"))?;
        }
        std::thread::sleep(Duration::from_millis((dice >> 32) % 200));
    }
    for (node, wanted) in whole.into_iter().enumerate() {
        let injury = Injury::by_hand(node, Damage::DeviceDeleted, wanted);
        lab.wait_repaired(&injury)?;
    }
    let late = memory().collect::<Vec<_>>();
    Ok(Storm { damages: count, memory: early.unwrap_or_else(|| late.clone()).into_iter().zip(late).collect() })
}
