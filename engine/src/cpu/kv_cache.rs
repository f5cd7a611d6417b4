//! Paged keys and values, in fp16 or int8.
//!
//! One block holds [`BLOCK_SIZE`] positions of one sequence, for all layers. Within a layer, head and
//! block: keys `[head_dim][16]` (transposed: the attention kernel scores sixteen positions at once),
//! then values `[16][head_dim]`. Blocks of one head follow each other: a sequence mostly has ascending
//! blocks, and the processor reads ahead.
//!
//! In int8 every key and every value has a scale in fp16. The scales of a block, sixteen of keys and sixteen of
//! values, stand between its keys and its values: one cache line, read on from the keys.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ptr::NonNull;

use super::linear::DisjointRows;
use crate::backend::BackendError;
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, BlockId};

/// How keys and values are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KvFormat {
    /// fp16.
    #[default]
    F16,
    /// int8 digits with a scale for each key and each value of a head: about half the memory. An element is
    /// off by at most 1/254 of the largest of its key or value.
    Int8,
}

/// Elements of keys or values as they are kept.
#[derive(Clone, Copy, Debug)]
pub enum Stored<'a> {
    /// fp16 bits.
    F16(&'a [u16]),
    /// int8 digits, without their scales.
    Int8(&'a [i8]),
}

impl Stored<'_> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Self::F16(bits) => bits.len(),
            Self::Int8(digits) => digits.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Where they begin: an address for fetching, not for reading.
    pub(super) fn start(&self) -> *const i8 {
        match self {
            Self::F16(bits) => bits.as_ptr().cast(),
            Self::Int8(digits) => digits.as_ptr(),
        }
    }

    /// Bytes of one element.
    pub(super) fn element_bytes(&self) -> usize {
        match self {
            Self::F16(_) => size_of::<u16>(),
            Self::Int8(_) => size_of::<i8>(),
        }
    }
}

/// Keys and values of one head of one block.
#[derive(Clone, Copy)]
pub(super) struct HeadBlock<'a> {
    /// `[head_dim][16]`.
    pub(super) keys: Stored<'a>,
    /// `[16][head_dim]`.
    pub(super) values: Stored<'a>,
    /// Scales of the keys, then of the values, as fp16 bits; none where they are kept in fp16.
    pub(super) scales: Option<&'a [u16; SCALES]>,
}

/// Scales of one head of one block.
const SCALES: usize = 2 * BLOCK_SIZE;

/// All layers' blocks.
pub struct KvCache {
    format: KvFormat,
    layers: usize,
    heads: usize,
    head_dim: usize,
    blocks: usize,
    storage: Zeroed,
}

impl KvCache {
    /// A cache of `blocks` blocks. The memory is taken from the system as blocks are first written.
    pub fn new(config: &ModelConfig, format: KvFormat, blocks: usize) -> Result<Self, BackendError> {
        let bytes_per_block = Self::block_bytes(config, format);
        let out_of_memory = |detail: &str| BackendError::OutOfMemory {
            wanted_mb: bytes_per_block.saturating_mul(blocks) >> 20,
            detail: detail.into(),
        };
        let elements = (bytes_per_block / size_of::<u16>())
            .checked_mul(blocks)
            .ok_or_else(|| out_of_memory("larger than the address space"))?;
        let storage = Zeroed::new(elements).ok_or_else(|| out_of_memory("the system refused it"))?;
        Ok(Self {
            format,
            layers: config.num_layers,
            heads: config.num_kv_heads,
            head_dim: config.head_dim,
            blocks,
            storage,
        })
    }

    /// Bytes of one block, all layers together.
    pub fn block_bytes(config: &ModelConfig, format: KvFormat) -> usize {
        config.num_layers * config.num_kv_heads * head_block_len(format, config.head_dim) * size_of::<u16>()
    }

    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Keys and values of one head of one block.
    pub(super) fn head(&self, layer: usize, block: BlockId, head: usize) -> HeadBlock<'_> {
        let len = BLOCK_SIZE * self.head_dim;
        let block = &self.storage.as_slice()[self.offset(layer, block, head)..][..self.block_len()];
        match self.format {
            KvFormat::F16 => {
                let (keys, values) = block.split_at(len);
                HeadBlock { keys: Stored::F16(keys), values: Stored::F16(values), scales: None }
            }
            KvFormat::Int8 => {
                let (keys, rest) = block.split_at(len / 2);
                let (scales, values) = rest.split_first_chunk().expect("a block has its scales");
                let (keys, values) = (Stored::Int8(as_digits(keys)), Stored::Int8(as_digits(values)));
                HeadBlock { keys, values, scales: Some(scales) }
            }
        }
    }

    pub(super) fn format(&self) -> KvFormat {
        self.format
    }

    /// A layer's storage as one row per head, so that heads can be written at the same time; each row
    /// is for [`HeadWriter::new`].
    pub(super) fn layer_heads(&mut self, layer: usize) -> DisjointRows<'_, u16> {
        assert!(layer < self.layers);
        let per_head = self.blocks * self.block_len();
        let per_layer = self.heads * per_head;
        DisjointRows::new(&mut self.storage.as_mut_slice()[layer * per_layer..][..per_layer], per_head)
    }

    /// Fills every slot with what is no number, as a reused block may hold anything.
    #[cfg(test)]
    pub(super) fn fill_with_nan(&mut self) {
        self.storage.as_mut_slice().fill(half::f16::NAN.to_bits());
    }

    /// Length of one head's share of a block in storage.
    fn block_len(&self) -> usize {
        head_block_len(self.format, self.head_dim)
    }

    fn offset(&self, layer: usize, block: BlockId, head: usize) -> usize {
        assert!(layer < self.layers && (block as usize) < self.blocks && head < self.heads);
        ((layer * self.heads + head) * self.blocks + block as usize) * self.block_len()
    }
}

/// Length of one head's share of a block, in `u16`.
fn head_block_len(format: KvFormat, head_dim: usize) -> usize {
    let elements = 2 * BLOCK_SIZE * head_dim;
    match format {
        KvFormat::F16 => elements,
        KvFormat::Int8 => elements / 2 + SCALES,
    }
}

fn as_digits(storage: &[u16]) -> &[i8] {
    // SAFETY: any byte is an i8, and the bytes are the same.
    unsafe { std::slice::from_raw_parts(storage.as_ptr().cast(), size_of_val(storage)) }
}

fn as_digits_mut(storage: &mut [u16]) -> &mut [i8] {
    // SAFETY: any byte is an i8 and part of a u16; the bytes are the same, and borrowed exclusively.
    unsafe { std::slice::from_raw_parts_mut(storage.as_mut_ptr().cast(), size_of_val(storage)) }
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

    /// Writes a key and a value, as fp16 bits, at `slot` of a block of [`KvFormat::F16`].
    pub(super) fn write_f16(&mut self, block: BlockId, slot: usize, key: &[u16], value: &[u16]) {
        let (keys, values) = self.block(KvFormat::F16, block).split_at_mut(BLOCK_SIZE * key.len());
        write(keys, values, slot, key, value);
    }

    /// Writes a key and a value, as digits and scale, at `slot` of a block of [`KvFormat::Int8`].
    pub(super) fn write_int8(
        &mut self,
        block: BlockId,
        slot: usize,
        (key, key_scale): (&[i8], u16),
        (value, value_scale): (&[i8], u16),
    ) {
        let block = self.block(KvFormat::Int8, block);
        let (keys, rest) = block.split_at_mut(BLOCK_SIZE * key.len() / 2);
        let (scales, values) = rest.split_at_mut(SCALES);
        scales[slot] = key_scale;
        scales[BLOCK_SIZE + slot] = value_scale;
        write(as_digits_mut(keys), as_digits_mut(values), slot, key, value);
    }

    fn block(&mut self, format: KvFormat, block: BlockId) -> &mut [u16] {
        let len = head_block_len(format, self.head_dim);
        &mut self.storage[block as usize * len..][..len]
    }
}

/// Writes a key and a value at `slot` of a block's keys `[head_dim][16]` and values `[16][head_dim]`.
fn write<T: Copy>(keys: &mut [T], values: &mut [T], slot: usize, key: &[T], value: &[T]) {
    assert!(slot < BLOCK_SIZE && keys.len() == BLOCK_SIZE * key.len() && values.len() == keys.len());
    for (keys, key) in keys.chunks_exact_mut(BLOCK_SIZE).zip(key) {
        keys[slot] = *key;
    }
    values[slot * key.len()..][..key.len()].copy_from_slice(value);
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
