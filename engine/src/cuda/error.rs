//! Why the CUDA backend could not be made or could not go on.

use redstart_kernels::device::DeviceError;

use crate::backend::BackendError;
use crate::checkpoint::CheckpointError;

/// Why a [`CudaBackend`](super::CudaBackend) could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CudaError {
    /// The weights cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A model that the kernels have no variant for, or an option that does not go with it.
    #[error("{0}")]
    Unsupported(String),
    /// The model does not fit on the card.
    #[error(
        "not enough GPU memory for the model: {0}; take a smaller model, or lower --max-model-len, or end other programs that use the GPU"
    )]
    OutOfMemory(DeviceError),
    /// The model fits, but what is left is too little for one sequence.
    #[error(transparent)]
    PoolTooSmall(#[from] PoolTooSmall),
    /// The device failed.
    #[error(transparent)]
    Device(DeviceError),
}

impl From<DeviceError> for CudaError {
    fn from(error: DeviceError) -> Self {
        match error {
            DeviceError::OutOfMemory { .. } => Self::OutOfMemory(error),
            other => Self::Device(other),
        }
    }
}

/// What the memory that is left for the KV cache can hold, and what one sequence needs.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the GPU has {total_mb} MB, {used_mb} MB of it in use and {reserved_mb} MB reserved; with --gpu-memory-utilization {utilization} that leaves room for {tokens} tokens of KV cache ({block_kb} KB for 16), but a sequence of {least_tokens} tokens must fit; lower --max-model-len, raise --gpu-memory-utilization, take a smaller model, or keep the cache in 8 bits with --kv-cache-type fp8"
)]
pub struct PoolTooSmall {
    /// All memory of the card.
    pub total_mb: u64,
    /// What is taken: weights, working memory, other programs.
    pub used_mb: u64,
    /// What must stay free for a second model.
    pub reserved_mb: u64,
    /// The share of the card that may be used, as the option gives it.
    pub utilization: String,
    /// Tokens that the pool would hold.
    pub tokens: usize,
    /// Kilobytes of a block.
    pub block_kb: usize,
    /// Tokens of the sequence that must fit.
    pub least_tokens: usize,
}

/// A failure of a step, for the engine.
pub(super) fn step_error(error: DeviceError) -> BackendError {
    match error {
        DeviceError::Lost(_) => BackendError::Lost(error.to_string()),
        other => BackendError::Device(other.to_string()),
    }
}
