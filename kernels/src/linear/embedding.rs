//! Tokens to rows of the residual stream.

use bytemuck::{Pod, Zeroable};

use super::{Format, Linear, Pairing};
use crate::device::{Buffer, Device, DeviceError, Launch};

/// Where the rows come from.
#[derive(Clone, Copy, Debug)]
pub enum EmbeddingTable<'a> {
    /// fp16 `[tokens][hidden]`.
    Plain(Buffer),
    /// An output head, [`Format::F16`] or [`Format::Int8`] and plainly paired, that is also the table.
    Tied(&'a Linear),
}

/// Which rows.
#[derive(Clone, Copy, Debug)]
pub struct Tokens {
    /// u32 `[rows]`. With the high bit set: the number of a record in `drawn`. `u32::MAX`: none, a row of zeros.
    pub tokens: Buffer,
    /// Records, each of which begins with a token (u32).
    pub drawn: Buffer,
    /// Bytes of a record.
    pub drawn_stride: usize,
}

/// Writes the embeddings of `rows` tokens, fp32 `[rows][hidden]`. A token that the table does not have gives zeros.
///
/// # Errors
/// When the device does not take the launch.
///
/// # Panics
/// When a buffer is too small, or a tied head is not packed as [`EmbeddingTable::Tied`] says.
pub fn embed(
    device: &mut dyn Device,
    table: EmbeddingTable<'_>,
    tokens: Tokens,
    rows: usize,
    hidden: usize,
    to: Buffer,
) -> Result<(), DeviceError> {
    assert!(rows > 0 && hidden > 0, "{rows} rows of {hidden}");
    assert!(tokens.tokens.bytes() >= 4 * rows, "tokens of {rows} rows");
    assert!(tokens.drawn_stride.is_multiple_of(4), "records of {} bytes", tokens.drawn_stride);
    assert!(to.bytes() >= 4 * rows * hidden, "{rows} rows of {hidden}");
    let mut params = EmbedParams {
        tokens: tokens.tokens.address(),
        drawn: tokens.drawn.address(),
        to: to.address(),
        drawn_stride: tokens.drawn_stride as u32,
        hidden: hidden as u32,
        ..EmbedParams::zeroed()
    };
    let kernel = match table {
        EmbeddingTable::Plain(table) => {
            params.table = table.address();
            params.table_rows = (table.bytes() / (2 * hidden)) as u32;
            "linear_embed_plain"
        }
        EmbeddingTable::Tied(Linear { spec, weights }) => {
            assert_eq!((spec.input, spec.pairing), (hidden, Pairing::Plain), "a head as a table");
            assert!(weights.bytes() >= spec.packed_bytes(), "weights of the head");
            params.table = weights.address();
            params.table_rows = spec.output as u32;
            params.tile_bytes = spec.tile_bytes() as u64;
            params.scales_at = spec.scales_at() as u32;
            match spec.format {
                Format::F16 => "linear_embed_f16",
                Format::Int8 => "linear_embed_int8",
                other => panic!("{other:?} as an embedding table"),
            }
        }
    };
    device.launch(&Launch {
        kernel,
        grid: [rows as u32, 1, 1],
        threads: 256,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: true,
    })
}

/// `linear::EmbedParams` of `cuda/linear_embed.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EmbedParams {
    table: u64,
    tokens: u64,
    drawn: u64,
    to: u64,
    tile_bytes: u64,
    scales_at: u32,
    drawn_stride: u32,
    hidden: u32,
    table_rows: u32,
}
