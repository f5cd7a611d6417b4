//! Plain Rust: the definition of every kernel, and the fallback on any machine.

use half::{bf16, f16};

use super::{
    DenseFormat, DenseTile, Digits, FloatRows, LANE_INPUTS, LOW_DIGIT_BITS, Line, PAIR, QuantTile,
    QuantizedGroup, QuantizedRows, SMALLEST_AMAX, TILE, Table, WeightBits, exp,
};

pub(super) static TABLE: Table =
    Table { quantize_group, quant_dot, int4_dot_f32, dense_dot, rms_norm, silu_mul };

pub(super) fn quantize_group(x: &[f32], stride: usize, to: &mut QuantizedGroup<'_>) {
    let ((rows, group_size), digits) = (to.shape(), to.digits.count());
    for t in 0..rows {
        let group = &x[t * stride..][..group_size];
        let Some((scale, inverse)) = group_scale(largest_magnitude(group), to.digits) else {
            clear_row(to, t);
            continue;
        };
        let mut sums = [0; 2];
        for (k, x) in group.iter().enumerate() {
            let v = (x * inverse).round_ties_even() as i32;
            let high = (v + (1 << LOW_DIGIT_BITS) / 2) >> LOW_DIGIT_BITS;
            let split = match to.digits {
                Digits::One => [v, 0],
                Digits::Two => [high, v - (high << LOW_DIGIT_BITS)],
            };
            for (d, (sum, digit)) in sums.iter_mut().zip(split).take(digits).enumerate() {
                let lane = ((k / LANE_INPUTS) * digits + d) * rows + t;
                to.values[lane * LANE_INPUTS + k % LANE_INPUTS] = digit as i8;
                *sum += digit;
            }
        }
        to.scales[t] = scale;
        for (d, sum) in sums.into_iter().take(digits).enumerate() {
            to.sums[d * rows + t] = sum;
        }
    }
}

/// Makes row `t` of a group zeros with a NaN scale.
pub(super) fn clear_row(to: &mut QuantizedGroup<'_>, t: usize) {
    let (rows, _) = to.shape();
    for lane in to.values.chunks_exact_mut(LANE_INPUTS).skip(t).step_by(rows) {
        lane.fill(0);
    }
    to.sums.iter_mut().skip(t).step_by(rows).for_each(|sum| *sum = 0);
    to.scales[t] = f32::NAN;
}

/// Largest absolute value; NaN or infinity when the group holds one. Compared as integers, where NaN
/// is above infinity and infinity above every number.
fn largest_magnitude(group: &[f32]) -> f32 {
    f32::from_bits(group.iter().map(|x| x.to_bits() & 0x7fff_ffff).max().unwrap_or(0))
}

/// `(scale, 1 / scale)` of a group; `None` when it is not finite.
pub(super) fn group_scale(amax: f32, digits: Digits) -> Option<(f32, f32)> {
    if !amax.is_finite() {
        None
    } else if amax < SMALLEST_AMAX {
        Some((0.0, 0.0))
    } else {
        Some((amax / digits.largest(), digits.largest() / amax))
    }
}

pub(super) fn quant_dot(
    tile: &QuantTile<'_>,
    x: &QuantizedRows<'_>,
    first_row: usize,
    out: &mut [[f32; PAIR]],
) {
    out.fill([0.0; PAIR]);
    let mut done = 0;
    while done < out.len() {
        let rows = x.rows_of_block(first_row + done);
        for g in 0..tile.groups() {
            add_group(tile, g, x, first_row + done, &mut out[done..done + rows]);
        }
        done += rows;
    }
}

/// Adds the products of group `g` and one block of rows.
fn add_group(
    tile: &QuantTile<'_>,
    g: usize,
    x: &QuantizedRows<'_>,
    first_row: usize,
    out: &mut [[f32; PAIR]],
) {
    let (weight_scales, minus_zeros, lines) = tile.group(g);
    let (values, scales, sums) = x.group(first_row, out.len(), g);
    let (rows, digits) = (out.len(), x.digits.count());
    for (t, out) in out.iter_mut().enumerate() {
        let mut dots = [0i32; PAIR];
        for d in 0..digits {
            let place = LOW_DIGIT_BITS * (digits - 1 - d) as u32;
            for (n, dot) in dots.iter_mut().enumerate() {
                *dot += (i32::from(minus_zeros[n]) * sums[d * rows + t]) << place;
            }
            for k in 0..tile.group_size {
                let lane = (k / LANE_INPUTS * digits + d) * rows + t;
                let value = i32::from(values[lane * LANE_INPUTS + k % LANE_INPUTS]) << place;
                for (n, dot) in dots.iter_mut().enumerate() {
                    *dot += i32::from(weight(tile.bits, lines, k, n)) * value;
                }
            }
        }
        for (n, out) in out.iter_mut().enumerate() {
            *out += (f16::from_bits(weight_scales[n]).to_f32() * scales[t]) * dots[n] as f32;
        }
    }
}

/// The weight from input `k` of a group to output `n`, before its zero point.
#[inline]
fn weight(bits: WeightBits, lines: &[Line], k: usize, n: usize) -> u8 {
    let (line, within) = (k / bits.line_inputs(), k % bits.line_inputs());
    let byte = lines[2 * line + n / TILE].0[n % TILE * LANE_INPUTS + within % LANE_INPUTS];
    match bits {
        WeightBits::Four => byte >> (4 * (within / LANE_INPUTS)) & 15,
        WeightBits::Eight => byte,
    }
}

pub(super) fn int4_dot_f32(
    tile: &QuantTile<'_>,
    x: &FloatRows<'_>,
    first_row: usize,
    out: &mut [[f32; PAIR]],
) {
    for (t, out) in out.iter_mut().enumerate() {
        let values = &x.values[(first_row + t) * x.width..][..x.width];
        *out = [0.0; PAIR];
        for g in 0..tile.groups() {
            let (scales, minus_zeros, lines) = tile.group(g);
            let mut dots = [0.0f32; PAIR];
            for (k, value) in values[g * tile.group_size..][..tile.group_size].iter().enumerate() {
                for (n, dot) in dots.iter_mut().enumerate() {
                    let q = i16::from(weight(tile.bits, lines, k, n)) + minus_zeros[n];
                    *dot += f32::from(q) * value;
                }
            }
            for (n, out) in out.iter_mut().enumerate() {
                *out += f16::from_bits(scales[n]).to_f32() * dots[n];
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
