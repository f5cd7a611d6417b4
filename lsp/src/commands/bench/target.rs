//! What is measured: a model, ready to take requests.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use clap::{Args, ValueEnum};
use redstart_engine::backend::Backend;
use redstart_engine::cpu::threads::default_threads;
use redstart_engine::engine::{Engine, EngineOptions};
use redstart_engine::synthetic::SyntheticModel;

use crate::commands::memory;
use crate::model::{LoadedBackend, ModelSource, OpenModel, RunOptions, SYNTHETIC_SEED};

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
    #[arg(long, value_enum, default_value = "cpu")]
    backend: BackendKind,

    /// Worker threads. Default: the physical cores, at most eight
    #[arg(long, value_name = "N", value_parser = crate::commands::thread_count)]
    threads: Option<usize>,
}

#[derive(Clone, Copy, ValueEnum)]
enum BackendKind {
    /// The processor
    Cpu,
}

impl TargetArgs {
    /// Said of the figures where the weights are not a model's.
    pub(super) fn weights_note(&self) -> Option<&'static str> {
        self.synthetic.map(|_| "random, speed only")
    }

    pub(super) fn threads(&self) -> usize {
        self.threads.unwrap_or_else(default_threads)
    }

    /// Opens the model, or makes its weights up.
    pub(super) fn open(&self) -> anyhow::Result<OpenModel> {
        let source = match self.synthetic {
            Some(model) => ModelSource::Synthetic(model),
            None => ModelSource::from_option(self.model.clone()),
        };
        OpenModel::open(&source).map_err(anyhow::Error::msg)
    }

    /// Gives an open model to its backend.
    pub(super) fn load(&self, model: OpenModel) -> anyhow::Result<Target> {
        let BackendKind::Cpu = self.backend;
        let checkpoint_bytes = model.checkpoint.bytes();
        let options = RunOptions { threads: self.threads, ..RunOptions::default() };
        let loaded = model.load(&options).map_err(anyhow::Error::msg)?;
        Ok(Target { checkpoint_bytes, load_peak_mb: memory::peak_mb(), loaded })
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
    pub(super) checkpoint_bytes: usize,
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
        self.loaded.backend.name()
    }

    pub(super) fn load_time(&self) -> Duration {
        self.loaded.load_time
    }

    /// Bytes of weights that decoding a token reads.
    pub(super) fn weight_bytes(&self) -> usize {
        self.loaded.backend.weight_bytes()
    }

    /// Bytes of the KV cache that hold one block of tokens.
    pub(super) fn kv_block_bytes(&self) -> usize {
        self.loaded.backend.kv_block_bytes()
    }

    pub(super) fn start(self, options: EngineOptions) -> anyhow::Result<Engine> {
        let (engine, _) = self.loaded.start(options).map_err(anyhow::Error::msg)?;
        Ok(engine)
    }
}
