//! Linear layers over token rows: which kernel, spread how, written where.

use std::ops::Range;

use super::kernels::{Digits, FloatRows, Kernels, PAIR, QuantTile, QuantizedGroup, QuantizedRows, TILE};
use super::threads::ThreadPool;
use super::weights::{GateUp, Linear, Matrix, QuantMatrix};
use crate::turns;

/// Tokens whose results one thread holds at a time: whole blocks of rows, and with the weights of one group
/// they fit the first-level cache.
const ROWS_PER_PASS: usize = 96;

/// The same for a few tokens, so that decoding does not clear memory it will not use.
const ROWS_PER_SMALL_PASS: usize = 12;

/// The same for what is new of a prompt that is mostly cached.
const ROWS_PER_TAIL_PASS: usize = 24;

/// Products of int8 digits between two questions whether others should run: 50 to 100 microseconds with AVX2.
const PRODUCTS_AT_ONCE: usize = 1 << 21;

/// Widest group of a quantized layer.
const LARGEST_GROUP: usize = 128;

/// What happens to results.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Write {
    /// They are stored.
    Store,
    /// They are added to what is there (the residual stream).
    Add,
}

/// Token rows as inputs of linear layers: in floats, and rounded to int8 digits where that is wanted.
pub(super) struct Activations {
    width: usize,
    rows: usize,
    /// `[rows][width]`.
    values: Vec<f32>,
    /// `None` where all layers take floats.
    quantized: Option<Quantized>,
}

/// See [`QuantizedRows`].
struct Quantized {
    group_size: usize,
    digits: Digits,
    values: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Activations {
    /// Rows of `width`; rounded in groups of `group_size` where one is given.
    pub(super) fn new(width: usize, group_size: Option<usize>) -> Self {
        let quantized = group_size.map(|group_size| Quantized {
            group_size,
            digits: Digits::Two,
            values: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
        });
        Self { width, rows: 0, values: Vec::new(), quantized }
    }

    /// Makes `rows` rows: `fill(row, values)` writes each, and it is rounded to `digits` if that is wanted.
    pub(super) fn fill(
        &mut self,
        kernels: Kernels,
        pool: &mut ThreadPool,
        rows: usize,
        digits: Digits,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (width, block_rows) = (self.width, digits.block_rows());
        self.resize(rows, digits);
        let values = Disjoint::new(&mut self.values);
        let quantized = self.quantized.as_mut().map(DisjointQuantized::new);
        pool.run(rows.div_ceil(block_rows), |block, _| {
            let rows = block * block_rows..rows.min((block + 1) * block_rows);
            // SAFETY: each task takes its own rows.
            let values = unsafe { values.range(rows.start * width..rows.end * width) };
            for (row, values) in rows.clone().zip(values.chunks_exact_mut(width)) {
                fill(row, values);
            }
            if let Some(quantized) = &quantized {
                for g in 0..width / quantized.group_size {
                    // SAFETY: each task takes its own blocks.
                    let mut to = unsafe { quantized.group(width, rows.clone(), g) };
                    kernels.quantize_group(&values[g * quantized.group_size..], width, &mut to);
                }
            }
        });
    }

    fn resize(&mut self, rows: usize, digits: Digits) {
        self.rows = rows;
        turns::resize(&mut self.values, rows * self.width, &0.0);
        if let Some(quantized) = &mut self.quantized {
            let groups = self.width / quantized.group_size;
            quantized.digits = digits;
            turns::resize(&mut quantized.values, rows * self.width * digits.count(), &0);
            turns::resize(&mut quantized.scales, rows * groups, &0.0);
            turns::resize(&mut quantized.sums, rows * groups * digits.count(), &0);
        }
    }

    fn floats(&self) -> FloatRows<'_> {
        FloatRows { width: self.width, values: &self.values }
    }

    fn quantized(&self) -> Option<QuantizedRows<'_>> {
        self.quantized.as_ref().map(|quantized| QuantizedRows {
            rows: self.rows,
            width: self.width,
            group_size: quantized.group_size,
            digits: quantized.digits,
            values: &quantized.values,
            scales: &quantized.scales,
            sums: &quantized.sums,
        })
    }
}

/// Quantized rows of which several threads write different groups.
struct DisjointQuantized<'a> {
    group_size: usize,
    digits: Digits,
    values: Disjoint<'a, i8>,
    scales: Disjoint<'a, f32>,
    sums: Disjoint<'a, i32>,
}

impl<'a> DisjointQuantized<'a> {
    fn new(quantized: &'a mut Quantized) -> Self {
        Self {
            group_size: quantized.group_size,
            digits: quantized.digits,
            values: Disjoint::new(&mut quantized.values),
            scales: Disjoint::new(&mut quantized.scales),
            sums: Disjoint::new(&mut quantized.sums),
        }
    }

    /// Group `g` of one block of rows of `width`.
    ///
    /// # Safety
    /// No other live slice may be of the same group of the same block.
    unsafe fn group(&self, width: usize, block: Range<usize>, g: usize) -> QuantizedGroup<'a> {
        let (digits, groups, rows) = (self.digits.count(), width / self.group_size, block.len());
        let len = rows * self.group_size * digits;
        let values = block.start * width * digits + g * len;
        let scales = block.start * groups + g * rows;
        // SAFETY: the caller's promise; groups of a block follow one another.
        unsafe {
            QuantizedGroup {
                digits: self.digits,
                values: self.values.range(values..values + len),
                scales: self.scales.range(scales..scales + rows),
                sums: self.sums.range(scales * digits..(scales + rows) * digits),
            }
        }
    }
}

/// Runs layers that share their input, their outputs side by side: `output` is `[rows][sum of outputs]`.
///
/// One parallel region over the tiles of all of them. Every element is computed by one thread in a fixed order,
/// so neither the number of threads nor that of rows changes a bit of it.
pub(super) fn run(
    kernels: Kernels,
    pool: &mut ThreadPool,
    layers: &[Linear],
    input: &Activations,
    output: &mut [f32],
    write: Write,
) {
    let width: usize = layers.iter().map(|layer| layer.output).sum();
    assert_eq!(output.len(), input.rows * width);
    let output = Disjoint::new(output);
    run_passes(pool, input.rows, layers.iter().map(Linear::tiles).sum(), |task, rows| {
        let Some((layer, tile, first_column)) = find_tile(layers, task) else { return };
        let columns = tile * PAIR..layer.output.min((tile + 1) * PAIR);
        let bias = layer.bias.get(columns.clone());
        with_results(rows, |rows, results| {
            dot(kernels, &layer.matrix, tile, input, rows.start, results);
            for (row, result) in rows.zip(results) {
                let start = row * width + first_column + columns.start;
                // SAFETY: tiles have columns of their own, and each task is one tile.
                let to = unsafe { output.range(start..start + columns.len()) };
                write_row(to, result, bias, write);
            }
        });
    });
}

/// The layer that tile `task` of all belongs to, its number there, and the layer's first column.
fn find_tile(layers: &[Linear], task: usize) -> Option<(&Linear, usize, usize)> {
    let (mut tile, mut first_column) = (task, 0);
    for layer in layers {
        if tile < layer.tiles() {
            return Some((layer, tile, first_column));
        }
        tile -= layer.tiles();
        first_column += layer.output;
    }
    None
}

/// Runs one matrix of `width` outputs on rounded rows: `output` is `[rows][width]`.
pub(super) fn run_matrix(
    kernels: Kernels,
    pool: &mut ThreadPool,
    matrix: &QuantMatrix,
    input: &Activations,
    output: &mut [f32],
    width: usize,
) {
    assert_eq!(output.len(), input.rows * width);
    let Some(rows) = input.quantized() else { unreachable!("the input of an integer matrix is rounded") };
    let output = Disjoint::new(output);
    run_passes(pool, input.rows, width.div_ceil(PAIR), |tile, pass| {
        let columns = tile * PAIR..width.min((tile + 1) * PAIR);
        with_results(pass, |pass, results| {
            quant_dot(kernels, &matrix.tile(tile), &rows, pass.start, results);
            for (row, result) in pass.zip(results) {
                // SAFETY: each task has columns of its own.
                let to = unsafe { output.range(row * width + columns.start..row * width + columns.end) };
                to.copy_from_slice(&result[..columns.len()]);
            }
        });
    });
}

/// One tile of a matrix for one rounded row.
pub(super) fn run_tile_for_row(
    kernels: Kernels,
    matrix: &QuantMatrix,
    tile: usize,
    input: &Activations,
    row: usize,
) -> [f32; PAIR] {
    let Some(rows) = input.quantized() else { unreachable!("the input of an integer matrix is rounded") };
    // A kernel takes whole blocks of rows.
    let block_rows = rows.digits.block_rows();
    let first_row = row / block_rows * block_rows;
    let mut results = [[0.0; PAIR]; ROWS_PER_SMALL_PASS];
    let results = &mut results[..block_rows.min(rows.rows - first_row)];
    kernels.quant_dot(&matrix.tile(tile), &rows, first_row, results);
    results[row - first_row]
}

/// Runs `gate` and `up` on the same input and makes `silu(gate) * up` the rows of `output`, rounded if that
/// is wanted. A task is one of the output's groups, so that it can round what it has computed.
pub(super) fn run_gated(
    kernels: Kernels,
    pool: &mut ThreadPool,
    layers: &GateUp,
    input: &Activations,
    output: &mut Activations,
) {
    output.resize(input.rows, Digits::Two);
    let group_size = output.quantized.as_ref().map_or(LARGEST_GROUP, |quantized| quantized.group_size);
    let tasks = output.width.div_ceil(group_size);
    let gated = Gated {
        kernels,
        layers,
        input,
        width: output.width,
        group_size,
        values: Disjoint::new(&mut output.values),
        quantized: output.quantized.as_mut().map(DisjointQuantized::new),
    };
    run_passes(pool, input.rows, tasks, |g, rows| {
        if rows.len() <= ROWS_PER_SMALL_PASS {
            gated.run_group::<ROWS_PER_SMALL_PASS>(g, rows);
        } else if rows.len() <= ROWS_PER_TAIL_PASS {
            gated.run_group::<ROWS_PER_TAIL_PASS>(g, rows);
        } else {
            gated.run_group::<ROWS_PER_PASS>(g, rows);
        }
    });
}

/// The parts of [`run_gated`].
struct Gated<'a> {
    kernels: Kernels,
    layers: &'a GateUp,
    input: &'a Activations,
    width: usize,
    group_size: usize,
    values: Disjoint<'a, f32>,
    quantized: Option<DisjointQuantized<'a>>,
}

impl Gated<'_> {
    /// Columns of group `g` for at most `ROWS` rows.
    fn run_group<const ROWS: usize>(&self, g: usize, rows: Range<usize>) {
        let columns = g * self.group_size..self.width.min((g + 1) * self.group_size);
        let mut results = [[[0.0; PAIR]; ROWS]; 2];
        let mut results = results.each_mut().map(|results| &mut results[..rows.len()]);
        let mut activated = [[0.0; LARGEST_GROUP]; ROWS];
        for (i, tile) in (columns.start / PAIR..columns.end.div_ceil(PAIR)).enumerate() {
            if i > 0 {
                turns::end_if_over();
            }
            self.dot(tile, rows.start, &mut results);
            for (t, to) in activated[..rows.len()].iter_mut().enumerate() {
                let [gate, up] = self.gate_and_up([&results[0][t], &results[1][t]]);
                self.kernels.silu_mul(&gate, &up, &mut to[i * PAIR..][..PAIR]);
            }
        }
        self.write(rows, columns, &activated);
    }

    /// [`PAIR`] outputs of both layers, in the order of their tiles.
    fn dot(&self, tile: usize, first_row: usize, results: &mut [&mut [[f32; PAIR]]; 2]) {
        match (self.layers, self.input.quantized()) {
            (GateUp::Interleaved(matrix), Some(rows)) => {
                for (half, results) in results.iter_mut().enumerate() {
                    if let Some(tile) = matrix.find_tile(2 * tile + half) {
                        quant_dot(self.kernels, &tile, &rows, first_row, results);
                    }
                }
            }
            (GateUp::Interleaved(matrix), None) => {
                for (half, results) in results.iter_mut().enumerate() {
                    if let Some(tile) = matrix.find_tile(2 * tile + half) {
                        int4_dot_f32(self.kernels, &tile, &self.input.floats(), first_row, results);
                    }
                }
            }
            (GateUp::Apart(layers), _) => {
                for (layer, results) in layers.iter().zip(results) {
                    dot(self.kernels, &layer.matrix, tile, self.input, first_row, results);
                }
            }
        }
    }

    /// One row's results, sorted by layer.
    fn gate_and_up(&self, [first, second]: [&[f32; PAIR]; 2]) -> [[f32; PAIR]; 2] {
        match self.layers {
            GateUp::Apart(_) => [*first, *second],
            GateUp::Interleaved(_) => [0, TILE].map(|from| {
                let mut both = [0.0; PAIR];
                both[..TILE].copy_from_slice(&first[from..][..TILE]);
                both[TILE..].copy_from_slice(&second[from..][..TILE]);
                both
            }),
        }
    }

    /// Writes one group's columns of whole blocks of rows.
    fn write(&self, rows: Range<usize>, columns: Range<usize>, activated: &[[f32; LARGEST_GROUP]]) {
        let Some(quantized) = &self.quantized else {
            for (row, from) in rows.zip(activated) {
                let (start, end) = (row * self.width + columns.start, row * self.width + columns.end);
                // SAFETY: each task has columns of its own.
                let to = unsafe { self.values.range(start..end) };
                to.copy_from_slice(&from[..columns.len()]);
            }
            return;
        };
        let block_rows = quantized.digits.block_rows();
        for (block, from) in rows.clone().step_by(block_rows).zip(activated.chunks(block_rows)) {
            let block = block..rows.end.min(block + block_rows);
            // SAFETY: each task has a group of its own.
            let mut to = unsafe { quantized.group(self.width, block, columns.start / self.group_size) };
            self.kernels.quantize_group(from.as_flattened(), LARGEST_GROUP, &mut to);
        }
    }
}

/// Runs `task(tile, rows)` for every tile and all rows, a few rows at a time.
///
/// Rows change last: what they hold of a wide layer's input stays in the second-level cache while all tiles pass
/// over it, and re-reading the weights, which are far smaller, costs less.
fn run_passes(pool: &mut ThreadPool, rows: usize, tiles: usize, task: impl Fn(usize, Range<usize>) + Sync) {
    pool.run(rows.div_ceil(ROWS_PER_PASS) * tiles, |i, _| {
        let (first_row, tile) = (i / tiles * ROWS_PER_PASS, i % tiles);
        task(tile, first_row..rows.min(first_row + ROWS_PER_PASS));
    });
}

/// Calls `run` with room for the results of these rows, at most [`ROWS_PER_PASS`].
fn with_results(rows: Range<usize>, run: impl FnOnce(Range<usize>, &mut [[f32; PAIR]])) {
    let len = rows.len();
    if len <= ROWS_PER_SMALL_PASS {
        run(rows, &mut [[0.0; PAIR]; ROWS_PER_SMALL_PASS][..len]);
    } else if len <= ROWS_PER_TAIL_PASS {
        run(rows, &mut [[0.0; PAIR]; ROWS_PER_TAIL_PASS][..len]);
    } else {
        run(rows, &mut [[0.0; PAIR]; ROWS_PER_PASS][..len]);
    }
}

/// [`Kernels::quant_dot`], a few blocks of rows at a time, so that others can be let run in between. The tile's weights stay
/// in the second-level cache.
fn quant_dot(
    kernels: Kernels,
    tile: &QuantTile<'_>,
    rows: &QuantizedRows<'_>,
    first_row: usize,
    results: &mut [[f32; PAIR]],
) {
    let block_rows = rows.digits.block_rows();
    let products_per_block = block_rows * rows.digits.count() * rows.width * PAIR;
    let at_once = (PRODUCTS_AT_ONCE / products_per_block).max(1) * block_rows;
    for (part, results) in results.chunks_mut(at_once).enumerate() {
        if part > 0 {
            turns::end_if_over();
        }
        kernels.quant_dot(tile, rows, first_row + part * at_once, results);
    }
}

/// [`Kernels::int4_dot_f32`], likewise.
fn int4_dot_f32(
    kernels: Kernels,
    tile: &QuantTile<'_>,
    rows: &FloatRows<'_>,
    first_row: usize,
    results: &mut [[f32; PAIR]],
) {
    for (part, results) in results.chunks_mut(ROWS_PER_SMALL_PASS).enumerate() {
        if part > 0 {
            turns::end_if_over();
        }
        kernels.int4_dot_f32(tile, rows, first_row + part * ROWS_PER_SMALL_PASS, results);
    }
}

/// One tile of a matrix for the rows from `first_row` on.
fn dot(
    kernels: Kernels,
    matrix: &Matrix,
    tile: usize,
    input: &Activations,
    first_row: usize,
    results: &mut [[f32; PAIR]],
) {
    match (matrix, input.quantized()) {
        (Matrix::Quant(matrix), Some(rows)) => {
            quant_dot(kernels, &matrix.tile(tile), &rows, first_row, results);
        }
        (Matrix::Quant(matrix), None) => {
            int4_dot_f32(kernels, &matrix.tile(tile), &input.floats(), first_row, results);
        }
        (Matrix::Dense(matrix), _) => {
            for half in 0..(matrix.tiles() - 2 * tile).min(2) {
                for (chunk, results) in results.chunks_mut(ROWS_PER_SMALL_PASS).enumerate() {
                    if chunk > 0 {
                        turns::end_if_over();
                    }
                    let first_row = first_row + chunk * ROWS_PER_SMALL_PASS;
                    let mut halves = [[0.0; TILE]; ROWS_PER_SMALL_PASS];
                    let halves = &mut halves[..results.len()];
                    kernels.dense_dot(&matrix.tile(2 * tile + half), &input.floats(), first_row, halves);
                    for (result, from) in results.iter_mut().zip(halves) {
                        result[half * TILE..][..TILE].copy_from_slice(from);
                    }
                }
            }
        }
    }
}

fn write_row(to: &mut [f32], result: &[f32; PAIR], bias: Option<&[f32]>, write: Write) {
    for (n, to) in to.iter_mut().enumerate() {
        let value = result[n] + bias.map_or(0.0, |bias| bias[n]);
        *to = if write == Write::Add { *to + value } else { value };
    }
}

/// An array of which several threads write different parts.
pub(super) struct Disjoint<'a, T> {
    start: *mut T,
    len: usize,
    array: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out exclusive slices only through an unsafe function whose callers keep them apart,
// and moving a `&mut T` to another thread needs `T: Send`.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    pub(super) fn new(array: &'a mut [T]) -> Self {
        Self { start: array.as_mut_ptr(), len: array.len(), array: std::marker::PhantomData }
    }

    /// # Safety
    /// No other live slice of this array may overlap `range`.
    pub(super) unsafe fn range(&self, range: Range<usize>) -> &'a mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: inside the array by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

/// A `[rows][width]` array of which several threads write different parts.
pub(super) struct DisjointRows<'a, T> {
    array: Disjoint<'a, T>,
    width: usize,
}

impl<'a, T> DisjointRows<'a, T> {
    pub(super) fn new(array: &'a mut [T], width: usize) -> Self {
        Self { array: Disjoint::new(array), width }
    }

    /// # Safety
    /// No other live slice of this array may overlap this row.
    pub(super) unsafe fn row(&self, row: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { self.part(row, 0, self.width) }
    }

    /// # Safety
    /// No other live slice of this array may overlap these columns of this row.
    pub(super) unsafe fn part(&self, row: usize, column: usize, len: usize) -> &'a mut [T] {
        assert!(column + len <= self.width);
        let start = row * self.width + column;
        // SAFETY: the caller's promise.
        unsafe { self.array.range(start..start + len) }
    }
}
