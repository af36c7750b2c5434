//! `cargo verify`: every check and every test, one step after the other, each with its time.
//!
//! Nothing is left out silently: a step that cannot run fails, with the reason and what to do.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::run::{cargo, program, root, run, say};
use crate::{bench, deploy, dist, e2e, go_etcd, go_kube, go_plugins, house, licences, links, packages, tour};

/// How much to verify.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extent {
    /// All of it.
    Whole,
    /// Without namespaces and the release binary: what needs no package and little time.
    Quick,
}

struct Step {
    name: &'static str,
    action: fn() -> Result<()>,
    quick: bool,
}

const fn step(name: &'static str, action: fn() -> Result<()>) -> Step {
    Step { name, action, quick: true }
}

const fn slow(name: &'static str, action: fn() -> Result<()>) -> Step {
    Step { name, action, quick: false }
}

const STEPS: &[Step] = &[
    slow("packages", packages::install),
    slow("released Go plugins", || go_plugins::build().map(drop)),
    slow("released Kubernetes", go_kube::build),
    slow("namespaces", packages::check_namespaces),
    step("format", || run(&mut cargo(&["fmt", "--all", "--check"]))),
    step("house rules", house::check),
    step("links in documents", links::check),
    step("licences, bans, sources", licences::check),
    step("lints", lints),
    step("documentation", documentation),
    step("compile tests", || test(&["--no-run"])),
    step("unit tests", || test(&["--lib", "--bins"])),
    slow("tests in namespaces", tests_in_namespaces),
    slow("tests on a current etcd", go_etcd::test),
    slow("dist", dist::dist),
    slow("deploy", deploy::check),
    slow("clusters", e2e::briefly),
    slow("bench", bench::smoke),
    slow("lab", lab),
    slow("tour", tour::check),
];

/// Runs the steps up to the first that fails.
pub(crate) fn verify(extent: Extent) -> Result<()> {
    let steps: Vec<&Step> = STEPS.iter().filter(|step| extent == Extent::Whole || step.quick).collect();
    let start = Instant::now();
    for (step, number) in steps.iter().zip(1..) {
        say(&format!("verify {number}/{}: {}", steps.len(), step.name));
        let begun = Instant::now();
        (step.action)().with_context(|| format!("verify stopped at `{}`", step.name))?;
        say(&format!("verify {number}/{}: {} took {:.1} s", steps.len(), step.name, begun.elapsed().as_secs_f64()));
    }
    let left_out = if extent == Extent::Quick { ", --quick leaves out the rest" } else { "" };
    say(&format!("verify: {} steps passed in {:.0} s{left_out}", steps.len(), start.elapsed().as_secs_f64()));
    Ok(())
}

fn lints() -> Result<()> {
    run(&mut cargo(&["clippy", "--workspace", "--all-targets", "--locked", "--quiet", "--", "--deny", "warnings"]))
}

/// Every link in the documentation leads somewhere. It is for who works on the crates, so private items count.
fn documentation() -> Result<()> {
    let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items", "--locked", "--quiet"]);
    run(doc.env("RUSTDOCFLAGS", "--deny warnings --allow rustdoc::private_intra_doc_links"))
}

fn test(args: &[&str]) -> Result<()> {
    run(&mut cargo(&[["test", "--workspace", "--locked", "--quiet"].as_slice(), args].concat()))
}

/// Most of the time these wait, for packets, timers and other processes: so one more of them runs than there are processors.
fn tests_in_namespaces() -> Result<()> {
    let processors = std::thread::available_parallelism()?.get();
    let threads = std::env::var("RUST_TEST_THREADS").unwrap_or_else(|_| (processors + 1).to_string());
    run(cargo(&["test", "--workspace", "--locked", "--quiet", "--test", "*"]).env("RUST_TEST_THREADS", threads))
}

fn lab() -> Result<()> {
    run(&mut program(&root().join("dist/bin/flannel").display().to_string(), &["lab"]))
}
