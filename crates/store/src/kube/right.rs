//! What to say when the API does not let us see all Nodes.

use super::trouble::Trouble;

/// Says that the Nodes of others cannot be seen, why, what is left, and what to do.
pub(super) fn may_not_see_nodes(trouble: &Trouble) -> String {
    let is_kubelet = trouble.text.contains("system:node:");
    let hint = if is_kubelet {
        "this is a kubelet's credential, which from Kubernetes 1.32 on sees only its own node: give flanneld the service account flannel"
    } else {
        trouble.hint.as_deref().unwrap_or("grant it")
    };
    format!("{}; no other node is known, and only our own is kept (hint: {hint})", trouble.text)
}
