//! Release binaries: the product, one static executable, and the programs of the bench.

use std::path::PathBuf;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{cargo, output, root, run};

/// Builds the release binary and returns where it is.
///
/// What plugins run lies side by side in it: the kernel maps sixteen pages around each one that is touched, so that a plugin spread over the
/// whole executable has twice the memory.
pub(crate) fn build() -> Result<PathBuf> {
    let order = root().join("xtask/src/plugins.order");
    let order = format!("link-arg=-Wl,--symbol-ordering-file={}", order.display());
    // Of the linkers that rustc uses by itself, the one for x86-64 knows this.
    let in_order = ["-C", &order, "-C", "link-arg=-Wl,--no-warn-symbol-ordering"];
    build_static("flannel", "flannel", if std::env::consts::ARCH == "x86_64" { &in_order } else { &[] })
}

/// Builds the bench and its floor, which is static as the product is, and returns where they are.
pub(crate) fn build_bench() -> Result<(PathBuf, PathBuf)> {
    let floor = build_static("flannel-bench", "cni-floor", &[])?;
    run(&mut cargo(&["build", "--release", "--locked", "--package", "flannel-bench", "--bin", "flannel-bench"]))?;
    Ok((target_folder()?.join("release/flannel-bench"), floor))
}

/// Builds a static release binary.
///
/// The flags are given to the last compilation alone: as `rustflags` they would reach procedural macros, which cannot be
/// static, and with `--target` every dependency that both share would be built twice.
fn build_static(package: &str, name: &str, link: &[&str]) -> Result<PathBuf> {
    let what = ["rustc", "--release", "--locked", "--package", package, "--bin", name, "--"];
    let how = ["-C", "target-feature=+crt-static", "-C", "relocation-model=static"];
    run(&mut cargo(&[what.as_slice(), &how, link].concat()))?;
    let binary = target_folder()?.join("release").join(name);
    let bytes = std::fs::read(&binary).with_context(|| binary.display().to_string())?;
    ensure!(is_static(&bytes)?, "{} needs a dynamic loader; it must be static", binary.display());
    Ok(binary)
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let text = output(&mut cargo(&["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_slice(&text).context("cargo metadata")?;
    metadata["target_directory"].as_str().map(Into::into).context("cargo metadata names no target folder")
}

/// Whether an executable asks for no loader: no program header of type PT_INTERP, 3 (System V ABI, ELF-64).
fn is_static(elf: &[u8]) -> Result<bool> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, size: usize| -> Option<u64> {
        let bytes = elf.get(at..at + size)?;
        Some(bytes.iter().rev().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    };
    let header = || Some((number(0x20, 8)? as usize, number(0x36, 2)? as usize, number(0x38, 2)? as usize));
    let Some((table, size, count)) = header().filter(|_| elf.starts_with(b"\x7fELF\x02\x01")) else {
        bail!("not a little-endian ELF-64 file");
    };
    Ok((0..count).all(|row| number(table + row * size, 4).is_some_and(|kind| kind != PT_INTERP)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dynamic_program_is_told_from_garbage() {
        let own = std::fs::read("/proc/self/exe").unwrap();
        assert!(!is_static(&own).unwrap(), "test programs are dynamic");
        assert!(is_static(b"#!/bin/sh\n").is_err());
        assert!(is_static(&own[..20]).is_err());
    }
}
