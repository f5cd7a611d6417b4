//! What a step gave: a drawn token or the logits, for each row that was asked for.

use crate::sampling::{SamplingError, argmax, log_probability};
use crate::step_plan::{StepPlan, Wanted};

/// The results of one step.
#[derive(Clone, Debug, Default)]
pub struct StepOutput {
    /// One entry for each of the plan's `logits_rows`, in their order.
    pub rows: Vec<RowOutput>,
    /// The rows that are [`RowOutput::Logits`], as wide as the vocabulary, one after another.
    pub logits: Vec<f32>,
}

/// The result of one of a plan's `logits_rows`.
#[derive(Clone, Debug, PartialEq)]
pub enum RowOutput {
    /// The next row of [`StepOutput::logits`].
    Logits,
    /// A token, or why none could be drawn.
    Drawn(Result<Drawn, SamplingError>),
}

/// A token drawn by the device.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Drawn {
    /// The token.
    pub token: u32,
    /// The likeliest token before temperature, truncation and what may not be drawn; of equals, the lowest.
    pub best: u32,
    /// Its natural log-probability among all tokens.
    pub best_logprob: f32,
}

/// One of the rows of a [`StepOutput`].
#[derive(Clone, Copy, Debug)]
pub enum Row<'a> {
    /// Logits, as wide as the vocabulary.
    Logits(&'a [f32]),
    /// A token, or why none could be drawn.
    Drawn(&'a Result<Drawn, SamplingError>),
}

impl<'a> Row<'a> {
    /// The logits of a row of which nothing else was asked.
    ///
    /// # Panics
    /// When it is a drawn token.
    pub fn logits(self) -> &'a [f32] {
        match self {
            Self::Logits(logits) => logits,
            Self::Drawn(drawn) => panic!("logits were asked for, not {drawn:?}"),
        }
    }
}

impl StepOutput {
    /// Its rows in order.
    ///
    /// # Panics
    /// When there are not as many logits as the rows of them hold.
    pub fn iter(&self, vocab_size: usize) -> impl Iterator<Item = Row<'_>> {
        let num_logits = self.rows.iter().filter(|row| matches!(row, RowOutput::Logits)).count();
        assert_eq!(self.logits.len(), num_logits * vocab_size, "{num_logits} rows of {vocab_size} logits");
        let mut logits = self.logits.chunks_exact(vocab_size);
        self.rows.iter().map(move |row| match row {
            RowOutput::Logits => Row::Logits(logits.next().expect("the rows were counted")),
            RowOutput::Drawn(drawn) => Row::Drawn(drawn),
        })
    }

    /// Empties it, keeping its allocations.
    pub fn clear(&mut self) {
        self.rows.clear();
        self.logits.clear();
    }

    /// Makes it the output of a step that gave nothing but the logits in it.
    pub fn set_all_logits(&mut self, plan: &StepPlan) {
        self.rows.clear();
        self.rows.resize(plan.logits_rows.len(), RowOutput::Logits);
    }

    /// Overwrites it with what a device that draws would make of `logits`, a row for each of the plan's
    /// `logits_rows`.
    pub fn draw_on_host(&mut self, plan: &StepPlan, logits: &[f32], vocab_size: usize) {
        self.clear();
        for (wanted, row) in plan.wanted.iter().zip(logits.chunks_exact(vocab_size)) {
            self.rows.push(match wanted {
                Wanted::Logits => {
                    self.logits.extend_from_slice(row);
                    RowOutput::Logits
                }
                Wanted::Token(draw) => RowOutput::Drawn(draw.choose(row).map(|token| {
                    let best = argmax(row).expect("a token was drawn from these logits");
                    Drawn { token, best, best_logprob: log_probability(row, best) as f32 }
                })),
            });
        }
    }
}
