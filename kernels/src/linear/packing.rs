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

/// Which of eight outputs a nibble of AWQ's words is.
const AWQ_ORDER: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

/// AWQ weights as a checkpoint has them. Outputs come in octets: `8 * octet .. 8 * octet + 8`.
pub trait Int4Source {
    /// Outputs; a multiple of 8.
    fn outputs(&self) -> usize;
    /// The quantized weights of inputs `k .. k + 8` for an octet: byte `j` of an output's word holds that of
    /// input `k + j` in its low nibble and that of input `k + 4 + j` in its high one.
    fn q8x8(&self, k: usize, octet: usize) -> [[u8; 4]; 8];
    /// The same, a word for each input, in the order that AWQ has: nibble `i` is output `[0, 2, 4, 6, 1, 3, 5, 7][i]`.
    /// For a checkpoint that has them so, eight loads; it is all that packing asks for.
    fn awq_words(&self, k: usize, octet: usize) -> [u32; 8] {
        let outputs = self.q8x8(k, octet);
        std::array::from_fn(|input| {
            let nibble = |output: usize| u32::from(outputs[output][input % 4] >> (input / 4 * 4) & 15);
            (0..8).fold(0, |word, i| word | nibble(AWQ_ORDER[i]) << (4 * i))
        })
    }
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

/// Tiles that are packed together. A checkpoint's rows go along the outputs: of eight of them at a time, 256 bytes
/// are read, few pages and whole cache lines.
const TILES_AT_ONCE: usize = 32;

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
        for k in (0..spec.input).step_by(8) {
            for (tile, &[low, high]) in some.chunks_mut(tile_bytes).zip(&octets) {
                pack_int4_inputs(k, low, high, &mut tile[k / PIECE_INPUTS * 512..][..512]);
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

/// The weights of inputs `k .. k + 8` of a tile into the words of their piece, two products' for every lane with
/// the row g. A product's word has in its nibbles its inputs e = 0, 0, 2, 2, 1, 1, 3, 3, of rows g and g + 8 in turn:
/// with AWQ's words in that order, it is the transposition of a square of nibbles.
fn pack_int4_inputs<S: Int4Source>(
    k: usize,
    low: Option<(&S, usize)>,
    high: Option<(&S, usize)>,
    words: &mut [u8],
) {
    let inputs =
        |octet: Option<(&S, usize)>| octet.map_or([0; 8], |(source, octet)| source.awq_words(k, octet));
    let (low, high) = (inputs(low), inputs(high));
    let product = |e: usize| {
        transpose_nibbles([
            low[e],
            high[e],
            low[e + 2],
            high[e + 2],
            low[e + 1],
            high[e + 1],
            low[e + 3],
            high[e + 3],
        ])
    };
    let (first, second) = (product(0), product(4));
    let (half, t) = (k % PIECE_INPUTS / 32, k % 32 / 8);
    for (i, g) in AWQ_ORDER.into_iter().enumerate() {
        let at = 16 * (4 * g + t) + 8 * half;
        words[at..at + 8].copy_from_slice(&(u64::from(first[i]) | u64::from(second[i]) << 32).to_le_bytes());
    }
}

/// Nibble i of word j becomes nibble j of word i: halves change places, then bytes, then nibbles.
fn transpose_nibbles(mut words: [u32; 8]) -> [u32; 8] {
    for (distance, mask) in [(4, 0x0000_ffff), (2, 0x00ff_00ff), (1, 0x0f0f_0f0f)] {
        for i in (0..8).filter(|i| i & distance == 0) {
            let changed = (words[i] >> (4 * distance) ^ words[i + distance]) & mask;
            words[i + distance] ^= changed;
            words[i] ^= changed << (4 * distance);
        }
    }
    words
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
    let register = r / 8 * 4;
    for (inputs, piece) in row.as_chunks::<PIECE_INPUTS>().0.iter().zip(tile.as_chunks_mut::<2048>().0) {
        let products = piece.as_chunks_mut::<512>().0;
        for (i, fours) in inputs.as_chunks::<4>().0.iter().enumerate() {
            let (product, t) = (i / 8 * 2 + i % 2, i % 8 / 2);
            let lane = &mut products[product].as_chunks_mut::<16>().0[r % 8 * 4 + t];
            let [e0, e1, e2, e3] = fours.map(|half| u32::from(half.to_bits()));
            lane[register..register + 4].copy_from_slice(&(e0 | e1 << 16).to_le_bytes());
            lane[register + 8..register + 12].copy_from_slice(&(e2 | e3 << 16).to_le_bytes());
        }
    }
}

/// The same for bytes: of the product's two words, bytes 0, 1 for rows g and 2, 3 for rows g + 8.
fn place_bytes(row: &[u8], r: usize, tile: &mut [u8]) {
    for (inputs, piece) in row.as_chunks::<PIECE_INPUTS>().0.iter().zip(tile.as_chunks_mut::<1024>().0) {
        let halves = piece.as_chunks_mut::<512>().0;
        for (i, [e0, e1, e2, e3]) in inputs.as_chunks::<4>().0.iter().enumerate() {
            let (half, t) = (i / 8, i % 8 / 2);
            let lane = &mut halves[half].as_chunks_mut::<16>().0[r % 8 * 4 + t];
            let at = i % 2 * 8 + r / 8 * 2;
            lane[at..at + 2].copy_from_slice(&[*e0, *e1]);
            lane[at + 4..at + 6].copy_from_slice(&[*e2, *e3]);
        }
    }
}

/// The codes `q + 128` of a group, and its scale: that of its largest weight, as fp16 has it.
fn quantize_int8(weights: &[f32], codes: &mut [u8]) -> f16 {
    // The last bit of a sum with this number is worth 1, and the sum is rounded to nearest even.
    const ROUNDER: f32 = 12_582_912.0;
    let largest = weights.iter().map(|weight| weight.abs()).fold(0f32, |a, b| if b > a { b } else { a });
    let scale = f16::from_f32(largest / 127.0);
    let inverse = if scale > f16::ZERO { scale.to_f32().recip() } else { 0.0 };
    for (weight, code) in weights.iter().zip(codes) {
        let rounded = (weight * inverse).clamp(-127.0, 127.0) + (ROUNDER + 128.0);
        *code = (rounded.to_bits() - ROUNDER.to_bits()) as u8;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::linear::Pairing;

    /// A matrix that is 0.25 everywhere but in one place.
    struct Spot {
        output: usize,
        input: usize,
        value: f32,
    }

    impl DenseSource for Spot {
        fn outputs(&self) -> usize {
            20
        }

        fn row(&self, output: usize, to: &mut [f32]) {
            to.fill(0.25);
            if output == self.output {
                to[self.input] = self.value;
            }
        }
    }

    fn pack(format: Format, value: f32) -> Result<Vec<f32>, PackError> {
        let spec = LinearSpec { format, input: 72, output: 40, pairing: Pairing::Plain };
        let mut packed = vec![0; spec.packed_bytes()];
        let spots = [Spot { output: 99, input: 0, value }, Spot { output: 7, input: 70, value }];
        pack_dense(&spec, &spots, 0..spec.tiles(), &mut packed)?;
        Ok(unpack(&spec, &packed))
    }

    #[test]
    fn a_weight_is_where_it_belongs() {
        let weights = pack(Format::F16, -3.5).expect("halves");
        let spot = 27 * 72 + 70;
        assert!(weights.iter().enumerate().all(|(i, &weight)| weight == if i == spot { -3.5 } else { 0.25 }));
    }

    #[test]
    fn a_weight_that_the_format_does_not_have_is_named() {
        for (format, name) in [(Format::F16, "fp16"), (Format::Int8, "int8")] {
            let error = pack(format, f32::NAN).expect_err("NaN");
            assert_eq!(error, PackError::OutOfRange { output: 27, input: 70, format: name });
        }
        let error = pack(Format::F16, 1e5).expect_err("too large");
        assert_eq!(error.to_string(), "the weight from input 70 to output 27 is NaN or too large for fp16");
        // Eight bits take any number that their scale, an fp16, can reach.
        assert!(pack(Format::Int8, 1e5).is_ok());
        assert!(pack(Format::Int8, 1e8).is_err());
    }

    #[test]
    fn read_bytes_are_the_weights_scales_and_zeros() {
        let spec = |format| LinearSpec { format, input: 3584, output: 4608, pairing: Pairing::Plain };
        let weights = 3584 * 4608;
        let groups = weights / 128;
        // Four bits a weight; sixteen bits of scale and four of zero a group.
        assert_eq!(spec(Format::Int4 { group: 128 }).read_bytes(), weights / 2 + 2 * groups + groups / 2);
        assert_eq!(spec(Format::F16).read_bytes(), 2 * weights);
        assert_eq!(spec(Format::Int8).read_bytes(), weights + 2 * groups);
        assert_eq!(spec(Format::Fp8).read_bytes(), weights + 4 * 4608);
    }
}
