//! Reference checkpoints, what an independent implementation says of them, and how far a backend is from it.

use std::path::{Path, PathBuf};

use redstart_engine::backend::Backend;
use redstart_engine::step_plan::{BLOCK_SIZE, BlockId, PlannedSequence, StepPlan};
use serde_json::Value;

pub(crate) const CHECKPOINTS: [&str; 4] = ["tied-hd64", "untied-hd128", "group64-fp16head", "qwen3-bf16"];

/// Blocks in the tests' pools: enough for all prompts of a checkpoint side by side.
pub(crate) const POOL_BLOCKS: usize = 512;

/// How far a mode may be from the reference.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tolerance {
    /// Largest error of a top-8 log-probability, in nats.
    pub(crate) largest: f64,
    /// Mean error of the top-8 log-probabilities of one checkpoint.
    pub(crate) mean: f64,
    /// Error of a prompt's mean negative log-likelihood.
    pub(crate) nll: f64,
    /// Greedy tokens must agree up to the first step whose logit gap is below this.
    pub(crate) margin: f64,
}

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

pub(crate) fn oracle(name: &str) -> PathBuf {
    root().join("tests/oracle").join(name)
}

/// One prompt with what the reference says of it.
pub(crate) struct Case {
    pub(crate) prompt: Vec<u32>,
    pub(crate) next_top8: Vec<(u32, f64)>,
    pub(crate) prompt_nll: Option<f64>,
    pub(crate) greedy: Vec<u32>,
    pub(crate) greedy_margin: Vec<f64>,
}

pub(crate) fn numbers<T>(value: &Value, convert: impl Fn(&Value) -> Option<T>) -> Vec<T> {
    value.as_array().unwrap().iter().map(|item| convert(item).unwrap()).collect()
}

pub(crate) fn ids(value: &Value) -> Vec<u32> {
    numbers(value, |id| id.as_u64().map(|id| id as u32))
}

pub(crate) fn cases(directory: &Path) -> Vec<Case> {
    let json: Value =
        serde_json::from_slice(&std::fs::read(directory.join("expected.json")).unwrap()).unwrap();
    let list = json.get("cases").unwrap_or(&json).as_array().unwrap().clone();
    assert!(!list.is_empty());
    list.iter()
        .map(|case| Case {
            prompt: ids(&case["prompt"]),
            next_top8: case.get("next_top8").map_or_else(Vec::new, |top| {
                numbers(top, |pair| Some((pair[0].as_u64()? as u32, pair[1].as_f64()?)))
            }),
            prompt_nll: case.get("prompt_nll").and_then(Value::as_f64),
            greedy: ids(&case["greedy"]),
            greedy_margin: numbers(&case["greedy_margin"], Value::as_f64),
        })
        .collect()
}

/// A backend with a pool and the simplest possible block allocator.
pub(crate) struct Harness<B> {
    pub(crate) backend: B,
    /// Handed out from the end. Shuffled, so that block tables are not consecutive.
    pub(crate) free: Vec<BlockId>,
}

/// A sequence in the harness: its blocks and how many positions they hold.
#[derive(Clone, Default)]
pub(crate) struct Sequence {
    pub(crate) block_table: Vec<BlockId>,
    pub(crate) len: usize,
}

impl<B: Backend> Harness<B> {
    pub(crate) fn new(mut backend: B) -> Self {
        backend.allocate_kv(POOL_BLOCKS).unwrap();
        let free = (0..POOL_BLOCKS as u32).map(|i| i * 37 % POOL_BLOCKS as u32).collect();
        Self { backend, free }
    }

    /// A step that appends to each sequence its tokens, asking for the logits of every row if `all_rows`,
    /// else of the last row of each sequence.
    pub(crate) fn plan(&mut self, work: &mut [(&mut Sequence, &[u32])], all_rows: bool) -> StepPlan {
        let mut plan = StepPlan::default();
        for (sequence, tokens) in work.iter_mut() {
            let start = plan.num_rows();
            plan.tokens.extend_from_slice(tokens);
            plan.positions.extend((sequence.len..sequence.len + tokens.len()).map(|p| p as u32));
            sequence.len += tokens.len();
            while sequence.block_table.len() * BLOCK_SIZE < sequence.len {
                sequence.block_table.push(self.free.pop().expect("the pool is large enough"));
            }
            let rows = start..plan.num_rows();
            plan.logits_rows
                .extend(if all_rows { rows.start as u32 } else { rows.end as u32 - 1 }..rows.end as u32);
            plan.sequences.push(PlannedSequence { rows, block_table: sequence.block_table.clone() });
        }
        plan
    }

    /// Runs such a step; returns the logits, a row for each that was asked for.
    pub(crate) fn step(&mut self, work: &mut [(&mut Sequence, &[u32])], all_rows: bool) -> Vec<Vec<f32>> {
        let plan = self.plan(work, all_rows);
        let mut logits = Vec::new();
        self.backend.forward(&plan, &mut logits).unwrap();
        assert_eq!(logits.len(), plan.logits_rows.len() * self.backend.vocab_size());
        logits.chunks_exact(self.backend.vocab_size()).map(<[f32]>::to_vec).collect()
    }

    /// Feeds `tokens` in chunks; returns the logits after every token.
    pub(crate) fn feed(&mut self, sequence: &mut Sequence, tokens: &[u32], chunk: usize) -> Vec<Vec<f32>> {
        tokens.chunks(chunk).flat_map(|tokens| self.step(&mut [(&mut *sequence, tokens)], true)).collect()
    }

    pub(crate) fn free(&mut self, sequence: Sequence) {
        self.free.extend(sequence.block_table);
    }
}

pub(crate) fn argmax(logits: &[f32]) -> u32 {
    (0..logits.len()).max_by(|a, b| logits[*a].total_cmp(&logits[*b])).unwrap() as u32
}

pub(crate) fn log_probabilities(logits: &[f32]) -> Vec<f64> {
    let max = logits.iter().fold(f64::NEG_INFINITY, |max, logit| max.max(f64::from(*logit)));
    let sum: f64 = logits.iter().map(|logit| (f64::from(*logit) - max).exp()).sum();
    logits.iter().map(|logit| f64::from(*logit) - max - sum.ln()).collect()
}

/// Errors against the reference, collected over the cases of a checkpoint.
#[derive(Default)]
pub(crate) struct Errors {
    pub(crate) top8: Vec<f64>,
    pub(crate) nll: f64,
    pub(crate) compared_tokens: usize,
}

impl Errors {
    pub(crate) fn add_prompt(&mut self, case: &Case, logits: &[Vec<f32>]) {
        assert_eq!(logits.len(), case.prompt.len());
        let next = log_probabilities(&logits[logits.len() - 1]);
        self.top8.extend(case.next_top8.iter().map(|(id, expected)| (next[*id as usize] - expected).abs()));
        if let Some(expected) = case.prompt_nll {
            let total: f64 = case.prompt[1..]
                .iter()
                .zip(logits)
                .map(|(token, logits)| -log_probabilities(logits)[*token as usize])
                .sum();
            self.nll = self.nll.max((total / (case.prompt.len() - 1) as f64 - expected).abs());
        }
    }

    pub(crate) fn add_greedy(&mut self, case: &Case, tokens: &[u32], margin: f64) {
        let steps = case
            .greedy_margin
            .iter()
            .position(|gap| *gap < margin)
            .unwrap_or(case.greedy.len())
            .min(tokens.len());
        assert_eq!(tokens[..steps], case.greedy[..steps], "greedy tokens of prompt {:?}", case.prompt);
        self.compared_tokens += steps;
    }

    #[expect(clippy::print_stdout, reason = "the measured maxima are for people to read")]
    pub(crate) fn check(&self, what: &str, tolerance: Tolerance) {
        let largest = self.top8.iter().copied().fold(0.0, f64::max);
        let mean = self.top8.iter().sum::<f64>() / self.top8.len().max(1) as f64;
        println!(
            "{what}: log-probability error mean {mean:.4} largest {largest:.4}, NLL error {:.4}, {} greedy tokens equal",
            self.nll, self.compared_tokens
        );
        assert!(
            largest <= tolerance.largest && mean <= tolerance.mean && self.nll <= tolerance.nll,
            "{what}"
        );
    }
}
