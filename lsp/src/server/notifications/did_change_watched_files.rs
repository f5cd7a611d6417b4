//! `workspace/didChangeWatchedFiles`

use tower_lsp::gen_lsp_types::DidChangeWatchedFilesParams;

use crate::server::Server;

/// Files were made, changed or deleted, by whomever: the index reads them again.
pub(in crate::server) async fn did_change_watched_files(
    server: &Server,
    params: DidChangeWatchedFilesParams,
) {
    for change in params.changes {
        server.surroundings.changed_on_disk(&change.uri.0);
    }
}
