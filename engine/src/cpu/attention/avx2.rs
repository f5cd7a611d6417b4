//! AVX2 with FMA and F16C: eight elements in a register, up to 6 x 2 registers of sums.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::kernels::{
    FETCHED_WITH_A_ROW, Factor, LANES, Product, SoftmaxState, Stored, Table, block_rows, exp2,
};
use super::portable;

pub(super) static TABLE: Table =
    Table { multiply, softmax, merge, widen_f16, widen_int8, narrow, quantize, scale, rotate };

/// Elements of one register.
const WIDTH: usize = 8;

/// Most rows of a block: with two registers of columns each their sums and a line fill the register file.
const MOST_ROWS: usize = 6;

/// Most rows of a block that widens its factor as it reads it, one register at a time.
const MOST_STORED_ROWS: usize = 8;

/// # Safety
/// The product must fit its arrays and `c`; [`AttentionKernels::multiply`](super::AttentionKernels::multiply) checks it.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply(product: &Product<'_>, c: &mut [f32], c_stride: usize) {
    let mut row = 0;
    while row < product.rows {
        let left = product.rows - row;
        // SAFETY: the rows are inside the product; shapes were checked by the caller.
        row += unsafe {
            match product.b {
                Factor::F32 { .. } => match block_rows(left, MOST_ROWS) {
                    6 => multiply_rows::<6, 2>(product, row, c, c_stride),
                    5 => multiply_rows::<5, 2>(product, row, c, c_stride),
                    4 => multiply_rows::<4, 2>(product, row, c, c_stride),
                    3 => multiply_rows::<3, 2>(product, row, c, c_stride),
                    2 => multiply_rows::<2, 2>(product, row, c, c_stride),
                    _ => multiply_rows::<1, 2>(product, row, c, c_stride),
                },
                Factor::Stored { .. } => match block_rows(left, MOST_STORED_ROWS) {
                    8 => multiply_rows::<8, 1>(product, row, c, c_stride),
                    7 => multiply_rows::<7, 1>(product, row, c, c_stride),
                    6 => multiply_rows::<6, 1>(product, row, c, c_stride),
                    5 => multiply_rows::<5, 1>(product, row, c, c_stride),
                    4 => multiply_rows::<4, 1>(product, row, c, c_stride),
                    3 => multiply_rows::<3, 1>(product, row, c, c_stride),
                    2 => multiply_rows::<2, 1>(product, row, c, c_stride),
                    _ => multiply_rows::<1, 1>(product, row, c, c_stride),
                },
            }
        };
    }
}

/// `ROWS` rows over all columns, `REGISTERS` registers at a time; returns their number.
///
/// # Safety
/// The product must fit its arrays and `c`, and have the rows.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn multiply_rows<const ROWS: usize, const REGISTERS: usize>(
    product: &Product<'_>,
    row: usize,
    c: &mut [f32],
    c_stride: usize,
) -> usize {
    for column in (0..product.columns).step_by(REGISTERS * WIDTH) {
        // SAFETY: the columns are inside the product; the rest is this function's contract.
        unsafe { multiply_block::<ROWS, REGISTERS>(product, row, column, c, c_stride) };
    }
    ROWS
}

/// # Safety
/// The product must fit its arrays and `c`, and have the rows and columns.
#[target_feature(enable = "avx2,fma,f16c")]
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
        let a = a.as_ptr().add(row * a_stride);
        let c = c.as_mut_ptr().add(row * c_stride + column);
        let mut sums = [[_mm256_setzero_ps(); REGISTERS]; ROWS];
        if add {
            for r in 0..ROWS {
                for t in 0..REGISTERS {
                    sums[r][t] = _mm256_loadu_ps(c.add(r * c_stride + t * WIDTH));
                }
            }
        }
        match b {
            Factor::F32 { values, ahead } => {
                let values = values.as_ptr().add(column);
                // The first block fetches; the others go over the same lines of the processor's first cache.
                // Prefetching reads nothing, so the address may be anywhere.
                let (ahead, step) = if row == 0 {
                    (ahead.start(), FETCHED_WITH_A_ROW * ahead.element_bytes())
                } else {
                    (values.cast(), 0)
                };
                for k in 0..depth {
                    let mut line = [_mm256_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = _mm256_loadu_ps(values.add(k * b_stride + t * WIDTH));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * step));
                    add_line(&mut sums, a.add(k), a_stride, line);
                }
            }
            Factor::Stored { values: Stored::F16(bits), ahead } => {
                let bits = bits.as_ptr().add(column);
                let ahead = ahead.start().cast::<u16>().wrapping_add(column);
                for k in 0..depth {
                    let mut line = [_mm256_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = widen_bits(bits.add(k * b_stride + t * WIDTH));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * b_stride).cast());
                    add_line(&mut sums, a.add(k), a_stride, line);
                }
            }
            Factor::Stored { values: Stored::Int8(digits), ahead } => {
                let digits = digits.as_ptr().add(column);
                let ahead = ahead.start().wrapping_add(column);
                for k in 0..depth {
                    let mut line = [_mm256_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = widen_digits(digits.add(k * b_stride + t * WIDTH));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * b_stride));
                    add_line(&mut sums, a.add(k), a_stride, line);
                }
            }
        }
        for r in 0..ROWS {
            for t in 0..REGISTERS {
                _mm256_storeu_ps(c.add(r * c_stride + t * WIDTH), sums[r][t]);
            }
        }
    }
}

/// `sums[r] += a[r * a_stride] * line` for all rows.
///
/// # Safety
/// `a` must have the rows.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn add_line<const ROWS: usize, const REGISTERS: usize>(
    sums: &mut [[__m256; REGISTERS]; ROWS],
    a: *const f32,
    a_stride: usize,
    line: [__m256; REGISTERS],
) {
    for r in 0..ROWS {
        // SAFETY: this function's contract.
        let factor = _mm256_set1_ps(unsafe { *a.add(r * a_stride) });
        for t in 0..REGISTERS {
            sums[r][t] = _mm256_fmadd_ps(factor, line[t], sums[r][t]);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn softmax(scores: &mut [f32], visible: usize) -> SoftmaxState {
    let (registers, _) = scores[..visible.next_multiple_of(LANES)].as_chunks_mut::<WIDTH>();
    let (whole, rest) = (visible / WIDTH, visible % WIDTH);

    let mut max = _mm256_set1_ps(f32::NEG_INFINITY);
    for scores in &registers[..whole] {
        max = _mm256_max_ps(max, load(scores));
    }
    let mut max = to_floats(max).into_iter().fold(f32::NEG_INFINITY, f32::max);
    if rest > 0 {
        max = registers[whole][..rest].iter().fold(max, |max, score| max.max(*score));
    }

    let (largest, mut sum) = (_mm256_set1_ps(max), _mm256_setzero_ps());
    for scores in &mut registers[..whole] {
        let weights = exp2(_mm256_sub_ps(load(scores), largest));
        sum = _mm256_add_ps(sum, weights);
        store(scores, weights);
    }
    let mut sum = to_floats(sum).into_iter().sum::<f32>();
    if rest > 0 {
        let scores = &mut registers[whole];
        let weights = exp2(_mm256_sub_ps(load(scores), largest));
        store(scores, weights);
        sum += scores[..rest].iter().sum::<f32>();
    }
    SoftmaxState { max, sum }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn merge(total: &mut [f32], total_state: &mut SoftmaxState, part: &[f32], part_state: SoftmaxState) {
    portable::merge(total, total_state, part, part_state);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen_f16(from: &[u16], width: usize, to: &mut [f32], to_stride: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(to_stride)) {
        let whole = width / WIDTH * WIDTH;
        let (to, to_rest) = to[..width].split_at_mut(whole);
        for (from, to) in from.as_chunks::<WIDTH>().0.iter().zip(to.as_chunks_mut().0) {
            // SAFETY: `from` has WIDTH elements.
            store(to, unsafe { widen_bits(from.as_ptr()) });
        }
        if whole < width {
            portable::widen_f16(&from[whole..], width - whole, to_rest, width - whole);
        }
    }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn widen_int8(from: &[i8], width: usize, to: &mut [f32], to_stride: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(to_stride)) {
        let whole = width / WIDTH * WIDTH;
        let (to, to_rest) = to[..width].split_at_mut(whole);
        for (from, to) in from.as_chunks::<WIDTH>().0.iter().zip(to.as_chunks_mut().0) {
            // SAFETY: `from` has WIDTH elements.
            store(to, unsafe { widen_digits(from.as_ptr()) });
        }
        if whole < width {
            portable::widen_int8(&from[whole..], width - whole, to_rest, width - whole);
        }
    }
}

/// A register of fp16 numbers.
///
/// # Safety
/// `from` must have them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_bits(from: *const u16) -> __m256 {
    // SAFETY: this function's contract.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(from.cast())) }
}

/// A register of int8 digits.
///
/// # Safety
/// `from` must have them.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn widen_digits(from: *const i8) -> __m256 {
    // SAFETY: this function's contract.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(from.cast()))) }
}

#[target_feature(enable = "avx2,fma,f16c")]
fn narrow(from: &[f32], to: &mut [u16]) {
    let largest = _mm256_set1_ps(half::f16::MAX.to_f32());
    let smallest = _mm256_set1_ps(half::f16::MIN.to_f32());
    let (from, from_rest) = from.as_chunks::<WIDTH>();
    let (to, to_rest) = to.as_chunks_mut::<WIDTH>();
    for (from, to) in from.iter().zip(to) {
        // In this order of arguments NaN stays NaN.
        let clamped = _mm256_max_ps(smallest, _mm256_min_ps(largest, load(from)));
        let bits = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(clamped);
        // SAFETY: `to` has WIDTH elements.
        unsafe { _mm_storeu_si128(to.as_mut_ptr().cast(), bits) };
    }
    portable::narrow(from_rest, to_rest);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn quantize(from: &[f32], digits: &mut [i8]) -> u16 {
    portable::quantize(from, digits)
}

#[target_feature(enable = "avx2,fma,f16c")]
fn scale(numbers: &mut [f32], scales: &[f32]) {
    portable::scale(numbers, scales);
}

#[target_feature(enable = "avx2,fma,f16c")]
fn rotate(head: &[f32], cos: &[f32], sin: &[f32], scale: f32, to: &mut [f32]) {
    portable::rotate(head, cos, sin, scale, to);
}

/// See [`exp2`](mod@exp2) for the method. NaN stays NaN.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn exp2(x: __m256) -> __m256 {
    let x = _mm256_max_ps(_mm256_set1_ps(exp2::LOWEST), x);
    let rounder = _mm256_set1_ps(exp2::ROUNDER);
    let rounded = _mm256_add_ps(x, rounder);
    let r = _mm256_sub_ps(x, _mm256_sub_ps(rounded, rounder));
    let mut mantissa = _mm256_set1_ps(exp2::POLYNOMIAL[0]);
    for coefficient in &exp2::POLYNOMIAL[1..] {
        mantissa = _mm256_fmadd_ps(mantissa, r, _mm256_set1_ps(*coefficient));
    }
    let exponent = _mm256_slli_epi32::<23>(_mm256_castps_si256(rounded));
    _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(mantissa), exponent))
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn to_floats(value: __m256) -> [f32; WIDTH] {
    let mut lanes = [0.0; WIDTH];
    store(&mut lanes, value);
    lanes
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn load(from: &[f32; WIDTH]) -> __m256 {
    // SAFETY: the array has WIDTH elements.
    unsafe { _mm256_loadu_ps(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
fn store(to: &mut [f32; WIDTH], value: __m256) {
    // SAFETY: the array has WIDTH elements.
    unsafe { _mm256_storeu_ps(to.as_mut_ptr(), value) }
}
