//! AVX-512: sixteen elements in a register, up to 6 x 4 registers of sums.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::kernels::{LANES, Product, SoftmaxState, Table, exp2};
use super::portable;

pub(super) static TABLE: Table = Table { multiply, softmax, merge, widen, narrow, rotate };

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply(product: &Product<'_>, c: &mut [f32], c_stride: usize) {
    let mut column = 0;
    while column < product.columns {
        let registers = (product.columns - column) / LANES;
        // SAFETY: the registers are inside the columns; shapes were checked by the caller.
        column += LANES
            * unsafe {
                match registers {
                    4.. => multiply_columns::<4>(product, column, c, c_stride),
                    2.. => multiply_columns::<2>(product, column, c, c_stride),
                    _ => multiply_columns::<1>(product, column, c, c_stride),
                }
            };
    }
}

/// All rows over `REGISTERS` registers of columns; returns their number.
///
/// # Safety
/// The product must fit its arrays and `c`, and have the columns.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply_columns<const REGISTERS: usize>(
    product: &Product<'_>,
    column: usize,
    c: &mut [f32],
    c_stride: usize,
) -> usize {
    let mut row = 0;
    while row < product.rows {
        // Blocks of nearly equal size: one of a single row would wait for its own additions.
        let left = product.rows - row;
        let rows = left.div_ceil(left.div_ceil(6));
        // SAFETY: the rows are inside the product; the rest is this function's contract.
        unsafe {
            match rows {
                6 => multiply_block::<6, REGISTERS>(product, row, column, c, c_stride),
                5 => multiply_block::<5, REGISTERS>(product, row, column, c, c_stride),
                4 => multiply_block::<4, REGISTERS>(product, row, column, c, c_stride),
                3 => multiply_block::<3, REGISTERS>(product, row, column, c, c_stride),
                2 => multiply_block::<2, REGISTERS>(product, row, column, c, c_stride),
                _ => multiply_block::<1, REGISTERS>(product, row, column, c, c_stride),
            }
        }
        row += rows;
    }
    REGISTERS
}

/// # Safety
/// The product must fit its arrays and `c`, and have the rows and columns.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply_block<const ROWS: usize, const REGISTERS: usize>(
    product: &Product<'_>,
    row: usize,
    column: usize,
    c: &mut [f32],
    c_stride: usize,
) {
    let Product { depth, a, a_stride, b, b_stride, add, .. } = *product;
    // SAFETY: rows, depth and columns are inside the arrays.
    unsafe {
        let (a, b) = (a.as_ptr().add(row * a_stride), b.as_ptr().add(column));
        let c = c.as_mut_ptr().add(row * c_stride + column);
        let mut sums = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
        if add {
            for r in 0..ROWS {
                for t in 0..REGISTERS {
                    sums[r][t] = _mm512_loadu_ps(c.add(r * c_stride + t * LANES));
                }
            }
        }
        for k in 0..depth {
            let mut line = [_mm512_setzero_ps(); REGISTERS];
            for t in 0..REGISTERS {
                line[t] = _mm512_loadu_ps(b.add(k * b_stride + t * LANES));
            }
            for r in 0..ROWS {
                let factor = _mm512_set1_ps(*a.add(r * a_stride + k));
                for t in 0..REGISTERS {
                    sums[r][t] = _mm512_fmadd_ps(factor, line[t], sums[r][t]);
                }
            }
        }
        for r in 0..ROWS {
            for t in 0..REGISTERS {
                _mm512_storeu_ps(c.add(r * c_stride + t * LANES), sums[r][t]);
            }
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn softmax(scores: &mut [f32], visible: usize) -> SoftmaxState {
    let (registers, _) = scores.as_chunks_mut::<LANES>();
    let (whole, rest) = registers[..visible.div_ceil(LANES)].split_at_mut(visible / LANES);
    let rest_mask = ((1u32 << (visible % LANES)) - 1) as __mmask16;

    let mut max = _mm512_set1_ps(f32::NEG_INFINITY);
    for scores in whole.iter() {
        max = _mm512_max_ps(max, load(scores));
    }
    for scores in rest.iter() {
        max = _mm512_mask_max_ps(max, rest_mask, max, load(scores));
    }
    let max = _mm512_reduce_max_ps(max);

    let (largest, mut sum) = (_mm512_set1_ps(max), _mm512_setzero_ps());
    for scores in whole {
        let weights = exp2(_mm512_sub_ps(load(scores), largest));
        sum = _mm512_add_ps(sum, weights);
        store(scores, weights);
    }
    for scores in rest {
        let weights = exp2(_mm512_sub_ps(load(scores), largest));
        sum = _mm512_mask_add_ps(sum, rest_mask, sum, weights);
        store(scores, weights);
    }
    SoftmaxState { max, sum: _mm512_reduce_add_ps(sum) }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn merge(total: &mut [f32], total_state: &mut SoftmaxState, part: &[f32], part_state: SoftmaxState) {
    portable::merge(total, total_state, part, part_state);
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn widen(from: &[u16], width: usize, to: &mut [f32], to_stride: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(to_stride)) {
        let whole = width / LANES * LANES;
        let (to, to_rest) = to[..width].split_at_mut(whole);
        for (from, to) in from.as_chunks::<LANES>().0.iter().zip(to.as_chunks_mut().0) {
            // SAFETY: `from` has LANES elements.
            store(to, _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }));
        }
        if whole < width {
            portable::widen(&from[whole..], width - whole, to_rest, width - whole);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn narrow(from: &[f32], to: &mut [u16]) {
    let largest = _mm512_set1_ps(half::f16::MAX.to_f32());
    let smallest = _mm512_set1_ps(half::f16::MIN.to_f32());
    let (from, from_rest) = from.as_chunks::<LANES>();
    let (to, to_rest) = to.as_chunks_mut::<LANES>();
    for (from, to) in from.iter().zip(to) {
        // In this order of arguments NaN stays NaN.
        let clamped = _mm512_max_ps(smallest, _mm512_min_ps(largest, load(from)));
        let bits = _mm512_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(clamped);
        // SAFETY: `to` has LANES elements.
        unsafe { _mm256_storeu_si256(to.as_mut_ptr().cast(), bits) };
    }
    portable::narrow(from_rest, to_rest);
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn rotate(head: &[f32], cos: &[f32], sin: &[f32], scale: f32, to: &mut [f32]) {
    portable::rotate(head, cos, sin, scale, to);
}

/// See [`exp2`](mod@exp2) for the method. NaN stays NaN.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn exp2(x: __m512) -> __m512 {
    let x = _mm512_max_ps(_mm512_set1_ps(exp2::LOWEST), x);
    let rounder = _mm512_set1_ps(exp2::ROUNDER);
    let rounded = _mm512_add_ps(x, rounder);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(rounded, rounder));
    let mut mantissa = _mm512_set1_ps(exp2::POLYNOMIAL[0]);
    for coefficient in &exp2::POLYNOMIAL[1..] {
        mantissa = _mm512_fmadd_ps(mantissa, r, _mm512_set1_ps(*coefficient));
    }
    let exponent = _mm512_slli_epi32::<23>(_mm512_castps_si512(rounded));
    _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(mantissa), exponent))
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn load(from: &[f32; LANES]) -> __m512 {
    // SAFETY: the array has LANES elements.
    unsafe { _mm512_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn store(to: &mut [f32; LANES], value: __m512) {
    // SAFETY: the array has LANES elements.
    unsafe { _mm512_storeu_ps(to.as_mut_ptr(), value) }
}
