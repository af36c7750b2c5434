//! A place of the lab where programs run and sockets are opened: a node, a pod, the router, the outside host.

use std::fs;
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use flannel_kernel::namespace::{MountNamespace, Namespaces, NetNamespace};
use flannel_kernel::process::spawn_in;

use crate::error::{Doing, LabError};

/// A network namespace and the mounts that go with it. Clones are the same place.
#[derive(Debug, Clone)]
pub struct Place {
    name: Arc<str>,
    net: Arc<NetNamespace>,
    mounts: Option<Arc<MountNamespace>>,
}

impl Place {
    /// A new network namespace that shares the mounts given. Its IPv6 addresses are usable at once (no duplicate address
    /// detection), and its loopback device is still down.
    pub(crate) fn create(name: &str, mounts: Option<Arc<MountNamespace>>) -> Result<Self, LabError> {
        let place = Self { name: name.into(), net: Arc::new(NetNamespace::create()?), mounts };
        for scope in ["all", "default"] {
            place.set_sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), "0")?;
            place.set_sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), "0")?;
        }
        Ok(place)
    }

    /// Its name in the lab.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its network namespace.
    pub fn net(&self) -> &NetNamespace {
        &self.net
    }

    /// Does the work with this network around it, on a thread of its own.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        Ok(self.net.run(work)?)
    }

    /// Starts a program here.
    pub fn spawn(&self, command: Command) -> Result<Child, LabError> {
        let program = command.get_program().to_string_lossy().into_owned();
        Namespaces::of(&self.net, self.mounts.as_deref())
            .and_then(|namespaces| spawn_in(command, namespaces))
            .doing(|| format!("run {program} on {}", self.name))
    }

    /// Runs a program here to its end, with what it writes captured.
    pub fn exec(&self, program: &str, arguments: &[&str]) -> Result<Output, LabError> {
        let mut command = Command::new(program);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        self.spawn(command)?.wait_with_output().doing(|| format!("wait for {program} on {}", self.name))
    }

    /// The mounts that are seen here, to be shared by another place.
    pub(crate) fn mounts(&self) -> Option<Arc<MountNamespace>> {
        self.mounts.clone()
    }

    /// Does the work with the mounts of this place around it.
    pub(crate) fn with_mounts<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T, LabError> {
        match &self.mounts {
            Some(mounts) => Ok(mounts.run(work)?),
            None => Ok(work()),
        }
    }

    /// Sets a sysctl by its path below `/proc/sys`.
    pub fn set_sysctl(&self, path: &str, value: &str) -> Result<(), LabError> {
        self.inside(|| fs::write(format!("/proc/sys/{path}"), value))?
            .doing(|| format!("set {path}={value} on {}", self.name))
    }

    /// The namespaces of this place with the lab's own user and PID namespaces: what a program from outside the lab joins.
    pub(crate) fn for_outsiders(&self) -> Result<Vec<OwnedFd>, LabError> {
        let own_mounts = || fs::File::open("/proc/self/ns/mnt").map(OwnedFd::from);
        let namespaces = Namespaces::of(&self.net, self.mounts.as_deref()).and_then(Namespaces::own_user_and_pids);
        namespaces
            .and_then(|all| {
                let mounts = all.mounts.map_or_else(own_mounts, Ok)?;
                Ok([all.user, all.net, Some(mounts), all.pids].into_iter().flatten().collect())
            })
            .doing(|| format!("open the namespaces of {}", self.name))
    }
}
