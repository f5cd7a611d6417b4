//! How a CUDA backend keeps a model, and how much of the card it may take.

pub use redstart_kernels::attention::KvFormat;

/// How the output head is kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum HeadFormat {
    /// Half precision.
    #[default]
    F16,
    /// Eight-bit integers with a scale for every 128 weights: half the memory and half the time. Where the
    /// head is the embedding table too, that is read from the same integers.
    Int8,
}

/// How the layers' weights are kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WeightFormat {
    /// As the checkpoint has them: int4, or 16-bit weights as fp16.
    #[default]
    Checkpoint,
    /// 16-bit weights rounded to eight-bit floats (e4m3) with a scale for every output.
    Fp8,
}

/// How a [`CudaBackend`](super::CudaBackend) is set up.
#[derive(Clone, Debug)]
pub struct CudaOptions {
    /// The output head.
    pub head: HeadFormat,
    /// The layers.
    pub weights: WeightFormat,
    /// Keys and values.
    pub kv: KvFormat,
    /// Longest sequence in tokens; the KV pool must hold one. `None`: what the model allows, at most
    /// [`DEFAULT_TOKENS`](super::DEFAULT_TOKENS), and less where the pool is smaller.
    pub max_model_len: Option<usize>,
    /// Share of the card's memory that may be in use, that of other programs included.
    pub memory_utilization: f32,
    /// Bytes of that to leave alone, for a second model.
    pub reserved_bytes: u64,
    /// Rows of one step, at most. Working memory grows with it.
    pub max_step_rows: usize,
}

impl Default for CudaOptions {
    /// Leaves room for a desktop, a browser and an editor on a card that also shows the screen.
    fn default() -> Self {
        Self {
            head: HeadFormat::default(),
            weights: WeightFormat::default(),
            kv: KvFormat::F16,
            max_model_len: None,
            memory_utilization: 0.85,
            reserved_bytes: 0,
            max_step_rows: 2048,
        }
    }
}
