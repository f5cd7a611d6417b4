//! The engine: a thread that owns a backend and runs the scheduler.

use std::any::Any;
use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio::sync::watch;

use crate::backend::{Backend, BackendError, DeviceSteps, MAX_STARTED};
use crate::generator::{Generation, Generator, ModelInfo};
use crate::inbox::{Arrival, Inbox};
use crate::request::{Event, FinishReason, Request, SubmitError, Usage};
pub use crate::scheduler::EngineStats;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::step_output::StepOutput;
use crate::step_plan::{BLOCK_SIZE, StepPlan};

/// The engine runs ahead of the tokens while a step takes less than this.
///
/// Running ahead hides the host's part of a step (planning, launching, reading back: some 50 to 100 µs), and
/// costs a keystroke that comes meanwhile the wait for two steps instead of one, and the device a row when a
/// sequence ends. At a millisecond a step that is a tenth gained for a wait nobody feels; at ten, a hundredth
/// for one that counts.
const RUN_AHEAD_BELOW: Duration = Duration::from_millis(3);

/// Size of the KV cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KvCacheSize {
    /// As many blocks as fit into this many bytes.
    Bytes(usize),
    /// This many blocks of [`BLOCK_SIZE`] tokens.
    Blocks(usize),
}

/// How an [`Engine`] uses its backend.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Size of the KV cache. It bounds the longest sequence too.
    pub kv_cache: KvCacheSize,
    /// Longest prompt plus output in tokens; `None`: what the model and the KV cache allow.
    pub max_model_len: Option<usize>,
    /// Tokens computed in one step at most. Cancelling and more urgent requests wait for a step.
    pub max_batch_tokens: usize,
    /// Sequences computed in one step at most; less than `max_batch_tokens`.
    pub max_sequences: usize,
    /// Requests of the same or a higher class that may wait for their first step; more are refused.
    pub max_waiting: usize,
}

impl Default for EngineOptions {
    fn default() -> Self {
        Self {
            kv_cache: KvCacheSize::Bytes(256 << 20),
            max_model_len: None,
            max_batch_tokens: 256,
            max_sequences: 8,
            max_waiting: 64,
        }
    }
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The KV cache is smaller than anything useful.
    #[error(
        "the KV cache is too small: {bytes} bytes hold {blocks} blocks of {block_bytes} bytes, at least {least} are needed"
    )]
    CacheTooSmall {
        /// Bytes asked for.
        bytes: usize,
        /// Blocks that fit.
        blocks: usize,
        /// Bytes of a block.
        block_bytes: usize,
        /// Least number of blocks.
        least: usize,
    },
    /// The wanted context is longer than the model or the KV cache allows.
    #[error("a context of {wanted} tokens was asked for; {by} allows {limit}")]
    ContextTooLong {
        /// Tokens asked for.
        wanted: usize,
        /// Tokens possible.
        limit: usize,
        /// What sets the limit.
        by: &'static str,
    },
    /// An option is out of range.
    #[error("{0}")]
    BadOption(String),
    /// The backend could not allocate the KV cache.
    #[error(transparent)]
    Backend(#[from] BackendError),
    /// The operating system gave no thread.
    #[error("the engine's thread could not be started: {0}")]
    Thread(std::io::Error),
}

/// A running engine. Dropping it fails what is still running and ends the thread.
#[derive(Debug)]
pub struct Engine {
    info: ModelInfo,
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// What the callers and the engine thread share.
#[derive(Debug)]
struct Shared {
    inbox: Inbox,
    /// Held to plan and to apply; never while the backend computes. Only the engine thread and [`Engine::stats`] take it.
    scheduler: Mutex<Scheduler>,
    /// Told when the thread ended by itself.
    failed: watch::Sender<Option<String>>,
}

impl Shared {
    /// The lock protects against concurrent use, not against a panic half way: after one, the thread
    /// ends and the scheduler is only used to tell the callers.
    fn scheduler(&self) -> MutexGuard<'_, Scheduler> {
        self.scheduler.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Allocates the KV cache and starts the engine thread, which owns `backend` from then on.
    ///
    /// # Errors
    /// When the options contradict each other or the model, or memory or threads cannot be had.
    pub fn start(
        mut backend: Box<dyn Backend>,
        mut info: ModelInfo,
        eos_token_ids: Vec<u32>,
        options: EngineOptions,
    ) -> Result<Self, EngineError> {
        let config = configure(backend.as_ref(), &info, eos_token_ids, &options)?;
        backend.allocate_kv(config.num_blocks)?;
        info.max_model_len = config.max_model_len;
        info.vocab_size = config.vocab_size;
        let scheduler = Scheduler::new(config, info.tokenizer.clone());
        let inbox = Inbox::new(scheduler.admission());
        let failed = watch::channel(None).0;
        let shared = Arc::new(Shared { inbox, scheduler: Mutex::new(scheduler), failed });
        let thread = std::thread::Builder::new()
            .name("redstart-engine".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run_until_stopped(&shared, backend.as_mut())
            })
            .map_err(EngineError::Thread)?;
        Ok(Self { info, shared, thread: Some(thread) })
    }

    /// Becomes the reason when the engine stops by itself: its device is lost, or a defect brought it down. Then
    /// it serves no more and another must be started. Closed when the engine is dropped.
    pub fn failure(&self) -> watch::Receiver<Option<String>> {
        self.shared.failed.subscribe()
    }

    /// A snapshot of the engine's counters. Waits for no step.
    pub fn stats(&self) -> EngineStats {
        let scheduler = self.shared.scheduler();
        let stats = scheduler.stats();
        EngineStats { waiting: stats.waiting + self.shared.inbox.len(), ..stats }
    }
}

impl Generator for Engine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        self.shared.inbox.submit(request)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.inbox.shut_down();
        if let Some(thread) = self.thread.take() {
            // The thread catches its own panics.
            let _ = thread.join();
        }
    }
}

fn configure(
    backend: &dyn Backend,
    info: &ModelInfo,
    eos_token_ids: Vec<u32>,
    options: &EngineOptions,
) -> Result<SchedulerConfig, EngineError> {
    const LEAST_BLOCKS: usize = 2;
    let block_bytes = backend.kv_block_bytes();
    let num_blocks = match options.kv_cache {
        KvCacheSize::Blocks(blocks) => blocks,
        KvCacheSize::Bytes(bytes) => bytes / block_bytes.max(1),
    };
    if num_blocks < LEAST_BLOCKS {
        let bytes = match options.kv_cache {
            KvCacheSize::Bytes(bytes) => bytes,
            KvCacheSize::Blocks(blocks) => blocks * block_bytes,
        };
        return Err(EngineError::CacheTooSmall {
            bytes,
            blocks: num_blocks,
            block_bytes,
            least: LEAST_BLOCKS,
        });
    }
    if options.max_sequences == 0 || options.max_waiting == 0 {
        return Err(EngineError::BadOption("max_sequences and max_waiting must be at least 1".into()));
    }
    if options.max_batch_tokens <= options.max_sequences {
        return Err(EngineError::BadOption(format!(
            "max_batch_tokens ({}) must be more than max_sequences ({})",
            options.max_batch_tokens, options.max_sequences
        )));
    }
    let limits = [
        (info.max_model_len.min(backend.max_positions()), "the model"),
        (num_blocks * BLOCK_SIZE, "the KV cache"),
    ];
    let (limit, by) = limits.into_iter().min_by_key(|&(limit, _)| limit).expect("there are two");
    let max_model_len = options.max_model_len.unwrap_or(limit);
    if max_model_len > limit {
        return Err(EngineError::ContextTooLong { wanted: max_model_len, limit, by });
    }
    if max_model_len < 2 {
        return Err(EngineError::BadOption(format!(
            "a context of {max_model_len} tokens leaves no room for a prompt and an answer"
        )));
    }
    Ok(SchedulerConfig {
        num_blocks,
        max_model_len,
        vocab_size: backend.vocab_size(),
        max_batch_tokens: options.max_batch_tokens,
        max_sequences: options.max_sequences,
        max_waiting: options.max_waiting,
        eos_token_ids,
    })
}

/// The engine thread. A panic, of the backend or of the scheduler, or the loss of the device ends the engine
/// but not the server: whoever waits is told, and later submissions are refused.
fn run_until_stopped(shared: &Shared, backend: &mut dyn Backend) {
    let outcome = catch_unwind(AssertUnwindSafe(|| match backend.stepper() {
        Some(device) => run(shared, device),
        None => run(shared, &mut AtOnce { backend, output: StepOutput::default() }),
    }));
    let failure = match outcome {
        Ok(Ok(())) => None,
        Ok(Err(lost)) => Some(lost.to_string()),
        Err(panic) => Some(format!("it panicked: {}", panic_message(panic.as_ref()))),
    };
    let reason = failure.clone().unwrap_or_else(|| "it was shut down".to_owned());
    tracing::debug!(%reason, "the engine thread ends");
    let message = format!("the engine stopped: {reason}");
    // The scheduler first: whoever has its lock finds each request in one of the two.
    let mut scheduler = shared.scheduler();
    let never_taken = shared.inbox.close(reason);
    // Before the callers are told: they may ask.
    if failure.is_some() {
        shared.failed.send_replace(failure);
    }
    for Arrival { request, sender, submitted } in never_taken {
        let usage =
            Usage { prompt_tokens: request.prompt.len(), total: submitted.elapsed(), ..Usage::default() };
        sender.send(Event::Finished(FinishReason::Failed(message.clone()), usage));
    }
    // After a panic of the scheduler its contracts may not hold; then the receivers find their channel
    // closed.
    let told = catch_unwind(AssertUnwindSafe(|| scheduler.fail_all(&message, Instant::now())));
    if told.is_err() {
        tracing::error!("the scheduler was left in disorder");
    }
}

/// Runs steps until the engine is shut down.
///
/// # Errors
/// When the device is lost.
fn run(shared: &Shared, device: &mut dyn DeviceSteps) -> Result<(), BackendError> {
    let mut plan = StepPlan::default();
    let mut output = StepOutput::default();
    let mut pace = Pace::default();
    let mut arrivals = Vec::new();
    let mut has_work = false;
    while shared.inbox.wait(has_work) {
        let mut scheduler = shared.scheduler();
        shared.inbox.take(&mut arrivals);
        for Arrival { request, sender, submitted } in arrivals.drain(..) {
            scheduler.take_over(request, sender, submitted);
        }
        let planned = match pace.started.len() {
            0 => scheduler.schedule(&mut plan, Instant::now()),
            1 if pace.is_short() && device.may_run_ahead() => {
                scheduler.schedule_ahead(&mut plan, Instant::now())
            }
            _ => false,
        };
        shared.inbox.set_waiting(scheduler.waiting());
        has_work = scheduler.has_work();
        drop(scheduler);
        if planned {
            pace.start();
            if let Err(error) = device.start(&plan) {
                give_up(shared, error)?;
                pace = Pace::default();
                continue;
            }
        }
        let may_start_another = planned && pace.started.len() < MAX_STARTED;
        if may_start_another || pace.started.is_empty() {
            continue;
        }
        match device.finish(&mut output) {
            Ok(()) => {
                pace.finish();
                shared.scheduler().apply(&output, Instant::now());
            }
            Err(error) => {
                give_up(shared, error)?;
                pace = Pace::default();
            }
        }
    }
    Ok(())
}

/// Fails what was running when a step failed. A lost device is handed on instead, for the engine to stop.
fn give_up(shared: &Shared, error: BackendError) -> Result<(), BackendError> {
    tracing::error!(%error, "the backend failed");
    if matches!(error, BackendError::Lost(_)) {
        return Err(error);
    }
    shared.scheduler().fail_running(&error.to_string(), Instant::now());
    Ok(())
}

/// When steps were started, and how long the last one took.
#[derive(Default)]
struct Pace {
    /// When each step under way was started, oldest first.
    started: VecDeque<Instant>,
    /// When the device was done with the last step, and for how long it had worked on it.
    last: Option<(Instant, Duration)>,
}

impl Pace {
    fn start(&mut self) {
        self.started.push_back(Instant::now());
    }

    fn finish(&mut self) {
        let now = Instant::now();
        let started = self.started.pop_front().expect("a step was started");
        // A step that was started ahead waited for the one before.
        let begun = self.last.map_or(started, |(end, _)| end.max(started));
        self.last = Some((now, now - begun));
    }

    fn is_short(&self) -> bool {
        self.last.is_some_and(|(_, took)| took < RUN_AHEAD_BELOW)
    }
}

/// A backend that only runs whole steps: a step is over when it is started.
struct AtOnce<'a> {
    backend: &'a mut dyn Backend,
    output: StepOutput,
}

impl DeviceSteps for AtOnce<'_> {
    fn start(&mut self, plan: &StepPlan) -> Result<(), BackendError> {
        self.output.set_all_logits(plan);
        self.backend.forward(plan, &mut self.output.logits)?;
        self.backend.draw(plan, &mut self.output);
        Ok(())
    }

    fn finish(&mut self, output: &mut StepOutput) -> Result<(), BackendError> {
        std::mem::swap(output, &mut self.output);
        Ok(())
    }

    fn may_run_ahead(&self) -> bool {
        false
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}
