//! Context for prompts from beyond the window around the caret.
//!
//! A model completes better when it sees what the code around the caret refers to. Five sources offer
//! [`Chunk`]s of text, each a file in `sources`, each with a switch, a deadline and a size:
//!
//! - **definitions** behind the imports of the file: signatures, no bodies;
//! - **similar** snippets from an index of the workspace;
//! - **open files**: the part around the place visited last;
//! - **recent edits**, as small diffs;
//! - **diagnostics** near the caret.
//!
//! [`ContextIndex`] is the only thing with a life: it is told what the editor does, indexes the workspace in a
//! thread of its own, and answers a [`Query`] by a deadline. What it is told on the way of a keystroke takes one short
//! lock and no reading of text or files.
//!
//! **Which text may leave a file** is decided in three places, which every source goes through:
//! `workspace` admits a file (in a workspace folder after following links, not ignored, not a secret by its
//! name), `secret_lines` removes lines that look like secrets, and `selection` keeps the budget and drops what the
//! prompt has already.
//!
//! **Prompts keep their prefix** because the same workspace and place give the same chunks in the same order:
//! what changes least comes first (the order of [`Reason`]); within a source chunks are *chosen* by worth
//! but *given* in an order that does not depend on it: definitions by the order of imports, similar snippets by path
//! and line, open files by the order of visits, edits by their age. Nothing depends on the caret's column.
//!
//! There is no protocol, no engine and no async runtime here: plain threads and locks.

mod blocks;
mod context;
mod documents;
mod edit_log;
mod files;
mod ignore_rules;
mod imports;
mod index;
mod options;
mod outline;
mod outlines;
mod query;
mod resolve;
mod secret_files;
mod secret_lines;
mod selection;
mod signature;
mod sources;
mod words;
mod worker;
mod workspace;

pub use context::{ContextIndex, IndexProgress};
pub use options::{ContextOptions, IndexOptions, SourceOptions};
pub use query::{Chunk, Diagnostic, Gathered, Query, Reason, Severity, SourceReport};
