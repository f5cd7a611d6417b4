//! The part of a document that goes into a prompt.
//!
//! A window that moved with every keystroke would change the prompt's first token every time and
//! nothing could be served from the engine's cache. So [`Window::around`] starts it at a line whose
//! number is a multiple of a block, and [`PromptMemory`] keeps it where it was for as long as that serves.

mod change;
mod memory;

pub use memory::PromptMemory;

use ropey::Rope;

/// Bytes of source text per token, roughly; only sizes windows, the host counts real tokens.
pub(crate) const BYTES_PER_TOKEN: usize = 3;

/// Text before and after a caret (or a focus), with `\n` line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// From the window's start to the caret.
    pub prefix: String,
    /// From the caret to the window's end.
    pub suffix: String,
    /// Zero-based line on which `prefix` starts.
    pub first_line: usize,
    /// Bytes at the end of `prefix` that were typed since the window was placed, whole lines of them
    /// and the caret's line so far. A layout with the suffix before the middle puts them after both.
    pub middle_bytes: usize,
}

impl Window {
    /// The window around the bytes `before..after` of `text` for a prompt of about `tokens` tokens:
    /// two thirds before, up to a quarter after.
    ///
    /// `before <= after` must be char boundaries within the text.
    pub fn around(text: &Rope, before: usize, after: usize, tokens: usize) -> Self {
        let budget = WindowBudget::of(tokens);
        let start = fresh_start(text, before, budget.prefix);
        let anchor = text.line_to_byte(text.byte_to_line(before)).max(start);
        Self {
            prefix: normalized(text, start, before),
            suffix: normalized(text, after, fresh_end(text, after, budget.suffix)),
            first_line: text.byte_to_line(start),
            middle_bytes: normalized(text, anchor, before).len(),
        }
    }

    /// Leaves `end` out of the prefix, if it ends so.
    pub fn cut_end(&mut self, end: &str) {
        if self.prefix.ends_with(end) {
            self.prefix.truncate(self.prefix.len() - end.len());
            self.middle_bytes = self.middle_bytes.saturating_sub(end.len());
        }
    }
}

/// Bytes on either side of the caret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WindowBudget {
    prefix: usize,
    suffix: usize,
}

impl WindowBudget {
    fn of(tokens: usize) -> Self {
        Self { prefix: tokens * BYTES_PER_TOKEN * 2 / 3, suffix: tokens * BYTES_PER_TOKEN / 4 }
    }
}

/// Where a window with nothing to hold on to starts: at the lowest block-aligned line from which the
/// text up to `before` fits the budget, or else at the caret's own line.
fn fresh_start(text: &Rope, before: usize, budget: usize) -> usize {
    let caret_line = text.byte_to_line(before);
    // Sixteen lines of a small window, more of a larger one: the window moves by about a fifth.
    let block = (budget / 160).next_power_of_two().clamp(4, 128);
    let reach = text.byte_to_line(before.saturating_sub(budget));
    let fits = if text.line_to_byte(reach) + budget < before { reach + 1 } else { reach };
    let aligned = fits.div_ceil(block) * block;
    let line_start = text.line_to_byte(aligned.min(caret_line));
    if before - line_start <= budget {
        return line_start;
    }
    // A line longer than the whole budget (minified code) is cut rather than sent, with room to grow.
    char_floor(text, before - budget * 3 / 4)
}

/// The end of the last whole line after `after` that fits the budget.
fn fresh_end(text: &Rope, after: usize, budget: usize) -> usize {
    let limit = after + budget;
    if limit >= text.len_bytes() {
        return text.len_bytes();
    }
    let line_start = text.line_to_byte(text.byte_to_line(limit));
    if line_start > after { line_start } else { char_floor(text, limit) }
}

/// The char boundary at or before `byte` that is not inside a `\r\n`.
fn char_floor(text: &Rope, byte: usize) -> usize {
    let floor = text.char_to_byte(text.byte_to_char(byte));
    let is_inside_break =
        floor > 0 && floor < text.len_bytes() && text.byte(floor) == b'\n' && text.byte(floor - 1) == b'\r';
    floor - usize::from(is_inside_break)
}

pub(crate) fn normalized(text: &Rope, start: usize, end: usize) -> String {
    let slice = text.byte_slice(start..end);
    let owned = slice.to_string();
    if owned.contains('\r') { owned.replace("\r\n", "\n") } else { owned }
}

#[cfg(test)]
mod tests;
