//! What is asked of the Kubernetes API: a verb on a resource, as the API's own rules for access name them.

use std::fmt::{self, Write as _};

/// A kind of object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Resource {
    /// The API group; empty for the core one.
    pub(super) group: &'static str,
    /// The version of the group.
    pub(super) version: &'static str,
    /// The plural, as in paths and rules.
    pub(super) plural: &'static str,
    /// What one is called.
    pub(super) singular: &'static str,
}

/// Nodes.
pub(super) const NODES: Resource = Resource { group: "", version: "v1", plural: "nodes", singular: "node" };
/// Pods.
pub(super) const PODS: Resource = Resource { group: "", version: "v1", plural: "pods", singular: "pod" };

/// Events.
pub(super) const EVENTS: Resource = Resource { group: "", version: "v1", plural: "events", singular: "event" };

/// What to do (the verbs of RBAC).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Get,
    List,
    Watch,
    Patch,
    Create,
}

impl Verb {
    /// As rules for access spell it.
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Get => "get",
            Self::List => "list",
            Self::Watch => "watch",
            Self::Patch => "patch",
            Self::Create => "create",
        }
    }
}

/// A verb on a resource.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ask {
    pub(super) verb: Verb,
    pub(super) resource: Resource,
    /// Where the resource is in namespaces.
    pub(super) namespace: Option<String>,
    /// One object; none for all.
    pub(super) name: Option<String>,
    /// A part of the object that has rights of its own.
    pub(super) subresource: Option<&'static str>,
    /// What follows `?`.
    pub(super) query: String,
}

impl Ask {
    /// A verb on all objects of a resource.
    pub(super) fn of(verb: Verb, resource: Resource) -> Self {
        Self { verb, resource, namespace: None, name: None, subresource: None, query: String::new() }
    }

    /// On the one of this name.
    pub(super) fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// In a namespace.
    pub(super) fn within(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = Some(namespace.into());
        self
    }

    /// On a part of it.
    pub(super) fn sub(mut self, subresource: &'static str) -> Self {
        self.subresource = Some(subresource);
        self
    }

    /// With parameters, encoded as in a URL.
    pub(super) fn with(mut self, query: impl Into<String>) -> Self {
        self.query = query.into();
        self
    }

    /// The path and query of the request.
    pub(super) fn path(&self) -> String {
        let Resource { group, version, plural, .. } = self.resource;
        let mut path = if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") };
        let namespace = self.namespace.iter().flat_map(|namespace| ["namespaces", namespace]);
        let parts = namespace.chain([plural]).chain(self.name.as_deref()).chain(self.subresource);
        parts.for_each(|part| {
            path.push('/');
            path.push_str(&encoded(part));
        });
        if !self.query.is_empty() {
            path.push('?');
            path.push_str(&self.query);
        }
        path
    }

    /// How to get the right to it.
    pub(super) fn missing_right(&self) -> String {
        let Resource { group, plural, .. } = self.resource;
        let sub = self.subresource.map(|sub| format!("/{sub}")).unwrap_or_default();
        format!(
            "the ClusterRole of flanneld's account (flannel) lacks the rule: - {{apiGroups: [\"{group}\"], resources: [\"{plural}{sub}\"], \
             verbs: [\"{}\"]}}",
            self.verb.as_str()
        )
    }
}

impl fmt::Display for Ask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Resource { plural, singular, .. } = self.resource;
        let verb = match (self.verb, self.subresource) {
            (Verb::Get, _) => "read",
            (verb, _) => verb.as_str(),
        };
        match (&self.name, self.subresource) {
            (Some(name), Some(sub)) => write!(f, "{verb} the {sub} of {singular} {name}"),
            (Some(name), None) => write!(f, "{verb} {singular} {name}"),
            (None, _) => write!(f, "{verb} {plural}"),
        }
    }
}

/// A text as a part of a URL.
pub(super) fn encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => encoded.push(byte as char),
            _ => {
                let _ = write!(encoded, "%{byte:02X}");
            }
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_and_words() {
        let check = |ask: Ask, path: &str, words: &str| {
            assert_eq!((ask.path().as_str(), ask.to_string().as_str()), (path, words));
        };
        check(Ask::of(Verb::List, NODES).with("limit=1"), "/api/v1/nodes?limit=1", "list nodes");
        check(Ask::of(Verb::Get, NODES).named("a/b c"), "/api/v1/nodes/a%2Fb%20c", "read node a/b c");
        check(
            Ask::of(Verb::Patch, NODES).named("n1").sub("status"),
            "/api/v1/nodes/n1/status",
            "patch the status of node n1",
        );
        check(
            Ask::of(Verb::Get, PODS).within("kube-flannel").named("p"),
            "/api/v1/namespaces/kube-flannel/pods/p",
            "read pod p",
        );
        let events = Resource { group: "events.k8s.io", version: "v1", plural: "events", singular: "event" };
        check(
            Ask::of(Verb::Create, events).within("default"),
            "/apis/events.k8s.io/v1/namespaces/default/events",
            "create events",
        );
    }
}
