//! `--load`: whether an edit ever waits for a generation.

use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::bail;
use serde::Serialize;
use serde_json::{Value, json};
use tokio::process::ChildStdin;
use tokio::task::JoinSet;

use super::buffer::Buffer;
use super::server::Server;
use super::tally::Percentiles;
use crate::client::Connection;

/// Edits that are timed.
pub(super) const EDITS: usize = 2000;
/// Between them: faster than anyone types.
const PAUSE: Duration = Duration::from_millis(5);
/// Documents that ask for suggestions all the time.
const BUSY_DOCUMENTS: usize = 4;
/// Upper bounds of the histogram's rows, in milliseconds.
const BOUNDS: [f64; 11] = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, f64::INFINITY];
/// Characters of the longest bar.
const BAR: usize = 40;
/// The row below an edit's time.
const WAIT: &str = "  of it, wait for a processor";

const BUSY_TEXT: &str = "def mean(values):\n    total = 0\n    for value in values:\n        total += value\n    \
                         return total / len(values)\n\n\ndef median(values):\n    ordered = sorted(values)\n    ";

/// From an edit to the server's word that it was applied, in milliseconds.
#[derive(Serialize)]
pub(super) struct LoadReport {
    model: String,
    edits: usize,
    /// With nothing else going on.
    idle_edit_ms: Percentiles,
    /// Of that, how long the server's thread waited for a processor. Without values where the system does not tell.
    idle_wait_ms: Percentiles,
    /// While several documents ask for suggestions all the time.
    edit_ms: Percentiles,
    /// Of that, as above.
    wait_ms: Percentiles,
    /// Suggestions asked for, and requests of these answered with one or with none, during the edits under load.
    asked: usize,
    answered: usize,
    reviews: usize,
    /// Processor time of the server over the time of the edits under load.
    cpu_share: Option<f64>,
    /// How many edits took at most so many milliseconds, and more than the row before.
    histogram: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// `null` is no bound.
    at_most_ms: Option<f64>,
    idle: usize,
    load: usize,
}

impl LoadReport {
    /// One line of JSON.
    pub(super) fn json(&self) -> anyhow::Result<String> {
        Ok(serde_json::to_string(self)? + "\n")
    }

    /// For people.
    pub(super) fn table(&self) -> String {
        let show = |value: Option<f64>| value.map_or("-".to_owned(), |value| value.to_string());
        let mut text = format!(
            "{}\n{} edits, from sending one to the server's word that it was applied\n\n",
            self.model, self.edits
        );
        // Writing to a String cannot fail.
        let _ = writeln!(text, "  {:<30}{:>9}{:>9}{:>9}{:>9}", "", "p50", "p95", "p99", "max");
        for (name, of) in [
            ("idle", &self.idle_edit_ms),
            (WAIT, &self.idle_wait_ms),
            ("under load", &self.edit_ms),
            (WAIT, &self.wait_ms),
        ] {
            let [p50, p95, p99, max] = [of.p50, of.p95, of.p99, of.max].map(show);
            let _ = writeln!(text, "  {name:<30}{p50:>9}{p95:>9}{p99:>9}{max:>9}  ms");
        }
        let _ = writeln!(
            text,
            "\n  load: {} suggestions asked for, {} of these requests answered, {} reviews{}\n\n  edits under load",
            self.asked,
            self.answered,
            self.reviews,
            self.cpu_share.map(|share| format!(", {share} processors busy")).unwrap_or_default(),
        );
        let most = self.histogram.iter().map(|row| row.load).max().unwrap_or_default().max(1);
        for row in &self.histogram {
            let bound = row.at_most_ms.map_or("   longer".to_owned(), |bound| format!("<= {bound:>6}"));
            let bar = "#".repeat((row.load * BAR).div_ceil(most));
            let _ = writeln!(text, "  {bound} ms {:>6}  {bar}", row.load);
        }
        text
    }
}

/// Times edits without and with load.
pub(super) async fn run(server: &Server, on_edit: impl Fn()) -> anyhow::Result<LoadReport> {
    let idle = time_edits(server, "idle.py", &on_edit).await?;

    let counts = Arc::new(Counts::default());
    let mut load = JoinSet::new();
    for number in 0..BUSY_DOCUMENTS {
        let (connection, uri) = (Arc::clone(&server.connection), server.uri(&format!("busy{number}.py")));
        load.spawn(keep_asking(connection, uri, Arc::clone(&counts)));
    }
    if server.reviews {
        let (connection, uri) = (Arc::clone(&server.connection), server.uri("busy0.py"));
        load.spawn(keep_reviewing(connection, uri, Arc::clone(&counts)));
    }
    // Whoever opens several documents at once waits for that, and for the first prompts; here the load is what counts.
    while counts.asked.load(Ordering::Relaxed) < BUSY_DOCUMENTS {
        // Until it is told to stop the load ends with an error only, and then would never be full.
        if let Some(ended) = load.try_join_next() {
            ended??;
        }
        tokio::time::sleep(PAUSE).await;
    }
    server.connection.request("redstart/status", Value::Null).await?;
    let (started, cpu) = (Instant::now(), server.cpu_seconds());
    let busy = time_edits(server, "typed.py", &on_edit).await?;
    let seconds = started.elapsed().as_secs_f64();
    let cpu_share =
        server.cpu_seconds().zip(cpu).map(|(now, then)| super::super::rounded((now - then) / seconds));
    counts.stop.store(true, Ordering::Relaxed);
    while let Some(ended) = load.join_next().await {
        ended??;
    }
    let answered = counts.answered.load(Ordering::Relaxed);
    if answered == 0 {
        bail!("no suggestion was answered during the edits: there was no load");
    }
    Ok(LoadReport {
        model: server.model.clone(),
        edits: EDITS,
        idle_edit_ms: Percentiles::of(&idle.edits),
        idle_wait_ms: Percentiles::of(&idle.waits),
        edit_ms: Percentiles::of(&busy.edits),
        wait_ms: Percentiles::of(&busy.waits),
        asked: counts.asked.load(Ordering::Relaxed),
        answered,
        reviews: counts.reviews.load(Ordering::Relaxed),
        cpu_share,
        histogram: histogram(&idle.edits, &busy.edits),
    })
}

#[derive(Default)]
struct Counts {
    stop: AtomicBool,
    asked: AtomicUsize,
    answered: AtomicUsize,
    reviews: AtomicUsize,
}

/// Milliseconds of each edit.
#[derive(Default)]
struct Times {
    edits: Vec<f64>,
    /// In which the server's thread waited for a processor; empty where the system does not tell.
    waits: Vec<f64>,
}

/// How long each edit of a new document took. The server takes messages in their order, so the
/// answer to a request sent behind an edit shows that the edit was applied.
async fn time_edits(server: &Server, file: &str, on_edit: &impl Fn()) -> anyhow::Result<Times> {
    let (connection, uri) = (&server.connection, server.uri(file));
    open(connection, &uri, "").await?;
    let mut buffer = Buffer::new("", "");
    let mut times = Times::default();
    for number in 0..EDITS {
        let text = if number % 20 == 19 { "\n" } else { "x" };
        let change = buffer.insert(text);
        let waited = server.processor_wait_ms();
        let sent = Instant::now();
        let document = json!({"uri": uri, "version": number + 2});
        let changed = json!({"textDocument": document, "contentChanges": [change.event]});
        connection.notify("textDocument/didChange", changed).await?;
        let answer = connection.ask("redstart/status", Value::Null).await?.answer().await;
        answer.result?;
        times.edits.push(answer.received.saturating_duration_since(sent).as_secs_f64() * 1e3);
        times.waits.extend(server.processor_wait_ms().zip(waited).map(|(now, then)| now - then));
        on_edit();
        tokio::time::sleep(PAUSE).await;
    }
    let theirs = connection.request("redstart/viewFileText", json!({"uri": uri})).await?;
    if theirs["text"].as_str() != Some(&buffer.own_text()) {
        bail!("the server's copy of the edited file is not the editor's");
    }
    Ok(times)
}

async fn open(connection: &Connection<ChildStdin>, uri: &str, text: &str) -> anyhow::Result<()> {
    let document = json!({"uri": uri, "languageId": "python", "version": 1, "text": text});
    Ok(connection.notify("textDocument/didOpen", json!({"textDocument": document})).await?)
}

/// Edits a document and asks for a suggestion in it, again as soon as the answer is there.
async fn keep_asking(
    connection: Arc<Connection<ChildStdin>>,
    uri: String,
    counts: Arc<Counts>,
) -> anyhow::Result<()> {
    open(&connection, &uri, BUSY_TEXT).await?;
    let mut buffer = Buffer::new(BUSY_TEXT, "");
    for version in 2.. {
        if counts.stop.load(Ordering::Relaxed) {
            break;
        }
        // Another text every time, so that nothing is known of it.
        let change = buffer.insert(&format!("middle_{version} = len(ordered) // 2\n    "));
        let document = json!({"uri": uri, "version": version});
        let changed = json!({"textDocument": document, "contentChanges": [change.event]});
        connection.notify("textDocument/didChange", changed).await?;
        let wanted = json!({
            "textDocument": {"uri": uri},
            "position": buffer.caret_position(),
            "context": {"triggerKind": 1},
        });
        counts.asked.fetch_add(1, Ordering::Relaxed);
        connection.request("textDocument/inlineCompletion", wanted).await?;
        counts.answered.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

async fn keep_reviewing(
    connection: Arc<Connection<ChildStdin>>,
    uri: String,
    counts: Arc<Counts>,
) -> anyhow::Result<()> {
    while !counts.stop.load(Ordering::Relaxed) {
        let review = json!({"command": "redstart.review", "arguments": [uri, 0]});
        // An edit ends a review with an error; it was load all the same.
        let _ = connection.request("workspace/executeCommand", review).await;
        counts.reviews.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}

fn histogram(idle: &[f64], load: &[f64]) -> Vec<Row> {
    let mut lower = f64::NEG_INFINITY;
    let mut rows = Vec::new();
    for bound in BOUNDS {
        let within = |times: &[f64]| times.iter().filter(|time| **time > lower && **time <= bound).count();
        let at_most_ms = bound.is_finite().then_some(bound);
        rows.push(Row { at_most_ms, idle: within(idle), load: within(load) });
        lower = bound;
    }
    rows
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_edit_is_in_one_row() {
        let rows = histogram(&[0.0, 0.1], &[0.1, 0.11, 1000.0]);
        let load: Vec<usize> = rows.iter().map(|row| row.load).collect();
        assert_eq!((load[0], load[1], load[10]), (1, 1, 1));
        assert_eq!(load.iter().sum::<usize>(), 3);
        assert_eq!(rows[0].idle, 2);
    }
}
