//! Tables and charts as data, and tables as text.

use comfy_table::CellAlignment;

use super::stats::Estimate;

/// A part of the report: one job, or one of its tables.
pub(crate) struct Section {
    pub(crate) title: String,
    /// The sentences above the table.
    pub(crate) notes: Vec<String>,
    pub(crate) table: Table,
    pub(crate) chart: Option<Chart>,
}

/// A table of text. The first column is aligned to the left, the others to the right.
pub(crate) struct Table {
    pub(crate) header: Vec<String>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// The data of a chart.
pub(crate) enum Chart {
    /// Panels side by side. Each has a bar for each runtime.
    Bars(Vec<Panel>),
    /// A line for each runtime. Both axes are logarithmic.
    Lines { x: String, y: String, lines: Vec<(String, Vec<(f64, f64)>)> },
}

pub(crate) struct Panel {
    pub(crate) title: String,
    /// Names and figures. A figure is NaN if the runtime has none.
    pub(crate) bars: Vec<(String, Estimate)>,
}

impl Panel {
    pub(crate) fn new(title: impl Into<String>) -> Self {
        Self { title: title.into(), bars: Vec::new() }
    }

    /// Adds a figure without an interval.
    pub(crate) fn add(&mut self, name: &str, value: f64) {
        self.bars.push((name.to_owned(), Estimate { median: value, low: value, high: value }));
    }
}

impl Table {
    pub(crate) fn new<'a>(header: impl IntoIterator<Item = &'a str>) -> Self {
        Self { header: header.into_iter().map(str::to_owned).collect(), rows: Vec::new() }
    }

    pub(crate) fn add(&mut self, name: &str, cells: impl IntoIterator<Item = String>) {
        self.rows.push(std::iter::once(name.to_owned()).chain(cells).collect());
    }

    /// The table as Markdown, aligned as text too. It leaves out columns that are empty in all rows.
    pub(crate) fn to_markdown(&self) -> String {
        let is_kept = |column: &usize| *column == 0 || self.rows.iter().any(|row| !row[*column].is_empty());
        let kept: Vec<usize> = (0..self.header.len()).filter(is_kept).collect();
        let cells = |row: &[String]| kept.iter().map(|&column| row[column].clone()).collect::<Vec<_>>();
        let mut table = comfy_table::Table::new();
        table.load_style(comfy_table::presets::ASCII_MARKDOWN).set_header(cells(&self.header));
        table.add_rows(self.rows.iter().map(|row| cells(row)));
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        // A colon in the ruler aligns a column of the rendered table to the right; comfy-table writes none.
        let text = table.to_string();
        let (name, figures) = text.split_once("-|").unwrap_or((&text, ""));
        format!("{name}-|{}\n", figures.replace("-|", ":|"))
    }
}

/// The nearest integer, its digits in groups of three. Empty for NaN.
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

/// The value with this many digits after the point. Empty for NaN.
pub(crate) fn fixed(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { String::new() }
}

/// The interval of an estimate. Empty for NaN.
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
        let mut table = Table::new(["a", "b", "c"]);
        table.rows.push(vec!["name".into(), String::new(), "1".into()]);
        assert_eq!(table.to_markdown(), "| a    | c |\n|------|--:|\n| name | 1 |\n");
    }
}
