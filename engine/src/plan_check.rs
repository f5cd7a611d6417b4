//! Refuses a plan that would read or write outside what it owns. A wrong plan is a fault of the scheduler,
//! and must not become a wrong memory access of a backend.

use crate::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan, Wanted};

/// What a backend owns.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Token ids.
    pub(crate) vocab_size: usize,
    /// Positions of a sequence.
    pub(crate) positions: usize,
    /// Blocks of the KV pool.
    pub(crate) blocks: usize,
}

/// Checks what [`Backend::forward`](crate::backend::Backend::forward) looks at.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_plan(plan: &StepPlan, limits: Limits) -> Result<(), String> {
    check_rows(plan, limits)
        .and_then(|()| plan.sequences.iter().try_for_each(|one| check_sequence(plan, one, limits)))
        .map_err(malformed)
}

/// Checks what [`DeviceSteps`](crate::backend::DeviceSteps) look at besides: draws, and tokens carried over
/// from the step before. `drawing` says of each of that step's `logits_rows` whether a token is drawn of it;
/// `None`: no step is under way.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_step(plan: &StepPlan, drawing: Option<&[bool]>, vocab_size: usize) -> Result<(), String> {
    check_wanted(plan, vocab_size).and_then(|()| check_carried(plan, drawing)).map_err(malformed)
}

fn malformed(what: String) -> String {
    format!("malformed step plan: {what}")
}

fn check_wanted(plan: &StepPlan, vocab_size: usize) -> Result<(), String> {
    let (rows, wanted) = (plan.logits_rows.len(), plan.wanted.len());
    if rows != wanted {
        return Err(format!("{rows} rows of logits, {wanted} that are wanted"));
    }
    let words = vocab_size.div_ceil(32);
    for wanted in &plan.wanted {
        let Wanted::Token(draw) = wanted else { continue };
        if let Some(allowed) = draw.allowed.as_deref().filter(|allowed| allowed.len() != words) {
            return Err(format!("a mask of {} words for a vocabulary of {vocab_size}", allowed.len()));
        }
    }
    Ok(())
}

fn check_carried(plan: &StepPlan, drawing: Option<&[bool]>) -> Result<(), String> {
    for carried in &plan.carried {
        if carried.row as usize >= plan.num_rows() {
            return Err(format!("a token carried to row {} of {}", carried.row, plan.num_rows()));
        }
        let drawn = drawing.and_then(|drawing| drawing.get(carried.drawn_at as usize));
        if drawn != Some(&true) {
            return Err(format!("token {} of the step before is not drawn", carried.drawn_at));
        }
    }
    Ok(())
}

/// Tokens, logits, and that every row belongs to one sequence.
fn check_rows(plan: &StepPlan, limits: Limits) -> Result<(), String> {
    let rows = plan.num_rows();
    if plan.positions.len() != rows {
        return Err(format!("{rows} tokens, {} positions", plan.positions.len()));
    }
    if let Some(token) = plan.tokens.iter().find(|token| **token as usize >= limits.vocab_size) {
        return Err(format!("token {token} is outside the vocabulary of {}", limits.vocab_size));
    }
    let mut next_row = 0;
    for PlannedSequence { rows: range, .. } in &plan.sequences {
        if range.start != next_row || range.is_empty() || range.end > rows {
            return Err(format!("rows {range:?} do not follow row {next_row}"));
        }
        next_row = range.end;
    }
    if next_row != rows {
        return Err(format!("rows from {next_row} on belong to no sequence"));
    }
    match plan.logits_rows.iter().find(|row| **row as usize >= rows) {
        Some(row) => Err(format!("logits of row {row} of {rows}")),
        None => Ok(()),
    }
}

/// Positions and blocks of one sequence.
fn check_sequence(plan: &StepPlan, sequence: &PlannedSequence, limits: Limits) -> Result<(), String> {
    let Limits { positions: most, blocks, .. } = limits;
    let positions = &plan.positions[sequence.rows.clone()];
    if positions.windows(2).any(|pair| pair[1] != pair[0].wrapping_add(1)) {
        return Err("positions of a sequence do not ascend by one".into());
    }
    let last = positions[positions.len() - 1] as usize;
    if last >= most {
        return Err(format!("position {last} is beyond {most}"));
    }
    if sequence.block_table.len() <= last / BLOCK_SIZE {
        return Err(format!("{} blocks do not reach position {last}", sequence.block_table.len()));
    }
    match sequence.block_table.iter().find(|block| **block as usize >= blocks) {
        Some(block) => Err(format!("block {block} is outside the pool of {blocks}")),
        None => Ok(()),
    }
}
