//! The workspace folders, and which files may become context.
//!
//! Every file passes [`Workspace::admit`] before its text is used, whichever source wants it: files on
//! disk each time they are read, open files each time they are offered. So a link that is bent to
//! somewhere else, or a rule that was added, counts from then on.

use std::path::{Path, PathBuf};

use crate::ignore_rules::IgnoreRules;
use crate::secret_files::is_secret_file;

/// Workspace folders and their ignore rules, as of one moment.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// As the caller named them.
    named: Vec<PathBuf>,
    folders: Vec<Folder>,
}

#[derive(Debug)]
pub(crate) struct Folder {
    /// Canonical path.
    pub(crate) root: PathBuf,
    pub(crate) rules: IgnoreRules,
}

/// A file that may become context.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Admitted {
    /// Canonical path: the one to read from.
    pub(crate) real: PathBuf,
    /// Relative to the innermost folder, with `/` between parts.
    pub(crate) relative: String,
}

impl Workspace {
    /// Folders that do not exist are left out.
    pub(crate) fn new(folders: Vec<PathBuf>) -> Self {
        let mut found: Vec<Folder> = Vec::new();
        for root in folders.iter().filter_map(|folder| folder.canonicalize().ok()) {
            if root.is_dir() && found.iter().all(|folder| folder.root != root) {
                found.push(Folder { rules: IgnoreRules::new(&root), root });
            }
        }
        // Innermost first, so that the first that holds a file is the one to name it by.
        found.sort_by(|a, b| {
            let depth = |folder: &Folder| folder.root.components().count();
            depth(b).cmp(&depth(a)).then_with(|| a.root.cmp(&b.root))
        });
        Self { named: folders, folders: found }
    }

    /// The same folders with ignore rules read anew.
    pub(crate) fn reread(&self) -> Self {
        Self::new(self.named.clone())
    }

    pub(crate) fn folders(&self) -> &[Folder] {
        &self.folders
    }

    /// The innermost folder that holds a canonical path.
    pub(crate) fn root_of(&self, real: &Path) -> Option<&Path> {
        self.folders.iter().map(|folder| folder.root.as_path()).find(|root| real.starts_with(root))
    }

    /// The file at `path`, if it may become context: it lies in a workspace folder, also after
    /// following links, no ignore file names it, and its name is not one that secrets have.
    ///
    /// A file that does not exist yet is judged by its directory.
    pub(crate) fn admit(&self, path: &Path) -> Option<Admitted> {
        let real = resolve(path)?;
        let folder = self.folders.iter().find(|folder| real.starts_with(&folder.root))?;
        let relative = real.strip_prefix(&folder.root).ok()?;
        let given = path.file_name().map(Path::new)?;
        if is_secret_file(&real) || is_secret_file(given) || folder.rules.is_ignored(&real, false) {
            return None;
        }
        Some(Admitted { relative: slashed(relative)?, real })
    }
}

impl Folder {
    /// Whether an entry of an admitted directory may be walked into or read. Links are not followed:
    /// what they point to in the workspace is found where it is.
    pub(crate) fn admits_entry(&self, path: &Path, is_directory: bool) -> bool {
        // Some file in a directory, to judge the directory's own name.
        let secret = if is_directory { is_secret_file(&path.join("file")) } else { is_secret_file(path) };
        !secret && !self.rules.is_entry_ignored(path, is_directory)
    }
}

/// The canonical path; of a file that is not on disk, its directory's with the name added.
fn resolve(path: &Path) -> Option<PathBuf> {
    if !path.is_absolute() {
        return None;
    }
    // A link that points to nothing would be judged by its own name.
    match path.canonicalize() {
        Ok(real) => Some(real),
        Err(_) if path.is_symlink() => None,
        Err(_) => Some(path.parent()?.canonicalize().ok()?.join(path.file_name()?)),
    }
}

/// A relative path with `/` between parts; `None` when it is not Unicode.
pub(crate) fn slashed(relative: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = relative.components().map(|part| part.as_os_str().to_str()).collect();
    parts.map(|parts| parts.join("/"))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn workspace(files: &[(&str, &str)]) -> (tempfile::TempDir, Workspace) {
        let root = tempfile::tempdir().expect("a temporary directory");
        for (path, text) in files {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().expect("in the root")).expect("directory");
            fs::write(path, text).expect("file");
        }
        let workspace = Workspace::new(vec![root.path().to_path_buf()]);
        (root, workspace)
    }

    #[test]
    fn ignore_files_count_with_their_precedence() {
        let (root, workspace) = workspace(&[
            (".gitignore", "build/\n*.log\n/only_here.py\n"),
            (".ignore", "notes.py\n!kept.log\n"),
            ("sub/.gitignore", "local.py\n!deep.log\n"),
            (".git/info/exclude", "mine.py\n"),
            ("a.py", ""),
            ("build/x/y.py", ""),
            ("kept.log", ""),
            ("sub/only_here.py", ""),
            ("sub/local.py", ""),
        ]);
        let admitted = |path: &str| workspace.admit(&root.path().join(path)).map(|file| file.relative);
        for path in ["a.py", "kept.log", "sub/only_here.py", "sub/deep.log", "local.py"] {
            assert_eq!(admitted(path).as_deref(), Some(path), "{path}");
        }
        for path in
            ["build/x/y.py", "a.log", "only_here.py", "notes.py", "sub/notes.py", "sub/local.py", "mine.py"]
        {
            assert_eq!(admitted(path), None, "{path}");
        }
    }

    #[test]
    fn rules_of_the_repository_above_the_folder_count() {
        let (root, _) = workspace(&[(".git/HEAD", ""), (".gitignore", "out/\n"), ("app/out/x.py", "")]);
        let inner = Workspace::new(vec![root.path().join("app")]);
        assert!(inner.admit(&root.path().join("app/out/x.py")).is_none());
        assert!(inner.admit(&root.path().join("app/new.py")).is_some(), "not on disk yet");
        assert!(inner.admit(&root.path().join("other/x.py")).is_none(), "outside");
    }

    #[test]
    fn a_folder_that_is_ignored_itself_was_opened_on_purpose() {
        let (root, _) = workspace(&[(".git/HEAD", ""), (".gitignore", "out/\n*.log\n"), ("out/x.py", "")]);
        let inner = Workspace::new(vec![root.path().join("out")]);
        assert!(inner.admit(&root.path().join("out/x.py")).is_some());
        assert!(inner.admit(&root.path().join("out/x.log")).is_none());
    }

    #[test]
    fn the_innermost_folder_names_a_file() {
        let (root, _) = workspace(&[("app/lib/x.py", "")]);
        let both = Workspace::new(vec![root.path().to_path_buf(), root.path().join("app")]);
        let file = both.admit(&root.path().join("app/lib/x.py")).expect("admitted");
        assert_eq!(file.relative, "lib/x.py");
    }

    #[cfg(unix)]
    #[test]
    fn links_do_not_lead_out_or_to_secrets() {
        use std::os::unix::fs::symlink;
        let (outside, _) = workspace(&[("x.py", ""), ("dir/y.py", "")]);
        let (root, workspace) = workspace(&[(".env", ""), ("real.py", "")]);
        let at = |path: &str| root.path().join(path);
        symlink(outside.path().join("x.py"), at("x.py")).expect("link");
        symlink(outside.path().join("dir"), at("dir")).expect("link");
        symlink(at(".env"), at("settings.py")).expect("link");
        symlink(at("real.py"), at("id_rsa")).expect("link");
        symlink(at("nowhere"), at("dangling.py")).expect("link");
        symlink(at("real.py"), at("alias.py")).expect("link");
        for path in ["x.py", "dir/y.py", "dir/new.py", "settings.py", "id_rsa", "dangling.py"] {
            assert_eq!(workspace.admit(&at(path)), None, "{path}");
        }
        let alias = workspace.admit(&at("alias.py")).expect("stays inside");
        assert_eq!(alias.relative, "real.py");
    }

    #[test]
    fn paths_that_are_no_files_of_a_workspace() {
        let (root, workspace) = workspace(&[("a.py", "")]);
        for path in ["", "a.py", "/", "/nowhere/at/all.py"] {
            assert_eq!(workspace.admit(Path::new(path)), None, "{path}");
        }
        assert_eq!(workspace.admit(&root.path().join("../up.py")), None);
        assert_eq!(Workspace::new(Vec::new()).admit(&root.path().join("a.py")), None);
    }
}
