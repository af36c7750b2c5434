//! What flannel leaves in a host's kernel: looked up, and removed when flannel leaves the host.
//!
//! Surface: [`Remains`]. What is ours is read as by the daemon, and removed as what nobody wants any more, so nothing that
//! the daemon would leave alone is touched. The bridge of the pods is the plugin's, and goes only when no pod hangs on it. No file is
//! touched, and no daemon ended.

use flannel_core::addr::{Family, LinkName};
use flannel_core::diff::{Op, Want, diff};
use flannel_core::facts::Facts;
use flannel_core::node::external_name;
use flannel_core::state::{Object, Scope};
use flannel_core::subnet_env::SubnetEnv;
use flannel_kernel::executor::{Executor, ObserveError};
use flannel_kernel::linux::KernelExecutor;
use flannel_kernel::pod_link::{Found, LinkError, Links};

use crate::fatal::Fatal;
use crate::flags::Flags;
use crate::run::open_kernel;
use crate::subnet_file;
use crate::worker::Question;

/// The bridge that the plugin `bridge` makes unless told otherwise.
pub const BRIDGE: &str = "cni0";
/// Removing a device takes what is on it along, which the next look tells; nothing needs more looks.
const LOOKS: usize = 4;

/// The kernel of a host that flannel leaves.
pub struct Remains {
    kernel: KernelExecutor,
    scope: Scope,
    links: Links,
    found: Option<SubnetEnv>,
}

/// The bridge of the pods.
pub enum Bridge {
    /// There is none.
    Absent,
    /// No pod is on it.
    Free(Box<Found>),
    /// Pods are on it: the names of their links here.
    InUse(Vec<LinkName>),
    /// It has no address of this node's subnet, so it may be somebody else's.
    Foreign,
}

impl Remains {
    /// Opens the kernel of this namespace. A daemon with these flags was here; what it held is told by its `subnet.env`.
    pub fn new(flags: &Flags) -> Result<Self, Fatal> {
        let mut kernel = open_kernel()?;
        let unusable = |error: &dyn std::error::Error| Fatal::new(1, error.to_string());
        let question = Question { reach: flags.node.external.can_reach, ..Question::default() };
        let facts = question.ask(&mut kernel, &Scope::default()).map_err(|error| unusable(&error))?;
        let found = subnet_file::read(&flags.subnet_file)?;
        let links = Links::here().map_err(|error| unusable(&error))?;
        Ok(Self { kernel, scope: scope(flags, &facts, found.as_ref()), links, found })
    }

    /// The devices, routes and packet rules that are flannel's, in the order in which they go, each as the field's tools name it.
    pub fn objects(&mut self) -> Result<Vec<String>, ObserveError> {
        let named = |op: Op| {
            let object = Object(op.change.key(), op.change.value()).to_string();
            object.lines().next().unwrap_or_default().trim_end().to_owned()
        };
        Ok(self.ops()?.into_iter().map(named).collect())
    }

    /// Removes them; answers with what could not be removed, a line each.
    pub fn remove(&mut self) -> Result<Vec<String>, ObserveError> {
        let mut failed = Vec::new();
        for _ in 0..LOOKS {
            let ops = self.ops()?;
            if ops.is_empty() {
                return Ok(Vec::new());
            }
            failed = self.kernel.apply(&ops).into_iter().map(|error| error.to_string()).collect();
        }
        Ok(failed)
    }

    fn ops(&mut self) -> Result<Vec<Op>, ObserveError> {
        Ok(diff(&Want::default(), &self.kernel.observe(&self.scope)?))
    }

    /// The bridge of the pods as it is now.
    pub fn bridge(&mut self) -> Result<Bridge, LinkError> {
        let name = BRIDGE.parse().ok();
        let Some(bridge) = name.map(|name| self.links.find(name)).transpose()?.flatten() else {
            return Ok(Bridge::Absent);
        };
        let pods = self.links.ports(&bridge)?;
        if !pods.is_empty() {
            return Ok(Bridge::InUse(pods));
        }
        Ok(if bridge.is("bridge") && self.is_ours(&bridge)? { Bridge::Free(Box::new(bridge)) } else { Bridge::Foreign })
    }

    fn is_ours(&mut self, bridge: &Found) -> Result<bool, LinkError> {
        let Some(SubnetEnv { subnets, .. }) = &self.found else { return Ok(false) };
        for (family, subnet) in subnets.iter() {
            if self.links.addresses(bridge, family)?.iter().any(|address| subnet.contains(&address.addr())) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Removes the bridge.
    pub fn remove_bridge(&mut self, bridge: &Found) -> Result<(), LinkError> {
        self.links.delete(bridge)
    }
}

fn scope(flags: &Flags, facts: &Facts, found: Option<&SubnetEnv>) -> Scope {
    let externals =
        Family::ALL.into_iter().filter_map(|family| external_name(&flags.node.external, facts, family).ok());
    let subnets = found.map(|found| found.subnets).unwrap_or_default();
    Scope {
        networks: found.map(|found| found.networks.clone()).unwrap_or_default(),
        externals: externals.collect(),
        blackholes: if flags.node.rules.blackhole { subnets.values().copied().collect() } else { Vec::new() },
        iptables: !facts.only_nftables,
    }
}
