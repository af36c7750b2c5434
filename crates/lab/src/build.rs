//! A build of flannel that a node runs: its daemon, its plugins, further arguments.
//!
//! Surface: [`Build`], read from the command line by [`Build::of_node`] and checked by [`Build::check`] before anything is
//! brought up. That a program is flannel is not checked: it says so itself when it becomes ready, or does not.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use rustix::fs::{Access, access};
use serde::{Deserialize, Serialize};

use crate::error::{Doing, LabError};

/// The plugins that a node's runtime calls, by itself or through another.
pub const PLUGINS: [&str; 5] = ["flannel", "bridge", "host-local", "portmap", "loopback"];

/// What runs on a node where it is not this executable.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Build {
    /// The program to run as `flanneld`, whatever its file is called.
    pub flanneld: Option<PathBuf>,
    /// A directory of CNI plugins; those it lacks are this executable's.
    pub cni: Option<PathBuf>,
    /// Further arguments for its flanneld.
    pub arguments: Vec<String>,
}

impl Build {
    /// Reads `2:flanneld=PATH,cni=DIR,args=WORDS`, in any order but that `args` takes the rest; answers with the node's name too.
    pub fn of_node(text: &str) -> Result<(String, Self), String> {
        let (node, rest) = text.split_once(':').ok_or("a node and its build look like `2:flanneld=PATH,cni=DIR`")?;
        let node =
            if node.starts_with(|first: char| first.is_ascii_digit()) { format!("node{node}") } else { node.into() };
        let (mut build, mut seen, mut rest) = (Self::default(), BTreeSet::new(), rest);
        while !rest.is_empty() {
            let end = if rest.starts_with("args=") { rest.len() } else { rest.find(',').unwrap_or(rest.len()) };
            let (key, value) = rest[..end].split_once('=').unwrap_or((&rest[..end], ""));
            if !seen.insert(key) {
                return Err(format!("`{key}` is given twice for {node}"));
            }
            build.take(key, value)?;
            rest = rest[end..].trim_start_matches(',');
        }
        if seen.is_empty() {
            return Err(format!("nothing is said about {node}: `flanneld=PATH`, `cni=DIR` and `args=WORDS` can be"));
        }
        Ok((node, build))
    }

    fn take(&mut self, key: &str, value: &str) -> Result<(), String> {
        if value.is_empty() && ["flanneld", "cni", "args"].contains(&key) {
            return Err(format!("`{key}` has no value"));
        }
        match key {
            "flanneld" => self.flanneld = Some(value.into()),
            "cni" => self.cni = Some(value.into()),
            "args" => self.arguments = value.split_whitespace().map(str::to_owned).collect(),
            _ => return Err(format!("`{key}` is unknown: there are flanneld=PATH, cni=DIR, args=WORDS")),
        }
        Ok(())
    }

    /// The same with absolute paths, if the files are there and can be run as they must be.
    pub fn check(self) -> Result<Self, LabError> {
        Ok(Self {
            flanneld: self.flanneld.as_deref().map(check_program).transpose()?,
            cni: self.cni.as_deref().map(check_plugins).transpose()?,
            arguments: self.arguments,
        })
    }

    /// This build, and what it leaves open as in another.
    #[must_use]
    pub fn or(self, other: &Self) -> Self {
        Self {
            flanneld: self.flanneld.or_else(|| other.flanneld.clone()),
            cni: self.cni.or_else(|| other.cni.clone()),
            arguments: if self.arguments.is_empty() { other.arguments.clone() } else { self.arguments },
        }
    }
}

fn check_program(path: &Path) -> Result<PathBuf, LabError> {
    let refuse = |why: &str| Err(LabError::Options(format!("flanneld {} {why}", path.display())));
    let found = seen_inside(path)?;
    if !found.is_file() {
        return refuse("is not a file");
    }
    if access(&found, Access::EXEC_OK).is_err() {
        return refuse("is not executable");
    }
    Ok(found)
}

fn check_plugins(path: &Path) -> Result<PathBuf, LabError> {
    let refuse = |why: String| Err(LabError::Options(format!("the CNI directory {} {why}", path.display())));
    let found = seen_inside(path)?;
    if !found.is_dir() {
        return refuse("is not a directory".into());
    }
    if lacking(&found).len() == PLUGINS.len() {
        return refuse(format!("holds none of the plugins {}", PLUGINS.join(", ")));
    }
    let files = PLUGINS.map(|plugin| (plugin, found.join(plugin)));
    match files.iter().find(|(_, file)| file.exists() && access(file, Access::EXEC_OK).is_err()) {
        Some((plugin, _)) => refuse(format!("holds a {plugin} that is not executable")),
        None => Ok(found),
    }
}

/// The plugins that a directory does not hold.
pub(crate) fn lacking(directory: &Path) -> Vec<&'static str> {
    PLUGINS.into_iter().filter(|plugin| !directory.join(plugin).exists()).collect()
}

/// The absolute path of a file that the nodes see too: each has a `/run` of its own.
pub(crate) fn seen_inside(path: &Path) -> Result<PathBuf, LabError> {
    let found = path.canonicalize().on("find", path)?;
    if found.starts_with("/run") {
        return Err(LabError::Options(format!("{} is below /run, which nodes have of their own", path.display())));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nodes_build_is_read() {
        let (node, build) = Build::of_node("2:flanneld=/a/flanneld,cni=/b,args=-v=5 --iface-regex=a,b").unwrap();
        assert_eq!(
            (node.as_str(), build.flanneld, build.cni),
            ("node2", Some("/a/flanneld".into()), Some("/b".into()))
        );
        assert_eq!(build.arguments, ["-v=5", "--iface-regex=a,b"]);
        assert_eq!(Build::of_node("node3:cni=/b").unwrap().0, "node3");
    }

    #[test]
    fn a_nodes_build_that_cannot_be_read_is_refused_in_words() {
        let refused = |text| Build::of_node(text).unwrap_err();
        assert_eq!(refused("2"), "a node and its build look like `2:flanneld=PATH,cni=DIR`");
        assert_eq!(refused("2:cni=/a,cni=/b"), "`cni` is given twice for node2");
        assert_eq!(refused("2:plugins=/a"), "`plugins` is unknown: there are flanneld=PATH, cni=DIR, args=WORDS");
        assert_eq!(refused("2:/a/flanneld"), "`/a/flanneld` is unknown: there are flanneld=PATH, cni=DIR, args=WORDS");
        assert_eq!(refused("2:flanneld="), "`flanneld` has no value");
        assert!(refused("2:").contains("nothing is said about node2"));
    }

    #[test]
    fn files_that_cannot_run_are_refused_in_words() {
        let refused = |build: Build| {
            let error = build.check().unwrap_err();
            let cause = std::error::Error::source(&error).map(|cause| format!(": {cause}")).unwrap_or_default();
            format!("{error}{cause}")
        };
        let flanneld = |path: &str| Build { flanneld: Some(path.into()), ..Build::default() };
        let cni = |path: &str| Build { cni: Some(path.into()), ..Build::default() };
        assert_eq!(refused(flanneld("/absent")), "cannot find /absent: No such file or directory (os error 2)");
        assert_eq!(refused(flanneld("/usr")), "flanneld /usr is not a file");
        assert_eq!(refused(flanneld("/etc/passwd")), "flanneld /etc/passwd is not executable");
        assert_eq!(refused(cni("/etc/passwd")), "the CNI directory /etc/passwd is not a directory");
        let none = "the CNI directory /etc holds none of the plugins flannel, bridge, host-local, portmap, loopback";
        assert_eq!(refused(cni("/etc")), none);
        assert_eq!(refused(cni("/run")), "/run is below /run, which nodes have of their own");
    }

    #[test]
    fn what_a_build_leaves_open_is_as_in_the_default() {
        let default = Build { flanneld: Some("/a".into()), cni: Some("/b".into()), arguments: vec!["-v=1".into()] };
        let own = Build { flanneld: Some("/c".into()), ..Build::default() };
        assert_eq!(own.or(&default), Build { flanneld: Some("/c".into()), ..default });
    }
}
