//! What is said when memory is short, a model is not supported or the device is lost.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use redstart_engine::backend::{Backend, BackendError, DeviceSteps};
use redstart_engine::checkpoint::Checkpoint;
use redstart_engine::cuda::{CudaBackend, CudaError, CudaOptions, KvFormat, WeightFormat};
use redstart_engine::engine::{Engine, EngineOptions, KvCacheSize};
use redstart_engine::step_output::StepOutput;
use redstart_engine::step_plan::{PlannedSequence, StepPlan};
use redstart_kernels::device::{Buffer, Device, DeviceError, DeviceProperties, Graph, Launch, Mark, Pinned};
use redstart_kernels_shim::{HostDevice, Options};

use crate::reference::oracle;
use crate::{backend, model_info, options};

/// A card with so many megabytes.
fn card(megabytes: u64) -> Options {
    let mut options = Options::default();
    options.properties.memory_bytes = megabytes << 20;
    options
}

fn assert_says(message: &str, words: &[&str]) {
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
}

#[test]
fn a_model_that_does_not_fit_says_what_to_do() {
    let checkpoint = Checkpoint::open(&oracle("untied-hd128")).unwrap();
    let device = Box::new(HostDevice::new(card(2)));
    let error = CudaBackend::new(&checkpoint, device, options()).err().unwrap();
    assert!(matches!(error, CudaError::OutOfMemory(_)));
    assert_says(&error.to_string(), &["not enough GPU memory", "MB wanted", "MB free", "smaller model"]);
}

#[test]
fn the_pool_takes_what_is_allowed_and_says_when_that_is_too_little() {
    // 16 KB for 16 tokens: 2 layers, 2 heads of 64, keys and values, fp16.
    let blocks = |megabytes, options| backend("qwen3-bf16", options, card(megabytes)).default_kv_blocks();
    let plenty = blocks(1024, options()).unwrap();
    assert_eq!(plenty, (64 << 10) / 16);

    let half = CudaOptions { memory_utilization: 0.5, ..options() };
    let (some, more) = (blocks(32, half.clone()).unwrap(), blocks(32, options()).unwrap());
    let a_third = (0.35 * 2048.0) as usize;
    assert!(more.abs_diff(some + a_third) <= 2, "{some} and {more}");
    let eight_bits = blocks(32, CudaOptions { kv: KvFormat::F8, ..half.clone() }).unwrap();
    assert!(eight_bits.abs_diff(2 * some) <= 2, "{some} and {eight_bits}");
    let reserved = blocks(32, CudaOptions { reserved_bytes: 2 << 20, ..half.clone() }).unwrap();
    assert_eq!(some - reserved, 128);

    let error = blocks(32, CudaOptions { max_model_len: Some(4096), memory_utilization: 0.2, ..options() });
    let message = error.unwrap_err().to_string();
    assert_says(
        &message,
        &[
            "32 MB",
            "4096 tokens",
            "0.2",
            "--max-model-len",
            "--gpu-memory-utilization",
            "fp8",
            "smaller model",
        ],
    );
    // Where no length was asked for the context follows the pool, down to what is of use.
    let open = CudaOptions { max_model_len: None, memory_utilization: 0.2, ..options() };
    let shorter = blocks(32, open.clone()).unwrap();
    assert!((128..256).contains(&shorter), "{shorter}");
    let message = blocks(32, CudaOptions { memory_utilization: 0.15, ..open }).unwrap_err().to_string();
    assert_says(&message, &["a sequence of 2048 tokens must fit"]);
}

#[test]
fn a_pool_that_does_not_fit_says_so() {
    let mut backend = backend("qwen3-bf16", options(), card(64));
    let error = backend.allocate_kv(1 << 20).unwrap_err();
    assert!(matches!(error, BackendError::OutOfMemory { .. }));
    assert_says(&error.to_string(), &["KV cache", "16384 MB wanted", "MB free", "--kv-cache-mb"]);
    backend.allocate_kv(8).unwrap();
}

#[test]
fn a_context_longer_than_the_pool_is_refused() {
    let backend = backend("qwen3-bf16", options(), card(256));
    let options = EngineOptions {
        kv_cache: KvCacheSize::Blocks(32),
        max_model_len: Some(1000),
        ..EngineOptions::default()
    };
    let error = Engine::start(Box::new(backend), model_info("qwen3-bf16"), vec![2], options).unwrap_err();
    assert_says(&error.to_string(), &["1000", "the KV cache", "512"]);
}

#[test]
fn what_the_kernels_do_not_know_is_refused() {
    let refusal = |directory: &std::path::Path, options| {
        let checkpoint = Checkpoint::open(directory).unwrap();
        let device = Box::new(HostDevice::new(card(256)));
        CudaBackend::new(&checkpoint, device, options).err().unwrap().to_string()
    };
    let fp8 = CudaOptions { weights: WeightFormat::Fp8, ..options() };
    assert_says(&refusal(&oracle("tied-hd64"), fp8), &["--weights fp8", "tied-hd64", "4 bits"]);

    // Only the configuration is looked at.
    let directory = tempfile::tempdir().unwrap();
    let config = std::fs::read_to_string(oracle("qwen3-bf16").join("config.json")).unwrap();
    std::fs::write(
        directory.path().join("config.json"),
        config.replace("\"head_dim\": 64", "\"head_dim\": 96"),
    )
    .unwrap();
    std::fs::copy(oracle("tied-hd64").join("model.safetensors"), directory.path().join("model.safetensors"))
        .unwrap();
    assert_says(&refusal(directory.path(), options()), &["heads of 96", "64 and 128", "--backend cpu"]);
}

/// A device that can be lost, as by a driver's reset: from then on every call that would touch it fails.
struct Losable {
    device: HostDevice,
    lost: Arc<AtomicBool>,
}

impl Losable {
    fn alive(&mut self) -> Result<&mut HostDevice, DeviceError> {
        if self.lost.load(Ordering::Relaxed) {
            return Err(DeviceError::Lost("Xid 79".into()));
        }
        Ok(&mut self.device)
    }
}

impl Device for Losable {
    fn properties(&self) -> &DeviceProperties {
        self.device.properties()
    }

    fn free_memory(&mut self) -> Result<u64, DeviceError> {
        self.alive()?.free_memory()
    }

    fn allocate(&mut self, bytes: usize, what: &str) -> Result<Buffer, DeviceError> {
        self.alive()?.allocate(bytes, what)
    }

    fn free(&mut self, buffer: Buffer) {
        self.device.free(buffer);
    }

    fn allocate_pinned(&mut self, bytes: usize) -> Result<Box<dyn Pinned>, DeviceError> {
        self.alive()?.allocate_pinned(bytes)
    }

    fn upload(&mut self, bytes: &[u8], to: Buffer) -> Result<(), DeviceError> {
        self.alive()?.upload(bytes, to)
    }

    fn download(&mut self, from: Buffer, bytes: &mut [u8]) -> Result<(), DeviceError> {
        self.alive()?.download(from, bytes)
    }

    fn copy_in(&mut self, from: &mut dyn Pinned, bytes: usize, to: Buffer) -> Result<(), DeviceError> {
        self.alive()?.copy_in(from, bytes, to)
    }

    fn copy_out(&mut self, from: Buffer, to: &mut dyn Pinned) -> Result<(), DeviceError> {
        self.alive()?.copy_out(from, to)
    }

    fn fill(&mut self, buffer: Buffer, byte: u8) -> Result<(), DeviceError> {
        self.alive()?.fill(buffer, byte)
    }

    fn launch(&mut self, launch: &Launch<'_>) -> Result<(), DeviceError> {
        self.alive()?.launch(launch)
    }

    fn begin_recording(&mut self) -> Result<(), DeviceError> {
        self.alive()?.begin_recording()
    }

    fn end_recording(&mut self) -> Result<Graph, DeviceError> {
        self.alive()?.end_recording()
    }

    fn replay(&mut self, graph: Graph) -> Result<(), DeviceError> {
        self.alive()?.replay(graph)
    }

    fn mark(&mut self) -> Result<Mark, DeviceError> {
        self.alive()?.mark()
    }

    fn wait(&mut self, mark: Mark, soon: bool) -> Result<(), DeviceError> {
        self.alive()?.wait(mark, soon)
    }

    fn elapsed_ms(&mut self, from: Mark, to: Mark) -> Result<f32, DeviceError> {
        self.alive()?.elapsed_ms(from, to)
    }
}

#[test]
fn a_lost_device_is_reported_as_lost() {
    let lost = Arc::new(AtomicBool::new(false));
    let device = Losable { device: HostDevice::new(card(256)), lost: Arc::clone(&lost) };
    let checkpoint = Checkpoint::open(&oracle("qwen3-bf16")).unwrap();
    let mut backend = CudaBackend::new(&checkpoint, Box::new(device), options()).unwrap();
    backend.allocate_kv(8).unwrap();
    let plan = StepPlan {
        tokens: vec![1],
        positions: vec![0],
        sequences: vec![PlannedSequence { rows: 0..1, block_table: vec![0] }],
        ..StepPlan::default()
    };
    backend.start(&plan).unwrap();
    lost.store(true, Ordering::Relaxed);
    let errors = [backend.finish(&mut StepOutput::default()), backend.start(&plan)];
    for error in errors {
        let error = error.unwrap_err();
        assert!(matches!(error, BackendError::Lost(_)), "{error}");
        assert_says(&error.to_string(), &["GPU was lost", "Xid 79"]);
    }
}
