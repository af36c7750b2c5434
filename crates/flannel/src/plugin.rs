//! The edge of the CNI plugins: environment and standard input in, one answer out.

use std::io::{Write, stderr, stdin, stdout};
use std::process::ExitCode;

/// Answers one call of a container runtime.
pub(crate) fn main(plugin: flannel_cni::Applet) -> ExitCode {
    let reply = flannel_cni::run(plugin, std::env::vars_os(), &mut stdin().lock());
    let told = stdout().write_all(&reply.stdout).and_then(|()| stdout().flush());
    // A runtime that no longer listens learns it from the status; there is nobody else to tell.
    let _ = stderr().write_all(reply.stderr.as_bytes());
    reply.afterwards.do_apart();
    ExitCode::from(if told.is_ok() { reply.status } else { 1 })
}
