//! Device memory that a step works in. Every step uses the same; nothing in it outlives a step but what was
//! drawn.

use redstart_kernels::attention::KvFormat;
use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::linear::{self, STREAM_ROWS, ScratchSize};
use redstart_kernels::sampling;

use super::buckets::ShapeRules;
use super::model::Model;
use super::step::Layout;
use crate::config::ModelConfig;
use crate::step_plan::BLOCK_SIZE;

/// Rows whose logits are computed at a time. A row of Qwen2.5 is 0.6 MB.
pub(super) const HEAD_ROWS: u32 = 32;

/// The buffers. `rows` stands for the most rows of a step.
pub(super) struct Scratch {
    /// What the host uploads for a step; see [`step`](super::step).
    pub(super) region: Buffer,
    /// The residual stream, fp32 `[rows][hidden]`.
    pub(super) residual: Buffer,
    /// fp16 `[rows][hidden]`: inputs of the layers that read the residual stream.
    pub(super) normed: Buffer,
    /// fp32 `[rows][query, key and value heads]`; only where heads are normed.
    pub(super) qkv: Option<Buffer>,
    /// fp16 `[rows][query heads]`.
    pub(super) queries: Buffer,
    /// fp16 `[rows][query heads]`.
    pub(super) attended: Buffer,
    /// fp16 `[rows][intermediate]`.
    pub(super) gated: Buffer,
    /// fp32 `[HEAD_ROWS][vocabulary]`.
    pub(super) logits: Buffer,
    /// What was drawn, a record for each row that logits are wanted of; the next step reads it.
    pub(super) drawn: Buffer,
    pub(super) attention: Buffer,
    pub(super) linear: linear::Scratch,
    pub(super) sampling: Buffer,
}

impl Scratch {
    /// Takes what steps of up to `rows` rows need.
    ///
    /// # Errors
    /// When there is not enough memory.
    pub(super) fn allocate(
        device: &mut dyn Device,
        config: &ModelConfig,
        model: &Model,
        rules: &ShapeRules,
        rows: u32,
    ) -> Result<Self, DeviceError> {
        let (vocab, most) = (config.vocab_size, rows as usize);
        let products = linear_scratch(device, model, most);
        let blocks = (rules.max_model_len as usize).div_ceil(BLOCK_SIZE);
        let mut take = |bytes: usize, what: &str| device.allocate(bytes.max(16), what);
        let scratch = Self {
            region: take(Layout::most_bytes(rows, blocks, sampling::mask_words(vocab)), "the steps' arrays")?,
            residual: take(4 * most * config.hidden_size, "the residual stream")?,
            normed: take(2 * most * config.hidden_size, "activations")?,
            qkv: if config.qk_norm() {
                Some(take(4 * most * (config.q_width() + 2 * config.kv_width()), "activations")?)
            } else {
                None
            },
            queries: take(2 * most * config.q_width(), "activations")?,
            attended: take(2 * most * config.q_width(), "activations")?,
            gated: take(2 * most * config.intermediate_size, "activations")?,
            logits: take(4 * HEAD_ROWS as usize * vocab, "logits")?,
            drawn: take(most * size_of::<sampling::Drawn>(), "drawn tokens")?,
            attention: take(rules.attention_scratch(rows), "attention")?,
            linear: linear::Scratch {
                partials: take(products.partials, "matrix products")?,
                counters: take(products.counters, "matrix products")?,
            },
            sampling: take(sampling::scratch_bytes(HEAD_ROWS as usize, vocab), "sampling")?,
        };
        device.fill(scratch.linear.counters, 0)?;
        device.fill(scratch.sampling, 0)?;
        Ok(scratch)
    }
}

/// What products of up to `rows` rows need.
fn linear_scratch(device: &dyn Device, model: &Model, rows: usize) -> ScratchSize {
    let mut specs: Vec<_> = model.specs().collect();
    specs.sort_unstable_by_key(|spec| (spec.input, spec.output, spec.packed_bytes()));
    specs.dedup();
    let properties = device.properties();
    // The cut of a product changes with every row up to the first kernel's limit, and then in steps of 64.
    let counts = (1..=STREAM_ROWS)
        .chain((STREAM_ROWS + 1..=rows).filter(|rows| rows % 64 == 1))
        .chain([STREAM_ROWS + 1, rows]);
    let sizes =
        counts.flat_map(|rows| specs.iter().map(move |spec| linear::scratch_size(spec, rows, properties)));
    sizes.fold(ScratchSize::default(), ScratchSize::max)
}

/// Keys and values of all layers.
pub(super) struct KvPool {
    pub(super) blocks: usize,
    /// Keys and values of each layer, `[block][kv_head][16][head_dim]`.
    pub(super) layers: Vec<(Buffer, Buffer)>,
}

impl KvPool {
    /// Bytes of one block, keys and values of all layers.
    pub(super) fn block_bytes(config: &ModelConfig, format: KvFormat) -> usize {
        2 * config.num_layers * Self::layer_block_bytes(config, format)
    }

    fn layer_block_bytes(config: &ModelConfig, format: KvFormat) -> usize {
        redstart_kernels::attention::kv_block_bytes(format, config.num_kv_heads, config.head_dim)
    }

    /// Takes the memory of `blocks` blocks. What is in it does not matter.
    ///
    /// # Errors
    /// When there is not enough.
    pub(super) fn allocate(
        device: &mut dyn Device,
        config: &ModelConfig,
        format: KvFormat,
        blocks: usize,
    ) -> Result<Self, DeviceError> {
        let all = device.allocate(blocks * Self::block_bytes(config, format), "the KV cache")?;
        let bytes = blocks * Self::layer_block_bytes(config, format);
        let part = |i: usize| all.slice(i * bytes, bytes);
        Ok(Self { blocks, layers: (0..config.num_layers).map(|i| (part(2 * i), part(2 * i + 1))).collect() })
    }
}
