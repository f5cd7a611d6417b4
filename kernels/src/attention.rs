//! Paged attention: queries of some tokens of some sequences over keys and values in blocks of a cache.
//!
//! `cuda/attention.cuh` describes the kernels. From the host's side: [`plan_items`] cuts the sequences of a
//! step into [`AttentionItem`]s, which are uploaded with the rest of the step; [`choose_splits`] says how
//! many blocks share the keys of one item; [`run`] launches. Only the number of item slots, the variant and
//! the number of splits are fixed by a launch, so a recorded launch serves every step that fits it: unused
//! slots have `rows` 0, and the lengths are read from the items on the device.
//!
//! Deterministic: for the same inputs, variant and number of splits the result has the same bits.

use crate::device::{Buffer, Device, DeviceError, Launch};
use bytemuck::{Pod, Zeroable};

/// Tokens in a block of the cache.
pub const BLOCK_TOKENS: usize = 16;

/// The most splits a launch can have.
pub const MAX_SPLITS: u32 = 64;

/// Threads of every kernel here.
const THREADS: u32 = 128;

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

/// Up to [`Variant::packed_rows`] packed rows of one sequence: what one block column of a launch works on.
/// The default is an empty slot.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Pod, Zeroable)]
pub struct AttentionItem {
    /// Its first token's row in the queries and the output.
    pub first_row: u32,
    /// Tokens; 0 in an empty slot.
    pub rows: u32,
    /// Its first token's position. A token sees all positions up to its own.
    pub first_position: u32,
    /// Where the sequence's blocks start in the array of block tables, in entries.
    pub table_offset: u32,
    /// Keys and values of positions below this were written before this step began, so that they can be read
    /// while the kernel before this one is still running.
    pub cached: u32,
    /// Nothing.
    pub unused: [u32; 3],
}

/// Tokens of one sequence that are in a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SequenceRows {
    /// Row of the first one.
    pub first_row: u32,
    /// How many.
    pub rows: u32,
    /// Position of the first one. What lies before was written by earlier steps.
    pub first_position: u32,
    /// Where the sequence's block table starts in the array of all.
    pub table_offset: u32,
}

/// Which kernel: how many packed rows, (token, head of the group) pairs, a block works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Variant {
    /// 16: decode.
    Narrow,
    /// 64: drafts and tails.
    Wide,
    /// 128: prompts.
    Tall,
}

impl Variant {
    /// Packed rows of an item, at most.
    pub fn packed_rows(self) -> u32 {
        match self {
            Self::Narrow => 16,
            Self::Wide => 64,
            Self::Tall => 128,
        }
    }

    /// Tokens of an item, at most.
    pub fn tokens(self, group: u32) -> u32 {
        self.packed_rows() / group
    }

    /// The one for a step whose longest run of one sequence has this many tokens.
    ///
    /// `Tall` does the same arithmetic with half the traffic from the second-level cache and from shared
    /// memory, but it has half the items; it pays when there are several of them for each sequence.
    pub fn choose(tokens: u32, group: u32) -> Self {
        match tokens * group {
            0..=16 => Self::Narrow,
            17..=511 => Self::Wide,
            _ => Self::Tall,
        }
    }

    fn kernel(self, kv: KvFormat, head_dim: u32) -> &'static str {
        match (self, kv, head_dim) {
            (Self::Narrow, KvFormat::F16, 64) => "attention_narrow_f16_64",
            (Self::Narrow, KvFormat::F16, 128) => "attention_narrow_f16_128",
            (Self::Narrow, KvFormat::F8, 64) => "attention_narrow_f8_64",
            (Self::Narrow, KvFormat::F8, 128) => "attention_narrow_f8_128",
            (Self::Wide, KvFormat::F16, 64) => "attention_wide_f16_64",
            (Self::Wide, KvFormat::F16, 128) => "attention_wide_f16_128",
            (Self::Wide, KvFormat::F8, 64) => "attention_wide_f8_64",
            (Self::Wide, KvFormat::F8, 128) => "attention_wide_f8_128",
            (Self::Tall, KvFormat::F16, 64) => "attention_tall_f16_64",
            (Self::Tall, KvFormat::F16, 128) => "attention_tall_f16_128",
            (Self::Tall, KvFormat::F8, 64) => "attention_tall_f8_64",
            (Self::Tall, KvFormat::F8, 128) => "attention_tall_f8_128",
            _ => panic!("attention with heads of {head_dim}: only 64 and 128"),
        }
    }

    fn shared_bytes(self, head_dim: u32) -> usize {
        let d = head_dim as usize;
        match self {
            // Each warp's sums, rows padded by four, with its maxima and sums of weights.
            Self::Narrow => 4 * 16 * (d + 4 + 2) * 4,
            // Two tiles of keys and values (or one, and two of eight bits), and stand-ins for what the others have.
            Self::Wide => 512 * d + 32,
            // The queries, too.
            Self::Tall => 512 * d + 128 * d * 2 + 16,
        }
    }
}

/// Cuts sequences into items for a variant and appends them to `out`, each sequence's in order. A sequence
/// with no rows has none.
///
/// # Panics
/// When the group is empty or larger than 16.
pub fn plan_items(sequences: &[SequenceRows], group: u32, variant: Variant, out: &mut Vec<AttentionItem>) {
    assert!((1..=16).contains(&group), "{group} query heads share one of the cache; 1 to 16 can");
    for sequence in sequences {
        let items = sequence.rows.div_ceil(variant.tokens(group));
        // Evenly: the longest item decides when the launch is over.
        let start = |item: u32| sequence.rows * item / items;
        out.extend((0..items).map(|item| AttentionItem {
            first_row: sequence.first_row + start(item),
            rows: start(item + 1) - start(item),
            first_position: sequence.first_position + start(item),
            table_offset: sequence.table_offset,
            cached: sequence.first_position,
            unused: [0; 3],
        }));
    }
}

/// How many blocks share the keys of an item, to be fixed when a launch is recorded.
///
/// One block's share of a decode step is read in about the time one read takes to come back, as long as it is
/// a few pages; so the keys are spread over the card until each block has 64 of them, two blocks to a
/// multiprocessor: one sequence of 4,096 tokens and 4 heads on 132 multiprocessors makes 64 splits, 256
/// blocks. The wider variants work on a tile of 64 keys for about as long as a read takes and leave larger
/// partial results, so they get one block to a multiprocessor, and two or four tiles at least. Splits that
/// turn out to have no keys cost nothing but their launch; `context` is the length they are made for, not a
/// limit.
pub fn choose_splits(variant: Variant, items: u32, kv_heads: u32, context: u32, multiprocessors: u32) -> u32 {
    let (blocks, keys) = match variant {
        Variant::Narrow => (2 * multiprocessors, 64),
        Variant::Wide => (multiprocessors, 128),
        Variant::Tall => (multiprocessors, 256),
    };
    let fill = blocks / (items * kv_heads).max(1);
    fill.min(context.div_ceil(keys)).clamp(1, MAX_SPLITS)
}

/// Bytes of scratch memory a launch needs: the partial results of all splits; 0 for one split.
pub fn scratch_bytes(shape: &AttentionShape, variant: Variant, item_capacity: u32, splits: u32) -> usize {
    if splits == 1 {
        0
    } else {
        partial_rows(shape, variant, item_capacity, splits) * (shape.head_dim as usize + 2) * 4
    }
}

fn partial_rows(shape: &AttentionShape, variant: Variant, item_capacity: u32, splits: u32) -> usize {
    [item_capacity, shape.kv_heads, splits, variant.packed_rows()].iter().map(|&n| n as usize).product()
}

/// The heads of a model's attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Query heads.
    pub heads: u32,
    /// Heads of the cache; divides the query heads, into groups of at most 16.
    pub kv_heads: u32,
    /// Numbers in a head: 64 or 128.
    pub head_dim: u32,
    /// How the cache is stored.
    pub kv: KvFormat,
}

impl AttentionShape {
    /// Query heads to a head of the cache.
    ///
    /// # Panics
    /// When the heads do not divide evenly.
    pub fn group(&self) -> u32 {
        assert!(
            self.kv_heads > 0 && self.heads.is_multiple_of(self.kv_heads),
            "{} heads over {} of the cache",
            self.heads,
            self.kv_heads
        );
        self.heads / self.kv_heads
    }
}

/// One launch of attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// [`AttentionItem`]s.
    pub items: Buffer,
    /// Item slots; those with `rows` 0 are passed over.
    pub item_capacity: u32,
    /// The kernel; the items were planned for it.
    pub variant: Variant,
    /// Blocks that share the keys of an item, 1 to [`MAX_SPLITS`].
    pub splits: u32,
    /// Queries, fp16 `[row][heads][head_dim]`, rotated and not scaled.
    pub q: Buffer,
    /// The layer's keys, `[block][kv_head][16][head_dim]`.
    pub keys: Buffer,
    /// The layer's values, the same.
    pub values: Buffer,
    /// Block tables: for each sequence, from its offset on, the blocks of its positions in order, u32.
    pub block_tables: Buffer,
    /// The output, fp16 `[row][heads][head_dim]`. Rows that no item covers are left as they are.
    pub out: Buffer,
    /// [`scratch_bytes`] of memory for this launch alone.
    pub scratch: Buffer,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionParams {
    items: u64,
    q: u64,
    keys: u64,
    values: u64,
    block_tables: u64,
    out: u64,
    sums: u64,
    weights: u64,
    group: u32,
    splits: u32,
    scale: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct AttentionMergeParams {
    items: u64,
    out: u64,
    sums: u64,
    weights: u64,
    group: u32,
    splits: u32,
}

/// Attention of a layer, softmax(q k / sqrt(head_dim)) v with each token seeing the positions up to its own,
/// whose keys and values are in the cache already.
///
/// # Errors
/// When the device refuses the launch.
///
/// # Panics
/// When the buffers are too small for what the arguments say.
pub fn run(device: &mut dyn Device, shape: &AttentionShape, launch: &Attention) -> Result<(), DeviceError> {
    let group = shape.group();
    assert!((1..=16).contains(&group), "{group} query heads share one of the cache; 1 to 16 can");
    assert!((1..=MAX_SPLITS).contains(&launch.splits), "{} splits; 1 to {MAX_SPLITS} can be", launch.splits);
    assert!(
        launch.items.bytes() >= launch.item_capacity as usize * size_of::<AttentionItem>(),
        "{} items do not fit in {} bytes",
        launch.item_capacity,
        launch.items.bytes()
    );
    let needed = scratch_bytes(shape, launch.variant, launch.item_capacity, launch.splits);
    assert!(
        launch.scratch.bytes() >= needed,
        "{needed} bytes of scratch needed, {} given",
        launch.scratch.bytes()
    );
    if launch.item_capacity == 0 {
        return Ok(());
    }
    let sums = launch.scratch.address();
    let partials = partial_rows(shape, launch.variant, launch.item_capacity, launch.splits) as u64;
    let weights = sums + partials * u64::from(shape.head_dim) * 4;
    let params = AttentionParams {
        items: launch.items.address(),
        q: launch.q.address(),
        keys: launch.keys.address(),
        values: launch.values.address(),
        block_tables: launch.block_tables.address(),
        out: launch.out.address(),
        sums,
        weights,
        group,
        splits: launch.splits,
        scale: std::f32::consts::LOG2_E / (shape.head_dim as f32).sqrt(),
        unused: 0,
    };
    device.launch(&Launch {
        kernel: launch.variant.kernel(shape.kv, shape.head_dim),
        grid: [launch.item_capacity, shape.kv_heads, launch.splits],
        threads: THREADS,
        shared_bytes: launch.variant.shared_bytes(shape.head_dim),
        params: Launch::params(&params),
        overlap: true,
    })?;
    if launch.splits == 1 {
        return Ok(());
    }
    let params = AttentionMergeParams {
        items: launch.items.address(),
        out: launch.out.address(),
        sums,
        weights,
        group,
        splits: launch.splits,
    };
    device.launch(&Launch {
        kernel: if shape.head_dim == 64 { "attention_merge_64" } else { "attention_merge_128" },
        grid: [launch.item_capacity, shape.kv_heads, launch.variant.packed_rows()],
        threads: THREADS,
        shared_bytes: 4 * shape.head_dim as usize * 4,
        params: Launch::params(&params),
        overlap: true,
    })
}

/// What a launch has to do at least, for predictions and for the share of a card's bandwidth it reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traffic {
    /// Bytes from and to memory: the keys and values that are seen once, queries and output.
    pub bytes: u64,
    /// Multiplications and additions of the two products.
    pub operations: u64,
}

/// The least traffic and the operations of a layer's attention over these sequences.
pub fn traffic(shape: &AttentionShape, sequences: &[SequenceRows]) -> Traffic {
    let row = 2 * u64::from(shape.heads) * u64::from(shape.head_dim);
    let key = 2 * u64::from(shape.kv_heads) * u64::from(shape.head_dim) * shape.kv.bytes() as u64;
    let mut traffic = Traffic { bytes: 0, operations: 0 };
    for sequence in sequences {
        let (rows, first) = (u64::from(sequence.rows), u64::from(sequence.first_position));
        let seen = rows * first + rows * (rows + 1) / 2;
        traffic.bytes += (first + rows) * key + 2 * rows * row;
        traffic.operations += seen * 4 * u64::from(shape.heads) * u64::from(shape.head_dim);
    }
    traffic
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_cover_every_row_once() {
        for group in 1..=16 {
            for variant in [Variant::Narrow, Variant::Wide, Variant::Tall] {
                for rows in [0, 1, 2, 7, 16, 17, 40, 128, 129, 500] {
                    let sequence = SequenceRows { first_row: 3, rows, first_position: 100, table_offset: 9 };
                    let mut items = Vec::new();
                    plan_items(&[sequence], group, variant, &mut items);
                    assert_eq!(items.len() as u32, rows.div_ceil(variant.tokens(group)));
                    let mut done = 0;
                    for item in &items {
                        assert!(item.rows > 0 && item.rows * group <= variant.packed_rows());
                        assert_eq!((item.first_row, item.first_position), (3 + done, 100 + done));
                        assert_eq!((item.table_offset, item.cached), (9, 100));
                        done += item.rows;
                    }
                    assert_eq!(done, rows);
                }
            }
        }
    }

    #[test]
    fn splits_fill_the_card() {
        assert_eq!(choose_splits(Variant::Narrow, 1, 4, 4096, 132), 64);
        assert_eq!(choose_splits(Variant::Narrow, 4, 4, 4096, 132), 16);
        assert_eq!(choose_splits(Variant::Narrow, 1, 4, 4096, 36), 18);
        assert_eq!(choose_splits(Variant::Narrow, 1, 4, 300, 132), 5);
        assert_eq!(choose_splits(Variant::Wide, 2, 4, 4096, 132), 16);
        assert_eq!(choose_splits(Variant::Wide, 1, 4, 4096, 132), 32);
        assert_eq!(choose_splits(Variant::Tall, 114, 4, 2048, 132), 1);
        assert_eq!(choose_splits(Variant::Narrow, 0, 4, 0, 132), 1);
    }

    #[test]
    fn traffic_of_a_decode_step() {
        let shape = AttentionShape { heads: 28, kv_heads: 4, head_dim: 128, kv: KvFormat::F16 };
        let decode = SequenceRows { first_row: 0, rows: 1, first_position: 4095, table_offset: 0 };
        let traffic = traffic(&shape, &[decode]);
        assert_eq!(traffic.bytes, 4096 * 2048 + 2 * 28 * 128 * 2);
        assert_eq!(traffic.operations, 4096 * 4 * 28 * 128);
    }

    #[test]
    fn shared_memory_fits_every_card() {
        for variant in [Variant::Narrow, Variant::Wide, Variant::Tall] {
            assert!(variant.shared_bytes(128) <= 99 * 1024);
        }
    }
}
