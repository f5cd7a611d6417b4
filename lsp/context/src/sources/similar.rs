//! Text of the workspace that is like the text around the caret.
//!
//! The query is the identifiers of the lines around the caret, without the line being typed, from a stretch that moves
//! in steps: a keystroke does not change what is found.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use crate::context::Shared;
use crate::documents::Snapshot;
use crate::files::Family;
use crate::index::{Hit, Stamp};
use crate::query::{Chunk, Query, Reason};
use crate::selection::Offer;
use crate::sources::Turn;
use crate::words::terms;
use crate::worker::{Job, disk_stamp};

/// Lines by which the query moves.
const STEP: usize = 8;
/// Lines of it before and after the step that the caret is in.
const BEFORE: usize = 16;
const AFTER: usize = 8;
/// Most bytes of a line that are read.
const MAX_LINE_BYTES: usize = 1_000;
/// Hits that are looked at, snippets given, snippets of one file.
const MAX_HITS: usize = 16;
const MAX_SNIPPETS: usize = 4;
const MAX_OF_FILE: usize = 2;

/// Offers the snippets that share most with the text around the caret, given by path and place.
pub(crate) fn offer(turn: &mut Turn<'_>, query: &Query<'_>, documents: &Snapshot, shared: &Shared) {
    let Some(family) = family(query) else {
        return;
    };
    let workspace = shared.workspace();
    let here = workspace.admit(query.path).map(|file| file.real);
    let wanted = terms(&text_around(query));
    let hits = match shared.index_by(turn.until()) {
        Some(index) => index.search(&wanted, &family, here.as_deref(), MAX_HITS),
        None => Vec::new(),
    };
    if !turn.in_time() {
        return;
    }
    let mut taken: Vec<&Path> = Vec::new();
    for hit in &hits {
        if taken.len() == MAX_SNIPPETS || !turn.in_time() {
            return;
        }
        if taken.iter().filter(|path| **path == hit.path).count() == MAX_OF_FILE {
            continue;
        }
        // The hit's path is canonical; when it no longer is, something else is there now.
        let Some(file) = workspace.admit(&hit.path).filter(|file| file.real == hit.path) else {
            continue;
        };
        let Some(text) = text_of(hit, documents) else {
            shared.send(Job::Update(hit.path.clone()));
            continue;
        };
        let place = |hit: &Hit| (hit.path.clone(), hit.bytes.start);
        let rank = hits.iter().filter(|other| place(other) < place(hit)).count();
        let chunk = Chunk { path: file.relative, text, reason: Reason::Similar };
        if turn.offer(chunk, rank) == Offer::Taken {
            taken.push(&hit.path);
        }
    }
}

/// What the file can be compared with: by its name, or by its language where the name says nothing.
fn family(query: &Query<'_>) -> Option<Family> {
    let by_language = || query.language.map(Family::of_language);
    Family::of(query.path).or_else(by_language)
}

fn text_around(query: &Query<'_>) -> String {
    let caret = query.caret_line();
    let step = caret / STEP * STEP;
    let lines = step.saturating_sub(BEFORE)..(step + STEP + AFTER).min(query.text.len_lines());
    let others = lines.filter(|line| *line != caret).map(|line| query.text.line(line));
    others.filter(|line| line.len_bytes() <= MAX_LINE_BYTES).map(|line| line.to_string()).collect()
}

/// The text of a hit, if the file still is what was indexed.
fn text_of(hit: &Hit, documents: &Snapshot) -> Option<String> {
    match hit.stamp {
        Stamp::Open { version } => {
            let (_, document) = documents.iter().find(|(_, document)| document.version == version)?;
            Some(document.text.get_byte_slice(hit.bytes.clone())?.to_string())
        }
        stamp @ Stamp::Disk { .. } => {
            let mut file = File::open(&hit.path).ok()?;
            file.seek(SeekFrom::Start(hit.bytes.start as u64)).ok()?;
            let mut bytes = vec![0; hit.bytes.len()];
            file.read_exact(&mut bytes).ok()?;
            // After the read, so that a write in between is noticed.
            (disk_stamp(&hit.path) == Some(stamp)).then_some(())?;
            String::from_utf8(bytes).ok()
        }
    }
}
