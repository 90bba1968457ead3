//! Tables and charts as data, and tables as text.

use super::stats::Estimate;

/// A part of the report: one job, or one side of it.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: String,
    /// Sentences above the table.
    pub(crate) notes: Vec<String>,
    pub(crate) table: Table,
    /// The name of its file, without the ending.
    pub(crate) chart: Option<(String, Chart)>,
}

/// A table of text. The first column is left-aligned, the others right-aligned.
#[derive(Debug, Default)]
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What a chart shows.
#[derive(Debug)]
pub(crate) enum Chart {
    /// Panels side by side, each with a bar for each runtime.
    Bars(Vec<Panel>),
    /// A line for each runtime; both axes are logarithmic.
    Lines { x: String, y: String, lines: Vec<(String, Vec<(f64, f64)>)> },
}

#[derive(Debug)]
pub(crate) struct Panel {
    pub(crate) title: String,
    pub(crate) bars: Vec<Bar>,
}

#[derive(Debug)]
pub(crate) struct Bar {
    pub(crate) name: String,
    /// NaN where there is none.
    pub(crate) value: f64,
    pub(crate) interval: Option<(f64, f64)>,
}

impl Panel {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), bars: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, value: f64) {
        self.bars.push(Bar { name: name.to_owned(), value, interval: None });
    }

    pub(crate) fn add_estimate(&mut self, name: &str, estimate: Estimate) {
        let interval = Some((estimate.low, estimate.high));
        self.bars.push(Bar { name: name.to_owned(), value: estimate.median, interval });
    }
}

impl Table {
    pub(crate) fn new(header: &[&str]) -> Self {
        Self { header: header.iter().map(|&name| name.to_owned()).collect(), rows: Vec::new() }
    }

    /// As Markdown that is readable as it is. Columns in which no row has anything are left out.
    pub(crate) fn to_markdown(&self) -> String {
        let kept: Vec<usize> = (0..self.header.len())
            .filter(|&column| column == 0 || self.rows.iter().any(|row| !row[column].is_empty()))
            .collect();
        let cells = |column: usize| std::iter::once(&self.header).chain(&self.rows).map(move |row| &row[column]);
        let widths: Vec<usize> = kept
            .iter()
            .map(|&column| cells(column).map(|cell| cell.chars().count()).max().unwrap_or(0).max(3))
            .collect();
        let line = |row: &[String]| {
            let mut line = String::from("|");
            for (&column, &width) in kept.iter().zip(&widths) {
                let cell = &row[column];
                line += &if column == 0 { format!(" {cell:<width$} |") } else { format!(" {cell:>width$} |") };
            }
            line + "\n"
        };
        let mut text = line(&self.header);
        text.push('|');
        for (&column, &width) in kept.iter().zip(&widths) {
            let dashes = "-".repeat(width);
            text += &if column == 0 { format!(" {dashes} |") } else { format!(" {}: |", &dashes[1..]) };
        }
        text.push('\n');
        self.rows.iter().for_each(|row| text += &line(row));
        text
    }
}

/// An integer in groups of three.
pub(crate) fn grouped(value: f64) -> String {
    if !value.is_finite() {
        return String::new();
    }
    let digits = format!("{:.0}", value.abs());
    let mut text = String::from(if value < 0.0 { "-" } else { "" });
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// With so many digits after the point; nothing for what is not there.
pub(crate) fn fixed(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
}

/// The interval of an estimate.
pub(crate) fn interval(estimate: Estimate) -> String {
    if estimate.median.is_finite() { format!("{:.2}-{:.2}", estimate.low, estimate.high) } else { String::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_grouped() {
        assert_eq!(grouped(1_234_567.4), "1,234,567");
        assert_eq!(grouped(999.6), "1,000");
        assert_eq!(grouped(-1234.0), "-1,234");
        assert_eq!(grouped(f64::NAN), "");
    }

    #[test]
    fn empty_columns_are_left_out() {
        let mut table = Table::new(&["a", "b", "c"]);
        table.rows.push(vec!["name".into(), String::new(), "1".into()]);
        assert_eq!(table.to_markdown(), "| a    |   c |\n| ---- | --: |\n| name |   1 |\n");
    }
}
