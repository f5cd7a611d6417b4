//! What each source may spend, and what the index may hold.

use std::time::Duration;

use crate::query::Reason;

/// Settings of a [`ContextIndex`](crate::ContextIndex).
#[derive(Clone, Debug)]
pub struct ContextOptions {
    /// Definitions behind the imports of the file.
    pub definitions: SourceOptions,
    /// Similar snippets from the workspace.
    pub similar: SourceOptions,
    /// Other open files.
    pub open_files: SourceOptions,
    /// Recent edits.
    pub recent_edits: SourceOptions,
    /// Diagnostics near the caret.
    pub diagnostics: SourceOptions,
    /// The index of the workspace.
    pub index: IndexOptions,
}

/// What one source may spend on one [`gather`](crate::ContextIndex::gather).
#[derive(Clone, Copy, Debug)]
pub struct SourceOptions {
    /// Whether it runs at all.
    pub enabled: bool,
    /// Time from its start after which it gives what it has. Zero gives nothing.
    pub deadline: Duration,
    /// Most bytes of its chunks together, paths included. A token is about three bytes.
    pub max_bytes: usize,
}

/// What the index of the workspace may hold and cost.
#[derive(Clone, Debug)]
pub struct IndexOptions {
    /// Most files that are read. What comes later in the order of paths is left out.
    pub max_files: usize,
    /// Longest file that is read, in bytes.
    pub max_file_bytes: u64,
    /// Most bytes of memory for the index, as it estimates them itself.
    pub max_memory_bytes: usize,
    /// How long the indexing thread works before it rests.
    pub work_slice: Duration,
    /// How long it rests between two slices.
    pub rest: Duration,
    /// After an edited document was left for another, how long until its changes are in the index.
    pub left: Duration,
    /// What the indexing thread calls first, for example to give way to others.
    pub on_thread_start: fn(),
}

impl ContextOptions {
    /// The settings of the source that gives chunks for `reason`.
    pub fn source(&self, reason: Reason) -> SourceOptions {
        match reason {
            Reason::Definition => self.definitions,
            Reason::Similar => self.similar,
            Reason::OpenFile => self.open_files,
            Reason::RecentEdit => self.recent_edits,
            Reason::Diagnostic => self.diagnostics,
        }
    }

    /// The same, to be changed.
    pub fn source_mut(&mut self, reason: Reason) -> &mut SourceOptions {
        match reason {
            Reason::Definition => &mut self.definitions,
            Reason::Similar => &mut self.similar,
            Reason::OpenFile => &mut self.open_files,
            Reason::RecentEdit => &mut self.recent_edits,
            Reason::Diagnostic => &mut self.diagnostics,
        }
    }
}

impl Default for ContextOptions {
    /// Together about 3,500 tokens at most and 10 ms while typing.
    fn default() -> Self {
        let source = |milliseconds, max_bytes| SourceOptions {
            enabled: true,
            deadline: Duration::from_millis(milliseconds),
            max_bytes,
        };
        Self {
            definitions: source(6, 3_000),
            similar: source(5, 3_000),
            open_files: source(4, 3_000),
            recent_edits: source(2, 1_500),
            diagnostics: source(1, 500),
            index: IndexOptions::default(),
        }
    }
}

impl Default for IndexOptions {
    fn default() -> Self {
        Self {
            max_files: 20_000,
            max_file_bytes: 256 << 10,
            max_memory_bytes: 40 << 20,
            work_slice: Duration::from_millis(4),
            rest: Duration::from_millis(4),
            left: Duration::from_millis(500),
            on_thread_start: || {},
        }
    }
}
