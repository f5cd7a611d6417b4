//! Refuses a plan that would read or write outside what it owns. A wrong plan is a fault of the scheduler, and must
//! not become a wrong memory access of a backend.

use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, PlannedSequence, StepPlan};

/// Checks `plan` against a model and a pool of `blocks` KV blocks.
///
/// # Errors
/// What is wrong with it, in words.
pub(crate) fn check_plan(plan: &StepPlan, config: &ModelConfig, blocks: usize) -> Result<(), String> {
    check_rows(plan, config)
        .and_then(|()| plan.sequences.iter().try_for_each(|one| check_sequence(plan, one, config, blocks)))
        .map_err(|what| format!("malformed step plan: {what}"))
}

/// Tokens, logits, and that every row belongs to one sequence.
fn check_rows(plan: &StepPlan, config: &ModelConfig) -> Result<(), String> {
    let rows = plan.num_rows();
    if plan.positions.len() != rows {
        return Err(format!("{rows} tokens, {} positions", plan.positions.len()));
    }
    if let Some(token) = plan.tokens.iter().find(|token| **token as usize >= config.vocab_size) {
        return Err(format!("token {token} is outside the vocabulary of {}", config.vocab_size));
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
fn check_sequence(
    plan: &StepPlan,
    sequence: &PlannedSequence,
    config: &ModelConfig,
    blocks: usize,
) -> Result<(), String> {
    let positions = &plan.positions[sequence.rows.clone()];
    if positions.windows(2).any(|pair| pair[1] != pair[0].wrapping_add(1)) {
        return Err("positions of a sequence do not ascend by one".into());
    }
    let last = positions[positions.len() - 1] as usize;
    if last >= config.max_position_embeddings {
        return Err(format!("position {last} is beyond {}", config.max_position_embeddings));
    }
    if sequence.block_table.len() <= last / BLOCK_SIZE {
        return Err(format!("{} blocks do not reach position {last}", sequence.block_table.len()));
    }
    match sequence.block_table.iter().find(|block| **block as usize >= blocks) {
        Some(block) => Err(format!("block {block} is outside the pool of {blocks}")),
        None => Ok(()),
    }
}
