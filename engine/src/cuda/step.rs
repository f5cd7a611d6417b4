//! What a step is told: one upload, the same arrays at fixed places of the device's step region.
//!
//! ```text
//! tokens | positions | slots | gather | items | draws | block tables | masks
//! ```
//!
//! The first six have the sizes of the step's [shape](StepShape), so a recorded step finds them; the last two
//! are as long as this plan needs, so that only bytes that mean something are copied. What a shape has and
//! the plan does not fill is marked empty: no token, no slot, no row to gather, no item, no draw.
//!
//! There is one region, because the device does one thing after another: the upload of a step happens after
//! all kernels of the step before it. On the host there are as many pinned copies as steps may be under way.

use bytemuck::Pod;
use redstart_kernels::attention::{AttentionItem, SequenceRows};
use redstart_kernels::device::Buffer;
use redstart_kernels::sampling::{Kind, NO_MASK, SampleParams};

use super::buckets::StepShape;
use crate::sampling::Draw;
use crate::step_plan::{BLOCK_SIZE, StepPlan, Wanted};

/// Sequences of one step, at most: what the region has room for.
pub(super) const MAX_SEQUENCES: usize = 64;

/// Marks what a shape has and a plan does not fill.
const NONE: u32 = u32::MAX;

/// A token that the step before draws: this bit, and the number of its record.
const DRAWN: u32 = 1 << 31;

/// Where the arrays of a shape begin, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    shape: StepShape,
    positions: usize,
    slots: usize,
    gather: usize,
    items: usize,
    draws: usize,
    tables: usize,
}

impl Layout {
    pub(super) fn new(shape: StepShape) -> Self {
        // Kernels read some of the arrays sixteen bytes at a time.
        let after =
            |start: usize, count: u32, size: usize| (start + count as usize * size).next_multiple_of(16);
        let positions = after(0, shape.rows, 4);
        let slots = after(positions, shape.rows, 4);
        let gather = after(slots, shape.rows, 4);
        let items = after(gather, shape.logits, 4);
        let draws = after(items, shape.items, size_of::<AttentionItem>());
        let tables = after(draws, shape.logits, size_of::<SampleParams>());
        Self { shape, positions, slots, gather, items, draws, tables }
    }

    /// Bytes that a plan takes.
    pub(super) fn bytes(&self, plan: &StepPlan) -> usize {
        let tables: usize = plan.sequences.iter().map(|sequence| sequence.block_table.len()).sum();
        let masks: usize = plan.wanted.iter().filter_map(mask).map(<[u32]>::len).sum();
        self.tables + 4 * (tables + masks)
    }

    /// Bytes that the largest plan takes, by its rows, blocks of a sequence and words of a mask.
    pub(super) fn most_bytes(rows: u32, blocks: usize, mask_words: usize) -> usize {
        let variant = redstart_kernels::attention::Variant::Narrow;
        let shape = StepShape { rows, variant, items: rows, splits: 1, logits: rows };
        Self::new(shape).tables + 4 * MAX_SEQUENCES * (blocks + mask_words)
    }

    /// Writes a plan, cut into items, to the front of `to`; what it returns is to be copied.
    ///
    /// # Panics
    /// When `to` is shorter than [`bytes`](Self::bytes), or the plan does not fit the shape.
    pub(super) fn write(&self, plan: &StepPlan, items: &[AttentionItem], to: &mut [u8]) -> usize {
        let shape = &self.shape;
        let carried = |row: usize| plan.carried.iter().find(|carried| carried.row as usize == row);
        let token = |row| carried(row).map_or(plan.tokens[row], |carried| carried.drawn_at | DRAWN);
        let rows = shape.rows as usize;
        if plan.carried.is_empty() {
            put(to, 0, rows, NONE, plan.tokens.iter().copied());
        } else {
            put(to, 0, rows, NONE, (0..plan.num_rows()).map(token));
        }
        put(to, self.positions, rows, 0, plan.positions.iter().copied());
        put(to, self.slots, rows, NONE, slots(plan));
        put(to, self.gather, shape.logits as usize, NONE, plan.logits_rows.iter().copied());
        put(to, self.items, shape.items as usize, AttentionItem::default(), items.iter().copied());

        let tables = plan.sequences.iter().flat_map(|sequence| &sequence.block_table).copied();
        let mut end = put(to, self.tables, 0, 0, tables);
        let mut draws = Vec::with_capacity(plan.wanted.len());
        for wanted in &plan.wanted {
            draws.push(match wanted {
                Wanted::Logits => SampleParams::SKIP,
                Wanted::Token(draw) => sample_params(draw, (end / 4) as u32),
            });
            end = put(to, end, 0, 0, mask(wanted).unwrap_or_default().iter().copied());
        }
        put(to, self.draws, shape.logits as usize, SampleParams::SKIP, draws.into_iter());
        end
    }

    /// The arrays in a region that was written with this layout.
    pub(super) fn arrays(&self, region: Buffer) -> StepArrays {
        let (rows, logits) = (self.shape.rows as usize, self.shape.logits as usize);
        StepArrays {
            tokens: region.slice(0, 4 * rows),
            positions: region.slice(self.positions, 4 * rows),
            slots: region.slice(self.slots, 4 * rows),
            gather: region.slice(self.gather, 4 * logits),
            items: region.slice(self.items, self.shape.items as usize * size_of::<AttentionItem>()),
            draws: region.slice(self.draws, logits * size_of::<SampleParams>()),
            tables: region.slice(self.tables, region.bytes() - self.tables),
            masks: region,
        }
    }
}

/// Where a step's kernels find what they are told.
#[derive(Clone, Copy, Debug)]
pub(super) struct StepArrays {
    pub(super) tokens: Buffer,
    pub(super) positions: Buffer,
    pub(super) slots: Buffer,
    /// The row of each that logits are wanted of.
    pub(super) gather: Buffer,
    pub(super) items: Buffer,
    /// [`SampleParams`] of each that logits are wanted of.
    pub(super) draws: Buffer,
    pub(super) tables: Buffer,
    /// What the draws' mask offsets count from.
    pub(super) masks: Buffer,
}

/// Rows of a plan's sequences for attention, their block tables one after the other.
pub(super) fn sequence_rows(plan: &StepPlan) -> impl Iterator<Item = SequenceRows> + '_ {
    plan.sequences.iter().scan(0, |offset, sequence| {
        let table_offset = *offset;
        *offset += sequence.block_table.len() as u32;
        Some(SequenceRows {
            first_row: sequence.rows.start as u32,
            rows: sequence.rows.len() as u32,
            first_position: plan.positions[sequence.rows.start],
            table_offset,
        })
    })
}

/// Where in the pool each row's key and value go.
fn slots(plan: &StepPlan) -> impl Iterator<Item = u32> + '_ {
    plan.sequences.iter().flat_map(|sequence| {
        plan.positions[sequence.rows.clone()].iter().map(|position| {
            let (block, slot) = (*position as usize / BLOCK_SIZE, *position % BLOCK_SIZE as u32);
            sequence.block_table[block] * BLOCK_SIZE as u32 + slot
        })
    })
}

/// The tokens that a draw may give, if not all.
fn mask(wanted: &Wanted) -> Option<&[u32]> {
    match wanted {
        Wanted::Token(draw) => draw.allowed.as_deref(),
        Wanted::Logits => None,
    }
}

/// A draw, whose mask would lie at a word of the region.
fn sample_params(draw: &Draw, mask_at: u32) -> SampleParams {
    SampleParams {
        kind: if draw.is_greedy() { Kind::Likeliest } else { Kind::ByChance } as u32,
        top_k: u32::try_from(draw.top_k).unwrap_or(u32::MAX),
        temperature: draw.temperature,
        top_p: draw.top_p,
        seed: draw.seed,
        position: draw.position,
        mask_offset: if draw.allowed.is_some() { mask_at } else { NO_MASK },
        padding: 0,
    }
}

/// Writes `values` from byte `at` on, and `filler` after them until there are `count`; returns where it
/// ended.
fn put<T: Pod>(to: &mut [u8], at: usize, count: usize, filler: T, values: impl Iterator<Item = T>) -> usize {
    let mut end = at;
    let mut write = |value: T| {
        to[end..end + size_of::<T>()].copy_from_slice(bytemuck::bytes_of(&value));
        end += size_of::<T>();
    };
    let mut written = 0;
    for value in values {
        write(value);
        written += 1;
    }
    assert!(count == 0 || written <= count, "{written} of {count}");
    for _ in written..count {
        write(filler);
    }
    end
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use redstart_kernels::attention::{Variant, plan_items};

    use super::*;
    use crate::request::SamplingParams;
    use crate::step_plan::{Carried, PlannedSequence};

    const SHAPE: StepShape = StepShape { rows: 5, variant: Variant::Narrow, items: 4, splits: 1, logits: 3 };

    fn read<T: Pod>(bytes: &[u8], region: Buffer, array: Buffer) -> Vec<T> {
        let start = (array.address() - region.address()) as usize;
        let values = bytes[start..start + array.bytes()].chunks_exact(size_of::<T>());
        values.map(bytemuck::pod_read_unaligned).collect()
    }

    #[test]
    fn what_is_written_lies_where_the_kernels_look_and_the_rest_is_empty() {
        let allowed: Arc<[u32]> = [9, 8, 7].into();
        let draw =
            Draw::new(&SamplingParams { temperature: 0.5, top_k: 3, ..SamplingParams::default() }, 6, 4);
        let masked = Draw { temperature: 0.0, allowed: Some(allowed), ..draw.clone() };
        let plan = StepPlan {
            tokens: vec![40, 41, 0],
            positions: vec![15, 16, 3],
            sequences: vec![
                PlannedSequence { rows: 0..2, block_table: vec![7, 2] },
                PlannedSequence { rows: 2..3, block_table: vec![5] },
            ],
            logits_rows: vec![1, 2],
            wanted: vec![Wanted::Token(masked), Wanted::Token(draw)],
            carried: vec![Carried { row: 2, drawn_at: 1 }],
            ..StepPlan::default()
        };
        let mut items = Vec::new();
        plan_items(&sequence_rows(&plan).collect::<Vec<_>>(), 4, SHAPE.variant, &mut items);
        let layout = Layout::new(SHAPE);
        // As if an earlier step had left something.
        let mut bytes = vec![0xaa; layout.bytes(&plan) + 64];
        let length = layout.write(&plan, &items, &mut bytes);
        assert_eq!(length, layout.bytes(&plan));
        assert!(bytes[length..].iter().all(|byte| *byte == 0xaa));

        let region = Buffer::new(4096, bytes.len());
        let arrays = layout.arrays(region);
        let words = |array: Buffer| read::<u32>(&bytes, region, array);
        assert_eq!(words(arrays.tokens), [40, 41, DRAWN | 1, NONE, NONE]);
        assert_eq!(words(arrays.positions), [15, 16, 3, 0, 0]);
        assert_eq!(words(arrays.slots), [7 * 16 + 15, 2 * 16, 5 * 16 + 3, NONE, NONE]);
        assert_eq!(words(arrays.gather), [1, 2, NONE]);
        assert_eq!(words(arrays.tables)[..3], [7, 2, 5]);
        let read_items = read::<AttentionItem>(&bytes, region, arrays.items);
        assert_eq!((&read_items[..2], &read_items[2..]), (&items[..], &[AttentionItem::default(); 2][..]));
        assert_eq!((items[1].table_offset, items[1].first_position), (2, 3));
        let draws = read::<SampleParams>(&bytes, region, arrays.draws);
        assert_eq!(draws[0].kind, Kind::Likeliest as u32);
        assert_eq!(words(arrays.masks)[draws[0].mask_offset as usize..][..3], [9, 8, 7]);
        assert_eq!((draws[1].kind, draws[1].top_k, draws[1].seed), (Kind::ByChance as u32, 3, 6));
        assert_eq!((draws[1].mask_offset, draws[2]), (NO_MASK, SampleParams::SKIP));
        for array in
            [arrays.positions, arrays.slots, arrays.gather, arrays.items, arrays.draws, arrays.tables]
        {
            assert_eq!(array.address() % 16, 0);
        }
    }
}
