//! What the index of the workspace is told, and when prompts take over what it finds.
//!
//! Text from elsewhere stands at the beginning of a prompt, so other text there means that all of it is computed
//! again. It is therefore looked for when a document is opened and while nobody types, and what was found before
//! keeps its place as far as it still holds.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use redstart_context::{
    Chunk, ContextIndex, ContextOptions, Diagnostic, IndexOptions, Query, Reason, Severity,
};
use redstart_engine::turns::give_way;
use redstart_plugins::prompt::Snippet;
use ropey::Rope;
use tower_lsp::gen_lsp_types::{self as lsp, DiagnosticSeverity};

use super::Server;
use super::convert::path_of;
use super::sync::lock;
use crate::assistant::Assistant;
use crate::document::AppliedEdit;
use crate::settings::{ContextSettings, Settings};
use crate::snapshot::Snapshot;
use crate::typing::Typing;

/// How long looking for context may take. Nobody waits for it.
const DEADLINE: Duration = Duration::from_millis(50);

/// The index, where text from elsewhere is wanted.
#[derive(Clone, Default)]
pub(super) struct Surroundings(Arc<OnceLock<ContextIndex>>);

impl Surroundings {
    /// Follows documents from now on, and reads no file yet: whether the user wants that is not known
    /// before the settings are.
    pub(super) fn follow_documents(&self) {
        let index = IndexOptions { on_thread_start: give_way, ..IndexOptions::default() };
        let options = ContextOptions { index, ..ContextOptions::default() };
        let _ = self.0.set(ContextIndex::new(Vec::new(), options));
    }

    /// Indexes these folders.
    fn follow_folders(&self, folders: Vec<PathBuf>) {
        if let Some(index) = self.0.get() {
            index.set_folders(folders);
        }
    }

    fn tell(&self, uri: &str, tell: impl FnOnce(&ContextIndex, &Path)) {
        if let Some(index) = self.0.get().filter(|_| uri.starts_with("file:")) {
            tell(index, &path_of(uri));
        }
    }

    pub(super) fn opened(&self, uri: &str, text: &Rope) {
        self.tell(uri, |index, path| index.opened(path, text.clone()));
    }

    pub(super) fn edited(&self, uri: &str, edits: &[AppliedEdit]) {
        self.tell(uri, |index, path| {
            for edit in edits {
                index.edited(path, &edit.before, &edit.after, edit.bytes.clone(), edit.inserted_len);
            }
        });
    }

    pub(super) fn visited(&self, uri: &str, byte: usize) {
        self.tell(uri, |index, path| index.visited(path, byte));
    }

    pub(super) fn saved(&self, uri: &str) {
        self.tell(uri, ContextIndex::saved);
    }

    pub(super) fn closed(&self, uri: &str) {
        self.tell(uri, ContextIndex::closed);
    }

    pub(super) fn changed_on_disk(&self, uri: &str) {
        self.tell(uri, ContextIndex::changed_on_disk);
    }

    /// What other servers say about a document. Editors send it along when they ask for code actions, near the caret
    /// only; it holds until they send more.
    pub(super) fn diagnostics(&self, uri: &str, diagnostics: &[lsp::Diagnostic]) {
        let others = diagnostics.iter().filter(|other| other.source.as_deref() != Some("redstart"));
        let others = others.map(diagnostic).collect();
        self.tell(uri, |index, path| index.diagnostics(path, others));
    }

    /// Looks for text that helps at a caret, and has prompts for the document begin with it. Returns whether that
    /// changed them. May read files: for a thread that may block.
    pub(super) fn look_around(&self, place: &Around) -> bool {
        let Some(index) = self.0.get() else { return false };
        let budget_bytes = place.assistant.context_bytes();
        if budget_bytes == 0 || !place.snapshot.uri.starts_with("file:") {
            return false;
        }
        let window = place.assistant.window(&place.typing, &place.snapshot, place.caret);
        let path = path_of(&place.snapshot.uri);
        let query = Query {
            path: &path,
            language: place.snapshot.language,
            text: &place.snapshot.text,
            caret: place.caret,
            window,
            budget_bytes,
        };
        let gathered = index.gather(&query, Instant::now() + DEADLINE);
        tracing::debug!(report = ?gathered.report, "looked around");
        let settings = lock(&place.settings).completion.context;
        let wanted = |chunk: &Chunk| settings.wants(chunk.reason);
        let found = gathered.chunks.into_iter().filter(wanted).map(snippet).collect();
        place.typing.surround(found)
    }
}

/// Where to look around.
pub(super) struct Around {
    pub(super) assistant: Arc<Assistant>,
    pub(super) typing: Arc<Typing>,
    pub(super) snapshot: Snapshot,
    pub(super) caret: usize,
    /// As they are when it comes to it: an editor may tell them after it has opened documents.
    pub(super) settings: Arc<Mutex<Settings>>,
}

/// Indexes the workspace, if text from elsewhere is wanted at all.
pub(super) fn index(server: &Server, folders: Vec<PathBuf>) {
    if server.settings().completion.context.any() {
        server.surroundings.follow_folders(folders);
    }
}

fn snippet(chunk: Chunk) -> Snippet {
    Snippet { path: chunk.path, text: chunk.text, reason: chunk.reason.as_str().to_owned() }
}

fn diagnostic(of: &lsp::Diagnostic) -> Diagnostic {
    let severity = match of.severity {
        Some(DiagnosticSeverity::Warning) => Severity::Warning,
        Some(DiagnosticSeverity::Information) => Severity::Information,
        Some(DiagnosticSeverity::Hint) => Severity::Hint,
        _ => Severity::Error,
    };
    let lines = of.range.start.line as usize..of.range.end.line as usize + 1;
    Diagnostic { message: diagnostic_text(of), lines, severity }
}

fn diagnostic_text(of: &lsp::Diagnostic) -> String {
    match serde_json::to_value(&of.message) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(other) => other["value"].as_str().unwrap_or_default().to_owned(),
        Err(_) => String::new(),
    }
}

impl ContextSettings {
    /// Whether text is wanted for this reason.
    fn wants(&self, reason: Reason) -> bool {
        match reason {
            Reason::Definition => self.definitions,
            Reason::Similar => self.similar,
            Reason::OpenFile => self.open_files,
            Reason::RecentEdit => self.recent_edits,
            Reason::Diagnostic => self.diagnostics,
        }
    }
}
