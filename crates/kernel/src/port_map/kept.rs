//! Published ports of many containers, seen to be whole and made whole together.
//!
//! Surface: [`Kept`]. What there should be, and when to look, is said by the caller. In nf_tables all rules are read at once; in iptables
//! one program reads and one writes for all containers of a family. Unlike a plugin, who keeps ports may live where `iptables` in `PATH`
//! is of another variant than the node's, so the node's is looked for.

use flannel_core::addr::{Dual, Family};
use flannel_core::port_map::{PortMap, iptables};
use flannel_core::rules::RuleMode;

use super::{Effort, PublishError, open_nft, publish_by_nft};
use crate::iptables::{Iptables, IptablesError, Programs, Variant};
use crate::nft::Nft;
use crate::pod_link::Links;

/// Keeps published ports of containers in the network namespace of its thread.
#[derive(Debug, Default)]
pub struct Kept {
    programs: Programs,
}

/// A container whose rules are not all there.
#[derive(Debug, Clone, Copy)]
pub struct Missing<'a> {
    /// What should be there.
    pub map: &'a PortMap,
    /// What leads to the rules of all containers is gone too. Somebody has flushed it: no plugin takes that away.
    pub is_flushed: bool,
    /// Some of its rules may be there.
    effort: Effort,
}

impl Kept {
    /// The containers that lack a rule, without those of which no link is left on the node: they are gone, or were never here.
    pub fn missing<'a>(&mut self, maps: &'a [PortMap]) -> Result<Vec<Missing<'a>>, PublishError> {
        let of = |mode| maps.iter().filter(move |map| map.mode == mode && !map.links.is_empty()).collect::<Vec<_>>();
        let mut missing = Vec::new();
        let (nft, others) = (of(RuleMode::Nftables), of(RuleMode::Iptables));
        if !nft.is_empty() {
            let effort = |some| if some { Effort::Whole } else { Effort::Quick };
            missing.extend(open_nft()?.incomplete(&nft)?.into_iter().map(|found| Missing {
                map: found.map,
                is_flushed: !found.is_led_to,
                effort: effort(found.has_some),
            }));
        }
        if !others.is_empty() {
            missing.extend(self.incomplete(&others)?);
        }
        without_gone(missing)
    }

    /// Those of containers with rules in iptables.
    fn incomplete<'a>(&mut self, maps: &[&'a PortMap]) -> Result<Vec<Missing<'a>>, PublishError> {
        let mut saved = Dual::default();
        for family in Family::ALL.into_iter().filter(|family| maps.iter().any(|map| has(map, *family))) {
            saved.set(family, self.programs(family)?.saved_nat()?);
        }
        let all = |map: &PortMap, holds: &dyn Fn(Family, &str) -> bool| {
            map.addresses.families().all(|family| saved.get(family).is_some_and(|saved| holds(family, saved)))
        };
        let lacking = maps.iter().filter(|map| !all(map, &|family, saved| iptables::is_whole(map, family, saved)));
        let missing = lacking.map(|map| {
            let is_flushed = !all(map, &|_, saved| iptables::is_led_to(map, saved));
            Missing { map, is_flushed, effort: Effort::Whole }
        });
        Ok(missing.collect())
    }

    /// Makes rules whole. Answers with the failures; in iptables those that fail fail together.
    pub fn restore(&mut self, missing: &[Missing<'_>]) -> Vec<PublishError> {
        let (nft, others): (Vec<&Missing<'_>>, Vec<_>) =
            missing.iter().partition(|missing| missing.map.mode == RuleMode::Nftables);
        let nft = nft.into_iter().filter_map(|missing| publish_by_nft(missing.map, missing.effort).err());
        let mut failures: Vec<_> = nft.collect();
        for family in Family::ALL {
            let maps: Vec<_> = others.iter().map(|missing| missing.map).filter(|map| has(map, family)).collect();
            failures.extend((!maps.is_empty()).then(|| self.repair(&maps, family)).and_then(Result::err));
        }
        failures
    }

    fn repair(&mut self, maps: &[&PortMap], family: Family) -> Result<(), PublishError> {
        let programs = self.programs(family)?;
        Ok(programs.run(&iptables::repair(maps, family, &programs.saved_nat()?))?)
    }

    /// Whether it is worth to look although nothing was told: unless that costs a program in vain. The kernel tells of rules that go,
    /// but for those of iptables-legacy.
    pub fn needs_ticks(&self) -> bool {
        let mut variants = self.programs.variants().peekable();
        variants.peek().is_none() || variants.any(|variant| variant == Variant::Legacy)
    }

    fn programs(&mut self, family: Family) -> Result<&Iptables, PublishError> {
        self.programs.of(family, || Nft::open()?.map(|mut nft| nft.iptables_in_use(family)).transpose())
    }
}

fn has(map: &PortMap, family: Family) -> bool {
    map.addresses.get(family).is_some()
}

fn without_gone(missing: Vec<Missing<'_>>) -> Result<Vec<Missing<'_>>, PublishError> {
    let mut host = Links::here().map_err(|error| PublishError::Run(error.to_string()))?;
    let mut found = Vec::new();
    for missing in missing {
        let mut all = true;
        for link in &missing.map.links {
            all &= host.find(*link).map_err(|error| PublishError::Run(error.to_string()))?.is_some();
        }
        found.extend(all.then_some(missing));
    }
    Ok(found)
}

impl From<IptablesError> for PublishError {
    fn from(error: IptablesError) -> Self {
        Self::Run(error.to_string())
    }
}
