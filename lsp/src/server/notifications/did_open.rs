//! `textDocument/didOpen`

use ropey::Rope;
use tower_lsp::gen_lsp_types::{DidOpenTextDocumentParams, MessageType};

use crate::server::convert::{Lenient, path_of, relative};
use crate::server::sync::lock;
use crate::server::{Server, settle};
use crate::snapshot::Snapshot;

/// Takes a document over from the editor.
pub(in crate::server) async fn did_open(server: &Server, params: Lenient<DidOpenTextDocumentParams>) {
    let opened = match params {
        Lenient::Read(params) => params.text_document,
        Lenient::Unreadable { problem, .. } => {
            let message = format!("a document could not be opened: {problem}");
            return server.outbox.log(MessageType::Error, message);
        }
    };
    let mut workspace = lock(&server.workspace);
    let uri = opened.uri.0;
    workspace.close(&uri);
    let snapshot = Snapshot::new(
        uri.as_str(),
        relative(path_of(&uri), &workspace.folders),
        String::from(opened.language_id),
        opened.version,
        Rope::from_str(&opened.text),
    );
    server.surroundings.opened(&uri, &snapshot.text);
    workspace.documents.open(snapshot);
    if let Some(document) = workspace.documents.get(&uri) {
        settle::opened(server, document);
    }
}
