//! The review of a function, from the command to the findings on their lines.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use redstart_syntax::function::{Function, enclosing_function};
use serde_json::{Value, json};
use tower_lsp::gen_lsp_types::{MessageType, ProgressToken};
use tower_lsp::jsonrpc::{Error, ErrorCode, Result};

use super::code_action::can_review;
use crate::assistant::Finding;
use crate::encoding::Position;
use crate::server::Server;
use crate::server::findings::follow;
use crate::server::progress::Channel;
use crate::server::sync::lock;
use crate::snapshot::Snapshot;

/// Tokens between two progress messages.
const REPORT_EVERY: usize = 16;

/// The function at a byte offset, in a language we have a grammar for.
pub(super) fn function_at(snapshot: &Snapshot, byte: usize) -> Option<Function> {
    enclosing_function(snapshot.syntax_tree()?, &snapshot.text, byte)
}

/// Reviews the function at `position`. What stands in the way is shown to the user; the result is then
/// `null`. With a `version`, the document must still be at it.
pub(super) async fn review(
    server: &Server,
    uri: &str,
    position: Position,
    version: Option<i32>,
    token: Option<ProgressToken>,
) -> Result<Option<Value>> {
    let place = lock(&server.workspace).place(uri, position, server.profile().encoding);
    let (snapshot, byte) = match place {
        Ok(place) => place,
        Err(reason) => return refuse(server, &reason.to_string()),
    };
    if version.is_some_and(|version| version != snapshot.version) {
        return refuse(server, "the document has changed; choose the action again");
    }
    if let Err(reason) = can_review(server) {
        return refuse(server, &reason);
    }
    // Off the main loop: the document may have to be parsed.
    tokio::task::yield_now().await;
    let Some(function) = function_at(&snapshot, byte) else {
        return refuse(server, "there is no function here that could be reviewed");
    };
    let findings = run(server, &snapshot, &function, token).await?;
    let Some(findings) = findings else {
        return Ok(None);
    };
    let count = record(server, &snapshot, &function, findings);
    match count {
        Some(0) => {
            let message = format!("Redstart: nothing to remark on in {}", function.name);
            server.outbox.show(MessageType::Info, message);
        }
        Some(_) => {}
        None => return refuse(server, "the document was closed, or changed too much, during its review"),
    }
    Ok(Some(json!({ "findings": count })))
}

/// Asks the model, under progress that can be cancelled. `None`: it failed, and the user knows why.
async fn run(
    server: &Server,
    snapshot: &Snapshot,
    function: &Function,
    token: Option<ProgressToken>,
) -> Result<Option<Vec<Finding>>> {
    let channel = token.map_or_else(|| server.progress_channel(), Channel::Requested);
    let title = format!("Reviewing {}", function.name);
    let (progress, cancelled) = server.progress.start(channel, &title, "reading", true);
    let progress = Mutex::new(progress);
    let reported = AtomicUsize::new(0);
    let on_tokens = |tokens: usize| {
        let last = reported.load(Ordering::Relaxed);
        if tokens >= last + REPORT_EVERY {
            reported.store(tokens, Ordering::Relaxed);
            lock(&progress).report(&format!("{tokens} tokens"));
        }
    };
    let reviewed = tokio::select! {
        reviewed = server.assistant.review(snapshot, function.bytes.clone(), &on_tokens) => reviewed,
        Ok(()) = cancelled => {
            let code = ErrorCode::RequestCancelled;
            return Err(Error { code, message: "cancelled by the user".into(), data: None });
        }
    };
    match reviewed {
        Ok(findings) => Ok(Some(findings)),
        Err(problem) => refuse(server, &problem).map(|_| None),
    }
}

/// Puts findings on their lines of the document as it is now. Returns how many there are; `None` when
/// the document is closed or the edits since cannot be told.
fn record(
    server: &Server,
    snapshot: &Snapshot,
    function: &Function,
    mut findings: Vec<Finding>,
) -> Option<usize> {
    let mut workspace = lock(&server.workspace);
    let document = workspace.documents.get(&snapshot.uri)?;
    let edits = document.line_edits_since(snapshot.version)?;
    findings.retain_mut(|finding| follow(finding, &edits));
    let mut reviewed = function.lines.clone();
    for edit in &edits {
        if edit.old.end <= reviewed.start {
            reviewed.start = reviewed.start + edit.new.end - edit.old.end;
            reviewed.end = reviewed.end + edit.new.end - edit.old.end;
        }
    }
    let count = findings.len();
    workspace.findings.record(&snapshot.uri, &reviewed, findings);
    server.publish(&workspace, &snapshot.uri);
    server.refresh_diagnostics();
    Some(count)
}

fn refuse(server: &Server, reason: &str) -> Result<Option<Value>> {
    server.outbox.show(MessageType::Warning, format!("Redstart cannot review: {reason}"));
    Ok(None)
}
