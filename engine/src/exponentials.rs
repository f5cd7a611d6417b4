//! `e` to the power of every logit of a vocabulary: what the softmax and drawing from it need.
//!
//! The library's function, called for each logit of a large vocabulary, takes milliseconds a token.

use std::f32::consts::LOG2_E;

use crate::turns;

/// Below this the result is zero: a little more than the least number that is stored in full.
const LEAST: f32 = -87.0;

/// Added to a number of less than 2^22, it leaves the nearest integer in the low bits.
const ROUNDER: f32 = 12_582_912.0;

/// ln 2 in two parts: a multiple of the first below 2^14 is exact.
const LN_2_HIGH: f32 = 0.693_359_4;
const LN_2_LOW: f32 = -2.121_944_4e-4;

/// Independent sums, which the compiler turns into SIMD.
const LANES: usize = 16;

/// `exp((logit - max) / temperature)` of each logit; none is above `max`.
pub(crate) fn weights(logits: &[f32], max: f32, temperature: f32) -> Vec<f32> {
    let scale = temperature.recip();
    let mut weights = Vec::with_capacity(logits.len());
    for (_, part) in turns::parts(logits) {
        weights.extend(part.iter().map(|&logit| exp_of_negative((logit - max) * scale)));
    }
    weights
}

/// The sum of `exp(logit - max)`; no logit is above `max`.
pub(crate) fn sum(logits: &[f32], max: f32) -> f64 {
    let mut sums = [0.0; LANES];
    let mut of_rest = 0.0;
    for (_, part) in turns::parts(logits) {
        let (chunks, rest) = part.as_chunks::<LANES>();
        for chunk in chunks {
            for (sum, &logit) in sums.iter_mut().zip(chunk) {
                *sum += f64::from(exp_of_negative(logit - max));
            }
        }
        of_rest += rest.iter().map(|&logit| f64::from(exp_of_negative(logit - max))).sum::<f64>();
    }
    sums.into_iter().sum::<f64>() + of_rest
}

/// `e^x` of an `x` of zero or less, to within a few units of the last place. `x = n ln 2 + r` after Cody and Waite, with `r`
/// at most half of ln 2 in size; then `e^x = 2^n e^r`. Neither branches nor calls, so that a loop of it can be SIMD.
#[inline(always)]
fn exp_of_negative(x: f32) -> f32 {
    let clamped = if x > LEAST { x } else { LEAST };
    let rounded = clamped * LOG2_E + ROUNDER;
    let n = rounded - ROUNDER;
    let r = (clamped - n * LN_2_HIGH) - n * LN_2_LOW;
    let exp_of_r = taylor(r);
    // The exponent's field holds n + 127.
    let power_of_two = f32::from_bits(rounded.to_bits().wrapping_add(127) << 23);
    if x > LEAST { exp_of_r * power_of_two } else { 0.0 }
}

/// The first eight terms of the series of `e^r`, in Estrin's order: few of its operations wait for each other.
#[inline(always)]
fn taylor(r: f32) -> f32 {
    let r2 = r * r;
    let low = (1.0 + r) + (1.0 / 2.0 + r * (1.0 / 6.0)) * r2;
    let high = (1.0 / 24.0 + r * (1.0 / 120.0)) + (1.0 / 720.0 + r * (1.0 / 5_040.0)) * r2;
    low + high * (r2 * r2)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_are_exact() {
        assert_eq!(exp_of_negative(0.0), 1.0);
        assert_eq!(exp_of_negative(-0.0), 1.0);
        assert_eq!(exp_of_negative(-1e-30), 1.0);
        assert_eq!(exp_of_negative(LEAST), 0.0);
        assert_eq!(exp_of_negative(f32::NEG_INFINITY), 0.0);
        assert!(exp_of_negative(LEAST + 1e-4) > 0.0);
    }

    proptest! {
        /// The reference is the library's function in float64.
        #[test]
        fn it_is_the_exponential_function(x in -86.99f32..0.0, near in -1.0f32..0.0) {
            for x in [x, near] {
                let expected = f64::from(x).exp();
                let error = (f64::from(exp_of_negative(x)) - expected).abs() / expected;
                prop_assert!(error < 4.0 * f64::from(f32::EPSILON), "e^{x}: {error}");
            }
        }

        #[test]
        fn a_row_is_weighed_as_each_of_it(
            logits in prop::collection::vec(-8.0f32..8.0, 0..70), temperature in 0.2f32..3.0,
        ) {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let exp = |logit: f32, t: f32| ((f64::from(logit) - f64::from(max)) / f64::from(t)).exp();
            for (weight, &logit) in weights(&logits, max, temperature).into_iter().zip(&logits) {
                let expected = exp(logit, temperature);
                // The exponent is rounded, and up to 80 in size.
                prop_assert!((f64::from(weight) - expected).abs() <= 2e-5 * expected, "{weight}, not {expected}");
            }
            let total: f64 = logits.iter().map(|&logit| exp(logit, 1.0)).sum();
            prop_assert!((sum(&logits, max) - total).abs() <= 1e-6 * total);
        }
    }
}
