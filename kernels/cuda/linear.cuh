// What the kernels of `y = x W^T` share: how weights lie in memory, how they become tensor-core operands, and
// what is done with the products.
//
// Packed weights. Sixteen outputs make a *tile*; a tile is cut along the inputs into *pieces* of 64. The
// weights are the A operand of `multiply_add` (16 outputs by 16 inputs), the activations the B operand, so
// that even a single row of activations can use the tensor cores: it fills one of B's eight columns, and the
// memory, not the idle columns, is what limits. A piece is four products deep. Product j = 0..3 covers, for
// the lane with t = lane % 4, these four inputs of the piece:
//
//     32 (j / 2) + 8 t + 4 (j % 2) + e,   e = 0..3
//
// Any order is right as long as both operands agree on it. With this one a lane's activations for two
// products are 16 bytes in a row, and the two halves of a piece are 32 consecutive inputs each: a whole group
// where groups are 32. A's registers 0 and 2 hold e = 0, 1 and e = 2, 3 of tile row g = lane / 4, registers 1
// and 3 the same of tile row g + 8. A format stores, lane by lane, what one lane needs, so that a warp reads a
// piece as one stretch of 512 bytes or a few of them, and a register's pair of halves comes out of the stored
// bits with a mask or a byte permutation.
//
//     tile:   piece 0 | piece 1 | ... | scales | zeros | padding to a multiple of 128
//     scales: int4, int8: per group, [8 g] of {fp16 of tile row g, fp16 of tile row g + 8}
//             fp8: per tile, [8 g] of {fp32 of tile row g, fp32 of tile row g + 8}
//     zeros:  int4: per group, [8 g] of one byte: low nibble tile row g, high nibble tile row g + 8
//
// Which output a tile row is depends on the epilogue: rows g and g + 8 of a tile sit in the same lane's
// accumulators, so pairs that are combined (a gate and its up, the two halves of a rotation) are put there.
// The packer, `kernels/src/linear/`, knows the same.
#pragma once

#include "float8.cuh"
#include "primitives.cuh"

namespace linear {

constexpr u32 TILE_OUTPUTS = 16;
constexpr u32 PIECE_INPUTS = 64;
// One 16-byte load by each lane of a warp.
constexpr u32 LOAD_BYTES = 512;

struct alignas(16) Floats4 {
    float at[4];
};

// The weights and the activations of one product.
struct Operands {
    const u8* weights;
    // fp16 [rows][input]; or the residual stream, fp32 [..][input], when there is a norm.
    const void* activations;
    // With a norm: its weights, [input]; else null.
    const float* norm;
    // With a norm: which row of the residual stream each row is (u32 max: a row of zeros), or null for row i.
    const u32* gather;
    u64 tile_bytes;
    // Where in a tile the scales and the zeros begin.
    u32 scales_at;
    u32 zeros_at;
    u32 pieces;
    u32 tiles;
    // A multiple of 8. What the last piece has beyond it are weights of zero.
    u32 input;
    u32 rows;
    float epsilon;
    u32 padding;
};

// ---- Formats ----------------------------------------------------------------------------------------------
//
// LOADS           16-byte loads by a lane for a piece.
// GROUP           inputs that share a scale; 0 where there are none to be applied to a part of the inputs.
// Scales          what a lane needs besides the weights. `load` takes the addresses of the first group's 32
//                 bytes of scales and 8 bytes of zeros.
// fragment        the A operand of product j: whole numbers (q - z), or the weights themselves.

// Sums over this many parts of a piece are multiplied by scales of their own.
template <class Format>
constexpr u32 PARTS = Format::GROUP == 0 ? 0 : Format::GROUP < PIECE_INPUTS ? PIECE_INPUTS / Format::GROUP : 1;
// The first group of a piece; also for a number of pieces that is a multiple of a group's.
template <class Format>
DEVICE constexpr u32 group_of(u32 piece) {
    if constexpr (Format::GROUP == 0) {
        return 0;
    } else {
        return piece * PIECE_INPUTS / Format::GROUP;
    }
}
constexpr u32 GROUP_SCALE_BYTES = 32, GROUP_ZERO_BYTES = 8;

// A piece as it is copied to shared memory: its weights, its scales, and 16 bytes of zeros, which is the least
// that can be copied and may be twice what it needs.
template <class Format>
constexpr u32 WEIGHT_BYTES = Format::LOADS * LOAD_BYTES;
template <class Format>
constexpr u32 SCALE_BYTES = PARTS<Format> * GROUP_SCALE_BYTES;
template <class Format>
constexpr u32 EXTRA_BYTES = SCALE_BYTES<Format> + (Format::HAS_ZEROS ? 16 : 0);
// Where in the 16 bytes a piece's zeros begin.
template <class Format>
DEVICE constexpr u32 zeros_skip_of(u32 piece) {
    return group_of<Format>(piece) * GROUP_ZERO_BYTES % 16;
}

struct NoScales {
    static DEVICE NoScales load(const u8*, const u8*) { return {}; }
};

template <u32 groups>
struct Int4Scales {
    u32 scales[groups];
    u32 zeros[groups];

    static DEVICE Int4Scales load(const u8* scales, const u8* zeros) {
        u32 g = lane_index() / 4;
        Int4Scales s;
#pragma unroll
        for (u32 i = 0; i < groups; i++) {
            s.scales[i] = *reinterpret_cast<const u32*>(scales + GROUP_SCALE_BYTES * i + 4 * g);
            s.zeros[i] = zeros[GROUP_ZERO_BYTES * i + g];
        }
        return s;
    }
};

// AWQ: (q - z) s, q and z from 0 to 15. Nibble i of word j is A's register i's low half of product j, nibble
// i + 4 its high half.
template <u32 group>
struct Int4 {
    static constexpr u32 LOADS = 1;
    static constexpr u32 GROUP = group;
    static constexpr bool HAS_ZEROS = true;
    using Scales = Int4Scales<(group < PIECE_INPUTS ? PIECE_INPUTS / group : 1)>;

    // Put under the exponent of 1024, a nibble q in the lowest bits reads as 1024 + q, and one in the next
    // four bits as 1024 + 16 q. Both turn into q - z with one instruction, without rounding:
    // (1024 + q) - (1024 + z) for the tile's rows g, and (1024 + 16 q) / 16 - (64 + z) for the rows g + 8.
    static DEVICE void fragment(const Words4 (&w)[LOADS], const Scales& s, u32 j, u32 (&a)[4]) {
        constexpr u32 exponent = 0x64006400, low = 0x000f000f, high = 0x00f000f0, sixteenth = 0x2c002c00;
        constexpr u32 and_or = 0xea;  // (a & b) | c
        u32 zeros = s.zeros[group < PIECE_INPUTS ? j / 2 : 0];
        u32 bias_low = exponent | (zeros & 0xf) * 0x00010001;
        u32 bias_high = 0xd400d400 | (zeros & 0xf0) * 0x00010001;
        u32 first = j == 0 ? w[0].x : j == 1 ? w[0].y : j == 2 ? w[0].z : w[0].w;
        u32 second = first >> 8;
        a[0] = subtract_pairs(bits3<and_or>(first, low, exponent), bias_low);
        a[1] = multiply_add_pairs(bits3<and_or>(first, high, exponent), sixteenth, bias_high);
        a[2] = subtract_pairs(bits3<and_or>(second, low, exponent), bias_low);
        a[3] = multiply_add_pairs(bits3<and_or>(second, high, exponent), sixteenth, bias_high);
    }
};

// fp16: the registers themselves, four products after one another.
struct F16 {
    static constexpr u32 LOADS = 4;
    static constexpr u32 GROUP = 0;
    static constexpr bool HAS_ZEROS = false;
    using Scales = NoScales;

    static DEVICE void fragment(const Words4 (&w)[LOADS], const Scales&, u32 j, u32 (&a)[4]) {
        a[0] = w[j].x;
        a[1] = w[j].y;
        a[2] = w[j].z;
        a[3] = w[j].w;
    }
};

struct Int8Scales {
    u32 scales[1];

    static DEVICE Int8Scales load(const u8* scales, const u8*) {
        return {{*reinterpret_cast<const u32*>(scales + 4 * (lane_index() / 4))}};
    }
};

// q s, with q from -127 to 127 stored as q + 128. Load j / 2 has in its words 2 (j % 2) and the next the bytes
// of A's registers 0, 1 and 2, 3 of product j.
struct Int8 {
    static constexpr u32 LOADS = 2;
    static constexpr u32 GROUP = 128;
    static constexpr bool HAS_ZEROS = false;
    using Scales = Int8Scales;

    // A byte under the exponent of 1024 reads as 1024 + byte.
    static DEVICE void fragment(const Words4 (&w)[LOADS], const Scales&, u32 j, u32 (&a)[4]) {
        constexpr u32 exponent = 0x64646464, bias = 0x64806480;  // 1024 + 128
        u32 first = j % 2 ? w[j / 2].z : w[j / 2].x;
        u32 second = j % 2 ? w[j / 2].w : w[j / 2].y;
        a[0] = subtract_pairs(pick_bytes(first, exponent, 0x4140), bias);
        a[1] = subtract_pairs(pick_bytes(first, exponent, 0x4342), bias);
        a[2] = subtract_pairs(pick_bytes(second, exponent, 0x4140), bias);
        a[3] = subtract_pairs(pick_bytes(second, exponent, 0x4342), bias);
    }
};

// e4m3 codes in the order of `Int8`, a scale per output that is applied to the finished sums.
struct Fp8 {
    static constexpr u32 LOADS = 2;
    static constexpr u32 GROUP = 0;
    static constexpr bool HAS_ZEROS = false;
    using Scales = NoScales;

    static DEVICE void fragment(const Words4 (&w)[LOADS], const Scales&, u32 j, u32 (&a)[4]) {
        u32 first = j % 2 ? w[j / 2].z : w[j / 2].x;
        u32 second = j % 2 ? w[j / 2].w : w[j / 2].y;
        a[0] = low_e4m3_to_pair(first);
        a[1] = high_e4m3_to_pair(first);
        a[2] = low_e4m3_to_pair(second);
        a[3] = high_e4m3_to_pair(second);
    }
};

template <class Format>
constexpr bool SCALED_AT_THE_END = false;
template <>
constexpr bool SCALED_AT_THE_END<Fp8> = true;

// Multiplies a lane's four sums of a tile (tile rows g, g, g + 8, g + 8) by what the format still owes them.
template <class Format>
DEVICE void finish_sums(const Operands& o, u32 tile, Floats4& sums) {
    if constexpr (SCALED_AT_THE_END<Format>) {
        const u8* scales = o.weights + tile * o.tile_bytes + o.scales_at + 8 * (lane_index() / 4);
        float low = reinterpret_cast<const float*>(scales)[0];
        float high = reinterpret_cast<const float*>(scales)[1];
        sums.at[0] *= low;
        sums.at[1] *= low;
        sums.at[2] *= high;
        sums.at[3] *= high;
    }
}

// ---- Epilogues --------------------------------------------------------------------------------------------

// What becomes of the sums; the numbers are `EpilogueKind` in Rust.
constexpr u32 STORE_F32 = 0, ADD_F32 = 1, GATED_F16 = 2, QKV = 3;

struct Epilogue {
    // STORE_F32, ADD_F32: fp32 [rows][outputs]. GATED_F16: fp16 [rows][outputs / 2]. QKV: the queries, fp16
    // [rows][heads * head_dim].
    void* to;
    // STORE_F32, QKV: [outputs], or null.
    const float* bias;
    // The rest is for QKV.
    const u32* positions;
    // Where each row's key and value are appended; u32 max: nowhere.
    const u32* slots;
    // [position][head_dim / 2] of {cos, sin}.
    const float* rotary;
    // [block][kv_head][16][head_dim], fp16 or e4m3.
    u8* keys;
    u8* values;
    u32 kind;
    u32 outputs;
    u32 heads;
    u32 kv_heads;
    u32 head_dim;
    u32 kv_is_fp8;
};

DEVICE u16 half_within_range(float f) { return static_cast<u16>(floats_to_pair(f, 0.0f)); }

// Writes element `i` of the cached vector of a head at a slot.
DEVICE void append(const Epilogue& e, u8* cache, u32 slot, u32 kv_head, u32 i, float value) {
    u64 vector = (static_cast<u64>(slot / 16) * e.kv_heads + kv_head) * 16 + slot % 16;
    u64 at = vector * e.head_dim + i;
    if (e.kv_is_fp8) {
        cache[at] = float_to_e4m3(value);
    } else {
        reinterpret_cast<u16*>(cache)[at] = half_within_range(value);
    }
}

// Queries and keys are rotated; tile rows g and g + 8 are elements i and i + head_dim / 2 of a head. Values go
// as they come, in plain order.
DEVICE void finish_qkv(const Epilogue& e, u32 tile, u32 row, float low, float high) {
    u32 tiles_of_head = e.head_dim / TILE_OUTPUTS;
    u32 head = tile / tiles_of_head, in_head = tile % tiles_of_head;
    u32 g = lane_index() / 4;
    bool is_value = head >= e.heads + e.kv_heads;
    u32 i = is_value ? 16 * in_head + g : 8 * in_head + g;
    u32 partner = i + (is_value ? 8 : e.head_dim / 2);
    if (e.bias) {
        low += e.bias[head * e.head_dim + i];
        high += e.bias[head * e.head_dim + partner];
    }
    if (!is_value) {
        const float* turn = e.rotary + (static_cast<u64>(e.positions[row]) * (e.head_dim / 2) + i) * 2;
        float cosine = turn[0], sine = turn[1];
        float turned = low * cosine - high * sine;
        high = high * cosine + low * sine;
        low = turned;
    }
    if (head < e.heads) {
        u16* to = static_cast<u16*>(e.to) + static_cast<u64>(row) * e.heads * e.head_dim + head * e.head_dim;
        to[i] = half_within_range(low);
        to[partner] = half_within_range(high);
        return;
    }
    u32 slot = e.slots[row];
    if (slot == ~0u) return;
    u32 kv_head = head - e.heads - (is_value ? e.kv_heads : 0);
    u8* cache = is_value ? e.values : e.keys;
    append(e, cache, slot, kv_head, i, low);
    append(e, cache, slot, kv_head, partner, high);
}

// One row's sums for tile rows g (`low`) and g + 8 (`high`), g being the lane's.
DEVICE void finish_row(const Epilogue& e, u32 tile, u32 row, float low, float high) {
    u32 g = lane_index() / 4;
    if (e.kind == QKV) {
        finish_qkv(e, tile, row, low, high);
    } else if (e.kind == GATED_F16) {
        u32 width = e.outputs / 2, i = 8 * tile + g;
        // silu(gate) up; 2^(-gate log2 e) overflows to infinity where silu is zero to the last bit.
        float gated = low / (1.0f + exp2_fast(low * -1.44269504f)) * high;
        if (i < width) static_cast<u16*>(e.to)[static_cast<u64>(row) * width + i] = half_within_range(gated);
    } else {
        u32 output = TILE_OUTPUTS * tile + g;
        float* to = static_cast<float*>(e.to) + static_cast<u64>(row) * e.outputs + output;
        bool has_low = output < e.outputs, has_high = output + 8 < e.outputs;
        if (e.kind == ADD_F32) {
            if (has_low) to[0] += low;
            if (has_high) to[8] += high;
        } else {
            if (has_low) to[0] = e.bias ? low + e.bias[output] : low;
            if (has_high) to[8] = e.bias ? high + e.bias[output + 8] : high;
        }
    }
}

// A lane's four sums of a tile, for the rows `row + 2 t` and the next, those of them that exist.
DEVICE void finish_tile(const Epilogue& e, u32 tile, u32 row, u32 rows, const Floats4& sums) {
    row += 2 * (lane_index() % 4);
    if (row < rows) finish_row(e, tile, row, sums.at[0], sums.at[2]);
    if (row + 1 < rows) finish_row(e, tile, row + 1, sums.at[1], sums.at[3]);
}

}  // namespace linear
