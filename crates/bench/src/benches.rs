//! The benches by name.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;
use flannel_kernel::process::Enclosed;
use serde::{Deserialize, Serialize};

use crate::cni;
use crate::report::Report;

/// What can be measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Bench {
    /// CNI ADD and DEL against the floor and other plugins.
    Cni,
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
    /// Another daemon.
    pub flanneld: Option<PathBuf>,
    /// Only that it works: few rounds, small sizes, figures of no worth.
    pub quick: bool,
}

/// Hears what is being done.
pub type Tell<'a> = dyn Fn(&str) + 'a;

impl Bench {
    /// All of them, in the order they are run.
    pub const ALL: &'static [Self] = &[Self::Cni];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cni => "cni",
        }
    }

    /// Runs it, in namespaces that are its own.
    pub fn run(self, enclosed: Enclosed, setting: &Setting, tell: &Tell) -> Result<Report> {
        match self {
            Self::Cni => cni::bench(enclosed, setting, tell),
        }
    }
}
