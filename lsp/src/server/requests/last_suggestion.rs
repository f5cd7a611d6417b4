//! `redstart/lastSuggestion`: the account of the last request for a suggestion in a document.

use std::time::Duration;

use serde::Serialize;
use tower_lsp::gen_lsp_types::TextDocumentIdentifier;
use tower_lsp::jsonrpc::Result;

use crate::assistant::{Source, SuggestionStats};
use crate::server::Server;
use crate::server::sync::lock;

/// What became of the request.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::server) struct LastSuggestion {
    /// The document's version that the request was for.
    version: i32,
    #[serde(flatten)]
    outcome: Outcome,
}

#[derive(Serialize)]
#[serde(rename_all_fields = "camelCase", untagged)]
enum Outcome {
    /// There was a suggestion. Times in milliseconds.
    Made {
        submit_ms: f64,
        first_line_ms: f64,
        total_ms: f64,
        prompt_tokens: usize,
        cached_tokens: usize,
        generated_tokens: usize,
        confidence: f32,
        fallback_prompt: bool,
        source: Source,
    },
    /// There was none.
    None {
        /// Why.
        reason: String,
    },
}

/// `null` for a document in which none was asked for yet.
pub(in crate::server) async fn last_suggestion(
    server: &Server,
    params: TextDocumentIdentifier,
) -> Result<Option<LastSuggestion>> {
    let workspace = lock(&server.workspace);
    let last = workspace.last_suggestion.get(params.uri.0.as_str());
    Ok(last.map(|last| {
        let none = |reason: &String| Outcome::None { reason: reason.clone() };
        LastSuggestion { version: last.version, outcome: last.outcome.as_ref().map_or_else(none, made) }
    }))
}

fn made(stats: &SuggestionStats) -> Outcome {
    let milliseconds = |duration: Duration| duration.as_secs_f64() * 1e3;
    Outcome::Made {
        submit_ms: milliseconds(stats.submit),
        first_line_ms: milliseconds(stats.first_line),
        total_ms: milliseconds(stats.total),
        prompt_tokens: stats.prompt_tokens,
        cached_tokens: stats.cached_tokens,
        generated_tokens: stats.generated_tokens,
        confidence: stats.confidence,
        fallback_prompt: stats.fallback_prompt,
        source: stats.source,
    }
}
