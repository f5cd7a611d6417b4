//! The CUDA backend, whole models, every kernel run on the host by the shim.
//!
//! - [`accuracy`]: how far its log-probabilities are from the float64 reference, in every format and through
//!   the engine.
//! - [`steps`]: recorded and unrecorded steps, running ahead, drawing, and that a shape's bits do not change.
//! - [`synthetic`]: weights made up on the device.
//! - [`memory`]: what is said when something does not fit or the device is lost.
//!
//! A step of the smallest checkpoint takes some 20 ms here, of the others 100 to 400, and a prompt of 700 tokens ten
//! seconds or more; prompts and outputs are as long as that allows.

mod accuracy;
mod memory;
#[path = "../reference/mod.rs"]
mod reference;
mod steps;
mod synthetic;

use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cuda::{CudaBackend, CudaOptions};
use redstart_engine::generator::ModelInfo;
use redstart_kernels_shim::{HostDevice, Options};
use reference::{Harness, oracle};

/// The defaults, for a context that every prompt here fits into.
fn options() -> CudaOptions {
    CudaOptions { max_model_len: Some(1024), max_step_rows: 256, ..CudaOptions::default() }
}

fn backend(checkpoint: &str, options: CudaOptions, device: Options) -> CudaBackend {
    let checkpoint = Checkpoint::open(&oracle(checkpoint)).unwrap();
    CudaBackend::new(&checkpoint, Box::new(HostDevice::new(device)), options).unwrap()
}

fn harness(checkpoint: &str, options: CudaOptions) -> Harness<CudaBackend> {
    Harness::new(backend(checkpoint, options, Options::default()))
}

fn model_info(checkpoint: &str) -> ModelInfo {
    ModelInfo {
        name: checkpoint.into(),
        description: String::new(),
        max_model_len: 1024,
        vocab_size: 0,
        tokenizer: None,
    }
}
