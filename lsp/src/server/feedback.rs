//! What editors and edits say about suggestions that were shown.

use std::sync::Arc;

use serde_json::{Value, json};
use tower_lsp::gen_lsp_types::Command;

use super::Server;
use super::requests::execute_command::ACCEPTED;
use super::sync::lock;
use crate::assistant::Suggestion;
use crate::document::Document;
use crate::snapshot::Snapshot;
use crate::typing::{Reaction, Typing};

/// A suggestion is on its way to the editor.
pub(super) fn shown(server: &Server, snapshot: &Snapshot, typing: &Arc<Typing>, suggestion: &Suggestion) {
    server.assistant.shown(typing, snapshot, suggestion);
}

/// What editors run after inserting a suggestion, which is how we hear of it.
pub(super) fn accept_command(snapshot: &Snapshot, suggestion: &Suggestion) -> Command {
    Command {
        title: "Suggestion accepted".to_owned(),
        command: ACCEPTED.to_owned(),
        arguments: Some(vec![json!(&*snapshot.uri), json!(suggestion.id)]),
        ..Command::default()
    }
}

/// The document and the suggestion that an item's accept command names.
pub(super) fn named_in(item: &Value) -> Option<(String, u64)> {
    let arguments = item.pointer("/command/arguments")?;
    Some((arguments.get(0)?.as_str()?.to_owned(), arguments.get(1)?.as_u64()?))
}

/// A suggestion was accepted, says the editor.
pub(super) fn accepted(server: &Server, uri: &str, id: u64) {
    let workspace = lock(&server.workspace);
    if let Some(document) = workspace.documents.get(uri) {
        document.typing().accept(id);
    }
}

/// So many UTF-16 units of a suggestion were taken over, says the editor.
pub(super) fn partially_accepted(_server: &Server, uri: &str, id: u64, length: usize) {
    tracing::debug!(uri, id, length, "partially accepted, says the editor");
}

/// The user looks at a document.
pub(super) fn focused(_server: &Server, uri: &str) {
    tracing::trace!(uri, "in focus");
}

/// Takes in what edits meant for what was suggested.
pub(super) fn reacted(_server: &Server, document: &mut Document) {
    for reaction in document.take_reactions() {
        match reaction {
            Reaction::Accepted(id) => tracing::debug!(id, "accepted"),
            Reaction::PartiallyAccepted(id, chars) => tracing::debug!(id, chars, "partially accepted"),
            Reaction::Rejected(id) => tracing::debug!(id, "rejected"),
        }
    }
}
