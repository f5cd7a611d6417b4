//! The chunks chosen so far: within the budget, none twice, nothing that the prompt has anyway.

use std::collections::HashSet;

use crate::query::{Chunk, Query, Reason};
use crate::secret_lines::without_secrets;

/// A chunk of which more than this share of lines stands in the prompt's window says nothing new.
const MAX_IN_WINDOW: f64 = 0.5;
/// A chunk of which more than this share of lines stands in another chunk says nothing new. (Both figures
/// are those of llama.vim, whose users found models copying from repeated context.)
const MAX_IN_CHUNK: f64 = 0.9;

/// What became of an offered chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Offer {
    /// It is in.
    Taken,
    /// The prompt or another chunk has its lines.
    Duplicate,
    /// It does not fit, or nothing of it may be shown.
    Refused,
}

struct Chosen {
    chunk: Chunk,
    rank: usize,
    lines: HashSet<u64>,
}

/// Chunks that fit together.
pub(crate) struct Selection {
    window: HashSet<u64>,
    chunks: Vec<Chosen>,
    left: usize,
}

impl Selection {
    pub(crate) fn new(query: &Query<'_>) -> Self {
        let window = query.window_lines();
        let lines = window.map(|line| query.text.line(line).to_string());
        let window = lines.filter_map(|line| fingerprint(&line)).collect();
        Self { window, chunks: Vec::new(), left: query.budget_bytes }
    }

    /// Bytes of the budget that are left.
    pub(crate) fn left(&self) -> usize {
        self.left
    }

    /// Takes the chunk if it fits the budget and `most` bytes, and says something new. Lines that look like
    /// secrets are left out. Chunks of one reason are given in the order of their `rank`. Returns
    /// the bytes it takes, too.
    pub(crate) fn offer(&mut self, mut chunk: Chunk, rank: usize, most: usize) -> (Offer, usize) {
        chunk.text = finished(&chunk.text);
        let lines = fingerprints(&chunk);
        if lines.is_empty() {
            return (Offer::Refused, 0);
        }
        let repeats = |others: &HashSet<u64>, most: f64| {
            lines.intersection(others).count() as f64 > most * lines.len() as f64
        };
        // A remark quotes the line it is about; it is not the line.
        let repeated = chunk.reason != Reason::Diagnostic && repeats(&self.window, MAX_IN_WINDOW)
            || self.chunks.iter().any(|chosen| repeats(&chosen.lines, MAX_IN_CHUNK));
        if repeated {
            return (Offer::Duplicate, 0);
        }
        let bytes = chunk.bytes();
        if bytes > self.left || bytes > most {
            return (Offer::Refused, 0);
        }
        self.left -= bytes;
        self.chunks.push(Chosen { chunk, rank, lines });
        (Offer::Taken, bytes)
    }

    /// The chunks, by reason, by rank within one.
    pub(crate) fn into_chunks(mut self) -> Vec<Chunk> {
        self.chunks.sort_by_key(|chosen| (chosen.chunk.reason, chosen.rank));
        self.chunks.into_iter().map(|chosen| chosen.chunk).collect()
    }
}

/// Whole lines with `\n` ends, without secrets and without blank lines around them.
fn finished(text: &str) -> String {
    let text =
        if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.to_owned() };
    let clean = without_secrets(&text);
    let clean = clean.trim_start_matches(['\n', '\u{feff}']).trim_end();
    if clean.is_empty() { String::new() } else { format!("{clean}\n") }
}

fn fingerprints(chunk: &Chunk) -> HashSet<u64> {
    chunk
        .text
        .lines()
        .map(|line| match chunk.reason {
            Reason::RecentEdit => line.get(1..).unwrap_or_default(),
            _ => line,
        })
        .filter_map(fingerprint)
        .collect()
}

/// A line, whatever its indent; `None` for one without a letter or digit, which every file has.
fn fingerprint(line: &str) -> Option<u64> {
    use std::hash::{DefaultHasher, Hash, Hasher};
    let line = line.trim();
    line.contains(char::is_alphanumeric).then(|| {
        let mut hasher = DefaultHasher::new();
        line.hash(&mut hasher);
        hasher.finish()
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use ropey::Rope;

    use super::*;

    fn offer(selection: &mut Selection, text: &str) -> Offer {
        let chunk = Chunk { path: "p".into(), text: text.into(), reason: Reason::Similar };
        selection.offer(chunk, 0, usize::MAX).0
    }

    fn selection(text: &str, budget_bytes: usize) -> Selection {
        let text = Rope::from_str(text);
        let window = 0..text.len_bytes();
        Selection::new(&Query {
            path: Path::new("/x"),
            language: None,
            text: &text,
            caret: 0,
            window,
            budget_bytes,
        })
    }

    #[test]
    fn what_the_window_has_is_left_out() {
        let mut chosen = selection("one\ntwo\nthree\n}\n", 1000);
        assert_eq!(offer(&mut chosen, "  one\ntwo\nother\n}\n"), Offer::Duplicate);
        assert_eq!(offer(&mut chosen, "one\nother\n}\n"), Offer::Taken, "half is not more than half");
    }

    #[test]
    fn what_another_chunk_has_is_left_out() {
        let mut chosen = selection("", 1000);
        let ten: String = (0..10).map(|n| format!("line {n}\n")).collect();
        assert_eq!(offer(&mut chosen, &ten), Offer::Taken);
        assert_eq!(offer(&mut chosen, &ten.replace("line 0", "line zero")), Offer::Taken);
        assert_eq!(offer(&mut chosen, &ten), Offer::Duplicate);
        assert_eq!(offer(&mut chosen, "line 3\nline 4\n"), Offer::Duplicate);
    }

    #[test]
    fn the_budget_holds() {
        let mut chosen = selection("", 12);
        assert_eq!(offer(&mut chosen, "too long for it\n"), Offer::Refused);
        assert_eq!(offer(&mut chosen, "fits\n"), Offer::Taken);
        assert_eq!(chosen.left(), 12 - 6);
        assert_eq!(offer(&mut chosen, "\n \n"), Offer::Refused, "nothing to show");
        assert_eq!(offer(&mut chosen, "a\r\nb"), Offer::Taken);
        assert_eq!(chosen.into_chunks()[1].text, "a\nb\n");
    }
}
