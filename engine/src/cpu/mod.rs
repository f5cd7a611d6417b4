//! The CPU backend: int4 or plain weights, int8-digit or float activations, paged KV in fp16 or int8.
//!
//! [`kernels`] has the inner loops for each instruction set, [`weights`] the repacked matrices,
//! [`linear`] and [`attention`] spread work over the [`threads`], and this file is the forward pass.
//!
//! A row's logits depend on its own sequence only, to the last bit: not on what shares the batch, how
//! a prompt was chunked, whether its blocks were cached, or how many threads ran it. (They do differ
//! between instruction sets, by rounding.)

pub mod attention;
mod cores;
pub mod kernels;
mod kv_cache;
mod linear;
mod lines;
mod qk_norm;
mod rotary;
pub mod threads;
mod vocabulary;
mod weights;

use std::slice;
use std::sync::Arc;

use attention::{Attention, AttentionKernels};
pub use kernels::Isa;
use kernels::{Digits, Kernels};
use kv_cache::KvCache;
pub use kv_cache::KvFormat;
use linear::{Activations, Disjoint, Write};
use qk_norm::QkNorm;
use threads::{PoolOptions, ThreadPool};
use vocabulary::TwoPlanes;
use weights::{DenseMatrix, GateUp, Linear, Matrix};

use crate::backend::{Backend, BackendError};
use crate::checkpoint::{Checkpoint, CheckpointError, LinearWeights};
use crate::config::ModelConfig;
use crate::plan_check::{Limits, check_plan};
use crate::step_output::StepOutput;
use crate::step_plan::StepPlan;
use crate::turns;

/// How a [`CpuBackend`] computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the engine's own included; [`threads::default_threads`] when `None`.
    pub threads: Option<usize>,
    /// Keep each thread on a core of its own (Linux), fast cores first; the thread that calls
    /// [`forward`](Backend::forward) is pinned too, and stays so.
    pub pin: bool,
    /// Keep activations in `f32` instead of rounding them to pairs of int8 digits: slower, for reference.
    pub exact: bool,
    /// How keys and values are kept.
    pub kv: KvFormat,
    /// Instruction set; the machine's best when `None`.
    pub isa: Option<Isa>,
}

/// Why a [`CpuBackend`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CpuError {
    /// The weights cannot be used.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// An instruction set was asked for that the machine does not have.
    #[error("this machine has no {0}; leave the instruction set open to take the best one it has")]
    NoSuchIsa(&'static str),
    /// The system refused a thread.
    #[error("cannot start {threads} threads: {detail}")]
    Threads {
        /// Threads asked for.
        threads: usize,
        /// What the system said.
        detail: std::io::Error,
    },
}

/// A model on the CPU.
pub struct CpuBackend {
    config: ModelConfig,
    exact: bool,
    kv: KvFormat,
    kernels: Kernels,
    pool: ThreadPool,
    model: Model,
    cache: Option<KvCache>,
    attention: Attention,
    buffers: Buffers,
}

struct Model {
    embedding: Embedding,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Head,
}

/// `[vocabulary][hidden]`; the head's own matrix where they are tied.
enum Embedding {
    Dense(Arc<DenseMatrix>),
    TwoPlanes(Arc<TwoPlanes>),
}

/// The output head.
enum Head {
    /// As the checkpoint has it.
    Linear(Linear),
    /// Rounded, and made exact where it counts.
    TwoPlanes(Arc<TwoPlanes>),
}

struct Layer {
    attention_norm: Vec<f32>,
    /// One layer, or three where they are not quantized.
    qkv: Vec<Linear>,
    /// Where the model norms query and key heads.
    qk_norm: Option<QkNorm>,
    o: Linear,
    feed_forward_norm: Vec<f32>,
    gate_up: GateUp,
    down: Linear,
}

/// What a step works in; kept between steps.
struct Buffers {
    /// The residual stream, `[rows][hidden]`.
    hidden: Vec<f32>,
    /// `[rows][query heads, key heads, value heads]`.
    qkv: Vec<f32>,
    /// `[rows][query heads * head_dim]`.
    attended: Vec<f32>,
    /// Inputs of the layers that read the residual stream.
    normed: Activations,
    /// Input of the attention's output layer.
    attention_input: Activations,
    /// Input of the feed-forward's second layer.
    down_input: Activations,
    /// Input of the output head.
    head_input: Activations,
    /// Tiles of the vocabulary that were made exact, by row.
    exact_tiles: Vec<[usize; vocabulary::EXACT_TILES]>,
}

impl CpuBackend {
    /// Repacks a checkpoint's weights for this machine. The checkpoint is not needed afterwards.
    ///
    /// # Errors
    /// When the weights are incomplete or damaged, or the options do not fit the machine.
    pub fn new(checkpoint: &Checkpoint, options: CpuOptions) -> Result<Self, CpuError> {
        let config = checkpoint.config().clone();
        let isa = options.isa.unwrap_or_else(Isa::best);
        let kernels = Kernels::new(isa).ok_or(CpuError::NoSuchIsa(isa.name()))?;
        let attention_kernels = AttentionKernels::new(isa).ok_or(CpuError::NoSuchIsa(isa.name()))?;
        let threads = options.threads.unwrap_or_else(threads::default_threads).max(1);
        let mut pool =
            ThreadPool::with_options(PoolOptions { pin: options.pin, ..PoolOptions::new(threads) })
                .map_err(|detail| CpuError::Threads { threads, detail })?;
        let model = Model::load(checkpoint, &mut pool, options.exact)?;

        let activations =
            |width, group_size: Option<usize>| Activations::new(width, group_size.filter(|_| !options.exact));
        let layers = model.layers.iter();
        let buffers = Buffers {
            hidden: Vec::new(),
            qkv: Vec::new(),
            attended: Vec::new(),
            normed: activations(
                config.hidden_size,
                layers
                    .clone()
                    .find_map(|layer| layer.qkv[0].group_size().or_else(|| layer.gate_up.group_size())),
            ),
            attention_input: activations(
                config.num_heads * config.head_dim,
                layers.clone().find_map(|layer| layer.o.group_size()),
            ),
            down_input: activations(
                config.intermediate_size,
                layers.clone().find_map(|layer| layer.down.group_size()),
            ),
            head_input: activations(config.hidden_size, model.head.group_size(&config)),
            exact_tiles: Vec::new(),
        };
        Ok(Self {
            attention: Attention::new(attention_kernels, &config, pool.threads()),
            exact: options.exact,
            kv: options.kv,
            kernels,
            pool,
            model,
            cache: None,
            buffers,
            config,
        })
    }

    fn embed(&mut self, plan: &StepPlan) {
        let width = self.config.hidden_size;
        turns::resize(&mut self.buffers.hidden, plan.num_rows() * width, &0.0);
        let (hidden, embedding) = (Disjoint::new(&mut self.buffers.hidden), &self.model.embedding);
        self.pool.run(plan.num_rows(), |row, _| {
            // SAFETY: each task takes its own row.
            let to = unsafe { hidden.range(row * width..(row + 1) * width) };
            match embedding {
                Embedding::Dense(table) => table.copy_row(plan.tokens[row] as usize, to),
                Embedding::TwoPlanes(table) => table.copy_row(plan.tokens[row] as usize, to),
            }
        });
    }

    /// `hidden += o(attention(norm(hidden)))` for one layer.
    fn run_attention(&mut self, plan: &StepPlan, index: usize, cache: &mut KvCache) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (layer, buffers, rows) = (&self.model.layers[index], &mut self.buffers, plan.num_rows());
        let hidden = &buffers.hidden;
        buffers.normed.fill(kernels, pool, rows, Digits::Two, |row, to| {
            let from = &hidden[row * config.hidden_size..][..config.hidden_size];
            kernels.rms_norm(from, &layer.attention_norm, config.rms_norm_eps, to);
        });

        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let width = q_width + 2 * kv_width;
        turns::resize(&mut buffers.qkv, rows * width, &0.0);
        linear::run(kernels, pool, &layer.qkv, &buffers.normed, &mut buffers.qkv, Write::Store);
        if let Some(norm) = &layer.qk_norm {
            norm.run(pool, rows, config, &mut buffers.qkv);
        }

        turns::resize(&mut buffers.attended, rows * q_width, &0.0);
        self.attention.append(pool, plan, cache, index, &buffers.qkv);
        self.attention.run(pool, plan, cache, index, &buffers.qkv, &mut buffers.attended);
        let attended = &buffers.attended;
        buffers.attention_input.fill(kernels, pool, rows, Digits::Two, |row, to| {
            to.copy_from_slice(&attended[row * q_width..][..q_width]);
        });
        linear::run(
            kernels,
            pool,
            slice::from_ref(&layer.o),
            &buffers.attention_input,
            &mut buffers.hidden,
            Write::Add,
        );
    }

    /// `hidden += down(silu(gate(x)) * up(x))` with `x = norm(hidden)`, for one layer.
    fn run_feed_forward(&mut self, rows: usize, index: usize) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (layer, buffers) = (&self.model.layers[index], &mut self.buffers);
        let hidden = &buffers.hidden;
        buffers.normed.fill(kernels, pool, rows, Digits::One, |row, to| {
            let from = &hidden[row * config.hidden_size..][..config.hidden_size];
            kernels.rms_norm(from, &layer.feed_forward_norm, config.rms_norm_eps, to);
        });
        linear::run_gated(kernels, pool, &layer.gate_up, &buffers.normed, &mut buffers.down_input);
        linear::run(
            kernels,
            pool,
            slice::from_ref(&layer.down),
            &buffers.down_input,
            &mut buffers.hidden,
            Write::Add,
        );
    }

    /// Final norm and output head, for the rows that are asked for.
    fn run_head(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (model, buffers) = (&self.model, &mut self.buffers);
        let hidden = &buffers.hidden;
        let rows = plan.logits_rows.len();
        buffers.head_input.fill(kernels, pool, rows, Digits::Two, |row, to| {
            let from = plan.logits_rows[row] as usize * config.hidden_size;
            kernels.rms_norm(
                &hidden[from..][..config.hidden_size],
                &model.final_norm,
                config.rms_norm_eps,
                to,
            );
        });
        turns::resize(logits, rows * config.vocab_size, &0.0);
        let input = &buffers.head_input;
        match &model.head {
            Head::Linear(layer) => {
                linear::run(kernels, pool, slice::from_ref(layer), input, logits, Write::Store);
            }
            Head::TwoPlanes(planes) => planes.run(kernels, pool, input, logits, &mut buffers.exact_tiles),
        }
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        let exact = if self.exact { ", exact" } else { "" };
        let kv = if self.kv == KvFormat::Int8 { ", int8 KV" } else { "" };
        let threads = self.pool.threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu ({}, {threads} thread{plural}{exact}{kv})", self.kernels.isa().name())
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn kv_block_bytes(&self) -> usize {
        KvCache::block_bytes(&self.config, self.kv)
    }

    fn weight_bytes(&self) -> usize {
        let layers = self.model.layers.iter().map(|layer| {
            let linears = layer.qkv.iter().chain([&layer.o, &layer.down]);
            linears.map(Linear::bytes).sum::<usize>() + layer.gate_up.bytes()
        });
        let head = match &self.model.head {
            Head::Linear(layer) => layer.bytes(),
            Head::TwoPlanes(planes) => planes.bytes(),
        };
        layers.sum::<usize>() + head
    }

    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        self.cache = Some(KvCache::new(&self.config, self.kv, num_blocks)?);
        Ok(())
    }

    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        let limits = Limits {
            vocab_size: self.config.vocab_size,
            positions: self.config.max_position_embeddings,
            blocks: self.cache.as_ref().map_or(0, KvCache::blocks),
        };
        check_plan(plan, limits).map_err(BackendError::Device)?;
        // Taken out for the step, so that its parts can be borrowed beside the rest.
        let Some(mut cache) = self.cache.take() else {
            return Err(BackendError::Device("the KV cache was never allocated".into()));
        };
        self.pool.adopt_caller();
        let threads = self.pool.threads();
        self.pool.limit(if plan.background { threads / 2 } else { threads });
        self.embed(plan);
        self.attention.prepare(plan);
        for layer in 0..self.config.num_layers {
            self.run_attention(plan, layer, &mut cache);
            self.run_feed_forward(plan.num_rows(), layer);
        }
        self.run_head(plan, logits);
        self.cache = Some(cache);
        Ok(())
    }

    /// On all threads: for several sequences it takes as long as some of the model's layers.
    fn draw(&mut self, plan: &StepPlan, output: &mut StepOutput) {
        let pool = &mut self.pool;
        output.draw(plan, self.config.vocab_size, |rows, draw| pool.run(rows, |row, _| draw(row)));
    }
}

impl Model {
    /// Repacks the weights; `exact` keeps embedding and head as the checkpoint has them.
    fn load(checkpoint: &Checkpoint, pool: &mut ThreadPool, exact: bool) -> Result<Self, CheckpointError> {
        let config = checkpoint.config();
        let (embedding, head) = load_vocabulary(checkpoint, pool, exact)?;
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(checkpoint, pool, index))
            .collect::<Result<_, _>>()?;
        let final_norm = checkpoint.tensor("model.norm.weight", &[config.hidden_size])?.to_f32()?;
        Ok(Self { embedding, layers, final_norm, head })
    }
}

const TABLE: &str = "model.embed_tokens.weight";

fn load_vocabulary(
    checkpoint: &Checkpoint,
    pool: &mut ThreadPool,
    exact: bool,
) -> Result<(Embedding, Head), CheckpointError> {
    let config = checkpoint.config();
    let (hidden, vocab) = (config.hidden_size, config.vocab_size);
    let group_size = TwoPlanes::group_size(hidden).filter(|_| !exact);
    if config.tie_word_embeddings {
        if let Some(group_size) = group_size {
            let planes = Arc::new(TwoPlanes::load(checkpoint, pool, TABLE, [vocab, hidden], group_size)?);
            return Ok((Embedding::TwoPlanes(Arc::clone(&planes)), Head::TwoPlanes(planes)));
        }
        let table = load_table(checkpoint, pool)?;
        let matrix = Matrix::Dense(Arc::clone(&table));
        return Ok((
            Embedding::Dense(table),
            Head::Linear(Linear { matrix, bias: Vec::new(), output: vocab }),
        ));
    }
    let table = load_table(checkpoint, pool)?;
    let is_float = matches!(checkpoint.linear("lm_head", hidden, vocab)?, LinearWeights::Dense(_));
    let head = match group_size.filter(|_| is_float) {
        Some(group_size) => {
            let shape = [vocab, hidden];
            Head::TwoPlanes(Arc::new(TwoPlanes::load(checkpoint, pool, "lm_head.weight", shape, group_size)?))
        }
        None => Head::Linear(Linear::load(checkpoint, pool, "lm_head", [hidden, vocab], false)?),
    };
    Ok((Embedding::Dense(table), head))
}

fn load_table(checkpoint: &Checkpoint, pool: &mut ThreadPool) -> Result<Arc<DenseMatrix>, CheckpointError> {
    let shape = [checkpoint.config().vocab_size, checkpoint.config().hidden_size];
    let table = DenseMatrix::pack(pool, &checkpoint.tensor(TABLE, &shape)?)?;
    // SAFETY: it is packed, and nothing else reads it.
    unsafe { checkpoint.release("model.embed_tokens") };
    Ok(Arc::new(table))
}

impl Head {
    /// Group in which its input is rounded, if it is.
    fn group_size(&self, config: &ModelConfig) -> Option<usize> {
        match self {
            Self::Linear(layer) => layer.group_size(),
            Self::TwoPlanes(_) => TwoPlanes::group_size(config.hidden_size),
        }
    }
}

impl Layer {
    fn load(checkpoint: &Checkpoint, pool: &mut ThreadPool, index: usize) -> Result<Self, CheckpointError> {
        let config = checkpoint.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.q_width(), config.kv_width());
        let prefix = format!("model.layers.{index}");
        let norm = |name: &str| checkpoint.tensor(&format!("{prefix}.{name}.weight"), &[hidden])?.to_f32();
        let (attention_norm, feed_forward_norm) =
            (norm("input_layernorm")?, norm("post_attention_layernorm")?);
        let name = |part: &str| format!("{prefix}.{part}");
        let qkv = [("q_proj", q_width), ("k_proj", kv_width), ("v_proj", kv_width)]
            .map(|(layer, output)| (name(&format!("self_attn.{layer}")), output, config.qkv_bias()));
        let gate_up = [name("mlp.gate_proj"), name("mlp.up_proj")];
        Ok(Self {
            attention_norm,
            qkv: Linear::load_side_by_side(checkpoint, pool, hidden, &qkv)?,
            qk_norm: if config.qk_norm() { Some(QkNorm::load(checkpoint, &prefix)?) } else { None },
            o: Linear::load(checkpoint, pool, &name("self_attn.o_proj"), [q_width, hidden], false)?,
            feed_forward_norm,
            gate_up: GateUp::load(checkpoint, pool, gate_up, [hidden, inner])?,
            down: Linear::load(checkpoint, pool, &name("mlp.down_proj"), [inner, hidden], false)?,
        })
    }
}
