//! `workspace/didChangeWorkspaceFolders`

use tower_lsp::gen_lsp_types::DidChangeWorkspaceFoldersParams;

use crate::server::convert::path_of;
use crate::server::sync::lock;
use crate::server::{Server, surroundings};

/// Documents opened from now on are named relative to these folders.
pub(in crate::server) async fn did_change_workspace_folders(
    server: &Server,
    params: DidChangeWorkspaceFoldersParams,
) {
    let removed: Vec<_> = params.event.removed.iter().map(|of| path_of(&of.uri.0)).collect();
    let added = params.event.added.iter().map(|folder| path_of(&folder.uri.0));
    let mut workspace = lock(&server.workspace);
    workspace.folders.retain(|folder| !removed.contains(folder));
    workspace.folders.extend(added);
    surroundings::index(server, workspace.folders.clone());
}
