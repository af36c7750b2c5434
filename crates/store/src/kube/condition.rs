//! The condition `NetworkUnavailable` of our own Node: what it ought to say, what it says, and the patch between the two.
//!
//! Once we are ready it is False, with flannel's own words (compat §4): clusters wait for that with pods on the node. What blocks pods
//! makes it True, with the cause and the remedy. While we are merely not ready yet it stays as it is: the data path of before is
//! in force then, and a restart is no reason to keep pods away. Everything here is pure; [`super::reporter`] does it.

use std::time::SystemTime;

use flannel_core::cut;
use serde::Deserialize;
use serde_json::json;

use super::time::rfc3339;
use super::wire::Malformed;
use crate::Problem;

/// Its type.
const NETWORK_UNAVAILABLE: &str = "NetworkUnavailable";
/// What flannel says when all is right.
const UP: (&str, &str) = ("FlannelIsUp", "Flannel is running on this node");
/// The longest message, in characters.
const LONGEST: usize = 2048;

/// What the condition says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) unavailable: bool,
    pub(super) reason: String,
    pub(super) message: String,
}

impl Condition {
    /// What it ought to say, by the problems that last; none if it is to stay as it is.
    pub(super) fn wanted<'a>(ready: bool, problems: impl Iterator<Item = &'a Problem>) -> Option<Self> {
        let (blocking, others): (Vec<_>, Vec<_>) = problems.partition(|problem| problem.blocks_pods);
        let joined = |first: Option<&str>, problems: &[&Problem]| {
            let texts = first.into_iter().chain(problems.iter().map(|problem| problem.text.as_str()));
            cut(&texts.collect::<Vec<_>>().join("; "), LONGEST)
        };
        match blocking.first() {
            Some(first) => {
                Some(Self { unavailable: true, reason: first.reason.to_owned(), message: joined(None, &blocking) })
            }
            None if ready => {
                Some(Self { unavailable: false, reason: UP.0.to_owned(), message: joined(Some(UP.1), &others) })
            }
            None => None,
        }
    }

    /// The patch of the Node's status that makes it say so; `before` is what it says.
    pub(super) fn patch(&self, before: Option<&Self>, now: SystemTime) -> String {
        let now = rfc3339(now);
        let mut condition = json!({
            "type": NETWORK_UNAVAILABLE,
            "status": if self.unavailable { "True" } else { "False" },
            "reason": self.reason,
            "message": self.message,
            "lastHeartbeatTime": now,
        });
        if before.is_none_or(|before| before.unavailable != self.unavailable) {
            condition["lastTransitionTime"] = json!(now);
        }
        json!({"status": {"conditions": [condition]}}).to_string()
    }
}

/// What a Node says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Said {
    /// Its `resourceVersion`.
    pub(super) version: u64,
    /// None if it has no such condition.
    pub(super) condition: Option<Condition>,
}

/// A Node, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Node {
    metadata: Metadata,
    #[serde(default)]
    status: Status,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    #[serde(default)]
    resource_version: String,
}

#[derive(Debug, Default, Deserialize)]
struct Status {
    #[serde(default)]
    conditions: Vec<Entry>,
}

#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "type")]
    kind: String,
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

impl Said {
    /// Reads a Node in JSON.
    pub(super) fn read(node: &[u8]) -> Result<Self, Malformed> {
        let node: Node = serde_json::from_slice(node).map_err(|_| Malformed("it is no Node"))?;
        let found = node.status.conditions.into_iter().find(|entry| entry.kind == NETWORK_UNAVAILABLE);
        // A third status, Unknown, is neither of ours.
        let condition = found.filter(|entry| matches!(&*entry.status, "True" | "False")).map(|entry| Condition {
            unavailable: entry.status == "True",
            reason: entry.reason,
            message: entry.message,
        });
        Ok(Self { version: node.metadata.resource_version.parse().unwrap_or_default(), condition })
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;

    fn problem(reason: &'static str, text: &str, blocks_pods: bool) -> Problem {
        Problem { reason, text: text.into(), blocks_pods }
    }

    #[test]
    fn it_says_that_flannel_is_up_what_blocks_pods_or_nothing() {
        let leftover = problem("LeftoverRules", "old chains are there", false);
        let drops = problem("PodTrafficDropped", "chain FORWARD drops", true);
        let failed = problem("NetworkFailed", "cannot add flannel.1", true);
        let check = |ready, problems: &[&Problem], expect: Option<(bool, &str, &str)>| {
            let wanted = Condition::wanted(ready, problems.iter().copied());
            let said = wanted.as_ref().map(|said| (said.unavailable, &*said.reason, &*said.message));
            assert_eq!(said, expect);
        };
        check(true, &[], Some((false, "FlannelIsUp", "Flannel is running on this node")));
        check(false, &[], None);
        check(false, &[&leftover], None);
        let both = "Flannel is running on this node; old chains are there";
        check(true, &[&leftover], Some((false, "FlannelIsUp", both)));
        check(true, &[&leftover, &drops], Some((true, "PodTrafficDropped", "chain FORWARD drops")));
        check(false, &[&failed, &drops], Some((true, "NetworkFailed", "cannot add flannel.1; chain FORWARD drops")));
        let long = problem("NetworkFailed", &"x".repeat(1 << 20), true);
        assert!(Condition::wanted(true, [&long].into_iter()).unwrap().message.chars().count() <= LONGEST + 1);
    }

    #[test]
    fn the_patch_tells_a_transition_only_where_there_is_one() {
        let now = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
        let up = Condition::wanted(true, std::iter::empty()).unwrap();
        let says = "{\"status\":{\"conditions\":[{\"lastHeartbeatTime\":\"2023-11-14T22:13:20Z\",";
        let rest = "\"message\":\"Flannel is running on this node\",\"reason\":\"FlannelIsUp\",\"status\":\"False\",\
            \"type\":\"NetworkUnavailable\"}]}}";
        let transition = "\"lastTransitionTime\":\"2023-11-14T22:13:20Z\",";
        assert_eq!(up.patch(None, now), format!("{says}{transition}{rest}"));
        let other = Condition { reason: "RouteCreated".into(), ..up.clone() };
        assert_eq!(up.patch(Some(&other), now), format!("{says}{rest}"));
        let down = Condition { unavailable: true, ..other };
        assert_eq!(up.patch(Some(&down), now), format!("{says}{transition}{rest}"));
    }

    #[test]
    fn what_a_node_says_is_read() {
        let read = |status: &str| {
            let node = format!(r#"{{"metadata":{{"name":"n","resourceVersion":"7"}},"status":{status}}}"#);
            Said::read(node.as_bytes()).unwrap()
        };
        let none = Said { version: 7, condition: None };
        assert_eq!(read("{}"), none);
        assert_eq!(read(r#"{"conditions":[{"type":"Ready","status":"True"}]}"#), none);
        assert_eq!(read(r#"{"conditions":[{"type":"NetworkUnavailable","status":"Unknown"}]}"#), none);
        let said = read(r#"{"conditions":[{"type":"NetworkUnavailable","status":"True","reason":"NoRoute"}]}"#);
        let condition = Condition { unavailable: true, reason: "NoRoute".into(), message: String::new() };
        assert_eq!(said.condition, Some(condition));
        assert!(Said::read(b"[]").is_err());
    }
}
