// Attention for at most 16 packed rows: a decode step's kernel.
//
// There is little arithmetic and it is over in a few microseconds, so what counts is how soon all the reads
// are under way. Four warps share out the pages of the block's key range (page i is warp i % 4's), and a lane
// loads its operands from the cache straight into registers: no staging, no barrier, two pages' worth of
// reads behind each other. What makes this possible is that the order of the summands in a product is free:
//
//   scores   lane (g, t) loads key g, numbers 32 c + 8 t ... + 7 in one go, and takes them for the summands
//            2t, 2t+1, 2t+8, 2t+9 of two consecutive products. Queries are loaded in the same order.
//   values   lane (g, t) loads of keys 2t, 2t+1, 2t+8, 2t+9 the numbers 64 e + 8 g ... + 7 and pairs up the
//            keys. Column g of product j is number 64 e + 8 g + j, so that in the result a lane holds the
//            numbers 64 e + 16 t ... + 15 of its rows.
//
// Pages written before this step are read before the previous kernel has ended.
#pragma once

#include "attention.cuh"

constexpr u32 NARROW_ROWS = 16;
constexpr u32 NARROW_WARPS = 4;

// A lane's part of a page of keys and of a page of values.
template <u32 head_dim, bool f8>
struct LanePage {
    using Eight = typename Stored<f8>::Eight;
    Eight keys[2][head_dim / 32];
    Eight values[4][head_dim / 64];

    static DEVICE Eight at(const u8* page, u32 token, u32 number) {
        return *reinterpret_cast<const Eight*>(page + (token * head_dim + number) * Stored<f8>::BYTES);
    }
    DEVICE void load_keys(const u8* page, u32 g, u32 t) {
#pragma unroll
        for (u32 c = 0; c < head_dim / 32; ++c) {
            keys[0][c] = at(page, g, 32 * c + 8 * t);
            keys[1][c] = at(page, g + 8, 32 * c + 8 * t);
        }
    }
    DEVICE void load_values(const u8* page, u32 g, u32 t) {
#pragma unroll
        for (u32 e = 0; e < head_dim / 64; ++e) {
#pragma unroll
            for (u32 i = 0; i < 4; ++i) values[i][e] = at(page, 2 * t + i % 2 + 8 * (i / 2), 64 * e + 8 * g);
        }
    }
};

// A lane's part of the queries: rows g and g + 8, in the order of the keys.
template <u32 head_dim>
struct LaneQueries {
    Words4 low[head_dim / 32], high[head_dim / 32];

    // Zeros for no row.
    static DEVICE void load_row(Words4 (&to)[head_dim / 32], const u16* row, u32 t) {
#pragma unroll
        for (u32 c = 0; c < head_dim / 32; ++c) to[c] = {0, 0, 0, 0};
        if (row == nullptr) return;
#pragma unroll
        for (u32 c = 0; c < head_dim / 32; ++c)
            to[c] = *reinterpret_cast<const Words4*>(row + 32 * c + 8 * t);
    }
};

template <u32 head_dim, bool f8>
DEVICE void page_scores(float (&scores)[2][4], const LaneQueries<head_dim>& q,
                        const LanePage<head_dim, f8>& page) {
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        scores[i][0] = scores[i][1] = scores[i][2] = scores[i][3] = 0.0f;
#pragma unroll
        for (u32 c = 0; c < head_dim / 32; ++c) {
            Words4 low = q.low[c], high = q.high[c], keys = Stored<f8>::halves(page.keys[i][c]);
            multiply_add(scores[i], {low.x, high.x, low.y, high.y}, {keys.x, keys.y});
            multiply_add(scores[i], {low.z, high.z, low.w, high.w}, {keys.z, keys.w});
        }
    }
}

// Adds the page's weighted values. Values of the first `keys` tokens only: what lies behind them in a page
// was never written, and a NaN there is a NaN even with weight 0.
template <u32 head_dim, bool f8>
DEVICE void add_page_values(float (&sums)[head_dim / 64][8][4], const float (&weights)[2][4],
                            const LanePage<head_dim, f8>& page, u32 keys, u32 t) {
    u32 left[4];
    weights_to_fragment(left, weights[0], weights[1]);
#pragma unroll
    for (u32 e = 0; e < head_dim / 64; ++e) {
        u32 words[4][4];
#pragma unroll
        for (u32 i = 0; i < 4; ++i) {
            Words4 v = Stored<f8>::halves(page.values[i][e]);
            if (keys < PAGE && 2 * t + i % 2 + 8 * (i / 2) >= keys) v = {0, 0, 0, 0};
            words[i][0] = v.x;
            words[i][1] = v.y;
            words[i][2] = v.z;
            words[i][3] = v.w;
        }
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            const u32 halves = j % 2 == 0 ? 0x5410 : 0x7632;
            multiply_add(sums[e][j], left,
                         {pick_bytes(words[0][j / 2], words[1][j / 2], halves),
                          pick_bytes(words[2][j / 2], words[3][j / 2], halves)});
        }
    }
}

// What the warps leave for each other.
template <u32 head_dim>
struct NarrowShared {
    static constexpr u32 STRIDE = head_dim + 4;  // Rows start four banks apart.
    float sums[NARROW_WARPS][NARROW_ROWS][STRIDE];
    float max[NARROW_WARPS][NARROW_ROWS];
    float sum[NARROW_WARPS][NARROW_ROWS];
};

template <u32 head_dim>
DEVICE void leave_row(NarrowShared<head_dim>& shared, u32 warp, u32 row, u32 t, u32 half,
                      const float (&sums)[head_dim / 64][8][4], float max, float sum) {
#pragma unroll
    for (u32 e = 0; e < head_dim / 64; ++e) {
#pragma unroll
        for (u32 j = 0; j < 8; ++j) {
            shared.sums[warp][row][64 * e + 16 * t + j] = half == 0 ? sums[e][j][0] : sums[e][j][2];
            shared.sums[warp][row][64 * e + 16 * t + 8 + j] = half == 0 ? sums[e][j][1] : sums[e][j][3];
        }
    }
    if (t == 0) {
        shared.max[warp][row] = max;
        shared.sum[warp][row] = sum;
    }
}

template <u32 head_dim, bool f8>
DEVICE void attention_narrow(const AttentionParams& p) {
    const u32 warp = warp_index(), g = lane_index() / 4, t = lane_index() % 4;
    const u32 item_index = block_x(), kv_head = block_y(), kv_heads = grid_y(), split = block_z();
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
    const u32 pages_end = divide_up(range.end, PAGE);
    u32 page = range.first / PAGE + warp;
    auto place = [&](u32 block) {
        return (static_cast<u64>(block) * kv_heads + kv_head) * (PAGE * head_dim * Stored<f8>::BYTES);
    };
    LanePage<head_dim, f8> held;
    u32 next_block = 0;
    const bool early = page < pages_end && (page + 1) * PAGE <= item.cached;
    u64 here = page < pages_end ? place(table[page]) : 0;
    if (page + NARROW_WARPS < pages_end) next_block = table[page + NARROW_WARPS];
    if (early) {
        held.load_keys(p.keys + here, g, t);
        held.load_values(p.values + here, g, t);
    }
    wait_for_previous_kernel();
    if (page < pages_end && !early) {
        held.load_keys(p.keys + here, g, t);
        held.load_values(p.values + here, g, t);
    }

    const u32 packed_rows = item.rows * p.group;
    LaneQueries<head_dim> q;
    auto query_row = [&](u32 row) -> const u16* {
        if (row >= packed_rows) return nullptr;
        return p.q + packed_row_offset(item, row, p.group, kv_head, kv_heads, head_dim);
    };
    LaneQueries<head_dim>::load_row(q.low, query_row(g), t);
    LaneQueries<head_dim>::load_row(q.high, query_row(g + 8), t);
    const u32 last_low = item.first_position + g / p.group;
    const u32 last_high = item.first_position + (g + 8) / p.group;

    RowState low, high;
    float sums[head_dim / 64][8][4] = {};
    while (page < pages_end) {
        float scores[2][4];
        page_scores(scores, q, held);
        const u32 next_page = page + NARROW_WARPS;
        if (next_page < pages_end) {
            here = place(next_block);
            held.load_keys(p.keys + here, g, t);
            if (next_page + NARROW_WARPS < pages_end) next_block = table[next_page + NARROW_WARPS];
        }
        const u32 first_key = page * PAGE;
        if (first_key + PAGE - 1 > item.first_position) mask_scores(scores, first_key, last_low, last_high);
        const float factor_low = take_scores<0>(scores, p.scale, low);
        const float factor_high = take_scores<1>(scores, p.scale, high);
#pragma unroll
        for (u32 e = 0; e < head_dim / 64; ++e) {
#pragma unroll
            for (u32 j = 0; j < 8; ++j) {
                sums[e][j][0] *= factor_low;
                sums[e][j][1] *= factor_low;
                sums[e][j][2] *= factor_high;
                sums[e][j][3] *= factor_high;
            }
        }
        add_page_values(sums, scores, held, keys - first_key, t);
        if (next_page < pages_end) held.load_values(p.values + here, g, t);
        page = next_page;
    }

    // The warps' sums to one, in the order of the warps; those that had a page count.
    auto& shared = *reinterpret_cast<NarrowShared<head_dim>*>(shared_memory());
    const float sum_low = whole_sum(low), sum_high = whole_sum(high);
    if (g < packed_rows) leave_row(shared, warp, g, t, 0, sums, low.max, sum_low);
    if (g + 8 < packed_rows) leave_row(shared, warp, g + 8, t, 1, sums, high.max, sum_high);
    block_barrier();
    const u32 range_pages = pages_end - range.first / PAGE;
    const u32 warps = range_pages < NARROW_WARPS ? range_pages : NARROW_WARPS;
    const bool alone = used_splits(keys, p.splits) == 1;
    for (u32 i = thread_index(); i < packed_rows * (head_dim / 4); i += NARROW_WARPS * WARP) {
        const u32 row = i / (head_dim / 4), quad = i % (head_dim / 4), number = 4 * quad;
        float max = NOTHING_SEEN;
#pragma unroll
        for (u32 w = 0; w < NARROW_WARPS; ++w) {
            if (w < warps) max = larger(max, shared.max[w][row]);
        }
        float sum = 0.0f, total[4] = {};
#pragma unroll
        for (u32 w = 0; w < NARROW_WARPS; ++w) {
            if (w >= warps) break;
            const float factor = exp2_fast((shared.max[w][row] - max) * p.scale);
            sum = fused_multiply_add(shared.sum[w][row], factor, sum);
#pragma unroll
            for (u32 j = 0; j < 4; ++j) {
                total[j] = fused_multiply_add(shared.sums[w][row][number + j], factor, total[j]);
            }
        }
        if (alone) {
            const float inverse = 1.0f / sum;
            u16* to = p.out + packed_row_offset(item, row, p.group, kv_head, kv_heads, head_dim);
            reinterpret_cast<Words2*>(to)[quad] = {floats_to_pair(total[0] * inverse, total[1] * inverse),
                                                   floats_to_pair(total[2] * inverse, total[3] * inverse)};
        } else {
            const u64 at = partial_index(item_index, kv_head, kv_heads, split, p.splits, row, NARROW_ROWS);
            reinterpret_cast<Words4*>(p.sums + at * head_dim)[quad] = {
                bits_of_float(total[0]), bits_of_float(total[1]), bits_of_float(total[2]),
                bits_of_float(total[3])};
            if (number == 0) {
                *reinterpret_cast<Words2*>(p.weights + 2 * at) = {bits_of_float(max * p.scale),
                                                                  bits_of_float(sum)};
            }
        }
    }
}
