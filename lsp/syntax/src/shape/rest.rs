//! What is right of the caret on its line, and what a text does with it.

use crate::brackets::{Brackets, Closer};
use crate::caret::{Caret, is_blank};
use crate::trigger::is_word;

/// Settles the text with what is right of the caret on its line, and with the brackets open there. Gives
/// the text and how many bytes on its right it replaces.
pub(super) fn fit_rest_of_line(text: String, caret: &Caret) -> (String, usize) {
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
pub(super) fn brace_in_string(text: &str, caret: &Caret) -> Option<usize> {
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

    let Brackets { mut unmatched, open: reopened, .. } = Brackets::read(&text, caret);
    let closers = leading_closers(rest, caret);
    let same = |(a, b): &(&Closer, &Closer)| a.closer == b.closer;
    let shared = unmatched.iter().zip(&closers).take_while(same).count();

    if let Some(at) = first_excess(shared, &unmatched, reopened, caret) {
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

/// The first of a text's closers, from `shared` on, that is one too many. A closer that the line does not have
/// must be missing in the document, or be opened again (`reopened`) as in `} else {`.
pub(super) fn first_excess(
    shared: usize,
    unmatched: &[Closer],
    mut reopened: Vec<char>,
    caret: &Caret,
) -> Option<usize> {
    let open: Vec<_> = caret.open_brackets().iter().rev().collect();
    (shared..unmatched.len()).find(|&at| {
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
    })
}

/// What the rest of the line closes before it says anything else.
pub(super) fn leading_closers(rest: &str, caret: &Caret) -> Vec<Closer> {
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

pub(super) fn is_closer(c: char) -> bool {
    matches!(c, ')' | ']' | '}' | '"' | '\'' | '`')
}

fn squeeze(text: &str) -> String {
    text.chars().filter(|c| !c.is_whitespace()).collect()
}
