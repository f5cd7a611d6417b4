//! `textDocument/didShowCompletion`, `textDocument/didPartiallyAcceptCompletion` and `textDocument/didFocus`: what
//! clients written for GitHub Copilot's server tell. The specification has nothing of the kind.

use serde::Deserialize;
use serde_json::Value;

use crate::server::{Server, feedback};

/// An item as it was sent to the client.
#[derive(Deserialize)]
pub(in crate::server) struct ShownParams {
    item: Value,
}

/// Shown. What is sent counts as shown already; editors that do not show it say nothing.
pub(in crate::server) async fn did_show_completion(_: &Server, params: Value) {
    if let Ok(ShownParams { item }) = serde_json::from_value(params) {
        tracing::trace!(named = ?feedback::named_in(&item), "on display");
    }
}

/// Part of an item was taken over.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct PartiallyAcceptedParams {
    item: Value,
    /// UTF-16 units from the start of the item's text.
    accepted_length: usize,
}

/// The rest stays known, as the edit that came with it agrees with the suggestion.
pub(in crate::server) async fn did_partially_accept_completion(server: &Server, params: Value) {
    if let Ok(params) = serde_json::from_value::<PartiallyAcceptedParams>(params)
        && let Some((uri, id)) = feedback::named_in(&params.item)
    {
        feedback::partially_accepted(server, &uri, id, params.accepted_length);
    }
}

/// Another document is looked at.
pub(in crate::server) async fn did_focus(server: &Server, params: Value) {
    if let Some(uri) = params.pointer("/textDocument/uri").and_then(Value::as_str) {
        server.surroundings.visited(uri, 0);
    }
}
