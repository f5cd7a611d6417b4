//! AVX-512: sixteen elements in a register, up to 6 x 4 registers of sums.

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

/// Most rows of a block: with four registers of columns each their sums and a line fill the register file.
const MOST_ROWS: usize = 6;

/// Most rows of a block that widens its factor as it reads it.
const MOST_STORED_ROWS: usize = 8;

/// # Safety
/// The product must fit its arrays and `c`; [`AttentionKernels::multiply`](super::AttentionKernels::multiply) checks it.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply(product: &Product<'_>, c: &mut [f32], c_stride: usize) {
    let mut column = 0;
    while column < product.columns {
        let registers = (product.columns - column) / LANES;
        // SAFETY: the registers are inside the columns; shapes were checked by the caller.
        column += LANES
            * unsafe {
                match (product.b, registers) {
                    (Factor::Stored { .. }, 2..) => multiply_stored::<2>(product, column, c, c_stride),
                    (Factor::Stored { .. }, _) => multiply_stored::<1>(product, column, c, c_stride),
                    (Factor::F32 { .. }, 4..) => multiply_f32::<4>(product, column, c, c_stride),
                    (Factor::F32 { .. }, 2..) => multiply_f32::<2>(product, column, c, c_stride),
                    (Factor::F32 { .. }, _) => multiply_f32::<1>(product, column, c, c_stride),
                }
            };
    }
}

/// All rows over `REGISTERS` registers of columns; returns their number.
///
/// # Safety
/// The product must fit its arrays and `c`, and have the columns.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply_f32<const REGISTERS: usize>(
    product: &Product<'_>,
    column: usize,
    c: &mut [f32],
    c_stride: usize,
) -> usize {
    let mut row = 0;
    while row < product.rows {
        let rows = block_rows(product.rows - row, MOST_ROWS);
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

/// As [`multiply_f32`], where widening is shared by more rows.
///
/// # Safety
/// As [`multiply_f32`].
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn multiply_stored<const REGISTERS: usize>(
    product: &Product<'_>,
    column: usize,
    c: &mut [f32],
    c_stride: usize,
) -> usize {
    let mut row = 0;
    while row < product.rows {
        let rows = block_rows(product.rows - row, MOST_STORED_ROWS);
        // SAFETY: the rows are inside the product; the rest is this function's contract.
        unsafe {
            match rows {
                8 => multiply_block::<8, REGISTERS>(product, row, column, c, c_stride),
                7 => multiply_block::<7, REGISTERS>(product, row, column, c, c_stride),
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
        let a = a.as_ptr().add(row * a_stride);
        let c = c.as_mut_ptr().add(row * c_stride + column);
        let mut sums = [[_mm512_setzero_ps(); REGISTERS]; ROWS];
        if add {
            for r in 0..ROWS {
                for t in 0..REGISTERS {
                    sums[r][t] = _mm512_loadu_ps(c.add(r * c_stride + t * LANES));
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
                    let mut line = [_mm512_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = _mm512_loadu_ps(values.add(k * b_stride + t * LANES));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * step));
                    add_line(&mut sums, a.add(k), a_stride, line);
                }
            }
            Factor::Stored { values: Stored::F16(bits), ahead } => {
                let bits = bits.as_ptr().add(column);
                let ahead = ahead.start().cast::<u16>().wrapping_add(column);
                for k in 0..depth {
                    let mut line = [_mm512_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = widen_bits(bits.add(k * b_stride + t * LANES));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * b_stride).cast());
                    add_line(&mut sums, a.add(k), a_stride, line);
                }
            }
            Factor::Stored { values: Stored::Int8(digits), ahead } => {
                let digits = digits.as_ptr().add(column);
                let ahead = ahead.start().wrapping_add(column);
                for k in 0..depth {
                    let mut line = [_mm512_setzero_ps(); REGISTERS];
                    for t in 0..REGISTERS {
                        line[t] = widen_digits(digits.add(k * b_stride + t * LANES));
                    }
                    _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(k * b_stride));
                    add_line(&mut sums, a.add(k), a_stride, line);
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

/// `sums[r] += a[r * a_stride] * line` for all rows.
///
/// # Safety
/// `a` must have the rows.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn add_line<const ROWS: usize, const REGISTERS: usize>(
    sums: &mut [[__m512; REGISTERS]; ROWS],
    a: *const f32,
    a_stride: usize,
    line: [__m512; REGISTERS],
) {
    for r in 0..ROWS {
        // SAFETY: this function's contract.
        let factor = _mm512_set1_ps(unsafe { *a.add(r * a_stride) });
        for t in 0..REGISTERS {
            sums[r][t] = _mm512_fmadd_ps(factor, line[t], sums[r][t]);
        }
    }
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn softmax(scores: &mut [f32], visible: usize) -> SoftmaxState {
    let (registers, _) = scores.as_chunks_mut::<LANES>();
    let (whole, rest) = registers[..visible.div_ceil(LANES)].split_at_mut(visible / LANES);
    let rest_mask = ((1u32 << (visible % LANES)) - 1) as __mmask16;

    // Several running maxima: one would wait for itself.
    let mut maxima = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    let (quads, singles) = whole.as_chunks::<4>();
    for quad in quads {
        for i in 0..4 {
            maxima[i] = _mm512_max_ps(maxima[i], load(&quad[i]));
        }
    }
    for scores in singles {
        maxima[0] = _mm512_max_ps(maxima[0], load(scores));
    }
    for scores in rest.iter() {
        maxima[0] = _mm512_mask_max_ps(maxima[0], rest_mask, maxima[0], load(scores));
    }
    let [first, second, third, fourth] = maxima;
    let max = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(first, second), _mm512_max_ps(third, fourth)));

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

/// Widens rows of `width` values to rows of `to` that begin `to_stride` apart.
///
/// # Safety
/// `to` must have the rows.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn widen_f16(from: &[u16], width: usize, to: &mut [f32], to_stride: usize) {
    let (rows, whole) = (from.len() / width, width / LANES);
    let (from_start, to_start) = (from.as_ptr(), to.as_mut_ptr());
    for row in 0..rows {
        for register in 0..whole {
            // SAFETY: the register is inside its row, and the rows are inside both arrays.
            unsafe {
                let widened = widen_bits(from_start.add(row * width + register * LANES));
                _mm512_storeu_ps(to_start.add(row * to_stride + register * LANES), widened);
            }
        }
    }
    if !width.is_multiple_of(LANES) {
        for row in 0..rows {
            let columns = whole * LANES..width;
            let (from, to) = (&from[row * width..][columns.clone()], &mut to[row * to_stride..][columns]);
            portable::widen_f16(from, from.len(), to, from.len());
        }
    }
}

/// Widens rows of `width` values to rows of `to` that begin `to_stride` apart.
///
/// # Safety
/// `to` must have the rows.
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn widen_int8(from: &[i8], width: usize, to: &mut [f32], to_stride: usize) {
    let (rows, whole) = (from.len() / width, width / LANES);
    let (from_start, to_start) = (from.as_ptr(), to.as_mut_ptr());
    for row in 0..rows {
        for register in 0..whole {
            // SAFETY: the register is inside its row, and the rows are inside both arrays.
            unsafe {
                let widened = widen_digits(from_start.add(row * width + register * LANES));
                _mm512_storeu_ps(to_start.add(row * to_stride + register * LANES), widened);
            }
        }
    }
    if !width.is_multiple_of(LANES) {
        for row in 0..rows {
            let columns = whole * LANES..width;
            let (from, to) = (&from[row * width..][columns.clone()], &mut to[row * to_stride..][columns]);
            portable::widen_int8(from, from.len(), to, from.len());
        }
    }
}

/// A register of fp16 numbers.
///
/// # Safety
/// `from` must have them.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn widen_bits(from: *const u16) -> __m512 {
    // SAFETY: this function's contract.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(from.cast())) }
}

/// A register of int8 digits.
///
/// # Safety
/// `from` must have them.
#[inline]
#[target_feature(enable = "avx512f,avx2,fma,f16c")]
unsafe fn widen_digits(from: *const i8) -> __m512 {
    // SAFETY: this function's contract.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast()))) }
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
fn quantize(from: &[f32], digits: &mut [i8]) -> u16 {
    portable::quantize(from, digits)
}

#[target_feature(enable = "avx512f,avx2,fma,f16c")]
fn scale(numbers: &mut [f32], scales: &[f32]) {
    portable::scale(numbers, scales);
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
