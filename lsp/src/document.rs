//! Open documents: the text as the editor has it, edit by edit.
//!
//! A [`Document`] is written by one thread at a time, in the order the editor sent its edits, and
//! hands out [`Snapshot`]s. An edit that cannot be meant for the text we have shows that editor and
//! server no longer agree; guessing would corrupt every answer from then on, so the document is set
//! aside until the editor sends its whole text again.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;

use ropey::Rope;

use crate::encoding::{BadPosition, Position, PositionEncoding, line_end};
use crate::snapshot::{Snapshot, TextEdit};
use crate::typing::{Reaction, Typing};

/// Documents over this many bytes get no suggestions.
pub const MAX_DOCUMENT_BYTES: usize = redstart_syntax::tree::MAX_TEXT_BYTES;
/// Nor does a caret on a line of more bytes than this: such a line is data, not code.
pub const MAX_LINE_BYTES: usize = redstart_syntax::tree::MAX_LINE_BYTES;
/// Edits remembered for [`Document::line_edits_since`].
const REMEMBERED_EDITS: usize = 1024;

/// One change of a document, as an editor sends it.
#[derive(Clone, Debug, PartialEq)]
pub struct Change {
    /// What is replaced; `None` is everything.
    pub range: Option<Range<Position>>,
    /// By what.
    pub text: String,
}

/// Whole lines that an edit touched: `old` in the text before it became `new` in the text after it.
/// Both start at the same line. Lines above kept their place, lines below moved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LineEdit {
    /// Lines before the edit.
    pub old: Range<usize>,
    /// Lines after it.
    pub new: Range<usize>,
}

/// An edit that does not fit the document.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ImpossibleEdit {
    /// The range starts or ends nowhere.
    #[error(transparent)]
    Position(#[from] BadPosition),
    /// The range ends before it starts.
    #[error(
        "the range ends at line {}, character {}, before its start at line {}, character {}",
        .end.line, .end.character, .start.line, .start.character
    )]
    Backwards {
        /// Start of the range.
        start: Position,
        /// End of the range.
        end: Position,
    },
    /// The message itself could not be read.
    #[error("the message is malformed: {0}")]
    Malformed(String),
}

/// Why a document cannot be worked on.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum Unsuitable {
    /// The editor's text and ours differ; the message says what showed it.
    #[error("its text is out of step with the editor ({0}). Saving or reopening the file puts it right")]
    OutOfStep(ImpossibleEdit),
    /// It has NUL characters.
    #[error("it is a binary file")]
    Binary,
    /// Over [`MAX_DOCUMENT_BYTES`].
    #[error("it is {0} bytes long, and the limit is {MAX_DOCUMENT_BYTES}")]
    TooLong(usize),
    /// The caret's line is over [`MAX_LINE_BYTES`].
    #[error("the line is {0} bytes long, and the limit is {MAX_LINE_BYTES}")]
    LineTooLong(usize),
}

/// A document that is open in the editor.
pub struct Document {
    snapshot: Snapshot,
    out_of_step: Option<ImpossibleEdit>,
    binary: bool,
    recent: VecDeque<(i32, LineEdit)>,
    typing: Arc<Typing>,
    /// What happened since the last [`Document::take_news`].
    news: News,
    /// Where the last edit ended.
    edited_at: usize,
}

/// What edits did.
#[derive(Default)]
pub(crate) struct News {
    /// The edits, in their order.
    pub(crate) edits: Vec<AppliedEdit>,
    /// What they meant for what was suggested.
    pub(crate) reactions: Vec<Reaction>,
    /// What the document was before each. To give back a tree of ten thousand lines takes half a millisecond, for which a
    /// request behind the edit need not wait.
    pub(crate) outdated: Vec<Snapshot>,
}

/// One edit, and the text before and after it.
pub(crate) struct AppliedEdit {
    pub(crate) before: Rope,
    pub(crate) after: Rope,
    pub(crate) bytes: Range<usize>,
    pub(crate) inserted_len: usize,
}

impl Document {
    /// A document as the editor opened it.
    pub fn new(snapshot: Snapshot) -> Self {
        let binary = snapshot.text.chunks().any(|chunk| chunk.contains('\0'));
        let typing = Arc::<Typing>::default();
        typing.version_is(snapshot.version, 1);
        Self {
            snapshot,
            out_of_step: None,
            binary,
            recent: VecDeque::new(),
            typing,
            news: News::default(),
            edited_at: 0,
        }
    }

    /// What is remembered of the typing in it.
    pub fn typing(&self) -> &Arc<Typing> {
        &self.typing
    }

    /// What the edits since the last call did.
    pub(crate) fn take_news(&mut self) -> News {
        std::mem::take(&mut self.news)
    }

    /// The byte offset at which the last edit ended: where the caret most likely is.
    pub fn edited_at(&self) -> usize {
        self.edited_at
    }

    /// The text as it is now.
    pub fn snapshot(&self) -> &Snapshot {
        &self.snapshot
    }

    /// Applies the changes of one `didChange` in their order and returns the lines they touched. A
    /// change that replaces everything mends a document that is out of step.
    ///
    /// # Errors
    /// The first change that does not fit. Changes before it stay applied; incremental ones after it
    /// are ignored, here and in later calls.
    pub fn apply(
        &mut self,
        version: i32,
        changes: Vec<Change>,
        encoding: PositionEncoding,
    ) -> Result<Vec<LineEdit>, ImpossibleEdit> {
        let mut lines = Vec::new();
        let mut failure = None;
        let cursors = cursors(&changes);
        self.snapshot.version = version;
        for change in changes {
            match change.range {
                None => {
                    lines.push(self.replace(&change.text));
                    failure = None;
                }
                Some(_) if self.out_of_step.is_some() => {}
                Some(range) => match self.splice(range, &change.text, encoding) {
                    Ok(edit) => lines.push(edit),
                    Err(error) => {
                        self.out_of_step = Some(error.clone());
                        failure = Some(error);
                    }
                },
            }
        }
        for edit in &lines {
            self.remember(version, edit.clone());
        }
        self.typing.version_is(version, cursors);
        failure.map_or(Ok(lines), Err)
    }

    /// Sets the document aside because a change of it could not be read.
    pub fn lost_change(&mut self, problem: String) {
        self.out_of_step.get_or_insert(ImpossibleEdit::Malformed(problem));
    }

    /// Compares with the text the editor saved, which is the truth. Returns the lines replaced, if it
    /// differs or the document was out of step.
    pub fn saved(&mut self, text: &str) -> Option<LineEdit> {
        if self.out_of_step.is_none() && self.snapshot.text == *text {
            return None;
        }
        let edit = self.replace(text);
        self.remember(self.snapshot.version, edit.clone());
        Some(edit)
    }

    fn remember(&mut self, version: i32, edit: LineEdit) {
        if self.recent.len() == REMEMBERED_EDITS {
            self.recent.pop_front();
        }
        self.recent.push_back((version, edit));
    }

    /// Why nothing should be asked about this document at byte offset `caret`, if so.
    pub fn unsuitable(&self, caret: usize) -> Option<Unsuitable> {
        let text = &self.snapshot.text;
        if let Some(edit) = &self.out_of_step {
            return Some(Unsuitable::OutOfStep(edit.clone()));
        }
        if self.binary {
            return Some(Unsuitable::Binary);
        }
        if text.len_bytes() > MAX_DOCUMENT_BYTES {
            return Some(Unsuitable::TooLong(text.len_bytes()));
        }
        let line = text.byte_to_line(caret.min(text.len_bytes()));
        let length = line_end(text, line) - text.line_to_byte(line);
        (length > MAX_LINE_BYTES).then_some(Unsuitable::LineTooLong(length))
    }

    /// What showed that editor and server disagree on the text, if they do.
    pub fn out_of_step(&self) -> Option<&ImpossibleEdit> {
        self.out_of_step.as_ref()
    }

    /// The lines touched since `version`, oldest first; `None` when that is too long ago to know.
    pub fn line_edits_since(&self, version: i32) -> Option<Vec<LineEdit>> {
        let reaches_back = self.recent.len() < REMEMBERED_EDITS
            || self.recent.front().is_some_and(|(oldest, _)| *oldest <= version);
        let newer = self.recent.iter().filter(|(edited, _)| *edited > version);
        reaches_back.then(|| newer.map(|(_, edit)| edit.clone()).collect())
    }

    fn replace(&mut self, text: &str) -> LineEdit {
        let old = 0..self.snapshot.text.len_lines();
        let before = self.snapshot.clone();
        self.snapshot.replace_text(Rope::from_str(text));
        self.follow(&difference(&before.text, text), &before);
        self.out_of_step = None;
        self.binary = text.contains('\0');
        LineEdit { old, new: 0..self.snapshot.text.len_lines() }
    }

    fn follow(&mut self, edit: &TextEdit, before: &Snapshot) {
        self.edited_at = edit.bytes.start + edit.inserted.len();
        self.news.reactions.extend(self.typing.edited(edit, before, &self.snapshot));
        self.news.edits.push(AppliedEdit {
            before: before.text.clone(),
            after: self.snapshot.text.clone(),
            bytes: edit.bytes.clone(),
            inserted_len: edit.inserted.len(),
        });
    }

    fn splice(
        &mut self,
        range: Range<Position>,
        inserted: &str,
        encoding: PositionEncoding,
    ) -> Result<LineEdit, ImpossibleEdit> {
        let text = &self.snapshot.text;
        let bytes = encoding.byte_of(text, range.start)?..encoding.byte_of(text, range.end)?;
        if range.end < range.start || bytes.end < bytes.start {
            return Err(ImpossibleEdit::Backwards { start: range.start, end: range.end });
        }
        let mut old = touched_lines(text, &bytes, inserted);
        let lines_before = text.len_lines();
        let before = self.snapshot.clone();
        let edit = TextEdit { bytes, inserted: inserted.to_owned() };
        self.snapshot.edit(&edit);
        self.follow(&edit, &before);
        self.news.outdated.push(before);
        self.binary |= inserted.contains('\0');
        // Counted on the whole text. An edit that brings a `\r` and a `\n` together takes one line more.
        let lines_after = self.snapshot.text.len_lines();
        old.end = old.end.max(old.start + lines_before.saturating_sub(lines_after));
        let new = old.start..old.end + lines_after - lines_before;
        Ok(LineEdit { old, new })
    }
}

/// Cursors that an editor typed with: with several, a message has the same change for each.
fn cursors(changes: &[Change]) -> usize {
    let same = changes.windows(2).all(|pair| pair[0].text == pair[1].text && pair[0].range != pair[1].range);
    let ranged = changes.iter().all(|change| change.range.is_some());
    if same && ranged { changes.len().max(1) } else { 1 }
}

/// The replacement that makes `after` of `before`: what they have in common at both ends stays.
fn difference(before: &Rope, after: &str) -> TextEdit {
    let same_start = before.chars().zip(after.chars()).take_while(|(a, b)| a == b);
    let start: usize = same_start.map(|(c, _)| c.len_utf8()).sum();
    let most = before.len_bytes().min(after.len()) - start;
    let mut same_end = 0;
    for (a, b) in before.chars_at(before.len_chars()).reversed().zip(after.chars().rev()) {
        if a != b || same_end + a.len_utf8() > most {
            break;
        }
        same_end += a.len_utf8();
    }
    TextEdit {
        bytes: start..before.len_bytes() - same_end,
        inserted: after[start..after.len() - same_end].to_owned(),
    }
}

/// Lines that replacing `bytes` by `inserted` changes. Inserting or removing whole lines changes no
/// line but those.
fn touched_lines(text: &Rope, bytes: &Range<usize>, inserted: &str) -> Range<usize> {
    let first = text.byte_to_line(bytes.start);
    let last = text.byte_to_line(bytes.end);
    let is_break = |c: char| c == '\n' || c == '\r';
    let at_start = |byte: usize, line: usize| byte == text.line_to_byte(line);
    let at_end = |byte: usize, line: usize| byte == line_end(text, line);
    if at_start(bytes.start, first)
        && at_start(bytes.end, last)
        && (inserted.is_empty() || inserted.ends_with(is_break))
    {
        return first..last;
    }
    if at_end(bytes.start, first)
        && at_end(bytes.end, last)
        && (inserted.is_empty() || inserted.starts_with(is_break))
    {
        return first + 1..last + 1;
    }
    first..last + 1
}

/// The documents that are open, by the URI the editor uses.
#[derive(Default)]
pub struct Documents {
    open: HashMap<Arc<str>, Document>,
}

impl Documents {
    /// Adds a document; one with the same URI is replaced.
    pub fn open(&mut self, snapshot: Snapshot) {
        self.open.insert(Arc::clone(&snapshot.uri), Document::new(snapshot));
    }

    /// Forgets a document.
    pub fn close(&mut self, uri: &str) {
        self.open.remove(uri);
    }

    /// An open document.
    pub fn get(&self, uri: &str) -> Option<&Document> {
        self.open.get(uri)
    }

    /// An open document, to edit.
    pub fn get_mut(&mut self, uri: &str) -> Option<&mut Document> {
        self.open.get_mut(uri)
    }

    /// All open documents.
    pub fn iter(&self) -> impl Iterator<Item = &Document> {
        self.open.values()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;

    fn document(text: &str) -> Document {
        let path = PathBuf::from("x.py");
        Document::new(Snapshot::new("file:///x.py", path, "python", 1, Rope::from_str(text)))
    }

    fn change(range: [usize; 4], text: &str) -> Change {
        let at = |line, character| Position { line, character };
        Change { range: Some(at(range[0], range[1])..at(range[2], range[3])), text: text.to_owned() }
    }

    fn touched(text: &str, range: [usize; 4], inserted: &str) -> (Range<usize>, Range<usize>) {
        let mut document = document(text);
        let lines = document.apply(2, vec![change(range, inserted)], PositionEncoding::Utf8).expect("fits");
        (lines[0].old.clone(), lines[0].new.clone())
    }

    #[test]
    fn whole_lines_inserted_or_removed_touch_no_others() {
        let text = "a\nb\nc\n";
        assert_eq!(touched(text, [1, 0, 1, 0], "x\ny\n"), (1..1, 1..3));
        assert_eq!(touched(text, [1, 1, 1, 1], "\nx"), (2..2, 2..3));
        assert_eq!(touched(text, [1, 0, 2, 0], ""), (1..2, 1..1));
        assert_eq!(touched(text, [1, 0, 1, 1], ""), (1..2, 1..2));
        assert_eq!(touched(text, [0, 1, 1, 0], ""), (0..2, 0..1));
        // What remains of both sides becomes one `\r\n`.
        assert_eq!(touched("a\rb\n\n", [1, 0, 2, 0], ""), (1..3, 1..1));
    }

    #[test]
    fn edits_are_remembered_by_version() {
        let mut document = document("a\nb\n");
        for version in 2..5 {
            let edit = change([0, 0, 0, 0], "x\n");
            document.apply(version, vec![edit], PositionEncoding::Utf16).expect("fits");
        }
        assert_eq!(document.line_edits_since(4), Some(Vec::new()));
        assert_eq!(document.line_edits_since(2).map(|edits| edits.len()), Some(2));
        for version in 5..3000 {
            let edit = change([0, 0, 0, 1], "y");
            document.apply(version, vec![edit], PositionEncoding::Utf16).expect("fits");
        }
        assert_eq!(document.line_edits_since(4), None, "too long ago");
    }

    /// The editor's side: a string, and where its lines begin by LSP's rules.
    fn line_starts(text: &str) -> Vec<usize> {
        let bytes = text.as_bytes();
        let ends = (0..bytes.len())
            .filter(|&at| bytes[at] == b'\n' || (bytes[at] == b'\r' && bytes.get(at + 1) != Some(&b'\n')));
        std::iter::once(0).chain(ends.map(|at| at + 1)).collect()
    }

    fn position_in(text: &str, byte: usize, encoding: PositionEncoding) -> Position {
        let starts = line_starts(text);
        let line = starts.partition_point(|&start| start <= byte) - 1;
        let before = &text[starts[line]..byte];
        let character = match encoding {
            PositionEncoding::Utf8 => before.len(),
            PositionEncoding::Utf16 => before.encode_utf16().count(),
            PositionEncoding::Utf32 => before.chars().count(),
        };
        Position { line, character }
    }

    /// Places an editor's caret can be: not inside a code point, not inside a `\r\n`.
    fn places(text: &str) -> Vec<usize> {
        let inside_break = |at: usize| at > 0 && text[at - 1..].starts_with("\r\n");
        (0..=text.len())
            .filter(|&at| text.is_char_boundary(at))
            .filter(|&at| !(at > 0 && text.is_char_boundary(at - 1) && inside_break(at)))
            .collect()
    }

    proptest! {
        #[test]
        fn random_edits_match_a_plain_string_in_every_encoding(
            initial in "([a-c \u{e9}\u{1F600}\u{2028}\u{c}]|\n|\r\n|\r){0,40}",
            edits in prop::collection::vec(
                (any::<prop::sample::Index>(), any::<prop::sample::Index>(),
                    "([a-c\u{e9}\u{1F600}]|\n|\r\n|\r){0,6}"),
                1..12,
            ),
            encoding in prop::sample::select(vec![
                PositionEncoding::Utf8, PositionEncoding::Utf16, PositionEncoding::Utf32,
            ]),
        ) {
            let mut model = initial.clone();
            let mut document = document(&initial);
            for (version, (one, other, inserted)) in (2..).zip(edits) {
                let places = places(&model);
                let (a, b) = (*one.get(&places), *other.get(&places));
                let (start, end) = (a.min(b), a.max(b));
                let range = position_in(&model, start, encoding)..position_in(&model, end, encoding);
                let before = line_starts(&model).len();
                model.replace_range(start..end, &inserted);
                let edit = Change { range: Some(range), text: inserted };
                let lines = document.apply(version, vec![edit], encoding).expect("it fits");
                let text = &document.snapshot().text;
                prop_assert_eq!(text.to_string(), model.as_str());
                prop_assert_eq!(text.len_lines(), line_starts(&model).len());
                let lines = &lines[0];
                prop_assert_eq!(
                    before + lines.new.len(), text.len_lines() + lines.old.len(), "{:?}", lines
                );
                for byte in self::places(&model) {
                    let position = position_in(&model, byte, encoding);
                    prop_assert_eq!(encoding.byte_of(text, position), Ok(byte));
                    prop_assert_eq!(encoding.position_of(text, byte), position);
                }
            }
        }

        #[test]
        fn no_edit_whatsoever_panics(
            initial in "([a-c\u{1F600}]|\n|\r\n){0,20}",
            edits in prop::collection::vec(
                ([0usize..6, 0usize..6, 0usize..6, 0usize..6], "[a\n\u{1F600}]{0,3}"), 1..6,
            ),
        ) {
            let mut document = document(&initial);
            for (version, (range, text)) in (2..).zip(edits) {
                let before = document.snapshot().text.clone();
                let result = document.apply(version, vec![change(range, &text)], PositionEncoding::Utf16);
                if result.is_err() {
                    prop_assert!(document.out_of_step().is_some());
                    prop_assert_eq!(&document.snapshot().text, &before);
                }
            }
            document.apply(99, vec![Change { range: None, text: "new".into() }], PositionEncoding::Utf16)
                .expect("a whole text always fits");
            prop_assert!(document.out_of_step().is_none());
        }
    }
}
