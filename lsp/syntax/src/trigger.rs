//! Where a suggestion is not welcome.
//!
//! A model that is asked at every keystroke is slow and a nuisance. An explicit request is always answered, except
//! where it cannot be.

use std::fmt;

use crate::caret::Caret;
use crate::language::Language;
use crate::tree::MAX_TEXT_BYTES;

/// Longest line on which suggestions appear, in bytes.
pub const MAX_SUGGESTION_LINE_BYTES: usize = 2000;
/// Fewest characters other than blanks before the caret, in the whole document, that say what is wanted.
pub const MIN_CHARS_BEFORE: usize = 3;

/// Who asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trigger {
    /// The editor, because the user typed.
    Automatic,
    /// The user, explicitly.
    Invoked,
}

/// Why no suggestion is asked for. Its `Display` is for the log and for people who wonder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unwelcome {
    /// The document is too large to be written by hand.
    DocumentTooLarge {
        /// Its bytes.
        bytes: usize,
    },
    /// The line is too long to be written by hand.
    LineTooLong {
        /// Its bytes.
        bytes: usize,
    },
    /// The text has NUL or other control characters.
    Binary,
    /// A word goes on right of the caret.
    InsideWord,
    /// There is more right of the caret than what closes the line.
    TextRightOfCaret,
    /// The statement left of the caret is complete.
    StatementComplete,
    /// A number is being typed; nobody else knows which.
    Digits,
    /// Too little text before the caret to know what is wanted.
    TooLittleText,
}

impl fmt::Display for Unwelcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DocumentTooLarge { bytes } => {
                write!(f, "the document has {bytes} bytes, suggestions end at {MAX_TEXT_BYTES}")
            }
            Self::LineTooLong { bytes } => {
                write!(f, "the line has {bytes} bytes, suggestions end at {MAX_SUGGESTION_LINE_BYTES}")
            }
            Self::Binary => f.write_str("the text near the caret has control characters"),
            Self::InsideWord => f.write_str("a word goes on right of the caret"),
            Self::TextRightOfCaret => {
                f.write_str("there is more than closing punctuation right of the caret")
            }
            Self::StatementComplete => f.write_str("the statement left of the caret is complete"),
            Self::Digits => f.write_str("a number is being typed"),
            Self::TooLittleText => f.write_str("too little text before the caret"),
        }
    }
}

/// Whether to ask for a suggestion at `caret`.
///
/// # Errors
/// The rule that says no.
pub fn check(caret: &Caret, trigger: Trigger) -> Result<(), Unwelcome> {
    if let Some(reason) = impossible(caret) {
        return Err(reason);
    }
    match trigger {
        Trigger::Invoked => Ok(()),
        Trigger::Automatic => unwelcome(caret).map_or(Ok(()), Err),
    }
}

fn impossible(caret: &Caret) -> Option<Unwelcome> {
    if caret.document_bytes() > MAX_TEXT_BYTES {
        return Some(Unwelcome::DocumentTooLarge { bytes: caret.document_bytes() });
    }
    if caret.line_bytes() > MAX_SUGGESTION_LINE_BYTES {
        return Some(Unwelcome::LineTooLong { bytes: caret.line_bytes() });
    }
    let binary = |text: &str| text.chars().any(is_binary);
    (binary(caret.before()) || binary(caret.after())).then_some(Unwelcome::Binary)
}

fn unwelcome(caret: &Caret) -> Option<Unwelcome> {
    let suffix = caret.line_suffix();
    let prefix = caret.line_prefix().trim_end();
    if suffix.starts_with(is_word) {
        return Some(Unwelcome::InsideWord);
    }
    if !only_closes_the_line(suffix) {
        return Some(Unwelcome::TextRightOfCaret);
    }
    if is_digits(prefix) {
        return Some(Unwelcome::Digits);
    }
    if is_statement_complete(caret, prefix) {
        return Some(Unwelcome::StatementComplete);
    }
    let visible = caret.before().chars().filter(|c| !c.is_whitespace());
    (visible.take(MIN_CHARS_BEFORE).count() < MIN_CHARS_BEFORE).then_some(Unwelcome::TooLittleText)
}

/// Closing brackets and quotes, then at most one of `:{;,`.
fn only_closes_the_line(suffix: &str) -> bool {
    let rest = suffix.trim();
    let rest = rest.trim_start_matches([')', '>', '}', ']', '"', '\'', '`']).trim_start();
    let mut rest = rest.chars();
    matches!(rest.next(), None | Some(':' | '{' | ';' | ',')) && rest.next().is_none()
}

/// A line of digits only, or a number of more than four digits at the caret.
fn is_digits(prefix: &str) -> bool {
    let line = prefix.trim_start();
    if !line.is_empty()
        && line.chars().all(|c| c.is_ascii_digit() || matches!(c, '.' | '_' | ',' | '-' | ' '))
    {
        return line.contains(|c: char| c.is_ascii_digit());
    }
    let number = line.trim_end_matches(|c: char| c.is_ascii_digit());
    line.len() - number.len() > 4 && !number.ends_with(is_word)
}

fn is_statement_complete(caret: &Caret, prefix: &str) -> bool {
    if prefix.trim_start().is_empty() || caret.in_string() || caret.in_comment() {
        return false;
    }
    match prefix.chars().next_back() {
        // In the head of a `for (;;)` the line goes on.
        Some(';') => !caret.open_brackets().iter().any(|open| open.on_caret_line && open.closer == ')'),
        Some('}') => true,
        Some(')' | ']') => {
            caret.language().is_some_and(Language::line_end_ends_statement)
                && !caret.open_brackets().iter().any(|open| open.closer != '}')
                && !opens_a_block(prefix)
        }
        _ => false,
    }
}

/// Whether the first word of the line announces a block, whose `:` or `{` is still to come.
fn opens_a_block(prefix: &str) -> bool {
    const HEADS: [&str; 17] = [
        "def", "class", "if", "elif", "else", "for", "while", "with", "try", "except", "async", "match",
        "case", "func", "switch", "select", "type",
    ];
    let line = prefix.trim_start();
    let word = line.split(|c| !is_word(c)).next().unwrap_or_default();
    HEADS.contains(&word)
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Control characters that no one types; a form feed is a page break in old sources.
pub(crate) fn is_binary(c: char) -> bool {
    matches!(c, '\0'..='\x08' | '\x0e'..='\x1a' | '\x1c'..='\x1f' | '\x7f')
}

#[cfg(test)]
#[path = "trigger_tests.rs"]
mod tests;
