//! Scripts of editing, and an editor that plays them.
//!
//! A script is a text file, a step a line; `#` begins a remark.
//!
//! | step | |
//! |---|---|
//! | `open PATH`, `new NAME` | a file of the repository, or an empty one; first |
//! | `type TEXT` | key by key. Brackets and quotes close by themselves and are typed over |
//! | `enter` | a new line, indented as editors do; between brackets two |
//! | `accept TEXT` | all at once, as a suggestion; `\n` and `\t` are what they look like |
//! | `back N` | N times backspace |
//! | `dedent` | takes one level of indentation away |
//! | `after TEXT` | the caret after the first place with this text |
//! | `down N`, `end` | the caret to the end of a line below, or of the file |
//!
//! After every key a suggestion is asked for, unless a word stands right of the caret; not after a mere
//! move of the caret.

use std::path::Path;

use ropey::Rope;

type Error = Box<dyn std::error::Error>;

const PAIRS: [(char, char); 5] = [('(', ')'), ('[', ']'), ('{', '}'), ('"', '"'), ('\'', '\'')];

/// A script and the file it begins with.
pub(crate) struct Script {
    pub(crate) name: String,
    path: String,
    text: String,
    steps: Vec<String>,
}

/// When a suggestion is asked for.
pub(crate) struct Moment {
    pub(crate) path: String,
    pub(crate) text: Rope,
    pub(crate) caret: usize,
}

struct Editor {
    text: Rope,
    caret: usize,
    indent: &'static str,
    /// The text and the caret whenever a suggestion was asked for.
    seen: Vec<(Rope, usize)>,
}

impl Script {
    /// Those in `tests/editing`, by name.
    pub(crate) fn all(root: &Path) -> Result<Vec<Self>, Error> {
        let mut files: Vec<_> =
            std::fs::read_dir(root.join("tests/editing"))?.collect::<Result<Vec<_>, _>>()?;
        files.sort_by_key(|file| file.file_name());
        files.into_iter().map(|file| Self::read(root, &file.path())).collect()
    }

    fn read(root: &Path, file: &Path) -> Result<Self, Error> {
        let script = std::fs::read_to_string(file)?;
        let mut steps = script.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let first = steps.next().unwrap_or_default();
        let (path, text) = match first.split_once(' ') {
            Some(("open", path)) => (path, std::fs::read_to_string(root.join(path))?),
            Some(("new", name)) => (name, String::new()),
            _ => return Err(format!("{}: begins with `open` or `new`, not {first:?}", file.display()).into()),
        };
        let name = file.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { name, path: path.into(), text, steps: steps.map(str::to_owned).collect() })
    }

    /// Every moment at which a suggestion is asked for.
    pub(crate) fn moments(&self) -> Result<Vec<Moment>, Error> {
        let indent = match Path::new(&self.path).extension().and_then(|extension| extension.to_str()) {
            Some("go") => "\t",
            Some("ts" | "lua" | "cuh") => "  ",
            _ => "    ",
        };
        let mut editor = Editor { text: Rope::from_str(&self.text), caret: 0, indent, seen: Vec::new() };
        for step in &self.steps {
            editor.play(step).map_err(|reason| format!("{}: `{step}`: {reason}", self.name))?;
        }
        let moment = |(text, caret)| Moment { path: self.path.clone(), text, caret };
        Ok(editor.seen.into_iter().map(moment).collect())
    }
}

impl Editor {
    fn play(&mut self, step: &str) -> Result<(), Error> {
        let (verb, rest) = step.split_once(' ').unwrap_or((step, ""));
        match verb {
            "type" => rest.chars().for_each(|key| self.key(key)),
            "enter" => self.enter(),
            "accept" => self.insert(&rest.replace("\\n", "\n").replace("\\t", "\t"), ""),
            "back" => {
                for _ in 0..rest.parse()? {
                    self.backspace(1);
                }
            }
            "dedent" if self.line_prefix().ends_with(self.indent) => self.backspace(self.indent.len()),
            "after" => {
                let found = self.text.to_string().find(rest).ok_or("no such text")?;
                self.caret = found + rest.len();
            }
            "down" => self.end_of_line(self.text.byte_to_line(self.caret) + rest.parse::<usize>()?),
            "end" => self.end_of_line(self.text.len_lines()),
            _ => return Err("no such step here".into()),
        }
        Ok(())
    }

    fn key(&mut self, key: char) {
        let next = self.next_char();
        let word_follows = next.is_some_and(|c| c.is_alphanumeric() || c == '_');
        let closes = PAIRS.iter().any(|(_, closer)| *closer == key);
        let closer = PAIRS.iter().find(|(opener, _)| *opener == key).map(|(_, closer)| *closer);
        // A quote after a word is an apostrophe.
        let quote_in_word = matches!(key, '"' | '\'') && self.line_prefix().ends_with(char::is_alphanumeric);
        if closes && next == Some(key) {
            self.caret += key.len_utf8();
            self.ask();
        } else if let Some(closer) = closer.filter(|_| !word_follows && !quote_in_word) {
            self.insert(&key.to_string(), &closer.to_string());
        } else {
            self.insert(&key.to_string(), "");
        }
    }

    fn enter(&mut self) {
        let line = self.line_prefix();
        let indent = line[..line.len() - line.trim_start().len()].to_owned();
        let opener = line.trim_end().chars().next_back();
        let deeper = opener.is_some_and(|c| matches!(c, '{' | '(' | '[' | ':'));
        let between = deeper && self.next_char().is_some_and(|c| matches!(c, '}' | ')' | ']'));
        let inner = format!("\n{indent}{}", if deeper { self.indent } else { "" });
        let outer = if between { format!("\n{indent}") } else { String::new() };
        self.insert(&inner, &outer);
    }

    /// Backspace takes both of a pair that nothing stands between.
    fn backspace(&mut self, bytes: usize) {
        let before = self.line_prefix().chars().next_back();
        let pair = before.zip(self.next_char()).is_some_and(|pair| bytes == 1 && PAIRS.contains(&pair));
        let start = self.caret.saturating_sub(before.map_or(1, |c| bytes.max(c.len_utf8())));
        let end = self.caret + usize::from(pair);
        self.text.remove(self.text.byte_to_char(start)..self.text.byte_to_char(end));
        self.caret = start;
        self.ask();
    }

    fn insert(&mut self, before: &str, after: &str) {
        let at = self.text.byte_to_char(self.caret);
        self.text.insert(at, after);
        self.text.insert(at, before);
        self.caret += before.len();
        self.ask();
    }

    fn ask(&mut self) {
        if !self.next_char().is_some_and(|c| c.is_alphanumeric() || c == '_') {
            self.seen.push((self.text.clone(), self.caret));
        }
    }

    fn end_of_line(&mut self, line: usize) {
        let line = line.min(self.text.len_lines() - 1);
        let start = self.text.line_to_byte(line);
        let text = self.text.line(line).to_string();
        self.caret = start + text.trim_end_matches('\n').len();
    }

    fn line_prefix(&self) -> String {
        let start = self.text.line_to_byte(self.text.byte_to_line(self.caret));
        self.text.byte_slice(start..self.caret).to_string()
    }

    fn next_char(&self) -> Option<char> {
        self.text.get_char(self.text.byte_to_char(self.caret))
    }
}
