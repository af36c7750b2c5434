//! What one bench found: rows of figures, a column for each contender.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};

use crate::figure::{Figure, Unit, number};

/// The column of this project's build.
pub const OURS: &str = "ours";

/// The findings of one bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// The bench's name.
    pub name: String,
    /// The contenders, in the order of columns.
    pub columns: Vec<String>,
    /// The figures.
    pub rows: Vec<Row>,
    /// What a reader must know about them, a sentence or two each.
    pub notes: Vec<String>,
}

/// One thing that was measured of each contender.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// What.
    pub what: String,
    /// In which unit.
    pub unit: Unit,
    /// The figures by column; a contender of which there is none has none.
    pub figures: BTreeMap<String, Figure>,
    /// What a figure should be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
}

/// What the figure of one column should be.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Target {
    /// Whose.
    pub column: String,
    /// The bound.
    #[serde(flatten)]
    pub bound: Bound,
    /// Whether it is so; false where there is no figure.
    pub met: bool,
}

/// Where a good figure lies.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    /// Not above.
    AtMost(f64),
    /// Its median not above, whatever its 95th percentile.
    MedianAtMost(f64),
    /// Not below.
    AtLeast(f64),
}

impl Bound {
    fn holds(self, figure: &Figure) -> bool {
        match self {
            Self::AtMost(bound) => figure.bounded() <= bound,
            Self::MedianAtMost(bound) => figure.value <= bound,
            Self::AtLeast(bound) => figure.bounded() >= bound,
        }
    }

    fn shown(self, unit: Unit) -> String {
        match self {
            Self::AtMost(bound) => format!("≤ {}", number(bound, unit)),
            Self::MedianAtMost(bound) => format!("p50 ≤ {}", number(bound, unit)),
            Self::AtLeast(bound) => format!("≥ {}", number(bound, unit)),
        }
    }
}

impl Row {
    /// A row without figures yet.
    pub fn new(what: impl Into<String>, unit: Unit) -> Self {
        Self { what: what.into(), unit, figures: BTreeMap::new(), target: None }
    }

    /// With a contender's figure.
    pub fn with(mut self, column: &str, figure: impl Into<Figure>) -> Self {
        self.figures.insert(column.to_owned(), figure.into());
        self
    }

    /// With a target for our own figure.
    pub fn aim(self, bound: Bound) -> Self {
        self.aim_of(OURS, bound)
    }

    /// With a target for the figure of a column; none if the contender is not there.
    pub fn aim_of(mut self, column: &str, bound: Bound) -> Self {
        if let Some(figure) = self.figures.get(column) {
            self.target = Some(Target { column: column.to_owned(), bound, met: bound.holds(figure) });
        }
        self
    }

    fn cells(&self, columns: &[String]) -> Vec<String> {
        let figures = columns.iter().map(|column| self.figures.get(column).map(|figure| figure.shown(self.unit)));
        let cells = std::iter::once(self.what.clone()).chain(figures.map(Option::unwrap_or_default));
        let target = self.target.as_ref().map(|target| {
            let whose = if target.column == OURS { String::new() } else { format!(" ({})", target.column) };
            let mark = if target.met { '✓' } else { '✗' };
            format!("{}{whose} {mark}", target.bound.shown(self.unit))
        });
        cells.chain([target.unwrap_or_default()]).collect()
    }
}

impl Report {
    /// A report of the same bench that tells only that a contender could not be run.
    pub fn without(&self, column: &str) -> Self {
        let notes = vec![format!("`{column}` could not be run in all parts.")];
        Self { name: self.name.clone(), columns: Vec::new(), rows: Vec::new(), notes }
    }

    /// With what another part of the same bench found: more columns, more rows, more figures in the rows there are.
    pub fn with(mut self, other: Self) -> Self {
        let columns: Vec<_> = other.columns.into_iter().filter(|column| !self.columns.contains(column)).collect();
        self.columns.extend(columns);
        for row in other.rows {
            match self.rows.iter_mut().find(|known| known.what == row.what) {
                Some(known) => {
                    known.figures.extend(row.figures);
                    known.target = known.target.take().or(row.target);
                }
                None => self.rows.push(row),
            }
        }
        let notes: Vec<_> = other.notes.into_iter().filter(|note| !self.notes.contains(note)).collect();
        self.notes.extend(notes);
        self
    }

    /// The rows as a table in Markdown whose columns also stand below each other as plain text, and the notes.
    pub fn table(&self) -> String {
        let head = std::iter::once(self.name.clone()).chain(self.columns.iter().cloned()).chain(["target".to_owned()]);
        let mut lines = vec![head.collect::<Vec<_>>()];
        lines.extend(self.rows.iter().map(|row| row.cells(&self.columns)));
        let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max().unwrap_or_default();
        let widths: Vec<usize> = (0..lines[0].len()).map(width).collect();
        let mut text = String::new();
        for (number, line) in lines.iter().enumerate() {
            let cells = line.iter().zip(&widths).map(|(cell, width)| format!(" {cell:<width$} |"));
            let _ = writeln!(text, "|{}", cells.collect::<String>());
            if number == 0 {
                let rules = widths.iter().map(|width| format!("{}|", "-".repeat(width + 2)));
                let _ = writeln!(text, "|{}", rules.collect::<String>());
            }
        }
        self.notes.iter().fold(text, |mut text, note| {
            let _ = write!(text, "\n{note}\n");
            text
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_shows_figures_targets_and_notes() {
        let rows = vec![
            Row::new("ADD", Unit::Seconds).with(OURS, 0.003).with("go", 0.024),
            Row::new("ADD, times ours", Unit::Ratio).with("go", 8.0).aim_of("go", Bound::AtLeast(8.0)),
            Row::new("memory", Unit::Bytes).with(OURS, 3e6).aim(Bound::AtMost(f64::from(2 << 20))),
            Row::new("DEL", Unit::Seconds)
                .with(OURS, Figure { p95: Some(0.004), ..0.002.into() })
                .aim(Bound::MedianAtMost(0.003)),
        ];
        let columns = vec![OURS.into(), "go".into()];
        let report = Report { name: "cni".into(), columns, rows, notes: vec!["go is Go.".into()] };
        let expected = "\
| cni             | ours            | go      | target         |
|-----------------|-----------------|---------|----------------|
| ADD             | 3.0 ms          | 24.0 ms |                |
| ADD, times ours |                 | 8.00    | ≥ 8.00 (go) ✓  |
| memory          | 2.9 MiB         |         | ≤ 2.0 MiB ✗    |
| DEL             | 2.0 ms / 4.0 ms |         | p50 ≤ 3.0 ms ✓ |

go is Go.
";
        assert_eq!(report.table(), expected);
    }

    #[test]
    fn parts_are_put_together() {
        let part = |column: &str, what: &str, value: f64| Report {
            name: "idle".into(),
            columns: vec![column.into()],
            rows: vec![Row::new(what, Unit::Count).with(column, value).aim(Bound::AtMost(0.0))],
            notes: vec!["As it is.".into()],
        };
        let whole = part(OURS, "a", 1.0).with(part("go", "a", 240.0)).with(part(OURS, "b", 0.0));
        let expected = "\
| idle | ours | go  | target |
|------|------|-----|--------|
| a    | 1    | 240 | ≤ 0 ✗  |
| b    | 0    |     | ≤ 0 ✓  |

As it is.
";
        assert_eq!(whole.table(), expected);
    }

    #[test]
    fn who_is_not_there_misses_no_target() {
        assert_eq!(Row::new("ADD", Unit::Ratio).aim_of("go", Bound::AtLeast(8.0)).target, None);
    }

    #[test]
    fn a_report_crosses_as_json() {
        let row = Row::new("ADD", Unit::Ratio).with(OURS, 1.5).aim(Bound::AtMost(1.5));
        let text = serde_json::to_string(&row).unwrap();
        let expected = r#"{"what":"ADD","unit":"ratio","figures":{"ours":{"value":1.5}},"target":{"column":"ours","at_most":1.5,"met":true}}"#;
        assert_eq!(text, expected);
        assert_eq!(serde_json::from_str::<Row>(&text).unwrap(), row);
    }
}
