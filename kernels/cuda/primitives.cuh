// The one header that knows what it is compiled for.
//
// With nvcc or NVRTC the functions below are a few PTX instructions each. With a plain C++20 compiler they
// come from the host shim (`shim/cpp/`), where a CUDA thread is a fiber and every function here has a twin
// with the same meaning, so that a kernel written with them runs on the host unchanged. Kernels use nothing
// else of CUDA: no `threadIdx`, no `__syncthreads`, no `half`, no headers of the toolkit.
//
// Half-precision numbers are bits: `u16` is one, `u32` holds two, the one with the lower index (or lower
// address) in the low half. All kernels take one parameter block by value.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i8 = signed char;
using i32 = int;
using i64 = long long;

// Sixteen bytes, moved as one.
struct alignas(16) Words4 {
    u32 x, y, z, w;
};

constexpr u32 WARP = 32;

#if !defined(__CUDACC__)
#include "shim.hpp"  // Defines everything below for the host.
#else

#define DEVICE __device__ __forceinline__

// Defines a kernel: `KERNEL(name, Params, threads, blocks) { ... }`. `threads` is the most a block may have,
// `blocks` the number of blocks that must fit on one multiprocessor (a limit on registers); the body sees
// `const Params& p`.
#define KERNEL(name, Params, threads, blocks)                                                                \
    extern "C" __global__ void __launch_bounds__(threads, blocks) name(const __grid_constant__ Params p)

// ---- Where am I -------------------------------------------------------------------------------------------

DEVICE u32 thread_index() { return threadIdx.x; }
DEVICE u32 lane_index() { return threadIdx.x % WARP; }
DEVICE u32 warp_index() { return threadIdx.x / WARP; }
DEVICE u32 block_threads() { return blockDim.x; }
DEVICE u32 block_x() { return blockIdx.x; }
DEVICE u32 block_y() { return blockIdx.y; }
DEVICE u32 block_z() { return blockIdx.z; }
DEVICE u32 grid_x() { return gridDim.x; }
DEVICE u32 grid_y() { return gridDim.y; }
DEVICE u32 grid_z() { return gridDim.z; }

// The block's dynamic shared memory, 128-byte aligned, its contents undefined.
extern __shared__ __align__(128) u8 shared_memory_pool[];
DEVICE u8* shared_memory() { return shared_memory_pool; }

// ---- Order ------------------------------------------------------------------------------------------------

// All threads of the block arrive before any goes on; shared and global writes before it are seen after it.
DEVICE void block_barrier() { __syncthreads(); }
// The same for a warp.
DEVICE void warp_barrier() { __syncwarp(); }
// Programmatic dependent launch: what the kernel before wrote may be touched only after this (or, of the
// kernel before that, too: it has waited itself). Weights and other constants may be read earlier.
DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
// Lets the next kernel's blocks start as soon as there is room; it waits for this whole kernel by itself.
DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}
// Takes a number at a counter in global memory, 0 first, and wraps to 0 after `last`. All that the calling
// thread wrote before (and, after a block barrier, all that its block wrote) is seen by whoever takes a later
// number. This is how the last of several blocks knows that it is the last.
DEVICE u32 take_number(u32* counter, u32 last) {
    u32 number;
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    asm volatile("atom.relaxed.gpu.global.inc.u32 %0, [%1], %2;" : "=r"(number) : "l"(counter), "r"(last) : "memory");
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
    return number;
}
// Integer sums do not depend on the order. Shared memory only.
DEVICE void add_shared(u32* sum, u32 value) { atomicAdd(sum, value); }
DEVICE void add_shared(u64* sum, u64 value) { atomicAdd(sum, value); }
// Counts up and returns the number before: who gets which is undefined. Shared memory only.
DEVICE u32 take_shared(u32* counter) { return atomicAdd(counter, 1); }

// ---- Warp collectives: all 32 lanes call them -------------------------------------------------------------

DEVICE u32 shuffle(u32 value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
DEVICE float shuffle(float value, u32 lane) { return __shfl_sync(0xffffffffu, value, lane); }
DEVICE float shuffle_xor(float value, u32 mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }
// Bit i is set when lane i's `value` is true.
DEVICE u32 vote(bool value) { return __ballot_sync(0xffffffffu, value); }

// ---- Global memory ----------------------------------------------------------------------------------------

// Sixteen bytes that are read once and that no kernel writes: weights. Stays out of L1, leaves L2 early.
DEVICE Words4 load_weights(const void* address) {
    Words4 v;
    asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(address));
    return v;
}
// Starts a copy of 16 bytes from global to shared memory, or of 16 zero bytes when not `valid` (the address
// must be good all the same).
DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
    u32 to = static_cast<u32>(__cvta_generic_to_shared(shared));
    u32 bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}
// Closes the group of this thread's copies started since the last group.
DEVICE void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of this thread's groups are under way. Other threads' copies: barrier after.
template <int pending>
DEVICE void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

// ---- Tensor cores: all 32 lanes call them -----------------------------------------------------------------

// Four 8x8 matrices of 16-bit elements from shared memory. Lane 8 i + r gives the address of row r (16 bytes,
// aligned) of matrix i. Lane l receives of matrix i, in `to[i]`, row l/4, columns 2 (l%4) and 2 (l%4) + 1.
DEVICE void load_matrices(u32 (&to)[4], const void* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
// The same, each matrix transposed: lane l receives rows 2 (l%4) and 2 (l%4) + 1 of column l/4.
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
    u32 at = static_cast<u32>(__cvta_generic_to_shared(row));
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                 : "=r"(to[0]), "=r"(to[1]), "=r"(to[2]), "=r"(to[3])
                 : "r"(at)
                 : "memory");
}
// `d += a b` for a 16x16 `a`, a 16x8 `b`, fp16 in and fp32 out. With g = lane/4 and t = lane%4:
// a[0]: row g, columns 2t, 2t+1. a[1]: row g+8, the same. a[2], a[3]: as those two, columns 8 further.
// b[0]: rows 2t, 2t+1 of column g. b[1]: rows 8 further.
// d[0], d[1]: row g, columns 2t, 2t+1. d[2], d[3]: row g+8.
DEVICE void multiply_add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ---- Bits and pairs of halves -----------------------------------------------------------------------------

// Bitwise function of three words; bit 4a+2b+c of `table` is its value for bits a, b, c.
template <u32 table>
DEVICE u32 bits3(u32 a, u32 b, u32 c) {
    u32 d;
    asm("lop3.b32 %0, %1, %2, %3, %4;" : "=r"(d) : "r"(a), "r"(b), "r"(c), "n"(table));
    return d;
}
// Byte i of the result is byte `(selector >> 4 i) & 7` of the eight bytes of a (0..3) and b (4..7).
DEVICE u32 pick_bytes(u32 a, u32 b, u32 selector) {
    u32 d;
    asm("prmt.b32 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(selector));
    return d;
}
DEVICE u32 add_pairs(u32 a, u32 b) {
    u32 d;
    asm("add.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 subtract_pairs(u32 a, u32 b) {
    u32 d;
    asm("sub.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 multiply_pairs(u32 a, u32 b) {
    u32 d;
    asm("mul.rn.f16x2 %0, %1, %2;" : "=r"(d) : "r"(a), "r"(b));
    return d;
}
DEVICE u32 multiply_add_pairs(u32 a, u32 b, u32 c) {
    u32 d;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
}
DEVICE float half_to_float(u16 bits) {
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(bits));
    return f;
}
// Rounds to nearest even; what is too large becomes infinity.
DEVICE u16 float_to_half(float f) {
    u16 bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(f));
    return bits;
}
// Two floats to a pair; what is too large becomes the largest half, so that one outlier of an activation
// does not make a whole row NaN.
DEVICE u32 floats_to_pair(float low, float high) {
    u32 d;
    low = fminf(fmaxf(low, -65504.0f), 65504.0f);
    high = fminf(fmaxf(high, -65504.0f), 65504.0f);
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}
// The same for floats that are in the range of halves anyway, such as weights of at most 1: one instruction.
DEVICE u32 small_floats_to_pair(float low, float high) {
    u32 d;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(d) : "f"(high), "f"(low));
    return d;
}

// ---- Numbers ----------------------------------------------------------------------------------------------

// 2^x, within two units in the last place; 0 for -infinity.
DEVICE float exp2_fast(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
DEVICE float inverse_square_root(float x) { return rsqrtf(x); }
DEVICE float fused_multiply_add(float a, float b, float c) { return fmaf(a, b, c); }
DEVICE float larger(float a, float b) { return fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return fminf(a, b); }
DEVICE float float_of_bits(u32 bits) { return __uint_as_float(bits); }
DEVICE u32 bits_of_float(float f) { return __float_as_uint(f); }

#endif
