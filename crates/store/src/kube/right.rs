//! What to say when the API does not let us see all Nodes.

use super::trouble::Trouble;

/// Says that the Nodes of others cannot be seen, why, and what is left.
pub(super) fn may_not_see_nodes(trouble: &Trouble) -> String {
    let kubelet = if trouble.text.contains("system:node:") {
        "; this is a kubelet's credential, which from Kubernetes 1.32 on sees only its own node: give flanneld the service account \
         flannel instead"
    } else {
        ""
    };
    format!("{trouble}; until then no other node is known, and only our own is kept{kubelet}")
}
