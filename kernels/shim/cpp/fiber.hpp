// Fibers: stacks of their own and the switch from one to another.
//
// A switch saves the registers that a called function must keep, and the stack pointer; the rest is the
// compiler's business, as in any call. x86-64 (System V) and 64-bit ARM have a few lines of assembly, other
// machines take the slow `ucontext`. With AddressSanitizer every switch is announced, or it would take the
// other stack for an overrun of this one.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SHIM_ASAN 1
#endif

#if !defined(SHIM_UCONTEXT) && !((defined(__x86_64__) || defined(__aarch64__)) && !defined(_WIN32))
#define SHIM_UCONTEXT 1
#endif
#if defined(SHIM_UCONTEXT)
#include <ucontext.h>
#endif

namespace shim {

// Something that can be switched to: a fiber, or the stack that the process came with.
struct Context {
#if defined(SHIM_UCONTEXT)
    ucontext_t saved;
#else
    void* stack_pointer = nullptr;
#endif
#if defined(SHIM_ASAN)
    void* fake_stack = nullptr;
    const void* bottom = nullptr;
    size_t bytes = 0;
#endif
};

#if defined(SHIM_ASAN)
inline Context* switched_from;
#endif

#if !defined(SHIM_UCONTEXT)
// Pushes the registers, stores the stack pointer to `*save`, and goes on where `resume` was stored.
extern "C" void redstart_shim_switch(void** save, void* resume);
#endif

// To be called first thing by whoever was switched to.
inline void arrived([[maybe_unused]] Context& here) {
#if defined(SHIM_ASAN)
    // Also tells where the stack is that we came from: that is how the process's own becomes known.
    __sanitizer_finish_switch_fiber(here.fake_stack, &switched_from->bottom, &switched_from->bytes);
#endif
}

inline void switch_to(Context& from, Context& to) {
#if defined(SHIM_ASAN)
    __sanitizer_start_switch_fiber(&from.fake_stack, to.bottom, to.bytes);
    switched_from = &from;
#endif
#if defined(SHIM_UCONTEXT)
    swapcontext(&from.saved, &to.saved);
#else
    redstart_shim_switch(&from.stack_pointer, to.stack_pointer);
#endif
    arrived(from);
}

// Makes `context` run `entry` on the stack from `bottom` on, which must not return.
inline void prepare(Context& context, void* bottom, size_t bytes, void (*entry)()) {
#if defined(SHIM_ASAN)
    __asan_unpoison_memory_region(bottom, bytes);  // Frames that never returned may have marks there.
    context.fake_stack = nullptr;
    context.bottom = bottom;
    context.bytes = bytes;
#endif
#if defined(SHIM_UCONTEXT)
    getcontext(&context.saved);
    context.saved.uc_stack.ss_sp = bottom;
    context.saved.uc_stack.ss_size = bytes;
    context.saved.uc_link = nullptr;
    makecontext(&context.saved, entry, 0);
#else
    auto top = reinterpret_cast<uintptr_t*>((reinterpret_cast<uintptr_t>(bottom) + bytes) & ~uintptr_t{63});
#if defined(__x86_64__)
    // From below: six registers, where to go, and 0 for a return address, where a backtrace ends.
    constexpr int words = 8;
    constexpr int go = 6;
#else
    // From below: x19 to x30, d8 to d15. x30 is where to go, x29 the frame pointer.
    constexpr int words = 20;
    constexpr int go = 11;
#endif
    for (int i = 1; i <= words; i++) top[-i] = 0;
    top[go - words] = reinterpret_cast<uintptr_t>(entry);
    context.stack_pointer = top - words;
#endif
}

}  // namespace shim
