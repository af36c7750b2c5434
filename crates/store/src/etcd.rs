//! The etcd store: a fleet without Kubernetes, on etcd's v3 API.
//!
//! [`EtcdStore`] watches and writes the keys that `keys` documents, which are those of other flannels (compat §3) and two of
//! our own. One list is one request, a renewal makes no noise, and no request is sent while nothing happens. `client` speaks
//! to whichever server of the cluster answers, `watch` tells, `hold` writes our record, `grant` keeps it alive.
//!
//! [`operator`] is for people who look after the records and the config.
//!
//! Nothing is deleted or revoked when the daemon ends, so that its record outlives a restart.

mod client;
mod grant;
mod hold;
mod keys;
mod list;
pub mod operator;
#[allow(missing_docs, unreachable_pub, unused_qualifications, clippy::all, clippy::pedantic, reason = "generated")]
mod rpc;
mod signature;
mod transaction;
mod trouble;
mod turn;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use flannel_core::config::NetworkConfig;
use flannel_core::lease::Claim;
use tokio::sync::mpsc::{Receiver, channel};

pub use self::client::Login;
use self::hold::Etcd;
use self::list::Shared;
use self::watch::Teller;
pub use crate::endpoint::{Endpoint, EndpointError};
use crate::host::Host;
pub use crate::tls::TlsFiles;
use crate::{Call, Held, HoldError, Store, StoreEvent};

/// Events that may wait for the receiver before the store waits too.
const WAITING: usize = 64;

/// How to reach etcd, and what to do there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Servers of one cluster, at least one; the first that can be reached is used.
    pub endpoints: Vec<Endpoint>,
    /// What flannel's keys begin with, without the `/` behind it.
    pub prefix: String,
    /// For endpoints with TLS.
    pub tls: TlsFiles,
    /// Who we are to etcd; without it the name in our certificate, if there is one.
    pub login: Option<Login>,
    /// How long our record outlives us. At least a second.
    pub ttl: Duration,
    /// How long before its end the record is renewed.
    pub renew_margin: Duration,
}

impl Options {
    /// How long a record lives that nobody renews (compat §3).
    pub const TTL: Duration = Duration::from_hours(24);
}

/// An etcd cluster, as one daemon uses it.
#[derive(Debug)]
pub struct EtcdStore(Arc<Etcd>);

impl EtcdStore {
    /// Uses a cluster as a host. Whether it can be reached shows when it is asked.
    pub fn new(options: Options, host: Host) -> Self {
        Self(Arc::new(Etcd::new(options, host)))
    }
}

impl Store for EtcdStore {
    /// Also renews our record, as long as it is listened to.
    fn watch(&self) -> Receiver<StoreEvent> {
        let (sender, receiver) = channel(WAITING);
        let etcd = Arc::clone(&self.0);
        tokio::spawn(async move {
            let teller = Teller::new(Arc::clone(&etcd), sender.clone());
            tokio::select! {
                never = teller.tell() => match never {},
                () = etcd.keep_alive() => {}
                () = sender.closed() => {}
            }
            etcd.shared.send_replace(Shared::Absent);
        });
        receiver
    }

    fn hold(&self, config: &NetworkConfig, claim: &Claim) -> Call<Result<Held, HoldError>> {
        let (etcd, config, claim) = (Arc::clone(&self.0), config.clone(), claim.clone());
        Box::pin(async move { etcd.hold(&config, &claim).await })
    }
}
