//! What the editor has open, and what it had.
//!
//! All of it sits under one lock that edits take, so nothing here reads text: ropes are shared, not
//! copied, and sources work on a [`Snapshot`] after the lock is released.

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};

use ropey::Rope;

use crate::edit_log::EditLog;
use crate::query::Diagnostic;

/// Closed documents whose changes are remembered.
const MAX_CLOSED: usize = 32;

/// One document.
#[derive(Clone, Debug)]
pub(crate) struct Document {
    pub(crate) text: Rope,
    /// Where the user last was in it, in bytes.
    pub(crate) place: usize,
    /// When, by the clock of [`Documents`].
    pub(crate) visited: u64,
    /// Changes with every edit.
    pub(crate) version: u64,
    pub(crate) is_open: bool,
    pub(crate) log: EditLog,
    pub(crate) diagnostics: Vec<Diagnostic>,
    saved_version: u64,
    /// Whether it was left with unsaved changes that are not [read](Documents::reading) yet.
    is_left: bool,
}

/// Documents by the path that the editor names them by.
#[derive(Debug, Default)]
pub(crate) struct Documents {
    /// Counts events; a version and a time in one.
    clock: u64,
    by_path: HashMap<PathBuf, Document>,
    /// The one visited last.
    active: Option<PathBuf>,
}

/// Documents as of one moment, most recently visited first.
pub(crate) type Snapshot = Vec<(PathBuf, Document)>;

impl Documents {
    /// Notes that a document was opened. Returns a path that is now left for this one, with unsaved changes and for the first
    /// time since it was [read](Self::reading).
    pub(crate) fn opened(&mut self, path: &Path, text: Rope) -> Option<PathBuf> {
        let now = self.tick();
        let document = self.by_path.entry(path.to_path_buf()).or_insert_with(|| Document::new(text.clone()));
        // A file that changed on disk while it was closed: those changes are not the user's.
        if document.text != text {
            document.log = EditLog::new(text.clone());
            document.text = text;
        }
        document.is_open = true;
        document.version = now;
        document.saved_version = now;
        self.visit(path, None)
    }

    /// Notes an edit. Returns a path that is now left for this one, with unsaved changes and for the first
    /// time since it was [read](Self::reading).
    pub(crate) fn edited(
        &mut self,
        path: &Path,
        before: &Rope,
        after: &Rope,
        bytes: Range<usize>,
        inserted_len: usize,
    ) -> Option<PathBuf> {
        let now = self.tick();
        if !self.by_path.contains_key(path) {
            self.by_path.insert(path.to_path_buf(), Document::new(before.clone()));
        }
        let document = self.by_path.get_mut(path)?;
        if document.text.len_bytes() != before.len_bytes() {
            // An edit was missed: what changed before is not known.
            document.log = EditLog::new(before.clone());
        }
        document.log.edited(before, after, &bytes, now);
        document.text = after.clone();
        document.is_open = true;
        document.version = now;
        self.visit(path, Some(bytes.start.saturating_add(inserted_len)))
    }

    /// Notes that the user is at `byte`. Returns a path that is now left for this one, as [`opened`](Self::opened) does.
    pub(crate) fn visited(&mut self, path: &Path, byte: usize) -> Option<PathBuf> {
        self.visit(path, Some(byte))
    }

    fn visit(&mut self, path: &Path, byte: Option<usize>) -> Option<PathBuf> {
        let now = self.tick();
        let document = self.by_path.get_mut(path)?;
        document.visited = now;
        if let Some(byte) = byte {
            document.place = byte.min(document.text.len_bytes());
        }
        if self.active.as_deref() == Some(path) {
            return None;
        }
        let left = self.active.replace(path.to_path_buf())?;
        let document = self.by_path.get_mut(&left).filter(|document| document.is_dirty())?;
        let was_left = std::mem::replace(&mut document.is_left, true);
        (!was_left).then_some(left)
    }

    /// A document that was left is about to be read: when it is left again, that is news again.
    pub(crate) fn reading(&mut self, path: &Path) {
        if let Some(document) = self.by_path.get_mut(path) {
            document.is_left = false;
        }
    }

    pub(crate) fn saved(&mut self, path: &Path) {
        if let Some(document) = self.by_path.get_mut(path) {
            document.saved_version = document.version;
        }
    }

    pub(crate) fn closed(&mut self, path: &Path) {
        let Some(document) = self.by_path.get_mut(path) else {
            return;
        };
        document.is_open = false;
        document.diagnostics.clear();
        // Changes that were thrown away are no changes.
        if document.is_dirty() || document.log.is_empty() {
            self.by_path.remove(path);
        }
        self.forget_closed();
    }

    pub(crate) fn diagnostics(&mut self, path: &Path, diagnostics: Vec<Diagnostic>) {
        if let Some(document) = self.by_path.get_mut(path) {
            document.diagnostics = diagnostics;
        }
    }

    /// An open document.
    pub(crate) fn open(&self, path: &Path) -> Option<&Document> {
        self.by_path.get(path).filter(|document| document.is_open)
    }

    pub(crate) fn snapshot(&self) -> Snapshot {
        let entries = self.by_path.iter().map(|(path, document)| (path.clone(), document.clone()));
        let mut snapshot: Snapshot = entries.collect();
        snapshot.sort_by_key(|(_, document)| std::cmp::Reverse(document.visited));
        snapshot
    }

    fn forget_closed(&mut self) {
        let closed = self.by_path.iter().filter(|(_, document)| !document.is_open);
        let mut closed: Vec<_> = closed.map(|(path, document)| (document.visited, path.clone())).collect();
        closed.sort_unstable();
        let surplus = closed.len().saturating_sub(MAX_CLOSED);
        for (_, path) in closed.into_iter().take(surplus) {
            self.by_path.remove(&path);
        }
    }

    fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }
}

impl Document {
    fn new(text: Rope) -> Self {
        Self {
            log: EditLog::new(text.clone()),
            text,
            place: 0,
            visited: 0,
            version: 0,
            saved_version: 0,
            is_open: true,
            is_left: false,
            diagnostics: Vec::new(),
        }
    }

    /// Whether it has changes that are not on disk.
    pub(crate) fn is_dirty(&self) -> bool {
        self.version != self.saved_version
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edit(documents: &mut Documents, path: &str, insert: &str) -> Option<PathBuf> {
        let path = Path::new(path);
        let before = documents.by_path.get(path).map(|document| document.text.clone()).unwrap_or_default();
        let mut after = before.clone();
        after.insert(0, insert);
        documents.edited(path, &before, &after, 0..0, insert.len())
    }

    #[test]
    fn order_and_places_follow_the_user() {
        let mut documents = Documents::default();
        documents.opened(Path::new("/a"), Rope::from_str("aaa"));
        documents.opened(Path::new("/b"), Rope::from_str("bbb"));
        assert_eq!(edit(&mut documents, "/a", "x"), None, "b has no changes");
        assert_eq!(documents.visited(Path::new("/b"), 99), Some("/a".into()), "a has");
        let snapshot = documents.snapshot();
        let paths: Vec<_> = snapshot.iter().map(|(path, document)| (path.to_str(), document.place)).collect();
        assert_eq!(paths, [(Some("/b"), 3), (Some("/a"), 1)]);
        documents.visited(Path::new("/a"), 0);
        assert_eq!(documents.visited(Path::new("/b"), 0), None, "nobody has read it yet");
        documents.reading(Path::new("/a"));
        documents.visited(Path::new("/a"), 0);
        assert_eq!(documents.visited(Path::new("/b"), 0), Some("/a".into()), "left again");
        documents.reading(Path::new("/a"));
        documents.saved(Path::new("/a"));
        documents.visited(Path::new("/a"), 0);
        assert_eq!(documents.visited(Path::new("/b"), 0), None, "saved");
    }

    #[test]
    fn changes_that_were_saved_outlive_the_document() {
        let mut documents = Documents::default();
        for path in ["/saved", "/dropped", "/untouched"] {
            documents.opened(Path::new(path), Rope::from_str("text\n"));
        }
        edit(&mut documents, "/saved", "new\n");
        edit(&mut documents, "/dropped", "new\n");
        documents.saved(Path::new("/saved"));
        for path in ["/saved", "/dropped", "/untouched"] {
            documents.closed(Path::new(path));
        }
        let left: Vec<_> = documents.snapshot().into_iter().map(|(path, _)| path).collect();
        assert_eq!(left, [PathBuf::from("/saved")]);
        assert!(documents.open(Path::new("/saved")).is_none());
        documents.opened(Path::new("/saved"), Rope::from_str("something else\n"));
        assert!(documents.snapshot()[0].1.log.is_empty(), "changed on disk since");
    }

    #[test]
    fn few_closed_documents_are_kept() {
        let mut documents = Documents::default();
        for n in 0..100 {
            let path = format!("/{n}");
            documents.opened(Path::new(&path), Rope::from_str("text\n"));
            edit(&mut documents, &path, "x");
            documents.saved(Path::new(&path));
            documents.closed(Path::new(&path));
        }
        assert_eq!(documents.snapshot().len(), MAX_CLOSED);
    }
}
