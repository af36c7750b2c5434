//! Where the released programs are.

use std::path::{Path, PathBuf};

use crate::error::ClusterError;

/// The release of Kubernetes, as `cargo xtask go-kube` builds it.
const KUBERNETES: &str = "v1.34.4";
/// The release of etcd, as `cargo xtask go-etcd` builds it.
const ETCD: &str = "v3.6.5";
/// The variables that name a folder with all of them.
const FOLDERS: [&str; 2] = ["K8S_BIN", "KUBEBUILDER_ASSETS"];

/// A program of Kubernetes.
pub fn kubernetes(name: &str) -> Result<PathBuf, ClusterError> {
    let folders: Vec<PathBuf> = named().into_iter().chain(cached("kubernetes", KUBERNETES)).collect();
    find(name, &folders, "run `cargo xtask go-kube`")
}

/// etcd: what `ETCD` names, else beside Kubernetes, in the cache, or Debian's.
pub fn etcd() -> Result<PathBuf, ClusterError> {
    if let Some(program) = std::env::var_os("ETCD") {
        return Ok(program.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let cached = cached("etcd", ETCD);
    let folders: Vec<PathBuf> = named().into_iter().chain(cached).chain(std::env::split_paths(&path)).collect();
    find("etcd", &folders, "apt-get install etcd-server")
}

fn named() -> Vec<PathBuf> {
    FOLDERS.iter().filter_map(std::env::var_os).map(PathBuf::from).collect()
}

/// Below `$XDG_CACHE_HOME/flannel-rs`, in `~/.cache` where that is not set.
fn cached(what: &str, version: &str) -> Option<PathBuf> {
    let home = || std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache"));
    let base = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute()).or_else(home);
    Some(base?.join("flannel-rs").join(what).join(version))
}

fn find(name: &str, folders: &[PathBuf], hint: &'static str) -> Result<PathBuf, ClusterError> {
    let found = folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| {
        let places = folders.iter().map(|folder| folder.display().to_string()).collect::<Vec<_>>().join(", ");
        ClusterError::Absent { name: name.to_owned(), places, hint }
    })
}
