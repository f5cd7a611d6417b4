//! Inner loops, one table of them per instruction set.
//!
//! [`Kernels`] is a table of functions chosen once at run time. Every table computes the same things:
//! [`portable`] is plain Rust and the definition, `avx2`, `avx512` and `neon` are held to it by the tests
//! below. Integer results (rounded activations, their sums, int4 dots) are identical in all of them;
//! float results differ by rounding only.
//!
//! Weights come in *tiles* of [`TILE`] outputs, integer ones of [`PAIR`], so that one or two vector registers
//! hold one partial sum per output and no horizontal sum is ever needed. For every token and tile the order of additions is fixed:
//! a result does not depend, in any bit, on which other tokens share the call.

/// Runs `$block` over all rows of `$out`, as many at a time as the listed sizes allow (the last is 1).
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
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
#[cfg(target_arch = "aarch64")]
mod neon;
mod portable;
#[cfg(test)]
mod tests;

/// Outputs in one weight tile.
pub const TILE: usize = 16;

/// Outputs of one tile of integer weights: two registers, so that an activation loaded once serves both.
pub const PAIR: usize = 2 * TILE;

/// Bytes of one line of integer weights: one register.
pub const LINE_BYTES: usize = 64;

/// Consecutive inputs that one 32-bit lane of a dot-product instruction multiplies.
pub const LANE_INPUTS: usize = 4;

/// An instruction set the kernels were written for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isa {
    /// Plain Rust, any machine.
    Portable,
    /// AArch64 with dot products (2018 and later).
    Neon,
    /// x86-64 with AVX2, FMA and F16C (2013 and later).
    Avx2,
    /// The same with AVX-VNNI (2021 and later; also where AVX-512 is not).
    AvxVnni,
    /// x86-64 with AVX-512 F, BW, VL and VNNI (2019 and later).
    Avx512,
}

impl Isa {
    /// All of them, slowest first.
    pub const ALL: [Self; 5] = [Self::Portable, Self::Neon, Self::Avx2, Self::AvxVnni, Self::Avx512];

    /// Whether this machine has it.
    pub fn is_available(self) -> bool {
        match self {
            Self::Portable => true,
            #[cfg(target_arch = "aarch64")]
            Self::Neon => {
                cfg!(target_endian = "little") && std::arch::is_aarch64_feature_detected!("dotprod")
            }
            #[cfg(not(target_arch = "aarch64"))]
            Self::Neon => false,
            #[cfg(target_arch = "x86_64")]
            Self::Avx2 => {
                is_x86_feature_detected!("avx2")
                    && is_x86_feature_detected!("fma")
                    && is_x86_feature_detected!("f16c")
            }
            #[cfg(target_arch = "x86_64")]
            Self::AvxVnni => Self::Avx2.is_available() && is_x86_feature_detected!("avxvnni"),
            #[cfg(target_arch = "x86_64")]
            Self::Avx512 => {
                Self::Avx2.is_available()
                    && is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("avx512vl")
                    && is_x86_feature_detected!("avx512vnni")
            }
            #[cfg(not(target_arch = "x86_64"))]
            Self::Avx2 | Self::AvxVnni | Self::Avx512 => false,
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
            Self::Neon => "neon",
            Self::Avx2 => "avx2",
            Self::AvxVnni => "avx-vnni",
            Self::Avx512 => "avx512",
        }
    }
}

/// Width of an integer weight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WeightBits {
    /// 0..=15; a line covers eight inputs.
    Four,
    /// 0..=255; a line covers four inputs.
    Eight,
}

impl WeightBits {
    /// Inputs covered by one line of a tile.
    pub fn line_inputs(self) -> usize {
        match self {
            Self::Four => 2 * LANE_INPUTS,
            Self::Eight => LANE_INPUTS,
        }
    }
}

/// Integer weights of [`PAIR`] outputs: `w[k][n] = scale[g][n] * (q[k][n] - zero[g][n])`.
///
/// One stream of whole lines, read once from start to end. Per group: a line of 32 scales (fp16), a line of 32
/// negated zero points (16 bits each), then the weights: for each step along the inputs a line of outputs 0..16 and
/// one of outputs 16..32.
///
/// Such a line is 16 little-endian words, one per output. With eight bits, byte `j` of a word is the weight of
/// input `k0 + j`. With four, its low nibble is that of input `k0 + j` and its high one that of input
/// `k0 + 4 + j`. So a line, or the low nibbles of it, holds four consecutive inputs of every output as
/// bytes: what `vpdpbusd` multiplies.
#[derive(Clone, Copy, Debug)]
pub struct QuantTile<'a> {
    /// Width of a weight.
    pub bits: WeightBits,
    /// Inputs that share a scale: 32, 64 or 128.
    pub group_size: usize,
    /// The groups, one after another.
    pub lines: &'a [Line],
}

/// One cache line.
#[derive(Clone, Copy, Debug)]
#[repr(C, align(64))]
pub struct Line(pub [u8; LINE_BYTES]);

/// Lines of scales and zero points before the weights of a group.
pub const CONSTANT_LINES: usize = 2;

/// Lines of one group of a [`QuantTile`].
pub fn group_lines(bits: WeightBits, group_size: usize) -> usize {
    CONSTANT_LINES + 2 * group_size / bits.line_inputs()
}

/// How the weights of a group lie before a kernel that unpacks those of four bits for many rows.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod format {
    /// Four bits each, as in the tile.
    pub(super) const NIBBLES: usize = 0;
    /// A byte each, 0..=15: unpacked.
    pub(super) const SMALL_BYTES: usize = 1;
    /// A byte each, 0..=255, as in the tile.
    pub(super) const BYTES: usize = 2;

    /// [`LANE_INPUTS`](super::LANE_INPUTS) that one line of weights holds.
    pub(super) const fn lanes_per_step(format: usize) -> usize {
        if format == NIBBLES { 2 } else { 1 }
    }
}

impl<'a> QuantTile<'a> {
    fn groups(&self) -> usize {
        self.lines.len() / group_lines(self.bits, self.group_size)
    }

    fn inputs(&self) -> usize {
        self.groups() * self.group_size
    }

    /// Scales (fp16 bits), negated zero points and weight lines of group `g`.
    fn group(&self, g: usize) -> ([u16; PAIR], [i16; PAIR], &'a [Line]) {
        let len = group_lines(self.bits, self.group_size);
        let (constants, weights) = self.lines[g * len..][..len].split_at(CONSTANT_LINES);
        let word = |line: &Line, n: usize| u16::from_le_bytes([line.0[2 * n], line.0[2 * n + 1]]);
        (
            std::array::from_fn(|n| word(&constants[0], n)),
            std::array::from_fn(|n| word(&constants[1], n) as i16),
            weights,
        )
    }

    fn check(&self) {
        assert!(matches!(self.group_size, 32 | 64 | 128));
        assert!(self.lines.len().is_multiple_of(group_lines(self.bits, self.group_size)));
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

/// How many int8 digits an activation is rounded to: `x = scale * v`.
///
/// The rule, in every instruction set: `scale = amax / largest`, `v = x * (largest / amax)` rounded to nearest, ties
/// to even, with `amax` the largest magnitude of the group. A group whose `amax` is below [`SMALLEST_AMAX`]
/// is zero; one with a NaN or an infinity has a NaN scale, so that the fault shows instead of becoming a
/// plausible number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Digits {
    /// `v` is -127..=127.
    One,
    /// `v = 128 * high + low`: `high = (v + 64) >> 7` is -127..=127, `low` -64..=63, and each is what an
    /// 8-bit dot product takes. Twice the multiplications, the same weights read.
    Two,
}

impl Digits {
    /// As a number.
    pub fn count(self) -> usize {
        match self {
            Self::One => 1,
            Self::Two => 2,
        }
    }

    /// The largest `v`.
    fn largest(self) -> f32 {
        match self {
            Self::One => 127.0,
            Self::Two => 16256.0,
        }
    }

    /// Token rows in a whole block; see [`QuantizedRows`].
    pub fn block_rows(self) -> usize {
        BLOCK_DIGIT_ROWS / self.count()
    }
}

/// Digits of different rows in one block: with two tiles as many sums as 24 registers hold.
const BLOCK_DIGIT_ROWS: usize = 12;

/// Bits of the low digit.
const LOW_DIGIT_BITS: u32 = 7;

/// Token rows rounded to int8 digits in groups.
///
/// Rows are stored in blocks of [`Digits::block_rows`], the last block being as long as what remains. Inside a
/// block of `T` rows everything that a kernel reads in turn is consecutive:
/// digits are `[groups][group_size / 4][digits, high first][T][4 inputs]`, scales `[groups][T]`, sums
/// `[groups][digits][T]`. Blocks follow one another without a gap.
#[derive(Clone, Copy, Debug)]
pub struct QuantizedRows<'a> {
    /// Token rows.
    pub rows: usize,
    /// Elements of one row.
    pub width: usize,
    /// Elements that share a scale.
    pub group_size: usize,
    /// Digits of an element.
    pub digits: Digits,
    /// `rows * width * digits` numbers.
    pub values: &'a [i8],
    /// One per row and group.
    pub scales: &'a [f32],
    /// Sum of each digit over a group: what a weight's zero point multiplies.
    pub sums: &'a [i32],
}

impl QuantizedRows<'_> {
    fn groups(&self) -> usize {
        self.width / self.group_size
    }

    /// Rows of the block that starts at `first_row`.
    fn rows_of_block(&self, first_row: usize) -> usize {
        self.digits.block_rows().min(self.rows - first_row)
    }

    /// Digits, scales and sums of group `g` of the block of `rows` rows that starts at `first_row`.
    fn group(&self, first_row: usize, rows: usize, g: usize) -> (&[i8], &[f32], &[i32]) {
        let (digits, groups) = (self.digits.count(), self.groups());
        let len = rows * self.group_size * digits;
        (
            &self.values[first_row * self.width * digits + g * len..][..len],
            &self.scales[first_row * groups + g * rows..][..rows],
            &self.sums[(first_row * groups + g * rows) * digits..][..rows * digits],
        )
    }
}

/// Where one group of a block of rows is rounded to; see [`QuantizedRows`] for the layout.
#[derive(Debug)]
pub struct QuantizedGroup<'a> {
    /// Digits of an element.
    pub digits: Digits,
    /// `[group_size / 4][digits][T][4]`.
    pub values: &'a mut [i8],
    /// `[T]`.
    pub scales: &'a mut [f32],
    /// `[digits][T]`.
    pub sums: &'a mut [i32],
}

impl QuantizedGroup<'_> {
    /// `(rows, group size)`.
    fn shape(&self) -> (usize, usize) {
        let rows = self.scales.len();
        (rows, self.values.len() / (rows * self.digits.count()))
    }
}

/// Below this a group of activations counts as zero: `16256 / amax` would overflow.
pub const SMALLEST_AMAX: f32 = 1e-30;

type Outputs<'a> = &'a mut [[f32; TILE]];

/// The functions of one instruction set.
///
/// The pointers are unsafe because calling one on a machine without its instruction set is undefined;
/// [`Kernels::new`] is the only way to get a table and checks that, so the methods are safe.
struct Table {
    quantize_group: unsafe fn(&[f32], usize, &mut QuantizedGroup<'_>),
    quant_dot: unsafe fn(&QuantTile<'_>, &QuantizedRows<'_>, usize, &mut [[f32; PAIR]]),
    int4_dot_f32: unsafe fn(&QuantTile<'_>, &FloatRows<'_>, usize, &mut [[f32; PAIR]]),
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
            #[cfg(target_arch = "aarch64")]
            Isa::Neon => &neon::TABLE,
            #[cfg(not(target_arch = "aarch64"))]
            Isa::Neon => return None,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::AvxVnni => &avx2::VNNI_TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => return None,
        };
        Some(Self { isa, table })
    }

    /// Which instruction set these are for.
    pub fn isa(&self) -> Isa {
        self.isa
    }

    /// Rounds one group of several rows, row `t` of which starts at `x[t * stride]`; see [`Digits`] for the rule.
    pub fn quantize_group(&self, x: &[f32], stride: usize, to: &mut QuantizedGroup<'_>) {
        let (rows, group_size) = to.shape();
        assert!(rows > 0 && group_size.is_multiple_of(32) && to.sums.len() == rows * to.digits.count());
        assert!(to.values.len() == rows * group_size * to.digits.count());
        assert!(x.len() >= (rows - 1) * stride + group_size);
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.quantize_group)(x, stride, to) }
    }

    /// One tile for whole blocks of rows, from `first_row` on:
    /// `out[t][n] = sum_g s[g][n] * sx[g] * (sum_k q[k][n] * v[k] - z[g][n] * sum_k v[k])`.
    pub fn quant_dot(
        &self,
        tile: &QuantTile<'_>,
        x: &QuantizedRows<'_>,
        first_row: usize,
        out: &mut [[f32; PAIR]],
    ) {
        let (end, block_rows) = (first_row + out.len(), x.digits.block_rows());
        tile.check();
        assert!(x.width == tile.inputs() && x.group_size == tile.group_size);
        assert!(first_row.is_multiple_of(block_rows) && (end.is_multiple_of(block_rows) || end == x.rows));
        assert!(end <= x.rows && x.values.len() == x.rows * x.width * x.digits.count());
        assert!(x.scales.len() == x.rows * x.groups());
        assert!(x.sums.len() == x.rows * x.groups() * x.digits.count());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.quant_dot)(tile, x, first_row, out) }
    }

    /// `out[t][n] = sum_g s[g][n] * sum_k (q[k][n] - z[g][n]) * x[k]` for rows `first_row + t`.
    pub fn int4_dot_f32(
        &self,
        tile: &QuantTile<'_>,
        x: &FloatRows<'_>,
        first_row: usize,
        out: &mut [[f32; PAIR]],
    ) {
        tile.check();
        assert_eq!(tile.bits, WeightBits::Four);
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
