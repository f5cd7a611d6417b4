//! Plain Rust: the definition of every attention kernel, and the fallback on any machine.

use half::f16;

use super::kernels::{Factor, LANES, Product, SoftmaxState, Stored, Table, exp2};

/// Largest int8 digit; its negative is the smallest.
const LARGEST_DIGIT: f32 = 127.0;

pub(super) static TABLE: Table =
    Table { multiply, softmax, merge, widen_f16, widen_int8, narrow, quantize, scale, rotate };

fn multiply(product: &Product<'_>, c: &mut [f32], c_stride: usize) {
    match product.b {
        Factor::F32 { values, .. } => multiply_with(product, values, |value| value, c, c_stride),
        Factor::Stored { values: Stored::F16(bits), .. } => {
            multiply_with(product, bits, |bits| f16::from_bits(bits).to_f32(), c, c_stride);
        }
        Factor::Stored { values: Stored::Int8(digits), .. } => {
            multiply_with(product, digits, f32::from, c, c_stride);
        }
    }
}

fn multiply_with<T: Copy>(
    product: &Product<'_>,
    b: &[T],
    widen: impl Fn(T) -> f32,
    c: &mut [f32],
    c_stride: usize,
) {
    let Product { rows, depth, columns, a, a_stride, b_stride, add, .. } = *product;
    for (row, c) in c.chunks_mut(c_stride).take(rows).enumerate() {
        let c = &mut c[..columns];
        if !add {
            c.fill(0.0);
        }
        for (a, b) in a[row * a_stride..][..depth].iter().zip(b.chunks(b_stride)) {
            for (c, b) in c.iter_mut().zip(b) {
                *c += a * widen(*b);
            }
        }
    }
}

fn softmax(scores: &mut [f32], visible: usize) -> SoftmaxState {
    let scores = &mut scores[..visible];
    let max = scores.iter().fold(f32::NEG_INFINITY, |max, score| max.max(*score));
    // Partial sums as in a vector register: more accurate than one.
    let mut sums = [0.0f32; LANES];
    for scores in scores.chunks_mut(LANES) {
        for (sum, score) in sums.iter_mut().zip(scores) {
            *score = exp2(*score - max);
            *sum += *score;
        }
    }
    SoftmaxState { max, sum: sums.iter().sum() }
}

/// Inlined into the other tables, which compile it for their instruction set.
#[inline(always)]
pub(super) fn merge(
    total: &mut [f32],
    total_state: &mut SoftmaxState,
    part: &[f32],
    part_state: SoftmaxState,
) {
    let max = total_state.max.max(part_state.max);
    let (shrink_total, shrink_part) = (exp2(total_state.max - max), exp2(part_state.max - max));
    let sum = total_state.sum * shrink_total + part_state.sum * shrink_part;
    *total_state = SoftmaxState { max, sum };
    for (total, part) in total.iter_mut().zip(part) {
        *total = *total * shrink_total + part * shrink_part;
    }
}

pub(super) fn widen_f16(from: &[u16], width: usize, to: &mut [f32], to_stride: usize) {
    widen_with(from, width, |bits| f16::from_bits(bits).to_f32(), to, to_stride);
}

pub(super) fn widen_int8(from: &[i8], width: usize, to: &mut [f32], to_stride: usize) {
    widen_with(from, width, f32::from, to, to_stride);
}

fn widen_with<T: Copy>(from: &[T], width: usize, widen: impl Fn(T) -> f32, to: &mut [f32], to_stride: usize) {
    for (from, to) in from.chunks_exact(width).zip(to.chunks_mut(to_stride)) {
        for (from, to) in from.iter().zip(to) {
            *to = widen(*from);
        }
    }
}

pub(super) fn narrow(from: &[f32], to: &mut [u16]) {
    let largest = f16::MAX.to_f32();
    for (from, to) in from.iter().zip(to) {
        *to = f16::from_f32(from.clamp(-largest, largest)).to_bits();
    }
}

/// Inlined into the other tables, which compile it for their instruction set.
#[inline(always)]
pub(super) fn quantize(from: &[f32], digits: &mut [i8]) -> u16 {
    // Magnitudes are ordered as their bits are, with infinity and then NaN at the end.
    let largest = from.iter().fold(0, |largest, value| value.abs().to_bits().max(largest));
    let largest = f32::from_bits(largest);
    if largest.is_nan() {
        digits.fill(0);
        return f16::NAN.to_bits();
    }
    let scale = f16::from_f32(largest.min(f16::MAX.to_f32()) / LARGEST_DIGIT);
    let inverse = if scale == f16::ZERO { 0.0 } else { 1.0 / scale.to_f32() };
    for (from, digit) in from.iter().zip(digits) {
        let value = (from * inverse).clamp(-LARGEST_DIGIT, LARGEST_DIGIT);
        // The integer stands in the low bits of the sum, in two's complement.
        *digit = (value + exp2::ROUNDER).to_bits() as i8;
    }
    scale.to_bits()
}

/// Inlined into the other tables, which compile it for their instruction set.
#[inline(always)]
pub(super) fn scale(numbers: &mut [f32], scales: &[f32]) {
    for (number, scale) in numbers.iter_mut().zip(scales) {
        *number *= scale;
    }
}

/// Inlined into the other tables, which compile it for their instruction set.
#[inline(always)]
pub(super) fn rotate(head: &[f32], cos: &[f32], sin: &[f32], scale: f32, to: &mut [f32]) {
    let (low, high) = head.split_at(cos.len());
    let (to_low, to_high) = to.split_at_mut(cos.len());
    let turned = low.iter().zip(high).zip(cos.iter().zip(sin));
    for (((low, high), (cos, sin)), (to_low, to_high)) in turned.zip(to_low.iter_mut().zip(to_high)) {
        *to_low = (low * cos - high * sin) * scale;
        *to_high = (high * cos + low * sin) * scale;
    }
}

/// See [`exp2`](mod@exp2) for the method. NaN stays NaN.
#[inline(always)]
fn exp2(x: f32) -> f32 {
    let x = if x < exp2::LOWEST { exp2::LOWEST } else { x };
    let rounded = x + exp2::ROUNDER;
    let r = x - (rounded - exp2::ROUNDER);
    let mantissa = exp2::POLYNOMIAL.iter().fold(0.0, |value, coefficient| value * r + coefficient);
    f32::from_bits(mantissa.to_bits().wrapping_add(rounded.to_bits() << 23))
}
