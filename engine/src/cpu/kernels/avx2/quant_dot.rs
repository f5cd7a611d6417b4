//! Integer dots in registers of eight outputs: what AVX2 and AVX-VNNI have in common, and the inner loop of each.
//!
//! Sixteen registers do not hold the sums of a block of rows by a tile, as those of AVX-512 do. So a group is
//! multiplied in passes, each over a few digit rows and all or half of the outputs, that leave integer sums in memory;
//! scales and zero points come after. A digit row is one digit of one row: to a pass they are all alike. Integer sums
//! are exact, so how rows are shared out over passes changes no bit.

use std::arch::x86_64::*;

use super::super::{
    BLOCK_DIGIT_ROWS, CONSTANT_LINES, Digits, LANE_INPUTS, LINE_BYTES, LOW_DIGIT_BITS, Line, PAIR, QuantTile,
    QuantizedRows, WeightBits, format, group_lines,
};
use super::{LANES, load, load_halves, store};

/// Registers of one tile's outputs.
const TILE_REGISTERS: usize = PAIR / LANES;

/// Sums of one digit row by a tile.
type RowSums = [__m256i; TILE_REGISTERS];

/// What one pass multiplies.
pub(super) struct Pass {
    /// The first register of weights; the next step's is two lines further.
    weights: *const __m256i,
    lanes: usize,
    /// The first digit row's four inputs of the first lane.
    x: *const i32,
    /// Digit rows of a lane.
    x_stride: usize,
}

/// The inner loop of an instruction set.
pub(super) trait Multiply {
    /// Digit rows that [`Multiply::pass`] may take at a time with two registers of outputs.
    fn most_rows(format: usize) -> usize;

    /// What is subtracted from a weight before it is multiplied.
    fn offset(format: usize) -> i32;

    /// Sums of `ROWS` digit rows by `REGISTERS` registers of outputs, into `sums[..][first..first + REGISTERS]`.
    ///
    /// # Safety
    /// The machine has the instruction set. `pass.weights` points to `pass.lanes` lanes of weights in `FORMAT`, of which
    /// each step has `REGISTERS` registers from there, and `pass.x` to `pass.lanes` lanes of `pass.x_stride` words, of
    /// which each has `ROWS` from there.
    unsafe fn pass<const ROWS: usize, const REGISTERS: usize, const FORMAT: usize>(
        pass: &Pass,
        first: usize,
        sums: &mut [RowSums],
    );
}

/// AVX2: `maddubs` multiplies bytes and adds two products in 16 bits, with saturation that must not happen.
pub(super) struct Maddubs;

/// AVX-VNNI: `dpbusd` adds four products in 32 bits.
pub(super) struct Vnni;

/// Lanes whose products are added in 16 bits: eight sums of two products of at most 15 * 127 stay below 2^15.
const LANES_PER_WIDENING: usize = 8;

impl Multiply for Maddubs {
    fn most_rows(format: usize) -> usize {
        // Eight-bit weights take two registers where the others take one.
        if format == format::BYTES { 4 } else { 6 }
    }

    fn offset(format: usize) -> i32 {
        if format == format::BYTES { 128 } else { 0 }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    unsafe fn pass<const ROWS: usize, const REGISTERS: usize, const FORMAT: usize>(
        pass: &Pass,
        first: usize,
        sums: &mut [RowSums],
    ) {
        let ones = _mm256_set1_epi16(1);
        let mut wide = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
        for part in 0..pass.lanes / LANES_PER_WIDENING {
            let mut narrow = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
            for lane in part * LANES_PER_WIDENING..(part + 1) * LANES_PER_WIDENING {
                for i in 0..REGISTERS {
                    // SAFETY: the caller's promise.
                    let weights = unsafe { weights::<ROWS, FORMAT>(pass, lane, i) };
                    // Around zero a weight's magnitude is at most 128, and two products of it with at most 127 fit 16
                    // bits: 32512. An activation takes its weight's sign; it is never -128, which has no negative.
                    let signed = _mm256_xor_si256(weights, _mm256_set1_epi8(-128));
                    let magnitudes = _mm256_abs_epi8(signed);
                    for t in 0..ROWS {
                        // SAFETY: the caller's promise.
                        let four = unsafe { four_inputs(pass, lane, t) };
                        if FORMAT == format::BYTES {
                            let products = _mm256_maddubs_epi16(magnitudes, _mm256_sign_epi8(four, signed));
                            wide[t][i] = _mm256_add_epi32(wide[t][i], _mm256_madd_epi16(products, ones));
                        } else {
                            let products = _mm256_maddubs_epi16(weights, four);
                            narrow[t][i] = _mm256_add_epi16(narrow[t][i], products);
                        }
                    }
                }
            }
            if FORMAT != format::BYTES {
                for t in 0..ROWS {
                    for i in 0..REGISTERS {
                        wide[t][i] = _mm256_add_epi32(wide[t][i], _mm256_madd_epi16(narrow[t][i], ones));
                    }
                }
            }
        }
        for (sums, wide) in sums.iter_mut().zip(wide) {
            sums[first..first + REGISTERS].copy_from_slice(&wide);
        }
    }
}

impl Multiply for Vnni {
    fn most_rows(_: usize) -> usize {
        6
    }

    fn offset(_: usize) -> i32 {
        0
    }

    #[target_feature(enable = "avx2,fma,f16c,avxvnni")]
    unsafe fn pass<const ROWS: usize, const REGISTERS: usize, const FORMAT: usize>(
        pass: &Pass,
        first: usize,
        sums: &mut [RowSums],
    ) {
        let mut totals = [[_mm256_setzero_si256(); REGISTERS]; ROWS];
        let lanes_per_step = const { format::lanes_per_step(FORMAT) };
        for step in 0..pass.lanes / lanes_per_step {
            for lane in step * lanes_per_step..(step + 1) * lanes_per_step {
                let mut line = [_mm256_setzero_si256(); REGISTERS];
                for i in 0..REGISTERS {
                    // SAFETY: the caller's promise.
                    line[i] = unsafe { weights::<ROWS, FORMAT>(pass, lane, i) };
                }
                for t in 0..ROWS {
                    // SAFETY: the caller's promise.
                    let four = unsafe { four_inputs(pass, lane, t) };
                    for i in 0..REGISTERS {
                        totals[t][i] = _mm256_dpbusd_avx_epi32(totals[t][i], line[i], four);
                    }
                }
            }
        }
        for (sums, totals) in sums.iter_mut().zip(totals) {
            sums[first..first + REGISTERS].copy_from_slice(&totals);
        }
    }
}

/// Digit rows up to which multiplying is faster than memory.
const MOST_STREAMED_ROWS: usize = 4;

/// How far ahead weights are fetched.
const PREFETCH_BYTES: usize = 4096;

/// Weights of one lane for eight outputs, a byte each.
///
/// # Safety
/// See [`Multiply::pass`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn weights<const ROWS: usize, const FORMAT: usize>(
    pass: &Pass,
    lane: usize,
    register: usize,
) -> __m256i {
    let (step, within) = (lane / format::lanes_per_step(FORMAT), lane % format::lanes_per_step(FORMAT));
    // SAFETY: the caller's promise.
    let at = unsafe { pass.weights.add(step * TILE_REGISTERS + register) };
    if ROWS <= MOST_STREAMED_ROWS && within == 0 && register.is_multiple_of(2) {
        // A few rows wait for memory, and the hardware's prefetcher stops at the end of every page.
        _mm_prefetch::<_MM_HINT_T0>(at.wrapping_byte_add(PREFETCH_BYTES).cast());
    }
    // SAFETY: the caller's promise; lines are aligned.
    let line = unsafe { _mm256_load_si256(at) };
    let low_nibbles = _mm256_set1_epi8(15);
    match (FORMAT, within) {
        (format::NIBBLES, 0) => _mm256_and_si256(line, low_nibbles),
        (format::NIBBLES, _) => _mm256_and_si256(_mm256_srli_epi16::<4>(line), low_nibbles),
        _ => line,
    }
}

/// Four inputs of one digit row, for every output.
///
/// # Safety
/// See [`Multiply::pass`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn four_inputs(pass: &Pass, lane: usize, row: usize) -> __m256i {
    // SAFETY: the caller's promise.
    _mm256_set1_epi32(unsafe { pass.x.add(lane * pass.x_stride + row).read_unaligned() })
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn quant_dot<M: Multiply>(
    tile: &QuantTile<'_>,
    x: &QuantizedRows<'_>,
    first_row: usize,
    out: &mut [[f32; PAIR]],
) {
    out.fill([0.0; PAIR]);
    // Unpacking pays once a group serves a second pass.
    let unpack =
        tile.bits == WeightBits::Four && out.len() * x.digits.count() > M::most_rows(format::NIBBLES);
    let mut unpacked = Unpacked([0; UNPACKED_BYTES]);
    let mut sums = [[_mm256_setzero_si256(); TILE_REGISTERS]; BLOCK_DIGIT_ROWS];
    for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
        let (constants, lines) = lines.split_at(CONSTANT_LINES);
        let group = match tile.bits {
            WeightBits::Four if unpack => {
                unpack_nibbles(lines, &mut unpacked.0);
                Group { weights: unpacked.0.as_ptr().cast(), format: format::SMALL_BYTES, constants }
            }
            WeightBits::Four => Group { weights: lines.as_ptr().cast(), format: format::NIBBLES, constants },
            WeightBits::Eight => Group { weights: lines.as_ptr().cast(), format: format::BYTES, constants },
        };
        let mut done = 0;
        while done < out.len() {
            let rows = x.rows_of_block(first_row + done);
            let (values, scales, digit_sums) = x.group(first_row + done, rows, g);
            let sums = &mut sums[..digit_sums.len()];
            assert!(values.len() == tile.group_size * sums.len());
            // SAFETY: the tile's weights and the block's values are one group; the machine is the caller's matter.
            unsafe { multiply::<M>(&group, tile.group_size / LANE_INPUTS, values, sums) };
            let rows = &mut out[done..done + rows];
            done += rows.len();
            finish(&group, M::offset(group.format), (x.digits, scales, digit_sums), sums, rows);
        }
    }
}

/// One group of a tile.
struct Group<'a> {
    weights: *const __m256i,
    format: usize,
    constants: &'a [Line],
}

/// Bytes of a group of 128 inputs.
const UNPACKED_BYTES: usize = 128 * PAIR;

/// A group, one byte per weight, in whole cache lines.
#[repr(align(64))]
struct Unpacked([u8; UNPACKED_BYTES]);

/// The two lines of a step along the inputs become four: low nibbles of both, then high nibbles of both.
#[target_feature(enable = "avx2,fma,f16c")]
fn unpack_nibbles(lines: &[Line], to: &mut [u8; UNPACKED_BYTES]) {
    let low_nibbles = _mm256_set1_epi8(15);
    for (pair, to) in lines.chunks_exact(2).zip(to.chunks_exact_mut(4 * LINE_BYTES)) {
        let (from, to) = (pair.as_ptr().cast::<__m256i>(), to.as_mut_ptr().cast::<__m256i>());
        for i in 0..TILE_REGISTERS {
            // SAFETY: two lines are as many registers, and `to` has twice that.
            unsafe {
                let line = _mm256_load_si256(from.add(i));
                let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low_nibbles);
                _mm256_store_si256(to.add(i), _mm256_and_si256(line, low_nibbles));
                _mm256_store_si256(to.add(TILE_REGISTERS + i), high);
            }
        }
    }
}

/// Multiplies one group by all digit rows of a block: `sums[r]` becomes that of digit row `r`.
///
/// # Safety
/// The machine has the instruction set of `M`, and the group has `lanes` lanes in its format.
unsafe fn multiply<M: Multiply>(group: &Group<'_>, lanes: usize, values: &[i8], sums: &mut [RowSums]) {
    // SAFETY: the caller's promise.
    unsafe {
        match group.format {
            format::NIBBLES => multiply_format::<M, { format::NIBBLES }>(group, lanes, values, sums),
            format::SMALL_BYTES => multiply_format::<M, { format::SMALL_BYTES }>(group, lanes, values, sums),
            _ => multiply_format::<M, { format::BYTES }>(group, lanes, values, sums),
        }
    }
}

/// # Safety
/// See [`multiply`].
unsafe fn multiply_format<M: Multiply, const FORMAT: usize>(
    group: &Group<'_>,
    lanes: usize,
    values: &[i8],
    sums: &mut [RowSums],
) {
    assert!(values.len() == lanes * LANE_INPUTS * sums.len());
    let mut pass = Pass { weights: group.weights, lanes, x: values.as_ptr().cast(), x_stride: sums.len() };
    // SAFETY: the caller's promise, and `values` has as many words in each lane as there are sums.
    unsafe {
        match sums.len() {
            1 => return M::pass::<1, TILE_REGISTERS, FORMAT>(&pass, 0, sums),
            2 => return M::pass::<2, TILE_REGISTERS, FORMAT>(&pass, 0, sums),
            _ => {}
        }
    }
    for first in [0, TILE_REGISTERS / 2] {
        pass.weights = group.weights.wrapping_add(first);
        let mut done = 0;
        for passes in (1..=sums.len().div_ceil(M::most_rows(FORMAT))).rev() {
            let rows = (sums.len() - done).div_ceil(passes);
            pass.x = values.as_ptr().cast::<i32>().wrapping_add(done);
            let sums = &mut sums[done..done + rows];
            // SAFETY: as above; these are the words of digit rows `done..done + rows`.
            unsafe {
                match rows {
                    2 => M::pass::<2, 2, FORMAT>(&pass, first, sums),
                    3 => M::pass::<3, 2, FORMAT>(&pass, first, sums),
                    4 => M::pass::<4, 2, FORMAT>(&pass, first, sums),
                    5 => M::pass::<5, 2, FORMAT>(&pass, first, sums),
                    6 => M::pass::<6, 2, FORMAT>(&pass, first, sums),
                    _ => unreachable!("a pass takes two to six digit rows of a block"),
                }
            }
            done += rows;
        }
    }
}

/// Adds `scale * (sums - zero * digit sums)` to `out`, which is one block of rows.
#[target_feature(enable = "avx2,fma,f16c")]
fn finish(
    group: &Group<'_>,
    offset: i32,
    (digits, scales, digit_sums): (Digits, &[f32], &[i32]),
    sums: &[RowSums],
    out: &mut [[f32; PAIR]],
) {
    let rows = out.len();
    assert!(sums.len() == rows * digits.count() && digit_sums.len() == sums.len() && scales.len() == rows);
    for i in 0..TILE_REGISTERS {
        let weight_scales = _mm256_cvtph_ps(load_halves(&group.constants[0], i * LANES));
        let minus_zeros = _mm256_cvtepu16_epi32(load_halves(&group.constants[1], i * LANES));
        // In the low halves of lanes whose high halves are zero.
        let minus_zeros = _mm256_add_epi16(minus_zeros, _mm256_set1_epi32(offset));
        let centred = |r: usize| {
            // A sum fits 16 bits, and the other half of each product is zero: the low halves multiply.
            let correction = _mm256_madd_epi16(minus_zeros, _mm256_set1_epi32(digit_sums[r]));
            _mm256_add_epi32(sums[r][i], correction)
        };
        for (t, out) in out.iter_mut().enumerate() {
            let dot = match digits {
                Digits::One => centred(t),
                Digits::Two => _mm256_add_epi32(
                    _mm256_slli_epi32::<{ LOW_DIGIT_BITS as i32 }>(centred(t)),
                    centred(rows + t),
                ),
            };
            let scale = _mm256_mul_ps(weight_scales, _mm256_set1_ps(scales[t]));
            let to = &mut out[i * LANES..][..LANES];
            store(to, _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(dot), load(to)));
        }
    }
}
