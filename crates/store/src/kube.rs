//! The Kubernetes store: leases are annotations of Nodes, and subnets their pod CIDRs.
//!
//! [`KubeStore`] reads and writes what `flannel_core::annotations` documents, which is what other flannels do (compat §4), and needs no
//! right that clusters do not grant to flannel today: get, list and watch nodes, patch nodes/status, and get pods where the Node's name
//! is not given. `client` speaks to whichever server answers, `watch` tells, `hold` writes our own Node, `config_file` reads the
//! network config, which is a file here, and `reporter` tells the cluster how the node stands.
//!
//! Everything is protobuf, read where it lies (`wire`), bit by bit (`inflow`): a cluster's Nodes are never held as a whole. Where the
//! network config has a backend without peers (`need`), or before there is one, no other Node than our own is asked for.

mod access;
mod ask;
mod client;
mod condition;
mod config_file;
mod event;
mod exec;
mod hold;
mod inflow;
mod kubeconfig;
mod list;
mod listing;
mod need;
mod options;
mod own;
mod reporter;
mod right;
mod time;
mod trouble;
mod turn;
mod watch;
mod wire;

use std::sync::{Arc, OnceLock};

use flannel_core::config::{ConfigRules, NetworkConfig};
use flannel_core::lease::{Claim, LeaseKey};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::sync::watch as latest;

pub use self::access::{Access, Server};
use self::client::Client;
use self::config_file::ConfigFile;
use self::hold::Holding;
use self::need::Need;
pub use self::options::{NodeName, Options};
use self::own::{Own, Sight};
use self::reporter::Reporter;
use self::watch::Teller;
use crate::{Call, Held, HoldError, Standing, Store, StoreEvent};

/// Events that may wait for the receiver before the store waits too.
const WAITING: usize = 64;

/// The Kubernetes API, as one daemon uses it.
#[derive(Debug)]
pub struct KubeStore(Arc<Kube>);

/// One daemon in a cluster.
#[derive(Debug)]
struct Kube {
    client: Client,
    options: Options,
    /// The name of our own Node, once it is known.
    name: OnceLock<LeaseKey>,
    sight: Sight,
    need: Need,
    holding: Holding,
    standing: latest::Sender<Standing>,
}

impl KubeStore {
    /// Uses a cluster as one of its Nodes. Whether it can be reached shows when it is asked.
    pub fn new(options: Options) -> Self {
        let client = Client::new(options.access.clone());
        Self(Arc::new(Kube {
            client,
            options,
            name: OnceLock::new(),
            sight: Sight::default(),
            need: Need::default(),
            holding: Holding::default(),
            standing: latest::Sender::default(),
        }))
    }
}

impl Store for KubeStore {
    fn rules(&self) -> ConfigRules {
        ConfigRules::Kube
    }

    fn watch(&self) -> Receiver<StoreEvent> {
        let (sender, receiver) = channel(WAITING);
        let kube = Arc::clone(&self.0);
        tokio::spawn(async move {
            let teller = Teller::new(Arc::clone(&kube), sender.clone());
            tokio::select! {
                never = teller.tell() => match never {},
                () = tell_config(&kube, &sender) => {}
                () = Reporter::new(Arc::clone(&kube)).run() => {}
                () = sender.closed() => {}
            }
        });
        receiver
    }

    fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Call<Result<Held, HoldError>> {
        self.0.need.lease_says(config);
        let (kube, config, claim) = (Arc::clone(&self.0), config.clone(), claim.clone());
        Box::pin(async move { kube.hold(&config, &claim).await })
    }

    fn report(&self, standing: &Standing) {
        self.0.standing.send_replace(standing.clone());
    }
}

/// Tells the network config: why there is none at once, and one that there is as soon as our own Node is known, which may say
/// by which address others reach us.
async fn tell_config(kube: &Kube, sender: &Sender<StoreEvent>) {
    let mut file = ConfigFile::new(kube.options.config.clone());
    let mut own = kube.sight.own();
    loop {
        let read = file.next().await;
        if let Ok((_, config)) = &read {
            kube.need.config_says(config);
        }
        if read.is_ok() && own.wait_for(|own| matches!(own, Own::Here(_))).await.is_err() {
            return;
        }
        if sender.send(StoreEvent::Config(read.map(|(text, _)| text))).await.is_err() {
            return;
        }
    }
}
