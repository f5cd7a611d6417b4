//! What the user changed in a document: the lines that differ from an earlier text.
//!
//! A log holds that earlier text and, for each place that changed since, which lines of it became which
//! lines of the current text. Between those places the two texts are equal, line by line, so the log is a
//! complete diff that an edit updates without reading text. The lines themselves are compared
//! only when somebody asks, which is also when an undo turns out to have left nothing.

use std::ops::Range;
use std::time::Instant;

use ropey::Rope;
use similar::{Algorithm, DiffOp, DiffTag, capture_diff_slices_deadline};

/// Places remembered per document; the one untouched for longest is forgotten first.
const MAX_PLACES: usize = 24;
/// Edits with at most this many unchanged lines between them are one.
const MERGE_GAP: usize = 1;
/// Places of more lines are a reformatting or a replaced file, and cost too much to compare.
const MAX_COMPARED_LINES: usize = 4_000;

/// The changes of one document.
#[derive(Clone, Debug)]
pub(crate) struct EditLog {
    base: Rope,
    /// By line, apart from each other.
    places: Vec<Place>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Place {
    base: Range<usize>,
    current: Range<usize>,
    /// When it was first and last touched, by the caller's clock.
    born: u64,
    touched: u64,
}

/// Lines that were replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hunk {
    /// Where the new lines stand in the current text.
    pub(crate) lines: Range<usize>,
    /// Lines that are gone, without line ends.
    pub(crate) removed: Vec<String>,
    /// Lines that are new, without line ends.
    pub(crate) added: Vec<String>,
    /// When the place was first edited, by the clock given to [`EditLog::edited`].
    pub(crate) born: u64,
    /// When it was last edited.
    pub(crate) touched: u64,
}

impl EditLog {
    /// No changes since `text`.
    pub(crate) fn new(text: Rope) -> Self {
        Self { base: text, places: Vec::new() }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Notes that `bytes` of `before` were replaced, which gave `after`.
    pub(crate) fn edited(&mut self, before: &Rope, after: &Rope, bytes: &Range<usize>, now: u64) {
        let start = bytes.start.min(before.len_bytes());
        let end = bytes.end.clamp(start, before.len_bytes());
        let mut current = before.byte_to_line(start)..before.byte_to_line(end) + 1;
        let (lines_before, lines_after) = (before.len_lines(), after.len_lines());
        let moved = |line: usize| (line + lines_after).saturating_sub(lines_before);

        let first = self.places.partition_point(|place| place.current.end + MERGE_GAP < current.start);
        let last = self.places.partition_point(|place| place.current.start <= current.end + MERGE_GAP);
        let touching = first..last.max(first);
        let mut born = now;
        for place in &self.places[touching.clone()] {
            current.start = current.start.min(place.current.start);
            current.end = current.end.max(place.current.end);
            born = born.min(place.born);
        }
        let base = self.base_line(first, current.start)..self.base_line(touching.end, current.end);
        current.end = moved(current.end).max(current.start);
        for place in &mut self.places[touching.end..] {
            place.current = moved(place.current.start)..moved(place.current.end);
        }
        let merged = Place { base: base.start..base.end.max(base.start), current, born, touched: now };
        self.places.splice(touching, [merged]);
        if self.places.len() > MAX_PLACES {
            self.forget_oldest(after);
        }
    }

    /// The line of the base that `line` of the current text is, where the first `places` places are above it.
    fn base_line(&self, places: usize, line: usize) -> usize {
        let above = self.places[..places].last();
        above.map_or(line, |place| (place.base.end + line).saturating_sub(place.current.end))
    }

    /// Takes the oldest change as given.
    fn forget_oldest(&mut self, text: &Rope) {
        let oldest = (0..self.places.len()).min_by_key(|at| self.places[*at].touched);
        let Some(oldest) = oldest.map(|at| (at, self.places.remove(at))) else {
            return;
        };
        let (at, place) = oldest;
        let removed = char_range(&self.base, &place.base);
        let added = text.slice(char_range(text, &place.current)).to_string();
        let start = removed.start;
        self.base.remove(removed);
        self.base.insert(start, &added);
        let moved = |line: usize| (line + place.current.len()).saturating_sub(place.base.len());
        for later in &mut self.places[at..] {
            later.base = moved(later.base.start)..moved(later.base.end);
        }
    }

    /// The changes that make `current`, the text of the last edit, of the base. What is not compared by
    /// `until` is given as one change.
    pub(crate) fn hunks(&self, current: &Rope, until: Instant) -> Vec<Hunk> {
        let mut hunks = Vec::new();
        for place in &self.places {
            if place.base.len().max(place.current.len()) > MAX_COMPARED_LINES {
                continue;
            }
            let old = lines_of(&self.base, &place.base);
            let new = lines_of(current, &place.current);
            let changes = capture_diff_slices_deadline(Algorithm::Myers, &old, &new, Some(until));
            for (old_lines, new_lines) in runs(&changes) {
                hunks.push(Hunk {
                    lines: place.current.start + new_lines.start..place.current.start + new_lines.end,
                    removed: old[old_lines].to_vec(),
                    added: new[new_lines].to_vec(),
                    born: place.born,
                    touched: place.touched,
                });
            }
        }
        hunks
    }
}

/// Runs of changes, those with few equal lines between them as one.
fn runs(changes: &[DiffOp]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut runs: Vec<(Range<usize>, Range<usize>)> = Vec::new();
    for change in changes.iter().filter(|change| change.tag() != DiffTag::Equal) {
        let (old, new) = (change.old_range(), change.new_range());
        match runs.last_mut() {
            Some(last) if new.start <= last.1.end + MERGE_GAP && old.start <= last.0.end + MERGE_GAP => {
                last.0.end = old.end;
                last.1.end = new.end;
            }
            _ => runs.push((old, new)),
        }
    }
    runs
}

fn char_range(text: &Rope, lines: &Range<usize>) -> Range<usize> {
    let end = lines.end.min(text.len_lines());
    let start = lines.start.min(end);
    text.line_to_char(start)..text.line_to_char(end)
}

fn lines_of(text: &Rope, lines: &Range<usize>) -> Vec<String> {
    let end = lines.end.min(text.len_lines());
    let start = lines.start.min(end);
    let line = |line: usize| text.line(line).to_string().trim_end_matches(['\n', '\r']).to_owned();
    (start..end).map(line).collect()
}

#[cfg(test)]
#[path = "edit_log_tests.rs"]
mod tests;
