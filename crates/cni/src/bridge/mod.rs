//! The plugin `bridge`: a veth pair between the container and a bridge of the host, with addresses from an IPAM plugin.
//!
//! Surface: [`call`]; [`remove_link`], [`remove_spoof_check`] and [`remove_rules`] for a caller that has lost the configuration. Rooms:
//! [`conf`] (the keys), [`plan`] (what the container and the bridge get), [`port`] (the pair), [`mod@vlan`] (VLANs), [`mod@masquerade`] (`ipMasq`),
//! [`check`] (CHECK), [`mod@gc`] (GC). What can fail without a trace comes first: namespace and name, then the address, then the kernel's
//! objects; what was made before a failure is taken back.

mod check;
mod conf;
mod gc;
mod masquerade;
mod plan;
mod port;
mod vlan;

use std::time::Duration;

use flannel_core::addr::{Family, LinkName, Mac, Mtu};
use flannel_kernel::namespace::NetNamespace;
use flannel_kernel::pod_link::{Found, Links, Retired, SettleError, enable_forwarding, set_conf, settle};
use flannel_kernel::pod_masquerade::{Backend, PodMasquerade};
use flannel_kernel::spoof_check::{SpoofCheck, SpoofCheckError};
use flannel_kernel::sysctl::SysctlError;

use crate::protocol::conf::NetConf;
use crate::protocol::environment::{Call, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::result::{CniResult, Interface};
use crate::{Afterwards, Outcome, delegate, netns};

use conf::BridgeConf;
use plan::{MissingGateway, Plan};
use port::{Ends, NewPort};

/// Runs one verb.
pub(crate) fn call(call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    match call.verb {
        Verb::Add => add(call, conf).map(Outcome::from),
        Verb::Del => del(call, conf).map(Outcome::from),
        Verb::Check => check::check(call, conf, &BridgeConf::read(conf, call)?).map(Outcome::from),
        Verb::Status => status(call, conf).map(Outcome::from),
        Verb::Gc => gc::gc(call, conf).map(Outcome::from),
        Verb::Version => Ok(Outcome::default()),
    }
}

/// Reads the keys, those of the IPAM plugin too.
pub(crate) fn read(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    let keys = BridgeConf::read(conf, call)?;
    keys.ipam.map_or(Ok(()), |ipam| delegate::check_ipam(&ipam, call, conf))
}

fn add(call: &Call<'_>, conf: &NetConf) -> Result<CniResult, Failure> {
    let keys = BridgeConf::read(conf, call)?;
    let netns = netns::open(call)?;
    let mut pod = netns::links(&netns)?;
    let ifname = call.ifname()?;
    if pod.find(ifname)?.is_some() {
        return Err(BridgeError::NameTaken(ifname).into());
    }
    let given = match &keys.ipam {
        Some(ipam) => delegate::run_ipam(ipam, &call.of_new_interface(), conf)?.result.unwrap_or_default(),
        None => CniResult::default(),
    };
    let rules = keys.ip_masq.then(|| masquerade::rules(call, &conf.name)).transpose()?;
    let owner = port::owner(&conf.name, call.container_id, ifname.as_str());
    let connected = connect(call, &owner, &keys, &netns, &mut pod, given, rules.as_ref());
    if connected.is_err() {
        // The failure that is told is the first one; DEL tries again what cannot be taken back now.
        _ = rules.map(|rules| rules.remove());
        _ = keys.spoof_check.then(|| spoof_check(call).map(|check| check.remove()));
        _ = keys.ipam.map(|ipam| delegate::run_ipam(&ipam, &call.with_verb(Verb::Del), conf));
    }
    connected
}

/// Makes the kernel's objects. The pair goes again when anything fails after it was made.
fn connect(
    call: &Call<'_>,
    owner: &str,
    keys: &BridgeConf,
    netns: &NetNamespace,
    pod: &mut Links,
    given: CniResult,
    rules: Option<&PodMasquerade>,
) -> Result<CniResult, Failure> {
    let plan = Plan::new(keys, given)?;
    let mut host = Links::here()?;
    let bridge = find_or_create_bridge(&mut host, keys)?;
    let gateway = vlan::gateway(&mut host, &keys.vlan, &bridge)?;
    let missing = plan.missing_gateways(&mut host, &bridge, &gateway, keys, call)?;
    prepare_bridge(&mut host, keys, &bridge)?;
    let ends = new_port(owner, call.ifname()?, keys, netns).create(&mut host, &bridge)?;
    let finished = vlan::set_port(&mut host, &keys.vlan, &bridge, ends.host)
        .and_then(|()| set_gateways(&mut host, &gateway, &missing))
        .and_then(|()| check_spoofing(call, keys, &ends))
        .and_then(|()| configure(keys, netns, pod, &ends, &plan))
        .and_then(|()| forward(&plan))
        .and_then(|()| masquerade(rules, keys, &plan));
    if let Err(failure) = finished {
        if let Ok(Some(made)) = host.find(ends.host) {
            _ = host.delete(&made);
        }
        return Err(failure);
    }
    Ok(plan.result(interfaces(call, &bridge, &gateway, &ends), &keys.dns))
}

fn new_port<'a>(owner: &'a str, pod: LinkName, keys: &BridgeConf, netns: &'a NetNamespace) -> NewPort<'a> {
    NewPort { owner, pod, pod_mac: keys.mac, netns, mtu: keys.mtu, hairpin: keys.hairpin, isolated: keys.isolated }
}

fn set_gateways(host: &mut Links, gateway: &Found, missing: &[MissingGateway]) -> Result<(), Failure> {
    missing.iter().try_for_each(|(net, conflicts)| Ok(host.set_bridge_address(gateway, *net, conflicts)?))
}

/// Makes the bridge, or adopts the one that is there.
fn find_or_create_bridge(host: &mut Links, keys: &BridgeConf) -> Result<Found, Failure> {
    let name = keys.bridge;
    let mut found = host.find(name)?;
    let made = found.is_none();
    if made {
        vlan::create_bridge(host, keys)?;
        found = host.find(name)?;
    }
    let bridge = found.ok_or(BridgeError::Vanished(name))?;
    if !bridge.is("bridge") {
        return Err(BridgeError::NotABridge { name, kind: bridge.link.kind.to_string() }.into());
    }
    vlan::check_filter(host, &keys.vlan, &bridge, made)?;
    Ok(bridge)
}

fn prepare_bridge(host: &mut Links, keys: &BridgeConf, bridge: &Found) -> Result<(), Failure> {
    if !bridge.link.is_up() || keys.promisc && !bridge.is_promisc() {
        host.set_up(bridge, true, keys.promisc)?;
    }
    if bridge.link.accept_ra {
        // The bridge's routes are the node's own business; without IPv6 there is nothing to set.
        _ = set_conf(Family::V6, keys.bridge, "accept_ra", "0");
    }
    Ok(())
}

/// How long the kernel may look for duplicates of addresses, as the Go plugin has it.
const DUPLICATES: Duration = Duration::from_secs(10);

/// Gives the container's end what the plan has for it.
fn configure(
    keys: &BridgeConf,
    netns: &NetNamespace,
    pod: &mut Links,
    ends: &Ends,
    plan: &Plan,
) -> Result<(), Failure> {
    if keys.stays_down {
        return Ok(());
    }
    let addresses: Vec<_> = plan.addresses().collect();
    let has_six = addresses.iter().any(|net| net.addr().is_ipv6());
    if !addresses.is_empty() {
        netns::run(netns, || set_sysctls(ends.pod, keys.enable_dad, has_six))??;
    }
    let found = pod.find(ends.pod)?.ok_or(BridgeError::Vanished(ends.pod))?;
    pod.configure(&found, &addresses, &plan.pod_routes(), keys.enable_dad)?;
    if keys.enable_dad && has_six {
        netns::run(netns, || settle(&found, DUPLICATES))?.map_err(BridgeError::Settle)?;
    }
    Ok(())
}

/// The sysctls of the container's end (compat §8). What the kernel was built without, or a runtime has made read-only, is
/// passed over, except that an IPv6 address needs IPv6.
fn set_sysctls(link: LinkName, enable_dad: bool, has_six: bool) -> Result<(), BridgeError> {
    _ = set_conf(Family::V6, link, "accept_dad", if enable_dad { "1" } else { "0" });
    if !has_six {
        return Ok(());
    }
    _ = set_conf(Family::V6, link, "keep_addr_on_down", "1");
    let loopback = "lo".parse().map_err(|_| BridgeError::NoName)?;
    _ = set_conf(Family::V6, loopback, "disable_ipv6", "0");
    set_conf(Family::V6, link, "disable_ipv6", "0").map_err(|cause| BridgeError::NoIpv6 { link, cause })
}

/// The check of what the container sends.
fn spoof_check(call: &Call<'_>) -> Result<SpoofCheck, Failure> {
    Ok(SpoofCheck::of(call.container_id, call.ifname()?.as_str()))
}

fn check_spoofing(call: &Call<'_>, keys: &BridgeConf, ends: &Ends) -> Result<(), Failure> {
    if keys.spoof_check { Ok(spoof_check(call)?.add(ends.host, ends.pod_mac)?) } else { Ok(()) }
}

fn forward(plan: &Plan) -> Result<(), Failure> {
    for family in plan.gateway_families() {
        enable_forwarding(family).map_err(|cause| BridgeError::Forwarding { family, cause })?;
    }
    Ok(())
}

fn masquerade(rules: Option<&PodMasquerade>, keys: &BridgeConf, plan: &Plan) -> Result<(), Failure> {
    let Some(rules) = rules else { return Ok(()) };
    let addresses: Vec<_> = plan.addresses().collect();
    Ok(rules.add(keys.ip_masq_backend.unwrap_or_else(Backend::of_node), &addresses)?)
}

/// The gateway is named where it is not the bridge.
fn interfaces(call: &Call<'_>, bridge: &Found, gateway: &Found, ends: &Ends) -> Vec<Interface> {
    let interface = |name: LinkName, mac: Option<Mac>, sandbox: &str| Interface {
        name: name.to_string(),
        mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
        sandbox: sandbox.into(),
        ..Interface::default()
    };
    let mut interfaces = vec![
        interface(bridge.link.name, bridge.link.mac, ""),
        interface(ends.host, Some(ends.host_mac), ""),
        interface(ends.pod, Some(ends.pod_mac), call.netns.unwrap_or_default()),
    ];
    if gateway.link.index != bridge.link.index {
        interfaces.push(interface(gateway.link.name, gateway.link.mac, ""));
    }
    interfaces
}

/// The link first and its address then, so that nobody gets an address that is still in use. Where rules are still to be removed the address is
/// searched for at once: nobody who waits for the lock on the addresses is to wait for iptables.
fn del(call: &Call<'_>, conf: &NetConf) -> Result<Afterwards, Failure> {
    let retired = remove_link(call)?;
    let asked = |key: &str| conf.keys.get(key).is_some_and(|value| value == true);
    if asked("macspoofchk") {
        remove_spoof_check(call)?;
    }
    let ipam = conf.ipam_type()?;
    let has_rules = asked("ipMasq") && ipam.is_some();
    let had = if has_rules { &[] } else { retired.addresses() };
    let freed = ipam.map(|ipam| delegate::run_ipam(ipam, &call.that_had(had), conf)).transpose()?;
    if has_rules {
        remove_rules(call, &conf.name)?;
    }
    Ok(Afterwards { retired, ..freed.unwrap_or_default().afterwards })
}

/// Ends the check of the container's source MAC. Succeeds when there is none.
pub(crate) fn remove_spoof_check(call: &Call<'_>) -> Result<(), Failure> {
    Ok(spoof_check(call)?.remove()?)
}

/// Removes the container's masquerade rules. Succeeds when there are none.
pub(crate) fn remove_rules(call: &Call<'_>, network: &str) -> Result<(), Failure> {
    Ok(masquerade::rules(call, network)?.remove()?)
}

/// Puts the container's interface and its other end out of use, and what was put so by a DEL that did not come to its end; a pair
/// for which that does not work is deleted at once. Succeeds when there is none, or the namespace is gone.
pub(crate) fn remove_link(call: &Call<'_>) -> Result<Retired, Failure> {
    let mut retired = Retired::default();
    let Some(netns) = netns::open_if_there(call)? else { return Ok(retired) };
    let (mut pod, mut host) = (netns::links(&netns)?, Links::here()?);
    for found in pod.to_retire(call.ifname()?)?.iter().filter(|found| found.is("veth")) {
        match pod.retire(found, &netns, &mut host) {
            Ok(pair) => retired.extend(pair),
            Err(_) => pod.delete(found)?,
        }
    }
    Ok(retired)
}

fn status(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    match BridgeConf::read(conf, call)?.ipam {
        Some(ipam) => delegate::run_ipam(&ipam, call, conf).map(drop),
        None => Ok(()),
    }
}

/// The container cannot be connected.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BridgeError {
    #[error("bridge: container veth name provided ({0}) already exists")]
    NameTaken(LinkName),
    #[error("bridge: {name} already exists but is not a bridge: it is of kind {kind:?}")]
    NotABridge { name: LinkName, kind: String },
    #[error("bridge: link {0} was deleted by someone else meanwhile")]
    Vanished(LinkName),
    #[error("bridge: no free name for the host's end of the veth pair")]
    NoName,
    #[error("bridge: no random bytes: {0}")]
    Random(rustix::io::Errno),
    #[error("bridge: cannot enable IPv6 on {link} in the container: {cause}")]
    NoIpv6 { link: LinkName, cause: SysctlError },
    #[error("bridge: failed to enable {family} forwarding: {cause}")]
    Forwarding { family: Family, cause: SysctlError },
    #[error("bridge: {0}")]
    Settle(SettleError),
    #[error("bridge: IPAM plugin returned missing IP config")]
    NoAddress,
    #[error("bridge: MTU {mtu} is less than the address {address} needs ({})", Mtu::least(Family::V6))]
    SmallMtu { mtu: Mtu, address: ipnet::IpNet },
    #[error("bridge: failed to set bridge addr: {bridge:?} already has an IP address different from {want}: {have}")]
    OtherAddress { bridge: String, want: ipnet::IpNet, have: String },
}

impl Explain for SpoofCheckError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        "`macspoofchk` needs nf_tables for bridges (CONFIG_NF_TABLES_BRIDGE): remove the key, or load the module".into()
    }
}

impl Explain for BridgeError {
    fn code(&self) -> u32 {
        match self {
            Self::SmallMtu { .. } => code::CONF,
            _ => code::OTHER,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::NameTaken(_) => "call DEL for the container before it is added again".into(),
            Self::NotABridge { name, .. } => {
                format!("rename or delete the device {name}, or set another name in `bridge`")
            }
            Self::Vanished(_) | Self::NoName | Self::Random(_) => "the runtime may try again".into(),
            Self::NoIpv6 { .. } => "the kernel or its command line must not have IPv6 disabled (ipv6.disable)".into(),
            Self::Forwarding { .. } => "/proc/sys must be writable where the runtime runs".into(),
            Self::Settle(SettleError::Duplicate { .. }) => {
                "another machine on the bridge has the address: find it, or take the address out of the range".into()
            }
            Self::Settle(_) => {
                "the bridge must be up and pass frames; without `enabledad` nothing is waited for".into()
            }
            Self::SmallMtu { .. } => "raise `mtu`, or take the IPv6 range out of `ipam`".into(),
            Self::NoAddress => "check `ipam` in the network configuration".into(),
            Self::OtherAddress { bridge, .. } => format!(
                "the node's subnet has changed: recreate the containers that hang on {bridge}; when it has none, flannel replaces its \
                 address, otherwise `ip link delete {bridge}`, or set `forceAddress`"
            ),
        }
    }
}
