// Paged attention: the kernels. `attention.cuh` says how they are made.

#include "attention.cuh"
#include "attention_merge.cuh"
#include "attention_narrow.cuh"
#include "attention_wide.cuh"

#define ATTENTION(head_dim, format, f8)                                       \
    KERNEL(attention_narrow_##format##_##head_dim, AttentionParams, 128, 2) { \
        attention_narrow<head_dim, f8>(p);                                    \
    }                                                                         \
    KERNEL(attention_wide_##format##_##head_dim, AttentionParams, 128, 2) {   \
        attention_wide<head_dim, f8, 1>(p);                                   \
    }                                                                         \
    KERNEL(attention_tall_##format##_##head_dim, AttentionParams, 128, 2) {   \
        attention_wide<head_dim, f8, 2>(p);                                   \
    }

ATTENTION(64, f16, false)
ATTENTION(64, f8, true)
ATTENTION(128, f16, false)
ATTENTION(128, f8, true)

KERNEL(attention_merge_64, AttentionMergeParams, 128, 4) { attention_merge<64>(p); }
KERNEL(attention_merge_128, AttentionMergeParams, 128, 4) { attention_merge<128>(p); }
