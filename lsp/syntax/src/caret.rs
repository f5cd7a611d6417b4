//! A bounded view of the text around a caret.

use memchr::{memchr, memchr_iter, memchr2, memrchr};
use ropey::Rope;

use crate::language::Language;
use crate::lexer::{Event, Lexer, closer_of};

/// Bytes that are read on each side of the caret. What a decision about one suggestion needs is near,
/// and a document of any size, or a line of any length, costs the same.
pub const WINDOW_BYTES: usize = 4096;
/// Lines at the start of the document that are read too, for what they say of the whole file.
const HEAD_LINES: usize = 5;
const HEAD_BYTES: usize = 600;

/// The text around a caret. Owns its window; independent of the document afterwards.
#[derive(Clone, Debug)]
pub struct Caret {
    language: Option<Language>,
    byte: usize,
    line: usize,
    document_bytes: usize,
    line_bytes: usize,
    /// Text up to the caret; whole lines, except where the caret's own line is longer than the window.
    before: String,
    /// Where in `before` the caret's line starts.
    line_start: usize,
    /// Text from the caret on.
    after: String,
    /// Where in `after` the caret's line ends, its line end excluded.
    line_end: usize,
    /// Whether the document goes on beyond `after`.
    after_is_cut: bool,
    /// The first lines of the document.
    head: String,
    line_ending: LineEnding,
    indent_unit: IndentUnit,
    lexer: Lexer,
    open: Vec<OpenBracket>,
}

/// How a document ends its lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LineEnding {
    /// `\n`
    Lf,
    /// `\r\n`
    CrLf,
}

impl LineEnding {
    /// The characters.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Lf => "\n",
            Self::CrLf => "\r\n",
        }
    }
}

/// One level of indentation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IndentUnit {
    /// A tab.
    Tab,
    /// This many spaces, 1 to 8.
    Spaces(usize),
}

impl IndentUnit {
    /// Columns of one level; a tab counts as 4.
    pub fn width(self) -> usize {
        match self {
            Self::Tab => 4,
            Self::Spaces(spaces) => spaces,
        }
    }
}

/// A bracket or quote that is open at the caret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenBracket {
    /// What closes it.
    pub closer: char,
    /// Columns of indentation of the line it stands on.
    pub indent: usize,
    /// Whether it stands on the caret's line.
    pub on_caret_line: bool,
    /// Whether the text after the caret closes it already.
    pub closed: bool,
}

impl Caret {
    /// The view at byte offset `byte` of `text`. An offset beyond the end, inside a character or
    /// inside `\r\n` moves back to the nearest place where a caret can be.
    pub fn new(text: &Rope, byte: usize, language: Option<Language>) -> Self {
        let mut byte = char_start(text, byte);
        if byte > 0 && byte < text.len_bytes() && text.byte(byte) == b'\n' && text.byte(byte - 1) == b'\r' {
            byte -= 1;
        }
        let line = text.byte_to_line(byte);
        let line_from = text.line_to_byte(line);
        let line_to = text.line_to_byte(line + 1);

        let from = char_start(text, byte.saturating_sub(WINDOW_BYTES));
        let to = char_start(text, byte.saturating_add(WINDOW_BYTES));
        let mut before = String::from(text.byte_slice(from..byte));
        let after = String::from(text.byte_slice(byte..to));
        let mut line_start = line_from.saturating_sub(from);
        if from > 0 && from < line_from {
            // The first line of the window is cut; lines are whole or not there.
            let cut = before.find('\n').map_or(line_start, |end| (end + 1).min(line_start));
            before.drain(..cut);
            line_start -= cut;
        }
        let line_end = memchr2(b'\n', b'\r', after.as_bytes()).unwrap_or(after.len());

        let mut caret = Self {
            language,
            byte,
            line,
            document_bytes: text.len_bytes(),
            line_bytes: line_to - line_from,
            before,
            line_start,
            after,
            line_end,
            after_is_cut: to < text.len_bytes(),
            head: head(text),
            line_ending: LineEnding::Lf,
            indent_unit: IndentUnit::Spaces(4),
            lexer: Lexer::new(language),
            open: Vec::new(),
        };
        caret.line_ending = caret.find_line_ending(text);
        caret.indent_unit = caret.find_indent_unit();
        caret.read_brackets();
        caret
    }

    /// The language, where we have a grammar.
    pub fn language(&self) -> Option<Language> {
        self.language
    }

    /// The byte offset after clamping.
    pub fn byte(&self) -> usize {
        self.byte
    }

    /// The caret's line, zero-based.
    pub fn line(&self) -> usize {
        self.line
    }

    /// Bytes in the document.
    pub fn document_bytes(&self) -> usize {
        self.document_bytes
    }

    /// Bytes in the caret's line, its line end included; may be more than the window holds.
    pub fn line_bytes(&self) -> usize {
        self.line_bytes
    }

    /// The caret's line up to the caret; of an over-long line the last [`WINDOW_BYTES`].
    pub fn line_prefix(&self) -> &str {
        &self.before[self.line_start..]
    }

    /// The caret's line from the caret on, without its line end; of an over-long line the first
    /// [`WINDOW_BYTES`].
    pub fn line_suffix(&self) -> &str {
        &self.after[..self.line_end]
    }

    /// The blanks that the caret's line starts with, up to the caret.
    pub fn indent(&self) -> &str {
        leading_blanks(self.line_prefix())
    }

    /// Whether there is nothing but blanks left of the caret on its line.
    pub fn is_prefix_blank(&self) -> bool {
        is_blank(self.line_prefix())
    }

    /// Whether there is nothing but blanks right of the caret on its line.
    pub fn is_suffix_blank(&self) -> bool {
        is_blank(self.line_suffix())
    }

    /// Whether the caret's line holds nothing but blanks.
    pub fn is_line_blank(&self) -> bool {
        self.is_prefix_blank() && self.is_suffix_blank()
    }

    /// Everything in the window before the caret.
    pub fn before(&self) -> &str {
        &self.before
    }

    /// Everything in the window after the caret.
    pub fn after(&self) -> &str {
        &self.after
    }

    /// The first lines of the document, wherever the caret is.
    pub fn head(&self) -> &str {
        &self.head
    }

    /// The lines above the caret's, nearest first, without line ends, as far as the window goes.
    pub fn preceding_lines(&self) -> impl Iterator<Item = &str> {
        let above = &self.before[..self.line_start];
        let above = above.strip_suffix('\n').or_else(|| above.strip_suffix('\r'));
        above.into_iter().flat_map(|above| above.rsplit('\n')).map(without_cr)
    }

    /// The lines below the caret's, nearest first, without line ends, as far as the window goes. The last
    /// may be cut.
    pub fn following_lines(&self) -> impl Iterator<Item = &str> {
        let below = &self.after[self.line_end..];
        let below = below.strip_prefix('\r').unwrap_or(below);
        let below = below.strip_prefix('\n').or((!below.is_empty()).then_some(below));
        below.into_iter().flat_map(split_lines).map(without_cr)
    }

    /// The nearest line above that is not blank.
    pub fn preceding_text_line(&self) -> Option<&str> {
        self.preceding_lines().find(|line| !is_blank(line))
    }

    /// The nearest line below that is not blank.
    pub fn following_text_line(&self) -> Option<&str> {
        self.following_lines().find(|line| !is_blank(line))
    }

    /// How the lines near the caret end.
    pub fn line_ending(&self) -> LineEnding {
        self.line_ending
    }

    /// How the lines near the caret are indented.
    pub fn indent_unit(&self) -> IndentUnit {
        self.indent_unit
    }

    /// Columns of the blanks that `line` starts with.
    pub fn indent_width(&self, line: &str) -> usize {
        let tab = self.indent_unit.width();
        leading_blanks(line).bytes().map(|blank| if blank == b'\t' { tab } else { 1 }).sum()
    }

    /// Whether the caret is in a string.
    pub fn in_string(&self) -> bool {
        self.lexer.in_string()
    }

    /// Whether the caret is in a comment.
    pub fn in_comment(&self) -> bool {
        self.lexer.in_comment()
    }

    /// The reader of brackets, in its state at the caret.
    pub(crate) fn lexer(&self) -> &Lexer {
        &self.lexer
    }

    /// Brackets and quotes open at the caret, outermost first, as far as the window goes.
    pub(crate) fn open_brackets(&self) -> &[OpenBracket] {
        &self.open
    }

    /// How many of the innermost open brackets nothing after the caret closes.
    pub(crate) fn unclosed(&self) -> usize {
        self.open.iter().rev().take_while(|open| !open.closed).count()
    }

    fn find_line_ending(&self, text: &Rope) -> LineEnding {
        let count = |text: &str| {
            let has_cr = memchr(b'\r', text.as_bytes()).is_some();
            let with_cr = if has_cr { text.matches("\r\n").count() } else { 0 };
            (memchr_iter(b'\n', text.as_bytes()).count(), with_cr)
        };
        let (above, above_cr) = count(&self.before);
        let (below, below_cr) = count(&self.after);
        let (all, with_cr) = (above + below, above_cr + below_cr);
        let is_crlf = if all > 0 {
            2 * with_cr > all
        } else {
            // One long line around us; the line ends of the document are elsewhere.
            let end = text.line_to_byte(1);
            end >= 2 && text.byte(end - 1) == b'\n' && text.byte(end - 2) == b'\r'
        };
        if is_crlf { LineEnding::CrLf } else { LineEnding::Lf }
    }

    fn find_indent_unit(&self) -> IndentUnit {
        let mut tabs = 0;
        // How often a line is indented this many spaces more than the indented-less line before it.
        let mut steps = [0usize; 9];
        let mut previous = 0;
        for line in split_lines(&self.before).chain(self.following_lines()) {
            let blanks = leading_blanks(line);
            if is_blank(&line[blanks.len()..]) {
                continue;
            }
            if blanks.starts_with('\t') {
                tabs += 1;
                continue;
            }
            let step = blanks.len().saturating_sub(previous);
            if (2..=8).contains(&step) {
                steps[step] += 1;
            }
            previous = blanks.len();
        }
        let (spaces, count) =
            (2..=8).map(|step| (step, steps[step])).rev().max_by_key(|&(_, n)| n).unwrap_or((4, 0));
        match self.language.map(Language::usual_indent) {
            // What is typed already decides between tabs and spaces.
            _ if self.indent().starts_with('\t') => IndentUnit::Tab,
            _ if tabs > count => IndentUnit::Tab,
            _ if count > 0 => IndentUnit::Spaces(spaces),
            Some(None) if self.indent().is_empty() => IndentUnit::Tab,
            Some(Some(spaces)) => IndentUnit::Spaces(spaces),
            _ => IndentUnit::Spaces(4),
        }
    }

    fn read_brackets(&mut self) {
        let mut lexer = Lexer::new(self.language);
        // Where each is, and what closes it. The rest is looked at for those that stay open.
        let mut open: Vec<(usize, char)> = Vec::new();
        let mut read = 0;
        while let Some((at, event)) = lexer.next_event(&self.before, read) {
            match event {
                Event::Open(c) | Event::QuoteOpen(c) => open.push((at, closer_of(c))),
                // What was left open inside goes with it.
                Event::Close(c) | Event::QuoteClose(c) => {
                    let opener = open.iter().rposition(|&(_, closer)| closer == c);
                    open.truncate(opener.unwrap_or(open.len()));
                }
            }
            read = at + 1;
        }
        // A simple string that was left open ended with its line; only the one we are in counts.
        let innermost = open.last().map(|&(at, _)| at);
        open.retain(|&(at, closer)| {
            !matches!(closer, '"' | '\'') || Some(at) == innermost && lexer.in_string()
        });
        let bracket = |(at, closer)| OpenBracket {
            closer,
            indent: self.indent_width(line_from_start(&self.before, at)),
            on_caret_line: at >= self.line_start,
            closed: false,
        };
        self.open = open.into_iter().map(bracket).collect();
        self.lexer = lexer;
        self.mark_closed();
    }

    /// Pairs the brackets open at the caret, innermost first, with the ones that close after it.
    fn mark_closed(&mut self) {
        let mut lexer = self.lexer.clone();
        if lexer.in_triple_quotes() && !self.closes_triple_quotes() {
            // The quotes that follow belong to another string.
            lexer = Lexer::new(self.language);
        }
        let mut inner = Vec::new();
        // Closers after the caret without an opener after it, with the indent of their line (of the
        // caret's own line: no limit, since there position says all).
        let mut closers = Vec::new();
        let mut read = 0;
        while closers.len() < self.open.len() {
            let Some((at, event)) = lexer.next_event(&self.after, read) else { break };
            match event {
                Event::Open(c) | Event::QuoteOpen(c) => inner.push(closer_of(c)),
                Event::Close(c) | Event::QuoteClose(c) => match inner.iter().rposition(|&open| open == c) {
                    Some(at) => inner.truncate(at),
                    None if at < self.line_end => closers.push((c, usize::MAX)),
                    None => closers.push((c, self.indent_width(line_from_start(&self.after, at)))),
                },
            }
            read = at + 1;
        }
        let mut closers = closers.into_iter().peekable();
        // Where there are fewer closers than brackets, it is the caret's line that is unfinished.
        let enough = closers.len() >= self.open.len();
        let braces_are_blocks = !self.language.is_some_and(Language::uses_indentation_blocks);
        for open in self.open.iter_mut().rev() {
            open.closed = match closers.peek() {
                Some(&(_, indent)) if open.on_caret_line && indent < usize::MAX && !enough => false,
                // A closer indented less than the opener's line closes something further out.
                Some(&(c, indent)) => c == open.closer && indent >= open.indent,
                // A block may end beyond the window; an expression hardly does.
                None => {
                    let block = open.closer == '}' && braces_are_blocks && !open.on_caret_line;
                    block && self.after_is_cut
                }
            };
            if open.closed {
                closers.next();
            }
        }
    }

    /// Whether the next triple quote after the caret looks like the end of a string and not the beginning.
    fn closes_triple_quotes(&self) -> bool {
        let quotes = if self.open.last().is_some_and(|open| open.closer == '\'') { "'''" } else { "\"\"\"" };
        let Some(at) = self.after.find(quotes) else {
            return false;
        };
        let line = self.after[..at].rfind('\n').map(|end| &self.after[end + 1..at]);
        let follows_text = line.is_none_or(|line| !is_blank(line) && !line.trim_end().ends_with(['=', '(']));
        let rest = self.after[at + quotes.len()..].lines().next().unwrap_or_default();
        follows_text || !rest.starts_with(|c: char| c.is_alphanumeric())
    }
}

fn head(text: &Rope) -> String {
    let lines = text.line_to_byte(HEAD_LINES.min(text.len_lines()));
    String::from(text.byte_slice(..char_start(text, lines.min(HEAD_BYTES))))
}

/// Whether `text` holds nothing but white space.
pub(crate) fn is_blank(text: &str) -> bool {
    text.chars().all(char::is_whitespace)
}

/// What `text.split('\n')` gives, found several times as fast.
fn split_lines(text: &str) -> impl Iterator<Item = &str> {
    let mut start = 0;
    memchr_iter(b'\n', text.as_bytes()).chain([text.len()]).map(move |end| {
        let line = &text[start..end];
        start = end + 1;
        line
    })
}

/// The line that byte `at` of `text` is on, from its start.
fn line_from_start(text: &str, at: usize) -> &str {
    &text[memrchr(b'\n', &text.as_bytes()[..at]).map_or(0, |end| end + 1)..]
}

/// The spaces and tabs that `line` starts with.
pub(crate) fn leading_blanks(line: &str) -> &str {
    let blanks = line.bytes().position(|byte| byte != b' ' && byte != b'\t');
    &line[..blanks.unwrap_or(line.len())]
}

fn without_cr(line: &str) -> &str {
    line.strip_suffix('\r').unwrap_or(line)
}

/// The start of the character that `byte` is in; the end for an offset beyond it.
fn char_start(text: &Rope, byte: usize) -> usize {
    text.char_to_byte(text.byte_to_char(byte.min(text.len_bytes())))
}

#[cfg(test)]
#[path = "caret_tests.rs"]
mod tests;
