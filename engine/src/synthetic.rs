//! Checkpoints of random weights, so that speed can be measured anywhere without a download.
//!
//! The shapes are those of Qwen2.5-Coder and of Qwen3-4B, the packing is AutoAWQ's, the numbers are noise:
//! activations and logits keep the size they have in a trained model, and the text means nothing. A
//! checkpoint is the image of one `model.safetensors`, in memory or in a directory; both hold the same bytes.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use memmap2::{Mmap, MmapMut};
use safetensors::tensor::{Dtype, Metadata, TensorInfo};
use serde_json::json;

use crate::awq::COLUMNS_PER_WORD;
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::{Architecture, ModelConfig};

/// Bytes that one thread fills at a time.
const CHUNK_BYTES: usize = 1 << 20;

/// The header is padded so that the tensors begin on a cache line.
const DATA_ALIGNMENT: usize = 64;

/// A model whose shapes are known here, named by its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SyntheticModel {
    /// Qwen2.5-Coder-0.5B.
    B0_5,
    /// Qwen2.5-Coder-1.5B.
    B1_5,
    /// Qwen2.5-Coder-3B.
    B3,
    /// Qwen2.5-Coder-7B.
    B7,
    /// Qwen3-4B.
    Qwen3B4,
    /// Qwen3-4B with plain fp16 weights.
    Qwen3B4Plain,
}

impl SyntheticModel {
    /// All of them, those of a family together and the smallest first.
    pub const ALL: [Self; 6] =
        [Self::B0_5, Self::B1_5, Self::B3, Self::B7, Self::Qwen3B4, Self::Qwen3B4Plain];

    /// `0.5b`, `1.5b`, `3b`, `7b`, `qwen3-4b` or `qwen3-4b-fp16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::B0_5 => "0.5b",
            Self::B1_5 => "1.5b",
            Self::B3 => "3b",
            Self::B7 => "7b",
            Self::Qwen3B4 => "qwen3-4b",
            Self::Qwen3B4Plain => "qwen3-4b-fp16",
        }
    }

    /// Its shapes.
    pub fn config(self) -> ModelConfig {
        let (hidden_size, num_layers, [num_heads, num_kv_heads], head_dim, intermediate_size, vocab_size) =
            match self {
                Self::B0_5 => (896, 24, [14, 2], 64, 4864, 151_936),
                Self::B1_5 => (1536, 28, [12, 2], 128, 8960, 151_936),
                Self::B3 => (2048, 36, [16, 2], 128, 11_008, 151_936),
                Self::B7 => (3584, 28, [28, 4], 128, 18_944, 152_064),
                Self::Qwen3B4 | Self::Qwen3B4Plain => (2560, 36, [32, 8], 128, 9728, 151_936),
            };
        let is_qwen3 = matches!(self, Self::Qwen3B4 | Self::Qwen3B4Plain);
        ModelConfig {
            architecture: if is_qwen3 { Architecture::Qwen3 } else { Architecture::Qwen2 },
            hidden_size,
            num_layers,
            num_heads,
            num_kv_heads,
            head_dim,
            intermediate_size,
            vocab_size,
            tie_word_embeddings: self != Self::B7,
            rope_theta: 1e6,
            rms_norm_eps: 1e-6,
            max_position_embeddings: if is_qwen3 { 40_960 } else { 32_768 },
            eos_token_ids: vec![151_643, 151_645],
            awq_group_size: (self != Self::Qwen3B4Plain).then_some(128),
        }
    }

    /// Writes the checkpoint that [`Checkpoint::synthetic`] makes as a Hugging Face directory:
    /// `config.json` and `model.safetensors`, no tokenizer. The directory is made if need be.
    ///
    /// # Errors
    /// When one of the files is already there or cannot be written, or memory is short.
    pub fn write(self, seed: u64, directory: &Path) -> Result<(), CheckpointError> {
        write(&self.config(), seed, directory)
    }
}

impl FromStr for SyntheticModel {
    type Err = UnknownSize;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let matches = |model: &Self| model.name().eq_ignore_ascii_case(name);
        Self::ALL.into_iter().find(matches).ok_or_else(|| UnknownSize(name.to_owned()))
    }
}

/// No [`SyntheticModel`] has this name.
#[derive(Debug, thiserror::Error)]
#[error(
    "there are no shapes for a model of size '{0}'; known sizes: 0.5b, 1.5b, 3b, 7b, qwen3-4b, qwen3-4b-fp16"
)]
pub struct UnknownSize(String);

impl Checkpoint {
    /// A checkpoint in memory with the shapes of `model` and random weights, the same for the same seed.
    ///
    /// # Errors
    /// When the system does not give the memory.
    pub fn synthetic(model: SyntheticModel, seed: u64) -> Result<Self, CheckpointError> {
        let config = model.config();
        let image = generate(&config, seed)?;
        Self::from_memory(&format!("synthetic {}", model.name()), config, image)
    }
}

fn write(config: &ModelConfig, seed: u64, directory: &Path) -> Result<(), CheckpointError> {
    let image = generate(config, seed)?;
    let unwritable = |path: &Path, detail| CheckpointError::Unwritable { path: path.to_owned(), detail };
    std::fs::create_dir_all(directory).map_err(|detail| unwritable(directory, detail))?;
    let config_json = config_json(config);
    for (name, bytes) in [("config.json", config_json.as_bytes()), ("model.safetensors", &image)] {
        let path = directory.join(name);
        // Never over a file that is there: it may be a model that took an hour to download.
        let written = File::create_new(&path).and_then(|mut file| file.write_all(bytes));
        written.map_err(|detail| unwritable(&path, detail))?;
    }
    Ok(())
}

fn config_json(config: &ModelConfig) -> String {
    let quantization = config.awq_group_size.map(|group_size| {
        json!({
            "quant_method": "awq", "bits": 4, "group_size": group_size, "zero_point": true,
            "version": "gemm", "modules_to_not_convert": null,
        })
    });
    let (class, model_type) = match config.architecture {
        Architecture::Qwen2 => ("Qwen2ForCausalLM", "qwen2"),
        Architecture::Qwen3 => ("Qwen3ForCausalLM", "qwen3"),
    };
    let fields = json!({
        "architectures": [class],
        "model_type": model_type,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.intermediate_size,
        "vocab_size": config.vocab_size,
        "tie_word_embeddings": config.tie_word_embeddings,
        "rope_theta": config.rope_theta,
        // Through its text: as a double it would be 9.99999997e-7.
        "rms_norm_eps": config.rms_norm_eps.to_string().parse::<f64>().unwrap_or_default(),
        "max_position_embeddings": config.max_position_embeddings,
        "eos_token_id": config.eos_token_ids,
        "torch_dtype": "float16",
        "quantization_config": quantization,
    });
    format!("{fields:#}\n")
}

/// A tensor of the image.
struct Planned {
    name: String,
    dtype: Dtype,
    shape: Vec<usize>,
    values: Values,
}

impl Planned {
    fn bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// Random values as a pattern of eight bytes: random bits where `random` has ones, added to `base`.
///
/// Matrices are scaled by the root of their input width, so that every layer's output is of the size of
/// its input, and the head so that logits spread over a few units.
#[derive(Clone, Copy)]
pub(crate) struct Values {
    random: u64,
    base: u64,
}

impl Values {
    /// Int4 weights, uniform in `0..=15`.
    pub(crate) const QUANTIZED: Self = Self { random: u64::MAX, base: 0 };
    /// Zero points 7 and 8, so that the weights' mean is zero.
    pub(crate) const ZERO_POINTS: Self = Self { random: 0x1111_1111_1111_1111, base: 0x7777_7777_7777_7777 };
    /// Ones in fp16.
    const ONES: Self = Self { random: 0, base: 0x3c00_3c00_3c00_3c00 };

    /// fp16 weights of a layer's matrix.
    pub(crate) fn weights(input: usize) -> Self {
        Self::signed(1.0 / (input as f64).sqrt())
    }

    /// fp16 scales of a layer's quantized matrix.
    pub(crate) fn scales(input: usize) -> Self {
        // Of `q - z` with q uniform in 0..=15 and z 7 or 8.
        let quantized_rms = 21.5f64.sqrt();
        Self::positive(1.0 / (input as f64).sqrt() / quantized_rms)
    }

    /// fp16 weights of the head and of the embedding.
    pub(crate) fn head(hidden: usize) -> Self {
        Self::signed(2.0 / (hidden as f64).sqrt())
    }

    /// fp16 biases.
    pub(crate) fn biases() -> Self {
        Self::signed(0.02)
    }

    /// fp16 of random mantissa within one power of two, the one whose root mean square is nearest `rms`.
    fn positive(rms: f64) -> Self {
        // Uniform in 1..2, a number's mean square is 7/3.
        let exponent = (rms / (7.0f64 / 3.0).sqrt()).log2().round();
        let field = (exponent + 15.0).clamp(1.0, 30.0) as u64;
        Self { random: 0x03ff_03ff_03ff_03ff, base: (field << 10) * 0x0001_0001_0001_0001 }
    }

    /// As [`positive`](Self::positive), with a random sign.
    fn signed(rms: f64) -> Self {
        let positive = Self::positive(rms);
        Self { random: positive.random | 0x8000_8000_8000_8000, ..positive }
    }

    /// Fills `bytes` with values, the same for the same seed.
    pub(crate) fn fill(self, seed: u64, bytes: &mut [u8]) {
        let mut random = fastrand::Rng::with_seed(seed);
        let mut next = || ((random.u64(..) & self.random) + self.base).to_le_bytes();
        let (words, rest) = bytes.as_chunks_mut::<8>();
        for word in words {
            *word = next();
        }
        rest.copy_from_slice(&next()[..rest.len()]);
    }
}

/// The tensors of a model in the order of the forward pass.
fn plan(config: &ModelConfig) -> Vec<Planned> {
    let (hidden, inner) = (config.hidden_size, config.intermediate_size);
    let (q_width, kv_width) = (config.q_width(), config.kv_width());
    let mut tensors = Vec::new();
    let mut half = |name: String, shape: &[usize], values| {
        tensors.push(Planned { name, dtype: Dtype::F16, shape: shape.into(), values });
    };
    let head = Values::head(hidden);
    half("model.embed_tokens.weight".into(), &[config.vocab_size, hidden], head);
    for layer in 0..config.num_layers {
        let prefix = format!("model.layers.{layer}");
        half(format!("{prefix}.input_layernorm.weight"), &[hidden], Values::ONES);
        if config.qkv_bias() {
            for (name, output) in [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)] {
                half(format!("{prefix}.self_attn.{name}.bias"), &[output], Values::biases());
            }
        }
        if config.qk_norm() {
            for name in ["q_norm", "k_norm"] {
                half(format!("{prefix}.self_attn.{name}.weight"), &[config.head_dim], Values::ONES);
            }
        }
        half(format!("{prefix}.post_attention_layernorm.weight"), &[hidden], Values::ONES);
    }
    half("model.norm.weight".into(), &[hidden], Values::ONES);
    if !config.tie_word_embeddings {
        half("lm_head.weight".into(), &[config.vocab_size, hidden], head);
    }
    for layer in 0..config.num_layers {
        for (name, input, output) in [
            ("self_attn.q_proj", hidden, q_width),
            ("self_attn.k_proj", hidden, kv_width),
            ("self_attn.v_proj", hidden, kv_width),
            ("self_attn.o_proj", q_width, hidden),
            ("mlp.gate_proj", hidden, inner),
            ("mlp.up_proj", hidden, inner),
            ("mlp.down_proj", inner, hidden),
        ] {
            tensors.extend(plan_linear(config, &format!("model.layers.{layer}.{name}"), input, output));
        }
    }
    tensors
}

/// The tensors of one linear layer's matrix; see [`awq`](crate::awq) for the layout.
fn plan_linear(config: &ModelConfig, prefix: &str, input: usize, output: usize) -> Vec<Planned> {
    let planned = |suffix: &str, dtype, shape: [usize; 2], values| Planned {
        name: format!("{prefix}.{suffix}"),
        dtype,
        shape: shape.into(),
        values,
    };
    let Some(group_size) = config.awq_group_size else {
        return vec![planned("weight", Dtype::F16, [output, input], Values::weights(input))];
    };
    let (groups, words) = (input / group_size, output / COLUMNS_PER_WORD);
    vec![
        planned("qweight", Dtype::I32, [input, words], Values::QUANTIZED),
        planned("qzeros", Dtype::I32, [groups, words], Values::ZERO_POINTS),
        planned("scales", Dtype::F16, [groups, output], Values::scales(input)),
    ]
}

/// The image of a safetensors file: header and tensors.
fn generate(config: &ModelConfig, seed: u64) -> Result<Mmap, CheckpointError> {
    let tensors = plan(config);
    let header = header(&tensors);
    let total = header.len() + tensors.iter().map(Planned::bytes).sum::<usize>();
    let no_memory = |detail| CheckpointError::NoMemory { wanted_mb: total >> 20, detail };
    let mut image = MmapMut::map_anon(total).map_err(no_memory)?;
    let (start, mut data) = image.split_at_mut(header.len());
    start.copy_from_slice(&header);

    // Seeds go to chunks in their order, so the bytes do not depend on how many threads there are.
    let mut seeds = fastrand::Rng::with_seed(seed);
    let mut chunks = Vec::new();
    for tensor in &tensors {
        let (bytes, rest) = data.split_at_mut(tensor.bytes());
        chunks.extend(bytes.chunks_mut(CHUNK_BYTES).map(|bytes| (tensor.values, seeds.u64(..), bytes)));
        data = rest;
    }
    fill_all(chunks);
    image.make_read_only().map_err(no_memory)
}

/// Length and JSON of a safetensors header, padded with spaces as the format allows.
fn header(tensors: &[Planned]) -> Vec<u8> {
    let mut end = 0;
    let infos = tensors.iter().map(|tensor| {
        let start = end;
        end += tensor.bytes();
        let info =
            TensorInfo { dtype: tensor.dtype, shape: tensor.shape.clone(), data_offsets: (start, end) };
        (tensor.name.clone(), info)
    });
    let metadata = Metadata::new(None, infos.collect()).expect("the tensors lie one after another");
    let mut header = vec![0; size_of::<u64>()];
    serde_json::to_writer(&mut header, &metadata).expect("names and numbers are JSON");
    header.resize(header.len().next_multiple_of(DATA_ALIGNMENT), b' ');
    let length = (header.len() - size_of::<u64>()) as u64;
    header[..size_of::<u64>()].copy_from_slice(&length.to_le_bytes());
    header
}

/// Fills the chunks with all processors.
fn fill_all(chunks: Vec<(Values, u64, &mut [u8])>) {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let chunks = Mutex::new(chunks.into_iter());
    let next = || chunks.lock().unwrap_or_else(PoisonError::into_inner).next();
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while let Some((values, seed, bytes)) = next() {
                    values.fill(seed, bytes);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Backend;
    use crate::cpu::{CpuBackend, CpuOptions};
    use crate::step_plan::{PlannedSequence, StepPlan};

    fn tiny() -> ModelConfig {
        ModelConfig {
            hidden_size: 128,
            num_layers: 3,
            num_heads: 4,
            num_kv_heads: 2,
            head_dim: 32,
            intermediate_size: 384,
            vocab_size: 1_003,
            tie_word_embeddings: false,
            max_position_embeddings: 256,
            eos_token_ids: vec![7, 9],
            ..SyntheticModel::B7.config()
        }
    }

    fn in_memory(config: &ModelConfig, seed: u64) -> Checkpoint {
        Checkpoint::from_memory("tiny", config.clone(), generate(config, seed).unwrap()).unwrap()
    }

    fn on_disk(config: &ModelConfig, seed: u64) -> (tempfile::TempDir, Checkpoint) {
        let directory = tempfile::tempdir().unwrap();
        write(config, seed, directory.path()).unwrap();
        let checkpoint = Checkpoint::open(directory.path()).unwrap();
        (directory, checkpoint)
    }

    #[test]
    fn every_shape_survives_its_config_json() {
        let plain = ModelConfig { awq_group_size: None, ..tiny() };
        for config in SyntheticModel::ALL.map(SyntheticModel::config).into_iter().chain([tiny(), plain]) {
            assert_eq!(ModelConfig::parse(config_json(&config).as_bytes(), None).unwrap(), config);
        }
    }

    #[test]
    fn the_parameters_are_as_many_as_the_names_say() {
        for (model, billions) in SyntheticModel::ALL.into_iter().zip([0.49, 1.54, 3.09, 7.62, 4.02, 4.02]) {
            let elements = |tensor: &Planned| {
                let packed = if tensor.name.ends_with(".qweight") { COLUMNS_PER_WORD } else { 1 };
                let is_weight = !tensor.name.ends_with(".qzeros") && !tensor.name.ends_with(".scales");
                if is_weight { packed * tensor.shape.iter().product::<usize>() } else { 0 }
            };
            let parameters: usize = plan(&model.config()).iter().map(elements).sum();
            assert!((parameters as f64 / 1e9 - billions).abs() < 0.01, "{}: {parameters}", model.name());
        }
    }

    #[test]
    fn sizes_are_read_by_name_and_others_refused() {
        for model in SyntheticModel::ALL {
            assert_eq!(model.name().to_uppercase().parse::<SyntheticModel>().unwrap(), model);
        }
        let message = "2b".parse::<SyntheticModel>().unwrap_err().to_string();
        for word in ["'2b'"].into_iter().chain(SyntheticModel::ALL.map(SyntheticModel::name)) {
            assert!(message.contains(word), "{message}");
        }
    }

    #[test]
    fn a_directory_holds_what_memory_holds() {
        let config = tiny();
        let memory = in_memory(&config, 1);
        let (_directory, disk) = on_disk(&config, 1);
        assert_eq!(disk.config(), memory.config());
        for Planned { name, shape, .. } in plan(&config) {
            let (a, b) = (memory.tensor(&name, &shape).unwrap(), disk.tensor(&name, &shape).unwrap());
            assert_eq!((a.dtype, a.bytes), (b.dtype, b.bytes), "{name}");
        }
        assert_eq!(*generate(&config, 1).unwrap(), *generate(&config, 1).unwrap());
        assert_ne!(*generate(&config, 1).unwrap(), *generate(&config, 2).unwrap());
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let (directory, _) = on_disk(&tiny(), 1);
        let message = write(&tiny(), 1, directory.path()).unwrap_err().to_string();
        assert!(message.contains("config.json"), "{message}");
    }

    #[test]
    fn the_numbers_stay_the_size_of_a_trained_models() {
        const ROWS: usize = 200;
        let qwen3 = ModelConfig { architecture: Architecture::Qwen3, head_dim: 64, ..tiny() };
        let plain = ModelConfig { tie_word_embeddings: true, awq_group_size: None, ..tiny() };
        for config in [tiny(), plain, qwen3] {
            let options = CpuOptions { threads: Some(1), ..CpuOptions::default() };
            let mut backend = CpuBackend::new(&in_memory(&config, 3), options).unwrap();
            backend.allocate_kv(ROWS.div_ceil(16)).unwrap();
            let plan = StepPlan {
                tokens: (0..ROWS as u32).map(|i| i * 5 % 1_003).collect(),
                positions: (0..ROWS as u32).collect(),
                sequences: vec![PlannedSequence { rows: 0..ROWS, block_table: (0..13).collect() }],
                logits_rows: vec![0, ROWS as u32 - 1],
                ..StepPlan::default()
            };
            let mut logits = Vec::new();
            backend.forward(&plan, &mut logits).unwrap();
            for row in logits.chunks_exact(config.vocab_size) {
                let count = row.len() as f32;
                let mean = row.iter().sum::<f32>() / count;
                let spread = (row.iter().map(|logit| (logit - mean).powi(2)).sum::<f32>() / count).sqrt();
                assert!((1.0..4.0).contains(&spread) && mean.abs() < 1.0, "{mean} +- {spread}");
            }
            assert_ne!(logits[..config.vocab_size], logits[config.vocab_size..]);
        }
    }
}
