//! What a replay counts, and the figures that come of it.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::super::rounded;

/// Where a suggestion came from.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub(super) enum Source {
    /// The rest of the suggestion before it.
    TypedThrough,
    /// A generation that was under way for an earlier request.
    Joined,
    /// A generation made before it was asked for.
    Ahead,
    /// A generation of its own.
    #[default]
    Engine,
}

/// The answer to `redstart/lastSuggestion`, as far as it is used here. A peer fills in what it knows.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Account {
    pub(super) source: Source,
    /// Milliseconds from the message to the engine's acceptance of the request.
    pub(super) submit_ms: Option<f64>,
    /// Milliseconds from the message to the suggestion.
    pub(super) total_ms: Option<f64>,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generated_tokens: u64,
}

/// The answer to `redstart/typingStats`: totals since the server's start.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub(super) struct Totals {
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) generated_tokens: u64,
    pub(super) wasted_tokens: u64,
    pub(super) cancelled: u64,
}

impl Totals {
    /// What came since `earlier`.
    pub(super) fn since(self, earlier: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens - earlier.prompt_tokens,
            cached_tokens: self.cached_tokens - earlier.cached_tokens,
            generated_tokens: self.generated_tokens - earlier.generated_tokens,
            wasted_tokens: self.wasted_tokens - earlier.wasted_tokens,
            cancelled: self.cancelled - earlier.cancelled,
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            cached_tokens: self.cached_tokens + other.cached_tokens,
            generated_tokens: self.generated_tokens + other.generated_tokens,
            wasted_tokens: self.wasted_tokens + other.wasted_tokens,
            cancelled: self.cancelled + other.cancelled,
        }
    }
}

/// What is counted during a replay. Times are in milliseconds.
#[derive(Clone, Debug, Default)]
pub(super) struct Tally {
    /// Time spent typing, at the recorded speed.
    pub(super) typing: Duration,
    pub(super) keys: usize,
    pub(super) requests: usize,
    pub(super) cancelled_by_editor: usize,
    /// Answers without a suggestion, those to cancelled and superseded requests included.
    pub(super) nothing: usize,
    pub(super) errors: Vec<String>,
    /// Times that the person stopped at the suggestion.
    pub(super) looks: usize,
    /// Of those, times that it was what they wanted.
    pub(super) accepts: usize,
    pub(super) accepted_characters: usize,
    /// From the key to the suggestion, for each suggestion.
    first_line: Vec<f64>,
    /// From the request to the suggestion.
    answer: Vec<f64>,
    /// From the key to the suggestion, for those typed through.
    typed_through: Vec<f64>,
    /// From the request's arrival to the suggestion, for those typed through.
    in_server: Vec<f64>,
    joined: usize,
    ahead: usize,
    submit: Vec<f64>,
    /// Through a pipe and back, before each key.
    echo: Vec<f64>,
    /// Sums over the suggestions received.
    received: Totals,
    /// What the server itself counted, where it does.
    pub(super) server: Option<Totals>,
    /// Processor time that the server took, where the system tells.
    pub(super) cpu_seconds: Option<f64>,
}

impl Tally {
    /// Counts a suggestion.
    pub(super) fn answer(&mut self, since_key: f64, since_request: f64, account: Option<Account>) {
        self.first_line.push(since_key);
        self.answer.push(since_request);
        let Some(account) = account else { return };
        match account.source {
            Source::TypedThrough => {
                self.typed_through.push(since_key);
                self.in_server.extend(account.total_ms);
                return;
            }
            Source::Joined => self.joined += 1,
            Source::Ahead => self.ahead += 1,
            Source::Engine => self.submit.extend(account.submit_ms),
        }
        self.received.prompt_tokens += account.prompt_tokens;
        self.received.cached_tokens += account.cached_tokens;
        self.received.generated_tokens += account.generated_tokens;
    }

    /// Counts what a message through a pipe and back took.
    pub(super) fn echo(&mut self, round_trip: Duration) {
        self.echo.push(round_trip.as_secs_f64() * 1e3);
    }

    /// Adds another replay of the same kind.
    pub(super) fn add(&mut self, other: &Self) {
        self.typing += other.typing;
        self.keys += other.keys;
        self.requests += other.requests;
        self.cancelled_by_editor += other.cancelled_by_editor;
        self.nothing += other.nothing;
        self.errors.extend_from_slice(&other.errors);
        self.looks += other.looks;
        self.accepts += other.accepts;
        self.accepted_characters += other.accepted_characters;
        self.first_line.extend_from_slice(&other.first_line);
        self.answer.extend_from_slice(&other.answer);
        self.typed_through.extend_from_slice(&other.typed_through);
        self.in_server.extend_from_slice(&other.in_server);
        self.joined += other.joined;
        self.ahead += other.ahead;
        self.submit.extend_from_slice(&other.submit);
        self.echo.extend_from_slice(&other.echo);
        self.received = self.received.plus(other.received);
        self.server = sum(self.server, other.server, Totals::plus);
        self.cpu_seconds = sum(self.cpu_seconds, other.cpu_seconds, |one, other| one + other);
    }

    /// The figures.
    pub(super) fn figures(&self) -> Figures {
        let suggestions = self.first_line.len();
        let of_suggestions = |count: usize| share(count as u64, suggestions as u64);
        // The server also counts the prompts of answers that came to nothing.
        let prompts = self.server.unwrap_or(self.received);
        let minutes = self.typing.as_secs_f64() / 60.0;
        Figures {
            minutes: rounded(minutes),
            keys: self.keys,
            requests: self.requests,
            suggestions,
            nothing: self.nothing,
            errors: self.errors.len(),
            first_line_ms: Percentiles::of(&self.first_line),
            answer_ms: Percentiles::of(&self.answer),
            typed_through_ms: Percentiles::of(&self.typed_through),
            typed_through_in_server_ms: Percentiles::of(&self.in_server),
            submit_ms: Percentiles::of(&self.submit),
            echo_ms: Percentiles::of(&self.echo),
            typed_through_share: of_suggestions(self.typed_through.len()),
            joined_share: of_suggestions(self.joined),
            ahead_share: of_suggestions(self.ahead),
            cached_prompt_share: share(prompts.cached_tokens, prompts.prompt_tokens),
            wasted_token_share: self
                .server
                .and_then(|totals| share(totals.wasted_tokens, totals.generated_tokens)),
            generated_per_shown_token: self
                .server
                .filter(|_| self.received.generated_tokens > 0)
                .map(|totals| totals.generated_tokens as f64 / self.received.generated_tokens as f64)
                .map(rounded),
            cancelled_by_editor: self.cancelled_by_editor,
            cancelled_generations: self.server.map(|totals| totals.cancelled),
            cpu_seconds_per_minute: self
                .cpu_seconds
                .filter(|_| minutes > 0.0)
                .map(|seconds| rounded(seconds / minutes)),
            looks: self.looks,
            accepts: self.accepts,
            accepted_characters: self.accepted_characters,
        }
    }
}

fn sum<T>(one: Option<T>, other: Option<T>, plus: impl Fn(T, T) -> T) -> Option<T> {
    match (one, other) {
        (Some(one), Some(other)) => Some(plus(one, other)),
        (one, other) => one.or(other),
    }
}

/// `None` of nothing.
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| rounded(part as f64 / whole as f64))
}

/// What is reported. Shares are of 1; `null` is what there was nothing to measure of, or what the server or
/// the system does not tell.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    pub(super) minutes: f64,
    pub(super) keys: usize,
    pub(super) requests: usize,
    pub(super) suggestions: usize,
    pub(super) nothing: usize,
    pub(super) errors: usize,
    pub(super) first_line_ms: Percentiles,
    pub(super) answer_ms: Percentiles,
    pub(super) typed_through_ms: Percentiles,
    pub(super) typed_through_in_server_ms: Percentiles,
    pub(super) submit_ms: Percentiles,
    pub(super) echo_ms: Percentiles,
    pub(super) typed_through_share: Option<f64>,
    pub(super) joined_share: Option<f64>,
    pub(super) ahead_share: Option<f64>,
    pub(super) cached_prompt_share: Option<f64>,
    pub(super) wasted_token_share: Option<f64>,
    pub(super) generated_per_shown_token: Option<f64>,
    pub(super) cancelled_by_editor: usize,
    pub(super) cancelled_generations: Option<u64>,
    pub(super) cpu_seconds_per_minute: Option<f64>,
    pub(super) looks: usize,
    pub(super) accepts: usize,
    pub(super) accepted_characters: usize,
}

/// Percentiles by nearest rank, rounded; `null` of no values.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50: Option<f64>,
    pub(super) p95: Option<f64>,
    pub(super) p99: Option<f64>,
    pub(super) max: Option<f64>,
}

impl Percentiles {
    pub(super) fn of(values: &[f64]) -> Self {
        let mut sorted = values.to_vec();
        sorted.sort_by(f64::total_cmp);
        let rank = |share: f64| {
            let rank = (share * sorted.len() as f64).ceil() as usize;
            sorted.get(rank.saturating_sub(1)).copied().map(rounded)
        };
        Self { p50: rank(0.5), p95: rank(0.95), p99: rank(0.99), max: rank(1.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_that_were_measured() {
        let values: Vec<f64> = (1..=100).rev().map(f64::from).collect();
        let of = Percentiles::of(&values);
        assert_eq!((of.p50, of.p95, of.p99, of.max), (Some(50.0), Some(95.0), Some(99.0), Some(100.0)));
        assert_eq!(Percentiles::of(&[7.0]).p99, Some(7.0));
        assert_eq!(Percentiles::of(&[]).p50, None);
    }

    #[test]
    fn shares_count_by_where_the_suggestions_came_from() {
        let mut tally = Tally::default();
        let account = |source, prompt_tokens, cached_tokens| Account {
            source,
            submit_ms: Some(0.5),
            total_ms: Some(0.1),
            prompt_tokens,
            cached_tokens,
            generated_tokens: 10,
        };
        tally.answer(0.4, 0.3, Some(account(Source::TypedThrough, 0, 0)));
        tally.answer(5.0, 4.0, Some(account(Source::Engine, 100, 80)));
        tally.answer(3.0, 2.0, Some(account(Source::Joined, 0, 0)));
        tally.answer(1.0, 0.9, Some(account(Source::Ahead, 100, 100)));
        let figures = tally.figures();
        assert_eq!((figures.typed_through_share, figures.joined_share), (Some(0.25), Some(0.25)));
        assert_eq!((figures.typed_through_ms.p50, figures.submit_ms.p50), (Some(0.4), Some(0.5)));
        assert_eq!(figures.typed_through_in_server_ms.max, Some(0.1), "of those typed through only");
        assert_eq!(figures.cached_prompt_share, Some(0.9), "of the received, as the server counts nothing");
        assert_eq!(figures.wasted_token_share, None);

        let counted = Totals { generated_tokens: 60, wasted_tokens: 15, cancelled: 2, ..Totals::default() };
        let mut twice = Tally { server: Some(counted), ..tally.clone() };
        twice.add(&Tally { server: Some(counted), ..Tally::default() });
        let figures = twice.figures();
        assert_eq!(figures.wasted_token_share, Some(0.25));
        assert_eq!(figures.generated_per_shown_token, Some(4.0), "120 for the 30 of three generations");
        assert_eq!(figures.cancelled_generations, Some(4));
    }
}
