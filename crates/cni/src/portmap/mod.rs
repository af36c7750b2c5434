//! The plugin `portmap`: publishes ports of a container on the node, by rules in the Go plugin's layout.
//!
//! Surface: [`call`]. Rooms: [`conf`] (the keys), [`claims`] (who has which port, on disk). A port is claimed before rules are made, so what a killed ADD
//! has made is known by name to whoever comes next, and two containers never share one silently. What can be read there and
//! not in the kernel is never trusted against it: rules of the Go plugin, which writes nothing down, are removed by name.

mod claims;
mod conf;

use flannel_core::addr::Family;
use flannel_core::port_map::nft::Extent;
use flannel_core::port_map::{Mapping, Masquerade, PortMap};
use flannel_core::rules::RuleMode;
use flannel_kernel::pod_link::{Links, Retired, set_conf};
use flannel_kernel::port_map::{self, Effort, PublishError};
use flannel_kernel::sysctl::SysctlError;

use crate::Outcome;
use crate::protocol::attachments::Attachments;
use crate::protocol::conf::{ConfError, NetConf};
use crate::protocol::environment::{Call, Verb};
use crate::protocol::failure::{Explain, Failure, code};
use crate::protocol::result::CniResult;

use claims::{Claims, Saved};
use conf::PortMapConf;

/// Runs one verb.
pub(crate) fn call(call: &Call<'_>, conf: &NetConf) -> Result<Outcome, Failure> {
    match call.verb {
        Verb::Add => add(call, conf).map(Outcome::from),
        Verb::Del => del(call, conf).map(Outcome::from),
        Verb::Check => check(call, conf).map(Outcome::from),
        Verb::Status => status(conf).map(Outcome::from),
        Verb::Gc => gc(conf).map(Outcome::from),
        Verb::Version => Ok(Outcome::default()),
    }
}

/// Reads the keys.
pub(crate) fn read(conf: &NetConf) -> Result<(), Failure> {
    PortMapConf::read(conf).map(drop)
}

fn add(call: &Call<'_>, conf: &NetConf) -> Result<CniResult, Failure> {
    let given = conf.prev_result().map_err(|error| match error {
        ConfError::NoPrevResult => PortMapError::NotChained.into(),
        error => Failure::from(error),
    })?;
    let keys = PortMapConf::read(conf)?;
    let map = keys.port_map(call, &conf.name, &given)?;
    if map.mappings.is_empty() || map.addresses.is_empty() {
        return Ok(given);
    }
    if let Some(mapping) = map.unreachable() {
        return Err(PortMapError::OtherFamily(*mapping).into());
    }
    let claims = Claims::new(&keys.data_dir);
    let _at_work = claims.prepare(&map.network)?;
    let was_there = claims.claim(&map, is_there)?;
    publish(&claims, &keys, map, was_there).map(|()| given)
}

/// Makes the rules, and takes them back with the claim if anything fails. What cannot be taken back stays written down for DEL.
fn publish(claims: &Claims, keys: &PortMapConf, mut map: PortMap, was_there: bool) -> Result<(), Failure> {
    let published = make_rules(claims, keys, &mut map, was_there).and_then(|()| route_loopback(&map));
    if published.is_err() && port_map::unpublish(&map).is_ok() {
        _ = claims.release(&map.network, &map.container, &map.mappings);
    }
    published?;
    if !map.handles.is_empty() {
        // Without them DEL looks for the rules among those of all.
        _ = claims.save(&map);
    }
    // As the Go plugin has it, a failure here does not keep the container from starting.
    _ = port_map::forget_connections(&[&map]);
    Ok(())
}

/// Tries what takes one step, and when that fails looks at what is there, with nobody else doing the same.
fn make_rules(claims: &Claims, keys: &PortMapConf, map: &mut PortMap, was_there: bool) -> Result<(), Failure> {
    if !was_there && let Ok(handles) = port_map::publish(map, Effort::Quick) {
        map.handles = handles;
        return Ok(());
    }
    let _locked = claims.lock()?;
    let other_works = |mode| port_map::probe(mode).is_err() && port_map::probe(RuleMode::Nftables).is_ok();
    map.handles = match port_map::publish(map, Effort::Whole) {
        Err(_) if map.mode == RuleMode::Iptables && keys.may_change_mode() && other_works(map.mode) => {
            map.mode = RuleMode::Nftables;
            claims.save(map)?;
            port_map::publish(map, Effort::Whole)?
        }
        published => published?,
    };
    Ok(())
}

/// Lets what comes from the node's loopback address pass to the container and back.
fn route_loopback(map: &PortMap) -> Result<(), Failure> {
    let Some((Masquerade { .. }, address)) = map.masquerade.as_ref().zip(map.addresses.v4) else { return Ok(()) };
    match port_map::link_towards(address.addr()) {
        Ok(Some(link)) => Ok(set_conf(Family::V4, link, "route_localnet", "1").map_err(PortMapError::Loopback)?),
        // As the Go plugin has it: a container that the node has no route to has no use for this.
        _ => Ok(()),
    }
}

/// Whether a container that is written down is still there: all of its links on the host are, or some of its rules.
fn is_there(map: &PortMap) -> Result<bool, Failure> {
    let mut host = Links::here()?;
    let mut found = map.links.iter().map(|link| Ok::<_, Failure>(host.find(*link)?.is_some()));
    let linked = !map.links.is_empty() && found.try_fold(true, |all, found| Ok::<_, Failure>(all & found?))?;
    Ok(linked || port_map::is_published(map)?)
}

fn del(call: &Call<'_>, conf: &NetConf) -> Result<Retired, Failure> {
    let claims = Claims::new(&conf::data_dir(conf)?);
    let (network, container) = (conf.name.as_str(), call.container_id);
    let _at_work = claims.keep_restorer_out()?;
    if let Saved::Whole(map) = claims.saved(network, container)? {
        return withdraw(&claims, &map);
    }
    let keys = PortMapConf::read(conf)?;
    if keys.mappings.is_empty() {
        return claims.release(network, container, &[]).map(|()| Retired::default());
    }
    let retired = port_map::unpublish_by_name(container, &conf::chain(network, container), keys.mode()?)?;
    if let Ok(map) = conf.prev_result().map_err(Failure::from).and_then(|given| keys.port_map(call, network, &given)) {
        _ = port_map::forget_connections(&[&map]);
    }
    claims.release(network, container, &keys.mappings).map(|()| retired)
}

/// Removes what was published of a container, and forgets it only when that is done.
fn withdraw(claims: &Claims, map: &PortMap) -> Result<Retired, Failure> {
    let retired = port_map::unpublish(map)?;
    _ = port_map::forget_connections(&[map]);
    claims.release(&map.network, &map.container, &map.mappings).map(|()| retired)
}

/// Verifies the rules, in the rule system that the ADD has chosen.
fn check(call: &Call<'_>, conf: &NetConf) -> Result<(), Failure> {
    let given = conf.prev_result()?;
    let keys = PortMapConf::read(conf)?;
    let mut map = keys.port_map(call, &conf.name, &given)?;
    if map.mappings.is_empty() {
        return Ok(());
    }
    let mut extent = Extent::Common;
    if let Saved::Whole(saved) = Claims::new(&keys.data_dir).saved(&conf.name, call.container_id)? {
        (map.mode, extent) = (saved.mode, Extent::Ours);
    }
    Ok(port_map::check(&map, extent)?)
}

fn status(conf: &NetConf) -> Result<(), Failure> {
    let keys = PortMapConf::read(conf)?;
    port_map::probe(keys.mode()?).map_err(|error| Failure { code: code::NOT_AVAILABLE, ..Failure::from(error) })
}

/// Removes what belongs to containers of this network that are not in the list. Tells the first failure when all are tried.
///
/// Rules of the Go plugin name the network in iptables only, so in nf_tables only those go that are written down.
fn gc(conf: &NetConf) -> Result<(), Failure> {
    let valid = Attachments::read(conf)?;
    let keys = PortMapConf::read(conf)?;
    let claims = Claims::new(&keys.data_dir);
    let gone = |container: &str| !valid.has_container(container);
    let _at_work = claims.keep_restorer_out()?;
    let mut result = Ok(());
    for container in claims.of_network(&conf.name)?.iter().filter(|container| gone(container)) {
        let done = match claims.saved(&conf.name, container)? {
            Saved::Whole(map) => withdraw(&claims, &map).map(drop),
            Saved::Broken | Saved::Absent => claims.release(&conf.name, container, &[]),
        };
        result = result.and(done);
    }
    if keys.mode()? == RuleMode::Nftables {
        return result;
    }
    for (container, chain) in port_map::containers(&conf.name)?.iter().filter(|(container, _)| gone(container)) {
        let done = port_map::unpublish_by_name(container, chain, RuleMode::Iptables).map_err(Failure::from);
        result = result.and(done.map(drop));
    }
    result
}

/// The plugin cannot do its part.
#[derive(Debug, thiserror::Error)]
enum PortMapError {
    #[error("portmap: must be called as chained plugin")]
    NotChained,
    #[error("portmap: port {0} is to be published on an address of a family that the container has no address of")]
    OtherFamily(Mapping),
    #[error("portmap: unable to enable route_localnet: {0}")]
    Loopback(SysctlError),
    #[error("portmap: {0}")]
    Rules(#[from] PublishError),
}

impl Explain for PortMapError {
    fn code(&self) -> u32 {
        match self {
            Self::NotChained | Self::OtherFamily(_) => code::CONF,
            Self::Loopback(_) | Self::Rules(_) => code::OTHER,
        }
    }

    fn hint(&self) -> String {
        match self {
            Self::NotChained => {
                "list it in `plugins` of the network configuration behind one that gives the container its address"
                    .into()
            }
            Self::OtherFamily(_) => "publish it on an address of the other family, or on none for all".into(),
            Self::Loopback(_) => {
                "/proc/sys must be writable where the runtime runs; with `snat` false it is not needed".into()
            }
            Self::Rules(error) => hint(error).into(),
        }
    }
}

fn hint(error: &PublishError) -> &'static str {
    match error {
        PublishError::NoProgram { name } if name == "nft" => "conditions need it: install nftables, or remove them",
        PublishError::NoProgram { .. } => "install iptables, or set `backend` to nftables, which needs no program",
        PublishError::Run(_) => "the kernel needs the nat table of iptables; `backend` nftables can do without",
        PublishError::Nft(_) => {
            "the plugin needs CAP_NET_ADMIN where the runtime runs, and the kernel nft_nat, nft_masq and nft_fib"
        }
        PublishError::NoNft => "load the module nf_tables, or set `backend` to iptables",
        PublishError::Absent { .. } => "someone has removed it: recreate the container",
    }
}

impl From<PublishError> for Failure {
    fn from(error: PublishError) -> Self {
        PortMapError::from(error).into()
    }
}

/// What would be published of any configuration reads back from its file.
#[cfg(any(test, feature = "laws"))]
pub(crate) fn law(call: &Call<'_>, conf: &NetConf) {
    use flannel_core::port_map::saved;
    let Ok(keys) = PortMapConf::read(conf) else { return };
    let Ok(given) = conf.prev_result() else { return };
    if let Ok(map) = keys.port_map(call, &conf.name, &given) {
        assert_eq!(saved::parse(saved::to_text(&map).as_bytes()).unwrap(), map);
    }
}

/// Beside a container and a port's file of any content, a port is claimed and released, and the other container's file stays.
#[cfg(any(test, feature = "laws"))]
pub(crate) fn law_of_files(dir: &std::path::Path, other: &[u8], port: &[u8]) {
    use std::fs;
    let saved = |container: &str| {
        let text = r#"{"network":"cbr0","container":"C","chain":"CNI-DN-1","backend":"nftables","addresses":["10.1.0.2/24"],
            "portMappings":[{"protocol":"tcp","hostPort":8080,"containerPort":80}]}"#;
        flannel_core::port_map::saved::parse(text.replace("\"C\"", &format!("\"{container}\"")).as_bytes()).unwrap()
    };
    let (containers, ports) = (dir.join("containers/cbr0"), dir.join("ports"));
    for folder in [&containers, &ports] {
        fs::create_dir_all(folder).unwrap();
    }
    fs::write(containers.join("c2"), other).unwrap();
    fs::write(ports.join("tcp-8080"), port).unwrap();
    let (claims, map) = (Claims::new(dir), saved("c1"));
    if claims.claim(&map, |_| Ok(true)).is_ok() {
        assert_eq!(claims.saved("cbr0", "c1").unwrap(), Saved::Whole(Box::new(map.clone())));
        claims.release("cbr0", "c1", &map.mappings).unwrap();
    }
    assert_eq!(claims.saved("cbr0", "c1").unwrap(), Saved::Absent);
    assert_eq!(fs::read(containers.join("c2")).unwrap(), other);
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["containers", "lock", "ports"]);
}
