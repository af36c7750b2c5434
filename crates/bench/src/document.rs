//! A whole run, with what is needed to get it again: as text, as JSON, and put into a document in Markdown.
//!
//! The JSON is the [`Document`] as it stands: `{"machine": {…}, "date", "commit", "command", "benches": [{"name", "columns",
//! "rows": [{"what", "unit", "figures": {COLUMN: {"value", "interval"}}, "target": {"column", "at_most" | "at_least",
//! "met"}}], "notes"}]}`. Values are in the unit that the row names, in full (seconds, bytes, bits).

use serde::{Deserialize, Serialize};

use crate::machine::Machine;
use crate::report::Report;

/// One run of the bench.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Document {
    /// Where.
    pub machine: Machine,
    /// When: year-month-day.
    pub date: String,
    /// Of which commit of this repository.
    pub commit: String,
    /// By which command; the tables in a document name the one for their bench alone.
    pub command: String,
    /// What was found.
    pub benches: Vec<Report>,
}

impl Document {
    /// Where, when, of what and how, in a line or two.
    fn origin(&self, command: &str) -> String {
        let Self { machine, date, commit, .. } = self;
        format!("`{command}` on {machine}; {date}, commit {commit}.")
    }

    /// The whole run for a person.
    pub fn text(&self) -> String {
        let tables: Vec<String> = self.benches.iter().map(Report::table).collect();
        format!("{}\n\n{}", self.origin(&self.command), tables.join("\n"))
    }

    /// A document with each bench's table, and where it comes from, between its two marks, a line each: `<!-- bench NAME -->` and
    /// `<!-- end of bench -->`. All the rest, and the tables of benches that were not run, stay. Fails with the name of a
    /// bench that has no marks.
    pub fn written_into(&self, text: &str) -> Result<String, String> {
        self.benches.iter().try_fold(text.to_owned(), |text, bench| {
            let command = format!("cargo xtask bench {}", bench.name);
            let block = format!("\n{}\n{}\n", bench.table(), self.origin(&command));
            replace_between(&text, &format!("<!-- bench {} -->\n", bench.name), &block)
                .ok_or_else(|| bench.name.clone())
        })
    }
}

const END: &str = "<!-- end of bench -->";

fn replace_between(text: &str, mark: &str, block: &str) -> Option<String> {
    let (before, after) = text.split_once(mark)?;
    let (_old, after) = after.split_once(END)?;
    Some(format!("{before}{mark}{block}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_are_put_between_their_marks() {
        let bench = |name: &str| Report { name: name.into(), columns: vec![], rows: vec![], notes: vec![] };
        let mut document = Document {
            machine: Machine { cores: 2, processor: "P".into(), kernel: "6".into() },
            date: "2026-01-02".into(),
            commit: "abc".into(),
            command: "cargo xtask bench".into(),
            benches: vec![bench("cni")],
        };
        let text = "a\n<!-- bench cni -->\nold\n<!-- end of bench -->\nb\n";
        let new = document.written_into(text).unwrap();
        let table = "| cni | target |\n|-----|--------|\n";
        let origin = "`cargo xtask bench cni` on 2 cores of P, Linux 6; 2026-01-02, commit abc.";
        assert_eq!(new, format!("a\n<!-- bench cni -->\n\n{table}\n{origin}\n<!-- end of bench -->\nb\n"));
        assert_eq!(document.written_into(&new).unwrap(), new);
        document.benches.push(bench("idle"));
        assert_eq!(document.written_into(text).unwrap_err(), "idle");
    }
}
