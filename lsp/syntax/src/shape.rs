//! Makes what a model wrote fit what is already in the document.

use crate::brackets::{Brackets, Closer};
use crate::caret::{Caret, IndentUnit, is_blank, leading_blanks};
use crate::language::Language;
use crate::scope::{Scope, line_opens_block};
use crate::stop::StopPolicy;
use crate::trigger::{is_binary, is_word};

/// A suggestion that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaped {
    /// The text to insert at the caret, with the document's line ends. Not blank.
    pub text: String,
    /// Bytes right of the caret, on its line, that the text replaces. Mostly 0.
    pub replace: usize,
}

/// The suggestion in `raw`, the text that a model wrote at `caret`; `None` when nothing worth showing is
/// left. `raw` may be any text, stopped by [`StopPolicy`] or not.
pub fn shape(raw: &str, caret: &Caret, scope: Scope) -> Option<Shaped> {
    let mut policy = StopPolicy::new(caret, scope);
    policy.push(raw);
    let text = policy.accepted().replace("\r\n", "\n").replace('\r', "\n");
    // U+FFFD stands for half a character at a limit, or for bytes that are none.
    if text.chars().any(|c| is_binary(c) || c == char::REPLACEMENT_CHARACTER) {
        return None;
    }
    let text = without_repeated_prefix(&text, caret);
    let text = indent(text, caret);
    let text = without_lines_that_follow(&text, caret);
    let (text, replace) = fit_rest_of_line(text, caret);
    let text = text.trim_end();
    if !says_something(text, caret) || repeats_neighbour(text, caret) || is_cut_short(text, replace, caret) {
        return None;
    }
    Some(Shaped { text: text.replace('\n', caret.line_ending().as_str()), replace })
}

/// Some models begin with the line that they were to continue, or with its last comma.
fn without_repeated_prefix<'text>(text: &'text str, caret: &Caret) -> &'text str {
    let prefix = caret.line_prefix().trim();
    if let Some(rest) = text.trim_start().strip_prefix(',').filter(|_| prefix.ends_with(',')) {
        return rest;
    }
    // A ruler may be the start of a longer one.
    if !prefix.contains(is_word) {
        return text;
    }
    // So may a single word, unless a blank follows it on both sides; and `long long` is C.
    let is_single_word = prefix.chars().all(is_word);
    let is_whole_word = caret.line_prefix().ends_with(' ') && prefix != "long";
    let rest = text.trim_start().strip_prefix(prefix).filter(|rest| !is_blank(rest));
    match rest {
        Some(rest) if !is_single_word || (is_whole_word && rest.starts_with(' ')) => rest,
        _ => text,
    }
}

/// Text with the indent that belongs there, in the document's own way, and no blanks at line ends.
fn indent(text: &str, caret: &Caret) -> String {
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

/// Drops the last lines when the document goes on with them.
fn without_lines_that_follow(text: &str, caret: &Caret) -> String {
    if !caret.is_suffix_blank() {
        return text.to_owned();
    }
    let following: Vec<&str> =
        caret.following_lines().filter(|line| !is_blank(line)).map(str::trim_end).take(8).collect();
    let first_is_whole = caret.is_prefix_blank();
    let whole = |at: usize, line: &str| {
        let own = if at == 0 { caret.indent() } else { "" };
        format!("{own}{}", line.trim_end())
    };
    let lines: Vec<(usize, String)> = text
        .split('\n')
        .enumerate()
        .filter(|(at, line)| !is_blank(line) && (first_is_whole || *at > 0))
        .map(|(at, line)| (at, whole(at, line)))
        .collect();
    for count in (1..=following.len().min(lines.len())).rev() {
        let tail = &lines[lines.len() - count..];
        if !tail.iter().map(|(_, line)| line.as_str()).eq(following[..count].iter().copied()) {
            continue;
        }
        let first = tail[0].0;
        let kept = text.split('\n').take(first).collect::<Vec<_>>().join("\n");
        // A closing bracket that looks like the next line may still be the text's own.
        let only_closes = !tail.iter().any(|(_, line)| line.contains(is_word));
        let left_open = |text: &str| Brackets::read(text, caret).open.len();
        if only_closes && left_open(&kept) > left_open(text) {
            continue;
        }
        return kept;
    }
    text.to_owned()
}

/// Settles the text with what is right of the caret on its line, and with the brackets open there. Gives
/// the text and how many bytes on its right it replaces.
fn fit_rest_of_line(text: String, caret: &Caret) -> (String, usize) {
    let rest = caret.line_suffix().trim_end();
    let text = text.trim_end().to_owned();
    let Some(brace) = brace_in_string(&text, caret) else {
        let (fitting, replaced) = fit(text.clone(), rest, caret);
        let kept = fitting.trim_end();
        let is_cut_at_blank = text.strip_prefix(kept).is_some_and(|cut| cut.starts_with(" }"));
        if replaced == 0 && rest.starts_with('}') && is_cut_at_blank {
            // `{ a }` and not `{ a}`.
            return (format!("{kept} }}"), 1);
        }
        return (fitting, replaced);
    };
    // The expression of a format string ends with the brace that is there: the same one.
    if rest == &text[brace..] {
        return (text[..brace].to_owned(), 0);
    }
    let (text, replaced) = fit(text, &rest[1..], caret);
    (text, replaced + 1)
}

/// Where the text closes the brace of an expression in a string (`f"{name}"`), if the line closes it too.
fn brace_in_string(text: &str, caret: &Caret) -> Option<usize> {
    let brace = |c| matches!(c, '{' | '}');
    let is_open =
        caret.line_prefix().rfind(brace).is_some_and(|at| caret.line_prefix()[at..].starts_with('{'));
    if !caret.in_string() || !is_open || !caret.line_suffix().starts_with('}') {
        return None;
    }
    text.find(brace).filter(|&at| text[at..].starts_with('}'))
}

fn fit(mut text: String, mut rest: &str, caret: &Caret) -> (String, usize) {
    if let Some(kept) = without_whole_rest(&text, rest.trim_start(), caret) {
        text.truncate(kept);
        rest = "";
    }

    let Brackets { mut unmatched, open: mut reopened, .. } = Brackets::read(&text, caret);
    let closers = leading_closers(rest, caret);
    let same = |(a, b): &(&Closer, &Closer)| a.closer == b.closer;
    let shared = unmatched.iter().zip(&closers).take_while(same).count();

    // A closer that the line does not have must be missing in the document, or be opened again as in
    // `} else {`.
    let open: Vec<_> = caret.open_brackets().iter().rev().collect();
    let excess = (shared..unmatched.len()).find(|&at| {
        let closer = unmatched[at].closer;
        let Some(open) = open.get(at).filter(|open| open.closer == closer) else {
            return true;
        };
        let again = reopened.iter().position(|&reopened| reopened == closer);
        if open.closed
            && let Some(again) = again
        {
            reopened.remove(again);
            return false;
        }
        open.closed
    });
    if let Some(at) = excess {
        text.truncate(unmatched[at].bytes.start);
        text.truncate(text.trim_end().len());
        unmatched.truncate(at);
    }

    if shared == 0 {
        let overlap = punctuation_overlap(&text, rest.trim_start());
        text.truncate(text.len() - overlap);
        return (text, 0);
    }
    let first = unmatched[0].bytes.start;
    if squeeze(rest).starts_with(&squeeze(&text[first..])) {
        text.truncate(first);
        return (text, 0);
    }
    let replaced = closers[shared - 1].bytes.end;
    let left = rest[replaced..].trim();
    let has_left = !left.is_empty() && !left.contains(is_word) && text.ends_with(left);
    (text, if has_left { rest.len() } else { replaced })
}

/// What the rest of the line closes before it says anything else.
fn leading_closers(rest: &str, caret: &Caret) -> Vec<Closer> {
    let mut closers = Brackets::read(rest, caret).unmatched;
    let mut end = 0;
    let leading = closers.iter().take_while(|closer| {
        let adjacent = rest.get(end..closer.bytes.start).is_some_and(is_blank);
        end = closer.bytes.end;
        adjacent
    });
    let leading = leading.count();
    closers.truncate(leading);
    closers
}

/// Where the rest of the line begins in the text, if the text ends with all of it.
fn without_whole_rest(text: &str, rest: &str, caret: &Caret) -> Option<usize> {
    let kept = text.strip_suffix(rest).filter(|_| !rest.is_empty())?;
    let in_word = rest.starts_with(is_word) && kept.ends_with(is_word);
    // The closers at the end must be the line's, not the text's own.
    let closes = Brackets::read(text, caret).unmatched;
    let rest_closes = Brackets::read(rest, caret).unmatched.len();
    let are_last = closes.iter().rev().take(rest_closes).all(|closer| closer.bytes.start >= kept.len());
    (!in_word && closes.len() >= rest_closes && are_last).then_some(kept.len())
}

/// Bytes at the end of `text` that are the beginning of `rest`: punctuation other than closers, whose
/// pairing decides.
fn punctuation_overlap(text: &str, rest: &str) -> usize {
    let end = rest.find(|c: char| is_word(c) || is_closer(c)).unwrap_or(rest.len());
    let head = &rest[..end];
    let lengths = head.char_indices().map(|(at, c)| at + c.len_utf8()).rev();
    lengths
        .map(|length| &head[..length])
        .find(|head| text.ends_with(head.trim_end()))
        .map_or(0, |head| head.trim_end().len())
}

fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '`')
}

fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}

/// Whether there is more than what closes something. In a string all is text, up to its end.
fn says_something(text: &str, caret: &Caret) -> bool {
    if caret.in_string() {
        let closer =
            Brackets::read(text, caret).unmatched.first().map_or(text.len(), |closer| closer.bytes.start);
        if !is_blank(&text[..closer]) {
            return true;
        }
    }
    text.chars().any(|c| !c.is_whitespace() && !is_closer(c) && !matches!(c, '>' | ';' | ','))
}

/// Whether the text stops where nothing can follow: inside a string or before the value of an assignment,
/// because the model went round in circles, or inside a comment with code right of the caret.
fn is_cut_short(text: &str, replace: usize, caret: &Caret) -> bool {
    let brackets = Brackets::read(text, caret);
    if replace == 0 && caret.is_suffix_blank() {
        return text.ends_with(" =") || brackets.cut_string;
    }
    // It would comment out what is right of the caret.
    brackets.in_comment && !caret.in_comment()
}

/// Whether the line that `text` makes says nothing new: the line above or below it once more, or a
/// variable assigned to itself.
fn repeats_neighbour(text: &str, caret: &Caret) -> bool {
    if text.contains('\n') {
        return false;
    }
    let line = format!("{}{text}{}", caret.line_prefix(), caret.line_suffix());
    let line = line.trim();
    if let Some((left, right)) = line.split_once(" = ")
        && left.trim() == right.trim_end_matches(';').trim()
    {
        return true;
    }
    if line.chars().filter(|&c| is_word(c)).count() < 3 {
        return false;
    }
    let above = caret.preceding_lines().next();
    let below = caret.following_lines().next();
    // A whole statement from next door does not continue one that is begun.
    let is_statement = !caret.is_prefix_blank() && text.contains(" = ");
    let repeats = |neighbour: &str| neighbour == line || (is_statement && neighbour == text.trim());
    above.into_iter().chain(below).any(|neighbour| repeats(neighbour.trim()))
}

#[cfg(test)]
#[path = "shape_tests.rs"]
mod tests;
