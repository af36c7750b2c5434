//! What the flags and the environment say of Kubernetes: how to reach its API, and which Node this is.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;

use flannel_store::etcd::EndpointError;
use flannel_store::kube::{Access, NodeName, Options, Server};

use super::syntax::Raw;
use super::{FlagError, path};

/// What Kubernetes and the manifest tell a pod in its environment. Empty means unset.
pub(super) struct Surroundings {
    node: Option<String>,
    pod: Option<(String, String)>,
    api: Option<(String, String)>,
}

impl Surroundings {
    pub(super) fn of(environment: &BTreeMap<OsString, OsString>) -> Self {
        let value = |name: &str| {
            let value = environment.get(&OsString::from(name))?.to_str()?.trim().to_owned();
            Some(value).filter(|value| !value.is_empty())
        };
        Self {
            node: value("NODE_NAME"),
            pod: value("POD_NAMESPACE").zip(value("POD_NAME")),
            api: value("KUBERNETES_SERVICE_HOST").zip(value("KUBERNETES_SERVICE_PORT")),
        }
    }
}

pub(super) fn options(raw: &Raw, pod: &Surroundings) -> Result<Options, FlagError> {
    let prefix = raw.value("kube-annotation-prefix");
    let prefix = prefix
        .parse()
        .map_err(|why| FlagError::bad(&raw.origin("kube-annotation-prefix"), prefix, format!("{why}")))?;
    let node = match (&pod.node, &pod.pod) {
        (Some(name), _) => NodeName::Given(name.clone()),
        (None, Some((namespace, name))) => NodeName::OfPod { namespace: namespace.clone(), name: name.clone() },
        (None, None) => return Err(FlagError::NoNode),
    };
    Ok(Options {
        access: access(raw, pod)?,
        node,
        prefix,
        config: path(raw, "net-config-path")?,
        sets_condition: raw.is_on("set-node-network-unavailable"),
    })
}

fn access(raw: &Raw, pod: &Surroundings) -> Result<Access, FlagError> {
    let url = raw.value("kube-api-url");
    let bad = |error: EndpointError| FlagError::bad(&raw.origin("kube-api-url"), &error.text, error.why);
    let servers = if url.is_empty() { Vec::new() } else { Server::parse_list(url).map_err(bad)? };
    let kubeconfig = Some(raw.value("kubeconfig-file")).filter(|path| !path.is_empty()).map(PathBuf::from);
    let in_cluster = match &pod.api {
        Some((host, port)) => Some(Server::in_cluster(host, port).map_err(|_| FlagError::NoApi)?),
        None => None,
    };
    if servers.is_empty() && kubeconfig.is_none() && in_cluster.is_none() {
        return Err(FlagError::NoApi);
    }
    Ok(Access { servers, kubeconfig, in_cluster, account: Access::ACCOUNT.into() })
}
