//! A generation under way, and the requests that wait for it.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use redstart_engine::generator::Control;
use redstart_syntax::caret::Caret;
use redstart_syntax::scope::Scope;
use redstart_syntax::shape;
use tokio::sync::watch;

use super::anchor::{Anchor, Followed, agreement};
use super::draft::Draft;
use super::totals::Account;
use crate::assistant::NoSuggestion;
use crate::snapshot::{Snapshot, TextEdit};

/// How long a generation goes on for nobody. Editors cancel a request before they send the next one, which
/// mostly agrees with it.
const GRACE: Duration = Duration::from_millis(250);

/// Longest text that a generation is compared with.
const LONGEST: usize = 4096;

/// A generation for a place in a document. Text typed there may run ahead of it, as long as they agree.
pub(crate) struct Flight {
    /// What must be typed at the place before the generation's text follows; with the document's line ends.
    lead: String,
    /// The caret that the text is generated for, behind the lead.
    pub(crate) caret: Caret,
    pub(crate) scope: Scope,
    /// Whether it was started before anybody asked.
    pub(crate) is_ahead: bool,
    pub(crate) account: Arc<Account>,
    track: Mutex<Track>,
    progress: watch::Sender<Progress>,
    waiters: AtomicUsize,
    cancelled: AtomicBool,
    awaited: AtomicBool,
    control: Mutex<Option<Control>>,
    panic: Mutex<Option<Panic>>,
}

/// What a panic was thrown with.
pub(crate) type Panic = Box<dyn std::any::Any + Send>;

struct Track {
    anchor: Anchor,
    /// What is typed at the place.
    typed: String,
}

/// How far a generation is.
#[derive(Default)]
pub(crate) struct Progress {
    /// What is generated so far and will be kept, with `\n` line ends.
    pub(crate) raw: String,
    /// How sure the model is of its first line, 0 to 1.
    pub(crate) confidence: f32,
    /// How it ended.
    pub(crate) outcome: Option<Result<Arc<Draft>, NoSuggestion>>,
}

impl Flight {
    /// A generation for `caret`, which is at `anchor` behind `lead`.
    pub(crate) fn new(
        anchor: Anchor,
        lead: String,
        caret: Caret,
        scope: Scope,
        is_ahead: bool,
        account: Arc<Account>,
    ) -> Arc<Self> {
        Arc::new(Self {
            lead,
            caret,
            scope,
            is_ahead,
            account,
            track: Mutex::new(Track { anchor, typed: String::new() }),
            progress: watch::Sender::default(),
            waiters: AtomicUsize::new(0),
            cancelled: AtomicBool::new(false),
            awaited: AtomicBool::new(!is_ahead),
            control: Mutex::default(),
            panic: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Track> {
        self.track.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where it is, as the edits so far moved it, and what is typed there.
    pub(crate) fn place(&self) -> (Anchor, String) {
        let track = self.lock();
        (track.anchor.clone(), track.typed.clone())
    }

    /// The text that must be typed before it.
    pub(crate) fn lead(&self) -> &str {
        &self.lead
    }

    /// Follows an edit. False when the text no longer agrees.
    pub(crate) fn follow(&self, edit: &TextEdit, before: &Snapshot, after: &Snapshot) -> bool {
        let mut track = self.lock();
        match track.anchor.follow(edit, &before.text, &after.text, LONGEST) {
            Followed::Typed(typed) => {
                let went_back = typed.len() < track.typed.len() && !typed.starts_with(&*track.typed);
                track.typed = typed;
                // Text that was typed and erased again says that the suggestion is not wanted.
                !went_back && self.agrees(&track.typed)
            }
            Followed::Elsewhere => true,
            Followed::Backspaced | Followed::Lost => false,
        }
    }

    /// Whether what is typed before `caret` agrees with what is generated so far.
    pub(crate) fn may_agree(&self, snapshot: &Snapshot, caret: usize) -> bool {
        let typed = self.lock().anchor.typed_before(snapshot, caret, LONGEST);
        typed.is_some_and(|typed| self.agrees(&typed))
    }

    fn agrees(&self, typed: &str) -> bool {
        let progress = self.progress.borrow();
        match &progress.outcome {
            Some(Ok(draft)) => agreement(&draft.text, typed).is_some(),
            Some(Err(_)) => false,
            None => {
                let typed = with_newlines(typed);
                let lead = with_newlines(&self.lead);
                let goes_on = |raw: &str| {
                    let text = format!("{lead}{raw}");
                    typed.starts_with(&text) || agreement(&text, &typed).is_some()
                };
                goes_on(&progress.raw)
                    || shape::shape(&progress.raw, &self.caret, self.scope)
                        .is_some_and(|shaped| goes_on(&with_newlines(&shaped.text)))
            }
        }
    }

    /// Begins to wait for it.
    pub(crate) fn wait(self: &Arc<Self>, grace: bool) -> Waiting {
        self.waiters.fetch_add(1, Ordering::AcqRel);
        Waiting { flight: Arc::clone(self), progress: self.progress.subscribe(), grace }
    }

    /// From now on it ranks as what somebody waits for.
    pub(crate) fn await_now(&self) {
        self.awaited.store(true, Ordering::Release);
        if let Some(control) = &*self.control.lock().unwrap_or_else(PoisonError::into_inner) {
            control.await_now();
        }
    }

    /// Ends it within a step of the engine.
    pub(crate) fn cancel(&self) {
        self.cancelled.store(true, Ordering::Release);
        if let Some(control) = &*self.control.lock().unwrap_or_else(PoisonError::into_inner) {
            control.cancel();
        }
    }

    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Acquire)
    }

    /// Notes the generation that was submitted for it.
    pub(crate) fn submitted(&self, control: Control) {
        let mut held = self.control.lock().unwrap_or_else(PoisonError::into_inner);
        // Said before there was anything to say it to.
        if self.is_cancelled() {
            control.cancel();
        }
        if self.awaited.load(Ordering::Acquire) && self.is_ahead {
            control.await_now();
        }
        *held = Some(control);
    }

    /// Notes how far the generation is.
    pub(crate) fn generated(&self, raw: &str, confidence: f32) {
        self.progress.send_modify(|progress| {
            raw.clone_into(&mut progress.raw);
            progress.confidence = confidence;
        });
    }

    /// Notes how it ended.
    pub(crate) fn land(&self, outcome: Result<Arc<Draft>, NoSuggestion>) {
        self.progress.send_modify(|progress| progress.outcome = Some(outcome));
    }

    /// Notes that its task panicked: one of the requests that wait goes on with the panic.
    pub(crate) fn crash(&self, panic: Panic) {
        *self.panic.lock().unwrap_or_else(PoisonError::into_inner) = Some(panic);
        self.land(Err(NoSuggestion::Failed("the generation panicked".to_owned())));
    }

    /// The panic, for the first who asks.
    pub(crate) fn take_panic(&self) -> Option<Panic> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(crate) fn has_ended(&self) -> bool {
        self.is_cancelled() || self.progress.borrow().outcome.is_some()
    }
}

fn with_newlines(text: &str) -> String {
    text.replace("\r\n", "\n")
}

/// A request that waits. When the last one lets go, the generation is ended, after a moment in which
/// another may come.
pub(crate) struct Waiting {
    flight: Arc<Flight>,
    pub(crate) progress: watch::Receiver<Progress>,
    grace: bool,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let flight = Arc::clone(&self.flight);
        if flight.waiters.fetch_sub(1, Ordering::AcqRel) > 1 || flight.has_ended() {
            return;
        }
        let nobody_waits = move || {
            if flight.waiters.load(Ordering::Acquire) == 0 && !flight.has_ended() {
                flight.cancel();
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) if self.grace => {
                runtime.spawn(async move {
                    tokio::time::sleep(GRACE).await;
                    nobody_waits();
                });
            }
            _ => nobody_waits(),
        }
    }
}
