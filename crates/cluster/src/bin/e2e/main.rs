//! `cargo e2e`: real clusters from empty to pods that talk, with the image and the manifests that are shipped.
//!
//! Each walk is in namespaces of its own, whose end ends all that it has started. What is checked is printed with the time it took;
//! the first thing that is not as it should be ends the program with status 1.

#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a program for people")]

mod inotify;
mod pods;
mod stream;
mod walk;

use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use flannel_kernel::process::{Enclosed, Lifetime, enclose_with_power};

use crate::inotify::Instances;

const USAGE: &str = "\
e2e IMAGE DEPLOY SECONDS [WALK]...
  IMAGE    the image of flannel, as a tar
  DEPLOY   the folder of manifests
  SECONDS  how long the API server is away
  WALK     dual-stack, ipv6; all if none is named";

/// What a walk is made with.
#[derive(Debug)]
pub(crate) struct Plan {
    /// The image of flannel, as a tar.
    pub(crate) image: PathBuf,
    /// The folder of manifests.
    pub(crate) deploy: PathBuf,
    /// How long the API server is away.
    pub(crate) away: Duration,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match Enclosed::here() {
        Some(enclosed) => walk_enclosed(enclosed, &words),
        None => each_enclosed(&words),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("e2e: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Starts this program again for each walk, in namespaces.
fn each_enclosed(words: &[String]) -> Result<()> {
    ensure!(words.len() >= 3, "{USAGE}");
    let (plan, named) = words.split_at(3);
    let _enough = Instances::raise()?;
    let all = walk::WALKS.map(|(name, _)| name.to_owned());
    for walk in if named.is_empty() { &all } else { named } {
        let mut command = Command::new("/proc/self/exe");
        command.args(plan).arg(walk);
        let mut child = enclose_with_power(command, Lifetime::Caller).context("a cluster is for root to make")?;
        let status = child.wait()?;
        ensure!(status.success(), "the walk {walk} ended with {status}");
    }
    Ok(())
}

fn walk_enclosed(enclosed: Enclosed, words: &[String]) -> Result<()> {
    let [image, deploy, seconds, walk] = words else { bail!("{USAGE}") };
    let away = seconds.parse().map(Duration::from_secs).with_context(|| format!("SECONDS {seconds}"))?;
    let plan = Plan { image: image.into(), deploy: deploy.into(), away };
    let found = walk::WALKS.iter().find(|(name, _)| name == walk);
    let (_, walk) = found.with_context(|| format!("no walk is called {walk}\n{USAGE}"))?;
    walk(enclosed, &plan)
}
