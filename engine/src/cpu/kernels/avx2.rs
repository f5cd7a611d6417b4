//! AVX2 with FMA and F16C: a tile is two registers of eight outputs.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::{
    DIGITS, DenseFormat, DenseTile, FloatRows, Int4Tile, LINE_BYTES, LINE_INPUTS, LOW_DIGIT_BITS,
    QuantizedRows, TILE, Table, exp, portable,
};

pub(super) static TABLE: Table =
    Table { quantize_row, int4_dot_i8, int4_dot_f32, dense_dot, rms_norm, silu_mul };

/// Lanes of one register.
const LANES: usize = 8;

/// Inputs whose products may be added in 16 bits: 8 sums of two products of at most 15 * 127 stay
/// below 2^15.
const INPUTS_PER_WIDENING: usize = 32;

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_row(x: &[f32], group_size: usize, digits: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    for (g, group) in x.chunks_exact(group_size).enumerate() {
        let digits = &mut digits[g * group_size * DIGITS..][..group_size * DIGITS];
        let mut largest = _mm256_setzero_si256();
        for chunk in group.chunks_exact(LANES) {
            largest =
                _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(load(chunk)), magnitude));
        }
        let largest = to_ints(largest).into_iter().max().unwrap_or(0);
        let Some((scale, inverse)) = portable::group_scale(f32::from_bits(largest as u32)) else {
            digits.fill(0);
            scales[g] = f32::NAN;
            sums[g] = 0;
            continue;
        };
        let inverse = _mm256_set1_ps(inverse);
        let mut sum = _mm256_setzero_si256();
        for (chunk, digits) in group.chunks_exact(LANES).zip(digits.chunks_exact_mut(DIGITS * LANES)) {
            // The default rounding of the conversion is to nearest, ties to even.
            let rounded = _mm256_cvtps_epi32(_mm256_mul_ps(load(chunk), inverse));
            sum = _mm256_add_epi32(sum, rounded);
            let half = _mm256_set1_epi32(1 << (LOW_DIGIT_BITS - 1));
            let high = _mm256_srai_epi32::<{ LOW_DIGIT_BITS as i32 }>(_mm256_add_epi32(rounded, half));
            let low = _mm256_sub_epi32(rounded, _mm256_slli_epi32::<{ LOW_DIGIT_BITS as i32 }>(high));
            // SAFETY: `digits` has 16 bytes.
            unsafe {
                _mm_storeu_si128(digits.as_mut_ptr().cast(), _mm_packs_epi16(narrow(high), narrow(low)))
            };
        }
        scales[g] = scale;
        sums[g] = to_ints(sum).into_iter().sum();
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_dot_i8(tile: &Int4Tile<'_>, x: &QuantizedRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    // One row streams whole lines; several rows take one half of the tile at a time, so that all their
    // sums stay in registers.
    in_row_blocks!(tile, x, first_row, out;
        2 => int4_i8_halves::<2>, 1 => int4_i8_line);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_i8_halves<const ROWS: usize>(
    tile: &Int4Tile<'_>,
    x: &QuantizedRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    int4_i8_block::<ROWS, 1>(tile, x, row, 0, out);
    int4_i8_block::<ROWS, 1>(tile, x, row, 1, out);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_i8_line(tile: &Int4Tile<'_>, x: &QuantizedRows<'_>, row: usize, out: &mut [[f32; TILE]]) {
    int4_i8_block::<1, 2>(tile, x, row, 0, out);
}

/// `ROWS` tokens over `HALVES` halves of a tile, from `first_half` on.
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_i8_block<const ROWS: usize, const HALVES: usize>(
    tile: &Int4Tile<'_>,
    x: &QuantizedRows<'_>,
    row: usize,
    first_half: usize,
    out: &mut [[f32; TILE]],
) {
    let groups = tile.groups();
    let rows: [&[i8]; ROWS] =
        std::array::from_fn(|t| &x.digits[(row + t) * x.width * DIGITS..][..x.width * DIGITS]);
    let low_nibbles = _mm256_set1_epi8(15);
    let place_values = [_mm256_set1_epi16(1 << LOW_DIGIT_BITS), _mm256_set1_epi16(1)];
    let mut totals = [[_mm256_setzero_ps(); HALVES]; ROWS];
    for g in 0..groups {
        let mut sums = [[_mm256_setzero_si256(); HALVES]; ROWS];
        let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
        for (part, lines) in lines.chunks_exact(INPUTS_PER_WIDENING / LINE_INPUTS * LINE_BYTES).enumerate() {
            let input = g * tile.group_size + part * INPUTS_PER_WIDENING;
            let mut narrow = [[[_mm256_setzero_si256(); DIGITS]; HALVES]; ROWS];
            for l in 0..INPUTS_PER_WIDENING / LINE_INPUTS {
                for h in 0..HALVES {
                    // SAFETY: the line is inside `lines`, and a half is 32 bytes of it.
                    let line = unsafe {
                        let at = lines.as_ptr().add(l * LINE_BYTES + (first_half + h) * LINE_BYTES / 2);
                        _mm256_loadu_si256(at.cast())
                    };
                    let low = _mm256_and_si256(line, low_nibbles);
                    let high = _mm256_and_si256(_mm256_srli_epi16::<4>(line), low_nibbles);
                    for t in 0..ROWS {
                        for digit in 0..DIGITS {
                            // SAFETY: `input + 32 <= x.width`: the part lies inside group `g`; 8 of its digits.
                            let (x_low, x_high) = unsafe {
                                let at = (input + l * LINE_INPUTS) * DIGITS + digit * LINE_INPUTS;
                                let at = rows[t].as_ptr().add(at).cast::<i32>();
                                (at.read_unaligned(), at.add(1).read_unaligned())
                            };
                            let low = _mm256_maddubs_epi16(low, _mm256_set1_epi32(x_low));
                            let high = _mm256_maddubs_epi16(high, _mm256_set1_epi32(x_high));
                            let sum = &mut narrow[t][h][digit];
                            *sum = _mm256_add_epi16(*sum, _mm256_add_epi16(low, high));
                        }
                    }
                }
            }
            for t in 0..ROWS {
                for h in 0..HALVES {
                    for digit in 0..DIGITS {
                        let wide = _mm256_madd_epi16(narrow[t][h][digit], place_values[digit]);
                        sums[t][h] = _mm256_add_epi32(sums[t][h], wide);
                    }
                }
            }
        }
        for h in 0..HALVES {
            let (scale, zero) = group_constants(tile, g, first_half + h);
            // The zero point as an integer again: exact, and cheap once per group.
            let zero = _mm256_cvtps_epi32(zero);
            for t in 0..ROWS {
                let (x_scale, x_sum) = (x.scales[(row + t) * groups + g], x.sums[(row + t) * groups + g]);
                let centred =
                    _mm256_sub_epi32(sums[t][h], _mm256_mullo_epi32(zero, _mm256_set1_epi32(x_sum)));
                let scale = _mm256_mul_ps(scale, _mm256_set1_ps(x_scale));
                totals[t][h] = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(centred), totals[t][h]);
            }
        }
    }
    for (out, totals) in out.iter_mut().zip(totals) {
        for (h, total) in totals.into_iter().enumerate() {
            store(&mut out[(first_half + h) * LANES..], total);
        }
    }
}

/// Scales and zero points of one half of group `g` as floats.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn group_constants(tile: &Int4Tile<'_>, g: usize, half: usize) -> (__m256, __m256) {
    let scales = &tile.scales[g * TILE + half * LANES..][..LANES];
    let zeros = &tile.zeros[g * TILE + half * LANES..][..LANES];
    // SAFETY: both slices have LANES elements.
    unsafe {
        let scales = _mm256_cvtph_ps(_mm_loadu_si128(scales.as_ptr().cast()));
        let zeros = _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(zeros.as_ptr().cast())));
        (scales, zeros)
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_dot_f32(tile: &Int4Tile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    in_row_blocks!(tile, x, first_row, out; 2 => int4_f32_block::<2>, 1 => int4_f32_block::<1>);
}

/// `ROWS` tokens over one tile, four sums per token and half whatever `ROWS` is.
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_f32_block<const ROWS: usize>(
    tile: &Int4Tile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    let nibble = _mm256_set1_epi32(15);
    for half in 0..2 {
        let mut totals = [_mm256_setzero_ps(); ROWS];
        for g in 0..tile.groups() {
            let (scale, zero) = group_constants(tile, g, half);
            let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
            let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
            for (l, line) in lines.chunks_exact(LINE_BYTES).enumerate() {
                let input = g * tile.group_size + l * LINE_INPUTS;
                // SAFETY: a half is 32 bytes of the line.
                let line = unsafe { _mm256_loadu_si256(line.as_ptr().add(half * LINE_BYTES / 2).cast()) };
                for j in 0..LINE_INPUTS {
                    // Inputs 0..4 are the low nibbles of the word's bytes, 4..8 the high ones.
                    let shift = _mm256_set1_epi32((8 * (j % 4) + 4 * (j / 4)) as i32);
                    let q = _mm256_and_si256(_mm256_srlv_epi32(line, shift), nibble);
                    let weight = _mm256_sub_ps(_mm256_cvtepi32_ps(q), zero);
                    for t in 0..ROWS {
                        // SAFETY: `input + 8 <= x.width`: the line lies inside group `g`.
                        let value = unsafe { *rows[t].get_unchecked(input + j) };
                        sums[t][j % 4] = _mm256_fmadd_ps(weight, _mm256_set1_ps(value), sums[t][j % 4]);
                    }
                }
            }
            for t in 0..ROWS {
                totals[t] = _mm256_fmadd_ps(scale, add4(sums[t]), totals[t]);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            store(&mut out[half * LANES..], total);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn dense_dot(tile: &DenseTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    match tile.format {
        DenseFormat::F16 => in_row_blocks!(tile, x, first_row, out;
            2 => dense_block::<2, F16>, 1 => dense_block::<1, F16>),
        DenseFormat::Bf16 => in_row_blocks!(tile, x, first_row, out;
            2 => dense_block::<2, BF16>, 1 => dense_block::<1, BF16>),
        DenseFormat::F32 => in_row_blocks!(tile, x, first_row, out;
            2 => dense_block::<2, F32>, 1 => dense_block::<1, F32>),
    }
}

const F16: usize = 0;
const BF16: usize = 1;
const F32: usize = 2;

/// `ROWS` tokens over one tile, two sums per token and half whatever `ROWS` is.
#[target_feature(enable = "avx2,fma,f16c")]
fn dense_block<const ROWS: usize, const FORMAT: usize>(
    tile: &DenseTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    // Even and odd inputs add up apart.
    let mut sums = [[[_mm256_setzero_ps(); 2]; 2]; ROWS];
    let whole = x.width / 2 * 2;
    for k in (0..whole).step_by(2) {
        for parity in 0..2 {
            for half in 0..2 {
                let weight = widen::<FORMAT>(tile, k + parity, half);
                for t in 0..ROWS {
                    // SAFETY: `k + parity < x.width`, the length of the row.
                    let value = unsafe { *rows[t].get_unchecked(k + parity) };
                    let sum = &mut sums[t][half][parity];
                    *sum = _mm256_fmadd_ps(weight, _mm256_set1_ps(value), *sum);
                }
            }
        }
    }
    if whole < x.width {
        for half in 0..2 {
            let weight = widen::<FORMAT>(tile, whole, half);
            for t in 0..ROWS {
                sums[t][half][0] = _mm256_fmadd_ps(weight, _mm256_set1_ps(rows[t][whole]), sums[t][half][0]);
            }
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        for (half, [even, odd]) in sums.into_iter().enumerate() {
            store(&mut out[half * LANES..], _mm256_add_ps(even, odd));
        }
    }
}

/// The weights of input `k` for one half of the tile's outputs.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn widen<const FORMAT: usize>(tile: &DenseTile<'_>, k: usize, half: usize) -> __m256 {
    debug_assert!(k < tile.inputs() && half < 2);
    let element = k * TILE + half * LANES;
    // SAFETY: the caller keeps `k` below the tile's inputs, each of which has TILE elements.
    unsafe {
        match FORMAT {
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(tile.weights.as_ptr().add(2 * element).cast())),
            BF16 => {
                let bits = _mm_loadu_si128(tile.weights.as_ptr().add(2 * element).cast());
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(bits)))
            }
            _ => _mm256_loadu_ps(tile.weights.as_ptr().add(4 * element).cast()),
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<LANES>();
    let mut squares = _mm256_setzero_ps();
    for chunk in chunks {
        let x = load(chunk);
        squares = _mm256_fmadd_ps(x, x, squares);
    }
    let mut lanes = [0.0f32; LANES];
    store(&mut lanes, squares);
    let squares = lanes.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    let scale = portable::rms_scale(squares, x.len(), eps);
    let whole = chunks.len() * LANES;
    for ((out, x), weight) in
        out.chunks_exact_mut(LANES).zip(x.chunks_exact(LANES)).zip(weight.chunks_exact(LANES))
    {
        store(out, _mm256_mul_ps(_mm256_mul_ps(load(x), _mm256_set1_ps(scale)), load(weight)));
    }
    for k in whole..x.len() {
        out[k] = x[k] * scale * weight[k];
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let whole = gate.len() / LANES * LANES;
    let one = _mm256_set1_ps(1.0);
    for k in (0..whole).step_by(LANES) {
        let x = load(&gate[k..]);
        let silu = _mm256_div_ps(x, _mm256_add_ps(one, exp(_mm256_sub_ps(_mm256_setzero_ps(), x))));
        store(&mut out[k..], _mm256_mul_ps(silu, load(&up[k..])));
    }
    portable::silu_mul(&gate[whole..], &up[whole..], &mut out[whole..]);
}

/// See [`super::exp`] for the method.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exp(x: __m256) -> __m256 {
    let x = _mm256_max_ps(_mm256_set1_ps(exp::LOWEST), _mm256_min_ps(_mm256_set1_ps(exp::HIGHEST), x));
    let n = _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(_mm256_mul_ps(
        x,
        _mm256_set1_ps(exp::LOG2_E),
    ));
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(exp::LN2_HIGH), x);
    let r = _mm256_fnmadd_ps(n, _mm256_set1_ps(exp::LN2_LOW), r);
    let mut polynomial = _mm256_set1_ps(exp::TAYLOR[0]);
    for coefficient in &exp::TAYLOR[1..] {
        polynomial = _mm256_fmadd_ps(polynomial, r, _mm256_set1_ps(*coefficient));
    }
    let power = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
    _mm256_mul_ps(polynomial, _mm256_castsi256_ps(power))
}

/// Sum of four partial sums, in a fixed order.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn add4(sums: [__m256; 4]) -> __m256 {
    _mm256_add_ps(_mm256_add_ps(sums[0], sums[1]), _mm256_add_ps(sums[2], sums[3]))
}

/// Eight 32-bit integers to 16 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn narrow(value: __m256i) -> __m128i {
    _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_ints(value: __m256i) -> [i32; LANES] {
    let mut lanes = [0; LANES];
    // SAFETY: the array has LANES elements.
    unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), value) };
    lanes
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(from: &[f32]) -> __m256 {
    assert!(from.len() >= LANES);
    // SAFETY: the slice has LANES elements.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(to: &mut [f32], value: __m256) {
    assert!(to.len() >= LANES);
    // SAFETY: the slice has LANES elements.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}
