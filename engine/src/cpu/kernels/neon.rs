//! AArch64 with dot products: registers of four outputs, four products and their sum one instruction.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::aarch64::*;

use super::{
    CONSTANT_LINES, DenseFormat, DenseTile, Digits, FloatRows, LANE_INPUTS, LINE_BYTES, LOW_DIGIT_BITS, Line,
    PAIR, QuantTile, QuantizedGroup, QuantizedRows, TILE, Table, WeightBits, exp, format, group_lines,
    portable,
};

pub(super) static TABLE: Table =
    Table { quantize_group, quant_dot, int4_dot_f32, dense_dot, rms_norm, silu_mul };

/// Lanes of one register.
const LANES: usize = 4;

/// Registers of [`TILE`] outputs, which is also those of a line.
const REGISTERS: usize = TILE / LANES;

#[target_feature(enable = "neon,dotprod")]
fn quantize_group(x: &[f32], stride: usize, to: &mut QuantizedGroup<'_>) {
    const LOW_BITS: i32 = LOW_DIGIT_BITS as i32;
    let ((rows, group_size), count) = (to.shape(), to.digits.count());
    for t in 0..rows {
        let group = &x[t * stride..][..group_size];
        let Some((scale, inverse)) = portable::group_scale(largest_magnitude(group), to.digits) else {
            portable::clear_row(to, t);
            continue;
        };
        let mut sums = [vdupq_n_s32(0); 2];
        for (lane, chunk) in group.chunks_exact(LANES).enumerate() {
            // To nearest, ties to even.
            let v = vcvtnq_s32_f32(vmulq_n_f32(load(chunk), inverse));
            let digits = match to.digits {
                Digits::One => [v, vdupq_n_s32(0)],
                Digits::Two => {
                    let half = vdupq_n_s32(1 << (LOW_BITS - 1));
                    let high = vshrq_n_s32::<LOW_BITS>(vaddq_s32(v, half));
                    [high, vsubq_s32(v, vshlq_n_s32::<LOW_BITS>(high))]
                }
            };
            for d in 0..count {
                sums[d] = vaddq_s32(sums[d], digits[d]);
                let at = (lane * count + d) * rows + t;
                to.values[at * LANE_INPUTS..][..LANE_INPUTS].copy_from_slice(&to_bytes(digits[d]));
            }
        }
        to.scales[t] = scale;
        for d in 0..count {
            to.sums[d * rows + t] = vaddvq_s32(sums[d]);
        }
    }
}

/// Integers that fit 8 bits.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn to_bytes(value: int32x4_t) -> [i8; LANES] {
    let halves = vmovn_s32(value);
    let bytes = vmovn_s16(vcombine_s16(halves, halves));
    vget_lane_u32::<0>(vreinterpret_u32_s8(bytes)).to_le_bytes().map(|byte| byte as i8)
}

/// Largest magnitude by its bits: NaN is above infinity and infinity above every number.
#[target_feature(enable = "neon,dotprod")]
fn largest_magnitude(group: &[f32]) -> f32 {
    let magnitude = vdupq_n_u32(0x7fff_ffff);
    let mut largest = vdupq_n_u32(0);
    for chunk in group.chunks_exact(LANES) {
        largest = vmaxq_u32(largest, vandq_u32(vreinterpretq_u32_f32(load(chunk)), magnitude));
    }
    f32::from_bits(vmaxvq_u32(largest))
}

/// Digit rows that are multiplied at a time: by half of the tile's outputs as many sums as 24 registers hold.
const MOST_DIGIT_ROWS: usize = 6;

/// One group of a tile.
struct Group {
    weights: *const i8,
    format: usize,
    lanes: usize,
    halves: [Half; 2],
}

/// Constants of one half of the tile's outputs.
struct Half {
    scales: [float32x4_t; REGISTERS],
    minus_zeros: [int32x4_t; REGISTERS],
}

/// One group of a block of rows.
struct BlockGroup<'a> {
    values: &'a [i8],
    scales: &'a [f32],
    sums: &'a [i32],
}

#[target_feature(enable = "neon,dotprod")]
fn quant_dot(tile: &QuantTile<'_>, x: &QuantizedRows<'_>, first_row: usize, out: &mut [[f32; PAIR]]) {
    out.fill([0.0; PAIR]);
    // Unpacking pays once a group serves a second pass.
    let unpack = tile.bits == WeightBits::Four && out.len() * x.digits.count() > MOST_DIGIT_ROWS;
    let mut unpacked = Unpacked([0; UNPACKED_BYTES]);
    for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
        let (constants, lines) = lines.split_at(CONSTANT_LINES);
        let (weights, format) = match tile.bits {
            WeightBits::Four if unpack => {
                unpack_nibbles(lines, &mut unpacked.0);
                (unpacked.0.as_ptr(), format::SMALL_BYTES)
            }
            WeightBits::Four => (lines.as_ptr().cast(), format::NIBBLES),
            WeightBits::Eight => (lines.as_ptr().cast(), format::BYTES),
        };
        let halves = [half_constants(constants, 0, format), half_constants(constants, 1, format)];
        let group = Group { weights, format, lanes: tile.group_size / LANE_INPUTS, halves };
        let mut done = 0;
        while done < out.len() {
            let rows = x.rows_of_block(first_row + done);
            let (values, scales, sums) = x.group(first_row + done, rows, g);
            add_group(&group, x.digits, &BlockGroup { values, scales, sums }, &mut out[done..done + rows]);
            done += rows;
        }
    }
}

/// Scales and negated zero points of one half of a group's outputs.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn half_constants(constants: &[Line], half: usize, format: usize) -> Half {
    // Unsigned bytes are multiplied as signed ones, 128 less.
    let offset = vdupq_n_s32(if format == format::BYTES { 128 } else { 0 });
    let mut to = Half { scales: [vdupq_n_f32(0.0); REGISTERS], minus_zeros: [offset; REGISTERS] };
    for i in 0..REGISTERS {
        let first_output = half * TILE + i * LANES;
        to.scales[i] = vcvt_f32_f16(vreinterpret_f16_u16(load_halves(&constants[0], first_output)));
        let minus_zeros = vreinterpret_s16_u16(load_halves(&constants[1], first_output));
        to.minus_zeros[i] = vaddw_s16(to.minus_zeros[i], minus_zeros);
    }
    to
}

/// Scales or zero points of four outputs, 16 bits each.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load_halves(line: &Line, first_output: usize) -> uint16x4_t {
    let halves = &line.0[2 * first_output..][..2 * LANES];
    // SAFETY: the slice is one register, and the line's alignment makes that of its elements.
    unsafe { vld1_u16(halves.as_ptr().cast()) }
}

/// Bytes of a group of 128 inputs.
const UNPACKED_BYTES: usize = 128 * PAIR;

/// A group, one byte per weight, in whole cache lines.
#[repr(align(64))]
struct Unpacked([i8; UNPACKED_BYTES]);

/// The two lines of a step along the inputs become four: low nibbles of both, then high nibbles of both.
#[target_feature(enable = "neon,dotprod")]
fn unpack_nibbles(lines: &[Line], to: &mut [i8; UNPACKED_BYTES]) {
    for (pair, to) in lines.chunks_exact(2).zip(to.chunks_exact_mut(4 * LINE_BYTES)) {
        let (low, high) = to.split_at_mut(2 * LINE_BYTES);
        let bytes = pair.iter().flat_map(|line| line.0.as_chunks::<16>().0);
        let to = low.as_chunks_mut::<16>().0.iter_mut().zip(high.as_chunks_mut::<16>().0);
        for (from, (low, high)) in bytes.zip(to) {
            // SAFETY: each array is one register.
            unsafe {
                let [low_nibbles, high_nibbles] = nibbles(vld1q_u8(from.as_ptr()));
                vst1q_s8(low.as_mut_ptr(), low_nibbles);
                vst1q_s8(high.as_mut_ptr(), high_nibbles);
            }
        }
    }
}

/// Low and high nibbles of each byte.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn nibbles(bytes: uint8x16_t) -> [int8x16_t; 2] {
    [vreinterpretq_s8_u8(vandq_u8(bytes, vdupq_n_u8(15))), vreinterpretq_s8_u8(vshrq_n_u8::<4>(bytes))]
}

/// Adds one group's products to `out`, which is one block of rows.
#[target_feature(enable = "neon,dotprod")]
fn add_group(group: &Group, digits: Digits, x: &BlockGroup<'_>, out: &mut [[f32; PAIR]]) {
    macro_rules! dispatch {
        ($half:ident $first:ident $count:ident; $digits:literal: $($rows:literal)+) => {
            match (group.format, $count) {
                $((format::NIBBLES, $rows) =>
                    add_rows::<$rows, $digits, { format::NIBBLES }>(group, $half, x, $first, out),
                (format::SMALL_BYTES, $rows) =>
                    add_rows::<$rows, $digits, { format::SMALL_BYTES }>(group, $half, x, $first, out),
                (format::BYTES, $rows) =>
                    add_rows::<$rows, $digits, { format::BYTES }>(group, $half, x, $first, out),)+
                _ => unreachable!("at most six digit rows are taken at a time"),
            }
        };
    }
    let most_rows = MOST_DIGIT_ROWS / digits.count();
    for half in 0..2 {
        let mut first = 0;
        for passes in (1..=out.len().div_ceil(most_rows)).rev() {
            let count = (out.len() - first).div_ceil(passes);
            match digits {
                Digits::One => dispatch!(half first count; 1: 1 2 3 4 5 6),
                Digits::Two => dispatch!(half first count; 2: 1 2 3),
            }
            first += count;
        }
    }
}

/// [`add_group`] for `ROWS` rows from `first` on and one half of the outputs.
#[target_feature(enable = "neon,dotprod")]
fn add_rows<const ROWS: usize, const DIGITS: usize, const FORMAT: usize>(
    group: &Group,
    half: usize,
    x: &BlockGroup<'_>,
    first: usize,
    out: &mut [[f32; PAIR]],
) {
    let rows = out.len();
    assert!(half < 2 && first + ROWS <= rows && x.scales.len() == rows && x.sums.len() == rows * DIGITS);
    assert!(x.values.len() == group.lanes * LANE_INPUTS * rows * DIGITS);
    let constants = &group.halves[half];
    let mut dots = [[[vdupq_n_s32(0); REGISTERS]; DIGITS]; ROWS];
    for t in 0..ROWS {
        for d in 0..DIGITS {
            let sum = x.sums[d * rows + first + t];
            dots[t][d] = constants.minus_zeros.map(|minus_zeros| vmulq_n_s32(minus_zeros, sum));
        }
    }
    let lanes_per_step = const { format::lanes_per_step(FORMAT) };
    let values = x.values.as_ptr().cast::<i32>();
    for lane in 0..group.lanes {
        let line = lane / lanes_per_step * 2 + half;
        let mut weights = [vdupq_n_s8(0); REGISTERS];
        for i in 0..REGISTERS {
            // SAFETY: the group has two lines for each step.
            let bytes = unsafe { vld1q_u8(group.weights.add(line * LINE_BYTES + i * 16).cast()) };
            weights[i] = match FORMAT {
                format::NIBBLES => nibbles(bytes)[lane % lanes_per_step],
                format::SMALL_BYTES => vreinterpretq_s8_u8(bytes),
                _ => vreinterpretq_s8_u8(veorq_u8(bytes, vdupq_n_u8(128))),
            };
        }
        for d in 0..DIGITS {
            for t in 0..ROWS {
                let at = (lane * DIGITS + d) * rows + first + t;
                // SAFETY: `values` has `rows * DIGITS` words in each lane (asserted above).
                let four = vreinterpretq_s8_s32(vdupq_n_s32(unsafe { values.add(at).read_unaligned() }));
                for i in 0..REGISTERS {
                    dots[t][d][i] = sdot(dots[t][d][i], weights[i], four);
                }
            }
        }
    }
    for t in 0..ROWS {
        for i in 0..REGISTERS {
            let dot = if DIGITS == 2 {
                vaddq_s32(vshlq_n_s32::<{ LOW_DIGIT_BITS as i32 }>(dots[t][0][i]), dots[t][1][i])
            } else {
                dots[t][0][i]
            };
            let scale = vmulq_n_f32(constants.scales[i], x.scales[first + t]);
            let to = &mut out[first + t][half * TILE + i * LANES..][..LANES];
            store(to, vfmaq_f32(load(to), scale, vcvtq_f32_s32(dot)));
        }
    }
}

/// `sum` and four products of signed bytes in each lane. The intrinsic for it is not stable.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn sdot(mut sum: int32x4_t, a: int8x16_t, b: int8x16_t) -> int32x4_t {
    // SAFETY: one instruction of the enabled feature, on registers alone.
    unsafe {
        std::arch::asm!(
            "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
            sum = inlateout(vreg) sum,
            a = in(vreg) a,
            b = in(vreg) b,
            options(pure, nomem, nostack, preserves_flags),
        );
    }
    sum
}

#[target_feature(enable = "neon,dotprod")]
fn int4_dot_f32(tile: &QuantTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; PAIR]]) {
    in_row_blocks!(tile, x, first_row, out;
        4 => int4_f32_block::<4>, 2 => int4_f32_block::<2>, 1 => int4_f32_block::<1>);
}

/// `ROWS` tokens over one tile, four sums per token whatever `ROWS` is; four of the outputs at a time.
#[target_feature(enable = "neon,dotprod")]
fn int4_f32_block<const ROWS: usize>(
    tile: &QuantTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; PAIR]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    for first_output in (0..PAIR).step_by(LANES) {
        let (half, within) = (first_output / TILE, first_output % TILE);
        let mut totals = [vdupq_n_f32(0.0); ROWS];
        for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
            let (constants, lines) = lines.split_at(CONSTANT_LINES);
            let scales = vcvt_f32_f16(vreinterpret_f16_u16(load_halves(&constants[0], first_output)));
            let minus_zeros = vreinterpret_s16_u16(load_halves(&constants[1], first_output));
            let minus_zeros = vcvtq_f32_s32(vmovl_s16(minus_zeros));
            let mut sums = [[vdupq_n_f32(0.0); 4]; ROWS];
            for (l, pair) in lines.chunks_exact(2).enumerate() {
                let input = g * tile.group_size + l * 2 * LANE_INPUTS;
                let words = &pair[half].0[within * LANE_INPUTS..][..LANES * LANE_INPUTS];
                // SAFETY: the slice is one register.
                let words = vreinterpretq_u32_u8(unsafe { vld1q_u8(words.as_ptr()) });
                for j in 0..2 * LANE_INPUTS {
                    // Inputs 0..4 are the low nibbles of the word's bytes, 4..8 the high ones.
                    let shift = vdupq_n_s32(-((8 * (j % 4) + 4 * (j / 4)) as i32));
                    let q = vandq_u32(vshlq_u32(words, shift), vdupq_n_u32(15));
                    let weight = vaddq_f32(vcvtq_f32_u32(q), minus_zeros);
                    for t in 0..ROWS {
                        sums[t][j % 4] = vfmaq_n_f32(sums[t][j % 4], weight, rows[t][input + j]);
                    }
                }
            }
            for t in 0..ROWS {
                let sum = vaddq_f32(vaddq_f32(sums[t][0], sums[t][1]), vaddq_f32(sums[t][2], sums[t][3]));
                totals[t] = vfmaq_f32(totals[t], scales, sum);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            store(&mut out[first_output..], total);
        }
    }
}

#[target_feature(enable = "neon,dotprod")]
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

/// `ROWS` tokens over one tile, two sums per token and output whatever `ROWS` is.
#[target_feature(enable = "neon,dotprod")]
fn dense_block<const ROWS: usize, const FORMAT: usize>(
    tile: &DenseTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; TILE]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    // Even and odd inputs add up apart.
    let mut sums = [[[vdupq_n_f32(0.0); REGISTERS]; ROWS]; 2];
    for k in 0..x.width {
        for i in 0..REGISTERS {
            let weight = widen::<FORMAT>(tile, k, i);
            for t in 0..ROWS {
                let sum = &mut sums[k % 2][t][i];
                *sum = vfmaq_n_f32(*sum, weight, rows[t][k]);
            }
        }
    }
    for (t, out) in out.iter_mut().enumerate() {
        for i in 0..REGISTERS {
            store(&mut out[i * LANES..], vaddq_f32(sums[0][t][i], sums[1][t][i]));
        }
    }
}

/// Four of the weights of input `k`.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn widen<const FORMAT: usize>(tile: &DenseTile<'_>, k: usize, register: usize) -> float32x4_t {
    let first = k * TILE + register * LANES;
    if FORMAT == F32 {
        let bytes = &tile.weights[4 * first..][..4 * LANES];
        // SAFETY: the slice is one register.
        return vreinterpretq_f32_u8(unsafe { vld1q_u8(bytes.as_ptr()) });
    }
    let bytes = &tile.weights[2 * first..][..2 * LANES];
    // SAFETY: the slice is half a register.
    let halves = vreinterpret_u16_u8(unsafe { vld1_u8(bytes.as_ptr()) });
    match FORMAT {
        F16 => vcvt_f32_f16(vreinterpret_f16_u16(halves)),
        _ => vreinterpretq_f32_u32(vshll_n_u16::<16>(halves)),
    }
}

#[target_feature(enable = "neon,dotprod")]
fn rms_norm(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let (chunks, rest) = x.as_chunks::<TILE>();
    let mut squares = [vdupq_n_f32(0.0); REGISTERS];
    for chunk in chunks {
        for i in 0..REGISTERS {
            let x = load(&chunk[i * LANES..]);
            squares[i] = vfmaq_f32(squares[i], x, x);
        }
    }
    let squares = vaddq_f32(vaddq_f32(squares[0], squares[1]), vaddq_f32(squares[2], squares[3]));
    let squares = vaddvq_f32(squares) + rest.iter().map(|x| x * x).sum::<f32>();
    let scale = portable::rms_scale(squares, x.len(), eps);
    let whole = x.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        store(&mut out[k..], vmulq_f32(vmulq_n_f32(load(&x[k..]), scale), load(&weight[k..])));
    }
    for k in whole..x.len() {
        out[k] = x[k] * scale * weight[k];
    }
}

#[target_feature(enable = "neon,dotprod")]
fn silu_mul(gate: &[f32], up: &[f32], out: &mut [f32]) {
    let whole = gate.len() / LANES * LANES;
    for k in (0..whole).step_by(LANES) {
        let x = load(&gate[k..]);
        let silu = vdivq_f32(x, vaddq_f32(vdupq_n_f32(1.0), exp(vnegq_f32(x))));
        store(&mut out[k..], vmulq_f32(silu, load(&up[k..])));
    }
    portable::silu_mul(&gate[whole..], &up[whole..], &mut out[whole..]);
}

/// See [`super::exp`] for the method.
#[inline]
#[target_feature(enable = "neon,dotprod")]
fn exp(x: float32x4_t) -> float32x4_t {
    let x = vmaxq_f32(vdupq_n_f32(exp::LOWEST), vminq_f32(vdupq_n_f32(exp::HIGHEST), x));
    let n = vrndnq_f32(vmulq_n_f32(x, exp::LOG2_E));
    let r = vfmsq_n_f32(x, n, exp::LN2_HIGH);
    let r = vfmsq_n_f32(r, n, exp::LN2_LOW);
    let mut polynomial = vdupq_n_f32(exp::TAYLOR[0]);
    for coefficient in &exp::TAYLOR[1..] {
        polynomial = vfmaq_f32(vdupq_n_f32(*coefficient), polynomial, r);
    }
    let power = vshlq_n_s32::<23>(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)));
    vmulq_f32(polynomial, vreinterpretq_f32_s32(power))
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn load(from: &[f32]) -> float32x4_t {
    assert!(from.len() >= LANES);
    // SAFETY: the slice has LANES elements.
    unsafe { vld1q_f32(from.as_ptr()) }
}

#[inline]
#[target_feature(enable = "neon,dotprod")]
fn store(to: &mut [f32], value: float32x4_t) {
    assert!(to.len() >= LANES);
    // SAFETY: the slice has LANES elements.
    unsafe { vst1q_f32(to.as_mut_ptr(), value) }
}
