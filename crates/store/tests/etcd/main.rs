//! The etcd store on real servers, each test in namespaces of its own.

mod access;
mod faults;
mod holding;
mod load;
mod operating;
mod server;

#[path = "../../src/laws.rs"]
mod laws;
#[path = "../log/mod.rs"]
mod log;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use flannel_kernel::process::rerun_enclosed;
use flannel_store::etcd::{Endpoint, EtcdStore, Options, TlsFiles};
use flannel_store::{Held, HoldError, Host, Store, StoreEvent};

use self::laws::{Bench, CONFIG};
use self::server::Server;

/// A runtime as the daemon has it, for the test alone.
fn in_runtime(test: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

fn host(number: u8) -> Host {
    Host { name: format!("node-{number}"), machine: format!("m{number}"), boot: "b1".into(), netns: u64::from(number) }
}

fn options(endpoints: &str, prefix: &str) -> Options {
    Options {
        endpoints: Endpoint::parse_list(endpoints, false).unwrap(),
        prefix: prefix.into(),
        tls: TlsFiles::default(),
        login: None,
        ttl: Options::TTL,
        renew_margin: Duration::from_hours(1),
    }
}

/// The store of a daemon.
fn store(options: Options, number: u8) -> Box<dyn Store> {
    Box::new(EtcdStore::new(options, host(number)))
}

/// A prefix of its own on a server.
struct Place<'a> {
    server: &'a Server,
    prefix: String,
}

impl<'a> Place<'a> {
    fn new(server: &'a Server) -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let place = Self { server, prefix: format!("/place-{}/net", NUMBER.fetch_add(1, Ordering::Relaxed)) };
        place.server.ctl(&["put", &format!("{}/config", place.prefix), CONFIG]);
        place
    }

    fn options(&self) -> Options {
        options("http://127.0.0.1:2379", &self.prefix)
    }

    /// The same for a lease of three seconds.
    fn brief(&self) -> Options {
        Options { ttl: Duration::from_secs(3), renew_margin: Duration::from_secs(2), ..self.options() }
    }

    /// The revision that wrote a record last, and the ID of the etcd lease it is attached to.
    fn written(&self, key: &str) -> (u64, u64) {
        let answer = self.server.ctl(&["get", "--write-out=json", &self.key(key)]);
        let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
        let field = |name: &str| answer["kvs"][0][name].as_u64();
        (field("mod_revision").expect("no such record"), field("lease").unwrap_or_default())
    }

    /// All keys there are below the prefix.
    fn keys(&self) -> Vec<String> {
        let keys = self.server.ctl(&["get", "--prefix", "--keys-only", &self.prefix]);
        let name = |key: &str| key.strip_prefix(&format!("{}/", self.prefix)).map(str::to_owned);
        keys.lines().filter_map(name).collect()
    }

    fn key(&self, key: &str) -> String {
        format!("{}/subnets/{key}", self.prefix)
    }
}

impl Bench for Place<'_> {
    fn open(&self, number: u8) -> Box<dyn Store> {
        store(self.options(), number)
    }

    async fn put(&self, key: &str, text: &str) {
        self.server.ctl(&["put", &self.key(key), text]);
    }

    async fn remove(&self, key: &str) {
        self.server.ctl(&["del", &self.key(key)]);
    }

    async fn record(&self, key: &str) -> Option<String> {
        Some(self.server.ctl(&["get", "--print-value-only", &self.key(key)])).filter(|text| !text.is_empty())
    }

    async fn wipe(&self) {
        self.server.ctl(&["del", "--prefix", &format!("{}/subnets/", self.prefix)]);
    }

    async fn cut(&self) {
        server::cut();
    }

    async fn mend(&self) {
        server::mend();
    }
}

#[test]
fn it_keeps_the_laws_of_stores() {
    if !rerun_enclosed("it_keeps_the_laws_of_stores") {
        return;
    }
    server::make_stage();
    let server = server::alone();
    in_runtime(laws::check(|| Place::new(&server)));
}
