//! Causal attention over the paged cache, with an online softmax.
//!
//! A task is a few rows of one sequence and one key/value head with all its query heads: a block is
//! widened to `f32` once and serves them all. Every query folds the blocks in from position 0 on, one
//! block at a time, whatever else the task holds, so its result depends on nothing but its own sequence.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use super::kernels::{Kernels, KvBlock, SoftmaxState};
use super::kv_cache::KvCache;
use super::linear::DisjointRows;
use super::rotary::Rotary;
use super::threads::ThreadPool;
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, StepPlan};

/// Rows of one sequence in one task.
const ROWS_PER_TASK: usize = 8;

/// One thread's working memory.
struct Scratch {
    /// Rotated and scaled queries, `[rows][query heads][head_dim]`.
    queries: Vec<f32>,
    /// Weighted sums of values, as `queries`.
    accumulators: Vec<f32>,
    /// `[rows][query heads]`.
    states: Vec<SoftmaxState>,
    /// One block in `f32`.
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Rows of one sequence that are handled together.
#[derive(Clone)]
struct RowGroup {
    sequence: usize,
    rows: Range<usize>,
}

/// Attention of one model; keeps working memory between steps.
pub(super) struct Attention {
    num_kv_heads: usize,
    /// Query heads per key/value head.
    group: usize,
    head_dim: usize,
    scratch: Vec<Mutex<Scratch>>,
    row_groups: Vec<RowGroup>,
}

impl Attention {
    pub(super) fn new(config: &ModelConfig, threads: usize) -> Self {
        let (group, head_dim) = (config.heads_per_kv_head(), config.head_dim);
        let heads = ROWS_PER_TASK * group;
        let scratch = || {
            Mutex::new(Scratch {
                queries: vec![0.0; heads * head_dim],
                accumulators: vec![0.0; heads * head_dim],
                states: vec![SoftmaxState::EMPTY; heads],
                keys: vec![0.0; BLOCK_SIZE * head_dim],
                values: vec![0.0; BLOCK_SIZE * head_dim],
            })
        };
        Self {
            num_kv_heads: config.num_kv_heads,
            group,
            head_dim,
            scratch: (0..threads).map(|_| scratch()).collect(),
            row_groups: Vec::new(),
        }
    }

    /// Cuts the step into tasks; once per step.
    pub(super) fn prepare(&mut self, plan: &StepPlan) {
        self.row_groups.clear();
        for (sequence, planned) in plan.sequences.iter().enumerate() {
            for start in planned.rows.clone().step_by(ROWS_PER_TASK) {
                let rows = start..planned.rows.end.min(start + ROWS_PER_TASK);
                self.row_groups.push(RowGroup { sequence, rows });
            }
        }
        // Late rows see more blocks: the longest tasks first, so that none is left for the end.
        self.row_groups.reverse();
    }

    /// Attention of one layer. `qkv` is `[rows][query heads, then key heads, then value heads]`, before rotation;
    /// the step's keys and values are in the cache already. `output` is `[rows][query heads * head_dim]`.
    #[expect(
        clippy::too_many_arguments,
        reason = "the parts of one layer; a struct of them would be built only here"
    )]
    pub(super) fn run(
        &self,
        kernels: Kernels,
        pool: &mut ThreadPool,
        plan: &StepPlan,
        cache: &KvCache,
        layer: usize,
        rotary: &Rotary,
        qkv: &[f32],
        output: &mut [f32],
    ) {
        let width = self.num_kv_heads * self.group * self.head_dim;
        let output = DisjointRows::new(output, width);
        pool.run(self.row_groups.len() * self.num_kv_heads, |task, thread| {
            let (rows, kv_head) = (&self.row_groups[task / self.num_kv_heads], task % self.num_kv_heads);
            let mut scratch = self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner);
            self.load_queries(&mut scratch, rows, kv_head, rotary, qkv);
            self.fold_blocks(&mut scratch, kernels, plan, cache, [layer, kv_head], rows);
            let columns = self.group * self.head_dim;
            for (r, row) in rows.rows.clone().enumerate() {
                // SAFETY: each task is alone with its rows and its head's columns.
                let to = unsafe { output.part(row, kv_head * columns, columns) };
                let from = &scratch.accumulators[r * columns..][..columns];
                for (head, (to, from)) in
                    to.chunks_exact_mut(self.head_dim).zip(from.chunks_exact(self.head_dim)).enumerate()
                {
                    let scale = 1.0 / scratch.states[r * self.group + head].sum;
                    for (to, from) in to.iter_mut().zip(from) {
                        *to = from * scale;
                    }
                }
            }
        });
    }

    /// Rotates and scales the queries of a task and clears its sums.
    fn load_queries(
        &self,
        scratch: &mut Scratch,
        rows: &RowGroup,
        kv_head: usize,
        rotary: &Rotary,
        qkv: &[f32],
    ) {
        let width = (self.group + 2) * self.num_kv_heads * self.head_dim;
        let columns = self.group * self.head_dim;
        let scale = 1.0 / (self.head_dim as f32).sqrt();
        for (r, row) in rows.rows.clone().enumerate() {
            let from = &qkv[row * width + kv_head * columns..][..columns];
            let to = &mut scratch.queries[r * columns..][..columns];
            for (from, to) in from.chunks_exact(self.head_dim).zip(to.chunks_exact_mut(self.head_dim)) {
                rotary.rotate(row, from, scale, to);
            }
        }
        scratch.accumulators.fill(0.0);
        scratch.states.fill(SoftmaxState::EMPTY);
    }

    fn fold_blocks(
        &self,
        scratch: &mut Scratch,
        kernels: Kernels,
        plan: &StepPlan,
        cache: &KvCache,
        [layer, kv_head]: [usize; 2],
        rows: &RowGroup,
    ) {
        let block_table = &plan.sequences[rows.sequence].block_table;
        let last_position = plan.positions[rows.rows.end - 1] as usize;
        let Scratch { queries, accumulators, states, keys, values } = scratch;
        for (b, block) in block_table[..=last_position / BLOCK_SIZE].iter().enumerate() {
            let (key_bits, value_bits) = cache.head(layer, *block, kv_head);
            kernels.f16_to_f32(key_bits, keys);
            kernels.f16_to_f32(value_bits, values);
            for (r, row) in rows.rows.clone().enumerate() {
                let position = plan.positions[row] as usize;
                if b * BLOCK_SIZE > position {
                    continue;
                }
                let visible = BLOCK_SIZE.min(position + 1 - b * BLOCK_SIZE);
                let block = KvBlock { keys, values, visible };
                let heads = r * self.group..(r + 1) * self.group;
                for (head, state) in heads.clone().zip(&mut states[heads]) {
                    let columns = head * self.head_dim..(head + 1) * self.head_dim;
                    kernels.attend_block(
                        &queries[columns.clone()],
                        &block,
                        state,
                        &mut accumulators[columns],
                    );
                }
            }
        }
    }
}
