//! `cargo xtask fuzz`: libFuzzer against the laws of `flannel_cni::laws` and `flannel_core::laws`, for as long as one likes. `cargo verify`
//! tries the same laws on the corpus and on some hundred inputs made of it each, as unit tests.
//!
//! The crate `fuzz/` is no member of the workspace: it is built with the coverage that libFuzzer goes by, in `target/fuzz`. Its
//! committed corpus is where each search begins; what it meets on its way is kept in `target/fuzz/corpus`.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::run::{cargo, output, program, root, run, say};

/// What the compiler adds for libFuzzer: counters of edges, and the values that comparisons compare.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Clink-dead-code";
/// How long a target is searched when nothing is said, in seconds.
const SECONDS: u32 = 600;

/// Searches each target that is named, or all, for so many seconds. Ends at the first finding, which is in the file that is told.
pub(crate) fn fuzz(words: &[&str]) -> Result<()> {
    let (mut seconds, mut named, mut words) = (SECONDS, Vec::new(), words.iter());
    while let Some(word) = words.next() {
        match *word {
            "--seconds" => seconds = words.next().context("--seconds needs a number")?.parse().context("--seconds")?,
            name => named.push(name.to_owned()),
        }
    }
    let known = targets()?;
    if let Some(unknown) = named.iter().find(|name| !known.contains(name)) {
        bail!("no target {unknown}: there are {}", known.join(", "));
    }
    let program = build()?;
    for name in if named.is_empty() { known } else { named } {
        say(&format!("fuzz {name}: {seconds} s"));
        run(&mut search(&program, &name, seconds)?)?;
    }
    Ok(())
}

/// The targets: the folders of the corpus.
fn targets() -> Result<Vec<String>> {
    let entries = fs::read_dir(root().join("fuzz/corpus")).context("fuzz/corpus")?;
    let names = entries.map(|entry| entry.map(|entry| entry.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>, _>>()?;
    names.sort();
    Ok(names)
}

fn folder() -> PathBuf {
    root().join("target/fuzz")
}

fn build() -> Result<PathBuf> {
    say("fuzz: builds the laws with coverage (minutes the first time; libFuzzer needs a C++ compiler)");
    let version = output(&mut program("rustc", &["-vV"]))?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).context("rustc -vV names no host")?;
    // With a target named, the flags are not for what runs while compiling.
    let mut build = cargo(&["build", "--release", "--locked", "--quiet", "--manifest-path=fuzz/Cargo.toml"]);
    run(build.arg(format!("--target={host}")).env("CARGO_TARGET_DIR", folder()).env("RUSTFLAGS", COVERAGE))?;
    let program = folder().join(host).join("release/flannel-fuzz");
    ensure!(program.is_file(), "{} is missing", program.display());
    Ok(program)
}

/// One search. Files of the laws are made in memory where there is such a folder.
fn search(program: &std::path::Path, name: &str, seconds: u32) -> Result<Command> {
    let found = folder().join("corpus").join(name);
    fs::create_dir_all(&found)?;
    let mut search = Command::new(program);
    search.arg(format!("-max_total_time={seconds}")).args(["-timeout=10", "-print_final_stats=1"]);
    search.arg(format!("-artifact_prefix={}/{name}-", folder().display()));
    search.arg(found).arg(root().join("fuzz/corpus").join(name)).env("FUZZ_TARGET", name).env("RUST_BACKTRACE", "0");
    if fs::metadata("/dev/shm").is_ok_and(|shm| shm.is_dir()) {
        search.env("TMPDIR", "/dev/shm");
    }
    Ok(search)
}
