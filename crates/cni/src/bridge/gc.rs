//! GC: frees what is left of containers that the runtime no longer knows.

use flannel_kernel::pod_link::{Links, Retired};
use flannel_kernel::spoof_check::SpoofCheck;

use super::conf::bridge_name;
use super::{masquerade, port};
use crate::host_local::store::Taken;
use crate::protocol::attachments::Attachments;
use crate::protocol::conf::NetConf;
use crate::protocol::environment::Call;
use crate::protocol::failure::Failure;
use crate::{Applet, delegate, host_local};

/// Takes away the links and the checks of what they send, then the addresses, then the rules: what fails stops what comes after it, and the next
/// GC begins anew. Tells of the pairs that a DEL has put out of use and nobody has destroyed.
pub(super) fn gc(call: &Call<'_>, conf: &NetConf) -> Result<Retired, Failure> {
    let valid = Attachments::read(conf)?;
    let mut host = Links::here()?;
    if conf.ipam_type()? == Some(Applet::HostLocal.name()) {
        let stale = host_local::stale(conf, &valid)?;
        remove_links(&mut host, conf, &stale)?;
        stop_checking(conf, &stale)?;
    }
    if let Some(ipam) = conf.ipam_type()? {
        delegate::run_ipam(ipam, call, conf)?;
    }
    if conf.keys.get("ipMasq").is_some_and(|masq| masq == true) {
        masquerade::remove_stale(&conf.name, &valid)?;
    }
    Ok(host.retired()?)
}

/// Deletes the bridge's ports of containers that are not known: those that lead to an address of theirs, and those that an ADD was killed
/// at before it gave them one. Only `host-local` tells who was there.
fn remove_links(host: &mut Links, conf: &NetConf, stale: &Taken) -> Result<(), Failure> {
    let Some(bridge) = host.find(bridge_name(conf)?)? else { return Ok(()) };
    if stale.is_empty() {
        return Ok(());
    }
    let owners = stale.owners().map(|(container, ifname)| port::owner(&conf.name, container, ifname));
    let names: Vec<_> = owners.flat_map(|owner| port::names(&owner).collect::<Vec<_>>()).collect();
    for pair in host.pairs()?.into_iter().filter(|pair| pair.host.link.master == Some(bridge.link.index)) {
        if pair.addresses.iter().any(|address| stale.holds(*address)) || names.contains(&pair.host.link.name) {
            host.delete(&pair.host)?;
        }
    }
    Ok(())
}

fn stop_checking(conf: &NetConf, stale: &Taken) -> Result<(), Failure> {
    if conf.keys.get("macspoofchk").is_none_or(|check| check != true) {
        return Ok(());
    }
    stale.owners().try_for_each(|(container, ifname)| Ok(SpoofCheck::of(container, ifname).remove()?))
}
