//! From a snapshot to a suggestion or a review: context, plugin, tokens, engine, shape.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::model::ModelWatch;
use crate::snapshot::Snapshot;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The editor, because the user typed. Answered only where a suggestion is welcome.
    Automatic,
    /// The user, explicitly.
    Invoked,
}

/// One suggestion: replace `range` (byte offsets, within one line, containing the caret) by `text`.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    /// Bytes of the document that the text replaces.
    pub range: Range<usize>,
    /// The replacement, with the document's line ends.
    pub text: String,
    /// How it came about.
    pub stats: SuggestionStats,
}

/// The account of one suggestion.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SuggestionStats {
    /// From the call to the engine's acceptance of the request.
    pub submit: Duration,
    /// From the call to the end of the first line of the suggestion.
    pub first_line: Duration,
    /// From the call to the answer.
    pub total: Duration,
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Of those, tokens served from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// True when the plugin failed and the built-in prompt was used.
    pub fallback_prompt: bool,
}

/// Why there is no suggestion. Never an error for the editor while typing.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NoSuggestion {
    /// A suggestion is not welcome here; the rule that said so.
    #[error("not asked: {0}")]
    NotHere(String),
    /// The model is not ready.
    #[error("the model is not ready: {0}")]
    NotReady(String),
    /// The model had nothing, or nothing that survived shaping.
    #[error("nothing to suggest")]
    Nothing,
    /// A newer request of the same document took its place.
    #[error("superseded by a newer request")]
    Superseded,
    /// Something failed; for the log.
    #[error("{0}")]
    Failed(String),
}

/// A remark on a function, in absolute lines of the snapshot.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// First line, zero-based.
    pub first_line: usize,
    /// Last line, zero-based, inclusive.
    pub last_line: usize,
    /// How bad.
    pub severity: Severity,
    /// `bug`, `security`, `performance`, `style`, ...
    pub kind: String,
    /// For the user.
    pub message: String,
    /// Text that replaces the whole lines `first_line..=last_line`, without the final line end.
    pub replacement: Option<String>,
}

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// Wrong.
    Error,
    /// Probably wrong.
    Warning,
    /// Worth knowing.
    Information,
    /// A matter of taste.
    Hint,
}

/// Builds prompts and runs them. One per server, shared by all requests.
pub struct Assistant {
    model: ModelWatch,
}

impl Assistant {
    /// An assistant for the model that `model` follows.
    pub fn new(model: ModelWatch) -> Arc<Self> {
        Arc::new(Self { model })
    }

    /// The model's state.
    pub fn model(&self) -> &ModelWatch {
        &self.model
    }

    /// A suggestion at byte offset `caret`. Dropping the future stops the generation; a later call
    /// for the same document supersedes an earlier one.
    ///
    /// # Errors
    /// Why there is none.
    pub async fn complete(
        &self,
        snapshot: &Snapshot,
        caret: usize,
        trigger: Trigger,
    ) -> Result<Suggestion, NoSuggestion> {
        let _ = (snapshot, caret, trigger);
        Err(NoSuggestion::Nothing)
    }

    /// Reviews the function at `function` (byte range, see `redstart_syntax::function`). `progress` is called with
    /// the number of tokens written so far. Dropping the future stops the generation.
    ///
    /// # Errors
    /// A message for the user.
    pub async fn review(
        &self,
        snapshot: &Snapshot,
        function: Range<usize>,
        progress: &(dyn Fn(usize) + Send + Sync),
    ) -> Result<Vec<Finding>, String> {
        let _ = (snapshot, function, progress);
        Ok(Vec::new())
    }
}
