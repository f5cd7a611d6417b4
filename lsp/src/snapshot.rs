//! An immutable view of a document at one version.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use redstart_syntax::language::Language;
use redstart_syntax::tree::{EDIT_BUDGET, OPEN_BUDGET, SyntaxTree};
use ropey::Rope;

/// Edits between two parses beyond which parsing from nothing is simpler.
const MAX_UNPARSED_EDITS: usize = 64;

/// What a request works on. Cheap to clone; later edits do not reach it.
#[derive(Clone)]
pub struct Snapshot {
    /// The document's URI as the editor spelled it.
    pub uri: Arc<str>,
    /// Its path, relative to the workspace folder that holds it where there is one. Used as the
    /// file's name in prompts.
    pub path: PathBuf,
    /// Language id as the editor named it.
    pub language_id: Arc<str>,
    /// Grammar, where we have one.
    pub language: Option<Language>,
    /// Version the editor gave.
    pub version: i32,
    /// The text, with the document's own line ends.
    pub text: Rope,
    syntax: Arc<Syntax>,
}

/// A replacement of bytes.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct TextEdit {
    /// Bytes that go.
    pub(crate) bytes: Range<usize>,
    /// Text that comes.
    pub(crate) inserted: String,
}

/// The tree of one text: parsed when first asked for, from the last tree there was.
#[derive(Default)]
struct Syntax {
    tree: OnceLock<Option<SyntaxTree>>,
    /// The last tree, moved along by the edits since.
    moved: OnceLock<SyntaxTree>,
    last_parsed: Option<(SyntaxTree, Vec<UnparsedEdit>)>,
}

#[derive(Clone)]
struct UnparsedEdit {
    before: Rope,
    after: Rope,
    start: usize,
    old_end: usize,
    new_end: usize,
}

impl Snapshot {
    /// A snapshot of `text`. The language is that of the language id, or else of the path.
    pub fn new(
        uri: impl Into<Arc<str>>,
        path: PathBuf,
        language_id: impl Into<Arc<str>>,
        version: i32,
        text: Rope,
    ) -> Self {
        let language_id = language_id.into();
        let language = Language::from_language_id(&language_id).or_else(|| Language::from_path(&path));
        let syntax = Arc::default();
        Self { uri: uri.into(), path, language_id, language, version, text, syntax }
    }

    /// The syntax tree, parsed by the first caller (which may take tens of milliseconds). `None`
    /// without a grammar, and for text that is too long or too slow to parse.
    pub fn syntax_tree(&self) -> Option<&SyntaxTree> {
        let language = self.language?;
        self.syntax.tree.get_or_init(|| self.syntax.parse(language, &self.text)).as_ref()
    }

    /// The syntax tree if this text is parsed, or else that of an earlier text moved along by the edits since, which is
    /// right everywhere but at them. Never parses.
    pub fn known_tree(&self) -> Option<&SyntaxTree> {
        match (self.syntax.tree.get(), &self.syntax.last_parsed) {
            (Some(tree), _) => tree.as_ref(),
            (None, Some((tree, edits))) => Some(self.syntax.moved.get_or_init(|| moved(tree, edits))),
            (None, None) => None,
        }
    }

    /// Replaces bytes of the text, which must be in range and on code point boundaries.
    pub(crate) fn edit(&mut self, edit: &TextEdit) {
        let before = self.text.clone();
        let first = self.text.byte_to_char(edit.bytes.start);
        let last = self.text.byte_to_char(edit.bytes.end);
        self.text.remove(first..last);
        self.text.insert(first, &edit.inserted);
        self.syntax = Arc::new(self.syntax.after(UnparsedEdit {
            before,
            after: self.text.clone(),
            start: edit.bytes.start,
            old_end: edit.bytes.end,
            new_end: edit.bytes.start + edit.inserted.len(),
        }));
    }

    /// Replaces the whole text.
    pub(crate) fn replace_text(&mut self, text: Rope) {
        self.text = text;
        self.syntax = Arc::default();
    }
}

impl Syntax {
    fn parse(&self, language: Language, text: &Rope) -> Option<SyntaxTree> {
        let Some((tree, edits)) = &self.last_parsed else {
            return SyntaxTree::parse(language, text, OPEN_BUDGET);
        };
        let mut tree = moved(tree, edits);
        // Out of time, the old tree moved along by the edits is right everywhere but at them.
        let _ = tree.reparse(text, EDIT_BUDGET);
        Some(tree)
    }

    fn after(&self, edit: UnparsedEdit) -> Self {
        let last_parsed = match (self.tree.get(), &self.last_parsed) {
            (Some(Some(tree)), _) => Some((tree.clone(), vec![edit])),
            (None, Some((tree, edits))) if edits.len() < MAX_UNPARSED_EDITS => {
                let edits = edits.iter().cloned().chain([edit]).collect();
                Some((tree.clone(), edits))
            }
            _ => None,
        };
        Self { last_parsed, ..Self::default() }
    }
}

fn moved(tree: &SyntaxTree, edits: &[UnparsedEdit]) -> SyntaxTree {
    let mut tree = tree.clone();
    for edit in edits {
        tree.edit(&edit.before, &edit.after, edit.start, edit.old_end, edit.new_end);
    }
    tree
}
