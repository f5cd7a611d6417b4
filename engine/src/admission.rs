//! Which requests the engine takes in.

use crate::generator::Control;
use crate::request::{Priority, Request, SamplingParams, SubmitError};
use crate::scheduler::SchedulerConfig;

/// What a request must keep to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Admission {
    max_model_len: usize,
    vocab_size: usize,
    max_waiting: usize,
    has_tokenizer: bool,
}

/// A request that waits for its first step.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) priority: Priority,
    pub(crate) supersede_key: Option<u64>,
    pub(crate) control: Control,
}

impl Admission {
    pub(crate) fn new(config: &SchedulerConfig, has_tokenizer: bool) -> Self {
        let SchedulerConfig { max_model_len, vocab_size, max_waiting, .. } = *config;
        Self { max_model_len, vocab_size, max_waiting, has_tokenizer }
    }

    /// Whether `request` can be served, and has a place behind those that are `waiting`.
    pub(crate) fn check(
        &self,
        request: &Request,
        waiting: impl Iterator<Item = Waiting>,
    ) -> Result<(), SubmitError> {
        self.check_request(request)?;
        if waiting.filter(|waiting| waiting.is_before(request)).count() >= self.max_waiting {
            return Err(SubmitError::QueueFull { limit: self.max_waiting });
        }
        Ok(())
    }

    fn check_request(&self, request: &Request) -> Result<(), SubmitError> {
        if request.prompt.is_empty() {
            return Err(SubmitError::EmptyPrompt);
        }
        let limit = self.max_model_len - 1;
        if request.prompt.len() > limit {
            return Err(SubmitError::PromptTooLong { tokens: request.prompt.len(), limit });
        }
        let vocab_size = self.vocab_size;
        if let Some(&id) = request.prompt.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(SubmitError::UnknownToken { id, vocab_size });
        }
        check_params(&request.params)?;
        let uses_text = !request.params.stop.is_empty() || !request.params.begins_with.is_empty();
        if uses_text && !self.has_tokenizer {
            return Err(SubmitError::NoTokenizer);
        }
        Ok(())
    }
}

impl Waiting {
    /// Whether it holds a place before `request`: not when that takes its place, or when nobody wants it any more.
    fn is_before(&self, request: &Request) -> bool {
        let superseded = request.supersede_key.is_some() && self.supersede_key == request.supersede_key;
        self.priority >= request.priority && !superseded && !self.control.is_cancelled()
    }
}

fn check_params(params: &SamplingParams) -> Result<(), SubmitError> {
    let SamplingParams { temperature, top_p, .. } = *params;
    let message = if !(temperature.is_finite() && temperature >= 0.0) {
        format!("temperature must be 0 or more, not {temperature}")
    } else if !(top_p > 0.0 && top_p <= 1.0) {
        format!("top_p must be more than 0 and at most 1, not {top_p}")
    } else if params.stop.iter().any(String::is_empty) {
        "a stop text must not be empty".to_owned()
    } else {
        return Ok(());
    };
    Err(SubmitError::BadParameter(message))
}
