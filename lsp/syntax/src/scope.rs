//! A line or a block.

use crate::caret::{Caret, is_blank};
use crate::language::Language;
use crate::tree::SyntaxTree;

/// How much to suggest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The rest of the caret's line.
    SingleLine,
    /// Lines to the end of the block that the caret is in.
    Block,
}

/// What someone who stops typing at `caret` expects: lines where a block begins or goes on, and the
/// rest of the line otherwise. The tree, where there is one, settles whether the caret is in a string or a
/// comment that began far above.
pub fn wants_block(caret: &Caret, tree: Option<&SyntaxTree>) -> Scope {
    let in_text = match tree {
        Some(tree) => is_in_text(caret, tree),
        None => caret.in_string() || caret.in_comment(),
    };
    let block = caret.is_suffix_blank()
        && !in_text
        && if caret.is_prefix_blank() { is_block_line(caret) } else { opens_block(caret) };
    if block { Scope::Block } else { Scope::SingleLine }
}

/// Whether the line left of the caret ends with what opens a block.
pub(crate) fn opens_block(caret: &Caret) -> bool {
    line_opens_block(caret, caret.line_prefix()) && !is_in_parentheses(caret)
}

/// Whether `line`, by its end, opens a block.
pub(crate) fn line_opens_block(caret: &Caret, line: &str) -> bool {
    let line = line.trim_end();
    match caret.language() {
        Some(Language::Python) => line.ends_with([':', '{']),
        Some(_) => line.ends_with('{'),
        None => line.ends_with([':', '{']),
    }
}

/// In Python a colon inside brackets is a slice, an annotation or a dictionary's.
fn is_in_parentheses(caret: &Caret) -> bool {
    caret.language() == Some(Language::Python)
        && caret.line_prefix().trim_end().ends_with(':')
        && !caret.open_brackets().is_empty()
}

/// On a blank line: inside a block, or below a comment or decorator that announces one.
fn is_block_line(caret: &Caret) -> bool {
    if !caret.indent().is_empty() || caret.open_brackets().iter().any(|open| open.closer == '}') {
        return true;
    }
    let Some(above) = caret.preceding_text_line() else {
        return false;
    };
    let adjacent = caret.preceding_lines().next().is_some_and(|line| !is_blank(line));
    let comment = caret.language().map_or("#", Language::line_comment);
    let line = above.trim_start();
    line_opens_block(caret, above)
        || adjacent && (line.starts_with(comment) || line.starts_with('@') || line.ends_with("*/"))
}

fn is_in_text(caret: &Caret, tree: &SyntaxTree) -> bool {
    let at = caret.byte();
    let root = tree.tree().root_node();
    // The node left of the caret decides: at the end of a comment one is still in it.
    let left = at.saturating_sub(1);
    let Some(mut node) = root.descendant_for_byte_range(left, at) else {
        return caret.in_string() || caret.in_comment();
    };
    loop {
        let kind = node.kind();
        if kind.contains("comment") {
            // Rust's doc comments include their line end.
            let ended = caret.before().ends_with("*/") || caret.before().ends_with('\n');
            return node.end_byte() > at || !ended;
        }
        if kind.contains("string") && node.end_byte() > at && node.start_byte() < at {
            return true;
        }
        match node.parent() {
            Some(parent) => node = parent,
            None => return false,
        }
    }
}

#[cfg(test)]
#[path = "scope_tests.rs"]
mod tests;
