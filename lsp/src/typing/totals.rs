//! What typing cost and brought since the start, over all documents.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use crate::assistant::{Source, SuggestionStats};

/// Sums since the start. `redstart/typingStats` sends them as they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Totals {
    /// Requests for a suggestion while typing.
    pub requests: usize,
    /// Of those, answered with one.
    pub answered: usize,
    /// Answered from an earlier suggestion that what was typed agrees with.
    pub typed_through: usize,
    /// Answered by a generation that was under way when the request came.
    pub joined: usize,
    /// Answered by what was generated before the request.
    pub ahead: usize,
    /// Answered by a generation of their own.
    pub engine: usize,
    /// Tokens of the prompts that requests waited for.
    pub prompt_tokens: usize,
    /// Of those, tokens served from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated, asked for or ahead.
    pub generated_tokens: usize,
    /// Of those, tokens of generations of which nothing was ever shown.
    pub wasted_tokens: usize,
    /// Generations that were ended because what was typed did not agree with them.
    pub cancelled: usize,
}

/// The sums, shared.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ledger(Arc<Mutex<Totals>>);

impl Ledger {
    /// Adds to the sums.
    pub(crate) fn add(&self, add: impl FnOnce(&mut Totals)) {
        add(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub(crate) fn totals(&self) -> Totals {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes an answer.
    pub(crate) fn answered(&self, stats: &SuggestionStats) {
        self.add(|totals| {
            totals.answered += 1;
            match stats.source {
                Source::TypedThrough => totals.typed_through += 1,
                Source::Joined => totals.joined += 1,
                Source::Ahead => totals.ahead += 1,
                Source::Engine => totals.engine += 1,
            }
        });
    }
}

/// The tokens of one generation. What was never shown when the last owner lets go is wasted.
#[derive(Debug)]
pub(crate) struct Account {
    ledger: Ledger,
    tokens: AtomicUsize,
    answered: AtomicBool,
}

impl Account {
    pub(crate) fn new(ledger: &Ledger) -> Arc<Self> {
        Arc::new(Self {
            ledger: ledger.clone(),
            tokens: AtomicUsize::new(0),
            answered: AtomicBool::new(false),
        })
    }

    /// Counts a generated token.
    pub(crate) fn token(&self) {
        self.tokens.fetch_add(1, Ordering::Relaxed);
        self.ledger.add(|totals| totals.generated_tokens += 1);
    }

    /// Notes that some of it was shown.
    pub(crate) fn answered(&self) {
        self.answered.store(true, Ordering::Relaxed);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        if !*self.answered.get_mut() {
            let tokens = *self.tokens.get_mut();
            self.ledger.add(|totals| totals.wasted_tokens += tokens);
        }
    }
}
