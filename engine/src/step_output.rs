//! What a step gave: a drawn token or the logits, for each row that was asked for.

use std::sync::OnceLock;

use crate::sampling::{Draw, SamplingError, argmax, best_log_probability};
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

    /// Draws the tokens that `plan` wants from the logits that are all it holds, as a device does that draws.
    /// `for_each(count, draw)` calls `draw` with every number below `count` once, in any order and on any threads.
    pub fn draw(
        &mut self,
        plan: &StepPlan,
        vocab_size: usize,
        for_each: impl FnOnce(usize, &(dyn Fn(usize) + Sync)),
    ) {
        let logits = &self.logits;
        let row = |index: usize| &logits[index * vocab_size..][..vocab_size];
        let drawn: Vec<OnceLock<_>> = plan.wanted.iter().map(|_| OnceLock::new()).collect();
        for_each(drawn.len(), &|index| {
            if let Wanted::Token(draw) = &plan.wanted[index] {
                drawn[index].get_or_init(|| Drawn::draw(draw, row(index)));
            }
        });
        self.rows.clear();
        self.rows.extend(
            drawn.into_iter().map(|drawn| drawn.into_inner().map_or(RowOutput::Logits, RowOutput::Drawn)),
        );
        let mut kept = 0;
        for (index, row) in self.rows.iter().enumerate() {
            if *row == RowOutput::Logits {
                self.logits.copy_within(index * vocab_size..(index + 1) * vocab_size, kept);
                kept += vocab_size;
            }
        }
        self.logits.truncate(kept);
    }
}

impl Drawn {
    /// # Errors
    /// When the logits are not usable.
    fn draw(draw: &Draw, logits: &[f32]) -> Result<Self, SamplingError> {
        let token = draw.choose(logits)?;
        let best = argmax(logits)?;
        Ok(Self { token, best, best_logprob: best_log_probability(logits, best) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::SamplingParams;
    use crate::sampling::log_probability;

    const VOCAB: usize = 5;

    #[test]
    fn tokens_are_drawn_in_any_order_and_other_rows_stay() {
        let logits: Vec<f32> = (0..6 * VOCAB).map(|i| (i * 7 % 11) as f32 / 3.0).collect();
        let row = |index: usize| &logits[index * VOCAB..][..VOCAB];
        let params = SamplingParams { temperature: 1.0, ..SamplingParams::default() };
        let draw = |position| Draw::new(&params, 3, position);
        let mut plan = StepPlan { logits_rows: (0..6).collect(), ..StepPlan::default() };
        plan.wanted = vec![
            Wanted::Token(draw(9)),
            Wanted::Logits,
            Wanted::Token(draw(1)),
            Wanted::Token(draw(2)),
            Wanted::Logits,
            Wanted::Token(draw(3)),
        ];
        let mut output = StepOutput { logits: logits.clone(), ..StepOutput::default() };
        output.set_all_logits(&plan);
        output.draw(&plan, VOCAB, |count, draw| (0..count).rev().for_each(draw));
        for (index, (wanted, found)) in plan.wanted.iter().zip(output.iter(VOCAB)).enumerate() {
            match wanted {
                Wanted::Logits => assert_eq!(found.logits(), row(index)),
                Wanted::Token(draw) => {
                    let Row::Drawn(Ok(drawn)) = found else { panic!("row {index}: {found:?}") };
                    let best = argmax(row(index)).unwrap();
                    assert_eq!((drawn.token, drawn.best), (draw.choose(row(index)).unwrap(), best));
                    let expected = log_probability(row(index), best);
                    assert!((f64::from(drawn.best_logprob) - expected).abs() < 1e-6);
                }
            }
        }
        assert_eq!(output.logits.len(), 2 * VOCAB);
    }

    #[test]
    fn a_row_that_cannot_be_drawn_from_does_not_spoil_the_others() {
        let mut plan = StepPlan { logits_rows: vec![0, 1], ..StepPlan::default() };
        plan.wanted = vec![Wanted::Token(Draw::new(&SamplingParams::default(), 0, 0)); 2];
        let mut output = StepOutput { logits: vec![1.0, f32::NAN, 1.0, 2.0], ..StepOutput::default() };
        output.draw(&plan, 2, |count, draw| (0..count).for_each(draw));
        assert!(matches!(&output.rows[0], RowOutput::Drawn(Err(SamplingError::InvalidLogit { id: 1, .. }))));
        assert!(matches!(&output.rows[1], RowOutput::Drawn(Ok(Drawn { token: 1, .. }))));
    }
}
