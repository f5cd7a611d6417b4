//! What is asked of the sources, and what they answer.

use std::ops::Range;
use std::path::Path;
use std::time::Duration;

use redstart_syntax::language::Language;
use ropey::Rope;

/// The place that context is wanted for.
#[derive(Clone, Debug)]
pub struct Query<'a> {
    /// The file, as the editor names it: absolute.
    pub path: &'a Path,
    /// Its language, where there is a grammar.
    pub language: Option<Language>,
    /// Its text.
    pub text: &'a Rope,
    /// The caret, in bytes. What is out of range is clamped.
    pub caret: usize,
    /// The bytes of the text that are in the prompt already.
    pub window: Range<usize>,
    /// Most bytes of all chunks together, paths included.
    pub budget_bytes: usize,
}

impl Query<'_> {
    /// The caret, within the text.
    pub(crate) fn caret(&self) -> usize {
        self.caret.min(self.text.len_bytes())
    }

    /// The zero-based line of the caret.
    pub(crate) fn caret_line(&self) -> usize {
        self.text.byte_to_line(self.caret())
    }

    /// The whole lines that the prompt's window touches, end exclusive; the caret's line at least.
    pub(crate) fn window_lines(&self) -> Range<usize> {
        let length = self.text.len_bytes();
        let start = self.window.start.min(length);
        let end = self.window.end.clamp(start, length);
        let first = self.text.byte_to_line(start).min(self.caret_line());
        let last = self.text.byte_to_line(end).max(self.caret_line());
        first..last + 1
    }
}

/// Why a chunk may help, and by which source it came. The order is the order of chunks in a prompt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reason {
    /// What an import of this file names.
    Definition,
    /// Text of the workspace like that around the caret.
    Similar,
    /// A file that the user has open.
    OpenFile,
    /// Something the user changed.
    RecentEdit,
    /// A remark of another tool on the lines around the caret.
    Diagnostic,
}

impl Reason {
    /// Every reason, in the order in which chunks are given: what changes least comes first.
    pub const ALL: [Self; 5] =
        [Self::Definition, Self::Similar, Self::OpenFile, Self::RecentEdit, Self::Diagnostic];

    /// The name that prompt plugins know it by.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Definition => "definition",
            Self::Similar => "similar",
            Self::OpenFile => "open-file",
            Self::RecentEdit => "recent-edit",
            Self::Diagnostic => "diagnostic",
        }
    }
}

/// A piece of text for the prompt: whole lines with `\n` ends, the last one's included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// The file it is from, relative to its workspace folder, with `/` between parts.
    pub path: String,
    /// The text.
    pub text: String,
    /// Why it is here.
    pub reason: Reason,
}

impl Chunk {
    /// What it takes of a budget.
    pub fn bytes(&self) -> usize {
        self.path.len() + self.text.len()
    }
}

/// The answer to a [`Query`].
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    /// The chunks, ordered by [`Reason`], within a reason as its source says.
    pub chunks: Vec<Chunk>,
    /// What became of each source, in the order of [`Reason::ALL`].
    pub report: Vec<SourceReport>,
}

/// What became of one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SourceReport {
    /// Which source.
    pub reason: Reason,
    /// Whether it is switched on.
    pub enabled: bool,
    /// Chunks of it in the answer.
    pub chunks: usize,
    /// Their bytes, paths included.
    pub bytes: usize,
    /// Chunks that were left out because the prompt has their text already.
    pub duplicates: usize,
    /// Whether its deadline passed before it was done.
    pub late: bool,
    /// Time it took.
    pub elapsed: Duration,
}

/// A remark of another tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// What it says.
    pub message: String,
    /// The zero-based lines it is about, end exclusive.
    pub lines: Range<usize>,
    /// How bad it is.
    pub severity: Severity,
}

/// How bad a [`Diagnostic`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The code is wrong.
    Error,
    /// The code may be wrong.
    Warning,
    /// Something to know.
    Information,
    /// Something to improve.
    Hint,
}

impl Severity {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Information => "information",
            Self::Hint => "hint",
        }
    }
}
