//! What other tools say about the lines around the caret: one short line each, as
//! `error on line 12: message`.

use crate::documents::Snapshot;
use crate::query::{Chunk, Diagnostic, Query, Reason};
use crate::sources::Turn;
use crate::workspace::Workspace;

/// How many lines away from the caret still counts as near.
const NEAR: usize = 20;
/// Remarks shown at most.
const MAX_REMARKS: usize = 5;
/// Most characters of a message.
const MAX_MESSAGE: usize = 160;

/// Offers one chunk with the remarks on this file that are nearest to the caret, by line.
pub(crate) fn offer(turn: &mut Turn<'_>, query: &Query<'_>, documents: &Snapshot, workspace: &Workspace) {
    let Some((_, document)) = documents.iter().find(|(path, _)| path == query.path) else {
        return;
    };
    let Some(file) = workspace.admit(query.path) else {
        return;
    };
    let caret = query.caret_line();
    let distance = |remark: &Diagnostic| {
        let last = remark.lines.end.saturating_sub(1).max(remark.lines.start);
        remark.lines.start.saturating_sub(caret).max(caret.saturating_sub(last))
    };
    let near = document.diagnostics.iter().filter(|remark| distance(remark) <= NEAR);
    let mut near: Vec<&Diagnostic> = near.collect();
    near.sort_by_key(|remark| (remark.severity, distance(remark), remark.lines.start));

    let mut lines: Vec<(usize, String)> = Vec::new();
    let mut room = turn.room().saturating_sub(file.relative.len());
    for remark in near {
        let line = sentence(remark);
        if lines.len() < MAX_REMARKS && line.len() <= room {
            room -= line.len();
            lines.push((remark.lines.start, line));
        }
    }
    lines.sort();
    lines.dedup();
    if !lines.is_empty() && turn.in_time() {
        let text = lines.into_iter().map(|(_, line)| line).collect();
        turn.offer(Chunk { path: file.relative, text, reason: Reason::Diagnostic }, 0);
    }
}

fn sentence(remark: &Diagnostic) -> String {
    let words: Vec<&str> = remark.message.split_whitespace().collect();
    let message: String = words.join(" ").chars().take(MAX_MESSAGE).collect();
    format!("{} on line {}: {message}\n", remark.severity.as_str(), remark.lines.start + 1)
}
