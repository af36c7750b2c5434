//! `cargo xtask go-plugins`: the released CNI plugins in Go, built once into a cache outside the checkout, to compare with.
//!
//! They come by name and version from Go's module proxy, whose checksums Go verifies. Where a module cannot be had,
//! that is said in one line and the others are built. In the same way [`crate::go_etcd`] builds a current etcd.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::run::{program, say, succeeds};

/// A released module whose programs are plugins.
struct Module {
    /// Its name.
    name: &'static str,
    /// Its version.
    version: &'static str,
    /// Its programs: the package below the module, and the plugin's name.
    programs: &'static [(&'static str, &'static str)],
}

const MODULES: [Module; 2] = [
    Module {
        name: "github.com/containernetworking/plugins",
        version: "v1.9.1",
        programs: &[
            ("/plugins/main/bridge", "bridge"),
            ("/plugins/main/loopback", "loopback"),
            ("/plugins/ipam/host-local", "host-local"),
            ("/plugins/meta/portmap", "portmap"),
        ],
    },
    Module { name: "github.com/flannel-io/cni-plugin", version: "v1.9.0-flannel1", programs: &[("", "flannel")] },
];

/// Prints where they are.
#[allow(clippy::print_stdout)]
pub(crate) fn go_plugins() -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Builds those that are not there yet and returns their folder.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = cache()?;
    for module in &MODULES {
        let missing = module.programs.iter().any(|(_, plugin)| !folder.join(plugin).is_file());
        if let Some(error) = missing.then(|| build_module(module, &folder)).and_then(Result::err) {
            say(&format!("  without the Go plugins of {} {}: {error:#}", module.name, module.version));
        }
    }
    if !folder.join("bridge").is_file() {
        bail!("no Go plugins in {}", folder.display());
    }
    Ok(folder)
}

fn cache() -> Result<PathBuf> {
    Ok(caches()?.join("go-plugins").join(MODULES[0].version))
}

/// `$XDG_CACHE_HOME/flannel-rs`, in `~/.cache` where that is not set: what is built from other people's modules is there, by
/// name and version.
pub(crate) fn caches() -> Result<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    Ok(base.context("neither XDG_CACHE_HOME nor HOME is set")?.join("flannel-rs"))
}

/// Fails where there is no Go.
pub(crate) fn need_go() -> Result<()> {
    if succeeds("go", &["version"]) { Ok(()) } else { bail!("no `go` in PATH: install Go 1.25 or later") }
}

fn build_module(module: &Module, folder: &Path) -> Result<()> {
    need_go()?;
    say(&format!("  builds the Go plugins of {} {} in {}", module.name, module.version, folder.display()));
    let scratch = folder.join("unfinished");
    std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    for (package, plugin) in module.programs {
        let what = format!("{}{package}@{}", module.name, module.version);
        let mut go = program("go", &["install", "-ldflags=-s -w", &what]);
        go.env("GOBIN", &scratch).env("CGO_ENABLED", "0").env("GOFLAGS", "").current_dir(&scratch);
        run_go(&mut go)?;
        let built = scratch.join(what.split('@').next().and_then(|path| path.rsplit('/').next()).unwrap_or(plugin));
        std::fs::rename(&built, folder.join(plugin)).with_context(|| built.display().to_string())?;
    }
    Ok(())
}

/// Runs `go`, which has to succeed; else the last line of what it said is the error.
pub(crate) fn run_go(go: &mut Command) -> Result<()> {
    let output = go.output().context("go")?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    bail!("{}", said.lines().last().unwrap_or("it failed without a word").trim())
}
