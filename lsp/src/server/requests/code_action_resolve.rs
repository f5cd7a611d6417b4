//! `codeAction/resolve`

use serde::Deserialize;
use tower_lsp::gen_lsp_types::CodeAction;
use tower_lsp::jsonrpc::{Error, ErrorCode, Result};

use super::code_action::FixData;
use crate::server::Server;
use crate::server::convert::fix;
use crate::server::sync::lock;

/// Makes the edit of a chosen fix, for the document as it is now: findings move with the text and go
/// when their lines are edited, so one that is still there fits.
pub(in crate::server) async fn code_action_resolve(
    server: &Server,
    mut action: CodeAction,
) -> Result<CodeAction> {
    // Actions without data are complete as they are.
    let Some(data) = &action.data else {
        return Ok(action);
    };
    let data = FixData::deserialize(data)
        .map_err(|error| Error::invalid_params(format!("`data` is not ours: {error}")))?;
    let workspace = lock(&server.workspace);
    let held = workspace.findings.of(&data.uri).iter().find(|held| held.id == data.finding);
    let document = workspace.documents.get(&data.uri);
    let edit =
        held.zip(document).and_then(|(held, document)| fix(held, document.snapshot(), server.profile()));
    if edit.is_none() {
        return Err(Error {
            code: ErrorCode::ContentModified,
            message: "the lines of this finding were edited or closed; review the function again".into(),
            data: None,
        });
    }
    action.edit = edit;
    Ok(action)
}
