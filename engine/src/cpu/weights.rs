//! Weights as the CPU kernels read them, repacked once at load.
//!
//! Matrices are cut into tiles of a few outputs, each tile one contiguous run of whole cache lines in the
//! order of the inner loop. A last tile that the outputs do not fill is padded with zeros.

use std::sync::Arc;

use half::f16;
use safetensors::tensor::Dtype;

use super::kernels::{
    CONSTANT_LINES, DenseFormat, DenseTile, LANE_INPUTS, LINE_BYTES, Line, PAIR, QuantTile, TILE, WeightBits,
    group_lines,
};
use super::lines::{Lines, as_bytes, as_bytes_mut};
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
    /// Integer weights.
    Quant(QuantMatrix),
    /// Shared: a tied head is the embedding table.
    Dense(Arc<DenseMatrix>),
}

/// See [`QuantTile`] for the layout of one tile.
pub(super) struct QuantMatrix {
    bits: WeightBits,
    input: usize,
    group_size: usize,
    lines: Lines,
}

/// See [`DenseTile`] for the layout of one tile.
pub(super) struct DenseMatrix {
    input: usize,
    format: DenseFormat,
    lines: Lines,
    /// Lines of one tile; a tile starts at a multiple of it.
    tile_lines: usize,
}

/// A layer's name, its outputs and whether it has a bias.
pub(super) type LayerName = (String, usize, bool);

impl Linear {
    /// Loads `prefix` with `input` and `output` features, and its bias if `biased`.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        pool: &mut ThreadPool,
        prefix: &str,
        [input, output]: [usize; 2],
        biased: bool,
    ) -> Result<Self, CheckpointError> {
        let mut layers =
            Self::load_side_by_side(checkpoint, pool, input, &[(prefix.into(), output, biased)])?;
        Ok(layers.swap_remove(0))
    }

    /// Loads layers that read the same `input` features. Quantized ones become one matrix, their outputs side by
    /// side; others stay apart.
    pub(super) fn load_side_by_side(
        checkpoint: &Checkpoint,
        pool: &mut ThreadPool,
        input: usize,
        names: &[LayerName],
    ) -> Result<Vec<Self>, CheckpointError> {
        if let Some(parts) = find_quantized(checkpoint, input, names)? {
            let words =
                parts.iter().flat_map(|awq| (0..awq.output / COLUMNS_PER_WORD).map(move |word| (awq, word)));
            let matrix = Matrix::Quant(QuantMatrix::pack(pool, &words.collect::<Vec<_>>())?);
            let mut bias = Vec::new();
            if names.iter().any(|(_, _, biased)| *biased) {
                for name in names {
                    bias.extend(load_bias(checkpoint, name)?);
                }
            }
            drop(parts);
            for (name, ..) in names {
                // SAFETY: the slices into these tensors are gone, and nothing else reads them.
                unsafe { checkpoint.release(name) };
            }
            let output = names.iter().map(|(_, output, _)| output).sum();
            return Ok(vec![Self { matrix, bias, output }]);
        }
        names
            .iter()
            .map(|name| {
                let (prefix, output, biased) = name;
                let matrix = match checkpoint.linear(prefix, input, *output)? {
                    LinearWeights::Awq(awq) => {
                        let words: Vec<_> = (0..output / COLUMNS_PER_WORD).map(|word| (&awq, word)).collect();
                        Matrix::Quant(QuantMatrix::pack(pool, &words)?)
                    }
                    LinearWeights::Dense(tensor) => {
                        Matrix::Dense(Arc::new(DenseMatrix::pack(pool, &tensor)?))
                    }
                };
                let bias = if *biased { load_bias(checkpoint, name)? } else { Vec::new() };
                // SAFETY: as above.
                unsafe { checkpoint.release(prefix) };
                Ok(Self { matrix, bias, output: *output })
            })
            .collect()
    }

    /// Tiles of [`PAIR`] outputs.
    pub(super) fn tiles(&self) -> usize {
        self.output.div_ceil(PAIR)
    }

    /// Bytes of the matrix with its scales and zero points.
    pub(super) fn bytes(&self) -> usize {
        self.matrix.bytes()
    }

    /// Group size of a quantized layer.
    pub(super) fn group_size(&self) -> Option<usize> {
        match &self.matrix {
            Matrix::Quant(matrix) => Some(matrix.group_size),
            Matrix::Dense(_) => None,
        }
    }
}

impl Matrix {
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Quant(matrix) => matrix.bytes(),
            Self::Dense(matrix) => as_bytes(matrix.lines.as_slice()).len(),
        }
    }
}

/// The feed-forward's gate and up layers, neither of which has a bias.
pub(super) enum GateUp {
    /// Quantized: a tile is 16 outputs of gate, then the same 16 of up.
    Interleaved(QuantMatrix),
    /// Anything else.
    Apart([Linear; 2]),
}

impl GateUp {
    /// Loads `gate` and `up`, of `input` and `output` features.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        pool: &mut ThreadPool,
        [gate, up]: [String; 2],
        [input, output]: [usize; 2],
    ) -> Result<Self, CheckpointError> {
        let names = [(gate, output, false), (up, output, false)];
        if let Some(parts) = find_quantized(checkpoint, input, &names)? {
            const WORDS: usize = TILE / COLUMNS_PER_WORD;
            // A last half tile that the outputs do not fill: any columns do, their results are not used.
            let words = output / COLUMNS_PER_WORD;
            let interleaved: Vec<_> = (0..words.div_ceil(WORDS))
                .flat_map(|tile| {
                    parts.iter().flat_map(move |awq| (0..WORDS).map(move |i| (awq, tile * WORDS + i)))
                })
                .map(|(awq, word)| (awq, word.min(words - 1)))
                .collect();
            let matrix = QuantMatrix::pack(pool, &interleaved)?;
            drop(interleaved);
            for (name, ..) in &names {
                // SAFETY: the slices into these tensors are gone, and nothing else reads them.
                unsafe { checkpoint.release(name) };
            }
            return Ok(Self::Interleaved(matrix));
        }
        let [gate, up] =
            names.map(|(name, output, _)| Linear::load(checkpoint, pool, &name, [input, output], false));
        Ok(Self::Apart([gate?, up?]))
    }

    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Interleaved(matrix) => matrix.bytes(),
            Self::Apart(layers) => layers.iter().map(Linear::bytes).sum(),
        }
    }

    /// Group size if it is quantized.
    pub(super) fn group_size(&self) -> Option<usize> {
        match self {
            Self::Interleaved(matrix) => Some(matrix.group_size),
            Self::Apart(layers) => layers.iter().find_map(Linear::group_size),
        }
    }
}

/// The layers if all are quantized, and alike.
fn find_quantized<'a>(
    checkpoint: &'a Checkpoint,
    input: usize,
    names: &[LayerName],
) -> Result<Option<Vec<AwqLinear<'a>>>, CheckpointError> {
    let mut parts: Vec<AwqLinear<'a>> = Vec::new();
    for (prefix, output, _) in names {
        match checkpoint.linear(prefix, input, *output)? {
            LinearWeights::Awq(awq) if parts.iter().all(|part| part.group_size == awq.group_size) => {
                parts.push(awq);
            }
            _ => return Ok(None),
        }
    }
    Ok(Some(parts))
}

fn load_bias(
    checkpoint: &Checkpoint,
    (prefix, output, biased): &LayerName,
) -> Result<Vec<f32>, CheckpointError> {
    if *biased {
        checkpoint.tensor(&format!("{prefix}.bias"), &[*output])?.to_f32()
    } else {
        Ok(vec![0.0; *output])
    }
}

impl QuantMatrix {
    /// A matrix of `tiles` tiles of zeros.
    ///
    /// # Errors
    /// When the memory cannot be had.
    pub(super) fn zeroed(
        bits: WeightBits,
        [input, group_size]: [usize; 2],
        tiles: usize,
    ) -> Result<Self, CheckpointError> {
        let lines = Lines::zeroed(tiles * (input / group_size) * group_lines(bits, group_size))?;
        Ok(Self { bits, input, group_size, lines })
    }

    /// Packs columns, given as words of eight of layers of the same shape of input, in this order.
    fn pack(pool: &mut ThreadPool, words: &[(&AwqLinear<'_>, usize)]) -> Result<Self, CheckpointError> {
        const WORDS: usize = PAIR / COLUMNS_PER_WORD;
        let (input, group_size) = words.first().map_or((0, 1), |(awq, _)| (awq.input, awq.group_size));
        let tiles = words.len().div_ceil(WORDS);
        let mut matrix = Self::zeroed(WeightBits::Four, [input, group_size], tiles)?;
        let tile_lines = matrix.lines.as_slice().len() / tiles.max(1);
        for_each_chunk(pool, matrix.lines.as_mut_slice(), tile_lines, |tile, lines| {
            let words = &words[tile * WORDS..words.len().min((tile + 1) * WORDS)];
            let groups = lines.chunks_exact_mut(group_lines(WeightBits::Four, group_size));
            for (g, lines) in groups.enumerate() {
                for (i, (awq, word)) in words.iter().enumerate() {
                    pack_group(awq, *word, g, i * COLUMNS_PER_WORD, lines);
                }
            }
        });
        Ok(matrix)
    }

    /// Tile `tile`, of [`PAIR`] outputs.
    pub(super) fn tile(&self, tile: usize) -> QuantTile<'_> {
        let len = self.input / self.group_size * group_lines(self.bits, self.group_size);
        QuantTile {
            bits: self.bits,
            group_size: self.group_size,
            lines: &self.lines.as_slice()[tile * len..][..len],
        }
    }

    /// Tile `tile`; `None` beyond the last.
    pub(super) fn find_tile(&self, tile: usize) -> Option<QuantTile<'_>> {
        let len = self.input / self.group_size * group_lines(self.bits, self.group_size);
        ((tile + 1) * len <= self.lines.as_slice().len()).then(|| self.tile(tile))
    }

    /// Lines of some tiles, to write.
    pub(super) fn tiles_mut(&mut self, tiles: std::ops::Range<usize>) -> &mut [Line] {
        let len = self.input / self.group_size * group_lines(self.bits, self.group_size);
        &mut self.lines.as_mut_slice()[tiles.start * len..tiles.end * len]
    }

    pub(super) fn bytes(&self) -> usize {
        as_bytes(self.lines.as_slice()).len()
    }
}

/// Writes group `g` of one word's eight outputs, the first of which is output `first` of the tile.
fn pack_group(awq: &AwqLinear<'_>, word: usize, g: usize, first: usize, lines: &mut [Line]) {
    let zeros = awq.z8(g, word);
    for (j, zero) in zeros.into_iter().enumerate() {
        set_constants(lines, first + j, awq.scale_bits(g, word * COLUMNS_PER_WORD + j), zero);
    }
    let line_inputs = WeightBits::Four.line_inputs();
    for (l, pair) in lines[CONSTANT_LINES..].chunks_exact_mut(2).enumerate() {
        let bytes = awq.q8x8(g * awq.group_size + l * line_inputs, word);
        let to = &mut pair[first / TILE].0[first % TILE * LANE_INPUTS..][..COLUMNS_PER_WORD * LANE_INPUTS];
        to.copy_from_slice(bytes.as_flattened());
    }
}

/// Writes the scale and the zero point of output `n` of a group.
pub(super) fn set_constants(lines: &mut [Line], n: usize, scale_bits: u16, zero: u8) {
    lines[0].0[2 * n..][..2].copy_from_slice(&scale_bits.to_le_bytes());
    lines[1].0[2 * n..][..2].copy_from_slice(&(-i16::from(zero)).to_le_bytes());
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
        let mut lines = Lines::zeroed(output.div_ceil(TILE) * tile_lines)?;
        for_each_chunk(pool, lines.as_mut_slice(), tile_lines, |tile, lines| {
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
        Ok(Self { input, format, lines, tile_lines })
    }

    /// Tiles of [`TILE`] outputs.
    pub(super) fn tiles(&self) -> usize {
        self.lines.as_slice().len() / self.tile_lines.max(1)
    }

    pub(super) fn tile(&self, tile: usize) -> DenseTile<'_> {
        let bytes = as_bytes(&self.lines.as_slice()[tile * self.tile_lines..]);
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
