//! Causal attention over the paged cache, in chunks of positions.
//!
//! The positions of a sequence are cut into chunks of `CHUNK`, counted from its start. For every query
//! and chunk there is a `part`: the softmax over the chunk's positions that the query may see, and the sum
//! of their values so weighted. Parts are merged in the order of the chunks. So a query's result depends on
//! its own sequence only: neither on the rows beside it nor on how the work was cut.
//!
//! A *unit* is some rows of one sequence: with all query heads of one key/value head they are as many
//! queries as make widening keys and values to `f32` cheap. Where a step has many units, a task takes one
//! through all its chunks. Where it has few (decoding, the tail of a cached prompt), every chunk of a unit is
//! a task, and whoever finishes the last chunk of a unit merges its parts.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
pub mod kernels;
mod part;
mod portable;
#[cfg(test)]
mod tests;

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub use kernels::AttentionKernels;
use kernels::SoftmaxState;
use part::{Aligned, Part, PartScratch, Shape, View};

use super::kv_cache::HeadWriter;
pub use super::kv_cache::{KvCache, KvFormat};
use super::linear::DisjointRows;
use super::rotary::Rotary;
use super::threads::ThreadPool;
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, StepPlan};
use crate::turns;

/// Positions of one part.
const CHUNK: usize = 256;

/// Positions whose keys are widened at a time: as many as the kernels score at a time.
const PANEL: usize = 64;

/// Queries of one unit: rows times the query heads of one key/value head.
const QUERIES_PER_UNIT: usize = 112;

/// With fewer units per thread than this, chunks become tasks.
const UNITS_PER_THREAD: usize = 8;

/// Most elements of parts that are kept for merging; where there would be more, units are not cut.
const MOST_PART_ELEMENTS: usize = 4 << 20;

/// Fewer rows are appended to the cache by one thread before another has started.
const ROWS_WORTH_A_REGION: usize = 16;

const _: () = assert!(CHUNK.is_multiple_of(2 * PANEL) && PANEL.is_multiple_of(BLOCK_SIZE));
const _: () = assert!(BLOCK_SIZE == kernels::LANES);

/// Attention of one model; keeps working memory between steps.
pub struct Attention {
    kernels: AttentionKernels,
    shape: Shape,
    rotary: Rotary,
    /// One per thread.
    scratch: Vec<Mutex<Scratch>>,
    units: Vec<Unit>,
    /// `(unit, chunk)` of each task; empty where units are not cut.
    cuts: Vec<(usize, usize)>,
    /// Chunks that are still to be done, `[units][key/value heads]`; back at its start after each layer.
    chunks_left: Vec<AtomicUsize>,
    parts: Parts,
}

/// The parts of all cut units; see [`Unit::first_part`].
#[derive(Default)]
struct Parts {
    /// `[parts][padded_dim]`.
    sums: Vec<f32>,
    states: Vec<SoftmaxState>,
}

/// Rows of one sequence that are handled together.
struct Unit {
    sequence: usize,
    rows: Range<usize>,
    first_position: usize,
    /// Chunks that the last row sees.
    chunks: usize,
    /// Where its parts begin if it is cut: `[key/value heads][chunks][queries]`.
    first_part: usize,
}

impl Unit {
    fn view(&self, chunk: usize) -> View {
        View { rows: self.rows.len(), first_position: self.first_position, chunk }
    }
}

/// One thread's working memory.
struct Scratch {
    /// Rotated and scaled queries, `[queries][head_dim]`.
    queries: Aligned,
    for_parts: PartScratch,
    part: Sums,
    total: Sums,
    new_entry: Entry,
}

/// A rotated key, and a key and a value as the cache keeps them.
struct Entry {
    key: Vec<f32>,
    key_bits: Vec<u16>,
    value_bits: Vec<u16>,
    key_digits: Vec<i8>,
    value_digits: Vec<i8>,
}

impl Entry {
    fn new(head_dim: usize) -> Self {
        Self {
            key: vec![0.0; head_dim],
            key_bits: vec![0; head_dim],
            value_bits: vec![0; head_dim],
            key_digits: vec![0; head_dim],
            value_digits: vec![0; head_dim],
        }
    }
}

/// Weighted sums of values and their states.
struct Sums {
    /// `[queries][padded_dim]`.
    values: Aligned,
    states: Vec<SoftmaxState>,
}

impl Sums {
    fn new(shape: Shape, queries: usize) -> Self {
        let values = Aligned::new(queries * shape.padded_dim());
        Self { values, states: vec![SoftmaxState::EMPTY; queries] }
    }

    fn clear(&mut self) {
        self.values.as_mut_slice().fill(0.0);
        self.states.fill(SoftmaxState::EMPTY);
    }
}

/// What the tasks of one layer share.
struct Layer<'a> {
    plan: &'a StepPlan,
    cache: &'a KvCache,
    index: usize,
    qkv: &'a [f32],
    output: DisjointRows<'a, f32>,
}

impl Attention {
    /// Attention of a model, for so many threads.
    pub fn new(kernels: AttentionKernels, config: &ModelConfig, threads: usize) -> Self {
        let (group, head_dim) = (config.heads_per_kv_head(), config.head_dim);
        let shape = Shape { num_kv_heads: config.num_kv_heads, group, head_dim };
        let queries = rows_per_unit(shape) * group;
        let scratch = || Scratch {
            queries: Aligned::new(queries * head_dim),
            for_parts: PartScratch::new(shape, queries),
            part: Sums::new(shape, queries),
            total: Sums::new(shape, queries),
            new_entry: Entry::new(head_dim),
        };
        Self {
            kernels,
            shape,
            rotary: Rotary::new(head_dim, config.rope_theta),
            scratch: (0..threads).map(|_| Mutex::new(scratch())).collect(),
            units: Vec::new(),
            cuts: Vec::new(),
            chunks_left: Vec::new(),
            parts: Parts::default(),
        }
    }

    /// Cuts a step into units and tasks, and computes its angles; once per step.
    pub fn prepare(&mut self, plan: &StepPlan) {
        self.rotary.prepare(&plan.positions);
        self.units.clear();
        let (heads, mut parts) = (self.shape.num_kv_heads, 0);
        for (sequence, planned) in plan.sequences.iter().enumerate() {
            for start in planned.rows.clone().step_by(rows_per_unit(self.shape)) {
                let rows = start..planned.rows.end.min(start + rows_per_unit(self.shape));
                let first_position = plan.positions[start] as usize;
                let chunks = plan.positions[rows.end - 1] as usize / CHUNK + 1;
                let queries = rows.len() * self.shape.group;
                self.units.push(Unit { sequence, rows, first_position, chunks, first_part: parts });
                parts += heads * chunks * queries;
            }
        }
        // The longest first, so that none is left for the end.
        self.units.sort_unstable_by_key(|unit| std::cmp::Reverse((unit.chunks, unit.first_part)));

        self.cuts.clear();
        self.chunks_left.clear();
        let part_elements = parts * self.shape.padded_dim();
        let few = self.units.len() * heads < UNITS_PER_THREAD * self.scratch.len();
        if few && part_elements <= MOST_PART_ELEMENTS {
            for (u, unit) in self.units.iter().enumerate() {
                self.cuts.extend((0..unit.chunks).map(|chunk| (u, chunk)));
                self.chunks_left.extend((0..heads).map(|_| AtomicUsize::new(unit.chunks)));
            }
            turns::resize(&mut self.parts.sums, part_elements, &0.0);
            turns::resize(&mut self.parts.states, parts, &SoftmaxState::EMPTY);
        }
    }

    /// Puts the keys and values of a step into a layer's cache. `qkv` is `[rows][query heads, then key
    /// heads, then value heads]`, before rotation.
    pub fn append(
        &self,
        pool: &mut ThreadPool,
        plan: &StepPlan,
        cache: &mut KvCache,
        layer: usize,
        qkv: &[f32],
    ) {
        let format = cache.format();
        let heads = cache.layer_heads(layer);
        let append_head = |head: usize, thread: usize| {
            // SAFETY: each task is alone with its head.
            let writer = HeadWriter::new(unsafe { heads.row(head) }, self.shape.head_dim);
            let entry = &mut self.lock_scratch(thread).new_entry;
            self.append_head(entry, plan, format, writer, head, qkv);
        };
        if plan.num_rows() < ROWS_WORTH_A_REGION {
            (0..self.shape.num_kv_heads).for_each(|head| append_head(head, 0));
        } else {
            pool.run(self.shape.num_kv_heads, append_head);
        }
    }

    fn append_head(
        &self,
        entry: &mut Entry,
        plan: &StepPlan,
        format: KvFormat,
        mut writer: HeadWriter<'_>,
        head: usize,
        qkv: &[f32],
    ) {
        let head_dim = self.shape.head_dim;
        let key_column = self.shape.query_width() + head * head_dim;
        let value_column = key_column + self.shape.num_kv_heads * head_dim;
        let Entry { key, key_bits, value_bits, key_digits, value_digits } = entry;
        for sequence in &plan.sequences {
            for row in sequence.rows.clone() {
                turns::end_if_over();
                let from = &qkv[row * self.shape.qkv_width()..][..self.shape.qkv_width()];
                let (cos, sin) = self.rotary.angles(row);
                self.kernels.rotate(&from[key_column..][..head_dim], cos, sin, 1.0, key);
                let value = &from[value_column..][..head_dim];
                let position = plan.positions[row] as usize;
                let (block, slot) = (sequence.block_table[position / BLOCK_SIZE], position % BLOCK_SIZE);
                match format {
                    KvFormat::F16 => {
                        self.kernels.narrow(key, key_bits);
                        self.kernels.narrow(value, value_bits);
                        writer.write_f16(block, slot, key_bits, value_bits);
                    }
                    KvFormat::Int8 => {
                        let key_scale = self.kernels.quantize(key, key_digits);
                        let value_scale = self.kernels.quantize(value, value_digits);
                        writer.write_int8(block, slot, (key_digits, key_scale), (value_digits, value_scale));
                    }
                }
            }
        }
    }

    /// Attention of one layer; the step's keys and values are in the cache already. `qkv` is as in
    /// [`append`](Self::append), `output` is `[rows][query heads * head_dim]`.
    pub fn run(
        &mut self,
        pool: &mut ThreadPool,
        plan: &StepPlan,
        cache: &KvCache,
        layer: usize,
        qkv: &[f32],
        output: &mut [f32],
    ) {
        let heads = self.shape.num_kv_heads;
        let output = DisjointRows::new(output, self.shape.query_width());
        let layer = Layer { plan, cache, index: layer, qkv, output };
        // Taken out for the layer, so that tasks can write them while they read the rest.
        let mut parts = std::mem::take(&mut self.parts);
        let shared_parts = SharedParts::new(&mut parts);
        let attention = &*self;
        if attention.cuts.is_empty() {
            pool.run(attention.units.len() * heads, |task, thread| {
                let (unit, head) = (&attention.units[task / heads], task % heads);
                attention.run_unit(&layer, &mut attention.lock_scratch(thread), unit, head);
            });
        } else {
            pool.run(attention.cuts.len() * heads, |task, thread| {
                let ((unit, chunk), head) = (attention.cuts[task / heads], task % heads);
                let scratch = &mut attention.lock_scratch(thread);
                attention.run_chunk(&layer, scratch, &shared_parts, unit, chunk, head);
            });
        }
        self.parts = parts;
    }

    /// A unit and head through all chunks.
    fn run_unit(&self, layer: &Layer<'_>, scratch: &mut Scratch, unit: &Unit, head: usize) {
        self.load_queries(layer, scratch, unit, head);
        scratch.total.clear();
        for chunk in 0..unit.chunks {
            let Scratch { queries, for_parts, part, total, .. } = scratch;
            let sums = part.values.as_mut_slice();
            self.attend(layer, unit, chunk, head, queries.as_slice(), for_parts, sums, &mut part.states);
            self.merge(unit.view(chunk), total, sums, &part.states);
        }
        self.finish(layer, &scratch.total, unit, head);
    }

    /// One chunk of a unit and head; the last one to be done merges all.
    fn run_chunk(
        &self,
        layer: &Layer<'_>,
        scratch: &mut Scratch,
        parts: &SharedParts<'_>,
        unit_index: usize,
        chunk: usize,
        head: usize,
    ) {
        let unit = &self.units[unit_index];
        self.load_queries(layer, scratch, unit, head);
        // SAFETY: this chunk of this unit and head is this task's alone until it is counted below.
        let (sums, states) = unsafe { parts.of(self.shape, unit, head, chunk) };
        let Scratch { queries, for_parts, total, .. } = scratch;
        self.attend(layer, unit, chunk, head, queries.as_slice(), for_parts, sums, states);

        let left = &self.chunks_left[unit_index * self.shape.num_kv_heads + head];
        if left.fetch_sub(1, Ordering::AcqRel) > 1 {
            return;
        }
        left.store(unit.chunks, Ordering::Relaxed);
        total.clear();
        for chunk in 0..unit.chunks {
            // SAFETY: all chunks of this unit and head are done and counted; nobody writes them any more.
            let (sums, states) = unsafe { parts.of(self.shape, unit, head, chunk) };
            self.merge(unit.view(chunk), total, sums, states);
        }
        self.finish(layer, total, unit, head);
    }

    /// Rotates and scales a unit's queries. Scores come out in powers of two.
    fn load_queries(&self, layer: &Layer<'_>, scratch: &mut Scratch, unit: &Unit, head: usize) {
        let Shape { head_dim, .. } = self.shape;
        let (width, columns) = (self.shape.qkv_width(), self.shape.group_width());
        let scale = std::f32::consts::LOG2_E / (head_dim as f32).sqrt();
        let queries = scratch.queries.as_mut_slice();
        for (row, to) in unit.rows.clone().zip(queries.chunks_exact_mut(columns)) {
            let from = &layer.qkv[row * width + head * columns..][..columns];
            let (cos, sin) = self.rotary.angles(row);
            for (from, to) in from.chunks_exact(head_dim).zip(to.chunks_exact_mut(head_dim)) {
                self.kernels.rotate(from, cos, sin, scale, to);
            }
        }
    }

    #[expect(clippy::too_many_arguments, reason = "a part's place, and where it is computed")]
    fn attend(
        &self,
        layer: &Layer<'_>,
        unit: &Unit,
        chunk: usize,
        head: usize,
        queries: &[f32],
        scratch: &mut PartScratch,
        sums: &mut [f32],
        states: &mut [SoftmaxState],
    ) {
        let blocks = &layer.plan.sequences[unit.sequence].block_table[chunk * CHUNK / BLOCK_SIZE..];
        let block = |i: usize| layer.cache.head(layer.index, blocks[i], head);
        let part = Part { kernels: self.kernels, shape: self.shape, view: unit.view(chunk), block, queries };
        part.attend(scratch, sums, states);
    }

    /// Adds the part of every row that sees the chunk.
    fn merge(&self, view: View, total: &mut Sums, sums: &[f32], states: &[SoftmaxState]) {
        let padded_dim = self.shape.padded_dim();
        let first = view.first_row(0) * self.shape.group;
        let totals = total.values.as_mut_slice()[first * padded_dim..].chunks_exact_mut(padded_dim);
        let sums = sums[first * padded_dim..].chunks_exact(padded_dim);
        let queries = first..view.rows * self.shape.group;
        for (query, (total_sum, sum)) in queries.zip(totals.zip(sums)) {
            self.kernels.merge(total_sum, &mut total.states[query], sum, states[query]);
        }
    }

    /// Divides the sums by the weights and stores them as the unit's output.
    fn finish(&self, layer: &Layer<'_>, total: &Sums, unit: &Unit, head: usize) {
        let Shape { group, head_dim, .. } = self.shape;
        let columns = self.shape.group_width();
        let mut totals = total.values.as_slice().chunks_exact(self.shape.padded_dim()).zip(&total.states);
        for row in unit.rows.clone() {
            // SAFETY: each unit is alone with its rows, and each of its heads with its columns.
            let to = unsafe { layer.output.part(row, head * columns, columns) };
            for (to, (sum, state)) in to.chunks_exact_mut(head_dim).zip(totals.by_ref().take(group)) {
                let scale = 1.0 / state.sum;
                for (to, sum) in to.iter_mut().zip(sum) {
                    *to = sum * scale;
                }
            }
        }
    }

    fn lock_scratch(&self, thread: usize) -> MutexGuard<'_, Scratch> {
        self.scratch[thread].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// [`Parts`] that several threads write.
struct SharedParts<'a> {
    sums: DisjointRows<'a, f32>,
    states: DisjointRows<'a, SoftmaxState>,
}

impl<'a> SharedParts<'a> {
    fn new(parts: &'a mut Parts) -> Self {
        // One row each: a chunk's parts are a stretch of it.
        let (sums, states) = (parts.sums.len(), parts.states.len());
        Self {
            sums: DisjointRows::new(&mut parts.sums, sums),
            states: DisjointRows::new(&mut parts.states, states),
        }
    }

    /// The parts of one chunk of a unit and head.
    ///
    /// # Safety
    /// No other live slice may be of the same chunk, unit and head.
    unsafe fn of(
        &self,
        shape: Shape,
        unit: &Unit,
        head: usize,
        chunk: usize,
    ) -> (&'a mut [f32], &'a mut [SoftmaxState]) {
        let queries = unit.rows.len() * shape.group;
        let first = unit.first_part + (head * unit.chunks + chunk) * queries;
        let padded_dim = shape.padded_dim();
        // SAFETY: the caller's promise.
        unsafe {
            let sums = self.sums.part(0, first * padded_dim, queries * padded_dim);
            (sums, self.states.part(0, first, queries))
        }
    }
}

fn rows_per_unit(shape: Shape) -> usize {
    (QUERIES_PER_UNIT / shape.group).max(1)
}
