// What stands between the matrix products where it is not fused into them: RMSNorm before products with many
// rows, and for models that normalise queries and keys (Qwen3) everything between the product and attention.

#include "float8.cuh"
#include "primitives.cuh"

struct alignas(8) Pair {
    u32 x, y;
};

DEVICE float square_sum(float sum, Words4 v) {
    const float x = float_of_bits(v.x), y = float_of_bits(v.y);
    const float z = float_of_bits(v.z), w = float_of_bits(v.w);
    sum = fused_multiply_add(x, x, sum);
    sum = fused_multiply_add(y, y, sum);
    sum = fused_multiply_add(z, z, sum);
    return fused_multiply_add(w, w, sum);
}

DEVICE float warp_sum(float sum) {
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) sum += shuffle_xor(sum, step);
    return sum;
}

// ---- RMSNorm ----------------------------------------------------------------------------------------------
//
// One block of 256 threads a row, which it holds in registers: up to 8192 numbers. Grid (rows). Weights are
// constants and are asked for before the previous kernel has ended.

struct RmsNormParams {
    const float* residual;  // [any row][hidden]
    const float* weight;    // [hidden]
    const u32* gather;      // Row of the residual for each output row, all ones: zeros; null: the same row.
    u16* out;               // [row][hidden]
    u32 hidden;             // A multiple of 4.
    float eps;
};

constexpr u32 NORM_THREADS = 256;
constexpr u32 NORM_PIECES = 8;  // Pieces of four numbers that a thread holds.

KERNEL(rms_norm, RmsNormParams, 256, 2) {
    const u32 pieces = p.hidden / 4, thread = thread_index();
    let_next_kernel_start();
    Words4 weights[NORM_PIECES], numbers[NORM_PIECES];
#pragma unroll
    for (u32 i = 0; i < NORM_PIECES; ++i) {
        const u32 piece = thread + i * NORM_THREADS;
        if (piece < pieces) weights[i] = reinterpret_cast<const Words4*>(p.weight)[piece];
    }
    wait_for_previous_kernel();
    const u32 row = p.gather == nullptr ? block_x() : p.gather[block_x()];
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < NORM_PIECES; ++i) {
        const u32 piece = thread + i * NORM_THREADS;
        if (piece >= pieces) continue;
        numbers[i] = {0, 0, 0, 0};
        if (row != ~0u) {
            numbers[i] =
                reinterpret_cast<const Words4*>(p.residual + static_cast<u64>(row) * p.hidden)[piece];
        }
        sum = square_sum(sum, numbers[i]);
    }
    float* sums = reinterpret_cast<float*>(shared_memory());  // [warp]
    sum = warp_sum(sum);
    if (lane_index() == 0) sums[warp_index()] = sum;
    block_barrier();
    sum = 0.0f;
#pragma unroll
    for (u32 w = 0; w < NORM_THREADS / WARP; ++w) sum += sums[w];
    const float factor = inverse_square_root(sum / static_cast<float>(p.hidden) + p.eps);
    auto norm = [&](u32 number, u32 weight) {
        return float_of_bits(number) * factor * float_of_bits(weight);
    };
    Pair* out = reinterpret_cast<Pair*>(p.out + static_cast<u64>(block_x()) * p.hidden);
#pragma unroll
    for (u32 i = 0; i < NORM_PIECES; ++i) {
        const u32 piece = thread + i * NORM_THREADS;
        if (piece >= pieces) continue;
        const Words4 v = numbers[i], w = weights[i];
        out[piece] = {floats_to_pair(norm(v.x, w.x), norm(v.y, w.y)),
                      floats_to_pair(norm(v.z, w.z), norm(v.w, w.w))};
    }
}

// ---- Queries, keys and values of one product --------------------------------------------------------------
//
// A warp a head: RMSNorm over the head (where the model has it), rotation, and off to where attention reads
// it. Values are only moved. A lane holds head_dim / 64 adjacent numbers of the head's first half and the
// same of the second, its rotary pairs. Grid (rows, heads / 4), four warps.

struct QkNormRopeAppendParams {
    const float* qkv;       // [row][heads + 2 kv_heads][head_dim]: queries, keys, values
    const float* q_weight;  // [head_dim], null for no norm
    const float* k_weight;
    const u32* positions;  // [row]
    const u32* slots;      // [row]: block * 16 + token in the block; all ones: keys and values go nowhere
    const float* rotary;   // [position][head_dim / 2][cosine, sine]
    u16* q;                // [row][heads][head_dim]
    u8* keys;              // [block][kv_head][16][head_dim]
    u8* values;
    u32 heads;
    u32 kv_heads;
    float eps;
    u32 unused;
};

template <u32 head_dim, bool f8>
DEVICE void store_cached(u8* cache, u64 index, const float (&numbers)[head_dim / 64]) {
    constexpr u32 NUMBERS = head_dim / 64;
    if constexpr (f8) {
        for (u32 j = 0; j < NUMBERS; ++j) cache[index + j] = float_to_e4m3(numbers[j]);
    } else if constexpr (NUMBERS == 2) {
        reinterpret_cast<u32*>(cache)[index / 2] = floats_to_pair(numbers[0], numbers[1]);
    } else {
        reinterpret_cast<u16*>(cache)[index] = static_cast<u16>(floats_to_pair(numbers[0], numbers[0]));
    }
}

template <u32 head_dim, bool f8>
DEVICE void qk_norm_rope_append(const QkNormRopeAppendParams& p) {
    constexpr u32 HALF = head_dim / 2, NUMBERS = head_dim / 64;
    const u32 row = block_x(), head = block_y() * 4 + warp_index(), all = p.heads + 2 * p.kv_heads;
    const u32 first = lane_index() * NUMBERS;
    let_next_kernel_start();
    wait_for_previous_kernel();
    if (head >= all) return;
    const bool is_query = head < p.heads, is_value = head >= p.heads + p.kv_heads;
    const u32 slot = p.slots[row];
    if (!is_query && slot == ~0u) return;

    const float* from = p.qkv + (static_cast<u64>(row) * all + head) * head_dim + first;
    float low[NUMBERS], high[NUMBERS];
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < NUMBERS; ++j) {
        low[j] = from[j];
        high[j] = from[HALF + j];
        sum = fused_multiply_add(low[j], low[j], sum);
        sum = fused_multiply_add(high[j], high[j], sum);
    }
    if (!is_value) {
        const float* weight = is_query ? p.q_weight : p.k_weight;
        if (weight != nullptr) {
            const float factor = inverse_square_root(warp_sum(sum) / static_cast<float>(head_dim) + p.eps);
#pragma unroll
            for (u32 j = 0; j < NUMBERS; ++j) {
                low[j] = low[j] * factor * weight[first + j];
                high[j] = high[j] * factor * weight[HALF + first + j];
            }
        }
        const float* turn = p.rotary + (static_cast<u64>(p.positions[row]) * HALF + first) * 2;
#pragma unroll
        for (u32 j = 0; j < NUMBERS; ++j) {
            const float cosine = turn[2 * j], sine = turn[2 * j + 1], a = low[j], b = high[j];
            low[j] = a * cosine - b * sine;
            high[j] = b * cosine + a * sine;
        }
    }
    if (is_query) {
        const u64 to = (static_cast<u64>(row) * p.heads + head) * head_dim + first;
        store_cached<head_dim, false>(reinterpret_cast<u8*>(p.q), to, low);
        store_cached<head_dim, false>(reinterpret_cast<u8*>(p.q), to + HALF, high);
    } else {
        const u32 kv_head = (head - p.heads) % p.kv_heads;
        const u64 to =
            ((static_cast<u64>(slot / 16) * p.kv_heads + kv_head) * 16 + slot % 16) * head_dim + first;
        u8* cache = is_value ? p.values : p.keys;
        store_cached<head_dim, f8>(cache, to, low);
        store_cached<head_dim, f8>(cache, to + HALF, high);
    }
}

KERNEL(qk_norm_rope_append_f16_64, QkNormRopeAppendParams, 128, 4) { qk_norm_rope_append<64, false>(p); }
KERNEL(qk_norm_rope_append_f16_128, QkNormRopeAppendParams, 128, 4) { qk_norm_rope_append<128, false>(p); }
KERNEL(qk_norm_rope_append_f8_64, QkNormRopeAppendParams, 128, 4) { qk_norm_rope_append<64, true>(p); }
KERNEL(qk_norm_rope_append_f8_128, QkNormRopeAppendParams, 128, 4) { qk_norm_rope_append<128, true>(p); }
