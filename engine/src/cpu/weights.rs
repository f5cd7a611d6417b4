//! Weights as the CPU kernels read them, repacked once at load.
//!
//! Both kinds of matrix are cut into tiles of [`TILE`] outputs, each tile one contiguous run of whole
//! cache lines in the order of the inner loop. A last tile that the outputs do not fill is padded
//! with zeros.

use std::sync::Arc;

use half::f16;
use safetensors::tensor::Dtype;

use super::kernels::{DenseFormat, DenseTile, LINE_BYTES, QuantTile, TILE, WeightBits};
use super::threads::ThreadPool;
use crate::awq::{AwqLinear, COLUMNS_PER_WORD};
use crate::checkpoint::{Checkpoint, CheckpointError, LinearWeights, Tensor};

/// A linear layer: matrix and bias.
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    /// `[output]`; empty where the layer has none.
    pub(super) bias: Vec<f32>,
    pub(super) output: usize,
}

/// A matrix in tiles.
pub(super) enum Matrix {
    /// Four-bit weights.
    Quant(QuantMatrix),
    /// Shared: a tied head is the embedding table.
    Dense(Arc<DenseMatrix>),
}

/// See [`QuantTile`] for the layout of one tile.
pub(super) struct QuantMatrix {
    bits: WeightBits,
    input: usize,
    group_size: usize,
    weights: Vec<Line>,
    scales: Vec<u16>,
    zeros: Vec<u8>,
}

/// See [`DenseTile`] for the layout of one tile.
pub(super) struct DenseMatrix {
    input: usize,
    format: DenseFormat,
    data: Vec<Line>,
    /// Bytes of one tile; a tile starts at a multiple of it.
    tile_bytes: usize,
}

/// One cache line, so that tiles are aligned.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; LINE_BYTES]);

/// Inputs in one line of four-bit weights.
const LINE_INPUTS: usize = 8;

const ZERO_LINE: Line = Line([0; LINE_BYTES]);

impl Linear {
    /// Loads `prefix` with `input` and `output` features, and its bias if `biased`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        pool: &mut ThreadPool,
        prefix: &str,
        [input, output]: [usize; 2],
        biased: bool,
    ) -> Result<Self, CheckpointError> {
        let matrix = match checkpoint.linear(prefix, input, output)? {
            LinearWeights::Awq(awq) => Matrix::Quant(QuantMatrix::pack(pool, &awq)),
            LinearWeights::Dense(tensor) => Matrix::Dense(Arc::new(DenseMatrix::pack(pool, &tensor)?)),
        };
        let bias = if biased {
            checkpoint.tensor(&format!("{prefix}.bias"), &[output])?.to_f32()?
        } else {
            Vec::new()
        };
        Ok(Self { matrix, bias, output })
    }

    pub(super) fn tiles(&self) -> usize {
        self.output.div_ceil(TILE)
    }

    /// Bytes of the matrix with its scales and zero points.
    pub(super) fn bytes(&self) -> usize {
        match &self.matrix {
            Matrix::Quant(matrix) => {
                size_of_val(&*matrix.weights) + size_of_val(&*matrix.scales) + matrix.zeros.len()
            }
            Matrix::Dense(matrix) => size_of_val(&*matrix.data),
        }
    }

    /// Group size of a quantized layer.
    pub(super) fn group_size(&self) -> Option<usize> {
        match &self.matrix {
            Matrix::Quant(matrix) => Some(matrix.group_size),
            Matrix::Dense(_) => None,
        }
    }
}

impl QuantMatrix {
    fn pack(pool: &mut ThreadPool, awq: &AwqLinear<'_>) -> Self {
        let tiles = awq.output.div_ceil(TILE);
        let lines = awq.input / LINE_INPUTS;
        let groups = awq.groups();
        let mut matrix = Self {
            bits: WeightBits::Four,
            input: awq.input,
            group_size: awq.group_size,
            weights: vec![ZERO_LINE; tiles * lines],
            scales: vec![0; tiles * groups * TILE],
            zeros: vec![0; tiles * groups * TILE],
        };
        for_each_chunk(pool, &mut matrix.weights, lines, |tile, lines| pack_int4_tile(awq, tile, lines));
        for (i, (scale, zero)) in matrix.scales.iter_mut().zip(&mut matrix.zeros).enumerate() {
            let (tile, g, n) = (i / (groups * TILE), i / TILE % groups, i % TILE);
            let output = tile * TILE + n;
            if output < awq.output {
                *scale = awq.scale_bits(g, output);
                *zero = awq.z8(g, output / COLUMNS_PER_WORD)[output % COLUMNS_PER_WORD];
            }
        }
        matrix
    }

    pub(super) fn tile(&self, tile: usize) -> QuantTile<'_> {
        let lines = self.input / self.bits.line_inputs();
        let constants = self.input / self.group_size * TILE;
        QuantTile {
            bits: self.bits,
            group_size: self.group_size,
            weights: as_bytes(&self.weights[tile * lines..][..lines]),
            scales: &self.scales[tile * constants..][..constants],
            zeros: &self.zeros[tile * constants..][..constants],
        }
    }
}

/// Fills the lines of one tile: word `n` of a line belongs to output `n`, its byte `j` to inputs
/// `j` (low nibble) and `4 + j` (high nibble) of the line's eight.
fn pack_int4_tile(awq: &AwqLinear<'_>, tile: usize, lines: &mut [Line]) {
    for (l, line) in lines.iter_mut().enumerate() {
        for k in 0..LINE_INPUTS {
            let shift = 4 * (k / 4);
            for word in 0..TILE / COLUMNS_PER_WORD {
                let column = tile * TILE + word * COLUMNS_PER_WORD;
                if column >= awq.output {
                    continue;
                }
                let q = awq.q8(l * LINE_INPUTS + k, column / COLUMNS_PER_WORD);
                for (j, q) in q.into_iter().enumerate() {
                    line.0[4 * (word * COLUMNS_PER_WORD + j) + k % 4] |= q << shift;
                }
            }
        }
    }
}

impl DenseMatrix {
    /// Packs a `[output, input]` tensor.
    pub(super) fn pack(pool: &mut ThreadPool, tensor: &Tensor<'_>) -> Result<Self, CheckpointError> {
        let format = match tensor.dtype {
            Dtype::F16 => DenseFormat::F16,
            Dtype::BF16 => DenseFormat::Bf16,
            Dtype::F32 => DenseFormat::F32,
            _ => return Err(tensor.unsupported_dtype("F16, BF16, F32")),
        };
        let &[output, input] = tensor.shape else {
            return Err(tensor.unsupported_dtype("a matrix"));
        };
        check_finite(pool, tensor, format)?;
        let size = format.bytes();
        // Rounded up to whole lines, so that every tile is aligned.
        let tile_lines = (input * TILE * size).div_ceil(LINE_BYTES);
        let mut data = vec![ZERO_LINE; output.div_ceil(TILE) * tile_lines];
        for_each_chunk(pool, &mut data, tile_lines, |tile, lines| {
            let bytes = as_bytes_mut(lines);
            for n in 0..TILE.min(output - tile * TILE) {
                let row = &tensor.bytes[(tile * TILE + n) * input * size..][..input * size];
                for (k, element) in row.chunks_exact(size).enumerate() {
                    let to = &mut bytes[(k * TILE + n) * size..][..size];
                    to.copy_from_slice(element);
                    if cfg!(target_endian = "big") {
                        to.reverse();
                    }
                }
            }
        });
        Ok(Self { input, format, data, tile_bytes: tile_lines * LINE_BYTES })
    }

    pub(super) fn tile(&self, tile: usize) -> DenseTile<'_> {
        let bytes = &as_bytes(&self.data)[tile * self.tile_bytes..];
        DenseTile { format: self.format, weights: &bytes[..self.input * TILE * self.format.bytes()] }
    }

    /// Copies row `n` (the weights of output `n`) into `to`: an embedding look-up.
    pub(super) fn copy_row(&self, n: usize, to: &mut [f32]) {
        let (size, lane) = (self.format.bytes(), n % TILE);
        let lines = self.tile(n / TILE).weights.chunks_exact(TILE * size);
        for (to, line) in to.iter_mut().zip(lines) {
            let element = &line[lane * size..];
            *to = match self.format {
                DenseFormat::F16 => f16::from_ne_bytes([element[0], element[1]]).to_f32(),
                DenseFormat::Bf16 => half::bf16::from_ne_bytes([element[0], element[1]]).to_f32(),
                DenseFormat::F32 => f32::from_ne_bytes([element[0], element[1], element[2], element[3]]),
            };
        }
    }
}

/// Refuses NaN and infinity: their exponent bits are all ones in each of the formats.
fn check_finite(
    pool: &mut ThreadPool,
    tensor: &Tensor<'_>,
    format: DenseFormat,
) -> Result<(), CheckpointError> {
    const ELEMENTS: usize = 1 << 16;
    let size = format.bytes();
    // The top 16 bits hold sign and exponent in all three.
    let exponent = if format == DenseFormat::F16 { 0x7c00 } else { 0x7f80 };
    let is_bad =
        |element: &[u8]| u16::from_le_bytes([element[size - 2], element[size - 1]]) & exponent == exponent;
    let first_bad = std::sync::atomic::AtomicUsize::new(usize::MAX);
    let chunks = tensor.bytes.len().div_ceil(ELEMENTS * size);
    pool.run(chunks, |chunk, _| {
        let from = chunk * ELEMENTS * size;
        let bytes = &tensor.bytes[from..tensor.bytes.len().min(from + ELEMENTS * size)];
        if let Some(i) = bytes.chunks_exact(size).position(is_bad) {
            first_bad.fetch_min(chunk * ELEMENTS + i, std::sync::atomic::Ordering::Relaxed);
        }
    });
    match first_bad.into_inner() {
        usize::MAX => Ok(()),
        // Converting the whole tensor finds the same element and words the error.
        _ => tensor.to_f32().map(drop),
    }
}

/// Calls `fill(i, chunk)` for each chunk of `data`, spread over the threads.
fn for_each_chunk<T: Send>(
    pool: &mut ThreadPool,
    data: &mut [T],
    chunk_len: usize,
    fill: impl Fn(usize, &mut [T]) + Sync,
) {
    let chunks: Vec<_> = data.chunks_mut(chunk_len).map(|chunk| std::sync::Mutex::new(Some(chunk))).collect();
    pool.run(chunks.len(), |i, _| {
        let chunk = chunks[i].lock().ok().and_then(|mut chunk| chunk.take());
        if let Some(chunk) = chunk {
            fill(i, chunk);
        }
    });
}

fn as_bytes(lines: &[Line]) -> &[u8] {
    // SAFETY: a Line is LINE_BYTES initialized bytes without padding (its size is its alignment).
    unsafe { std::slice::from_raw_parts(lines.as_ptr().cast(), size_of_val(lines)) }
}

fn as_bytes_mut(lines: &mut [Line]) -> &mut [u8] {
    // SAFETY: as in `as_bytes`, and any byte is a valid one.
    unsafe { std::slice::from_raw_parts_mut(lines.as_mut_ptr().cast(), size_of_val(lines)) }
}
