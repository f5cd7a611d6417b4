//! `redstart/viewFileText`: the server's text of a document, to compare with the editor's.

use serde::Serialize;
use tower_lsp::gen_lsp_types::TextDocumentIdentifier;
use tower_lsp::jsonrpc::Result;

use crate::server::Server;
use crate::server::sync::lock;

/// A document as the server has it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct FileText {
    text: String,
    version: i32,
    /// What showed that it is no longer the editor's text, if it is not.
    #[serde(skip_serializing_if = "Option::is_none")]
    out_of_step: Option<String>,
}

/// The text and version of an open document; `null` for any other.
pub(in crate::server) async fn view_file_text(
    server: &Server,
    params: TextDocumentIdentifier,
) -> Result<Option<FileText>> {
    let workspace = lock(&server.workspace);
    Ok(workspace.documents.get(&params.uri.0).map(|document| FileText {
        text: document.snapshot().text.to_string(),
        version: document.snapshot().version,
        out_of_step: document.out_of_step().map(ToString::to_string),
    }))
}
