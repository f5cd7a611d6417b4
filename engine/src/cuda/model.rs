//! A model's weights in device memory, and how they are put together, wherever they come from.
//!
//! Matrices that read the same input are one: queries, keys and values; gate and up.

use redstart_kernels::device::{Buffer, Device, DeviceError};
use redstart_kernels::linear::{Format, Linear, LinearSpec, Pairing};

use super::error::CudaError;
use super::options::{CudaOptions, HeadFormat, WeightFormat};
use crate::config::ModelConfig;

/// All weights of a model.
pub(super) struct Model {
    pub(super) embedding: Embedding,
    pub(super) layers: Vec<Layer>,
    /// fp32 `[hidden]`, like all norms.
    pub(super) final_norm: Buffer,
    pub(super) head: Linear,
    /// fp32 `[position][head_dim / 2][cosine, sine]`.
    pub(super) rotary: Buffer,
}

/// Where tokens become vectors.
pub(super) enum Embedding {
    /// fp16 `[vocabulary][hidden]`.
    Table(Buffer),
    /// The output head, in the format it has.
    Head,
}

/// One layer of the transformer.
pub(super) struct Layer {
    pub(super) attention_norm: Buffer,
    pub(super) qkv: Linear,
    /// fp32, one for each of its outputs.
    pub(super) qkv_bias: Option<Buffer>,
    /// Norms of query and of key heads, `[head_dim]`.
    pub(super) qk_norms: Option<(Buffer, Buffer)>,
    pub(super) o: Linear,
    pub(super) feed_forward_norm: Buffer,
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
}

/// Where weights come from: a checkpoint, or a random number generator.
pub(super) trait WeightSource {
    /// Where they go.
    fn device(&mut self) -> &mut dyn Device;

    /// A norm's weights as fp32.
    fn vector(&mut self, name: &str, length: usize) -> Result<Buffer, CudaError>;

    /// The biases of matrices `(name, outputs)`, one after the other, as fp32.
    fn biases(&mut self, parts: &[(String, usize)]) -> Result<Buffer, CudaError>;

    /// Matrices `(name, outputs)` of the same input, side by side.
    fn linear(
        &mut self,
        parts: &[(String, usize)],
        input: usize,
        pairing: Pairing,
    ) -> Result<Linear, CudaError>;

    /// The embedding's table as fp16.
    fn table(&mut self) -> Result<Buffer, CudaError>;

    /// The output head: the embedding's table where they are tied.
    fn head(&mut self) -> Result<Linear, CudaError>;
}

impl Model {
    /// Takes all of a model's weights from `source`, with a rotary table for `positions` positions.
    ///
    /// # Errors
    /// When a tensor is missing or damaged, an option does not go with it, or memory runs out.
    pub(super) fn assemble(
        config: &ModelConfig,
        source: &mut impl WeightSource,
        positions: usize,
    ) -> Result<Self, CudaError> {
        let layers = (0..config.num_layers)
            .map(|index| Layer::assemble(config, source, index))
            .collect::<Result<Vec<_>, CudaError>>()?;
        let final_norm = source.vector("model.norm.weight", config.hidden_size)?;
        let embedding =
            if config.tie_word_embeddings { Embedding::Head } else { Embedding::Table(source.table()?) };
        let head = source.head()?;
        let rotary = upload_floats(source.device(), &rotary_table(config, positions), "the rotary table")?;
        Ok(Self { embedding, layers, final_norm, head, rotary })
    }

    /// All different matrices' shapes, each layer's and the head's.
    pub(super) fn specs(&self) -> impl Iterator<Item = LinearSpec> {
        let layers = self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.o, &layer.gate_up, &layer.down]);
        layers.chain([&self.head]).map(|linear| linear.spec)
    }
}

impl Layer {
    fn assemble(
        config: &ModelConfig,
        source: &mut impl WeightSource,
        index: usize,
    ) -> Result<Self, CudaError> {
        let (hidden, inner, head_dim) = (config.hidden_size, config.intermediate_size, config.head_dim);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let name = |part: &str| format!("model.layers.{index}.{part}");
        let qkv = [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)]
            .map(|(part, output)| (name(&format!("self_attn.{part}")), output));
        // Where heads are normed first, the rotation is a kernel of its own and wants them in order.
        let pairing = if config.qk_norm() {
            Pairing::Plain
        } else {
            Pairing::Qkv { heads: config.num_heads, kv_heads: config.num_kv_heads, head_dim }
        };
        let qk_norms = if config.qk_norm() {
            let [q, k] = ["q_norm", "k_norm"]
                .map(|norm| source.vector(&name(&format!("self_attn.{norm}.weight")), head_dim));
            Some((q?, k?))
        } else {
            None
        };
        Ok(Self {
            attention_norm: source.vector(&name("input_layernorm.weight"), hidden)?,
            qkv_bias: if config.qkv_bias() { Some(source.biases(&qkv)?) } else { None },
            qkv: source.linear(&qkv, hidden, pairing)?,
            qk_norms,
            o: source.linear(&[(name("self_attn.o_proj"), hidden)], q_width, Pairing::Plain)?,
            feed_forward_norm: source.vector(&name("post_attention_layernorm.weight"), hidden)?,
            gate_up: source.linear(
                &[(name("mlp.gate_proj"), inner), (name("mlp.up_proj"), inner)],
                hidden,
                Pairing::Gated,
            )?,
            down: source.linear(&[(name("mlp.down_proj"), hidden)], inner, Pairing::Plain)?,
        })
    }
}

/// The format of a layer's weights that are quantized in groups of this size, or are not. `model` and `name` are for
/// the error.
pub(super) fn layer_format(
    options: &CudaOptions,
    group: Option<usize>,
    name: &str,
    model: &str,
) -> Result<Format, CudaError> {
    match (options.weights, group) {
        (WeightFormat::Fp8, Some(_)) => Err(CudaError::Unsupported(format!(
            "--weights fp8 is for models with 16-bit weights, but {name} of {model} is quantized to 4 bits already"
        ))),
        (WeightFormat::Fp8, None) => Ok(Format::Fp8),
        (WeightFormat::Checkpoint, Some(group)) => Ok(Format::Int4 { group }),
        (WeightFormat::Checkpoint, None) => Ok(Format::F16),
    }
}

/// The format of an output head that is not quantized yet.
pub(super) fn head_format(options: &CudaOptions) -> Format {
    match options.head {
        HeadFormat::F16 => Format::F16,
        HeadFormat::Int8 => Format::Int8,
    }
}

/// Numbers in memory of their own.
pub(super) fn upload_floats(
    device: &mut dyn Device,
    values: &[f32],
    what: &str,
) -> Result<Buffer, DeviceError> {
    let buffer = device.allocate(size_of_val(values), what)?;
    device.upload(bytemuck::cast_slice(values), buffer)?;
    Ok(buffer)
}

/// Cosines and sines of every position, computed in float64.
fn rotary_table(config: &ModelConfig, positions: usize) -> Vec<f32> {
    let head_dim = config.head_dim as f64;
    let frequencies: Vec<f64> =
        (0..config.head_dim / 2).map(|i| config.rope_theta.powf(-2.0 * i as f64 / head_dim)).collect();
    let turn = |position: usize| {
        frequencies.iter().flat_map(move |frequency| {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            [cos as f32, sin as f32]
        })
    };
    (0..positions).flat_map(turn).collect()
}
