//! The service of systemd: its text, which is `deploy/flanneld.service` but for the prefix, and the calls of `systemctl`.
//!
//! Where no systemd runs, as in a container or a chroot, the text is written all the same and nothing is called.

use std::path::Path;
use std::process::{Command, Stdio};

use super::{Hand, NotDone, Places, RUN};

const TEXT: &str = include_str!("../../../../deploy/flanneld.service");
/// The daemon in it.
const DAEMON: &str = "/usr/local/bin/flanneld";
pub(super) const NAME: &str = "flanneld.service";

/// The service with the daemon of this prefix.
pub(super) fn text(places: &Places) -> String {
    TEXT.replace(DAEMON, &places.daemon().display().to_string())
}

/// Whether systemd runs here (`sd_booted(3)`).
fn is_systemd_here() -> bool {
    Path::new("/run/systemd/system").is_dir()
}

/// Calls `systemctl`, where systemd runs.
pub(super) fn systemctl(hand: &mut Hand, words: &[&str]) -> Result<(), NotDone> {
    if !is_systemd_here() {
        return Ok(());
    }
    hand.act(RUN, format_args!("systemctl {}", words.join(" ")), || {
        let output = Command::new("systemctl").args(words).stdin(Stdio::null()).output();
        let output = output.map_err(|error| error.to_string())?;
        let said = || String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.success() { Ok(()) } else { Err(said()) }
    })
}
