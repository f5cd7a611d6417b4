//! Inner loops of attention, one table of them per instruction set.
//!
//! `portable` is plain Rust and the definition; `avx2` and `avx512` are held to it by the tests. Another
//! instruction set is another file with a `TABLE`, named in [`AttentionKernels::new`].
//!
//! Within one instruction set a query's result is the same to the last bit whatever it is computed
//! together with: in [`multiply`](AttentionKernels::multiply) every element is one chain of additions over
//! `k` in ascending order, in every size of register block.

#[cfg(target_arch = "x86_64")]
use super::avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512;
use super::portable;
use crate::cpu::kernels::Isa;
pub use crate::cpu::kv_cache::Stored;

/// Elements that are fetched with each row of a widened factor: a cache line of fp16, half a line of int8. So
/// with the rows of a block's keys all of the block is fetched.
#[cfg(target_arch = "x86_64")]
pub(super) const FETCHED_WITH_A_ROW: usize = 32;

/// Elements that the kernels handle together; widths of products are multiples of it.
pub const LANES: usize = 16;

/// Running softmax of one query: scores are in powers of two, `weight = 2^(score - max)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SoftmaxState {
    /// Largest score.
    pub max: f32,
    /// Sum of the weights.
    pub sum: f32,
}

impl SoftmaxState {
    /// Nothing seen yet.
    pub const EMPTY: Self = Self { max: f32::NEG_INFINITY, sum: 0.0 };
}

/// The right factor of a product.
#[derive(Clone, Copy, Debug)]
pub enum Factor<'a> {
    /// Single precision.
    F32 {
        /// The factor.
        values: &'a [f32],
        /// What will be read later: a stretch of it is fetched for each row of `values`.
        ahead: Stored<'a>,
    },
    /// As the cache has it, widened as it is read; int8 digits count as what they are, without a scale.
    Stored {
        /// The factor.
        values: Stored<'a>,
        /// What will be read next: it is fetched from the same places on as `values` is read.
        ahead: Stored<'a>,
    },
}

impl Factor<'_> {
    fn len(&self) -> usize {
        match self {
            Self::F32 { values, .. } => values.len(),
            Self::Stored { values, .. } => values.len(),
        }
    }
}

/// Two matrices to be multiplied, both row by row: `a` is `[rows][depth]`, `b` is `[depth][columns]`.
#[derive(Clone, Copy, Debug)]
pub struct Product<'a> {
    /// Rows of `a` and of the result; at least one.
    pub rows: usize,
    /// Columns of `a`, rows of `b`; at least one.
    pub depth: usize,
    /// Columns of `b` and of the result, a multiple of [`LANES`].
    pub columns: usize,
    /// Left factor.
    pub a: &'a [f32],
    /// Elements from one row of `a` to the next.
    pub a_stride: usize,
    /// Right factor.
    pub b: Factor<'a>,
    /// Elements from one row of `b` to the next.
    pub b_stride: usize,
    /// Whether the product is added to what is in the result.
    pub add: bool,
}

/// `(head, cosines, sines, scale, result)`.
type Rotate = unsafe fn(&[f32], &[f32], &[f32], f32, &mut [f32]);

/// The functions of one instruction set.
///
/// The pointers are unsafe because calling one on a machine without its instruction set is undefined;
/// [`AttentionKernels::new`] is the only way to get a table and checks that, so the methods are safe.
pub(super) struct Table {
    pub(super) multiply: unsafe fn(&Product<'_>, &mut [f32], usize),
    pub(super) softmax: unsafe fn(&mut [f32], usize) -> SoftmaxState,
    pub(super) merge: unsafe fn(&mut [f32], &mut SoftmaxState, &[f32], SoftmaxState),
    pub(super) widen_f16: unsafe fn(&[u16], usize, &mut [f32], usize),
    pub(super) widen_int8: unsafe fn(&[i8], usize, &mut [f32], usize),
    pub(super) narrow: unsafe fn(&[f32], &mut [u16]),
    pub(super) quantize: unsafe fn(&[f32], &mut [i8]) -> u16,
    pub(super) scale: unsafe fn(&mut [f32], &[f32]),
    pub(super) rotate: Rotate,
}

/// The attention kernels of one instruction set that this machine has.
#[derive(Clone, Copy)]
pub struct AttentionKernels {
    table: &'static Table,
}

impl AttentionKernels {
    /// The kernels for `isa`; `None` when this machine does not have it.
    pub fn new(isa: Isa) -> Option<Self> {
        let table = match isa {
            _ if !isa.is_available() => return None,
            // Written for x86-64 so far; elsewhere the compiler vectorizes the plain ones.
            Isa::Portable | Isa::Neon => &portable::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx2 | Isa::AvxVnni => &avx2::TABLE,
            #[cfg(target_arch = "x86_64")]
            Isa::Avx512 => &avx512::TABLE,
            #[cfg(not(target_arch = "x86_64"))]
            Isa::Avx2 | Isa::AvxVnni | Isa::Avx512 => return None,
        };
        Some(Self { table })
    }

    /// `c = a * b`, or `c += a * b` where the product says so; rows of `c` are `c_stride` elements apart.
    pub fn multiply(&self, product: &Product<'_>, c: &mut [f32], c_stride: usize) {
        let Product { rows, depth, columns, a, a_stride, b, b_stride, .. } = *product;
        assert!(rows > 0 && depth > 0 && columns.is_multiple_of(LANES));
        assert!(a.len() >= (rows - 1) * a_stride + depth && b.len() >= (depth - 1) * b_stride + columns);
        assert!(c.len() >= (rows - 1) * c_stride + columns && c_stride >= columns);
        // SAFETY: a table exists only where its instruction set was detected (`new`); the shapes fit.
        unsafe { (self.table.multiply)(product, c, c_stride) }
    }

    /// Turns the first `visible` scores into weights relative to their own maximum. Nothing beyond them
    /// has an influence; what stands there afterwards, up to the next multiple of [`LANES`], is arbitrary.
    pub fn softmax(&self, scores: &mut [f32], visible: usize) -> SoftmaxState {
        assert!(visible > 0 && scores.len() >= visible.next_multiple_of(LANES));
        // SAFETY: a table exists only where its instruction set was detected (`new`); the scores are there.
        unsafe { (self.table.softmax)(scores, visible) }
    }

    /// Adds what a query found in one chunk to what it found in those before: weighted sums of values
    /// and their state.
    pub fn merge(
        &self,
        total: &mut [f32],
        total_state: &mut SoftmaxState,
        part: &[f32],
        part_state: SoftmaxState,
    ) {
        assert_eq!(total.len(), part.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.merge)(total, total_state, part, part_state) }
    }

    /// Widens rows of `width` numbers, exactly; rows of the result are `to_stride` elements apart.
    pub fn widen(&self, from: Stored<'_>, width: usize, to: &mut [f32], to_stride: usize) {
        let rows = from.len() / width;
        assert!(rows > 0 && from.len() == rows * width);
        assert!(to_stride >= width && to.len() >= (rows - 1) * to_stride + width);
        // SAFETY: a table exists only where its instruction set was detected (`new`); the rows fit.
        unsafe {
            match from {
                Stored::F16(bits) => (self.table.widen_f16)(bits, width, to, to_stride),
                Stored::Int8(digits) => (self.table.widen_int8)(digits, width, to, to_stride),
            }
        }
    }

    /// Rounds to fp16. What it cannot hold is clamped to its largest number: an infinite key would turn a
    /// whole sequence into NaN.
    pub fn narrow(&self, from: &[f32], to: &mut [u16]) {
        assert_eq!(from.len(), to.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.narrow)(from, to) }
    }

    /// Rounds to int8 digits from -127 to 127, to nearest even, and returns their scale as fp16 bits: the largest
    /// magnitude over 127. What fp16 cannot hold is clamped as in [`narrow`](Self::narrow), and numbers too small
    /// for a scale become zero; where one is NaN, the scale is.
    pub fn quantize(&self, from: &[f32], digits: &mut [i8]) -> u16 {
        assert_eq!(from.len(), digits.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.quantize)(from, digits) }
    }

    /// Multiplies each number by its scale.
    pub fn scale(&self, numbers: &mut [f32], scales: &[f32]) {
        assert_eq!(numbers.len(), scales.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.scale)(numbers, scales) }
    }

    /// `to = scale * head`, turned: element `i` together with `i + head_dim / 2` by the angle whose cosine
    /// and sine are at `i`.
    pub fn rotate(&self, head: &[f32], cos: &[f32], sin: &[f32], scale: f32, to: &mut [f32]) {
        assert!(head.len() == 2 * cos.len() && cos.len() == sin.len() && to.len() == head.len());
        // SAFETY: a table exists only where its instruction set was detected (`new`).
        unsafe { (self.table.rotate)(head, cos, sin, scale, to) }
    }
}

/// Rows of the next block of at most `most`, with `left` to do: blocks are nearly equal, since one of a single
/// row would wait for its own additions.
#[cfg(target_arch = "x86_64")]
pub(super) fn block_rows(left: usize, most: usize) -> usize {
    left.div_ceil(left.div_ceil(most))
}

/// Constants of `2^x = 2^n * 2^r` with `n` the nearest integer and a polynomial in `r`, |r| <= 1/2, whose
/// relative error is below 2e-7; `2^0` is exactly 1. Arguments below [`LOWEST`](exp2::LOWEST) count as
/// it: the result must stay a normal number, also times the smallest scale of the cache, `2^-24`.
pub(super) mod exp2 {
    pub(in super::super) const LOWEST: f32 = -100.0;
    /// Adding it rounds to an integer, which then stands in the low bits.
    pub(in super::super) const ROUNDER: f32 = 12_582_912.0;
    /// Highest power first.
    pub(in super::super) const POLYNOMIAL: [f32; 6] =
        [0.001_330_026_4, 0.009_669_708, 0.055_505_6, 0.240_222_81, std::f32::consts::LN_2, 1.0];
}
