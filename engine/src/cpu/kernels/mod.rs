//! Inner loops, one table of them per instruction set.
//!
//! [`Kernels`] is a table of functions chosen once at run time. Every table computes the same things:
//! [`portable`] is plain Rust and the definition, `avx2` and `avx512` are held to it by the tests
//! below. Integer results (rounded activations, their sums, int4 dots) are identical in all of them;
//! float results differ by rounding only.
//!
//! Weights come in *tiles* of [`TILE`] outputs, so that one vector register holds one partial sum per
//! output and no horizontal sum is ever needed. For every token and tile the order of additions is fixed:
//! a result does not depend, in any bit, on which other tokens share the call.

/// Runs `$block` over all rows of `$out`, as many at a time as the listed sizes allow (the last is 1).
#[cfg(target_arch = "x86_64")]
macro_rules! in_row_blocks {
    ($tile:expr, $x:expr, $first_row:expr, $out:expr; $($rows:literal => $block:expr),+) => {{
        let mut done = 0;
        $(while $out.len() - done >= $rows {
            $block($tile, $x, $first_row + done, &mut $out[done..done + $rows]);
            done += $rows;
        })+
    }};
}

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;
#[cfg(test)]
mod tests;

/// Outputs in one weight tile.
pub const TILE: usize = 16;

/// Inputs covered by one 64-byte line of a tile: 16 outputs of 8 nibbles each.
pub const LINE_INPUTS: usize = 8;

/// Bytes of one line of an int4 tile.
pub const LINE_BYTES: usize = 64;

/// An instruction set the kernels were written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// x86-64 with AVX-512 F, BW, VL and VNNI (2019 and later).
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 3] = [Self::Portable, Self::Avx2, Self::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::Avx512 => false,
        }
    }

    /// The fastest that this machine has.
    pub fn best() -> Self {
        Self::ALL.into_iter().rev().find(|isa| isa.is_available()).unwrap_or(Self::Portable)
    }

    /// Short name for logs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }
}

/// Int4 weights of [`TILE`] outputs.
///
/// A line is 16 little-endian words, one per output; byte `j` of a word holds the weight of input
/// `k0 + j` in its low nibble and of input `k0 + 4 + j` in its high one. So masking the low nibbles of
/// a line gives, per output, four consecutive inputs as bytes: what `vpdpbusd` multiplies.
#[derive(Clone, Copy, Debug)]
pub struct Int4Tile<'a> {
    /// Inputs that share a scale: 32, 64 or 128.
    pub group_size: usize,
    /// `[groups][group_size / 8][64]`.
    pub weights: &'a [u8],
    /// fp16 bits, `[groups][16]`.
    pub scales: &'a [u16],
    /// `[groups][16]`, each 0..=15.
    pub zeros: &'a [u8],
}

impl Int4Tile<'_> {
    fn groups(&self) -> usize {
        self.scales.len() / TILE
    }

    fn inputs(&self) -> usize {
        self.groups() * self.group_size
    }

    fn check(&self) {
        assert!(matches!(self.group_size, 32 | 64 | 128));
        assert_eq!(self.scales.len(), self.zeros.len());
        assert_eq!(self.weights.len(), self.inputs() / LINE_INPUTS * LINE_BYTES);
    }
}

/// How a plain weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseFormat {
    /// IEEE half, 2 bytes.
    F16,
    /// bfloat16, 2 bytes.
    Bf16,
    /// Single, 4 bytes.
    F32,
}

impl DenseFormat {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 | Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }
}

/// Plain weights of [`TILE`] outputs: `[inputs][16]` elements.
#[derive(Clone, Copy, Debug)]
pub struct DenseTile<'a> {
    /// Element format.
    pub format: DenseFormat,
    /// The elements, in the machine's byte order.
    pub weights: &'a [u8],
}

impl DenseTile<'_> {
    fn inputs(&self) -> usize {
        self.weights.len() / (TILE * self.format.bytes())
    }
}

/// Token rows in `f32`, `[rows][width]`.
#[derive(Clone, Copy, Debug)]
pub struct FloatRows<'a> {
    /// Elements of one row.
    pub width: usize,
    /// All rows.
    pub values: &'a [f32],
}

/// Token rows rounded to pairs of int8 digits in groups: `x = scale * (128 * high + low)`.
///
/// The rule, in every instruction set: `scale = amax / 16256`, `v = x * (16256 / amax)` rounded to
/// nearest, ties to even; `high = (v + 64) >> 7`, `low = v - 128 * high`. So `high` is -127..=127 and `low`
/// -64..=63, and each is what an 8-bit dot product takes. One digit alone is not enough: it moves
/// log-probabilities of the reference checkpoints by 0.06 to 0.11 nat on average, two by 0.002. Reading the
/// weights, not multiplying, is what decoding waits for, and both digits share one read.
///
/// A group whose `amax` is below [`SMALLEST_AMAX`] is zero; one with a NaN or an infinity has a NaN
/// scale, so that the fault shows instead of becoming a plausible number.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows<'a> {
    /// Elements of one row.
    pub width: usize,
    /// Elements that share a scale.
    pub group_size: usize,
    /// `[rows][width / 8][high, low][8]`.
    pub digits: &'a [i8],
    /// `[rows][width / group_size]`.
    pub scales: &'a [f32],
    /// Sum of each group's `v`, `[rows][width / group_size]`.
    pub sums: &'a [i32],
}

/// Digits of one element; see [`QuantizedRows`].
pub const DIGITS: usize = 2;

/// Bits of the low digit.
const LOW_DIGIT_BITS: u32 = 7;

/// The largest `v` of [`QuantizedRows`]: 127 in the high digit.
const LARGEST_ROUNDED: f32 = 16256.0;

/// Below this a group of activations counts as zero: `16256 / amax` would overflow.
pub const SMALLEST_AMAX: f32 = 1e-30;

type Outputs<'a> = &'a mut [[f32; TILE]];

/// `(row, group size, digits, scales, sums)`.
type QuantizeRow = unsafe fn(&[f32], usize, &mut [i8], &mut [f32], &mut [i32]);

/// The functions of one instruction set.
///
/// The pointers are unsafe because calling one on a machine without its instruction set is undefined;
/// [`Kernels::new`] is the only way to get a table and checks that, so the methods are safe.
struct Table {
    quantize_row: QuantizeRow,
    int4_dot_i8: unsafe fn(&Int4Tile<'_>, &QuantizedRows<'_>, usize, Outputs<'_>),
    int4_dot_f32: unsafe fn(&Int4Tile<'_>, &FloatRows<'_>, usize, Outputs<'_>),
    dense_dot: unsafe fn(&DenseTile<'_>, &FloatRows<'_>, usize, Outputs<'_>),
    rms_norm: unsafe fn(&[f32], &[f32], f32, &mut [f32]),
    silu_mul: unsafe fn(&[f32], &[f32], &mut [f32]),
}

/// The kernels of one instruction set that this machine has.
#[derive(Clone, Copy)]
pub struct Kernels {
    isa: Isa,
    table: &'static Table,
}

impl Kernels {
    /// The kernels for `isa`; `None` when this machine does not have it.
    pub fn new(isa: Isa) -> Option<Self> {
        let table = match isa {
            _ if !isa.is_available() => return None,
            Isa::Portable => &portable::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::Avx512 => return None,
        };
        Some(Self { isa, table })
    }

    /// Which instruction set these are for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rounds one row in groups of `group_size`; see [`QuantizedRows`] for the rule.
    pub fn quantize_row(
        &self,
        x: &[f32],
        group_size: usize,
        digits: &mut [i8],
        scales: &mut [f32],
        sums: &mut [i32],
    ) {
        let groups = x.len() / group_size;
        assert!(group_size.is_multiple_of(32) && x.len() == groups * group_size);
        assert!(digits.len() == DIGITS * x.len() && scales.len() == groups && sums.len() == groups);
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.quantize_row)(x, group_size, digits, scales, sums) }
    }

    /// `out[t][n] = sum_g s[g][n] * sx[g] * (sum_k q[k][n] * v[k] - z[g][n] * sum_k v[k])` for rows
    /// `first_row + t`.
    pub fn int4_dot_i8(
        &self,
        tile: &Int4Tile<'_>,
        x: &QuantizedRows<'_>,
        first_row: usize,
        out: Outputs<'_>,
    ) {
        tile.check();
        let (rows, groups) = (first_row + out.len(), tile.groups());
        assert!(x.width == tile.inputs() && x.group_size == tile.group_size);
        assert!(x.digits.len() >= rows * x.width * DIGITS);
        assert!(x.scales.len() >= rows * groups && x.sums.len() >= rows * groups);
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.int4_dot_i8)(tile, x, first_row, out) }
    }

    /// `out[t][n] = sum_g s[g][n] * sum_k (q[k][n] - z[g][n]) * x[k]` for rows `first_row + t`.
    pub fn int4_dot_f32(&self, tile: &Int4Tile<'_>, x: &FloatRows<'_>, first_row: usize, out: Outputs<'_>) {
        tile.check();
        assert!(x.width == tile.inputs() && x.values.len() >= (first_row + out.len()) * x.width);
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.int4_dot_f32)(tile, x, first_row, out) }
    }

    /// `out[t][n] = sum_k w[k][n] * x[k]` for rows `first_row + t`.
    pub fn dense_dot(&self, tile: &DenseTile<'_>, x: &FloatRows<'_>, first_row: usize, out: Outputs<'_>) {
        assert!(tile.weights.len().is_multiple_of(TILE * tile.format.bytes()));
        assert!(x.width == tile.inputs() && x.values.len() >= (first_row + out.len()) * x.width);
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.dense_dot)(tile, x, first_row, out) }
    }

    /// `out = x / sqrt(mean(x^2) + eps) * weight`.
    pub fn rms_norm(&self, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
        assert!(x.len() == weight.len() && x.len() == out.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.rms_norm)(x, weight, eps, out) }
    }

    /// `out = gate / (1 + exp(-gate)) * up`.
    pub fn silu_mul(&self, gate: &[f32], up: &[f32], out: &mut [f32]) {
        assert!(gate.len() == up.len() && gate.len() == out.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.silu_mul)(gate, up, out) }
    }
}

/// Constants of the exponential that all tables share: `exp(x) = 2^n * exp(r)` with
/// `n = round(x / ln 2)` and a Taylor polynomial of degree 7 in `r`, |r| <= ln 2 / 2, whose remainder
/// is below 6e-9. Arguments are clamped to where the result is a normal number, so `exp(-inf)` is
/// about 1e-38 and not 0; every use multiplies it by something that makes the difference vanish.
mod exp {
    pub(super) const LOWEST: f32 = -87.0;
    pub(super) const HIGHEST: f32 = 88.0;
    pub(super) const LOG2_E: f32 = std::f32::consts::LOG2_E;
    /// `ln 2` in two parts: the first has few bits, so `n * LN2_HIGH` is exact.
    pub(super) const LN2_HIGH: f32 = 0.693_359_4;
    pub(super) const LN2_LOW: f32 = -2.121_944_4e-4;
    /// 1/7!, 1/6!, ... 1/0!.
    pub(super) const TAYLOR: [f32; 8] =
        [1.0 / 5040.0, 1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0];
}
