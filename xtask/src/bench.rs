//! `cargo xtask bench`: what flannel costs beside what it is compared with; the measuring is in `crates/bench`.

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::run::{cargo, is_root, output, program, root, run, say};
use crate::{binary, go_kube, go_plugins, packages};

/// Further arguments from the environment: a variable, its words, and the option that takes each.
const FROM_ENVIRONMENT: [(&str, &str); 2] = [("BENCH_CNI_DIR", "--cni"), ("BENCH_FLANNELD", "--flanneld")];

/// Builds the release binary and the bench, then becomes the bench.
pub(crate) fn bench(args: &[&str]) -> Result<()> {
    say(
        "bench: builds the release binary and the programs of the bench (minutes the first time), then runs the benches",
    );
    packages::install_for_bench()?;
    let go = go_plugins::build();
    if let Err(error) = &go {
        say(&format!("  {error:#}: there will be no column of Go plugins"));
    }
    if let Err(error) = go_kube::build() {
        say(&format!("  {error:#}: the bench kube cannot run"));
    }
    let flannel = binary::build()?;
    let (bench, floor) = binary::build_bench()?;
    let may = is_root() || packages::user_namespaces();
    let mut words = if may { Vec::new() } else { vec!["sudo".to_owned()] };
    words.push(bench.display().to_string());
    words.extend(args.iter().map(ToString::to_string));
    words.extend(paths("--flannel", &[flannel]));
    words.extend(paths("--floor", &[floor]));
    words.extend(paths("--go", &go.into_iter().collect::<Vec<_>>()));
    for (variable, option) in FROM_ENVIRONMENT {
        let value = std::env::var_os(variable).unwrap_or_default();
        let named: Vec<PathBuf> = std::env::split_paths(&value).filter(|path| !path.as_os_str().is_empty()).collect();
        words.extend(paths(option, &named));
    }
    words.extend(origin(args)?);
    let error = Command::new(&words[0]).args(&words[1..]).exec();
    Err(error).with_context(|| format!("cannot start {}", words[0]))
}

fn paths(option: &str, paths: &[PathBuf]) -> Vec<String> {
    paths.iter().map(|path| format!("{option}={}", path.display())).collect()
}

/// What the figures are of.
fn origin(args: &[&str]) -> Result<Vec<String>> {
    let commit = output(&mut program("git", &["describe", "--always", "--dirty", "--exclude=*"]))?;
    let date = output(&mut program("date", &["+%F"]))?;
    let command = [&["cargo xtask bench"], args].concat().join(" ");
    Ok(vec![format!("--commit={}", commit.trim()), format!("--date={}", date.trim()), format!("--command={command}")])
}

/// That four of the benches run, and that their JSON has figures of ours: it takes seconds, and no figure is looked at.
pub(crate) fn smoke() -> Result<()> {
    run(&mut cargo(&["build", "--locked", "--quiet", "--package", "flannel-bench", "--bins"]))?;
    let json = std::env::temp_dir().join(format!("bench-{}.json", std::process::id()));
    let programs = binary::target_folder()?.join("debug");
    let (bench, floor) = (programs.join("flannel-bench"), programs.join("cni-floor"));
    let words = [
        "cni".to_owned(),
        "peers".to_owned(),
        "etcd".to_owned(),
        "kube".to_owned(),
        "--quick".to_owned(),
        format!("--flannel={}", root().join("dist/bin/flannel").display()),
        format!("--floor={}", floor.display()),
        format!("--json={}", json.display()),
    ];
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    output(&mut program(&bench.display().to_string(), &words))?;
    let checked = has_ours(&json);
    std::fs::remove_file(&json)?;
    checked
}

fn has_ours(json: &Path) -> Result<()> {
    let document: serde_json::Value = serde_json::from_slice(&std::fs::read(json)?)?;
    let benches = document["benches"].as_array().map(Vec::as_slice).unwrap_or_default();
    let told =
        |bench: &serde_json::Value| bench.pointer("/rows/0/figures/ours/value").is_some_and(serde_json::Value::is_f64);
    ensure!(benches.len() == 4 && benches.iter().all(told), "the bench's JSON lacks figures of ours: {document}");
    Ok(())
}
