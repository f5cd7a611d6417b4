//! A place in a document and what was typed there since, followed edit by edit.

use std::ops::Range;

use ropey::Rope;

use crate::snapshot::{Snapshot, TextEdit};

/// Closing brackets and quotes that an editor may have put in by itself, at most.
const MAX_AUTO_CLOSED: usize = 4;

/// The bytes `at..end` of a document are what was typed at `at`. Everything around them is as it was, but for
/// edits of other lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Anchor {
    at: usize,
    end: usize,
    /// Bytes of the document behind `end`.
    tail: usize,
    /// Bytes right of the place that a suggestion for it replaces, as long as they stand there.
    replace: usize,
    /// Version of the document that it was first a place in, and where it was there.
    first: (i32, usize, usize),
}

/// What an edit is to a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Followed {
    /// It was made there. What is typed there now.
    Typed(String),
    /// It was made on other lines.
    Elsewhere,
    /// It took away text left of the place.
    Backspaced,
    /// The place is gone.
    Lost,
}

impl Anchor {
    /// The place `at` in a text, where `replace` bytes right of it are to be replaced.
    pub(crate) fn new(snapshot: &Snapshot, at: usize, replace: usize) -> Self {
        let tail = snapshot.text.len_bytes() - at;
        Self { at, end: at, tail, replace, first: (snapshot.version, at, tail) }
    }

    /// The same place for a suggestion that replaces `replace` bytes right of it.
    pub(crate) fn replacing(self, replace: usize) -> Self {
        Self { replace, ..self }
    }

    /// The byte offset of the place.
    pub(crate) fn at(&self) -> usize {
        self.at
    }

    /// Follows an edit, after which the place is where it was moved to. `longest` bounds the text that
    /// is worth reading.
    pub(crate) fn follow(
        &mut self,
        edit: &TextEdit,
        before: &Rope,
        after: &Rope,
        longest: usize,
    ) -> Followed {
        let Range { start, end } = edit.bytes.clone();
        let grown = after.len_bytes() as isize - before.len_bytes() as isize;
        if before.byte_slice(start..end) == edit.inserted.as_str() {
            return Followed::Elsewhere;
        }
        if start >= self.at && start <= self.end && end <= self.end + self.replace {
            let replaced = end.saturating_sub(self.end);
            self.replace -= replaced;
            self.tail -= replaced;
            self.end = after.len_bytes() - self.tail;
            return if self.end - self.at > longest + MAX_AUTO_CLOSED {
                Followed::Lost
            } else {
                Followed::Typed(after.byte_slice(self.at..self.end).to_string())
            };
        }
        let line = before.byte_to_line(self.at);
        if end < before.line_to_byte(line) {
            self.at = self.at.saturating_add_signed(grown);
            self.end = self.end.saturating_add_signed(grown);
            return Followed::Elsewhere;
        }
        let last_line = before.byte_to_line(self.end);
        if last_line + 1 < before.len_lines() && start >= before.line_to_byte(last_line + 1) {
            self.tail = self.tail.saturating_add_signed(grown);
            return Followed::Elsewhere;
        }
        let erases_left = edit.inserted.is_empty() && start < self.at && end >= self.at && end <= self.end;
        if erases_left { Followed::Backspaced } else { Followed::Lost }
    }

    /// What is typed between the place and `caret` in `text`: the document as it is, or as it would be with
    /// other text before the caret; or as it was when it was first a place in it. `None` when anything but brackets that an editor closes by itself
    /// stands between the caret and the end of what was typed, or it is longer than `longest`.
    pub(crate) fn typed_before(&self, snapshot: &Snapshot, caret: usize, longest: usize) -> Option<String> {
        let text = &snapshot.text;
        let (at, tail) = match self.first {
            (version, at, tail) if version == snapshot.version => (at, tail),
            _ => (self.at, self.tail),
        };
        let end = text.len_bytes().checked_sub(tail)?;
        // Typed over what stood there and was to be replaced: the caret is behind the end.
        let is_between = if caret <= end {
            end - caret <= MAX_AUTO_CLOSED && text.byte_slice(caret..end).chars().all(is_auto_closed)
        } else {
            caret - end <= self.replace
        };
        let length = caret.checked_sub(at)?;
        (is_between && length <= longest).then(|| text.byte_slice(at..caret).to_string())
    }
}

/// How much of `typed` agrees with `text`, in bytes: all of it, or all but closing brackets at the end that
/// an editor put in by itself.
pub(crate) fn agreement(text: &str, typed: &str) -> Option<usize> {
    let without = |closed: usize| {
        let (end, _) = typed.char_indices().rev().nth(closed.checked_sub(1)?)?;
        typed[end..].chars().all(is_auto_closed).then_some(&typed[..end])
    };
    if text.starts_with(typed) {
        return Some(typed.len());
    }
    (1..=MAX_AUTO_CLOSED).filter_map(without).find(|typed| text.starts_with(*typed)).map(str::len)
}

fn is_auto_closed(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '>' | '"' | '\'' | '`')
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;

    fn document(text: &str) -> Snapshot {
        Snapshot::new("file:///x", PathBuf::from("x"), "plaintext", 1, Rope::from_str(text))
    }

    /// Follows the replacement of `bytes`, which makes the next version.
    fn follow(anchor: &mut Anchor, document: &mut Snapshot, bytes: Range<usize>, inserted: &str) -> Followed {
        let before = document.text.clone();
        let edit = TextEdit { bytes, inserted: inserted.to_owned() };
        document.edit(&edit);
        document.version += 1;
        anchor.follow(&edit, &before, &document.text, 100)
    }

    #[test]
    fn text_typed_there_is_read_and_edits_of_other_lines_move_it() {
        let mut text = document("a\nb = \nc\n");
        let first = text.clone();
        let mut anchor = Anchor::new(&text, 6, 0);
        assert_eq!(follow(&mut anchor, &mut text, 6..6, "é"), Followed::Typed("é".into()));
        assert_eq!(follow(&mut anchor, &mut text, 0..0, "xyz"), Followed::Elsewhere);
        let end = text.text.len_bytes();
        assert_eq!(follow(&mut anchor, &mut text, end..end, "d\n"), Followed::Elsewhere);
        assert_eq!(follow(&mut anchor, &mut text, 11..11, "1"), Followed::Typed("é1".into()));
        assert_eq!(anchor.typed_before(&text, 11, 100), None, "a digit right of the caret");
        assert_eq!(anchor.typed_before(&text, 12, 100).as_deref(), Some("é1"));
        assert_eq!(anchor.at(), 9);
        assert_eq!(
            anchor.typed_before(&first, 6, 100).as_deref(),
            Some(""),
            "a request from before the edits"
        );
    }

    #[test]
    fn erasing_left_of_it_and_editing_its_line_are_told_apart() {
        let mut text = document("x = \n");
        let mut anchor = Anchor::new(&text, 4, 0);
        assert_eq!(follow(&mut anchor.clone(), &mut text.clone(), 3..4, ""), Followed::Backspaced);
        assert_eq!(follow(&mut anchor.clone(), &mut text.clone(), 0..1, "yy"), Followed::Lost);
        assert_eq!(follow(&mut anchor, &mut text, 0..5, ""), Followed::Lost);
    }

    #[test]
    fn closers_may_stand_between_the_caret_and_the_end() {
        let mut text = document("f\n");
        let mut anchor = Anchor::new(&text, 1, 0);
        assert_eq!(follow(&mut anchor, &mut text, 1..1, "()"), Followed::Typed("()".into()));
        assert_eq!(anchor.typed_before(&text, 2, 100).as_deref(), Some("("));
        assert_eq!(agreement("(a, b)", "()"), Some(1));
        assert_eq!(agreement("(a, b)", "(x"), None);
        assert_eq!(agreement("foo", "foo"), Some(3));
        assert_eq!(agreement("foo", ")))))"), None);
    }

    #[test]
    fn what_a_suggestion_replaces_may_go_with_it() {
        let mut text = document("f(a)\n");
        let mut anchor = Anchor::new(&text, 3, 1);
        // Typed over the bracket: the editor moves the caret only.
        assert_eq!(anchor.typed_before(&text, 4, 100).as_deref(), Some(")"));
        assert_eq!(follow(&mut anchor, &mut text, 3..4, ", b)"), Followed::Typed(", b)".into()));
        assert_eq!(anchor.typed_before(&text, 7, 100).as_deref(), Some(", b)"));
    }
}
