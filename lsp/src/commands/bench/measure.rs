//! The measurements of `redstart bench`.

use std::time::{Duration, Instant};

use anyhow::ensure;
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::generator::Generator;
use redstart_engine::step_plan::BLOCK_SIZE;

use super::requests::{random_tokens, request, run_together};
use super::target::Target;
use super::{MeasureArgs, bandwidth, progress, report, requests};
use crate::commands::memory;

/// Tokens that are new in a prompt whose beginning is cached: a line or so.
pub(super) const TAIL: usize = 16;

/// One figure of every repeat.
#[derive(Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    fn push(&mut self, value: f64) {
        self.0.push(value);
        self.0.sort_by(f64::total_cmp);
    }

    /// The middle one; of two, the lower.
    pub(super) fn median(&self) -> f64 {
        self.0[(self.0.len() - 1) / 2]
    }

    pub(super) fn least(&self) -> f64 {
        self.0[0]
    }

    pub(super) fn most(&self) -> f64 {
        self.0[self.0.len() - 1]
    }
}

/// What was measured, unrounded.
#[derive(Default)]
pub(super) struct Figures {
    /// In seconds, with nothing cached.
    pub(super) first_token_cold: Samples,
    /// In seconds, with all but [`TAIL`] tokens cached.
    pub(super) first_token_warm: Samples,
    /// Prompt tokens that the last warm request found in the cache.
    pub(super) warm_cached_tokens: usize,
    /// Tokens per second of one sequence, without its first token.
    pub(super) decode: Samples,
    /// Tokens per second of all sequences together, without their first tokens.
    pub(super) batch: Samples,
    /// From a backend with its weights to an engine that takes requests.
    pub(super) start: Duration,
}

/// What is known before anything runs.
pub(super) struct Setting {
    pub(super) model: String,
    pub(super) backend: String,
    pub(super) load_time: Duration,
    pub(super) load_peak_mb: Option<f64>,
    /// `None` where there is none: random weights were made up on a GPU.
    pub(super) checkpoint_bytes: Option<usize>,
    /// Read by every decoded token: the weights, and keys and values at the mean depth.
    pub(super) bytes_per_token: f64,
    /// GB/s.
    pub(super) read_bandwidth: f64,
    /// GB/s of a copy within a GPU's memory, read and written bytes together; `None` on the processor.
    pub(super) copy_bandwidth: Option<f64>,
}

pub(super) fn run(args: &MeasureArgs) -> anyhow::Result<report::Report> {
    let bar = progress(2 + 3 * args.repeat);
    bar.set_message("opening");
    let model = args.target.open()?;
    check_lengths(args, model.weights.config().max_position_embeddings)?;
    bar.set_message("reading memory");
    let read_bandwidth = bandwidth::measure(args.target.threads())?;
    bar.inc(1);
    bar.set_message(if args.target.weights_note().is_some() { "making weights up" } else { "loading" });
    let target = args.target.load(model)?;
    bar.inc(1);
    let (read_bandwidth, copy_bandwidth) = if target.on_gpu() {
        let (read, copy) = bandwidth::measure_gpu()?;
        (read, Some(copy))
    } else {
        (read_bandwidth, None)
    };

    let setting = Setting {
        model: target.name().to_owned(),
        backend: target.backend(),
        load_time: target.load_time(),
        load_peak_mb: target.load_peak_mb,
        checkpoint_bytes: target.checkpoint_bytes(),
        bytes_per_token: bytes_per_token(args, &target),
        read_bandwidth,
        copy_bandwidth,
    };
    let options = engine_options(args, target.max_batch_tokens());
    let started = Instant::now();
    let engine = target.start(options)?;
    let mut figures = Figures { start: started.elapsed(), ..Figures::default() };
    for repeat in 1..=args.repeat {
        bar.set_message(format!("prompts of {} tokens, {repeat} of {}", args.prompt, args.repeat));
        measure_first_token(&engine, args, &mut figures)?;
        bar.inc(1);
    }
    let contexts = cached_contexts(&engine, args)?;
    for repeat in 1..=args.repeat {
        bar.set_message(format!("decoding at depth {}, {repeat} of {}", args.depth, args.repeat));
        measure_decode(&engine, args, &contexts[0], &mut figures)?;
        bar.inc(1);
    }
    for repeat in 1..=args.repeat {
        bar.set_message(format!("{} sequences together, {repeat} of {}", args.batch, args.repeat));
        measure_batch(&engine, args, &contexts, &mut figures)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(report::Report::new(args, &setting, &figures, memory::peak_mb()))
}

/// Length of a context in which decoding begins: it needs one token to go on from.
fn context_tokens(args: &MeasureArgs) -> usize {
    args.depth.max(1)
}

fn check_lengths(args: &MeasureArgs, limit: usize) -> anyhow::Result<()> {
    let wanted = context_tokens(args).saturating_add(args.tokens);
    ensure!(
        wanted <= limit,
        "--depth {} and --tokens {} need a context of {wanted} tokens, and this model takes at most {limit}; lower one of them",
        args.depth,
        args.tokens
    );
    let wanted = args.prompt.saturating_add(TAIL + 1);
    ensure!(
        wanted <= limit,
        "--prompt {} needs a context of {wanted} tokens (with a tail of {TAIL} and one generated), and this model takes at most {limit}; lower it",
        args.prompt
    );
    Ok(())
}

/// A KV cache as large as the longest measurement needs, so that the peak of memory is not that of a
/// cache which happens to fill up.
fn engine_options(args: &MeasureArgs, max_batch_tokens: usize) -> EngineOptions {
    let defaults = EngineOptions::default();
    let contexts = args.batch * (context_tokens(args) + args.tokens).div_ceil(BLOCK_SIZE);
    let prompts = (args.prompt + TAIL + 1).div_ceil(BLOCK_SIZE);
    EngineOptions {
        // And a block that a second sequence on the same cached prompt needs.
        kv_cache: KvCacheSize::Blocks(contexts.max(prompts) + 2),
        max_sequences: args.batch.max(defaults.max_sequences),
        max_waiting: args.batch.max(defaults.max_waiting),
        max_batch_tokens: max_batch_tokens.max(2 * args.batch),
        ..defaults
    }
}

fn bytes_per_token(args: &MeasureArgs, target: &Target) -> f64 {
    let mean_depth = context_tokens(args) as f64 + args.tokens as f64 / 2.0;
    target.weight_bytes() as f64 + target.kv_block_bytes() as f64 / BLOCK_SIZE as f64 * mean_depth
}

/// A prompt that nobody saw before, and then the same with another tail.
fn measure_first_token(engine: &Engine, args: &MeasureArgs, figures: &mut Figures) -> anyhow::Result<()> {
    let mut prompt = random_tokens(args.prompt, engine.model().vocab_size);
    let cold = requests::run(engine, request(prompt.clone(), 1), || {})?;
    figures.first_token_cold.push(cold.first_token.as_secs_f64());
    prompt.extend(random_tokens(TAIL, engine.model().vocab_size));
    let warm = requests::run(engine, request(prompt, 1), || {})?;
    figures.first_token_warm.push(warm.first_token.as_secs_f64());
    figures.warm_cached_tokens = warm.cached_tokens;
    Ok(())
}

/// As many different contexts as sequences decode together, their full blocks in the cache: how a context
/// got there does not matter to decoding, and computing it for every repeat would take most of the time.
fn cached_contexts(engine: &Engine, args: &MeasureArgs) -> anyhow::Result<Vec<Vec<u32>>> {
    let context = |_| {
        let context = random_tokens(context_tokens(args), engine.model().vocab_size);
        requests::run(engine, request(context.clone(), 0), || {})?;
        Ok(context)
    };
    (0..args.batch).map(context).collect()
}

/// The context with other last tokens, so that what is decoded differs in every repeat.
fn with_new_end(engine: &Engine, context: &[u32]) -> Vec<u32> {
    let kept = (context.len() - 1) / BLOCK_SIZE * BLOCK_SIZE;
    let mut tokens = context[..kept].to_vec();
    tokens.extend(random_tokens(context.len() - kept, engine.model().vocab_size));
    tokens
}

fn measure_decode(
    engine: &Engine,
    args: &MeasureArgs,
    context: &[u32],
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let usage = requests::run(engine, request(with_new_end(engine, context), args.tokens), || {})?;
    let decoding = usage.total - usage.first_token;
    figures.decode.push((usage.generated_tokens - 1) as f64 / decoding.as_secs_f64());
    Ok(())
}

fn measure_batch(
    engine: &Engine,
    args: &MeasureArgs,
    contexts: &[Vec<u32>],
    figures: &mut Figures,
) -> anyhow::Result<()> {
    let requests = contexts.iter().map(|context| request(with_new_end(engine, context), args.tokens));
    let together = run_together(engine, requests.collect(), || {})?;
    figures.batch.push(together.decoded as f64 / together.decoding.as_secs_f64());
    Ok(())
}
