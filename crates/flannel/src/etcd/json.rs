//! Records, the network config and their changes as programs read them. The names here are promises: docs/etcd.md lists them.

use std::net::IpAddr;

use flannel_core::addr::Dual;
use flannel_core::lease::{Record, Vtep};
use flannel_core::record::SubnetKey;
use flannel_store::etcd::operator::{Census, ConfigText, Keeping, Listed};
use serde::Serialize;

#[derive(Serialize)]
struct CensusView {
    revision: i64,
    records: Vec<ListedView>,
}

#[derive(Serialize)]
struct ListedView {
    #[serde(flatten)]
    record: RecordView,
    key: String,
    reserved: bool,
    /// The lease of etcd, in the digits of `etcdctl lease list`.
    lease: Option<String>,
    /// Seconds.
    ends_in: Option<u64>,
    holder: Option<HolderView>,
    made: i64,
    written: i64,
    text: String,
}

/// A record as it is told of.
#[derive(Serialize)]
pub(super) struct RecordView {
    name: String,
    subnets: Vec<String>,
    public_ips: Vec<IpAddr>,
    backend: Option<String>,
    vteps: Vec<VtepView>,
    /// Why no daemon can read it.
    broken: Option<String>,
    /// What of it no daemon can read.
    flaws: Vec<String>,
}

#[derive(Serialize)]
struct VtepView {
    family: String,
    vni: u32,
    mac: String,
}

#[derive(Serialize)]
struct HolderView {
    name: String,
    machine: String,
    netns: u64,
}

#[derive(Serialize)]
struct ConfigView<'a> {
    key: &'a str,
    written: i64,
    text: &'a str,
    /// Why no daemon can use it.
    broken: Option<String>,
    warnings: Vec<String>,
}

/// A change, as a line of `watch`.
#[derive(Serialize)]
pub(super) struct ChangeView<'a> {
    pub(super) time: String,
    /// `new`, `changed`, `renewed`, `removed`; or `config`.
    pub(super) event: &'static str,
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub(super) record: Option<RecordView>,
    /// The network config's text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) text: Option<&'a str>,
    /// Why there is no network config that a daemon can use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) problem: Option<String>,
}

impl RecordView {
    /// A record, with the public addresses that it names.
    pub(super) fn of(record: &Record, public_ip: &Dual<IpAddr>) -> Self {
        let lease = record.lease.as_ref();
        let SubnetKey(subnet) = record.key.as_str().parse().unwrap_or(SubnetKey(Dual::default()));
        let backend = lease.map(|lease| lease.attributes.backend_type().to_owned()).unwrap_or_default();
        let vteps = lease.map(|lease| lease.attributes.vteps()).unwrap_or_default();
        let vtep =
            |(family, Vtep { vni, mac })| VtepView { family: format!("{family}"), vni: vni.id(), mac: mac.to_string() };
        Self {
            name: record.key.as_str().to_owned(),
            subnets: subnet.values().map(ToString::to_string).collect(),
            public_ips: public_ip.values().copied().collect(),
            backend: Some(backend).filter(|backend| !backend.is_empty()),
            vteps: vteps.iter().map(|(family, vtep)| (family, *vtep)).map(vtep).collect(),
            broken: lease.err().map(ToString::to_string),
            flaws: lease.map(|lease| lease.flaws.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        }
    }
}

/// All records.
pub(super) fn census(census: &Census) -> String {
    written(&CensusView { revision: census.revision, records: census.records.iter().map(listed).collect() }, true)
}

fn listed(listed: &Listed) -> ListedView {
    let holder = listed.holder.clone();
    ListedView {
        record: RecordView::of(&listed.record, &listed.public_ip),
        key: listed.etcd_key(),
        reserved: listed.keeping == Keeping::Reserved,
        lease: listed.keeping.lease().map(|id| format!("{id:x}")),
        ends_in: listed.keeping.left().map(|left| left.as_secs()),
        holder: holder.map(|host| HolderView { name: host.name, machine: host.machine, netns: host.netns }),
        made: listed.made(),
        written: listed.written(),
        text: listed.text(),
    }
}

/// The network config.
pub(super) fn config(key: &str, config: &ConfigText) -> String {
    let read = config.read.as_ref();
    let view = ConfigView {
        key,
        written: config.written,
        text: &config.text,
        broken: read.err().map(ToString::to_string),
        warnings: read.map(|(_, warnings)| warnings.iter().map(ToString::to_string).collect()).unwrap_or_default(),
    };
    written(&view, true)
}

/// A change on a line of its own.
pub(super) fn change(change: &ChangeView<'_>) -> String {
    written(change, false)
}

/// JSON of text, numbers and lists of them always can be written.
fn written(view: &impl Serialize, pretty: bool) -> String {
    let json = if pretty { serde_json::to_string_pretty(view) } else { serde_json::to_string(view) };
    json.unwrap_or_default() + "\n"
}
