// Attention for many packed rows: drafts, tails and prompts.
//
// Four warps own 16 (`wide`) or 32 (`tall`) packed rows each and share tiles of 64 keys, which come through
// shared memory: while one tile is worked on, the next one's copies are under way, one barrier a tile.
//
//   wide   64 rows a block. Queries stay in registers, and two or three blocks fit on a multiprocessor.
//   tall  128 rows a block. Every operand read from shared memory serves two row tiles, and every byte read
//         from the second-level cache 128 rows; on cards with fast tensor cores both are what limits `wide`.
//         Queries are in shared memory, too, as the sums alone take half the registers.
//
// Eight-bit caches are copied as they are and turned into halves in a step of their own once they have
// arrived: the same shared memory as two tiles of halves, half the traffic from global memory.
//
// A row of `head_dim` halves is 8 or 16 chunks of 16 bytes; chunk c of row r lies at place c ^ (r % 8), so
// that the eight rows of a matrix that is loaded, all at the same chunk, lie in different banks.
//
// Grouped heads make the causal edge thin: 128 rows of a group of 7 are 18 tokens, so beside the last tile or
// two there is nothing to mask, and tiles that none of a warp's rows sees are left out.
#pragma once

#include "attention.cuh"

constexpr u32 WIDE_WARPS = 4;
constexpr u32 WIDE_THREADS = WIDE_WARPS * WARP;

// Keys whose scores a warp holds at once. The sums of two row tiles leave room for half a tile's.
template <u32 tiles>
constexpr u32 KEYS_AT_ONCE = tiles == 1 ? KEY_TILE : KEY_TILE / 2;

// Place of a chunk, in halves, in a tile of rows of `head_dim` halves.
template <u32 head_dim>
DEVICE u32 swizzled(u32 row, u32 chunk) {
    return row * head_dim + (chunk ^ (row % 8)) * 8;
}

template <u32 head_dim, bool f8, u32 tiles>
struct WideShared {
    static constexpr u32 STAGES = f8 ? 1 : 2;
    struct Tile {
        u16 keys[KEY_TILE * head_dim];
        u16 values[KEY_TILE * head_dim];
    };
    Tile tiles_of_halves[STAGES];
    u8 arriving[f8 ? 2 : 1][f8 ? 2 * KEY_TILE * head_dim : 16];  // Eight-bit tiles: keys, then values.
    u16 queries[tiles > 1 ? tiles * 16 * WIDE_WARPS * head_dim : 8];
};

// Starts the copies of the tile of keys and values at `first_key`. Places behind the item's last key become
// zeros: what the cache has there may be anything.
template <u32 head_dim, bool f8, u32 tiles>
DEVICE void start_tile(const AttentionParams& p, WideShared<head_dim, f8, tiles>& shared, u32 stage,
                       const u32* table, u32 first_key, u32 keys) {
    constexpr u32 CHUNK = 16 / Stored<f8>::BYTES;        // Numbers in 16 bytes.
    constexpr u32 CHUNKS = head_dim / CHUNK;             // Chunks in a row.
    constexpr u32 ROWS_AT_ONCE = WIDE_THREADS / CHUNKS;  // 8, 16 or 32.
    constexpr u32 STEPS = KEY_TILE / ROWS_AT_ONCE;
    // `tall` has no registers to spare.
    [[maybe_unused]] constexpr u32 UNROLLED = tiles > 1 && STEPS > 2 ? 2 : STEPS;
    const u32 chunk = thread_index() % CHUNKS;
#pragma unroll UNROLLED
    for (u32 i = 0; i < STEPS; ++i) {
        const u32 row = thread_index() / CHUNKS + i * ROWS_AT_ONCE;
        const bool valid = first_key + row < keys;
        const u32 position = valid ? first_key + row : keys - 1;
        const u64 token =
            (static_cast<u64>(table[position / PAGE]) * grid_y() + block_y()) * PAGE + position % PAGE;
        const u64 from = (token * head_dim + chunk * CHUNK) * Stored<f8>::BYTES;
        void *key, *value;
        if constexpr (f8) {
            key = shared.arriving[stage] + row * head_dim + chunk * 16;
            value = shared.arriving[stage] + (KEY_TILE + row) * head_dim + chunk * 16;
        } else {
            key = shared.tiles_of_halves[stage].keys + swizzled<head_dim>(row, chunk);
            value = shared.tiles_of_halves[stage].values + swizzled<head_dim>(row, chunk);
        }
        copy_async_16(key, p.keys + from, valid);
        copy_async_16(value, p.values + from, valid);
    }
    copy_async_commit();
}

// Turns an eight-bit tile that has arrived into halves.
template <u32 head_dim>
DEVICE void convert_tile(u16* keys, u16* values, const u8* arrived) {
#pragma unroll
    for (u32 i = 0; i < 2 * KEY_TILE * head_dim / 16 / WIDE_THREADS; ++i) {
        const u32 from = thread_index() + i * WIDE_THREADS;
        const u32 row = from / (head_dim / 16), chunk = from % (head_dim / 16) * 2;
        const Words4 codes = *reinterpret_cast<const Words4*>(arrived + from * 16);
        u16* to = row < KEY_TILE ? keys : values;
        *reinterpret_cast<Words4*>(to + swizzled<head_dim>(row % KEY_TILE, chunk)) =
            Stored<true>::halves({codes.x, codes.y});
        *reinterpret_cast<Words4*>(to + swizzled<head_dim>(row % KEY_TILE, chunk + 1)) =
            Stored<true>::halves({codes.z, codes.w});
    }
}

// A warp's queries as left operands: in registers for one row tile, read from shared memory for two.
template <u32 head_dim, u32 tiles>
struct WarpQueries;

template <u32 head_dim>
struct WarpQueries<head_dim, 1> {
    u32 fragments[head_dim / 16][4];

    // `row` gives the start of packed row g or g + 8, or null.
    template <typename Row>
    DEVICE void load(u16*, Row row) {
        const u16* low = row(lane_index() / 4);
        const u16* high = row(lane_index() / 4 + 8);
        const u32 column = 2 * (lane_index() % 4);
        auto pair = [](const u16* from, u32 at) {
            return from == nullptr ? 0 : *reinterpret_cast<const u32*>(from + at);
        };
#pragma unroll
        for (u32 k = 0; k < head_dim / 16; ++k) {
            fragments[k][0] = pair(low, 16 * k + column);
            fragments[k][1] = pair(high, 16 * k + column);
            fragments[k][2] = pair(low, 16 * k + column + 8);
            fragments[k][3] = pair(high, 16 * k + column + 8);
        }
    }
    DEVICE void fragment(u32 (&to)[1][4], const u16*, u32 k) const {
#pragma unroll
        for (u32 i = 0; i < 4; ++i) to[0][i] = fragments[k][i];
    }
};

template <u32 head_dim>
struct WarpQueries<head_dim, 2> {
    template <typename Row>
    DEVICE void load(u16* queries, Row row) {
#pragma unroll 4
        for (u32 i = lane_index(); i < 32 * head_dim / 8; i += WARP) {
            const u32 at = i / (head_dim / 8), chunk = i % (head_dim / 8);
            const u16* from = row(at);
            Words4 numbers{0, 0, 0, 0};
            if (from != nullptr) numbers = *reinterpret_cast<const Words4*>(from + 8 * chunk);
            *reinterpret_cast<Words4*>(queries + swizzled<head_dim>(at, chunk)) = numbers;
        }
        warp_barrier();
    }
    DEVICE void fragment(u32 (&to)[2][4], const u16* queries, u32 k) const {
#pragma unroll
        for (u32 i = 0; i < 2; ++i) {
            load_matrices(
                to[i], queries + swizzled<head_dim>(16 * i + lane_index() % 16, 2 * k + lane_index() / 16));
        }
    }
};

template <u32 head_dim, u32 tiles>
DEVICE void score_keys(float (&scores)[tiles][KEYS_AT_ONCE<tiles> / 8][4],
                       const WarpQueries<head_dim, tiles>& q, const u16* queries, const u16* keys) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (u32 i = 0; i < tiles; ++i) {
#pragma unroll
        for (u32 j = 0; j < KEYS_AT_ONCE<tiles> / 8; ++j) {
            scores[i][j][0] = scores[i][j][1] = scores[i][j][2] = scores[i][j][3] = 0.0f;
        }
    }
#pragma unroll
    for (u32 k = 0; k < head_dim / 16; ++k) {
        u32 left[tiles][4];
        q.fragment(left, queries, k);
#pragma unroll
        for (u32 j = 0; j < KEYS_AT_ONCE<tiles> / 16; ++j) {
            u32 right[4];
            load_matrices(right,
                          keys + swizzled<head_dim>(16 * j + 8 * (matrix / 2) + row, 2 * k + matrix % 2));
#pragma unroll
            for (u32 i = 0; i < tiles; ++i) {
                multiply_add(scores[i][2 * j], left[i], {right[0], right[1]});
                multiply_add(scores[i][2 * j + 1], left[i], {right[2], right[3]});
            }
        }
    }
}

template <u32 head_dim, u32 tiles>
DEVICE void add_values(float (&sums)[tiles][head_dim / 8][4],
                       const float (&weights)[tiles][KEYS_AT_ONCE<tiles> / 8][4], const u16* values) {
    const u32 matrix = lane_index() / 8, row = lane_index() % 8;
#pragma unroll
    for (u32 k = 0; k < KEYS_AT_ONCE<tiles> / 16; ++k) {
        u32 left[tiles][4];
#pragma unroll
        for (u32 i = 0; i < tiles; ++i) {
            weights_to_fragment(left[i], weights[i][2 * k], weights[i][2 * k + 1]);
        }
#pragma unroll
        for (u32 j = 0; j < head_dim / 16; ++j) {
            u32 right[4];
            load_matrices_transposed(
                right, values + swizzled<head_dim>(16 * k + 8 * (matrix % 2) + row, 2 * j + matrix / 2));
#pragma unroll
            for (u32 i = 0; i < tiles; ++i) {
                multiply_add(sums[i][2 * j], left[i], {right[0], right[1]});
                multiply_add(sums[i][2 * j + 1], left[i], {right[2], right[3]});
            }
        }
    }
}

template <u32 head_dim, bool f8, u32 tiles>
DEVICE void attention_wide(const AttentionParams& p) {
    constexpr u32 WARP_ROWS = 16 * tiles, BLOCK_ROWS = WARP_ROWS * WIDE_WARPS, KEYS = KEYS_AT_ONCE<tiles>;
    auto& shared = *reinterpret_cast<WideShared<head_dim, f8, tiles>*>(shared_memory());
    // The last items of a prompt have most keys; they start first.
    const u32 item_index = grid_x() - 1 - block_x(), split = block_z();
    const u32 kv_head = block_y(), kv_heads = grid_y();
    let_next_kernel_start();
    // Items, tables and older pages are older than any kernel of this step.
    const AttentionItem item = p.items[item_index];
    const u32 keys = item_keys(item);
    const KeyRange range = split_range(keys, p.splits, split);
    if (range.first >= range.end) {
        wait_for_previous_kernel();
        return;
    }
    const u32* table = p.block_tables + item.table_offset;
    const bool early = range.first + KEY_TILE <= item.cached;
    if (early) start_tile(p, shared, 0, table, range.first, keys);
    wait_for_previous_kernel();
    if (!early) start_tile(p, shared, 0, table, range.first, keys);

    // From here on packed rows of this warp: g and g + 8 of row tile i are first_row + 16 i + g and so on.
    const u32 packed_rows = item.rows * p.group, first_row = warp_index() * WARP_ROWS, g = lane_index() / 4;
    auto row_start = [&](u32 row) {
        return packed_row_offset(item, first_row + row, p.group, kv_head, kv_heads, head_dim);
    };
    u16* queries = shared.queries + (tiles > 1 ? first_row * head_dim : 0);
    WarpQueries<head_dim, tiles> q;
    q.load(queries, [&](u32 row) { return first_row + row < packed_rows ? p.q + row_start(row) : nullptr; });
    const u32 last_row = first_row + WARP_ROWS < packed_rows ? first_row + WARP_ROWS - 1 : packed_rows - 1;
    // The last position that the warp's first row sees, and its last row.
    const u32 warp_first = item.first_position + first_row / p.group;
    const u32 warp_last = item.first_position + last_row / p.group;
    const bool has_rows = first_row < packed_rows;

    RowState low[tiles], high[tiles];
    float sums[tiles][head_dim / 8][4] = {};
    const u32 tile_count = divide_up(range.end - range.first, KEY_TILE);
    for (u32 tile = 0; tile < tile_count; ++tile) {
        const u32 first_key = range.first + tile * KEY_TILE;
        copy_async_wait<0>();
        block_barrier();  // This tile is there, and nobody works on the last one any more.
        if (tile + 1 < tile_count) start_tile(p, shared, (tile + 1) % 2, table, first_key + KEY_TILE, keys);
        auto& halves = shared.tiles_of_halves[f8 ? 0 : tile % 2];
        if constexpr (f8) {
            convert_tile<head_dim>(halves.keys, halves.values, shared.arriving[tile % 2]);
            block_barrier();
        }
#pragma unroll 1
        for (u32 part = 0; part < KEY_TILE; part += KEYS) {
            if (!has_rows || first_key + part > warp_last) break;
            float scores[tiles][KEYS / 8][4];
            score_keys<head_dim, tiles>(scores, q, queries, halves.keys + part * head_dim);
#pragma unroll
            for (u32 i = 0; i < tiles; ++i) {
                if (first_key + part + KEYS - 1 > warp_first) {
                    const u32 row = first_row + 16 * i + g;
                    mask_scores(scores[i], first_key + part, item.first_position + row / p.group,
                                item.first_position + (row + 8) / p.group);
                }
                const float factor_low = take_scores<0>(scores[i], p.scale, low[i]);
                const float factor_high = take_scores<1>(scores[i], p.scale, high[i]);
                if (vote(factor_low != 1.0f || factor_high != 1.0f) == 0) continue;
#pragma unroll
                for (u32 j = 0; j < head_dim / 8; ++j) {
                    sums[i][j][0] *= factor_low;
                    sums[i][j][1] *= factor_low;
                    sums[i][j][2] *= factor_high;
                    sums[i][j][3] *= factor_high;
                }
            }
            add_values<head_dim, tiles>(sums, scores, halves.values + part * head_dim);
        }
    }

    const bool alone = used_splits(keys, p.splits) == 1;
#pragma unroll
    for (u32 i = 0; i < tiles; ++i) {
#pragma unroll
        for (u32 half = 0; half < 2; ++half) {
            const RowState state = half == 0 ? low[i] : high[i];
            const float sum = whole_sum(state), inverse = 1.0f / sum;
            const u32 row = 16 * i + 8 * half + g, column = 2 * (lane_index() % 4);
            if (first_row + row >= packed_rows) continue;
            if (alone) {
                u16* to = p.out + row_start(row) + column;
#pragma unroll
                for (u32 j = 0; j < head_dim / 8; ++j) {
                    *reinterpret_cast<u32*>(to + 8 * j) =
                        floats_to_pair(sums[i][j][2 * half] * inverse, sums[i][j][2 * half + 1] * inverse);
                }
            } else {
                const u64 at = partial_index(item_index, kv_head, kv_heads, split, p.splits, first_row + row,
                                             BLOCK_ROWS);
                float* to = p.sums + at * head_dim + column;
#pragma unroll
                for (u32 j = 0; j < head_dim / 8; ++j) {
                    *reinterpret_cast<Words2*>(to + 8 * j) = {bits_of_float(sums[i][j][2 * half]),
                                                              bits_of_float(sums[i][j][2 * half + 1])};
                }
                if (column == 0) {
                    *reinterpret_cast<Words2*>(p.weights + 2 * at) = {bits_of_float(state.max * p.scale),
                                                                      bits_of_float(sum)};
                }
            }
        }
    }
}
