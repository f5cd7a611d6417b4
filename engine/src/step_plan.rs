//! What a backend runs in one step: which tokens, at which positions, over which KV blocks.

use std::ops::Range;

use crate::sampling::Draw;

/// Tokens in one KV block. A sequence's token at position `p` lives in block `block_table[p / 16]`,
/// slot `p % 16`.
pub const BLOCK_SIZE: usize = 16;

/// Index of a KV block in the backend's pool.
pub type BlockId = u32;

/// One batched forward pass. Rows of all sequences are concatenated: `tokens[i]` and `positions[i]`
/// describe row `i`; each entry of `sequences` owns a contiguous range of rows.
///
/// Before attention, row `i` writes its key and value to its slot; then it attends to all positions
/// `0..=positions[i]` of its own sequence.
#[derive(Clone, Debug, Default)]
pub struct StepPlan {
    /// Token ids, `[rows]`; 0 where [`carried`](Self::carried) says that the token is not known yet.
    pub tokens: Vec<u32>,
    /// Absolute positions, `[rows]`; ascending by one within a sequence.
    pub positions: Vec<u32>,
    /// The sequences that take part, in row order.
    pub sequences: Vec<PlannedSequence>,
    /// Rows whose logits are wanted, ascending. Logits come back in this order.
    pub logits_rows: Vec<u32>,
    /// What each of `logits_rows` is wanted for. [`Backend::forward`](crate::backend::Backend::forward)
    /// gives logits whatever it says; only [`DeviceSteps`](crate::backend::DeviceSteps) look at it.
    pub wanted: Vec<Wanted>,
    /// Rows whose token is drawn by the step that was started before this one and is not finished yet.
    /// Always empty for [`Backend::forward`](crate::backend::Backend::forward).
    pub carried: Vec<Carried>,
    /// Whether nobody waits for this step. The backend may leave part of the machine to others; what it
    /// computes is the same.
    pub background: bool,
}

/// What one of a plan's `logits_rows` is wanted for.
#[derive(Clone, Debug)]
pub enum Wanted {
    /// The row of logits itself: a prompt's likelihood, or more log-probabilities than a draw reports.
    Logits,
    /// A token, drawn like this.
    Token(Draw),
}

/// A row whose token the step before draws.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Carried {
    /// The row of this plan.
    pub row: u32,
    /// Which of the `logits_rows` of the plan started before: an index into them. A
    /// [`Wanted::Token`] is wanted of it.
    pub drawn_at: u32,
}

/// One sequence's share of a [`StepPlan`].
#[derive(Clone, Debug)]
pub struct PlannedSequence {
    /// This sequence's rows in the plan.
    pub rows: Range<usize>,
    /// Blocks that hold positions `0..=last position of this step`, in order.
    pub block_table: Vec<BlockId>,
}

impl StepPlan {
    /// Number of token rows in the step.
    pub fn num_rows(&self) -> usize {
        self.tokens.len()
    }

    /// Empties the plan, keeping its allocations for the next step.
    pub fn clear(&mut self) {
        self.tokens.clear();
        self.positions.clear();
        self.sequences.clear();
        self.logits_rows.clear();
        self.wanted.clear();
        self.carried.clear();
        self.background = false;
    }
}
