//! A document's syntax tree: parsed from a rope, kept up to date by edits.

use std::cell::RefCell;
use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use ropey::Rope;
use tree_sitter::{InputEdit, ParseOptions, Parser, Point, Tree};

use crate::language::Language;
use crate::memory;

/// Longest text that is parsed, in bytes. What is longer is generated or data.
pub const MAX_TEXT_BYTES: usize = 2 << 20;
/// Longest line that is parsed, in bytes. What is longer is minified or data.
pub const MAX_LINE_BYTES: usize = 20_000;
/// Time that the parse of a freshly opened document may take.
pub const OPEN_BUDGET: Duration = Duration::from_millis(500);
/// Time that an incremental parse may take between two keystrokes.
pub const EDIT_BUDGET: Duration = Duration::from_millis(20);

thread_local! {
    // A parser keeps its stacks between parses, which is most of the cost of a small one.
    static PARSER: RefCell<Parser> = RefCell::new(memory::new_parser());
}

/// A syntax tree and its language. Cloning shares the nodes.
#[derive(Clone, Debug)]
pub struct SyntaxTree {
    language: Language,
    tree: Tree,
}

impl SyntaxTree {
    /// Parses `text` from nothing. `None` when the text or one of its lines is over the limit, or
    /// when `budget` is spent before the end (see [`OPEN_BUDGET`]).
    pub fn parse(language: Language, text: &Rope, budget: Duration) -> Option<Self> {
        if text.len_bytes() > MAX_TEXT_BYTES || longest_line(text) > MAX_LINE_BYTES {
            return None;
        }
        let tree = run_parser(language, text, None, budget)?;
        Some(Self { language, tree })
    }

    /// Notes that bytes `start..old_end` of `old` became bytes `start..new_end` of `new`. Positions of
    /// the nodes follow; call [`reparse`](Self::reparse) after the last edit of a batch. Offsets out
    /// of range are clamped.
    pub fn edit(&mut self, old: &Rope, new: &Rope, start: usize, old_end: usize, new_end: usize) {
        let start = start.min(old.len_bytes()).min(new.len_bytes());
        let old_end = old_end.clamp(start, old.len_bytes());
        let new_end = new_end.clamp(start, new.len_bytes());
        self.tree.edit(&InputEdit {
            start_byte: start,
            old_end_byte: old_end,
            new_end_byte: new_end,
            start_position: point(old, start),
            old_end_position: point(old, old_end),
            new_end_position: point(new, new_end),
        });
    }

    /// Parses again after edits, reusing what did not change. False when the text has grown over the
    /// limit or `budget` is spent (see [`EDIT_BUDGET`]): then the tree still is the edited old one,
    /// right outside the edits.
    pub fn reparse(&mut self, text: &Rope, budget: Duration) -> bool {
        if text.len_bytes() > MAX_TEXT_BYTES {
            return false;
        }
        match run_parser(self.language, text, Some(&self.tree), budget) {
            Some(tree) => {
                self.tree = tree;
                true
            }
            None => false,
        }
    }

    /// The grammar.
    pub fn language(&self) -> Language {
        self.language
    }

    /// The tree itself.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }
}

fn run_parser(language: Language, text: &Rope, old: Option<&Tree>, budget: Duration) -> Option<Tree> {
    let started = Instant::now();
    let mut out_of_time = |_: &tree_sitter::ParseState| {
        if started.elapsed() > budget { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    PARSER.with_borrow_mut(|parser| {
        parser.set_language(&language.grammar()).ok()?;
        let mut read = |byte: usize, _: Point| -> &[u8] {
            if byte >= text.len_bytes() {
                return &[];
            }
            let (chunk, chunk_start, _, _) = text.chunk_at_byte(byte);
            &chunk.as_bytes()[byte - chunk_start..]
        };
        let options = ParseOptions::new().progress_callback(&mut out_of_time);
        let tree = parser.parse_with_options(&mut read, old, Some(options));
        // A parse that was cut short would otherwise be resumed, on whatever text comes next.
        parser.reset();
        tree
    })
}

/// Row and column as the rope counts lines. tree-sitter counts only `\n`; where a lone `\r` makes
/// the two differ, rows are off, which nothing here reads: byte offsets rule.
fn point(text: &Rope, byte: usize) -> Point {
    let row = text.byte_to_line(byte);
    Point { row, column: byte - text.line_to_byte(row) }
}

fn longest_line(text: &Rope) -> usize {
    let mut longest = 0;
    let mut current = 0;
    for chunk in text.chunks() {
        let mut rest = chunk;
        while let Some(end) = rest.find('\n') {
            longest = longest.max(current + end);
            current = 0;
            rest = &rest[end + 1..];
        }
        current += rest.len();
    }
    longest.max(current)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn limits_are_honoured() {
        let long_line = Rope::from_str(&"x".repeat(MAX_LINE_BYTES + 1));
        assert!(SyntaxTree::parse(Language::Python, &long_line, LONG).is_none());
        let long_text = Rope::from_str(&"x = 1\n".repeat(MAX_TEXT_BYTES / 6 + 1));
        assert!(SyntaxTree::parse(Language::Python, &long_text, LONG).is_none());
        let fine = Rope::from_str(&"x = 1\n".repeat(20_000));
        assert!(SyntaxTree::parse(Language::Python, &fine, Duration::ZERO).is_none(), "no time");
        let tree = SyntaxTree::parse(Language::Python, &fine, LONG).expect("fits");
        assert_eq!(tree.tree().root_node().child_count(), 20_000);
    }

    #[test]
    fn a_spent_budget_leaves_the_parser_usable() {
        let long = Rope::from_str(&"fn f() { 1 }\n".repeat(20_000));
        assert!(SyntaxTree::parse(Language::Rust, &long, Duration::ZERO).is_none());
        let short = Rope::from_str("fn g() {}");
        let tree = SyntaxTree::parse(Language::Rust, &short, LONG).expect("fits");
        assert_eq!(
            tree.tree().root_node().to_sexp(),
            "(source_file (function_item name: (identifier) parameters: (parameters) body: (block)))"
        );
    }

    proptest! {
        #[test]
        fn an_edited_tree_is_the_tree_of_the_new_text(
            language in prop::sample::select(Language::ALL.to_vec()),
            edits in prop::collection::vec((any::<prop::sample::Index>(), 0usize..6,
                "[a-z(){};:\"' \n\té]{0,8}"), 1..8),
        ) {
            let mut text = Rope::from_str("def f(a):\n    return {a: 1}\n\nfn g() { x; }\r\nclass A {}\n");
            let mut tree = SyntaxTree::parse(language, &text, LONG).expect("fits");
            for (at, remove, insert) in edits {
                let start = at.index(text.len_chars() + 1);
                let end = (start + remove).min(text.len_chars());
                let old = text.clone();
                text.remove(start..end);
                text.insert(start, &insert);
                let byte = old.char_to_byte(start);
                tree.edit(&old, &text, byte, old.char_to_byte(end), byte + insert.len());
                prop_assert!(tree.reparse(&text, LONG));
            }
            // Error recovery may differ with history; a tree without errors may not.
            let fresh = SyntaxTree::parse(language, &text, LONG).expect("fits");
            let (new, old) = (fresh.tree().root_node(), tree.tree().root_node());
            prop_assert_eq!(new.end_byte(), old.end_byte());
            if !new.has_error() && !old.has_error() {
                prop_assert_eq!(new.to_sexp(), old.to_sexp());
            }
        }
    }
}
