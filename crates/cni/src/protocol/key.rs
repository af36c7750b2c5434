//! A wrong value in a JSON document: where it stands and what is wrong, in words of people. Serde tells neither.
//!
//! Surface: [`read`], and for the types that are read [`Object`], [`object`], [`objects`], [`path`] and [`Word`]. What the document is, and
//! what can be done about it, is the caller's to say.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use flannel_core::addr::{LinkName, Mac};
use ipnet::IpNet;
use serde::de::value::MapAccessDeserializer;
use serde::de::{DeserializeOwned, Error, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

/// The longest piece of a value that a message repeats, in characters.
const SHOWN: usize = 60;

/// A value that is not what it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}{what}", place(path))]
pub struct WrongKey {
    /// Where, as `ipam.ranges[0][0].subnet`; empty for the whole document.
    path: String,
    what: String,
}

fn place(path: &str) -> String {
    if path.is_empty() { String::new() } else { format!("key `{}`: ", shown(path)) }
}

impl WrongKey {
    /// A value that is wrong for a reason of the caller's.
    pub(crate) fn new(path: &str, what: String) -> Self {
        Self { path: path.into(), what }
    }

    /// The same, of a document in which this one is the value of a key.
    pub(crate) fn within(self, key: &str) -> Self {
        let dot = if self.path.is_empty() || self.path.starts_with('[') { "" } else { "." };
        Self { path: format!("{key}{dot}{}", self.path), ..self }
    }

    /// Whether it stands under a key.
    pub(crate) fn is_within(&self, key: &str) -> bool {
        self.path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    }
}

/// Reads a document as a type.
pub(crate) fn read<T: DeserializeOwned>(document: &Value) -> Result<T, WrongKey> {
    T::deserialize(document).map_err(|error| {
        let error = error.to_string();
        let fails = |part: Value| T::deserialize(&part).is_err_and(|other| other.to_string() == error);
        let path = locate(document, &fails);
        WrongKey { path: path.strip_prefix('.').unwrap_or(&path).into(), what: plain(&error) }
    })
}

/// The place of the value at which reading fails: documents are read from front to back, so it is the last of the shortest beginning
/// that fails in the same way.
fn locate(value: &Value, fails: &dyn Fn(Value) -> bool) -> String {
    let (mut good, mut bad) = (0, length(value));
    if bad == 0 || fails(beginning(value, 0)) {
        return String::new();
    }
    while bad - good > 1 {
        let middle = usize::midpoint(good, bad);
        *(if fails(beginning(value, middle)) { &mut bad } else { &mut good }) = middle;
    }
    match value {
        Value::Object(keys) => keys.iter().nth(good).map(|(key, child)| {
            let fails = |part| {
                let mut before = keys.iter().take(good).map(|(key, value)| (key.clone(), value.clone()));
                fails(before.by_ref().chain([(key.clone(), part)]).collect::<serde_json::Map<_, _>>().into())
            };
            format!(".{key}{}", locate(child, &fails))
        }),
        Value::Array(list) => list.get(good).map(|child| {
            let fails = |part| fails(list[..good].iter().cloned().chain([part]).collect());
            format!("[{good}]{}", locate(child, &fails))
        }),
        _ => None,
    }
    .unwrap_or_default()
}

fn length(value: &Value) -> usize {
    match value {
        Value::Object(keys) => keys.len(),
        Value::Array(list) => list.len(),
        _ => 0,
    }
}

fn beginning(value: &Value, count: usize) -> Value {
    match value {
        Value::Object(keys) => {
            let some = keys.iter().take(count).map(|(key, value)| (key.clone(), value.clone()));
            some.collect::<serde_json::Map<_, _>>().into()
        }
        Value::Array(list) => list[..count].to_vec().into(),
        other => other.clone(),
    }
}

/// Serde's words for a wrong type, in words of who wrote the document.
fn plain(error: &str) -> String {
    let told = error.strip_prefix("invalid type: ").or_else(|| error.strip_prefix("invalid value: "));
    let Some((found, expected)) = told.and_then(|told| told.rsplit_once(", expected ")) else {
        return error.strip_prefix("missing field ").map_or_else(|| error.into(), |key| format!("{key} is missing"));
    };
    let found = match found {
        "map" => "an object".into(),
        "sequence" => "a list".into(),
        other => shown(other.trim_start_matches(|c: char| c.is_ascii_lowercase() || c == ' ').trim_matches('`')),
    };
    let found = if found.is_empty() { "null".into() } else { found };
    let expected = match expected {
        "u8" => "a number from 0 to 255",
        "u32" => "a number from 0 to 4294967295",
        "i64" | "u64" | "usize" => "a whole number",
        "a boolean" => "true or false",
        "a string" => "text",
        "a sequence" => "a list",
        "a map" => "an object",
        other if other.starts_with("struct ") => "an object",
        other => other,
    };
    format!("{found} is not {expected}")
}

/// Text of others as a message may repeat it: not without end.
pub(crate) fn shown(text: &str) -> String {
    let mut short: String = text.chars().take(SHOWN).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

/// A word of the network that JSON holds as text.
pub(crate) trait Word: FromStr {
    /// What it is, for messages.
    const KIND: &'static str;

    /// Reads the word.
    fn read<E: Error>(text: &str) -> Result<Self, E> {
        text.parse().map_err(|_| E::custom(format_args!("{:?} is not {}", shown(text), Self::KIND)))
    }
}

impl Word for IpNet {
    const KIND: &'static str = "a prefix such as 10.244.1.0/24";
}

impl Word for IpAddr {
    const KIND: &'static str = "an IP address";
}

impl Word for Mac {
    const KIND: &'static str = "a MAC address such as c2:11:22:33:44:55";
}

impl Word for LinkName {
    const KIND: &'static str = "the name of an interface (1 to 15 bytes, no `/`, `:` or blank)";
}

/// A path; absent, null and empty are the same.
pub(crate) fn path<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = Option::<String>::deserialize(from)?.unwrap_or_default();
    if text.contains('\0') {
        return Err(D::Error::custom(format_args!("{:?} is not a path", shown(&text))));
    }
    Ok(text)
}

/// A structure that stands in an object and, other than serde would have it, not in a list.
pub(crate) struct Object<T>(pub(crate) T);

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Object<T> {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct OfMap<T>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for OfMap<T> {
            type Value = Object<T>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Object<T>, A::Error> {
                T::deserialize(MapAccessDeserializer::new(map)).map(Object)
            }
        }
        from.deserialize_map(OfMap(std::marker::PhantomData))
    }
}

/// An object; absent and null are its default.
pub(crate) fn object<'de, T: Default + Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::<Object<T>>::deserialize(from)?.map(|Object(value)| value).unwrap_or_default())
}

/// A list of objects; absent and null are an empty one.
pub(crate) fn objects<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<Vec<T>, D::Error> {
    let list = Option::<Vec<Object<T>>>::deserialize(from)?.unwrap_or_default();
    Ok(list.into_iter().map(|Object(value)| value).collect())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[derive(Debug, Deserialize)]
    #[allow(dead_code, reason = "only errors are looked at")]
    struct Sample {
        #[serde(default)]
        number: u32,
        #[serde(default)]
        flag: Option<bool>,
        #[serde(default, deserialize_with = "objects")]
        list: Vec<Inner>,
        #[serde(default, deserialize_with = "object")]
        inner: Inner,
        #[serde(default, deserialize_with = "path")]
        path: String,
    }

    #[derive(Debug, Default, Deserialize)]
    #[allow(dead_code, reason = "only errors are looked at")]
    struct Inner {
        name: String,
        #[serde(default)]
        more: Vec<i64>,
    }

    #[test]
    fn a_wrong_value_is_told_with_its_place() {
        for (document, expect) in [
            (json!({"number": "big"}), "key `number`: \"big\" is not a number from 0 to 4294967295"),
            (json!({"number": -1, "flag": true}), "key `number`: -1 is not a number from 0 to 4294967295"),
            (json!({"number": 1.5}), "key `number`: 1.5 is not a number from 0 to 4294967295"),
            (json!({"number": null}), "key `number`: null is not a number from 0 to 4294967295"),
            (json!({"a": {"number": "x"}, "flag": 7, "number": 7}), "key `flag`: 7 is not true or false"),
            (json!({"flag": true, "inner": []}), "key `inner`: a list is not an object"),
            (json!({"list": {}}), "key `list`: an object is not a list"),
            (json!({"list": [{"name": "a"}, ["b"]]}), "key `list[1]`: a list is not an object"),
            (json!({"list": [{"name": "a"}, {}]}), "key `list[1]`: `name` is missing"),
            (
                json!({"list": [{"name": "a", "more": [1, 2]}, {"name": "b", "more": [3, true]}]}),
                "key `list[1].more[1]`: true is not a whole number",
            ),
            (json!({"path": "a\0b"}), "key `path`: \"a\\0b\" is not a path"),
            (json!({"flag": "x".repeat(100)}), &format!("key `flag`: \"{}… is not true or false", "x".repeat(59))),
            (json!([]), "a list is not an object"),
        ] {
            let error = read::<Object<Sample>>(&document).map(|Object(sample)| sample).unwrap_err();
            assert_eq!(error.to_string(), expect, "{document}");
        }
        let error = read::<Object<Sample>>(&json!({"inner": 7})).map(|Object(sample)| sample).unwrap_err();
        assert!(error.is_within("inner") && !error.is_within("inn"));
        assert_eq!(error.within("conf").to_string(), "key `conf.inner`: 7 is not an object");
    }

    #[test]
    fn a_long_document_is_searched_in_few_steps() {
        let mut list = vec![json!({"name": "a"}); 20_000];
        list[15_000] = json!({"name": 7});
        let error = read::<Object<Sample>>(&json!({"list": list})).map(|Object(sample)| sample).unwrap_err();
        assert_eq!(error.to_string(), "key `list[15000].name`: 7 is not text");
    }
}
