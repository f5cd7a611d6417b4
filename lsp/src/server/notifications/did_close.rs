//! `textDocument/didClose`

use tower_lsp::gen_lsp_types::{DidCloseTextDocumentParams, MessageType};

use crate::server::Server;
use crate::server::convert::Lenient;
use crate::server::sync::lock;

/// Forgets a document, and takes its findings off the editor's list.
pub(in crate::server) async fn did_close(server: &Server, params: Lenient<DidCloseTextDocumentParams>) {
    let uri = match params {
        Lenient::Read(params) => params.text_document.uri.0,
        Lenient::Unreadable { problem, .. } => {
            let message = format!("a document could not be closed: {problem}");
            return server.outbox.log(MessageType::Error, message);
        }
    };
    server.surroundings.closed(&uri);
    let mut workspace = lock(&server.workspace);
    if workspace.close(&uri) {
        server.publish(&workspace, &uri);
    }
}
