//! Where a tokenizer splits text into words.
//!
//! A byte-level BPE merges bytes within a word only, and takes words from a text with a pattern. The patterns of the models
//! that are served differ in little, so that one function finds the words of all of them.

use regex_syntax::hir::{Class as HirClass, HirKind};
use tokenizers::pre_tokenizers::split::SplitPattern;
use tokenizers::{PreTokenizerWrapper, SplitDelimiterBehavior};

/// A pattern, as its differences from the others.
pub(super) struct Words {
    kinds: Kinds,
    contractions: Contractions,
    /// Whether it is GPT-2's: only a space joins what follows, numbers as well, and line ends are blanks like others.
    is_gpt_2: bool,
    /// Digits in a word at most.
    digits: usize,
}

/// Whether `'s`, `'t`, `'re`, `'ve`, `'m`, `'ll` and `'d` are words.
#[derive(Clone, Copy, PartialEq)]
enum Contractions {
    None,
    Lowercase,
    AnyCase,
}

const GPT_2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
/// The newer patterns after their contractions, with what they take for a number in the middle.
const LETTERS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+|";
const OTHERS: &str = r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Words {
    /// The words of a tokenizer that splits with GPT-2's pattern, or as Llama 3, Qwen2 and the embedded model do.
    pub(super) fn of(pre_tokenizer: &PreTokenizerWrapper) -> Option<Self> {
        let steps = match pre_tokenizer {
            PreTokenizerWrapper::Sequence(steps) => steps.as_ref(),
            step => std::slice::from_ref(step),
        };
        match steps {
            [PreTokenizerWrapper::ByteLevel(bytes)] if bytes.use_regex && !bytes.add_prefix_space => {
                Self::of_pattern(GPT_2)
            }
            [PreTokenizerWrapper::Split(split), PreTokenizerWrapper::ByteLevel(bytes)]
                if !bytes.use_regex
                    && !bytes.add_prefix_space
                    && !split.invert
                    && split.behavior == SplitDelimiterBehavior::Isolated =>
            {
                let SplitPattern::Regex(pattern) = &split.pattern else { return None };
                Self::of_pattern(pattern)
            }
            _ => None,
        }
    }

    fn of_pattern(pattern: &str) -> Option<Self> {
        let kinds = Kinds::new()?;
        if pattern == GPT_2 {
            let contractions = Contractions::Lowercase;
            return Some(Self { kinds, contractions, is_gpt_2: true, digits: usize::MAX });
        }
        let (contractions, rest) = match pattern.strip_prefix(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|") {
            Some(rest) => (Contractions::AnyCase, rest),
            None => (Contractions::None, pattern),
        };
        let digits = match rest.strip_prefix(LETTERS)?.strip_suffix(OTHERS)? {
            r"\p{N}" => 1,
            r"\p{N}{1,3}" => 3,
            r"\p{N}+" => usize::MAX,
            _ => return None,
        };
        Some(Self { kinds, contractions, is_gpt_2: false, digits })
    }

    /// The words of a text, one after the other.
    pub(super) fn split<'a>(&self, mut text: &'a str) -> impl Iterator<Item = &'a str> {
        std::iter::from_fn(move || {
            let (word, rest) = text.split_at(self.word_end(text));
            text = rest;
            (!word.is_empty()).then_some(word)
        })
    }

    /// Where the first word of a text ends.
    fn word_end(&self, text: &str) -> usize {
        let mut chars = text.chars();
        let Some(first) = chars.next() else { return 0 };
        if let Some(end) = self.contraction(text) {
            return end;
        }
        let (kind, next) = (self.kinds.of(first), chars.next().map(|next| self.kinds.of(next)));
        let is_line_end = matches!(first, '\r' | '\n');
        let joins_letters = match kind {
            Kind::Letter | Kind::Number => false,
            Kind::Blank | Kind::Other => first == ' ' || !self.is_gpt_2 && !is_line_end,
        };
        match (kind, next) {
            (Kind::Letter, _) => self.run(text, 0, Kind::Letter, usize::MAX),
            (_, Some(Kind::Letter)) if joins_letters => {
                self.run(text, first.len_utf8(), Kind::Letter, usize::MAX)
            }
            (Kind::Number, _) => self.run(text, 0, Kind::Number, self.digits),
            (Kind::Blank, Some(Kind::Number)) if first == ' ' && self.is_gpt_2 => {
                self.run(text, 1, Kind::Number, usize::MAX)
            }
            (Kind::Other, _) => self.others(text, 0),
            (Kind::Blank, Some(Kind::Other)) if first == ' ' => self.others(text, 1),
            (Kind::Blank, _) => self.blanks(text),
        }
    }

    fn contraction(&self, text: &str) -> Option<usize> {
        if self.contractions == Contractions::None || !text.starts_with('\'') {
            return None;
        }
        let mut letters = text[1..].chars().map(|c| match self.contractions {
            // What regular expressions take for an s when case does not matter.
            Contractions::AnyCase if c == 'ſ' => 's',
            Contractions::AnyCase => c.to_ascii_lowercase(),
            _ => c,
        });
        match (letters.next()?, letters.next()) {
            ('s', _) => Some(1 + text[1..].chars().next()?.len_utf8()),
            ('t' | 'm' | 'd', _) => Some(2),
            ('r' | 'v', Some('e')) | ('l', Some('l')) => Some(3),
            _ => None,
        }
    }

    /// Where up to `most` characters of a kind end that begin at `start`.
    fn run(&self, text: &str, start: usize, kind: Kind, most: usize) -> usize {
        let run = text[start..].chars().take_while(|&c| self.kinds.of(c) == kind).take(most);
        start + run.map(char::len_utf8).sum::<usize>()
    }

    fn others(&self, text: &str, start: usize) -> usize {
        let end = self.run(text, start, Kind::Other, usize::MAX);
        if self.is_gpt_2 {
            return end;
        }
        let rest = &text[end..];
        end + rest.len() - rest.trim_start_matches(['\r', '\n']).len()
    }

    /// Where blanks end that `text` begins with: after the last line end among them, or else before the last of several,
    /// which belongs to what is visible after it.
    fn blanks(&self, text: &str) -> usize {
        let end = self.run(text, 0, Kind::Blank, usize::MAX);
        if !self.is_gpt_2
            && let Some(last) = text[..end].rfind(['\r', '\n'])
        {
            return last + 1;
        }
        let last = text[..end].chars().next_back().map_or(0, char::len_utf8);
        if end == text.len() || end == last { end } else { end - last }
    }
}

/// What patterns tell apart: `\p{L}`, `\p{N}`, `\s`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Letter,
    Number,
    Blank,
    Other,
}

/// The kind of every character.
struct Kinds {
    ascii: [Kind; 128],
    letters: Vec<(char, char)>,
    numbers: Vec<(char, char)>,
}

impl Kinds {
    fn new() -> Option<Self> {
        let mut kinds =
            Self { ascii: [Kind::Other; 128], letters: ranges(r"\p{L}")?, numbers: ranges(r"\p{N}")? };
        for (ascii, c) in ('\0'..='\x7f').enumerate() {
            kinds.ascii[ascii] = kinds.look_up(c);
        }
        Some(kinds)
    }

    fn of(&self, c: char) -> Kind {
        match self.ascii.get(c as usize) {
            Some(kind) => *kind,
            None => self.look_up(c),
        }
    }

    fn look_up(&self, c: char) -> Kind {
        let is_in = |ranges: &[(char, char)]| {
            let index = ranges.partition_point(|&(_, last)| last < c);
            ranges.get(index).is_some_and(|&(first, _)| first <= c)
        };
        if c.is_whitespace() {
            Kind::Blank
        } else if is_in(&self.letters) {
            Kind::Letter
        } else if is_in(&self.numbers) {
            Kind::Number
        } else {
            Kind::Other
        }
    }
}

/// The characters of a class, in ascending ranges, by the tables that the library's patterns use.
fn ranges(class: &str) -> Option<Vec<(char, char)>> {
    match regex_syntax::parse(class).ok()?.into_kind() {
        HirKind::Class(HirClass::Unicode(class)) => {
            Some(class.iter().map(|range| (range.start(), range.end())).collect())
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(pattern: &str, text: &str) -> Vec<String> {
        let words = Words::of_pattern(pattern).expect("a known pattern");
        words.split(text).map(str::to_owned).collect()
    }

    #[test]
    fn each_pattern_has_its_own_words() {
        let text = "it's  12345 = x1;\n\n    y()";
        assert_eq!(words(GPT_2, text).join("|"), "it|'s| | 12345| =| x|1|;|\n\n   | y|()");
        let llama = format!(r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|{LETTERS}\p{{N}}{{1,3}}{OTHERS}");
        assert_eq!(words(&llama, text).join("|"), "it|'s| | |123|45| =| x|1|;\n\n|   | y|()");
        let ours = format!(r"{LETTERS}\p{{N}}{OTHERS}");
        assert_eq!(words(&ours, text).join("|"), "it|'s| | |1|2|3|4|5| =| x|1|;\n\n|   | y|()");
    }

    #[test]
    fn other_patterns_are_not_known() {
        assert!(Words::of_pattern(r"\w+|\s+").is_none());
        assert!(Words::of_pattern(&format!(r"{LETTERS}\p{{N}}{{1,2}}{OTHERS}")).is_none());
    }
}
