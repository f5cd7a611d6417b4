//! Whole models: against log-probabilities that an independent implementation computed in float64, and, in the
//! sizes that people use, against the CPU backend.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cpu::{CpuBackend, CpuOptions};
use redstart_engine::cuda::{CudaBackend, CudaOptions, HeadFormat, KvFormat};
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::generator::ModelInfo;
use redstart_engine::inspect::{InspectAnswer, InspectRequest, inspect_batch};
use redstart_engine::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan, Wanted};
use redstart_engine::synthetic::SyntheticModel;
use redstart_kernels::device::Device;
use serde::Deserialize;

/// Opens the device anew; what was opened before has been dropped.
pub type OpenDevice<'a> = &'a mut dyn FnMut() -> Result<Box<dyn Device>>;

/// What log-probabilities and likelihoods may be off, as for the CPU backend. Measured in the shim: a tenth of it.
const TOLERANCE: Tolerance = Tolerance { mean: 0.05, largest: 0.2, nll: 0.03, margin: 0.3 };

/// With the head in eight bits, as in the shim's tests of it: these models are small, and rounding tells.
const HEAD_TOLERANCE: Tolerance = Tolerance { mean: 0.09, largest: 0.4, nll: 0.04, margin: 1.0 };

/// With keys and values in eight bits, three of them mantissa.
const CACHE_TOLERANCE: Tolerance = Tolerance { mean: 0.2, largest: 1.3, nll: 0.1, margin: 2.0 };

/// What a row of logits may be off from the CPU's: the norm of the difference over the norm. Both keep weights
/// exactly and round activations to some eleven bits, once a layer.
const LOGITS_TOLERANCE: f64 = 0.02;

#[derive(Deserialize)]
struct Expected {
    cases: Vec<Case>,
}

#[derive(Clone, Deserialize)]
struct Case {
    prompt: Vec<u32>,
    next_top8: Vec<(u32, f32)>,
    prompt_nll: Option<f64>,
    greedy: Vec<u32>,
    greedy_margin: Vec<f32>,
}

struct Tolerance {
    mean: f32,
    largest: f32,
    nll: f64,
    /// Greedy tokens are compared as long as the likeliest leads by this much.
    margin: f32,
}

#[derive(Clone, Copy, Debug)]
struct Differences {
    mean: f32,
    largest: f32,
    nll: f64,
}

/// Runs all of it and writes a line for each. Returns whether all is well.
///
/// # Errors
/// When a checkpoint cannot be read, the device failed or a line cannot be written.
pub fn check(
    open: OpenDevice<'_>,
    oracle: &Path,
    small: bool,
    seed: u64,
    out: &mut dyn Write,
) -> Result<bool> {
    let mut right = true;
    let entries = std::fs::read_dir(oracle).with_context(|| format!("reading {}", oracle.display()))?;
    let mut checkpoints: Vec<PathBuf> = entries.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    checkpoints.retain(|path| path.join("expected.json").is_file());
    checkpoints.sort();
    ensure!(!checkpoints.is_empty(), "no reference checkpoint in {}", oracle.display());
    for directory in checkpoints {
        right &= check_reference(open, &directory, small, out)?;
    }
    if !small {
        for model in [SyntheticModel::B0_5, SyntheticModel::B1_5, SyntheticModel::B7] {
            right &= check_against_cpu(open, model, seed, out)?;
        }
    }
    Ok(right)
}

/// One reference checkpoint, in every format and way of serving; the first few cases of it if `small`.
///
/// # Errors
/// As [`check`].
pub fn check_reference(
    open: OpenDevice<'_>,
    directory: &Path,
    small: bool,
    out: &mut dyn Write,
) -> Result<bool> {
    let name = directory.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let text = std::fs::read_to_string(directory.join("expected.json"))?;
    let mut cases = serde_json::from_str::<Expected>(&text).context("expected.json")?.cases;
    if small {
        cases.truncate(3);
    }
    let head = CudaOptions { head: HeadFormat::Int8, ..CudaOptions::default() };
    let cache = CudaOptions { kv: KvFormat::F8, ..CudaOptions::default() };
    let ways = [
        ("whole", 256, CudaOptions::default(), TOLERANCE),
        ("in chunks of 50", 50, CudaOptions::default(), TOLERANCE),
        ("8-bit head", 256, head, HEAD_TOLERANCE),
        ("8-bit cache", 256, cache, CACHE_TOLERANCE),
    ];
    let mut right = true;
    for (way, chunk, options, tolerance) in ways {
        let engine = start(open()?, directory, options, chunk)?;
        let alone: Vec<_> = cases
            .iter()
            .map(|case| ask(&engine, std::slice::from_ref(case)))
            .collect::<Result<Vec<_>>>()?
            .concat();
        for (what, answers) in [("alone", alone), ("together, warm", ask(&engine, &cases)?)] {
            let found = differences(&cases, &answers, tolerance.margin);
            let fits = found.as_ref().is_ok_and(|found| tolerance.holds(found));
            right &= fits;
            let verdict = if fits { "ok    " } else { "FAILED" };
            writeln!(out, "{verdict}  {name}, {way}, {what}: {found:?}")?;
        }
    }
    Ok(right)
}

impl Tolerance {
    fn holds(&self, found: &Differences) -> bool {
        found.mean <= self.mean && found.largest <= self.largest && found.nll <= self.nll
    }
}

fn start(device: Box<dyn Device>, directory: &Path, options: CudaOptions, chunk: usize) -> Result<Engine> {
    let checkpoint = Checkpoint::open(directory)?;
    let config = checkpoint.config();
    let info = ModelInfo {
        name: checkpoint.name().to_owned(),
        description: String::new(),
        max_model_len: config.max_position_embeddings,
        vocab_size: config.vocab_size,
        tokenizer: None,
    };
    let eos = config.eos_token_ids.clone();
    let options = CudaOptions { max_model_len: Some(1024), max_step_rows: 256, ..options };
    let backend = CudaBackend::new(&checkpoint, device, options)?;
    let options = EngineOptions {
        kv_cache: KvCacheSize::Blocks(512),
        max_model_len: Some(1024),
        max_batch_tokens: chunk,
        ..EngineOptions::default()
    };
    Ok(Engine::start(Box::new(backend), info, eos, options)?)
}

fn ask(engine: &Engine, cases: &[Case]) -> Result<Vec<InspectAnswer>> {
    let request =
        |case: &Case| InspectRequest { prompt: case.prompt.clone(), top: 1 << 20, greedy: case.greedy.len() };
    let requests = cases.iter().map(|case| Ok(request(case))).collect();
    inspect_batch(engine, requests).into_iter().map(|answer| Ok(answer?)).collect()
}

/// How far answers are from what is expected, or what is wrong with them altogether.
fn differences(cases: &[Case], answers: &[InspectAnswer], margin: f32) -> Result<Differences, String> {
    let (mut all, mut nll) = (Vec::new(), 0.0f64);
    for (case, answer) in cases.iter().zip(answers) {
        for &(id, expected) in &case.next_top8 {
            let found = answer.next.iter().find(|(other, _)| *other == id);
            let (_, found) = found.ok_or_else(|| format!("token {id} is not reported"))?;
            all.push((found - expected).abs());
        }
        if let (Some(expected), Some(found)) = (case.prompt_nll, answer.prompt_nll) {
            nll = nll.max((found - expected).abs());
        }
        let sure = case.greedy_margin.iter().take_while(|step| **step >= margin).count();
        if answer.greedy.get(..sure) != case.greedy.get(..sure) {
            return Err(format!("greedy tokens {:?} instead of {:?}", answer.greedy, &case.greedy[..sure]));
        }
    }
    // A NaN stays one in the sum and fails every comparison.
    let largest =
        all.iter().fold(0.0f32, |largest, &one| if one > largest || one.is_nan() { one } else { largest });
    Ok(Differences { mean: all.iter().sum::<f32>() / all.len() as f32, largest, nll })
}

/// A prompt and some single tokens after it, on both backends: the same plans, the rows of logits compared.
fn check_against_cpu(
    open: OpenDevice<'_>,
    model: SyntheticModel,
    seed: u64,
    out: &mut dyn Write,
) -> Result<bool> {
    const PROMPT: usize = 150;
    const STEPS: usize = 4;
    let checkpoint = Checkpoint::synthetic(model, seed)?;
    let plans = plans(checkpoint.config().vocab_size, PROMPT, STEPS, seed);
    let blocks = (PROMPT + STEPS).div_ceil(BLOCK_SIZE) + 3;
    let options = CudaOptions { max_model_len: Some(1024), ..CudaOptions::default() };
    let mut cuda = CudaBackend::new(&checkpoint, open()?, options)?;
    cuda.allocate_kv(blocks)?;
    let found = run(&mut cuda, &plans)?;
    drop(cuda);
    // The weights of a checkpoint in memory are gone once they are packed; the same seed makes the same ones.
    let checkpoint = Checkpoint::synthetic(model, seed)?;
    let mut cpu = CpuBackend::new(&checkpoint, CpuOptions { exact: true, ..CpuOptions::default() })?;
    cpu.allocate_kv(blocks)?;
    let expected = run(&mut cpu, &plans)?;

    let mut right = true;
    for (index, (found, expected)) in found.iter().zip(&expected).enumerate() {
        let square =
            |values: &mut dyn Iterator<Item = f64>| values.map(|value| value * value).sum::<f64>().sqrt();
        let norm = square(&mut expected.iter().map(|&value| f64::from(value)));
        let off = square(&mut found.iter().zip(expected).map(|(a, b)| f64::from(*a) - f64::from(*b)));
        let (error, rows) = (off / norm, plans[index].num_rows());
        let fits = error <= LOGITS_TOLERANCE;
        right &= fits;
        let verdict = if fits { "ok    " } else { "FAILED" };
        writeln!(out, "{verdict}  {} against the processor, step of {rows} rows: {error:.1e}", model.name())?;
    }
    Ok(right)
}

fn run(backend: &mut dyn Backend, plans: &[StepPlan]) -> Result<Vec<Vec<f32>>> {
    let forward = |plan: &StepPlan| {
        let mut logits = Vec::new();
        backend.forward(plan, &mut logits)?;
        Ok(logits)
    };
    plans.iter().map(forward).collect()
}

/// One sequence: a prompt in two parts of odd lengths, then single tokens, in blocks out of order.
fn plans(vocab_size: usize, prompt: usize, steps: usize, seed: u64) -> Vec<StepPlan> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut table: Vec<u32> = (0..(prompt + steps).div_ceil(BLOCK_SIZE) as u32 + 2).collect();
    random.shuffle(&mut table);
    let tail = 21;
    let mut ends = vec![prompt - tail, prompt];
    ends.extend(prompt + 1..=prompt + steps);
    let mut start = 0;
    let mut plan = |end: usize| {
        let rows = end - start;
        let plan = StepPlan {
            tokens: std::iter::repeat_with(|| random.u32(..vocab_size as u32)).take(rows).collect(),
            positions: (start as u32..end as u32).collect(),
            sequences: vec![PlannedSequence {
                rows: 0..rows,
                block_table: table[..end.div_ceil(BLOCK_SIZE)].to_vec(),
            }],
            logits_rows: vec![rows as u32 - 1],
            wanted: vec![Wanted::Logits],
            ..StepPlan::default()
        };
        start = end;
        plan
    };
    ends.into_iter().map(&mut plan).collect()
}
