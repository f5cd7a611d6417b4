//! Paged keys and values in fp16.
//!
//! One block holds [`BLOCK_SIZE`] positions of one sequence, for all layers. Within a layer, head and
//! block: keys `[head_dim][16]` (transposed: the attention kernel scores sixteen positions at once),
//! then values `[16][head_dim]`. Blocks of one head follow each other: a sequence mostly has ascending
//! blocks, and the processor reads ahead.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::linear::DisjointRows;
use crate::backend::BackendError;
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, BlockId};

/// All layers' blocks.
pub struct KvCache {
    layers: usize,
    heads: usize,
    head_dim: usize,
    blocks: usize,
    storage: Zeroed,
}

impl KvCache {
    /// A cache of `blocks` blocks. The memory is taken from the system as blocks are first written.
    pub fn new(config: &ModelConfig, blocks: usize) -> Result<Self, BackendError> {
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

    /// A layer's storage as one row per head, so that heads can be written at the same time; each row
    /// is for [`HeadWriter::new`].
    pub(super) fn layer_heads(&mut self, layer: usize) -> DisjointRows<'_, u16> {
        assert!(layer < self.layers);
        let per_head = self.blocks * self.block_len();
        let per_layer = self.heads * per_head;
        DisjointRows::new(&mut self.storage.as_mut_slice()[layer * per_layer..][..per_layer], per_head)
    }

    /// Fills every slot, as a reused block may hold anything.
    #[cfg(test)]
    pub(super) fn fill(&mut self, value: half::f16) {
        self.storage.as_mut_slice().fill(value.to_bits());
    }

    /// Elements of one head's share of a block.
    fn block_len(&self) -> usize {
        2 * BLOCK_SIZE * self.head_dim
    }

    fn offset(&self, layer: usize, block: BlockId, head: usize) -> usize {
        assert!(layer < self.layers && (block as usize) < self.blocks && head < self.heads);
        ((layer * self.heads + head) * self.blocks + block as usize) * self.block_len()
    }
}

/// Writes keys and values of one head of one layer.
pub(super) struct HeadWriter<'a> {
    head_dim: usize,
    storage: &'a mut [u16],
}

impl<'a> HeadWriter<'a> {
    /// `storage` is the head's row of [`KvCache::layer_heads`].
    pub(super) fn new(storage: &'a mut [u16], head_dim: usize) -> Self {
        Self { head_dim, storage }
    }

    /// Writes a key and a value, as fp16 bits, at `slot` of a block.
    pub(super) fn write(&mut self, block: BlockId, slot: usize, key: &[u16], value: &[u16]) {
        assert!(slot < BLOCK_SIZE && key.len() == self.head_dim && value.len() == self.head_dim);
        let len = BLOCK_SIZE * self.head_dim;
        let block = &mut self.storage[block as usize * 2 * len..][..2 * len];
        let (keys, values) = block.split_at_mut(len);
        for (keys, key) in keys.chunks_exact_mut(BLOCK_SIZE).zip(key) {
            keys[slot] = *key;
        }
        values[slot * self.head_dim..][..self.head_dim].copy_from_slice(value);
    }
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
