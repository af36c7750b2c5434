//! The bench `cni`: what connecting a pod and disconnecting it costs, as a runtime pays for it.
//!
//! All contenders work on one node and one pod namespace, turn about: ADD, DEL, and a wait until the pod's link is really gone,
//! so that nobody pays for the one before. They share the bridge and the folders of host-local. Rooms: [`stand`] (node and pods),
//! [`contender`] (who is called, with which conf), [`mod@call`] (the runtime's part), [`serial`] and [`crowd`] (one pod, many pods).

pub mod call;
pub mod contender;
mod crowd;
mod serial;
pub mod stand;

use std::path::Path;

use anyhow::{Context, Result};
use flannel_kernel::process::Enclosed;

use self::call::{call, peak};
use self::contender::Contender;
use self::crowd::{fill, parallel};
use self::serial::serial;
use self::stand::{Pod, Stand};
use crate::benches::{Setting, Tell, columns};
use crate::figure::Unit;
use crate::report::{Bound, Report, Row};

/// The column of the Go plugins that `cargo xtask go-plugins` builds.
pub const GO: &str = "go";
/// The column of Debian's plugins.
const DEBIAN: &str = "debian";
/// Where Debian's package `containernetworking-plugins` has its programs.
const DEBIAN_FOLDER: &str = "/usr/lib/cni";
/// How many calls are made at a time in the parallel part.
const WAYS: usize = 8;

/// How much is measured.
#[derive(Debug, Clone, Copy)]
struct Extent {
    /// ADD and DEL of each contender, at each load.
    rounds: usize,
    /// Other pods on the node when it is loaded.
    pods: usize,
    /// Pods that are added in parallel.
    crowd: usize,
}

impl Extent {
    const WHOLE: Self = Self { rounds: 72, pods: 250, crowd: 100 };
    const QUICK: Self = Self { rounds: 3, pods: 8, crowd: 8 };
}

/// Runs the bench.
pub fn bench(enclosed: Enclosed, setting: &Setting, tell: &Tell) -> Result<Report> {
    let extent = if setting.quick { Extent::QUICK } else { Extent::WHOLE };
    let mut stand = Stand::new(enclosed, &setting.flannel)?;
    let contenders = contenders(setting, &stand)?;
    let pod = stand.pod("pod", 0)?;
    make_bridge(&mut stand, &contenders, &pod)?;
    let mut rows = Vec::new();
    tell(&format!("{} rounds on an empty node", extent.rounds));
    rows.extend(serial(extent.rounds, "", &contenders, &stand, &pod)?);
    tell("largest memory of a process");
    rows.push(memory(&setting.floor, &contenders, &stand, &pod)?);
    tell(&format!("{} pods at once, {WAYS} calls at a time", extent.crowd));
    rows.push(parallel(extent.crowd, &contenders, &stand)?);
    tell(&format!("{} pods to fill the node, {} rounds beside them", extent.pods, extent.rounds));
    let crowd = fill(extent.pods, &contenders[0], &stand)?;
    rows.extend(serial(extent.rounds, &format!(", {} pods", extent.pods), &contenders, &stand, &pod)?);
    drop(crowd);
    let columns = contenders.iter().map(|contender| contender.name.clone()).collect();
    Ok(Report { name: "cni".into(), columns, rows, notes: notes(setting, &contenders) })
}

/// Ours first, then the floor, then who is there of the others.
fn contenders(setting: &Setting, stand: &Stand) -> Result<Vec<Contender>> {
    let mut contenders = vec![Contender::ours(stand.plugins()), Contender::floor(&setting.floor)];
    contenders.extend(Contender::of_folder(DEBIAN, Path::new(DEBIAN_FOLDER)));
    contenders.extend(setting.go.as_ref().and_then(|folder| Contender::of_folder(GO, folder)));
    for (name, folder) in columns(&setting.cni) {
        let found = Contender::of_folder(&name, &folder);
        contenders
            .push(found.with_context(|| format!("there are no `bridge` and `host-local` in {}", folder.display()))?);
    }
    Ok(contenders)
}

fn notes(setting: &Setting, contenders: &[Contender]) -> Vec<String> {
    let without: Vec<&str> =
        contenders.iter().filter(|contender| contender.is_without_flannel()).map(|who| who.name.as_str()).collect();
    let spared = "has no plugin `flannel`: the runtime calls `bridge` directly there, which spares one process";
    let go = setting.go.as_ref().and_then(|folder| folder.file_name());
    let go = go.map(|version| format!("`{GO}` is of github.com/containernetworking/plugins {}.", version.display()));
    without.iter().map(|name| format!("`{name}` {spared}.")).chain(go).collect()
}

/// The first pod of a node pays for the bridge; it is not measured. Every program is in the page cache afterwards.
fn make_bridge(stand: &mut Stand, contenders: &[Contender], pod: &Pod) -> Result<()> {
    for contender in contenders {
        call(contender, "ADD", stand, pod)?;
        stand.note_bridge()?;
        call(contender, "DEL", stand, pod)?;
        pod.wait_disconnected()?;
    }
    Ok(())
}

fn memory(floor: &Path, contenders: &[Contender], stand: &Stand, pod: &Pod) -> Result<Row> {
    let mut row = Row::new("largest memory of a process", Unit::Bytes);
    for contender in contenders {
        let add = peak(floor, contender, "ADD", stand, pod)?;
        let del = peak(floor, contender, "DEL", stand, pod)?;
        pod.wait_disconnected()?;
        row = row.with(&contender.name, add.max(del) as f64);
    }
    Ok(row.aim(Bound::AtMost(f64::from(2 << 20))))
}
