//! The summary on a terminal: tables, and bars made of blocks.

use std::io::IsTerminal;

use super::summary::{LATENCY_EDGES, Outcomes, Summary, percentile};

/// Days in the plot, the last ones.
const MAX_DAYS: usize = 14;
/// Widest bar, in columns.
const MAX_BAR: usize = 40;
/// Widest name in a table's first column.
const MAX_NAME: usize = 20;
const CYAN: &str = "\x1b[36m";
const BOLD: &str = "\x1b[1m";

/// What the terminal can do.
pub(super) struct Style {
    /// Columns.
    pub(super) width: usize,
    /// Whether to use colours.
    pub(super) colors: bool,
}

impl Style {
    /// Of standard output: 80 columns and no colours where it is no terminal.
    pub(super) fn of_stdout() -> Self {
        let width = terminal_size::terminal_size().map_or(80, |(width, _)| usize::from(width.0));
        let asked_not_to = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { width, colors: std::io::stdout().is_terminal() && !asked_not_to }
    }

    fn paint(&self, color: &str, text: &str) -> String {
        if self.colors && !text.is_empty() { format!("{color}{text}\x1b[0m") } else { text.to_owned() }
    }
}

/// The whole text.
pub(super) fn render(summary: &Summary, style: &Style) -> String {
    let sections = [
        ("Acceptance by language", outcomes(summary).render(style.width)),
        ("Latency in ms, by where the suggestion came from", latencies(summary).render(style.width)),
        ("Accepted per day (UTC)", days(summary, style)),
        ("Time to the answer", histogram(summary, style)),
    ];
    let sections = sections.map(|(title, body)| format!("{}\n{body}", style.paint(BOLD, title)));
    let mut text = sections.join("\n");
    if summary.damaged > 0 {
        text.push_str(&format!("\nLines of the record that could not be read: {}\n", summary.damaged));
    }
    text
}

/// A table. Its first column is text, the others are numbers.
pub(super) struct Table {
    pub(super) titles: Vec<&'static str>,
    /// As many cells as there are titles.
    pub(super) rows: Vec<Vec<String>>,
}

impl Table {
    /// The table in `width` columns. Where they are too few, the last columns of the table give way.
    fn render(&self, width: usize) -> String {
        let titles: Vec<String> = self.titles.iter().map(|&title| title.to_owned()).collect();
        let rows: Vec<&Vec<String>> = std::iter::once(&titles).chain(&self.rows).collect();
        let widths: Vec<usize> = (0..titles.len())
            .map(|column| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0))
            .enumerate()
            .map(|(column, width)| if column == 0 { width.min(MAX_NAME) } else { width })
            .collect();
        let mut used = widths[0];
        let fitting = widths[1..].iter().take_while(|&column| {
            used += column + 2;
            used <= width
        });
        let columns = fitting.count();
        let mut text = String::new();
        for row in rows {
            let name: String = row[0].chars().take(MAX_NAME).collect();
            let mut line = format!("{name:<0$}", widths[0]);
            for (cell, width) in row[1..].iter().zip(&widths[1..]).take(columns) {
                line.push_str(&format!("  {cell:>width$}"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Acceptance by language, all of them last.
pub(super) fn outcomes(summary: &Summary) -> Table {
    let row = |name: &str, group: &Outcomes| {
        vec![
            name.to_owned(),
            group.shown.to_string(),
            group.accepted.to_string(),
            percent(group.acceptance()),
            group.partly.to_string(),
            percent(group.survived()),
            group.chars.to_string(),
        ]
    };
    let mut rows: Vec<_> = summary.languages.iter().map(|(name, group)| row(name, group)).collect();
    if rows.len() > 1 {
        rows.push(row("all", &summary.total));
    }
    let titles = vec!["language", "shown", "accepted", "%", "partly", "left after 30 s", "chars accepted"];
    Table { titles, rows }
}

/// Percentiles by source, all of them first.
pub(super) fn latencies(summary: &Summary) -> Table {
    let row = |name: &str, times: &[f64], first_line: &[f64]| {
        let mut row = vec![name.to_owned(), times.len().to_string()];
        row.extend([50, 95, 99].map(|percent| milliseconds(percentile(times, percent))));
        row.extend([50, 95, 99].map(|percent| milliseconds(percentile(first_line, percent))));
        row
    };
    let rows =
        summary.latencies.iter().map(|(name, times)| row(name, &times.answer, &times.first_line)).collect();
    let titles = vec!["source", "shown", "p50", "p95", "p99", "1st line p50", "p95", "p99"];
    Table { titles, rows }
}

/// A bar for each of the last days: the share of its suggestions that were accepted.
fn days(summary: &Summary, style: &Style) -> String {
    let last = &summary.days[summary.days.len().saturating_sub(MAX_DAYS)..];
    let rows = last.iter().map(|(day, group)| {
        let share = group.acceptance().unwrap_or_default();
        (day.clone(), share, format!("{} of {}", percent(Some(share)), group.shown))
    });
    bars(rows.collect(), 1.0, style)
}

/// A bar for each range of latency: how many suggestions came in that time.
fn histogram(summary: &Summary, style: &Style) -> String {
    let ranges = latency_ranges();
    let most = summary.histogram.iter().copied().max().unwrap_or(0).max(1) as f64;
    let rows = ranges
        .into_iter()
        .zip(summary.histogram)
        .map(|(range, count)| (range, count as f64, count.to_string()));
    // Empty bars at both ends say nothing.
    let mut rows: Vec<_> = rows.skip_while(|(_, count, _)| *count == 0.0).collect();
    while rows.last().is_some_and(|(_, count, _)| *count == 0.0) {
        rows.pop();
    }
    bars(rows, most, style)
}

/// What each bar of the latency plot stands for.
pub(super) fn latency_ranges() -> Vec<String> {
    let mut from = 0.0;
    let mut ranges: Vec<String> = LATENCY_EDGES
        .iter()
        .map(|&to| {
            let range = format!("{from} to {to} ms");
            from = to;
            range
        })
        .collect();
    ranges.push(format!("{from} ms or more"));
    ranges
}

/// Rows of a name, a value up to `most` and what to write behind the bar.
fn bars(rows: Vec<(String, f64, String)>, most: f64, style: &Style) -> String {
    let widest =
        |texts: &mut dyn Iterator<Item = &String>| texts.map(|text| text.chars().count()).max().unwrap_or(0);
    let names = widest(&mut rows.iter().map(|(name, _, _)| name));
    let notes = widest(&mut rows.iter().map(|(_, _, note)| note));
    let room = style.width.saturating_sub(names + notes + 4).clamp(4, MAX_BAR);
    let mut text = String::new();
    for (name, value, note) in &rows {
        let bar = bar(value / most, room);
        let gap = " ".repeat(room - bar.chars().count());
        text.push_str(&format!("{name:<names$}  {}{gap}  {note:>notes$}\n", style.paint(CYAN, &bar)));
    }
    text
}

/// A bar of `share` (0 to 1) of `width` columns, to an eighth of a column. What is not nothing shows.
fn bar(share: f64, width: usize) -> String {
    const EIGHTHS: [char; 8] = [' ', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let eighths = (share.clamp(0.0, 1.0) * (8 * width) as f64).round() as usize;
    let eighths = if share > 0.0 { eighths.max(1) } else { 0 };
    let mut bar = "█".repeat(eighths / 8);
    if eighths % 8 > 0 {
        bar.push(EIGHTHS[eighths % 8]);
    }
    bar
}

pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.0} %", share * 100.0))
}

fn milliseconds(value: Option<f64>) -> String {
    match value {
        None => "-".to_owned(),
        Some(value) if value < 10.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
