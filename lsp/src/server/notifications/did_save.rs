//! `textDocument/didSave`

use tower_lsp::gen_lsp_types::{DidSaveTextDocumentParams, MessageType};

use crate::server::Server;
use crate::server::convert::Lenient;
use crate::server::sync::lock;

/// Compares our text with the saved one: a difference between editor and server ends here, at the latest.
pub(in crate::server) async fn did_save(server: &Server, params: Lenient<DidSaveTextDocumentParams>) {
    let Lenient::Read(params) = params else {
        return;
    };
    server.surroundings.saved(&params.text_document.uri.0);
    let (uri, Some(text)) = (params.text_document.uri.0, params.text) else {
        return;
    };
    let mut workspace = lock(&server.workspace);
    let Some(document) = workspace.documents.get_mut(&uri) else {
        return;
    };
    if let Some(edit) = document.saved(&text) {
        let message = format!("{uri} was out of step with the editor; the saved text replaces ours");
        server.outbox.log(MessageType::Warning, message);
        if workspace.findings.edited(&uri, &[edit]) {
            server.publish(&workspace, &uri);
        }
    }
}
