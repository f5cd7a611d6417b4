//! The summary as a page: one file, which needs no network and no script.

use super::summary::Summary;
use super::text::{self, Table, latency_ranges, percent};

const STYLE: &str = include_str!("../bench/style.css");
const BARS: &str = "td.bar { width: 60%; text-align: left; }\n\
    td.bar span { display: block; height: .9rem; min-width: 1px; border-radius: .2rem; background: var(--first); }\n";

/// The whole page.
pub(super) fn page(summary: &Summary) -> String {
    let days = summary.days.iter().map(|(day, group)| {
        let share = group.acceptance().unwrap_or_default();
        (day.clone(), share, format!("{} of {}", percent(Some(share)), group.shown))
    });
    let most = summary.histogram.iter().copied().max().unwrap_or(0).max(1) as f64;
    let times = latency_ranges().into_iter().zip(summary.histogram);
    let times = times.map(|(range, count)| (range, count as f64 / most, count.to_string()));
    let sections = [
        ("Acceptance by language", table(&text::outcomes(summary))),
        ("Latency in milliseconds, by where the suggestion came from", table(&text::latencies(summary))),
        ("Accepted per day (UTC)", bars(days)),
        ("Time to the answer", bars(times)),
    ];
    let body: String =
        sections.iter().map(|(title, content)| format!("<h2>{title}</h2>\n{content}")).collect();
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
         <title>Suggestions of Redstart</title>\n<style>\n{STYLE}{BARS}</style>\n</head>\n<body>\n\
         <h1>Suggestions of Redstart</h1>\n\
         <p class=\"soft\">{} shown, {} accepted. This page was made from a file on this machine and loads nothing.</p>\n\
         {body}</body>\n</html>\n",
        summary.total.shown, summary.total.accepted,
    )
}

fn table(table: &Table) -> String {
    let head: String = table.titles.iter().map(|title| format!("<th scope=\"col\">{title}</th>")).collect();
    let cells =
        |row: &Vec<String>| row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect::<String>();
    let rows: String = table.rows.iter().map(|row| format!("<tr>{}</tr>\n", cells(row))).collect();
    format!("<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody>\n</table>\n")
}

/// Rows of a name, a share of the longest bar, and what it stands for.
fn bars(rows: impl Iterator<Item = (String, f64, String)>) -> String {
    let row = |(name, share, note): (String, f64, String)| {
        let width = share.clamp(0.0, 1.0) * 100.0;
        format!(
            "<tr><td>{}</td><td class=\"bar\"><span style=\"width: {width:.1}%\"></span></td><td>{}</td></tr>\n",
            escape(&name),
            escape(&note)
        )
    };
    format!("<table>\n<tbody>\n{}</tbody>\n</table>\n", rows.map(row).collect::<String>())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}
