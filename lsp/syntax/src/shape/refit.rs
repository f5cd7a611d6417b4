//! The rest of a suggestion of which the user has typed the first part.

use super::Shaped;
use super::rest::{brace_in_string, is_closer, leading_closers};
use crate::brackets::Brackets;
use crate::caret::{Caret, is_blank};
use crate::trigger::is_word;

/// What is left of an earlier [`Shaped`] at `caret`, after the user typed its first part: `remainder` is the rest of
/// its text, with the document's line ends. The text stays as it was, but for blanks at its end. What it
/// replaces is what the line now says twice: the bracket or quote that the editor added when the user typed its
/// partner. `None` when nothing is left to suggest.
pub fn refit(remainder: &str, caret: &Caret) -> Option<Shaped> {
    let text = remainder.trim_end();
    let rest = caret.line_suffix().trim_end();
    if text.is_empty() || text == rest.trim_start() {
        return None;
    }
    let replace = covered(text, rest, caret);
    (text != &rest[..replace]).then(|| Shaped { text: text.to_owned(), replace })
}

/// How many bytes of `rest`, the rest of the caret's line, `text` brings along.
fn covered(text: &str, rest: &str, caret: &Caret) -> usize {
    // The brace of a format string's expression, which is no bracket to the lexer.
    let brace = usize::from(brace_in_string(text, caret).is_some());
    let closers = leading_closers(&rest[brace..], caret);
    let unmatched = Brackets::read(text, caret).unmatched;
    let shared = unmatched.iter().zip(&closers).take_while(|(a, b)| a.closer == b.closer).count();
    let replaced = match shared {
        0 => brace.max(usize::from(closes_quote(text, rest, caret))),
        _ => brace + closers[shared - 1].bytes.end,
    };
    // `;` and the like, when the text ends with all that is left of the line.
    let left = rest[replaced..].trim_start();
    let is_punctuation = !left.is_empty() && !left.contains(is_word) && !left.contains(is_closer);
    if is_punctuation && text.ends_with(left) { rest.len() } else { replaced }
}

/// Whether the rest of the line begins with a quote that the text closes, where the lexer sees no string: a
/// character of Rust, a quote in a language without a grammar.
fn closes_quote(text: &str, rest: &str, caret: &Caret) -> bool {
    let Some(quote) = rest.chars().next().filter(|c| matches!(c, '"' | '\'' | '`')) else {
        return false;
    };
    let is_open = caret.line_prefix().matches(quote).count() % 2 == 1;
    let first_line = text.lines().next().unwrap_or_default();
    let mut escaped = false;
    is_open
        && !is_blank(first_line)
        && first_line.chars().any(|c| {
            let closes = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            closes
        })
}
