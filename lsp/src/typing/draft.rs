//! A suggestion and the place it is for.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redstart_syntax::caret::Caret;
use redstart_syntax::shape::{self, Shaped};

use super::Reaction;
use super::anchor::{Anchor, Followed, agreement};
use super::rejections::Rejection;
use super::totals::Account;
use crate::assistant::SuggestionStats;
use crate::snapshot::{Snapshot, TextEdit};

/// A suggestion that follows the text as it is typed.
pub(crate) struct Draft {
    /// Names it towards the editor.
    pub(crate) id: u64,
    /// What is inserted at the place, with the document's line ends.
    pub(crate) text: String,
    /// Bytes at its start that must be typed before the rest is shown: the suggestion that this one continues.
    lead: usize,
    /// How it came about.
    pub(crate) stats: SuggestionStats,
    pub(crate) account: Arc<Account>,
    track: Mutex<Track>,
}

/// What became of it so far.
struct Track {
    anchor: Anchor,
    /// Most bytes of it that ever stood there.
    reached: usize,
    shown: bool,
    accepted: bool,
}

/// What an edit leaves of a draft.
pub(crate) enum Fate {
    /// It may be of use yet.
    Agrees,
    /// It was shown and is not wanted.
    Rejected(Rejection),
    /// Its place is gone.
    Gone,
}

impl Draft {
    /// A draft of `lead`, which is suggested already, and `shaped` after it, where `typed` stands at the place.
    pub(crate) fn new(
        anchor: Anchor,
        lead: &str,
        typed: &str,
        shaped: &Shaped,
        stats: SuggestionStats,
        account: Arc<Account>,
    ) -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(1);
        let text = format!("{lead}{}", shaped.text);
        let reached = agreement(&text, typed).unwrap_or(0);
        Self {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            text,
            lead: lead.len(),
            stats,
            account,
            track: Mutex::new(Track { anchor, reached, shown: false, accepted: false }),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Track> {
        self.track.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is left of it at a caret before which its beginning is typed.
    pub(crate) fn rest(&self, snapshot: &Snapshot, caret: &Caret) -> Option<Shaped> {
        let track = self.lock();
        let typed = track.anchor.typed_before(snapshot, caret.byte(), self.text.len())?;
        if typed.len() < self.lead || !self.text.starts_with(&typed) {
            return None;
        }
        shape::refit(&self.text[typed.len()..], caret)
    }

    /// Whether it was on display.
    pub(crate) fn is_shown(&self) -> bool {
        self.lock().shown
    }

    /// Notes that it is on display. True for the first time.
    pub(crate) fn shown(&self) -> bool {
        self.account.answered();
        !std::mem::replace(&mut self.lock().shown, true)
    }

    /// Its text without that of the suggestion it continues.
    pub(crate) fn own_text(&self) -> &str {
        &self.text[self.lead..]
    }

    /// The bytes of the document where its own text is when all of it is there.
    pub(crate) fn place(&self) -> Range<usize> {
        let at = self.lock().anchor.at();
        at + self.lead..at + self.text.len()
    }

    /// Notes that it was accepted. False when that is known already.
    pub(crate) fn accepted(&self) -> bool {
        !std::mem::replace(&mut self.lock().accepted, true)
    }

    /// Follows an edit.
    pub(crate) fn follow(
        &self,
        edit: &TextEdit,
        before: &Snapshot,
        after: &Snapshot,
    ) -> (Fate, Option<Reaction>) {
        let mut track = self.lock();
        let typed = match track.anchor.follow(edit, &before.text, &after.text, self.text.len()) {
            Followed::Typed(typed) => typed,
            Followed::Elsewhere => return (Fate::Agrees, None),
            Followed::Backspaced if track.shown => return self.turned_down(&track, before),
            Followed::Backspaced | Followed::Lost => return (Fate::Gone, None),
        };
        match agreement(&self.text, &typed) {
            Some(now) if now >= track.reached => {
                let reaction = self.taken_over(&track, now, edit);
                track.accepted |= matches!(reaction, Some(Reaction::Accepted(_)));
                track.reached = now;
                (Fate::Agrees, reaction)
            }
            _ if track.shown => self.turned_down(&track, before),
            // Nobody saw it: a typing error that is corrected may come back to it.
            _ => (Fate::Agrees, None),
        }
    }

    /// Whether an edit that brought the draft from what was reached to `now` bytes took over more of it than
    /// a key types.
    fn taken_over(&self, track: &Track, now: usize, edit: &TextEdit) -> Option<Reaction> {
        let taken = &self.text[track.reached..now];
        let by_key = edit.inserted.chars().nth(1).is_none() || taken.trim().chars().nth(1).is_none();
        if !track.shown || track.accepted || by_key || now <= self.lead {
            return None;
        }
        let so_far = self.text[self.lead..now].chars().count();
        let whole = now == self.text.len();
        Some(if whole { Reaction::Accepted(self.id) } else { Reaction::PartiallyAccepted(self.id, so_far) })
    }

    fn turned_down(&self, track: &Track, before: &Snapshot) -> (Fate, Option<Reaction>) {
        let rejection = Rejection::new(&before.text, track.anchor.at(), &self.text, track.reached);
        (Fate::Rejected(rejection), (!track.accepted).then_some(Reaction::Rejected(self.id)))
    }

    /// The account of its being turned down, in the text as it is.
    pub(crate) fn rejection(&self, text: &Snapshot) -> Rejection {
        let track = self.lock();
        Rejection::new(&text.text, track.anchor.at(), &self.text, track.reached)
    }
}
