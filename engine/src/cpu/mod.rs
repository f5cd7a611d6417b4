//! The CPU backend: int4 or plain weights, int8-digit or float activations, paged fp16 KV.
//!
//! [`kernels`] has the inner loops for each instruction set, [`weights`] the repacked matrices,
//! [`linear`] and [`attention`] spread work over the [`threads`], and this file is the forward pass.
//!
//! A row's logits depend on its own sequence only, to the last bit: not on what shares the batch, how
//! a prompt was chunked, whether its blocks were cached, or how many threads ran it. (They do differ
//! between instruction sets, by rounding.)

mod attention;
pub mod kernels;
mod kv_cache;
mod linear;
mod rotary;
pub mod threads;
mod weights;

use std::sync::Arc;

use attention::Attention;
pub use kernels::Isa;
use kernels::Kernels;
use kv_cache::KvCache;
use linear::{Activations, Write};
use rotary::Rotary;
use threads::ThreadPool;
use weights::{DenseMatrix, Linear, Matrix};

use crate::backend::{Backend, BackendError};
use crate::checkpoint::{Checkpoint, CheckpointError};
use crate::config::ModelConfig;
use crate::step_plan::{BLOCK_SIZE, StepPlan};

/// How a [`CpuBackend`] computes.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuOptions {
    /// Threads, the engine's own included; [`threads::default_threads`] when `None`.
    pub threads: Option<usize>,
    /// Keep activations in `f32` instead of rounding them to pairs of int8 digits: slower, for reference.
    pub exact: bool,
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

/// A Qwen2 model on the CPU.
pub struct CpuBackend {
    config: ModelConfig,
    exact: bool,
    kernels: Kernels,
    pool: ThreadPool,
    model: Model,
    cache: Option<KvCache>,
    attention: Attention,
    rotary: Rotary,
    buffers: Buffers,
}

struct Model {
    /// `[vocabulary][hidden]`; the head's own matrix where they are tied.
    embedding: Arc<DenseMatrix>,
    layers: Vec<Layer>,
    final_norm: Vec<f32>,
    head: Linear,
}

struct Layer {
    attention_norm: Vec<f32>,
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    feed_forward_norm: Vec<f32>,
    gate: Linear,
    up: Linear,
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
    /// `[rows][gate, up]`.
    gate_up: Vec<f32>,
    /// One rotated key.
    key: Vec<f32>,
    /// Inputs of the layers that read the residual stream.
    normed: Activations,
    /// Input of the attention's output layer.
    attention_input: Activations,
    /// Input of the feed-forward's second layer.
    down_input: Activations,
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
        let threads = options.threads.unwrap_or_else(threads::default_threads).max(1);
        let mut pool = ThreadPool::new(threads).map_err(|detail| CpuError::Threads { threads, detail })?;
        let model = Model::load(checkpoint, &mut pool)?;

        let activations = |width, layers: &dyn Fn(&Layer) -> Vec<&Linear>, extra: &[&Linear]| {
            let group_sizes = model.layers.iter().flat_map(layers).chain(extra.iter().copied());
            let group_size = group_sizes.filter_map(Linear::group_size).next();
            Activations::new(width, group_size.filter(|_| !options.exact))
        };
        let buffers = Buffers {
            hidden: Vec::new(),
            qkv: Vec::new(),
            attended: Vec::new(),
            gate_up: Vec::new(),
            key: vec![0.0; config.head_dim],
            normed: activations(
                config.hidden_size,
                &|layer| vec![&layer.q, &layer.k, &layer.v, &layer.gate, &layer.up],
                &[&model.head],
            ),
            attention_input: activations(config.num_heads * config.head_dim, &|layer| vec![&layer.o], &[]),
            down_input: activations(config.intermediate_size, &|layer| vec![&layer.down], &[]),
        };
        Ok(Self {
            attention: Attention::new(&config, pool.threads()),
            rotary: Rotary::new(config.head_dim, config.rope_theta),
            exact: options.exact,
            kernels,
            pool,
            model,
            cache: None,
            buffers,
            config,
        })
    }

    /// Refuses a plan that would read or write outside what it owns; a wrong plan is a fault of the
    /// scheduler, and must not become a wrong memory access.
    fn check(&self, plan: &StepPlan) -> Result<(), BackendError> {
        let wrong = |what: String| Err(BackendError::Device(format!("malformed step plan: {what}")));
        let blocks = self.cache.as_ref().map_or(0, KvCache::blocks);
        if plan.positions.len() != plan.num_rows() {
            return wrong(format!("{} tokens, {} positions", plan.num_rows(), plan.positions.len()));
        }
        if let Some(token) = plan.tokens.iter().find(|token| **token as usize >= self.config.vocab_size) {
            return wrong(format!("token {token} is outside the vocabulary of {}", self.config.vocab_size));
        }
        let mut next_row = 0;
        for sequence in &plan.sequences {
            if sequence.rows.start != next_row
                || sequence.rows.is_empty()
                || sequence.rows.end > plan.num_rows()
            {
                return wrong(format!("rows {:?} do not follow row {next_row}", sequence.rows));
            }
            next_row = sequence.rows.end;
            let positions = &plan.positions[sequence.rows.clone()];
            if positions.windows(2).any(|pair| pair[1] != pair[0].wrapping_add(1)) {
                return wrong("positions of a sequence do not ascend by one".into());
            }
            let last = positions[positions.len() - 1] as usize;
            if last >= self.config.max_position_embeddings {
                return wrong(format!("position {last} is beyond {}", self.config.max_position_embeddings));
            }
            if sequence.block_table.len() <= last / BLOCK_SIZE {
                return wrong(format!("{} blocks do not reach position {last}", sequence.block_table.len()));
            }
            if let Some(block) = sequence.block_table.iter().find(|block| **block as usize >= blocks) {
                return wrong(format!("block {block} is outside the pool of {blocks}"));
            }
        }
        if next_row != plan.num_rows() {
            return wrong(format!("rows from {next_row} on belong to no sequence"));
        }
        match plan.logits_rows.iter().find(|row| **row as usize >= plan.num_rows()) {
            Some(row) => wrong(format!("logits of row {row} of {}", plan.num_rows())),
            None => Ok(()),
        }
    }

    fn embed(&mut self, plan: &StepPlan) {
        let width = self.config.hidden_size;
        self.buffers.hidden.resize(plan.num_rows() * width, 0.0);
        for (token, to) in plan.tokens.iter().zip(self.buffers.hidden.chunks_exact_mut(width)) {
            self.model.embedding.copy_row(*token as usize, to);
        }
    }

    /// `hidden += o(attention(norm(hidden)))` for one layer.
    fn run_attention(&mut self, plan: &StepPlan, index: usize, cache: &mut KvCache) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (layer, buffers, rows) = (&self.model.layers[index], &mut self.buffers, plan.num_rows());
        let hidden = &buffers.hidden;
        buffers.normed.fill(kernels, pool, rows, |row, to| {
            let from = &hidden[row * config.hidden_size..][..config.hidden_size];
            kernels.rms_norm(from, &layer.attention_norm, config.rms_norm_eps, to);
        });

        let (q_width, kv_width) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let width = q_width + 2 * kv_width;
        buffers.qkv.resize(rows * width, 0.0);
        linear::run(
            kernels,
            pool,
            &[&layer.q, &layer.k, &layer.v],
            &buffers.normed,
            &mut buffers.qkv,
            Write::Store,
        );

        for sequence in &plan.sequences {
            for row in sequence.rows.clone() {
                let position = plan.positions[row] as usize;
                let block = sequence.block_table[position / BLOCK_SIZE];
                let (keys, values) = buffers.qkv[row * width + q_width..][..2 * kv_width].split_at(kv_width);
                let heads = keys.chunks_exact(config.head_dim).zip(values.chunks_exact(config.head_dim));
                for (head, (key, value)) in heads.enumerate() {
                    self.rotary.rotate(row, key, 1.0, &mut buffers.key);
                    cache.write([index, head], block, position % BLOCK_SIZE, &buffers.key, value);
                }
            }
        }

        buffers.attended.resize(rows * q_width, 0.0);
        self.attention.run(
            kernels,
            pool,
            plan,
            cache,
            index,
            &self.rotary,
            &buffers.qkv,
            &mut buffers.attended,
        );
        let attended = &buffers.attended;
        buffers.attention_input.fill(kernels, pool, rows, |row, to| {
            to.copy_from_slice(&attended[row * q_width..][..q_width]);
        });
        linear::run(kernels, pool, &[&layer.o], &buffers.attention_input, &mut buffers.hidden, Write::Add);
    }

    /// `hidden += down(silu(gate(x)) * up(x))` with `x = norm(hidden)`, for one layer.
    fn run_feed_forward(&mut self, rows: usize, index: usize) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (layer, buffers) = (&self.model.layers[index], &mut self.buffers);
        let hidden = &buffers.hidden;
        buffers.normed.fill(kernels, pool, rows, |row, to| {
            let from = &hidden[row * config.hidden_size..][..config.hidden_size];
            kernels.rms_norm(from, &layer.feed_forward_norm, config.rms_norm_eps, to);
        });
        let width = config.intermediate_size;
        buffers.gate_up.resize(rows * 2 * width, 0.0);
        linear::run(
            kernels,
            pool,
            &[&layer.gate, &layer.up],
            &buffers.normed,
            &mut buffers.gate_up,
            Write::Store,
        );
        let gate_up = &buffers.gate_up;
        buffers.down_input.fill(kernels, pool, rows, |row, to| {
            let (gate, up) = gate_up[row * 2 * width..][..2 * width].split_at(width);
            kernels.silu_mul(gate, up, to);
        });
        linear::run(kernels, pool, &[&layer.down], &buffers.down_input, &mut buffers.hidden, Write::Add);
    }

    /// Final norm and output head, for the rows that are asked for.
    fn run_head(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) {
        let (config, kernels, pool) = (&self.config, self.kernels, &mut self.pool);
        let (model, buffers) = (&self.model, &mut self.buffers);
        let hidden = &buffers.hidden;
        let rows = plan.logits_rows.len();
        buffers.normed.fill(kernels, pool, rows, |row, to| {
            let from = plan.logits_rows[row] as usize * config.hidden_size;
            kernels.rms_norm(
                &hidden[from..][..config.hidden_size],
                &model.final_norm,
                config.rms_norm_eps,
                to,
            );
        });
        logits.resize(rows * config.vocab_size, 0.0);
        linear::run(kernels, pool, &[&model.head], &buffers.normed, logits, Write::Store);
    }
}

impl Backend for CpuBackend {
    fn name(&self) -> String {
        let exact = if self.exact { ", exact" } else { "" };
        let threads = self.pool.threads();
        let plural = if threads == 1 { "" } else { "s" };
        format!("cpu ({}, {threads} thread{plural}{exact})", self.kernels.isa().name())
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.config.max_position_embeddings
    }

    fn kv_block_bytes(&self) -> usize {
        KvCache::block_bytes(&self.config)
    }

    fn weight_bytes(&self) -> usize {
        let layers = self.model.layers.iter().flat_map(|layer| {
            [&layer.q, &layer.k, &layer.v, &layer.o, &layer.gate, &layer.up, &layer.down]
        });
        layers.chain([&self.model.head]).map(Linear::bytes).sum()
    }

    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        self.cache = Some(KvCache::new(&self.config, num_blocks)?);
        Ok(())
    }

    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        self.check(plan)?;
        // Taken out for the step, so that its parts can be borrowed beside the rest.
        let Some(mut cache) = self.cache.take() else {
            return Err(BackendError::Device("the KV cache was never allocated".into()));
        };
        self.embed(plan);
        self.rotary.prepare(&plan.positions);
        self.attention.prepare(plan);
        for layer in 0..self.config.num_layers {
            self.run_attention(plan, layer, &mut cache);
            self.run_feed_forward(plan.num_rows(), layer);
        }
        self.run_head(plan, logits);
        self.cache = Some(cache);
        Ok(())
    }
}

impl Model {
    fn load(checkpoint: &Checkpoint, pool: &mut ThreadPool) -> Result<Self, CheckpointError> {
        let config = checkpoint.config();
        let (hidden, vocab) = (config.hidden_size, config.vocab_size);
        let table = checkpoint.tensor("model.embed_tokens.weight", &[vocab, hidden])?;
        let embedding = Arc::new(DenseMatrix::pack(pool, &table)?);
        let head = if config.tie_word_embeddings {
            Linear { matrix: Matrix::Dense(Arc::clone(&embedding)), bias: Vec::new(), output: vocab }
        } else {
            Linear::load(checkpoint, pool, "lm_head", [hidden, vocab], false)?
        };
        let layers = (0..config.num_layers)
            .map(|index| Layer::load(checkpoint, pool, index))
            .collect::<Result<_, _>>()?;
        let final_norm = checkpoint.tensor("model.norm.weight", &[hidden])?.to_f32()?;
        Ok(Self { embedding, layers, final_norm, head })
    }
}

impl Layer {
    fn load(checkpoint: &Checkpoint, pool: &mut ThreadPool, index: usize) -> Result<Self, CheckpointError> {
        let config = checkpoint.config();
        let (hidden, inner) = (config.hidden_size, config.intermediate_size);
        let (q_width, kv_width) = (config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim);
        let prefix = format!("model.layers.{index}");
        let norm = |name: &str| checkpoint.tensor(&format!("{prefix}.{name}.weight"), &[hidden])?.to_f32();
        let mut linear = |name: &str, shape, biased| {
            Linear::load(checkpoint, pool, &format!("{prefix}.{name}"), shape, biased)
        };
        Ok(Self {
            attention_norm: norm("input_layernorm")?,
            q: linear("self_attn.q_proj", [hidden, q_width], true)?,
            k: linear("self_attn.k_proj", [hidden, kv_width], true)?,
            v: linear("self_attn.v_proj", [hidden, kv_width], true)?,
            o: linear("self_attn.o_proj", [q_width, hidden], false)?,
            feed_forward_norm: norm("post_attention_layernorm")?,
            gate: linear("mlp.gate_proj", [hidden, inner], false)?,
            up: linear("mlp.up_proj", [hidden, inner], false)?,
            down: linear("mlp.down_proj", [inner, hidden], false)?,
        })
    }
}
