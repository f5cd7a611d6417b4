//! Linear layers over token rows: which kernel, spread how, written where.

use super::kernels::{DIGITS, FloatRows, Kernels, QuantizedRows, TILE};
use super::threads::ThreadPool;
use super::weights::{Linear, Matrix};

/// Tokens whose results one thread holds at a time; a tile's weights stay in its cache for all of them.
const ROWS_PER_PASS: usize = 16;

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
    values: Vec<f32>,
    /// `None` where all layers take floats.
    quantized: Option<Quantized>,
}

struct Quantized {
    group_size: usize,
    digits: Vec<i8>,
    scales: Vec<f32>,
    sums: Vec<i32>,
}

impl Activations {
    /// Rows of `width`; rounded in groups of `group_size` where one is given.
    pub(super) fn new(width: usize, group_size: Option<usize>) -> Self {
        let quantized = group_size.map(|group_size| Quantized {
            group_size,
            digits: Vec::new(),
            scales: Vec::new(),
            sums: Vec::new(),
        });
        Self { width, rows: 0, values: Vec::new(), quantized }
    }

    /// Makes `rows` rows: `fill(row, values)` writes each, and it is rounded if that is wanted.
    pub(super) fn fill(
        &mut self,
        kernels: Kernels,
        pool: &mut ThreadPool,
        rows: usize,
        fill: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let width = self.width;
        self.rows = rows;
        self.values.resize(rows * width, 0.0);
        let values = DisjointRows::new(&mut self.values, width);
        let Some(quantized) = &mut self.quantized else {
            // SAFETY: each task takes its own row.
            return pool.run(rows, |row, _| fill(row, unsafe { values.row(row) }));
        };
        let (group_size, groups) = (quantized.group_size, width / quantized.group_size);
        quantized.digits.resize(rows * width * DIGITS, 0);
        quantized.scales.resize(rows * groups, 0.0);
        quantized.sums.resize(rows * groups, 0);
        let digits = DisjointRows::new(&mut quantized.digits, width * DIGITS);
        let scales = DisjointRows::new(&mut quantized.scales, groups);
        let sums = DisjointRows::new(&mut quantized.sums, groups);
        pool.run(rows, |row, _| {
            // SAFETY: each task takes its own row of every array.
            let (values, digits, scales, sums) =
                unsafe { (values.row(row), digits.row(row), scales.row(row), sums.row(row)) };
            fill(row, values);
            kernels.quantize_row(values, group_size, digits, scales, sums);
        });
    }

    fn floats(&self) -> FloatRows<'_> {
        FloatRows { width: self.width, values: &self.values }
    }
}

/// Runs layers that share their input, their outputs side by side: `output` is `[rows][sum of outputs]`.
///
/// One parallel region over the tiles of all of them. Every element is computed by one thread in a
/// fixed order, so neither the number of threads nor that of rows changes a bit of it.
pub(super) fn run(
    kernels: Kernels,
    pool: &mut ThreadPool,
    layers: &[&Linear],
    input: &Activations,
    output: &mut [f32],
    write: Write,
) {
    let width = layers.iter().map(|layer| layer.output).sum();
    assert_eq!(output.len(), input.rows * width);
    let tiles = layers.iter().map(|layer| layer.tiles()).sum();
    let output = DisjointRows::new(output, width);
    pool.run(tiles, |task, _| {
        let (mut tile, mut first_column) = (task, 0);
        let mut layers = layers.iter();
        let layer = loop {
            let Some(layer) = layers.next() else { return };
            if tile < layer.tiles() {
                break layer;
            }
            tile -= layer.tiles();
            first_column += layer.output;
        };
        let outputs = TILE.min(layer.output - tile * TILE);
        let bias = layer.bias.get(tile * TILE..tile * TILE + outputs);
        let mut results = [[0.0; TILE]; ROWS_PER_PASS];
        for first_row in (0..input.rows).step_by(ROWS_PER_PASS) {
            let results = &mut results[..ROWS_PER_PASS.min(input.rows - first_row)];
            dot(kernels, &layer.matrix, tile, input, first_row, results);
            for (t, result) in results.iter().enumerate() {
                // SAFETY: tiles have columns of their own, and each task is one tile.
                let to = unsafe { output.part(first_row + t, first_column + tile * TILE, outputs) };
                write_row(to, result, bias, write);
            }
        }
    });
}

fn dot(
    kernels: Kernels,
    matrix: &Matrix,
    tile: usize,
    input: &Activations,
    first_row: usize,
    results: &mut [[f32; TILE]],
) {
    match (matrix, &input.quantized) {
        (Matrix::Int4(matrix), Some(quantized)) => {
            let rows = QuantizedRows {
                width: input.width,
                group_size: quantized.group_size,
                digits: &quantized.digits,
                scales: &quantized.scales,
                sums: &quantized.sums,
            };
            kernels.int4_dot_i8(&matrix.tile(tile), &rows, first_row, results);
        }
        (Matrix::Int4(matrix), None) => {
            kernels.int4_dot_f32(&matrix.tile(tile), &input.floats(), first_row, results);
        }
        (Matrix::Dense(matrix), _) => {
            kernels.dense_dot(&matrix.tile(tile), &input.floats(), first_row, results)
        }
    }
}

fn write_row(to: &mut [f32], result: &[f32; TILE], bias: Option<&[f32]>, write: Write) {
    for (n, to) in to.iter_mut().enumerate() {
        let value = result[n] + bias.map_or(0.0, |bias| bias[n]);
        *to = if write == Write::Add { *to + value } else { value };
    }
}

/// A `[rows][width]` array of which several threads write different parts.
pub(super) struct DisjointRows<'a, T> {
    start: *mut T,
    rows: usize,
    width: usize,
    array: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it hands out exclusive slices only through unsafe functions whose callers keep them apart,
// and moving a `&mut T` to another thread needs `T: Send`.
unsafe impl<T: Send> Sync for DisjointRows<'_, T> {}

impl<'a, T> DisjointRows<'a, T> {
    pub(super) fn new(array: &'a mut [T], width: usize) -> Self {
        let rows = array.len().checked_div(width).unwrap_or(0);
        Self { start: array.as_mut_ptr(), rows, width, array: std::marker::PhantomData }
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
        assert!(row < self.rows && column + len <= self.width);
        // SAFETY: inside the array by the assertion; exclusive by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(row * self.width + column), len) }
    }
}
