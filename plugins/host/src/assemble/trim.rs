//! Cutting to the budget.

use super::{AssembleError, Part};
use crate::prompt::Trim;

/// What goes from a segment is rounded up to a multiple of this many tokens, so that the cut stays where
/// it is until that many more have come.
pub(super) const STEP: usize = 64;

/// Cuts `parts` until they have at most `budget` tokens together.
pub(super) fn fit(parts: &mut [Part<'_>], budget: usize) -> Result<(), AssembleError> {
    let total: usize = parts.iter().map(Part::kept_tokens).sum();
    let mut excess = total.saturating_sub(budget);
    if excess == 0 {
        return Ok(());
    }
    let mut order: Vec<usize> = (0..parts.len()).collect();
    // Of equal weights the later one: a cut there leaves more of the cached prompt standing.
    order.sort_by_key(|&part| (parts[part].segment.weight, std::cmp::Reverse(part)));
    for part in order {
        excess = excess.saturating_sub(parts[part].cut(excess));
        if excess == 0 {
            return Ok(());
        }
    }
    Err(AssembleError::DoesNotFit { needed: parts.iter().map(Part::kept_tokens).sum(), budget })
}

impl Part<'_> {
    fn kept_tokens(&self) -> usize {
        self.units.iter().map(|unit| unit.kept.len()).sum()
    }

    /// Cuts at least `excess` tokens if the segment's `trim` allows it, and says how many.
    fn cut(&mut self, excess: usize) -> usize {
        let before = self.kept_tokens();
        match self.segment.trim {
            Trim::Keep => {}
            Trim::Drop => self.units.iter_mut().for_each(|unit| unit.kept = 0..0),
            Trim::Start => cut_blocks(self.units.iter_mut(), excess, true),
            Trim::End => cut_blocks(self.units.iter_mut().rev(), excess, false),
        }
        before - self.kept_tokens()
    }
}

/// Cuts blocks in the order given. Of the last one, part remains when it is long enough.
fn cut_blocks<'a>(units: impl Iterator<Item = &'a mut super::Unit>, excess: usize, at_start: bool) {
    let mut excess = excess.next_multiple_of(STEP);
    let mut blocks = units.filter(|unit| !unit.control).peekable();
    while let Some(block) = blocks.next().filter(|_| excess > 0) {
        let length = block.kept.len();
        let cut = if blocks.peek().is_some() { length } else { excess.min(length) };
        block.kept = if at_start { cut..length } else { 0..length - cut };
        excess = excess.saturating_sub(cut);
    }
}
