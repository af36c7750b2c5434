//! `ipMasq`: the names of a container's masquerade rules, which are the Go plugin's, and when they come and go.

use flannel_kernel::pod_masquerade::{MasqueradeError, PodMasquerade};
use sha2::{Digest, Sha512};

use crate::protocol::environment::Call;
use crate::protocol::failure::{Explain, code};

/// The length of a chain's name: iptables' limit (`XT_EXTENSION_MAXNAMELEN` of `linux/netfilter/x_tables.h`, less one).
const CHAIN: usize = 28;

/// The rules of the call's container in a network.
pub(super) fn rules(call: &Call<'_>, network: &str) -> PodMasquerade {
    PodMasquerade {
        chain: chain(network, call.container_id),
        network: network.into(),
        container: call.container_id.into(),
    }
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
            Self::Run(_) => "the kernel needs the nat table of iptables; flanneld with --ip-masq can do without".into(),
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_chain_is_the_go_plugins() {
        assert_eq!(super::chain("cbr0", "c1"), "CNI-68f1f1eeb62cad3d0bdd579c");
    }
}
