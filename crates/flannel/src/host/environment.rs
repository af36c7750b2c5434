//! The daemon's flags as variables in a file: written for systemd, and read as it does (`systemd.exec(5)`, EnvironmentFile).

use std::ffi::OsString;

const HEAD: &str = "\
# The flags of flanneld, each as FLANNELD_ and its name in upper case, - as _: `flanneld --help` lists them.
# `systemctl restart flanneld` makes a change take effect.
";

/// The file for these variables; none if a value cannot be written in it.
pub(super) fn text(variables: &[(String, String)]) -> Option<String> {
    let lines: Option<String> =
        variables.iter().map(|(name, value)| Some(format!("{name}={}\n", quoted(value)?))).collect();
    Some(format!("{HEAD}{}", lines?))
}

fn quoted(value: &str) -> Option<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:,@%+=[]".contains(c);
    if value.chars().all(is_plain) {
        return Some(value.to_owned());
    }
    (!value.contains(|c: char| c.is_control() || c == '\'')).then(|| format!("'{value}'"))
}

/// The variables of such a file, also of one that a person has written.
pub(super) fn variables(text: &str) -> Vec<(OsString, OsString)> {
    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with(['#', ';']));
    let pairs = lines.filter_map(|line| line.split_once('='));
    pairs.map(|(name, value)| (name.trim_end().into(), unquoted(value.trim_start()).into())).collect()
}

fn unquoted(value: &str) -> String {
    let inside = |quote: char| value.strip_prefix(quote)?.strip_suffix(quote);
    match (inside('\''), inside('"')) {
        (Some(inside), _) => inside.to_owned(),
        (None, Some(inside)) => unescaped(inside),
        (None, None) => unescaped(value),
    }
}

fn unescaped(value: &str) -> String {
    let (mut text, mut chars) = (String::new(), value.chars());
    while let Some(c) = chars.next() {
        text.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for value in ["true", "http://a:2379,http://b:2379", "^eth[0-9]+ $", "a\"b\\c", "pass word#"] {
            let file = text(&[("FLANNELD_X".to_owned(), value.to_owned())]).unwrap();
            assert_eq!(variables(&file), [("FLANNELD_X".into(), value.into())], "{file}");
        }
        assert_eq!(text(&[("FLANNELD_X".to_owned(), "it's".to_owned())]), None);
        assert_eq!(text(&[("FLANNELD_X".to_owned(), "a\nb".to_owned())]), None);
    }

    #[test]
    fn what_a_person_writes_is_read_as_systemd_does() {
        let file = "; no\n # no\n\nA=\"x \\\" y\"\n B = z \nC=a\\ b\nnothing\n";
        let read = [("A", "x \" y"), ("B", "z"), ("C", "a b")];
        assert_eq!(variables(file), read.map(|(name, value)| (name.into(), value.into())));
    }
}
