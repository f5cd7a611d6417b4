// The host's half of `cuda/primitives.cuh`, which includes this file: every function of that header once
// more, with the same meaning, for a machine without a GPU.
//
// A CUDA thread is a fiber (`runtime.cpp`), so it can stop in the middle of a kernel, at a barrier or at a
// warp's collective, until the others are there. Whatever the GPU leaves undefined is made as wrong as it can
// be: fresh memory holds 0xff bytes (a NaN, read as a number), an asynchronous copy does not happen before
// the wait for it, and what the hardware forbids ends the launch with an error that names the thread.
//
// Only compiler built-ins are used, no header of the C++ library: a kernel cannot come to depend on one.
#pragma once

#define DEVICE inline __attribute__((always_inline))

// As in the CUDA half. It also puts the kernel into the list that launches look it up in.
#define KERNEL(name, Params, threads, blocks) SHIM_KERNEL(name, Params, threads, blocks)
#define SHIM_KERNEL(name, Params, threads, blocks)                                                           \
    static void name(const Params& p);                                                                       \
    static void name##_run(const void* params) { name(*static_cast<const Params*>(params)); }                \
    static const ::shim::Kernel name##_kernel{#name, name##_run, sizeof(Params), threads};                   \
    static void name([[maybe_unused]] const Params& p)

namespace shim {

// Entries of a list through all object files; `src/lib.rs` reads it, so the layout is fixed.
struct Kernel {
    const char* name;
    void (*run)(const void* params);
    u64 params_bytes;
    u32 threads;
    const Kernel* next;

    Kernel(const char* name, void (*run)(const void*), u64 params_bytes, u32 threads);
};

// What a thread waits for, or that it has ended.
enum class Stop : u8 {
    ended,
    block_barrier,
    previous_kernel,
    // From here on: things that the lanes of a warp do together.
    warp_barrier,
    shuffle,
    vote,
    load_matrices,
    load_matrices_transposed,
    multiply_add,
};

struct Fiber;

// The thread that is running. There is one of these in the process: kernels run one at a time.
struct Now {
    Fiber* fiber;
    u32 thread;
    u32 threads;
    u32 block[3];
    u32 grid[3];
    u8* shared;
    u64 shared_bytes;
    // Whether the kernel before has not run yet.
    bool early;
};
extern Now now;

// Lets the others run until what `stop` is complete.
void suspend(Stop stop);
// Gives the launch up. The format is printf's.
[[noreturn]] void fail(const char* format, ...) __attribute__((format(printf, 1, 2)));

// Hands in `value` and returns all lanes' values. They stay until the collective after the next one.
const u32* exchange(Stop stop, u32 value);
void load_matrices(Stop stop, u32* to, const void* row);
void multiply_add(float* d, const u32* a, const u32* b);
void copy_async_16(void* shared, const void* global, bool valid);
void copy_async_commit();
void copy_async_wait(u32 pending);

inline u64 address(const void* pointer) { return reinterpret_cast<u64>(pointer); }

inline void expect_shared(const void* pointer, u64 bytes, const char* what) {
    u64 offset = address(pointer) - address(now.shared);
    if (offset > now.shared_bytes || bytes > now.shared_bytes - offset)
        fail("%s at %p is not in the block's shared memory", what, pointer);
}

inline void expect_aligned(const void* pointer, u64 bytes, const char* what) {
    if (address(pointer) % bytes) fail("%s at %p is not aligned to %llu bytes", what, pointer, bytes);
}

template <class To, class From>
inline To bits_as(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    __builtin_memcpy(&to, &from, sizeof to);
    return to;
}

// Exact: shifted into place, the exponent is 112 too small; the product also makes denormals normal.
inline float half_to_float(u16 half) {
    u32 magnitude = (half & 0x7fffu) << 13;
    float f = bits_as<float>(magnitude) * 0x1p112f;
    if (magnitude >= 0x0f800000) f = bits_as<float>(magnitude | 0x7f800000);  // Infinity or NaN.
    return bits_as<float>(bits_as<u32>(f) | (half & 0x8000u) << 16);
}

// Rounds to nearest even, once, whichever type it comes from; NaN becomes the GPU's only one. Not inline,
// because kernels use it so often that it would be a fifth of the time to compile them.
u16 double_to_half(double from);

// A pair of what `function` makes of the halves at bits 0 and 16.
template <class Function>
inline u32 each_half(Function function) {
    return double_to_half(function(0)) | static_cast<u32>(double_to_half(function(16))) << 16;
}
inline double half_at(u32 pair, u32 shift) { return half_to_float(static_cast<u16>(pair >> shift)); }

}  // namespace shim

// ---- Where am I -------------------------------------------------------------------------------------------

DEVICE u32 thread_index() { return shim::now.thread; }
DEVICE u32 lane_index() { return shim::now.thread % WARP; }
DEVICE u32 warp_index() { return shim::now.thread / WARP; }
DEVICE u32 block_threads() { return shim::now.threads; }
DEVICE u32 block_x() { return shim::now.block[0]; }
DEVICE u32 block_y() { return shim::now.block[1]; }
DEVICE u32 block_z() { return shim::now.block[2]; }
DEVICE u32 grid_x() { return shim::now.grid[0]; }
DEVICE u32 grid_y() { return shim::now.grid[1]; }
DEVICE u32 grid_z() { return shim::now.grid[2]; }
DEVICE u8* shared_memory() { return shim::now.shared; }

// ---- Order ------------------------------------------------------------------------------------------------

DEVICE void block_barrier() { shim::suspend(shim::Stop::block_barrier); }
DEVICE void warp_barrier() { shim::suspend(shim::Stop::warp_barrier); }
DEVICE void wait_for_previous_kernel() {
    if (shim::now.early) shim::suspend(shim::Stop::previous_kernel);
}
DEVICE void let_next_kernel_start() {}
// Blocks run one after another, so there is nothing to fence.
DEVICE u32 take_number(u32* counter, u32 last) {
    u32 number = *counter;
    *counter = number >= last ? 0 : number + 1;
    return number;
}
DEVICE void add_shared(u32* sum, u32 value) {
    shim::expect_shared(sum, sizeof *sum, "a sum");
    *sum += value;
}
DEVICE void add_shared(u64* sum, u64 value) {
    shim::expect_shared(sum, sizeof *sum, "a sum");
    *sum += value;
}

DEVICE u32 take_shared(u32* counter) {
    shim::expect_shared(counter, sizeof *counter, "a counter");
    return (*counter)++;
}

// ---- Warp collectives -------------------------------------------------------------------------------------

DEVICE u32 shuffle(u32 value, u32 lane) { return shim::exchange(shim::Stop::shuffle, value)[lane % WARP]; }
DEVICE u32 shuffle_xor(u32 value, u32 mask) { return shuffle(value, lane_index() ^ mask); }
DEVICE float shuffle(float value, u32 lane) {
    return shim::bits_as<float>(shuffle(shim::bits_as<u32>(value), lane));
}
DEVICE float shuffle_xor(float value, u32 mask) { return shuffle(value, lane_index() ^ mask); }
// When all lanes are there, the runtime makes the mask of their values and gives it to each.
DEVICE u32 vote(bool value) { return shim::exchange(shim::Stop::vote, value)[0]; }

// ---- Global memory ----------------------------------------------------------------------------------------

DEVICE Words4 load_weights(const void* address) {
    shim::expect_aligned(address, 16, "weights");
    return *static_cast<const Words4*>(address);
}
DEVICE void copy_async_16(void* shared, const void* global, bool valid) {
    shim::copy_async_16(shared, global, valid);
}
DEVICE void copy_async_commit() { shim::copy_async_commit(); }
template <int pending>
DEVICE void copy_async_wait() {
    shim::copy_async_wait(pending);
}

// ---- Tensor cores -----------------------------------------------------------------------------------------

DEVICE void load_matrices(u32 (&to)[4], const void* row) {
    shim::load_matrices(shim::Stop::load_matrices, to, row);
}
DEVICE void load_matrices_transposed(u32 (&to)[4], const void* row) {
    shim::load_matrices(shim::Stop::load_matrices_transposed, to, row);
}
DEVICE void multiply_add(float (&d)[4], const u32 (&a)[4], const u32 (&b)[2]) { shim::multiply_add(d, a, b); }

// ---- Bits and pairs of halves -----------------------------------------------------------------------------

template <u32 table>
DEVICE u32 bits3(u32 a, u32 b, u32 c) {
    u32 d = 0;
    for (u32 row = 0; row < 8; row++) {
        if (table >> row & 1) d |= (row & 4 ? a : ~a) & (row & 2 ? b : ~b) & (row & 1 ? c : ~c);
    }
    return d;
}
DEVICE u32 pick_bytes(u32 a, u32 b, u32 selector) {
    // The GPU would spread the sign of the byte: nobody wants that here.
    if (selector & 0x8888) shim::fail("pick_bytes with the selector 0x%x", selector);
    u64 all = static_cast<u64>(b) << 32 | a;
    u32 d = 0;
    for (u32 i = 0; i < 4; i++) d |= static_cast<u32>(all >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
    return d;
}
// In double precision the sums and products of halves are exact, or so close that rounding once more gives
// what rounding the exact value gives.
DEVICE u32 add_pairs(u32 a, u32 b) {
    return shim::each_half([&](u32 at) { return shim::half_at(a, at) + shim::half_at(b, at); });
}
DEVICE u32 subtract_pairs(u32 a, u32 b) {
    return shim::each_half([&](u32 at) { return shim::half_at(a, at) - shim::half_at(b, at); });
}
DEVICE u32 multiply_pairs(u32 a, u32 b) {
    return shim::each_half([&](u32 at) { return shim::half_at(a, at) * shim::half_at(b, at); });
}
DEVICE u32 multiply_add_pairs(u32 a, u32 b, u32 c) {
    return shim::each_half([&](u32 at) {
        return shim::half_at(a, at) * shim::half_at(b, at) + shim::half_at(c, at);
    });
}
DEVICE float half_to_float(u16 bits) { return shim::half_to_float(bits); }
DEVICE u16 float_to_half(float f) { return shim::double_to_half(f); }
DEVICE u32 floats_to_pair(float low, float high) {
    low = __builtin_fminf(__builtin_fmaxf(low, -65504.0f), 65504.0f);
    high = __builtin_fminf(__builtin_fmaxf(high, -65504.0f), 65504.0f);
    return static_cast<u32>(float_to_half(low)) | static_cast<u32>(float_to_half(high)) << 16;
}
DEVICE u32 small_floats_to_pair(float low, float high) {
    return static_cast<u32>(float_to_half(low)) | static_cast<u32>(float_to_half(high)) << 16;
}

// ---- Numbers ----------------------------------------------------------------------------------------------

// The GPU's flushes denormals on both sides.
DEVICE float exp2_fast(float x) {
    float y = __builtin_exp2f(x);
    return y < 0x1p-126f ? 0.0f : y;
}
DEVICE float inverse_square_root(float x) { return 1.0f / __builtin_sqrtf(x); }
DEVICE float fused_multiply_add(float a, float b, float c) { return __builtin_fmaf(a, b, c); }
DEVICE float larger(float a, float b) { return __builtin_fmaxf(a, b); }
DEVICE float smaller(float a, float b) { return __builtin_fminf(a, b); }
DEVICE float float_of_bits(u32 bits) { return shim::bits_as<float>(bits); }
DEVICE u32 bits_of_float(float f) { return shim::bits_as<u32>(f); }
