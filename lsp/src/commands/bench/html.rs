//! The page of `redstart bench seed --html`: one file, which needs no network and no script.

use std::fmt::Write;

use super::chart::BarChart;
use super::seed::SeedReport;

const STYLE: &str = include_str!("style.css");

/// The whole page.
pub(super) fn page(report: &SeedReport) -> anyhow::Result<String> {
    let mut page = String::from("<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n");
    page.push_str("<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n");
    write!(
        page,
        "<title>{} in Redstart</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n",
        escape(&report.model)
    )?;
    head(&mut page, report)?;
    generation(&mut page, report)?;
    first_token(&mut page, report)?;
    parallel(&mut page, report)?;
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

fn head(page: &mut String, report: &SeedReport) -> anyhow::Result<()> {
    writeln!(page, "<h1>{}</h1>", escape(&report.model))?;
    writeln!(page, "<p>{}<br>{}</p>", escape(&report.backend), escape(&report.machine))?;
    writeln!(page, "<p class=\"soft\">Redstart {}, {}</p>", env!("CARGO_PKG_VERSION"), report.date)?;
    if report.weights.is_some() {
        page.push_str(
            "<p class=\"note\">Random weights, speed only: the text it writes means nothing.</p>\n",
        );
    }
    let mb = |value: Option<f64>| value.map_or("unknown here".into(), |mb| format!("{mb} MB"));
    page.push_str("<dl>\n");
    for (name, value) in [
        ("KV cache", format!("{} tokens", report.kv_cache.tokens)),
        ("KV cache", format!("{} GiB", report.kv_cache.gib)),
        ("Memory used", mb(report.memory_mb)),
        ("Memory at most", mb(report.peak_rss_mb)),
    ] {
        writeln!(page, "<div><dt>{name}</dt><dd>{value}</dd></div>")?;
    }
    page.push_str("</dl>\n");
    Ok(())
}

fn generation(page: &mut String, report: &SeedReport) -> anyhow::Result<()> {
    let rows = report.generation.iter().map(|row| (row.name.to_owned(), vec![row.tok_s]));
    let chart = BarChart { unit: "tokens per second", series: &["tok/s"], rows: rows.collect() };
    section(
        page,
        "Generation",
        "Tokens per second of a whole request, its prefill included.",
        &chart,
        &["request", "prompt tokens", "generated", "tok/s"],
        report.generation.iter().map(|row| {
            vec![
                row.name.into(),
                row.prompt_tokens.to_string(),
                row.tokens.to_string(),
                row.tok_s.to_string(),
            ]
        }),
    )
}

fn first_token(page: &mut String, report: &SeedReport) -> anyhow::Result<()> {
    let name = |characters: usize| format!("{characters} characters");
    let rows = report.ttft.iter().map(|row| (name(row.prompt_characters), vec![row.average_ms, row.min_ms]));
    let chart = BarChart { unit: "milliseconds", series: &["average", "at best"], rows: rows.collect() };
    section(
        page,
        "Time to first token",
        "Nothing of the prompt is cached. Less is better.",
        &chart,
        &["prompt", "tokens", "average ms", "minimum ms"],
        report.ttft.iter().map(|row| {
            vec![
                name(row.prompt_characters),
                row.prompt_tokens.to_string(),
                row.average_ms.to_string(),
                row.min_ms.to_string(),
            ]
        }),
    )
}

fn parallel(page: &mut String, report: &SeedReport) -> anyhow::Result<()> {
    let name = |requests: usize| format!("{requests} requests");
    let rows = report.parallel.iter().map(|row| (name(row.requests), vec![row.effective_tok_s]));
    let chart =
        BarChart { unit: "tokens per second, all together", series: &["tok/s"], rows: rows.collect() };
    section(
        page,
        "Requests at the same time",
        "Tokens per second of all requests together, from the first submission to the last token.",
        &chart,
        &["at once", "effective tok/s", "times one alone"],
        report
            .parallel
            .iter()
            .map(|row| vec![name(row.requests), row.effective_tok_s.to_string(), row.speedup.to_string()]),
    )
}

/// A chart, and the same numbers as a table for those who do not see it.
fn section(
    page: &mut String,
    title: &str,
    explanation: &str,
    chart: &BarChart<'_>,
    columns: &[&str],
    rows: impl Iterator<Item = Vec<String>>,
) -> anyhow::Result<()> {
    let described =
        format!("<svg role=\"img\" aria-label=\"{title}: bars; the table below has the numbers\" ");
    let svg = chart.svg()?.replacen("<svg ", &described, 1);
    writeln!(page, "<h2>{title}</h2>\n<figure>\n<figcaption>{explanation}</figcaption>\n{svg}</figure>")?;
    page.push_str("<table>\n<thead><tr>");
    for column in columns {
        write!(page, "<th scope=\"col\">{column}</th>")?;
    }
    page.push_str("</tr></thead>\n<tbody>\n");
    for row in rows {
        let cells: String = row.iter().map(|cell| format!("<td>{}</td>", escape(cell))).collect();
        writeln!(page, "<tr>{cells}</tr>")?;
    }
    page.push_str("</tbody>\n</table>\n");
    Ok(())
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::commands::bench::chart;
    use crate::commands::bench::seed::{FirstTokenRow, GenerationRow, KvCacheRow, ParallelRow};

    fn report() -> SeedReport {
        SeedReport {
            model: "<b>&model".into(),
            weights: Some("random, speed only"),
            backend: "cpu".into(),
            machine: "a machine".into(),
            date: "2026-01-02T03:04:05Z".into(),
            generation: vec![GenerationRow {
                name: "long code 800",
                prompt_tokens: 9,
                tokens: 800,
                tok_s: 12.5,
            }],
            ttft: vec![FirstTokenRow {
                prompt_characters: 5,
                prompt_tokens: 2,
                average_ms: 7.5,
                min_ms: 6.5,
            }],
            parallel: vec![ParallelRow { requests: 3, effective_tok_s: 31.5, speedup: 2.5 }],
            kv_cache: KvCacheRow { tokens: 4096, gib: 0.5 },
            memory_mb: Some(321.0),
            peak_rss_mb: None,
        }
    }

    #[test]
    fn the_page_has_every_figure_and_loads_nothing() {
        let page = page(&report()).unwrap();
        for text in [
            "&lt;b&gt;&amp;model",
            "a machine",
            "2026-01-02",
            "Random weights",
            "long code 800",
            "12.5",
            "7.5",
            "6.5",
            "31.5",
            "2.5",
            "4096 tokens",
            "0.5 GiB",
            "321 MB",
            "unknown here",
            "prefers-color-scheme: dark",
        ] {
            assert!(page.contains(text), "{text:?} is missing");
        }
        assert_eq!(page.matches("<svg role=\"img\" aria-label").count(), 3);
        for fetched in ["<script", "<link", "<img", "@import", "url("] {
            assert!(!page.contains(fetched), "the page loads something: {fetched}");
        }
        assert!(!page.contains("<b>"), "the model's name is text");
    }

    #[test]
    fn the_style_sheet_recolours_what_the_charts_draw() {
        let chart =
            chart::BarChart { unit: "u", series: &["a", "b"], rows: vec![("n".into(), vec![1.0, 2.0])] };
        let svg = chart.svg().unwrap();
        let rules = STYLE.lines().filter_map(|line| line.strip_prefix("svg [")?.split_once(']'));
        let attributes: Vec<&str> = rules.map(|(attribute, _)| attribute).collect();
        assert!(attributes.len() >= 4);
        for attribute in attributes {
            assert!(svg.contains(attribute), "no element has {attribute}");
        }
    }
}
