//! AVX-512 with VNNI: one tile is one register, four products and their sum one instruction.

#![expect(
    clippy::needless_range_loop,
    reason = "constant-length loops over register arrays; several arrays share each index"
)]

use std::arch::x86_64::*;

use super::{
    CONSTANT_LINES, DenseFormat, DenseTile, Digits, FloatRows, KvBlock, LANE_INPUTS, LINE_BYTES,
    LOW_DIGIT_BITS, Line, PAIR, QuantTile, QuantizedGroup, QuantizedRows, SoftmaxState, TILE, Table,
    WeightBits, exp, group_lines, portable,
};

pub(super) static TABLE: Table = Table {
    quantize_group,
    quant_dot,
    int4_dot_f32,
    dense_dot,
    attend_block,
    f16_to_f32,
    rms_norm,
    silu_mul,
};

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quantize_group(x: &[f32], stride: usize, to: &mut QuantizedGroup<'_>) {
    let (rows, group_size) = to.shape();
    for t in 0..rows {
        let group = &x[t * stride..][..group_size];
        let Some((scale, inverse)) = portable::group_scale(largest_magnitude(group), to.digits) else {
            portable::clear_row(to, t);
            continue;
        };
        let inverse = _mm512_set1_ps(inverse);
        let mut sums = [_mm512_setzero_si512(); 2];
        for (c, chunk) in group.chunks_exact(TILE).enumerate() {
            // The default rounding of the conversion is to nearest, ties to even.
            let v = _mm512_cvtps_epi32(_mm512_mul_ps(load(chunk), inverse));
            let digits = match to.digits {
                Digits::One => [v, _mm512_setzero_si512()],
                Digits::Two => {
                    let half = _mm512_set1_epi32(1 << (LOW_DIGIT_BITS - 1));
                    let high = _mm512_srai_epi32::<LOW_DIGIT_BITS>(_mm512_add_epi32(v, half));
                    [high, _mm512_sub_epi32(v, _mm512_slli_epi32::<LOW_DIGIT_BITS>(high))]
                }
            };
            for d in 0..to.digits.count() {
                sums[d] = _mm512_add_epi32(sums[d], digits[d]);
                let mut bytes = [0i8; TILE];
                // SAFETY: `bytes` has TILE bytes.
                unsafe { _mm_storeu_si128(bytes.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(digits[d])) };
                for (l, lane) in bytes.chunks_exact(LANE_INPUTS).enumerate() {
                    let at = ((c * TILE / LANE_INPUTS + l) * to.digits.count() + d) * rows + t;
                    to.values[at * LANE_INPUTS..][..LANE_INPUTS].copy_from_slice(lane);
                }
            }
        }
        to.scales[t] = scale;
        for d in 0..to.digits.count() {
            to.sums[d * rows + t] = _mm512_reduce_add_epi32(sums[d]);
        }
    }
}

/// Largest magnitude by its bits: NaN is above infinity and infinity above every number.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn largest_magnitude(group: &[f32]) -> f32 {
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    let mut largest = _mm512_setzero_si512();
    for chunk in group.chunks_exact(TILE) {
        largest = _mm512_max_epu32(largest, _mm512_and_si512(_mm512_castps_si512(load(chunk)), magnitude));
    }
    f32::from_bits(_mm512_reduce_max_epu32(largest))
}

/// One group of a tile. With [`NIBBLES`] the lines are the tile's own, of four-bit weights; with [`BYTES`] they have
/// one byte per weight: eight-bit weights, or four-bit ones unpacked.
struct Group {
    lines: *const u8,
    packed: bool,
    group_size: usize,
    scales: [__m512; 2],
    /// In the low halves of 32-bit lanes whose high halves are zero.
    minus_zeros: [__m512i; 2],
}

const NIBBLES: bool = true;
const BYTES: bool = false;

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn quant_dot(tile: &QuantTile<'_>, x: &QuantizedRows<'_>, first_row: usize, out: &mut [[f32; PAIR]]) {
    out.fill([0.0; PAIR]);
    // Unpacking pays once a group serves a second block.
    let packed = tile.bits == WeightBits::Four;
    let unpack = packed && out.len() > x.rows_of_block(first_row);
    let mut unpacked = Unpacked([0; UNPACKED_BYTES]);
    for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
        let (constants, lines) = lines.split_at(CONSTANT_LINES);
        let (scales, minus_zeros) = group_constants(constants);
        let mut group =
            Group { lines: lines.as_ptr().cast(), packed, group_size: tile.group_size, scales, minus_zeros };
        if unpack {
            unpack_nibbles(lines, &mut unpacked.0);
            (group.lines, group.packed) = (unpacked.0.as_ptr(), false);
        }
        let mut done = 0;
        while done < out.len() {
            let rows = x.rows_of_block(first_row + done);
            let x_group = x.group(first_row + done, rows, g);
            add_group(&group, x.digits, x_group, &mut out[done..done + rows]);
            done += rows;
        }
    }
}

/// Scales and negated zero points of a group, outputs 0..16 and 16..32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn group_constants(constants: &[Line]) -> ([__m512; 2], [__m512i; 2]) {
    let halves = |line: &Line| {
        let at = line.0.as_ptr().cast::<__m256i>();
        // SAFETY: a line is two registers of 32 bytes.
        unsafe { [_mm256_load_si256(at), _mm256_load_si256(at.add(1))] }
    };
    let (scales, minus_zeros) = (halves(&constants[0]), halves(&constants[1]));
    (scales.map(|scales| _mm512_cvtph_ps(scales)), minus_zeros.map(|zeros| _mm512_cvtepu16_epi32(zeros)))
}

/// Bytes of a group of 128 inputs.
const UNPACKED_BYTES: usize = 128 * PAIR;

/// A group, one byte per weight, in whole cache lines.
#[repr(align(64))]
struct Unpacked([u8; UNPACKED_BYTES]);

/// The two lines of a step along the inputs become four: low nibbles of both, then high nibbles of both.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn unpack_nibbles(lines: &[Line], to: &mut [u8; UNPACKED_BYTES]) {
    let low_nibbles = _mm512_set1_epi8(15);
    for (pair, to) in lines.chunks_exact(2).zip(to.chunks_exact_mut(4 * LINE_BYTES)) {
        for (i, line) in pair.iter().enumerate() {
            // SAFETY: a line is one register, and `to` has four.
            unsafe {
                let line = _mm512_load_si512(line.0.as_ptr().cast());
                let high = _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_nibbles);
                let to = to.as_mut_ptr().cast::<__m512i>();
                _mm512_store_si512(to.add(i), _mm512_and_si512(line, low_nibbles));
                _mm512_store_si512(to.add(2 + i), high);
            }
        }
    }
}

/// Adds one group's products to `out`, which is one block of rows.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_group(group: &Group, digits: Digits, x: (&[i8], &[f32], &[i32]), out: &mut [[f32; PAIR]]) {
    macro_rules! dispatch {
        ($digits:literal: $($rows:literal)+) => {
            match (group.packed, out.len()) {
                $((NIBBLES, $rows) => add_group_block::<$rows, $digits, NIBBLES>(group, x, out),
                (BYTES, $rows) => add_group_block::<$rows, $digits, BYTES>(group, x, out),)+
                _ => unreachable!("a block has at most twelve digit rows"),
            }
        };
    }
    match digits {
        Digits::One => dispatch!(1: 1 2 3 4 5 6 7 8 9 10 11 12),
        Digits::Two => dispatch!(2: 1 2 3 4 5 6),
    }
}

/// Digit rows up to which multiplying is faster than memory.
const MOST_STREAMED_DIGIT_ROWS: usize = 4;

/// How far ahead weights are fetched.
const PREFETCH_BYTES: usize = 4096;

/// [`add_group`] for a block of `ROWS` rows of `DIGITS` digits: `2 * ROWS * DIGITS` sums in registers.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn add_group_block<const ROWS: usize, const DIGITS: usize, const PACKED: bool>(
    group: &Group,
    (values, scales, sums): (&[i8], &[f32], &[i32]),
    out: &mut [[f32; PAIR]],
) {
    let lanes = group.group_size / LANE_INPUTS;
    assert!(values.len() == lanes * LANE_INPUTS * ROWS * DIGITS);
    assert!(scales.len() == ROWS && sums.len() == ROWS * DIGITS && out.len() == ROWS);
    let mut dots = [[[_mm512_setzero_si512(); 2]; DIGITS]; ROWS];
    for t in 0..ROWS {
        for d in 0..DIGITS {
            // A sum fits 16 bits, and the other half of each product is zero: the low halves multiply.
            let sum = _mm512_set1_epi32(sums[d * ROWS + t]);
            dots[t][d] = group.minus_zeros.map(|minus_zeros| _mm512_madd_epi16(minus_zeros, sum));
        }
    }
    let low_nibbles = _mm512_set1_epi8(15);
    let mut x = values.as_ptr().cast::<i32>();
    let mut lines = group.lines.cast::<__m512i>();
    for _ in 0..lanes / if PACKED { 2 } else { 1 } {
        if ROWS * DIGITS <= MOST_STREAMED_DIGIT_ROWS {
            // A few rows wait for memory, and the hardware's prefetcher stops at the end of every page.
            _mm_prefetch::<_MM_HINT_T0>(lines.wrapping_byte_add(PREFETCH_BYTES).cast());
            _mm_prefetch::<_MM_HINT_T0>(lines.wrapping_byte_add(PREFETCH_BYTES + LINE_BYTES).cast());
        }
        // SAFETY: the group has two lines for each of these steps.
        let line = unsafe { [_mm512_load_si512(lines), _mm512_load_si512(lines.add(1))] };
        // SAFETY: at most one past the last line.
        lines = unsafe { lines.add(2) };
        for half in 0..if PACKED { 2 } else { 1 } {
            let weights = line.map(|line| match (PACKED, half) {
                (false, _) => line,
                (true, 0) => _mm512_and_si512(line, low_nibbles),
                (true, _) => _mm512_and_si512(_mm512_srli_epi16::<4>(line), low_nibbles),
            });
            for d in 0..DIGITS {
                for t in 0..ROWS {
                    // SAFETY: `values` has `lanes` lanes of ROWS * DIGITS words (asserted above).
                    let four = _mm512_set1_epi32(unsafe { x.add(d * ROWS + t).read_unaligned() });
                    for i in 0..2 {
                        dots[t][d][i] = _mm512_dpbusd_epi32(dots[t][d][i], weights[i], four);
                    }
                }
            }
            // SAFETY: at most one past the last lane.
            x = unsafe { x.add(DIGITS * ROWS) };
        }
    }
    for t in 0..ROWS {
        for i in 0..2 {
            let dot = if DIGITS == 2 {
                _mm512_add_epi32(_mm512_slli_epi32::<LOW_DIGIT_BITS>(dots[t][0][i]), dots[t][1][i])
            } else {
                dots[t][0][i]
            };
            let scale = _mm512_mul_ps(group.scales[i], _mm512_set1_ps(scales[t]));
            let to = &mut out[t][i * TILE..][..TILE];
            store(to, _mm512_fmadd_ps(scale, _mm512_cvtepi32_ps(dot), load(to)));
        }
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_dot_f32(tile: &QuantTile<'_>, x: &FloatRows<'_>, first_row: usize, out: &mut [[f32; PAIR]]) {
    in_row_blocks!(tile, x, first_row, out;
        4 => int4_f32_block::<4>, 2 => int4_f32_block::<2>, 1 => int4_f32_block::<1>);
}

/// `ROWS` tokens over one tile, four sums per token whatever `ROWS` is; one half of the outputs at a time.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn int4_f32_block<const ROWS: usize>(
    tile: &QuantTile<'_>,
    x: &FloatRows<'_>,
    row: usize,
    out: &mut [[f32; PAIR]],
) {
    let rows: [&[f32]; ROWS] = std::array::from_fn(|t| &x.values[(row + t) * x.width..][..x.width]);
    let nibble = _mm512_set1_epi32(15);
    for half in 0..2 {
        let mut totals = [_mm512_setzero_ps(); ROWS];
        for (g, lines) in tile.lines.chunks_exact(group_lines(tile.bits, tile.group_size)).enumerate() {
            let (constants, lines) = lines.split_at(CONSTANT_LINES);
            let (scales, minus_zeros) = group_constants(constants);
            // Sign-extended again, and as floats.
            let minus_zeros =
                _mm512_cvtepi32_ps(_mm512_srai_epi32::<16>(_mm512_slli_epi32::<16>(minus_zeros[half])));
            let mut sums = [[_mm512_setzero_ps(); 4]; ROWS];
            for (l, pair) in lines.chunks_exact(2).enumerate() {
                let input = g * tile.group_size + l * 2 * LANE_INPUTS;
                // SAFETY: a line is one register.
                let line = unsafe { _mm512_load_si512(pair[half].0.as_ptr().cast()) };
                for j in 0..2 * LANE_INPUTS {
                    // Inputs 0..4 are the low nibbles of the word's bytes, 4..8 the high ones.
                    let shift = _mm512_set1_epi32((8 * (j % 4) + 4 * (j / 4)) as i32);
                    let q = _mm512_and_si512(_mm512_srlv_epi32(line, shift), nibble);
                    let weight = _mm512_add_ps(_mm512_cvtepi32_ps(q), minus_zeros);
                    for t in 0..ROWS {
                        // SAFETY: `input + 8 <= x.width`: the line lies inside group `g`.
                        let value = unsafe { *rows[t].get_unchecked(input + j) };
                        sums[t][j % 4] = _mm512_fmadd_ps(weight, _mm512_set1_ps(value), sums[t][j % 4]);
                    }
                }
            }
            for t in 0..ROWS {
                totals[t] = _mm512_fmadd_ps(scales[half], add4(sums[t]), totals[t]);
            }
        }
        for (out, total) in out.iter_mut().zip(totals) {
            store(&mut out[half * TILE..], total);
        }
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
fn attend_block(query: &[f32], block: &KvBlock<'_>, state: &mut SoftmaxState, accumulator: &mut [f32]) {
    let mut sums = [_mm512_setzero_ps(); 4];
    for (query, keys) in query.chunks(4).zip(block.keys.chunks(4 * TILE)) {
        for ((sum, query), keys) in sums.iter_mut().zip(query).zip(keys.chunks_exact(TILE)) {
            *sum = _mm512_fmadd_ps(_mm512_set1_ps(*query), load(keys), *sum);
        }
    }
    let visible = ((1u32 << block.visible) - 1) as __mmask16;
    let scores = _mm512_mask_mov_ps(_mm512_set1_ps(f32::NEG_INFINITY), visible, add4(sums));
    let max = state.max.max(_mm512_reduce_max_ps(scores));
    let shrink = portable::exp(state.max - max);
    let weights = _mm512_maskz_mov_ps(visible, exp(_mm512_sub_ps(scores, _mm512_set1_ps(max))));
    *state = SoftmaxState { max, sum: state.sum * shrink + _mm512_reduce_add_ps(weights) };
    let mut weight = [0.0; TILE];
    store(&mut weight, weights);
    let (weight, head_dim) = (&weight[..block.visible], query.len());
    let whole = head_dim / TILE * TILE;
    for (d, accumulator) in accumulator.chunks_mut(TILE).enumerate() {
        if d * TILE == whole {
            // The remainder of a head that is not a multiple of the register.
            for (e, total) in accumulator.iter_mut().enumerate() {
                *total *= shrink;
                for (p, weight) in weight.iter().enumerate() {
                    *total += weight * block.values[p * head_dim + whole + e];
                }
            }
            continue;
        }
        let mut total = _mm512_mul_ps(load(accumulator), _mm512_set1_ps(shrink));
        for (p, weight) in weight.iter().enumerate() {
            let values = load(&block.values[p * head_dim + d * TILE..][..TILE]);
            total = _mm512_fmadd_ps(_mm512_set1_ps(*weight), values, total);
        }
        store(accumulator, total);
    }
}

#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vnni,avx2,fma,f16c")]
fn f16_to_f32(from: &[u16], to: &mut [f32]) {
    let (from, from_rest) = from.as_chunks::<TILE>();
    let (to, to_rest) = to.as_chunks_mut::<TILE>();
    for (from, to) in from.iter().zip(to) {
        // SAFETY: `from` has TILE elements.
        store(to, _mm512_cvtph_ps(unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }));
    }
    for (from, to) in from_rest.iter().zip(to_rest) {
        *to = half::f16::from_bits(*from).to_f32();
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
