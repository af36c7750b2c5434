//! `cargo lab`: the release binary and its lab, one command from a fresh clone.

use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result};

use crate::run::{is_root, say};
use crate::{binary, packages};

/// Builds, then becomes `flannel lab ARGS`.
pub(crate) fn lab(args: &[&str]) -> Result<()> {
    say("lab: builds the release binary (minutes the first time), then runs `flannel lab`; installs nothing");
    let binary = binary::build()?;
    let program = binary.display().to_string();
    let words = if is_root() || packages::user_namespaces() {
        vec![program.as_str(), "lab"]
    } else {
        say("lab: user namespaces are not allowed here, so it runs as root: sudo may ask for your password, once");
        vec!["sudo", program.as_str(), "lab"]
    };
    let error = Command::new(words[0]).args(&words[1..]).args(args).exec();
    Err(error).with_context(|| format!("cannot start {}", words[0]))
}
