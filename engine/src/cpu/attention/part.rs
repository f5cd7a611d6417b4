//! One part: some queries of one key/value head over one chunk of positions.

use super::kernels::{AttentionKernels, LANES, Product, SoftmaxState};
use super::{CHUNK, PANEL};
use crate::step_plan::BLOCK_SIZE;

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
    /// A panel of keys `[head_dim][PANEL]` or of values `[PANEL][padded_dim]`.
    panel: Aligned,
    /// Scores, then weights, `[queries][CHUNK]`.
    scores: Aligned,
}

impl PartScratch {
    pub(super) fn new(shape: Shape, queries: usize) -> Self {
        Self { panel: Aligned::new(PANEL * shape.padded_dim()), scores: Aligned::new(queries * CHUNK) }
    }
}

/// Fills `sums` (`[queries][padded_dim]`) and `states` (`[queries]`) of every row that sees the chunk; the
/// others' are left alone. `block(i)` is the `i`-th block of the chunk: keys and values in fp16.
///
/// No hidden slot has an influence: it may hold anything, even what is not a number.
pub(super) fn attend<'a>(
    kernels: AttentionKernels,
    shape: Shape,
    view: View,
    block: impl Fn(usize) -> (&'a [u16], &'a [u16]),
    queries: &[f32],
    scratch: &mut PartScratch,
    sums: &mut [f32],
    states: &mut [SoftmaxState],
) {
    let (group, padded_dim) = (shape.group, shape.padded_dim());
    let (panel, scores) = (scratch.panel.as_mut_slice(), scratch.scores.as_mut_slice());
    let (first_row, end) = (view.first_row(0), view.seen(view.rows - 1, 0));

    for offset in (0..end).step_by(PANEL) {
        let blocks = PANEL.min(end - offset).div_ceil(BLOCK_SIZE);
        for b in 0..blocks {
            let (keys, _) = block(offset / BLOCK_SIZE + b);
            kernels.widen(keys, BLOCK_SIZE, &mut panel[b * BLOCK_SIZE..], PANEL);
        }
        let first_row = view.first_row(offset);
        let product = Product {
            rows: (view.rows - first_row) * group,
            depth: shape.head_dim,
            columns: blocks * BLOCK_SIZE,
            a: &queries[first_row * shape.group_width()..],
            a_stride: shape.head_dim,
            b: panel,
            b_stride: PANEL,
            add: false,
        };
        kernels.multiply(&product, &mut scores[first_row * group * CHUNK + offset..], CHUNK);
    }

    for row in first_row..view.rows {
        for query in row * group..(row + 1) * group {
            states[query] = kernels.softmax(&mut scores[query * CHUNK..][..CHUNK], view.seen(row, 0));
        }
    }

    sums[first_row * group * padded_dim..view.rows * group * padded_dim].fill(0.0);
    for offset in (0..end).step_by(PANEL) {
        for b in 0..PANEL.min(end - offset).div_ceil(BLOCK_SIZE) {
            let (_, values) = block(offset / BLOCK_SIZE + b);
            let to = &mut panel[b * BLOCK_SIZE * padded_dim..];
            kernels.widen(values, shape.head_dim, to, padded_dim);
        }
        let mut add = |row: usize, rows: usize, depth: usize| {
            let product = Product {
                rows: rows * group,
                depth,
                columns: padded_dim,
                a: &scores[row * group * CHUNK + offset..],
                a_stride: CHUNK,
                b: panel,
                b_stride: padded_dim,
                add: true,
            };
            kernels.multiply(&product, &mut sums[row * group * padded_dim..], padded_dim);
        };
        // Rows that see a part of the panel stop at their own last position: a hidden value times a
        // weight of zero could still be NaN.
        let first_whole = view.first_row(offset + PANEL - 1).min(view.rows);
        for row in view.first_row(offset)..first_whole {
            add(row, 1, view.seen(row, offset));
        }
        if first_whole < view.rows {
            add(first_whole, view.rows - first_whole, PANEL);
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
