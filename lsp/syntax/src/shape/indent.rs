//! The indent of generated lines, in the document's own way.

use super::rest::is_closer;
use crate::caret::{Caret, IndentUnit, is_blank, leading_blanks};
use crate::language::Language;
use crate::scope::line_opens_block;

/// Text with the indent that belongs there, in the document's own way, and no blanks at line ends.
pub(super) fn indent(text: &str, caret: &Caret) -> String {
    let (first, rest) = match text.split_once('\n') {
        _ if caret.is_prefix_blank() => {
            let visible = text.len() - text.trim_start().len();
            let start = text[..visible].rfind('\n').map_or(0, |end| end + 1);
            let text = &text[start..];
            text.split_once('\n').map_or((text, None), |(first, rest)| (first, Some(rest)))
        }
        Some((first, rest)) if is_blank(first) => {
            // One line end after what opens a block.
            let visible = rest.len() - rest.trim_start().len();
            let start = rest[..visible].rfind('\n').map_or(0, |end| end + 1);
            ("", Some(&rest[start..]))
        }
        Some((first, rest)) => (first, Some(rest)),
        None => (text, None),
    };
    let indenter = Indenter::new(caret, rest.unwrap_or_default());
    let mut out = String::with_capacity(text.len());
    let mut shift = 0;
    if caret.is_prefix_blank() {
        let (columns, dropped) = first_line_indent(first, caret);
        shift = dropped;
        out.push_str(&indenter.blanks(columns));
        out.push_str(first.trim());
    } else {
        // One blank is the habit of a model; more are an alignment.
        let spaced = caret.line_prefix().ends_with([' ', '\t']);
        let habit = first.strip_prefix(' ').filter(|rest| spaced && !rest.starts_with(' '));
        out.push_str(habit.unwrap_or(first).trim_end());
    }
    for line in rest.into_iter().flat_map(|rest| rest.split('\n')) {
        out.push('\n');
        let visible = line.trim();
        if !visible.is_empty() {
            out.push_str(&indenter.blanks(indenter.columns(line).saturating_sub(shift)));
            out.push_str(visible);
        }
    }
    out
}

/// Columns to add before the first line where the caret has only blanks on its left, and by how many
/// columns the model's idea of the line was too deep.
fn first_line_indent(first: &str, caret: &Caret) -> (usize, usize) {
    let own = caret.indent_width(caret.indent());
    let lead = caret.indent_width(first);
    let unit = caret.indent_unit().width();
    let above = caret.preceding_text_line().unwrap_or_default();
    let above_indent = caret.indent_width(above);
    let comment = caret.language().map_or("#", Language::line_comment);
    let is_code = !caret.in_string() && !above.trim_start().starts_with(comment);
    let closes = first.trim_start().starts_with(is_closer);
    if is_code && !closes && line_opens_block(caret, above) {
        // Inside the block just opened there is one right indent, and never less.
        // Who typed an indent has chosen it, unless the model completes it.
        let usual = above_indent + unit;
        let body = if own > above_indent && own + lead != usual { own } else { usual };
        let meant = if own + lead == body { body } else { lead.max(own) };
        let kept = body.max(own);
        return (kept - own, meant.saturating_sub(kept));
    }
    // A model that begins with blanks means the whole indent, not what is missing of it.
    let meant = lead.max(own);
    let is_open = above.trim_end().ends_with(['(', '[', '{', ',', '\\', ':']);
    let kept = if is_open { meant } else { meant.min(own.max(above_indent)) };
    (kept - own, meant - kept)
}

/// Turns the model's indent into the document's.
struct Indenter<'caret> {
    caret: &'caret Caret,
    /// Columns of a level in the model's text.
    model_unit: usize,
}

impl<'caret> Indenter<'caret> {
    fn new(caret: &'caret Caret, rest: &str) -> Self {
        // A model that writes spaces into a document with tabs: its smallest indent is one level.
        let spaces = rest.lines().filter(|line| !is_blank(line)).map(leading_blanks);
        let smallest = spaces.filter(|blanks| blanks.starts_with(' ')).map(str::len).min();
        Self { caret, model_unit: smallest.filter(|unit| (2..=8).contains(unit)).unwrap_or(4) }
    }

    fn columns(&self, line: &str) -> usize {
        let columns = self.caret.indent_width(line);
        let tabs = self.caret.indent_unit() == IndentUnit::Tab;
        if tabs && line.starts_with(' ') && columns.is_multiple_of(self.model_unit) {
            return columns / self.model_unit * IndentUnit::Tab.width();
        }
        columns
    }

    fn blanks(&self, columns: usize) -> String {
        match self.caret.indent_unit() {
            IndentUnit::Tab => {
                let width = IndentUnit::Tab.width();
                "\t".repeat(columns / width) + &" ".repeat(columns % width)
            }
            IndentUnit::Spaces(_) => " ".repeat(columns),
        }
    }
}
