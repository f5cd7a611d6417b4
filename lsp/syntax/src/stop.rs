//! When there is enough: watches text as it streams out of a model.

mod continuation;
mod guide;

use std::time::Duration;

use ropey::Rope;

use self::continuation::Continuation;
use self::guide::{Guide, UnitEnd};
use crate::caret::{Caret, is_blank};
use crate::language::Language;
use crate::lexer::{Event, Lexer, closer_of};
use crate::repetition::{Repetition, repeated_lines};
use crate::scope::{Scope, opens_block};
use crate::tree::SyntaxTree;
use crate::trigger::is_word;

/// Most lines in a suggestion.
pub const MAX_LINES: usize = 12;
/// Time that one suggestion may spend on parsing. Where that is not enough, brackets and indentation have to do.
pub const TREE_BUDGET: Duration = Duration::from_millis(5);
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

/// The end of the caret's block, in the text.
#[derive(Clone, Copy, Debug)]
struct Closed {
    /// Where the text ends if nothing continues the statement; `None` while more may be closed.
    end: Option<usize>,
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
    /// Whether and how the text has closed the caret's block: what follows belongs to another, unless it
    /// continues the same statement.
    closed: Option<Closed>,
    continuation: Continuation,
    /// Where the line begins that continues the statement of the caret's block, until its block begins.
    continues: Option<usize>,
    /// The word that is being read and may continue the statement.
    word: Option<String>,
    guide: Option<Guide>,
    repetition: Repetition,

    line_start: usize,
    /// Whether the line has something other than blanks so far.
    line_has_text: bool,
    lines: usize,
    blank_lines: usize,

    /// Whether the text is in a block that it opened by continuing the statement.
    reopened: bool,
    has_preprocessor: bool,
    uses_indentation: bool,
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
            closed: None,
            continuation: Continuation::new(caret),
            continues: None,
            word: None,
            guide: None,
            repetition: Repetition::new(),
            line_start: 0,
            line_has_text: false,
            lines: 0,
            blank_lines: 0,
            reopened: false,
            has_preprocessor: matches!(caret.language(), Some(Language::C | Language::Cpp)),
            uses_indentation: caret.language().is_none_or(Language::uses_indentation_blocks),
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

    /// Lets the grammar say, at each line's end, whether a block has ended. `text` is the document of the
    /// caret, `tree` its syntax tree, and `budget` the time that parsing the generated lines may take, all together
    /// (see [`TREE_BUDGET`]). Without a tree or without time, brackets and indentation say so.
    #[must_use]
    pub fn with_tree(mut self, caret: &Caret, text: &Rope, tree: &SyntaxTree, budget: Duration) -> Self {
        if self.scope == Scope::Block {
            self.guide = Some(Guide::new(caret, text, tree, budget));
        }
        self
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
        // The generation may end before it is clear whether the statement goes on, or without a last line end.
        let undecided = self.closed.and_then(|closed| closed.end);
        match self.end.or(undecided) {
            Some(end) => &self.text[..end],
            None if self.repeats_next_line() => &self.text[..self.end_of_line_above()],
            None => &self.text,
        }
    }

    fn step(&mut self, c: char) {
        self.read_word(c);
        match (c, self.scope) {
            _ if self.end.is_some() => {}
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

    /// Decides, at the end of a word that may continue the statement, whether it does.
    fn read_word(&mut self, c: char) {
        let Some(word) = &mut self.word else {
            return;
        };
        if is_word(c) {
            word.push(c);
            if !self.continuation.may_begin(word) {
                self.end_after_block();
            }
        } else if self.continuation.is_word(word) {
            self.word = None;
            self.closed = None;
            self.continues = Some(self.line_start);
        } else {
            self.end_after_block();
        }
    }

    /// Ends the text after the block that it has closed.
    fn end_after_block(&mut self) {
        let end = self.closed.and_then(|closed| closed.end);
        self.end = Some(end.unwrap_or(self.text.len()));
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
            self.end = self.end_of_first_round().or_else(|| self.end_by_grammar());
        }
        self.lines += 1;
        if self.end.is_some() {
            return;
        }
        if self.lines >= MAX_LINES {
            self.end = Some(self.text.len());
        } else if self.closed.is_some() && !self.continuation.on_own_line {
            self.end_after_block();
        }
        if self.continues.is_some() && self.open.is_empty() && self.closed.is_none() {
            if self.uses_indentation || self.text.trim_end().ends_with(':') {
                self.follow_continuation();
            } else if self.text.trim_end().ends_with(';') {
                // `} while (a);` is the end.
                self.end = Some(self.text.len());
            }
        }
    }

    /// Where the text ends by the grammar, at the end of a line.
    fn end_by_grammar(&mut self) -> Option<usize> {
        let complete = self.open.is_empty() && self.closed.is_none() && self.continues.is_none();
        if !complete || self.lexer.in_multiline_string() {
            return None;
        }
        match self.guide.as_mut()?.unit_end(&self.text)? {
            UnitEnd::Before(end) => Some(end),
            UnitEnd::Here => Some(self.text.len()),
        }
    }

    /// The caret's block is now the one that the current line opens.
    fn follow_continuation(&mut self) {
        let head = self.continues.take().unwrap_or(self.line_start);
        self.continuation.follow(&self.text[head..]);
        // What the grammar calls the caret's block has ended.
        self.guide = None;
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
        let free = self.open.is_empty() && !self.lexer.in_multiline_string();
        self.line_has_text = true;
        if self.scope == Scope::SingleLine {
            return;
        }
        let floor = *self.min_indent.get_or_insert(indent);
        let closes = self.missing.last() == Some(&c) || (c == '}' && self.may_reopen());
        // At the left margin nothing is indented less; a block or a blank line separates what is there.
        let after_block =
            floor == 0 && indent == 0 && (self.blank_lines > 0 || self.is_line_above_indented());
        if after_block && self.blank_lines == 0 && !closes {
            self.follow_margin();
        }
        let leaves = indent < floor || after_block;
        let goes_on = self.closed.is_some() || self.continues.is_some();
        if is_caret_line || !free || !leaves || closes || goes_on {
            return;
        }
        let end = self.end_of_line_above();
        if indent == self.continuation.indent && self.begins_continuation(c) {
            self.closed = Some(Closed { end: Some(end) });
        } else if !self.is_outdented(c) {
            self.end = Some(end);
        }
    }

    /// Whether the nearest line above with text is indented, or is the closing bracket of one that is.
    fn is_line_above_indented(&self) -> bool {
        let mut above = self.text[..self.line_start].lines().rev().filter(|line| !is_blank(line));
        above.next().is_some_and(|line| line.starts_with([' ', '\t', '}']))
    }

    /// The statement that may go on is the last one at the left margin.
    fn follow_margin(&mut self) {
        let mut above = self.text[..self.line_start].lines().rev();
        let head = above.find(|line| line.starts_with(|c: char| !c.is_whitespace() && c != '}'));
        self.continuation.follow(head.unwrap_or_default());
        self.continuation.indent = 0;
    }

    /// Whether a line may stand further left than the block it is in: a preprocessor's line.
    fn is_outdented(&self, c: char) -> bool {
        self.has_preprocessor && c == '#'
    }

    /// Whether `c` begins a word that may continue the statement; if so, reads it.
    fn begins_continuation(&mut self, c: char) -> bool {
        let begins = self.continuation.may_begin(c.encode_utf8(&mut [0; 4]));
        if begins {
            self.word = Some(c.to_string());
        }
        begins
    }

    /// Whether the text may close the block that the document closes, in order to open another.
    fn may_reopen(&self) -> bool {
        self.scope == Scope::Block
            && self.missing.is_empty()
            && self.continuation.closed_below
            && self.continuation.is_possible()
    }

    fn read_bracket(&mut self, c: char) {
        if self.closed.is_some() && self.word.is_none() && !c.is_whitespace() {
            let closes_more = matches!(c, ')' | ']' | '}' | ';' | ',');
            let own = self.closed.is_some_and(|closed| closed.end.is_none());
            if self.begins_continuation(c) {
                let end = self.closed.and_then(|closed| closed.end);
                self.closed = Some(Closed { end: end.or(Some(self.text.trim_end().len())) });
            } else if !(own && closes_more) {
                self.end_after_block();
                return;
            }
        }
        match self.lexer.push(c) {
            Some(Event::Open(c)) => {
                if self.continues.is_some() && self.open.is_empty() && c == '{' {
                    self.follow_continuation();
                    self.reopened = true;
                }
                self.open.push(closer_of(c));
            }
            Some(Event::Close(c)) => self.close(c),
            _ => {}
        }
    }

    fn close(&mut self, c: char) {
        let line_is_empty = is_blank(&self.text[self.line_start..]);
        let before = if line_is_empty { self.end_of_line_above() } else { self.text.len() };
        let own = self.open.iter().rposition(|&open| open == c);
        match own {
            Some(0) if self.reopened && c == '}' => {
                self.open.clear();
                self.reopened = false;
                let left_to_document = self.continuation.closed_below;
                self.closed = Some(Closed { end: left_to_document.then_some(before) });
            }
            Some(at) => self.open.truncate(at),
            // What is right of the caret on its line decides there; see `shape`.
            None if self.scope == Scope::SingleLine => {}
            None if self.missing.last() == Some(&c) => {
                self.missing.pop();
                self.closed = Some(Closed { end: None });
            }
            None if c == '}' && self.may_reopen() => self.closed = Some(Closed { end: Some(before) }),
            None => self.end = Some(before),
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
