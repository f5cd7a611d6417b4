//! Makes what a model wrote fit what is already in the document.

mod indent;
mod refit;
mod rest;

pub use self::refit::refit;

use self::indent::indent;
use self::rest::{fit_rest_of_line, is_closer};
use crate::brackets::Brackets;
use crate::caret::{Caret, is_blank};
use crate::scope::Scope;
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
    if text.bytes().any(is_binary) || text.contains(char::REPLACEMENT_CHARACTER) {
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
