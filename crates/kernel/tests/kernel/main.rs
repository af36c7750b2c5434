//! Tests against the running kernel. Each has a network namespace of its own; `ip`, `bridge` and `nft` are the oracle.
//!
//! A user namespace can only be entered while the process has one thread, which the standard harness does not grant, so
//! this binary has its own `main`: `cargo test -p flannel-kernel --test kernel [PART OF A NAME]`.

#![allow(clippy::print_stdout, clippy::print_stderr, clippy::unwrap_used)]

mod capture;
mod executor;
mod facts;
mod fake;
mod namespace;
mod passage;
mod rules;
mod socket;
mod trace;

use std::process::ExitCode;

/// A test's name and body.
type Test = (&'static str, fn());

fn main() -> ExitCode {
    if let Err(error) = namespace::become_root() {
        eprintln!("error: cannot make network namespaces: {error}");
        eprintln!("hint: run as root, or allow user namespaces (sysctl kernel.unprivileged_userns_clone=1)");
        return ExitCode::FAILURE;
    }
    if std::env::args().nth(1).as_deref() == Some(trace::HOLD) {
        trace::hold();
    }
    let filters: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with('-')).collect();
    let wanted = |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter.as_str()));
    let tests: Vec<Test> = [
        socket::TESTS,
        capture::TESTS,
        facts::TESTS,
        executor::TESTS,
        fake::TESTS,
        rules::TESTS,
        trace::TESTS,
        passage::TESTS,
    ]
    .concat()
    .into_iter()
    .filter(|(name, _)| wanted(name))
    .collect();
    println!("running {} tests", tests.len());
    let failed = tests.into_iter().filter(|test| !passes(test)).count();
    if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn passes((name, body): &Test) -> bool {
    let body = *body;
    let begun = std::time::Instant::now();
    let passed = namespace::in_new_namespace(body).is_ok();
    println!("test {name} ... {} ({:.0?})", if passed { "ok" } else { "FAILED" }, begun.elapsed());
    passed
}
