//! Release binaries: the product, one static executable, and the programs of the bench.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::image::Arch;
use crate::ordered;
use crate::run::{cargo, output, program, run, succeeds};

/// Names of functions that tell all of their types, so that [`ordered`] can tell them apart.
const NAMES: &str = "-Csymbol-mangling-version=v0";

/// Builds the release binary and returns where it is. What plugins run lies side by side in it ([`ordered`]).
pub(crate) fn build() -> Result<PathBuf> {
    let linker = format!("linker={}", ordered::install(&target_folder()?)?.display());
    // Of the linkers that rustc uses by itself, the one for x86-64 can order functions.
    let in_order = ["-C", &linker];
    build_static("flannel", "flannel", if std::env::consts::ARCH == "x86_64" { &in_order } else { &[] })
}

/// What keeps the product from being built here for another machine, with the remedy, if something does.
pub(crate) fn obstacle(arch: &Arch) -> Option<String> {
    if arch.rust == std::env::consts::ARCH {
        return None;
    }
    let (target, linker) = (target(arch), linker(arch));
    let has_target = || {
        let std = output(&mut program("rustc", &["--print", "target-libdir", "--target", &target]));
        std.is_ok_and(|path| Path::new(path.trim()).is_dir())
    };
    if !succeeds(&linker, &["--version"]) {
        return Some(format!("there is no {linker}: install Debian's gcc-{}-linux-gnu", arch.rust.replace('_', "-")));
    }
    (!has_target()).then(|| format!("Rust's library for it is missing: rustup target add {target}"))
}

/// Builds the release binary for another machine.
pub(crate) fn build_for(arch: &Arch) -> Result<PathBuf> {
    let target = target(arch);
    let variable = format!("CARGO_TARGET_{}_LINKER", target.to_uppercase().replace('-', "_"));
    let what =
        ["rustc", "--release", "--locked", "--package", "flannel", "--bin", "flannel", "--target", &target, "--"];
    run(anonymous(&mut cargo(&[what.as_slice(), &STATIC].concat()))?.env(variable, linker(arch)))?;
    checked(target_folder()?.join(target).join("release/flannel"))
}

fn target(arch: &Arch) -> String {
    format!("{}-unknown-linux-gnu", arch.rust)
}

fn linker(arch: &Arch) -> String {
    format!("{}-linux-gnu-gcc", arch.rust)
}

/// Builds the bench and its floor, which is static as the product is, and returns where they are.
pub(crate) fn build_bench() -> Result<(PathBuf, PathBuf)> {
    let floor = build_static("flannel-bench", "cni-floor", &[])?;
    let what = ["build", "--release", "--locked", "--package", "flannel-bench", "--bin", "flannel-bench"];
    run(anonymous(&mut cargo(&what))?)?;
    Ok((target_folder()?.join("release/flannel-bench"), floor))
}

/// What makes a binary static.
const STATIC: [&str; 4] = ["-C", "target-feature=+crt-static", "-C", "relocation-model=static"];

/// Builds a static release binary.
///
/// The flags are given to the last compilation alone: as `rustflags` they would reach procedural macros, which cannot be
/// static, and with `--target` every dependency that both share would be built twice.
fn build_static(package: &str, name: &str, link: &[&str]) -> Result<PathBuf> {
    let what = ["rustc", "--release", "--locked", "--package", package, "--bin", name, "--"];
    run(anonymous(&mut cargo(&[what.as_slice(), &STATIC, link].concat()))?)?;
    checked(target_folder()?.join("release").join(name))
}

/// Keeps where this machine has the sources of other crates, which panics would tell, out of what is built, so that the same
/// binary comes out wherever it is built. All release builds have these flags: another set of them means to build all anew.
fn anonymous(build: &mut Command) -> Result<&mut Command> {
    run(&mut cargo(&["fetch", "--locked", "--quiet"]))?;
    let home = std::env::var_os("HOME").map(|home| Path::new(&home).join(".cargo"));
    let home =
        std::env::var_os("CARGO_HOME").map(PathBuf::from).or(home).context("neither CARGO_HOME nor HOME is set")?;
    let sources = std::fs::read_dir(home.join("registry/src")).into_iter().flatten().flatten();
    let hidden = sources.map(|source| format!("--remap-path-prefix={}=/crates", source.path().display()));
    let flags: Vec<String> = std::iter::once(NAMES.into()).chain(hidden).collect();
    Ok(build.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\x1f")))
}

/// The binary, if it is static.
fn checked(binary: PathBuf) -> Result<PathBuf> {
    let bytes = std::fs::read(&binary).with_context(|| binary.display().to_string())?;
    ensure!(is_static(&bytes)?, "{} needs a dynamic loader; it must be static", binary.display());
    Ok(binary)
}

/// Where cargo puts what it builds.
pub(crate) fn target_folder() -> Result<PathBuf> {
    let text = output(&mut cargo(&["metadata", "--no-deps", "--locked", "--format-version", "1"]))?;
    let metadata: serde_json::Value = serde_json::from_str(&text).context("cargo metadata")?;
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
