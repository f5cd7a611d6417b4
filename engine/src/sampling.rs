//! Choosing a token from a row of logits.

use std::cmp::Ordering;
use std::sync::Arc;

use crate::exponentials;
use crate::nucleus::Nucleus;
use crate::request::SamplingParams;
use crate::turns;

/// As many tokens as a request wants reported, and some.
const FEW: usize = 32;

/// Why no token could be chosen.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SamplingError {
    /// A logit is not a number, or +infinity.
    #[error(
        "the model produced an invalid logit ({value}) for token {id}; its weights are damaged or overflow"
    )]
    InvalidLogit {
        /// The token it belongs to.
        id: u32,
        /// `NaN` or `inf`.
        value: String,
    },
    /// No token is possible: every logit is -infinity.
    #[error("the model gave every token a probability of zero; its weights are damaged or overflow")]
    NothingPossible,
}

/// How one token is drawn: everything but the logits.
///
/// `position` is the token's place in its sequence: with the same seed, the same logits give the same token
/// at the same position, however often the sequence was interrupted and computed again.
#[derive(Clone, Debug, PartialEq)]
pub struct Draw {
    /// 0 means greedy.
    pub temperature: f32,
    /// Keep only the `k` likeliest tokens; 0 keeps all.
    pub top_k: usize,
    /// Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
    pub top_p: f32,
    /// What the random number comes from, together with `position`.
    pub seed: u64,
    /// The token's place in its sequence.
    pub position: u64,
    /// The only tokens that may be drawn, if not all: bit `id % 32` of word `id / 32`, with a word for every
    /// 32 of the vocabulary, the last one included. One at least is set.
    pub allowed: Option<Arc<[u32]>>,
}

impl Draw {
    /// A draw among all tokens.
    pub fn new(params: &SamplingParams, seed: u64, position: u64) -> Self {
        let SamplingParams { temperature, top_k, top_p, .. } = *params;
        Self { temperature, top_k, top_p, seed, position, allowed: None }
    }

    /// Whether the likeliest token is taken, without a random number.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0 || self.top_k == 1
    }

    /// Draws a token from `logits` (one per token id).
    ///
    /// # Errors
    /// When the logits are not usable, those of forbidden tokens included; see [`SamplingError`].
    pub fn choose(&self, logits: &[f32]) -> Result<u32, SamplingError> {
        let Some(allowed) = &self.allowed else { return self.choose_among_all(logits) };
        argmax(logits)?;
        let is_allowed = |id: usize| allowed[id / 32] >> (id % 32) & 1 == 1;
        let keep = |(id, &logit): (usize, &f32)| if is_allowed(id) { logit } else { f32::NEG_INFINITY };
        let mut masked = Vec::with_capacity(logits.len());
        for (first, part) in turns::parts(logits) {
            masked.extend((first..).zip(part).map(keep));
        }
        self.choose_among_all(&masked)
    }

    fn choose_among_all(&self, logits: &[f32]) -> Result<u32, SamplingError> {
        let best = argmax(logits)?;
        if self.is_greedy() {
            return Ok(best);
        }
        let max = logits[best as usize];
        let random = uniform(self.seed, self.position);
        let top_p = f64::from(self.top_p);
        // In the order of ids whatever is kept, as a device does it, which does not sort.
        let token = if (1..logits.len()).contains(&self.top_k) {
            let mut kept = self.likeliest_in_nucleus(logits, max, top_p);
            kept.sort_unstable_by_key(|&(id, _)| id);
            draw(|| kept.iter().copied(), random)
        } else {
            let weights = exponentials::weights(logits, max, self.temperature);
            let all = || {
                turns::parts(&weights).flat_map(|(first, part)| (first as u32..).zip(part.iter().copied()))
            };
            if top_p >= 1.0 {
                draw(all, random)
            } else {
                let nucleus = Nucleus::new(logits, &weights, top_p * total(&weights));
                let is_kept = |&(id, _): &(u32, f32)| nucleus.contains(id, logits[id as usize]);
                draw(|| all().filter(is_kept), random)
            }
        };
        Ok(token.unwrap_or(best))
    }

    /// Of the `top_k` likeliest tokens those that reach `top_p` of their probability, likeliest first, with their
    /// weights.
    fn likeliest_in_nucleus(&self, logits: &[f32], max: f32, top_p: f64) -> Vec<(u32, f32)> {
        let ids = likeliest(logits, self.top_k);
        let of_ids: Vec<f32> = ids.iter().map(|&id| logits[id as usize]).collect();
        let weights = exponentials::weights(&of_ids, max, self.temperature);
        let wanted = top_p * total(&weights);
        let mut kept: Vec<(u32, f32)> = ids.into_iter().zip(weights).collect();
        let mut sum = 0.0;
        let enough = kept.iter().position(|&(_, weight)| {
            sum += f64::from(weight);
            sum >= wanted
        });
        kept.truncate(enough.map_or(kept.len(), |last| last + 1));
        kept
    }
}

/// The likeliest token; of equals, the one with the lowest id.
///
/// # Errors
/// When a logit is NaN or +infinity, or all are -infinity.
pub fn argmax(logits: &[f32]) -> Result<u32, SamplingError> {
    let (largest, all_valid) = largest(logits);
    if !all_valid {
        let is_invalid = |logit: f32| logit.is_nan() || logit == f32::INFINITY;
        let invalid = (0..).zip(logits).find(|&(_, &logit)| is_invalid(logit));
        let (id, logit) = invalid.expect("one of them is invalid");
        return Err(SamplingError::InvalidLogit { id, value: logit.to_string() });
    }
    let find = |(first, part): (usize, &[f32])| {
        part.iter().position(|&logit| logit == largest).map(|place| first + place)
    };
    match turns::parts(logits).find_map(find) {
        Some(id) if largest > f32::NEG_INFINITY => Ok(id as u32),
        _ => Err(SamplingError::NothingPossible),
    }
}

/// The largest logit, and whether none is NaN or +infinity.
fn largest(logits: &[f32]) -> (f32, bool) {
    // Independent lanes, which the compiler turns into SIMD; a vocabulary is wide.
    const LANES: usize = 16;
    let mut largest = [f32::NEG_INFINITY; LANES];
    let mut all_valid = true;
    let mut largest_of_rest = f32::NEG_INFINITY;
    for (_, part) in turns::parts(logits) {
        let (chunks, rest) = part.as_chunks::<LANES>();
        for chunk in chunks {
            for (largest, &logit) in largest.iter_mut().zip(chunk) {
                // False for NaN, too.
                all_valid &= logit < f32::INFINITY;
                *largest = if logit > *largest { logit } else { *largest };
            }
        }
        all_valid &= rest.iter().all(|&logit| logit < f32::INFINITY);
        largest_of_rest = rest.iter().copied().fold(largest_of_rest, f32::max);
    }
    (largest.into_iter().fold(largest_of_rest, f32::max), all_valid)
}

/// The `count` likeliest tokens with their natural log-probabilities, best first.
pub fn top_logprobs(logits: &[f32], count: usize) -> Vec<(u32, f32)> {
    if count == 0 {
        return Vec::new();
    }
    let log_total = log_sum_exp(logits);
    likeliest(logits, count)
        .into_iter()
        .map(|id| (id, (f64::from(logits[id as usize]) - log_total) as f32))
        .collect()
}

/// The natural log-probability of token `id`, to within 10^-6.
pub fn log_probability(logits: &[f32], id: u32) -> f64 {
    f64::from(logits[id as usize]) - log_sum_exp(logits)
}

/// The natural log-probability of the likeliest token, `best`.
pub(crate) fn best_log_probability(logits: &[f32], best: u32) -> f32 {
    -exponentials::sum(logits, logits[best as usize]).ln() as f32
}

fn log_sum_exp(logits: &[f32]) -> f64 {
    let (max, _) = largest(logits);
    f64::from(max) + exponentials::sum(logits, max).ln()
}

/// Ids of the `count` largest logits, largest first; of equals, the lower id first.
fn likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    if count <= FEW {
        return few_likeliest(logits, count);
    }
    // The sum makes -0 and 0 equals.
    let logit = |id: u32| logits[id as usize] + 0.0;
    let order = |&a: &u32, &b: &u32| -> Ordering { logit(b).total_cmp(&logit(a)).then(a.cmp(&b)) };
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    if count < ids.len() {
        ids.select_nth_unstable_by(count, order);
        ids.truncate(count);
    }
    ids.sort_unstable_by(order);
    ids
}

/// [`likeliest`] for a small `count`: hardly a token of a vocabulary is among them, so that one look at all suffices, at
/// many together.
fn few_likeliest(logits: &[f32], count: usize) -> Vec<u32> {
    const TOGETHER: usize = 16;
    let mut ids: Vec<u32> = Vec::with_capacity(count + 1);
    let mut least = f32::NEG_INFINITY;
    for (first, chunk) in (0..).step_by(TOGETHER).zip(logits.chunks(TOGETHER)) {
        let is_less = |all_less: bool, &logit: &f32| all_less & (logit <= least);
        if ids.len() == count && chunk.iter().fold(true, is_less) {
            continue;
        }
        for (id, &logit) in (first..).zip(chunk) {
            let place = ids.partition_point(|&other| logits[other as usize] >= logit);
            ids.insert(place, id);
            ids.truncate(count);
        }
        least = ids.last().map_or(least, |&last| logits[last as usize]);
    }
    ids
}

fn total(weights: &[f32]) -> f64 {
    turns::parts(weights).flat_map(|(_, part)| part).map(|&weight| f64::from(weight)).sum()
}

/// Draws by cumulated weight, with a number in `0..1`. `None` when rounding left it past the end.
fn draw<W: Iterator<Item = (u32, f32)>>(weights: impl Fn() -> W, random: f64) -> Option<u32> {
    let mut target = random * weights().map(|(_, weight)| f64::from(weight)).sum::<f64>();
    for (id, weight) in weights() {
        if target < f64::from(weight) {
            return Some(id);
        }
        target -= f64::from(weight);
    }
    None
}

/// A number in `0..1` that depends on nothing but `seed` and `position`: two rounds of splitmix64.
fn uniform(seed: u64, position: u64) -> f64 {
    let bits = splitmix64(splitmix64(seed) ^ position);
    (bits >> 11) as f64 / (1u64 << 53) as f64
}

/// Steele, Lea and Flood's splitmix64: one step from the state `state`.
fn splitmix64(state: u64) -> u64 {
    let mut z = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A seed for a request that gave none.
pub(crate) fn random_seed() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    RandomState::new().hash_one(0u64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOGITS: [f32; 5] = [0.0, 1.0, 2.0, f32::NEG_INFINITY, 1.5];

    fn params(temperature: f32, top_k: usize, top_p: f32) -> SamplingParams {
        SamplingParams { temperature, top_k, top_p, ..SamplingParams::default() }
    }

    fn sample(
        logits: &[f32],
        params: &SamplingParams,
        seed: u64,
        position: u64,
    ) -> Result<u32, SamplingError> {
        Draw::new(params, seed, position).choose(logits)
    }

    /// Frequencies of each token over many positions.
    fn frequencies(params: &SamplingParams) -> [f64; 5] {
        let draws = 20_000;
        let mut counts = [0.0; 5];
        for position in 0..draws {
            counts[sample(&LOGITS, params, 42, position).expect("usable logits") as usize] +=
                1.0 / draws as f64;
        }
        counts
    }

    #[test]
    fn greedy_takes_the_lowest_id_of_equals() {
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &params(0.0, 0, 1.0), 0, 0), Ok(1));
        assert_eq!(sample(&[1.0, 3.0, 3.0, 2.0], &params(1.0, 1, 1.0), 0, 0), Ok(1));
    }

    #[test]
    fn a_wide_row_is_searched_as_a_narrow_one() {
        for width in [15, 16, 17, 1000] {
            for place in [0, 1, 13, width - 2] {
                let mut logits = vec![-1.0; width];
                logits[place] = 0.5;
                assert_eq!(argmax(&logits), Ok(place as u32));
                logits[width - 1] = 0.5;
                assert_eq!(argmax(&logits), Ok(place as u32), "the lowest of equals");
                logits[place] = f32::NAN;
                assert!(argmax(&logits).is_err());
            }
        }
    }

    #[test]
    fn unusable_logits_are_an_error_that_names_the_token() {
        let error = sample(&[0.0, f32::NAN], &params(0.0, 0, 1.0), 0, 0).expect_err("NaN");
        assert!(error.to_string().contains("NaN") && error.to_string().contains("token 1"), "{error}");
        assert!(argmax(&[f32::INFINITY]).is_err());
        assert_eq!(argmax(&[f32::NEG_INFINITY; 3]), Err(SamplingError::NothingPossible));
    }

    #[test]
    fn temperature_gives_the_softmax_distribution() {
        for temperature in [0.5f32, 1.0, 2.0] {
            let weights = LOGITS.map(|logit| f64::from(logit / temperature).exp());
            let total: f64 = weights.iter().sum();
            let seen = frequencies(&params(temperature, 0, 1.0));
            for (frequency, weight) in seen.iter().zip(weights) {
                assert!((frequency - weight / total).abs() < 0.015, "{seen:?}");
            }
        }
    }

    #[test]
    fn top_k_keeps_the_k_likeliest_in_proportion() {
        let seen = frequencies(&params(1.0, 2, 1.0));
        assert_eq!((seen[0], seen[1], seen[3]), (0.0, 0.0, 0.0));
        let expected = 1.0 / (1.0 + (-0.5f64).exp());
        assert!((seen[2] - expected).abs() < 0.015, "{seen:?}");
    }

    #[test]
    fn top_p_keeps_the_smallest_set_that_reaches_p() {
        // Probabilities: 0.474, 0.288, 0.174, 0.064 for tokens 2, 4, 1, 0.
        let kept = |top_p| frequencies(&params(1.0, 0, top_p)).map(|frequency| frequency > 0.0);
        assert_eq!(kept(0.4), [false, false, true, false, false]);
        assert_eq!(kept(0.7), [false, false, true, false, true]);
        assert_eq!(kept(0.85), [false, true, true, false, true]);
        assert_eq!(kept(0.95), [true, true, true, false, true]);
    }

    #[test]
    fn top_p_counts_among_the_top_k() {
        // Of the three likeliest 0.506, 0.307 and 0.186.
        let kept = |top_p| frequencies(&params(1.0, 3, top_p)).map(|frequency| frequency > 0.0);
        assert_eq!(kept(0.5), [false, false, true, false, false]);
        assert_eq!(kept(0.8), [false, false, true, false, true]);
        assert_eq!(kept(0.82), [false, true, true, false, true]);
        assert_eq!(kept(1.0), [false, true, true, false, true]);
    }

    #[test]
    fn logprobs_are_normalized_and_sorted() {
        let top = top_logprobs(&LOGITS, 3);
        assert_eq!(top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [2, 4, 1]);
        let total: f64 = (0..5).map(|id| log_probability(&LOGITS, id).exp()).sum();
        assert!((total - 1.0).abs() < 1e-6);
        assert!((f64::from(top[0].1) - log_probability(&LOGITS, 2)).abs() < 1e-6);
        assert_eq!(top_logprobs(&LOGITS, 99).len(), 5);
    }

    proptest! {
        #[test]
        fn draws_depend_on_seed_and_position_alone(
            logits in prop::collection::vec(-5.0f32..5.0, 1..40),
            temperature in 0.1f32..3.0, top_k in 0usize..10, top_p in 0.05f32..1.0,
            seed: u64, position: u64,
        ) {
            let params = params(temperature, top_k, top_p);
            let id = sample(&logits, &params, seed, position).expect("usable logits");
            prop_assert_eq!(sample(&logits, &params, seed, position), Ok(id));
            let rank = likeliest(&logits, logits.len()).iter().position(|&other| other == id).expect("an id");
            prop_assert!(top_k == 0 || rank < top_k);
        }

        /// Few values, so that some are equal.
        #[test]
        fn the_few_likeliest_are_the_first_of_all_in_order(
            logits in prop::collection::vec((-9i8..9).prop_map(|x| f32::from(x) * -0.5), 1..60), count in 0usize..FEW,
        ) {
            let mut all: Vec<u32> = (0..logits.len() as u32).collect();
            all.sort_by(|&a, &b| logits[b as usize].partial_cmp(&logits[a as usize]).unwrap());
            all.truncate(count);
            prop_assert_eq!(few_likeliest(&logits, count), all);
        }
    }
}
