//! Whether the line at the caret is done.

use super::is_word;
use crate::caret::{Caret, is_blank};
use crate::language::Language;

/// Closing brackets and quotes, then at most one of `:{;,`.
pub(super) fn only_closes_the_line(suffix: &str) -> bool {
    let rest = suffix.trim();
    let rest = rest.trim_start_matches([')', '>', '}', ']', '"', '\'', '`']).trim_start();
    let mut rest = rest.chars();
    matches!(rest.next(), None | Some(':' | '{' | ';' | ',')) && rest.next().is_none()
}

/// Whether the line before the caret ends with what ends a statement in its language.
pub(super) fn is_complete(caret: &Caret) -> bool {
    let prefix = caret.line_prefix().trim_end();
    if is_blank(prefix) || is_in_text(caret) {
        return false;
    }
    match prefix.chars().next_back() {
        // In the head of a `for (;;)` the line goes on.
        Some(';') => !caret.open_brackets().iter().any(|open| open.on_caret_line && open.closer == ')'),
        Some('}') => true,
        Some(')' | ']') => {
            caret.language().is_some_and(Language::line_end_ends_statement)
                && !is_in_expression(caret)
                && !announces_a_block(caret)
        }
        _ => false,
    }
}

/// Whether the line before the caret has closing brackets and nothing else, so that the only thing to come is
/// more of them. The end of a function's parameters is followed by its result and body.
pub(super) fn only_closes(caret: &Caret) -> bool {
    let line = caret.line_prefix().trim();
    line.starts_with([')', ']', '}'])
        && line.chars().all(|c| matches!(c, ')' | ']' | '}' | ';' | ','))
        && !is_in_text(caret)
        && !announces_a_block(caret)
}

/// Whether a statement may end at the caret: no bracket of an expression is open, and the line does not end
/// with something that wants more.
pub(super) fn may_end_here(caret: &Caret) -> bool {
    let ends = |c: char| is_word(c) || matches!(c, ')' | ']' | '}' | '"' | '\'' | '`' | ';' | '?' | '!');
    let line = caret.line_prefix();
    line.trim_end().ends_with(ends)
        && !line.ends_with([' ', '\t'])
        && !is_in_text(caret)
        && !is_in_expression(caret)
        && !announces_a_block(caret)
}

fn is_in_text(caret: &Caret) -> bool {
    caret.in_string() || caret.in_comment()
}

fn is_in_expression(caret: &Caret) -> bool {
    caret.open_brackets().iter().any(|open| open.closer != '}')
}

/// Whether the first word of the statement announces a block, whose `:` or `{` is still to come.
fn announces_a_block(caret: &Caret) -> bool {
    const HEADS: [&str; 31] = [
        "async",
        "case",
        "catch",
        "class",
        "def",
        "do",
        "elif",
        "else",
        "enum",
        "except",
        "export",
        "finally",
        "fn",
        "for",
        "func",
        "function",
        "if",
        "impl",
        "interface",
        "match",
        "private",
        "protected",
        "pub",
        "public",
        "select",
        "static",
        "struct",
        "switch",
        "try",
        "while",
        "with",
    ];
    let line = caret.line_prefix();
    let first_word = |line: &str| {
        let line = line.trim_start();
        let word = line.split(|c| !is_word(c)).next().unwrap_or_default();
        HEADS.contains(&word) || (word == "type" && caret.language() == Some(Language::Go))
    };
    if !line.trim_start().starts_with([')', ']', '}']) {
        return first_word(line);
    }
    // What the bracket closes began on the nearest line above that is indented no deeper.
    let indent = caret.indent_width(line);
    let opener = caret.preceding_lines().find(|line| !is_blank(line) && caret.indent_width(line) <= indent);
    // `} else if (a)` goes on after its own bracket as well.
    let own = line.trim_start_matches([' ', '\t', ')', ']', '}']);
    first_word(own) || (!line.trim_start().starts_with('}') && opener.is_some_and(first_word))
}
