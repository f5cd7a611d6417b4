//! An immutable view of a document at one version.

use std::path::PathBuf;
use std::sync::Arc;

use redstart_syntax::language::Language;
use ropey::Rope;

/// What a request works on. Cheap to clone; later edits do not reach it.
#[derive(Clone)]
pub struct Snapshot {
    /// The document's URI as the editor spelled it.
    pub uri: Arc<str>,
    /// Its path, relative to the workspace folder that holds it where there is one. Used as the
    /// file's name in prompts.
    pub path: PathBuf,
    /// Language id as the editor named it.
    pub language_id: Arc<str>,
    /// Grammar, where we have one.
    pub language: Option<Language>,
    /// Version the editor gave.
    pub version: i32,
    /// The text, with the document's own line ends.
    pub text: Rope,
}
