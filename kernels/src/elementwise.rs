//! What stands between the matrix products where it is not fused into them.

use crate::attention::{AttentionShape, KvFormat};
use crate::device::{Buffer, Device, DeviceError, Launch};
use bytemuck::{Pod, Zeroable};

/// The most numbers of a row that [`rms_norm`] takes.
pub const MAX_HIDDEN: u32 = 8192;

/// RMSNorm of rows: `x / sqrt(mean(x^2) + eps) * weight`.
#[derive(Clone, Copy, Debug)]
pub struct RmsNorm {
    /// fp32 `[any row][hidden]`.
    pub residual: Buffer,
    /// fp32 `[hidden]`.
    pub weight: Buffer,
    /// Added to the mean.
    pub eps: f32,
    /// The residual's row for each output row, u32, [`u32::MAX`] for zeros; none: row i is row i.
    pub gather: Option<Buffer>,
    /// Output rows.
    pub rows: u32,
    /// Numbers in a row: a multiple of 4, at most [`MAX_HIDDEN`].
    pub hidden: u32,
    /// fp16 `[rows][hidden]`.
    pub out: Buffer,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct RmsNormParams {
    residual: u64,
    weight: u64,
    gather: u64,
    out: u64,
    hidden: u32,
    eps: f32,
}

/// Normalises rows of the residual stream.
///
/// # Errors
/// When the device refuses the launch.
///
/// # Panics
/// When a row's length is not supported or a buffer is too small.
pub fn rms_norm(device: &mut dyn Device, norm: &RmsNorm) -> Result<(), DeviceError> {
    let (rows, hidden) = (norm.rows as usize, norm.hidden as usize);
    assert!(
        norm.hidden.is_multiple_of(4) && (4..=MAX_HIDDEN).contains(&norm.hidden),
        "rows of {hidden} cannot be normalised: a multiple of 4 up to {MAX_HIDDEN} can"
    );
    assert!(
        norm.weight.bytes() >= hidden * 4,
        "weight of {} bytes for rows of {hidden}",
        norm.weight.bytes()
    );
    assert!(norm.out.bytes() >= rows * hidden * 2, "{} bytes for {rows} rows of {hidden}", norm.out.bytes());
    match norm.gather {
        Some(list) => assert!(list.bytes() >= rows * 4, "a list of {} bytes for {rows} rows", list.bytes()),
        None => assert!(
            norm.residual.bytes() >= rows * hidden * 4,
            "a residual of {} bytes for {rows} rows of {hidden}",
            norm.residual.bytes()
        ),
    }
    if rows == 0 {
        return Ok(());
    }
    let params = RmsNormParams {
        residual: norm.residual.address(),
        weight: norm.weight.address(),
        gather: norm.gather.map_or(0, Buffer::address),
        out: norm.out.address(),
        hidden: norm.hidden,
        eps: norm.eps,
    };
    device.launch(&Launch {
        kernel: "rms_norm",
        grid: [norm.rows, 1, 1],
        threads: 256,
        shared_bytes: 8 * 4,
        params: Launch::params(&params),
        overlap: true,
    })
}

/// From the product with the query, key and value weights to what attention reads: norms over each head of
/// queries and keys (optional), rotation by the position (pairs i and i + head_dim/2), queries to fp16, keys
/// and values to their slots of the cache.
#[derive(Clone, Copy, Debug)]
pub struct QkNormRopeAppend {
    /// fp32 `[row][heads + 2 kv_heads][head_dim]`: queries, keys, values, with their bias.
    pub qkv: Buffer,
    /// Weights of the norms of queries and of keys, fp32 `[head_dim]` each.
    pub norms: Option<(Buffer, Buffer)>,
    /// Added to the means of squares.
    pub eps: f32,
    /// Rows.
    pub rows: u32,
    /// Positions, u32 a row.
    pub positions: Buffer,
    /// Slots of the cache, `block * 16 + token in the block`, u32 a row; [`u32::MAX`]: keys and values of the
    /// row go nowhere.
    pub slots: Buffer,
    /// fp32 `[position][head_dim / 2][cosine, sine]`.
    pub rotary: Buffer,
    /// Queries, fp16 `[row][heads][head_dim]`.
    pub q: Buffer,
    /// The layer's keys, `[block][kv_head][16][head_dim]`.
    pub keys: Buffer,
    /// The layer's values, the same.
    pub values: Buffer,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct QkNormRopeAppendParams {
    qkv: u64,
    q_weight: u64,
    k_weight: u64,
    positions: u64,
    slots: u64,
    rotary: u64,
    q: u64,
    keys: u64,
    values: u64,
    heads: u32,
    kv_heads: u32,
    eps: f32,
    unused: u32,
}

/// Normalises, rotates and distributes queries, keys and values.
///
/// # Errors
/// When the device refuses the launch.
///
/// # Panics
/// When the head size is not 64 or 128 or a buffer is too small.
pub fn qk_norm_rope_append(
    device: &mut dyn Device,
    shape: &AttentionShape,
    step: &QkNormRopeAppend,
) -> Result<(), DeviceError> {
    let rows = step.rows as usize;
    let (heads, head_dim) = (shape.heads + 2 * shape.kv_heads, shape.head_dim as usize);
    let kernel = match (shape.kv, shape.head_dim) {
        (KvFormat::F16, 64) => "qk_norm_rope_append_f16_64",
        (KvFormat::F16, 128) => "qk_norm_rope_append_f16_128",
        (KvFormat::F8, 64) => "qk_norm_rope_append_f8_64",
        (KvFormat::F8, 128) => "qk_norm_rope_append_f8_128",
        _ => panic!("heads of {head_dim}: only 64 and 128"),
    };
    let sizes = [
        ("qkv", step.qkv, rows * heads as usize * head_dim * 4),
        ("positions", step.positions, rows * 4),
        ("slots", step.slots, rows * 4),
        ("q", step.q, rows * shape.heads as usize * head_dim * 2),
    ];
    for (what, buffer, bytes) in sizes {
        assert!(buffer.bytes() >= bytes, "{what} has {} bytes, {rows} rows need {bytes}", buffer.bytes());
    }
    if rows == 0 {
        return Ok(());
    }
    let params = QkNormRopeAppendParams {
        qkv: step.qkv.address(),
        q_weight: step.norms.map_or(0, |(q, _)| q.address()),
        k_weight: step.norms.map_or(0, |(_, k)| k.address()),
        positions: step.positions.address(),
        slots: step.slots.address(),
        rotary: step.rotary.address(),
        q: step.q.address(),
        keys: step.keys.address(),
        values: step.values.address(),
        heads: shape.heads,
        kv_heads: shape.kv_heads,
        eps: step.eps,
        unused: 0,
    };
    device.launch(&Launch {
        kernel,
        grid: [step.rows, heads.div_ceil(4), 1],
        threads: 128,
        shared_bytes: 0,
        params: Launch::params(&params),
        overlap: true,
    })
}
