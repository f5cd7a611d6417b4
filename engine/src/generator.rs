//! The interface between the language server and whatever generates text.
//!
//! The in-process engine is one implementation; a scripted one drives the protocol tests; a client of
//! a remote server can be another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tokio::sync::mpsc;

use crate::request::{Event, FinishReason, Request, SubmitError, Usage};
use crate::tokenizer::Tokenizer;

/// Something that continues token sequences.
pub trait Generator: Send + Sync {
    /// What is known of the model behind it.
    fn model(&self) -> &ModelInfo;

    /// Starts a generation. Returns at once; dropping the [`Generation`] cancels it.
    ///
    /// # Errors
    /// When the request cannot be served; see [`SubmitError`].
    fn submit(&self, request: Request) -> Result<Generation, SubmitError>;
}

/// What a caller needs to know to build prompts for a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    /// Name for people: the directory's name, or `nano (embedded)`.
    pub name: String,
    /// Backend and weights in a few words, for status messages: `cpu (avx512), AWQ int4 g128`.
    pub description: String,
    /// Longest prompt plus output in tokens.
    pub max_model_len: usize,
    /// Number of token ids.
    pub vocab_size: usize,
    /// The model's tokenizer; `None` for a bare checkpoint, which only `inspect` can use.
    pub tokenizer: Option<Arc<Tokenizer>>,
}

/// A running generation: a stream of [`Event`]s. Dropping it cancels the work within one step.
#[derive(Debug)]
pub struct Generation {
    events: mpsc::UnboundedReceiver<Event>,
    control: Control,
    submitted: Instant,
    finished: bool,
}

/// What whoever asked can still say about a running generation, from anywhere.
#[derive(Clone, Debug, Default)]
pub struct Control {
    cancelled: Arc<AtomicBool>,
    awaited: Arc<AtomicBool>,
}

impl Control {
    /// Asks the generator to end the generation within one step. What was generated until then, and
    /// the account of it, can still be read.
    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
    }

    /// Somebody waits for it now: from the next step on it ranks as typing, whatever it was submitted as.
    pub fn await_now(&self) {
        self.awaited.store(true, Ordering::Release);
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    fn is_awaited(&self) -> bool {
        self.awaited.load(Ordering::Acquire)
    }
}

impl Generation {
    /// A connected pair, made when the request is taken over: the generator keeps the sender. The channel is unbounded because
    /// `max_tokens` bounds what can be in it.
    pub fn channel() -> (GenerationSender, Generation) {
        let (sender, events) = mpsc::unbounded_channel();
        let control = Control::default();
        let submitted = Instant::now();
        let generation = Generation { events, control: control.clone(), submitted, finished: false };
        (GenerationSender { events: sender, control }, generation)
    }

    /// The next event, or `None` after the last. A generator that vanished counts as failed.
    pub async fn next(&mut self) -> Option<Event> {
        let event = if self.finished {
            return None;
        } else {
            self.events.recv().await
        };
        Some(self.note(event))
    }

    /// [`next`](Self::next) for code outside an async runtime.
    pub fn blocking_next(&mut self) -> Option<Event> {
        let event = if self.finished {
            return None;
        } else {
            self.events.blocking_recv()
        };
        Some(self.note(event))
    }

    /// When the generator took the request over.
    pub fn submitted(&self) -> Instant {
        self.submitted
    }

    /// See [`Control::cancel`].
    pub fn cancel(&self) {
        self.control.cancel();
    }

    /// A handle by which others can cancel it or wait for it.
    pub fn control(&self) -> Control {
        self.control.clone()
    }

    fn note(&mut self, event: Option<Event>) -> Event {
        let event = event.unwrap_or_else(|| {
            Event::Finished(FinishReason::Failed("the engine stopped".into()), Usage::default())
        });
        self.finished = matches!(event, Event::Finished(..));
        event
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.cancel();
    }
}

/// The generator's end of a [`Generation`].
#[derive(Debug)]
pub struct GenerationSender {
    events: mpsc::UnboundedSender<Event>,
    control: Control,
}

impl GenerationSender {
    /// Sends an event; a receiver that is gone is not an error.
    pub fn send(&self, event: Event) {
        let _ = self.events.send(event);
    }

    /// What the receiver can say, for others to hear.
    pub(crate) fn control(&self) -> Control {
        self.control.clone()
    }

    /// Whether the receiver was dropped, or cancelled.
    pub fn is_cancelled(&self) -> bool {
        self.control.is_cancelled()
    }

    /// Whether somebody [waits for it now](Control::await_now).
    pub fn is_awaited(&self) -> bool {
        self.control.is_awaited()
    }
}
