//! Other files that the user has open, the most recently visited first: the part around the place
//! visited last, cut to whole blocks. It stays the same for as long as the user stays in this file.

use crate::blocks;
use crate::documents::{Document, Snapshot};
use crate::files::is_readable_text;
use crate::query::{Chunk, Query, Reason};
use crate::sources::Turn;
use crate::workspace::Workspace;

/// Files shown at most.
const MAX_FILES: usize = 4;
/// Most bytes of one.
const MAX_BYTES: usize = 1_200;
/// Less than this is not worth its path.
const MIN_BYTES: usize = 80;
/// Most lines on either side of the place that are read.
const REACH: usize = 200;

/// Offers parts of the other open files.
pub(crate) fn offer(turn: &mut Turn<'_>, query: &Query<'_>, documents: &Snapshot, workspace: &Workspace) {
    let here = workspace.admit(query.path);
    let others = documents.iter().filter(|(path, document)| document.is_open && path != query.path);
    for (path, document) in others {
        if turn.chunks == MAX_FILES || turn.room() < MIN_BYTES || !turn.in_time() {
            return;
        }
        let Some(file) = workspace.admit(path).filter(|file| Some(file) != here.as_ref()) else {
            continue;
        };
        let max_bytes = turn.room().saturating_sub(file.relative.len()).min(MAX_BYTES);
        if is_readable_text(&file.relative, &document.text) {
            let text = part(document, max_bytes);
            let rank = turn.chunks;
            turn.offer(Chunk { path: file.relative, text, reason: Reason::OpenFile }, rank);
        }
    }
}

/// The blocks around the place in a document, at most `max_bytes` (a byte is kept for a missing line end).
fn part(document: &Document, max_bytes: usize) -> String {
    let text = &document.text;
    let line = text.byte_to_line(document.place.min(text.len_bytes()));
    let first = line.saturating_sub(REACH);
    let end = (line + REACH).min(text.len_lines());
    let lines: Vec<String> = (first..end).map(|line| text.line(line).to_string()).collect();
    let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
    let range = blocks::around(&lines, line - first, max_bytes.saturating_sub(1));
    lines[range].concat()
}
