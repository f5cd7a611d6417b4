// Eight-bit floats, the kind called e4m3: a sign, four bits of exponent (bias 7), three of mantissa; no
// infinities, the largest number 448, the smallest 2^-9, NaN where all seven low bits are set.
//
// Done with integer and half-precision arithmetic rather than the conversion instructions, which exist only
// from sm_89 on: all cards and the host give the same bits. `kernels/src/float8.rs` is the same in Rust.
#pragma once

#include "primitives.cuh"

// The nearest e4m3, ties to the even one; what is too large becomes the largest, NaN stays NaN.
DEVICE u8 float_to_e4m3(float f) {
    u32 bits = bits_of_float(f);
    u32 sign = (bits >> 24) & 0x80;
    u32 magnitude = bits & 0x7fffffff;
    if (magnitude > 0x7f800000) return static_cast<u8>(sign | 0x7f);
    if (magnitude >= 0x43e00000) return static_cast<u8>(sign | 0x7e);  // 448 and more.
    if (magnitude < 0x3c800000) {
        // Below 2^-6, a multiple of 2^-9: in a sum with 2^14 the last bit is worth just that.
        return static_cast<u8>(sign | (bits_of_float(float_of_bits(magnitude) + 16384.0f) - 0x46800000));
    }
    u32 rounded = magnitude + 0x7ffff + ((magnitude >> 20) & 1);
    return static_cast<u8>(sign | ((rounded >> 20) - ((127 - 7) << 3)));
}

// Two codes, each in the high byte of a half of the word (the low bytes are not looked at), to a pair of
// halves. Exact; a NaN code reads as 480, so whoever writes codes keeps NaN out or finds it elsewhere.
//
// With the exponent and mantissa one bit lower the code is a half already, but for the bias, 15 rather than
// 7: a product with 2^8 mends that, and it does so for the subnormal numbers, too.
DEVICE u32 spread_e4m3_to_pair(u32 spread) {
    u32 shifted = (spread >> 1) & 0x3f803f80;
    return multiply_pairs(bits3<0xf8>(shifted, spread, 0x80008000), 0x5c005c00);  // a | (b & c)
}

// Codes 0 and 1 of the word (its low half) to a pair.
DEVICE u32 low_e4m3_to_pair(u32 codes) { return spread_e4m3_to_pair(pick_bytes(codes, 0, 0x1404)); }

// Codes 2 and 3.
DEVICE u32 high_e4m3_to_pair(u32 codes) { return spread_e4m3_to_pair(pick_bytes(codes, 0, 0x3424)); }
