//! One part: some queries of one key/value head over one chunk of positions.

use std::ops::Range;

use super::kernels::{AttentionKernels, Factor, LANES, Product, SoftmaxState, Stored};
use super::{CHUNK, PANEL};
use crate::cpu::kv_cache::HeadBlock;
use crate::step_plan::BLOCK_SIZE;

/// With no more queries than this, keys and values are widened as they are read: storing them first would
/// cost more than it saves.
const MOST_DIRECT_QUERIES: usize = 16;

/// Queries that the kernels take at a time from widened keys; quarters of a unit are multiples of it.
const QUERIES_AT_A_TIME: usize = 6;

/// How far ahead of the block that is being read blocks are fetched: some hundred nanoseconds.
const BLOCKS_AHEAD: usize = 2;

/// A model's heads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Shape {
    pub(super) num_kv_heads: usize,
    /// Query heads per key/value head.
    pub(super) group: usize,
    pub(super) head_dim: usize,
}

impl Shape {
    /// `head_dim` as the kernels need it: a multiple of [`LANES`].
    pub(super) fn padded_dim(self) -> usize {
        self.head_dim.next_multiple_of(LANES)
    }

    /// Positions whose values are widened at a time: as many as leave room in a first-level cache.
    pub(super) fn value_panel(self) -> usize {
        if self.padded_dim() <= 64 { 2 * PANEL } else { PANEL }
    }

    /// Columns of the query heads of one key/value head.
    pub(super) fn group_width(self) -> usize {
        self.group * self.head_dim
    }

    /// Columns of all query heads.
    pub(super) fn query_width(self) -> usize {
        self.num_kv_heads * self.group_width()
    }

    /// Columns of all query, key and value heads.
    pub(super) fn qkv_width(self) -> usize {
        self.query_width() + 2 * self.num_kv_heads * self.head_dim
    }
}

/// Which rows of a unit see what of a chunk. Rows are counted within the unit.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    pub(super) rows: usize,
    pub(super) first_position: usize,
    pub(super) chunk: usize,
}

impl View {
    /// The first row that sees the `offset`-th position of the chunk; may be beyond the last one.
    pub(super) fn first_row(self, offset: usize) -> usize {
        (self.chunk * CHUNK + offset).saturating_sub(self.first_position)
    }

    /// Positions that `row` sees from the `offset`-th of the chunk on.
    fn seen(self, row: usize, offset: usize) -> usize {
        (self.first_position + row + 1).saturating_sub(self.chunk * CHUNK + offset).min(CHUNK - offset)
    }
}

/// Working memory for parts.
pub(super) struct PartScratch {
    /// A panel of keys `[head_dim][PANEL]` or of values `[value_panel][padded_dim]`.
    panel: Aligned,
    /// Scores, then weights, `[queries][CHUNK]`.
    scores: Aligned,
    /// Scales of the chunk's keys, then of its values, `[2][CHUNK]`; unused where the cache has none.
    scales: Aligned,
}

impl PartScratch {
    pub(super) fn new(shape: Shape, queries: usize) -> Self {
        Self {
            panel: Aligned::new(shape.value_panel() * shape.padded_dim()),
            scores: Aligned::new(queries * CHUNK),
            scales: Aligned::new(2 * CHUNK),
        }
    }
}

/// What a part is computed from.
pub(super) struct Part<'a, B> {
    pub(super) kernels: AttentionKernels,
    pub(super) shape: Shape,
    pub(super) view: View,
    /// `block(i)` is the `i`-th block of the chunk.
    pub(super) block: B,
    /// `[rows][group][head_dim]`.
    pub(super) queries: &'a [f32],
}

impl<'a, B: Fn(usize) -> HeadBlock<'a>> Part<'a, B> {
    /// Fills `sums` (`[queries][padded_dim]`) and `states` (`[queries]`) of every row that sees the chunk; the
    /// others' are left alone.
    ///
    /// No hidden slot has an influence: it may hold anything, even what is not a number.
    pub(super) fn attend(&self, scratch: &mut PartScratch, sums: &mut [f32], states: &mut [SoftmaxState]) {
        let Shape { group, head_dim, .. } = self.shape;
        let (view, padded_dim) = (self.view, self.shape.padded_dim());
        let PartScratch { panel, scores, scales } = scratch;
        let (panel, scores) = (panel.as_mut_slice(), scores.as_mut_slice());
        let direct = view.rows * group <= MOST_DIRECT_QUERIES && head_dim == padded_dim;
        if direct {
            self.score_blocks(scores);
        } else {
            self.score_panels(panel, scores);
        }
        let scales = self.load_scales(scales.as_mut_slice());
        for row in view.first_row(0)..view.rows {
            let seen = view.seen(row, 0);
            for query in row * group..(row + 1) * group {
                let scores = &mut scores[query * CHUNK..][..seen.next_multiple_of(LANES)];
                if let Some((of_keys, _)) = scales {
                    self.kernels.scale(scores, &of_keys[..scores.len()]);
                }
                states[query] = self.kernels.softmax(scores, seen);
                if let Some((_, of_values)) = scales {
                    self.kernels.scale(scores, &of_values[..scores.len()]);
                }
            }
        }
        if direct {
            self.add_blocks(scores, sums);
        } else {
            self.add_panels(panel, scores, sums);
        }
    }

    /// Positions of the chunk that the last row sees.
    fn end(&self) -> usize {
        self.view.seen(self.view.rows - 1, 0)
    }

    /// The chunk's scales of keys and of values, where the cache has them. They are applied to scores and weights:
    /// so no element needs a multiplication of its own, and keys and values are read as the integers they are
    /// however many queries there are.
    fn load_scales<'s>(&self, scales: &'s mut [f32]) -> Option<(&'s [f32], &'s [f32])> {
        for b in 0..self.end().div_ceil(BLOCK_SIZE) {
            let of_block = Stored::F16((self.block)(b).scales?);
            self.kernels.widen(of_block, BLOCK_SIZE, &mut scales[b * BLOCK_SIZE..], CHUNK);
        }
        Some(scales.split_at(CHUNK))
    }

    /// Scores straight from the cache, a block at a time.
    fn score_blocks(&self, scores: &mut [f32]) {
        let blocks = self.end().div_ceil(BLOCK_SIZE);
        for b in 0..blocks {
            let ahead = match b + BLOCKS_AHEAD {
                next if next < blocks => (self.block)(next).keys,
                // The values come after the keys.
                next => (self.block)((next - blocks).min(blocks - 1)).values,
            };
            let keys = Factor::Stored { values: (self.block)(b).keys, ahead };
            let group = self.shape.group;
            let queries = self.view.first_row(b * BLOCK_SIZE) * group..self.view.rows * group;
            self.score(keys, BLOCK_SIZE, queries, b * BLOCK_SIZE, BLOCK_SIZE, scores);
        }
    }

    /// Scores from widened keys, a panel at a time.
    fn score_panels(&self, panel: &mut [f32], scores: &mut [f32]) {
        for offset in (0..self.end()).step_by(PANEL) {
            let blocks = PANEL.min(self.end() - offset).div_ceil(BLOCK_SIZE);
            for b in 0..blocks {
                let HeadBlock { keys, .. } = (self.block)(offset / BLOCK_SIZE + b);
                self.kernels.widen(keys, BLOCK_SIZE, &mut panel[b * BLOCK_SIZE..], PANEL);
            }
            // Each quarter of the queries fetches one block of the next panel, values included.
            let queries = self.view.first_row(offset) * self.shape.group..self.view.rows * self.shape.group;
            let quarter = queries.len().div_ceil(PANEL / BLOCK_SIZE).next_multiple_of(QUERIES_AT_A_TIME);
            for (b, first) in queries.clone().step_by(quarter).enumerate() {
                let next = (offset + PANEL) / BLOCK_SIZE + b;
                let next = (self.block)(next.min((self.end() - 1) / BLOCK_SIZE));
                let keys = Factor::F32 { values: panel, ahead: next.keys };
                let queries = first..queries.end.min(first + quarter);
                self.score(keys, PANEL, queries, offset, blocks * BLOCK_SIZE, scores);
            }
        }
    }

    /// Scores of some queries with `positions` positions from `offset` on.
    fn score(
        &self,
        keys: Factor<'_>,
        stride: usize,
        queries: Range<usize>,
        offset: usize,
        positions: usize,
        scores: &mut [f32],
    ) {
        let head_dim = self.shape.head_dim;
        let product = Product {
            rows: queries.len(),
            depth: head_dim,
            columns: positions,
            a: &self.queries[queries.start * head_dim..],
            a_stride: head_dim,
            b: keys,
            b_stride: stride,
            add: false,
        };
        self.kernels.multiply(&product, &mut scores[queries.start * CHUNK + offset..], CHUNK);
    }

    /// Weighted values straight from the cache, a block at a time.
    fn add_blocks(&self, weights: &[f32], sums: &mut [f32]) {
        let blocks = self.end().div_ceil(BLOCK_SIZE);
        for b in 0..blocks {
            let ahead = (self.block)((b + BLOCKS_AHEAD).min(blocks - 1)).values;
            let values = Factor::Stored { values: (self.block)(b).values, ahead };
            self.add(values, b * BLOCK_SIZE, BLOCK_SIZE, weights, sums);
        }
    }

    /// Weighted values, widened a panel at a time.
    fn add_panels(&self, panel: &mut [f32], weights: &[f32], sums: &mut [f32]) {
        let (head_dim, padded_dim) = (self.shape.head_dim, self.shape.padded_dim());
        let positions = self.shape.value_panel();
        for offset in (0..self.end()).step_by(positions) {
            for b in 0..positions.min(self.end() - offset).div_ceil(BLOCK_SIZE) {
                let HeadBlock { values, .. } = (self.block)(offset / BLOCK_SIZE + b);
                self.kernels.widen(values, head_dim, &mut panel[b * BLOCK_SIZE * padded_dim..], padded_dim);
            }
            let values = Factor::F32 { values: panel, ahead: Stored::F16(&[]) };
            self.add(values, offset, positions, weights, sums);
        }
    }

    /// Adds the values of `positions` positions from `offset` on. Rows that see some of them only stop at their
    /// last: a hidden value times a weight of zero could still be NaN.
    fn add(&self, values: Factor<'_>, offset: usize, positions: usize, weights: &[f32], sums: &mut [f32]) {
        let (group, padded_dim, view) = (self.shape.group, self.shape.padded_dim(), self.view);
        let mut add_rows = |rows: Range<usize>, depth: usize| {
            let product = Product {
                rows: rows.len() * group,
                depth,
                columns: padded_dim,
                a: &weights[rows.start * group * CHUNK + offset..],
                a_stride: CHUNK,
                b: values,
                b_stride: padded_dim,
                // Whoever sees the chunk sees its beginning.
                add: offset > 0,
            };
            self.kernels.multiply(&product, &mut sums[rows.start * group * padded_dim..], padded_dim);
        };
        let first_whole = view.first_row(offset + positions - 1).min(view.rows);
        for row in view.first_row(offset)..first_whole {
            add_rows(row..row + 1, view.seen(row, offset));
        }
        if first_whole < view.rows {
            add_rows(first_whole..view.rows, positions);
        }
    }
}

/// Floats that begin on a cache line, so that no register is loaded from two.
pub(super) struct Aligned {
    storage: Vec<f32>,
    start: usize,
    len: usize,
}

impl Aligned {
    pub(super) fn new(len: usize) -> Self {
        let storage = vec![0.0; len + LANES];
        let start = storage.as_ptr().align_offset(LANES * size_of::<f32>()).min(LANES);
        Self { storage, start, len }
    }

    pub(super) fn as_slice(&self) -> &[f32] {
        &self.storage[self.start..][..self.len]
    }

    pub(super) fn as_mut_slice(&mut self) -> &mut [f32] {
        &mut self.storage[self.start..][..self.len]
    }
}
