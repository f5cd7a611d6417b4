// `y = x W^T` for more than 16 rows: tails and prefill. A block computes 128 outputs for 64 or 128 rows.
//
// Weights and activations come through shared memory, one piece of 64 inputs a stage, several stages under way
// (cp.async). Each warp has two weight tiles (32 outputs) and eight row tiles (64 rows): four warps make 128
// outputs, and 128 rows take twice four warps. A warp turns its weights into operands once a stage and uses
// them for all of its rows. Here the scale is put on the weights, in fp16: (q - z) s is rounded once, to
// 2^-11 of its size, which is what fp16 weights have; sums of their own for every group would take 64 more
// registers.
//
//     stage:  weights [8 tiles][loads][512] | scales, zeros [8 tiles] | activations [rows][128 bytes]
//
// Activations are read as in the stream kernels, 16 bytes a lane, eight lanes at a time from two neighbouring
// rows; odd rows have the halves of their 128 bytes exchanged so that those do not meet in a bank.
//
// Where there are too few blocks for the card the inputs are split, too (grid z); each part leaves its sums in
// scratch memory, and the last to arrive adds them up in order.
#include "linear.cuh"

namespace linear {

// Tiles, warps along the outputs, tiles of a warp; row tiles of a warp.
constexpr u32 BLOCK_TILES = 8;
constexpr u32 TILE_WARPS = 4;
constexpr u32 WARP_TILES = BLOCK_TILES / TILE_WARPS;
constexpr u32 WARP_ROW_TILES = 8;
constexpr u32 WARP_ROWS = 8 * WARP_ROW_TILES;
// A warp's accumulators, in fours.
constexpr u32 FRAGMENTS = WARP_TILES * WARP_ROW_TILES;

struct TileParams {
    Operands o;
    Epilogue e;
    // With a split: fp32 [block][split][fragment][thread][4], and a counter of zero for each block.
    float* partials;
    u32* counters;
    u32 splits;
    // Of a split; the last may have fewer.
    u32 split_pieces;
};

template <class Format, u32 row_warps>
struct Stage {
    static constexpr u32 THREADS = TILE_WARPS * row_warps * WARP;
    static constexpr u32 ROWS = row_warps * WARP_ROWS;
    static constexpr u32 EXTRAS_AT = BLOCK_TILES * WEIGHT_BYTES<Format>;
    static constexpr u32 ACTIVATIONS_AT = EXTRAS_AT + BLOCK_TILES * EXTRA_BYTES<Format>;
    static constexpr u32 BYTES = ACTIVATIONS_AT + ROWS * 2 * PIECE_INPUTS;

    // Tiles behind the last are read as that one's weights; nothing is written for them.
    static DEVICE const u8* tile(const Operands& o, u32 first_tile, u32 i) {
        u32 tile = first_tile + i < o.tiles ? first_tile + i : o.tiles - 1;
        return o.weights + tile * o.tile_bytes;
    }
    static DEVICE void copy_weights(const Operands& o, u8* stage, u32 first_tile, u32 piece) {
        constexpr u32 chunks = WEIGHT_BYTES<Format> / 16;
#pragma unroll
        for (u32 i = 0; i < BLOCK_TILES * chunks / THREADS; i++) {
            u32 chunk = i * THREADS + thread_index();
            const u8* from = tile(o, first_tile, chunk / chunks);
            copy_async_16(stage + 16 * chunk, from + static_cast<u64>(piece) * WEIGHT_BYTES<Format> + chunk % chunks * 16, true);
        }
        constexpr u32 extras = EXTRA_BYTES<Format> / 16;
        if constexpr (extras > 0) {
            if (thread_index() < BLOCK_TILES * extras) {
                u32 i = thread_index() / extras, byte = thread_index() % extras * 16;
                u32 group = group_of<Format>(piece);
                u32 at = byte < SCALE_BYTES<Format> ? o.scales_at + group * GROUP_SCALE_BYTES + byte
                                                    : o.zeros_at + group * GROUP_ZERO_BYTES / 16 * 16;
                copy_async_16(stage + EXTRAS_AT + i * EXTRA_BYTES<Format> + byte, tile(o, first_tile, i) + at, true);
            }
        }
    }

    static DEVICE u32 place(u32 row, u32 chunk) { return row * 128 + (chunk ^ (row % 2 * 4)) * 16; }

    static DEVICE void copy_activations(const Operands& o, u8* stage, u32 first_row, u32 piece) {
        const u16* from = static_cast<const u16*>(o.activations);
#pragma unroll
        for (u32 i = 0; i < ROWS * 8 / THREADS; i++) {
            u32 row = (i * THREADS + thread_index()) / 8, chunk = thread_index() % 8;
            u32 input = piece * PIECE_INPUTS + 8 * chunk;
            bool valid = first_row + row < o.rows && input < o.input;
            copy_async_16(stage + ACTIVATIONS_AT + place(row, chunk),
                          from + (valid ? static_cast<u64>(first_row + row) * o.input + input : 0), valid);
        }
    }
};

// The operands of products 2 half and 2 half + 1 of a weight tile, scaled.
template <class Format>
DEVICE void scaled_fragments(const Words4 (&words)[Format::LOADS], const typename Format::Scales& scales, u32 half,
                             u32 (&a)[2][4]) {
#pragma unroll
    for (u32 j = 0; j < 2; j++) {
        Format::fragment(words, scales, 2 * half + j, a[j]);
        if constexpr (PARTS<Format> > 0) {
            u32 both = scales.scales[PARTS<Format> == 2 ? half : 0];
            u32 low = pick_bytes(both, 0, 0x1010), high = pick_bytes(both, 0, 0x3232);
#pragma unroll
            for (u32 i = 0; i < 4; i++) a[j][i] = multiply_pairs(a[j][i], i % 2 ? high : low);
        }
    }
}

// A stage's share of a warp: its tiles from `first_tile`, its rows from `first_row` of the block's, of which
// the first `row_tiles` row tiles have anything in them.
template <class Format, u32 row_warps>
DEVICE void multiply_stage(const u8* stage, u32 zeros_skip, u32 first_tile, u32 first_row, u32 row_tiles,
                           float (&sums)[WARP_TILES][WARP_ROW_TILES][4]) {
    using Layout = Stage<Format, row_warps>;
    u32 lane = lane_index(), g = lane / 4, t = lane % 4;
    Words4 words[WARP_TILES][Format::LOADS];
    typename Format::Scales scales[WARP_TILES];
#pragma unroll
    for (u32 i = 0; i < WARP_TILES; i++) {
        const u8* from = stage + (first_tile + i) * WEIGHT_BYTES<Format> + 16 * lane;
#pragma unroll
        for (u32 k = 0; k < Format::LOADS; k++) words[i][k] = *reinterpret_cast<const Words4*>(from + LOAD_BYTES * k);
        const u8* extras = stage + Layout::EXTRAS_AT + (first_tile + i) * EXTRA_BYTES<Format>;
        scales[i] = Format::Scales::load(extras, extras + SCALE_BYTES<Format> + zeros_skip);
    }
    const u8* activations = stage + Layout::ACTIVATIONS_AT;
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        u32 a[WARP_TILES][2][4];
#pragma unroll
        for (u32 i = 0; i < WARP_TILES; i++) scaled_fragments<Format>(words[i], scales[i], half, a[i]);
#pragma unroll
        for (u32 n = 0; n < WARP_ROW_TILES; n++) {
            if (n < row_tiles) {
                u32 row = first_row + 8 * n + g;
                Words4 x = *reinterpret_cast<const Words4*>(activations + Layout::place(row, 4 * half + t));
                u32 b[2][2] = {{x.x, x.y}, {x.z, x.w}};
#pragma unroll
                for (u32 i = 0; i < WARP_TILES; i++)
#pragma unroll
                    for (u32 j = 0; j < 2; j++) multiply_add(sums[i][n], a[i][j], b[j]);
            }
        }
    }
}

template <class Format, u32 row_warps, u32 stages>
DEVICE void tile_product(const TileParams& p) {
    using Layout = Stage<Format, row_warps>;
    constexpr u32 threads = Layout::THREADS;
    const Operands& o = p.o;
    u32 first_row = block_x() * Layout::ROWS, first_tile = block_y() * BLOCK_TILES;
    u32 first_piece = block_z() * p.split_pieces;
    u32 pieces = o.pieces - first_piece < p.split_pieces ? o.pieces - first_piece : p.split_pieces;
    u8* shared = shared_memory();

    u32 warp = warp_index();
    u32 warp_tile = warp % TILE_WARPS * WARP_TILES;
    u32 warp_row = warp / TILE_WARPS * WARP_ROWS;
    u32 rows_left = o.rows > first_row + warp_row ? o.rows - first_row - warp_row : 0;
    u32 row_tiles = rows_left >= WARP_ROWS ? WARP_ROW_TILES : (rows_left + 7) / 8;

    // Weights do not depend on the kernel before; the first stages' are asked for while that one ends.
    for (u32 i = 0; i < stages - 1; i++)
        if (i < pieces) Layout::copy_weights(o, shared + i * Layout::BYTES, first_tile, first_piece + i);
    let_next_kernel_start();
    wait_for_previous_kernel();
    for (u32 i = 0; i < stages - 1; i++) {
        if (i < pieces) Layout::copy_activations(o, shared + i * Layout::BYTES, first_row, first_piece + i);
        copy_async_commit();
    }

    float sums[WARP_TILES][WARP_ROW_TILES][4] = {};
    u32 slot = 0, free_slot = stages - 1;
    for (u32 i = 0; i < pieces; i++) {
        copy_async_wait<stages - 2>();
        // Everybody's copies of this stage are there, and nobody reads the one before any more.
        block_barrier();
        u32 ahead = i + stages - 1;
        if (ahead < pieces) {
            u8* stage = shared + free_slot * Layout::BYTES;
            Layout::copy_weights(o, stage, first_tile, first_piece + ahead);
            Layout::copy_activations(o, stage, first_row, first_piece + ahead);
        }
        copy_async_commit();
        u32 zeros_skip = zeros_skip_of<Format>(first_piece + i);
        multiply_stage<Format, row_warps>(shared + slot * Layout::BYTES, zeros_skip, warp_tile, warp_row, row_tiles, sums);
        free_slot = slot;
        slot = slot + 1 == stages ? 0 : slot + 1;
    }
    copy_async_wait<0>();
    block_barrier();

    // The sums go through memory, shared or scratch, so that the epilogue is a loop: unrolled sixteen times
    // it would be most of the kernel's code. Every thread reads back what it wrote itself.
    u32 block = block_y() * grid_x() + block_x();
    Floats4* own = reinterpret_cast<Floats4*>(shared) + thread_index();
    Floats4* scratch = reinterpret_cast<Floats4*>(p.partials) +
                       static_cast<u64>(block) * p.splits * FRAGMENTS * threads + thread_index();
    Floats4* to = p.splits > 1 ? scratch + static_cast<u64>(block_z()) * FRAGMENTS * threads : own;
#pragma unroll
    for (u32 i = 0; i < WARP_TILES; i++) {
#pragma unroll
        for (u32 n = 0; n < WARP_ROW_TILES; n++) {
            const float(&s)[4] = sums[i][n];
            if (n < row_tiles) to[(i * WARP_ROW_TILES + n) * threads] = {{s[0], s[1], s[2], s[3]}};
        }
    }
    if (p.splits > 1) {
        // The other threads' numbers come through shared memory, which nobody uses any more.
        u32* number = reinterpret_cast<u32*>(shared);
        block_barrier();
        if (thread_index() == 0) *number = take_number(p.counters + block, p.splits - 1);
        block_barrier();
        if (*number != p.splits - 1) return;
    }
    for (u32 i = 0; i < WARP_TILES; i++) {
        u32 tile = first_tile + warp_tile + i;
        if (tile >= o.tiles) return;
        for (u32 n = 0; n < row_tiles; n++) {
            u32 fragment = (i * WARP_ROW_TILES + n) * threads;
            Floats4 sum{};
            if (p.splits > 1) {
                for (u32 split = 0; split < p.splits; split++) {
                    Floats4 v = scratch[static_cast<u64>(split) * FRAGMENTS * threads + fragment];
#pragma unroll
                    for (u32 k = 0; k < 4; k++) sum.at[k] += v.at[k];
                }
            } else {
                sum = own[fragment];
            }
            finish_sums<Format>(o, tile, sum);
            finish_tile(p.e, tile, first_row + warp_row + 8 * n, o.rows, sum);
        }
    }
}

}  // namespace linear

// 128 registers a thread allow 16 warps a multiprocessor. Stages for 128 rows fill up to 99 KB of shared memory,
// two blocks on a card with 228 KB; for 64 rows (but for fp16) as many as leave room for a second block in the
// 100 KB of a small card.
#define TILE_KERNELS(format, Format, stages_64, stages_128)                                                  \
    KERNEL(linear_tile_##format##_64, linear::TileParams, 128, 4) {                                          \
        linear::tile_product<linear::Format, 1, stages_64>(p);                                               \
    }                                                                                                        \
    KERNEL(linear_tile_##format##_128, linear::TileParams, 256, 2) {                                         \
        linear::tile_product<linear::Format, 2, stages_128>(p);                                              \
    }

TILE_KERNELS(int4_g128, Int4<128>, 3, 4)
TILE_KERNELS(int4_g64, Int4<64>, 3, 4)
TILE_KERNELS(int4_g32, Int4<32>, 3, 4)
TILE_KERNELS(f16, F16, 3, 3)
TILE_KERNELS(int8, Int8, 3, 4)
TILE_KERNELS(fp8, Fp8, 3, 4)
