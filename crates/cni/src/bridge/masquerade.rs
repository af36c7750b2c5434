//! `ipMasq`: the names of a container's masquerade rules, which are the Go plugin's.

use flannel_kernel::pod_masquerade::{self, MasqueradeError, PodMasquerade};
use sha2::{Digest, Sha512};

use crate::protocol::attachments::Attachments;
use crate::protocol::environment::{Call, EnvironmentError};
use crate::protocol::failure::{Explain, code};

/// The length of a chain's name: iptables' limit (`XT_EXTENSION_MAXNAMELEN` of `linux/netfilter/x_tables.h`, less one).
const CHAIN: usize = 28;

/// The rules of the call's container in a network.
pub(super) fn rules(call: &Call<'_>, network: &str) -> Result<PodMasquerade, EnvironmentError> {
    let ifname = call.ifname()?;
    Ok(PodMasquerade {
        chain: chain(network, call.container_id),
        mark: mark(network, ifname.as_str(), call.container_id),
        network: network.into(),
        container: call.container_id.into(),
        ifname,
    })
}

/// Removes the rules of a network's containers that a runtime no longer knows.
pub(super) fn remove_stale(network: &str, valid: &Attachments) -> Result<(), MasqueradeError> {
    let of_network = format!("{}-", short_hash(network));
    let known: Vec<_> = valid.iter().map(|(container, ifname)| mark(network, ifname, container)).collect();
    let is_gone = |container: &str| !valid.has_container(container);
    let is_stale = |note: &str| note.starts_with(&of_network) && !known.iter().any(|known| note.starts_with(known));
    pod_masquerade::remove_stale(network, is_gone, is_stale)
}

/// What the comments of a container's rules in nf_tables begin with: a hash of the network and one of the attachment.
fn mark(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}-{}", short_hash(network), short_hash(&format!("{ifname}:{container_id}")))
}

fn short_hash(text: &str) -> String {
    let mut hash = format!("{:x}", Sha512::digest(text));
    hash.truncate(16);
    hash
}

/// `CNI-` and as much of the hexadecimal SHA-512 of both names as fits.
fn chain(network: &str, container_id: &str) -> String {
    let digest = Sha512::new().chain_update(network).chain_update(container_id).finalize();
    let hex = digest.iter().map(|byte| format!("{byte:02x}"));
    let mut chain: String = std::iter::once("CNI-".to_owned()).chain(hex).collect();
    chain.truncate(CHAIN);
    chain
}

impl Explain for MasqueradeError {
    fn code(&self) -> u32 {
        code::OTHER
    }

    fn hint(&self) -> String {
        match self {
            Self::Missing { .. } => {
                "install iptables, or run flanneld with --ip-masq, which masquerades for all pods and needs none".into()
            }
            Self::NoNft | Self::Nft(_) => {
                "the kernel needs nf_tables with masquerading (modprobe nft_masq), or set `ipMasqBackend` to \"iptables\"".into()
            }
            Self::Run(_) => "the kernel needs the nat table of iptables; flanneld with --ip-masq can do without".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chain_is_the_go_plugins() {
        assert_eq!(super::chain("cbr0", "c1"), "CNI-68f1f1eeb62cad3d0bdd579c");
        assert_eq!(super::mark("cbr0", "eth0", "c1"), "cb6e746fae1a4d6c-f4d01f2ef4b92245");
    }
}
