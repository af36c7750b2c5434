//! The same configurations to the Go plugins, of Debian and of the last release, and to ours: equal results, kernel state, rules
//! and files; and what one has added the other checks and deletes, so that nothing is left. Every row of the tables says what
//! differs on purpose, and why; that it does differ so is checked too.

#[path = "../world/mod.rs"]
mod world;

mod bridge;
mod flannel;
mod host_local;
mod loopback;
mod portmap;

use std::path::Path;

use flannel_kernel::process::rerun_enclosed;
use serde_json::{Value, json};
use world::row::{Better, Build, Row, without_better};
use world::snapshot::{files, snapshot};
use world::{FILES, make_node, oracle, released};

/// A table: rows, and what ours does otherwise on purpose in many of them.
type Table = (Vec<Row>, Vec<Better>);

/// All that a plugin can touch.
fn all(pods: &[&str]) -> Value {
    snapshot(pods, Path::new(FILES))
}

/// All that one without a hand in the kernel can.
fn disk(_: &[&str]) -> Value {
    json!({"files": files(Path::new(FILES))})
}

/// Plays the rows that a build knows, on nodes in namespaces of the test's own.
fn compare(test: &str, build: Build, (rows, better): Table, look: fn(&[&str]) -> Value) {
    if !rerun_enclosed(test) {
        return;
    }
    make_node();
    let dir = if build == Build::Debian { oracle() } else { released() };
    let rows: Vec<_> = rows.into_iter().filter(|row| row.only.is_none_or(|only| only == build)).collect();
    let found = rows.iter().flat_map(|row| row.compare(build, &dir, look)).collect();
    let found = without_better(build, &better, found);
    assert!(found.is_empty(), "{} differences in {} rows\n{}", found.len(), rows.len(), found.join("\n"));
}

#[test]
fn bridge_is_debians() {
    compare("bridge_is_debians", Build::Debian, bridge::table(), all);
}

#[test]
fn bridge_is_the_releases() {
    compare("bridge_is_the_releases", Build::Released, bridge::table(), all);
}

#[test]
fn host_local_is_debians() {
    compare("host_local_is_debians", Build::Debian, host_local::table(), disk);
}

#[test]
fn host_local_is_the_releases() {
    compare("host_local_is_the_releases", Build::Released, host_local::table(), disk);
}

#[test]
fn loopback_is_debians() {
    compare("loopback_is_debians", Build::Debian, loopback::table(), all);
}

#[test]
fn loopback_is_the_releases() {
    compare("loopback_is_the_releases", Build::Released, loopback::table(), all);
}

#[test]
fn portmap_is_debians() {
    compare("portmap_is_debians", Build::Debian, portmap::table(), all);
}

#[test]
fn portmap_is_the_releases() {
    compare("portmap_is_the_releases", Build::Released, portmap::table(), all);
}
