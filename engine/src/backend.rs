//! The one interface a device implements.

use crate::step_output::StepOutput;
use crate::step_plan::StepPlan;

/// Weights and KV cache on one device. Owned by the engine thread; never shared.
///
/// Every backend must give the same tokens for the same plan, whatever else shares the batch
/// (floating-point ties excepted), and must not depend on what a reused block held before.
pub trait Backend: Send {
    /// Short name for logs and reports, for example `cpu (avx512)`.
    fn name(&self) -> String;

    /// Number of logits per row.
    fn vocab_size(&self) -> usize;

    /// Longest sequence the model's positions allow.
    fn max_positions(&self) -> usize;

    /// Bytes of KV cache that one block of [`BLOCK_SIZE`](crate::step_plan::BLOCK_SIZE) tokens takes,
    /// all layers together.
    fn kv_block_bytes(&self) -> usize;

    /// Bytes of weights that decoding one token reads: every layer and the output head, not the KV cache.
    fn weight_bytes(&self) -> usize;

    /// Makes the KV pool hold `num_blocks` blocks; called once, before the first step.
    ///
    /// # Errors
    /// When the memory cannot be had.
    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError>;

    /// Runs one step. `logits` is overwritten with `plan.logits_rows.len() * vocab_size` values,
    /// one row after another.
    ///
    /// # Errors
    /// When the device failed; the engine then fails every running sequence with this message.
    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError>;

    /// Draws the tokens that `plan` wants from the logits that [`forward`](Self::forward) gave, which are all that `output`
    /// holds. What a backend leaves its caller draws, the same.
    fn draw(&mut self, _plan: &StepPlan, _output: &mut StepOutput) {}

    /// For a device that draws tokens itself and works while the host plans; `None` where
    /// [`forward`](Self::forward) is all there is. The answer is always the same one.
    fn stepper(&mut self) -> Option<&mut dyn DeviceSteps> {
        None
    }
}

/// Steps that are started and finished apart from each other, on a device that draws tokens itself.
///
/// At most [`MAX_STARTED`] steps are started and not finished. The device runs them one after the other, in
/// the order in which they were started, and they are finished in that order. So a step may be started while
/// the tokens of the one before are still unknown to the host ([`StepPlan::carried`]), and a block that is
/// given up may be written by the next step that is started, though one that reads it is still under way.
///
/// After an error no step is under way any more: the implementation has waited for those that were, or
/// knows that they will never touch a block again. It may be dropped while steps are under way, and waits for
/// them then.
pub trait DeviceSteps {
    /// Starts a step; returns without waiting for it. The plan is the caller's again at once.
    ///
    /// # Errors
    /// When the device failed or the plan is malformed; every step under way is then given up.
    fn start(&mut self, plan: &StepPlan) -> Result<(), BackendError>;

    /// Waits for the oldest step under way and overwrites `output` with what it gave: one entry for each of
    /// its plan's `logits_rows`, of the kind that [`StepPlan::wanted`] asked for.
    ///
    /// # Errors
    /// When the device failed; every step under way is then given up.
    fn finish(&mut self, output: &mut StepOutput) -> Result<(), BackendError>;

    /// Whether a step that carries tokens over may be started while the one before is under way. The
    /// answer may change from step to step.
    fn may_run_ahead(&self) -> bool;
}

/// Steps of one device that are started and not finished, at most.
pub const MAX_STARTED: usize = 2;

/// Why a backend could not do its work, in words for the user.
#[derive(Debug, thiserror::Error)]
pub enum BackendError {
    /// The KV pool does not fit.
    #[error("not enough memory for the KV cache: {wanted_mb} MB wanted ({detail}); lower --kv-cache-mb")]
    OutOfMemory {
        /// Megabytes asked for.
        wanted_mb: usize,
        /// What the allocator said.
        detail: String,
    },
    /// The device does not answer any more and everything on it is gone. The engine stops.
    #[error("{0}")]
    Lost(String),
    /// Anything else that stopped the device; the next step may go well.
    #[error("{0}")]
    Device(String),
}
