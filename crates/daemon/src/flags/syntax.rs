//! The syntax of Go's `flag` package, and the environment behind it: words in, values by flag out.
//!
//! Whether a value means anything is for [`super`] to say; here it only has to have the form of its kind.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fmt;

use super::FlagError;
use super::table::{FLAGS, Flag, Kind};

/// What was given, by flag name. An absent flag has its default.
#[derive(Default)]
pub(super) struct Raw {
    values: BTreeMap<&'static str, Given>,
    /// The position of the first word that is no flag, from 1. It and all after it have no effect.
    pub(super) ignored_from: Option<usize>,
    /// `-h` or `--help`.
    pub(super) help: bool,
}

/// The values of one flag and where they come from.
struct Given {
    origin: Origin,
    values: Vec<String>,
}

/// Where a value comes from, as a person wrote it: `-flag` or `VARIABLE`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(String);

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "`{}`", self.0)
    }
}

impl Raw {
    /// Reads the command line, without the program's name.
    pub(super) fn of_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, FlagError> {
        let mut raw = Self::default();
        let mut words = args.into_iter().zip(1..);
        while let Some((word, position)) = words.next() {
            if word == "--" {
                raw.ignored_from = words.next().map(|(_, position)| position);
                break;
            }
            if word.len() < 2 || !word.as_encoded_bytes().starts_with(b"-") {
                raw.ignored_from = Some(position);
                break;
            }
            raw.take(&word, || words.next().map(|(word, _)| word))?;
            if raw.help {
                break;
            }
        }
        Ok(raw)
    }

    /// Takes the flags whose names begin with `prefix` out of a command line, wherever they are before `--`; also answers
    /// with all other words.
    pub(super) fn out_of(
        args: impl IntoIterator<Item = OsString>,
        prefix: &str,
    ) -> Result<(Self, Vec<OsString>), FlagError> {
        let (mut raw, mut rest) = (Self::default(), Vec::new());
        let mut words = args.into_iter();
        while let Some(word) = words.next() {
            let dashes = word.as_encoded_bytes().iter().take_while(|byte| **byte == b'-').count();
            if word == "--" {
                rest.push(word);
                rest.extend(words.by_ref());
            } else if (1..=2).contains(&dashes) && word.as_encoded_bytes()[dashes..].starts_with(prefix.as_bytes()) {
                raw.take(&word, || words.next())?;
            } else {
                rest.push(word);
            }
        }
        Ok((raw, rest))
    }

    /// Takes one flag and, where it needs one, the next word as its value.
    fn take(&mut self, word: &OsStr, next: impl FnOnce() -> Option<OsString>) -> Result<(), FlagError> {
        let (name, inline) = split(word)?;
        let Some(flag) = FLAGS.iter().find(|flag| flag.name == name) else {
            self.help = matches!(name.as_str(), "h" | "help");
            return if self.help { Ok(()) } else { Err(FlagError::Unknown { name }) };
        };
        let origin = Origin(format!("-{name}"));
        let value = match inline {
            Some(value) => value,
            None if flag.kind == Kind::Switch => "true".into(),
            None => text(next().ok_or(FlagError::NoValue { name })?, &origin)?,
        };
        self.add(flag, origin, value)
    }

    /// Adds what the environment says of flags that the command line does not give. Empty means unset.
    pub(super) fn add_environment(
        &mut self,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<(), FlagError> {
        let flags: BTreeMap<_, _> = FLAGS.iter().filter_map(|flag| Some((flag.variable()?, flag))).collect();
        for (variable, value) in environment {
            let Some((variable, flag)) = variable.to_str().and_then(|name| flags.get_key_value(name)) else { continue };
            if value.is_empty() || self.values.contains_key(flag.name) {
                continue;
            }
            let origin = Origin(variable.clone());
            let value = text(value, &origin)?;
            self.add(flag, origin, value)?;
        }
        Ok(())
    }

    fn add(&mut self, flag: &'static Flag, origin: Origin, value: String) -> Result<(), FlagError> {
        check_form(flag.kind, &value).map_err(|why| FlagError::bad(&origin, &value, why))?;
        let given = self.values.entry(flag.name).or_insert_with(|| Given { origin, values: Vec::new() });
        if flag.kind != Kind::List {
            given.values.clear();
        }
        given.values.push(value);
        Ok(())
    }

    /// What was given, as variables.
    pub(super) fn variables(&self) -> Result<Vec<(String, String)>, FlagError> {
        let given = FLAGS.iter().filter_map(|flag| Some((flag.variable()?, self.values.get(flag.name)?)));
        let variable = |(variable, given): (String, &Given)| match given.values.as_slice() {
            [value] => Ok((variable, value.clone())),
            values => Err(FlagError::bad(&given.origin, &values.join(" "), "the environment holds one value")),
        };
        given.map(variable).collect()
    }

    /// The value of a flag: what was given last, or its default.
    pub(super) fn value(&self, name: &str) -> &str {
        self.values.get(name).and_then(|given| given.values.last()).map_or_else(|| default(name), String::as_str)
    }

    /// All values of a list, without empty ones.
    pub(super) fn list(&self, name: &str) -> impl Iterator<Item = &str> {
        let values = self.values.get(name).map(|given| given.values.as_slice()).unwrap_or_default();
        values.iter().map(String::as_str).filter(|value| !value.is_empty())
    }

    /// Whether a switch is on.
    pub(super) fn is_on(&self, name: &str) -> bool {
        switch(self.value(name)) == Some(true)
    }

    /// The value of a number.
    pub(super) fn number(&self, name: &str) -> i64 {
        number(self.value(name)).unwrap_or_default()
    }

    /// Where a flag's value comes from.
    pub(super) fn origin(&self, name: &str) -> Origin {
        self.values.get(name).map_or_else(|| Origin(format!("-{name}")), |given| given.origin.clone())
    }

    /// The flags whose value is not their default.
    pub(super) fn changed(&self) -> impl Iterator<Item = &'static Flag> {
        FLAGS.iter().filter(|flag| match flag.kind {
            Kind::Switch => switch(self.value(flag.name)) != switch(flag.default),
            _ => self.value(flag.name) != flag.default,
        })
    }
}

impl fmt::Display for Raw {
    /// The flags given, on one line; secrets are `(hidden)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let given = FLAGS.iter().filter_map(|flag| Some((flag, self.values.get(flag.name)?)));
        let values = given.flat_map(|(flag, given)| given.values.iter().map(move |value| (flag, given, value)));
        for (at, (flag, given, value)) in values.enumerate() {
            let shown = if flag.kind == Kind::Secret { "(hidden)" } else { value };
            write!(f, "{}{}={shown}", if at == 0 { "" } else { " " }, given.origin.0)?;
        }
        Ok(())
    }
}

/// Splits `-name`, `--name`, `-name=value`. A word that is neither is shown only up to its `=`: a secret may follow.
fn split(word: &OsStr) -> Result<(String, Option<String>), FlagError> {
    let lossy = word.to_string_lossy();
    let (dashed, value) = match lossy.split_once('=') {
        Some((dashed, value)) => (dashed, Some(value.to_owned())),
        None => (lossy.as_ref(), None),
    };
    let name = dashed.strip_prefix("--").or_else(|| dashed.strip_prefix('-')).unwrap_or(dashed);
    if name.is_empty() || name.starts_with('-') {
        return Err(FlagError::Syntax { word: dashed.to_owned() });
    }
    if word.to_str().is_none() {
        return Err(FlagError::NotText { origin: Origin(dashed.to_owned()) });
    }
    Ok((name.to_owned(), value))
}

fn text(value: OsString, origin: &Origin) -> Result<String, FlagError> {
    value.into_string().map_err(|_| FlagError::NotText { origin: origin.clone() })
}

fn check_form(kind: Kind, value: &str) -> Result<(), &'static str> {
    match kind {
        Kind::Switch => switch(value).map(|_| ()).ok_or("a switch is `true` or `false`, written `-flag=false`"),
        Kind::Number => number(value).map(|_| ()).ok_or("not a whole number"),
        Kind::Text | Kind::Secret | Kind::List => Ok(()),
    }
}

/// The words of Go's `strconv.ParseBool`.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// An integer as Go's `strconv.ParseInt` reads it with base 0: a sign, then `0x`, `0o` or `0`, `0b`, or decimal digits.
fn number(text: &str) -> Option<i64> {
    let (sign, digits) = match text.split_at_checked(1)? {
        ("-", digits) => ("-", digits),
        ("+", digits) => ("", digits),
        _ => ("", text),
    };
    let lower = digits.to_ascii_lowercase();
    let (digits, base) = [("0x", 16), ("0o", 8), ("0b", 2), ("0", 8)]
        .into_iter()
        .find_map(|(prefix, base)| Some((lower.strip_prefix(prefix).filter(|rest| !rest.is_empty())?, base)))
        .unwrap_or((&lower, 10));
    digits.starts_with(|c: char| c.is_ascii_hexdigit()).then_some(())?;
    i64::from_str_radix(&format!("{sign}{digits}"), base).ok()
}

fn default(name: &str) -> &'static str {
    FLAGS.iter().find(|flag| flag.name == name).map_or("", |flag| flag.default)
}
