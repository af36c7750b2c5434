//! A place where programs of a cluster run: the namespaces of the caller, or some of its own.

use std::io::Write;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use flannel_kernel::namespace::{MountNamespace, Namespaces, NetNamespace};
use flannel_kernel::process::spawn_in;

use crate::error::{ClusterError, Doing};

/// A network namespace and perhaps a mount namespace. Clones are the same place.
#[derive(Debug, Clone, Default)]
pub struct Place {
    net: Option<Arc<NetNamespace>>,
    mounts: Option<Arc<MountNamespace>>,
}

impl Place {
    /// Where the caller is.
    pub fn here() -> Self {
        Self::default()
    }

    /// Namespaces that exist; the mounts are the caller's where none are given.
    pub fn new(net: NetNamespace, mounts: Option<MountNamespace>) -> Self {
        Self { net: Some(Arc::new(net)), mounts: mounts.map(Arc::new) }
    }

    /// Does the work with this network around it, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, ClusterError> {
        match &self.net {
            Some(net) => Ok(net.run(work)?),
            None => Ok(work()),
        }
    }

    /// Does the work with these mounts around it, on a thread of its own.
    pub fn among_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, ClusterError> {
        match &self.mounts {
            Some(mounts) => Ok(mounts.run(work)?),
            None => Ok(work()),
        }
    }

    /// Starts a program here.
    pub fn spawn(&self, mut command: Command) -> Result<Child, ClusterError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let started = match &self.net {
            Some(net) => Namespaces::of(net, self.mounts.as_deref()).and_then(|all| spawn_in(command, all)),
            None => command.spawn(),
        };
        started.doing(|| format!("run {program}"))
    }

    /// Runs a program here to its end, which has to be a success, with this to read; answers with what it printed.
    pub fn run(&self, mut command: Command, input: &str) -> Result<String, ClusterError> {
        let program = command.get_program().to_string_lossy().into_owned();
        let words: Vec<String> = command.get_args().map(|word| word.to_string_lossy().into_owned()).collect();
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.spawn(command)?;
        let stdin = child.stdin.take();
        let output = std::thread::scope(|scope| {
            // Who does not want all of it closes its end.
            scope.spawn(move || stdin.map(|mut stdin| stdin.write_all(input.as_bytes())));
            child.wait_with_output()
        });
        let output = output.doing(|| format!("wait for {program}"))?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim_end_matches('\n').to_owned();
        if output.status.success() {
            return Ok(text(&output.stdout));
        }
        let why = format!("{} ended with {}: {}", words.join(" "), output.status, text(&output.stderr));
        Err(ClusterError::Program { program, why, log: text(&output.stdout) })
    }
}
