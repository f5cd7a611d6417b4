//! The folders of Python packages.
//!
//! NVIDIA publishes its compiler and libraries as Python packages, which is how a machine without root rights
//! and without the big installer gets them. They lie below `nvidia/` in a folder of packages: since CUDA 13
//! together in `nvidia/cu13`, before that a folder each (`nvidia/cuda_nvrtc`).

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The folders in which the active virtual environment and the `python3` on the PATH look for packages.
pub fn package_folders() -> Vec<PathBuf> {
    let mut folders = Vec::new();
    for name in ["VIRTUAL_ENV", "CONDA_PREFIX"] {
        if let Some(prefix) = std::env::var_os(name).filter(|prefix| !prefix.is_empty()) {
            folders.extend(folders_of_prefix(Path::new(&prefix)));
        }
    }
    folders.extend(ask_the_interpreter().unwrap_or_default());
    let mut seen = std::collections::HashSet::new();
    folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    folders
}

/// `nvidia/*` of a folder of packages: what may hold `bin`, `lib` and `include`. The highest version first.
pub fn nvidia_folders(packages: &Path) -> Vec<PathBuf> {
    let mut folders = subfolders(&packages.join("nvidia"));
    folders.sort();
    folders.reverse();
    folders
}

/// The folders of packages of an installation or a virtual environment.
fn folders_of_prefix(prefix: &Path) -> Vec<PathBuf> {
    let mut folders = vec![prefix.join("Lib/site-packages")];
    for library in subfolders(&prefix.join("lib")) {
        if library.file_name().is_some_and(|name| name.to_string_lossy().starts_with("python")) {
            folders.push(library.join("site-packages"));
        }
    }
    folders
}

/// A Python may be a script that picks one of several, so the only one who knows is the interpreter.
fn ask_the_interpreter() -> Option<Vec<PathBuf>> {
    // On a Mac without developer tools, `python3` opens a dialog; there is no CUDA there anyway.
    if cfg!(target_os = "macos") {
        return None;
    }
    let output = Command::new("python3")
        .args(["-c", "import sys; print('\\n'.join(p for p in sys.path if p.endswith('-packages')))"])
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()
        .filter(|output| output.status.success())?;
    Some(String::from_utf8_lossy(&output.stdout).lines().map(PathBuf::from).collect())
}

fn subfolders(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_virtual_environment_has_its_packages_where_its_python_puts_them() {
        let prefix = tempfile::tempdir().unwrap();
        let packages = prefix.path().join("lib/python3.11/site-packages");
        std::fs::create_dir_all(packages.join("nvidia/cu13/bin")).unwrap();
        std::fs::create_dir_all(packages.join("nvidia/cu12")).unwrap();
        std::fs::create_dir_all(prefix.path().join("lib/pkgconfig")).unwrap();
        let folders: Vec<_> =
            folders_of_prefix(prefix.path()).into_iter().filter(|folder| folder.is_dir()).collect();
        assert_eq!(folders, [packages.as_path()]);
        assert_eq!(nvidia_folders(&packages), [packages.join("nvidia/cu13"), packages.join("nvidia/cu12")]);
    }
}
