//! Ignore files: `.gitignore`, `.ignore`, git's exclude file and the user's global one.
//!
//! One path at a time rather than as a walk, because an open file must be judged too, and one that is
//! not on disk yet. Rules are read once per directory and again after a while.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use ignore::Match;
use ignore::gitignore::{Gitignore, GitignoreBuilder};

/// Files whose change changes what is ignored.
const IGNORE_FILES: [&str; 3] = [".gitignore", ".ignore", "exclude"];

/// How long a directory's rules are believed. An editor that watches files says when they change; not every
/// one does.
const BELIEVED: Duration = Duration::from_secs(10);

/// The rules that hold in one tree of directories.
#[derive(Debug)]
pub(crate) struct IgnoreRules {
    /// What the user opened, ignored or not.
    folder: PathBuf,
    /// The repository's root where there is one above the folder, else the folder: rules above it do not
    /// count.
    top: PathBuf,
    exclude: Gitignore,
    global: Gitignore,
    directories: Mutex<HashMap<PathBuf, Arc<Directory>>>,
}

#[derive(Debug)]
struct Directory {
    read: Instant,
    ignore: Gitignore,
    gitignore: Gitignore,
}

impl IgnoreRules {
    /// The rules for what is in `folder`, a canonical path.
    pub(crate) fn new(folder: &Path) -> Self {
        let root = folder.ancestors().find(|above| above.join(".git").exists());
        let top = root.unwrap_or(folder).to_path_buf();
        let exclude = read(&top, &top.join(".git/info/exclude"));
        let (global, _) = GitignoreBuilder::new(&top).build_global();
        Self { folder: folder.to_path_buf(), top, exclude, global, directories: Mutex::default() }
    }

    /// Whether a change of the file at `path` may change the rules.
    pub(crate) fn is_ignore_file(path: &Path) -> bool {
        path.file_name().is_some_and(|name| IGNORE_FILES.iter().any(|file| name == *file))
    }

    /// Whether `path` is ignored, or a directory between it and the folder is.
    pub(crate) fn is_ignored(&self, path: &Path, is_directory: bool) -> bool {
        let above = path.ancestors().skip(1).take_while(|above| *above != self.folder);
        self.is_entry_ignored(path, is_directory)
            || above.into_iter().any(|directory| self.is_entry_ignored(directory, true))
    }

    /// Whether `path` itself is ignored. The directory it is in is known not to be.
    pub(crate) fn is_entry_ignored(&self, path: &Path, is_directory: bool) -> bool {
        if path == self.top {
            return false;
        }
        let above: Vec<_> = path
            .ancestors()
            .skip(1)
            .take_while(|above| above.starts_with(&self.top))
            .map(|directory| self.directory(directory))
            .collect();
        // The deepest file that says something decides; `.ignore` outranks `.gitignore` as in ripgrep.
        let ignore = above.iter().map(|directory| &directory.ignore);
        let gitignore = above.iter().map(|directory| &directory.gitignore);
        ignore
            .chain(gitignore)
            .chain([&self.exclude, &self.global])
            .map(|rules| rules.matched(path, is_directory))
            .find(|found| !found.is_none())
            .is_some_and(|found| matches!(found, Match::Ignore(_)))
    }

    fn directory(&self, path: &Path) -> Arc<Directory> {
        if let Some(known) = self.lock().get(path).filter(|known| known.read.elapsed() < BELIEVED) {
            return known.clone();
        }
        // Read without the lock: another thread may read the same file, which does no harm.
        let directory = Arc::new(Directory {
            read: Instant::now(),
            ignore: read(path, &path.join(".ignore")),
            gitignore: read(path, &path.join(".gitignore")),
        });
        self.lock().insert(path.to_path_buf(), directory.clone());
        directory
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, Arc<Directory>>> {
        self.directories.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The rules of one file for what is in `root`; none when it cannot be read. A bad line costs itself.
fn read(root: &Path, file: &Path) -> Gitignore {
    if !file.is_file() {
        return Gitignore::empty();
    }
    let mut builder = GitignoreBuilder::new(root);
    builder.add(file);
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}
