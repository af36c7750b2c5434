//! Outputs without what differs from run to run: MACs and names of veths are numbered as they come, times are left out, processes
//! and records have no numbers, a neighbour that is known is REACHABLE.
//!
//! Surface: [`Plain`], which remembers the names it gave from one output to the next, so that a MAC is the same everywhere.

use std::collections::BTreeMap;

/// Where `flannel lab walk` writes the time of a capture: between these columns.
const TIME: std::ops::Range<usize> = 20..31;
/// Units of time.
const UNITS: [&str; 3] = ["µs", "ms", "s"];

/// Names given so far.
#[derive(Default)]
pub(super) struct Plain {
    macs: BTreeMap<String, String>,
    veths: BTreeMap<String, String>,
}

impl Plain {
    /// What a command printed, to be read by anybody.
    pub(super) fn output(&mut self, command: &str, output: &str) -> String {
        let is_walk = command.contains(" walk ");
        let lines = output.lines().map(|line| {
            let line = if is_walk { without_column(line) } else { line.to_owned() };
            let line = self.named(&without_times(&line));
            format!("{}\n", line.trim_end())
        });
        lines.collect()
    }

    /// The line word by word; what is between words stays.
    fn named(&mut self, line: &str) -> String {
        let in_word = |c: char| c.is_ascii_alphanumeric() || c == ':';
        let (mut named, mut rest, mut before) = (String::new(), line, "");
        while let Some(start) = rest.find(in_word) {
            named.push_str(&rest[..start]);
            let end = rest[start..].find(|c| !in_word(c)).map_or(rest.len(), |length| start + length);
            let word = rest[start..end].trim_end_matches(':');
            let name = self.name(word, before);
            named.push_str(&name);
            (before, rest) = (word, &rest[start + word.len()..]);
            // What stands in a column stays there.
            let shorter = word.len().saturating_sub(name.len());
            named.push_str(&" ".repeat(if rest.starts_with("  ") { shorter } else { 0 }));
            let tail = rest.find(|c| c != ':').unwrap_or(rest.len());
            named.push_str(&rest[..tail]);
            rest = &rest[tail..];
        }
        named + rest
    }

    fn name(&mut self, word: &str, before: &str) -> String {
        if is_mac(word) {
            let number = self.macs.len() + 1;
            let given = || format!("02:00:00:00:00:{number:02x}");
            return self.macs.entry(word.to_owned()).or_insert_with(given).clone();
        }
        if word.strip_prefix("veth").is_some_and(|rest| rest.len() == 8 && is_hex(rest)) {
            let number = self.veths.len() + 1;
            return self.veths.entry(word.to_owned()).or_insert_with(|| format!("veth{number}")).clone();
        }
        match word {
            "STALE" | "DELAY" | "PROBE" => "REACHABLE".to_owned(),
            _ if before == "pid" && word.parse::<u32>().is_ok() => "…".to_owned(),
            _ if before == "Sequence" => ":…".to_owned(),
            _ => word.to_owned(),
        }
    }
}

/// The address of one device: those of groups are the same everywhere.
fn is_mac(word: &str) -> bool {
    let bytes: Vec<&str> = word.split(':').collect();
    let first = bytes.first().and_then(|byte| u8::from_str_radix(byte, 16).ok());
    bytes.len() == 6
        && bytes.iter().all(|byte| byte.len() == 2 && is_hex(byte))
        && first.is_some_and(|byte| byte & 1 == 0)
}

fn is_hex(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_hexdigit())
}

/// A line of a walk without its column of times.
fn without_column(line: &str) -> String {
    let letters: Vec<char> = line.chars().collect();
    let column: String = letters.get(TIME).unwrap_or_default().iter().collect();
    let head: String = letters.iter().take(TIME.start).collect();
    let is_capture = head.starts_with("  → ") || head.starts_with("  ← ");
    let has_time = is_time(column.trim().trim_start_matches('+')) || column.trim().is_empty();
    if letters.len() >= TIME.end && has_time && (is_capture || head.trim().is_empty()) {
        return head + &letters[TIME.end..].iter().collect::<String>();
    }
    line.to_owned()
}

fn is_time(text: &str) -> bool {
    text.split_once(' ').is_some_and(|(number, unit)| number.parse::<f64>().is_ok() && UNITS.contains(&unit))
}

/// A sentence without the time that it ends with or has in brackets.
fn without_times(line: &str) -> String {
    let mut line = line.to_owned();
    for (before, after) in [(" after ", ""), (", ", ""), (" (", ")")] {
        for (at, _) in line.clone().rmatch_indices(before) {
            let rest = &line[at + before.len()..];
            let mut words = rest.splitn(3, ' ');
            let time = [words.next().unwrap_or_default(), words.next().unwrap_or_default()].join(" ");
            let time = time.trim_end_matches([')', ',']);
            if is_time(time) && rest[time.len()..].starts_with(after) {
                line.replace_range(at..at + before.len() + time.len() + after.len(), "");
            }
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mac_has_one_name_everywhere() {
        let mut plain = Plain::default();
        let neigh = plain.output("ip neigh", "10.244.2.0 lladdr 4e:75:84:69:a5:45 STALE \n");
        assert_eq!(neigh, "10.244.2.0 lladdr 02:00:00:00:00:01 REACHABLE\n");
        let link =
            plain.output("ip link", "5: veth7b4d5689@eth0: link/ether 4a:26:60:c6:64:8f brd ff:ff:ff:ff:ff:ff\n");
        assert_eq!(link, "5: veth1@eth0: link/ether 02:00:00:00:00:02 brd ff:ff:ff:ff:ff:ff\n");
        let record = plain.output("cat", "\"VtepMAC\":\"4e:75:84:69:a5:45\"},\"Sequence\":3}\n");
        assert_eq!(record, "\"VtepMAC\":\"02:00:00:00:00:01\"},\"Sequence\":…}\n");
    }

    #[test]
    fn times_are_left_out() {
        let mut plain = Plain::default();
        let mut shown = |command: &str, line: &str| plain.output(command, line);
        assert_eq!(shown("flannel lab up", "· laying the underlay (101 ms)"), "· laying the underlay\n");
        assert_eq!(shown("flannel lab ls", "├─ node1  (flanneld pid 49)"), "├─ node1  (flanneld pid …)\n");
        assert_eq!(shown("x walk a b", "✓ answered after 181 µs"), "✓ answered\n");
        assert_eq!(shown("x walk a b", "             pod1-1 eth0, 31.9 µs"), "             pod1-1 eth0\n");
        let seen = "  ← veth7b4d5689       +4.2 µs the same frame";
        assert_eq!(shown("x walk a b", seen), "  ← veth1           the same frame\n");
        let seen = "  ← cni0              +14.2 µs the same frame";
        assert_eq!(shown("x walk a b", seen), "  ← cni0            the same frame\n");
        let more = "                               frame b2:b3:72:99:a9:c9";
        assert_eq!(shown("x walk a b", more), "                    frame 02:00:00:00:00:01\n");
        let route = "    route    10.244.2.2 from 10.244.1.2 via 10.244.1.1 dev eth0";
        assert_eq!(shown("x walk a b", route), format!("{route}\n"));
    }
}
