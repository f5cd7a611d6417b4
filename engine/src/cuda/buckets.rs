//! The shapes of steps, and the few that are recorded.
//!
//! A recorded step is launched with one call, but its grids are fixed. So there are buckets: decode steps of
//! up to 1, 2, 4 or 8 rows, and tails of prompts of up to 8, 16, 32, 64 or 128. A plan goes to the first
//! bucket that it fits into; what it leaves empty is marked as such in the uploaded arrays, and costs little.
//! Any other plan is launched kernel by kernel in a shape of its own.

use redstart_kernels::attention::{
    AttentionItem, AttentionShape, SequenceRows, Variant, choose_splits, plan_items, scratch_bytes,
};
use redstart_kernels::device::Graph;

use super::step::sequence_rows;
use crate::step_plan::StepPlan;

/// Rows of the decode buckets.
const DECODE_ROWS: [u32; 4] = [1, 2, 4, 8];

/// Rows of the buckets for the tails of prompts.
const TAIL_ROWS: [u32; 5] = [8, 16, 32, 64, 128];

/// Rows of the largest bucket.
pub(super) const MOST_ROWS: u32 = TAIL_ROWS[TAIL_ROWS.len() - 1];

/// Sequences that a tail bucket has room for: the prompt's, and a few that decode beside it.
const TAIL_SEQUENCES: u32 = 4;

/// What is fixed when a step is launched or recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StepShape {
    /// Token rows, empty ones included.
    pub(super) rows: u32,
    /// Attention's kernel.
    pub(super) variant: Variant,
    /// Attention items, empty ones included.
    pub(super) items: u32,
    /// Blocks that share an item's keys.
    pub(super) splits: u32,
    /// Rows whose logits are computed, empty ones included.
    pub(super) logits: u32,
}

/// A shape, recorded.
pub(super) struct Bucket {
    pub(super) shape: StepShape,
    pub(super) graph: Graph,
    /// Steps that it ran.
    pub(super) used: u64,
}

/// What shapes depend on.
#[derive(Clone, Copy, Debug)]
pub(super) struct ShapeRules {
    pub(super) attention: AttentionShape,
    /// Longest sequence, in tokens.
    pub(super) max_model_len: u32,
    pub(super) multiprocessors: u32,
}

impl ShapeRules {
    /// The shapes of all buckets, in the order in which a plan tries them.
    pub(super) fn buckets(&self) -> Vec<StepShape> {
        let decode = DECODE_ROWS.map(|rows| self.shape(rows, Variant::Narrow, [rows, rows], rows));
        let tails = TAIL_ROWS.map(|rows| {
            let variant = Variant::choose(rows, self.attention.group());
            let alone = rows.div_ceil(variant.tokens(self.attention.group()));
            // The keys are split as for a prompt alone; that is the one somebody waits for.
            self.shape(rows, variant, [alone, alone + TAIL_SEQUENCES - 1], TAIL_SEQUENCES.min(rows))
        });
        // Where heads share little, a tail of eight is what a decode bucket does as well.
        let tails = tails.into_iter().filter(|shape| shape.rows > 8 || shape.variant != Variant::Narrow);
        decode.into_iter().chain(tails).collect()
    }

    /// The shape of a plan that fits no bucket.
    pub(super) fn of_plan(&self, plan: &StepPlan) -> StepShape {
        let longest = plan.sequences.iter().map(|sequence| sequence.rows.len() as u32).max().unwrap_or(0);
        let variant = Variant::choose(longest, self.attention.group());
        let items = self.count_items(plan, variant);
        self.shape(plan.num_rows() as u32, variant, [items, items], plan.logits_rows.len() as u32)
    }

    /// `items`: those to fill the card with, and those to have room for.
    fn shape(&self, rows: u32, variant: Variant, items: [u32; 2], logits: u32) -> StepShape {
        let (kv_heads, context) = (self.attention.kv_heads, self.max_model_len);
        let splits = choose_splits(variant, items[0], kv_heads, context, self.multiprocessors);
        StepShape { rows, variant, items: items[1], splits, logits }
    }

    /// Whether a plan fits into a bucket's shape. One that asks for no logits does not: a bucket has the
    /// output head in it, which is a quarter of a step.
    pub(super) fn fits(&self, plan: &StepPlan, shape: &StepShape) -> bool {
        let items = self.count_items(plan, shape.variant);
        // A sequence in several narrow items would read its keys once for each.
        let most_items =
            if shape.variant == Variant::Narrow { plan.sequences.len() as u32 } else { shape.items };
        plan.num_rows() as u32 <= shape.rows
            && (1..=shape.logits).contains(&(plan.logits_rows.len() as u32))
            && items <= most_items.min(shape.items)
    }

    fn count_items(&self, plan: &StepPlan, variant: Variant) -> u32 {
        let tokens = variant.tokens(self.attention.group());
        plan.sequences.iter().map(|sequence| (sequence.rows.len() as u32).div_ceil(tokens)).sum()
    }

    /// The items of a plan, for a shape.
    pub(super) fn items(&self, plan: &StepPlan, variant: Variant, out: &mut Vec<AttentionItem>) {
        let sequences: Vec<SequenceRows> = sequence_rows(plan).collect();
        out.clear();
        plan_items(&sequences, self.attention.group(), variant, out);
    }

    /// Bytes that attention works in, for every bucket and every plan of up to `max_rows` rows.
    pub(super) fn attention_scratch(&self, max_rows: u32) -> usize {
        let needed =
            |shape: &StepShape| scratch_bytes(&self.attention, shape.variant, shape.items, shape.splits);
        let buckets = self.buckets().iter().map(needed).max().unwrap_or(0);
        let others = [Variant::Narrow, Variant::Wide, Variant::Tall].into_iter().flat_map(|variant| {
            // Splits grow as items get fewer, so the most is at some number of items: try all.
            (1..=max_rows).map(move |items| needed(&self.shape(0, variant, [items, items], 0)))
        });
        others.fold(buckets, usize::max)
    }
}

#[cfg(test)]
mod tests {
    use redstart_kernels::attention::KvFormat;

    use super::*;
    use crate::step_plan::PlannedSequence;

    fn rules() -> ShapeRules {
        let attention = AttentionShape { heads: 28, kv_heads: 4, head_dim: 128, kv: KvFormat::F16 };
        ShapeRules { attention, max_model_len: 32_768, multiprocessors: 132 }
    }

    /// Sequences of so many rows, the last of each sampled.
    fn plan(sequences: &[usize]) -> StepPlan {
        let mut plan = StepPlan::default();
        for rows in sequences {
            let start = plan.num_rows();
            plan.tokens.extend(vec![0; *rows]);
            plan.positions.extend(0..*rows as u32);
            plan.sequences
                .push(PlannedSequence { rows: start..start + rows, block_table: vec![0; rows.div_ceil(16)] });
            plan.logits_rows.push((start + rows - 1) as u32);
        }
        plan
    }

    #[test]
    fn plans_go_to_the_smallest_bucket() {
        let (rules, buckets) = (rules(), rules().buckets());
        let bucket = |sequences: &[usize]| {
            let plan = plan(sequences);
            let shape = buckets.iter().find(|shape| rules.fits(&plan, shape));
            shape.map(|shape| (shape.rows, shape.variant))
        };
        assert_eq!(bucket(&[1]), Some((1, Variant::Narrow)));
        assert_eq!(bucket(&[1, 1, 1]), Some((4, Variant::Narrow)));
        // Two tokens of a group of 7 are one narrow item.
        assert_eq!(bucket(&[2]), Some((2, Variant::Narrow)));
        assert_eq!(bucket(&[2, 1, 1, 2]), Some((8, Variant::Narrow)));
        assert_eq!(bucket(&[5]), Some((8, Variant::Wide)));
        assert_eq!(bucket(&[5, 1, 1, 1]), Some((8, Variant::Wide)));
        assert_eq!(bucket(&[16]), Some((16, Variant::Wide)));
        assert_eq!(bucket(&[16, 1, 1]), Some((32, Variant::Wide)));
        assert_eq!(bucket(&[128]), Some((128, Variant::Tall)));
        // Too many sequences, too many rows, nothing asked for.
        assert_eq!(bucket(&[1; 9]), None);
        assert_eq!(bucket(&[129]), None);
        let silent = StepPlan { logits_rows: Vec::new(), ..plan(&[16]) };
        assert!(!buckets.iter().any(|shape| rules.fits(&silent, shape)));
    }

    #[test]
    fn scratch_is_enough_for_any_plan() {
        let rules = rules();
        let scratch = rules.attention_scratch(2048);
        for sequences in [&[200][..], &[1; 30], &[2000], &[17, 900, 1, 1, 1], &[40; 12]] {
            let shape = rules.of_plan(&plan(sequences));
            assert!(scratch_bytes(&rules.attention, shape.variant, shape.items, shape.splits) <= scratch);
        }
        assert!(scratch < 64 << 20, "{scratch} bytes are more than attention is worth");
    }
}
