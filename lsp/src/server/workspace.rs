//! What the editor has open and what we have to say about it, under one lock.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::oneshot;

use super::findings::Findings;
use crate::assistant::SuggestionStats;
use crate::document::{Documents, Unsuitable};
use crate::encoding::{BadPosition, Position, PositionEncoding};
use crate::server::requests::suggest::Shown;
use crate::snapshot::Snapshot;

/// Documents, findings and the state of suggestions.
#[derive(Default)]
pub(super) struct Workspace {
    /// Open documents.
    pub(super) documents: Documents,
    /// Findings in them.
    pub(super) findings: Findings,
    /// Workspace folders.
    pub(super) folders: Vec<PathBuf>,
    /// What became of the last request for a suggestion, by document.
    pub(super) last_suggestion: HashMap<Arc<str>, LastSuggestion>,
    /// The request for a suggestion that is under way, by document: dropping the sender ends it.
    pub(super) suggesting: HashMap<(Arc<str>, Shown), oneshot::Sender<()>>,
}

/// What became of a request for a suggestion.
pub(super) struct LastSuggestion {
    /// The document's version that it was for.
    pub(super) version: i32,
    /// Its account, or why there was none.
    pub(super) outcome: Result<SuggestionStats, String>,
}

/// Why a place in a document cannot be worked on.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoPlace {
    /// Not an open document.
    #[error("the document is not open")]
    NotOpen,
    /// The document or line is not fit.
    #[error("no suggestions in this document: {0}")]
    Unsuitable(#[from] Unsuitable),
    /// There is no such position.
    #[error(transparent)]
    Position(#[from] BadPosition),
}

impl Workspace {
    /// A snapshot of an open document and the byte offset of a position in it.
    pub(super) fn place(
        &self,
        uri: &str,
        position: Position,
        encoding: PositionEncoding,
    ) -> Result<(Snapshot, usize), NoPlace> {
        let document = self.documents.get(uri).ok_or(NoPlace::NotOpen)?;
        // Before the position, which may be nonsense in a text that is out of step.
        if let Some(edit) = document.out_of_step() {
            return Err(Unsuitable::OutOfStep(edit.clone()).into());
        }
        let snapshot = document.snapshot();
        let byte = encoding.byte_of(&snapshot.text, position)?;
        match document.unsuitable(byte) {
            Some(unsuitable) => Err(unsuitable.into()),
            None => Ok((snapshot.clone(), byte)),
        }
    }

    /// Forgets a document. Returns whether it had findings.
    pub(super) fn close(&mut self, uri: &str) -> bool {
        self.documents.close(uri);
        self.last_suggestion.remove(uri);
        self.suggesting.retain(|(document, _), _| **document != *uri);
        self.findings.clear(uri)
    }
}
