//! The machine that the figures belong to.

use std::fs;
use std::thread::available_parallelism;

use serde::{Deserialize, Serialize};

/// What of a machine moves figures most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Processors that this process may use.
    pub cores: usize,
    /// The processors' model, as `/proc/cpuinfo` names it.
    pub processor: String,
    /// The kernel's release without what its builder calls it.
    pub kernel: String,
}

impl Machine {
    /// The one this process runs on; what cannot be read stays empty.
    pub fn here() -> Self {
        let read = |path| fs::read_to_string(path).unwrap_or_default();
        let model = |text: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix("model name"))?;
            Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
        };
        Self {
            cores: available_parallelism().map_or(0, Into::into),
            processor: model(&read("/proc/cpuinfo")).unwrap_or_default(),
            kernel: read("/proc/sys/kernel/osrelease").trim().split('-').next().unwrap_or_default().to_owned(),
        }
    }
}

impl std::fmt::Display for Machine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} cores of {}, Linux {}", self.cores, self.processor, self.kernel)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_machine_has_cores_and_a_kernel() {
        let machine = Machine::here();
        assert!(machine.cores > 0 && machine.kernel.contains('.'), "{machine}");
    }
}
