//! Plain Rust: the definition of every kernel, and the fallback on any machine.

use half::{bf16, f16};

use super::{
    DIGITS, DenseFormat, DenseTile, FloatRows, Int4Tile, LARGEST_ROUNDED, LINE_BYTES, LINE_INPUTS,
    LOW_DIGIT_BITS, QuantizedRows, SMALLEST_AMAX, TILE, Table, exp,
};

pub(super) static TABLE: Table =
    Table { quantize_row, int4_dot_i8, int4_dot_f32, dense_dot, rms_norm, silu_mul };

pub(super) fn quantize_row(
    x: &[f32],
    group_size: usize,
    digits: &mut [i8],
    scales: &mut [f32],
    sums: &mut [i32],
) {
    for (g, group) in x.chunks_exact(group_size).enumerate() {
        let digits = &mut digits[g * group_size * DIGITS..][..group_size * DIGITS];
        let Some((scale, inverse)) = group_scale(largest_magnitude(group)) else {
            digits.fill(0);
            scales[g] = f32::NAN;
            sums[g] = 0;
            continue;
        };
        let mut sum = 0;
        for (digits, x) in digits.chunks_exact_mut(DIGITS * LINE_INPUTS).zip(group.chunks_exact(LINE_INPUTS))
        {
            let (high, low) = digits.split_at_mut(LINE_INPUTS);
            for ((high, low), x) in high.iter_mut().zip(low).zip(x) {
                let rounded = (x * inverse).round_ties_even() as i32;
                let digit = (rounded + (1 << LOW_DIGIT_BITS) / 2) >> LOW_DIGIT_BITS;
                *high = digit as i8;
                *low = (rounded - (digit << LOW_DIGIT_BITS)) as i8;
                sum += rounded;
            }
        }
        scales[g] = scale;
        sums[g] = sum;
    }
}

/// Largest absolute value; NaN or infinity when the group holds one. Compared as integers, where NaN
/// is above infinity and infinity above every number.
fn largest_magnitude(group: &[f32]) -> f32 {
    f32::from_bits(group.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// `(scale, 1 / scale)` of a group; `None` when it is not finite.
pub(super) fn group_scale(largest: f32) -> Option<(f32, f32)> {
    if !largest.is_finite() {
        None
    } else if largest < SMALLEST_AMAX {
        Some((0.0, 0.0))
    } else {
        Some((largest / LARGEST_ROUNDED, LARGEST_ROUNDED / largest))
    }
}

fn int4_dot_i8(tile: &Int4Tile<'_>, x: &QuantizedRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    let groups = tile.groups();
    for (t, out) in out.iter_mut().enumerate() {
        let row = first_row + t;
        let digits = &x.digits[row * x.width * DIGITS..][..x.width * DIGITS];
        *out = [0.0; TILE];
        for g in 0..groups {
            let mut dots = [0i32; TILE];
            let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
            for (l, line) in lines.chunks_exact(LINE_BYTES).enumerate() {
                let input = g * tile.group_size + l * LINE_INPUTS;
                let (high, low) = digits[input * DIGITS..][..LINE_INPUTS * DIGITS].split_at(LINE_INPUTS);
                let values: [i32; LINE_INPUTS] =
                    std::array::from_fn(|k| (i32::from(high[k]) << LOW_DIGIT_BITS) + i32::from(low[k]));
                for (dot, word) in dots.iter_mut().zip(line.chunks_exact(4)) {
                    for j in 0..4 {
                        *dot += i32::from(word[j] & 15) * values[j];
                        *dot += i32::from(word[j] >> 4) * values[4 + j];
                    }
                }
            }
            let (scale, sum) = (x.scales[row * groups + g], x.sums[row * groups + g]);
            for (n, out) in out.iter_mut().enumerate() {
                let weight_scale = f16::from_bits(tile.scales[g * TILE + n]).to_f32();
                let zero = i32::from(tile.zeros[g * TILE + n]);
                *out += (weight_scale * scale) * (dots[n] - zero * sum) as f32;
            }
        }
    }
}

fn int4_dot_f32(tile: &Int4Tile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    for (t, out) in out.iter_mut().enumerate() {
        let values = &x.values[(first_row + t) * x.width..][..x.width];
        *out = [0.0; TILE];
        for g in 0..tile.groups() {
            let zeros: [f32; TILE] = std::array::from_fn(|n| f32::from(tile.zeros[g * TILE + n]));
            let mut dots = [0.0f32; TILE];
            let lines = &tile.weights[g * tile.group_size * 8..][..tile.group_size * 8];
            for (l, line) in lines.chunks_exact(LINE_BYTES).enumerate() {
                let values = &values[g * tile.group_size + l * LINE_INPUTS..][..LINE_INPUTS];
                for (n, word) in line.chunks_exact(4).enumerate() {
                    for j in 0..4 {
                        dots[n] += (f32::from(word[j] & 15) - zeros[n]) * values[j];
                        dots[n] += (f32::from(word[j] >> 4) - zeros[n]) * values[4 + j];
                    }
                }
            }
            for (n, out) in out.iter_mut().enumerate() {
                *out += f16::from_bits(tile.scales[g * TILE + n]).to_f32() * dots[n];
            }
        }
    }
}

fn dense_dot(tile: &DenseTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; TILE]]) {
    match tile.format {
        DenseFormat::F16 => dense(tile, x, first_row, out, |bytes| f16::from_ne_bytes(bytes).to_f32()),
        DenseFormat::Bf16 => dense(tile, x, first_row, out, |bytes| bf16::from_ne_bytes(bytes).to_f32()),
        DenseFormat::F32 => dense(tile, x, first_row, out, f32::from_ne_bytes),
    }
}

fn dense<const BYTES: usize>(
    tile: &DenseTile<'_>,
    x: &FloatRows<'_>,
    first_row: usize,
    out: &mut [[f32; TILE]],
    widen: impl Fn([u8; BYTES]) -> f32,
) {
    // One widened line serves all rows.
    out.fill([0.0; TILE]);
    for (k, line) in tile.weights.as_chunks::<BYTES>().0.chunks_exact(TILE).enumerate() {
        let weights: [f32; TILE] = std::array::from_fn(|n| widen(line[n]));
        for (t, out) in out.iter_mut().enumerate() {
            let value = x.values[(first_row + t) * x.width + k];
            for (out, weight) in out.iter_mut().zip(&weights) {
                *out += weight * value;
            }
        }
    }
}

fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    // Sixteen partial sums: the shape of the vector versions, and more accurate than one.
    let mut squares = [0.0f32; TILE];
    for chunk in x.chunks(TILE) {
        for (square, x) in squares.iter_mut().zip(chunk) {
            *square += x * x;
        }
    }
    let scale = rms_scale(squares.iter().sum(), x.len(), eps);
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

pub(super) fn rms_scale(sum_of_squares: f32, count: usize, eps: f32) -> f32 {
    1.0 / (sum_of_squares / count as f32 + eps).sqrt()
}

pub(super) fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + exp(-gate)) * up;
    }
}

/// See [`super::exp`] for the method.
fn exp(x: f32) -> f32 {
    let x = x.clamp(exp::LOWEST, exp::HIGHEST);
    let n = (x * exp::LOG2_E).round_ties_even();
    let r = x - n * exp::LN2_HIGH - n * exp::LN2_LOW;
    let polynomial = exp::TAYLOR.iter().fold(0.0, |value, coefficient| value * r + coefficient);
    polynomial * f32::from_bits(((n as i32 + 127) as u32) << 23)
}
