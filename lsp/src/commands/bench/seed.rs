//! `redstart bench seed`: everyday requests, one after another and side by side.

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context, ensure};
use clap::Args;
use indicatif::ProgressBar;
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::generator::Generator;
use redstart_engine::request::Request;
use redstart_engine::step_plan::BLOCK_SIZE;
use serde::Serialize;

use super::prompts::{CODE_REVIEW, FIRST_TOKEN, LONG_CODE, MEDIUM_CODE, PARALLEL, SHORT_CHAT};
use super::requests::{random_tokens, request, run, run_together};
use super::target::TargetArgs;
use super::{at_least, html, progress, rounded};
use crate::commands::{memory, print};

/// The generations: name, tokens to generate, prompt.
const GENERATIONS: [(&str, usize, &str); 4] = [
    ("short chat 100 tokens", 100, SHORT_CHAT),
    ("medium code 300", 300, MEDIUM_CODE),
    ("long code 800", 800, LONG_CODE),
    ("code review 400", 400, CODE_REVIEW),
];

/// How often the first token of each prompt is waited for.
const FIRST_TOKEN_RUNS: usize = 5;

/// Tokens that each of several requests at the same time generates.
const PARALLEL_TOKENS: usize = 100;

/// Characters to a token, for models that have no tokenizer. Code and English are near it.
const CHARACTERS_PER_TOKEN: usize = 4;

/// Measure everyday requests: chats, code, reviews, alone and several at once.
///
/// Generates short and long answers to four real prompts (tokens per second of the whole request, its
/// prefill included), waits for the first token of short prompts, runs two to four requests at once, and
/// says how much context the KV cache holds and what memory the process takes. Nothing is served from
/// the prefix cache, and no generation ends before its tokens are written.
#[derive(Args)]
#[command(after_help = "Examples:\n  \
    redstart bench seed --model ~/models/Qwen2.5-Coder-1.5B-Instruct-AWQ\n  \
    redstart bench seed --synthetic 0.5b --html report.html")]
pub(super) struct SeedArgs {
    #[command(flatten)]
    target: TargetArgs,

    /// Memory for the KV cache, in MB
    #[arg(long, value_name = "MB", default_value_t = 512, value_parser = at_least::<1>)]
    kv_cache_mb: usize,

    /// Print one JSON object instead of a table
    #[arg(long)]
    json: bool,

    /// Write a page with plots to FILE as well. It needs no network to be looked at
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
}

/// The figures, rounded. An MB is 2^20 bytes, a GiB 2^30.
#[derive(Serialize)]
pub(super) struct SeedReport {
    pub(super) model: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) weights: Option<&'static str>,
    pub(super) backend: String,
    pub(super) machine: String,
    /// UTC, RFC 3339.
    pub(super) date: String,
    pub(super) generation: Vec<GenerationRow>,
    pub(super) ttft: Vec<FirstTokenRow>,
    pub(super) parallel: Vec<ParallelRow>,
    pub(super) kv_cache: KvCacheRow,
    pub(super) memory_mb: Option<f64>,
    pub(super) peak_rss_mb: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct GenerationRow {
    pub(super) name: &'static str,
    pub(super) prompt_tokens: usize,
    pub(super) tokens: usize,
    /// Of the whole request, its prefill included.
    pub(super) tok_s: f64,
}

#[derive(Serialize)]
pub(super) struct FirstTokenRow {
    pub(super) prompt_characters: usize,
    pub(super) prompt_tokens: usize,
    pub(super) average_ms: f64,
    pub(super) min_ms: f64,
}

#[derive(Serialize)]
pub(super) struct ParallelRow {
    pub(super) requests: usize,
    /// Of all requests together, from the first submission to the last token.
    pub(super) effective_tok_s: f64,
    /// Against one request alone.
    pub(super) speedup: f64,
}

#[derive(Serialize)]
pub(super) struct KvCacheRow {
    pub(super) tokens: usize,
    pub(super) gib: f64,
}

pub(super) fn run_seed(args: &SeedArgs) -> anyhow::Result<()> {
    // Minutes of measuring must not end in this.
    if let Some(folder) = args.html.as_deref().and_then(Path::parent) {
        let exists = folder.as_os_str().is_empty() || folder.is_dir();
        ensure!(exists, "cannot write --html: there is no directory {}", folder.display());
    }
    let report = measure(args)?;
    if let Some(file) = &args.html {
        let page = html::page(&report)?;
        std::fs::write(file, page).with_context(|| format!("cannot write {}", file.display()))?;
    }
    print(&if args.json { serde_json::to_string(&report)? + "\n" } else { report.table() })?;
    Ok(())
}

fn measure(args: &SeedArgs) -> anyhow::Result<SeedReport> {
    // Tokens, so that long answers move the bar further than short ones.
    let generated: usize = GENERATIONS.iter().map(|(_, tokens, _)| tokens).sum();
    let parallel: usize = (1..=PARALLEL.len()).map(|requests| requests * PARALLEL_TOKENS).sum();
    let bar = progress(generated + FIRST_TOKEN.len() * FIRST_TOKEN_RUNS + parallel);
    bar.set_message("loading");
    let target = args.target.load(args.target.open()?)?;
    let (model, backend, block_bytes) = (target.name().to_owned(), target.backend(), target.kv_block_bytes());
    let kv_cache = KvCacheSize::Bytes(args.kv_cache_mb << 20);
    let max_batch_tokens = target.max_batch_tokens();
    let engine = target.start(EngineOptions { kv_cache, max_batch_tokens, ..EngineOptions::default() })?;
    check_lengths(&engine)?;

    let generation = measure_generations(&engine, &bar)?;
    let ttft = measure_first_tokens(&engine, &bar)?;
    let parallel = measure_parallel(&engine, &bar)?;
    bar.finish_and_clear();
    let blocks = engine.stats().blocks_total;
    Ok(SeedReport {
        model,
        weights: args.target.weights_note(),
        backend,
        machine: machine(),
        date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
        generation,
        ttft,
        parallel,
        kv_cache: KvCacheRow {
            tokens: blocks * BLOCK_SIZE,
            gib: rounded((blocks * block_bytes) as f64 / f64::from(1 << 30)),
        },
        memory_mb: memory::resident_mb().map(rounded),
        peak_rss_mb: memory::peak_mb().map(rounded),
    })
}

fn check_lengths(engine: &Engine) -> anyhow::Result<()> {
    let limit = engine.model().max_model_len;
    for (name, tokens, prompt) in GENERATIONS {
        let wanted = tokenize(engine, prompt).len() + tokens;
        ensure!(
            wanted <= limit,
            "'{name}' needs a context of {wanted} tokens, and this model with this KV cache takes at most {limit}; raise --kv-cache-mb or take another model"
        );
    }
    Ok(())
}

/// The prompt's tokens; random ones of like number where the model has no tokenizer.
fn tokenize(engine: &Engine, prompt: &str) -> Vec<u32> {
    match &engine.model().tokenizer {
        Some(tokenizer) => tokenizer.encode(prompt),
        None => random_tokens(prompt.len().div_ceil(CHARACTERS_PER_TOKEN), engine.model().vocab_size),
    }
}

/// A request that computes all of its prompt, as if nobody had asked for it before.
fn cold_request(engine: &Engine, prompt: &str, tokens: usize) -> Request {
    Request { read_prefix_cache: false, ..request(tokenize(engine, prompt), tokens) }
}

fn measure_generations(engine: &Engine, bar: &ProgressBar) -> anyhow::Result<Vec<GenerationRow>> {
    let mut rows = Vec::new();
    for (name, tokens, prompt) in GENERATIONS {
        bar.set_message(name);
        let usage = run(engine, cold_request(engine, prompt, tokens), || bar.inc(1))?;
        rows.push(GenerationRow {
            name,
            prompt_tokens: usage.prompt_tokens,
            tokens,
            tok_s: rounded(tokens as f64 / usage.total.as_secs_f64()),
        });
    }
    Ok(rows)
}

fn measure_first_tokens(engine: &Engine, bar: &ProgressBar) -> anyhow::Result<Vec<FirstTokenRow>> {
    let mut rows = Vec::new();
    for prompt in FIRST_TOKEN {
        let prompt_characters = prompt.chars().count();
        bar.set_message(format!("first token after {prompt_characters} characters"));
        let mut prompt_tokens = 0;
        let mut times = Vec::new();
        for _ in 0..FIRST_TOKEN_RUNS {
            let usage = run(engine, cold_request(engine, prompt, 1), || bar.inc(1))?;
            prompt_tokens = usage.prompt_tokens;
            times.push(usage.first_token);
        }
        let milliseconds = |time: Duration| rounded(time.as_secs_f64() * 1e3);
        rows.push(FirstTokenRow {
            prompt_characters,
            prompt_tokens,
            average_ms: milliseconds(times.iter().sum::<Duration>() / FIRST_TOKEN_RUNS as u32),
            min_ms: milliseconds(times.into_iter().min().unwrap_or_default()),
        });
    }
    Ok(rows)
}

fn measure_parallel(engine: &Engine, bar: &ProgressBar) -> anyhow::Result<Vec<ParallelRow>> {
    let mut alone = 0.0;
    let mut rows = Vec::new();
    for requests in 1..=PARALLEL.len() {
        bar.set_message(format!("{requests} at once"));
        let prompts = PARALLEL[..requests].iter();
        let together = run_together(
            engine,
            prompts.map(|prompt| cold_request(engine, prompt, PARALLEL_TOKENS)).collect(),
            || bar.inc(1),
        )?;
        let tok_s = together.generated as f64 / together.total.as_secs_f64();
        if requests == 1 {
            alone = tok_s;
        } else {
            let speedup = rounded(tok_s / alone);
            rows.push(ParallelRow { requests, effective_tok_s: rounded(tok_s), speedup });
        }
    }
    Ok(rows)
}

/// The processor, where the system tells (Linux), and what it runs.
fn machine() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let name = info
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(':'))
        .map_or("unknown processor", |(_, name)| name.trim());
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    format!("{name}, {cores} cores, {} {}", std::env::consts::OS, std::env::consts::ARCH)
}

impl SeedReport {
    /// For people.
    fn table(&self) -> String {
        let mut text = format!("{} on {}\n{}, {}\n", self.model, self.backend, self.machine, self.date);
        if self.weights.is_some() {
            text.push_str("random weights, speed only: the text it writes means nothing\n");
        }
        let mut row = |name: String, value: String, note: String| {
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{}", format!("  {name:<34} {value:>14}   {note}").trim_end());
        };
        let mb = |value: Option<f64>| value.map_or("unknown here".into(), |mb| format!("{mb} MB"));
        for generation in &self.generation {
            let note = format!("after {} prompt tokens", generation.prompt_tokens);
            row(generation.name.into(), format!("{} tok/s", generation.tok_s), note);
        }
        for first in &self.ttft {
            row(
                format!("first token after {} characters", first.prompt_characters),
                format!("{} ms", first.average_ms),
                format!("at best {} ms", first.min_ms),
            );
        }
        for parallel in &self.parallel {
            row(
                format!("{} requests at once", parallel.requests),
                format!("{} tok/s", parallel.effective_tok_s),
                format!("{} times one alone", parallel.speedup),
            );
        }
        row(
            "KV cache".into(),
            format!("{} tokens", self.kv_cache.tokens),
            format!("{} GiB", self.kv_cache.gib),
        );
        row("memory used".into(), mb(self.memory_mb), format!("at most {}", mb(self.peak_rss_mb)));
        text
    }
}
