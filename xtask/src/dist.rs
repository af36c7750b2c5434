//! `cargo dist`: the release binary and links to its applets in `dist/bin`.

use std::fs;
use std::os::unix::fs::symlink;

use anyhow::{Context, Result, ensure};

use crate::binary;
use crate::run::{output, program, root, say};

/// The largest size of the binary, in bytes: 8 MiB, since an image holds little else.
const BUDGET: u64 = 8 << 20;

/// Builds, packs, and checks that the binary is within its budget and answers under each of its names.
pub(crate) fn dist() -> Result<()> {
    say("dist: builds the release binary, then writes dist/bin; installs nothing");
    let binary = binary::build()?;
    let folder = root().join("dist/bin");
    if folder.exists() {
        fs::remove_dir_all(&folder).with_context(|| format!("cannot empty {}", folder.display()))?;
    }
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let packed = folder.join("flannel");
    let size = fs::copy(&binary, &packed).with_context(|| format!("cannot write {}", packed.display()))?;
    let applets = applets(&packed.display().to_string())?;
    for applet in &applets {
        symlink("flannel", folder.join(applet)).with_context(|| format!("cannot link {applet}"))?;
    }
    let mib = |bytes: u64| format!("{}.{:02} MiB", bytes >> 20, (bytes % (1 << 20) * 100) >> 20);
    say(&format!("dist: dist/bin/flannel is {size} bytes, {} of {}", mib(size), mib(BUDGET)));
    say(&format!("dist: links beside it: {}", applets.join(" ")));
    ensure!(size <= BUDGET, "dist/bin/flannel is {} and may be {}: what did it grow by?", mib(size), mib(BUDGET));
    Ok(())
}

/// The names that the binary answers to beside its own, from itself.
pub(crate) fn applets(binary: &str) -> Result<Vec<String>> {
    let list = output(&mut program(binary, &["applets"]))?;
    Ok(list.lines().filter(|name| *name != "flannel").map(str::to_owned).collect())
}
