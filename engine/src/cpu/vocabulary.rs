//! The embedding table and the output head in two planes of int8, for a model whose file has them in floats.
//!
//! A weight is `scale * (high + low / 256)`, both digits int8, the scale shared by a group of inputs: 16 bits in all, as
//! in the file, and nothing is lost that fp16 would keep. But the planes are apart in memory. Scoring the whole
//! vocabulary reads the high plane only, half the bytes, and that is most of what decoding a token of a small model
//! reads. Its logits are off by hundredths of a nat. So the low plane's part is then added for the tiles with the
//! largest logits: every token that has a chance of being sampled has its exact logit.

use std::sync::atomic::{AtomicUsize, Ordering};

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};
use safetensors::tensor::Dtype;

use super::kernels::{CONSTANT_LINES, Kernels, LANE_INPUTS, Line, PAIR, TILE, WeightBits, group_lines};
use super::linear::{self, Activations, Disjoint};
use super::threads::ThreadPool;
use super::weights::{QuantMatrix, set_constants};
use crate::checkpoint::{Checkpoint, CheckpointError, Tensor};

/// Tiles whose logits are made exact, for each row: half a thousand tokens.
pub(super) const EXACT_TILES: usize = 16;

/// What is added to a digit so that it can be stored as a byte.
const OFFSET: u8 = 128;

/// A `[vocabulary][hidden]` matrix in two planes.
pub(super) struct TwoPlanes {
    vocabulary: usize,
    group_size: usize,
    high: QuantMatrix,
    /// With the same scales as the high plane.
    low: QuantMatrix,
}

impl TwoPlanes {
    /// Whether a matrix of `hidden` inputs can be stored so: the group it would have.
    pub(super) fn group_size(hidden: usize) -> Option<usize> {
        [128, 64, 32].into_iter().find(|group_size| hidden.is_multiple_of(*group_size))
    }

    /// Packs the matrix called `name`; it is given back to the system as it is read.
    ///
    /// # Errors
    /// When it is not there, not in floats, or holds NaN or infinity, or memory is short.
    pub(super) fn load(
        checkpoint: &Checkpoint,
        pool: &mut ThreadPool,
        name: &str,
        [vocabulary, hidden]: [usize; 2],
        group_size: usize,
    ) -> Result<Self, CheckpointError> {
        let tensor = checkpoint.tensor(name, &[vocabulary, hidden])?;
        let widen = widening(&tensor)?;
        let tiles = vocabulary.div_ceil(PAIR);
        let mut matrix = Self::zeroed([vocabulary, hidden], group_size)?;
        let first_bad_row = AtomicUsize::new(usize::MAX);
        let row_bytes = tensor.bytes.len() / vocabulary;
        for first in (0..tiles).step_by(TILES_PER_PART) {
            let part = first..tiles.min(first + TILES_PER_PART);
            let lines = [matrix.high.tiles_mut(part.clone()), matrix.low.tiles_mut(part.clone())];
            let tile_lines = lines[0].len() / part.len();
            let planes = lines.map(Disjoint::new);
            pool.run(part.len(), |i, _| {
                // SAFETY: each task takes its own tile of either plane.
                let mut lines = planes
                    .each_ref()
                    .map(|plane| unsafe { plane.range(i * tile_lines..(i + 1) * tile_lines) });
                for n in 0..PAIR.min(vocabulary - (first + i) * PAIR) {
                    let row = (first + i) * PAIR + n;
                    let bytes = &tensor.bytes[row * row_bytes..][..row_bytes];
                    if !pack_row(widen, bytes, group_size, n, &mut lines) {
                        first_bad_row.fetch_min(row, Ordering::Relaxed);
                    }
                }
            });
            let read = part.start * PAIR * row_bytes..vocabulary.min(part.end * PAIR) * row_bytes;
            let bad_row = first_bad_row.load(Ordering::Relaxed);
            if bad_row < vocabulary {
                let mut values = vec![0.0; hidden];
                widen(&tensor.bytes[bad_row * row_bytes..][..row_bytes], &mut values);
                let bad = values.iter().position(|x| !scale_for(x.abs()).is_finite()).unwrap_or(0);
                return Err(tensor.not_finite(bad_row * hidden + bad, values[bad]));
            }
            // SAFETY: these rows are packed, and nothing else reads them.
            unsafe { checkpoint.release_part(name, read) };
        }
        Ok(matrix)
    }

    /// A matrix of zeros.
    fn zeroed([vocabulary, hidden]: [usize; 2], group_size: usize) -> Result<Self, CheckpointError> {
        let tiles = vocabulary.div_ceil(PAIR);
        let plane = || QuantMatrix::zeroed(WeightBits::Eight, [hidden, group_size], tiles);
        Ok(Self { vocabulary, group_size, high: plane()?, low: plane()? })
    }

    /// Bytes that scoring the vocabulary reads.
    pub(super) fn bytes(&self) -> usize {
        self.high.bytes()
    }

    /// Copies the embedding of `token` into `to`.
    pub(super) fn copy_row(&self, token: usize, to: &mut [f32]) {
        let (high, low) = (self.high.tile(token / PAIR), self.low.tile(token / PAIR));
        let lines = group_lines(WeightBits::Eight, self.group_size);
        let n = token % PAIR;
        let groups = high.lines.chunks_exact(lines).zip(low.lines.chunks_exact(lines));
        for ((high, low), to) in groups.zip(to.chunks_exact_mut(self.group_size)) {
            let scale = f16::from_le_bytes([high[0].0[2 * n], high[0].0[2 * n + 1]]).to_f32();
            for (k, to) in to.iter_mut().enumerate() {
                let (line, byte) = place(k, n);
                let digit = |lines: &[Line]| f32::from(i16::from(lines[line].0[byte]) - i16::from(OFFSET));
                *to = scale * (digit(high) + digit(low) / 256.0);
            }
        }
    }

    /// Logits of the rows of `input`, `[rows][vocabulary]`.
    pub(super) fn run(
        &self,
        kernels: Kernels,
        pool: &mut ThreadPool,
        input: &Activations,
        logits: &mut [f32],
        chosen: &mut Vec<[usize; EXACT_TILES]>,
    ) {
        linear::run_matrix(kernels, pool, &self.high, input, logits, self.vocabulary);
        let rows = logits.len() / self.vocabulary;
        chosen.clear();
        chosen.resize(rows, [0; EXACT_TILES]);
        let disjoint = Disjoint::new(chosen);
        pool.run(rows, |row, _| {
            // SAFETY: each task takes its own row.
            let chosen = unsafe { disjoint.range(row..row + 1) };
            chosen[0] = largest_tiles(&logits[row * self.vocabulary..][..self.vocabulary]);
        });
        let chosen = &*chosen;
        let logits = Disjoint::new(logits);
        pool.run(rows * EXACT_TILES, |task, _| {
            let (row, tile) = (task / EXACT_TILES, chosen[task / EXACT_TILES][task % EXACT_TILES]);
            // A vocabulary of fewer tiles fills the rest with the last.
            if chosen[row][..task % EXACT_TILES].contains(&tile) {
                return;
            }
            let columns = tile * PAIR..self.vocabulary.min((tile + 1) * PAIR);
            let low = linear::run_tile_for_row(kernels, &self.low, tile, input, row);
            let start = row * self.vocabulary;
            // SAFETY: each task has a tile of a row for itself.
            let to = unsafe { logits.range(start + columns.start..start + columns.end) };
            for (logit, low) in to.iter_mut().zip(low) {
                *logit += low / 256.0;
            }
        });
    }
}

/// Tiles packed between two times that the file's memory is given back.
const TILES_PER_PART: usize = 256;

/// Line within a group and byte within the line of input `k` and output `n`.
fn place(k: usize, n: usize) -> (usize, usize) {
    (CONSTANT_LINES + k / LANE_INPUTS * 2 + n / TILE, n % TILE * LANE_INPUTS + k % LANE_INPUTS)
}

type Widen = fn(&[u8], &mut [f32]);

/// How to read the tensor's elements.
fn widening(tensor: &Tensor<'_>) -> Result<Widen, CheckpointError> {
    /// Elements that are converted at a time.
    const CHUNK: usize = 128;
    fn halves<const BF16: bool>(from: &[u8], to: &mut [f32]) {
        let mut bits = [0u16; CHUNK];
        for (from, to) in from.chunks(2 * CHUNK).zip(to.chunks_mut(CHUNK)) {
            for (bits, from) in bits.iter_mut().zip(from.as_chunks::<2>().0) {
                *bits = u16::from_le_bytes(*from);
            }
            if BF16 {
                for (to, bits) in to.iter_mut().zip(bits) {
                    *to = bf16::from_bits(bits).to_f32();
                }
            } else {
                let halves: [f16; CHUNK] = bits.map(f16::from_bits);
                halves[..to.len()].convert_to_f32_slice(to);
            }
        }
    }
    match tensor.dtype {
        Dtype::F16 => Ok(halves::<false>),
        Dtype::BF16 => Ok(halves::<true>),
        Dtype::F32 => Ok(|from, to| {
            for (from, to) in from.as_chunks::<4>().0.iter().zip(to) {
                *to = f32::from_le_bytes(*from);
            }
        }),
        _ => Err(tensor.unsupported_dtype("F16, BF16, F32")),
    }
}

/// Packs one row as output `n` of a tile; `false` when it holds what cannot be packed.
fn pack_row(widen: Widen, bytes: &[u8], group_size: usize, n: usize, planes: &mut [&mut [Line]; 2]) -> bool {
    /// The widest group.
    const LARGEST: usize = 128;
    let lines = group_lines(WeightBits::Eight, group_size);
    let [high, low] = planes;
    let groups = high.chunks_exact_mut(lines).zip(low.chunks_exact_mut(lines));
    let group_bytes = bytes.len() / groups.len();
    let mut values = [0.0f32; LARGEST];
    let values = &mut values[..group_size];
    for ((high, low), bytes) in groups.zip(bytes.chunks_exact(group_bytes)) {
        widen(bytes, values);
        let amax = f32::from_bits(values.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0));
        let scale = scale_for(amax);
        if !scale.is_finite() {
            return false;
        }
        let inverse = if scale > f16::ZERO { 1.0 / scale.to_f32() } else { 0.0 };
        for constants in [&mut *high, &mut *low] {
            set_constants(constants, n, scale.to_bits(), OFFSET);
        }
        for (lane, values) in values.as_chunks::<LANE_INPUTS>().0.iter().enumerate() {
            let (line, byte) = place(lane * LANE_INPUTS, n);
            let scaled = values.map(|x| x * inverse);
            let digits = scaled.map(round);
            let rests: [f32; LANE_INPUTS] = std::array::from_fn(|j| (scaled[j] - digits[j]) * 256.0);
            let byte_of = |digit: f32| (digit.clamp(-127.0, 127.0) as i32 + i32::from(OFFSET)) as u8;
            high[line].0[byte..][..LANE_INPUTS].copy_from_slice(&digits.map(byte_of));
            low[line].0[byte..][..LANE_INPUTS].copy_from_slice(&rests.map(|rest| byte_of(round(rest))));
        }
    }
    true
}

/// To the nearest integer, ties to even, for magnitudes below 2^22: one addition rounds, another takes it back.
fn round(x: f32) -> f32 {
    const MAGIC: f32 = 12_582_912.0;
    (x + MAGIC) - MAGIC
}

/// The smallest fp16 scale with which 127 steps reach `amax`.
fn scale_for(amax: f32) -> f16 {
    let scale = f16::from_f32(amax / 127.0);
    if scale.to_f32() * 127.0 < amax { f16::from_bits(scale.to_bits() + 1) } else { scale }
}

/// The tiles with the largest logits, ties to the first; the last tile again where there are fewer.
fn largest_tiles(logits: &[f32]) -> [usize; EXACT_TILES] {
    let tiles = logits.chunks(PAIR).enumerate().map(|(tile, logits)| {
        let largest = logits.iter().fold(f32::NEG_INFINITY, |largest, logit| largest.max(*logit));
        (largest, tile)
    });
    let mut best = [(f32::NEG_INFINITY, logits.len().div_ceil(PAIR) - 1); EXACT_TILES];
    for candidate in tiles {
        if candidate.0 > best[EXACT_TILES - 1].0 {
            let at = best.partition_point(|(largest, _)| *largest >= candidate.0);
            best[at..].rotate_right(1);
            best[at] = candidate;
        }
    }
    best.map(|(_, tile)| tile)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A matrix of the given rows, packed.
    fn pack(rows: &[Vec<f32>], group_size: usize) -> Option<TwoPlanes> {
        let (vocabulary, hidden) = (rows.len(), rows[0].len());
        let mut planes = TwoPlanes::zeroed([vocabulary, hidden], group_size).unwrap();
        let widen: Widen = |from, to| {
            for (from, to) in from.as_chunks::<4>().0.iter().zip(to) {
                *to = f32::from_le_bytes(*from);
            }
        };
        for (row, values) in rows.iter().enumerate() {
            let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
            let tile = row / PAIR..row / PAIR + 1;
            let mut lines = [planes.high.tiles_mut(tile.clone()), planes.low.tiles_mut(tile)];
            if !pack_row(widen, &bytes, group_size, row % PAIR, &mut lines) {
                return None;
            }
        }
        Some(planes)
    }

    proptest! {
        /// Sixteen bits of the group's largest weight: half a step of the low plane, twice that where its
        /// digit was at the end of its range.
        #[test]
        fn both_planes_together_are_the_weights(
            rows in prop::collection::vec(prop::collection::vec(-2.0f32..2.0, 128), 1..70),
            small in 0usize..64,
        ) {
            let mut rows = rows;
            // A group of zeros, and one of tiny weights.
            rows[0][..64].fill(0.0);
            rows[0][64 + small] = 1e-6;
            for group_size in [32, 64, 128] {
                let planes = pack(&rows, group_size).unwrap();
                for (token, row) in rows.iter().enumerate() {
                    let mut found = vec![9.0; row.len()];
                    planes.copy_row(token, &mut found);
                    for (group, found) in row.chunks(group_size).zip(found.chunks(group_size)) {
                        let amax = group.iter().fold(0.0f32, |amax, x| amax.max(x.abs()));
                        for (x, found) in group.iter().zip(found) {
                            // fp16 has no scale below 6e-8.
                            prop_assert!((x - found).abs() <= amax / 127.0 / 256.0 * 1.01 + 6e-8, "{x} became {found}");
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn what_is_not_finite_or_far_too_large_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e8] {
            let mut row = vec![0.5; 64];
            row[40] = bad;
            assert!(pack(&[row], 32).is_none(), "{bad} was packed");
        }
    }

    #[test]
    fn the_largest_tiles_are_found_in_order_and_each_once() {
        let mut logits = vec![0.0; 100 * PAIR - 5];
        for (i, tile) in (0..100).step_by(5).enumerate() {
            logits[tile * PAIR + i] = 1.0 + i as f32;
        }
        let expected: Vec<usize> = (0..100).step_by(5).rev().take(EXACT_TILES).collect();
        assert_eq!(largest_tiles(&logits).to_vec(), expected);
        // All alike: the first ones. Fewer than are wanted: all of them.
        assert_eq!(largest_tiles(&vec![1.0; 100 * PAIR]).to_vec(), (0..EXACT_TILES).collect::<Vec<_>>());
        let mut few = largest_tiles(&vec![1.0; 3 * PAIR]).to_vec();
        few.sort_unstable();
        few.dedup();
        assert_eq!(few, [0, 1, 2]);
    }
}
