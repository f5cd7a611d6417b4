//! Identifiers of a text.

use std::collections::HashSet;

/// Shorter identifiers say little about what code does.
const MIN_BYTES: usize = 3;
/// Longer ones are data.
const MAX_BYTES: usize = 64;

/// The identifiers of `text`, with the byte each starts at.
pub(crate) fn words(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let bytes = text.as_bytes();
    let mut at = 0;
    std::iter::from_fn(move || {
        loop {
            let start = at + bytes[at..].iter().position(|byte| is_word(*byte))?;
            let end =
                bytes[start..].iter().position(|byte| !is_word(*byte)).map_or(bytes.len(), |n| start + n);
            at = end;
            if !bytes[start].is_ascii_digit() {
                return Some((start, &text[start..end]));
            }
        }
    })
}

/// Bytes of non-ASCII characters count as letters, so a word never ends within a character.
fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte >= 0x80
}

/// A number for an identifier. Two may share one, which costs a wrong match, not more.
pub(crate) type Term = u32;

/// The distinct identifiers of `text` that say something, in ascending order.
pub(crate) fn terms(text: &str) -> Vec<Term> {
    let mut terms: Vec<Term> = words(text)
        .filter(|(_, word)| (MIN_BYTES..=MAX_BYTES).contains(&word.len()))
        .map(|(_, word)| term(word))
        .collect();
    terms.sort_unstable();
    terms.dedup();
    terms
}

/// FNV-1a, the same in every run: chunks of equal worth must not change their order with a random seed.
fn term(word: &str) -> Term {
    word.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Which identifiers a text uses, and through which qualifier (`module.name`, `module::name`).
#[derive(Debug, Default)]
pub(crate) struct Uses<'t> {
    words: HashSet<&'t str>,
    qualified: HashSet<(&'t str, &'t str)>,
}

impl<'t> Uses<'t> {
    pub(crate) fn of(text: &'t str) -> Self {
        let mut uses = Self::default();
        let mut previous: Option<(usize, &str)> = None;
        for (start, word) in words(text) {
            uses.words.insert(word);
            if let Some((before, qualifier)) = previous
                && matches!(&text[before + qualifier.len()..start], "." | "::" | "->" | "?.")
            {
                uses.qualified.insert((qualifier, word));
            }
            previous = Some((start, word));
        }
        uses
    }

    pub(crate) fn has(&self, word: &str) -> bool {
        self.words.contains(word)
    }

    pub(crate) fn has_qualified(&self, qualifier: &str, word: &str) -> bool {
        self.qualified.contains(&(qualifier, word))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers() {
        let found: Vec<_> = words("é1 = foo_bar(2x, b) # naïve").collect();
        assert_eq!(found, [(0, "é1"), (6, "foo_bar"), (18, "b"), (23, "naïve")]);
        assert_eq!(words("").count(), 0);
        assert_eq!(words("1 2.5 +").count(), 0);
    }

    #[test]
    fn terms_are_distinct_and_say_something() {
        assert_eq!(terms("alpha beta alpha x yz 12"), {
            let mut expected = vec![term("alpha"), term("beta")];
            expected.sort_unstable();
            expected
        });
    }

    #[test]
    fn uses() {
        let uses = Uses::of("shapes.area(a) + geo::volume(b) + c->d ; shapes .x");
        assert!(uses.has("area") && uses.has("b") && !uses.has("are"));
        assert!(uses.has_qualified("shapes", "area") && uses.has_qualified("geo", "volume"));
        assert!(uses.has_qualified("c", "d") && !uses.has_qualified("shapes", "x"));
    }
}
