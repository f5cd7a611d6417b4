//! The engine: a thread that owns a backend and runs the scheduler.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::backend::{Backend, BackendError};
use crate::generator::{Generation, Generator, ModelInfo};
use crate::request::{Request, SubmitError};
pub use crate::scheduler::EngineStats;
use crate::scheduler::{Scheduler, SchedulerConfig};
use crate::step_plan::{BLOCK_SIZE, StepPlan};

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

/// What the callers and the engine thread share. The lock is held to submit, plan and apply; never
/// while the backend computes.
#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Signalled when there is work, or the engine shall stop. A cancelled generation needs no signal:
    /// while one exists the thread is not asleep.
    wake: Condvar,
}

#[derive(Debug)]
struct State {
    scheduler: Scheduler,
    /// Set by the owner to end the thread.
    shutdown: bool,
    /// Why the thread ended, once it did.
    stopped: Option<String>,
}

impl Shared {
    /// The lock protects against concurrent use, not against a panic half way: after one, the thread
    /// ends and the scheduler is only used to tell the callers.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
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
        let state = State { scheduler, shutdown: false, stopped: None };
        let shared = Arc::new(Shared { state: Mutex::new(state), wake: Condvar::new() });
        let thread = std::thread::Builder::new()
            .name("redstart-engine".into())
            .spawn({
                let shared = Arc::clone(&shared);
                move || run_until_stopped(&shared, backend.as_mut())
            })
            .map_err(EngineError::Thread)?;
        Ok(Self { info, shared, thread: Some(thread) })
    }

    /// A snapshot of the engine's counters. Waits for no step.
    pub fn stats(&self) -> EngineStats {
        self.shared.lock().scheduler.stats()
    }
}

impl Generator for Engine {
    fn model(&self) -> &ModelInfo {
        &self.info
    }

    fn submit(&self, request: Request) -> Result<Generation, SubmitError> {
        let (sender, generation) = Generation::channel();
        let mut state = self.shared.lock();
        if let Some(reason) = &state.stopped {
            return Err(SubmitError::Stopped(reason.clone()));
        }
        state.scheduler.submit(request, sender, Instant::now())?;
        drop(state);
        self.shared.wake.notify_one();
        Ok(generation)
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.lock().shutdown = true;
        self.shared.wake.notify_one();
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

/// The engine thread. A panic, of the backend or of the scheduler, ends the engine but not the server:
/// whoever waits is told, and later submissions are refused.
fn run_until_stopped(shared: &Shared, backend: &mut dyn Backend) {
    let outcome = catch_unwind(AssertUnwindSafe(|| run(shared, backend)));
    let reason = match outcome {
        Ok(()) => "it was shut down".to_owned(),
        Err(panic) => format!("it panicked: {}", panic_message(panic.as_ref())),
    };
    tracing::debug!(%reason, "the engine thread ends");
    let mut state = shared.lock();
    let message = format!("the engine stopped: {reason}");
    state.stopped = Some(reason);
    // After a panic of the scheduler its contracts may not hold; then the receivers find their channel closed.
    let told = catch_unwind(AssertUnwindSafe(|| state.scheduler.fail_all(&message, Instant::now())));
    if told.is_err() {
        tracing::error!("the scheduler was left in disorder");
    }
}

fn run(shared: &Shared, backend: &mut dyn Backend) {
    let mut plan = StepPlan::default();
    let mut logits = Vec::new();
    loop {
        let mut state = shared.lock();
        while !state.shutdown && !state.scheduler.has_work() {
            state = shared.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        if state.shutdown {
            return;
        }
        if !state.scheduler.schedule(&mut plan, Instant::now()) {
            continue;
        }
        drop(state);
        let outcome = backend.forward(&plan, &mut logits);
        let mut state = shared.lock();
        match outcome {
            Ok(()) => state.scheduler.apply(&logits, Instant::now()),
            Err(error) => {
                tracing::error!(%error, "the backend failed");
                state.scheduler.fail_running(&error.to_string(), Instant::now());
            }
        }
    }
}

fn panic_message(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<String>()
        .map(String::as_str)
        .or_else(|| panic.downcast_ref::<&str>().copied())
        .unwrap_or("without a message")
}
