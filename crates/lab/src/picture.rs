//! The lab as a picture: router, outside, segments, nodes with their devices, pods, all addresses.
//!
//! Surface: [`Picture`], whose text is an SVG file. It is the same for the same network: process numbers, MACs and whatever
//! else differs from run to run is left out. How boxes and lines look is the business of [`crate::svg`].

use std::fmt;

use flannel_core::addr::Dual;

use crate::error::LabError;
use crate::etcd::{Etcd, Member};
use crate::lab::{Lab, Node};
use crate::layout::{EXTERNAL, OUTSIDE, ROUTER};
use crate::report::other_build;
use crate::svg::{Anchor, Area, Pen, width};
use crate::wire::devices;

/// The room around all of it, and between two nodes.
const MARGIN: usize = 28;
/// The room between the edge of a box and what is in it.
const PADDING: usize = 16;
/// The height of a line of text.
const LINE: usize = 16;
/// The room for the cable of a segment at the left edge.
const TRUNK: usize = 16;
/// The room between two columns of pods, in which the cables from the bridge run.
const RAIL: usize = 28;
/// The length of a cable from one thing to the next below.
const DROP: usize = 20;
/// How far an external interface stands out of its node.
const OUT: usize = 16;
/// How many pods of a node are drawn; of more the rest is only counted.
const PODS: usize = 8;
/// The least room between router and outside.
const BETWEEN: usize = 190;

/// What stands between two things in one line.
const DOT: &str = " · ";

/// What is drawn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    title: String,
    router: Thing,
    outside: Thing,
    /// The prefixes of the segment between the two.
    between: Vec<String>,
    segments: Vec<Segment>,
    legend: [&'static str; 2],
}

/// A thing with a name and lines of addresses.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct Thing {
    name: String,
    lines: Vec<String>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Segment {
    name: String,
    prefixes: Vec<String>,
    nodes: Vec<Card>,
}

/// A node.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Card {
    name: String,
    subnets: Vec<String>,
    external: Thing,
    overlay: Vec<Thing>,
    bridge: Option<Thing>,
    pods: Vec<Thing>,
    /// What runs there that is not the lab's own.
    note: String,
}

impl Picture {
    /// Looks at a lab.
    pub fn of(lab: &Lab) -> Result<Self, LabError> {
        let layout = lab.layout();
        let ports = layout.segments.iter().chain([&layout.outside_segment]);
        let router = ports.map(|port| [vec![port.device.clone()], lines(&port.gateway())].concat().join(DOT));
        let servers = lab.etcd().into_iter().flat_map(Etcd::members).map(Card::of_server);
        let servers: Vec<Card> = servers.collect::<Result<_, _>>()?;
        let cards: Vec<Card> = lab.nodes().iter().map(Card::of).collect::<Result<_, _>>()?;
        let legend = legend(cards.iter().any(|card| !card.overlay.is_empty()));
        let segments = layout.segments.iter().enumerate().map(|(index, segment)| {
            let on_it = layout.nodes.iter().zip(&cards).filter(|(seat, _)| seat.segment == index);
            let servers = servers.iter().filter(|_| index == 0);
            let nodes = servers.chain(on_it.map(|(_, card)| card)).cloned().collect();
            Segment { name: format!("segment {}", index + 1), prefixes: lines(&segment.prefixes()), nodes }
        });
        Ok(Self {
            title: lab.options().to_string(),
            router: Thing::new(ROUTER, router.collect()),
            outside: Thing::new(OUTSIDE, lines(&layout.outside.map(|_, net| net.addr()))),
            between: lines(&layout.outside_segment.prefixes()),
            segments: segments.collect(),
            legend,
        })
    }
}

fn lines<T: ToString>(addresses: &Dual<T>) -> Vec<String> {
    addresses.values().map(ToString::to_string).collect()
}

fn legend(tunnels: bool) -> [&'static str; 2] {
    if tunnels {
        [
            "Blue is the underlay, orange flannel's overlay, green the pods and the bridge of their node.",
            "A packet to a pod of another node is routed to the flannel device, wrapped in UDP there (dotted), and leaves by eth0.",
        ]
    } else {
        [
            "Blue is the underlay, green the pods and the bridge of their node.",
            "A packet to a pod of another node is routed to that node, and leaves by eth0 as it is.",
        ]
    }
}

impl Thing {
    fn new(name: &str, lines: Vec<String>) -> Self {
        Self { name: name.to_owned(), lines }
    }

    /// Width and height with a name of this class.
    fn size(&self, class: &str) -> (usize, usize) {
        let widest = self.lines.iter().map(|line| width("address", line)).chain([width(class, &self.name)]).max();
        let edge = if class == "name" { 18 } else { 12 };
        (widest.unwrap_or_default() + 2 * 12, LINE * (1 + self.lines.len()) + edge)
    }

    fn draw(&self, pen: &mut Pen, class: &str, area: Area) {
        pen.area(class, area);
        let name = if class == "host" { "name" } else { "device" };
        let first = area.y + (area.height - LINE * self.lines.len()) / 2 + 5;
        pen.text(name, Anchor::Middle, (area.middle(), first), &self.name);
        for (line, number) in self.lines.iter().zip(1..) {
            pen.text("address", Anchor::Middle, (area.middle(), first + LINE * number), line);
        }
    }
}

impl Card {
    fn of(node: &Node) -> Result<Self, LabError> {
        let devices = devices(node.place())?;
        let thing = |device: &crate::wire::Device, kind: &str| {
            let nets = device.addresses.iter().map(ToString::to_string);
            Thing::new(&format!("{}{kind}", device.name), nets.collect())
        };
        let overlay = devices.iter().filter(|device| device.name.as_str().starts_with("flannel"));
        let mut overlay: Vec<_> = overlay.map(|device| thing(device, &format!("{DOT}mtu {}", device.mtu))).collect();
        overlay.sort_by_key(|device| (device.name.len(), device.name.clone()));
        let bridge = devices.iter().find(|device| device.kind == "bridge").map(|device| thing(device, ""));
        let external = devices.iter().find(|device| device.name.as_str() == EXTERNAL).map(|device| thing(device, ""));
        let pods = node.pods().iter().map(|pod| Thing::new(pod.name(), lines(&pod.addresses())));
        Ok(Self {
            name: node.place().name().to_owned(),
            subnets: lines(&node.subnets()).into_iter().map(|subnet| format!("subnet {subnet}")).collect(),
            external: external.unwrap_or_default(),
            overlay,
            bridge,
            pods: abridge(pods.collect()),
            note: other_build(node).trim_start_matches([':', ',', ' ']).to_owned(),
        })
    }

    /// A server of etcd.
    fn of_server(member: &Member) -> Result<Self, LabError> {
        let devices = devices(member.place())?;
        let nets = devices.iter().flat_map(|device| &device.addresses).map(ToString::to_string);
        Ok(Self {
            name: member.place().name().to_owned(),
            subnets: Vec::new(),
            external: Thing::new(EXTERNAL, nets.collect()),
            overlay: Vec::new(),
            bridge: None,
            pods: Vec::new(),
            note: member.endpoint(),
        })
    }

    /// The least width it needs.
    fn width(&self) -> usize {
        let beside = |things: &[Thing]| things.iter().map(|thing| thing.size("device").0 + RAIL).sum::<usize>();
        let subnets = self.subnets.iter().map(|subnet| width("address", subnet)).max().unwrap_or_default();
        let name = width("name", &self.name);
        let bridge = self.bridge.iter().map(|bridge| width("address", &bridge.lines.join(DOT)) + 80).max();
        let pod = self.pods.iter().map(|pod| pod.size("device").0).max().unwrap_or_default();
        let inner = [2 * name.max(subnets) + RAIL, bridge.unwrap_or_default(), beside(&self.overlay), 2 * pod + RAIL];
        inner.into_iter().max().unwrap_or_default().max(260) + 2 * PADDING
    }

    /// Where everything is, in a card of this width whose upper left corner is here.
    fn place(&self, (x, y): (usize, usize), width: usize) -> Places {
        let middle = x + width / 2;
        let centred = |y: usize, (width, height): (usize, usize)| Area { x: middle - width / 2, y, width, height };
        let external = centred(y - OUT, self.external.size("device"));
        let title = external.bottom() + 20;
        let mut bottom = title + LINE * self.subnets.len().saturating_sub(1);
        let overlay = side_by_side(middle, bottom + DROP, &self.overlay);
        bottom = overlay.iter().map(Area::bottom).max().unwrap_or(bottom);
        let bridge = self.bridge.as_ref();
        let bridge = bridge.map(|_| Area { x: x + PADDING, y: bottom + DROP, width: width - 2 * PADDING, height: 30 });
        bottom = bridge.map_or(bottom, |bridge| bridge.bottom());
        let pods = in_columns(&self.pods, x + PADDING, bottom + DROP, width - 2 * PADDING);
        bottom = pods.iter().map(Area::bottom).max().unwrap_or(bottom);
        let note = bottom + 20;
        bottom = if self.note.is_empty() { bottom } else { note };
        let whole = Area { x, y, width, height: bottom + PADDING - y };
        Places { whole, external, title, overlay, bridge, pods, note }
    }

    fn draw(&self, pen: &mut Pen, places: &Places) {
        let Places { whole, external, title, overlay, bridge, pods, note } = places;
        pen.area("host", *whole);
        places.draw_cables(pen);
        self.external.draw(pen, "external", *external);
        pen.text("name", Anchor::Start, (whole.x + PADDING, *title), &self.name);
        for (subnet, number) in self.subnets.iter().zip(0..) {
            pen.text("address", Anchor::End, (whole.right() - PADDING, title + LINE * number), subnet);
        }
        self.overlay.iter().zip(overlay).for_each(|(device, area)| device.draw(pen, "overlay", *area));
        if let (Some(device), Some(area)) = (&self.bridge, bridge) {
            pen.area("bridge", *area);
            pen.text("device", Anchor::Start, (area.x + 12, area.y + 20), &device.name);
            pen.text("address", Anchor::End, (area.right() - 12, area.y + 20), &device.lines.join(DOT));
        }
        self.pods.iter().zip(pods).for_each(|(pod, area)| pod.draw(pen, "pod", *area));
        if !self.note.is_empty() {
            let room = whole.width - 2 * PADDING;
            pen.text("note", Anchor::Middle, (whole.middle(), *note), &end_of(&self.note, room));
        }
    }
}

/// Where the parts of a node are.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Places {
    whole: Area,
    external: Area,
    /// Where the letters of the name stand.
    title: usize,
    overlay: Vec<Area>,
    bridge: Option<Area>,
    pods: Vec<Area>,
    /// Where the letters of the note stand.
    note: usize,
}

impl Places {
    fn draw_cables(&self, pen: &mut Pen) {
        let Self { whole, external, overlay, bridge, pods, .. } = self;
        let middle = whole.middle();
        for device in overlay {
            let turn = device.y - DROP / 2;
            let down =
                [(middle, external.bottom()), (middle, turn), (device.middle(), turn), (device.middle(), device.y)];
            pen.line("tunnel", &down);
        }
        let Some(bridge) = bridge else { return };
        for device in overlay {
            pen.line("inner", &[(device.middle(), device.bottom()), (device.middle(), bridge.y)]);
        }
        if overlay.is_empty() {
            pen.line("inner", &[(middle, external.bottom()), (middle, bridge.y)]);
        }
        let level = |pod: &Area| pod.y + pod.height / 2;
        pods.last().inspect(|last| pen.line("veth", &[(middle, bridge.bottom()), (middle, level(last))]));
        for pod in pods {
            pen.line("veth", &[(middle, level(pod)), (pod.middle(), level(pod))]);
        }
    }
}

fn abridge(mut pods: Vec<Thing>) -> Vec<Thing> {
    if pods.len() > PODS {
        let rest = pods.len() - (PODS - 1);
        pods.truncate(PODS - 1);
        pods.push(Thing::new(&format!("… {rest} more"), Vec::new()));
    }
    pods
}

/// Things in one row around a middle.
fn side_by_side(middle: usize, y: usize, things: &[Thing]) -> Vec<Area> {
    let sizes: Vec<_> = things.iter().map(|thing| thing.size("device")).collect();
    let all = sizes.iter().map(|(width, _)| width + RAIL).sum::<usize>().saturating_sub(RAIL);
    let mut x = middle - all / 2;
    let mut next = |(width, height)| {
        let area = Area { x, y, width, height };
        x = area.right() + RAIL;
        area
    };
    sizes.into_iter().map(&mut next).collect()
}

/// Things of one size in two columns; one alone is in the middle.
fn in_columns(things: &[Thing], x: usize, y: usize, room: usize) -> Vec<Area> {
    let width = (room - RAIL) / 2;
    let height = things.iter().map(|thing| thing.size("device").1).max().unwrap_or_default();
    if things.len() == 1 {
        return vec![Area { x: x + (room - width) / 2, y, width, height }];
    }
    let at = |index: usize| Area { x: x + index % 2 * (width + RAIL), y: y + index / 2 * (height + 12), width, height };
    (0..things.len()).map(at).collect()
}

/// As much of the end of a text as fits.
fn end_of(text: &str, room: usize) -> String {
    let mut shown = text.to_owned();
    while width("note", &shown) > room {
        shown = format!("…{}", shown.chars().skip(2).collect::<String>());
    }
    shown
}

/// How many nodes are side by side.
fn columns(nodes: usize) -> usize {
    match nodes {
        0..=3 => nodes.max(1),
        4 => 2,
        5..=9 => 3,
        _ => (1..nodes).find(|columns| columns * columns >= nodes).unwrap_or(nodes),
    }
}

/// What all nodes have in common: how many there are in a row, how wide each is, and where the first begins.
struct Grid {
    columns: usize,
    card: usize,
    left: usize,
}

impl Grid {
    fn of(picture: &Picture) -> Self {
        let most = picture.segments.iter().map(|segment| segment.nodes.len()).max().unwrap_or_default();
        let cards = picture.segments.iter().flat_map(|segment| &segment.nodes);
        Self {
            columns: columns(most),
            card: cards.map(Card::width).max().unwrap_or_default(),
            left: MARGIN + TRUNK * (picture.segments.len() + 1) + PADDING / 2,
        }
    }

    fn x(&self, column: usize) -> usize {
        self.left + column * (self.card + MARGIN)
    }

    fn right(&self) -> usize {
        self.x(self.columns) - MARGIN
    }
}

impl fmt::Display for Picture {
    /// The text of an SVG file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let grid = Grid::of(self);
        let (router, outside) = (self.router.size("name"), self.outside.size("name"));
        let legend = self.legend.iter().map(|line| width("note", line)).max();
        let right = grid.right().max(MARGIN + router.0 + BETWEEN + outside.0).max(MARGIN + legend.unwrap_or_default());
        let mut pen = Pen::default();
        let router = self.draw_top(&mut pen, right);
        let mut bottom = router.bottom() + MARGIN;
        for (segment, trunk) in self.segments.iter().zip((0..self.segments.len()).rev()) {
            let trunk = (MARGIN + TRUNK * (trunk + 1), router.bottom());
            bottom = segment.draw(&mut pen, &grid, trunk, bottom);
        }
        for line in self.legend {
            pen.text("note", Anchor::Start, (MARGIN, bottom), line);
            bottom += LINE + 2;
        }
        f.write_str(&pen.finish(&self.title, right + MARGIN, bottom + LINE / 2))
    }
}

impl Picture {
    /// Draws the router at the left and the outside at the right, and answers with the area of the router.
    fn draw_top(&self, pen: &mut Pen, right: usize) -> Area {
        let ((width, height), outside) = (self.router.size("name"), self.outside.size("name"));
        let height = height.max(outside.1);
        let router = Area { x: MARGIN, y: MARGIN, width, height };
        let outside = Area { x: right - outside.0, y: MARGIN, width: outside.0, height };
        let level = MARGIN + height / 2;
        pen.line("outer", &[(router.right(), level), (outside.x, level)]);
        let middle = usize::midpoint(router.right(), outside.x);
        for (prefix, above) in self.between.iter().zip([true, false]) {
            let y = if above { level - 8 } else { level + LINE };
            pen.text("address", Anchor::Middle, (middle, y), prefix);
        }
        self.router.draw(pen, "host", router);
        self.outside.draw(pen, "host", outside);
        router
    }
}

impl Segment {
    /// Draws the segment's cable from the router and its nodes, row by row; answers with where the next may begin.
    fn draw(&self, pen: &mut Pen, grid: &Grid, (trunk, from): (usize, usize), top: usize) -> usize {
        let label = [vec![self.name.clone()], self.prefixes.clone()].concat().join(DOT);
        pen.text("address", Anchor::Start, (grid.left, top + 4), &label);
        let mut bus = top + LINE;
        for nodes in self.nodes.chunks(grid.columns) {
            let corner = |column: usize| (grid.x(column), bus + DROP + OUT);
            let places: Vec<Places> =
                nodes.iter().zip(0..).map(|(node, column)| node.place(corner(column), grid.card)).collect();
            let height = places.iter().map(|place| place.whole.height).max().unwrap_or_default();
            let last = places.last().map_or(trunk, |place| place.external.middle());
            pen.line("segment", &[(trunk, from), (trunk, bus), (last, bus)]);
            for (node, mut place) in nodes.iter().zip(places) {
                pen.line("cable", &[(place.external.middle(), bus), (place.external.middle(), place.external.y)]);
                place.whole.height = height;
                node.draw(pen, &place);
            }
            bus += DROP + OUT + height + MARGIN;
        }
        bus + LINE / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn thing(name: &str, lines: &[&str]) -> Thing {
        Thing::new(name, lines.iter().map(|line| (*line).to_owned()).collect())
    }

    fn card(number: usize, pods: usize) -> Card {
        let pod =
            |pod: usize| thing(&format!("pod{number}-{pod}"), &[&format!("10.244.{number}.{pod}"), "fd00::ffff:2"]);
        Card {
            name: format!("node{number}"),
            subnets: vec![format!("subnet 10.244.{number}.0/24"), "subnet fd00:10:244:1::/64".into()],
            external: thing("eth0", &["192.0.2.11/24", "2001:db8:0:1::11/64"]),
            overlay: vec![thing("flannel.1", &["10.244.1.0/32"]), thing("flannel-v6.1", &["fd00:10:244:1::/128"])],
            bridge: (pods > 0).then(|| thing("cni0", &["10.244.1.1/24", "fd00:10:244:1::1/64"])),
            pods: abridge((1..=pods).map(pod).collect()),
            note: "/a/rather/long/path/to/another/build/of/flannel/called/flanneld v0.1.0".into(),
        }
    }

    fn picture(nodes: usize, segments: usize, pods: usize) -> Picture {
        let on =
            |segment: usize| (1..=nodes).filter(move |node| node % segments == segment).map(|node| card(node, pods));
        let segment = |segment: usize| Segment {
            name: format!("segment {}", segment + 1),
            prefixes: vec!["192.0.2.0/24".into()],
            nodes: on(segment).collect(),
        };
        Picture {
            title: "a lab of <one's> own".into(),
            router: thing("router", &["seg1 · 192.0.2.1"]),
            outside: thing("outside", &["203.0.113.10"]),
            between: vec!["203.0.113.0/24".into()],
            segments: (0..segments).map(segment).collect(),
            legend: legend(true),
        }
    }

    /// The value of an attribute of an element.
    fn attribute<'a>(element: &'a str, name: &str) -> &'a str {
        let rest = element.split_once(&format!(" {name}=\"")).map_or("", |(_, rest)| rest);
        rest.split_once('"').map_or("", |(value, _)| value)
    }

    fn area(element: &str) -> Area {
        let number = |name| attribute(element, name).parse().unwrap();
        Area { x: number("x"), y: number("y"), width: number("width"), height: number("height") }
    }

    fn areas(svg: &str, class: &str) -> Vec<Area> {
        let rects = svg.lines().filter(|line| line.starts_with("<rect") && attribute(line, "class") == class);
        rects.map(area).collect()
    }

    /// From left to right, of a text that is drawn.
    fn extent(element: &str) -> (usize, usize) {
        let text = element.split_once('>').and_then(|(_, rest)| rest.split_once("</text>")).unwrap().0;
        let (x, width): (usize, _) =
            (attribute(element, "x").parse().unwrap(), width(attribute(element, "class"), text));
        match attribute(element, "text-anchor") {
            "middle" => (x - width / 2, x + width / 2),
            "end" => (x - width, x),
            _ => (x, x + width),
        }
    }

    fn overlap(a: &Area, b: &Area) -> bool {
        a.x < b.right() && b.x < a.right() && a.y < b.bottom() && b.y < a.bottom()
    }

    #[test]
    fn nothing_lies_on_another_or_beyond_the_edge() {
        for (nodes, segments, pods) in (1..=12).flat_map(|nodes| [(nodes, 1, 2), (nodes, 2, 20), (nodes, 1, 1)]) {
            let svg = picture(nodes, segments, pods).to_string();
            let paper = areas(&svg, "paper")[0];
            let hosts = areas(&svg, "host");
            assert_eq!(hosts.len(), 2 + nodes);
            for class in ["host", "pod", "overlay", "bridge", "external"] {
                let all = areas(&svg, class);
                let clear = |(at, one): (usize, &Area)| all[at + 1..].iter().all(|other| !overlap(one, other));
                assert!(all.iter().enumerate().all(clear), "{class}s of {nodes} nodes on {segments} segments");
                assert!(all.iter().all(|one| one.right() < paper.right() && one.bottom() < paper.bottom()), "{class}");
            }
            for text in svg.lines().filter(|line| line.starts_with("<text")) {
                let (left, right) = extent(text);
                assert!(left > paper.x && right < paper.right(), "{text}");
            }
        }
    }

    #[test]
    fn every_address_stands_in_a_box_that_has_room_for_it() {
        let svg = picture(3, 1, 3).to_string();
        let pods = areas(&svg, "pod");
        let addresses = svg.lines().filter(|line| line.starts_with("<text") && line.contains(">fd00::ffff:2<"));
        let mut count = 0;
        for address in addresses {
            let ((left, right), y): (_, usize) = (extent(address), attribute(address, "y").parse().unwrap());
            let holds = |pod: &&Area| pod.x < left && right < pod.right() && pod.y < y && y < pod.bottom();
            assert!(pods.iter().any(|pod| holds(&pod)), "{address}");
            count += 1;
        }
        assert_eq!(count, 9);
    }

    #[test]
    fn many_pods_are_counted_and_names_escaped() {
        let svg = picture(1, 1, 20).to_string();
        assert_eq!(areas(&svg, "pod").len(), PODS);
        assert!(svg.contains(">pod1-7<") && !svg.contains(">pod1-8<") && svg.contains(">… 13 more<"), "{svg}");
        assert!(svg.contains("<title>a lab of &lt;one's&gt; own</title>"), "{svg}");
        assert!(svg.contains("/flanneld v0.1.0</text>"), "{svg}");
    }

    #[test]
    fn rows_are_about_as_many_as_columns() {
        assert_eq!([1, 3, 4, 5, 9, 10, 12, 100].map(columns), [1, 3, 2, 3, 3, 4, 4, 10]);
    }
}
