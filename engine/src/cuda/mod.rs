//! The CUDA backend: a model on a GPU, with every kernel launched through [`Device`].
//!
//! `Device` is the launch interface of [`redstart_kernels`]. On a card it is the CUDA driver; in tests it is
//! a shim that runs the same kernels on the host. Nothing here knows which.
//!
//! # How a step runs
//!
//! The scheduler hands over a [`StepPlan`]: some tokens, their positions, each sequence's block table, and
//! the rows whose next token is wanted.
//!
//! 1. [`buckets`] finds a recorded step that the plan fits into, or a shape of its own for it. A shape is all
//!    that the launches themselves depend on: numbers of rows, attention items, splits, and rows to draw from.
//! 2. [`step`] writes all that the kernels are told, tokens and positions and block tables and how each token
//!    is drawn, into one stretch of pinned memory, which is copied to the card in one piece.
//! 3. The recording is replayed, one call for some hundred kernels, or they are launched one by one:
//!    [`forward`] lists them. The last one leaves the drawn tokens on the card.
//! 4. They are copied back, and a mark is set. [`start`](DeviceSteps::start) returns here; nothing waited.
//! 5. [`finish`](DeviceSteps::finish) waits for the mark and reads the tokens.
//!
//! While a step runs the next one can be started: its rows then say "the token that the step before draws for
//! its third row", and the embedding reads it on the card. That works because the card does everything in the
//! order of the calls; so there is one step region, one set of working buffers and one array of drawn tokens,
//! and only the pinned memory exists twice.
//!
//! Rows whose *logits* are wanted ([`Wanted::Logits`], a prompt's likelihood) take a slower way: the layers
//! run, then the head for a few rows at a time, and their logits are downloaded before `start` returns.
//!
//! # What lies where
//!
//! [`card`] finds the GPU, [`model`] says which weights there are, [`weights`] packs a checkpoint's into device memory and
//! [`synthetic`] makes random ones up there, [`scratch`] holds what steps work in and the KV pool, [`memory`] says how large that may be, [`options`] what can be chosen, [`supported`] which models the
//! kernels know, and [`error`] what can go wrong.
//!
//! # What is promised
//!
//! A shape is deterministic: the same plan in the same bucket gives the same bits, whatever else is in the
//! bucket or in the reused blocks. Between buckets sums are split in other places, so that a token may differ
//! where two are as likely.

mod buckets;
mod card;
mod error;
mod forward;
mod memory;
mod model;
mod options;
mod scratch;
mod step;
mod supported;
mod synthetic;
mod weights;

use std::collections::VecDeque;

pub use card::{CardInfo, KernelOrigin, NoCuda, OpenError, Urgency, open, probe};
pub use redstart_kernels::machine;

use buckets::{Bucket, ShapeRules, StepShape};
use error::step_error;
pub use error::{CudaError, PoolTooSmall};
use forward::{Forward, HeadRows};
pub use memory::DEFAULT_TOKENS;
use memory::PoolRequest;
use model::Model;
pub use options::{CudaOptions, HeadFormat, KvFormat, WeightFormat};
use redstart_kernels::attention::AttentionShape;
use redstart_kernels::device::{Device, DeviceError, Mark, Pinned};
use redstart_kernels::sampling::{self, Status};
use scratch::{HEAD_ROWS, KvPool, Scratch};
use step::{Layout, MAX_SEQUENCES};
use supported::check_supported;
pub use synthetic::random_matrix;

use crate::backend::{Backend, BackendError, DeviceSteps, MAX_STARTED};
use crate::checkpoint::Checkpoint;
use crate::config::ModelConfig;
use crate::plan_check::{Limits, check_plan, check_step};
use crate::sampling::SamplingError;
use crate::step_output::{Drawn, RowOutput, StepOutput};
use crate::step_plan::{BLOCK_SIZE, StepPlan, Wanted};

/// A model on a GPU.
pub struct CudaBackend {
    config: ModelConfig,
    options: CudaOptions,
    max_model_len: usize,
    rules: ShapeRules,
    model: Model,
    scratch: Scratch,
    pool: Option<KvPool>,
    /// Recorded when the pool is there, since recordings hold its addresses.
    buckets: Vec<Bucket>,
    /// Host memory of steps, used in turn.
    pinned: [PinnedStep; MAX_STARTED],
    next_pinned: usize,
    under_way: VecDeque<UnderWay>,
    /// Steps that no bucket fitted.
    unrecorded_steps: u64,
    /// The last to go: pinned memory is its driver's.
    device: Box<dyn Device>,
}

/// Host memory of one step.
struct PinnedStep {
    /// What is told.
    region: Box<dyn Pinned>,
    /// What was drawn.
    drawn: Box<dyn Pinned>,
}

/// A step that was started and not finished.
struct UnderWay {
    /// Set behind it.
    mark: Mark,
    /// Which of the pinned memories it uses.
    pinned: usize,
    /// For each of its rows: whether a token is drawn of it.
    draws: Vec<bool>,
    /// Its rows of logits, which are there already.
    logits: Vec<f32>,
}

impl CudaBackend {
    /// Loads a checkpoint. The checkpoint is not needed afterwards.
    ///
    /// # Errors
    /// When the weights are incomplete or damaged, the kernels have no variant for the model, or it does not
    /// fit.
    pub fn new(
        checkpoint: &Checkpoint,
        device: Box<dyn Device>,
        options: CudaOptions,
    ) -> Result<Self, CudaError> {
        Self::with_weights(checkpoint.config(), device, options, |device, options, positions| {
            weights::load(checkpoint, device, options, positions)
        })
    }

    /// Makes random weights up on the device, in a model's shapes and a loaded model's layout: to measure speed
    /// with. The same seed makes the same weights, other ones than a synthetic checkpoint's.
    ///
    /// # Errors
    /// When the kernels have no variant for the model, an option does not go with it, or it does not fit.
    pub fn synthetic(
        config: &ModelConfig,
        seed: u64,
        device: Box<dyn Device>,
        options: CudaOptions,
    ) -> Result<Self, CudaError> {
        Self::with_weights(config, device, options, |device, options, positions| {
            synthetic::make(config, seed, device, options, positions)
        })
    }

    /// All but the weights, which `make` puts on the device, with a rotary table for so many positions.
    fn with_weights(
        config: &ModelConfig,
        mut device: Box<dyn Device>,
        options: CudaOptions,
        make: impl FnOnce(&mut dyn Device, &CudaOptions, usize) -> Result<Model, CudaError>,
    ) -> Result<Self, CudaError> {
        let config = config.clone();
        check_supported(&config).map_err(CudaError::Unsupported)?;
        let max_model_len =
            options.max_model_len.unwrap_or(DEFAULT_TOKENS).min(config.max_position_embeddings);
        let model = make(&mut *device, &options, max_model_len)?;
        let attention = AttentionShape {
            heads: config.num_heads as u32,
            kv_heads: config.num_kv_heads as u32,
            head_dim: config.head_dim as u32,
            kv: options.kv,
        };
        let multiprocessors = device.properties().multiprocessors;
        let rules = ShapeRules { attention, max_model_len: max_model_len as u32, multiprocessors };
        let rows = options.max_step_rows.max(buckets::MOST_ROWS as usize);
        let scratch = Scratch::allocate(&mut *device, &config, &model, &rules, rows as u32)?;
        let mut pinned = || -> Result<PinnedStep, DeviceError> {
            Ok(PinnedStep {
                region: device.allocate_pinned(scratch.region.bytes())?,
                drawn: device.allocate_pinned(scratch.drawn.bytes())?,
            })
        };
        Ok(Self {
            pinned: [pinned()?, pinned()?],
            device,
            config,
            max_model_len,
            options: CudaOptions { max_step_rows: rows, ..options },
            rules,
            model,
            scratch,
            pool: None,
            buckets: Vec::new(),
            next_pinned: 0,
            under_way: VecDeque::new(),
            unrecorded_steps: 0,
        })
    }

    /// Blocks that the KV pool should have unless the user says otherwise: what is free now, up to
    /// [`DEFAULT_TOKENS`].
    ///
    /// # Errors
    /// When there is no room for one sequence of the longest length, if that was asked for, or for one that
    /// is worth having; the message says what to change.
    pub fn default_kv_blocks(&mut self) -> Result<usize, CudaError> {
        let least = match self.options.max_model_len {
            Some(_) => self.max_model_len,
            None => self.max_model_len.min(memory::LEAST_TOKENS),
        };
        let request = PoolRequest {
            utilization: self.options.memory_utilization,
            reserved_bytes: self.options.reserved_bytes,
            block_bytes: self.kv_block_bytes(),
            max_model_len: self.max_model_len,
            least_tokens: least,
        };
        Ok(memory::default_blocks(&mut *self.device, request)??)
    }

    /// How many steps each bucket ran, by its rows and attention kernel, and how many ran in none.
    pub fn steps_run(&self) -> (Vec<(String, u64)>, u64) {
        let name = |shape: &StepShape| format!("{} rows, {:?}", shape.rows, shape.variant).to_lowercase();
        let buckets = self.buckets.iter().map(|bucket| (name(&bucket.shape), bucket.used));
        (buckets.collect(), self.unrecorded_steps)
    }

    fn limits(&self) -> Limits {
        Limits {
            vocab_size: self.config.vocab_size,
            positions: self.max_model_len,
            blocks: self.pool.as_ref().map_or(0, |pool| pool.blocks),
        }
    }

    /// What a step of this backend may be, besides well-formed.
    fn check_size(&self, plan: &StepPlan) -> Result<(), String> {
        let (rows, sequences, most) = (plan.num_rows(), plan.sequences.len(), self.options.max_step_rows);
        if rows > most {
            return Err(format!("a step of {rows} rows; this backend was set up for {most} (max_step_rows)"));
        }
        if sequences > MAX_SEQUENCES {
            return Err(format!(
                "a step of {sequences} sequences; the CUDA backend runs {MAX_SEQUENCES} at a time"
            ));
        }
        let longest = self.max_model_len.div_ceil(BLOCK_SIZE);
        match plan.sequences.iter().find(|sequence| sequence.block_table.len() > longest) {
            Some(one) => {
                Err(format!("a block table of {}; {longest} are the longest", one.block_table.len()))
            }
            None => Ok(()),
        }
    }

    fn forward_pass(&mut self) -> Result<Forward<'_>, DeviceError> {
        let pool = self.pool.as_ref().ok_or_else(no_pool)?;
        Ok(Forward {
            device: &mut *self.device,
            config: &self.config,
            attention: &self.rules.attention,
            model: &self.model,
            scratch: &self.scratch,
            pool,
        })
    }

    /// Launches or records all of a step whose rows are all drawn from.
    fn launch(&mut self, shape: &StepShape) -> Result<(), DeviceError> {
        let arrays = Layout::new(*shape).arrays(self.scratch.region);
        let mut forward = self.forward_pass()?;
        forward.layers(shape, &arrays)?;
        for first in (0..shape.logits).step_by(HEAD_ROWS as usize) {
            let count = HEAD_ROWS.min(shape.logits - first);
            forward.head(HeadRows { first, count, draw: true }, &arrays)?;
        }
        Ok(())
    }

    /// Records every bucket, and runs each once with nothing in it.
    fn record_buckets(&mut self) -> Result<(), DeviceError> {
        self.buckets.clear();
        for shape in self.rules.buckets() {
            self.device.begin_recording()?;
            let launched = self.launch(&shape);
            let graph = self.device.end_recording()?;
            launched?;
            self.upload(&StepPlan::default(), &shape)?;
            self.device.replay(graph)?;
            // Before the pinned memory is written again.
            self.wait_for_all()?;
            self.buckets.push(Bucket { shape, graph, used: 0 });
        }
        Ok(())
    }

    fn wait_for_all(&mut self) -> Result<(), DeviceError> {
        let mark = self.device.mark()?;
        self.device.wait(mark, false)
    }

    /// Writes what a step is told and starts its copy; returns the pinned memory it lies in.
    fn upload(&mut self, plan: &StepPlan, shape: &StepShape) -> Result<usize, DeviceError> {
        let layout = Layout::new(*shape);
        let (needed, room) = (layout.bytes(plan), self.scratch.region.bytes());
        if needed > room {
            return Err(DeviceError::Failed(format!(
                "a step that is told {needed} bytes; there is room for {room}"
            )));
        }
        let pinned = self.next_pinned;
        self.next_pinned = (pinned + 1) % MAX_STARTED;
        let mut items = Vec::new();
        self.rules.items(plan, shape.variant, &mut items);
        let region = &mut self.pinned[pinned].region;
        let bytes = layout.write(plan, &items, region.bytes());
        self.device.copy_in(&mut **region, bytes, self.scratch.region)?;
        Ok(pinned)
    }

    /// Starts a step that was checked. Returns its rows of logits, if there are such.
    fn start_step(&mut self, plan: &StepPlan) -> Result<UnderWay, DeviceError> {
        let draws: Vec<bool> = plan.wanted.iter().map(|wanted| matches!(wanted, Wanted::Token(_))).collect();
        let (pinned, logits) = if draws.iter().all(|draws| *draws) {
            (self.start_drawing(plan)?, Vec::new())
        } else {
            self.run_for_logits(plan, &draws)?
        };
        let count = draws.len() * size_of::<sampling::Drawn>();
        if draws.contains(&true) {
            let drawn = &mut self.pinned[pinned].drawn;
            self.device.copy_out(self.scratch.drawn.slice(0, count), &mut **drawn)?;
        }
        Ok(UnderWay { mark: self.device.mark()?, pinned, draws, logits })
    }

    /// Starts a step that only draws: as a recording, if one fits.
    fn start_drawing(&mut self, plan: &StepPlan) -> Result<usize, DeviceError> {
        match self.buckets.iter().position(|bucket| self.rules.fits(plan, &bucket.shape)) {
            Some(index) => {
                let shape = self.buckets[index].shape;
                let pinned = self.upload(plan, &shape)?;
                self.buckets[index].used += 1;
                self.device.replay(self.buckets[index].graph)?;
                Ok(pinned)
            }
            None => {
                let shape = self.rules.of_plan(plan);
                let pinned = self.upload(plan, &shape)?;
                self.unrecorded_steps += 1;
                self.launch(&shape)?;
                Ok(pinned)
            }
        }
    }

    /// Runs a step of which logits are wanted, and downloads them.
    fn run_for_logits(&mut self, plan: &StepPlan, draws: &[bool]) -> Result<(usize, Vec<f32>), DeviceError> {
        let vocab = self.config.vocab_size;
        let shape = self.rules.of_plan(plan);
        let pinned = self.upload(plan, &shape)?;
        self.unrecorded_steps += 1;
        let arrays = Layout::new(shape).arrays(self.scratch.region);
        self.forward_pass()?.layers(&shape, &arrays)?;
        let mut logits = Vec::new();
        for (i, draws) in draws.chunks(HEAD_ROWS as usize).enumerate() {
            let first = i as u32 * HEAD_ROWS;
            let draw = draws.contains(&true);
            self.forward_pass()?.head(HeadRows { first, count: draws.len() as u32, draw }, &arrays)?;
            for (row, draws) in draws.iter().enumerate() {
                if !draws {
                    let from = self.scratch.logits.slice(4 * row * vocab, 4 * vocab);
                    let start = logits.len();
                    logits.resize(start + vocab, 0.0f32);
                    self.device.download(from, bytemuck::cast_slice_mut(&mut logits[start..]))?;
                }
            }
        }
        Ok((pinned, logits))
    }

    /// Waits for all that was started and forgets it.
    fn give_up(&mut self) {
        // If the device fails here it runs nothing any more, which is as good.
        if let Err(error) = self.wait_for_all() {
            tracing::debug!(%error, "while steps were given up");
        }
        self.under_way.clear();
    }

    fn try_start(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        if self.under_way.len() >= MAX_STARTED {
            return Err(BackendError::Device(format!("more than {MAX_STARTED} steps were started")));
        }
        let drawing = self.under_way.back().map(|step| step.draws.as_slice());
        check_plan(plan, self.limits())
            .and_then(|()| check_step(plan, drawing, self.config.vocab_size))
            .and_then(|()| self.check_size(plan))
            .map_err(BackendError::Device)?;
        let step = self.start_step(plan).map_err(step_error)?;
        self.under_way.push_back(step);
        Ok(())
    }
}

impl Backend for CudaBackend {
    fn name(&self) -> String {
        let properties = self.device.properties();
        let (major, minor) = properties.compute_capability;
        let head = if self.options.head == HeadFormat::Int8 { ", int8 head" } else { "" };
        let weights = if self.options.weights == WeightFormat::Fp8 { ", fp8 weights" } else { "" };
        let kv = if self.options.kv == KvFormat::F8 { ", fp8 KV" } else { "" };
        format!("cuda ({}, sm_{major}{minor}{weights}{head}{kv})", properties.name)
    }

    fn vocab_size(&self) -> usize {
        self.config.vocab_size
    }

    fn max_positions(&self) -> usize {
        self.max_model_len
    }

    fn kv_block_bytes(&self) -> usize {
        KvPool::block_bytes(&self.config, self.options.kv)
    }

    fn weight_bytes(&self) -> usize {
        self.model.specs().map(|spec| spec.read_bytes()).sum()
    }

    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        let pool = KvPool::allocate(&mut *self.device, &self.config, self.options.kv, num_blocks);
        self.pool = Some(pool.map_err(|error| match error {
            DeviceError::OutOfMemory { wanted_mb, .. } => {
                BackendError::OutOfMemory { wanted_mb: wanted_mb as usize, detail: error.to_string() }
            }
            other => step_error(other),
        })?);
        self.record_buckets().map_err(step_error)
    }

    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        let mut all_logits = plan.clone();
        all_logits.wanted = vec![Wanted::Logits; plan.logits_rows.len()];
        let mut output = StepOutput::default();
        self.start(&all_logits)?;
        self.finish(&mut output)?;
        *logits = output.logits;
        Ok(())
    }

    fn stepper(&mut self) -> Option<&mut dyn DeviceSteps> {
        Some(self)
    }
}

impl DeviceSteps for CudaBackend {
    fn start(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        self.try_start(plan).inspect_err(|_| self.give_up())
    }

    fn finish(&mut self, output: &mut StepOutput) -> Result<(), BackendError> {
        output.clear();
        let Some(step) = self.under_way.pop_front() else {
            return Err(BackendError::Device("no step was started".into()));
        };
        if let Err(error) = self.device.wait(step.mark, true) {
            self.give_up();
            return Err(step_error(error));
        }
        output.logits = step.logits;
        let records = self.pinned[step.pinned].drawn.bytes().chunks_exact(size_of::<sampling::Drawn>());
        output.rows.extend(step.draws.iter().zip(records).map(|(draws, record)| match draws {
            true => RowOutput::Drawn(read_drawn(&bytemuck::pod_read_unaligned(record))),
            false => RowOutput::Logits,
        }));
        Ok(())
    }

    fn may_run_ahead(&self) -> bool {
        true
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        self.give_up();
    }
}

/// What a record says.
fn read_drawn(record: &sampling::Drawn) -> Result<Drawn, SamplingError> {
    match record.status() {
        Some(Status::Token) => {
            Ok(Drawn { token: record.token, best: record.best, best_logprob: record.best_logprob() })
        }
        Some(Status::InvalidLogit) => Err(SamplingError::InvalidLogit {
            id: record.invalid_id,
            value: record.invalid_logit.to_string(),
        }),
        Some(Status::NothingPossible) | None => Err(SamplingError::NothingPossible),
    }
}

fn no_pool() -> DeviceError {
    DeviceError::Failed("the KV cache was never allocated".into())
}
