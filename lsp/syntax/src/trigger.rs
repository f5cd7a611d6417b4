//! Where a suggestion is not welcome.
//!
//! A model that is asked at every keystroke is slow and a nuisance. [`RULES`] says where it is not asked. An
//! explicit request is always answered, except where it cannot be.

mod data;
mod generated;
mod statement;

use std::fmt;
use std::path::Path;

use crate::caret::Caret;
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

/// What is known of a request besides the text around the caret.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// Who asked.
    pub trigger: Trigger,
    /// How many cursors the user types with.
    pub cursors: usize,
    /// The document's path, where it has one.
    pub path: Option<&'a Path>,
    /// Whether the last change was a suggestion of a single line, accepted, that ends at the caret.
    pub just_accepted_line: bool,
}

impl From<Trigger> for Situation<'_> {
    /// One cursor in a document without a name.
    fn from(trigger: Trigger) -> Self {
        Self { trigger, cursors: 1, path: None, just_accepted_line: false }
    }
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
    /// One suggestion does not fit several places.
    SeveralCursors {
        /// How many.
        cursors: usize,
    },
    /// A program writes this file.
    Generated,
    /// A word goes on right of the caret.
    InsideWord,
    /// There is more right of the caret than what closes the line.
    TextRightOfCaret,
    /// A number is being typed; nobody else knows which.
    Digits,
    /// A hash, a UUID or encoded bytes are being typed.
    Data,
    /// The suggestion just accepted completed the statement.
    JustAccepted,
    /// The statement left of the caret is complete.
    StatementComplete,
    /// The line only closes what was opened above.
    ClosingBrackets,
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
            Self::SeveralCursors { cursors } => write!(f, "there are {cursors} cursors"),
            Self::Generated => f.write_str("a program writes this file"),
            Self::InsideWord => f.write_str("a word goes on right of the caret"),
            Self::TextRightOfCaret => {
                f.write_str("there is more than closing punctuation right of the caret")
            }
            Self::Digits => f.write_str("a number is being typed"),
            Self::Data => f.write_str("a hash, a UUID or encoded bytes are being typed"),
            Self::JustAccepted => f.write_str("the suggestion just accepted completed the statement"),
            Self::StatementComplete => f.write_str("the statement left of the caret is complete"),
            Self::ClosingBrackets => f.write_str("the line only closes what was opened above"),
            Self::TooLittleText => f.write_str("too little text before the caret"),
        }
    }
}

/// One reason not to ask.
pub struct Rule {
    /// Its name, for tests and statistics.
    pub name: &'static str,
    /// Whether it holds even for an explicit request, because there is no way to answer.
    pub always: bool,
    broken: fn(&Caret, &Situation<'_>) -> Option<Unwelcome>,
}

const fn always(name: &'static str, broken: fn(&Caret, &Situation<'_>) -> Option<Unwelcome>) -> Rule {
    Rule { name, always: true, broken }
}

const fn while_typing(name: &'static str, broken: fn(&Caret, &Situation<'_>) -> Option<Unwelcome>) -> Rule {
    Rule { name, always: false, broken }
}

/// Every rule, in the order in which they are tried: the first one that is broken names the reason.
pub const RULES: [Rule; 13] = [
    always("document too large", |caret, _| {
        let bytes = caret.document_bytes();
        (bytes > MAX_TEXT_BYTES).then_some(Unwelcome::DocumentTooLarge { bytes })
    }),
    always("line too long", |caret, _| {
        let bytes = caret.line_bytes();
        (bytes > MAX_SUGGESTION_LINE_BYTES).then_some(Unwelcome::LineTooLong { bytes })
    }),
    always("binary", |caret, _| {
        // Folded and not found: looking at all of it many bytes at a time is faster than stopping early.
        let binary = |text: &str| text.bytes().fold(false, |binary, byte| binary | is_binary(byte));
        (binary(caret.before()) || binary(caret.after())).then_some(Unwelcome::Binary)
    }),
    while_typing("several cursors", |_, &Situation { cursors, .. }| {
        (cursors > 1).then_some(Unwelcome::SeveralCursors { cursors })
    }),
    while_typing("generated file", |caret, situation| {
        let generated = situation.path.is_some_and(generated::by_name) || generated::by_marker(caret.head());
        generated.then_some(Unwelcome::Generated)
    }),
    while_typing("inside a word", |caret, _| {
        caret.line_suffix().starts_with(is_word).then_some(Unwelcome::InsideWord)
    }),
    while_typing("text right of the caret", |caret, _| {
        (!statement::only_closes_the_line(caret.line_suffix())).then_some(Unwelcome::TextRightOfCaret)
    }),
    while_typing("digits", |caret, _| data::is_digits(caret.line_prefix()).then_some(Unwelcome::Digits)),
    while_typing("data", |caret, _| data::is_data(caret.line_prefix()).then_some(Unwelcome::Data)),
    while_typing("just accepted", |caret, situation| {
        let done = situation.just_accepted_line && statement::may_end_here(caret);
        done.then_some(Unwelcome::JustAccepted)
    }),
    while_typing("statement complete", |caret, _| {
        statement::is_complete(caret).then_some(Unwelcome::StatementComplete)
    }),
    while_typing("closing brackets", |caret, _| {
        statement::only_closes(caret).then_some(Unwelcome::ClosingBrackets)
    }),
    while_typing("too little text", |caret, _| {
        let visible = caret.before().chars().filter(|c| !c.is_whitespace());
        (visible.take(MIN_CHARS_BEFORE).count() < MIN_CHARS_BEFORE).then_some(Unwelcome::TooLittleText)
    }),
];

/// Whether to ask for a suggestion at `caret`.
///
/// # Errors
/// The first of [`RULES`] that says no.
pub fn check<'a>(caret: &Caret, situation: impl Into<Situation<'a>>) -> Result<(), Unwelcome> {
    let situation = situation.into();
    let invoked = situation.trigger == Trigger::Invoked;
    let mut rules = RULES.iter().filter(|rule| rule.always || !invoked);
    rules.find_map(|rule| (rule.broken)(caret, &situation)).map_or(Ok(()), Err)
}

pub(crate) fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Control characters that no one types; a form feed is a page break in old sources.
pub(crate) fn is_binary(byte: u8) -> bool {
    matches!(byte, 0..=0x08 | 0x0e..=0x1a | 0x1c..=0x1f | 0x7f)
}

#[cfg(test)]
#[path = "trigger_tests.rs"]
mod tests;
