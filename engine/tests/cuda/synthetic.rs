//! Weights that are made up on the device: laid out as loaded ones, and good to compute with.

use redstart_engine::backend::Backend;
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::config::ModelConfig;
use redstart_engine::cuda::{CudaBackend, CudaOptions, DEFAULT_TOKENS, HeadFormat, WeightFormat};
use redstart_engine::step_plan::BLOCK_SIZE;
use redstart_kernels_shim::{HostDevice, Options};

use crate::options;
use crate::reference::{CHECKPOINTS, Harness, Sequence, argmax, oracle};
use crate::steps::draw_ahead;

fn config(checkpoint: &str) -> ModelConfig {
    Checkpoint::open(&oracle(checkpoint)).unwrap().config().clone()
}

/// A device with room for the model and for fewer blocks than the pool may have: their number then says how
/// much memory the model takes.
fn small_device() -> Box<HostDevice> {
    let mut options = Options::default();
    options.properties.memory_bytes = 48 << 20;
    Box::new(HostDevice::new(options))
}

#[test]
fn they_take_what_a_loaded_model_takes() {
    let head = CudaOptions { head: HeadFormat::Int8, ..options() };
    for (checkpoint, options) in
        CHECKPOINTS.map(|name| (name, options())).into_iter().chain([("tied-hd64", head)])
    {
        let opened = Checkpoint::open(&oracle(checkpoint)).unwrap();
        let mut loaded = CudaBackend::new(&opened, small_device(), options.clone()).unwrap();
        let mut made = CudaBackend::synthetic(opened.config(), 1, small_device(), options).unwrap();
        assert_eq!(made.weight_bytes(), loaded.weight_bytes(), "{checkpoint}");
        let blocks = loaded.default_kv_blocks().unwrap();
        assert!(
            blocks < DEFAULT_TOKENS / BLOCK_SIZE,
            "{checkpoint}: {blocks} blocks say nothing of the memory"
        );
        assert_eq!(made.default_kv_blocks().unwrap(), blocks, "{checkpoint}");
    }
}

/// The logits after a prompt, and tokens that are drawn after it.
fn run(config: &ModelConfig, seed: u64, options: &CudaOptions) -> (Vec<f32>, Vec<u32>) {
    let device = Box::new(HostDevice::new(Options::default()));
    let mut harness = Harness::new(CudaBackend::synthetic(config, seed, device, options.clone()).unwrap());
    let mut sequence = Sequence::default();
    let prompt: Vec<u32> = (0..40).map(|i| i * 23 % config.vocab_size as u32).collect();
    let logits = harness.step(&mut [(&mut sequence, &prompt)], false).remove(0);
    let first = argmax(&logits);
    let drawn = draw_ahead(&mut harness, &mut sequence, first, 5);
    (logits, drawn)
}

#[test]
fn the_numbers_stay_the_size_of_a_trained_models() {
    let fp8 = CudaOptions { weights: WeightFormat::Fp8, ..options() };
    let head = CudaOptions { head: HeadFormat::Int8, ..options() };
    for (checkpoint, options) in
        [("tied-hd64", options()), ("untied-hd128", head), ("qwen3-bf16", options()), ("qwen3-bf16", fp8)]
    {
        let config = config(checkpoint);
        let (logits, _) = run(&config, 1, &options);
        let count = logits.len() as f32;
        let mean = logits.iter().sum::<f32>() / count;
        let spread = (logits.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / count).sqrt();
        assert!((1.0..4.0).contains(&spread) && mean.abs() < 1.0, "{checkpoint}: {mean} +- {spread}");
    }
}

#[test]
fn a_seed_is_a_model() {
    let config = config("tied-hd64");
    let [first, again, other] = [1, 1, 2].map(|seed| run(&config, seed, &options()));
    assert!(first == again && first.0 != other.0);
}
