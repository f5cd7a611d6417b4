//! How the demo's keystrokes look on a terminal, and as JSON.

use std::io::{self, IsTerminal};
use std::time::Duration;

use serde_json::{Value, json};

use crate::commands::print;

/// One key and what came of it.
pub(super) struct Keystroke {
    /// The key.
    pub(super) typed: char,
    /// The caret's line up to the caret.
    pub(super) line: String,
    /// The ghost text, where there is one.
    pub(super) ghost: Option<String>,
    /// From the key to the answer's last byte, the edit included, as the editor sees it.
    pub(super) round_trip: Duration,
    /// The server's account of the suggestion; `null` where there is none.
    pub(super) stats: Value,
}

/// The whole session.
#[derive(Default)]
pub(super) struct Outcome {
    pub(super) initialize: Duration,
    pub(super) ready: Duration,
    pub(super) lines: usize,
    pub(super) keystrokes: Vec<Keystroke>,
    pub(super) accepted: usize,
    /// Resident memory of the process with the model in it, where the system tells.
    pub(super) resident_mb: Option<u64>,
}

/// Prints as the session goes.
pub(super) struct Show {
    json: bool,
    dim: (&'static str, &'static str),
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        let colors = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
        // Without colours, brackets tell ghost text from typed text.
        Self { json, dim: if colors { ("\x1b[90m", "\x1b[0m") } else { ("⟦", "⟧") } }
    }

    pub(super) fn heading(&self, after: &str) -> io::Result<()> {
        if self.json {
            return Ok(());
        }
        print(&format!("\nTyping after:  {}\n  first line   prompt  cached\n", after.trim()))
    }

    pub(super) fn keystroke(&self, key: &Keystroke) -> io::Result<()> {
        if self.json {
            return print(&format!("{}\n", key.json()));
        }
        let Some(ghost) = &key.ghost else {
            return print(&format!("{:33}│ {}\n", "", visible(&key.line)));
        };
        let (dim, plain) = self.dim;
        let (first, more) = match ghost.split_once('\n') {
            Some((first, rest)) => (first, format!(" … {} more lines", rest.lines().count())),
            None => (ghost.as_str(), String::new()),
        };
        print(&format!(
            "{:9.1} ms {:5} tok {:5.0} %   │ {}{dim}{first}{plain}{more}\n",
            key.number("firstLineMs"),
            key.number("promptTokens"),
            key.cached_share() * 100.0,
            visible(&key.line),
        ))
    }

    pub(super) fn accepted(&self, item: &Value) -> io::Result<()> {
        if self.json {
            return print(&format!("{}\n", json!({"accepted": item["insertText"]})));
        }
        let text = item["insertText"].as_str().unwrap_or_default();
        let indented: String = text.lines().map(|line| format!("{:33}│ + {line}\n", "")).collect();
        print(&format!("Accepted:\n{indented}"))
    }

    pub(super) fn summary(&self, outcome: &Outcome) -> io::Result<()> {
        let shown: Vec<&Keystroke> = outcome.keystrokes.iter().filter(|key| key.ghost.is_some()).collect();
        let all =
            |value: &dyn Fn(&Keystroke) -> f64| shown.iter().map(|key| value(key)).collect::<Vec<f64>>();
        let first_line = all(&|key| key.number("firstLineMs"));
        let overhead = all(&Keystroke::overhead_ms);
        let submitted = shown.iter().filter(|key| key.stats["source"] == "engine");
        let submit: Vec<f64> = submitted.map(|key| key.number("submitMs")).collect();
        let prompt: f64 = all(&|key| key.number("promptTokens")).iter().sum();
        let cached: f64 = all(&|key| key.number("cachedTokens")).iter().sum();
        let cached_share = if prompt > 0.0 { cached / prompt } else { 0.0 };
        let ms = |duration: Duration| duration.as_secs_f64() * 1e3;
        if self.json {
            let summary = json!({
                "keystrokes": outcome.keystrokes.len(), "suggestions": shown.len(), "accepted": outcome.accepted,
                "lines": outcome.lines, "initialize_ms": ms(outcome.initialize), "ready_ms": ms(outcome.ready),
                "first_line_ms": {"p50": percentile(&first_line, 50), "p95": percentile(&first_line, 95)},
                "submit_ms": {"p50": percentile(&submit, 50), "p95": percentile(&submit, 95)},
                "overhead_ms": {"p50": percentile(&overhead, 50), "p95": percentile(&overhead, 95)},
                "cached_prompt_share": cached_share, "resident_mb": outcome.resident_mb,
            });
            return print(&format!("{summary}\n"));
        }
        print(&format!(
            "\n{} keys typed, {} suggestions, {} accepted, in a file of {} lines; the server's copy of it is right.\n\
             Time to first complete line  p50 {:.1} ms, p95 {:.1} ms\n\
             Request to engine            p50 {:.2} ms, p95 {:.2} ms (window, plugin, tokens)\n\
             Everything but the model     p50 {:.2} ms, p95 {:.2} ms (edit, protocol, prompt, shaping)\n\
             Prompt tokens from cache     {:.0} %\n\
             initialize answered          {:.1} ms after start\n\
             Model ready                  {:.0} ms after start\n\
             Memory                       {}\n",
            outcome.keystrokes.len(),
            shown.len(),
            outcome.accepted,
            outcome.lines,
            percentile(&first_line, 50),
            percentile(&first_line, 95),
            percentile(&submit, 50),
            percentile(&submit, 95),
            percentile(&overhead, 50),
            percentile(&overhead, 95),
            cached_share * 100.0,
            ms(outcome.initialize),
            ms(outcome.ready),
            outcome.resident_mb.map_or("unknown".into(), |mb| format!("{mb} MB resident")),
        ))
    }
}

impl Keystroke {
    fn number(&self, name: &str) -> f64 {
        self.stats[name].as_f64().unwrap_or(0.0)
    }

    fn cached_share(&self) -> f64 {
        let prompt = self.number("promptTokens");
        if prompt > 0.0 { self.number("cachedTokens") / prompt } else { 0.0 }
    }

    /// What passed outside generation: the way to the engine, and the way back.
    fn overhead_ms(&self) -> f64 {
        let generating = self.number("totalMs") - self.number("submitMs");
        self.round_trip.as_secs_f64() * 1e3 - generating
    }

    fn json(&self) -> Value {
        json!({
            "typed": self.typed.to_string(), "line": self.line, "ghost": self.ghost,
            "round_trip_ms": self.round_trip.as_secs_f64() * 1e3, "stats": self.stats,
        })
    }
}

/// A line with its indentation shown as it is and an empty one made visible.
fn visible(line: &str) -> String {
    line.replace('\t', "→")
}

/// The smallest value that `percent` of the values do not exceed; 0 for none.
fn percentile(values: &[f64], percent: usize) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let rank = (sorted.len() * percent).div_ceil(100);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(0.0)
}
