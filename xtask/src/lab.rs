//! `cargo lab`: the release binary and its lab, one command from a fresh clone.

use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::run::{is_root, say, succeeds};
use crate::{binary, packages};

/// Builds, then becomes `flannel lab ARGS`.
pub(crate) fn lab(args: &[&str]) -> Result<()> {
    say("lab: builds the release binary (minutes the first time), then runs `flannel lab`; installs nothing");
    let binary = binary::build()?;
    let mut command = if is_root() || packages::user_namespaces() {
        Command::new(&binary)
    } else {
        say("lab: user namespaces are not allowed here, so it runs as root: sudo may ask for your password, once");
        let mut command = Command::new("sudo");
        command.arg(&binary);
        command
    };
    let program = if succeeds("sudo", &["-V"]) { "" } else { " (is sudo installed?)" };
    let error = command.arg("lab").args(args).stdin(Stdio::inherit()).exec();
    Err(error).with_context(|| format!("cannot start {}{program}", binary.display()))
}
