//! One table in four forms: for a terminal, a spreadsheet, a document, a program.

use crate::args::OutputArgs;
use crate::failure::Failure;
use crate::output;
use serde_json::Value;

/// A heading, its column's entries to the right or not.
pub struct Column {
    pub name: &'static str,
    pub right: bool,
}

/// Text to the left.
pub fn text(name: &'static str) -> Column {
    Column { name, right: false }
}

/// Numbers to the right.
pub fn number(name: &'static str) -> Column {
    Column { name, right: true }
}

/// Prints `rows` in the form asked for; `json` is the same for programs.
pub fn print(
    form: OutputArgs,
    columns: &[Column],
    rows: &[Vec<String>],
    json: impl FnOnce() -> Value,
) -> Result<(), Failure> {
    if form.json {
        return output::print_json(&json());
    }
    // Names of files may hold anything.
    let clean =
        |row: &Vec<String>| row.iter().map(|cell| output::printable(cell, false).into_owned()).collect();
    let rows: Vec<Vec<String>> = rows.iter().map(clean).collect();
    let header = || columns.iter().map(|c| c.name.to_owned()).collect::<Vec<_>>();
    let text = if form.csv {
        let line = |cells: &Vec<String>| cells.iter().map(|c| csv(c)).collect::<Vec<_>>().join(",") + "\n";
        std::iter::once(&header()).chain(&rows).map(line).collect()
    } else if form.md {
        let line = |cells: &[String]| {
            format!("| {} |\n", cells.iter().map(|c| c.replace('|', "\\|")).collect::<Vec<_>>().join(" | "))
        };
        let rule: Vec<String> =
            columns.iter().map(|c| if c.right { "---:" } else { "---" }.to_owned()).collect();
        line(&header()) + &line(&rule) + &rows.iter().map(|row| line(row)).collect::<String>()
    } else {
        let right: Vec<usize> = (0..columns.len()).filter(|&i| columns[i].right).collect();
        let all: Vec<Vec<String>> = std::iter::once(header()).chain(rows).collect();
        output::table(&all, &right, "")
    };
    output::print(&text)
}

/// A cell, quoted where it must be.
fn csv(cell: &str) -> String {
    if cell.contains([',', '"']) { format!("\"{}\"", cell.replace('"', "\"\"")) } else { cell.to_owned() }
}

/// Three digits or so: what a figure of a measurement is good for.
pub fn figure(x: f64) -> String {
    let decimals = match x.abs() {
        x if x >= 100.0 => 0,
        x if x >= 10.0 => 1,
        x if x >= 1.0 => 2,
        _ => 3,
    };
    format!("{x:.decimals$}")
}

/// A share of one.
pub fn percent(x: f64) -> String {
    format!("{:.1} %", x * 100.0)
}
