// Logits to one token a slot, without a trip to the host.
//
// `sample_scan` reads each row once, a block for every CHUNK ids; the last block of a row puts the chunks
// together. That is all a greedy slot needs:
//
//     logits [slots][vocab] -> partials [slots][chunks] -> drawn [slots]
//
// `sample_draw` goes on with the slots that draw by chance, one block a slot. It never sorts. Every weight
// is an integer, so sums come out the same in whatever order they are added, and top-k, top-p and the draw
// itself are one question: running through the tokens in some order, at which one does the running total of
// their counts or weights exceed a target?
//
//     top-k   by falling logit, counts:   total > k - 1
//     top-p   by falling logit, weights:  total >= p * all
//     draw    by rising id, weights of what is kept:  total > random * all of it
//
// By falling logit (`cut_at`) it is answered in two readings of the row as a rule: sums for 2048 bins of
// equal width below the largest logit, then the few tokens of the bin that the target falls into, compared
// with each other. By rising id (`find_in_id_order`) it takes one. A row stays in L2 meanwhile.
//
// Slots that are not active cost the start of their blocks. Which do what is known in device memory alone, so
// the launches can be recorded.
#include "primitives.cuh"

namespace sampling {

constexpr u32 CHUNK = 4096;
constexpr u32 SCAN_THREADS = 256;
constexpr u32 BINS = 2048;
// Tokens of one bin that are compared with each other.
constexpr u32 LISTED = 1024;
constexpr u32 NO_MASK = 0xffffffff;
constexpr u32 NOTHING = 0xffffffff;
constexpr float INFINITE = __builtin_huge_valf();
constexpr float LOG2_E = 1.4426950408889634f;
// A weight is 1 for the largest logit, in units of 2^-40: a vocabulary of 2^22 sums up to 2^62.
constexpr float WEIGHT_UNIT = 0x1p40f;
// Bins for a factor of two in weight: from bin 2040 on, weights round to zero.
constexpr float BINS_PER_BIT = 51.0f;

enum Kind : u32 { SKIP = 0, LIKELIEST = 1, BY_CHANCE = 2 };
enum Status : u32 { TOKEN = 1, INVALID_LOGIT = 2, NOTHING_POSSIBLE = 3 };

// How one slot is drawn.
struct SampleParams {
    u32 kind;  // A Kind.
    u32 top_k;
    float temperature;
    float top_p;
    u64 seed;
    u64 position;
    // Word of `masks` where the slot's bits begin, or NO_MASK.
    u32 mask_offset;
    u32 padding;
};

// What was drawn. The token comes first: the next step reads it from here. It is a valid id in every case;
// without a token to draw it is 0.
struct Drawn {
    u32 token;
    u32 status;  // A Status.
    // Of all tokens, before mask and temperature: the likeliest, its logit, and the sum of
    // exp(logit - best_logit).
    u32 best;
    float best_logit;
    float exp_sum;
    // The first logit that is NaN or +infinity.
    u32 invalid_id;
    float invalid_logit;
    u32 padding;
};

// What a part of a row holds; a `Drawn` in the making. The best are pairs (`pair_of`), or 0 where there is
// none.
struct Partial {
    u64 best;
    u64 best_allowed;
    float exp_sum;
    u32 invalid_id;
    u64 padding;
};

struct Params {
    const float* logits;
    const SampleParams* slots;
    const u32* masks;
    Drawn* drawn;
    Partial* partials;
    // Zero between launches.
    u32* counters;
    u32 vocab;
    u32 padding;
};

// ---- Numbers ----------------------------------------------------------------------------------------------

// Integers in the order of the floats.
DEVICE u32 key_of(float f) {
    u32 bits = bits_of_float(f);
    return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}
DEVICE float float_of_key(u32 key) { return float_of_bits(key & 0x80000000 ? key & 0x7fffffff : ~key); }

// A logit and its id in one integer; the larger one is the larger logit or, of equals, the lower id.
DEVICE u64 pair_of(float logit, u32 id) { return static_cast<u64>(key_of(logit)) << 32 | ~id; }
DEVICE u32 id_of(u64 pair) { return ~static_cast<u32>(pair); }
DEVICE float logit_of(u64 pair) { return float_of_key(static_cast<u32>(pair >> 32)); }

DEVICE u64 larger_of(u64 a, u64 b) { return a > b ? a : b; }

DEVICE u64 shuffle_wide(u64 value, u32 lane) {
    u64 high = shuffle(static_cast<u32>(value >> 32), lane);
    return high << 32 | shuffle(static_cast<u32>(value), lane);
}
DEVICE u64 shuffle_wide_xor(u64 value, u32 mask) {
    u64 high = shuffle_xor(static_cast<u32>(value >> 32), mask);
    return high << 32 | shuffle_xor(static_cast<u32>(value), mask);
}

// The upper half of a product.
DEVICE u64 multiply_high(u64 a, u64 b) {
    u64 a_low = a & 0xffffffff, a_high = a >> 32, b_low = b & 0xffffffff, b_high = b >> 32;
    u64 middle = a_high * b_low + (a_low * b_low >> 32);
    u64 other = a_low * b_high + (middle & 0xffffffff);
    return a_high * b_high + (middle >> 32) + (other >> 32);
}

// Steele, Lea and Flood's splitmix64: one step from the state `state`.
DEVICE u64 splitmix64(u64 state) {
    u64 z = state + 0x9e3779b97f4a7c15;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
    z = (z ^ z >> 27) * 0x94d049bb133111eb;
    return z ^ z >> 31;
}

// A number in 0..1 in units of 2^-64, of which 53 bits are drawn, as on the CPU.
DEVICE u64 uniform(u64 seed, u64 position) {
    return splitmix64(splitmix64(seed) ^ position) & ~static_cast<u64>(0x7ff);
}

// Bit `id` of a slot's mask.
DEVICE bool is_allowed(const u32* mask, u32 id) { return !mask || (mask[id / 32] >> id % 32 & 1); }

DEVICE const u32* mask_of(const Params& p, const SampleParams& slot) {
    return slot.mask_offset == NO_MASK ? nullptr : p.masks + slot.mask_offset;
}

// ---- Scan -------------------------------------------------------------------------------------------------

// Puts two parts of a row together. The sums are relative to the best logit of their part.
DEVICE Partial merged(const Partial& a, const Partial& b) {
    Partial sum;
    sum.best = larger_of(a.best, b.best);
    sum.best_allowed = larger_of(a.best_allowed, b.best_allowed);
    sum.invalid_id = a.invalid_id < b.invalid_id ? a.invalid_id : b.invalid_id;
    float best = sum.best ? logit_of(sum.best) : -INFINITE;
    // A part without any finite logit adds nothing; its exponent would be NaN.
    float of_a = a.exp_sum > 0 ? a.exp_sum * exp2_fast((logit_of(a.best) - best) * LOG2_E) : 0.0f;
    float of_b = b.exp_sum > 0 ? b.exp_sum * exp2_fast((logit_of(b.best) - best) * LOG2_E) : 0.0f;
    sum.exp_sum = of_a + of_b;
    sum.padding = 0;
    return sum;
}

DEVICE Partial warp_merged(Partial part) {
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        Partial other;
        other.best = shuffle_wide_xor(part.best, mask);
        other.best_allowed = shuffle_wide_xor(part.best_allowed, mask);
        other.exp_sum = shuffle_xor(part.exp_sum, mask);
        other.invalid_id = shuffle_xor(part.invalid_id, mask);
        part = merged(part, other);
    }
    return part;
}

// What one thread's share of a chunk holds. A token with a logit of -infinity is impossible.
DEVICE Partial part_of_chunk(const Params& p, const float* row, const u32* mask, u32 chunk) {
    constexpr u32 PER_THREAD = CHUNK / SCAN_THREADS;
    float logits[PER_THREAD];
    u32 first = chunk * CHUNK + thread_index();
    for (u32 i = 0; i < PER_THREAD; i++) {
        u32 id = first + i * SCAN_THREADS;
        // The sum makes -0 and 0 equals.
        logits[i] = id < p.vocab ? row[id] + 0.0f : -INFINITE;
    }
    Partial part{0, 0, 0.0f, NOTHING, 0};
    for (u32 i = 0; i < PER_THREAD; i++) {
        u32 id = first + i * SCAN_THREADS;
        if (logits[i] == -INFINITE) continue;
        if (!(logits[i] < INFINITE)) {
            part.invalid_id = part.invalid_id < id ? part.invalid_id : id;
            continue;
        }
        u64 pair = pair_of(logits[i], id);
        part.best = larger_of(part.best, pair);
        if (is_allowed(mask, id)) part.best_allowed = larger_of(part.best_allowed, pair);
    }
    if (part.best) {
        float best = logit_of(part.best);
        for (u32 i = 0; i < PER_THREAD; i++) {
            if (logits[i] < INFINITE) part.exp_sum += exp2_fast((logits[i] - best) * LOG2_E);
        }
    }
    return part;
}

DEVICE Drawn drawn_from(const Partial& whole, const float* row) {
    Drawn drawn{0, NOTHING_POSSIBLE, 0, 0.0f, 0.0f, NOTHING, 0.0f, 0};
    if (whole.invalid_id != NOTHING) {
        drawn.status = INVALID_LOGIT;
        drawn.invalid_id = whole.invalid_id;
        drawn.invalid_logit = row[whole.invalid_id];
        return drawn;
    }
    if (whole.best) {
        drawn.best = id_of(whole.best);
        drawn.best_logit = logit_of(whole.best);
        drawn.exp_sum = whole.exp_sum;
    }
    if (whole.best_allowed) {
        drawn.status = TOKEN;
        drawn.token = id_of(whole.best_allowed);
    }
    return drawn;
}

// ---- Running totals ---------------------------------------------------------------------------------------

// A number of tokens and their weights.
struct Sum {
    u64 weight;
    u32 count;
};
DEVICE Sum operator+(const Sum& a, const Sum& b) { return {a.weight + b.weight, a.count + b.count}; }
DEVICE Sum operator-(const Sum& a, const Sum& b) { return {a.weight - b.weight, a.count - b.count}; }

template <bool by_count>
DEVICE u64 measure(const Sum& sum) {
    return by_count ? sum.count : sum.weight;
}

// A place in the order of falling logits (of equals, rising ids): the token at it and all before it are kept.
struct Cut {
    u32 key;
    u32 id;
    // What is kept.
    Sum kept;
};

struct Shared {
    u64 weights[BINS];
    u32 counts[BINS];
    u32 keys[LISTED];
    u32 ids[LISTED];
    Sum warp_totals[WARP];
    // Answers of the one thread that has them, for all.
    Cut cut;
    Sum before;
    u32 bin;
    u32 listed;
    u32 id;
};
// What the launch asks for.
static_assert(sizeof(Shared) <= 34 * 1024);

DEVICE Sum sum_of_bin(const Shared& shared, u32 bin) { return {shared.weights[bin], shared.counts[bin]}; }

// The running total over the threads of a block in their order, this one included.
struct Totals {
    Sum running;
    Sum all;
};
DEVICE Totals running_totals(Sum own, Shared& shared) {
    Sum running = own;
    u32 lane = lane_index();
    for (u32 distance = 1; distance < WARP; distance *= 2) {
        u32 from = lane >= distance ? lane - distance : lane;
        Sum before{shuffle_wide(running.weight, from), shuffle(running.count, from)};
        if (lane >= distance) running = running + before;
    }
    if (lane == WARP - 1) shared.warp_totals[warp_index()] = running;
    block_barrier();
    Totals totals{running, {0, 0}};
    for (u32 warp = 0; warp < block_threads() / WARP; warp++) {
        if (warp < warp_index()) totals.running = totals.running + shared.warp_totals[warp];
        totals.all = totals.all + shared.warp_totals[warp];
    }
    block_barrier();
    return totals;
}

// The bin at which the running total exceeds `target(all)`, which must be less than all, and the total before
// it.
struct Place {
    u32 bin;
    Sum before;
    Sum all;
    u64 target;
};
template <bool by_count, typename Target>
DEVICE Place find_bin(Shared& shared, Target target) {
    u32 each = BINS / block_threads();
    u32 first = thread_index() * each;
    Sum own{0, 0};
    for (u32 bin = first; bin < first + each; bin++) own = own + sum_of_bin(shared, bin);
    Totals totals = running_totals(own, shared);
    u64 wanted = target(totals.all);
    Sum before = totals.running - own;
    if (measure<by_count>(before) <= wanted && wanted < measure<by_count>(totals.running)) {
        u32 bin = first;
        while (measure<by_count>(before + sum_of_bin(shared, bin)) <= wanted) {
            before = before + sum_of_bin(shared, bin);
            bin++;
        }
        shared.bin = bin;
        shared.before = before;
    }
    block_barrier();
    return {shared.bin, shared.before, totals.all, wanted};
}

// ---- The row ----------------------------------------------------------------------------------------------

// A slot's row of logits: valid ones, of which at least one is possible.
struct Row {
    const float* logits;
    const u32* mask;
    u32 vocab;
    // The largest logit that is allowed.
    float best;
    // Bits of weight that one unit of logit is worth.
    float scale;

    // -infinity for what is not allowed and what is past the end.
    DEVICE float logit(u32 id) const {
        return id < vocab && is_allowed(mask, id) ? logits[id] + 0.0f : -INFINITE;
    }
    // How many times the weight halves from the largest logit to this one. A low temperature makes the scale
    // infinite.
    DEVICE float bits_below_best(float logit) const { return logit == best ? 0.0f : (best - logit) * scale; }
    DEVICE u64 weight(float logit) const {
        return static_cast<u64>(exp2_fast(-bits_below_best(logit)) * WEIGHT_UNIT);
    }
    DEVICE u32 bin(float logit) const {
        float bin = bits_below_best(logit) * BINS_PER_BIT;
        return bin < BINS - 1 ? static_cast<u32>(bin) : BINS - 1;
    }
};

// Calls `f(id, logit, weight)` for every token whose weight is not zero, in parallel.
template <typename F>
DEVICE void for_each_possible(const Row& row, F f) {
    constexpr u32 AT_ONCE = 8;
    u32 stride = block_threads();
    for (u32 first = thread_index(); first < row.vocab; first += AT_ONCE * stride) {
        float logits[AT_ONCE];
        for (u32 i = 0; i < AT_ONCE; i++) logits[i] = row.logit(first + i * stride);
        for (u32 i = 0; i < AT_ONCE; i++) {
            u64 weight = row.weight(logits[i]);
            if (weight) f(first + i * stride, logits[i], weight);
        }
    }
}

// Sums the tokens for which `holds(logit)` in the bins `bin(logit)`.
template <typename Holds, typename Bin>
DEVICE void fill_bins(const Row& row, Shared& shared, Holds holds, Bin bin) {
    for (u32 i = thread_index(); i < BINS; i += block_threads()) {
        shared.counts[i] = 0;
        shared.weights[i] = 0;
    }
    block_barrier();
    for_each_possible(row, [&](u32, float logit, u64 weight) {
        if (!holds(logit)) return;
        add_shared(&shared.counts[bin(logit)], 1);
        add_shared(&shared.weights[bin(logit)], weight);
    });
    block_barrier();
}

// Running through the ids, the first at which the total of `value(id, logit, weight)` exceeds `target(all)`,
// which must be less than all.
template <typename Value, typename Target>
DEVICE u32 find_in_id_order(const Row& row, Shared& shared, Value value, Target target) {
    constexpr u32 SLAB = 8 * WARP;
    u32 lane = lane_index();
    auto value_at = [&](u32 id, float logit) -> u64 {
        u64 weight = row.weight(logit);
        return weight ? value(id, logit, weight) : 0;
    };
    // A bin is a segment of ids, summed by one warp.
    u32 segment = (row.vocab + SLAB * BINS - 1) / (SLAB * BINS) * SLAB;
    for (u32 bin = warp_index(); bin < BINS; bin += block_threads() / WARP) {
        u64 sum = 0;
        u32 end = (bin + 1) * segment;
        for (u32 slab = bin * segment; slab < end && slab < row.vocab; slab += SLAB) {
            float logits[SLAB / WARP];
            for (u32 i = 0; i < SLAB / WARP; i++) logits[i] = row.logit(slab + i * WARP + lane);
            for (u32 i = 0; i < SLAB / WARP; i++) sum += value_at(slab + i * WARP + lane, logits[i]);
        }
        if (bin * segment < row.vocab) {
            for (u32 mask = WARP / 2; mask > 0; mask /= 2) sum += shuffle_wide_xor(sum, mask);
        }
        if (lane == 0) {
            shared.weights[bin] = sum;
            shared.counts[bin] = 0;
        }
    }
    block_barrier();
    Place place = find_bin<false>(shared, target);
    if (warp_index() == 0) {
        u64 before = place.before.weight;
        u32 found = 0;
        for (u32 first = place.bin * segment; first < (place.bin + 1) * segment; first += WARP) {
            u64 running = value_at(first + lane, row.logit(first + lane));
            for (u32 distance = 1; distance < WARP; distance *= 2) {
                u64 other = shuffle_wide(running, lane >= distance ? lane - distance : lane);
                if (lane >= distance) running += other;
            }
            u32 reached = vote(before + running > place.target);
            if (reached) {
                while (!(reached & 1)) {
                    reached >>= 1;
                    found++;
                }
                found += first;
                break;
            }
            before += shuffle_wide(running, WARP - 1);
        }
        if (lane == 0) shared.id = found;
    }
    block_barrier();
    return shared.id;
}

// ---- Cuts -------------------------------------------------------------------------------------------------

// The cut among the tokens for which `holds(logit)`, at most LISTED of them: each is compared with all
// others. `before` is what comes before the first of them.
template <bool by_count, typename Holds>
DEVICE Cut cut_of_few(const Row& row, Shared& shared, Holds holds, const Sum& before, u64 target) {
    if (thread_index() == 0) shared.listed = 0;
    block_barrier();
    for_each_possible(row, [&](u32 id, float logit, u64) {
        if (!holds(logit)) return;
        u32 place = take_shared(&shared.listed);
        shared.keys[place] = key_of(logit);
        shared.ids[place] = id;
    });
    block_barrier();
    for (u32 i = thread_index(); i < shared.listed; i += block_threads()) {
        Sum running = before;
        u32 key = shared.keys[i], id = shared.ids[i];
        for (u32 j = 0; j < shared.listed; j++) {
            bool earlier = shared.keys[j] > key || (shared.keys[j] == key && shared.ids[j] < id);
            if (earlier) running = running + Sum{row.weight(float_of_key(shared.keys[j])), 1};
        }
        Sum after = running + Sum{row.weight(float_of_key(key)), 1};
        if (measure<by_count>(running) <= target && target < measure<by_count>(after)) {
            shared.cut = {key, id, after};
        }
    }
    block_barrier();
    Cut cut = shared.cut;
    block_barrier();
    return cut;
}

// The cut in a bin with more tokens than can be listed: the bin is divided by the bits of the keys, from the
// top, until few enough are left or all are equal.
template <bool by_count>
DEVICE Cut cut_of_many(const Row& row, Shared& shared, u32 bin, Sum before, u64 target) {
    u32 known_bits = 0, known = 0;
    auto holds = [&](float logit) { return row.bin(logit) == bin && (key_of(logit) & known_bits) == known; };
    for (u32 round = 0; round < 3; round++) {
        // Eleven bits each time (the last time the uppermost is known already); the larger key comes first.
        u32 shift = round == 0 ? 21 : round == 1 ? 10 : 0;
        fill_bins(row, shared, holds, [&](float logit) { return BINS - 1 - (key_of(logit) >> shift) % BINS; });
        Place place = find_bin<by_count>(shared, [&](const Sum&) { return target - measure<by_count>(before); });
        u32 count = shared.counts[place.bin];
        block_barrier();
        before = before + place.before;
        known |= (BINS - 1 - place.bin) << shift;
        known_bits |= (BINS - 1) << shift;
        if (count <= LISTED) return cut_of_few<by_count>(row, shared, holds, before, target);
    }
    // Equals: the lowest ids are kept.
    u64 weight = row.weight(float_of_key(known));
    u64 left = target - measure<by_count>(before);
    u32 extra = static_cast<u32>(by_count ? left : left / weight);
    auto one = [&](u32, float logit, u64) -> u64 { return key_of(logit) == known; };
    u32 id = find_in_id_order(row, shared, one, [&](const Sum&) -> u64 { return extra; });
    return {known, id, before + Sum{weight * (extra + 1), extra + 1}};
}

// The token at which the running total by falling logit exceeds `target(all)`, which must be less than all.
// The bins hold the row, as `row.bin` divides it.
template <bool by_count, typename Target>
DEVICE Cut cut_at(const Row& row, Shared& shared, Target target) {
    Place place = find_bin<by_count>(shared, target);
    u32 count = shared.counts[place.bin];
    block_barrier();
    if (count > LISTED) return cut_of_many<by_count>(row, shared, place.bin, place.before, place.target);
    auto holds = [&](float logit) { return row.bin(logit) == place.bin; };
    return cut_of_few<by_count>(row, shared, holds, place.before, place.target);
}

// What top-k and then top-p keep. The probabilities that top-p adds up are those of what top-k kept.
DEVICE Cut kept_tokens(const Row& row, Shared& shared, u32 top_k, float top_p) {
    Cut cut{0, NOTHING, {0, 0}};
    auto all = [](float) { return true; };
    auto bin = [&](float logit) { return row.bin(logit); };
    bool limited = false;
    if (top_k > 0 && top_k < row.vocab) {
        fill_bins(row, shared, all, bin);
        // Where fewer are possible, all are kept: so is the last of them by the same question.
        cut = cut_at<true>(row, shared, [&](const Sum& all) -> u64 {
            return (top_k < all.count ? top_k : all.count) - 1;
        });
        limited = true;
    }
    if (top_p < 1.0f) {
        fill_bins(row, shared, all, bin);
        u64 fraction = larger_of(static_cast<u64>(top_p * 0x1p64f), 1);
        cut = cut_at<false>(row, shared, [&](const Sum& all) -> u64 {
            u64 total = limited ? cut.kept.weight : all.weight;
            // Reaching the product is exceeding the largest integer below it.
            return multiply_high(total, fraction) - (total * fraction == 0 ? 1 : 0);
        });
    }
    return cut;
}

}  // namespace sampling

// Grid: (chunks of a row, slots).
KERNEL(sample_scan, sampling::Params, sampling::SCAN_THREADS, 4) {
    using namespace sampling;
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 chunk = block_x(), slot = block_y();
    if (p.slots[slot].kind == SKIP) return;

    const float* row = p.logits + static_cast<u64>(slot) * p.vocab;
    Partial part = warp_merged(part_of_chunk(p, row, mask_of(p, p.slots[slot]), chunk));
    constexpr u32 WARPS = SCAN_THREADS / WARP;
    Partial* warps = reinterpret_cast<Partial*>(shared_memory());
    if (lane_index() == 0) warps[warp_index()] = part;
    block_barrier();
    if (warp_index() != 0) return;

    Partial* partials = p.partials + static_cast<u64>(slot) * grid_x();
    u32 number = 0;
    if (lane_index() == 0) {
        Partial whole = warps[0];
        for (u32 warp = 1; warp < WARPS; warp++) whole = merged(whole, warps[warp]);
        partials[chunk] = whole;
        number = take_number(&p.counters[slot], grid_x() - 1);
    }
    warp_barrier();
    if (shuffle(number, 0) != grid_x() - 1) return;
    Partial whole{0, 0, 0.0f, NOTHING, 0};
    for (u32 i = lane_index(); i < grid_x(); i += WARP) whole = merged(whole, partials[i]);
    whole = warp_merged(whole);
    if (lane_index() == 0) p.drawn[slot] = drawn_from(whole, row);
}

// Grid: slots. A number of threads that divides BINS.
KERNEL(sample_draw, sampling::Params, 1024, 1) {
    using namespace sampling;
    let_next_kernel_start();
    wait_for_previous_kernel();
    u32 slot = block_x();
    SampleParams params = p.slots[slot];
    if (params.kind != BY_CHANCE || p.drawn[slot].status != TOKEN) return;

    Shared& shared = *reinterpret_cast<Shared*>(shared_memory());
    const float* logits = p.logits + static_cast<u64>(slot) * p.vocab;
    // What the scan left is the likeliest of the allowed ones.
    float best = logits[p.drawn[slot].token] + 0.0f;
    Row row{logits, mask_of(p, params), p.vocab, best, LOG2_E / params.temperature};
    Cut cut = kept_tokens(row, shared, params.top_k, params.top_p);
    auto kept_weight = [&](u32 id, float logit, u64 weight) -> u64 {
        u32 key = key_of(logit);
        return key > cut.key || (key == cut.key && id <= cut.id) ? weight : 0;
    };
    u64 random = uniform(params.seed, params.position);
    u32 token = find_in_id_order(row, shared, kept_weight, [&](const Sum& all) {
        return multiply_high(all.weight, random);
    });
    if (thread_index() == 0) p.drawn[slot].token = token;
}
