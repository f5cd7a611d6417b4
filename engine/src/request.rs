//! What is asked of the engine and what it says back.

use std::time::Duration;

/// A generation request: a prompt of token ids and how to continue it.
#[derive(Clone, Debug)]
pub struct Request {
    /// Prompt tokens; at least one.
    pub prompt: Vec<u32>,
    /// How to choose tokens and when to stop.
    pub params: SamplingParams,
    /// Who goes first when not everything fits in a step.
    pub priority: Priority,
    /// A newer request with the same key cancels this one. One key per document and purpose.
    pub supersede_key: Option<u64>,
    /// Whether the prompt may be served from cached blocks. Its blocks are cached either way.
    pub read_prefix_cache: bool,
}

impl Request {
    /// A greedy request at typing priority.
    pub fn new(prompt: Vec<u32>, max_tokens: usize) -> Self {
        Self {
            prompt,
            params: SamplingParams { max_tokens, ..SamplingParams::default() },
            priority: Priority::Typing,
            supersede_key: None,
            read_prefix_cache: true,
        }
    }
}

/// Who goes first. A higher class is always scheduled before a lower one, even in mid-prefill.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// Prefilling what may be asked next; gives way to everything.
    WarmUp,
    /// An explicit action such as a review: someone waits, but not between keystrokes.
    Action,
    /// A completion while typing.
    Typing,
}

/// How tokens are chosen and when a generation ends.
#[derive(Clone, Debug)]
pub struct SamplingParams {
    /// 0 means greedy.
    pub temperature: f32,
    /// Keep only the `k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// Same seed, same prompt, same batch shape: same tokens. `None` draws a seed.
    pub seed: Option<u64>,
    /// Most tokens to generate. 0 prefills the prompt into the cache and generates nothing.
    pub max_tokens: usize,
    /// The text that the output must begin with, and does: until it is written, only tokens that agree with
    /// it may be drawn. This is how a prompt can end before a half-typed word ("token healing"): the
    /// model is given the boundary it knows and then held to what was typed. Needs a tokenizer.
    pub begins_with: String,
    /// Texts that end the generation; they are not part of the output. May straddle tokens.
    pub stop: Vec<String>,
    /// Tokens that end the generation, besides the model's own end-of-text tokens.
    pub stop_token_ids: Vec<u32>,
    /// Do not stop at the model's end-of-text tokens (for measurements).
    pub ignore_eos: bool,
    /// Report the log-probabilities of this many likeliest tokens with each token.
    pub top_logprobs: usize,
    /// Report the mean negative log-likelihood of the prompt. Turns off reading of the prefix cache,
    /// since a cached position has no logits.
    pub prompt_nll: bool,
}

impl Default for SamplingParams {
    fn default() -> Self {
        Self {
            temperature: 0.0,
            top_k: 0,
            top_p: 1.0,
            seed: None,
            max_tokens: 256,
            begins_with: String::new(),
            stop: Vec::new(),
            stop_token_ids: Vec::new(),
            ignore_eos: false,
            top_logprobs: 0,
            prompt_nll: false,
        }
    }
}

/// What a running generation sends: at most one `Started`, then any number of `Token`s, then exactly one
/// `Finished`.
#[derive(Clone, Debug)]
pub enum Event {
    /// The first step of this request is planned. Only the prompt's and cached tokens and the time in
    /// the queue are known. For receivers that leave before the end and want to know what it cost.
    Started(Usage),
    /// One more token.
    Token(Token),
    /// The end, with the reason and the account of it.
    Finished(FinishReason, Usage),
}

/// One generated token.
#[derive(Clone, Debug)]
pub struct Token {
    /// Its id.
    pub id: u32,
    /// Text that became certain with it: whole UTF-8 characters, never part of a stop text. Often
    /// empty while a character or a possible stop text is still open. Always empty for a model
    /// without a tokenizer. A token whose text is still open is sent with the next token or at the end,
    /// so that what was held back is not lost when the generation ends there.
    pub text: String,
    /// `(id, natural log-probability)` of the likeliest tokens at this step, best first; empty unless
    /// asked for. Taken before temperature and truncation.
    pub top_logprobs: Vec<(u32, f32)>,
}

/// Why a generation ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FinishReason {
    /// The model's end-of-text token, or one of `stop_token_ids`. It is not part of the output.
    StopToken(u32),
    /// One of the stop texts.
    StopText(String),
    /// `max_tokens` reached.
    MaxTokens,
    /// The sequence filled the model's context.
    ContextFull,
    /// The receiver was dropped, or cancelled it.
    Cancelled,
    /// A newer request with the same key took its place.
    Superseded,
    /// The backend failed; the message is for the user.
    Failed(String),
}

/// The account of one generation.
#[derive(Clone, Debug, Default)]
pub struct Usage {
    /// Tokens in the prompt.
    pub prompt_tokens: usize,
    /// Of those, how many came from the prefix cache.
    pub cached_tokens: usize,
    /// Tokens generated.
    pub generated_tokens: usize,
    /// From submission to the first step that included this request.
    pub queued: Duration,
    /// From submission to the first generated token; zero when there was none.
    pub first_token: Duration,
    /// From submission to the end.
    pub total: Duration,
    /// Mean negative log-likelihood of `prompt[1..]` in nats, when asked for and there was any.
    pub prompt_nll: Option<f64>,
}

/// Why a request was refused at once.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// The waiting queue is at its limit.
    #[error("the engine is busy: {limit} requests are already waiting")]
    QueueFull {
        /// The queue's limit.
        limit: usize,
    },
    /// The prompt leaves no room for one more token.
    #[error("the prompt is {tokens} tokens long, the model takes at most {limit}")]
    PromptTooLong {
        /// Tokens in the prompt.
        tokens: usize,
        /// Most the engine accepts.
        limit: usize,
    },
    /// A prompt must have at least one token.
    #[error("the prompt is empty")]
    EmptyPrompt,
    /// A token id that the model does not have.
    #[error("token {id} is outside the model's vocabulary of {vocab_size}")]
    UnknownToken {
        /// The id.
        id: u32,
        /// Number of ids the model has.
        vocab_size: usize,
    },
    /// A sampling parameter is out of range.
    #[error("{0}")]
    BadParameter(String),
    /// Texts in the parameters need a tokenizer and the model has none.
    #[error(
        "stop texts and a required beginning need a tokenizer, and this model directory has no tokenizer.json"
    )]
    NoTokenizer,
    /// The engine thread has ended.
    #[error("the engine has stopped: {0}")]
    Stopped(String),
}
