//! Chooses the kernel and cuts the work up for the card.

use bytemuck::{Pod, Zeroable};

use super::{Format, Linear, LinearSpec, PIECE_INPUTS, Pairing};
use crate::attention::KvFormat;
use crate::device::{Buffer, Device, DeviceError, DeviceProperties, Launch};

/// Rows up to which the stream kernels are used.
pub const STREAM_ROWS: usize = 16;
/// Rows up to which computing the norm in every block is cheaper than in a kernel of its own.
const FUSED_NORM_ROWS: usize = 4;
/// Shared memory that a block may have on every card from sm_80 on.
const SHARED_LIMIT: usize = 99 << 10;
/// Shared memory that the card takes for itself with every block.
const SHARED_RESERVED: usize = 1 << 10;

/// Warps of a stream block, each with a piece of the same round.
const STREAM_WARPS: usize = 8;
/// Blocks of 256 threads of 128 registers that fit on a multiprocessor.
const STREAM_BLOCKS: usize = 2;
/// Tiles of 16 outputs that a tile block computes.
const BLOCK_TILES: usize = 8;

/// What a product's rows are made of.
#[derive(Clone, Copy, Debug)]
pub enum Input {
    /// The residual stream after RMSNorm, computed by the kernel itself; only for up to [`STREAM_ROWS`] rows.
    Normed {
        /// fp32 `[..][input]`.
        residual: Buffer,
        /// The norm's weights, fp32 `[input]`.
        norm: Buffer,
        /// What is added to the mean of the squares.
        epsilon: f32,
        /// Which row of the residual stream each row is, u32 `[rows]`, `u32::MAX` for a row of zeros; without it,
        /// row i is row i.
        gather: Option<Buffer>,
    },
    /// fp16 `[rows][input]`.
    F16(Buffer),
}

/// What becomes of the sums.
#[derive(Clone, Copy, Debug)]
pub enum Epilogue {
    /// Written; for [`Pairing::Plain`].
    StoreF32 {
        /// fp32 `[rows][output]`.
        to: Buffer,
        /// fp32 `[output]`.
        bias: Option<Buffer>,
    },
    /// Added to what is there; for [`Pairing::Plain`].
    AddF32 {
        /// fp32 `[rows][output]`.
        to: Buffer,
    },
    /// `silu(gate) * up`; for [`Pairing::Gated`].
    GatedF16 {
        /// fp16 `[rows][output / 2]`.
        to: Buffer,
    },
    /// For [`Pairing::Qkv`].
    Qkv(QkvEpilogue),
}

/// Adds the bias, rotates queries and keys, writes the queries and appends keys and values to the cache.
#[derive(Clone, Copy, Debug)]
pub struct QkvEpilogue {
    /// fp32 `[output]`.
    pub bias: Option<Buffer>,
    /// u32 `[rows]`.
    pub positions: Buffer,
    /// Where the row's key and value go, u32 `[rows]`: block * 16 + place in the block; `u32::MAX`: nowhere.
    pub slots: Buffer,
    /// fp32 `[position][head_dim / 2][2]`: cosine and sine.
    pub rotary: Buffer,
    /// fp16 `[rows][heads * head_dim]`.
    pub queries: Buffer,
    /// `[block][kv_head][16][head_dim]`.
    pub keys: Buffer,
    /// The same.
    pub values: Buffer,
    /// Of keys and values.
    pub kv: KvFormat,
}

/// Device memory for sums on their way between blocks. One is enough for all products of a device, as each
/// waits for the one before it.
#[derive(Clone, Copy, Debug)]
pub struct Scratch {
    /// [`ScratchSize::partials`] bytes or more, contents of no matter.
    pub partials: Buffer,
    /// [`ScratchSize::counters`] bytes or more, zeroed once; every product leaves zeros.
    pub counters: Buffer,
}

/// What a product needs in [`Scratch`], in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScratchSize {
    /// Sums.
    pub partials: usize,
    /// Counters.
    pub counters: usize,
}

impl ScratchSize {
    /// What is enough for both.
    #[must_use]
    pub fn max(self, other: Self) -> Self {
        Self { partials: self.partials.max(other.partials), counters: self.counters.max(other.counters) }
    }
}

/// Whether a product with so many rows should be given [`Input::Normed`], rather than a norm kernel's output:
/// every block normalizes all rows, which for a few is hidden behind its first weights' way from memory.
pub fn fuses_norm(rows: usize) -> bool {
    rows <= FUSED_NORM_ROWS
}

/// The scratch memory of a product.
pub fn scratch_size(spec: &LinearSpec, rows: usize, properties: &DeviceProperties) -> ScratchSize {
    if rows <= STREAM_ROWS {
        StreamPlan::new(spec, rows, properties).scratch(spec)
    } else {
        TilePlan::new(spec, rows, properties).scratch()
    }
}

/// Computes `rows` rows.
///
/// # Errors
/// When the device does not take the launch.
///
/// # Panics
/// When a buffer is too small, the epilogue does not go with the pairing, or a norm is asked for with more
/// than [`STREAM_ROWS`] rows.
pub fn run(
    device: &mut dyn Device,
    linear: &Linear,
    rows: usize,
    input: Input,
    epilogue: Epilogue,
    scratch: &Scratch,
) -> Result<(), DeviceError> {
    let spec = &linear.spec;
    spec.check();
    assert!(rows > 0, "a product without rows");
    let needed = scratch_size(spec, rows, device.properties());
    assert!(scratch.partials.bytes() >= needed.partials, "{needed:?} of scratch memory");
    assert!(scratch.counters.bytes() >= needed.counters, "{needed:?} of scratch memory");
    let operands = OperandBlock::new(linear, rows, input);
    let epilogue = EpilogueBlock::new(spec, rows, epilogue);
    let (partials, counters) = (scratch.partials.address(), scratch.counters.address());
    if rows <= STREAM_ROWS {
        let plan = StreamPlan::new(spec, rows, device.properties());
        let params = StreamParams {
            operands,
            epilogue,
            partials,
            counters,
            max_parts: plan.max_parts as u32,
            slices: plan.slices as u32,
            slice_pieces: plan.slice_pieces as u32,
            rounds: plan.rounds as u32,
            blocks: plan.blocks as u32,
            units: plan.units as u32,
            unit_rounds: plan.unit_rounds as u32,
            padding: 0,
        };
        device.launch(&Launch {
            kernel: stream_kernel(spec.format, plan.row_tiles),
            grid: [(plan.blocks * plan.slices) as u32, 1, 1],
            threads: (STREAM_WARPS * 32) as u32,
            shared_bytes: plan.shared_bytes,
            params: Launch::params(&params),
            overlap: true,
        })
    } else {
        assert!(matches!(input, Input::F16(_)), "{rows} rows with a norm; the limit is {STREAM_ROWS}");
        let plan = TilePlan::new(spec, rows, device.properties());
        let params = TileParams {
            operands,
            epilogue,
            partials,
            counters,
            splits: plan.splits as u32,
            split_pieces: plan.split_pieces as u32,
        };
        device.launch(&Launch {
            kernel: tile_kernel(spec.format, plan.variant.rows),
            grid: [plan.row_blocks as u32, plan.tile_blocks as u32, plan.splits as u32],
            threads: plan.variant.threads as u32,
            shared_bytes: plan.variant.shared_bytes,
            params: Launch::params(&params),
            overlap: true,
        })
    }
}

/// How the stream kernels share out a product: `cuda/linear_stream.cu` says what the parts are.
#[derive(Debug, PartialEq, Eq)]
struct StreamPlan {
    /// Eights of rows.
    row_tiles: usize,
    slices: usize,
    slice_pieces: usize,
    rounds: usize,
    blocks: usize,
    units: usize,
    unit_rounds: usize,
    max_parts: usize,
    shared_bytes: usize,
}

impl StreamPlan {
    /// The blocks are those that fit on the card together. Slices are as few as make the rows' inputs fit into
    /// a block's shared memory. Whole tiles are dealt out where that is even to 3 %, else rounds, at least
    /// two for a block.
    fn new(spec: &LinearSpec, rows: usize, properties: &DeviceProperties) -> Self {
        let row_tiles = rows.div_ceil(8);
        let sums = 2 * STREAM_WARPS * row_tiles * 512;
        let squares = 8 * row_tiles * STREAM_WARPS * 4;
        let row_bytes = |pieces: usize| pieces * 2 * PIECE_INPUTS + 64;
        let limit = properties.shared_memory_per_block.min(SHARED_LIMIT) - sums - squares;
        let pieces = spec.pieces();
        let mut slice_pieces = pieces;
        let mut slices = 1;
        while rows * row_bytes(slice_pieces) > limit {
            slices += 1;
            slice_pieces = pieces.div_ceil(slices);
        }
        slices = pieces.div_ceil(slice_pieces);
        let shared_bytes = sums + squares + rows * row_bytes(slice_pieces);

        let resident = (properties.shared_memory_per_multiprocessor / (shared_bytes + SHARED_RESERVED))
            .clamp(1, STREAM_BLOCKS);
        let card = (properties.multiprocessors as usize * resident / slices).max(1);
        let (tiles, rounds) = (spec.tiles(), slice_pieces.div_ceil(STREAM_WARPS));
        let most = tiles.div_ceil(card);
        let even = 100 * most * card <= 103 * tiles;
        // The kernels compute with such products in 32 bits.
        assert!(tiles * rounds * card <= u32::MAX as usize, "{spec:?} is too large");
        let (units, unit_rounds) = if even || rounds == 1 { (tiles, rounds) } else { (tiles * rounds, 1) };
        let blocks =
            if unit_rounds == 1 && rounds > 1 { card.min(units / 2) } else { card.min(units) }.max(1);
        let fewest = units / blocks * unit_rounds;
        let parts = if unit_rounds == rounds { 1 } else { (rounds - 1).div_ceil(fewest) + 1 };
        Self {
            row_tiles,
            slices,
            slice_pieces,
            rounds,
            blocks,
            units,
            unit_rounds,
            max_parts: slices * parts,
            shared_bytes,
        }
    }

    fn scratch(&self, spec: &LinearSpec) -> ScratchSize {
        if self.max_parts == 1 {
            return ScratchSize::default();
        }
        ScratchSize {
            partials: spec.tiles() * self.max_parts * self.row_tiles * 512,
            counters: 4 * spec.tiles(),
        }
    }
}

/// A size of tile block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct TileVariant {
    rows: usize,
    threads: usize,
    shared_bytes: usize,
    /// Blocks that the registers of a multiprocessor suffice for.
    resident: usize,
}

impl TileVariant {
    fn new(format: Format, rows: usize) -> Self {
        // Scales and zeros of a piece; the latter copied 16 bytes at a time.
        let extras = match format {
            Format::Int4 { group: 32 } => 64 + 16,
            Format::Int4 { .. } => 32 + 16,
            Format::Int8 => 32,
            Format::F16 | Format::Fp8 => 0,
        };
        let stage = BLOCK_TILES * (format.piece_bytes() + extras) + rows * 2 * PIECE_INPUTS;
        let stages = if rows == 64 || format == Format::F16 { 3 } else { 4 };
        Self { rows, threads: 2 * rows, shared_bytes: stages * stage, resident: 256 / rows }
    }
}

/// How the tile kernels share out a product.
#[derive(Debug, PartialEq, Eq)]
struct TilePlan {
    variant: TileVariant,
    row_blocks: usize,
    tile_blocks: usize,
    splits: usize,
    split_pieces: usize,
}

impl TilePlan {
    /// Blocks of 128 rows, unless blocks of 64 leave less empty. The inputs are split as is cheapest by
    /// this account, in stages of a block: every wave of blocks takes its stages and four more to begin and
    /// end; with a split, three more to leave the sums behind, and one for each part in the adding up.
    fn new(spec: &LinearSpec, rows: usize, properties: &DeviceProperties) -> Self {
        let of_64 = rows.div_ceil(64);
        let variant = TileVariant::new(spec.format, if of_64 == 1 || of_64 == 3 { 64 } else { 128 });
        let row_blocks = rows.div_ceil(variant.rows);
        let tile_blocks = spec.tiles().div_ceil(BLOCK_TILES);
        let resident = properties.shared_memory_per_multiprocessor / (variant.shared_bytes + SHARED_RESERVED);
        let card = properties.multiprocessors as usize * resident.clamp(1, variant.resident);
        let pieces = spec.pieces();
        let cost = |splits: usize| {
            let waves = (row_blocks * tile_blocks * splits).div_ceil(card);
            let extra = if splits > 1 { 3 } else { 0 };
            waves * (pieces.div_ceil(splits) + 4 + extra) + if splits > 1 { splits } else { 0 }
        };
        let wanted = (1..=16.min(pieces)).min_by_key(|&splits| cost(splits)).expect("one or more");
        let split_pieces = pieces.div_ceil(wanted);
        Self { variant, row_blocks, tile_blocks, splits: pieces.div_ceil(split_pieces), split_pieces }
    }

    fn scratch(&self) -> ScratchSize {
        if self.splits == 1 {
            return ScratchSize::default();
        }
        let blocks = self.row_blocks * self.tile_blocks;
        // Sixteen fragments of four floats for every thread.
        ScratchSize { partials: blocks * self.splits * self.variant.threads * 16 * 16, counters: 4 * blocks }
    }
}

fn stream_kernel(format: Format, row_tiles: usize) -> &'static str {
    match (format, row_tiles) {
        (Format::Int4 { group: 32 }, 1) => "linear_stream_int4_g32_8",
        (Format::Int4 { group: 32 }, _) => "linear_stream_int4_g32_16",
        (Format::Int4 { group: 64 }, 1) => "linear_stream_int4_g64_8",
        (Format::Int4 { .. }, 1) => "linear_stream_int4_g128_8",
        (Format::Int4 { group: 64 }, _) => "linear_stream_int4_g64_16",
        (Format::Int4 { .. }, _) => "linear_stream_int4_g128_16",
        (Format::F16, 1) => "linear_stream_f16_8",
        (Format::F16, _) => "linear_stream_f16_16",
        (Format::Int8, 1) => "linear_stream_int8_8",
        (Format::Int8, _) => "linear_stream_int8_16",
        (Format::Fp8, 1) => "linear_stream_fp8_8",
        (Format::Fp8, _) => "linear_stream_fp8_16",
    }
}

fn tile_kernel(format: Format, rows: usize) -> &'static str {
    match (format, rows) {
        (Format::Int4 { group: 32 }, 64) => "linear_tile_int4_g32_64",
        (Format::Int4 { group: 32 }, _) => "linear_tile_int4_g32_128",
        (Format::Int4 { group: 64 }, 64) => "linear_tile_int4_g64_64",
        (Format::Int4 { .. }, 64) => "linear_tile_int4_g128_64",
        (Format::Int4 { group: 64 }, _) => "linear_tile_int4_g64_128",
        (Format::Int4 { .. }, _) => "linear_tile_int4_g128_128",
        (Format::F16, 64) => "linear_tile_f16_64",
        (Format::F16, _) => "linear_tile_f16_128",
        (Format::Int8, 64) => "linear_tile_int8_64",
        (Format::Int8, _) => "linear_tile_int8_128",
        (Format::Fp8, 64) => "linear_tile_fp8_64",
        (Format::Fp8, _) => "linear_tile_fp8_128",
    }
}

/// The address of a buffer that has at least so many bytes.
fn address(buffer: Buffer, bytes: usize, what: &str) -> u64 {
    assert!(buffer.bytes() >= bytes, "{what}: {} bytes, {bytes} are needed", buffer.bytes());
    buffer.address()
}

fn optional(buffer: Option<Buffer>, bytes: usize, what: &str) -> u64 {
    buffer.map_or(0, |buffer| address(buffer, bytes, what))
}

/// `linear::Operands` of `cuda/linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct OperandBlock {
    weights: u64,
    activations: u64,
    norm: u64,
    gather: u64,
    tile_bytes: u64,
    scales_at: u32,
    zeros_at: u32,
    pieces: u32,
    tiles: u32,
    input: u32,
    rows: u32,
    epsilon: f32,
    padding: u32,
}

impl OperandBlock {
    fn new(linear: &Linear, rows: usize, input: Input) -> Self {
        let spec = &linear.spec;
        let mut block = Self {
            weights: address(linear.weights, spec.packed_bytes(), "weights"),
            activations: 0,
            norm: 0,
            gather: 0,
            tile_bytes: spec.tile_bytes() as u64,
            scales_at: spec.scales_at() as u32,
            zeros_at: spec.zeros_at() as u32,
            pieces: spec.pieces() as u32,
            tiles: spec.tiles() as u32,
            input: spec.input as u32,
            rows: rows as u32,
            epsilon: 0.0,
            padding: 0,
        };
        match input {
            Input::F16(activations) => {
                block.activations = address(activations, 2 * rows * spec.input, "activations")
            }
            Input::Normed { residual, norm, epsilon, gather } => {
                let least = if gather.is_some() { 0 } else { 4 * rows * spec.input };
                block.activations = address(residual, least, "the residual stream");
                block.norm = address(norm, 4 * spec.input, "norm weights");
                block.gather = optional(gather, 4 * rows, "the gather list");
                block.epsilon = epsilon;
            }
        }
        block
    }
}

/// `linear::Epilogue` of `cuda/linear.cuh`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct EpilogueBlock {
    to: u64,
    bias: u64,
    positions: u64,
    slots: u64,
    rotary: u64,
    keys: u64,
    values: u64,
    kind: u32,
    outputs: u32,
    heads: u32,
    kv_heads: u32,
    head_dim: u32,
    kv_is_fp8: u32,
}

impl EpilogueBlock {
    fn new(spec: &LinearSpec, rows: usize, epilogue: Epilogue) -> Self {
        let mut block = Self { outputs: spec.output as u32, ..Self::zeroed() };
        match (epilogue, spec.pairing) {
            (Epilogue::StoreF32 { to, bias }, Pairing::Plain) => {
                block.kind = 0;
                block.to = address(to, 4 * rows * spec.output, "outputs");
                block.bias = optional(bias, 4 * spec.output, "the bias");
            }
            (Epilogue::AddF32 { to }, Pairing::Plain) => {
                block.kind = 1;
                block.to = address(to, 4 * rows * spec.output, "outputs");
            }
            (Epilogue::GatedF16 { to }, Pairing::Gated) => {
                block.kind = 2;
                block.to = address(to, rows * spec.output, "outputs");
            }
            (Epilogue::Qkv(qkv), Pairing::Qkv { heads, kv_heads, head_dim }) => {
                block.kind = 3;
                block.to = address(qkv.queries, 2 * rows * heads * head_dim, "queries");
                block.bias = optional(qkv.bias, 4 * spec.output, "the bias");
                block.positions = address(qkv.positions, 4 * rows, "positions");
                block.slots = address(qkv.slots, 4 * rows, "slots");
                block.rotary = address(qkv.rotary, 4 * head_dim, "the rotary table");
                block.keys = qkv.keys.address();
                block.values = qkv.values.address();
                block.heads = heads as u32;
                block.kv_heads = kv_heads as u32;
                block.head_dim = head_dim as u32;
                block.kv_is_fp8 = u32::from(qkv.kv == KvFormat::F8);
            }
            (epilogue, pairing) => panic!("{epilogue:?} with weights packed for {pairing:?}"),
        }
        block
    }
}

/// `linear::StreamParams` of `cuda/linear_stream.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct StreamParams {
    operands: OperandBlock,
    epilogue: EpilogueBlock,
    partials: u64,
    counters: u64,
    max_parts: u32,
    slices: u32,
    slice_pieces: u32,
    rounds: u32,
    blocks: u32,
    units: u32,
    unit_rounds: u32,
    padding: u32,
}

/// `linear::TileParams` of `cuda/linear_tile.cu`.
#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct TileParams {
    operands: OperandBlock,
    epilogue: EpilogueBlock,
    partials: u64,
    counters: u64,
    splits: u32,
    split_pieces: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn card(multiprocessors: u32, shared_kb: usize) -> DeviceProperties {
        DeviceProperties {
            name: "a card".to_owned(),
            compute_capability: (9, 0),
            multiprocessors,
            shared_memory_per_block: (shared_kb - 1) << 10,
            shared_memory_per_multiprocessor: shared_kb << 10,
            l2_bytes: 50 << 20,
            memory_bytes: 80 << 30,
        }
    }

    fn spec(input: usize, output: usize, format: Format) -> LinearSpec {
        LinearSpec { format, input, output, pairing: Pairing::Plain }
    }

    const AWQ: Format = Format::Int4 { group: 128 };

    /// For all plans: every block has work, shared memory suffices, and no tile is in more parts than there
    /// is room for.
    #[test]
    fn plans_hold_together() {
        for properties in [card(132, 228), card(36, 100), card(4, 100), card(1, 100)] {
            for input in [64, 256, 320, 896, 3584, 18944, 27648] {
                for output in [16, 777, 1024, 4608, 37888, 152064] {
                    for rows in [1, 3, 8, 9, 16] {
                        let spec = spec(input, output, AWQ);
                        let plan = StreamPlan::new(&spec, rows, &properties);
                        assert!(plan.shared_bytes <= SHARED_LIMIT);
                        assert!(plan.slices * plan.slice_pieces >= spec.pieces());
                        assert!((plan.slices - 1) * plan.slice_pieces < spec.pieces());
                        assert!(plan.blocks <= plan.units);
                        assert_eq!(plan.units * plan.unit_rounds, spec.tiles() * plan.rounds);
                        let block_of = |unit: usize| ((unit + 1) * plan.blocks - 1) / plan.units;
                        for tile in 0..spec.tiles() {
                            let first = block_of(tile * plan.rounds / plan.unit_rounds);
                            let last = block_of(((tile + 1) * plan.rounds - 1) / plan.unit_rounds);
                            assert!((last - first + 1) * plan.slices <= plan.max_parts, "{plan:?}");
                        }
                    }
                    for rows in [17, 64, 65, 130, 2048] {
                        for format in
                            [AWQ, Format::Int4 { group: 32 }, Format::F16, Format::Int8, Format::Fp8]
                        {
                            let spec = spec(input, output, format);
                            let plan = TilePlan::new(&spec, rows, &properties);
                            assert!(plan.variant.shared_bytes <= SHARED_LIMIT, "{plan:?}");
                            assert!(plan.splits * plan.split_pieces >= spec.pieces());
                            assert!((plan.splits - 1) * plan.split_pieces < spec.pieces());
                        }
                    }
                }
            }
        }
    }

    /// The sizes that matter most: no block of an H200 has more than a few percent above the mean.
    #[test]
    fn decode_of_a_7b_model_is_even() {
        for (input, output) in [(3584, 37888), (18944, 3584), (3584, 152064)] {
            let plan = StreamPlan::new(&spec(input, output, AWQ), 1, &card(132, 228));
            assert_eq!((plan.slices, plan.blocks), (1, 264));
            let most = plan.units.div_ceil(plan.blocks) * plan.blocks;
            assert!(100 * most <= 103 * plan.units, "{plan:?}");
        }
    }
}
