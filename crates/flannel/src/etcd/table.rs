//! Records as people read them: a list in columns, and all there is of one.

use std::fmt::Write as _;

use flannel_core::addr::Dual;
use flannel_core::lease::{Record, Vtep};
use flannel_store::etcd::operator::Listed;

use super::words::list;
use crate::report::plain;

const COLUMNS: [&str; 5] = ["SUBNET", "PUBLIC IP", "BACKEND", "STATE", "HOLDER"];
const MORE_COLUMNS: [&str; 4] = ["BACKEND DATA", "ETCD LEASE", "REVISION", "KEY"];

/// A line for each record, and then one for each flaw. Records without any subnet have only the latter.
pub(super) fn records(records: &[Listed], wide: bool) -> String {
    let more = if wide { MORE_COLUMNS.as_slice() } else { &[] };
    let mut rows = vec![COLUMNS.iter().chain(more).map(ToString::to_string).collect()];
    rows.extend(records.iter().filter(|listed| !listed.subnet.is_empty()).map(|listed| row(listed, wide)));
    let mut text = columns(&rows);
    for (record, flaw) in
        records.iter().flat_map(|listed| flaws(&listed.record).map(move |flaw| (&listed.record, flaw)))
    {
        let _ = writeln!(text, "{} {}: {flaw}", brokenness(record), plain(record.key.as_str()));
    }
    text
}

fn row(listed: &Listed, wide: bool) -> Vec<String> {
    let holder = listed.holder.as_ref().map_or_else(|| "-".into(), |host| plain(&host.name));
    let mut row = vec![list(&listed.subnet), list(&listed.public_ip), backend(&listed.record), state(listed), holder];
    if wide {
        let lease = listed.keeping.lease().map_or_else(|| "-".into(), |id| format!("{id:x}"));
        row.extend([vteps(&listed.record), lease, listed.written().to_string(), plain(&listed.etcd_key())]);
    }
    row
}

/// Rows with their columns made equally wide.
fn columns(rows: &[Vec<String>]) -> String {
    let width =
        |column: usize| rows.iter().filter_map(|row| Some(row.get(column)?.chars().count())).max().unwrap_or_default();
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    rows.iter().fold(String::new(), |mut text, row| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        let _ = writeln!(text, "{}", cells.collect::<Vec<_>>().join("  ").trim_end());
        text
    })
}

/// All there is of each record, with an empty line between two.
pub(super) fn details(records: &[Listed]) -> String {
    records.iter().map(detail).collect::<Vec<_>>().join("\n")
}

fn detail(listed: &Listed) -> String {
    let record = &listed.record;
    let lease = listed.keeping.lease().map(|id| format!(" (etcd lease {id:x})")).unwrap_or_default();
    let unsigned = || "not signed: written by another flannel, or by hand".into();
    let mut rows = vec![
        ("record", plain(record.key.as_str())),
        ("subnet", list(&listed.subnet)),
        ("public IP", list(&listed.public_ip)),
        ("backend", backend(record)),
        ("data", vteps(record)),
        ("state", format!("{}{lease}", state(listed))),
        ("holder", listed.holder.as_ref().map_or_else(unsigned, |host| plain(&host.to_string()))),
        ("key", plain(&listed.etcd_key())),
        ("revision", format!("{}, made in {}", listed.written(), listed.made())),
        ("text", plain(&listed.text())),
    ];
    rows.extend(flaws(record).map(|flaw| (brokenness(record), flaw)));
    rows.iter().fold(String::new(), |mut text, (label, value)| {
        let _ = writeln!(text, "{label:10} {value}");
        text
    })
}

fn state(listed: &Listed) -> String {
    let broken = if listed.record.lease.is_err() { ", broken" } else { "" };
    format!("{}{broken}", listed.keeping)
}

fn brokenness(record: &Record) -> &'static str {
    if record.lease.is_err() { "broken" } else { "partly broken" }
}

/// What is wrong with a record.
pub(super) fn flaws(record: &Record) -> impl Iterator<Item = String> {
    let flaws = match &record.lease {
        Ok(lease) => lease.flaws.iter().map(ToString::to_string).collect(),
        Err(flaw) => vec![flaw.to_string()],
    };
    flaws.into_iter().map(|flaw| plain(&flaw))
}

/// The backend's type; a reservation that nobody took has none.
pub(super) fn backend(record: &Record) -> String {
    let backend = record.lease.as_ref().map(|lease| lease.attributes.backend_type()).unwrap_or_default();
    if backend.is_empty() { "-".into() } else { plain(backend) }
}

/// What the backend published, as far as flanneld reads it.
pub(super) fn vteps(record: &Record) -> String {
    let vteps: Dual<Vtep> = record.lease.as_ref().map(|lease| lease.attributes.vteps()).unwrap_or_default();
    list(&vteps.map(|_, Vtep { vni, mac }| format!("vni={}/mac={mac}", vni.id())))
}
