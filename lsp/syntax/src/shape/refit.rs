//! The rest of a suggestion of which the user has typed the first part.

use super::Shaped;
use super::rest::{brace_in_string, first_excess, is_closer, leading_closers};
use crate::brackets::Brackets;
use crate::caret::{Caret, is_blank};
use crate::trigger::is_word;

/// What is left of an earlier [`Shaped`] at `caret`, after the user typed its first part: `remainder` is the rest of
/// its text, with the document's line ends. The text stays as it was, but for blanks at its end and for brackets that
/// the document closes below by now, as editors do at a line end after `{`. What it replaces is what the line now says
/// twice: the bracket or quote that the editor added when the user typed its partner. `None` when nothing is left to
/// suggest.
pub fn refit(remainder: &str, caret: &Caret) -> Option<Shaped> {
    let rest = caret.line_suffix().trim_end();
    let Brackets { unmatched, open, .. } = Brackets::read(remainder, caret);
    // The brace of a format string's expression, which is no bracket to the lexer.
    let brace = usize::from(brace_in_string(remainder, caret).is_some());
    let closers = leading_closers(&rest[brace..], caret);
    let shared = unmatched.iter().zip(&closers).take_while(|(a, b)| a.closer == b.closer).count();

    let is_closed = |at: usize| caret.open_brackets().iter().rev().nth(at).is_some_and(|open| open.closed);
    let excess = first_excess(shared, &unmatched, open, caret).filter(|&at| is_closed(at));
    let text = excess.map_or(remainder, |at| &remainder[..unmatched[at].bytes.start]).trim_end();
    if text.is_empty() || text == rest.trim_start() {
        return None;
    }

    let quote = shared == 0 && brace == 0 && closes_quote(text, rest, caret);
    let replaced = match shared {
        0 => brace.max(usize::from(quote)),
        _ => brace + closers[shared - 1].bytes.end,
    };
    // `;` and the like, when the text ends with all that is left of the line; after a quote that the lexer does not
    // know, brackets as well.
    let left = rest[replaced..].trim_start();
    let ends_with_left = !left.is_empty() && !left.contains(is_word) && text.ends_with(left);
    let left_closers = left.matches(is_closer).count();
    let is_own = left_closers > if quote { unmatched.len() } else { 0 };
    let replace = if ends_with_left && !is_own { rest.len() } else { replaced };
    (text != &rest[..replace]).then(|| Shaped { text: text.to_owned(), replace })
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
