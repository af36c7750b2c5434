//! A story without what differs from run to run: MACs, the names of pods' devices and link-local addresses are numbered as they
//! come, times and ports chosen at random are zero, and a neighbour that is known is REACHABLE.
//!
//! Surface: [`plain`]. Done on the story as JSON, so that every text in it is reached.

use std::collections::BTreeMap;
use std::io;

use flannel_core::addr::Mac;
use serde_json::Value;

use super::story::Story;
use crate::error::{Doing, LabError};

/// The same story, with made-up names.
pub(super) fn plain(story: &Story) -> Result<Story, LabError> {
    let tree = |story| -> Result<Story, serde_json::Error> {
        let mut value = serde_json::to_value(story)?;
        let mut names = Names::default();
        // The fields of a JSON object are in no order of travel: the request's way numbers first.
        names.rename(&mut value["request"]);
        names.rename(&mut value);
        serde_json::from_value(value)
    };
    tree(story).map_err(io::Error::from).doing(|| "leave out what differs".into())
}

/// The names given so far.
#[derive(Default)]
struct Names {
    macs: BTreeMap<String, String>,
    devices: BTreeMap<String, String>,
    link_locals: BTreeMap<String, String>,
}

impl Names {
    fn rename(&mut self, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Array(values) => values.iter_mut().for_each(|value| self.rename(value)),
            Value::Object(fields) => {
                for (name, value) in fields.iter_mut() {
                    match name.as_str() {
                        "at_ns" | "round_trip_ns" | "source_port" => *value = 0.into(),
                        _ => self.rename(value),
                    }
                }
            }
            _ => {}
        }
    }

    /// A text, word for word. What is no word (blanks, brackets, quotes) stays.
    fn text(&mut self, text: &str) -> String {
        let in_word = |c: char| c.is_ascii_alphanumeric() || ":.-_/".contains(c);
        let mut plain = String::new();
        let mut rest = text;
        while let Some(start) = rest.find(in_word) {
            plain.push_str(&rest[..start]);
            let end = rest[start..].find(|c| !in_word(c)).map_or(rest.len(), |length| start + length);
            plain.push_str(&self.word(&rest[start..end]));
            rest = &rest[end..];
        }
        plain + rest
    }

    /// A name that was given here.
    fn given(&self, word: &str) -> bool {
        [&self.macs, &self.devices, &self.link_locals].iter().any(|names| names.values().any(|name| name == word))
    }

    fn word(&mut self, word: &str) -> String {
        let bare = word.trim_end_matches([':', '.']);
        let tail = &word[bare.len()..];
        let named = if self.given(bare) {
            bare.to_owned()
        } else if bare.parse::<Mac>().is_ok() {
            let number = self.macs.len() + 1;
            self.macs.entry(bare.to_owned()).or_insert_with(|| format!("02:00:00:00:00:{number:02x}")).clone()
        } else if bare.strip_prefix("veth").is_some_and(|rest| rest.len() >= 8) {
            let (device, counter) = bare.split_once('.').unwrap_or((bare, ""));
            let number = self.devices.len() + 1;
            let name = self.devices.entry(device.to_owned()).or_insert_with(|| format!("veth{number}")).clone();
            if counter.is_empty() { name } else { format!("{name}.{counter}") }
        } else if matches!(bare, "STALE" | "DELAY" | "PROBE") {
            "REACHABLE".to_owned()
        } else if bare.starts_with("fe80::") {
            let number = self.link_locals.len() + 1;
            self.link_locals.entry(bare.to_owned()).or_insert_with(|| format!("fe80::{number:x}")).clone()
        } else {
            bare.to_owned()
        };
        named + tail
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn macs_and_devices_are_numbered_and_all_else_stays() {
        let mut names = Names::default();
        let first = names.text("`2e:47:7e:72:b2:ff dev veth0223df23 master cni0`, 10.244.1.2.");
        assert_eq!(first, "`02:00:00:00:00:01 dev veth1 master cni0`, 10.244.1.2.");
        let second = names.text("veth1977884f and veth0223df23, fd00:10:244:1::2");
        assert_eq!(second, "veth2 and veth1, fd00:10:244:1::2");
    }
}
