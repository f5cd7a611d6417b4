// Kernels for the shim's own tests: small uses of each primitive, and beside them the mistakes that the shim
// is there to find, put in on purpose by a template flag.
#include "primitives.cuh"

namespace {

constexpr u32 THREADS = 256;

// Sum of `THREADS` numbers per block by halves through shared memory.
struct SumParams {
    const float* from;
    float* to;
};
template <bool barrier>
DEVICE void sum_by_halves(const SumParams& p) {
    auto parts = reinterpret_cast<float*>(shared_memory());
    wait_for_previous_kernel();
    parts[thread_index()] = p.from[block_x() * THREADS + thread_index()];
    block_barrier();
    for (u32 step = THREADS / 2; step > 0; step /= 2) {
        // Both neighbours' places are read, so that either order of threads comes too early for one.
        float other = parts[thread_index() ^ step];
        if (barrier) block_barrier();
        parts[thread_index()] += other;
        if (barrier) block_barrier();
    }
    if (thread_index() == 0) p.to[block_x()] = parts[0];
}

// The same with shuffles, and across warps by the last block's way: each block's sum goes to `parts`, and
// who takes the last number adds them up.
struct SplitParams {
    const float* from;
    float* parts;
    float* to;
    u32* counter;
};

// One 16x8 tile of `a b` for fp16 `a` (16 x depth, rows) and `b` (depth x 8, rows), through shared memory by
// asynchronous copies, two tiles under way.
struct ProductParams {
    const u16* a;
    const u16* b;
    float* to;
    u32 depth;
    u32 unused;
};
template <bool wait>
DEVICE void tile_product(const ProductParams& p) {
    constexpr u32 STAGE = 16 * 16 + 16 * 8;
    auto stages = reinterpret_cast<u16*>(shared_memory());
    u32 lane = lane_index();
    wait_for_previous_kernel();
    auto fetch = [&](u32 tile) {
        u16* stage = stages + tile % 2 * STAGE;
        bool valid = tile < p.depth / 16;
        // Row `lane / 2` of a, half `lane % 2`; the first 16 lanes take a row of b each.
        const u16* a = valid ? p.a + lane / 2 * p.depth + tile * 16 + lane % 2 * 8 : p.a;
        copy_async_16(stage + lane * 8, a, valid);
        const u16* b = valid ? p.b + (tile * 16 + lane) * 8 : p.b;
        if (lane < 16) copy_async_16(stage + 256 + lane * 8, b, valid);
        copy_async_commit();
    };
    float sum[4] = {};
    fetch(0);
    for (u32 tile = 0; tile < p.depth / 16; tile++) {
        fetch(tile + 1);
        if (wait) copy_async_wait<1>();
        warp_barrier();
        const u16* stage = stages + tile % 2 * STAGE;
        u32 a[4], b[4];
        // Matrices: rows 0-7 and 8-15 of columns 0-7, then the same of columns 8-15.
        load_matrices(a, stage + lane % 16 * 16 + lane / 16 * 8);
        load_matrices_transposed(b, stage + 256 + lane % 16 * 8);
        multiply_add(sum, a, {b[0], b[1]});
        warp_barrier();
    }
    copy_async_wait<0>();
    for (u32 i = 0; i < 4; i++) p.to[(lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2] = sum[i];
}

struct CopyParams {
    const u32* from;
    u32* to;
    u32 count;
    u32 what;
};
template <bool wait>
DEVICE void add_one(const CopyParams& p) {
    if (wait) wait_for_previous_kernel();
    u32 i = block_x() * THREADS + thread_index();
    u32 value = i < p.count ? p.from[i] : 0;
    if (!wait) wait_for_previous_kernel();
    if (i < p.count) p.to[i] = value + 1;
}

}  // namespace

KERNEL(shim_test_sum, SumParams, THREADS, 1) { sum_by_halves<true>(p); }
KERNEL(shim_test_sum_no_barrier, SumParams, THREADS, 1) { sum_by_halves<false>(p); }

KERNEL(shim_test_split_sum, SplitParams, THREADS, 1) {
    auto shared = reinterpret_cast<float*>(shared_memory());
    wait_for_previous_kernel();
    auto sum_of_block = [&](float value) {
        for (u32 mask = WARP / 2; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
        if (lane_index() == 0) shared[warp_index()] = value;
        block_barrier();
        value = 0;
        for (u32 warp = 0; warp < THREADS / WARP; warp++) value += shared[warp];
        block_barrier();
        return value;
    };
    float sum = sum_of_block(p.from[block_x() * THREADS + thread_index()]);
    auto number = reinterpret_cast<u32*>(shared);
    if (thread_index() == 0) {
        p.parts[block_x()] = sum;
        *number = take_number(p.counter, grid_x() - 1);
    }
    block_barrier();
    bool last = *number == grid_x() - 1;
    block_barrier();
    if (!last) return;
    sum = sum_of_block(thread_index() < grid_x() ? p.parts[thread_index()] : 0.0f);
    if (thread_index() == 0) *p.to = sum;
}

KERNEL(shim_test_product, ProductParams, WARP, 1) { tile_product<true>(p); }
KERNEL(shim_test_product_no_wait, ProductParams, WARP, 1) { tile_product<false>(p); }

KERNEL(shim_test_add_one, CopyParams, THREADS, 1) { add_one<true>(p); }
KERNEL(shim_test_add_one_early, CopyParams, THREADS, 1) { add_one<false>(p); }

// What three words are turned to by everything that takes words: ten results.
KERNEL(shim_test_words, CopyParams, THREADS, 1) {
    for (u32 i = block_x() * THREADS + thread_index(); i < p.count; i += grid_x() * THREADS) {
        u32 a = p.from[3 * i], b = p.from[3 * i + 1], c = p.from[3 * i + 2];
        u32* to = p.to + 10 * i;
        to[0] = add_pairs(a, b);
        to[1] = subtract_pairs(a, b);
        to[2] = multiply_pairs(a, b);
        to[3] = multiply_add_pairs(a, b, c);
        to[4] = float_to_half(float_of_bits(a));
        to[5] = floats_to_pair(float_of_bits(a), float_of_bits(b));
        to[6] = bits_of_float(half_to_float(static_cast<u16>(a)));
        to[7] = bits3<0xca>(a, b, c);
        to[8] = pick_bytes(a, b, 0x6240);
        to[9] = bits_of_float(exp2_fast(float_of_bits(a)));
    }
}

// `to[i]`: the vote of a warp's lanes on whether their word of `from` is odd, and on nothing; then lane i's
// word, from where the next lane's word says.
KERNEL(shim_test_collectives, CopyParams, WARP, 1) {
    u32 word = p.from[lane_index()];
    u32 odd = vote(word % 2), none = vote(false);
    u32 next = shuffle(word, lane_index() + 1);
    p.to[lane_index()] = odd;
    p.to[WARP + lane_index()] = none;
    p.to[2 * WARP + lane_index()] = shuffle(word, next);
}

// Sums of all threads' words, by shared integers of both widths.
KERNEL(shim_test_add_shared, CopyParams, THREADS, 1) {
    auto wide = reinterpret_cast<u64*>(shared_memory());
    auto narrow = reinterpret_cast<u32*>(wide + 1);
    if (thread_index() == 0) {
        *wide = 0;
        *narrow = 0;
    }
    block_barrier();
    add_shared(wide, u64{p.from[thread_index()]} << 8);
    add_shared(narrow, p.from[thread_index()]);
    block_barrier();
    if (thread_index() == THREADS - 1) {
        p.to[0] = static_cast<u32>(*wide >> 8);
        p.to[1] = *narrow;
    }
}

// Threads from `what` on end without the barrier.
KERNEL(shim_test_barrier_of_some, CopyParams, THREADS, 1) {
    if (thread_index() >= p.what) return;
    block_barrier();
}
// Lanes from `what` on are not there for the shuffle, but at the barrier behind it.
KERNEL(shim_test_shuffle_of_some, CopyParams, THREADS, 1) {
    u32 value = 0;
    if (lane_index() < p.what) value = shuffle(thread_index(), 0);
    block_barrier();
    p.to[thread_index()] = value;
}
// Sixteen bytes at once from `what` bytes behind the start.
KERNEL(shim_test_wide_load, CopyParams, THREADS, 1) {
    auto from = reinterpret_cast<const Words4*>(reinterpret_cast<const u8*>(p.from) + p.what);
    if (thread_index() == 0) p.to[0] = from->x;
}
KERNEL(shim_test_wide_copy, CopyParams, THREADS, 1) {
    copy_async_16(shared_memory() + 16 * thread_index(), reinterpret_cast<const u8*>(p.from) + p.what, true);
    copy_async_commit();
    copy_async_wait<0>();
}
KERNEL(shim_test_copy_under_way, CopyParams, THREADS, 1) {
    copy_async_16(shared_memory() + 16 * thread_index(), p.from, true);
    copy_async_commit();
}
// Reads the word `what` of `from`, wherever that is.
KERNEL(shim_test_read_at, CopyParams, THREADS, 1) {
    if (thread_index() == 0) p.to[0] = p.from[p.what];
}
// `what` barriers.
KERNEL(shim_test_barriers, CopyParams, 1024, 1) {
    for (u32 i = 0; i < p.what; i++) block_barrier();
}
// `what` products of one tile.
KERNEL(shim_test_products, CopyParams, THREADS, 1) {
    float sum[4] = {};
    u32 a[4] = {0x3c003c00, 0x3c003c00, 0x3c003c00, 0x3c003c00}, b[2] = {0x3c003c00, 0x3c003c00};
    for (u32 i = 0; i < p.what; i++) multiply_add(sum, a, b);
    p.to[thread_index()] = static_cast<u32>(sum[0]);
}
