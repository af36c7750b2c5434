//! The attachments that a GC leaves alone: `cni.dev/valid-attachments` of the configuration.

use std::collections::BTreeSet;

use serde::Deserialize;

use super::conf::{ConfError, NetConf};
use super::key::{self, Object};

/// What a runtime still knows of a network.
#[derive(Debug, Default)]
pub(crate) struct Attachments {
    known: BTreeSet<(String, String)>,
}

#[derive(Deserialize)]
struct Attachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

impl Attachments {
    /// Reads the list. A runtime that knows of none sends an empty one or null; one that sends no key at all does not say what to
    /// free, which is an error.
    pub(crate) fn read(conf: &NetConf) -> Result<Self, ConfError> {
        const KEYS: [&str; 2] = ["cni.dev/valid-attachments", "cni.dev/attachments"];
        let list = KEYS.into_iter().find_map(|key| Some((key, conf.keys.get(key)?)));
        let (key, list) = list.ok_or(ConfError::NoAttachments)?;
        let list: Option<Vec<Object<Attachment>>> = key::read(list).map_err(|wrong| conf.wrong(wrong.within(key)))?;
        let known = list.into_iter().flatten().map(|Object(attachment)| (attachment.container_id, attachment.ifname));
        Ok(Self { known: known.collect() })
    }

    /// Whether a container has any.
    pub(crate) fn has_container(&self, id: &str) -> bool {
        self.known.iter().any(|(known, _)| known == id)
    }

    /// Each container with an interface.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.known.iter().map(|(id, ifname)| (id.as_str(), ifname.as_str()))
    }

    /// Whether a container has one on an interface.
    pub(crate) fn has(&self, id: &str, ifname: &str) -> bool {
        self.known.contains(&(id.to_owned(), ifname.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_list_says_what_to_keep() {
        let read = |keys: &str| {
            let conf = format!("{{\"cniVersion\":\"1.1.0\",\"name\":\"n\"{keys}}}");
            Attachments::read(&NetConf::read(&mut conf.as_bytes()).unwrap()).map_err(|error| error.to_string())
        };
        let some = read(",\"cni.dev/valid-attachments\":[{\"containerID\":\"a\",\"ifname\":\"eth0\"}]").unwrap();
        assert!(some.has_container("a") && some.has("a", "eth0") && !some.has("a", "eth1") && !some.has_container("b"));
        for none in ["[]", "null"] {
            let none = read(&format!(",\"cni.dev/valid-attachments\":{none}")).unwrap();
            assert!(!none.has_container("a"));
        }
        assert!(read("").unwrap_err().contains("`cni.dev/valid-attachments` is missing"));
        assert!(read(",\"cni.dev/valid-attachments\":[{\"ifname\":\"eth0\"}]").unwrap_err().contains("containerID"));
    }
}
