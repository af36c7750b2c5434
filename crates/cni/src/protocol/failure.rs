//! Errors as a runtime gets them: `{cniVersion, code, msg, details}` on standard output.
//!
//! Operations have error types of their own; one that implements [`Explain`] becomes a [`Failure`] by `?`.

use std::error::Error;

use serde::{Deserialize, Serialize};

use super::version::Version;

/// Error codes of the specification, section "Error".
pub mod code {
    /// Incompatible CNI version.
    pub const VERSION: u32 = 1;
    /// Invalid necessary environment variables.
    pub const ENVIRONMENT: u32 = 4;
    /// Failed to decode content.
    pub const DECODING: u32 = 6;
    /// Invalid network configuration.
    pub const CONF: u32 = 7;
    /// Invalid network namespace; unassigned in the specification, the name is libcni's `ErrInvalidNetNS`.
    pub const NETNS: u32 = 8;
    /// STATUS: the plugin cannot serve ADD requests.
    pub const NOT_AVAILABLE: u32 = 50;
    /// Anything else; libcni's `ErrInternal`.
    pub const OTHER: u32 = 999;
}

/// A failed call: what a runtime shows as `msg; details`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{msg}")]
pub struct Failure {
    /// See [`code`].
    pub code: u32,
    /// The object and the cause, on one line.
    pub msg: String,
    /// What a person can do about it, on one line; may be empty.
    pub details: String,
}

/// An operation's error that knows how to tell itself to a runtime.
pub trait Explain: Error {
    /// The code of the specification.
    fn code(&self) -> u32;
    /// What a person can do about it.
    fn hint(&self) -> String;
}

impl<E: Explain> From<E> for Failure {
    fn from(error: E) -> Self {
        Self { code: error.code(), msg: one_line(&error.to_string()), details: one_line(&error.hint()) }
    }
}

impl Failure {
    /// The error as JSON.
    pub fn render(&self, version: Version) -> Vec<u8> {
        let wire = Wire {
            version: Some(version.as_str().into()),
            code: self.code,
            msg: self.msg.clone(),
            details: self.details.clone(),
        };
        super::result::render_json(&wire)
    }

    /// Reads the error that another plugin has printed.
    pub fn parse(stdout: &[u8]) -> Option<Self> {
        let Wire { code, msg, details, .. } = serde_json::from_slice(stdout).ok()?;
        (code != 0 || !msg.is_empty()).then(|| Self { code, msg: one_line(&msg), details: one_line(&details) })
    }
}

#[derive(Serialize, Deserialize)]
struct Wire {
    #[serde(rename = "cniVersion", skip_serializing_if = "Option::is_none")]
    version: Option<String>,
    #[serde(default)]
    code: u32,
    #[serde(default)]
    msg: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    details: String,
}

/// The longest message, and the longest details, in characters. What a person reads of an event is less.
const LONGEST: usize = 600;

/// Outside text may carry line breaks and control bytes, and be long; an event in a log may not. Rust's number behind the kernel's words
/// for an error tells a person nothing. Of a long text the ends stay: what it is about, and why.
fn one_line(text: &str) -> String {
    let mut line: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    while let Some(start) = line.find(" (os error ") {
        let end = line[start + 1..].find(')').map_or(line.len(), |length| start + 1 + length + 1);
        line.replace_range(start..end, "");
    }
    let cut = line.char_indices().nth(LONGEST / 2).zip(line.char_indices().nth_back(LONGEST / 2));
    if let Some(((start, _), (end, _))) = cut.filter(|_| line.chars().nth(LONGEST).is_some()) {
        line.replace_range(start..end, " … ");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("link x:\n broken (os error 5).")]
    struct Broken;

    impl Explain for Broken {
        fn code(&self) -> u32 {
            code::OTHER
        }
        fn hint(&self) -> String {
            "mend it".into()
        }
    }

    #[test]
    fn an_error_is_one_line_and_reads_back() {
        let failure = Failure::from(Broken);
        assert_eq!(failure.msg, "link x:  broken.");
        let text = String::from_utf8(failure.render(Version::V1_0_0)).unwrap();
        assert_eq!(
            text,
            "{\n    \"cniVersion\": \"1.0.0\",\n    \"code\": 999,\n    \"msg\": \"link x:  broken.\",\n    \"details\": \"mend it\"\n}"
        );
        assert_eq!(Failure::parse(text.as_bytes()), Some(failure));
    }

    #[test]
    fn a_long_error_keeps_its_ends() {
        let long = format!("begin {} end", "ü\n".repeat(1 << 19));
        let failure = Failure::parse(serde_json::json!({"code": 7, "msg": long}).to_string().as_bytes()).unwrap();
        assert!(failure.msg.starts_with("begin ü ü") && failure.msg.ends_with("ü  end"), "{}", failure.msg);
        assert!(failure.msg.contains(" … ") && failure.msg.chars().count() < 610);
    }

    #[test]
    fn what_is_no_error_is_not_taken_for_one() {
        for text in ["", "{}", "[]", "oops", "{\"cniVersion\": \"1.0.0\"}"] {
            assert_eq!(Failure::parse(text.as_bytes()), None, "{text}");
        }
    }
}
