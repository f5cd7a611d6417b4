//! `textDocument/didChange`

use tower_lsp::gen_lsp_types::MessageType;

use crate::document::Change;
use crate::server::convert::{DidChangeParams, Lenient};
use crate::server::sync::lock;
use crate::server::{Server, feedback, settle};

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
            let news = document.take_news();
            server.surroundings.edited(&uri, &news.edits);
            feedback::reacted(server, document, news.reactions);
            match applied {
                Ok(edits) => {
                    settle::edited(server, document, news.outdated);
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

fn set_aside(server: &Server, uri: &str, problem: &str) {
    let message = format!(
        "an edit of {uri} does not fit its text: {problem}. There are no suggestions in it until it \
         is saved or reopened"
    );
    // Shown, since the user can mend it; once, since later edits are ignored until then.
    server.outbox.show(MessageType::Error, message);
}
