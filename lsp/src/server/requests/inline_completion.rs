//! `textDocument/inlineCompletion`

use tower_lsp::gen_lsp_types::{
    InlineCompletionItem, InlineCompletionList, InlineCompletionParams, InlineCompletionResponse,
    InlineCompletionTriggerKind, InsertText, SelectedCompletionInfo,
};
use tower_lsp::jsonrpc::Result;

use super::suggest::{Shown, Wanted, suggest, want};
use crate::assistant::{Suggestion, Trigger};
use crate::encoding::PositionEncoding;
use crate::server::convert::{position, range};
use crate::server::{Server, feedback};
use crate::snapshot::{Snapshot, TextEdit};

/// Suggestions for somebody who asked for them and can cycle through them.
const CANDIDATES: usize = 3;

/// Ghost text at the caret: one item while typing, up to three when invoked. Their ranges stay on the caret's line.
/// `null` when there is none, for whatever reason, since editors show errors.
pub(in crate::server) async fn inline_completion(
    server: &Server,
    params: InlineCompletionParams,
) -> Result<Option<InlineCompletionResponse>> {
    let at = params.text_document_position_params;
    let Some(wanted) = want(server, &at.text_document.uri.0, position(at.position), Shown::Inline) else {
        return Ok(None);
    };
    let trigger = match params.context.trigger_kind {
        InlineCompletionTriggerKind::Invoked => Trigger::Invoked,
        _ => Trigger::Automatic,
    };
    let encoding = server.profile().encoding;
    let items = match params.context.selected_completion_info {
        Some(selected) => after_selected(server, wanted, &selected, trigger).await.into_iter().collect(),
        None => {
            let count = if trigger == Trigger::Invoked { CANDIDATES } else { 1 };
            let (snapshot, found) = suggest(server, wanted, trigger, count).await;
            found.into_iter().map(|suggestion| item(&snapshot, suggestion, encoding)).collect::<Vec<_>>()
        }
    };
    Ok((!items.is_empty())
        .then_some(InlineCompletionResponse::InlineCompletionList(InlineCompletionList { items })))
}

fn item(snapshot: &Snapshot, suggestion: Suggestion, encoding: PositionEncoding) -> InlineCompletionItem {
    InlineCompletionItem {
        command: Some(feedback::accept_command(snapshot, &suggestion)),
        insert_text: InsertText::String(suggestion.text),
        filter_text: None,
        range: Some(range(&snapshot.text, suggestion.range, encoding)),
    }
}

/// The editor shows an entry of its completion menu as if it were accepted. An inline completion is
/// shown only if it begins with that entry and replaces the same range, so the suggestion is for the
/// text as it would be.
async fn after_selected(
    server: &Server,
    mut wanted: Wanted,
    selected: &SelectedCompletionInfo,
    trigger: Trigger,
) -> Option<InlineCompletionItem> {
    let encoding = server.profile().encoding;
    let original = wanted.snapshot.clone();
    let start = encoding.byte_of(&original.text, position(selected.range.start)).ok()?;
    let end = encoding.byte_of(&original.text, position(selected.range.end)).ok()?;
    if !(start..=end).contains(&wanted.caret) {
        return None;
    }
    wanted.snapshot.edit(&TextEdit { bytes: start..end, inserted: selected.text.clone() });
    wanted.caret = start + selected.text.len();
    let caret = wanted.caret;
    let (accepted, found) = suggest(server, wanted, trigger, 1).await;
    let suggestion = found.into_iter().next()?;
    // What the suggestion repeats of the text before the caret is in the entry already.
    let repeated = accepted.text.byte_slice(suggestion.range.start..caret).to_string();
    let rest = suggestion.text.strip_prefix(repeated.as_str())?;
    let replaced = start..end + suggestion.range.end.saturating_sub(caret);
    Some(InlineCompletionItem {
        insert_text: InsertText::String(format!("{}{rest}", selected.text)),
        filter_text: None,
        range: Some(range(&original.text, replaced, encoding)),
        command: Some(feedback::accept_command(&original, &suggestion)),
    })
}
