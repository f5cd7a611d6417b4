//! Brackets, strings and comments, read one character at a time.
//!
//! What streams out of a model cannot be parsed while it is half a statement, but its brackets can be
//! counted, as long as those in strings and comments are left out. This is no tokenizer: it knows just
//! enough of each language for that. What it does not know (regular expressions of JavaScript, raw
//! strings of C++, a here-document) costs at most the rest of a line, because a simple string ends with its line.

use crate::language::Language;

/// What a character did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    /// `(`, `[` or `{` in code.
    Open(char),
    /// `)`, `]` or `}` in code.
    Close(char),
    /// A quote that opened a string.
    QuoteOpen(char),
    /// A quote that closed a string.
    QuoteClose(char),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Code,
    /// After `/` where it may open a comment.
    Slash,
    LineComment,
    BlockComment {
        star: bool,
    },
    /// In a string. `run` counts the closing quotes seen of a triple; in a simple string it is 1 directly
    /// after the opening quote.
    Text {
        quote: char,
        triple: bool,
        escaped: bool,
        run: u8,
    },
    /// After `""`: an empty string, or two thirds of a triple quote.
    TwoQuotes {
        quote: char,
    },
    /// In a backtick string; `dollar` after `$`.
    Backtick {
        escaped: bool,
        dollar: bool,
    },
    /// After Rust's `r` and some `#`.
    RawPrefix {
        hashes: u8,
    },
    /// In a Rust raw string; `seen` counts the hashes after a quote.
    Raw {
        hashes: u8,
        seen: Option<u8>,
    },
    /// After Rust's `'`: a character or a lifetime.
    Tick,
    /// One character further.
    TickChar,
}

/// The machine. Feeding a text in any pieces gives the same events.
#[derive(Clone, Debug)]
pub(crate) struct Lexer {
    language: Option<Language>,
    state: State,
    previous: char,
    /// Open braces in each `${` of the template strings we are in.
    templates: Vec<u32>,
}

impl Lexer {
    pub(crate) fn new(language: Option<Language>) -> Self {
        Self { language, state: State::Code, previous: '\n', templates: Vec::new() }
    }

    /// Whether the next character is part of a string.
    pub(crate) fn in_string(&self) -> bool {
        matches!(self.state, State::Text { .. } | State::Backtick { .. } | State::Raw { .. } | State::Tick)
    }

    /// Whether the next character is part of a comment.
    pub(crate) fn in_comment(&self) -> bool {
        matches!(self.state, State::LineComment | State::BlockComment { .. })
    }

    /// Whether the string we are in goes on after the end of the line.
    pub(crate) fn in_multiline_string(&self) -> bool {
        matches!(self.state, State::Text { triple: true, .. } | State::Backtick { .. } | State::Raw { .. })
    }

    /// Whether we are in a string that three quotes opened.
    pub(crate) fn in_triple_quotes(&self) -> bool {
        matches!(self.state, State::Text { triple: true, .. })
    }

    /// Reads the next character.
    pub(crate) fn push(&mut self, c: char) -> Option<Event> {
        let event = self.step(c);
        self.previous = c;
        event
    }

    /// The first event in `text` from byte `from` on, and the byte of the character that it is of. Reads up to
    /// and with that character, or all.
    pub(crate) fn next_event(&mut self, text: &str, from: usize) -> Option<(usize, Event)> {
        let mut at = from;
        loop {
            at += self.skip_plain(&text.as_bytes()[at..]);
            let c = text[at..].chars().next()?;
            if let Some(event) = self.push(c) {
                return Some((at, event));
            }
            at += c.len_utf8();
        }
    }

    /// Reads the characters at the start of `text` that change nothing, and says how many. Most of a file are
    /// such, and are read several times faster than by [`push`](Self::push).
    fn skip_plain(&mut self, text: &[u8]) -> usize {
        let plain = match self.state {
            State::Code if self.language == Some(Language::Rust) => {
                text.iter().position(|&byte| !PLAIN[usize::from(byte)] || byte == b'r')
            }
            State::Code => text.iter().position(|&byte| !PLAIN[usize::from(byte)]),
            State::LineComment => {
                text.iter().position(|&byte| !byte.is_ascii() || byte == b'\n' || byte == b'\r')
            }
            _ => return 0,
        };
        let plain = plain.unwrap_or(text.len());
        if let Some(last) = text[..plain].last() {
            self.previous = char::from(*last);
        }
        plain
    }

    fn step(&mut self, c: char) -> Option<Event> {
        match self.state {
            State::Code => self.code(c),
            State::Slash => {
                self.state = match c {
                    '/' => State::LineComment,
                    '*' => State::BlockComment { star: false },
                    _ => return self.code(c),
                };
                None
            }
            State::LineComment => {
                if is_line_end(c) {
                    self.state = State::Code;
                }
                None
            }
            State::BlockComment { star } => {
                self.state =
                    if star && c == '/' { State::Code } else { State::BlockComment { star: c == '*' } };
                None
            }
            State::Text { quote, triple, escaped, run } => self.text(c, quote, triple, escaped, run),
            State::TwoQuotes { quote } => {
                if c != quote {
                    return self.code(c);
                }
                self.state = State::Text { quote, triple: true, escaped: false, run: 0 };
                Some(Event::QuoteOpen(quote))
            }
            State::Backtick { escaped, dollar } => self.backtick(c, escaped, dollar),
            State::RawPrefix { hashes } => match c {
                '#' if hashes < u8::MAX => {
                    self.state = State::RawPrefix { hashes: hashes + 1 };
                    None
                }
                '"' => {
                    self.state = State::Raw { hashes, seen: None };
                    Some(Event::QuoteOpen('"'))
                }
                _ => self.code(c),
            },
            State::Raw { hashes, seen } => self.raw(c, hashes, seen),
            State::Tick => {
                self.state = match c {
                    '\\' => State::Text { quote: '\'', triple: false, escaped: true, run: 0 },
                    _ if is_line_end(c) => State::Code,
                    _ => State::TickChar,
                };
                None
            }
            State::TickChar => {
                if c == '\'' {
                    self.state = State::Code;
                    return None;
                }
                self.code(c)
            }
        }
    }

    fn code(&mut self, c: char) -> Option<Event> {
        self.state = State::Code;
        let language = self.language;
        match c {
            '(' | '[' => Some(Event::Open(c)),
            ')' | ']' => Some(Event::Close(c)),
            '{' => {
                if let Some(depth) = self.templates.last_mut() {
                    *depth += 1;
                }
                Some(Event::Open(c))
            }
            '}' => {
                match self.templates.last_mut() {
                    Some(0) => {
                        self.templates.pop();
                        self.state = State::Backtick { escaped: false, dollar: false };
                    }
                    Some(depth) => *depth -= 1,
                    None => {}
                }
                Some(Event::Close(c))
            }
            '"' => self.open_quote(c),
            '\'' => match language {
                Some(Language::Rust) => {
                    self.state = State::Tick;
                    None
                }
                // `1'000'000` in C++, and an apostrophe in prose.
                None => None,
                Some(_) if self.previous.is_alphanumeric() && !self.opens_prefixed_string() => None,
                Some(_) => self.open_quote(c),
            },
            '`' if language.is_some_and(Language::has_backtick_strings) => {
                self.state = State::Backtick { escaped: false, dollar: false };
                Some(Event::QuoteOpen(c))
            }
            '/' if language.is_some_and(|language| language != Language::Python) => {
                self.state = State::Slash;
                None
            }
            '#' if language == Some(Language::Python) => {
                self.state = State::LineComment;
                None
            }
            'r' if language == Some(Language::Rust) && !is_word_but_b(self.previous) => {
                self.state = State::RawPrefix { hashes: 0 };
                None
            }
            _ => None,
        }
    }

    /// Python's `f'`, `rb'`, and C's `L'`: a letter directly before a quote.
    fn opens_prefixed_string(&self) -> bool {
        match self.language {
            Some(Language::Python) => "rRbBfFuUtT".contains(self.previous),
            Some(Language::C | Language::Cpp) => "LuU8".contains(self.previous),
            _ => false,
        }
    }

    fn open_quote(&mut self, quote: char) -> Option<Event> {
        self.state = State::Text { quote, triple: false, escaped: false, run: 1 };
        Some(Event::QuoteOpen(quote))
    }

    fn text(&mut self, c: char, quote: char, triple: bool, escaped: bool, run: u8) -> Option<Event> {
        let stay = |escaped, run| State::Text { quote, triple, escaped, run };
        if is_line_end(c) && !triple {
            // A backslash at the end of a line continues a string; anything else was left open.
            self.state = if escaped { stay(false, 0) } else { State::Code };
            return None;
        }
        if escaped {
            self.state = stay(false, 0);
            return None;
        }
        match c {
            '\\' => self.state = stay(true, 0),
            _ if c == quote && triple && run < 2 => self.state = stay(false, run + 1),
            _ if c == quote => {
                let empty = !triple && run == 1 && self.language.is_some_and(Language::has_triple_quotes);
                self.state = if empty { State::TwoQuotes { quote } } else { State::Code };
                // Rust's character literals are short and have no opening event.
                let literal = quote == '\'' && self.language == Some(Language::Rust);
                return (!literal).then_some(Event::QuoteClose(quote));
            }
            _ => self.state = stay(false, 0),
        }
        None
    }

    fn backtick(&mut self, c: char, escaped: bool, dollar: bool) -> Option<Event> {
        let templates = self.language.is_some_and(Language::has_templates);
        self.state = State::Backtick {
            escaped: templates && c == '\\' && !escaped,
            dollar: templates && c == '$' && !escaped,
        };
        match c {
            '`' if !escaped => {
                self.state = State::Code;
                Some(Event::QuoteClose(c))
            }
            '{' if dollar => {
                self.templates.push(0);
                self.state = State::Code;
                Some(Event::Open(c))
            }
            _ => None,
        }
    }

    fn raw(&mut self, c: char, hashes: u8, seen: Option<u8>) -> Option<Event> {
        let seen = match (c, seen) {
            ('"', _) => Some(0),
            ('#', Some(seen)) => Some(seen + 1),
            _ => None,
        };
        if seen == Some(hashes) {
            self.state = State::Code;
            return Some(Event::QuoteClose('"'));
        }
        self.state = State::Raw { hashes, seen };
        None
    }
}

/// The bracket that closes `open`.
pub(crate) fn closer_of(open: char) -> char {
    match open {
        '(' => ')',
        '[' => ']',
        '{' => '}',
        quote => quote,
    }
}

/// Whether a byte in code is a character that opens and closes nothing, in any language but for Rust's `r`.
const PLAIN: [bool; 256] = {
    let mut plain = [false; 256];
    let mut byte = 0;
    while byte < 128 {
        let special =
            matches!(byte as u8, b'(' | b')' | b'[' | b']' | b'{' | b'}' | b'"' | b'\'' | b'`' | b'/' | b'#');
        plain[byte] = !special;
        byte += 1;
    }
    plain
};

fn is_line_end(c: char) -> bool {
    c == '\n' || c == '\r'
}

fn is_word_but_b(c: char) -> bool {
    c != 'b' && c != 'c' && (c.is_alphanumeric() || c == '_')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events of `text` as characters: brackets as they are, a quote as `<` when it opens and `>` when it closes.
    fn events(language: Language, text: &str) -> String {
        let mut lexer = Lexer::new(Some(language));
        text.chars()
            .filter_map(|c| lexer.push(c))
            .map(|event| match event {
                Event::Open(c) | Event::Close(c) => c,
                Event::QuoteOpen(_) => '<',
                Event::QuoteClose(_) => '>',
            })
            .collect()
    }

    #[test]
    fn only_brackets_of_code_count() {
        for (language, text, expected) in [
            (Language::Python, "f(a[1]) # )", "([])"),
            (Language::Python, "x = '(' + \"]\" + '''{\n''' (", "<><><><>("),
            (Language::Python, "f('', \"\")", "(<><>)"),
            (Language::Python, "rb'(' f\"{\"", "<><>"),
            (Language::Python, "'it\\'s (' )", "<>)"),
            (Language::Python, "'left open\n(", "<("),
            (Language::Rust, "fn f<'a>(c: &'a str) { '{' }", "(){}"),
            (Language::Rust, "'\\'' ( 'x' ')' \"\\\"(\" )", "(<>)"),
            (Language::Rust, "r#\"(\"{ \"# ) br\"[\\\" {", "<>)<>{"),
            (Language::Rust, "/* ( */ { // (\n}", "{}"),
            (Language::Rust, "a / (b)", "()"),
            (Language::TypeScript, "`a ${f({b: `}`})} (`)", "<{({<>})}>)"),
            (Language::JavaScript, "`\\${(` [", "<>["),
            (Language::Go, "`(\\` {", "<>{"),
            (Language::Cpp, "1'000 + '(' {", "<>{"),
            (Language::Java, "\"\"\"\n (\" \"\"\" {", "<><>{"),
        ] {
            assert_eq!(events(language, text), expected, "{language:?} {text}");
        }
    }

    proptest! {
        #[test]
        fn reading_ahead_gives_the_same_events(
            language in proptest::sample::select(&Language::ALL[..]),
            text in "[a-c r'\"`(){}/*#$\\\\é\n]{0,40}",
        ) {
            let mut by_char = Lexer::new(Some(language));
            let pushed: Vec<_> =
                text.char_indices().filter_map(|(at, c)| Some((at, by_char.push(c)?))).collect();
            let mut ahead = Lexer::new(Some(language));
            let mut from = 0;
            let mut read = Vec::new();
            while let Some((at, event)) = ahead.next_event(&text, from) {
                read.push((at, event));
                from = at + 1;
            }
            prop_assert_eq!(read, pushed);
            prop_assert_eq!(format!("{ahead:?}"), format!("{by_char:?}"));
        }
    }

    #[test]
    fn states() {
        let after = |language, text: &str| {
            let mut lexer = Lexer::new(Some(language));
            text.chars().for_each(|c| {
                lexer.push(c);
            });
            (lexer.in_string(), lexer.in_comment())
        };
        assert_eq!(after(Language::Python, "x = 'a"), (true, false));
        assert_eq!(after(Language::Python, "x = 'a' "), (false, false));
        assert_eq!(after(Language::Python, "\"\"\"doc\n"), (true, false));
        assert_eq!(after(Language::Python, "# x"), (false, true));
        assert_eq!(after(Language::Rust, "/* x *"), (false, true));
        assert_eq!(after(Language::Rust, "/* x */"), (false, false));
    }
}
