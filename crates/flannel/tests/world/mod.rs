//! A host made for one test: network, mounts and processes of its own, where the built applets are in `PATH`.
//!
//! [`world`] is a folder with the applets in `bin`, [`enclosed`] a shell with its words ([`WORDS`]) that works in `work`. What it
//! leaves in the folder is there to be looked at afterwards.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

const WORDS: &str = include_str!("words.sh");

/// A fresh folder with the applets in `bin` and a place to work in.
pub(crate) fn world(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("worlds").join(name);
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(folder.join("bin")).unwrap();
    fs::create_dir(folder.join("work")).unwrap();
    for applet in ["flanneld", "flannel", "bridge", "host-local", "portmap", "loopback"] {
        symlink(env!("CARGO_BIN_EXE_flannel"), folder.join("bin").join(applet)).unwrap();
    }
    folder
}

/// A shell, root in namespaces of its own, that ends at the first command that fails. `/run` and `/var/lib` are empty there.
pub(crate) fn enclosed(world: &Path, script: &str) -> Command {
    let script = format!(
        "set -eu\nmount -t tmpfs none /run; mount -t tmpfs none /var/lib\nip link set lo up\n{WORDS}\n{script}"
    );
    let enclosed = ["--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"];
    let path = format!("{}:/usr/sbin:/sbin:{}", world.join("bin").display(), std::env::var("PATH").unwrap_or_default());
    let mut shell = Command::new("unshare");
    shell.args(enclosed).args(["sh", "-c", &script]).current_dir(world.join("work"));
    shell.env("PATH", path).stdin(Stdio::null());
    shell
}
