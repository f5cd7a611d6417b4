//! How the brackets of a piece of generated text pair up.

use std::ops::Range;

use crate::caret::Caret;
use crate::lexer::{Event, closer_of};

/// What a text, read from the caret on, closes of what was open and leaves open of its own.
pub(crate) struct Brackets {
    /// Closing brackets and quotes without an opener in the text.
    pub unmatched: Vec<Closer>,
    /// What would close the brackets and quotes that the text leaves open.
    pub open: Vec<char>,
    /// Whether the text ends inside a string that it opened and that ends with the line: it was cut short.
    pub cut_string: bool,
    /// Whether the text ends inside a comment.
    pub in_comment: bool,
}

/// A closing bracket or quote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Closer {
    /// Its bytes in the text; three for a triple quote.
    pub bytes: Range<usize>,
    /// The bracket, or one of the quotes.
    pub closer: char,
}

impl Brackets {
    pub(crate) fn read(text: &str, caret: &Caret) -> Self {
        let mut lexer = caret.lexer().clone();
        let mut open = Vec::new();
        let mut unmatched = Vec::new();
        for (at, c) in text.char_indices() {
            let quotes = if lexer.in_triple_quotes() { 3 } else { 1 };
            match lexer.push(c) {
                Some(Event::Open(c) | Event::QuoteOpen(c)) => open.push(closer_of(c)),
                Some(Event::Close(c) | Event::QuoteClose(c)) => {
                    match open.iter().rposition(|&open| open == c) {
                        Some(opener) => open.truncate(opener),
                        None => {
                            let end = at + c.len_utf8();
                            // The first quotes of the three may stand before the caret.
                            let start = end.saturating_sub(quotes);
                            unmatched.push(Closer { bytes: start..end, closer: c });
                        }
                    }
                }
                None => {}
            }
        }
        let in_string = open.last().is_some_and(|c| matches!(c, '"' | '\'' | '`'));
        let cut_string = in_string && !lexer.in_multiline_string();
        Self { unmatched, open, cut_string, in_comment: lexer.in_comment() }
    }
}
