//! What was shown and not wanted.

use std::collections::VecDeque;

use ropey::Rope;

/// Rejections remembered of a document.
const MAX_REJECTIONS: usize = 64;

/// A suggestion that was shown and turned down: by typing something else, by erasing text it agreed with, or by
/// saying so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    /// The line of text above, for the same line may be right elsewhere.
    above: String,
    /// The line as it would have become, and what follows it in the suggestion.
    line: String,
    /// What stood on the line before the suggestion.
    before: usize,
    /// Bytes of the line that stood there at most. Somebody who types beyond that wants it after all.
    reached: usize,
}

impl Rejection {
    /// A rejection of `text` at the byte `at`, of which `reached` bytes were typed.
    pub(crate) fn new(document: &Rope, at: usize, text: &str, reached: usize) -> Self {
        let at = at.min(document.len_bytes());
        let before = line_before(document, at);
        let (reached, length) = (before.len() + reached, before.len());
        Self { above: line_above(document, at), line: before + text, before: length, reached }
    }

    fn before(&self) -> &str {
        self.line[..self.before].trim()
    }
}

/// The last rejections of a document.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rejections {
    last: VecDeque<Rejection>,
}

impl Rejections {
    pub(crate) fn is_empty(&self) -> bool {
        self.last.is_empty()
    }

    pub(crate) fn add(&mut self, rejection: Rejection) {
        self.last.truncate(MAX_REJECTIONS - 1);
        self.last.push_front(rejection);
    }

    /// Forgets what was for lines that are taken away with `removed`, at once: whoever writes such a line again has
    /// begun anew. Erased letter by letter, it is the same line still.
    pub(crate) fn forget_lines(&mut self, removed: &str) {
        self.last.retain(|rejection| rejection.before().is_empty() || !removed.contains(rejection.before()));
    }

    /// Whether `text` may be suggested at `caret`. It may not when the same lines were turned down there, or lines
    /// that begin with them, unless more of them has been typed since.
    pub(crate) fn allow(&self, document: &Rope, caret: usize, text: &str) -> bool {
        if self.last.is_empty() {
            return true;
        }
        let before = line_before(document, caret);
        let line = format!("{before}{text}");
        let (line, above) = (line.trim_end(), line_above(document, caret));
        !self.last.iter().any(|rejection| {
            let same = rejection.line.starts_with(line) || line.starts_with(rejection.line.trim_end());
            same && before.len() <= rejection.reached && rejection.above == above
        })
    }
}

/// The text of a line left of a place on it.
fn line_before(document: &Rope, at: usize) -> String {
    document.byte_slice(document.line_to_byte(document.byte_to_line(at))..at).to_string()
}

/// The line above that is not blank, without its indentation.
fn line_above(document: &Rope, at: usize) -> String {
    const FARTHEST: usize = 4;
    let line = document.byte_to_line(at);
    let above = (0..line).rev().take(FARTHEST).map(|line| document.line(line).to_string());
    above.map(|line| line.trim().to_owned()).find(|line| !line.is_empty()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rejected_text_is_not_allowed_until_more_of_it_is_typed() {
        let mut rejections = Rejections::default();
        let document = Rope::from_str("def f():\n    x = fo");
        let at = "def f():\n    x = ".len();
        rejections.add(Rejection::new(&document, at, "foo(bar)", 2));
        assert!(!rejections.allow(&document, at, "foo(bar)"));
        assert!(!rejections.allow(&document, at + 1, "oo(bar)"), "less of it");
        assert!(!rejections.allow(&document, at + 2, "o(bar)"), "as much of it");
        assert!(!rejections.allow(&document, at, "foo(bar)\n    return x"), "and more");
        assert!(rejections.allow(&document, at, "foo(baz)"));
        let typed = Rope::from_str("def f():\n    x = foo");
        assert!(rejections.allow(&typed, at + 3, "(bar)"), "typed beyond");
        let elsewhere = Rope::from_str("def g():\n    x = ");
        assert!(rejections.allow(&elsewhere, at, "foo(bar)"));
    }

    #[test]
    fn a_line_that_is_taken_away_takes_its_rejections_along() {
        let mut rejections = Rejections::default();
        let document = Rope::from_str("    x = ");
        rejections.add(Rejection::new(&document, 8, "foo", 0));
        rejections.forget_lines("= foo\n");
        assert!(!rejections.allow(&document, 8, "foo"), "a part of the line");
        rejections.forget_lines("    x = foo\n");
        assert!(rejections.allow(&document, 8, "foo"));
    }

    #[test]
    fn only_the_last_ones_are_remembered() {
        let mut rejections = Rejections::default();
        let document = Rope::from_str("x = ");
        for number in 0..=MAX_REJECTIONS {
            rejections.add(Rejection::new(&document, 4, &format!("n{number}!"), 0));
        }
        assert!(rejections.allow(&document, 4, "n0!"));
        assert!(!rejections.allow(&document, 4, "n1!"));
    }
}
