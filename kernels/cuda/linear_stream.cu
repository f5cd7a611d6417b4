// `y = x W^T` for up to 16 rows: decode and very short tails. Everything here is about reading the weights at
// the speed of the memory.
//
// The pieces of a tile are dealt out to the eight warps of a block: in *round* r, warp w has piece 8 r + w.
// The rounds of all tiles, tile after tile, form one line that is cut into equal parts, one for each block
// that fits on the card: no block ends up with a tile more than another. A block so has a few whole tiles and,
// as a rule, a part of one at either end. At the end of each *segment* (what the block has of a tile) its
// warps' sums are added in a fixed order through shared memory by one of them, while the others go on. If
// other blocks have parts of that tile, too, the sums are left in scratch memory, and whoever comes last adds
// all of them up, in the order of the line. Nothing depends on who that is: results do not vary.
//
//     line     |  tile 0   |  tile 1   |  tile 2   |  tile 3   |  tile 4   |  ...
//     blocks   | block 0        | block 1        | block 2        | block 3        |
//
// Where the activations do not fit into shared memory (16 rows of 18944 inputs are 600 KB) the inputs are cut
// into slices, too, and each slice has its own blocks, which hold its activations alone; the scratch sums of
// all slices are added in the order of the slices.
//
// A warp has up to DEPTH pieces under way in registers: 16 bytes by 32 lanes each. The first ones are asked
// for before the previous kernel has ended, since weights never change, and arrive while the activations are
// being prepared. Registers rather than a ring in shared memory (cp.async) because of the instructions: with a
// ring a piece takes twice the 70 that it takes here, and at 4.3 TB/s each of a multiprocessor's four schedulers
// has 110 to 125 cycles for one. The price is that a chunk's loads are waited for together, as a warp has only
// six counters to wait on; the block's other warps, which are not in step, fill the gap.
#include "linear.cuh"

namespace linear {

constexpr u32 WARPS = 8;
constexpr u32 THREADS = WARPS * WARP;

struct StreamParams {
    Operands o;
    Epilogue e;
    // Sums of segments, fp32 [tile][part][row tile][lane][4], and a counter of zero for each tile.
    float* partials;
    u32* counters;
    // The most parts that a tile is in: rows of `partials`.
    u32 max_parts;
    u32 slices;
    // Of a slice; the last may have fewer.
    u32 slice_pieces;
    // Of a tile in a slice.
    u32 rounds;
    // Blocks of a slice, and what is dealt out to them: `units` of `unit_rounds` rounds. The product of the
    // first two fits into 32 bits.
    u32 blocks;
    u32 units;
    u32 unit_rounds;
    u32 padding;
};

DEVICE u32 first_unit_of(const StreamParams& p, u32 block) {
    return block * p.units / p.blocks;
}
// Its inverse: the last block that begins at or before `unit`.
DEVICE u32 block_of(const StreamParams& p, u32 unit) {
    return ((unit + 1) * p.blocks - 1) / p.units;
}

// Activations in shared memory: fp16 [rows][slice], each row followed by 64 bytes that shift the next one by
// half the banks. A warp reads 16 bytes a lane, eight lanes at a time: four neighbours of one row and four of
// the next.
DEVICE u32 row_bytes(u32 pieces) { return pieces * 2 * PIECE_INPUTS + 64; }

// Copies the rows' inputs of a slice. Inputs that do not exist become zeros.
DEVICE void copy_rows(const Operands& o, u8* to, u32 first_input, u32 slice_pieces) {
    const u16* from = static_cast<const u16*>(o.activations);
    u32 chunks = slice_pieces * PIECE_INPUTS / 8;
    for (u32 row = 0; row < o.rows; row++) {
        for (u32 chunk = thread_index(); chunk < chunks; chunk += THREADS) {
            u32 input = first_input + 8 * chunk;
            bool valid = input < o.input;
            copy_async_16(to + row * row_bytes(slice_pieces) + 16 * chunk,
                          from + static_cast<u64>(row) * o.input + (valid ? input : 0), valid);
        }
    }
    copy_async_commit();
    copy_async_wait<0>();
}

// The same from the residual stream: x / sqrt(mean x^2 + epsilon) * norm. Every block does this for itself;
// for a few rows that is cheaper than a kernel of its own, whose start and end cost microseconds.
DEVICE void normalize_rows(const Operands& o, u8* to, float* warp_sums, u32 first_input, u32 slice_pieces) {
    const float* residual = static_cast<const float*>(o.activations);
    auto source = [&](u32 row) { return o.gather ? o.gather[row] : row; };
    for (u32 row = 0; row < o.rows; row++) {
        float sum = 0.0f;
        if (source(row) != ~0u) {
            const Floats4* from = reinterpret_cast<const Floats4*>(residual + static_cast<u64>(source(row)) * o.input);
            for (u32 i = thread_index(); i < o.input / 4; i += THREADS) {
                Floats4 v = from[i];
#pragma unroll
                for (u32 k = 0; k < 4; k++) sum = fused_multiply_add(v.at[k], v.at[k], sum);
            }
        }
#pragma unroll
        for (u32 mask = 16; mask > 0; mask /= 2) sum += shuffle_xor(sum, mask);
        if (lane_index() == 0) warp_sums[row * WARPS + warp_index()] = sum;
    }
    block_barrier();
    u32 chunks = slice_pieces * PIECE_INPUTS / 8;
    for (u32 row = 0; row < o.rows; row++) {
        float sum = 0.0f;
#pragma unroll
        for (u32 i = 0; i < WARPS; i++) sum += warp_sums[row * WARPS + i];
        float factor = inverse_square_root(sum / static_cast<float>(o.input) + o.epsilon);
        u32 from = source(row);
        for (u32 chunk = thread_index(); chunk < chunks; chunk += THREADS) {
            u32 input = first_input + 8 * chunk;
            Words4 pairs{};
            if (input < o.input && from != ~0u) {
                const Floats4* x = reinterpret_cast<const Floats4*>(residual + static_cast<u64>(from) * o.input + input);
                const Floats4* norm = reinterpret_cast<const Floats4*>(o.norm + input);
                Floats4 x0 = x[0], x1 = x[1], n0 = norm[0], n1 = norm[1];
                pairs.x = floats_to_pair(x0.at[0] * factor * n0.at[0], x0.at[1] * factor * n0.at[1]);
                pairs.y = floats_to_pair(x0.at[2] * factor * n0.at[2], x0.at[3] * factor * n0.at[3]);
                pairs.z = floats_to_pair(x1.at[0] * factor * n1.at[0], x1.at[1] * factor * n1.at[1]);
                pairs.w = floats_to_pair(x1.at[2] * factor * n1.at[2], x1.at[3] * factor * n1.at[3]);
            }
            *reinterpret_cast<Words4*>(to + row * row_bytes(slice_pieces) + 16 * chunk) = pairs;
        }
    }
}

template <class Format>
struct Piece {
    Words4 words[Format::LOADS];
    typename Format::Scales scales;
};

// sums += piece times activations; `rows[i]` is where the lane's activations for the piece begin in row tile i.
template <class Format, u32 row_tiles>
DEVICE void multiply_piece(const Piece<Format>& piece, const u8* const (&rows)[row_tiles], u32 at,
                           Floats4 (&sums)[row_tiles]) {
    constexpr u32 parts = PARTS<Format>;
    float part[row_tiles][4];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        if (half == 0 || parts == 2) {
#pragma unroll
            for (u32 i = 0; i < row_tiles; i++)
#pragma unroll
                for (u32 k = 0; k < 4; k++) part[i][k] = parts ? 0.0f : sums[i].at[k];
        }
        Words4 x[row_tiles];
#pragma unroll
        for (u32 i = 0; i < row_tiles; i++) x[i] = *reinterpret_cast<const Words4*>(rows[i] + at + 64 * half);
#pragma unroll
        for (u32 j = 2 * half; j < 2 * half + 2; j++) {
            u32 a[4];
            Format::fragment(piece.words, piece.scales, j, a);
#pragma unroll
            for (u32 i = 0; i < row_tiles; i++) {
                u32 b[2] = {j % 2 ? x[i].z : x[i].x, j % 2 ? x[i].w : x[i].y};
                multiply_add(part[i], a, b);
            }
        }
        if constexpr (parts > 0) {
            if (half == 1 || parts == 2) {
                // The scale is put on the sum rather than on the weights: fewer products, and none is rounded.
                u32 scales = piece.scales.scales[parts == 2 ? half : 0];
                float low = half_to_float(static_cast<u16>(scales));
                float high = half_to_float(static_cast<u16>(scales >> 16));
#pragma unroll
                for (u32 i = 0; i < row_tiles; i++)
#pragma unroll
                    for (u32 k = 0; k < 4; k++)
                        sums[i].at[k] = fused_multiply_add(k < 2 ? low : high, part[i][k], sums[i].at[k]);
            }
        } else if (half == 1) {
#pragma unroll
            for (u32 i = 0; i < row_tiles; i++)
#pragma unroll
                for (u32 k = 0; k < 4; k++) sums[i].at[k] = part[i][k];
        }
    }
}

// Where a warp is on its block's line: up to DEPTH rounds of one tile.
struct Chunk {
    u32 tile;
    // Of the tile, in the slice.
    u32 round;
    // Rounds of the chunk; 0 behind the block's last.
    u32 count;
    // Rounds that the block has from the chunk's first on.
    u32 left;
    // Rounds of the chunk in which there is a piece for this warp.
    u32 pieces;
    // The lane's weights of the first of these, and the scales and zeros of its group. The next are at fixed
    // distances, so that a load costs no arithmetic.
    const u8* words;
    const u8* scales;
    const u8* zeros;
};

// One warp: adds the warps' sums and, when it is the last to have some of this tile, finishes the tile.
template <class Format, u32 row_tiles>
DEVICE void finish_segment(const StreamParams& p, const Floats4* sums_of_warps, u32 tile, u32 slice, u32 block) {
    u32 lane = lane_index();
    u32 first_block = block_of(p, tile * p.rounds / p.unit_rounds);
    u32 last_block = block_of(p, ((tile + 1) * p.rounds - 1) / p.unit_rounds);
    u32 parts_of_slice = last_block - first_block + 1;
    u32 parts = parts_of_slice * p.slices;
    Floats4* scratch = reinterpret_cast<Floats4*>(p.partials) + static_cast<u64>(tile) * p.max_parts * row_tiles * WARP;
    u32 part = slice * parts_of_slice + (block - first_block);
#pragma unroll
    for (u32 i = 0; i < row_tiles; i++) {
        Floats4 sum = {};
        for (u32 w = 0; w < WARPS; w++) {
            Floats4 v = sums_of_warps[(w * row_tiles + i) * WARP + lane];
#pragma unroll
            for (u32 k = 0; k < 4; k++) sum.at[k] += v.at[k];
        }
        finish_sums<Format>(p.o, tile, sum);
        if (parts > 1) {
            scratch[(part * row_tiles + i) * WARP + lane] = sum;
        } else {
            finish_tile(p.e, tile, 8 * i, p.o.rows, sum);
        }
    }
    if (parts == 1) return;
    warp_barrier();
    u32 number = lane == 0 ? take_number(p.counters + tile, parts - 1) : 0;
    number = shuffle(number, 0);
    warp_barrier();
    if (number != parts - 1) return;
#pragma unroll
    for (u32 i = 0; i < row_tiles; i++) {
        Floats4 sum = {};
        for (u32 other = 0; other < parts; other++) {
            Floats4 v = scratch[(other * row_tiles + i) * WARP + lane];
#pragma unroll
            for (u32 k = 0; k < 4; k++) sum.at[k] += v.at[k];
        }
        finish_tile(p.e, tile, 8 * i, p.o.rows, sum);
    }
}

template <class Format, u32 row_tiles, u32 depth>
DEVICE void stream(const StreamParams& p) {
    const Operands& o = p.o;
    u32 lane = lane_index(), warp = warp_index(), g = lane / 4, t = lane % 4;
    u32 slice = block_x() / p.blocks, block = block_x() % p.blocks;
    u32 first_piece = slice * p.slice_pieces;
    u32 slice_end = first_piece + p.slice_pieces;
    if (slice_end > o.pieces) slice_end = o.pieces;

    // Partial sums twice: a segment's are still being read when the next one's are written.
    Floats4* sums_of_warps = reinterpret_cast<Floats4*>(shared_memory());
    float* squares = reinterpret_cast<float*>(sums_of_warps + 2 * WARPS * row_tiles * WARP);
    u8* activations = reinterpret_cast<u8*>(squares + 8 * row_tiles * WARPS);

    // Sets all of a chunk from its tile, its round and the rounds that are left.
    auto locate = [&](Chunk& chunk) {
        u32 count = p.rounds - chunk.round;
        if (count > chunk.left) count = chunk.left;
        if (count > depth) count = depth;
        u32 number = first_piece + chunk.round * WARPS + warp;
        u32 pieces = number < slice_end ? (slice_end - number + WARPS - 1) / WARPS : 0;
        chunk.count = count;
        chunk.pieces = pieces < count ? pieces : count;
        const u8* tile = o.weights + chunk.tile * o.tile_bytes;
        chunk.words = tile + number * WEIGHT_BYTES<Format> + 16 * lane;
        chunk.scales = tile + o.scales_at + group_of<Format>(number) * GROUP_SCALE_BYTES;
        chunk.zeros = tile + o.zeros_at + group_of<Format>(number) * GROUP_ZERO_BYTES;
    };
    u32 first_round = first_unit_of(p, block) * p.unit_rounds;
    Chunk now;
    now.tile = first_round / p.rounds;
    now.round = first_round % p.rounds;
    now.left = first_unit_of(p, block + 1) * p.unit_rounds - first_round;
    locate(now);

    Piece<Format> pieces[depth];
    auto fetch = [&](const Chunk& chunk, u32 i) {
        if (i >= chunk.pieces) return;
#pragma unroll
        for (u32 k = 0; k < Format::LOADS; k++)
            pieces[i].words[k] = load_weights(chunk.words + LOAD_BYTES * (i * WARPS * Format::LOADS + k));
        u32 groups = group_of<Format>(i * WARPS);
        pieces[i].scales =
            Format::Scales::load(chunk.scales + groups * GROUP_SCALE_BYTES, chunk.zeros + groups * GROUP_ZERO_BYTES);
    };
#pragma unroll
    for (u32 i = 0; i < depth; i++) fetch(now, i);

    let_next_kernel_start();
    wait_for_previous_kernel();
    if (o.norm) {
        normalize_rows(o, activations, squares, first_piece * PIECE_INPUTS, p.slice_pieces);
    } else {
        copy_rows(o, activations, first_piece * PIECE_INPUTS, p.slice_pieces);
    }
    block_barrier();

    // Columns of B without a row read the last row's activations: what comes out there is not looked at.
    const u8* rows[row_tiles];
#pragma unroll
    for (u32 i = 0; i < row_tiles; i++) {
        u32 row = 8 * i + g < o.rows ? 8 * i + g : o.rows - 1;
        rows[i] = activations + row * row_bytes(p.slice_pieces) + 16 * t;
    }

    Floats4 sums[row_tiles] = {};
    for (u32 segment = 0; now.count > 0;) {
        Chunk next = now;
        next.round += now.count;
        next.left -= now.count;
        bool ends_tile = next.round == p.rounds;
        if (ends_tile) {
            next.round = 0;
            next.tile++;
        }
        locate(next);
        u32 at = (now.round * WARPS + warp) * 2 * PIECE_INPUTS;
#pragma unroll
        for (u32 i = 0; i < depth; i++) {
            if (i < now.pieces)
                multiply_piece<Format, row_tiles>(pieces[i], rows, at + i * WARPS * 2 * PIECE_INPUTS, sums);
            fetch(next, i);
        }
        if (ends_tile || next.left == 0) {
            Floats4* buffer = sums_of_warps + segment % 2 * (WARPS * row_tiles * WARP);
#pragma unroll
            for (u32 i = 0; i < row_tiles; i++) {
                buffer[(warp * row_tiles + i) * WARP + lane] = sums[i];
                sums[i] = {};
            }
            block_barrier();
            if (warp == segment % WARPS) finish_segment<Format, row_tiles>(p, buffer, now.tile, slice, block);
            segment++;
        }
        now = next;
    }
}

}  // namespace linear

// Two blocks a multiprocessor, so that one reads while the other is between segments: 128 registers a thread.
// The depths are the most that fit into them: 50 to 100 KB under way in a multiprocessor, where 4.3 TB/s at
// 700 ns need 23 KB.
#define STREAM_KERNELS(format, Format, depth_8, depth_16)                                                    \
    KERNEL(linear_stream_##format##_8, linear::StreamParams, linear::THREADS, 2) {                           \
        linear::stream<linear::Format, 1, depth_8>(p);                                                       \
    }                                                                                                        \
    KERNEL(linear_stream_##format##_16, linear::StreamParams, linear::THREADS, 2) {                          \
        linear::stream<linear::Format, 2, depth_16>(p);                                                      \
    }

STREAM_KERNELS(int4_g128, Int4<128>, 7, 7)
STREAM_KERNELS(int4_g64, Int4<64>, 7, 7)
STREAM_KERNELS(int4_g32, Int4<32>, 6, 5)
STREAM_KERNELS(f16, F16, 3, 2)
STREAM_KERNELS(int8, Int8, 4, 4)
STREAM_KERNELS(fp8, Fp8, 4, 4)
