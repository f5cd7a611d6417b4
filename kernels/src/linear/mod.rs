//! Products with weight matrices, `y = x Wᵀ`, and what is fused to them: the norm before, and after, a bias,
//! the residual sum, the gated activation, or rotation and KV append. Also the embedding.
//!
//! - [`LinearSpec`] is a matrix's shape and format, and so its layout in memory; `pack_*` write that layout
//!   from a checkpoint, a range of tiles at a time; [`unpack`] reads it back for tests.
//! - [`run`] computes. Up to [`STREAM_ROWS`] rows the kernels of `cuda/linear_stream.cu` read the weights
//!   as fast as the memory gives them; for more rows `cuda/linear_tile.cu` shares each weight among 64 or 128
//!   rows. One packed layout serves both; `cuda/linear.cuh` draws it.
//! - [`embed`] gathers rows of a table, which may be an output head that is tied to it.
//!
//! A shape on a card gives the same bits every time.

mod embedding;
mod launch;
mod packing;

use std::ops::Range;

pub use embedding::{EmbeddingTable, Tokens, embed};
pub use launch::{
    Epilogue, Input, QkvEpilogue, STREAM_ROWS, Scratch, ScratchSize, fuses_norm, run, scratch_size,
};
pub use packing::{DenseSource, Fp8Source, Int4Source, PackError, pack_dense, pack_fp8, pack_int4, unpack};

use crate::device::Buffer;

/// Outputs in a tile of packed weights.
pub const TILE_OUTPUTS: usize = 16;
/// Inputs in a piece of a tile.
pub const PIECE_INPUTS: usize = 64;
/// Inputs that share a scale in [`Format::Int8`].
pub const INT8_GROUP: usize = 128;
/// Tiles begin at multiples of this.
const TILE_ALIGNMENT: usize = 128;

/// How weights are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// `(q - z) s`, AWQ's: q and z of four bits, an fp16 scale and a z for every output and `group` inputs.
    Int4 {
        /// 32, 64 or 128.
        group: usize,
    },
    /// Half precision.
    F16,
    /// `q s`, q from -127 to 127, an fp16 scale for every output and [`INT8_GROUP`] inputs.
    Int8,
    /// e4m3 codes with an fp32 scale for every output.
    Fp8,
}

impl Format {
    /// Bytes of a piece's weights.
    fn piece_bytes(self) -> usize {
        match self {
            Self::Int4 { .. } => 512,
            Self::Int8 | Self::Fp8 => 1024,
            Self::F16 => 2048,
        }
    }

    /// Inputs that share a scale, where scales are per group.
    fn group(self) -> Option<usize> {
        match self {
            Self::Int4 { group } => Some(group),
            Self::Int8 => Some(INT8_GROUP),
            Self::F16 | Self::Fp8 => None,
        }
    }
}

/// Which outputs share a tile: those that the epilogue combines lie in rows g and g + 8 of the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pairing {
    /// Consecutive outputs.
    Plain,
    /// The first half of the outputs are gates, the second half what they let through: gate i with up i.
    Gated,
    /// Queries, keys and values, head after head. In queries and keys, element i of a head with
    /// `i + head_dim / 2`, its partner in the rotation; values are plain.
    Qkv {
        /// Query heads.
        heads: usize,
        /// Heads of keys, and of values.
        kv_heads: usize,
        /// Elements of a head; a multiple of 16.
        head_dim: usize,
    },
}

/// The shape and format of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LinearSpec {
    /// How weights are stored.
    pub format: Format,
    /// Width of the input; a multiple of 8.
    pub input: usize,
    /// Width of the output, both halves of a gated one counted.
    pub output: usize,
    /// Which outputs share a tile.
    pub pairing: Pairing,
}

impl LinearSpec {
    /// Tiles of 16 outputs; the last may be partly empty.
    pub fn tiles(&self) -> usize {
        match self.pairing {
            Pairing::Plain => self.output.div_ceil(TILE_OUTPUTS),
            Pairing::Gated => (self.output / 2).div_ceil(TILE_OUTPUTS / 2),
            Pairing::Qkv { .. } => self.output / TILE_OUTPUTS,
        }
    }

    /// Bytes of one tile.
    pub fn tile_bytes(&self) -> usize {
        let zeros = match self.format {
            // The tile kernels copy zeros sixteen bytes at a time.
            Format::Int4 { .. } => (8 * self.groups()).next_multiple_of(16),
            _ => 0,
        };
        (self.zeros_at() + zeros).next_multiple_of(TILE_ALIGNMENT)
    }

    /// Bytes of the whole matrix.
    pub fn packed_bytes(&self) -> usize {
        self.tiles() * self.tile_bytes()
    }

    /// Bytes that a product reads of it: all but the padding between tiles.
    pub fn read_bytes(&self) -> usize {
        let zeros = if matches!(self.format, Format::Int4 { .. }) { 8 * self.groups() } else { 0 };
        self.tiles() * (self.zeros_at() + zeros)
    }

    /// Pieces of a tile.
    fn pieces(&self) -> usize {
        self.input.div_ceil(PIECE_INPUTS)
    }

    /// Groups of a tile: those of the inputs, and those that the last piece has beyond them.
    fn groups(&self) -> usize {
        self.format.group().map_or(0, |group| (self.pieces() * PIECE_INPUTS).div_ceil(group))
    }

    /// Where in a tile its scales begin.
    fn scales_at(&self) -> usize {
        self.pieces() * self.format.piece_bytes()
    }

    /// Where in a tile its zeros begin.
    fn zeros_at(&self) -> usize {
        self.scales_at()
            + match self.format {
                Format::Fp8 => 4 * TILE_OUTPUTS,
                _ => 2 * TILE_OUTPUTS * self.groups(),
            }
    }

    /// The outputs in rows 0.. and 8.. of a tile, at most eight each.
    fn octets(&self, tile: usize) -> [Range<usize>; 2] {
        let octet = |first: usize, end: usize| first.min(end)..(first + 8).min(end);
        match self.pairing {
            Pairing::Gated => {
                let half = self.output / 2;
                [octet(8 * tile, half), octet(half + 8 * tile, self.output)]
            }
            Pairing::Qkv { heads, kv_heads, head_dim } => {
                let tiles = head_dim / TILE_OUTPUTS;
                let (head, in_head) = (tile / tiles, tile % tiles);
                let (first, partner) =
                    if head < heads + kv_heads { (8 * in_head, head_dim / 2) } else { (16 * in_head, 8) };
                let first = head * head_dim + first;
                [octet(first, self.output), octet(first + partner, self.output)]
            }
            Pairing::Plain => [octet(16 * tile, self.output), octet(16 * tile + 8, self.output)],
        }
    }

    /// # Panics
    /// When no such matrix can be packed or run.
    fn check(&self) {
        assert!(self.input > 0 && self.output > 0, "an empty matrix");
        assert!(self.input.is_multiple_of(8), "{} inputs are not a multiple of 8", self.input);
        if let Format::Int4 { group } = self.format {
            assert!([32, 64, 128].contains(&group), "groups of {group}");
            assert!(self.input.is_multiple_of(group), "{} inputs in groups of {group}", self.input);
            let octets = if self.pairing == Pairing::Gated { self.output / 2 } else { self.output };
            assert!(octets.is_multiple_of(8), "{octets} int4 outputs are not a multiple of 8");
        }
        match self.pairing {
            Pairing::Plain => {}
            Pairing::Gated => assert!(self.output.is_multiple_of(2), "{} gates and ups", self.output),
            Pairing::Qkv { heads, kv_heads, head_dim } => {
                assert!(head_dim.is_multiple_of(16), "head_dim {head_dim} is not a multiple of 16");
                assert_eq!(
                    self.output,
                    (heads + 2 * kv_heads) * head_dim,
                    "outputs of {heads}+2x{kv_heads} heads"
                );
            }
        }
    }
}

/// A weight matrix in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Linear {
    /// Its shape and format.
    pub spec: LinearSpec,
    /// Its packed weights, [`LinearSpec::packed_bytes`] of them.
    pub weights: Buffer,
}

/// What one product moves and computes: its floor times are `bytes()` over the memory's bandwidth and
/// `operations` over the card's matrix rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes of weights, each read once from device memory. (Prefill of more rows than a block has reads them
    /// again for every 64 or 128 rows, from the second-level cache.)
    pub weight_bytes: u64,
    /// Bytes of inputs, each read once, and of outputs.
    pub activation_bytes: u64,
    /// Multiplications and additions.
    pub operations: u64,
}

impl Traffic {
    /// All bytes.
    pub fn bytes(&self) -> u64 {
        self.weight_bytes + self.activation_bytes
    }
}

/// The traffic of a product with `rows` rows, fp16 in and `output_bytes` out for each output (4 for fp32, 8 where
/// it is added to what is there, 1 for gated fp16, two outputs making one, 2 for queries, keys and values).
pub fn traffic(spec: &LinearSpec, rows: usize, output_bytes: usize) -> Traffic {
    let (rows, input, output) = (rows as u64, spec.input as u64, spec.output as u64);
    Traffic {
        weight_bytes: spec.read_bytes() as u64,
        activation_bytes: rows * (2 * input + output_bytes as u64 * output),
        operations: 2 * rows * input * output,
    }
}
