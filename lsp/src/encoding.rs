//! Positions: the editor's line and character, and our byte offsets.
//!
//! LSP counts characters of a line in UTF-8 bytes, UTF-16 code units or UTF-32 code points, as client
//! and server agree at `initialize`. Lines end at `\n`, `\r\n` or `\r`, and nowhere else.

use ropey::Rope;

/// The unit of [`Position::character`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PositionEncoding {
    /// Bytes. Costs nothing to convert.
    Utf8,
    /// UTF-16 code units: what a client means that does not say.
    #[default]
    Utf16,
    /// Code points.
    Utf32,
}

/// A place in a document as an editor names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Position {
    /// Zero-based line.
    pub line: usize,
    /// Zero-based character in the line, in units of a [`PositionEncoding`].
    pub character: usize,
}

/// Why a position has no byte offset.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BadPosition {
    /// The document is shorter.
    #[error("line {line} is past the end of the document, which has {lines} lines")]
    NoSuchLine {
        /// The line asked for.
        line: usize,
        /// Lines in the document.
        lines: usize,
    },
    /// The offset falls inside a code point.
    #[error("line {line}, character {character} is inside a code point")]
    InsideCodePoint {
        /// The line.
        line: usize,
        /// The character.
        character: usize,
    },
}

impl PositionEncoding {
    /// Chooses from what the client offers by its LSP name, in any order: UTF-8 if it can be had,
    /// then UTF-32, otherwise UTF-16, which every client must support.
    pub fn negotiate<'a>(offered: impl Iterator<Item = &'a str>) -> Self {
        let offered: Vec<&str> = offered.collect();
        let choices = [Self::Utf8, Self::Utf32];
        choices.into_iter().find(|choice| offered.contains(&choice.name())).unwrap_or(Self::Utf16)
    }

    /// The name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Utf16 => "utf-16",
            Self::Utf32 => "utf-32",
        }
    }

    /// The byte offset of `position`. A character past the end of its line means the end of the line
    /// (before its line break), as LSP asks; the line after the last means the end of the document.
    ///
    /// # Errors
    /// When the line does not exist or the character is inside a code point.
    pub fn byte_of(self, text: &Rope, position: Position) -> Result<usize, BadPosition> {
        let Position { line, character } = position;
        let lines = text.len_lines();
        if line == lines {
            return Ok(text.len_bytes());
        }
        if line > lines {
            return Err(BadPosition::NoSuchLine { line, lines });
        }
        let start = text.line_to_byte(line);
        let content = text.byte_slice(start..line_end(text, line));
        let bytes = match self {
            Self::Utf8 => {
                let bytes = character.min(content.len_bytes());
                if content.char_to_byte(content.byte_to_char(bytes)) != bytes {
                    return Err(BadPosition::InsideCodePoint { line, character });
                }
                bytes
            }
            Self::Utf16 => {
                let units = character.min(content.len_utf16_cu());
                let chars = content.utf16_cu_to_char(units);
                if content.char_to_utf16_cu(chars) != units {
                    return Err(BadPosition::InsideCodePoint { line, character });
                }
                content.char_to_byte(chars)
            }
            Self::Utf32 => content.char_to_byte(character.min(content.len_chars())),
        };
        Ok(start + bytes)
    }

    /// The position of byte offset `byte`, which must be on a code point boundary. Offsets past the
    /// end mean the end; an offset inside a line break means the end of its line.
    pub fn position_of(self, text: &Rope, byte: usize) -> Position {
        let byte = byte.min(text.len_bytes());
        let line = text.byte_to_line(byte);
        let start = text.line_to_byte(line);
        let content = text.byte_slice(start..byte.min(line_end(text, line)));
        let character = match self {
            Self::Utf8 => content.len_bytes(),
            Self::Utf16 => content.len_utf16_cu(),
            Self::Utf32 => content.len_chars(),
        };
        Position { line, character }
    }
}

/// Byte offset of the end of `line`'s content: before its line break, or the end of the document.
pub fn line_end(text: &Rope, line: usize) -> usize {
    let start = text.line_to_byte(line);
    let slice = text.line(line);
    let mut len = slice.len_bytes();
    if len > 0 && slice.byte(len - 1) == b'\n' {
        len -= 1;
    }
    if len > 0 && slice.byte(len - 1) == b'\r' {
        len -= 1;
    }
    start + len
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [PositionEncoding; 3] =
        [PositionEncoding::Utf8, PositionEncoding::Utf16, PositionEncoding::Utf32];

    fn at(line: usize, character: usize) -> Position {
        Position { line, character }
    }

    #[test]
    fn utf8_is_preferred_then_utf32_and_utf16_is_the_default() {
        let negotiate = |offered: &[&str]| PositionEncoding::negotiate(offered.iter().copied());
        assert_eq!(negotiate(&["utf-16", "utf-8"]), PositionEncoding::Utf8);
        assert_eq!(negotiate(&["utf-32", "utf-16"]), PositionEncoding::Utf32);
        assert_eq!(negotiate(&["utf-16"]), PositionEncoding::Utf16);
        assert_eq!(negotiate(&[]), PositionEncoding::Utf16);
    }

    #[test]
    fn units_differ_where_characters_are_wide() {
        let text = Rope::from_str("a😀é|\n");
        for (encoding, character) in [(ALL[0], 7), (ALL[1], 4), (ALL[2], 3)] {
            assert_eq!(encoding.byte_of(&text, at(0, character)), Ok(7), "{encoding:?}");
            assert_eq!(encoding.position_of(&text, 7), at(0, character), "{encoding:?}");
        }
    }

    #[test]
    fn past_the_line_is_its_end_whatever_the_line_break() {
        let text = Rope::from_str("ab\r\ncd\nef\rgh");
        for encoding in ALL {
            let ends = [0, 1, 2, 3].map(|line| encoding.byte_of(&text, at(line, 99)).expect("a line"));
            assert_eq!(ends, [2, 6, 9, 12]);
        }
    }

    #[test]
    fn the_line_after_the_last_is_the_end_and_further_is_nowhere() {
        let text = Rope::from_str("one\ntwo");
        assert_eq!(PositionEncoding::Utf16.byte_of(&text, at(2, 0)), Ok(7));
        assert_eq!(
            PositionEncoding::Utf16.byte_of(&text, at(3, 0)),
            Err(BadPosition::NoSuchLine { line: 3, lines: 2 })
        );
    }

    #[test]
    fn half_a_character_is_nowhere() {
        let text = Rope::from_str("😀");
        assert!(PositionEncoding::Utf16.byte_of(&text, at(0, 1)).is_err());
        assert!(PositionEncoding::Utf8.byte_of(&text, at(0, 2)).is_err());
        assert_eq!(PositionEncoding::Utf32.byte_of(&text, at(0, 1)), Ok(4));
    }

    #[test]
    fn a_form_feed_or_line_separator_does_not_end_a_line() {
        let text = Rope::from_str("a\u{c}b\u{2028}c\u{85}d\nnext");
        assert_eq!(text.len_lines(), 2);
        assert_eq!(PositionEncoding::Utf32.position_of(&text, text.len_bytes()), at(1, 4));
    }
}
