//! What every test of whole networks stands on: namespaces of its own, its turn, a lab of the built executable.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use flannel_kernel::process::{Enclosed, rerun_enclosed};
use flannel_lab::lab::Lab;
use flannel_lab::options::{FamilyName, LabOptions};
use flannel_lab::report;

pub(crate) const FLANNEL: &str = env!("CARGO_BIN_EXE_flannel");

pub(crate) const IPV4: &[FamilyName] = &[FamilyName::Ipv4];
pub(crate) const DUAL: &[FamilyName] = &[FamilyName::Ipv4, FamilyName::Ipv6];

/// Waits for its turn.
pub(crate) fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs the test in namespaces, alone; inside, answers with true.
pub(crate) fn enclosed(test: &str) -> bool {
    let _turn = alone();
    rerun_enclosed(test)
}

pub(crate) fn start(options: LabOptions) -> Lab {
    let enclosed = Enclosed::here().expect("the test encloses itself first");
    Lab::start(enclosed, options, Path::new(FLANNEL), &mut |step| println!("{step}")).unwrap_or_else(|error| {
        let log = error.log().unwrap_or_default();
        panic!("{error}: {:?}\n{log}", std::error::Error::source(&error).map(ToString::to_string))
    })
}

pub(crate) fn options(families: &[FamilyName]) -> LabOptions {
    LabOptions { families: families.to_vec(), ..LabOptions::default() }
}

/// All claims hold, with and without masquerade.
pub(crate) fn assert_all_proofs(lab: &mut Lab) {
    let mut proofs = lab.prove(&mut |_| ()).unwrap();
    proofs.extend(lab.prove_unmasqueraded(0, &mut |_| ()).unwrap());
    assert!(!proofs.is_empty());
    let failures = report::failures(&proofs);
    let logs: Vec<String> = lab.nodes().iter().map(|node| node.flanneld.log_tail()).collect();
    assert!(failures.is_empty(), "{failures}\n{}", logs.join("\n"));
}

/// What a program prints on a node.
pub(crate) fn text(lab: &Lab, node: usize, command: &str) -> String {
    lab.node(node).run_line(command).unwrap()
}

pub(crate) fn flannel(arguments: &[&str]) -> Command {
    let mut command = Command::new(FLANNEL);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}
