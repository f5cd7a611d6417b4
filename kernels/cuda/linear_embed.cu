// Rows of an embedding table, as fp32: the residual stream's beginning. The table is plain fp16, or the packed
// weights of the output head where a model ties the two.
#include "linear.cuh"

namespace linear {

struct EmbedParams {
    // Plain: fp16 [tokens][hidden]. Packed: tiles.
    const u8* table;
    const u32* tokens;
    // What earlier steps drew: the first word of each of its records is a token.
    const u8* drawn;
    // fp32 [rows][hidden].
    float* to;
    u64 tile_bytes;
    u32 scales_at;
    u32 drawn_stride;
    u32 hidden;
    // Rows of the table. A token beyond it gives zeros.
    u32 table_rows;
};

// The token of a row; u32 max for none. One with the high bit set is the number of a record in `drawn`.
DEVICE u32 token_of(const EmbedParams& p, u32 row) {
    u32 token = p.tokens[row];
    if (token == ~0u || !(token >> 31)) return token;
    return *reinterpret_cast<const u32*>(p.drawn + static_cast<u64>(token & 0x7fffffff) * p.drawn_stride);
}

// Where the weight of tile row `r` for `input` is: the bytes of its load, its lane's bytes in there, and which
// of the lane's registers and halves of it (see `linear.cuh`).
struct Place {
    u32 piece, product, lane, reg, half;
};
DEVICE Place place_of(u32 r, u32 input) {
    u32 k = input % PIECE_INPUTS, e = k % 4;
    return {input / PIECE_INPUTS, k / 32 * 2 + k / 4 % 2, r % 8 * 4 + k / 8 % 4, r / 8 + e / 2 * 2, e % 2};
}

struct PlainTable {
    static DEVICE float weight(const EmbedParams& p, u32 token, u32 input) {
        return half_to_float(reinterpret_cast<const u16*>(p.table)[static_cast<u64>(token) * p.hidden + input]);
    }
};

struct PackedF16Table {
    static DEVICE float weight(const EmbedParams& p, u32 token, u32 input) {
        Place at = place_of(token % TILE_OUTPUTS, input);
        const u8* load = p.table + token / TILE_OUTPUTS * p.tile_bytes + (at.piece * 4 + at.product) * LOAD_BYTES;
        return half_to_float(*reinterpret_cast<const u16*>(load + at.lane * 16 + at.reg * 4 + at.half * 2));
    }
};

struct PackedInt8Table {
    static DEVICE float weight(const EmbedParams& p, u32 token, u32 input) {
        u32 r = token % TILE_OUTPUTS;
        Place at = place_of(r, input);
        const u8* tile = p.table + token / TILE_OUTPUTS * p.tile_bytes;
        const u8* load = tile + (at.piece * 2 + at.product / 2) * LOAD_BYTES;
        u32 byte = load[at.lane * 16 + at.product % 2 * 8 + at.reg * 2 + at.half];
        const u8* scale = tile + p.scales_at + group_of<Int8>(at.piece) * GROUP_SCALE_BYTES + r % 8 * 4 + r / 8 * 2;
        return (static_cast<float>(byte) - 128.0f) * half_to_float(*reinterpret_cast<const u16*>(scale));
    }
};

template <class Table>
DEVICE void embed(const EmbedParams& p) {
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 row = block_x();
    u32 token = token_of(p, row);
    for (u32 input = thread_index(); input < p.hidden; input += block_threads())
        p.to[static_cast<u64>(row) * p.hidden + input] =
            token < p.table_rows ? Table::weight(p, token, input) : 0.0f;
}

}  // namespace linear

KERNEL(linear_embed_plain, linear::EmbedParams, 256, 1) { linear::embed<linear::PlainTable>(p); }
KERNEL(linear_embed_f16, linear::EmbedParams, 256, 1) { linear::embed<linear::PackedF16Table>(p); }
KERNEL(linear_embed_int8, linear::EmbedParams, 256, 1) { linear::embed<linear::PackedInt8Table>(p); }
