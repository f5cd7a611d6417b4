//! A backend small enough to predict: its logits are a hash of every token that a row attends to.

use std::collections::VecDeque;
use std::time::Instant;

use redstart_engine::SequenceId;
use redstart_engine::backend::{Backend, BackendError, DeviceSteps, MAX_STARTED};
use redstart_engine::generator::{Generation, ModelInfo};
use redstart_engine::request::{Event, FinishReason, Request, SamplingParams, SubmitError, Token, Usage};
use redstart_engine::sampling::{Draw, log_probability, top_logprobs};
use redstart_engine::scheduler::{Scheduler, SchedulerConfig};
use redstart_engine::step_output::{RowOutput, StepOutput};
use redstart_engine::step_plan::{BLOCK_SIZE, StepPlan, Wanted};

pub(crate) const VOCAB_SIZE: usize = 48;
pub(crate) const EOS: u32 = 0;

/// Stores token and position in each slot of a paged pool, as a real backend stores keys and values.
/// A wrong block table, a stale block or a wrong position changes what a row attends to, and with it
/// the logits.
#[derive(Default)]
pub(crate) struct ToyBackend {
    blocks: Vec<[Option<(u32, u32)>; BLOCK_SIZE]>,
}

impl Backend for ToyBackend {
    fn name(&self) -> String {
        "toy".into()
    }

    fn vocab_size(&self) -> usize {
        VOCAB_SIZE
    }

    fn max_positions(&self) -> usize {
        1024
    }

    fn kv_block_bytes(&self) -> usize {
        1000
    }

    fn weight_bytes(&self) -> usize {
        0
    }

    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        self.blocks = vec![[None; BLOCK_SIZE]; num_blocks];
        Ok(())
    }

    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        assert!(plan.carried.is_empty(), "nothing is carried over from a step that is over");
        assert_eq!(plan.wanted.len(), plan.logits_rows.len());
        self.write(plan);
        logits.clear();
        assert!(plan.logits_rows.is_sorted_by(|a, b| a < b));
        for &row in &plan.logits_rows {
            let row = row as usize;
            let owner = plan
                .sequences
                .iter()
                .find(|sequence| sequence.rows.contains(&row))
                .expect("a row has an owner");
            let attended = (0..=plan.positions[row]).map(|position| {
                let block = owner.block_table[position as usize / BLOCK_SIZE];
                self.blocks[block as usize][position as usize % BLOCK_SIZE]
            });
            logits.extend(toy_logits(attended));
        }
        Ok(())
    }
}

impl ToyBackend {
    fn write(&mut self, plan: &StepPlan) {
        assert_eq!(plan.tokens.len(), plan.positions.len());
        let mut written = std::collections::HashSet::new();
        let mut next_row = 0;
        for sequence in &plan.sequences {
            assert_eq!(sequence.rows.start, next_row, "rows are contiguous");
            next_row = sequence.rows.end;
            let last = plan.positions[sequence.rows.end - 1] as usize;
            assert_eq!(sequence.block_table.len(), last / BLOCK_SIZE + 1, "no more blocks than positions");
            let first = plan.positions[sequence.rows.start];
            for (row, position) in sequence.rows.clone().zip(first..) {
                assert_eq!(plan.positions[row], position, "positions ascend by one");
                let (index, slot) = (position as usize / BLOCK_SIZE, position as usize % BLOCK_SIZE);
                let block = sequence.block_table[index];
                assert!(written.insert((block, slot)), "two rows write to one slot");
                if slot == 0 {
                    // A block that is begun anew holds nothing of its past.
                    self.blocks[block as usize] = [None; BLOCK_SIZE];
                }
                self.blocks[block as usize][slot] = Some((plan.tokens[row], position));
            }
        }
        assert_eq!(next_row, plan.num_rows());
    }
}

/// When a [`ToyDevice`] runs a step: a real one does anywhere in between.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Runs {
    AtStart,
    AtFinish,
}

/// The toy as a device that draws tokens and resolves carried ones itself.
pub(crate) struct ToyDevice {
    pub(crate) toy: ToyBackend,
    runs: Runs,
    /// Started and not run.
    waiting: VecDeque<StepPlan>,
    /// Run and not finished.
    done: VecDeque<StepOutput>,
    /// What the step before drew.
    drawn: Vec<Option<u32>>,
    /// Asked before every call, which may fail.
    script: Script,
}

/// Told which call it is and how many steps are under way.
pub(crate) type Script = Box<dyn FnMut(Call, usize) -> Result<(), BackendError> + Send>;

/// A call of [`DeviceSteps`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Start,
    Finish,
}

impl ToyDevice {
    pub(crate) fn new(runs: Runs) -> Self {
        Self {
            toy: ToyBackend::default(),
            runs,
            waiting: VecDeque::new(),
            done: VecDeque::new(),
            drawn: Vec::new(),
            script: Box::new(|_, _| Ok(())),
        }
    }

    pub(crate) fn scripted(
        script: impl FnMut(Call, usize) -> Result<(), BackendError> + Send + 'static,
    ) -> Self {
        Self { script: Box::new(script), ..Self::new(Runs::AtFinish) }
    }

    fn ask(&mut self, call: Call) -> Result<(), BackendError> {
        let asked = (self.script)(call, self.waiting.len() + self.done.len());
        if asked.is_err() {
            self.waiting.clear();
            self.done.clear();
        }
        asked
    }

    fn run(&mut self, mut plan: StepPlan) -> Result<(), BackendError> {
        for carried in std::mem::take(&mut plan.carried) {
            let token = self.drawn[carried.drawn_at as usize].expect("a token was wanted there");
            plan.tokens[carried.row as usize] = token;
        }
        let mut output = StepOutput::default();
        self.toy.forward(&plan, &mut output.logits)?;
        output.draw(&plan, VOCAB_SIZE, |rows, draw| (0..rows).for_each(draw));
        // What cannot be drawn is token 0 to the step after.
        let token = |row: &RowOutput| match row {
            RowOutput::Logits => None,
            RowOutput::Drawn(drawn) => Some(drawn.as_ref().map_or(0, |drawn| drawn.token)),
        };
        self.drawn = output.rows.iter().map(token).collect();
        self.done.push_back(output);
        Ok(())
    }
}

impl Backend for ToyDevice {
    fn name(&self) -> String {
        "toy device".into()
    }
    fn vocab_size(&self) -> usize {
        self.toy.vocab_size()
    }
    fn max_positions(&self) -> usize {
        self.toy.max_positions()
    }
    fn kv_block_bytes(&self) -> usize {
        self.toy.kv_block_bytes()
    }
    fn weight_bytes(&self) -> usize {
        self.toy.weight_bytes()
    }
    fn allocate_kv(&mut self, num_blocks: usize) -> Result<(), BackendError> {
        self.toy.allocate_kv(num_blocks)
    }
    fn forward(&mut self, plan: &StepPlan, logits: &mut Vec<f32>) -> Result<(), BackendError> {
        self.toy.forward(plan, logits)
    }
    fn stepper(&mut self) -> Option<&mut dyn DeviceSteps> {
        Some(self)
    }
}

impl DeviceSteps for ToyDevice {
    fn start(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        self.ask(Call::Start)?;
        let started = self.waiting.len() + self.done.len();
        assert!(started < MAX_STARTED, "too many steps at once");
        assert!(plan.carried.is_empty() || started == 1, "carried over from no step");
        for (wanted, row) in plan.wanted.iter().zip(&plan.logits_rows) {
            assert!((*row as usize) < plan.num_rows());
            if let Wanted::Token(draw) = wanted {
                assert_eq!(draw.position, u64::from(plan.positions[*row as usize]) + 1);
            }
        }
        match self.runs {
            Runs::AtStart => self.run(plan.clone()),
            Runs::AtFinish => {
                self.waiting.push_back(plan.clone());
                Ok(())
            }
        }
    }

    fn finish(&mut self, output: &mut StepOutput) -> Result<(), BackendError> {
        self.ask(Call::Finish)?;
        if let Some(plan) = self.waiting.pop_front() {
            self.run(plan)?;
        }
        *output = self.done.pop_front().expect("a step was started");
        Ok(())
    }

    fn may_run_ahead(&self) -> bool {
        true
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29)
}

fn toy_logits(attended: impl Iterator<Item = Option<(u32, u32)>>) -> impl Iterator<Item = f32> {
    let hash = attended.fold(1, |hash, slot| match slot {
        Some((token, position)) => mix(mix(hash, u64::from(token) + 1), u64::from(position) + 1),
        None => mix(hash, u64::MAX),
    });
    (0..VOCAB_SIZE as u64).map(move |id| (mix(mix(hash, id + 1), 3) >> 40) as f32 / (1u64 << 21) as f32)
}

fn logits_after(tokens: &[u32]) -> Vec<f32> {
    toy_logits(tokens.iter().zip(0..).map(|(&token, position)| Some((token, position)))).collect()
}

/// What `request` gives alone, computed without any of the engine's machinery but the sampling.
pub(crate) fn solo(request: &Request, max_model_len: usize) -> (Vec<u32>, FinishReason) {
    let params = &request.params;
    let mut tokens = request.prompt.clone();
    let output = |tokens: &[u32]| tokens[request.prompt.len()..].to_vec();
    if params.max_tokens == 0 {
        return (Vec::new(), FinishReason::MaxTokens);
    }
    loop {
        let seed = params.seed.unwrap_or(0);
        let id = Draw::new(params, seed, tokens.len() as u64)
            .choose(&logits_after(&tokens))
            .expect("finite logits");
        if (id == EOS && !params.ignore_eos) || params.stop_token_ids.contains(&id) {
            return (output(&tokens), FinishReason::StopToken(id));
        }
        tokens.push(id);
        if tokens.len() - request.prompt.len() == params.max_tokens {
            return (output(&tokens), FinishReason::MaxTokens);
        }
        if tokens.len() == max_model_len {
            return (output(&tokens), FinishReason::ContextFull);
        }
    }
}

/// The log-probabilities that come with the tokens `request` gave: `count` for each.
pub(crate) fn solo_logprobs(request: &Request, ids: &[u32]) -> Vec<Vec<(u32, f32)>> {
    let tokens = [&request.prompt, ids].concat();
    (request.prompt.len()..tokens.len())
        .map(|end| top_logprobs(&logits_after(&tokens[..end]), request.params.top_logprobs))
        .collect()
}

/// Mean negative log-likelihood of a prompt after its first token.
pub(crate) fn solo_nll(prompt: &[u32]) -> Option<f64> {
    let nll = |end: usize| -log_probability(&logits_after(&prompt[..end]), prompt[end]);
    (prompt.len() > 1).then(|| (1..prompt.len()).map(nll).sum::<f64>() / (prompt.len() - 1) as f64)
}

pub(crate) fn config(num_blocks: usize) -> SchedulerConfig {
    SchedulerConfig {
        num_blocks,
        max_model_len: num_blocks * BLOCK_SIZE,
        vocab_size: VOCAB_SIZE,
        max_batch_tokens: 32,
        max_sequences: 4,
        max_waiting: 16,
        eos_token_ids: vec![EOS],
    }
}

pub(crate) fn model_info() -> ModelInfo {
    ModelInfo {
        name: "toy".into(),
        description: "toy".into(),
        max_model_len: 1024,
        vocab_size: VOCAB_SIZE,
        tokenizer: None,
    }
}

/// A prompt of `len` tokens that depends on `seed`.
pub(crate) fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u64)
        .map(|i| 1 + (mix(mix(7, u64::from(seed)), i) >> 33) as u32 % (VOCAB_SIZE as u32 - 1))
        .collect()
}

/// A request that never stops at end-of-text, so that its length is known.
pub(crate) fn request(prompt: Vec<u32>, max_tokens: usize) -> Request {
    let params = SamplingParams { max_tokens, ignore_eos: true, ..SamplingParams::default() };
    Request { params, ..Request::new(prompt, max_tokens) }
}

/// A scheduler and a toy backend, driven by hand.
pub(crate) struct Driver {
    pub(crate) scheduler: Scheduler,
    /// The plan made last.
    pub(crate) plan: StepPlan,
    device: Option<ToyDevice>,
    backend: ToyBackend,
    output: StepOutput,
    /// Steps started and not finished.
    pub(crate) started: usize,
}

impl Driver {
    pub(crate) fn new(config: SchedulerConfig) -> Self {
        let num_blocks = config.num_blocks;
        Self::over(Scheduler::new(config, None), num_blocks)
    }

    pub(crate) fn over(scheduler: Scheduler, num_blocks: usize) -> Self {
        let mut backend = ToyBackend::default();
        backend.allocate_kv(num_blocks).expect("memory");
        let (plan, output) = (StepPlan::default(), StepOutput::default());
        Self { scheduler, plan, device: None, backend, output, started: 0 }
    }

    /// Lets the toy draw the tokens, so that steps can be planned ahead.
    pub(crate) fn on_device(mut self, runs: Runs) -> Self {
        self.device = Some(ToyDevice { toy: std::mem::take(&mut self.backend), ..ToyDevice::new(runs) });
        self
    }

    pub(crate) fn submit(&mut self, request: Request) -> (SequenceId, Generation) {
        self.try_submit(request).expect("accepted")
    }

    pub(crate) fn try_submit(&mut self, request: Request) -> Result<(SequenceId, Generation), SubmitError> {
        let (sender, generation) = Generation::channel();
        self.scheduler.submit(request, sender, Instant::now()).map(|id| (id, generation))
    }

    /// Plans a step and starts it, unless one is under way. Returns whether one is.
    pub(crate) fn begin_step(&mut self) -> bool {
        if self.started == 0 && self.scheduler.schedule(&mut self.plan, Instant::now()) {
            self.start();
        }
        self.started > 0
    }

    /// Plans the step after the one under way and starts it. Returns whether it could be.
    pub(crate) fn begin_ahead(&mut self) -> bool {
        let planned = self.device.is_some() && self.scheduler.schedule_ahead(&mut self.plan, Instant::now());
        if planned {
            assert_eq!(self.plan.carried.len(), self.plan.num_rows());
            self.start();
        }
        planned
    }

    fn start(&mut self) {
        match &mut self.device {
            Some(device) => device.start(&self.plan),
            None => {
                self.output.set_all_logits(&self.plan);
                self.backend.forward(&self.plan, &mut self.output.logits)
            }
        }
        .expect("the toy does not fail");
        self.started += 1;
    }

    /// Finishes the oldest step under way and applies it.
    pub(crate) fn end_step(&mut self) {
        if let Some(device) = &mut self.device {
            device.finish(&mut self.output).expect("the toy does not fail");
        }
        self.started -= 1;
        self.scheduler.apply(&self.output, Instant::now());
    }

    pub(crate) fn step(&mut self) -> bool {
        let planned = self.begin_step();
        if planned {
            self.end_step();
        }
        planned
    }

    pub(crate) fn run_to_end(&mut self) {
        for _ in 0..10_000 {
            if !self.step() {
                return;
            }
        }
        panic!("no end in sight");
    }
}

/// Everything a finished generation sent.
pub(crate) struct Output {
    pub(crate) tokens: Vec<Token>,
    pub(crate) reason: FinishReason,
    pub(crate) usage: Usage,
}

impl Output {
    pub(crate) fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|token| token.id).collect()
    }

    pub(crate) fn text(&self) -> String {
        self.tokens.iter().map(|token| token.text.as_str()).collect()
    }
}

/// Reads a generation to its end, which must come.
pub(crate) fn collect(generation: &mut Generation) -> Output {
    let mut tokens = Vec::new();
    loop {
        match generation.blocking_next().expect("a stream ends with Finished") {
            Event::Started(_) => {}
            Event::Token(token) => tokens.push(token),
            Event::Finished(reason, usage) => {
                assert!(generation.blocking_next().is_none(), "Finished is the last event");
                assert_eq!(usage.generated_tokens, tokens.len());
                return Output { tokens, reason, usage };
            }
        }
    }
}
