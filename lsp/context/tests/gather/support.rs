//! A workspace to gather from.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use redstart_context::{Chunk, ContextIndex, ContextOptions, Gathered, Query, Reason};
use redstart_syntax::language::Language;
use ropey::Rope;
use tempfile::TempDir;

pub(crate) const LONG: Duration = Duration::from_secs(60);

/// A directory with files and an index of it.
pub(crate) struct Bench {
    pub(crate) root: TempDir,
    pub(crate) index: ContextIndex,
}

/// Options without deadlines, so that a slow machine sees the same as a fast one.
pub(crate) fn patient() -> ContextOptions {
    let mut options = ContextOptions::default();
    for reason in Reason::ALL {
        options.source_mut(reason).deadline = LONG;
    }
    options.index.rest = Duration::ZERO;
    options.index.left = Duration::from_millis(5);
    options
}

/// Writes files below a directory.
pub(crate) fn write(root: &Path, files: &[(&str, &str)]) {
    for (path, text) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().expect("in the root")).expect("directory");
        fs::write(path, text).expect("file");
    }
}

impl Bench {
    pub(crate) fn new(files: &[(&str, &str)]) -> Self {
        Self::with(files, patient())
    }

    pub(crate) fn with(files: &[(&str, &str)], options: ContextOptions) -> Self {
        let root = tempfile::tempdir().expect("a temporary directory");
        write(root.path(), files);
        let index = ContextIndex::new(vec![root.path().to_path_buf()], options);
        let bench = Self { root, index };
        bench.settle();
        bench
    }

    pub(crate) fn settle(&self) {
        assert!(self.index.wait_until_idle(LONG), "indexed");
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.path().join(path)
    }

    pub(crate) fn read(&self, path: &str) -> Rope {
        Rope::from_str(&fs::read_to_string(self.path(path)).expect("file"))
    }

    /// Opens a file with what is on disk.
    pub(crate) fn open(&self, path: &str) -> Rope {
        let text = self.read(path);
        self.index.opened(&self.path(path), text.clone());
        text
    }

    /// Opens a file with a text that is not on disk.
    pub(crate) fn open_text(&self, path: &str, text: &str) {
        self.index.opened(&self.path(path), Rope::from_str(text));
    }

    /// Replaces `old` in an open document, of which `text` is the text, and returns the new one.
    pub(crate) fn edit(&self, path: &str, text: &Rope, old: &str, new: &str) -> Rope {
        let start = text.to_string().find(old).expect("it is there");
        let bytes = start..start + old.len();
        let mut after = text.clone();
        let at = after.byte_to_char(start);
        after.remove(at..after.byte_to_char(bytes.end));
        after.insert(at, new);
        self.index.edited(&self.path(path), text, &after, bytes, new.len());
        after
    }

    /// Gathers for the first `|` in `marked`, which is left out of the text; the whole text is in the prompt.
    pub(crate) fn gather(&self, path: &str, marked: &str) -> Gathered {
        let caret = marked.find('|').expect("a caret");
        let text = marked.replacen('|', "", 1);
        self.gather_at(path, &Rope::from_str(&text), caret, 0..text.len(), 100_000)
    }

    pub(crate) fn gather_at(
        &self,
        path: &str,
        text: &Rope,
        caret: usize,
        window: Range<usize>,
        budget_bytes: usize,
    ) -> Gathered {
        self.settle();
        let path = self.path(path);
        let language = Language::from_path(&path);
        let query = Query { path: &path, language, text, caret, window, budget_bytes };
        self.index.gather(&query, Instant::now() + LONG)
    }

    /// The chunks of one source, as `path: text`.
    pub(crate) fn of(&self, reason: Reason, path: &str, marked: &str) -> Vec<String> {
        chunks_of(&self.gather(path, marked), reason)
    }
}

pub(crate) fn chunks_of(gathered: &Gathered, reason: Reason) -> Vec<String> {
    let chunks = gathered.chunks.iter().filter(|chunk| chunk.reason == reason);
    chunks.map(|Chunk { path, text, .. }| format!("{path}: {text}")).collect()
}

/// All text of an answer.
pub(crate) fn all_text(gathered: &Gathered) -> String {
    gathered.chunks.iter().map(|chunk| format!("{}\n{}", chunk.path, chunk.text)).collect()
}
