//! Top-p: the likeliest tokens that have a given share of the probability together
//! (Holtzman, Buys, Du, Forbes and Choi, "The Curious Case of Neural Text Degeneration", 2020).

use crate::turns;

/// A histogram's boxes for each halving of a weight, as a power of two.
const BOXES_PER_HALVING: u32 = 6;

/// Mantissa bits that do not matter to which box a weight is in.
const IGNORED: u32 = f32::MANTISSA_DIGITS - 1 - BOXES_PER_HALVING;

/// Down to 2^-64 of the largest weight; what is less is in the last one.
const BOXES: usize = 64 << BOXES_PER_HALVING;

/// The smallest set of likeliest tokens whose weights reach a sum.
#[derive(Debug, PartialEq)]
pub(crate) struct Nucleus {
    /// The last that belongs to it, in the order of logits and among equals of ids; `None` when all do.
    last: Option<(f32, u32)>,
}

impl Nucleus {
    /// The nucleus of tokens with these logits and weights (`exp` of the logits' distance from the largest, so 1 at the most) whose
    /// weights' sum reaches `wanted`. All of them when rounding keeps the whole below that.
    ///
    /// Only tokens of nearly the same weight are sorted: to sort a whole vocabulary takes milliseconds.
    pub(crate) fn new(logits: &[f32], weights: &[f32], wanted: f64) -> Self {
        let mut sums = vec![0.0; BOXES];
        for (_, part) in turns::parts(weights) {
            for &weight in part {
                sums[box_of(weight)] += f64::from(weight);
            }
        }
        let mut sum = 0.0;
        let reaches = |&of_box: &f64| {
            let is_last = sum + of_box >= wanted;
            if !is_last {
                sum += of_box;
            }
            is_last
        };
        let Some(last) = sums.iter().position(reaches) else { return Self { last: None } };
        let mut ids: Vec<u32> = Vec::new();
        for (first, part) in turns::parts(weights) {
            let in_last = (first as u32..).zip(part).filter(|&(_, &weight)| box_of(weight) == last);
            ids.extend(in_last.map(|(id, _)| id));
        }
        ids.sort_unstable_by(|&a, &b| {
            logits[b as usize].partial_cmp(&logits[a as usize]).expect("no logit is NaN").then(a.cmp(&b))
        });
        let reaches = |&&id: &&u32| {
            sum += f64::from(weights[id as usize]);
            sum >= wanted
        };
        // Added in this order, the weights may fall short of the box's sum by a rounding.
        let id = ids.iter().find(reaches).or(ids.last()).copied();
        Self { last: id.map(|id| (logits[id as usize], id)) }
    }

    /// Whether a token belongs to it.
    pub(crate) fn contains(&self, id: u32, logit: f32) -> bool {
        self.last.is_none_or(|(least, last)| logit > least || (logit == least && id <= last))
    }
}

/// Larger weights are in boxes of lower numbers.
fn box_of(weight: f32) -> usize {
    // Numbers of one sign are ordered as their bits are.
    let below_one = 1.0f32.to_bits().saturating_sub(weight.to_bits());
    ((below_one >> IGNORED) as usize).min(BOXES - 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn weights(logits: &[f32]) -> Vec<f32> {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        logits.iter().map(|&logit| (logit - max).exp()).collect()
    }

    /// The definition: everything sorted.
    fn expected(logits: &[f32], weights: &[f32], wanted: f64) -> Vec<u32> {
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        let mut sum = 0.0;
        let enough = ids.iter().position(|&id| {
            sum += f64::from(weights[id as usize]);
            sum >= wanted
        });
        ids.truncate(enough.map_or(ids.len(), |last| last + 1));
        ids.sort_unstable();
        ids
    }

    fn ids_of(nucleus: &Nucleus, logits: &[f32]) -> Vec<u32> {
        (0..).zip(logits).filter(|&(id, &logit)| nucleus.contains(id, logit)).map(|(id, _)| id).collect()
    }

    #[test]
    fn of_equals_the_first_belong_to_it() {
        let logits = vec![0.5f32; 5_000];
        let nucleus = Nucleus::new(&logits, &weights(&logits), 2_500.0);
        assert_eq!(ids_of(&nucleus, &logits), (0..2_500).collect::<Vec<_>>());
    }

    #[test]
    fn what_cannot_be_reached_is_everything() {
        let logits = [0.0f32, -1.0, f32::NEG_INFINITY];
        assert_eq!(ids_of(&Nucleus::new(&logits, &weights(&logits), 9.0), &logits), [0, 1, 2]);
    }

    #[test]
    fn boxes_are_in_the_order_of_weights() {
        let weights = [1.0, 0.999, 0.98, 0.5, 0.25, 1e-9, 2f32.powi(-63), 2f32.powi(-64), 1e-38, 0.0];
        let boxes = weights.map(box_of);
        assert!(boxes.is_sorted(), "{boxes:?}");
        assert_eq!((boxes[0], boxes[3], boxes[9]), (0, 1 << BOXES_PER_HALVING, BOXES - 1));
    }

    proptest! {
        #[test]
        fn it_is_the_smallest_set_that_reaches_the_sum(
            // Few values, so that some are equal; and some far away.
            logits in prop::collection::vec(
                prop_oneof![4 => (-40i8..0).prop_map(|x| f32::from(x) / 8.0), 3 => -9.0f32..0.0, 1 => -90.0f32..-30.0],
                1..300,
            ),
            share in 0.01f64..0.999,
        ) {
            let weights = weights(&logits);
            let wanted = share * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
            let nucleus = Nucleus::new(&logits, &weights, wanted);
            prop_assert_eq!(ids_of(&nucleus, &logits), expected(&logits, &weights, wanted));
        }
    }
}
