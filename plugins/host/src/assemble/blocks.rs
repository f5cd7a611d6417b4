//! Blocks of text that are tokenized by themselves.
//!
//! A tokenizer first splits text with a pattern and never joins what the pattern parted, so a text may be
//! cut where every such pattern splits, and its tokens are those of its blocks one after the other:
//!
//! - before a line that has text on it. Patterns take a line end with the blanks and line ends that
//!   follow, up to the last line end before the next visible character. Some (GPT-2's) take the
//!   indentation of that line too but for one blank; for them, only before lines without indentation.
//! - within a line, between an ASCII letter or digit and ASCII punctuation or a blank after it, but for
//!   an apostrophe (`'s` is a word of its own, and of some patterns the end of one).
//!
//! Normalization (NFC) composes nothing across these places. Which of them are used depends on the few
//! bytes before each, as in content-defined chunking: so an edit changes the blocks that it touches and
//! none after them, wherever it is made.

use super::Tokenize;

/// One in this many lines ends a block.
const LINES: u32 = 2;
/// Bounds of a block, beyond which the next place ends it or none does.
const MIN_BYTES: usize = 64;
const MAX_BYTES: usize = 512;
const MAX_LINES: usize = 8;
/// Beyond so many bytes of a line, one in so many of its words ends a block.
const LONG_LINE: usize = 256;
const WORDS: u32 = 32;
/// Bytes before a place that decide whether it is used.
const DECIDING_BYTES: usize = 12;

/// Where texts for one tokenizer may be cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CutPoints {
    before_indented_lines: bool,
}

impl CutPoints {
    /// Finds out by trying whether the tokenizer keeps the indentation of a line apart from the line end
    /// before it.
    pub(super) fn of(tokenizer: &dyn Tokenize) -> Self {
        let parted = |(before, after): (&str, &str)| {
            let parts = [tokenizer.encode(before), tokenizer.encode(after)].concat();
            tokenizer.encode(&[before, after].concat()) == parts
        };
        let samples =
            [("{\n", "    x"), ("x\n", "\tx"), ("x\n\n", "  (x"), ("x\n", " x"), ("x \n", "        1")];
        Self { before_indented_lines: samples.into_iter().all(parted) }
    }

    /// Splits a text into blocks. Where a block ends depends only on the text up to the first visible
    /// character after it, so text appended at the end moves no boundary.
    pub(super) fn blocks(self, text: &str) -> impl Iterator<Item = &str> {
        let mut places = Places { cuts: self, text, at: 0, line_start: 0 };
        let mut start = 0;
        std::iter::from_fn(move || {
            if start == text.len() {
                return None;
            }
            let mut lines = 0;
            let ends_block = |place: &Place| {
                lines += usize::from(!place.in_line);
                let one_in = if place.in_line { WORDS } else { LINES };
                let length = place.at - start;
                let full = length >= MAX_BYTES || lines >= MAX_LINES;
                full || length >= MIN_BYTES && chosen(text, place.at, one_in)
            };
            let end = places.find(ends_block).map_or(text.len(), |place| place.at);
            let block = &text[start..end];
            start = end;
            Some(block)
        })
    }

    fn before_line(self, line: &str) -> bool {
        let indent = line.len() - line.trim_start().len();
        let visible = indent < line.len();
        // A lone carriage return is a line end among the blanks.
        visible && !line[..indent].contains(['\r', '\n']) && (indent == 0 || self.before_indented_lines)
    }
}

/// A place where the text may be cut.
struct Place {
    at: usize,
    in_line: bool,
}

/// Walks over the places of a text.
struct Places<'a> {
    cuts: CutPoints,
    text: &'a str,
    at: usize,
    line_start: usize,
}

impl Iterator for Places<'_> {
    type Item = Place;

    fn next(&mut self) -> Option<Place> {
        let bytes = self.text.as_bytes();
        while self.at + 1 < bytes.len() {
            self.at += 1;
            let (before, after) = (bytes[self.at - 1], bytes[self.at]);
            if before == b'\n' {
                self.line_start = self.at;
                let line = self.text[self.at..].split_inclusive('\n').next().unwrap_or_default();
                if self.cuts.before_line(line) {
                    return Some(Place { at: self.at, in_line: false });
                }
            } else if self.at - self.line_start >= LONG_LINE
                && before.is_ascii_alphanumeric()
                && (matches!(after, b' ' | b'\t') || after.is_ascii_punctuation() && after != b'\'')
            {
                return Some(Place { at: self.at, in_line: true });
            }
        }
        None
    }
}

/// Whether the bytes before a place choose it, as one of `of`.
fn chosen(text: &str, at: usize, of: u32) -> bool {
    let deciding = &text.as_bytes()[at.saturating_sub(DECIDING_BYTES)..at];
    // FNV-1a; its high bits are the well mixed ones.
    let hash = deciding
        .iter()
        .fold(0x811c_9dc5_u32, |hash, &byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (hash >> 16).is_multiple_of(of)
}
