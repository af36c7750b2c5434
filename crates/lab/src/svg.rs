//! A pen for SVG: boxes, lines and text, in classes that have a colour in light and in dark.
//!
//! Surface: [`Pen`]. It knows no lab. Text is measured by its letters, as wide as the widest of the usual fonts draws them, and
//! nothing is fetched from anywhere: the same strokes are the same bytes.

use std::fmt::Write;

/// What all drawings look like. Fonts are those of the reader's machine.
const STYLE: &str = "\
text { font-family: system-ui, -apple-system, 'Segoe UI', 'DejaVu Sans', sans-serif; font-size: 12px; fill: #1f2937 }
.name { font-size: 15px; font-weight: 600 }
.device { font-weight: 600 }
.address { font-family: ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace; font-size: 11px }
.note { fill: #64748b }
rect { stroke-width: 1.25; stroke: #cbd5e1; fill: #ffffff }
rect.paper { fill: #f8fafc; stroke: #e2e8f0 }
rect.host { fill: #ffffff; stroke: #94a3b8 }
rect.external { fill: #e0edff; stroke: #3b82f6 }
rect.overlay { fill: #fff1dc; stroke: #f59e0b }
rect.bridge { fill: #e3f6ec; stroke: #34a56f }
rect.pod { fill: #f1fbf5; stroke: #8fd0ae }
path { fill: none; stroke-linecap: round; stroke-linejoin: round; stroke-width: 1.5; stroke: #94a3b8 }
path.segment { stroke: #3b82f6; stroke-width: 3 }
path.cable { stroke: #3b82f6 }
path.veth { stroke: #34a56f }
path.tunnel { stroke: #f59e0b; stroke-dasharray: 1 4.5; stroke-width: 2.5 }
@media (prefers-color-scheme: dark) {
text { fill: #e2e8f0 }
.note { fill: #94a3b8 }
rect { fill: #1e293b; stroke: #475569 }
rect.paper { fill: #0f172a; stroke: #1e293b }
rect.host { fill: #1b2638; stroke: #64748b }
rect.external { fill: #172f57; stroke: #60a5fa }
rect.overlay { fill: #4a3410; stroke: #fbbf24 }
rect.bridge { fill: #123b2a; stroke: #4ade80 }
rect.pod { fill: #14291f; stroke: #3f8f66 }
path { stroke: #64748b }
path.segment, path.cable { stroke: #60a5fa }
path.veth { stroke: #4ade80 }
path.tunnel { stroke: #fbbf24 }
}";

/// A rectangle in pixels, from its upper left corner.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Area {
    pub(crate) x: usize,
    pub(crate) y: usize,
    pub(crate) width: usize,
    pub(crate) height: usize,
}

impl Area {
    pub(crate) fn right(&self) -> usize {
        self.x + self.width
    }

    pub(crate) fn bottom(&self) -> usize {
        self.y + self.height
    }

    pub(crate) fn middle(&self) -> usize {
        self.x + self.width / 2
    }
}

/// Which end of a text is at its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Anchor {
    Start,
    Middle,
    End,
}

/// How much room a text of a class takes, in pixels.
pub(crate) fn width(class: &str, text: &str) -> usize {
    let tenths = match class {
        "name" => 98,
        "address" => 67,
        "device" => 84,
        _ => 68,
    };
    (text.chars().count() * tenths).div_ceil(10)
}

/// A drawing that grows.
#[derive(Debug, Default)]
pub(crate) struct Pen {
    strokes: String,
}

impl Pen {
    /// A box with round corners.
    pub(crate) fn area(&mut self, class: &str, Area { x, y, width, height }: Area) {
        let strokes = &mut self.strokes;
        let _ =
            writeln!(strokes, r#"<rect class="{class}" x="{x}" y="{y}" width="{width}" height="{height}" rx="8"/>"#);
    }

    /// A line through points.
    pub(crate) fn line(&mut self, class: &str, points: &[(usize, usize)]) {
        let path: Vec<String> = points.iter().map(|(x, y)| format!("{x} {y}")).collect();
        let _ = writeln!(self.strokes, r#"<path class="{class}" d="M{}"/>"#, path.join("L"));
    }

    /// A line of text; `y` is where its letters stand.
    pub(crate) fn text(&mut self, class: &str, anchor: Anchor, (x, y): (usize, usize), text: &str) {
        let anchor = match anchor {
            Anchor::Start => "",
            Anchor::Middle => r#" text-anchor="middle""#,
            Anchor::End => r#" text-anchor="end""#,
        };
        let text = escape(text);
        let _ = writeln!(self.strokes, r#"<text class="{class}"{anchor} x="{x}" y="{y}">{text}</text>"#);
    }

    /// The whole file.
    pub(crate) fn finish(self, title: &str, width: usize, height: usize) -> String {
        let title = escape(title);
        let edge = Area { x: 1, y: 1, width: width - 2, height: height - 2 };
        let mut paper = Self::default();
        paper.area("paper", edge);
        format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" \
             role=\"img\" aria-label=\"{title}\">\n<title>{title}</title>\n<style>\n{STYLE}\n</style>\n{}{}</svg>\n",
            paper.strokes, self.strokes
        )
    }
}

/// What XML reads as the text itself.
fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_escaped_everywhere() {
        let mut pen = Pen::default();
        pen.text("name", Anchor::End, (3, 4), "a<b>&\"c\"");
        let svg = pen.finish("x<y", 100, 50);
        let escaped = "a&lt;b&gt;&amp;&quot;c&quot;";
        assert!(
            svg.contains(&format!(r#"<text class="name" text-anchor="end" x="3" y="4">{escaped}</text>"#)),
            "{svg}"
        );
        assert!(svg.contains("<title>x&lt;y</title>") && svg.contains("aria-label=\"x&lt;y\""), "{svg}");
    }
}
