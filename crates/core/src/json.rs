//! JSON objects as flannel reads them: keys without regard to case, `null` as if absent, the last of a repeated key.
//!
//! [`Fields`] hands out the fields of one object, each parsed to a type, and tells what was left over. It knows no
//! particular key: those belong to the modules that read a format.

use std::fmt;

use serde::de::{Deserialize, DeserializeOwned, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

/// The longest piece of a value that a message repeats, in characters.
const SHOWN: usize = 60;
/// The longest piece of what the parser says, which may repeat all of the text, in characters.
const CAUSE: usize = 160;

/// The fields of a JSON object that nobody has taken yet, in the order of the text.
#[derive(Debug, Clone)]
pub(crate) struct Fields(Vec<(String, Box<RawValue>)>);

/// What a field should hold: in words, and as an example.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kind {
    pub(crate) what: &'static str,
    pub(crate) example: &'static str,
}

impl Kind {
    pub(crate) const fn new(what: &'static str, example: &'static str) -> Self {
        Self { what, example }
    }
}

/// A field that holds something else than its [`Kind`].
#[derive(Debug, Clone)]
pub(crate) struct BadField {
    pub(crate) key: String,
    pub(crate) value: String,
    pub(crate) kind: Kind,
}

impl Fields {
    /// The fields of an object; else why it is none, in short.
    pub(crate) fn read(text: &str) -> Result<Self, String> {
        serde_json::from_str(text).map_err(|error| cut(&error.to_string(), CAUSE))
    }

    /// The text of a field, taken out under every spelling of its key.
    pub(crate) fn take(&mut self, key: &str) -> Option<Box<RawValue>> {
        let mut found = None;
        self.0.retain_mut(|(name, value)| {
            let same = name.eq_ignore_ascii_case(key);
            if same && value.get() != "null" {
                found = Some(std::mem::take(value));
            }
            !same
        });
        found
    }

    /// A field as a type.
    pub(crate) fn take_as<T: DeserializeOwned>(&mut self, key: &str, kind: Kind) -> Result<Option<T>, BadField> {
        let Some(value) = self.take(key) else { return Ok(None) };
        serde_json::from_str(value.get()).map(Some).map_err(|_| BadField {
            key: key.to_owned(),
            value: shown(value.get()),
            kind,
        })
    }

    /// The keys that nobody took.
    pub(crate) fn left_over(self) -> impl Iterator<Item = String> {
        self.0.into_iter().map(|(key, _)| shown(&key))
    }
}

/// Text of others as a message may repeat it: on one line and not without end.
pub(crate) fn shown(text: &str) -> String {
    cut(text, SHOWN)
}

/// Text of others as a message may repeat it: on one line, and not more than so many letters of it.
pub fn cut(text: &str, letters: usize) -> String {
    let mut out: String = text.chars().take(letters).flat_map(char::escape_debug).collect();
    out = out.replace("\\\"", "\"").replace("\\'", "'");
    if text.chars().nth(letters).is_some() {
        out.push('…');
    }
    out
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Vec::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(Fields(fields))
            }
        }
        deserializer.deserialize_map(Object)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NUMBER: Kind = Kind::new("a number", "1");

    #[test]
    fn keys_have_no_case_and_the_last_wins() {
        let check = |text: &str, expect: Option<u32>| {
            let mut fields = Fields::read(text).unwrap();
            assert_eq!(fields.take_as("VNI", NUMBER).unwrap(), expect, "{text}");
            assert_eq!(fields.left_over().count(), 0, "{text}");
        };
        check("{}", None);
        check(r#"{"vni": null}"#, None);
        check(r#"{"vni": 1, "VNI": 2, "Vni": 3}"#, Some(3));
        check(r#"{"VNI": 3, "vni": null}"#, Some(3));
    }

    #[test]
    fn a_wrong_type_names_key_and_value() {
        let bad = Fields::read(r#"{"vni": "x"}"#).unwrap().take_as::<u32>("VNI", NUMBER).unwrap_err();
        assert_eq!((bad.key.as_str(), bad.value.as_str()), ("VNI", "\"x\""));
    }

    #[test]
    fn what_is_shown_is_short_and_on_one_line() {
        assert_eq!(shown("a\n\"b\""), "a\\n\"b\"");
        assert_eq!(shown(&"x".repeat(100)), format!("{}…", "x".repeat(60)));
    }

    #[test]
    fn deep_nesting_is_no_danger() {
        let text = format!("{{\"a\": {}{}}}", "[".repeat(100_000), "]".repeat(100_000));
        let mut fields = Fields::read(&text).unwrap();
        assert!(fields.take_as::<u32>("a", NUMBER).is_err());
    }
}
