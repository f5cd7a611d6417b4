//! A line or a block.

use tree_sitter::Node;

use crate::caret::{Caret, is_blank};
use crate::language::Language;
use crate::tree::SyntaxTree;
use crate::trigger::is_word;

/// How much to suggest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The rest of the caret's line.
    SingleLine,
    /// Lines to the end of the block that the caret is in.
    Block,
}

/// What someone who stops typing at `caret` expects: lines where a block begins or goes on, and the
/// rest of the line otherwise. The tree, where there is one, settles what began far above: a string or a
/// comment, and the block that a line at the left margin is in.
pub fn wants_block(caret: &Caret, tree: Option<&SyntaxTree>) -> Scope {
    let in_text = match tree {
        Some(tree) => is_in_text(caret, tree),
        None => caret.in_string() || caret.in_comment(),
    };
    let block = caret.is_suffix_blank()
        && !in_text
        && if caret.is_prefix_blank() {
            is_block_line(caret, tree)
        } else {
            opens_block(caret) && !has_body_below(caret)
        };
    if block { Scope::Block } else { Scope::SingleLine }
}

/// Whether the line left of the caret ends with what opens a block.
pub(crate) fn opens_block(caret: &Caret) -> bool {
    line_opens_block(caret, caret.line_prefix()) && !is_in_parentheses(caret)
}

/// Whether `line`, by its end, opens a block.
pub(crate) fn line_opens_block(caret: &Caret, line: &str) -> bool {
    let line = line.trim();
    let first_word = line.split(|c| !is_word(c)).next().unwrap_or_default();
    match caret.language() {
        Some(Language::Python) => {
            line.ends_with('{') || line.ends_with(':') && is_python_head(first_word, line)
        }
        Some(_) => line.ends_with('{') || line.ends_with(':') && matches!(first_word, "case" | "default"),
        None => line.ends_with([':', '{']),
    }
}

/// Whether a line that ends with a colon is the head of a compound statement or the end of one, and not an
/// annotation or a lambda.
fn is_python_head(first_word: &str, line: &str) -> bool {
    const HEADS: [&str; 14] = [
        "async", "case", "class", "def", "elif", "else", "except", "finally", "for", "if", "match", "try",
        "while", "with",
    ];
    // The head may have begun on a line above.
    let ends_head = line.starts_with([')', ']', '}']) || ["and", "or", "not"].contains(&first_word);
    let before_colon = line.trim_end_matches(':').trim_end();
    let closes_more = before_colon.matches([')', ']']).count() > before_colon.matches(['(', '[']).count();
    HEADS.contains(&first_word) || ends_head || closes_more
}

/// In Python a colon inside brackets is a slice, an annotation or a dictionary's.
fn is_in_parentheses(caret: &Caret) -> bool {
    caret.language() == Some(Language::Python)
        && caret.line_prefix().trim_end().ends_with(':')
        && !caret.open_brackets().is_empty()
}

/// Whether the block that the caret's line opens is there already.
fn has_body_below(caret: &Caret) -> bool {
    let indent = caret.indent_width(caret.line_prefix());
    caret.following_text_line().is_some_and(|line| caret.indent_width(line) > indent)
}

/// On a blank line: inside a block, or below a comment or decorator that announces one.
fn is_block_line(caret: &Caret, tree: Option<&SyntaxTree>) -> bool {
    let in_braces = caret.open_brackets().iter().any(|open| open.closer == '}');
    let is_inside = tree.and_then(|tree| is_inside_node(caret, tree)).unwrap_or(in_braces);
    if !caret.indent().is_empty() || is_inside {
        return true;
    }
    let Some(above) = caret.preceding_text_line() else {
        return false;
    };
    let adjacent = caret.preceding_lines().next().is_some_and(|line| !is_blank(line));
    let comment = caret.language().map_or("#", Language::line_comment);
    let line = above.trim_start();
    line_opens_block(caret, above)
        || adjacent
            && (line.starts_with(comment)
                || line.starts_with('@')
                || line.starts_with("#[")
                || line.ends_with("*/"))
}

/// Whether a node of the grammar began before the caret and ends after it. `None` where the grammar does not
/// know, because the document does not parse.
fn is_inside_node(caret: &Caret, tree: &SyntaxTree) -> Option<bool> {
    let root = tree.tree().root_node();
    let at = caret.byte();
    let node = root.descendant_for_byte_range(at, at)?;
    let inside = nodes_around(root, node).any(|node| node.start_byte() < at && node.end_byte() > at);
    (!root.has_error()).then_some(inside)
}

fn is_in_text(caret: &Caret, tree: &SyntaxTree) -> bool {
    let at = caret.byte();
    let root = tree.tree().root_node();
    // The node left of the caret decides: at the end of a comment one is still in it.
    let left = at.saturating_sub(1);
    let Some(node) = root.descendant_for_byte_range(left, at) else {
        return caret.in_string() || caret.in_comment();
    };
    // `None` of what is no text.
    let in_text = |node: Node| {
        let kind = node.kind();
        if kind.contains("comment") {
            // Rust's doc comments include their line end.
            let ended = caret.before().ends_with("*/") || caret.before().ends_with('\n');
            return Some(node.end_byte() > at || !ended);
        }
        (kind.contains("string") && node.end_byte() > at && node.start_byte() < at).then_some(true)
    };
    // The innermost that is text says.
    nodes_around(root, node).filter_map(in_text).last().unwrap_or(false)
}

/// The nodes below `root` that lead to `node`, the outermost first, with `node` itself. From the root down, since
/// a node does not know its parent.
fn nodes_around<'tree>(root: Node<'tree>, node: Node<'tree>) -> impl Iterator<Item = Node<'tree>> {
    let inward = move |outer: &Node<'tree>| {
        if *outer == node { None } else { outer.child_with_descendant(node) }
    };
    std::iter::successors(Some(root), inward).skip(1)
}

#[cfg(test)]
#[path = "scope_tests.rs"]
mod tests;
