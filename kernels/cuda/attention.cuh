// Paged attention: what its kernels share.
//
// A group of query heads reads one head of the cache. All (token, head of the group) pairs of a sequence are
// the rows of one matrix: packed row r is token r / group, head r % group of the group, and sees the keys up
// to position first_position + r / group. So a decode step of a model with 28 heads over 4 is 7 rows of a
// tensor-core tile rather than one row 7 times, every group size is a matter of arithmetic, and decode, the
// check of drafts, a short tail and a long prompt differ only in how many packed rows there are:
//
//   narrow  16 packed rows   the warps of a block share out the keys        decode
//   wide    64 packed rows   the warps of a block share out the rows        drafts, tails
//   tall   128 packed rows   the same, two row tiles a warp                 prompts
//
// The work of a launch is a list of items, each up to that many packed rows of one sequence. The grid is
// (items, kv heads, splits): a split takes a range of the keys, computed here from the item's real length, so
// that a recorded launch serves every length. Splits that have no keys do nothing. Where more than one has
// some, each leaves unnormalised sums, which `attention_merge` adds up in the order of the splits.
#pragma once

#include "float8.cuh"
#include "primitives.cuh"

constexpr u32 PAGE = 16;      // Tokens in a block of the cache.
constexpr u32 KEY_TILE = 64;  // The range of a split is a multiple of this many keys.
constexpr u32 MAX_SPLITS = 64;

// The running maximum before anything was seen: finite, so that no difference is NaN, a power of two, so that
// no product rounds, and lower than any score.
constexpr float NOTHING_SEEN = -0x1p100f;

// Rows of one sequence in one launch; `kernels/src/attention.rs` has the same.
struct AttentionItem {
    u32 first_row;       // Its first token's row in the queries and the output.
    u32 rows;            // Tokens; 0 in an empty slot of a bucket.
    u32 first_position;  // Its first token's position.
    u32 table_offset;    // Where the sequence's blocks start in the array of block tables.
    u32 cached;          // Positions below this were written before this step: they can be read early.
    u32 unused[3];
};

struct AttentionParams {
    const AttentionItem* items;
    const u16* q;    // [row][heads][head_dim]
    const u8* keys;  // [block][kv head][16][head_dim]
    const u8* values;
    const u32* block_tables;
    u16* out;        // [row][heads][head_dim]
    float* sums;     // [item][kv head][split][packed row][head_dim], unnormalised
    float* weights;  // [item][kv head][split][packed row][2]: maximum (in powers of two), sum of weights
    u32 group;       // Query heads to a head of the cache.
    u32 splits;
    float scale;  // log2(e) / sqrt(head_dim)
    u32 unused;
};

// ---- Items and splits -------------------------------------------------------------------------------------

DEVICE u32 item_keys(const AttentionItem& item) {
    return item.rows == 0 ? 0 : item.first_position + item.rows;
}

DEVICE u32 divide_up(u32 a, u32 b) { return (a + b - 1) / b; }

// Keys of one split, all but the last used one.
DEVICE u32 keys_per_split(u32 keys, u32 splits) {
    return divide_up(divide_up(keys, KEY_TILE), splits) * KEY_TILE;
}

// Splits that have keys.
DEVICE u32 used_splits(u32 keys, u32 splits) {
    return keys == 0 ? 0 : divide_up(keys, keys_per_split(keys, splits));
}

struct KeyRange {
    u32 first, end;
};

// Empty: first >= end.
DEVICE KeyRange split_range(u32 keys, u32 splits, u32 split) {
    u32 each = keys_per_split(keys, splits);
    u32 end = (split + 1) * each;
    return {split * each, end < keys ? end : keys};
}

// Where a packed row's head starts in the queries and in the output.
DEVICE u64 packed_row_offset(const AttentionItem& item, u32 row, u32 group, u32 kv_head, u32 kv_heads,
                             u32 head_dim) {
    u64 token = item.first_row + row / group;
    return ((token * kv_heads + kv_head) * group + row % group) * head_dim;
}

// Index of a packed row's partial result; a block's rows are adjacent.
DEVICE u64 partial_index(u32 item, u32 kv_head, u32 kv_heads, u32 split, u32 splits, u32 row, u32 rows) {
    return ((static_cast<u64>(item) * kv_heads + kv_head) * splits + split) * rows + row;
}

// ---- The cache's two formats ------------------------------------------------------------------------------

struct alignas(8) Words2 {
    u32 x, y;
};

// Eight adjacent numbers as they are stored, and as halves.
template <bool f8>
struct Stored;

template <>
struct Stored<false> {
    using Eight = Words4;
    static constexpr u32 BYTES = 2;
    static DEVICE Words4 halves(Words4 v) { return v; }
};

template <>
struct Stored<true> {
    using Eight = Words2;
    static constexpr u32 BYTES = 1;
    static DEVICE Words4 halves(Words2 v) {
        return {low_e4m3_to_pair(v.x), high_e4m3_to_pair(v.x), low_e4m3_to_pair(v.y), high_e4m3_to_pair(v.y)};
    }
};

// ---- Softmax, as scores come ------------------------------------------------------------------------------

// A row's maximum so far, of unscaled scores, and this lane's part of the sum of its weights.
struct RowState {
    float max = NOTHING_SEEN;
    float sum = 0.0f;
};

// Takes a row's next scores in: turns them into weights and returns the factor for all that was summed
// before. The four lanes of the row call it; `half` 0 is the row g of the accumulators, 1 the row g + 8.
// A score of -infinity becomes a weight of exactly 0.
template <u32 half, u32 tiles>
DEVICE float take_scores(float (&scores)[tiles][4], float scale, RowState& row) {
    float max = row.max;
#pragma unroll
    for (u32 i = 0; i < tiles; ++i) max = larger(max, larger(scores[i][2 * half], scores[i][2 * half + 1]));
    max = larger(max, shuffle_xor(max, 1));
    max = larger(max, shuffle_xor(max, 2));
    // The difference first: with an unchanged maximum the factor is exactly 1.
    float factor = exp2_fast((row.max - max) * scale);
    float shift = max * scale;
    float sum = row.sum * factor;
#pragma unroll
    for (u32 i = 0; i < tiles; ++i) {
#pragma unroll
        for (u32 j = 2 * half; j < 2 * half + 2; ++j) {
            scores[i][j] = exp2_fast(fused_multiply_add(scores[i][j], scale, -shift));
            sum += scores[i][j];
        }
    }
    row = {max, sum};
    return factor;
}

// The sum over the row's four lanes.
DEVICE float whole_sum(const RowState& row) {
    float sum = row.sum + shuffle_xor(row.sum, 1);
    return sum + shuffle_xor(sum, 2);
}

// Puts -infinity where a key lies beyond its row's last position. `first_key` is the position of score 0's
// first column; tiles of eight keys follow one another.
template <u32 tiles>
DEVICE void mask_scores(float (&scores)[tiles][4], u32 first_key, u32 last_position_low,
                        u32 last_position_high) {
    const float excluded = float_of_bits(0xff800000);
#pragma unroll
    for (u32 i = 0; i < tiles; ++i) {
        u32 key = first_key + 8 * i + 2 * (lane_index() % 4);
        if (key > last_position_low) scores[i][0] = excluded;
        if (key + 1 > last_position_low) scores[i][1] = excluded;
        if (key > last_position_high) scores[i][2] = excluded;
        if (key + 1 > last_position_high) scores[i][3] = excluded;
    }
}

// The weights of sixteen keys (two accumulator tiles) as the left operand of the product with the values:
// the layouts agree, nothing moves between lanes.
DEVICE void weights_to_fragment(u32 (&to)[4], const float (&low)[4], const float (&high)[4]) {
    to[0] = small_floats_to_pair(low[0], low[1]);
    to[1] = small_floats_to_pair(low[2], low[3]);
    to[2] = small_floats_to_pair(high[0], high[1]);
    to[3] = small_floats_to_pair(high[2], high[3]);
}
