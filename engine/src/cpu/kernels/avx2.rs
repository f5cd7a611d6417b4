//! AVX2 with FMA and F16C: a tile is two registers of eight outputs.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::{DenseFormat, DenseTile, FloatRows, TILE, Table, exp, portable};

pub(super) static TABLE: Table = Table {
    quantize_group: portable::quantize_group,
    quant_dot: portable::quant_dot,
    int4_dot_f32: portable::int4_dot_f32,
    dense_dot,
    rms_norm,
    silu_mul,
};

/// Lanes of one register.
const LANES: usize = 8;

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
