//! The logic behind `redstart inspect`: log-probabilities and greedy tokens for prompts of token ids.

use std::io::{self, BufRead, Write};

use serde::{Deserialize, Serialize};

use crate::generator::{Generation, Generator};
use crate::request::{Event, FinishReason, Priority, Request, SamplingParams, SubmitError, Usage};

/// One line of input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InspectRequest {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// How many of the likeliest next tokens to report.
    #[serde(default)]
    pub top: usize,
    /// How many tokens to generate greedily. End-of-text tokens do not end it, but appear in it.
    #[serde(default)]
    pub greedy: usize,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InspectAnswer {
    /// `[id, natural log-probability]` of the likeliest next tokens, best first.
    pub next: Vec<(u32, f32)>,
    /// Mean negative log-likelihood of `prompt[1..]` in nats; `null` for a prompt of one token.
    pub prompt_nll: Option<f64>,
    /// Greedily generated tokens: as many as asked for, fewer where the context was full.
    pub greedy: Vec<u32>,
    /// Prompt tokens that the greedy generation took from the prefix cache.
    pub cached: usize,
}

/// Why a line has no answer.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The line is not a request.
    #[error("not a request: {0}")]
    Malformed(#[from] serde_json::Error),
    /// The engine refused it.
    #[error(transparent)]
    Refused(#[from] SubmitError),
    /// The generation ended early.
    #[error("the generation ended early: {0}")]
    EndedEarly(String),
}

/// How many lines were answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectSummary {
    /// Lines with an answer.
    pub answered: usize,
    /// Lines with an error.
    pub failed: usize,
}

/// Reads [`InspectRequest`]s, one JSON object a line, and writes an [`InspectAnswer`] a line, in order.
/// A line that has no answer gives `{"line": n, "error": "..."}` in its place, and the next is read.
/// Empty lines are skipped. Up to `batch` requests run at once; the engine's queue must hold as many.
///
/// # Errors
/// When reading or writing fails.
pub fn inspect_lines(
    generator: &dyn Generator,
    input: impl BufRead,
    mut output: impl Write,
    batch: usize,
) -> io::Result<InspectSummary> {
    let mut summary = InspectSummary::default();
    let mut numbers = Vec::new();
    let mut requests = Vec::new();
    let mut lines = (1usize..).zip(input.split(b'\n'));
    loop {
        let line = lines.next();
        let at_end = line.is_none();
        if let Some((number, line)) = line {
            let line = line?;
            if line.trim_ascii().is_empty() {
                continue;
            }
            numbers.push(number);
            requests.push(serde_json::from_slice(&line).map_err(InspectError::from));
        }
        if at_end || requests.len() >= batch.max(1) {
            let answers = inspect_batch(generator, std::mem::take(&mut requests));
            for (number, answer) in std::mem::take(&mut numbers).into_iter().zip(answers) {
                write_answer(&mut output, number, answer, &mut summary)?;
            }
            output.flush()?;
        }
        if at_end {
            return Ok(summary);
        }
    }
}

fn write_answer(
    output: &mut impl Write,
    number: usize,
    answer: Result<InspectAnswer, InspectError>,
    summary: &mut InspectSummary,
) -> io::Result<()> {
    match answer {
        Ok(answer) => {
            summary.answered += 1;
            serde_json::to_writer(&mut *output, &answer)?;
        }
        Err(error) => {
            summary.failed += 1;
            let line = serde_json::json!({ "line": number, "error": error.to_string() });
            serde_json::to_writer(&mut *output, &line)?;
        }
    }
    output.write_all(b"\n")
}

/// Answers requests that run at once: first all generations, then all prompt likelihoods (which read
/// nothing from the prefix cache, so that every position has logits).
pub fn inspect_batch(
    generator: &dyn Generator,
    requests: Vec<Result<InspectRequest, InspectError>>,
) -> Vec<Result<InspectAnswer, InspectError>> {
    let generations: Vec<_> = requests
        .into_iter()
        .map(|request| {
            let request = request?;
            let generation = generator.submit(generation_request(&request))?;
            Ok((request, generation))
        })
        .collect();
    let answers: Vec<_> = generations
        .into_iter()
        .map(|started: Result<(InspectRequest, Generation), InspectError>| {
            let (request, generation) = started?;
            let answer = generation_answer(&request, generation)?;
            Ok((request, answer))
        })
        .collect();
    let likelihoods: Vec<_> = answers
        .into_iter()
        .map(|answer: Result<(InspectRequest, InspectAnswer), InspectError>| {
            let (request, answer) = answer?;
            let generation = generator.submit(likelihood_request(request))?;
            Ok((answer, generation))
        })
        .collect();
    likelihoods
        .into_iter()
        .map(|started: Result<(InspectAnswer, Generation), InspectError>| {
            let (mut answer, mut generation) = started?;
            answer.prompt_nll = drain(&mut generation, |_, _| {})?.prompt_nll;
            Ok(answer)
        })
        .collect()
}

fn generation_request(request: &InspectRequest) -> Request {
    let params = SamplingParams {
        // The next token's probabilities come with the first token.
        max_tokens: request.greedy.max(1),
        ignore_eos: true,
        top_logprobs: request.top,
        ..SamplingParams::default()
    };
    Request { params, priority: Priority::Action, ..Request::new(request.prompt.clone(), 0) }
}

fn likelihood_request(request: InspectRequest) -> Request {
    let params = SamplingParams { max_tokens: 0, prompt_nll: true, ..SamplingParams::default() };
    Request {
        params,
        priority: Priority::Action,
        read_prefix_cache: false,
        ..Request::new(request.prompt, 0)
    }
}

fn generation_answer(
    request: &InspectRequest,
    mut generation: Generation,
) -> Result<InspectAnswer, InspectError> {
    let mut next = None;
    let mut greedy = Vec::new();
    let usage = drain(&mut generation, |id, top_logprobs| {
        next.get_or_insert(top_logprobs);
        greedy.push(id);
    })?;
    greedy.truncate(request.greedy);
    Ok(InspectAnswer {
        next: next.unwrap_or_default(),
        prompt_nll: None,
        greedy,
        cached: usage.cached_tokens,
    })
}

fn drain(
    generation: &mut Generation,
    mut on_token: impl FnMut(u32, Vec<(u32, f32)>),
) -> Result<Usage, InspectError> {
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Started(_) => {}
            Event::Token(token) => on_token(token.id, token.top_logprobs),
            Event::Finished(FinishReason::MaxTokens | FinishReason::ContextFull, usage) => {
                return Ok(usage);
            }
            Event::Finished(FinishReason::Failed(message), _) => {
                return Err(InspectError::EndedEarly(message));
            }
            Event::Finished(reason, _) => {
                return Err(InspectError::EndedEarly(format!("{reason:?}")));
            }
        }
    }
    Err(InspectError::EndedEarly("no account of it came".into()))
}
