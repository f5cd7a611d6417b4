//! Requests that run to their end, and what the engine says they took.

use std::time::{Duration, Instant};

use anyhow::bail;
use redstart_engine::generator::{Generation, Generator};
use redstart_engine::request::{Event, FinishReason, Request, Usage};

/// A request for exactly `tokens` tokens: a measurement does not end at an end-of-text token.
pub(super) fn request(prompt: Vec<u32>, tokens: usize) -> Request {
    let mut request = Request::new(prompt, tokens);
    request.params.ignore_eos = true;
    request
}

/// Token ids that no one asked for before.
pub(super) fn random_tokens(count: usize, vocab_size: usize) -> Vec<u32> {
    let mut random = fastrand::Rng::new();
    (0..count).map(|_| random.u32(..vocab_size as u32)).collect()
}

/// Runs one request alone, and calls `on_token` as its tokens come.
pub(super) fn run(
    generator: &dyn Generator,
    request: Request,
    on_token: impl FnMut(),
) -> anyhow::Result<Usage> {
    finish(generator.submit(request)?, on_token)
}

/// Requests that ran together.
pub(super) struct Together {
    /// Tokens after each one's first.
    pub(super) decoded: usize,
    /// From the first of the first tokens to the end.
    pub(super) decoding: Duration,
    /// All tokens.
    pub(super) generated: usize,
    /// From the first submission to the end.
    pub(super) total: Duration,
}

/// Submits all requests at once and waits for the last. Calls `on_token` for every token, if not at once.
pub(super) fn run_together(
    generator: &dyn Generator,
    requests: Vec<Request>,
    mut on_token: impl FnMut(),
) -> anyhow::Result<Together> {
    let started = Instant::now();
    let mut running = Vec::new();
    for request in requests {
        running.push((started.elapsed(), generator.submit(request)?));
    }
    let mut together = Together { decoded: 0, decoding: Duration::ZERO, generated: 0, total: Duration::ZERO };
    let mut first_token = Duration::MAX;
    for (submitted, generation) in running {
        let usage = finish(generation, &mut on_token)?;
        together.generated += usage.generated_tokens;
        together.decoded += usage.generated_tokens - 1;
        together.total = together.total.max(submitted + usage.total);
        first_token = first_token.min(submitted + usage.first_token);
    }
    together.decoding = together.total - first_token;
    Ok(together)
}

fn finish(mut generation: Generation, mut on_token: impl FnMut()) -> anyhow::Result<Usage> {
    while let Some(event) = generation.blocking_next() {
        match event {
            Event::Finished(FinishReason::MaxTokens, usage) => return Ok(usage),
            Event::Finished(FinishReason::Failed(message), _) => bail!("the engine failed: {message}"),
            Event::Finished(reason, _) => bail!("a measured request ended early: {reason:?}"),
            Event::Started(_) => {}
            Event::Token(_) => on_token(),
        }
    }
    bail!("the engine stopped in the middle of a request")
}
