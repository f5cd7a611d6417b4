//! `redstart inspect`: what a model says of token sequences, for debugging and for tests.

use std::io::{BufReader, Read};
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use redstart_engine::engine::{EngineOptions, KvCacheSize};
use redstart_engine::inspect;

use super::GpuArgs;
use crate::model::{self, BackendChoice, KvCacheType, ModelSource, RunOptions};

/// Ask a model for log-probabilities and greedy tokens, as JSON lines.
///
/// Reads one JSON object a line:
///
///   {"prompt": [ids], "top": 8, "greedy": 24}
///
/// and writes one a line, in the same order:
///
///   {"next": [[id, logprob], ...], "prompt_nll": x, "greedy": [ids], "cached": n}
///
/// "next" are the likeliest tokens after the prompt with natural log-probabilities, "prompt_nll" is the
/// mean negative log-likelihood of prompt[1..] (null for a prompt of one token), "greedy" the tokens that
/// greedy decoding writes, end-of-text tokens included, and "cached" how many prompt tokens came from the
/// prefix cache. A line that cannot be served gets {"line": n, "error": "..."} and the next line is read.
///
/// Use it to compare a checkpoint with another implementation, to see whether a prompt is served from
/// the cache, or to find the token at which two settings part. It needs no tokenizer.
#[derive(Args)]
pub(super) struct InspectArgs {
    /// A Hugging Face model directory. Default: the model inside this program
    #[arg(long, value_name = "DIR")]
    model: Option<PathBuf>,

    /// Keep activations in float32 instead of rounding them to int8 as serving does
    #[arg(long)]
    exact: bool,

    /// Run up to N lines together in one batch
    #[arg(long, value_name = "N", default_value_t = 1)]
    batch: usize,

    /// Prefill at most N tokens a step
    #[arg(long, value_name = "N")]
    chunk: Option<usize>,

    /// What computes
    #[arg(long, value_enum, default_value_t)]
    backend: BackendChoice,

    #[command(flatten)]
    gpu: GpuArgs,

    /// Worker threads on the processor. Default: the physical cores, less one if there are more than four, at most eight
    #[arg(long, value_name = "N", value_parser = super::thread_count)]
    threads: Option<usize>,

    /// Memory for the KV cache, in MB
    #[arg(long, value_name = "MB", default_value_t = 512)]
    kv_cache_mb: usize,

    /// How keys and values are kept in the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    kv_cache_type: KvCacheType,

    /// Read from FILE instead of standard input
    file: Option<PathBuf>,
}

pub(super) fn run(args: InspectArgs) -> anyhow::Result<ExitCode> {
    let input: Box<dyn Read> = match &args.file {
        Some(file) => {
            Box::new(std::fs::File::open(file).with_context(|| format!("cannot read {}", file.display()))?)
        }
        None => Box::new(std::io::stdin()),
    };
    let defaults = EngineOptions::default();
    if args.chunk.is_some_and(|chunk| chunk <= args.batch) {
        anyhow::bail!(
            "--chunk must be larger than --batch ({}), so that every line can go on in a step",
            args.batch
        );
    }
    let options = RunOptions {
        threads: args.threads,
        exact: args.exact,
        backend: args.backend,
        kv: args.kv_cache_type,
        gpu: args.gpu.options(),
        kv_cache: Some(KvCacheSize::Bytes(args.kv_cache_mb << 20)),
        engine: EngineOptions {
            max_sequences: args.batch.max(1),
            max_waiting: args.batch.max(defaults.max_waiting),
            max_batch_tokens: args.chunk.unwrap_or(defaults.max_batch_tokens),
            ..defaults
        },
    };
    let (engine, _) =
        model::load_engine(&ModelSource::from_option(args.model), &options).map_err(anyhow::Error::msg)?;
    let summary =
        inspect::inspect_lines(&engine, BufReader::new(input), std::io::stdout().lock(), args.batch)?;
    Ok(if summary.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
