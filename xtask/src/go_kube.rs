//! `cargo xtask go-kube`: the programs of a Kubernetes cluster and Helm, built once from their released Go modules into a cache
//! outside the checkout, to test on.
//!
//! All programs of Kubernetes are one executable with links to it (`kubernetes/main.go`): they share most of their packages, and one
//! link takes a sixth of six. Ready ones are taken instead where `K8S_BIN` or `KUBEBUILDER_ASSETS` names a folder with them.

use std::fmt::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::go_plugins::{caches, need_go, run_go};
use crate::run::{output, program, say};

const VERSION: &str = "v1.34.4";
/// The version of the modules that Kubernetes is made of: they are released with it, under numbers of their own.
const STAGING: &str = "v0.34.4";
/// The release of Helm that is made of the same ones.
const HELM: &str = "v3.19.5";
const MAIN: &str = include_str!("kubernetes/main.go");
/// The packages that are built.
const KUBERNETES_MAIN: &str = ".";
const HELM_MAIN: &str = "helm.sh/helm/v3/cmd/helm";
const PROGRAMS: [&str; 6] =
    ["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy", "kubectl"];

/// Prints where they are.
#[allow(clippy::print_stdout)]
pub(crate) fn go_kube() -> Result<()> {
    build()?;
    println!("{}\n{}", kubernetes()?.display(), helm()?.display());
    Ok(())
}

/// Builds what is not there yet.
pub(crate) fn build() -> Result<()> {
    let (kubernetes, helm) = (kubernetes()?, helm()?);
    let has_kubernetes = PROGRAMS.iter().all(|name| kubernetes.join(name).is_file());
    let wanted = [(has_kubernetes, KUBERNETES_MAIN), (helm.join("helm").is_file(), HELM_MAIN)];
    let packages: Vec<&str> = wanted.iter().filter(|(is_there, _)| !is_there).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    need_go()?;
    let scratch = cache("kubernetes", VERSION)?.join("unfinished");
    say(&format!(
        "  builds Kubernetes {VERSION} and Helm {HELM}, what of them is missing, in {}: minutes",
        scratch.display()
    ));
    build_in(&scratch, &packages).with_context(|| format!("Kubernetes {VERSION}"))
}

/// Where the programs of Kubernetes are, or are to be.
pub(crate) fn kubernetes() -> Result<PathBuf> {
    let whole = named().find(|folder| PROGRAMS.iter().all(|name| folder.join(name).is_file()));
    whole.map_or_else(|| cache("kubernetes", VERSION), Ok)
}

/// Where `helm` is, or is to be.
pub(crate) fn helm() -> Result<PathBuf> {
    let with_helm = named().find(|folder| folder.join("helm").is_file());
    with_helm.map_or_else(|| cache("helm", HELM), Ok)
}

/// The folders that the environment names.
fn named() -> impl Iterator<Item = PathBuf> {
    ["K8S_BIN", "KUBEBUILDER_ASSETS"].into_iter().filter_map(std::env::var_os).map(PathBuf::from)
}

fn cache(what: &str, version: &str) -> Result<PathBuf> {
    Ok(caches()?.join(what).join(version))
}

/// Builds packages in a folder that goes then, and puts what came of them into the cache.
fn build_in(scratch: &Path, packages: &[&str]) -> Result<()> {
    let (kubernetes, helm) = (cache("kubernetes", VERSION)?, cache("helm", HELM)?);
    for folder in [scratch, &helm] {
        std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    std::fs::write(scratch.join("go.mod"), module(scratch)?).with_context(|| scratch.display().to_string())?;
    std::fs::write(scratch.join("main.go"), MAIN).with_context(|| scratch.display().to_string())?;
    let flags = format!("-ldflags=-s -w -X k8s.io/component-base/version.gitVersion={VERSION}");
    let mut go = program("go", &["build", "-trimpath", &flags, "-o", "built/"]);
    run_go(go.args(packages).env("CGO_ENABLED", "0").env("GOFLAGS", "-mod=mod").current_dir(scratch))?;
    if packages.contains(&KUBERNETES_MAIN) {
        move_to(&scratch.join("built/kubernetes"), &kubernetes.join("kubernetes"))?;
        for name in PROGRAMS {
            let unfinished = scratch.join(name);
            std::os::unix::fs::symlink("kubernetes", &unfinished).with_context(|| unfinished.display().to_string())?;
            move_to(&unfinished, &kubernetes.join(name))?;
        }
    }
    if packages.contains(&HELM_MAIN) {
        move_to(&scratch.join("built/helm"), &helm.join("helm"))?;
    }
    std::fs::remove_dir_all(scratch).with_context(|| scratch.display().to_string())
}

fn move_to(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).with_context(|| to.display().to_string())
}

/// A module that replaces, as that of Kubernetes does, the modules it is made of.
fn module(scratch: &Path) -> Result<String> {
    let own = own_module(scratch)?;
    let mut module = format!(
        "module kubernetes\n\ngo 1.25\n\nrequire k8s.io/kubernetes {VERSION}\nrequire helm.sh/helm/v3 {HELM}\n\n"
    );
    for name in own.lines().filter_map(|line| line.trim().strip_suffix(" v0.0.0")) {
        writeln!(module, "replace {name} => {name} {STAGING}")?;
    }
    Ok(module)
}

/// The `go.mod` of Kubernetes itself.
fn own_module(scratch: &Path) -> Result<String> {
    let module = format!("k8s.io/kubernetes@{VERSION}");
    let mut go = program("go", &["mod", "download", "-json", &module]);
    let said = output(go.env("GOFLAGS", "").current_dir(scratch.parent().unwrap_or(scratch)))?;
    let path = said.lines().find_map(|line| line.trim().strip_prefix("\"GoMod\": \"")?.strip_suffix("\","));
    let path = path.with_context(|| format!("`go mod download` names no go.mod of {module}"))?;
    std::fs::read_to_string(path).with_context(|| path.to_owned())
}
