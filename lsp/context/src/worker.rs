//! The thread that keeps the index: walks the workspace once, and after that reads what changed.
//!
//! It works in slices of a few milliseconds with a rest after each, and takes no lock while it reads. Locks are taken
//! to store one file's result.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use redstart_syntax::language::Language;

use crate::blocks;
use crate::context::Shared;
use crate::files::{self, Family};
use crate::imports;
use crate::index::{IndexedChunk, Stamp};
use crate::secret_lines;
use crate::words::terms;
use crate::workspace::Workspace;

/// Something to do.
#[derive(Debug)]
pub(crate) enum Job {
    /// Bring the whole index up to date.
    Scan,
    /// Bring one file up to date, or what is in a directory.
    Update(PathBuf),
    /// The same for a document that the user left with changes: after a while, since it may be for a moment only.
    Left(PathBuf),
    /// Make the outline of an admitted file.
    Outline(PathBuf),
}

/// The thread's state.
pub(crate) struct Worker {
    shared: Arc<Shared>,
    jobs: Receiver<Job>,
    scan: Option<Scan>,
    /// Documents that were left, and when it is their turn; the oldest first.
    left: VecDeque<(Instant, PathBuf)>,
    /// Counts scans, to tell files that the last one did not find.
    scans: u64,
    /// Time worked since the last rest.
    worked: Duration,
}

/// The index that the thread worked for is gone.
struct Disconnected;

/// A walk that is under way.
struct Scan {
    workspace: Arc<Workspace>,
    /// What is left, in reverse: directories and files, with the folder they are in.
    stack: Vec<(usize, PathBuf, bool)>,
    files_read: usize,
}

impl Worker {
    pub(crate) fn new(shared: Arc<Shared>, jobs: Receiver<Job>) -> Self {
        Self { shared, jobs, scan: None, left: VecDeque::new(), scans: 0, worked: Duration::ZERO }
    }

    /// Runs until the other end of the channel is gone or the index is dropped.
    pub(crate) fn run(mut self) {
        (self.shared.options.index.on_thread_start)();
        secret_lines::prepare();
        while let Ok(job) = self.next() {
            if self.shared.is_stopped() {
                return;
            }
            let started = Instant::now();
            let is_done = job.as_ref().is_some_and(|job| !matches!(job, Job::Left(_)));
            match job {
                Some(Job::Scan) => self.start_scan(),
                Some(Job::Update(path)) => self.update(&path),
                Some(Job::Left(path)) => {
                    self.left.push_back((started + self.shared.options.index.left, path));
                }
                Some(Job::Outline(path)) => self.prepare_outline(&path),
                None => self.scan_on(started),
            }
            self.sweep();
            self.shared.note_progress(is_done, self.scan.is_some());
            self.rest(started.elapsed());
        }
    }

    /// The next job; none while there is something to scan, or when it is time to look again. Fails when the index is
    /// gone.
    fn next(&mut self) -> Result<Option<Job>, Disconnected> {
        let now = Instant::now();
        if let Some((_, path)) = self.left.pop_front_if(|(due, _)| *due <= now) {
            self.shared.reading(&path);
            return Ok(Some(Job::Update(path)));
        }
        if self.scan.is_some() {
            return match self.jobs.try_recv() {
                Ok(job) => Ok(Some(job)),
                Err(TryRecvError::Empty) => Ok(None),
                Err(TryRecvError::Disconnected) => Err(Disconnected),
            };
        }
        let Some((due, _)) = self.left.front() else {
            return self.jobs.recv().map(Some).map_err(|_| Disconnected);
        };
        match self.jobs.recv_timeout(*due - now) {
            Ok(job) => Ok(Some(job)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(Disconnected),
        }
    }

    fn rest(&mut self, worked: Duration) {
        self.worked += worked;
        if self.worked >= self.shared.options.index.work_slice {
            self.worked = Duration::ZERO;
            thread::sleep(self.shared.options.index.rest);
        }
    }

    fn start_scan(&mut self) {
        self.shared.progress_mut().is_full = false;
        self.scans += 1;
        let workspace = self.shared.workspace();
        let folders = workspace.folders().iter().enumerate().rev();
        let stack = folders.map(|(at, folder)| (at, folder.root.clone(), true)).collect();
        self.scan = Some(Scan { workspace, stack, files_read: 0 });
    }

    /// Walks on for a slice.
    fn scan_on(&mut self, started: Instant) {
        let Some(mut scan) = self.scan.take() else {
            return;
        };
        while let Some((folder, path, is_directory)) = scan.stack.pop() {
            if is_directory {
                scan.list(folder, &path);
            } else {
                self.scan_file(&mut scan, &path);
            }
            if started.elapsed() >= self.shared.options.index.work_slice {
                self.scan = Some(scan);
                return;
            }
        }
        self.shared.index_mut().remove_unseen(self.scans);
    }

    fn scan_file(&mut self, scan: &mut Scan, path: &Path) {
        self.shared.progress_mut().files_seen += 1;
        if scan.files_read >= self.shared.options.index.max_files {
            self.shared.progress_mut().is_full = true;
            return;
        }
        let known = self.shared.index().stamp(path);
        let same_on_disk = known.is_some() && known == disk_stamp(path);
        let open = || self.shared.open_text(path).map(|(_, version)| Stamp::Open { version });
        if same_on_disk || matches!(known, Some(Stamp::Open { .. })) && known == open() {
            self.shared.index_mut().mark(path, self.scans);
            scan.files_read += 1;
        } else if self.index_file(path, path) {
            scan.files_read += 1;
        }
    }

    /// Brings what is at `path` up to date, by the name the editor gave.
    fn update(&mut self, path: &Path) {
        if path.is_dir() {
            // A directory that came or was renamed: unchanged files cost a look each.
            self.start_scan();
            return;
        }
        let real = self.shared.workspace().admit(path).map(|file| file.real);
        let indexed = real.as_ref().is_some_and(|real| {
            let name = real.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            files::is_source_name(name) && self.index_file(path, real)
        });
        if !indexed {
            let real = real.as_deref().unwrap_or(path);
            let mut index = self.shared.index_mut();
            index.remove(real);
            index.remove_under(real);
        }
        if let Some(real) = real {
            self.prepare_imports(path, &real);
        }
    }

    /// Makes the outlines of what an open file imports, so that its first prompt need not wait for them.
    fn prepare_imports(&self, named: &Path, real: &Path) {
        let workspace = self.shared.workspace();
        let language = Language::from_path(real);
        let (Some(language), Some(root), Some((text, _))) =
            (language, workspace.root_of(real), self.shared.open_text(named))
        else {
            return;
        };
        let statements = imports::statements(&text, language);
        for target in self.shared.outlines.targets_of(language, statements, real, root).iter() {
            if let Some(file) = workspace.admit(&target.file) {
                // One at a time, with the rests between jobs.
                self.shared.send(Job::Outline(file.real));
            }
        }
    }

    fn prepare_outline(&self, real: &Path) {
        let limit = self.shared.options.index.max_file_bytes;
        self.shared.outlines.prepare(real, self.shared.open_text(real), limit);
    }

    /// Reads a file and stores what is in it. False when it does not belong in the index.
    fn index_file(&mut self, named: &Path, real: &Path) -> bool {
        let Some(family) = Family::of(real) else {
            return false;
        };
        let limits = &self.shared.options.index;
        if self.is_full_for(real) {
            self.shared.progress_mut().is_full = true;
            return false;
        }
        let (bytes, stamp) = match self.shared.open_text(named) {
            Some((text, version)) if text.len_bytes() as u64 <= limits.max_file_bytes => {
                (text.to_string().into_bytes(), Stamp::Open { version })
            }
            Some(_) => return false,
            None => {
                // The stamp is from before the read: a write in between is noticed later.
                let Some(stamp @ Stamp::Disk { bytes, .. }) = disk_stamp(real) else {
                    return false;
                };
                if bytes > limits.max_file_bytes {
                    return false;
                }
                self.shared.progress_mut().files_read += 1;
                match fs::read(real) {
                    Ok(bytes) => (bytes, stamp),
                    Err(_) => return false,
                }
            }
        };
        let Some(text) = files::source_text(&bytes) else {
            return false;
        };
        let chunks = chunks_of(text);
        self.shared.index_mut().put(real, stamp, family, chunks, self.scans);
        true
    }

    /// Whether there is no room for a file. One that is known may be replaced, which changes little.
    fn is_full_for(&self, path: &Path) -> bool {
        let limits = &self.shared.options.index;
        let index = self.shared.index();
        let is_new = index.stamp(path).is_none();
        is_new && (index.memory_bytes() >= limits.max_memory_bytes || index.len() >= limits.max_files)
    }

    fn sweep(&self) {
        if self.shared.index().wants_sweep() {
            // Only this thread changes the index, so nothing is lost between the two locks.
            let swept = self.shared.index().swept();
            *self.shared.index_mut() = swept;
        }
    }
}

impl Scan {
    /// Puts the entries of a directory on the stack, in reverse order of their names.
    fn list(&mut self, folder_at: usize, directory: &Path) {
        let Some(folder) = self.workspace.folders().get(folder_at) else {
            return;
        };
        let Ok(entries) = fs::read_dir(directory) else {
            return;
        };
        let entries = entries.flatten().filter_map(|entry| {
            let kind = entry.file_type().ok()?;
            let name = entry.file_name();
            let name = name.to_str()?;
            let wanted = if kind.is_dir() {
                files::is_source_directory(name)
            } else {
                kind.is_file() && (files::is_source_name(name) || name == CACHE_MARK)
            };
            wanted.then(|| (folder_at, entry.path(), kind.is_dir()))
        });
        let mut entries: Vec<_> = entries.collect();
        if directory != folder.root && entries.iter().any(|(_, path, _)| path.ends_with(CACHE_MARK)) {
            return;
        }
        entries.retain(|(_, path, is_directory)| {
            !path.ends_with(CACHE_MARK) && folder.admits_entry(path, *is_directory)
        });
        entries.sort_by(|a, b| b.1.cmp(&a.1));
        self.stack.extend(entries);
    }
}

/// A directory with this file in it holds what can be made again (bford.info/cachedir).
const CACHE_MARK: &str = "CACHEDIR.TAG";

/// What is on disk at `path`; `None` when it is no file.
pub(crate) fn disk_stamp(path: &Path) -> Option<Stamp> {
    let metadata = fs::symlink_metadata(path).ok().filter(fs::Metadata::is_file)?;
    Some(Stamp::Disk { modified: metadata.modified().ok()?, bytes: metadata.len() })
}

fn chunks_of(text: &str) -> Vec<IndexedChunk> {
    let lines: Vec<&str> = text.split_inclusive('\n').collect();
    let mut starts = vec![0];
    starts.extend(lines.iter().scan(0, |end, line| {
        *end += line.len();
        Some(*end)
    }));
    let chunks = blocks::chunks(&lines).into_iter().map(|lines| starts[lines.start]..starts[lines.end]);
    chunks.map(|bytes| (bytes.clone(), terms(&text[bytes]))).collect()
}
