//! Suggestions, whichever request they are for.

use std::sync::Arc;
use std::time::Instant;

use futures_util::FutureExt;
use futures_util::future::{self, Either};
use tokio::sync::oneshot;
use tower_lsp::gen_lsp_types::MessageType;

use crate::assistant::{NoSuggestion, Suggestion, Trigger};
use crate::complete::Asked;
use crate::encoding::Position;
use crate::model::ModelState;
use crate::server::sync::lock;
use crate::server::workspace::LastSuggestion;
use crate::server::{Server, feedback};
use crate::snapshot::Snapshot;
use crate::typing::Typing;

/// Where a suggestion is shown. An editor may ask for both at a keystroke; neither ends the other.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::server) enum Shown {
    /// As ghost text.
    Inline,
    /// In the completion menu.
    Menu,
}

/// Where a suggestion is wanted.
pub(super) struct Wanted {
    /// The document.
    pub(super) snapshot: Snapshot,
    /// What is remembered of the typing in it.
    pub(super) typing: Arc<Typing>,
    /// Byte offset of the caret.
    pub(super) caret: usize,
    /// When the request arrived.
    arrived: Instant,
    /// Ends the request that was under way for the document, when dropped.
    previous: Option<oneshot::Sender<()>>,
    /// Resolves when a newer request takes over.
    superseded: oneshot::Receiver<()>,
}

/// Takes the snapshot and supersedes the request before. Must be called before the handler's first
/// `await`. `None`: there is nothing to suggest here, and `redstart/lastSuggestion` says why.
pub(super) fn want(server: &Server, uri: &str, position: Position, shown: Shown) -> Option<Wanted> {
    let mut workspace = lock(&server.workspace);
    let place = workspace.place(uri, position, server.profile().encoding);
    let typing = workspace.documents.get(uri).map(|document| Arc::clone(document.typing()));
    let refusal = match &place {
        Err(reason) => Some(reason.to_string()),
        Ok((snapshot, _)) => refusal(server, snapshot),
    };
    if let Some(reason) = refusal {
        if let Some(document) = workspace.documents.get(uri) {
            let last = LastSuggestion { version: document.snapshot().version, outcome: Err(reason) };
            workspace.last_suggestion.insert(uri.into(), last);
        }
        return None;
    }
    let ((snapshot, caret), typing) = (place.ok()?, typing?);
    server.surroundings.visited(uri, caret);
    let (newer, superseded) = oneshot::channel();
    let previous = workspace.suggesting.insert((Arc::clone(&snapshot.uri), shown), newer);
    Some(Wanted { snapshot, typing, caret, arrived: server.arrival.get(), previous, superseded })
}

fn refusal(server: &Server, snapshot: &Snapshot) -> Option<String> {
    if !server.settings().suggests_in(&snapshot.language_id) {
        return Some(format!("switched off in the settings for {}", snapshot.language_id));
    }
    match &*server.assistant.model().borrow() {
        ModelState::Ready(_) => None,
        ModelState::Loading { what } => Some(format!("the model is not ready: {what}")),
        ModelState::Failed { message } => Some(format!("the model is not there: {message}")),
        ModelState::Unset => Some("no model was asked for".to_owned()),
    }
}

/// Asks for suggestions: up to `count`, the best first. None: `redstart/lastSuggestion` says why.
pub(super) async fn suggest(
    server: &Server,
    wanted: Wanted,
    trigger: Trigger,
    count: usize,
) -> (Snapshot, Vec<Suggestion>) {
    let Wanted { snapshot, typing, caret, arrived, previous, superseded } = wanted;
    let asked = Asked::new(&typing, &snapshot, caret, trigger).at(arrived);
    let result = {
        let assistant = &server.assistant;
        let mut complete = Box::pin(async {
            if count > 1 {
                assistant.candidates(&asked, count).await
            } else {
                assistant.complete(&asked).await.map(|found| vec![found])
            }
        });
        // Started with the main loop's one poll, so that the prompt is under way before the next message is looked at;
        // and before the previous request is ended, so that this one is among those who wait for the generation of
        // that one, where what was typed since agrees with it.
        let started = (&mut complete).now_or_never();
        drop(previous);
        match started {
            Some(result) => result,
            None => match future::select(complete, superseded).await {
                Either::Left((result, _)) => result,
                Either::Right(_) => Err(NoSuggestion::Superseded),
            },
        }
    };
    for notice in server.assistant.take_notices() {
        server.outbox.show(MessageType::Warning, notice);
    }
    let suggestions = deliver(server, &snapshot, &typing, result);
    (snapshot.clone(), suggestions)
}

/// Makes suggestions ready for the editor, and notes what became of the request.
fn deliver(
    server: &Server,
    snapshot: &Snapshot,
    typing: &Arc<Typing>,
    result: Result<Vec<Suggestion>, NoSuggestion>,
) -> Vec<Suggestion> {
    note(server, snapshot, &result);
    let mut suggestions = result.unwrap_or_default();
    if let Some(limit) = server.settings().completion.max_lines {
        for suggestion in &mut suggestions {
            keep_lines(&mut suggestion.text, limit);
        }
    }
    if let Some(first) = suggestions.first() {
        feedback::shown(server, snapshot, typing, first);
    }
    suggestions
}

/// Notes what became of a request, for `redstart/lastSuggestion`.
fn note(server: &Server, snapshot: &Snapshot, result: &Result<Vec<Suggestion>, NoSuggestion>) {
    let outcome = match result {
        Ok(found) if found.is_empty() => Err(NoSuggestion::Nothing.to_string()),
        Ok(found) => Ok(found[0].stats.clone()),
        Err(NoSuggestion::Superseded) => return,
        Err(reason) => {
            if let NoSuggestion::Failed(problem) = reason {
                tracing::warn!("no suggestion in {}: {problem}", snapshot.uri);
            }
            Err(reason.to_string())
        }
    };
    let mut workspace = lock(&server.workspace);
    if workspace.documents.get(&snapshot.uri).is_some() {
        let last = LastSuggestion { version: snapshot.version, outcome };
        workspace.last_suggestion.insert(Arc::clone(&snapshot.uri), last);
    }
}

/// Cuts `text` after `limit` lines.
fn keep_lines(text: &mut String, limit: usize) {
    if let Some((end, _)) = text.match_indices('\n').nth(limit.saturating_sub(1)) {
        text.truncate(end);
        if text.ends_with('\r') {
            text.pop();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_over_the_limit_go_with_their_break() {
        let kept = |text: &str, limit| {
            let mut text = text.to_owned();
            keep_lines(&mut text, limit);
            text
        };
        assert_eq!(kept("a\r\nb\r\nc", 2), "a\r\nb");
        assert_eq!(kept("a\nb", 2), "a\nb");
        assert_eq!(kept("a\nb", 1), "a");
    }
}
