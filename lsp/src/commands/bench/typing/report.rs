//! What `redstart bench typing` prints.

use std::fmt::Write;

use serde::Serialize;
use serde_json::{Map, Value};

use super::tally::{Figures, Percentiles, Tally};

/// One replay of all recordings: each one's name and what was counted.
pub(super) struct Replay(pub(super) Vec<(String, Tally)>);

impl Replay {
    /// The figures of all recordings together.
    pub(super) fn figures(&self) -> Figures {
        let mut all = Tally::default();
        self.0.iter().for_each(|(_, tally)| all.add(tally));
        all.figures()
    }

    /// The first error that an answer brought, if any did.
    pub(super) fn first_error(&self) -> Option<&str> {
        self.0.iter().find_map(|(_, tally)| tally.errors.first()).map(String::as_str)
    }

    fn each(&self) -> anyhow::Result<Map<String, Value>> {
        let one =
            |(name, tally): &(String, Tally)| Ok((name.clone(), serde_json::to_value(tally.figures())?));
        self.0.iter().map(one).collect()
    }
}

/// What the figures are of.
#[derive(Clone, Serialize)]
pub(super) struct Setting {
    pub(super) model: String,
    pub(super) editor: &'static str,
    pub(super) speed: f64,
    /// Measures for typing that were switched off.
    pub(super) without: Option<String>,
}

#[derive(Serialize)]
struct Json<'a> {
    #[serde(flatten)]
    setting: &'a Setting,
    #[serde(flatten)]
    side: Side,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<Side>,
}

#[derive(Serialize)]
struct Side {
    #[serde(flatten)]
    figures: Figures,
    /// The figures of each recording, by its name.
    recordings: Map<String, Value>,
}

impl Side {
    fn new(replay: &Replay) -> anyhow::Result<Self> {
        Ok(Self { figures: replay.figures(), recordings: replay.each()? })
    }
}

/// One line of JSON.
pub(super) fn json(setting: &Setting, ours: &Replay, peer: Option<&Replay>) -> anyhow::Result<String> {
    let json = Json { setting, side: Side::new(ours)?, peer: peer.map(Side::new).transpose()? };
    Ok(serde_json::to_string(&json)? + "\n")
}

/// For people.
pub(super) fn table(setting: &Setting, ours: &Replay, peer: Option<&Replay>) -> String {
    let figures = ours.figures();
    let mut text = format!(
        "{}\nediting as {}, speed {}{}: {} keys in {} minutes\n\n",
        setting.model,
        setting.editor,
        setting.speed,
        setting.without.as_ref().map(|list| format!(", without {list}")).unwrap_or_default(),
        figures.keys,
        figures.minutes,
    );
    let columns = [Some(figures), peer.map(Replay::figures)];
    if peer.is_some() {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:<30}{:>20}{:>22}", "", "redstart", "peer");
    }
    for (name, value) in ROWS {
        let values: Vec<String> =
            columns.iter().flatten().map(|figures| format!("{:>20}", value(figures))).collect();
        let _ = writeln!(text, "  {name:<30}{}", values.join("  "));
    }
    if ours.0.len() > 1 {
        let _ = writeln!(
            text,
            "\n  {:<20}{:>22}{:>12}{:>18}{:>10}",
            "recording", "first line p50 / p95", "cached", "submit p50 / p95", "accepts"
        );
        for (name, tally) in &ours.0 {
            let figures = tally.figures();
            let _ = writeln!(
                text,
                "  {name:<20}{:>22}{:>12}{:>18}{:>10}",
                two(&figures.first_line_ms),
                percent(figures.cached_prompt_share),
                two(&figures.submit_ms),
                format!("{} of {}", figures.accepts, figures.looks),
            );
        }
    }
    text
}

/// A name and what stands beside it.
type Row = (&'static str, fn(&Figures) -> String);

const ROWS: &[Row] = &[
    ("first line, p50 / p95 / p99", |figures| three(&figures.first_line_ms)),
    ("from the request, p50 / p95", |figures| two(&figures.answer_ms)),
    ("typed through, p50 / p95", |figures| two(&figures.typed_through_ms)),
    ("  in the server, p50 / p95", |figures| two(&figures.typed_through_in_server_ms)),
    ("message to submit, p50 / p95", |figures| two(&figures.submit_ms)),
    ("a pipe and back, p50 / p95", |figures| two(&figures.echo_ms)),
    ("requests / suggestions", |figures| format!("{} / {}", figures.requests, figures.suggestions)),
    ("share typed through", |figures| percent(figures.typed_through_share)),
    ("share joined", |figures| percent(figures.joined_share)),
    ("share made ahead", |figures| percent(figures.ahead_share)),
    ("prompt tokens cached", |figures| percent(figures.cached_prompt_share)),
    ("generated tokens wasted", |figures| percent(figures.wasted_token_share)),
    ("generated per token shown", |figures| number(figures.generated_per_shown_token)),
    ("cancelled: editor / engine", |figures| {
        let engine = figures.cancelled_generations.map_or("-".to_owned(), |count| count.to_string());
        format!("{} / {engine}", figures.cancelled_by_editor)
    }),
    ("processor time", |figures| match figures.cpu_seconds_per_minute {
        Some(seconds) => format!("{seconds} s/min"),
        None => "-".to_owned(),
    }),
    ("accepts / looks", |figures| format!("{} / {}", figures.accepts, figures.looks)),
];

/// The table of `--compare`: a row for each run, with what was switched off in it.
pub(super) fn comparison(setting: &Setting, runs: &[(String, Figures)]) -> String {
    let mut text = format!(
        "{}\nediting as {}, speed {}\n\n  {:<22}{:>22}{:>14}{:>10}{:>10}{:>16}\n",
        setting.model,
        setting.editor,
        setting.speed,
        "without",
        "first line p50 / p95",
        "typed through",
        "cached",
        "wasted",
        "processor s/min"
    );
    for (without, figures) in runs {
        let _ = writeln!(
            text,
            "  {without:<22}{:>22}{:>14}{:>10}{:>10}{:>16}",
            two(&figures.first_line_ms),
            percent(figures.typed_through_share),
            percent(figures.cached_prompt_share),
            percent(figures.wasted_token_share),
            number(figures.cpu_seconds_per_minute),
        );
    }
    text
}

/// The same as JSON: one object with the figures of each run under what was switched off.
pub(super) fn comparison_json(setting: &Setting, runs: &[(String, Figures)]) -> anyhow::Result<String> {
    let runs: Vec<Value> = runs
        .iter()
        .map(|(without, figures)| {
            let mut run = serde_json::to_value(figures)?;
            run["without"] = Value::from(without.as_str());
            Ok(run)
        })
        .collect::<anyhow::Result<_>>()?;
    let mut json = serde_json::to_value(setting)?;
    json["runs"] = Value::from(runs);
    Ok(json.to_string() + "\n")
}

fn number(value: Option<f64>) -> String {
    value.map_or("-".to_owned(), |value| value.to_string())
}

fn percent(share: Option<f64>) -> String {
    share.map_or("-".to_owned(), |share| format!("{:.1} %", 100.0 * share))
}

fn two(of: &Percentiles) -> String {
    of.p50.map_or("-".to_owned(), |_| format!("{} / {} ms", number(of.p50), number(of.p95)))
}

fn three(of: &Percentiles) -> String {
    let all = [of.p50, of.p95, of.p99].map(number);
    of.p50.map_or("-".to_owned(), |_| format!("{} ms", all.join(" / ")))
}
