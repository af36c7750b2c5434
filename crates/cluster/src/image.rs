//! Images made of a few files, in the form that `docker save` writes and `ctr images import` reads.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::json;

use crate::error::{ClusterError, Doing};
use crate::place::Place;

/// The image of pods in tests, which is the one that keeps their namespaces too: Debian's static busybox under the names of what it can.
pub const BUSYBOX: &str = "docker.io/library/busybox:e2e";
/// What it can.
const APPLETS: [&str; 12] =
    ["sh", "sleep", "ping", "ping6", "httpd", "wget", "ip", "nc", "cat", "hostname", "echo", "mkdir"];

/// Writes the archive of [`BUSYBOX`] below a folder, where it is not there yet.
pub(crate) fn busybox(folder: &Path) -> Result<PathBuf, ClusterError> {
    let (root, source) = (folder.join("busybox"), Path::new("/bin/busybox"));
    let bin = root.join("bin");
    fs::create_dir_all(&bin).on("make", &bin)?;
    for place in ["etc", "proc", "sys", "dev", "tmp", "run"] {
        fs::create_dir_all(root.join(place)).on("make", &root)?;
    }
    fs::copy(source, bin.join("busybox")).doing(|| "copy /bin/busybox (apt-get install busybox-static)".into())?;
    for applet in APPLETS {
        symlink("busybox", bin.join(applet)).on("make a link in", &bin)?;
    }
    archive(BUSYBOX, &root, &["/bin/sleep", "2147483"], folder)
}

/// Writes `image.tar` in the folder: an image of one layer, the files below `root`, that runs these words.
fn archive(name: &str, root: &Path, words: &[&str], folder: &Path) -> Result<PathBuf, ClusterError> {
    run(
        "tar",
        &["--create", "--file=layer.tar", "--owner=0", "--group=0", &format!("--directory={}", root.display()), "."],
        folder,
    )?;
    let sum = run("sha256sum", &["layer.tar"], folder)?;
    let layer = sum.split(' ').next().unwrap_or_default();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
        "os": "linux",
        "config": { "Cmd": words, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{layer}")] },
    });
    let manifest = json!([{ "Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"] }]);
    for (file, text) in [("config.json", config), ("manifest.json", manifest)] {
        let path = folder.join(file);
        fs::write(&path, text.to_string()).on("write", &path)?;
    }
    run("tar", &["--create", "--file=image.tar", "manifest.json", "config.json", "layer.tar"], folder)?;
    Ok(folder.join("image.tar"))
}

fn run(program: &str, words: &[&str], folder: &Path) -> Result<String, ClusterError> {
    let mut command = Command::new(program);
    command.args(words).current_dir(folder);
    Place::here().run(command, "")
}
