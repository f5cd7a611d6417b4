//! The record in figures.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::record::{Event, Shown};

/// Upper ends of the latency plot's bars, in milliseconds; one more bar holds the rest.
pub(super) const LATENCY_EDGES: [f64; 10] = [1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0];

/// What became of the suggestions.
#[derive(Debug, Default)]
pub(super) struct Summary {
    /// By language, the most used first.
    pub(super) languages: Vec<(String, Outcomes)>,
    /// All languages together.
    pub(super) total: Outcomes,
    /// By day (`2026-01-31`, UTC), oldest first; days without suggestions are left out.
    pub(super) days: Vec<(String, Outcomes)>,
    /// By source, the fastest first, after `all` of them.
    pub(super) latencies: Vec<(String, Latencies)>,
    /// How many suggestions came within each of [`LATENCY_EDGES`], and later.
    pub(super) histogram: [usize; LATENCY_EDGES.len() + 1],
    /// Lines of the record that could not be read.
    pub(super) damaged: usize,
}

/// Counts of a group of suggestions.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Outcomes {
    /// Given to the editor.
    pub(super) shown: usize,
    /// Accepted as a whole.
    pub(super) accepted: usize,
    /// Accepted in part and not as a whole.
    pub(super) partly: usize,
    /// Characters that were accepted.
    pub(super) chars: usize,
    survived: f64,
    judged: usize,
}

impl Outcomes {
    /// Share of the shown that were accepted as a whole.
    pub(super) fn acceptance(&self) -> Option<f64> {
        share(self.accepted as f64, self.shown)
    }

    /// Share of accepted text that was left after 30 seconds, where that is known.
    pub(super) fn survived(&self) -> Option<f64> {
        share(self.survived, self.judged)
    }

    fn add(&mut self, suggestion: &Suggestion) {
        self.shown += 1;
        self.accepted += usize::from(suggestion.accepted);
        self.partly += usize::from(!suggestion.accepted && suggestion.partly > 0);
        self.chars += if suggestion.accepted { suggestion.shown.chars } else { suggestion.partly };
        if let Some(share) = suggestion.survived {
            self.survived += f64::from(share);
            self.judged += 1;
        }
    }

    fn json(&self) -> Value {
        json!({
            "shown": self.shown, "accepted": self.accepted, "partially_accepted": self.partly,
            "acceptance": self.acceptance(), "survived_30s": self.survived(), "accepted_chars": self.chars,
        })
    }
}

/// Times of a group of suggestions, in milliseconds, sorted.
#[derive(Debug, Default)]
pub(super) struct Latencies {
    /// From request to answer.
    pub(super) answer: Vec<f64>,
    /// From request to the end of the first line.
    pub(super) first_line: Vec<f64>,
}

impl Latencies {
    fn json(&self) -> Value {
        let percentiles = |values: &[f64]| {
            json!({
                "p50": percentile(values, 50), "p95": percentile(values, 95), "p99": percentile(values, 99),
            })
        };
        json!({
            "count": self.answer.len(),
            "latency_ms": percentiles(&self.answer),
            "first_line_ms": percentiles(&self.first_line),
        })
    }
}

/// One suggestion, from the events that name it.
struct Suggestion {
    shown: Shown,
    accepted: bool,
    partly: usize,
    survived: Option<f32>,
}

impl Summary {
    /// The summary of what was shown at `from` (milliseconds since 1970) or later.
    pub(super) fn of(events: impl Iterator<Item = Event>, from: u64) -> Self {
        let mut suggestions = HashMap::new();
        for event in events {
            note(&mut suggestions, event);
        }
        let mut recent: Vec<&Suggestion> =
            suggestions.values().filter(|one| one.shown.time >= from).collect();
        recent.sort_by_key(|one| one.shown.time);

        let mut summary = Self::default();
        let mut languages: BTreeMap<&str, Outcomes> = BTreeMap::new();
        let mut days: BTreeMap<String, Outcomes> = BTreeMap::new();
        let mut sources: BTreeMap<&str, Latencies> = BTreeMap::new();
        let mut all = Latencies::default();
        for suggestion in recent {
            let shown = &suggestion.shown;
            summary.total.add(suggestion);
            languages.entry(&shown.language).or_default().add(suggestion);
            days.entry(day(shown.time)).or_default().add(suggestion);
            for latencies in [&mut all, sources.entry(&shown.source).or_default()] {
                latencies.answer.push(shown.latency_ms);
                latencies.first_line.push(shown.first_line_ms);
            }
            let bar = LATENCY_EDGES.iter().position(|&edge| shown.latency_ms < edge);
            summary.histogram[bar.unwrap_or(LATENCY_EDGES.len())] += 1;
        }
        summary.languages =
            languages.into_iter().map(|(name, outcomes)| (name.to_owned(), outcomes)).collect();
        summary.languages.sort_by_key(|(_, outcomes)| std::cmp::Reverse(outcomes.shown));
        summary.days = days.into_iter().collect();
        summary.latencies = std::iter::once(("all".to_owned(), all))
            .chain(sources.into_iter().map(|(name, latencies)| (name.to_owned(), latencies)))
            .collect();
        for (_, latencies) in &mut summary.latencies {
            latencies.answer.sort_by(f64::total_cmp);
            latencies.first_line.sort_by(f64::total_cmp);
        }
        // `all` stays where it is.
        summary.latencies[1..].sort_by(|(_, a), (_, b)| {
            let median = |latencies: &Latencies| percentile(&latencies.answer, 50).unwrap_or_default();
            median(a).total_cmp(&median(b))
        });
        summary
    }

    /// How many suggestions there were.
    pub(super) fn shown(&self) -> usize {
        self.total.shown
    }

    pub(super) fn json(&self) -> Value {
        let group = |rows: &[(String, Outcomes)]| -> Value {
            rows.iter().map(|(name, outcomes)| (name.clone(), outcomes.json())).collect()
        };
        let latencies: Value =
            self.latencies.iter().map(|(name, times)| (name.clone(), times.json())).collect();
        json!({
            "total": self.total.json(), "languages": group(&self.languages), "days": group(&self.days),
            "latency_by_source": latencies,
            "latency_histogram": {"upper_ms": LATENCY_EDGES, "counts": self.histogram},
            "damaged_lines": self.damaged,
        })
    }
}

/// Adds what `event` says of its suggestion. One that is not known was shown before the record begins.
fn note(suggestions: &mut HashMap<String, Suggestion>, event: Event) {
    match event {
        Event::Shown(shown) => {
            let new = Suggestion { shown, accepted: false, partly: 0, survived: None };
            suggestions.insert(new.shown.id.clone(), new);
        }
        Event::Accepted { id } => {
            if let Some(suggestion) = suggestions.get_mut(&id) {
                suggestion.accepted = true;
            }
        }
        Event::PartiallyAccepted { id, chars } => {
            if let Some(suggestion) = suggestions.get_mut(&id) {
                suggestion.partly = suggestion.partly.max(chars);
            }
        }
        Event::Survived { id, share } => {
            if let Some(suggestion) = suggestions.get_mut(&id) {
                suggestion.survived = Some(share.clamp(0.0, 1.0));
            }
        }
        // What was not accepted was rejected or is forgotten; the figures do not tell them apart.
        Event::Rejected { .. } => {}
    }
}

fn share(part: f64, all: usize) -> Option<f64> {
    (all > 0).then(|| part / all as f64)
}

/// The smallest of the sorted `values` that `percent` of them do not exceed; `None` for none.
pub(super) fn percentile(values: &[f64], percent: usize) -> Option<f64> {
    let rank = (values.len() * percent).div_ceil(100);
    values.get(rank.saturating_sub(1)).copied()
}

/// The day of a time in milliseconds since 1970, in UTC: `2026-01-31`.
fn day(time: u64) -> String {
    const LAST: u64 = 253_402_300_799_000; // The end of the year 9999, which is the last that can be written.
    let time = SystemTime::UNIX_EPOCH + Duration::from_millis(time.min(LAST));
    humantime::format_rfc3339_seconds(time).to_string()[..10].to_owned()
}
