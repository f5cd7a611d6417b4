//! Which models the kernels have variants for.

use redstart_kernels::elementwise::MAX_HIDDEN;
use redstart_kernels::sampling::MAX_VOCAB;

use crate::config::ModelConfig;

/// Refuses what they have none for.
///
/// # Errors
/// What is not supported and what is, in words.
pub(super) fn check_supported(config: &ModelConfig) -> Result<(), String> {
    let ModelConfig { hidden_size, intermediate_size, head_dim, vocab_size, .. } = *config;
    let group = config.heads_per_kv_head();
    let refuse = |what: String, supported: &str| {
        Err(format!(
            "the CUDA backend does not run models with {what}; supported: {supported}; take --backend cpu"
        ))
    };
    if !matches!(head_dim, 64 | 128) {
        return refuse(format!("heads of {head_dim}"), "64 and 128");
    }
    if group > 16 {
        return refuse(format!("{group} query heads to a key/value head"), "up to 16");
    }
    if !hidden_size.is_multiple_of(8) || hidden_size > MAX_HIDDEN as usize {
        return refuse(format!("hidden_size {hidden_size}"), &format!("multiples of 8 up to {MAX_HIDDEN}"));
    }
    if !intermediate_size.is_multiple_of(8) {
        return refuse(format!("intermediate_size {intermediate_size}"), "multiples of 8");
    }
    if vocab_size > MAX_VOCAB {
        return refuse(format!("{vocab_size} tokens"), &format!("up to {}", MAX_VOCAB));
    }
    Ok(())
}
