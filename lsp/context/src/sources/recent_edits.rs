//! What the user changed lately, here and in other files: the best hint at what comes next.
//!
//! A chunk is one place that changed, as `-` and `+` lines. The newest that fit are chosen and given
//! oldest first, so that a new one comes after what the prompt already had.

use crate::documents::Snapshot;
use crate::edit_log::Hunk;
use crate::query::{Chunk, Query, Reason};
use crate::sources::Turn;
use crate::workspace::Workspace;

/// Most lines shown of what is gone and of what is new at one place.
const MAX_REMOVED: usize = 8;
const MAX_ADDED: usize = 24;
/// A change this close to the caret, in lines, is the one being typed.
const AT_CARET: usize = 1;

/// Offers the changes of all documents.
pub(crate) fn offer(turn: &mut Turn<'_>, query: &Query<'_>, documents: &Snapshot, workspace: &Workspace) {
    let mut changes: Vec<(String, Hunk)> = Vec::new();
    for (path, document) in documents.iter().filter(|(_, document)| !document.log.is_empty()) {
        if !turn.in_time() {
            return;
        }
        let Some(file) = workspace.admit(path) else {
            continue;
        };
        let hunks = document.log.hunks(&document.text, turn.until()).into_iter();
        let being_typed = |hunk: &Hunk| path == query.path && is_at(hunk, query.caret_line());
        changes.extend(hunks.filter(|hunk| !being_typed(hunk)).map(|hunk| (file.relative.clone(), hunk)));
    }

    let newest_first = |(path, hunk): &(String, Hunk)| {
        (std::cmp::Reverse((hunk.touched, hunk.born)), path.clone(), std::cmp::Reverse(hunk.lines.start))
    };
    changes.sort_by_cached_key(newest_first);
    let mut order: Vec<usize> = (0..changes.len()).collect();
    order.sort_by_key(|at| (changes[*at].1.born, changes[*at].1.lines.start));
    let mut ranks = vec![0; changes.len()];
    for (rank, at) in order.into_iter().enumerate() {
        ranks[at] = rank;
    }
    for ((path, hunk), rank) in changes.into_iter().zip(ranks) {
        if !turn.in_time() {
            return;
        }
        turn.offer(Chunk { path, text: diff(&hunk), reason: Reason::RecentEdit }, rank);
    }
}

fn is_at(hunk: &Hunk, line: usize) -> bool {
    hunk.lines.start <= line + AT_CARET && line < hunk.lines.end + AT_CARET
}

fn diff(hunk: &Hunk) -> String {
    let removed = trimmed(&hunk.removed).iter().take(MAX_REMOVED).map(|line| format!("-{line}\n"));
    let added = trimmed(&hunk.added).iter().take(MAX_ADDED).map(|line| format!("+{line}\n"));
    removed.chain(added).collect()
}

/// Without blank lines at the edges.
fn trimmed(lines: &[String]) -> &[String] {
    let says_something = |line: &String| !line.trim().is_empty();
    let first = lines.iter().position(says_something).unwrap_or(0);
    let end = lines.iter().rposition(says_something).map_or(first, |last| last + 1);
    &lines[first..end]
}
