//! The index of contexts: what the server tells it, and what it answers.

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::sync::{
    Arc, Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError,
};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use ropey::Rope;

use crate::documents::{Document, Documents};
use crate::ignore_rules::IgnoreRules;
use crate::index::Index;
use crate::options::ContextOptions;
use crate::outlines::Cache;
use crate::query::{Diagnostic, Gathered, Query, Reason, SourceReport};
use crate::selection::Selection;
use crate::sources::{Turn, definitions, diagnostics, open_files, recent_edits, similar};
use crate::worker::{Job, Worker};
use crate::workspace::Workspace;

/// The order in which sources run and get a share of the budget: what helps most for what it costs first.
const BY_WORTH: [Reason; 5] =
    [Reason::RecentEdit, Reason::Diagnostic, Reason::Definition, Reason::OpenFile, Reason::Similar];

/// How long to wait before asking for a lock again.
const LOCK_WAIT: Duration = Duration::from_micros(50);

/// Cross-file context of one set of workspace folders. Dropping it ends its thread.
///
/// All methods can be called from any thread. Those that follow the editor (`opened`, `edited`, `visited`, `closed`,
/// `diagnostics`) take one short lock and touch no file; `saved`, `changed_on_disk` and `set_folders` may look at
/// the file system; [`gather`](Self::gather) reads files and belongs on a thread that may block.
#[derive(Debug)]
pub struct ContextIndex {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// How far the index is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct IndexProgress {
    /// Files looked at by name, in all scans so far.
    pub files_seen: usize,
    /// Files read from disk, in all scans and updates so far.
    pub files_read: usize,
    /// Files in the index.
    pub files: usize,
    /// Chunks in the index.
    pub chunks: usize,
    /// Bytes of memory it takes, estimated.
    pub memory_bytes: usize,
    /// Whether something was left out because a limit was reached.
    pub is_full: bool,
    /// Whether all that was asked for is done.
    pub is_idle: bool,
}

/// What the caller's threads and the indexing thread share. No two of the locks are ever held at once, but
/// for the sender's, which nothing else is taken under.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: ContextOptions,
    workspace: RwLock<Arc<Workspace>>,
    documents: Mutex<Documents>,
    index: RwLock<Index>,
    pub(crate) outlines: Cache,
    progress: Mutex<Progress>,
    idle: Condvar,
    jobs: Mutex<Option<Sender<Job>>>,
    stopped: AtomicBool,
}

#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub(crate) files_seen: usize,
    pub(crate) files_read: usize,
    pub(crate) is_full: bool,
    pending: usize,
    is_scanning: bool,
}

impl ContextIndex {
    /// Follows the files in `folders` and begins to index them in the background.
    pub fn new(folders: Vec<PathBuf>, options: ContextOptions) -> Self {
        let (sender, receiver) = mpsc::channel();
        let shared = Arc::new(Shared {
            options,
            workspace: RwLock::new(Arc::new(Workspace::new(folders))),
            documents: Mutex::default(),
            index: RwLock::default(),
            outlines: Cache::default(),
            progress: Mutex::default(),
            idle: Condvar::new(),
            jobs: Mutex::new(Some(sender)),
            stopped: AtomicBool::new(false),
        });
        let worker = Worker::new(shared.clone(), receiver);
        // Without a thread there is no index; the other sources work all the same.
        let thread = thread::Builder::new().name("context-index".to_owned()).spawn(|| worker.run()).ok();
        shared.send(Job::Scan);
        Self { shared, thread }
    }

    /// Follows other folders from now on. What is indexed and still in one of them is not read again.
    pub fn set_folders(&self, folders: Vec<PathBuf>) {
        self.shared.set_workspace(Workspace::new(folders));
    }

    /// A document was opened.
    pub fn opened(&self, path: &Path, text: Rope) {
        let left = self.shared.documents().opened(path, text);
        self.shared.outlines.forget_targets();
        self.shared.left(left);
        self.shared.send(Job::Update(path.to_path_buf()));
    }

    /// `bytes` of `before` were replaced by `inserted_len` bytes, which gave `after`. Called on the way of a
    /// keystroke: shares the ropes and reads no text.
    pub fn edited(&self, path: &Path, before: &Rope, after: &Rope, bytes: Range<usize>, inserted_len: usize) {
        let left = self.shared.documents().edited(path, before, after, bytes, inserted_len);
        self.shared.left(left);
    }

    /// The user is at `byte` of a document.
    pub fn visited(&self, path: &Path, byte: usize) {
        let left = self.shared.documents().visited(path, byte);
        self.shared.left(left);
    }

    /// A document was saved.
    pub fn saved(&self, path: &Path) {
        self.shared.documents().saved(path);
        self.changed_on_disk(path);
    }

    /// A file or directory was made, changed or deleted, by whomever.
    pub fn changed_on_disk(&self, path: &Path) {
        self.shared.outlines.forget_targets();
        if IgnoreRules::is_ignore_file(path) {
            let workspace = self.shared.workspace().reread();
            self.shared.set_workspace(workspace);
        } else {
            self.shared.send(Job::Update(path.to_path_buf()));
        }
    }

    /// A document was closed.
    pub fn closed(&self, path: &Path) {
        self.shared.documents().closed(path);
        self.shared.send(Job::Update(path.to_path_buf()));
    }

    /// What other tools say about an open document, in place of what they said before.
    pub fn diagnostics(&self, path: &Path, diagnostics: Vec<Diagnostic>) {
        self.shared.documents().diagnostics(path, diagnostics);
    }

    /// How far the index is.
    pub fn progress(&self) -> IndexProgress {
        let (files, chunks, memory_bytes) = {
            let index = self.shared.index();
            (index.len(), index.chunk_count(), index.memory_bytes())
        };
        let progress = self.shared.progress_mut();
        IndexProgress {
            files_seen: progress.files_seen,
            files_read: progress.files_read,
            files,
            chunks,
            memory_bytes,
            is_full: progress.is_full,
            is_idle: progress.is_idle(),
        }
    }

    /// Waits until all that was asked for is indexed. False when `timeout` passes first.
    pub fn wait_until_idle(&self, timeout: Duration) -> bool {
        let progress = self.shared.progress_mut();
        let waited = self.shared.idle.wait_timeout_while(progress, timeout, |progress| !progress.is_idle());
        waited.is_ok_and(|(_, timeout)| !timeout.timed_out())
    }

    /// The context for a place. What is not done by `deadline`, or by a source's own, is left out and reported as
    /// late; a single read of a file is not interrupted.
    ///
    /// Sources run in the order of their worth, each within its own size and what is left of the query's; the chunks
    /// come in the order of [`Reason`].
    pub fn gather(&self, query: &Query<'_>, deadline: Instant) -> Gathered {
        let shared = &*self.shared;
        let documents = shared.documents().snapshot();
        let workspace = shared.workspace();
        let mut selection = Selection::new(query);
        let mut report = Vec::with_capacity(BY_WORTH.len());
        for reason in BY_WORTH {
            let options = shared.options.source(reason);
            let started = Instant::now();
            let until = started.checked_add(options.deadline).unwrap_or(deadline).min(deadline);
            let mut turn = Turn::new(&mut selection, until, options.max_bytes);
            if options.enabled && turn.in_time() {
                match reason {
                    Reason::Definition => definitions::offer(&mut turn, query, &documents, shared),
                    Reason::Similar => similar::offer(&mut turn, query, &documents, shared),
                    Reason::OpenFile => open_files::offer(&mut turn, query, &documents, &workspace),
                    Reason::RecentEdit => recent_edits::offer(&mut turn, query, &documents, &workspace),
                    Reason::Diagnostic => diagnostics::offer(&mut turn, query, &documents, &workspace),
                }
            }
            report.push(SourceReport {
                reason,
                enabled: options.enabled,
                chunks: turn.chunks,
                bytes: turn.bytes,
                duplicates: turn.duplicates,
                late: turn.late,
                elapsed: started.elapsed(),
            });
        }
        report.sort_by_key(|source| source.reason);
        Gathered { chunks: selection.into_chunks(), report }
    }
}

impl Drop for ContextIndex {
    fn drop(&mut self) {
        self.shared.stopped.store(true, Ordering::Relaxed);
        lock(&self.shared.jobs).take();
        if let Some(thread) = self.thread.take() {
            // A panic there has been reported by its thread; there is nothing left to save.
            let _ = thread.join();
        }
    }
}

impl Shared {
    pub(crate) fn is_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// The folders and rules of now.
    pub(crate) fn workspace(&self) -> Arc<Workspace> {
        self.workspace.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_workspace(&self, workspace: Workspace) {
        *self.workspace.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(workspace);
        self.outlines.forget_targets();
        self.send(Job::Scan);
    }

    /// Text and version of an open document.
    pub(crate) fn open_text(&self, path: &Path) -> Option<(Rope, u64)> {
        let of = |document: &Document| (document.text.clone(), document.version);
        self.documents().open(path).map(of)
    }

    pub(crate) fn index(&self) -> RwLockReadGuard<'_, Index> {
        self.index.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index, unless the indexing thread holds it until then.
    pub(crate) fn index_by(&self, until: Instant) -> Option<RwLockReadGuard<'_, Index>> {
        loop {
            match self.index.try_read() {
                Ok(index) => return Some(index),
                Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
                Err(TryLockError::WouldBlock) if Instant::now() >= until => return None,
                Err(TryLockError::WouldBlock) => thread::sleep(LOCK_WAIT),
            }
        }
    }

    pub(crate) fn index_mut(&self) -> RwLockWriteGuard<'_, Index> {
        self.index.write().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn progress_mut(&self) -> MutexGuard<'_, Progress> {
        lock(&self.progress)
    }

    /// Gives the indexing thread something to do.
    pub(crate) fn send(&self, job: Job) {
        self.progress_mut().pending += 1;
        let sent = lock(&self.jobs).as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if !sent {
            self.progress_mut().pending -= 1;
        }
    }

    fn left(&self, path: Option<PathBuf>) {
        if let Some(path) = path {
            self.send(Job::Left(path));
        }
    }

    /// The indexing thread is about to read a document that was left.
    pub(crate) fn reading(&self, path: &Path) {
        self.documents().reading(path);
    }

    /// Called by the indexing thread after each piece of work.
    pub(crate) fn note_progress(&self, job_done: bool, is_scanning: bool) {
        let mut progress = self.progress_mut();
        progress.pending -= usize::from(job_done);
        progress.is_scanning = is_scanning;
        if progress.is_idle() {
            self.idle.notify_all();
        }
    }

    fn documents(&self) -> MutexGuard<'_, Documents> {
        lock(&self.documents)
    }
}

impl Progress {
    fn is_idle(&self) -> bool {
        self.pending == 0 && !self.is_scanning
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
