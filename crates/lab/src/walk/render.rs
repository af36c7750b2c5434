//! A story as text for a terminal of 120 columns.
//!
//! Surface: [`text`]. Grouped by places in the order of travel: a line with an arrow is a capture, with what it saw; the lines
//! between say what sent the packet on.

use std::fmt::Write;
use std::time::Duration;

use super::place_of;
use super::story::{Death, Direction, End, Outcome, Packet, Step, Story, Way};
use crate::report::time;

/// How a story is drawn.
#[derive(Debug, Clone, Copy)]
pub(super) struct Style {
    /// With the colours of a terminal.
    pub(super) colours: bool,
    /// With times.
    pub(super) times: bool,
    /// The reply's way in full.
    pub(super) reply: bool,
}

/// Columns.
const WIDTH: usize = 120;
/// Columns before what a capture saw, without and with times.
const MARGIN: [usize; 2] = [20, 31];
/// Columns before what a decision says.
const DECISION: usize = 13;

/// SGR parameters of ECMA-48.
const BOLD: &str = "1";
const DIM: &str = "2";
const GREEN: &str = "32";
const RED: &str = "31";

/// Draws a story.
pub(super) fn text(story: &Story, style: Style) -> String {
    let mut drawing = Drawing { style, text: String::new(), last: None, place: String::new(), packet: None };
    drawing.head(story);
    drawing.way(&story.request);
    let died_back = matches!(&story.outcome, Outcome::Died(death) if death.way == Way::Reply);
    if style.reply || died_back {
        drawing.line("\nthe reply\n");
        drawing.way(&story.reply);
    } else if !story.reply.is_empty() {
        drawing.brief(&story.reply);
    }
    drawing.end(story);
    drawing.text
}

/// A drawing under way.
struct Drawing<'a> {
    style: Style,
    text: String,
    last: Option<u64>,
    place: String,
    packet: Option<&'a Packet>,
}

fn named(end: &End) -> String {
    let on = end.node.as_ref().map_or_else(String::new, |node| format!(" (on {node})"));
    format!("{}{on}", end.name)
}

impl<'a> Drawing<'a> {
    fn paint(&self, code: &str, text: &str) -> String {
        if self.style.colours { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }

    fn line(&mut self, line: &str) {
        self.text.push_str(line.trim_end_matches(' '));
        self.text.push('\n');
    }

    /// A label and text that is broken at blanks where it is too long.
    fn labelled(&mut self, label: &str, text: &str) {
        let lines = wrap(text, WIDTH - DECISION);
        for (at, line) in lines.iter().enumerate() {
            let label = self.paint(DIM, &format!("{:<9}", if at == 0 { label } else { "" }));
            self.line(&format!("    {label}{line}"));
        }
    }

    fn head(&mut self, story: &Story) {
        let address = |end: &End| end.address.map_or_else(|| "?".to_owned(), |address| address.to_string());
        let ends = format!("{} → {}", named(&story.from), named(&story.to));
        let addresses = format!("{} → {}", address(&story.from), address(&story.to));
        let head = self.paint(BOLD, &ends);
        self.line(&format!("{head}: a ping of {} bytes over IPv{}, {addresses}", story.size, story.ip));
        let verdict = match &story.outcome {
            Outcome::Answered { round_trip_ns } if self.style.times => {
                self.paint(GREEN, &format!("✓ answered after {}", time(Duration::from_nanos(*round_trip_ns))))
            }
            Outcome::Answered { .. } => self.paint(GREEN, "✓ answered"),
            Outcome::Died(death) => self.paint(RED, &format!("✗ the {} died in {}", death.way, death.place)),
        };
        self.line(&format!("{verdict}\n"));
    }

    fn way(&mut self, steps: &'a [Step]) {
        self.place.clear();
        self.packet = None;
        for (at, step) in steps.iter().enumerate() {
            if place_of(step) != self.place {
                place_of(step).clone_into(&mut self.place);
                let switch =
                    matches!((step, steps.get(at + 1)), (Step::Seen { wire: true, .. }, Some(Step::Fdb { .. })));
                let name = self.paint(BOLD, place_of(step));
                self.line(&format!("{name}{}", if switch { ", the switch between the nodes" } else { "" }));
            }
            self.step(step);
        }
    }

    fn step(&mut self, step: &'a Step) {
        match step {
            Step::Seen { point, at_ns, packet, .. } => {
                let what = describe(packet, self.packet);
                self.packet = Some(packet);
                self.capture(point.direction, &point.device, Some(*at_ns), &what);
            }
            Step::Resolution { point, at_ns, text } => {
                self.capture(point.direction, &point.device, Some(*at_ns), std::slice::from_ref(text));
            }
            Step::Missing { point } => {
                let never = self.paint(RED, "✗ never seen here");
                self.capture(point.direction, &point.device, None, &[never]);
            }
            Step::Route { text, entry, .. } => {
                let by = entry.as_ref().filter(|entry| *entry != text);
                self.labelled("route", text);
                if let Some(by) = by {
                    self.labelled("", &format!("by  {by}"));
                }
            }
            Step::Neigh { text, .. } => self.labelled("neigh", text),
            Step::Fdb { text, .. } => self.labelled("fdb", text),
            Step::Nat { end, before, after, .. } => self.labelled("nat", &format!("{end} {before} becomes {after}")),
            Step::Rule { .. } => self.rule(step),
        }
    }

    fn rule(&mut self, step: &Step) {
        let Step::Rule { table, chain, handle, text, verdict, traced, .. } = step else { return };
        let handle = handle.map_or_else(String::new, |handle| format!(" handle {handle}"));
        let source = if *traced { "" } else { ", by its rules, not traced" };
        // Most rules end in their verdict; iptables writes it in capitals.
        let target = verdict.rsplit(' ').next().unwrap_or_default().to_lowercase();
        let said = if text.to_lowercase().contains(&target) { String::new() } else { format!(": {verdict}") };
        self.labelled("rule", &format!("{text}{said}  ({table} {chain}{handle}{source})"));
    }

    fn capture(&mut self, direction: Direction, device: &str, at: Option<u64>, what: &[String]) {
        let arrow = match direction {
            Direction::In => "←",
            Direction::Out => "→",
        };
        let margin = MARGIN[usize::from(self.style.times)];
        let when = if self.style.times { format!("{:>10} ", self.since(at)) } else { String::new() };
        let mut first = true;
        for line in what.iter().flat_map(|line| wrap(line, WIDTH - margin)) {
            let head = if first {
                format!("  {arrow} {} {when}", self.paint(BOLD, &format!("{device:<15}")))
            } else {
                " ".repeat(margin)
            };
            self.line(&format!("{head}{line}"));
            first = false;
        }
    }

    /// The time since the capture before.
    fn since(&mut self, at: Option<u64>) -> String {
        let Some(at) = at else { return String::new() };
        let last = self.last.replace(at);
        match last {
            None => "0 µs".to_owned(),
            Some(last) => format!("+{}", time(Duration::from_nanos(at.saturating_sub(last)))),
        }
    }

    /// A way in one sentence.
    fn brief(&mut self, steps: &[Step]) {
        let (mut text, mut place, mut ends) = (String::new(), "", (None, None));
        for step in steps {
            let Step::Seen { point, at_ns, wire, .. } = step else { continue };
            ends = (ends.0.or(Some(*at_ns)), Some(*at_ns));
            if *wire {
                continue;
            }
            let arrow = if text.is_empty() { "" } else { " → " };
            let name = if point.place == place { String::new() } else { format!("{} ", point.place) };
            let _ = write!(text, "{arrow}{name}{}", point.device);
            place = &point.place;
        }
        if let (true, (Some(begin), Some(end))) = (self.style.times, ends) {
            let _ = write!(text, ", {}", time(Duration::from_nanos(end.saturating_sub(begin))));
        }
        self.line("");
        self.labelled("reply", &text);
    }

    fn end(&mut self, story: &Story) {
        if let Outcome::Died(death) = &story.outcome {
            self.death(death);
        }
        if !story.remarks.is_empty() {
            self.line("");
        }
        for remark in &story.remarks {
            self.labelled("remark", remark);
        }
    }

    fn death(&mut self, death: &Death) {
        let Death { way, place, last, missing, cause, why, remedy, evidence } = death;
        let head = self.paint(RED, &format!("✗ the {way} died in {place} ({})", cause.word()));
        self.line(&format!("\n{head}"));
        self.labelled("last", &last.as_ref().map_or_else(|| "no capture saw it".to_owned(), ToString::to_string));
        if let Some(missing) = missing {
            self.labelled("never", &missing.to_string());
        }
        self.labelled("why", why);
        self.labelled("remedy", remedy);
        for also in evidence {
            self.labelled("also", also);
        }
    }
}

/// What a capture saw, said in full where it differs from what the one before saw.
fn describe(packet: &Packet, before: Option<&Packet>) -> Vec<String> {
    if before == Some(packet) {
        return vec!["the same frame".into()];
    }
    let frame = |macs: Option<(flannel_core::addr::Mac, flannel_core::addr::Mac)>| {
        macs.map(|(source, destination)| format!("frame {source} > {destination}"))
    };
    let same_packet = before.is_some_and(|before| Packet { macs: before.macs, ..packet.clone() } == *before);
    if same_packet {
        return vec![format!("the same packet, {}", frame(packet.macs).unwrap_or_default())];
    }
    let bare = format!(
        "{} > {}  {}, ttl {}, {} bytes",
        packet.source, packet.destination, packet.message, packet.ttl, packet.length
    );
    let Some(outer) = &packet.outer else { return std::iter::once(bare).chain(frame(packet.macs)).collect() };
    let around = format!(
        "{} > {}  UDP {}, VXLAN {}, {} bytes",
        outer.source, outer.destination, outer.port, outer.vni, outer.length
    );
    let inner = frame(packet.inner_macs).map(|frame| format!("  {frame}"));
    std::iter::once(around).chain(frame(packet.macs)).chain([format!("└ {bare}")]).chain(inner).collect()
}

/// Breaks text at blanks into lines of at most so many columns; a word that is longer has a line of its own.
fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    if text.chars().count() <= width {
        return vec![text.to_owned()];
    }
    for word in text.split(' ') {
        let line = lines.last_mut().map_or(0, |line| line.chars().count());
        if line > 0 && line + 1 + word.chars().count() > width {
            lines.push(String::new());
        }
        if let Some(line) = lines.last_mut() {
            line.push_str(if line.is_empty() { "" } else { " " });
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::super::story::{Cause, Outer, Point};
    use super::*;

    fn point(place: &str, device: &str, direction: Direction) -> Point {
        Point { place: place.into(), device: device.into(), direction }
    }

    fn seen(point: Point, at_ns: u64, ttl: u8, wrapped: bool) -> Step {
        let mac = |last| flannel_core::addr::Mac([2, 0, 0, 0, 0, last]);
        let outer = Outer {
            source: "192.0.2.11".parse().unwrap(),
            destination: "192.0.2.12".parse().unwrap(),
            source_port: 40_000,
            port: 8472,
            vni: 1,
            length: 134,
        };
        let packet = Packet {
            macs: Some((mac(1), mac(2))),
            outer: wrapped.then_some(outer),
            inner_macs: wrapped.then(|| (mac(3), mac(4))),
            source: "10.244.1.2".parse().unwrap(),
            destination: "10.244.2.2".parse().unwrap(),
            ttl,
            length: 84,
            message: "echo request".into(),
        };
        Step::Seen { point, at_ns, packet, wire: false }
    }

    fn story(outcome: Outcome) -> Story {
        let end = |name: &str, node: &str, address: &str| End {
            name: name.into(),
            node: Some(node.into()),
            address: address.parse().ok(),
        };
        let route = Step::Route {
            place: "node1".into(),
            text: "10.244.2.2 from 10.244.1.2 via 10.244.2.0 dev flannel.1 iif cni0".into(),
            entry: Some("10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink".into()),
        };
        let rule = Step::Rule {
            place: "node1".into(),
            table: "iptables-legacy filter".into(),
            chain: "FLANNEL-FWD".into(),
            handle: None,
            text: "-s 10.244.0.0/16 -m comment --comment \"flanneld forward\" -j ACCEPT".into(),
            verdict: "accept".into(),
            traced: false,
        };
        Story {
            from: end("pod1-1", "node1", "10.244.1.2"),
            to: end("pod2-1", "node2", "10.244.2.2"),
            ip: 4,
            size: 56,
            outcome,
            request: vec![
                seen(point("pod1-1", "eth0", Direction::Out), 0, 64, false),
                seen(point("node1", "cni0", Direction::In), 2_500, 64, false),
                route,
                rule,
                seen(point("node1", "eth0", Direction::Out), 9_000, 63, true),
            ],
            reply: vec![seen(point("pod2-1", "eth0", Direction::Out), 12_000, 64, false)],
            remarks: vec!["something besides".into()],
        }
    }

    fn drawn(outcome: Outcome, times: bool) -> String {
        text(&story(outcome), Style { colours: false, times, reply: false })
    }

    #[test]
    fn a_way_reads_from_place_to_place() {
        let expected = r#"pod1-1 (on node1) → pod2-1 (on node2): a ping of 56 bytes over IPv4, 10.244.1.2 → 10.244.2.2
✓ answered after 51.0 µs

pod1-1
  → eth0                  0 µs 10.244.1.2 > 10.244.2.2  echo request, ttl 64, 84 bytes
                               frame 02:00:00:00:00:01 > 02:00:00:00:00:02
node1
  ← cni0               +2.5 µs the same frame
    route    10.244.2.2 from 10.244.1.2 via 10.244.2.0 dev flannel.1 iif cni0
             by  10.244.2.0/24 via 10.244.2.0 dev flannel.1 onlink
    rule     -s 10.244.0.0/16 -m comment --comment "flanneld forward" -j ACCEPT  (iptables-legacy filter FLANNEL-FWD, by
             its rules, not traced)
  → eth0               +6.5 µs 192.0.2.11 > 192.0.2.12  UDP 8472, VXLAN 1, 134 bytes
                               frame 02:00:00:00:00:01 > 02:00:00:00:00:02
                               └ 10.244.1.2 > 10.244.2.2  echo request, ttl 63, 84 bytes
                                 frame 02:00:00:00:00:03 > 02:00:00:00:00:04

    reply    pod2-1 eth0, 0.0 µs

    remark   something besides
"#;
        assert_eq!(drawn(Outcome::Answered { round_trip_ns: 51_000 }, true), expected);
        let plain = drawn(Outcome::Answered { round_trip_ns: 51_000 }, false);
        assert!(!plain.contains("µs") && plain.contains("\n  ← cni0            the same frame\n"), "{plain}");
    }

    #[test]
    fn a_death_ends_with_where_and_why() {
        let death = Death {
            way: Way::Request,
            place: "node1".into(),
            last: Some(point("node1", "cni0", Direction::In)),
            missing: Some(point("node1", "flannel.1", Direction::Out)),
            cause: Cause::NoRoute,
            why: "node1 has no route to 10.244.2.0/24".into(),
            remedy: "start flanneld".into(),
            evidence: vec!["node1 counted IpExt.InNoRoutes +1".into()],
        };
        let text = drawn(Outcome::Died(Box::new(death)), true);
        let expected = "
✗ the request died in node1 (no-route)
    last     node1 coming in by cni0
    never    node1 going out by flannel.1
    why      node1 has no route to 10.244.2.0/24
    remedy   start flanneld
    also     node1 counted IpExt.InNoRoutes +1
";
        assert!(text.contains(expected), "{text}");
    }

    #[test]
    fn long_lines_are_broken_at_blanks() {
        assert_eq!(wrap("one two three", 7), ["one two", "three"]);
        assert_eq!(wrap("one two  three", 20), ["one two  three"]);
        assert_eq!(wrap("longerthanthat x", 7), ["longerthanthat", "x"]);
    }
}
