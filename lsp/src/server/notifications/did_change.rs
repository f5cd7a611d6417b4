//! `textDocument/didChange`

use std::sync::Arc;
use std::time::Duration;

use tower_lsp::gen_lsp_types::MessageType;

use crate::document::{Change, Document};
use crate::server::Server;
use crate::server::convert::{DidChangeParams, Lenient};
use crate::server::feedback;
use crate::server::sync::lock;
use crate::snapshot::Snapshot;

/// Applies edits. All of it happens before the first `await` there could be: the main loop counts on it.
pub(in crate::server) async fn did_change(server: &Server, params: Lenient<DidChangeParams>) {
    let mut workspace = lock(&server.workspace);
    match params {
        Lenient::Read(params) => {
            let uri = params.text_document.text_document_identifier.uri.0;
            let Some(document) = workspace.documents.get_mut(&uri) else {
                let message = format!("{uri} was changed but is not open; the change is ignored");
                return server.outbox.log(MessageType::Warning, message);
            };
            let changes: Vec<Change> = params.content_changes.into_iter().map(Into::into).collect();
            let encoding = server.profile().encoding;
            let applied = document.apply(params.text_document.version, changes, encoding);
            feedback::reacted(server, document);
            match applied {
                Ok(edits) => {
                    settle(server, document);
                    if workspace.findings.edited(&uri, &edits) {
                        server.publish(&workspace, &uri);
                    }
                }
                Err(problem) => {
                    set_aside(server, &uri, &problem.to_string());
                    if workspace.findings.clear(&uri) {
                        server.publish(&workspace, &uri);
                    }
                }
            }
        }
        Lenient::Unreadable { uri, problem } => {
            let uri = uri.unwrap_or_default();
            if let Some(document) = workspace.documents.get_mut(&uri) {
                document.lost_change(problem.clone());
            }
            set_aside(server, &uri, &problem);
        }
    }
}

/// When an edit has settled and nobody asked for a suggestion yet: an editor that waits before it asks then finds
/// the prompt prefilled.
const SETTLED: Duration = Duration::from_millis(40);

/// Parses a text while nobody waits, so that requests find its tree.
pub(super) async fn parse(snapshot: &Snapshot) {
    let snapshot = snapshot.clone();
    let parsed = tokio::task::spawn_blocking(move || snapshot.syntax_tree().is_some()).await;
    if let Err(error) = parsed {
        tracing::warn!(%error, "the parser panicked");
    }
}

fn settle(server: &Server, document: &Document) {
    let (assistant, typing) = (Arc::clone(&server.assistant), Arc::clone(document.typing()));
    let (snapshot, caret, edits) = (document.snapshot().clone(), document.edited_at(), typing.edits());
    if document.unsuitable(caret).is_some() || !server.settings().suggests_in(&snapshot.language_id) {
        return;
    }
    server.background.spawn(async move {
        tokio::time::sleep(SETTLED).await;
        if typing.edits() != edits {
            return;
        }
        parse(&snapshot).await;
        if !typing.is_asked() {
            assistant.prefill(&typing, &snapshot, caret).await;
        }
    });
}

fn set_aside(server: &Server, uri: &str, problem: &str) {
    let message = format!(
        "an edit of {uri} does not fit its text: {problem}. There are no suggestions in it until it \
         is saved or reopened"
    );
    // Shown, since the user can mend it; once, since later edits are ignored until then.
    server.outbox.show(MessageType::Error, message);
}
