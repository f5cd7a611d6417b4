//! RMSNorm of every query and key head, as Qwen3 has it between its projections and the rotary embedding.

use super::linear::Disjoint;
use super::threads::ThreadPool;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::ModelConfig;

/// Sums that run side by side, so that the compiler makes vector instructions of them.
const LANES: usize = 16;

/// Weights of one layer's two norms, `[head_dim]` each; shared by all heads.
pub(super) struct QkNorm {
    query: Vec<f32>,
    key: Vec<f32>,
}

impl QkNorm {
    /// Loads the norms of the layer whose tensors begin with `prefix`.
    pub(super) fn load(checkpoint: &Checkpoint, prefix: &str) -> Result<Self, CheckpointError> {
        let load = |name: &str| {
            let name = format!("{prefix}.self_attn.{name}.weight");
            checkpoint.tensor(&name, &[checkpoint.config().head_dim])?.to_f32()
        };
        Ok(Self { query: load("q_norm")?, key: load("k_norm")? })
    }

    /// Norms the query and key heads of `qkv`, `[rows][query heads, key heads, value heads]`.
    pub(super) fn run(&self, pool: &mut ThreadPool, rows: usize, config: &ModelConfig, qkv: &mut [f32]) {
        let width = config.q_width() + 2 * config.kv_width();
        let qkv = Disjoint::new(qkv);
        pool.run(rows, |row, _| {
            // SAFETY: each task takes its own row.
            let row = unsafe { qkv.range(row * width..(row + 1) * width) };
            let (queries, rest) = row.split_at_mut(config.q_width());
            let keys = &mut rest[..config.kv_width()];
            for (heads, weight) in [(queries, &self.query), (keys, &self.key)] {
                for head in heads.chunks_exact_mut(config.head_dim) {
                    norm(head, weight, config.rms_norm_eps);
                }
            }
        });
    }
}

/// `x *= weight / sqrt(mean(x^2) + eps)`.
fn norm(x: &mut [f32], weight: &[f32], eps: f32) {
    let mut sums = [0.0f32; LANES];
    let (chunks, rest) = x.as_chunks::<LANES>();
    for chunk in chunks {
        for (sum, x) in sums.iter_mut().zip(chunk) {
            *sum += x * x;
        }
    }
    let total = sums.iter().sum::<f32>() + rest.iter().map(|x| x * x).sum::<f32>();
    let scale = 1.0 / (total / x.len() as f32 + eps).sqrt();
    for (x, weight) in x.iter_mut().zip(weight) {
        *x *= scale * weight;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_scaled_to_a_mean_square_of_one_and_weighted() {
        // Not a multiple of the lanes.
        let before: Vec<f32> = (0..37).map(|i| i as f32 - 11.5).collect();
        let weight: Vec<f32> = (0..37).map(|i| 0.5 + 0.1 * i as f32).collect();
        let mut after = before.clone();
        norm(&mut after, &weight, 1e-6);
        let mean = before.iter().map(|x| f64::from(*x).powi(2)).sum::<f64>() / 37.0;
        for ((after, before), weight) in after.iter().zip(&before).zip(&weight) {
            let expected = f64::from(*before) / (mean + 1e-6).sqrt() * f64::from(*weight);
            assert!((f64::from(*after) - expected).abs() < 1e-5, "{after} for {expected}");
        }
    }
}
