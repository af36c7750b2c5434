//! Whether the leases of other nodes are needed. A backend without peers (`alloc`) needs none, and then no Node but our own is asked for.
//!
//! That is so when neither the network config as it was read last nor the one that our lease is held for, which may be an earlier
//! one that still is in force, has a backend with peers. Before a config was read it is not known.

use flannel_core::config::NetworkConfig;
use tokio::sync::watch;

/// What is known of it.
#[derive(Debug, Default)]
pub(super) struct Need(watch::Sender<Says>);

#[derive(Debug, Clone, Copy, Default)]
struct Says {
    config: Option<bool>,
    lease: bool,
}

impl Says {
    fn of_others(self) -> Option<bool> {
        self.config.map(|config| config || self.lease)
    }
}

impl Need {
    /// Takes in the network config as it is now.
    pub(super) fn config_says(&self, config: &NetworkConfig) {
        self.0.send_modify(|says| says.config = Some(config.backend.has_peers()));
    }

    /// Takes in the config that our lease is held for.
    pub(super) fn lease_says(&self, config: &NetworkConfig) {
        self.0.send_modify(|says| says.lease = config.backend.has_peers());
    }

    /// Whether the leases of others are needed; none if that is not known yet.
    pub(super) fn of_others(&self) -> Option<bool> {
        self.0.borrow().of_others()
    }

    /// Waits until that is something else.
    pub(super) async fn changes_from(&self, before: Option<bool>) {
        let mut says = self.0.subscribe();
        _ = says.wait_for(|says| says.of_others() != before).await;
    }
}
