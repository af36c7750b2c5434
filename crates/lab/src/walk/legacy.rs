//! What rules of iptables-legacy do to our packet: worked out from `iptables-legacy-save`, as the kernel does not tell.
//!
//! Surface: [`Legacy`]. A rule that also asks what cannot be known here is passed over.

use std::collections::HashMap;
use std::net::IpAddr;

use flannel_core::addr::{Dual, Family};
use flannel_core::rules::evaluate::{Effect, Hit as Evaluated, Passing, Tables};
use flannel_kernel::iptables::legacy_rules;

use super::rules::Hit;
use super::story::{Step, Way};
use super::terrain::{At, Terrain};
use super::way::{Leg, Meets, Trail};
use crate::error::LabError;

/// The rules of iptables-legacy of all sites that have some.
#[derive(Debug, Default)]
pub(super) struct Legacy(HashMap<At, Dual<Tables>>);

impl Legacy {
    /// Reads them. A program is run only where the kernel says that there is something to read.
    pub(super) fn read(terrain: &Terrain, sites: &[At]) -> Result<Self, LabError> {
        let mut all = HashMap::new();
        for at in sites {
            let place = &terrain.sites[*at].place;
            let read = || Dual::try_from_fn(|family| Ok(legacy_rules(family)?.map(|text| Tables::parse(&text))));
            let tables =
                place.inside(read)?.map_err(|error: flannel_kernel::iptables::IptablesError| LabError::Kernel {
                    action: format!("read iptables-legacy of {}", place.name()),
                    cause: error.to_string(),
                })?;
            if !tables.is_empty() {
                all.insert(*at, tables);
            }
        }
        Ok(Self(all))
    }

    /// What the packet of a trail meets.
    pub(super) fn hits(&self, way: Way, trail: &Trail, name: impl Fn(At) -> String) -> Vec<Hit> {
        let mut hits = Vec::new();
        for leg in &trail.legs {
            let Leg::Rules { at, meets } = leg else { continue };
            let family = Family::of(meets.destination);
            if let Some(tables) = self.0.get(at).and_then(|tables| tables.get(family)) {
                hits.extend(evaluate(tables, way, &name(*at), meets));
            }
        }
        hits
    }
}

fn evaluate(tables: &Tables, way: Way, place: &str, meets: &Meets) -> Vec<Hit> {
    let Some(source) = meets.source else { return Vec::new() };
    let passing = Passing {
        source,
        destination: meets.destination,
        protocol: protocol(meets.wrapped, meets.destination),
        mark: 0,
        input: meets.input.as_deref(),
        output: meets.output.as_deref(),
        first: way == Way::Request,
    };
    let all = meets.hooks.iter().flat_map(|hook| tables.follow(*hook, &passing));
    all.filter(|hit| hit.certain).map(|hit| of(&hit, way, place, meets)).collect()
}

/// UDP of a tunnel; else ICMP (RFC 792) or ICMPv6 (RFC 4443).
fn protocol(wrapped: bool, destination: IpAddr) -> u8 {
    match (wrapped, destination) {
        (true, _) => 17,
        (false, IpAddr::V4(_)) => 1,
        (false, IpAddr::V6(_)) => 58,
    }
}

fn of(hit: &Evaluated, way: Way, place: &str, meets: &Meets) -> Hit {
    let verdict = word(&hit.effect);
    let drops = matches!(hit.effect, Effect::Drop | Effect::Reject);
    let step = Step::Rule {
        place: place.to_owned(),
        table: format!("iptables-legacy {}", hit.table),
        chain: hit.chain.to_string(),
        handle: None,
        text: hit.rule.as_deref().map_or_else(|| format!("policy {verdict}"), str::to_owned),
        verdict,
        traced: false,
    };
    Hit { way, stage: meets.stage, wrapped: meets.wrapped, drops, silent: hit.rule.is_none() && !drops, step }
}

fn word(effect: &Effect) -> String {
    match effect {
        Effect::Accept => "accept".into(),
        Effect::Drop => "drop".into(),
        Effect::Reject => "reject".into(),
        Effect::Translate => "masquerade".into(),
        Effect::Queue => "queue".into(),
        Effect::Return => "return".into(),
        Effect::Jump(chain) => format!("jump {chain}"),
        Effect::Goto(chain) => format!("goto {chain}"),
        Effect::Mark { .. } => "mark".into(),
        Effect::Continue => "continue".into(),
    }
}
