//! When there is enough: watches text as it streams out of a model.

use crate::caret::{Caret, is_blank};
use crate::lexer::{Event, Lexer, closer_of};
use crate::repetition::{Repetition, repeated_lines};
use crate::scope::{Scope, opens_block};

/// Most lines in a suggestion.
pub const MAX_LINES: usize = 12;
/// Blank lines in a row that end a suggestion.
const MAX_BLANK_LINES: usize = 2;

/// Whether to go on generating.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// There may be more to come.
    Continue,
    /// There is enough; see [`StopPolicy::accepted`].
    Stop,
}

/// Follows one generation. However the text is cut into pieces, the outcome is the same.
#[derive(Clone, Debug)]
pub struct StopPolicy {
    scope: Scope,
    text: String,
    /// Where the part to keep ends, once that is known.
    end: Option<usize>,
    lexer: Lexer,
    /// What would close the brackets that the text opened.
    open: Vec<char>,
    /// Closers that the text may add for brackets open at the caret, the innermost last.
    missing: Vec<char>,
    /// Whether the text has closed the caret's block: what follows belongs to another.
    closed_block: bool,
    repetition: Repetition,

    line_start: usize,
    /// Whether the line has something other than blanks so far.
    line_has_text: bool,
    lines: usize,
    blank_lines: usize,

    tab_width: usize,
    prefix_is_blank: bool,
    /// Columns left of the first line.
    caret_indent: usize,
    /// Lines that are indented less are outside the block; unknown until the first line where the
    /// caret is at the left margin.
    min_indent: Option<usize>,
    /// The next line of the document that is not blank.
    next_line: Option<String>,
}

impl StopPolicy {
    /// A policy for what is generated at `caret`.
    pub fn new(caret: &Caret, scope: Scope) -> Self {
        let indent = caret.indent_width(caret.indent());
        let prefix_is_blank = caret.is_prefix_blank();
        let min_indent = match (prefix_is_blank, opens_block(caret)) {
            (true, _) => (indent > 0).then_some(indent),
            (false, true) => Some(indent + 1),
            (false, false) => Some(indent),
        };
        let open = caret.open_brackets();
        let missing = open[open.len() - caret.unclosed()..].iter().map(|open| open.closer).collect();
        Self {
            scope,
            text: String::new(),
            end: None,
            lexer: caret.lexer().clone(),
            open: Vec::new(),
            missing,
            closed_block: false,
            repetition: Repetition::new(),
            line_start: 0,
            line_has_text: false,
            lines: 0,
            blank_lines: 0,
            tab_width: caret.indent_unit().width(),
            prefix_is_blank,
            caret_indent: indent,
            min_indent,
            next_line: caret
                .following_text_line()
                .filter(|line| line.contains(char::is_alphanumeric))
                .map(|line| line.trim_end().to_owned()),
        }
    }

    /// Reads the next piece of text. After [`Verdict::Stop`] further text changes nothing.
    pub fn push(&mut self, text: &str) -> Verdict {
        for c in text.chars() {
            if self.end.is_none() {
                self.step(c);
            }
        }
        if self.end.is_some() { Verdict::Stop } else { Verdict::Continue }
    }

    /// The part to keep of what was pushed so far: a prefix of it, fit for [`crate::shape::shape`].
    pub fn accepted(&self) -> &str {
        match self.end {
            Some(end) => &self.text[..end],
            // The generation may end without a last line end.
            None if self.repeats_next_line() => &self.text[..self.end_of_line_above()],
            None => &self.text,
        }
    }

    fn step(&mut self, c: char) {
        match (c, self.scope) {
            ('\n' | '\r', Scope::SingleLine) if self.line_has_text || !self.prefix_is_blank => {
                self.end = Some(self.text.len());
            }
            ('\n', _) => self.end_line(),
            _ => {}
        }
        if !c.is_whitespace() && !self.line_has_text && self.end.is_none() {
            self.start_text(c);
        }
        if self.end.is_none() {
            self.read_bracket(c);
        }
        if self.end.is_some() {
            return;
        }
        self.text.push(c);
        if c == '\n' {
            self.line_start = self.text.len();
            self.line_has_text = false;
        }
        if let Some(repeated) = self.repetition.push(c) {
            self.cut_cycle(repeated);
        }
    }

    /// At a line's end, before it is added.
    fn end_line(&mut self) {
        if !self.line_has_text {
            // The rest of the line that opens the block is not a blank line.
            let rest_of_caret_line = self.lines == 0 && !self.prefix_is_blank;
            self.blank_lines += usize::from(!rest_of_caret_line);
            if self.blank_lines >= MAX_BLANK_LINES {
                self.end = Some(self.end_of_line_above());
            }
        } else if self.repeats_next_line() {
            self.end = Some(self.end_of_line_above());
        } else {
            self.blank_lines = 0;
            self.end = self.end_of_first_round();
        }
        self.lines += 1;
        if self.end.is_none() && (self.lines >= MAX_LINES || self.closed_block) {
            self.end = Some(self.text.len());
        }
    }

    /// Where the first round ends, if the lines so far go round in circles.
    fn end_of_first_round(&self) -> Option<usize> {
        let mut end = 0;
        let (ends, lines): (Vec<usize>, Vec<&str>) = self
            .text
            .split_inclusive('\n')
            .map(|line| {
                end += line.len();
                (end, line.trim())
            })
            .filter(|(_, line)| !line.is_empty())
            .unzip();
        let repeated = repeated_lines(&lines)?;
        let end = ends[lines.len() - repeated - 1];
        Some(self.text[..end].trim_end().len())
    }

    /// At the first character of a line that is not a blank.
    fn start_text(&mut self, c: char) {
        let is_caret_line = self.lines == 0;
        let blanks = self.text[self.line_start..].chars();
        let own: usize = blanks.map(|c| if c == '\t' { self.tab_width } else { 1 }).sum();
        let indent = if is_caret_line { self.caret_indent + own } else { own };
        let after_blank_line = self.blank_lines > 0 && self.min_indent == Some(0);
        let free = self.open.is_empty() && !self.lexer.in_multiline_string();
        self.line_has_text = true;
        if self.scope == Scope::SingleLine {
            return;
        }
        let floor = *self.min_indent.get_or_insert(indent);
        let closes = self.missing.last() == Some(&c);
        // At the left margin nothing is indented less; a blank line separates what is there.
        let leaves = indent < floor || (indent == 0 && after_blank_line);
        if !is_caret_line && free && leaves && !closes {
            self.end = Some(self.end_of_line_above());
        }
    }

    fn read_bracket(&mut self, c: char) {
        if self.closed_block && !c.is_whitespace() && !matches!(c, ')' | ']' | '}' | ';' | ',') {
            self.end = Some(self.text.len());
            return;
        }
        match self.lexer.push(c) {
            Some(Event::Open(c)) => self.open.push(closer_of(c)),
            Some(Event::Close(c)) => match self.open.iter().rposition(|&open| open == c) {
                Some(at) => self.open.truncate(at),
                // What is right of the caret on its line decides there; see `shape`.
                None if self.scope == Scope::SingleLine => {}
                None if self.missing.last() == Some(&c) => {
                    self.missing.pop();
                    self.closed_block = true;
                }
                None => {
                    let line_is_empty = is_blank(&self.text[self.line_start..]);
                    let end = if line_is_empty { self.end_of_line_above() } else { self.text.len() };
                    self.end = Some(end);
                }
            },
            _ => {}
        }
    }

    /// Where the line above the current one ends.
    fn end_of_line_above(&self) -> usize {
        self.line_start.saturating_sub(1)
    }

    /// Whether the current line is a whole line and says what the document says next.
    fn repeats_next_line(&self) -> bool {
        let Some(next) = &self.next_line else {
            return false;
        };
        let line = self.text[self.line_start..].trim_end();
        if self.scope == Scope::SingleLine || (self.lines == 0 && !self.prefix_is_blank) {
            return false;
        }
        // The caret's own line begins in the document.
        if self.lines == 0 { line.trim_start() == next.trim_start() } else { line == next }
    }

    /// Ends the text after the first round of a cycle whose other rounds are `repeated` characters.
    fn cut_cycle(&mut self, repeated: usize) {
        let end = self.text.char_indices().rev().nth(repeated - 1).map_or(0, |(at, _)| at);
        // A cycle of lines need not begin with one; what is kept ends with one.
        let end = self.text[end..].find('\n').map_or(end, |line_end| end + line_end);
        let (kept, cycles) = self.text.split_at(end);
        let is_word = |c: char| c.is_alphanumeric() || c == '_';
        let in_word = cycles.starts_with(is_word) && kept.ends_with(is_word);
        let kept = if in_word { kept.trim_end_matches(is_word) } else { kept };
        let dangling = |c: char| c.is_whitespace() || "+-*/%&|^,=<>.".contains(c);
        self.end = Some(kept.trim_end_matches(dangling).len());
    }
}

#[cfg(test)]
#[path = "stop_tests.rs"]
mod tests;
