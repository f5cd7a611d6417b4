//! What is measured: a model, ready to take requests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use redstart_engine::cpu::threads::default_threads;
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::synthetic::SyntheticModel;

use crate::commands::{GpuArgs, memory};
use crate::model::{
    BackendChoice, KvCacheType, LoadedBackend, ModelSource, OpenModel, RunOptions, SYNTHETIC_SEED,
};

/// Which model, and what computes it.
#[derive(Args, Clone)]
pub(super) struct TargetArgs {
    /// A Hugging Face model directory. Default: the small model inside this program
    #[arg(long, value_name = "DIR", conflicts_with = "synthetic")]
    model: Option<PathBuf>,

    /// Random weights in the shapes of Qwen2.5-Coder of this size: 0.5b, 1.5b, 3b or 7b. Nothing is
    /// downloaded; the speed is real, the text means nothing
    #[arg(long, value_name = "SIZE")]
    synthetic: Option<SyntheticModel>,

    /// What computes
    #[arg(long, value_enum, default_value_t = BackendChoice::Cpu)]
    backend: BackendChoice,

    #[command(flatten)]
    gpu: GpuArgs,

    /// How keys and values are kept in the KV cache
    #[arg(long, value_name = "TYPE", value_enum, default_value_t)]
    kv_cache_type: KvCacheType,

    /// Worker threads on the processor. Default: the physical cores, at most eight
    #[arg(long, value_name = "N", value_parser = crate::commands::thread_count)]
    threads: Option<usize>,
}

impl TargetArgs {
    /// Said of the figures where the weights are not a model's.
    pub(super) fn weights_note(&self) -> Option<&'static str> {
        self.synthetic.map(|_| "random, speed only")
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(default_threads)
    }

    /// Opens the model.
    pub(super) fn open(&self) -> anyhow::Result<OpenModel> {
        let source = match self.synthetic {
            Some(model) => ModelSource::Synthetic(model),
            None => ModelSource::from_option(self.model.clone()),
        };
        OpenModel::open(&source).map_err(anyhow::Error::msg)
    }

    /// Gives an open model to its backend.
    pub(super) fn load(&self, model: OpenModel) -> anyhow::Result<Target> {
        let options = RunOptions {
            backend: self.backend,
            threads: self.threads,
            kv: self.kv_cache_type,
            gpu: self.gpu.options(),
            // The measurements decide, once the model is there.
            kv_cache: Some(KvCacheSize::Blocks(0)),
            ..RunOptions::default()
        };
        let loaded = model.load(&options).map_err(anyhow::Error::msg)?;
        Ok(Target { load_peak_mb: memory::peak_mb(), loaded })
    }

    /// Writes the synthetic model as a directory. Returns a sentence for the user.
    pub(super) fn write(&self, directory: &Path) -> anyhow::Result<String> {
        let model = self.synthetic.context("--write needs --synthetic: only random weights are written")?;
        model.write(SYNTHETIC_SEED, directory)?;
        let size = std::fs::metadata(directory.join("model.safetensors"))?.len();
        Ok(format!(
            "Wrote config.json and model.safetensors ({} MB) of a synthetic {} model to {}. Random weights, \
             speed only; measure it with: redstart bench --model {}",
            size >> 20,
            model.name(),
            directory.display(),
            directory.display()
        ))
    }
}

/// A loaded model before its engine starts.
pub(super) struct Target {
    /// The most memory that was resident until the weights were loaded, where the system tells.
    pub(super) load_peak_mb: Option<f64>,
    loaded: LoadedBackend,
}

impl Target {
    pub(super) fn name(&self) -> &str {
        &self.loaded.info.name
    }

    /// The backend's own description.
    pub(super) fn backend(&self) -> String {
        self.loaded.placed.backend.name()
    }

    /// Whether it is on a GPU.
    pub(super) fn on_gpu(&self) -> bool {
        self.loaded.placed.on_gpu
    }

    /// Rows of one step at most, as serving would have it.
    pub(super) fn max_batch_tokens(&self) -> usize {
        self.loaded.placed.max_batch_tokens.unwrap_or(EngineOptions::default().max_batch_tokens)
    }

    pub(super) fn load_time(&self) -> Duration {
        self.loaded.placed.load_time
    }

    /// Bytes of the checkpoint; `None` where random weights were made up on a GPU.
    pub(super) fn checkpoint_bytes(&self) -> Option<usize> {
        self.loaded.placed.checkpoint_bytes
    }

    /// Bytes of weights that decoding a token reads.
    pub(super) fn weight_bytes(&self) -> usize {
        self.loaded.placed.backend.weight_bytes()
    }

    /// Bytes of the KV cache that hold one block of tokens.
    pub(super) fn kv_block_bytes(&self) -> usize {
        self.loaded.placed.backend.kv_block_bytes()
    }

    pub(super) fn start(self, options: EngineOptions) -> anyhow::Result<Engine> {
        let (engine, _) = self.loaded.start(options).map_err(anyhow::Error::msg)?;
        Ok(engine)
    }
}
