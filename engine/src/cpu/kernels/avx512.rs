//! AVX-512 with VNNI: one tile is one register, four products and their sum one instruction.

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

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_row(x: &[f32], group_size: usize, digits: &mut [i8], scales: &mut [f32], sums: &mut [i32]) {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    for (g, group) in x.chunks_exact(group_size).enumerate() {
        let digits = &mut digits[g * group_size * DIGITS..][..group_size * DIGITS];
        let mut largest = _mm512_setzero_si512();
        for chunk in group.chunks_exact(TILE) {
            largest =
                _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(load(chunk)), magnitude));
        }
        let largest = f32::from_bits(_mm512_reduce_max_epu32(largest));
        let Some((scale, inverse)) = portable::group_scale(largest) else {
            digits.fill(0);
            scales[g] = f32::NAN;
            sums[g] = 0;
            continue;
        };
        let inverse = _mm512_set1_ps(inverse);
        let mut sum = _mm512_setzero_si512();
        for (chunk, digits) in group.chunks_exact(TILE).zip(digits.chunks_exact_mut(DIGITS * TILE)) {
            // The default rounding of the conversion is to nearest, ties to even.
            let rounded = _mm512_cvtps_epi32(_mm512_mul_ps(load(chunk), inverse));
            sum = _mm512_add_epi32(sum, rounded);
            let half = _mm512_set1_epi32(1 << (LOW_DIGIT_BITS - 1));
            let high = _mm512_srai_epi32::<LOW_DIGIT_BITS>(_mm512_add_epi32(rounded, half));
            let low = _mm512_sub_epi32(rounded, _mm512_slli_epi32::<LOW_DIGIT_BITS>(high));
            let (high, low) = (_mm512_cvtepi32_epi8(high), _mm512_cvtepi32_epi8(low));
            // SAFETY: `digits` has 2 * TILE bytes.
            unsafe {
                let to = digits.as_mut_ptr().cast::<__m128i>();
                _mm_storeu_si128(to, _mm_unpacklo_epi64(high, low));
                _mm_storeu_si128(to.add(1), _mm_unpackhi_epi64(high, low));
            }
        }
        scales[g] = scale;
        sums[g] = _mm512_reduce_add_epi32(sum);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_dot_i8(tile: &Int4Tile<'_>, x: &QuantizedRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    in_row_blocks!(tile, x, first_row, out;
        8 => int4_i8_block::<8, 1>, 4 => int4_i8_block::<4, 2>, 2 => int4_i8_block::<2, 2>, 1 => int4_i8_block::<1, 2>);
}

/// `ROWS` tokens over one tile: each line is unpacked once for all of them. `CHAINS` independent sums
/// per token and digit hide the latency of the dot product; integer sums do not mind the order.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_i8_block<const ROWS: usize, const CHAINS: usize>(
    tile: &Int4Tile<'_>,
    x: &QuantizedRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let groups = tile.groups();
    let rows: [&[i8]; ROWS] =
        std::array::from_fn(|t| &x.digits[(row + t) * x.width * DIGITS..][..x.width * DIGITS]);
    let low_nibbles = _mm512_set1_epi8(15);
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for g in 0..groups {
        // Sums of the high digits and of the low ones.
        let mut sums = [[[_mm512_setzero_si512(); CHAINS]; DIGITS]; ROWS];
        let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
        for (l, line) in lines.chunks_exact(LINE_BYTES).enumerate() {
            let input = g * tile.group_size + l * LINE_INPUTS;
            // SAFETY: `line` has LINE_BYTES.
            let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            let nibbles = [
                _mm512_and_si512(line, low_nibbles),
                _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_nibbles),
            ];
            for t in 0..ROWS {
                for digit in 0..DIGITS {
                    for (n, nibbles) in nibbles.into_iter().enumerate() {
                        // SAFETY: `input + 8 <= x.width`: the line lies inside group `g`; 4 of its digits.
                        let four = unsafe {
                            rows[t]
                                .as_ptr()
                                .add(input * DIGITS + digit * LINE_INPUTS + 4 * n)
                                .cast::<i32>()
                                .read_unaligned()
                        };
                        let sum = &mut sums[t][digit][n % CHAINS];
                        *sum = _mm512_dpbusd_epi32(*sum, nibbles, _mm512_set1_epi32(four));
                    }
                }
            }
        }
        let (scale, zero) = group_constants(tile, g);
        // The zero point as an integer again: exact, and cheap once per group.
        let zero = _mm512_cvtps_epi32(zero);
        for t in 0..ROWS {
            let (x_scale, x_sum) = (x.scales[(row + t) * groups + g], x.sums[(row + t) * groups + g]);
            let [high, low] = sums[t].map(|chains| match chains.as_slice() {
                [one] => *one,
                chains => _mm512_add_epi32(chains[0], chains[1]),
            });
            let dot = _mm512_add_epi32(_mm512_slli_epi32::<LOW_DIGIT_BITS>(high), low);
            let centred = _mm512_sub_epi32(dot, _mm512_mullo_epi32(zero, _mm512_set1_epi32(x_sum)));
            let scale = _mm512_mul_ps(scale, _mm512_set1_ps(x_scale));
            totals[t] = _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(centred), totals[t]);
        }
    }
    for (out, total) in out.iter_mut().zip(totals) {
        store(out, total);
    }
}

/// Scales and zero points of group `g` as floats.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group_constants(tile: &Int4Tile<'_>, g: usize) -> (__m512, __m512) {
    let scales = &tile.scales[g * TILE..][..TILE];
    let zeros = &tile.zeros[g * TILE..][..TILE];
    // SAFETY: both slices have TILE elements.
    unsafe {
        let scales = _mm512_cvtph_ps(_mm256_loadu_si256(scales.as_ptr().cast()));
        let zeros = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(zeros.as_ptr().cast())));
        (scales, zeros)
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_dot_f32(tile: &Int4Tile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    in_row_blocks!(tile, x, first_row, out;
        4 => int4_f32_block::<4>, 2 => int4_f32_block::<2>, 1 => int4_f32_block::<1>);
}

/// `ROWS` tokens over one tile, four sums per token whatever `ROWS` is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_f32_block<const ROWS: usize>(
    tile: &Int4Tile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    let nibble = _mm512_set1_epi32(15);
    let mut totals = [_mm512_setzero_ps(); ROWS];
    for g in 0..tile.groups() {
        let (scale, zero) = group_constants(tile, g);
        let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
        let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
        for (l, line) in lines.chunks_exact(LINE_BYTES).enumerate() {
            let input = g * tile.group_size + l * LINE_INPUTS;
            // SAFETY: `line` has LINE_BYTES.
            let line = unsafe { _mm512_loadu_si512(line.as_ptr().cast()) };
            for j in 0..LINE_INPUTS {
                // Inputs 0..4 are the low nibbles of the word's bytes, 4..8 the high ones.
                let shift = _mm512_set1_epi32((8 * (j % 4) + 4 * (j / 4)) as i32);
                let q = _mm512_and_si512(_mm512_srlv_epi32(line, shift), nibble);
                let weight = _mm512_sub_ps(_mm512_cvtepi32_ps(q), zero);
                for t in 0..ROWS {
                    // SAFETY: `input + 8 <= x.width`: the line lies inside group `g`.
                    let value = unsafe { *rows[t].get_unchecked(input + j) };
                    sums[t][j % 4] = _mm512_fmadd_ps(weight, _mm512_set1_ps(value), sums[t][j % 4]);
                }
            }
        }
        for t in 0..ROWS {
            totals[t] = _mm512_fmadd_ps(scale, add4(sums[t]), totals[t]);
        }
    }
    for (out, total) in out.iter_mut().zip(totals) {
        store(out, total);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dense_dot(tile: &DenseTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    match tile.format {
        DenseFormat::F16 => in_row_blocks!(tile, x, first_row, out;
            4 => dense_block::<4, F16>, 2 => dense_block::<2, F16>, 1 => dense_block::<1, F16>),
        DenseFormat::Bf16 => in_row_blocks!(tile, x, first_row, out;
            4 => dense_block::<4, BF16>, 2 => dense_block::<2, BF16>, 1 => dense_block::<1, BF16>),
        DenseFormat::F32 => in_row_blocks!(tile, x, first_row, out;
            4 => dense_block::<4, F32>, 2 => dense_block::<2, F32>, 1 => dense_block::<1, F32>),
    }
}

const F16: usize = 0;
const BF16: usize = 1;
const F32: usize = 2;

/// `ROWS` tokens over one tile, four sums per token whatever `ROWS` is.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn dense_block<const ROWS: usize, const FORMAT: usize>(
    tile: &DenseTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
    let whole = x.width / 4 * 4;
    for k in (0..whole).step_by(4) {
        for j in 0..4 {
            let weight = widen::<FORMAT>(tile, k + j);
            for t in 0..ROWS {
                // SAFETY: `k + j < x.width`, the length of the row.
                let value = unsafe { *rows[t].get_unchecked(k + j) };
                sums[t][j] = _mm512_fmadd_ps(weight, _mm512_set1_ps(value), sums[t][j]);
            }
        }
    }
    for k in whole..x.width {
        let weight = widen::<FORMAT>(tile, k);
        for t in 0..ROWS {
            sums[t][k - whole] = _mm512_fmadd_ps(weight, _mm512_set1_ps(rows[t][k]), sums[t][k - whole]);
        }
    }
    for (out, sums) in out.iter_mut().zip(sums) {
        store(out, add4(sums));
    }
}

/// The weights of input `k` for all outputs of the tile.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn widen<const FORMAT: usize>(tile: &DenseTile<'_>, k: usize) -> __m512 {
    debug_assert!(k < tile.inputs());
    // SAFETY: the caller keeps `k` below the tile's inputs, each of which has TILE elements.
    unsafe {
        match FORMAT {
            F16 => _mm512_cvtph_ps(_mm256_loadu_si256(tile.weights.as_ptr().add(k * TILE * 2).cast())),
            BF16 => {
                let bits = _mm256_loadu_si256(tile.weights.as_ptr().add(k * TILE * 2).cast());
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(bits)))
            }
            _ => _mm512_loadu_ps(tile.weights.as_ptr().add(k * TILE * 4).cast()),
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<TILE>();
    let mut squares = _mm512_setzero_ps();
    for chunk in chunks {
        let x = load(chunk);
        squares = _mm512_fmadd_ps(x, x, squares);
    }
    let rest = rest.iter().map(|x| x * x).sum::<f32>();
    let scale = portable::rms_scale(_mm512_reduce_add_ps(squares) + rest, x.len(), eps);
    let whole = chunks.len() * TILE;
    for ((out, x), weight) in
        out.chunks_exact_mut(TILE).zip(x.chunks_exact(TILE)).zip(weight.chunks_exact(TILE))
    {
        store(out, _mm512_mul_ps(_mm512_mul_ps(load(x), _mm512_set1_ps(scale)), load(weight)));
    }
    for k in whole..x.len() {
        out[k] = x[k] * scale * weight[k];
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let whole = gate.len() / TILE * TILE;
    let one = _mm512_set1_ps(1.0);
    for k in (0..whole).step_by(TILE) {
        let x = load(&gate[k..][..TILE]);
        let silu = _mm512_div_ps(x, _mm512_add_ps(one, exp(_mm512_sub_ps(_mm512_setzero_ps(), x))));
        store(&mut out[k..][..TILE], _mm512_mul_ps(silu, load(&up[k..][..TILE])));
    }
    portable::silu_mul(&gate[whole..], &up[whole..], &mut out[whole..]);
}

/// See [`super::exp`] for the method.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn exp(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(exp::LOWEST), _mm512_min_ps(_mm512_set1_ps(exp::HIGHEST), x));
    let n = _mm512_roundscale_ps::<0>(_mm512_mul_ps(x, _mm512_set1_ps(exp::LOG2_E)));
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(exp::LN2_HIGH), x);
    let r = _mm512_fnmadd_ps(n, _mm512_set1_ps(exp::LN2_LOW), r);
    let mut polynomial = _mm512_set1_ps(exp::TAYLOR[0]);
    for coefficient in &exp::TAYLOR[1..] {
        polynomial = _mm512_fmadd_ps(polynomial, r, _mm512_set1_ps(*coefficient));
    }
    _mm512_scalef_ps(polynomial, n)
}

/// Sum of four partial sums, in a fixed order.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add4(sums: [__m512; 4]) -> __m512 {
    _mm512_add_ps(_mm512_add_ps(sums[0], sums[1]), _mm512_add_ps(sums[2], sums[3]))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn load(from: &[f32]) -> __m512 {
    assert!(from.len() >= TILE);
    // SAFETY: the slice has TILE elements.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn store(to: &mut [f32], value: __m512) {
    assert!(to.len() >= TILE);
    // SAFETY: the slice has TILE elements.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
}
