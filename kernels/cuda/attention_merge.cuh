// Adds up what the splits of a packed row left, in the order of the splits.
//
// A kernel of its own rather than the work of an item's last block: the partial results of an item are up to
// a megabyte, which one block would read for microseconds, while here every row has a block; and with its
// launch overlapped it costs no more than the fences and the counter that the other way needs.
//
// Grid (items, kv heads, packed rows). Four warps take every fourth split; a lane has all its reads under way
// before it uses the first.
#pragma once

#include "attention.cuh"

struct AttentionMergeParams {
    const AttentionItem* items;
    u16* out;
    const float* sums;
    const float* weights;
    u32 group;
    u32 splits;
};

template <u32 numbers>
struct LaneNumbers;
template <>
struct LaneNumbers<4> {
    using Words = Words4;
    static DEVICE void spread(float (&to)[4], Words4 v) {
        to[0] = float_of_bits(v.x), to[1] = float_of_bits(v.y);
        to[2] = float_of_bits(v.z), to[3] = float_of_bits(v.w);
    }
};
template <>
struct LaneNumbers<2> {
    using Words = Words2;
    static DEVICE void spread(float (&to)[2], Words2 v) {
        to[0] = float_of_bits(v.x), to[1] = float_of_bits(v.y);
    }
};

template <u32 head_dim>
DEVICE void attention_merge(const AttentionMergeParams& p) {
    constexpr u32 WARPS = 4, NUMBERS = head_dim / WARP, MOST = MAX_SPLITS / WARPS;
    using Lane = LaneNumbers<NUMBERS>;
    const u32 warp = warp_index(), lane = lane_index(), row = block_z();
    let_next_kernel_start();
    const AttentionItem item = p.items[block_x()];
    const u32 used = used_splits(item_keys(item), p.splits);
    wait_for_previous_kernel();
    if (row >= item.rows * p.group || used < 2) return;

    const u64 first = partial_index(block_x(), block_y(), grid_y(), 0, p.splits, row, grid_z());
    typename Lane::Words parts[MOST];
#pragma unroll
    for (u32 i = 0; i < MOST; ++i) {
        const u32 split = warp + WARPS * i;
        if (split < used) {
            const float* part =
                p.sums + (first + static_cast<u64>(split) * grid_z()) * head_dim + lane * NUMBERS;
            parts[i] = *reinterpret_cast<const typename Lane::Words*>(part);
        }
    }
    // Lane l has the maxima and sums of splits l and l + 32; every warp computes all factors.
    float max[2] = {NOTHING_SEEN, NOTHING_SEEN}, sum[2] = {0.0f, 0.0f};
#pragma unroll
    for (u32 i = 0; i < 2; ++i) {
        const u32 split = lane + WARP * i;
        if (split < used) {
            const Words2 part = *reinterpret_cast<const Words2*>(
                p.weights + 2 * (first + static_cast<u64>(split) * grid_z()));
            max[i] = float_of_bits(part.x);
            sum[i] = float_of_bits(part.y);
        }
    }
    float most = larger(max[0], max[1]);
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) most = larger(most, shuffle_xor(most, step));
    const float factor[2] = {exp2_fast(max[0] - most), exp2_fast(max[1] - most)};
    float whole = fused_multiply_add(sum[0], factor[0], sum[1] * factor[1]);
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) whole += shuffle_xor(whole, step);

    float total[NUMBERS] = {};
#pragma unroll
    for (u32 i = 0; i < MOST; ++i) {
        const u32 split = warp + WARPS * i;
        const float by = shuffle(factor[i * WARPS / WARP], split % WARP);
        if (split < used) {
            float numbers[NUMBERS];
            Lane::spread(numbers, parts[i]);
#pragma unroll
            for (u32 j = 0; j < NUMBERS; ++j) total[j] = fused_multiply_add(numbers[j], by, total[j]);
        }
    }
    float* shared = reinterpret_cast<float*>(shared_memory());  // [warp][head_dim]
#pragma unroll
    for (u32 j = 0; j < NUMBERS; ++j) shared[warp * head_dim + lane * NUMBERS + j] = total[j];
    block_barrier();
    if (thread_index() < head_dim / 2) {
        const u32 number = 2 * thread_index();
        const float inverse = 1.0f / whole;
        float a = 0.0f, b = 0.0f;
#pragma unroll
        for (u32 w = 0; w < WARPS; ++w) {
            a += shared[w * head_dim + number];
            b += shared[w * head_dim + number + 1];
        }
        const u64 at = packed_row_offset(item, row, p.group, block_y(), grid_y(), head_dim) + number;
        *reinterpret_cast<u32*>(p.out + at) = floats_to_pair(a * inverse, b * inverse);
    }
}
