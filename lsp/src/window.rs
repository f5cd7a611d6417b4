//! The part of a document that goes into a prompt.
//!
//! A window that moved with every keystroke would change the prompt's first token every time and
//! nothing could be served from the cache. So its start is a line number that is a multiple of a
//! block, and stays put until the text outgrows the budget; its end is counted from the caret's line,
//! so that typing new lines does not move it.

use ropey::Rope;

/// Bytes of source text per token, roughly; only sizes windows, the host counts real tokens.
const BYTES_PER_TOKEN: usize = 3;

/// Text before and after a caret (or a focus), with `\n` line ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Window {
    /// From the window's start to `before`.
    pub prefix: String,
    /// From `after` to the window's end.
    pub suffix: String,
    /// Zero-based line on which `prefix` starts.
    pub first_line: usize,
}

impl Window {
    /// The window around the bytes `before..after` of `text` for a prompt of about `tokens` tokens:
    /// two thirds before, up to a quarter after.
    ///
    /// `before <= after` must be char boundaries within the text.
    pub fn around(text: &Rope, before: usize, after: usize, tokens: usize) -> Self {
        let prefix_budget = tokens * BYTES_PER_TOKEN * 2 / 3;
        let suffix_budget = tokens * BYTES_PER_TOKEN / 4;
        let first_line = first_line(text, before, prefix_budget);
        // A first line longer than the whole budget (minified code) is cut rather than sent.
        let start = char_floor(text, text.line_to_byte(first_line).max(before.saturating_sub(prefix_budget)));
        let end = last_byte(text, after, suffix_budget);
        Self {
            prefix: normalized(text, start, before),
            suffix: normalized(text, after, end),
            first_line: text.byte_to_line(start),
        }
    }
}

/// The lowest block-aligned line from which the text up to `before` fits the budget. Falls back to the
/// caret's own line.
fn first_line(text: &Rope, before: usize, budget: usize) -> usize {
    let caret_line = text.byte_to_line(before);
    // Sixteen lines of a small window, more of a larger one: the window moves by about a fifth.
    let block = (budget / 160).next_power_of_two().clamp(4, 128);
    let reach = text.byte_to_line(before.saturating_sub(budget));
    let fits = if text.line_to_byte(reach) + budget < before { reach + 1 } else { reach };
    let aligned = fits.div_ceil(block) * block;
    aligned.min(caret_line)
}

/// The end of the last whole line after `after` that fits the budget.
fn last_byte(text: &Rope, after: usize, budget: usize) -> usize {
    let limit = after + budget;
    if limit >= text.len_bytes() {
        return text.len_bytes();
    }
    let line_start = text.line_to_byte(text.byte_to_line(limit));
    if line_start > after { line_start } else { char_floor(text, limit) }
}

/// The char boundary at or before `byte`.
fn char_floor(text: &Rope, byte: usize) -> usize {
    text.char_to_byte(text.byte_to_char(byte))
}

fn normalized(text: &Rope, start: usize, end: usize) -> String {
    let slice = text.byte_slice(start..end);
    let owned = slice.to_string();
    if owned.contains('\r') { owned.replace("\r\n", "\n") } else { owned }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(lines: usize) -> Rope {
        Rope::from_str(&(0..lines).map(|line| format!("value_{line} = {line}\n")).collect::<String>())
    }

    #[test]
    fn a_small_file_is_taken_whole() {
        let text = Rope::from_str("a\r\nb|c\r\n");
        let window = Window::around(&text, 4, 5, 100);
        assert_eq!((window.prefix.as_str(), window.suffix.as_str()), ("a\nb", "c\n"));
        assert_eq!(window.first_line, 0);
    }

    #[test]
    fn typing_seldom_moves_the_start() {
        let mut text = file(3000);
        let mut caret = text.line_to_byte(1500);
        let mut starts = Vec::new();
        for _ in 0..40 {
            for _ in 0..20 {
                text.insert(text.byte_to_char(caret), "x");
                caret += 1;
                starts.push(Window::around(&text, caret, caret, 448).first_line);
            }
            text.insert(text.byte_to_char(caret), "\n");
            caret += 1;
        }
        let moves = starts.windows(2).filter(|pair| pair[0] != pair[1]).count();
        assert!(moves <= 8, "the window moved {moves} times in 800 keystrokes");
    }

    #[test]
    fn typing_does_not_change_the_suffix() {
        let mut text = file(300);
        let caret = text.line_to_byte(150);
        let before = Window::around(&text, caret, caret, 448).suffix;
        text.insert(text.byte_to_char(caret), "new line\nand more");
        assert_eq!(Window::around(&text, caret + 17, caret + 17, 448).suffix, before);
    }

    #[test]
    fn long_lines_and_wide_characters_are_cut_at_characters() {
        let text = Rope::from_str(&"é".repeat(100_000));
        for caret in [0, 2, 50_000, 200_000] {
            let window = Window::around(&text, caret, caret, 448);
            assert!(window.prefix.len() <= 448 * 2 + 2, "{}", window.prefix.len());
            assert!(window.suffix.len() <= 448, "{}", window.suffix.len());
        }
    }

    #[test]
    fn an_empty_text_has_an_empty_window() {
        let window = Window::around(&Rope::new(), 0, 0, 448);
        assert_eq!(window, Window { prefix: String::new(), suffix: String::new(), first_line: 0 });
    }
}
