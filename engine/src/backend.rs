//! The one interface a device implements.

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
}

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
    /// Anything else that stopped the device.
    #[error("{0}")]
    Device(String),
}
