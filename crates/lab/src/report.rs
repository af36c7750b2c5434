//! The lab in words and tables, for a person.
//!
//! Surface: [`proofs`], [`matrix`], [`failures`], [`topology`]. Everything is returned as text.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

use comfy_table::{CellAlignment, Table, TableComponent, presets};
use flannel_core::addr::Family;

use crate::build::Build;
use crate::error::LabError;
use crate::etcd::{Etcd, Member};
use crate::lab::{Lab, Node};
use crate::proof::{Claim, Proof};

/// The largest number of pods for which [`matrix`] still fits on a terminal.
const MATRIX: usize = 9;

/// A time as one reads it: three digits and a unit.
pub fn time(time: Duration) -> String {
    let micros = time.as_secs_f64() * 1e6;
    match micros {
        ..100.0 => format!("{micros:.1} µs"),
        ..1e3 => format!("{micros:.0} µs"),
        ..1e5 => format!("{:.1} ms", micros / 1e3),
        ..1e6 => format!("{:.0} ms", micros / 1e3),
        _ => format!("{:.2} s", micros / 1e6),
    }
}

/// The value below which `percent` of the times lie (nearest rank); zero of none.
pub fn percentile(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * percent).div_ceil(100).max(1) - 1;
    sorted.get(rank).copied().unwrap_or_default()
}

/// A table in the lab's one style: a line below the head and no other, columns from the given one on to the right.
pub(crate) fn table(head: &[&str], right_from: usize) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::NOTHING).set_style(TableComponent::HeaderLines, '─');
    table.set_style(TableComponent::MiddleHeaderIntersections, '─').set_header(head.iter().copied());
    for column in table.column_iter_mut().skip(right_from) {
        column.set_cell_alignment(CellAlignment::Right);
    }
    table
}

/// One line for each claim and family: how many paths hold, and their times.
pub fn proofs(proofs: &[Proof]) -> String {
    let mut table = table(&["what must hold", "", "holds", "median", "slowest"], 2);
    for claim in Claim::ALL {
        for family in Family::ALL {
            let of_both: Vec<_> =
                proofs.iter().filter(|proof| (proof.claim, proof.family) == (claim, family)).collect();
            let times: Vec<Duration> = of_both.iter().filter_map(|proof| proof.outcome.clone().ok()).collect();
            if of_both.is_empty() {
                continue;
            }
            let mark = if times.len() == of_both.len() { "✓" } else { "✗" };
            let count = format!("{mark} {}/{}", times.len(), of_both.len());
            let (median, slowest) = (percentile(&times, 50), percentile(&times, 100));
            table.add_row([claim.sentence().to_owned(), family.to_string(), count, time(median), time(slowest)]);
        }
    }
    table.to_string()
}

/// Each path that does not hold, and why.
pub fn failures(proofs: &[Proof]) -> String {
    let failed = proofs.iter().filter_map(|proof| Some((proof, proof.outcome.as_ref().err()?)));
    failed.fold(String::new(), |mut text, (proof, why)| {
        let _ = writeln!(text, "✗ {} → {} ({}): {why}", proof.from, proof.to, proof.family);
        text
    })
}

/// The pings between pods as a matrix of round trips, one for each family; nothing where it would be too wide.
pub fn matrix(lab: &Lab, proofs: &[Proof]) -> String {
    let names: Vec<String> = lab.pods().map(|(_, pod)| pod.name().to_owned()).collect();
    if !(2..=MATRIX).contains(&names.len()) {
        return String::new();
    }
    let families = Family::ALL.into_iter().filter(|family| lab.options().speaks(*family));
    families.fold(String::new(), |mut text, family| {
        let _ = writeln!(text, "round trips, {family}, from the pod on the left to the pod above:");
        let _ = writeln!(text, "{}\n", matrix_of(&names, family, proofs));
        text
    })
}

fn matrix_of(names: &[String], family: Family, proofs: &[Proof]) -> Table {
    let pings = proofs.iter().filter(|proof| (proof.claim, proof.family) == (Claim::PodPing, family));
    let cells: BTreeMap<(&str, &str), String> = pings
        .map(|proof| {
            let cell = proof.outcome.as_ref().map_or_else(|_| "✗".to_owned(), |took| time(*took));
            ((proof.from.as_str(), proof.to.as_str()), cell)
        })
        .collect();
    let head: Vec<&str> = std::iter::once("").chain(names.iter().map(String::as_str)).collect();
    let mut table = table(&head, 1);
    for from in names {
        let row =
            names.iter().map(|to| cells.get(&(from.as_str(), to.as_str())).cloned().unwrap_or_else(|| "·".into()));
        table.add_row(std::iter::once(from.clone()).chain(row));
    }
    table
}

/// The lab as a drawing: the underlay, then each node with its devices and pods.
pub fn topology(lab: &Lab) -> Result<String, LabError> {
    let layout = lab.layout();
    let mut text = String::new();
    let _ = writeln!(text, "{:<10} {}", "outside", list(layout.outside.values()));
    let _ = writeln!(text, "  │        (a host that is not part of the pod network)");
    let _ = writeln!(text, "{:<10} {}", "router", list(layout.outside_segment.router.values()));
    for (index, segment) in layout.segments.iter().enumerate() {
        let last_segment = index + 1 == layout.segments.len();
        let (branch, bar) = if last_segment { ("└─", "  ") } else { ("├─", "│ ") };
        let _ = writeln!(text, "  {branch} segment {}  {}", index + 1, list(segment.prefixes().values()));
        for member in lab.etcd().into_iter().flat_map(Etcd::members).filter(|_| index == 0) {
            let _ = writeln!(text, "  {bar}  ├─ {}", draw_member(member));
        }
        let nodes: Vec<_> = layout.nodes.iter().zip(lab.nodes()).filter(|(seat, _)| seat.segment == index).collect();
        for (place, (_, node)) in nodes.iter().enumerate() {
            text.push_str(&draw_node(node, &format!("  {bar}  "), place + 1 == nodes.len())?);
        }
    }
    Ok(text)
}

fn list<T: ToString>(values: impl Iterator<Item = T>) -> String {
    values.map(|value| value.to_string()).collect::<Vec<_>>().join("  ")
}

/// A server of etcd in one line.
fn draw_member(member: &Member) -> String {
    let runs = member.pid().map_or_else(|| "no etcd".to_owned(), |pid| format!("etcd pid {pid}"));
    format!("{}  {}  ({runs})", member.place().name(), member.endpoint())
}

fn draw_node(node: &Node, indent: &str, last: bool) -> Result<String, LabError> {
    let mut text = String::new();
    let (branch, bar) = if last { ("└─", "  ") } else { ("├─", "│ ") };
    let daemon = node.flanneld.pid().map_or_else(|| "no flanneld".to_owned(), |pid| format!("flanneld pid {pid}"));
    let daemon = format!("{daemon}{}", other_build(node));
    let subnets = list(node.subnets().values());
    let _ = writeln!(text, "{indent}{branch} {}  pods {subnets}  ({daemon})", node.place().name());
    let mut lines: Vec<String> = crate::wire::devices(node.place())?.iter().map(ToString::to_string).collect();
    lines.extend(node.pods().iter().map(|pod| format!("{:<12} {}", pod.name(), list(pod.addresses().values()))));
    let count = lines.len();
    for (at, line) in lines.into_iter().enumerate() {
        let _ = writeln!(text, "{indent}{bar}   {} {line}", if at + 1 == count { "└─" } else { "├─" });
    }
    Ok(text)
}

/// What a node runs that is not this executable.
pub(crate) fn other_build(node: &Node) -> String {
    let mut text = String::new();
    let Build { flanneld, cni, arguments } = node.build();
    if let Some(program) = flanneld {
        let version = node.flanneld.version().unwrap_or_else(|| "(names no version)".into());
        let _ = write!(text, ": {} {version}", program.display());
    }
    if !arguments.is_empty() {
        let _ = write!(text, ", with {}", arguments.join(" "));
    }
    if let Some(directory) = cni {
        let lacking = crate::build::lacking(directory);
        let _ = write!(text, ", plugins of {}", directory.display());
        if !lacking.is_empty() {
            let _ = write!(text, " but for {}", lacking.join(", "));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits_and_a_unit() {
        let shown =
            [54_300, 154_300, 1_543_000, 154_300_000, 1_543_000_000].map(|nanos| time(Duration::from_nanos(nanos)));
        assert_eq!(shown, ["54.3 µs", "154 µs", "1.5 ms", "154 ms", "1.54 s"]);
    }

    #[test]
    fn a_percentile_is_one_of_the_times() {
        let times: Vec<Duration> = (1..=50).rev().map(Duration::from_millis).collect();
        assert_eq!(percentile(&times, 50), Duration::from_millis(25));
        assert_eq!(percentile(&times, 95), Duration::from_millis(48));
        assert_eq!(percentile(&times[..1], 95), Duration::from_millis(50));
        assert_eq!(percentile(&[], 95), Duration::ZERO);
    }

    #[test]
    fn claims_are_counted_and_failures_named() {
        let proof = |to: &str, outcome| Proof {
            claim: Claim::PodPing,
            family: Family::V4,
            from: "pod1-1".into(),
            to: to.into(),
            seen: None,
            outcome,
        };
        let both = [proof("pod2-1", Ok(Duration::from_micros(60))), proof("pod3-1", Err("no answer".into()))];
        assert!(proofs(&both).contains("✗ 1/2"));
        assert_eq!(failures(&both), "✗ pod1-1 → pod3-1 (IPv4): no answer\n");
    }
}
