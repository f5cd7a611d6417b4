//! How large the KV pool may be.
//!
//! When weights and working memory are on the card, what the user allows (`--gpu-memory-utilization`, a share
//! of *all* of the card's memory, other programs' included) less what is in use is for keys and values. It is
//! not all taken: [`DEFAULT_TOKENS`] hold the windows of several documents and a long review, and what an
//! editor does not need is better left to the desktop. Who serves more asks for more (`--kv-cache-mb`).

use redstart_kernels::device::{Device, DeviceError};

use super::error::PoolTooSmall;
use crate::step_plan::BLOCK_SIZE;

/// Tokens that the pool holds at most unless more are asked for.
pub const DEFAULT_TOKENS: usize = 64 << 10;

/// Fewer tokens are no use: a window of code and an answer.
pub(super) const LEAST_TOKENS: usize = 2 << 10;

/// What the KV pool's size depends on.
#[derive(Clone, Copy, Debug)]
pub(super) struct PoolRequest {
    /// Share of the card's memory that may be in use, 0 to 1.
    pub(super) utilization: f32,
    /// Bytes that must stay free.
    pub(super) reserved_bytes: u64,
    /// Bytes of one block, all layers.
    pub(super) block_bytes: usize,
    /// Tokens of the longest sequence.
    pub(super) max_model_len: usize,
    /// Tokens that must fit.
    pub(super) least_tokens: usize,
}

/// Blocks that a pool has by default: as many as fit, up to [`DEFAULT_TOKENS`] or, where that is more, one
/// sequence of the longest length.
///
/// # Errors
/// [`PoolTooSmall`] inside when not even `least_tokens` fit; else what the device said.
pub(super) fn default_blocks(
    device: &mut dyn Device,
    request: PoolRequest,
) -> Result<Result<usize, PoolTooSmall>, DeviceError> {
    let (free, total) = (device.free_memory()?, device.properties().memory_bytes);
    Ok(blocks_of(free, total, request))
}

fn blocks_of(free: u64, total: u64, request: PoolRequest) -> Result<usize, PoolTooSmall> {
    let PoolRequest { utilization, reserved_bytes, block_bytes, max_model_len, least_tokens } = request;
    let used = total.saturating_sub(free);
    let allowed = (total as f64 * f64::from(utilization)) as u64;
    let available = allowed.saturating_sub(used).saturating_sub(reserved_bytes);
    let fitting = usize::try_from(available / block_bytes as u64).unwrap_or(usize::MAX);
    if fitting < least_tokens.div_ceil(BLOCK_SIZE) {
        return Err(PoolTooSmall {
            total_mb: total >> 20,
            used_mb: used >> 20,
            reserved_mb: reserved_bytes >> 20,
            utilization: format!("{utilization}"),
            tokens: fitting * BLOCK_SIZE,
            block_kb: block_bytes >> 10,
            least_tokens,
        });
    }
    Ok(fitting.min(max_model_len.max(DEFAULT_TOKENS).div_ceil(BLOCK_SIZE)))
}

#[cfg(test)]
mod tests {
    use super::*;

    const GB: u64 = 1 << 30;

    fn request(max_model_len: usize) -> PoolRequest {
        // Qwen2.5-7B: 56 KB a token.
        let block_bytes = 16 * (56 << 10);
        let least_tokens = max_model_len;
        PoolRequest { utilization: 0.85, reserved_bytes: 0, block_bytes, max_model_len, least_tokens }
    }

    #[test]
    fn as_many_as_fit_up_to_the_default() {
        // 13.6 of 16 GB may be in use; 6 are.
        let blocks = |free| blocks_of(free, 16 * GB, request(32_768)).unwrap();
        assert_eq!(blocks(10 * GB), DEFAULT_TOKENS / BLOCK_SIZE);
        // 1.9 GB of them left: 2176 blocks.
        let some = blocks(16 * GB - (117 * GB) / 10);
        assert!((2_100..2_250).contains(&some), "{some}");
        // A longer context than the default pool gets its room.
        assert_eq!(blocks_of(70 * GB, 80 * GB, request(131_072)).unwrap(), 131_072 / BLOCK_SIZE);
    }

    #[test]
    fn too_little_says_what_to_lower() {
        let error = blocks_of(3 * GB, 16 * GB, PoolRequest { reserved_bytes: GB / 2, ..request(32_768) });
        let message = error.unwrap_err().to_string();
        for word in [
            "16384 MB",
            "13312 MB",
            "512 MB",
            "0.85",
            "--max-model-len",
            "--gpu-memory-utilization",
            "fp8",
            "32768",
        ] {
            assert!(message.contains(word), "{message:?} does not say {word:?}");
        }
    }
}
