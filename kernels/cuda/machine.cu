// What the card itself can do, to hold the other kernels against: how fast it reads memory and multiplies
// matrices. And random weights for measurements, made where they are needed.
#include "primitives.cuh"

// Sixteen-byte loads in flight per thread while reading.
constexpr u32 READS = 8;

struct ReadMemoryParams {
    const u8* from;
    u32* sink;  // Written in the unlikely case that the sum is `written`: so no load can be left out.
    u64 bytes;  // A multiple of threads * 16 * READS.
    u64 written;
};

// Reads everything once. Blocks take turns through the buffer, so that all of it is streamed in order.
KERNEL(machine_read_memory, ReadMemoryParams, 256, 4) {
    wait_for_previous_kernel();
    u64 piece = u64(block_threads()) * 16 * READS;
    u32 sum = 0;
    for (u64 at = block_x() * piece; at < p.bytes; at += grid_x() * piece) {
        Words4 words[READS];
        for (u32 i = 0; i < READS; i++) {
            words[i] = load_weights(p.from + at + (u64(i) * block_threads() + thread_index()) * 16);
        }
        for (u32 i = 0; i < READS; i++) {
            sum += words[i].x ^ words[i].y ^ words[i].z ^ words[i].w;
        }
    }
    if (sum == p.written) {
        p.sink[0] = sum;
    }
    let_next_kernel_start();
}

struct CopyMemoryParams {
    const u8* from;
    u8* to;
    u64 bytes;  // A multiple of threads * 16 * READS.
};

// Copies everything once, in the order in which `machine_read_memory` reads.
KERNEL(machine_copy_memory, CopyMemoryParams, 256, 4) {
    wait_for_previous_kernel();
    u64 piece = u64(block_threads()) * 16 * READS;
    for (u64 at = block_x() * piece; at < p.bytes; at += grid_x() * piece) {
        u64 first = at + u64(thread_index()) * 16;
        Words4 words[READS];
        for (u32 i = 0; i < READS; i++) {
            words[i] = load_weights(p.from + first + u64(i) * block_threads() * 16);
        }
        for (u32 i = 0; i < READS; i++) {
            *reinterpret_cast<Words4*>(p.to + first + u64(i) * block_threads() * 16) = words[i];
        }
    }
    let_next_kernel_start();
}

// Independent accumulators per warp: enough to keep the tensor cores' pipeline full.
constexpr u32 ACCUMULATORS = 8;

struct MultiplyParams {
    float* sink;  // [blocks][threads]
    u32 rounds;
    u32 a, b;  // Pairs of halves that fill the operands.
};

// Multiplies in registers, nothing else: 4096 operations a `multiply_add`, ACCUMULATORS of them a round and warp.
KERNEL(machine_multiply, MultiplyParams, 256, 2) {
    wait_for_previous_kernel();
    u32 a[4] = {p.a, p.a ^ thread_index() % 2, p.a, p.a};
    u32 b[2] = {p.b, p.b};
    float sums[ACCUMULATORS][4] = {};
    for (u32 round = 0; round < p.rounds; round++) {
        for (u32 i = 0; i < ACCUMULATORS; i++) {
            multiply_add(sums[i], a, b);
        }
    }
    float total = 0;
    for (u32 i = 0; i < ACCUMULATORS; i++) {
        total += sums[i][0] + sums[i][1] + sums[i][2] + sums[i][3];
    }
    p.sink[block_x() * block_threads() + thread_index()] = total;
    let_next_kernel_start();
}

struct RepeatParams {
    const u32* from;
    u32* to;
    u64 period;  // Words in `from`.
    u64 words;   // Words in `to`.
};

// Fills `to` with `from`, over and over.
KERNEL(machine_repeat, RepeatParams, 256, 1) {
    wait_for_previous_kernel();
    u64 stride = u64(grid_x()) * block_threads();
    for (u64 at = u64(block_x()) * block_threads() + thread_index(); at < p.words; at += stride) {
        p.to[at] = p.from[at % p.period];
    }
    let_next_kernel_start();
}
