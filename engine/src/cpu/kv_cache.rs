//! Paged keys and values in fp16.
//!
//! One block holds [`BLOCK_SIZE`] positions of one sequence, for all layers. Within a layer, block and
//! head: keys `[head_dim][16]` (transposed: the attention kernel scores sixteen positions at once),
//! then values `[16][head_dim]`.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use half::f16;

use super::kernels::TILE;
use crate::backend::BackendError;
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, BlockId};

// The attention kernel treats a block as one tile of scores.
const _: () = assert!(BLOCK_SIZE == TILE);

/// All layers' blocks.
pub(super) struct KvCache {
    layers: usize,
    heads: usize,
    head_dim: usize,
    blocks: usize,
    storage: Zeroed,
}

impl KvCache {
    /// A cache of `blocks` blocks. The memory is taken from the system as blocks are first written.
    pub(super) fn new(config: &ModelConfig, blocks: usize) -> Result<Self, BackendError> {
        let bytes_per_block = Self::block_bytes(config);
        let out_of_memory = |detail: &str| BackendError::OutOfMemory {
            wanted_mb: bytes_per_block.saturating_mul(blocks) >> 20,
            detail: detail.into(),
        };
        let elements = (bytes_per_block / size_of::<u16>())
            .checked_mul(blocks)
            .ok_or_else(|| out_of_memory("larger than the address space"))?;
        let storage = Zeroed::new(elements).ok_or_else(|| out_of_memory("the system refused it"))?;
        Ok(Self {
            layers: config.num_layers,
            heads: config.num_kv_heads,
            head_dim: config.head_dim,
            blocks,
            storage,
        })
    }

    /// Bytes of one block, all layers together.
    pub(super) fn block_bytes(config: &ModelConfig) -> usize {
        config.num_layers * config.num_kv_heads * 2 * BLOCK_SIZE * config.head_dim * size_of::<u16>()
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Keys and values of one head of one block, as fp16 bits.
    pub(super) fn head(&self, layer: usize, block: BlockId, head: usize) -> (&[u16], &[u16]) {
        let len = BLOCK_SIZE * self.head_dim;
        self.storage.as_slice()[self.offset(layer, block, head)..][..2 * len].split_at(len)
    }

    /// Writes one head's key and value at `slot` of a block. What fp16 cannot hold is clamped to its
    /// largest number: an infinite key would turn a whole sequence into NaN.
    pub(super) fn write(
        &mut self,
        [layer, head]: [usize; 2],
        block: BlockId,
        slot: usize,
        key: &[f32],
        value: &[f32],
    ) {
        let len = BLOCK_SIZE * self.head_dim;
        let offset = self.offset(layer, block, head);
        let (keys, values) = self.storage.as_mut_slice()[offset..][..2 * len].split_at_mut(len);
        for (keys, key) in keys.chunks_exact_mut(BLOCK_SIZE).zip(key) {
            keys[slot] = to_f16_bits(*key);
        }
        for (to, value) in values[slot * self.head_dim..].iter_mut().zip(value) {
            *to = to_f16_bits(*value);
        }
    }

    fn offset(&self, layer: usize, block: BlockId, head: usize) -> usize {
        assert!(layer < self.layers && (block as usize) < self.blocks && head < self.heads);
        ((layer * self.blocks + block as usize) * self.heads + head) * 2 * BLOCK_SIZE * self.head_dim
    }
}

fn to_f16_bits(value: f32) -> u16 {
    f16::from_f32(value.clamp(f16::MIN.to_f32(), f16::MAX.to_f32())).to_bits()
}

/// An array of zeros that the system provides page by page, and that may fail to be had: `vec!` would
/// end the process instead.
struct Zeroed {
    start: NonNull<u16>,
    len: usize,
}

// SAFETY: it owns its memory like a Vec.
unsafe impl Send for Zeroed {}
// SAFETY: as above.
unsafe impl Sync for Zeroed {}

impl Zeroed {
    fn new(len: usize) -> Option<Self> {
        if len == 0 {
            return Some(Self { start: NonNull::dangling(), len });
        }
        // SAFETY: the layout has a size above zero.
        let start = unsafe { alloc_zeroed(Self::layout(len)?) };
        NonNull::new(start.cast()).map(|start| Self { start, len })
    }

    fn layout(len: usize) -> Option<Layout> {
        // No stricter alignment: the allocator would then clear the memory itself, and touch every page.
        Layout::array::<u16>(len).ok()
    }

    fn as_slice(&self) -> &[u16] {
        // SAFETY: `len` elements were allocated and zeroed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    fn as_mut_slice(&mut self) -> &mut [u16] {
        // SAFETY: as in `as_slice`, and `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Zeroed {
    fn drop(&mut self) {
        if let (true, Some(layout)) = (self.len > 0, Self::layout(self.len)) {
            // SAFETY: allocated in `new` with the same layout.
            unsafe { dealloc(self.start.as_ptr().cast(), layout) };
        }
    }
}
