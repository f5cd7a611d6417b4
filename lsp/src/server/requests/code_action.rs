//! `textDocument/codeAction`

use serde::{Deserialize, Serialize};
use serde_json::json;
use tower_lsp::gen_lsp_types::{
    CodeAction, CodeActionDisabled, CodeActionKind, CodeActionParams, CodeActionResponse, CodeActionTag,
    CodeActionTriggerKind, Command,
};
use tower_lsp::jsonrpc::Result;

use super::{execute_command, review};
use crate::server::Server;
use crate::server::convert::{diagnostic, fix, position, range};
use crate::server::findings::lines;
use crate::server::sync::lock;
use crate::snapshot::Snapshot;

/// Kind of "Review this function". A kind of its own: VS Code hides `source` actions from the menu at
/// the caret, and it is no `refactor`.
pub(super) const REVIEW_KIND: &str = "redstart.review";

/// What `codeAction/resolve` needs to make the edit of a fix.
#[derive(Deserialize, Serialize)]
pub(super) struct FixData {
    /// The document.
    pub(super) uri: String,
    /// The finding.
    pub(super) finding: u64,
}

/// What can be done at the caret: review the function there, fix or dismiss its findings. Cheap: the
/// model is not asked.
pub(in crate::server) async fn code_action(
    server: &Server,
    params: CodeActionParams,
) -> Result<Option<Vec<CodeActionResponse>>> {
    let uri = &params.text_document.uri.0;
    server.surroundings.diagnostics(uri, &params.context.diagnostics);
    let start = position(params.range.start);
    let place = lock(&server.workspace).place(uri, start, server.profile().encoding);
    let Ok((snapshot, caret)) = place else {
        return Ok(None);
    };
    let only = params.context.only.as_deref();
    let mut actions = Vec::new();
    if wanted(only, &CodeActionKind::QuickFix) {
        let last = position(params.range.end).line;
        actions.extend(for_findings(server, uri, start.line..last + 1));
    }
    // A lamp in every function would be noise; who opens the menu finds the action there.
    let asked = params.context.trigger_kind != Some(CodeActionTriggerKind::Automatic);
    if asked && wanted(only, &CodeActionKind::Custom(REVIEW_KIND.into())) {
        // Off the main loop: the document may have to be parsed.
        tokio::task::yield_now().await;
        actions.extend(review_action(server, &snapshot, caret));
    }
    Ok(Some(actions.into_iter().map(CodeActionResponse::CodeAction).collect()))
}

/// Whether the client wants actions of `kind`; kinds are paths, and asking for one asks for all below.
fn wanted(only: Option<&[CodeActionKind]>, kind: &CodeActionKind) -> bool {
    let kind = kind.as_str();
    only.is_none_or(|only| {
        only.iter().map(CodeActionKind::as_str).any(|asked| {
            asked.is_empty()
                || kind.strip_prefix(asked).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        })
    })
}

fn review_action(server: &Server, snapshot: &Snapshot, caret: usize) -> Option<CodeAction> {
    let function = review::function_at(snapshot, caret)?;
    let profile = server.profile();
    let mut action = CodeAction {
        title: "Review this function".to_owned(),
        kind: Some(CodeActionKind::Custom(REVIEW_KIND.into())),
        tags: tags(server),
        ..CodeAction::default()
    };
    match (can_review(server), profile.disabled_actions) {
        (Ok(()), _) => {
            let range = range(&snapshot.text, function.bytes, profile.encoding);
            let arguments = vec![json!(*snapshot.uri), json!(range), json!(snapshot.version)];
            action.command = Some(command(&action.title, execute_command::REVIEW, arguments));
        }
        (Err(reason), true) => action.disabled = Some(CodeActionDisabled { reason }),
        (Err(reason), false) => {
            let arguments = vec![json!(reason)];
            action.command = Some(command(&action.title, execute_command::EXPLAIN, arguments));
        }
    }
    Some(action)
}

/// Whether there is a model that can review, and what to do if not.
pub(super) fn can_review(server: &Server) -> std::result::Result<(), String> {
    server.assistant.ready_to_review().map(|_| ())
}

fn for_findings(server: &Server, uri: &str, touched: std::ops::Range<usize>) -> Vec<CodeAction> {
    let workspace = lock(&server.workspace);
    let Some(document) = workspace.documents.get(uri) else {
        return Vec::new();
    };
    let snapshot = document.snapshot();
    let profile = server.profile();
    let mut actions = Vec::new();
    for held in workspace.findings.of(uri) {
        let on = lines(&held.finding);
        if on.end <= touched.start || touched.end <= on.start {
            continue;
        }
        let action = |title: String| CodeAction {
            title,
            kind: Some(CodeActionKind::QuickFix),
            diagnostics: Some(vec![diagnostic(held, &snapshot.text, profile.encoding)]),
            ..CodeAction::default()
        };
        let summary = summary(&held.finding.message);
        if held.finding.replacement.is_some() {
            let data = FixData { uri: uri.to_owned(), finding: held.id };
            let edit = (!profile.resolves_edits).then(|| fix(held, snapshot, profile)).flatten();
            actions.push(CodeAction {
                edit,
                data: serde_json::to_value(data).ok(),
                tags: tags(server),
                ..action(format!("Apply fix: {summary}"))
            });
        }
        let title = format!("Dismiss: {summary}");
        let arguments = vec![json!(uri), json!(held.id)];
        actions.push(CodeAction {
            command: Some(command(&title, execute_command::DISMISS, arguments)),
            ..action(title)
        });
    }
    actions
}

fn command(title: &str, command: &str, arguments: Vec<serde_json::Value>) -> Command {
    Command {
        title: title.to_owned(),
        tooltip: None,
        command: command.to_owned(),
        arguments: Some(arguments),
    }
}

fn tags(server: &Server) -> Option<Vec<CodeActionTag>> {
    server.profile().action_tags.then(|| vec![CodeActionTag::LLMGenerated])
}

/// The first sentence or so of a message, for a menu.
fn summary(message: &str) -> String {
    const LONGEST: usize = 50;
    let line = message.lines().next().unwrap_or_default();
    match line.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}…", line[..end].trim_end()),
        None => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn asking_for_a_kind_asks_for_those_below_it() {
        let review = CodeActionKind::Custom(REVIEW_KIND.into());
        let asks = |only: &'static str| wanted(Some(&[CodeActionKind::Custom(only.into())]), &review);
        assert!(wanted(None, &review));
        assert!(asks("redstart") && asks("redstart.review") && asks(""));
        assert!(!asks("red") && !asks("redstart.review.deep") && !asks("quickfix"));
        assert!(!wanted(Some(&[]), &review));
    }
}
