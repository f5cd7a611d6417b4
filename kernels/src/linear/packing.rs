//! Writes the packed layout that `cuda/linear.cuh` draws, and reads it back for tests.
//!
//! Packing is a matter of gigabytes between the page cache and the first token, so each format has a loop of
//! its own that moves several weights at a time. [`unpack`] takes every weight from its place by the layout's
//! definition and is the check on them.

use std::ops::Range;

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::{Format, INT8_GROUP, LinearSpec, PIECE_INPUTS, TILE_OUTPUTS};
use crate::float8;

/// AWQ weights as a checkpoint has them. Outputs come in octets: `8 * octet .. 8 * octet + 8`.
pub trait Int4Source {
    /// Outputs; a multiple of 8.
    fn outputs(&self) -> usize;
    /// The quantized weights of inputs `k .. k + 8` for an octet: byte `j` of an output's word holds that of
    /// input `k + j` in its low nibble and that of input `k + 4 + j` in its high one.
    fn q8x8(&self, k: usize, octet: usize) -> [[u8; 4]; 8];
    /// The zero points of a group for an octet, each 0..=15.
    fn z8(&self, group: usize, octet: usize) -> [u8; 8];
    /// The scale of a group for an output, as fp16 bits.
    fn scale_bits(&self, group: usize, output: usize) -> u16;
}

/// Plain weights as a checkpoint has them.
pub trait DenseSource {
    /// Outputs.
    fn outputs(&self) -> usize;
    /// The weights of an output, one for each input.
    fn row(&self, output: usize, to: &mut [f32]);
    /// The same as fp16; for a checkpoint that has them so, a copy.
    fn row_f16(&self, output: usize, to: &mut [f16]) {
        let mut row = vec![0.0; to.len()];
        self.row(output, &mut row);
        to.convert_from_f32_slice(&row);
    }
}

/// e4m3 weights as a checkpoint has them.
pub trait Fp8Source {
    /// Outputs.
    fn outputs(&self) -> usize;
    /// The codes of an output, one for each input.
    fn row(&self, output: usize, to: &mut [u8]);
    /// What an output's codes are multiplied with.
    fn scale(&self, output: usize) -> f32;
}

/// Why weights cannot be packed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PackError {
    /// A weight that the format does not have: too large for fp16, infinite or NaN.
    #[error("the weight from input {input} to output {output} is NaN or too large for {format}")]
    OutOfRange {
        /// Its output, counted through all sources.
        output: usize,
        /// Its input.
        input: usize,
        /// What it was to be packed as.
        format: &'static str,
    },
}

/// Which of several sources, one after the other, has an output, and as which of its own.
fn find<S>(sources: &[S], outputs: impl Fn(&S) -> usize, mut output: usize) -> (&S, usize) {
    for source in sources {
        if output < outputs(source) {
            return (source, output);
        }
        output -= outputs(source);
    }
    panic!("{output} outputs more than the sources have");
}

/// Checks that `to` is as long as the tiles and that the sources have all outputs, and zeroes it: all that is
/// not written afterwards is padding.
fn begin(spec: &LinearSpec, outputs: usize, tiles: &Range<usize>, to: &mut [u8]) {
    spec.check();
    assert_eq!(outputs, spec.output, "outputs of the sources");
    assert!(tiles.end <= spec.tiles(), "tiles {tiles:?} of {}", spec.tiles());
    assert_eq!(to.len(), tiles.len() * spec.tile_bytes(), "bytes of {} tiles", tiles.len());
    to.fill(0);
}

/// Tiles that are packed together: eight of two octets use up a cache line of a checkpoint's rows, which go
/// along the outputs.
const TILES_AT_ONCE: usize = 8;

/// Packs a range of tiles of [`Format::Int4`]. The sources' outputs follow one another.
///
/// # Panics
/// When the sizes do not fit together, or an octet goes over the end of a source.
pub fn pack_int4<S: Int4Source>(spec: &LinearSpec, sources: &[S], tiles: Range<usize>, to: &mut [u8]) {
    begin(spec, sources.iter().map(S::outputs).sum(), &tiles, to);
    let Format::Int4 { group } = spec.format else { panic!("{:?} is not int4", spec.format) };
    let tile_bytes = spec.tile_bytes();
    let mut first = tiles.start;
    for some in to.chunks_mut(TILES_AT_ONCE * tile_bytes) {
        let octets: Vec<[Option<(&S, usize)>; 2]> = (first..first + some.len() / tile_bytes)
            .map(|tile| {
                spec.octets(tile).map(|outputs| {
                    let (source, output) =
                        find(sources, S::outputs, (!outputs.is_empty()).then_some(outputs.start)?);
                    Some((source, output / 8))
                })
            })
            .collect();
        for piece in 0..spec.pieces() {
            for (tile, &[low, high]) in some.chunks_mut(tile_bytes).zip(&octets) {
                let words = &mut tile[piece * 512..][..512];
                for k in (0..PIECE_INPUTS.min(spec.input - piece * PIECE_INPUTS)).step_by(8) {
                    pack_int4_inputs(piece * PIECE_INPUTS + k, low, high, words);
                }
            }
        }
        for (tile, &[low, high]) in some.chunks_mut(tile_bytes).zip(&octets) {
            pack_int4_groups(
                spec.input / group,
                low,
                high,
                &mut tile[spec.scales_at()..],
                spec.zeros_at() - spec.scales_at(),
            );
        }
        first += octets.len();
    }
}

/// The weights of inputs `k .. k + 8` of a tile into the words of their piece. For every lane with the
/// tile row g they are two words, those of a pair of products: `q8x8` has the first product's nibbles in the
/// low halves of its bytes and the second's in the high ones. Rows g get the even nibbles of a word and rows
/// g + 8 the odd ones, and inputs e = 0..3 of a row the bytes 0, 2, 1, 3.
fn pack_int4_inputs<S: Int4Source>(
    k: usize,
    low: Option<(&S, usize)>,
    high: Option<(&S, usize)>,
    words: &mut [u8],
) {
    const LOW_NIBBLES: u32 = 0x0f0f_0f0f;
    let inputs = |octet: Option<(&S, usize)>| {
        octet.map_or([0; 8], |(source, octet)| {
            source.q8x8(k, octet).map(|[e0, e1, e2, e3]| u32::from_le_bytes([e0, e2, e1, e3]))
        })
    };
    let (low, high) = (inputs(low), inputs(high));
    let (half, t) = (k % PIECE_INPUTS / 32, k % 32 / 8);
    for g in 0..8 {
        let first = (low[g] & LOW_NIBBLES) | (high[g] & LOW_NIBBLES) << 4;
        let second = (low[g] >> 4 & LOW_NIBBLES) | (high[g] & !LOW_NIBBLES);
        let at = 16 * (4 * g + t) + 8 * half;
        words[at..at + 8].copy_from_slice(&(u64::from(first) | u64::from(second) << 32).to_le_bytes());
    }
}

fn pack_int4_groups<S: Int4Source>(
    groups: usize,
    low: Option<(&S, usize)>,
    high: Option<(&S, usize)>,
    scales: &mut [u8],
    zeros_at: usize,
) {
    for (row, octet) in [low, high].into_iter().enumerate() {
        let Some((source, octet)) = octet else { continue };
        for group in 0..groups {
            let zeros = source.z8(group, octet);
            for g in 0..8 {
                let at = 32 * group + 4 * g + 2 * row;
                scales[at..at + 2].copy_from_slice(&source.scale_bits(group, 8 * octet + g).to_le_bytes());
                scales[zeros_at + 8 * group + g] |= zeros[g] << (4 * row);
            }
        }
    }
}

/// Packs a range of tiles of [`Format::F16`] or [`Format::Int8`]. The sources' outputs follow one another.
///
/// # Errors
/// Names a weight that is NaN, or infinite in fp16.
///
/// # Panics
/// When the sizes do not fit together.
pub fn pack_dense<S: DenseSource>(
    spec: &LinearSpec,
    sources: &[S],
    tiles: Range<usize>,
    to: &mut [u8],
) -> Result<(), PackError> {
    begin(spec, sources.iter().map(S::outputs).sum(), &tiles, to);
    let padded = spec.pieces() * PIECE_INPUTS;
    let mut halves = vec![f16::ZERO; padded];
    let mut row = vec![0f32; padded];
    let mut codes = vec![0u8; padded];
    for_each_row(spec, tiles, to, |output, r, tile| {
        let (source, own) = find(sources, S::outputs, output);
        match spec.format {
            Format::F16 => {
                source.row_f16(own, &mut halves[..spec.input]);
                if let Some(input) = halves[..spec.input].iter().position(|half| !half.is_finite()) {
                    return Err(PackError::OutOfRange { output, input, format: "fp16" });
                }
                place_halves(&halves, r, tile);
            }
            Format::Int8 => {
                source.row(own, &mut row[..spec.input]);
                if let Some(input) = row[..spec.input].iter().position(|weight| !weight.is_finite()) {
                    return Err(PackError::OutOfRange { output, input, format: "int8" });
                }
                for (group, (weights, codes)) in
                    row.chunks(INT8_GROUP).zip(codes.chunks_mut(INT8_GROUP)).enumerate()
                {
                    let scale = quantize_int8(weights, codes);
                    if !scale.is_finite() {
                        let input = group * INT8_GROUP;
                        return Err(PackError::OutOfRange { output, input, format: "int8" });
                    }
                    let at = spec.scales_at() + 32 * group + 4 * (r % 8) + 2 * (r / 8);
                    tile[at..at + 2].copy_from_slice(&scale.to_le_bytes());
                }
                place_bytes(&codes, r, tile);
            }
            Format::Int4 { .. } | Format::Fp8 => panic!("{:?} is not packed from plain weights", spec.format),
        }
        Ok(())
    })
}

/// Packs a range of tiles of [`Format::Fp8`]. The sources' outputs follow one another.
///
/// # Errors
/// Names a weight that is NaN.
///
/// # Panics
/// When the sizes do not fit together.
pub fn pack_fp8<S: Fp8Source>(
    spec: &LinearSpec,
    sources: &[S],
    tiles: Range<usize>,
    to: &mut [u8],
) -> Result<(), PackError> {
    begin(spec, sources.iter().map(S::outputs).sum(), &tiles, to);
    assert_eq!(spec.format, Format::Fp8);
    let mut codes = vec![0u8; spec.pieces() * PIECE_INPUTS];
    for_each_row(spec, tiles, to, |output, r, tile| {
        let (source, own) = find(sources, S::outputs, output);
        source.row(own, &mut codes[..spec.input]);
        if let Some(input) = codes.iter().position(|code| code & 0x7f == 0x7f) {
            return Err(PackError::OutOfRange { output, input, format: "e4m3" });
        }
        let at = spec.scales_at() + 8 * (r % 8) + 4 * (r / 8);
        tile[at..at + 4].copy_from_slice(&source.scale(own).to_le_bytes());
        place_bytes(&codes, r, tile);
        Ok(())
    })
}

/// Calls `pack` with each output of the tiles, its row in its tile, and the tile.
fn for_each_row(
    spec: &LinearSpec,
    tiles: Range<usize>,
    to: &mut [u8],
    mut pack: impl FnMut(usize, usize, &mut [u8]) -> Result<(), PackError>,
) -> Result<(), PackError> {
    for (tile, bytes) in tiles.zip(to.chunks_mut(spec.tile_bytes())) {
        for (first_row, outputs) in [0, 8].into_iter().zip(spec.octets(tile)) {
            for (r, output) in (first_row..).zip(outputs) {
                pack(output, r, bytes)?;
            }
        }
    }
    Ok(())
}

/// Four inputs in a row are a product's for one lane: registers `r / 8` and `r / 8 + 2`.
fn place_halves(row: &[f16], r: usize, tile: &mut [u8]) {
    for (piece, inputs) in row.chunks_exact(PIECE_INPUTS).enumerate() {
        for (i, [e0, e1, e2, e3]) in inputs.as_chunks::<4>().0.iter().enumerate() {
            let (product, t) = (i / 8 * 2 + i % 2, i % 8 / 2);
            let at = piece * 2048 + product * 512 + (r % 8 * 4 + t) * 16 + r / 8 * 4;
            let pair = |low: f16, high: f16| {
                (u32::from(low.to_bits()) | u32::from(high.to_bits()) << 16).to_le_bytes()
            };
            tile[at..at + 4].copy_from_slice(&pair(*e0, *e1));
            tile[at + 8..at + 12].copy_from_slice(&pair(*e2, *e3));
        }
    }
}

/// The same for bytes: of the product's two words, bytes 0, 1 for rows g and 2, 3 for rows g + 8.
fn place_bytes(row: &[u8], r: usize, tile: &mut [u8]) {
    for (piece, inputs) in row.chunks_exact(PIECE_INPUTS).enumerate() {
        for (i, [e0, e1, e2, e3]) in inputs.as_chunks::<4>().0.iter().enumerate() {
            let (half, product, t) = (i / 8, i % 2, i % 8 / 2);
            let at = piece * 1024 + half * 512 + (r % 8 * 4 + t) * 16 + product * 8 + r / 8 * 2;
            tile[at..at + 2].copy_from_slice(&[*e0, *e1]);
            tile[at + 4..at + 6].copy_from_slice(&[*e2, *e3]);
        }
    }
}

/// The codes `q + 128` of a group, and its scale: that of its largest weight, as fp16 has it.
fn quantize_int8(weights: &[f32], codes: &mut [u8]) -> f16 {
    let largest = weights.iter().fold(0f32, |largest, weight| largest.max(weight.abs()));
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale > f16::ZERO { scale.to_f32().recip() } else { 0.0 };
    for (weight, code) in weights.iter().zip(codes) {
        *code = ((weight * inverse).round_ties_even().clamp(-127.0, 127.0) as i32 + 128) as u8;
    }
    scale
}

/// All weights of packed tiles, `[output][input]`: each from its place by the layout's definition.
///
/// # Panics
/// When `packed` has another length.
pub fn unpack(spec: &LinearSpec, packed: &[u8]) -> Vec<f32> {
    spec.check();
    assert_eq!(packed.len(), spec.packed_bytes(), "packed bytes");
    let mut weights = vec![0.0; spec.output * spec.input];
    for (tile, bytes) in packed.chunks(spec.tile_bytes()).enumerate() {
        for (first_row, outputs) in [0, 8].into_iter().zip(spec.octets(tile)) {
            for (r, output) in (first_row..).zip(outputs) {
                for input in 0..spec.input {
                    weights[output * spec.input + input] = weight_at(spec, bytes, r, input);
                }
            }
        }
    }
    weights
}

fn weight_at(spec: &LinearSpec, tile: &[u8], r: usize, input: usize) -> f32 {
    let (piece, k) = (input / PIECE_INPUTS, input % PIECE_INPUTS);
    // 32 (product / 2) + 8 t + 4 (product % 2) + e.
    let (product, t, e) = (k / 32 * 2 + k / 4 % 2, k / 8 % 4, k % 4);
    let (lane, register, half) = (r % 8 * 4 + t, r / TILE_OUTPUTS.div_ceil(2) + e / 2 * 2, e % 2);
    let lane_bytes = |load: usize| &tile[piece * spec.format.piece_bytes() + load * 512 + lane * 16..][..16];
    let half_at = |at: usize| f16::from_le_bytes([tile[at], tile[at + 1]]).to_f32();
    let scale = |group: usize| half_at(spec.scales_at() + 32 * group + 4 * (r % 8) + 2 * (r / 8));
    match spec.format {
        Format::Int4 { group } => {
            let group = input / group;
            let word = &lane_bytes(0)[4 * product..][..4];
            let nibble = register + 4 * half;
            let q = word[nibble / 2] >> (nibble % 2 * 4) & 15;
            let z = tile[spec.zeros_at() + 8 * group + r % 8] >> (4 * (r / 8)) & 15;
            (f32::from(q) - f32::from(z)) * scale(group)
        }
        Format::F16 => {
            let at = register * 4 + half * 2;
            let bytes = lane_bytes(product);
            f16::from_le_bytes([bytes[at], bytes[at + 1]]).to_f32()
        }
        Format::Int8 => {
            let code = lane_bytes(product / 2)[product % 2 * 8 + register * 2 + half];
            (f32::from(code) - 128.0) * scale(input / INT8_GROUP)
        }
        Format::Fp8 => {
            let code = lane_bytes(product / 2)[product % 2 * 8 + register * 2 + half];
            let at = spec.scales_at() + 8 * (r % 8) + 4 * (r / 8);
            let scale = f32::from_le_bytes([tile[at], tile[at + 1], tile[at + 2], tile[at + 3]]);
            float8::to_f32(code) * scale
        }
    }
}
