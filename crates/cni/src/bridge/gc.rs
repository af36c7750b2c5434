//! GC: frees what is left of containers that the runtime no longer knows.

use flannel_kernel::pod_link::{Links, Retired};

use super::conf::bridge_name;
use super::masquerade;
use crate::protocol::attachments::Attachments;
use crate::protocol::conf::NetConf;
use crate::protocol::environment::Call;
use crate::protocol::failure::Failure;
use crate::{Applet, delegate, host_local};

/// Takes away the links, then the addresses, then the rules: what fails stops what comes after it, and the next GC begins anew. Tells
/// of the pairs that a DEL has put out of use and nobody has destroyed.
pub(super) fn gc(call: &Call<'_>, conf: &NetConf) -> Result<Retired, Failure> {
    let valid = Attachments::read(conf)?;
    let mut host = Links::here()?;
    remove_links(&mut host, conf)?;
    if let Some(ipam) = conf.ipam_type()? {
        delegate::run_ipam(ipam, call, conf)?;
    }
    if conf.keys.get("ipMasq").is_some_and(|masq| masq == true) {
        masquerade::remove_stale(&conf.name, &valid)?;
    }
    Ok(host.retired()?)
}

/// Deletes the bridge's ports that lead to an address of a container that is not known. Only `host-local` tells whose an address is.
fn remove_links(host: &mut Links, conf: &NetConf) -> Result<(), Failure> {
    let Some(bridge) = host.find(bridge_name(conf)?)? else { return Ok(()) };
    if conf.ipam_type()? != Some(Applet::HostLocal.name()) {
        return Ok(());
    }
    let stale = host_local::stale(conf)?;
    if stale.is_empty() {
        return Ok(());
    }
    for pair in host.pairs()?.into_iter().filter(|pair| pair.host.link.master == Some(bridge.link.index)) {
        if pair.addresses.iter().any(|address| stale.contains(address)) {
            host.delete(&pair.host)?;
        }
    }
    Ok(())
}
