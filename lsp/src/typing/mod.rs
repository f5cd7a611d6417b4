//! What is remembered of the typing in one document, so that few keystrokes need the engine.
//!
//! - A [`Draft`](draft::Draft) is a suggestion and the place it is for. It follows the edits: as long as the text typed
//!   there agrees with it, the rest of it is the answer.
//! - A [`Flight`](flight::Flight) is a generation under way. Requests wait for it together; text that agrees
//!   with it leaves it alone, text that does not ends it within a step of the engine.
//! - [`Rejections`](rejections::Rejections) remember what was shown and not wanted.
//! - [`Pace`](pace::Pace) knows the person's rhythm and says how long to wait before asking.
//!
//! Everything is under one short lock. Edits are told in their order ([`Typing::edited`]), on the edit path: each
//! costs a few comparisons of numbers and of the text typed since.

pub(crate) mod anchor;
pub(crate) mod draft;
pub(crate) mod flight;
pub mod options;
pub(crate) mod pace;
pub(crate) mod rejections;
mod survivors;
pub mod totals;

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use redstart_plugins::prompt::Snippet;
use redstart_syntax::caret::Caret;
use redstart_syntax::shape::Shaped;

use crate::snapshot::{Snapshot, TextEdit};
use crate::window::PromptMemory;
use anchor::Anchor;
use draft::Draft;
use flight::Flight;
use pace::Pace;
use rejections::Rejections;
use survivors::Survivors;

/// Drafts kept of a document. The last few are what undo, retyping and cycling come back to.
const MAX_DRAFTS: usize = 12;

/// What is remembered of the typing in one document.
#[derive(Default)]
pub struct Typing {
    state: Mutex<State>,
    windows: Arc<PromptMemory>,
}

#[derive(Default)]
struct State {
    /// Version of the document that the last edit made.
    version: i32,
    /// Cursors that the editor typed with at the last edit.
    cursors: usize,
    /// Counts edits.
    edits: u64,
    /// Edits when a suggestion was last asked for.
    asked_at: u64,
    /// Newest first.
    drafts: VecDeque<Arc<Draft>>,
    /// For what is being typed.
    flight: Option<Arc<Flight>>,
    /// For what follows the suggestion on display.
    ahead: Option<Arc<Flight>>,
    rejections: Rejections,
    survivors: Survivors,
    /// Texts of accepted suggestions that are followed.
    accepted_texts: VecDeque<(u64, String)>,
    pace: Pace,
    /// What was accepted last, until the next edit.
    accepted: Option<Accepted>,
    /// Text from elsewhere that prompts begin with.
    snippets: Option<Arc<[Snippet]>>,
}

/// A suggestion that was just taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Accepted {
    /// Edits when it was.
    at_edit: u64,
    is_line: bool,
}

/// What an edit meant for what was suggested.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reaction {
    /// A suggestion was taken over whole by one edit.
    Accepted(u64),
    /// A word or a line of one was taken over by one edit: so many characters of it stand there now.
    PartiallyAccepted(u64, usize),
    /// One that was shown was not wanted.
    Rejected(u64),
}

/// The rest of a draft.
pub(crate) struct Rest {
    pub(crate) draft: Arc<Draft>,
    pub(crate) shaped: Shaped,
}

impl Typing {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Where prompts for the document had their window.
    pub(crate) fn windows(&self) -> Arc<PromptMemory> {
        Arc::clone(&self.windows)
    }

    /// Follows an edit of the text. `after` is the text with it. Returns what it meant for what was suggested.
    pub(crate) fn edited(&self, edit: &TextEdit, before: &Snapshot, after: &Snapshot) -> Vec<Reaction> {
        let mut state = self.lock();
        state.version = after.version;
        state.edits += 1;
        state.pace.key_pressed(Instant::now());
        state.survivors.edited(edit);
        let mut reactions = Vec::new();
        let mut kept = VecDeque::with_capacity(MAX_DRAFTS);
        for draft in std::mem::take(&mut state.drafts) {
            let (fate, reaction) = draft.follow(edit, before, after);
            if let Some(Reaction::Accepted(_)) = reaction {
                state.follow_accepted(&draft);
            }
            reactions.extend(reaction);
            match fate {
                draft::Fate::Agrees => kept.push_back(draft),
                draft::Fate::Rejected(rejection) => state.rejections.add(rejection),
                draft::Fate::Gone => {}
            }
        }
        state.drafts = kept;
        if !state.rejections.is_empty() && !edit.bytes.is_empty() {
            let removed = before.text.byte_slice(edit.bytes.clone()).to_string();
            let line = after.text.line(after.text.byte_to_line(edit.bytes.start));
            if removed.contains('\n') || line.chars().all(char::is_whitespace) {
                state.rejections.forget_lines(&removed);
            }
        }
        if reactions.iter().any(|reaction| matches!(reaction, Reaction::Accepted(_))) {
            state.accepted = Some(Accepted { at_edit: state.edits, is_line: !edit.inserted.contains('\n') });
        }
        for flight in [state.flight.clone(), state.ahead.clone()].into_iter().flatten() {
            if !flight.follow(edit, before, after) {
                flight.cancel();
            }
        }
        state.forget_ended_flights();
        reactions
    }

    /// Notes with how many cursors the editor typed, and the version of the document that came of it.
    pub fn version_is(&self, version: i32, cursors: usize) {
        let mut state = self.lock();
        state.version = version;
        state.cursors = cursors;
    }

    /// Edits so far: to see later whether there were more.
    pub fn edits(&self) -> u64 {
        self.lock().edits
    }

    /// Notes that a suggestion is asked for.
    pub(crate) fn asked(&self) {
        let mut state = self.lock();
        state.asked_at = state.edits;
    }

    /// Whether one was asked for since the last edit.
    pub fn is_asked(&self) -> bool {
        let state = self.lock();
        state.asked_at == state.edits
    }

    /// Cursors that the editor typed with at the last edit.
    pub(crate) fn cursors(&self) -> usize {
        self.lock().cursors.max(1)
    }

    /// Whether the last edit took over a suggestion of a single line.
    pub(crate) fn just_accepted_line(&self) -> bool {
        let state = self.lock();
        state.accepted.is_some_and(|accepted| accepted.is_line && accepted.at_edit == state.edits)
    }

    /// The rest of a draft that agrees with what is typed before `caret`: the longest one.
    pub(crate) fn rest(&self, snapshot: &Snapshot, caret: &Caret, unasked: bool) -> Option<Rest> {
        let state = self.lock();
        if snapshot.version != state.version {
            return None;
        }
        let welcome = |text: &str| !unasked || state.rejections.allow(&snapshot.text, caret.byte(), text);
        state
            .drafts
            .iter()
            .filter_map(|draft| Some(Rest { draft: Arc::clone(draft), shaped: draft.rest(snapshot, caret)? }))
            .filter(|rest| welcome(&rest.shaped.text))
            // Of equally long ones the newest, which comes first.
            .rev()
            .max_by_key(|rest| rest.shaped.text.len())
    }

    /// Every different rest that agrees, the longest first.
    pub(crate) fn rests(&self, snapshot: &Snapshot, caret: &Caret) -> Vec<Rest> {
        let state = self.lock();
        if snapshot.version != state.version {
            return Vec::new();
        }
        let rest = |draft: &Arc<Draft>| {
            Some(Rest { draft: Arc::clone(draft), shaped: draft.rest(snapshot, caret)? })
        };
        let mut rests: Vec<Rest> = state.drafts.iter().filter_map(rest).collect();
        rests.sort_by_key(|rest| std::cmp::Reverse(rest.shaped.text.len()));
        rests
    }

    /// Whether `text` may be suggested unasked: it was not shown here and turned down.
    pub(crate) fn allows(&self, snapshot: &Snapshot, caret: usize, text: &str) -> bool {
        self.lock().rejections.allow(&snapshot.text, caret, text)
    }

    /// A generation under way that agrees with what is typed before `caret`. One that was started ahead is
    /// from now on waited for.
    pub(crate) fn join(&self, snapshot: &Snapshot, caret: usize) -> Option<Arc<Flight>> {
        let mut state = self.lock();
        state.forget_ended_flights();
        if snapshot.version != state.version {
            return None;
        }
        if let Some(flight) = state.flight.as_ref().filter(|flight| flight.may_agree(snapshot, caret)) {
            return Some(Arc::clone(flight));
        }
        let ahead = state.ahead.take_if(|ahead| ahead.may_agree(snapshot, caret))?;
        ahead.await_now();
        if let Some(other) = state.flight.replace(Arc::clone(&ahead)) {
            other.cancel();
        }
        Some(ahead)
    }

    /// Takes in a generation that a request starts, in place of the one before. False, and it is not taken in,
    /// when the text has been edited since the request.
    pub(crate) fn take_off(&self, snapshot: &Snapshot, flight: Arc<Flight>) -> bool {
        let mut state = self.lock();
        if snapshot.version != state.version {
            return false;
        }
        if let Some(older) = state.flight.replace(flight) {
            older.cancel();
        }
        true
    }

    /// Takes in a generation started ahead of the request, in place of the one before. False, and it is not
    /// taken in, when the text has been edited since.
    pub(crate) fn take_off_ahead(&self, snapshot: &Snapshot, flight: Arc<Flight>) -> bool {
        let mut state = self.lock();
        if snapshot.version != state.version {
            return false;
        }
        if let Some(older) = state.ahead.replace(flight) {
            older.cancel();
        }
        true
    }

    /// Whether there is, or will be, something for a caret in a text as it may become.
    pub(crate) fn is_known(&self, text: &Snapshot, caret: &Caret) -> bool {
        let mut state = self.lock();
        state.forget_ended_flights();
        let may_agree = |flight: &Arc<Flight>| flight.may_agree(text, caret.byte());
        state.drafts.iter().any(|draft| draft.rest(text, caret).is_some())
            || [&state.flight, &state.ahead].into_iter().flatten().any(may_agree)
    }

    /// Notes that a suggestion is on display. True for the first time.
    pub(crate) fn shown(&self, id: u64) -> bool {
        self.lock().drafts.iter().find(|draft| draft.id == id).is_some_and(|draft| draft.shown())
    }

    /// Notes that a suggestion was accepted. False when that is known already, or the suggestion is not.
    pub fn accept(&self, id: u64) -> bool {
        let mut state = self.lock();
        let known = state.drafts.iter().find(|draft| draft.id == id).cloned();
        if let Some(draft) = &known {
            state.accepted = Some(Accepted { at_edit: state.edits, is_line: !draft.text.contains('\n') });
        }
        let Some(draft) = known.filter(|draft| draft.accepted()) else { return false };
        state.follow_accepted(&draft);
        true
    }

    /// What was suggested under this number.
    pub(crate) fn text_of(&self, id: u64) -> Option<String> {
        let state = self.lock();
        state.drafts.iter().find(|draft| draft.id == id).map(|draft| draft.own_text().to_owned())
    }

    /// The text of an accepted suggestion, and the bytes of the document that are its place now. It is no longer
    /// followed.
    pub(crate) fn survivor(&self, id: u64) -> Option<(String, Range<usize>)> {
        let mut state = self.lock();
        let place = state.survivors.take(id)?;
        let index = state.accepted_texts.iter().position(|(accepted, _)| *accepted == id)?;
        Some((state.accepted_texts.remove(index)?.1, place))
    }

    /// Has prompts begin with these texts from elsewhere. What they begin with already keeps its place up to
    /// the first text that is no longer among them. Returns whether that changes them.
    pub(crate) fn surround(&self, found: Vec<Snippet>) -> bool {
        let mut state = self.lock();
        let old = state.snippets.clone().unwrap_or_default();
        let stay = old.iter().take_while(|one| found.iter().any(|other| is_same(one, other)));
        let mut new: Vec<Snippet> = stay.cloned().collect();
        for one in found {
            if !new.iter().any(|other| is_same(&one, other)) {
                new.push(one);
            }
        }
        let changed = new.len() != old.len() || !new.iter().zip(old.iter()).all(|(a, b)| is_same(a, b));
        state.snippets = Some(new.into());
        changed
    }

    /// Keeps a draft for the text as it is.
    pub(crate) fn keep(&self, snapshot: &Snapshot, draft: &Arc<Draft>) {
        let mut state = self.lock();
        if snapshot.version == state.version {
            state.drafts.push_front(Arc::clone(draft));
            state.drafts.truncate(MAX_DRAFTS);
        }
    }

    /// Text from elsewhere that prompts begin with.
    pub(crate) fn snippets(&self) -> Arc<[Snippet]> {
        self.lock().snippets.clone().unwrap_or_default()
    }

    /// Keeps what a flight brought: the draft that `make` makes of where it is by now and what is typed there.
    /// `None` when the text has left it behind.
    pub(crate) fn land(
        &self,
        flight: &Flight,
        make: impl FnOnce(Anchor, &str) -> Draft,
    ) -> Option<Arc<Draft>> {
        let mut state = self.lock();
        if flight.is_cancelled() {
            return None;
        }
        let (anchor, typed) = flight.place();
        let draft = Arc::new(make(anchor, &typed));
        state.drafts.push_front(Arc::clone(&draft));
        state.drafts.truncate(MAX_DRAFTS);
        Some(draft)
    }

    /// Drops the drafts that the user turned down by saying so.
    pub fn reject(&self, id: u64, text: &Snapshot) -> bool {
        let mut state = self.lock();
        let Some(index) = state.drafts.iter().position(|draft| draft.id == id) else { return false };
        let draft = state.drafts.remove(index).expect("it was found");
        state.rejections.add(draft.rejection(text));
        true
    }

    /// Ends what is being generated: nobody will ask again.
    pub fn abandon(&self) {
        self.lock().end_flights();
    }

    /// How long to wait before the engine is asked, given how fast it answers.
    pub(crate) fn pace(&self) -> Pace {
        self.lock().pace.clone()
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.end_flights();
    }
}

fn is_same(a: &Snippet, b: &Snippet) -> bool {
    a.path == b.path && a.text == b.text
}

impl State {
    /// Follows what was accepted, to see later how much of it stays.
    fn follow_accepted(&mut self, draft: &Draft) {
        self.survivors.follow(draft.id, draft.place());
        self.accepted_texts.truncate(MAX_DRAFTS);
        self.accepted_texts.push_front((draft.id, draft.own_text().to_owned()));
    }

    fn end_flights(&mut self) {
        for flight in [self.flight.take(), self.ahead.take()].into_iter().flatten() {
            flight.cancel();
        }
    }

    fn forget_ended_flights(&mut self) {
        self.flight.take_if(|flight| flight.has_ended());
        self.ahead.take_if(|flight| flight.has_ended());
    }
}

#[cfg(test)]
mod tests;
