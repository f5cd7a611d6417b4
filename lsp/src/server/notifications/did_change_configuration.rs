//! `workspace/didChangeConfiguration`

use serde_json::Value;
use tower_lsp::gen_lsp_types::DidChangeConfigurationParams;

use super::initialized::pull_configuration;
use crate::server::Server;

/// Takes new settings: those it comes with or, from a client that has it so, those we then ask for.
pub(in crate::server) async fn did_change_configuration(
    server: &Server,
    params: DidChangeConfigurationParams,
) {
    if server.profile().configuration {
        pull_configuration(server).await;
    } else if params.settings != Value::Null {
        server.configure(&params.settings);
    }
}
