//! The editor's side of a document: its text and the caret.

use std::ops::Range;

use ropey::Rope;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::encoding::{Position, PositionEncoding, line_end};

/// A place in a recording: both count from zero, characters are Unicode code points.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) character: usize,
}

/// One change of the text, for the server.
pub(super) struct Change {
    /// As LSP's `TextDocumentContentChangeEvent`, characters in UTF-8 bytes.
    pub(super) event: Value,
}

/// Text with a caret in it.
#[derive(Clone)]
pub(super) struct Buffer {
    text: Rope,
    /// Byte offset.
    caret: usize,
    /// Lines above the recording's own.
    lines_above: usize,
}

impl Buffer {
    /// The caret is at the start of `text`, which stands below `above`. `above` ends with a line break or is
    /// empty.
    pub(super) fn new(above: &str, text: &str) -> Self {
        let mut rope = Rope::from_str(above);
        let lines_above = rope.len_lines() - 1;
        rope.append(Rope::from_str(text));
        Self { text: rope, caret: above.len(), lines_above }
    }

    /// The whole text.
    pub(super) fn text(&self) -> &Rope {
        &self.text
    }

    /// The text without the lines above.
    pub(super) fn own_text(&self) -> String {
        self.text.byte_slice(self.text.line_to_byte(self.lines_above)..).to_string()
    }

    /// Byte offset of the caret.
    pub(super) fn caret(&self) -> usize {
        self.caret
    }

    /// The caret as LSP has it, in UTF-8 bytes.
    pub(super) fn caret_position(&self) -> Value {
        self.lsp_position(self.caret)
    }

    /// Byte offset of an LSP position in UTF-8 bytes.
    pub(super) fn byte_of(&self, position: &Value) -> Option<usize> {
        let number = |key: &str| usize::try_from(position[key].as_u64()?).ok();
        let position = Position { line: number("line")?, character: number("character")? };
        PositionEncoding::Utf8.byte_of(&self.text, position).ok()
    }

    /// Inserts at the caret, which moves behind it.
    pub(super) fn insert(&mut self, text: &str) -> Change {
        self.replace(self.caret..self.caret, text)
    }

    /// Deletes `count` characters before the caret.
    ///
    /// # Errors
    /// When there are fewer.
    pub(super) fn delete_before(&mut self, count: usize) -> Result<Change, String> {
        let at = self.text.byte_to_char(self.caret);
        let start = at.checked_sub(count).ok_or_else(|| {
            format!("it deletes {count} characters before the caret, where there are only {at}")
        })?;
        let start = self.text.char_to_byte(start);
        Ok(self.replace(start..self.caret, ""))
    }

    /// Deletes `count` characters after the caret.
    ///
    /// # Errors
    /// When there are fewer.
    pub(super) fn delete_after(&mut self, count: usize) -> Result<Change, String> {
        let at = self.text.byte_to_char(self.caret);
        let left = self.text.len_chars() - at;
        if count > left {
            return Err(format!(
                "it deletes {count} characters after the caret, where there are only {left}"
            ));
        }
        let end = self.text.char_to_byte(at + count);
        Ok(self.replace(self.caret..end, ""))
    }

    /// Replaces what lies between two places; the caret ends behind the new text.
    ///
    /// # Errors
    /// When there are no such places or they are in the wrong order.
    pub(super) fn edit(&mut self, start: Place, end: Place, text: &str) -> Result<Change, String> {
        let (from, to) = (self.byte_at(start)?, self.byte_at(end)?);
        if from > to {
            return Err("its end lies before its start".to_owned());
        }
        Ok(self.replace(from..to, text))
    }

    /// Moves the caret.
    ///
    /// # Errors
    /// When there is no such place.
    pub(super) fn go_to(&mut self, place: Place) -> Result<(), String> {
        self.caret = self.byte_at(place)?;
        Ok(())
    }

    fn byte_at(&self, place: Place) -> Result<usize, String> {
        let line = place.line + self.lines_above;
        let lines = self.text.len_lines();
        if line >= lines {
            let own = lines - self.lines_above;
            return Err(format!("there is no line {}: the text has {own}, counted from 0", place.line));
        }
        let start = self.text.line_to_byte(line);
        let content = self.text.byte_slice(start..line_end(&self.text, line));
        if place.character > content.len_chars() {
            let (character, most) = (place.character, content.len_chars());
            return Err(format!("there is no character {character} in line {}: it has {most}", place.line));
        }
        Ok(start + content.char_to_byte(place.character))
    }

    fn replace(&mut self, bytes: Range<usize>, new: &str) -> Change {
        let (start, end) = (self.lsp_position(bytes.start), self.lsp_position(bytes.end));
        let chars = self.text.byte_to_char(bytes.start)..self.text.byte_to_char(bytes.end);
        self.text.remove(chars.clone());
        self.text.insert(chars.start, new);
        self.caret = bytes.start + new.len();
        Change { event: json!({"range": {"start": start, "end": end}, "text": new}) }
    }

    fn lsp_position(&self, byte: usize) -> Value {
        let position = PositionEncoding::Utf8.position_of(&self.text, byte);
        json!({"line": position.line, "character": position.character})
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_code_points_below_the_lines_above_and_lsp_counts_bytes() {
        let mut buffer = Buffer::new("above\n", "é😀x\ny");
        buffer.go_to(Place { line: 0, character: 2 }).expect("a place");
        let change = buffer.insert("!");
        assert_eq!(change.event["range"]["start"], json!({"line": 1, "character": 6}));
        assert_eq!(buffer.own_text(), "é😀!x\ny");
        assert_eq!(buffer.text().to_string(), "above\né😀!x\ny");
        buffer.delete_before(2).expect("two before");
        buffer.delete_after(1).expect("one after");
        assert_eq!(buffer.own_text(), "é\ny");
        let (start, end) = (Place { line: 0, character: 0 }, Place { line: 1, character: 0 });
        buffer.edit(start, end, "z").expect("a range");
        assert_eq!((buffer.own_text().as_str(), buffer.caret()), ("zy", 7));
    }

    #[test]
    fn places_that_are_not_there_are_named() {
        let mut buffer = Buffer::new("above\n", "one");
        for (place, words) in [
            (Place { line: 1, character: 0 }, "no line 1: the text has 1"),
            (Place { line: 0, character: 4 }, "no character 4 in line 0: it has 3"),
        ] {
            let error = buffer.go_to(place).expect_err("nowhere");
            assert!(error.contains(words), "{error}");
        }
        assert!(buffer.delete_after(4).is_err());
        assert!(buffer.delete_before(7).is_err());
    }
}
