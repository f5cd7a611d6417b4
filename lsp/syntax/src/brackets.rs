//! How the brackets of a piece of generated text pair up.

use crate::caret::Caret;
use crate::lexer::{Event, closer_of};

/// What a text, read from the caret on, closes of what was open and leaves open of its own.
pub(crate) struct Brackets {
    /// Closing brackets and quotes without an opener in the text: byte offset and character.
    pub unmatched: Vec<(usize, char)>,
    /// Brackets that the text opens and does not close.
    pub open: usize,
}

impl Brackets {
    pub(crate) fn read(text: &str, caret: &Caret) -> Self {
        let mut lexer = caret.lexer().clone();
        let mut open = Vec::new();
        let mut unmatched = Vec::new();
        for (at, c) in text.char_indices() {
            match lexer.push(c) {
                Some(Event::Open(c) | Event::QuoteOpen(c)) => open.push(closer_of(c)),
                Some(Event::Close(c) | Event::QuoteClose(c)) => {
                    match open.iter().rposition(|&open| open == c) {
                        Some(opener) => open.truncate(opener),
                        None => unmatched.push((at, c)),
                    }
                }
                None => {}
            }
        }
        Self {
            unmatched,
            open: open.len(),
        }
    }
}
