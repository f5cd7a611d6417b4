//! AVX2 with FMA and F16C: registers of eight outputs. AVX-VNNI differs in the integer dots alone.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::{
    CONSTANT_LINES, DenseFormat, DenseTile, Digits, FloatRows, LANE_INPUTS, LOW_DIGIT_BITS, Line, PAIR,
    QuantTile, QuantizedGroup, TILE, Table, exp, group_lines, portable,
};

mod quant_dot;

/// AVX2 without VNNI.
pub(super) static TABLE: Table = Table {
    quantize_group,
    quant_dot: quant_dot::quant_dot::<quant_dot::Maddubs>,
    int4_dot_f32,
    dense_dot,
    rms_norm,
    silu_mul,
};

/// AVX2 with VNNI.
pub(super) static VNNI_TABLE: Table = Table { quant_dot: quant_dot::quant_dot::<quant_dot::Vnni>, ..TABLE };

/// Lanes of one register.
const LANES: usize = 8;

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize_group(x: &[f32], stride: usize, to: &mut QuantizedGroup<'_>) {
    const LOW_BITS: i32 = LOW_DIGIT_BITS as i32;
    let ((rows, group_size), count) = (to.shape(), to.digits.count());
    for t in 0..rows {
        let group = &x[t * stride..][..group_size];
        let Some((scale, inverse)) = portable::group_scale(largest_magnitude(group), to.digits) else {
            portable::clear_row(to, t);
            continue;
        };
        let inverse = _mm256_set1_ps(inverse);
        let mut sums = [_mm256_setzero_si256(); 2];
        for (c, chunk) in group.chunks_exact(LANES).enumerate() {
            // The default rounding of the conversion is to nearest, ties to even.
            let v = _mm256_cvtps_epi32(_mm256_mul_ps(load(chunk), inverse));
            let digits = match to.digits {
                Digits::One => [v, _mm256_setzero_si256()],
                Digits::Two => {
                    let half = _mm256_set1_epi32(1 << (LOW_BITS - 1));
                    let high = _mm256_srai_epi32::<LOW_BITS>(_mm256_add_epi32(v, half));
                    [high, _mm256_sub_epi32(v, _mm256_slli_epi32::<LOW_BITS>(high))]
                }
            };
            for d in 0..count {
                sums[d] = _mm256_add_epi32(sums[d], digits[d]);
                let bytes = to_bytes(digits[d]);
                for (l, lane) in bytes.as_chunks::<LANE_INPUTS>().0.iter().enumerate() {
                    let at = ((c * LANES / LANE_INPUTS + l) * count + d) * rows + t;
                    to.values[at * LANE_INPUTS..][..LANE_INPUTS].copy_from_slice(lane);
                }
            }
        }
        to.scales[t] = scale;
        for d in 0..count {
            to.sums[d * rows + t] = to_ints(sums[d]).into_iter().sum();
        }
    }
}

/// Largest magnitude by its bits: NaN is above infinity and infinity above every number.
#[target_feature(enable = "avx2,fma,f16c")]
fn largest_magnitude(group: &[f32]) -> f32 {
    let magnitude = _mm256_set1_epi32(0x7fff_ffff);
    let mut largest = _mm256_setzero_si256();
    for chunk in group.chunks_exact(LANES) {
        largest = _mm256_max_epu32(largest, _mm256_and_si256(_mm256_castps_si256(load(chunk)), magnitude));
    }
    f32::from_bits(to_ints(largest).into_iter().max().unwrap_or(0) as u32)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn int4_dot_f32(tile: &QuantTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; PAIR]]) {
    in_row_blocks!(tile, x, first_row, out; 2 => int4_f32_block::<2>, 1 => int4_f32_block::<1>);
}

/// `ROWS` tokens over one tile, four sums per token whatever `ROWS` is; eight of the outputs at a time.
#[target_feature(enable = "avx2,fma,f16c")]
fn int4_f32_block<const ROWS: usize>(
    tile: &QuantTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; PAIR]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    let nibble = _mm256_set1_epi32(15);
    for first_output in (0..PAIR).step_by(LANES) {
        let (half, within) = (first_output / TILE, first_output % TILE);
        let mut totals = [_mm256_setzero_ps(); ROWS];
        for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
            let (constants, lines) = lines.split_at(CONSTANT_LINES);
            let scales = _mm256_cvtph_ps(load_halves(&constants[0], first_output));
            let minus_zeros =
                _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(load_halves(&constants[1], first_output)));
            let mut sums = [[_mm256_setzero_ps(); 4]; ROWS];
            for (l, pair) in lines.chunks_exact(2).enumerate() {
                let input = g * tile.group_size + l * 2 * LANE_INPUTS;
                let line = &pair[half].0[within * LANE_INPUTS..][..LANES * LANE_INPUTS];
                // SAFETY: the slice is one register.
                let line = unsafe { _mm256_loadu_si256(line.as_ptr().cast()) };
                for j in 0..2 * LANE_INPUTS {
                    // Inputs 0..4 are the low nibbles of the word's bytes, 4..8 the high ones.
                    let shift = _mm256_set1_epi32((8 * (j % 4) + 4 * (j / 4)) as i32);
                    let q = _mm256_and_si256(_mm256_srlv_epi32(line, shift), nibble);
                    let weight = _mm256_add_ps(_mm256_cvtepi32_ps(q), minus_zeros);
                    for t in 0..ROWS {
                        // SAFETY: `input + 8 <= x.width`: the line lies inside group `g`.
                        let value = unsafe { *rows[t].get_unchecked(input + j) };
                        sums[t][j % 4] = _mm256_fmadd_ps(weight, _mm256_set1_ps(value), sums[t][j % 4]);
                    }
                }
            }
            for t in 0..ROWS {
                totals[t] = _mm256_fmadd_ps(scales, add4(sums[t]), totals[t]);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            store(&mut out[first_output..], total);
        }
    }
}

/// Scales or zero points of eight outputs, 16 bits each.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load_halves(line: &Line, first_output: usize) -> __m128i {
    let halves = &line.0[2 * first_output..][..2 * LANES];
    // SAFETY: the slice is one register.
    unsafe { _mm_loadu_si128(halves.as_ptr().cast()) }
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

/// Integers that fit 8 bits.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_bytes(value: __m256i) -> [i8; LANES] {
    let halves = _mm_packs_epi32(_mm256_castsi256_si128(value), _mm256_extracti128_si256::<1>(value));
    let bytes = _mm_packs_epi16(halves, halves);
    _mm_cvtsi128_si64(bytes).to_le_bytes().map(|byte| byte as i8)
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
