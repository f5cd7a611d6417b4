//! Which backend serves a model: a GPU where there is one that can, else the processor.

use std::time::{Duration, Instant};

use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::config::ModelConfig;
use redstart_engine::cpu::{CpuBackend, CpuOptions, KvFormat};
use redstart_engine::cuda::{self, CudaBackend, CudaOptions, HeadFormat, Urgency, WeightFormat};
use redstart_engine::engine::KvCacheSize;
use redstart_engine::synthetic::SyntheticModel;

use crate::model::{
    BackendChoice, GpuOptions, HeadType, KvCacheType, ModelSource, RunOptions, SYNTHETIC_SEED, WeightType,
};

/// Memory of the KV cache on the processor, unless another is asked for.
const CPU_KV_CACHE: KvCacheSize = KvCacheSize::Bytes(512 << 20);

/// Rows of a step on a GPU: enough to be as fast as it gets, few enough that a keystroke does not wait long for
/// one of a review's.
const GPU_STEP_ROWS: usize = 512;

/// Weights that no backend has yet.
#[expect(
    clippy::large_enum_variant,
    reason = "there is one at a time, for as long as a model is being loaded"
)]
pub enum Weights {
    /// A checkpoint's.
    Checkpoint(Checkpoint),
    /// Random ones in the shapes of a real model, made up where they are wanted: a GPU makes its own, without a
    /// checkpoint that would take gigabytes of memory here.
    Synthetic(SyntheticModel),
}

impl Weights {
    /// Their shapes.
    pub fn config(&self) -> ModelConfig {
        match self {
            Self::Checkpoint(checkpoint) => checkpoint.config().clone(),
            Self::Synthetic(model) => model.config(),
        }
    }
}

/// A backend with a model's weights.
pub struct Placed {
    /// The backend.
    pub backend: Box<dyn Backend>,
    /// The KV cache that it is given unless another size is asked for.
    pub kv_cache: KvCacheSize,
    /// Rows of one step at most; `None`: the engine's default.
    pub max_batch_tokens: Option<usize>,
    /// Whether it is on a GPU.
    pub on_gpu: bool,
    /// From a checkpoint, or from nothing where there is none, to the backend.
    pub load_time: Duration,
    /// Bytes of the checkpoint; `None` where weights were made up on a GPU.
    pub checkpoint_bytes: Option<usize>,
    /// What the user should know: why a GPU that is there does not serve.
    pub notice: Option<String>,
}

/// Gives a model's weights to the backend that was asked for, or the best one.
///
/// # Errors
/// A message for the user: what was wrong and what to do.
pub fn place(weights: &Weights, source: &ModelSource, options: &RunOptions) -> Result<Placed, String> {
    match options.backend {
        BackendChoice::Cpu => on_processor(weights, options),
        BackendChoice::Cuda => on_gpu(weights, options),
        BackendChoice::Auto if !wants_gpu(source, options) => on_processor(weights, options),
        BackendChoice::Auto => match (cuda::probe(), options.kv) {
            // A machine without a GPU is nothing to speak of.
            (Err(_), KvCacheType::F16) => on_processor(weights, options),
            (Err(why), _) => Err(format!("--kv-cache-type fp8 is for a GPU: {why}")),
            (Ok(_), _) => on_gpu(weights, options).or_else(|why| {
                let placed = on_processor(weights, options)?;
                let notice = format!("the GPU is not used, the processor serves: {why}");
                Ok(Placed { notice: Some(notice), ..placed })
            }),
        },
    }
}

/// Whether a GPU would serve this model, if there is one. The embedded model answers sooner on the processor.
fn wants_gpu(source: &ModelSource, options: &RunOptions) -> bool {
    !matches!(source, ModelSource::Embedded) && !options.exact && options.kv != KvCacheType::Int8
}

fn on_processor(weights: &Weights, options: &RunOptions) -> Result<Placed, String> {
    let kv = match options.kv {
        KvCacheType::F16 => KvFormat::F16,
        KvCacheType::Int8 => KvFormat::Int8,
        KvCacheType::Fp8 => return Err("--kv-cache-type fp8 is for a GPU; on the processor take int8".into()),
    };
    let cpu = CpuOptions { threads: options.threads, exact: options.exact, kv, ..CpuOptions::default() };
    let made_up;
    let checkpoint = match weights {
        Weights::Checkpoint(checkpoint) => checkpoint,
        Weights::Synthetic(model) => {
            made_up = Checkpoint::synthetic(*model, SYNTHETIC_SEED).map_err(|error| error.to_string())?;
            &made_up
        }
    };
    let started = Instant::now();
    let backend = CpuBackend::new(checkpoint, cpu).map_err(|error| error.to_string())?;
    Ok(Placed {
        backend: Box::new(backend),
        kv_cache: CPU_KV_CACHE,
        max_batch_tokens: None,
        on_gpu: false,
        load_time: started.elapsed(),
        checkpoint_bytes: Some(checkpoint.bytes()),
        notice: None,
    })
}

fn on_gpu(weights: &Weights, options: &RunOptions) -> Result<Placed, String> {
    if options.kv == KvCacheType::Int8 {
        return Err("--kv-cache-type int8 is for the processor; on a GPU take fp8".into());
    }
    if options.exact {
        return Err("--exact is for the processor; on a GPU activations are always 16-bit".into());
    }
    let started = Instant::now();
    let urgency = if options.gpu.yields { Urgency::Yields } else { Urgency::First };
    let device = cuda::open(urgency).map_err(|error| error.to_string())?;
    let mut backend = match weights {
        Weights::Checkpoint(checkpoint) => CudaBackend::new(checkpoint, device, cuda_options(options)),
        Weights::Synthetic(model) => {
            CudaBackend::synthetic(&model.config(), SYNTHETIC_SEED, device, cuda_options(options))
        }
    }
    .map_err(|error| error.to_string())?;
    let load_time = started.elapsed();
    // A pool of a size that was asked for is refused by the engine if it does not fit.
    let kv_cache = match options.kv_cache {
        Some(wanted) => wanted,
        None => KvCacheSize::Blocks(backend.default_kv_blocks().map_err(|error| error.to_string())?),
    };
    Ok(Placed {
        backend: Box::new(backend),
        kv_cache,
        max_batch_tokens: Some(GPU_STEP_ROWS),
        on_gpu: true,
        load_time,
        checkpoint_bytes: match weights {
            Weights::Checkpoint(checkpoint) => Some(checkpoint.bytes()),
            Weights::Synthetic(_) => None,
        },
        notice: None,
    })
}

fn cuda_options(options: &RunOptions) -> CudaOptions {
    let GpuOptions { memory_utilization, head, weights, reserved_bytes, yields: _ } = options.gpu;
    CudaOptions {
        head: match head {
            HeadType::F16 => HeadFormat::F16,
            HeadType::Int8 => HeadFormat::Int8,
        },
        weights: match weights {
            WeightType::Model => WeightFormat::Checkpoint,
            WeightType::Fp8 => WeightFormat::Fp8,
        },
        kv: match options.kv {
            KvCacheType::Fp8 => cuda::KvFormat::F8,
            KvCacheType::F16 | KvCacheType::Int8 => cuda::KvFormat::F16,
        },
        max_model_len: options.engine.max_model_len,
        memory_utilization,
        reserved_bytes,
        max_step_rows: options.engine.max_batch_tokens.max(GPU_STEP_ROWS),
    }
}
