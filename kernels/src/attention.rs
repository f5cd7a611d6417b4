//! Paged attention, and the layout of the cache it reads.

/// Tokens in a block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// How keys and values are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvFormat {
    /// Half precision.
    F16,
    /// Eight-bit floats (e4m3, scale 1, saturating; see [`float8`](crate::float8)).
    F8,
}

impl KvFormat {
    /// Bytes of one number.
    pub fn bytes(self) -> usize {
        match self {
            Self::F16 => 2,
            Self::F8 => 1,
        }
    }
}

/// Bytes that a block takes in either of a layer's two buffers, keys `[block][kv_head][16][head_dim]` and
/// values in the same layout.
pub fn kv_block_bytes(format: KvFormat, kv_heads: usize, head_dim: usize) -> usize {
    kv_heads * BLOCK_TOKENS * head_dim * format.bytes()
}
