// Runs the blocks of a launch one after another, each thread of a block as a fiber.
//
// A block is run in passes. In a pass each thread of a warp that can go on is run until it stops: at a
// barrier, at a collective, or at the end. Threads hand over to each other directly, so a pass over 32 lanes
// costs 33 switches. After the pass all lanes must have stopped at the same thing. If it is the warp's own
// (a shuffle, a product), it is done here, between the passes, and the warp goes on; if it is the block's
// barrier, the next warp has its turn. When all warps stand at the barrier, the round begins anew.
//
//      warp 0   lanes to the shuffle | shuffle | lanes to the barrier |
//      warp 1                                                         | lanes to the shuffle | ...
//
// So between two barriers a thread runs without the others interfering, in an order that is the caller's:
// what depends on the order (a barrier is missing) differs between the orders.
//
// A kernel launched early runs each thread up to its `wait_for_previous_kernel` and is finished later.
//
// All state is the process's; `src/lib.rs` lets one device in at a time.

#include "primitives.cuh"

#include "fiber.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#if !defined(SHIM_UCONTEXT)
#define SYMBOL2(prefix, name) #prefix #name
#define SYMBOL1(prefix, name) SYMBOL2(prefix, name)
#define SYMBOL SYMBOL1(__USER_LABEL_PREFIX__, redstart_shim_switch)
#if defined(__x86_64__)
asm(".text\n"
    ".p2align 4\n"
    ".globl " SYMBOL "\n" SYMBOL ":\n"
    "  pushq %rbp\n"
    "  pushq %rbx\n"
    "  pushq %r12\n"
    "  pushq %r13\n"
    "  pushq %r14\n"
    "  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n"
    "  popq %r14\n"
    "  popq %r13\n"
    "  popq %r12\n"
    "  popq %rbx\n"
    "  popq %rbp\n"
    // All switches are made in `suspend`: it returns to where the processor predicts, if on another stack.
    "  ret\n");
#else
asm(".text\n"
    ".p2align 4\n"
    ".globl " SYMBOL "\n" SYMBOL ":\n"
    "  sub sp, sp, #160\n"
    "  stp x19, x20, [sp, #0]\n"
    "  stp x21, x22, [sp, #16]\n"
    "  stp x23, x24, [sp, #32]\n"
    "  stp x25, x26, [sp, #48]\n"
    "  stp x27, x28, [sp, #64]\n"
    "  stp x29, x30, [sp, #80]\n"
    "  stp d8, d9, [sp, #96]\n"
    "  stp d10, d11, [sp, #112]\n"
    "  stp d12, d13, [sp, #128]\n"
    "  stp d14, d15, [sp, #144]\n"
    "  mov x9, sp\n"
    "  str x9, [x0]\n"
    "  mov sp, x1\n"
    "  ldp x19, x20, [sp, #0]\n"
    "  ldp x21, x22, [sp, #16]\n"
    "  ldp x23, x24, [sp, #32]\n"
    "  ldp x25, x26, [sp, #48]\n"
    "  ldp x27, x28, [sp, #64]\n"
    "  ldp x29, x30, [sp, #80]\n"
    "  ldp d8, d9, [sp, #96]\n"
    "  ldp d10, d11, [sp, #112]\n"
    "  ldp d12, d13, [sp, #128]\n"
    "  ldp d14, d15, [sp, #144]\n"
    "  add sp, sp, #160\n"
    "  ret\n");
#endif
#endif

namespace shim {

Now now;

namespace {

#if defined(SHIM_ASAN)
constexpr size_t STACK_BYTES = 256 << 10;
#else
constexpr size_t STACK_BYTES = 64 << 10;
#endif

constexpr u8 POISON = 0xff;

const Kernel* first_kernel = nullptr;

// Copies are kept until a wait: `group` counts this thread's commits before it. One that was started before the
// previous kernel had run keeps what it may have read there and then.
struct Copy {
    u8* to;
    const u8* from;
    bool valid;
    u64 group;
    u8 early[16];
    bool is_early;
};

}  // namespace

struct Block;
struct WarpState;

struct Fiber : Context {
    void* stack = nullptr;
    u64 stack_bytes = 0;
    u32 thread = 0;
    Block* block = nullptr;
    WarpState* warp = nullptr;
    std::vector<Copy> copies;
    u64 groups = 0;
    // What a collective needs of this lane.
    void* to = nullptr;
    const void* from = nullptr;
    const void* from2 = nullptr;
};

struct WarpState {
    Stop stops[WARP];
    // Whether each lane can go on.
    bool ready[WARP];
    // Collectives done. Their values take turns in two places, because a lane that is through hands in the
    // next value while the others have not yet read the last.
    u64 collectives;
    u32 values[2][WARP];
};

namespace {

Context scheduler;
// The rest of the pass under way; the scheduler comes after the last.
Fiber* pass[WARP + 1];
Fiber** next_in_pass;

// The first error of the launch. A fiber that fails goes to the scheduler and is never resumed.
std::string error;
bool failed;

std::string place(u32 thread) {
    char text[96];
    const u32* block = now.block;
    snprintf(text, sizeof text, "block (%u, %u, %u), thread %u", block[0], block[1], block[2], thread);
    return text;
}

const char* describe(Stop stop) {
    switch (stop) {
    case Stop::ended: return "has ended";
    case Stop::block_barrier: return "waits at a block barrier";
    case Stop::previous_kernel: return "waits for the previous kernel";
    case Stop::warp_barrier: return "waits at a warp barrier";
    case Stop::shuffle: return "waits at a shuffle";
    case Stop::vote: return "waits at a vote";
    case Stop::load_matrices: return "waits at a load of matrices";
    case Stop::load_matrices_transposed: return "waits at a load of transposed matrices";
    case Stop::multiply_add: return "waits at a matrix product";
    }
    return "?";
}

void set_error(u32 thread, const std::string& what) {
    if (failed) return;
    failed = true;
    error = place(thread) + ": " + what;
}

// xorshift64*, for the shuffled order.
struct Random {
    u64 state;
    u32 below(u32 bound) {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        return static_cast<u32>((state * 0x2545f4914f6cdd1d >> 32) * bound >> 32);
    }
};

}  // namespace

// The order in which threads (and their warps) or blocks have their turn.
struct Order {
    u64 kind;  // 0: ascending, 1: descending, 2: shuffled anew each time.
    u64 seed;
};

namespace {

void arrange(u32* indices, u32 count, const Order& order, Random& random) {
    for (u32 i = 0; i < count; i++) indices[i] = order.kind == 1 ? count - 1 - i : i;
    if (order.kind != 2) return;
    for (u32 i = count; i > 1; i--) std::swap(indices[i - 1], indices[random.below(i)]);
}

}  // namespace

// A launch as `src/lib.rs` describes it; the layout is fixed.
struct LaunchRequest {
    const Kernel* kernel;
    u32 grid[3];
    u32 threads;
    u64 shared_bytes;
    const void* params;
    Order thread_order;
    Order block_order;
};

// The fibers, warps and shared memory of one block at a time. Used again for the next.
struct Block {
    const LaunchRequest* launch = nullptr;
    u32 index[3] = {};
    u32 threads = 0;
    std::vector<std::unique_ptr<Fiber>> fibers;
    std::vector<WarpState> warps;
    u8* shared = nullptr;
    u64 shared_bytes = 0;

    ~Block();
    // Sends all fibers back to their beginning: for a block that will not be finished.
    void abandon();
    void begin(const LaunchRequest& launch, u64 number);
    // Whether it came to its end; else all its threads wait for something that needs the previous kernel.
    // Look at `failed` first.
    bool run(bool early, Random& random);

   private:
    void add_fiber();
    bool run_pass(u32 warp, Random& random);
    void complete(u32 warp, Stop stop);
};

namespace {

// Blocks that are not in use.
std::vector<std::unique_ptr<Block>> idle_blocks;

std::unique_ptr<Block> take_block() {
    if (idle_blocks.empty()) return std::make_unique<Block>();
    auto block = std::move(idle_blocks.back());
    idle_blocks.pop_back();
    return block;
}

// Where every fiber starts, and where it comes back to for the next block.
void fiber_main() {
    Fiber& self = *now.fiber;
    arrived(self);
    for (;;) {
        now.thread = self.thread;
        const LaunchRequest& launch = *self.block->launch;
        launch.kernel->run(launch.params);
        if (!self.copies.empty())
            fail("ends while asynchronous copies of its are under way (%zu of 16 bytes)", self.copies.size());
        suspend(Stop::ended);
    }
}

u64 page_bytes() {
    static const u64 bytes = static_cast<u64>(sysconf(_SC_PAGESIZE));
    return bytes;
}

}  // namespace

Block::~Block() { free(shared); }  // Not the stacks: blocks are put back, and go with the process.

void Block::add_fiber() {
    u32 thread = static_cast<u32>(fibers.size());
    // The lowest page stays without access: a stack that runs over faults.
    u64 bytes = STACK_BYTES + page_bytes();
    constexpr int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    void* memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
    if (memory == MAP_FAILED || mprotect(memory, page_bytes(), PROT_NONE) != 0) {
        fprintf(stderr, "the kernel shim got no memory for the stack of a fiber\n");
        abort();
    }
    auto fiber = std::make_unique<Fiber>();
    fiber->thread = thread;
    fiber->block = this;
    // Tops at different places of a page, or all of them would compete for the same cache lines.
    u64 shift = thread * 320 % 4096 & ~63u;
    fiber->stack = static_cast<u8*>(memory) + page_bytes();
    fiber->stack_bytes = STACK_BYTES - shift;
    prepare(*fiber, fiber->stack, fiber->stack_bytes, fiber_main);
    fibers.push_back(std::move(fiber));
}

void Block::abandon() {
    for (auto& fiber : fibers) {
        prepare(*fiber, fiber->stack, fiber->stack_bytes, fiber_main);
        fiber->copies.clear();
    }
}

void Block::begin(const LaunchRequest& request, u64 number) {
    launch = &request;
    index[0] = static_cast<u32>(number % request.grid[0]);
    index[1] = static_cast<u32>(number / request.grid[0] % request.grid[1]);
    index[2] = static_cast<u32>(number / request.grid[0] / request.grid[1]);
    threads = request.threads;
    while (fibers.size() < threads) add_fiber();
    warps.resize(threads / WARP);
    for (u32 thread = 0; thread < threads; thread++) fibers[thread]->warp = &warps[thread / WARP];
    for (WarpState& warp : warps) {
        memset(warp.ready, true, sizeof warp.ready);
        warp.collectives = 0;
    }
    if (shared == nullptr || shared_bytes != request.shared_bytes) {
        free(shared);
        // Of exactly this size: AddressSanitizer then sees the byte after the last.
        if (posix_memalign(reinterpret_cast<void**>(&shared), 128, request.shared_bytes) != 0) abort();
        shared_bytes = request.shared_bytes;
    }
    memset(shared, POISON, shared_bytes);
}

// Runs the lanes of the warp that can go on. Whether they have all stopped at the same thing.
bool Block::run_pass(u32 warp_index, Random& random) {
    WarpState& warp = warps[warp_index];
    const Order& order = launch->thread_order;
    u32 lanes[WARP];
    arrange(lanes, WARP, order, random);
    u32 count = 0;
    for (u32 lane : lanes) {
        if (warp.ready[lane]) pass[count++] = fibers[warp_index * WARP + lane].get();
    }
    pass[count] = nullptr;
    memset(warp.ready, false, sizeof warp.ready);
    if (count > 0) {
        next_in_pass = pass + 1;
        now.fiber = pass[0];
        switch_to(scheduler, *pass[0]);
        if (failed) return false;
    }
    u8 differ = 0;
    for (u32 lane = 1; lane < WARP; lane++)
        differ |= static_cast<u8>(warp.stops[lane]) ^ static_cast<u8>(warp.stops[0]);
    return differ == 0;
}

bool Block::run(bool early, Random& random) {
    now.threads = threads;
    memcpy(now.block, index, sizeof index);
    memcpy(now.grid, launch->grid, sizeof launch->grid);
    now.shared = shared;
    now.shared_bytes = shared_bytes;
    now.early = early;
    u32 warp_count = threads / WARP;
    u32 order[1024 / WARP];
    auto stop_of = [&](u32 thread) { return warps[thread / WARP].stops[thread % WARP]; };
    auto tell_difference = [&](u32 first, u32 end) {
        u32 other = first;
        while (other + 1 < end && stop_of(other) == stop_of(first)) other++;
        std::string text = describe(stop_of(other));
        set_error(other, text + ", but thread " + std::to_string(first) + " " + describe(stop_of(first)));
    };
    // What waited for the previous kernel goes on.
    if (!early) {
        for (u32 thread = 0; thread < threads; thread++) {
            bool& ready = warps[thread / WARP].ready[thread % WARP];
            ready = ready || stop_of(thread) == Stop::previous_kernel;
        }
    }
    for (;;) {
        bool held = false;
        arrange(order, warp_count, launch->thread_order, random);
        for (u32 i = 0; i < warp_count; i++) {
            u32 w = order[i];
            WarpState& warp = warps[w];
            for (;;) {
                bool same = run_pass(w, random);
                if (failed) return false;
                if (early) {
                    for (Stop stop : warp.stops) held = held || stop == Stop::previous_kernel;
                    if (!same && memchr(warp.stops, static_cast<int>(Stop::previous_kernel), WARP)) break;
                }
                if (!same) {
                    tell_difference(w * WARP, (w + 1) * WARP);
                    return false;
                }
                if (warp.stops[0] < Stop::warp_barrier) break;
                complete(w, warp.stops[0]);
                if (failed) return false;
                memset(warp.ready, true, sizeof warp.ready);
            }
        }
        if (held) return false;
        for (u32 w = 1; w < warp_count; w++) {
            if (warps[w].stops[0] == warps[0].stops[0]) continue;
            tell_difference(0, threads);
            return false;
        }
        if (warps[0].stops[0] == Stop::ended) return true;
        for (WarpState& warp : warps) memset(warp.ready, true, sizeof warp.ready);
    }
}

namespace {

using Floats = float __attribute__((vector_size(32)));

// d (16x8) += a (16x16) b (16x8), summed in the order of the inner dimension. The product of two halves is
// exact in fp32, so fused instructions, where there are any, give the same.
template <class ToFloats>
inline __attribute__((always_inline)) void multiply_tiles(Fiber* const* lanes, ToFloats to_floats) {
    alignas(32) u16 a16[16][16], b16[16][8];
    alignas(32) float a[16][16], b[16][8], d[16][8];
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 g = lane / 4, t = lane % 4;
        auto a_part = static_cast<const u32*>(lanes[lane]->from);
        auto b_part = static_cast<const u32*>(lanes[lane]->from2);
        auto d_part = static_cast<const float*>(lanes[lane]->to);
        for (u32 i = 0; i < 4; i++) memcpy(&a16[g + i % 2 * 8][2 * t + i / 2 * 8], &a_part[i], 4);
        for (u32 i = 0; i < 2; i++) {
            b16[8 * i + 2 * t][g] = static_cast<u16>(b_part[i]);
            b16[8 * i + 2 * t + 1][g] = static_cast<u16>(b_part[i] >> 16);
            memcpy(&d[g + 8 * i][2 * t], &d_part[2 * i], 8);
        }
    }
    to_floats(&a16[0][0], &a[0][0], 256);
    to_floats(&b16[0][0], &b[0][0], 128);
    for (u32 m = 0; m < 16; m++) {
        Floats sum;
        memcpy(&sum, d[m], sizeof sum);
        for (u32 k = 0; k < 16; k++) {
            Floats row;
            memcpy(&row, b[k], sizeof row);
            sum += a[m][k] * row;
        }
        memcpy(d[m], &sum, sizeof sum);
    }
    for (u32 lane = 0; lane < WARP; lane++) {
        const u32 g = lane / 4, t = lane % 4;
        auto d_part = static_cast<float*>(lanes[lane]->to);
        for (u32 i = 0; i < 2; i++) memcpy(&d_part[2 * i], &d[g + 8 * i][2 * t], 8);
    }
}

void multiply_tiles_anywhere(Fiber* const* lanes) {
    multiply_tiles(lanes, [](const u16* from, float* to, u32 count) {
        for (u32 i = 0; i < count; i++) to[i] = half_to_float(from[i]);
    });
}

#if defined(__x86_64__)
__attribute__((target("avx,f16c,fma"))) inline void to_floats_f16c(const u16* from, float* to, u32 count) {
    for (u32 i = 0; i < count; i += 8)
        _mm256_store_ps(to + i, _mm256_cvtph_ps(_mm_load_si128(reinterpret_cast<const __m128i*>(from + i))));
}
__attribute__((target("avx,f16c,fma"))) void multiply_tiles_f16c(Fiber* const* lanes) {
    multiply_tiles(lanes, to_floats_f16c);
}
#endif

void (*choose_multiply_tiles())(Fiber* const*) {
#if defined(__x86_64__)
    // Every processor with AVX2 converts halves, too; not every compiler can be asked for that.
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return multiply_tiles_f16c;
#endif
    return multiply_tiles_anywhere;
}

}  // namespace

// What the lanes do together, once they are all there.
void Block::complete(u32 warp_index, Stop stop) {
    static void (*const multiply_tiles)(Fiber* const*) = choose_multiply_tiles();
    WarpState& warp = warps[warp_index];
    Fiber* lanes[WARP];
    for (u32 lane = 0; lane < WARP; lane++) lanes[lane] = fibers[warp_index * WARP + lane].get();
    if (stop == Stop::vote) {
        u32* values = warp.values[warp.collectives % 2];
        u32 mask = 0;
        for (u32 lane = 0; lane < WARP; lane++) mask |= values[lane] << lane;
        for (u32 lane = 0; lane < WARP; lane++) values[lane] = mask;
    }
    if (stop == Stop::load_matrices || stop == Stop::load_matrices_transposed) {
        for (u32 lane = 0; lane < WARP; lane++) {
            u32 g = lane / 4, t = lane % 4;
            u32* to = static_cast<u32*>(lanes[lane]->to);
            for (u32 i = 0; i < 4; i++) {
                auto row = [&](u32 r) { return static_cast<const u8*>(lanes[8 * i + r]->from); };
                u16 pair[2];
                if (stop == Stop::load_matrices) {
                    memcpy(pair, row(g) + 4 * t, 4);
                } else {
                    memcpy(&pair[0], row(2 * t) + 2 * g, 2);
                    memcpy(&pair[1], row(2 * t + 1) + 2 * g, 2);
                }
                to[i] = pair[0] | static_cast<u32>(pair[1]) << 16;
            }
        }
    }
    if (stop == Stop::multiply_add) multiply_tiles(lanes);
    warp.collectives++;
}

// ---- What runs on fibers ----------------------------------------------------------------------------------

Kernel::Kernel(const char* name, void (*run)(const void*), u64 params_bytes, u32 threads)
    : name(name), run(run), params_bytes(params_bytes), threads(threads), next(first_kernel) {
    first_kernel = this;
}

void suspend(Stop stop) {
    Fiber& self = *now.fiber;
    self.warp->stops[self.thread % WARP] = stop;
    Fiber* next = *next_in_pass++;
    now.fiber = next;
    switch_to(self, next ? static_cast<Context&>(*next) : scheduler);
    now.fiber = &self;
    now.thread = self.thread;
}

void fail(const char* format, ...) {
    char text[256];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    set_error(now.thread, text);
    switch_to(*now.fiber, scheduler);
    abort();  // Nobody comes back here.
}

const u32* exchange(Stop stop, u32 value) {
    Fiber& self = *now.fiber;
    u32* values = self.warp->values[self.warp->collectives % 2];
    values[self.thread % WARP] = value;
    suspend(stop);
    return values;
}

u16 double_to_half(double from) {
    constexpr u64 infinity = 0x7ff0000000000000, overflow = 0x40effe0000000000 /* 65520 */;
    u64 bits = bits_as<u64>(from);
    u32 sign = static_cast<u32>(bits >> 48) & 0x8000;
    bits &= ~(1ull << 63);
    if (bits > infinity) return 0x7fff;
    if (bits >= overflow) return static_cast<u16>(sign | 0x7c00);
    u64 half;
    if (bits < 0x3f10000000000000) {
        // Below 2^-14. Beside 2^28 the last bit of a double is worth 2^-24, the smallest half.
        half = bits_as<u64>(bits_as<double>(bits) + 0x1p28) - bits_as<u64>(0x1p28);
    } else {
        u64 odd = bits >> 42 & 1;
        half = (bits + (1ull << 41) - 1 + odd - (1008ull << 52)) >> 42;
    }
    return static_cast<u16>(sign | half);
}

void load_matrices(Stop stop, u32* to, const void* row) {
    expect_shared(row, 16, "a row of a matrix");
    expect_aligned(row, 16, "a row of a matrix");
    Fiber& self = *now.fiber;
    self.to = to;
    self.from = row;
    suspend(stop);
}

void multiply_add(float* d, const u32* a, const u32* b) {
    Fiber& self = *now.fiber;
    self.to = d;
    self.from = a;
    self.from2 = b;
    suspend(Stop::multiply_add);
}

void copy_async_16(void* to, const void* from, bool valid) {
    expect_shared(to, 16, "an asynchronous copy's target");
    expect_aligned(to, 16, "an asynchronous copy's target");
    expect_aligned(from, 16, "an asynchronous copy's source");
    Fiber& self = *now.fiber;
    // Until the copy is done, its target is in nobody's hands: who reads it too early, or has not read it
    // yet, sees this.
    memset(to, POISON, 16);
    self.copies.push_back({static_cast<u8*>(to), static_cast<const u8*>(from), valid, self.groups, {}, now.early});
    memcpy(self.copies.back().early, from, 16);  // Also when it is not valid: the address must be good.
}

void copy_async_commit() { now.fiber->groups++; }

void copy_async_wait(u32 pending) {
    Fiber& self = *now.fiber;
    size_t done = 0;
    for (const Copy& copy : self.copies) {
        if (copy.group + pending >= self.groups) break;
        u8 bytes[16];
        memcpy(bytes, copy.is_early ? copy.early : copy.from, 16);
        if (!copy.valid) memset(bytes, 0, 16);
        memcpy(copy.to, bytes, 16);
        done++;
    }
    self.copies.erase(self.copies.begin(), self.copies.begin() + static_cast<std::ptrdiff_t>(done));
}

// ---- What `src/lib.rs` calls ------------------------------------------------------------------------------

// A launch under way.
struct Run {
    LaunchRequest request;
    void* params;
    // Blocks that were started early, by number.
    std::vector<std::pair<u64, std::unique_ptr<Block>>> early;
    Random random;

    ~Run() { free(params); }
};

namespace {

// Of a block that has failed, or waits for a kernel that will never come, some fibers are in the middle of
// things.
void put_back(std::unique_ptr<Block> block, bool ended) {
    if (!ended) block->abandon();
    idle_blocks.push_back(std::move(block));
}

}  // namespace

extern "C" {

const Kernel* redstart_shim_kernels() { return first_kernel; }

// Takes a copy of the request and its parameters.
Run* redstart_shim_begin(const LaunchRequest* request) {
    u64 bytes = request->kernel->params_bytes;
    void* params = nullptr;
    if (posix_memalign(&params, 64, bytes) != 0) abort();
    memcpy(params, request->params, bytes);
    Run* run = new Run{*request, params, {}, {request->thread_order.seed * 2 + 1}};
    run->request.params = params;
    return run;
}

// Runs the first and the last block up to where they wait for the kernel before. Null, or what went wrong;
// the text is good until the next call.
const char* redstart_shim_start_early(Run* run) {
    failed = false;
    const u32* grid = run->request.grid;
    u64 blocks = u64{grid[0]} * grid[1] * grid[2];
    for (u64 number : {u64{0}, blocks - 1}) {
        if (number == 0 && !run->early.empty()) break;  // There is only one.
        auto block = take_block();
        block->begin(run->request, number);
        bool ended = block->run(true, run->random);
        if (ended || failed) put_back(std::move(block), ended);
        if (failed) return error.c_str();
        run->early.emplace_back(number, std::move(block));  // Null for one that has ended.
    }
    return nullptr;
}

// Runs what is left of it. As above.
const char* redstart_shim_finish(Run* run) {
    failed = false;
    const u32* grid = run->request.grid;
    u64 blocks = u64{grid[0]} * grid[1] * grid[2];
    std::vector<u32> order(blocks);
    arrange(order.data(), static_cast<u32>(blocks), run->request.block_order, run->random);
    for (u32 number : order) {
        std::unique_ptr<Block> block;
        bool done = false;
        for (auto& early : run->early) {
            if (early.first != number) continue;
            block = std::move(early.second);
            done = block == nullptr;
        }
        if (done) continue;
        if (!block) {
            block = take_block();
            block->begin(run->request, number);
        }
        bool ended = block->run(false, run->random);
        put_back(std::move(block), ended);
        if (failed) return error.c_str();
    }
    return nullptr;
}

void redstart_shim_end(Run* run) {
    for (auto& [number, block] : run->early) {
        if (block) put_back(std::move(block), false);
    }
    delete run;
}
}

}  // namespace shim

// Kernels are compiled with the compiler's checks of alignment, and these are what they call: the launch
// fails, and the process goes on. With the sanitizers proper, these stand before their library's.
namespace {
struct SourceLocation {
    const char* file;
    unsigned line, column;
};
struct Mismatch {
    SourceLocation at;
    const void* type;
    unsigned char log_alignment, kind;
};
}  // namespace

extern "C" {
void __ubsan_handle_type_mismatch_v1(const Mismatch* mismatch, const void* pointer) {
    const char* slash = strrchr(mismatch->at.file, '/');
    const char* file = slash ? slash + 1 : mismatch->at.file;
    unsigned alignment = 1u << mismatch->log_alignment;
    if (shim::address(pointer) % alignment)
        shim::fail("%s:%u uses %p, which is not aligned to %u bytes", file, mismatch->at.line, pointer,
                   alignment);
    shim::fail("%s:%u uses %p, which is null or too small an object", file, mismatch->at.line, pointer);
}
void __ubsan_handle_type_mismatch_v1_abort(const Mismatch* mismatch, const void* pointer) {
    __ubsan_handle_type_mismatch_v1(mismatch, pointer);
}

#if defined(SHIM_ASAN)
// Only accesses are of interest: stacks of fibers stay until the process ends, and tests leak by panicking.
const char* __asan_default_options() { return "detect_leaks=0"; }
#endif
}
