//! From a snapshot to a suggestion or a review: context, plugin, tokens, engine, shape.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use redstart_engine::request::{Priority, Request, SamplingParams};
use redstart_plugins::prompt::{Model, Prompt};
use tokio::sync::watch;

pub use redstart_syntax::trigger::Trigger;

use crate::model::{LoadedModel, ModelState, ModelWatch};
use crate::power;
use crate::readers::Readers;
use crate::snapshot::Snapshot;
use crate::typing::Typing;
use crate::typing::options::{Ahead, TypingOptions};
use crate::typing::pace::EngineSpeed;
use crate::typing::totals::{Ledger, Totals};
use crate::window::BYTES_PER_TOKEN;

/// One suggestion: replace `range` (byte offsets, within one line, containing the caret) by `text`.
#[derive(Clone, Debug, PartialEq)]
pub struct Suggestion {
    /// Names it in what the editor says of it later.
    pub id: u64,
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
    /// From the call to the engine's acceptance of the request, without the wait for an engine that is slower than the
    /// typing.
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
    /// Geometric mean of the probabilities that the model gave the first line's tokens.
    pub confidence: f32,
    /// True when the plugin failed and the built-in prompt was used.
    pub fallback_prompt: bool,
    /// Where it came from. Tokens and the time of submission are counted only where a prompt was waited for.
    pub source: Source,
}

/// Where a suggestion came from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Source {
    /// The rest of an earlier suggestion that agrees with what was typed since.
    TypedThrough,
    /// A generation that was under way when it was asked for.
    Joined,
    /// What was generated before it was asked for.
    Ahead,
    /// A generation of its own.
    #[default]
    Engine,
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
    /// The model had something, with too little confidence to show it unasked.
    #[error("the model was unsure")]
    Unsure,
    /// The same was shown here and turned down.
    #[error("the same was turned down here")]
    Rejected,
    /// A newer request of the same document took its place, or the text was edited.
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
    reviewer: ModelWatch,
    pub(crate) options: TypingOptions,
    ahead: Mutex<Ahead>,
    pub(crate) ledger: Ledger,
    pub(crate) speed: Arc<Mutex<EngineSpeed>>,
    pub(crate) readers: Readers,
}

impl Assistant {
    /// An assistant for the model that `model` follows.
    pub fn new(model: ModelWatch) -> Arc<Self> {
        Self::with_reviewer(model, watch::channel(ModelState::Unset).1, TypingOptions::default())
    }

    /// An assistant with a second model for reviews; as long as that is [unset](ModelState::Unset), the first
    /// does both.
    pub fn with_reviewer(model: ModelWatch, reviewer: ModelWatch, options: TypingOptions) -> Arc<Self> {
        let (ahead, ledger, speed) = Default::default();
        Arc::new(Self { model, reviewer, options, ahead, ledger, speed, readers: Readers::start() })
    }

    /// Takes over the setting of when to work ahead.
    pub fn set_ahead(&self, ahead: Ahead) {
        *self.ahead.lock().unwrap_or_else(PoisonError::into_inner) = ahead;
    }

    /// Whether to work ahead of requests now.
    pub(crate) fn works_ahead(&self) -> bool {
        let ahead = *self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        self.options.ahead
            && match ahead {
                Ahead::On => true,
                Ahead::PluggedIn => !power::on_battery(),
                Ahead::Off => false,
            }
    }

    /// Whether prompts may have text from elsewhere.
    pub(crate) fn uses_context(&self) -> bool {
        self.options.context
    }

    /// Most bytes of text from elsewhere in a prompt of the model; none as long as it is not there.
    pub(crate) fn context_bytes(&self) -> usize {
        let tokens = self.ready().map_or(0, |model| model.hints.context_tokens);
        tokens * BYTES_PER_TOKEN
    }

    /// The bytes of a document that are in a prompt for `caret` already.
    pub(crate) fn window(&self, typing: &Typing, snapshot: &Snapshot, caret: usize) -> Range<usize> {
        let tokens = self.ready().map_or(0, |model| model.hints.window_tokens);
        let window = typing.windows().place(&snapshot.text, caret, tokens);
        caret.saturating_sub(window.prefix.len())..caret + window.suffix.len()
    }

    /// What typing cost and brought since the start.
    pub fn totals(&self) -> Totals {
        self.ledger.totals()
    }

    pub(crate) fn engine_speed(&self) -> EngineSpeed {
        *self.speed.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The model's state.
    pub fn model(&self) -> &ModelWatch {
        &self.model
    }

    /// The second model's state.
    pub fn reviewer(&self) -> &ModelWatch {
        &self.reviewer
    }

    /// The model, when it can serve.
    pub(crate) fn ready(&self) -> Result<Arc<LoadedModel>, String> {
        self.model.borrow().ready()
    }

    /// The model that reviews, when there is one that does.
    ///
    /// # Errors
    /// Why there is none, in words for the user.
    pub fn ready_to_review(&self) -> Result<Arc<LoadedModel>, String> {
        let model = match &*self.reviewer.borrow() {
            ModelState::Unset => self.ready(),
            state => state.ready(),
        }?;
        model.can_review()?;
        Ok(model)
    }

    /// What the user should be told and has not been: each plugin's first failure.
    pub fn take_notices(&self) -> Vec<String> {
        let models = [self.model.borrow().ready(), self.reviewer.borrow().ready()];
        models.into_iter().flatten().flat_map(|model| model.plugins.take_notices()).collect()
    }
}

/// What a prompt plugin is told about the model.
pub(crate) fn plugin_model(model: &LoadedModel) -> Model {
    let info = model.generator.model();
    let fact = |name: &str, value: String| (name.to_owned(), value);
    Model {
        name: info.name.clone(),
        context_tokens: u32::try_from(info.max_model_len).unwrap_or(u32::MAX),
        control_tokens: info
            .tokenizer
            .as_ref()
            .map(|tokenizer| tokenizer.control_tokens())
            .unwrap_or_default(),
        chat: model.chat.clone().ok(),
        facts: vec![
            fact("fim-layout", model.hints.fim_layout.clone()),
            fact("window-tokens", model.hints.window_tokens.to_string()),
        ],
    }
}

/// A greedy request for `prompt`. A newer action on the same document supersedes an older one. Suggestions do
/// not: they reach the engine in any order, and the server drops all but the newest.
pub(crate) fn engine_request(
    model: &LoadedModel,
    snapshot: &Snapshot,
    prompt: &Prompt,
    tokens: Vec<u32>,
    priority: Priority,
) -> Request {
    let tokenizer = model.generator.model().tokenizer.as_deref();
    let control = |name: &String| tokenizer?.control_token(name);
    let mut hasher = DefaultHasher::new();
    snapshot.uri.hash(&mut hasher);
    Request {
        prompt: tokens,
        params: SamplingParams {
            max_tokens: prompt.max_tokens as usize,
            stop: prompt.stop.clone(),
            stop_token_ids: prompt.stop_control.iter().filter_map(control).collect(),
            ..SamplingParams::default()
        },
        priority,
        supersede_key: (priority == Priority::Action).then(|| hasher.finish()),
        read_prefix_cache: true,
    }
}
