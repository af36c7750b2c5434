//! The benches by name, and the parts they are run in.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use anyhow::Result;
use clap::ValueEnum;
use flannel_kernel::process::Enclosed;
use flannel_lab::etcd::StoreChoice;
use flannel_lab::options::LabOptions;
use serde::{Deserialize, Serialize};

use crate::ground::Rules;
use crate::report::{OURS, Report};
use crate::{cni, etcd, idle, kubernetes, peers, repair, restart, traffic};

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// CNI ADD and DEL against the floor and other plugins.
    Cni,
    /// Start, memory and one change with many leases.
    Peers,
    /// CPU time and processes while nothing happens.
    Idle,
    /// Throughput and round trip against a network made by hand.
    Traffic,
    /// Time until damage is repaired.
    Repair,
    /// What is lost while flanneld restarts.
    Restart,
    /// A fleet on a real etcd: start, changes, outages, a crowd.
    Etcd,
    /// A fleet on a real API server of Kubernetes: start, heartbeats, a crowd.
    Kube,
}

/// What the benches work with; crosses into their namespaces as JSON.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Our executable.
    pub flannel: PathBuf,
    /// The program `cni-floor`.
    pub floor: PathBuf,
    /// The folder of the Go plugins, where there are any.
    pub go: Option<PathBuf>,
    /// Folders of further plugins.
    pub cni: Vec<PathBuf>,
    /// Other daemons.
    pub flanneld: Vec<PathBuf>,
    /// Only that it works: few rounds, small sizes, figures of no worth.
    pub quick: bool,
}

/// What is measured in one set of namespaces.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Part {
    /// Whose figures these are.
    pub column: String,
    /// The other daemon that is measured; ours if none.
    pub flanneld: Option<PathBuf>,
    /// Number of peers, where that matters.
    pub peers: u32,
    /// Kind of packet rules, where that matters.
    pub rules: Rules,
    /// Backend, where that matters.
    pub backend: String,
    /// Whether what leaves the network is masqueraded, where that matters.
    pub masquerade: bool,
}

/// Columns for files or folders: their names, or the whole paths where the names are not all different.
pub fn columns(paths: &[PathBuf]) -> Vec<(String, PathBuf)> {
    let name = |path: &PathBuf| path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned();
    let names: BTreeSet<String> = paths.iter().map(name).collect();
    let whole = names.len() < paths.len() || names.contains(OURS);
    let column = |path: &PathBuf| if whole { path.display().to_string() } else { name(path) };
    paths.iter().map(|path| (column(path), path.clone())).collect()
}

/// Hears what is being done.
pub type Tell<'a> = dyn Fn(&str) + 'a;

impl Setting {
    /// The program of a part's daemon; ours is several by the name it is called by, which must be `flanneld`.
    pub fn daemon<'a>(&'a self, part: &'a Part) -> &'a Path {
        part.flanneld.as_deref().unwrap_or(&self.flannel)
    }

    /// A lab with a part's daemon, rules and backend. Beside another daemon the leases are in etcd, which all of them speak.
    pub fn lab(&self, part: &Part) -> LabOptions {
        LabOptions {
            flanneld: part.flanneld.clone(),
            store: if self.flanneld.is_empty() { StoreChoice::Local } else { StoreChoice::Etcd(1) },
            nftables: part.rules == Rules::Nft,
            backend: if part.backend.is_empty() { "vxlan".into() } else { part.backend.clone() },
            ..LabOptions::default()
        }
    }

    /// A part of each daemon: ours, then the others.
    fn daemons(&self) -> Vec<Part> {
        let ours = Part { column: OURS.to_owned(), ..Part::default() };
        let other = |(column, path)| Part { column, flanneld: Some(path), ..Part::default() };
        std::iter::once(ours).chain(columns(&self.flanneld).into_iter().map(other)).collect()
    }

    /// Those with each number of peers, one daemon after another at each.
    fn sized(&self, sizes: &[u32]) -> Vec<Part> {
        let of = |size: &u32| self.daemons().into_iter().map(|part| Part { peers: *size, ..part }).collect::<Vec<_>>();
        sizes.iter().flat_map(of).collect()
    }
}

impl Part {
    fn with_rules(&self, rules: Rules) -> Self {
        Self { rules, ..self.clone() }
    }

    fn with_backend(&self, backend: &str) -> Self {
        Self { backend: backend.to_owned(), ..self.clone() }
    }

    fn with_masquerade(&self, masquerade: bool) -> Self {
        Self { masquerade, ..self.clone() }
    }
}

impl Bench {
    /// All of them, in the order they are run.
    pub const ALL: &'static [Self] =
        &[Self::Cni, Self::Peers, Self::Idle, Self::Traffic, Self::Repair, Self::Restart, Self::Etcd, Self::Kube];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cni => "cni",
            Self::Peers => "peers",
            Self::Idle => "idle",
            Self::Traffic => "traffic",
            Self::Repair => "repair",
            Self::Restart => "restart",
            Self::Etcd => "etcd",
            Self::Kube => "kube",
        }
    }

    /// Its parts in groups: those of a group are run at the same time, one group after the other.
    pub fn parts(self, setting: &Setting) -> Vec<Vec<Part>> {
        let in_turn = |parts: Vec<Part>| parts.into_iter().map(|part| vec![part]).collect();
        let daemons = || setting.daemons().into_iter();
        match self {
            Self::Cni => vec![vec![Part::default()]],
            Self::Peers => in_turn(setting.sized(if setting.quick { &peers::QUICK_SIZES } else { &peers::SIZES })),
            Self::Etcd => in_turn(setting.sized(if setting.quick { &etcd::QUICK_SIZES } else { &etcd::SIZES })),
            Self::Kube => {
                in_turn(setting.sized(if setting.quick { &kubernetes::QUICK_SIZES } else { &kubernetes::SIZES }))
            }
            Self::Idle => {
                let sized = setting.sized(&idle::SIZES).into_iter();
                vec![sized.flat_map(|part| Rules::ALL.map(|rules| part.with_rules(rules))).collect()]
            }
            Self::Traffic => {
                let backends = daemons().flat_map(|part| traffic::BACKENDS.map(|backend| part.with_backend(backend)));
                in_turn(backends.flat_map(|part| [false, true].map(|on| part.with_masquerade(on))).collect())
            }
            Self::Repair | Self::Restart => {
                in_turn(daemons().flat_map(|part| repair::RULES.map(|rules| part.with_rules(rules))).collect())
            }
        }
    }

    /// Runs a part, in namespaces that are its own.
    pub fn run(self, enclosed: Enclosed, setting: &Setting, part: &Part, tell: &Tell) -> Result<Report> {
        match self {
            Self::Cni => cni::bench(enclosed, setting, tell),
            Self::Peers => peers::bench(enclosed, setting, part, tell),
            Self::Idle => idle::bench(enclosed, setting, part, tell),
            Self::Traffic => traffic::bench(enclosed, setting, part, tell),
            Self::Repair => repair::bench(enclosed, setting, part, tell),
            Self::Restart => restart::bench(enclosed, setting, part, tell),
            Self::Etcd => etcd::bench(enclosed, setting, part, tell),
            Self::Kube => kubernetes::bench(enclosed, setting, part, tell),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_short_as_they_can_be() {
        let names = |paths: &[&str]| -> Vec<String> {
            let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
            columns(&paths).into_iter().map(|(column, _)| column).collect()
        };
        assert_eq!(names(&["/a/one", "/a/two"]), ["one", "two"]);
        assert_eq!(names(&["/a/flanneld", "/b/flanneld"]), ["/a/flanneld", "/b/flanneld"]);
        assert_eq!(names(&["/a/ours"]), ["/a/ours"]);
    }

    #[test]
    fn every_bench_has_a_part_for_each_daemon() {
        let setting = Setting {
            flannel: "flannel".into(),
            floor: "cni-floor".into(),
            go: None,
            cni: Vec::new(),
            flanneld: vec!["/other/flanneld".into()],
            quick: false,
        };
        for bench in Bench::ALL.iter().filter(|bench| **bench != Bench::Cni) {
            let parts: Vec<Part> = bench.parts(&setting).into_iter().flatten().collect();
            let of = |column: &str| parts.iter().filter(|part| part.column == column).count();
            assert!(of(OURS) > 0 && of(OURS) == of("flanneld"), "{}", bench.name());
        }
    }
}
