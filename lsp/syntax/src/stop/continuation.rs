//! How the statement whose block the caret is in may go on after the block: `else`, `except`, `catch`.

use crate::caret::{Caret, is_blank};
use crate::language::Language;
use crate::scope::opens_block;
use crate::trigger::is_word;

type Words = &'static [&'static str];

/// Keywords that may follow the caret's block, and where.
#[derive(Clone, Debug)]
pub(super) struct Continuation {
    language: Option<Language>,
    words: Words,
    /// Columns of the line that opens the block.
    pub(super) indent: usize,
    /// Whether the document closes the block right below the caret: then the text may close and open it
    /// again, and leave the last closer to the document.
    pub(super) closed_below: bool,
    /// Whether brackets that open a block stand on lines of their own, and `else` as well.
    pub(super) on_own_line: bool,
}

impl Continuation {
    /// What may follow the block at `caret`, with nothing where the document has it already or where the
    /// block goes on below the caret.
    pub(super) fn new(caret: &Caret) -> Self {
        let mut found = Self {
            language: caret.language(),
            words: &[],
            indent: 0,
            closed_below: false,
            on_own_line: false,
        };
        let Some(head) = find_head(caret) else {
            return found;
        };
        found.indent = caret.indent_width(head.line);
        found.on_own_line = head.brace_below;
        let words = words_after(caret.language(), head.line);
        let next = caret.following_text_line().unwrap_or_default();
        let next_indent = caret.indent_width(next);
        let ends_here = is_blank(next) || next_indent <= found.indent;
        let next = next.trim();
        let is_there = next_indent == found.indent && goes_on(next.trim_start_matches(['}', ' ']));
        found.closed_below = next == "}" && caret.unclosed() == 0;
        let brace_in_the_way = next.starts_with('}') && caret.unclosed() == 0 && !found.closed_below;
        // `}` and then `else` on a line of its own.
        let mut below = caret.following_lines().filter(|line| !is_blank(line)).skip(1);
        let is_below = found.closed_below && below.next().is_some_and(|line| goes_on(line.trim()));
        if ends_here && !is_there && !brace_in_the_way && !is_below {
            found.words = words;
        }
        found
    }

    /// Whether a word that goes on may begin with `start`.
    pub(super) fn may_begin(&self, start: &str) -> bool {
        self.words.iter().any(|word| word.starts_with(start))
    }

    /// Whether `word` goes on.
    pub(super) fn is_word(&self, word: &str) -> bool {
        self.words.contains(&word)
    }

    /// Whether anything may follow.
    pub(super) fn is_possible(&self) -> bool {
        !self.words.is_empty()
    }

    /// From here on the block is the one that `head` opens.
    pub(super) fn follow(&mut self, head: &str) {
        self.words = words_after(self.language, head);
    }
}

struct Head<'caret> {
    line: &'caret str,
    /// Whether the opening brace is on the line below it.
    brace_below: bool,
}

/// The line that opens the block at the caret.
fn find_head(caret: &Caret) -> Option<Head<'_>> {
    let own = caret.line_prefix();
    let mut above = caret.preceding_lines().filter(|line| !is_blank(line)).peekable();
    let line = if opens_block(caret) {
        own
    } else {
        let indent = caret.indent_width(own);
        // At the left margin the indent is still to come.
        above.find(|line| indent == 0 || caret.indent_width(line) < indent)?
    };
    if line.trim() == "{" {
        return Some(Head { line: above.next()?, brace_below: true });
    }
    Some(Head { line, brace_below: false })
}

/// Whether `line` continues the statement above it.
fn goes_on(line: &str) -> bool {
    const ALL: [&str; 7] = ["elif", "else", "except", "finally", "catch", "case", "default"];
    let word = line.split(|c| !is_word(c)).next().unwrap_or_default();
    ALL.contains(&word)
}

/// The keywords that may follow the block that `head` opens.
fn words_after(language: Option<Language>, head: &str) -> Words {
    let head = head.trim().trim_start_matches(['}', ' ']);
    let mut words = head.split(|c| !is_word(c)).filter(|word| !word.is_empty());
    let first = words.next().unwrap_or_default();
    let second = words.next().unwrap_or_default();
    match (language, first) {
        (Some(Language::Python), "if" | "elif") => &["elif", "else"],
        (Some(Language::Python), "for" | "while") => &["else"],
        (Some(Language::Python), "try") => &["except", "finally"],
        (Some(Language::Python), "except") => &["except", "else", "finally"],
        (Some(Language::Python), "else") => &["finally"],
        (Some(Language::Python), "case") => &["case"],
        (Some(Language::Python) | None, _) => &[],
        (Some(Language::Rust), _) => after_rust(head),
        (Some(_), "case" | "default") => &["case", "default"],
        (Some(_), "if") => &["else"],
        (Some(_), "else") if second == "if" => &["else"],
        (Some(_), "do") => &["while"],
        (Some(Language::Go | Language::C), _) => &[],
        (Some(_), "try" | "catch") => &["catch", "finally"],
        (Some(_), _) => &[],
    }
}

/// In Rust `if` is an expression and may stand anywhere on the line, and in the guard of an arm.
fn after_rust(head: &str) -> Words {
    let words: Vec<&str> = head.split(|c| !is_word(c)).filter(|word| !word.is_empty()).collect();
    let at = |wanted| words.iter().rposition(|&word| word == wanted);
    match (at("if"), at("else")) {
        (None, _) => &[],
        // `let Some(x) = y else {` and `} else {` are the end.
        (Some(last_if), Some(last_else)) if last_else > last_if => &[],
        _ if head.contains("=>") => &[],
        _ => &["else"],
    }
}
