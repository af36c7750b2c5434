//! The bench `repair`: the time from a damage to a node's network state until flanneld has mended it.

use anyhow::Result;
use flannel_kernel::process::Enclosed;
use flannel_lab::damage::Damage;
use flannel_lab::lab::Lab;

use crate::benches::{Part, Setting, Tell};
use crate::figure::{Figure, Unit};
use crate::ground::Rules;
use crate::report::{Bound, Report, Row};

/// The packet rules that it is measured with. Legacy iptables tells of no change: its rules are right again at the next
/// resync, which is no figure of speed.
pub const RULES: [Rules; 2] = [Rules::Nft, Rules::IptablesNft];

/// Measures one daemon with one kind of packet rules: with iptables the damages to rules only, the rest is the same.
pub fn bench(enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
    let (times, nodes) = if setting.quick { (2, 2) } else { (50, 3) };
    let mut lab = setting.lab(part);
    (lab.nodes, lab.pods) = (nodes, 1);
    let lab = Lab::start(enclosed, lab, &setting.flannel, &mut |_| ())?;
    let concerned = |damage: &Damage| part.rules == Rules::Nft || damage.is_of_rules();
    let mut rows = Vec::new();
    for damage in Damage::ALL.into_iter().filter(concerned) {
        tell(&format!("{} with {}: {} {times} times", part.column, part.rules.name(), damage.name()));
        let repairs = repair(&lab, damage, times)?;
        if !repairs.is_empty() {
            rows.push(of_damage(part, damage, &repairs));
        }
    }
    Ok(Report {
        name: "repair".into(),
        columns: vec![part.column.clone()],
        rows,
        notes: vec!["The lab looks about three times a millisecond: shorter times read as 0.3 ms.".into()],
    })
}

/// The times of the repairs, in seconds; none where the node has nothing of the kind.
fn repair(lab: &Lab, damage: Damage, times: usize) -> Result<Vec<f64>> {
    let mut repairs = Vec::new();
    for _ in 0..times {
        let Some(injury) = lab.damage(0, damage)? else { break };
        repairs.push(lab.wait_repaired(&injury)?.as_secs_f64());
    }
    Ok(repairs)
}

fn of_damage(part: &Part, damage: Damage, repairs: &[f64]) -> Row {
    let bound = if part.rules == Rules::Nft { 0.100 } else { 0.250 };
    let row = Row::new(format!("{}, {}: p50 / p95", damage.name(), part.rules.name()), Unit::Seconds);
    let row = row.with(&part.column, Figure::spread_of(repairs));
    if damage.is_external() { row } else { row.aim(Bound::AtMost(bound)) }
}
