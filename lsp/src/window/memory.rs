//! Where the last windows of a document were, so that the next one can be there too.

use std::sync::{Mutex, PoisonError};

use ropey::Rope;

use super::change::Change;
use super::{Window, WindowBudget, fresh_end, fresh_start, normalized};

/// Places of the caret that are remembered: here, where one came from, and a little more. Going back
/// to one asks for the prompt that was asked for there, which the engine may still have.
const REMEMBERED: usize = 4;

/// Text typed since the window was placed that may stand after the middle token, in lines and in
/// bytes: `docs/MEASUREMENTS.md`, "Prompt layouts", has other lengths.
const MIDDLE_LINES: usize = 16;
const MIDDLE_BYTES: usize = 1024;

/// What editors insert on their own after the caret, and how much of it at most.
const AUTO_CLOSED: &str = ")]}>\"'`;, \t";
const MAX_AUTO_CLOSED: usize = 8;

/// Places the windows of one document so that prompts begin alike from one request to the next. Keeps
/// no text but versions of the document, which share their memory with the document itself.
///
/// Three things are kept, each for as long as its own rule holds:
///
/// - **The start** of the prefix, as a place in the text: edits above move it along. It holds until the
///   text up to the caret outgrows the budget, and while the caret moves inside the window, as long as
///   a quarter of the budget is left before the caret.
/// - **The suffix**, as text. It is used again exactly when the document goes on after the caret with
///   that same text, or with closing brackets, quotes, `;`, `,` and blanks, at most eight of them on the
///   caret's line, and then that same text: editors insert those on their own, and the model can do
///   without. So it survives typing, Enter, accepted lines and edits above; not an edit within it, a
///   caret on another line, text typed over, or a closing bracket that is no longer there. A suffix
///   that reached the end of the document must reach it still.
/// - **The anchor**, where the text "typed since" begins: the start of the caret's line when
///   the suffix was taken. It holds with its suffix and start, up to 16 lines or 1,024 bytes. When the
///   suffix is taken anew the anchor is too: everything after it is computed again anyway.
#[derive(Default)]
pub struct PromptMemory {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The version that positions are in.
    text: Rope,
    /// The newest first.
    placements: Vec<Placement>,
}

struct Placement {
    budget: WindowBudget,
    /// Bytes at which the prefix and the text typed since begin.
    start: usize,
    anchor: usize,
    suffix: Suffix,
}

/// The text after the caret as prompts have it.
struct Suffix {
    text: String,
    /// Whether the document ended with it.
    to_end: bool,
}

impl PromptMemory {
    /// The window around byte `caret` of `text` for a prompt of about `tokens` tokens.
    ///
    /// `caret` must be a char boundary within the text.
    pub fn place(&self, text: &Rope, caret: usize, tokens: usize) -> Window {
        let budget = WindowBudget::of(tokens);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.follow(text);
        state.placements.retain(|placement| placement.budget == budget);
        let placement = match state.take_fitting(text, caret) {
            Some(placement) => placement,
            None => state.new_placement(text, caret, budget),
        };
        let window = placement.window(text, caret);
        state.placements.insert(0, placement);
        state.placements.truncate(REMEMBERED);
        window
    }
}

impl State {
    /// Moves what is remembered to where it is in `text`, and forgets what an edit went through.
    fn follow(&mut self, text: &Rope) {
        let change = Change::between(&self.text, text);
        self.placements.retain_mut(|placement| {
            let moved = change.moved(placement.start).zip(change.moved(placement.anchor));
            moved.inspect(|&(start, anchor)| (placement.start, placement.anchor) = (start, anchor)).is_some()
        });
        self.text = text.clone();
    }

    /// Takes out the newest placement that serves as it is.
    fn take_fitting(&mut self, text: &Rope, caret: usize) -> Option<Placement> {
        let fits = |placement: &Placement| {
            placement.reaches(caret)
                && placement.anchors(text, caret)
                && placement.suffix.continues(text, caret)
        };
        let index = self.placements.iter().position(fits)?;
        Some(self.placements.remove(index))
    }

    /// A new placement that keeps as much as it can of those remembered, and takes the place of the one
    /// that has its suffix.
    fn new_placement(&mut self, text: &Rope, caret: usize, budget: WindowBudget) -> Placement {
        let start = self.placements.iter().find(|placement| placement.reaches(caret));
        let start =
            start.map_or_else(|| fresh_start(text, caret, budget.prefix), |placement| placement.start);
        let continued = self.placements.iter().position(|placement| placement.suffix.continues(text, caret));
        let suffix = match continued {
            Some(index) => self.placements.remove(index).suffix,
            None => Suffix::new(text, caret, budget.suffix),
        };
        let line = text.line_to_byte(text.byte_to_line(caret));
        Placement { budget, start, anchor: line.max(start), suffix }
    }
}

impl Placement {
    /// Whether a prefix from this start up to the caret is within the budget and not too short.
    fn reaches(&self, caret: usize) -> bool {
        let enough = if self.start == 0 { 0 } else { self.budget.prefix / 4 };
        caret.checked_sub(self.start).is_some_and(|length| (enough..=self.budget.prefix).contains(&length))
    }

    /// Whether the text between the anchor and the caret may all be the middle.
    fn anchors(&self, text: &Rope, caret: usize) -> bool {
        self.anchor <= caret
            && caret - self.anchor <= MIDDLE_BYTES
            && text.byte_to_line(caret) - text.byte_to_line(self.anchor) < MIDDLE_LINES
    }

    fn window(&self, text: &Rope, caret: usize) -> Window {
        let prefix = normalized(text, self.start, caret);
        let middle_bytes = normalized(text, self.anchor, caret).len();
        let first_line = text.byte_to_line(self.start);
        Window { prefix, suffix: self.suffix.text.clone(), first_line, middle_bytes }
    }
}

impl Suffix {
    fn new(text: &Rope, caret: usize, budget: usize) -> Self {
        let end = fresh_end(text, caret, budget);
        Self { text: normalized(text, caret, end), to_end: end == text.len_bytes() }
    }

    /// Whether the text after the caret is this one, but for what an editor closed on its own.
    fn continues(&self, text: &Rope, caret: usize) -> bool {
        // Line ends may take two bytes.
        let longest = self.text.len() + self.text.matches('\n').count() + MAX_AUTO_CLOSED;
        let rest = text.len_bytes() - caret;
        if self.to_end && rest > longest {
            return false;
        }
        let end = super::char_floor(text, caret + rest.min(longest));
        let after = normalized(text, caret, end);
        let closed = after.chars().take(MAX_AUTO_CLOSED).take_while(|c| AUTO_CLOSED.contains(*c));
        let mut skipped = 0;
        let same = |after: &str| if self.to_end { after == self.text } else { after.starts_with(&self.text) };
        same(&after)
            || closed.into_iter().any(|c| {
                skipped += c.len_utf8();
                same(&after[skipped..])
            })
    }
}

#[cfg(test)]
mod tests;
