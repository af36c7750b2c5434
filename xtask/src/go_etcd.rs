//! `cargo xtask go-etcd`: a current etcd, built once from its released Go modules into a cache outside the checkout, to test on
//! beside the older one that Debian has.
//!
//! Its modules replace each other by folders, which `go install` refuses; so they are required by an otherwise empty module.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::go_plugins::{caches, need_go, run_go};
use crate::run::{cargo, program, run, say};

const VERSION: &str = "v3.6.5";
/// The programs: the module below `go.etcd.io/etcd`, and the name.
const PROGRAMS: [(&str, &str); 3] = [("etcdctl/v3", "etcdctl"), ("etcdutl/v3", "etcdutl"), ("server/v3", "etcd")];
/// The packages and the tests that run on etcd.
const TESTS: [(&str, &str); 2] = [("flannel-store", "etcd"), ("flannel", "etcd")];

/// Prints where they are.
#[allow(clippy::print_stdout)]
pub(crate) fn go_etcd() -> Result<()> {
    println!("{}", build()?.display());
    Ok(())
}

/// Builds what is not there yet and returns its folder.
pub(crate) fn build() -> Result<PathBuf> {
    let folder = caches()?.join("etcd").join(VERSION);
    if PROGRAMS.iter().any(|(_, name)| !folder.join(name).is_file()) {
        need_go()?;
        say(&format!("  builds etcd {VERSION} in {}", folder.display()));
        build_in(&folder).with_context(|| format!("etcd {VERSION}"))?;
    }
    Ok(folder)
}

fn build_in(folder: &Path) -> Result<()> {
    let scratch = folder.join("unfinished");
    std::fs::create_dir_all(&scratch).with_context(|| scratch.display().to_string())?;
    let module = PROGRAMS.iter().fold("module unfinished\n\ngo 1.25\n\n".to_owned(), |module, (below, _)| {
        module + &format!("require go.etcd.io/etcd/{below} {VERSION}\n")
    });
    std::fs::write(scratch.join("go.mod"), module).with_context(|| scratch.display().to_string())?;
    for (below, name) in PROGRAMS {
        let mut go = program("go", &["build", "-ldflags=-s -w", "-o", name, &format!("go.etcd.io/etcd/{below}")]);
        run_go(go.env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").current_dir(&scratch))?;
    }
    for (_, name) in PROGRAMS {
        std::fs::rename(scratch.join(name), folder.join(name)).with_context(|| name.to_owned())?;
    }
    Ok(())
}

/// Runs the tests that need etcd on it.
pub(crate) fn test() -> Result<()> {
    let folder = build()?;
    TESTS.iter().try_for_each(|(package, test)| {
        let mut tests = cargo(&["test", "--locked", "--quiet", "--package", package, "--test", test]);
        let named = [("ETCD", "etcd"), ("ETCDCTL", "etcdctl"), ("ETCDUTL", "etcdutl")];
        run(tests.envs(named.map(|(variable, name)| (variable, folder.join(name)))))
    })
}
